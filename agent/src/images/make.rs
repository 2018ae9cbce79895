//! Makes the empty image that QEMU will fill: under a name that only this migration has, then in its place.
//!
//! ```text
//! journal: to be made ──▶ .drover-image-… made ──▶ journal: its identity ──▶ linked to its path ──▶ first name removed
//! ```
//! At every point of it [`super::remove::made`] knows what is this migration's and what is not. Nothing that is there
//! is ever replaced.

use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::MigrationId;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::{Format, Identity, NewImage, device, room};
use crate::storage_directories::StorageDirectories;

/// An image without data is made in milliseconds; a network file system may need longer.
const TOOL_LIMIT: Duration = Duration::from_secs(30);
/// So much of what a tool says is kept.
const MOST_WORDS: u64 = 4096;

/// Where an image lies until it is put in its place.
pub fn first_name(image: &NewImage, migration: MigrationId) -> PathBuf {
    let name = format!(".drover-image-{migration}-{}", image.target);
    image.path.with_file_name(name)
}

/// Makes it, empty, under its first name. `group` is QEMU's: libvirt gives the file to QEMU's user, but where it is
/// told to leave owners alone the group has to do.
pub async fn make(
    image: &NewImage,
    migration: MigrationId,
    group: Option<u32>,
    allowed: &StorageDirectories,
) -> Result<Identity, Failure> {
    let first = first_name(image, migration);
    let (prepared, permitted, path) = (image.clone(), allowed.clone(), first.clone());
    blocking(move || {
        permitted
            .allow(&prepared.path)
            .map_err(|error| refused(&prepared, &error.to_string()).with_remedy(error.remedy()))?;
        room::refuse_existing(&prepared.path).map_err(|(why, remedy)| refused(&prepared, &why).with_remedy(remedy))?;
        create(&path, group).map_err(|error| failed(&prepared, &error))?;
        match prepared.format {
            Format::Raw => std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|file| file.set_len(prepared.virtual_size))
                .map_err(|error| failed(&prepared, &error)),
            Format::Qcow2 { .. } => Ok(()),
        }
    })
    .await?;
    if let Some(options) = options(image.format) {
        qemu_img(image, &first, &options).await?;
    }
    let image = image.clone();
    blocking(move || match Identity::of(&first) {
        Ok(Some(identity)) => Ok(identity),
        Ok(None) => Err(refused(&image, "it was removed while it was made")),
        Err(error) => Err(failed(&image, &error)),
    })
    .await
}

/// In place of making one: the device that QEMU will overwrite, looked at as it is now.
pub async fn look_at_device(image: &NewImage, allowed: &StorageDirectories) -> Result<(), Failure> {
    let (image, allowed) = (image.clone(), allowed.clone());
    blocking(
        move || match device::fit(&image.path, image.virtual_size, allowed.devices()) {
            Ok(_) => Ok(()),
            Err(unfit) => {
                let message = format!("{} cannot be copied: {unfit}", image.target);
                Err(Failure::new(Reason::ChecksFailed, message).with_remedy(unfit.remedy()))
            }
        },
    )
    .await
}

/// Puts a made image in its place. Its identity must be journaled by now.
pub async fn place(image: &NewImage, migration: MigrationId) -> Result<(), Failure> {
    let (first, image) = (first_name(image, migration), image.clone());
    blocking(move || {
        // A link, not a rename: it fails where something is there. Its name is on the disk before the source's may go.
        std::fs::hard_link(&first, &image.path)
            .and_then(|()| std::fs::remove_file(&first))
            .and_then(|()| std::fs::File::open(image.path.parent().unwrap_or(Path::new("/")))?.sync_all())
            .map_err(|error| failed(&image, &error))
    })
    .await
}

fn create(path: &Path, group: Option<u32>) -> io::Result<()> {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    if group.is_some() {
        chown(path, None, group)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o660))?;
    }
    Ok(())
}

/// What qemu-img is told; none where it is not needed.
fn options(format: Format) -> Option<String> {
    let Format::Qcow2 {
        version,
        cluster_bits,
        lazy_refcounts,
        extended_l2,
    } = format
    else {
        return None;
    };
    let compat = if version == 2 { "0.10" } else { "1.1" };
    let mut options = format!("compat={compat},cluster_size={}", 1u64 << cluster_bits);
    if lazy_refcounts {
        options.push_str(",lazy_refcounts=on");
    }
    if extended_l2 {
        options.push_str(",extended_l2=on");
    }
    Some(options)
}

