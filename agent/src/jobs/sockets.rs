//! The directory of each migration's unix sockets: only the agent's and QEMU's users can enter it.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::MigrationId;

/// Where the directories are made, and for whom.
#[derive(Clone, Debug)]
pub struct Sockets {
    run_dir: PathBuf,
    /// QEMU's group; `None` leaves the agent's own.
    group: Option<u32>,
}

impl Sockets {
    pub fn new(run_dir: PathBuf, group: Option<u32>) -> Self {
        Self { run_dir, group }
    }

    pub fn group(&self) -> Option<u32> {
        self.group
    }

    fn directory(&self, migration: MigrationId) -> PathBuf {
        self.run_dir.join(migration.to_string())
    }

    /// Where the source's QEMU connects to.
    pub fn source(&self, migration: MigrationId) -> PathBuf {
        self.directory(migration).join("source.sock")
    }

    /// Where the destination's QEMU listens.
    pub fn destination(&self, migration: MigrationId) -> PathBuf {
        self.directory(migration).join("memory.sock")
    }

    /// Where the source's QEMU connects to with copied disks.
    pub fn source_disks(&self, migration: MigrationId) -> PathBuf {
        self.directory(migration).join("source-disks.sock")
    }

    /// Where the destination's QEMU listens for copied disks.
    pub fn destination_disks(&self, migration: MigrationId) -> PathBuf {
        self.directory(migration).join("disks.sock")
    }

    /// Makes the directory anew: what an earlier try left in it is gone.
    pub async fn make(&self, migration: MigrationId) -> Result<(), Failure> {
        let (directory, group) = (self.directory(migration), self.group);
        let failed = directory.clone();
        let made = tokio::task::spawn_blocking(move || make(&directory, group)).await;
        made.map_err(io::Error::other).and_then(|made| made).map_err(|error| {
            let message = format!("cannot make {}: {error}", failed.display());
            Failure::new(Reason::ResourceExhausted, message)
                .with_remedy("the agent's user must own run_dir and be a member of qemu_group")
        })
    }

    /// Removes the directory with all that is in it. Absent is done.
    pub async fn remove(&self, migration: MigrationId) -> Result<(), Failure> {
        let directory = self.directory(migration);
        match tokio::fs::remove_dir_all(&directory).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let message = format!("cannot remove {}: {error}", directory.display());
                Err(Failure::new(Reason::ResourceExhausted, message))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes the directories of all migrations but those that are kept.
    pub async fn sweep(&self, keep: impl Fn(MigrationId) -> bool) {
        let Ok(mut entries) = tokio::fs::read_dir(&self.run_dir).await else {
            return;
        };
        while let Ok(Some(entry)) = entries.next_entry().await {
            let migration = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(migration) = migration.filter(|migration| !keep(*migration))
                && let Err(error) = self.remove(migration).await
            {
                tracing::warn!(%error, "a stale socket directory stays");
            }
        }
    }
}

fn make(directory: &Path, group: Option<u32>) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    std::fs::DirBuilder::new().mode(0o700).create(directory)?;
    if group.is_some() {
        chown(directory, None, group)?;
        // setgid: the sockets made in it belong to QEMU's group, whoever makes them.
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o2770))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn directories_are_made_swept_and_removed() {
        let run_dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(run_dir.path().to_owned(), None);
        let (kept, stale) = (MigrationId::generate(), MigrationId::generate());
        for migration in [kept, stale] {
            sockets.make(migration).await.unwrap();
            std::fs::write(sockets.source(migration), b"").unwrap();
        }
        sockets.make(kept).await.unwrap();
        assert!(!sockets.source(kept).exists(), "made anew");
        std::fs::create_dir(run_dir.path().join("not-ours")).unwrap();
        sockets.sweep(|migration| migration == kept).await;
        assert!(sockets.directory(kept).exists() && !sockets.directory(stale).exists());
        assert!(run_dir.path().join("not-ours").exists());
        sockets.remove(kept).await.unwrap();
        sockets.remove(kept).await.unwrap();
        assert!(!sockets.directory(kept).exists());
    }

    #[tokio::test]
    async fn only_the_two_users_can_enter() {
        let run_dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(run_dir.path().to_owned(), Some(nix::unistd::getgid().as_raw()));
        let migration = MigrationId::generate();
        sockets.make(migration).await.unwrap();
        let mode = std::fs::metadata(sockets.directory(migration))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o2770);
    }
}