/// Into the file that is there already, which keeps its owner and mode.
async fn qemu_img(image: &NewImage, path: &Path, options: &str) -> Result<(), Failure> {
    let mut command = Command::new("qemu-img");
    command
        .args(["create", "-q", "-f", image.format.name(), "-o", options, "--"])
        .arg(path)
        .arg(image.virtual_size.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let run = async {
        let mut child = command.spawn()?;
        let mut said = String::new();
        if let Some(stderr) = child.stderr.take() {
            // What is not text is not shown.
            let _ = stderr.take(MOST_WORDS).read_to_string(&mut said).await;
        }
        Ok::<_, io::Error>((child.wait().await?, said))
    };
    match tokio::time::timeout(TOOL_LIMIT, run).await {
        Ok(Ok((status, _))) if status.success() => Ok(()),
        Ok(Ok((status, said))) => Err(refused(image, &format!("qemu-img ({status}): {}", said.trim()))),
        Ok(Err(error)) => {
            let failure = refused(image, &format!("qemu-img cannot be run: {error}"));
            Err(failure.with_remedy("install qemu-img (qemu-utils) on that host"))
        }
        Err(_) => Err(refused(
            image,
            &format!("qemu-img took longer than {} s", TOOL_LIMIT.as_secs()),
        )),
    }
}

fn refused(image: &NewImage, why: &str) -> Failure {
    let message = format!("the image of {} cannot be made: {why}", image.target);
    Failure::new(Reason::ChecksFailed, message)
}

fn failed(image: &NewImage, error: &io::Error) -> Failure {
    let message = format!(
        "the image of {} cannot be made at {}: {error}",
        image.target,
        image.path.display()
    );
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    // Also where something is there: nobody but this migration may have put it there.
    let reason = if full {
        Reason::ResourceExhausted
    } else {
        Reason::ChecksFailed
    };
    Failure::new(reason, message)
        .with_remedy("see to it that the agent's user may write there and nothing is at that path")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::internal(error.to_string()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(path: PathBuf, format: Format) -> NewImage {
        NewImage {
            target: "vda".to_owned(),
            path,
            format,
            virtual_size: 3 << 20,
            allocated: 0,
            block_device: false,
        }
    }

    #[tokio::test]
    async fn a_raw_image_is_made_sparse_and_put_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let allowed = StorageDirectories::new(vec![folder.path().to_owned()]).unwrap();
        let (image, migration) = (image(folder.path().join("a.raw"), Format::Raw), MigrationId::generate());
        let identity = make(&image, migration, None, &allowed).await.unwrap();
        assert!(!image.path.exists());
        place(&image, migration).await.unwrap();
        assert_eq!(Identity::of(&image.path).unwrap(), Some(identity));
        assert!(!first_name(&image, migration).exists());
        let shape = super::super::shape::read(&image.path, "raw").unwrap();
        assert_eq!((shape.virtual_size, shape.allocated), (3 << 20, 0));
    }

    #[tokio::test]
    async fn nothing_that_is_there_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let allowed = StorageDirectories::new(vec![folder.path().to_owned()]).unwrap();
        let (image, migration) = (image(folder.path().join("a.raw"), Format::Raw), MigrationId::generate());
        make(&image, migration, None, &allowed).await.unwrap();
        // Somebody is quicker.
        std::fs::write(&image.path, b"precious").unwrap();
        assert!(place(&image, migration).await.is_err());
        assert!(make(&image, MigrationId::generate(), None, &allowed).await.is_err());
        assert_eq!(std::fs::read(&image.path).unwrap(), b"precious");
    }

    #[test]
    fn a_qcow2_image_is_made_like_the_sources() {
        let like = |version, lazy_refcounts| {
            options(Format::Qcow2 {
                version,
                cluster_bits: 16,
                lazy_refcounts,
                extended_l2: false,
            })
            .unwrap()
        };
        assert_eq!(like(2, false), "compat=0.10,cluster_size=65536");
        assert_eq!(like(3, true), "compat=1.1,cluster_size=65536,lazy_refcounts=on");
        assert_eq!(options(Format::Raw), None);
    }
}
