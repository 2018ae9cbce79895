//! Both ends of a copy over a connection that a test can damage, cut and count.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use drover_proto::ids::MigrationId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::sync::CancellationToken;

use super::arriving::{Arriving, Names, check_room, put_in_place, remove};
use super::image::Image;
use super::image_lock::Others;
use super::receive::Expected;
use super::send::{Progress, SendError, send};
use super::sink::FileSink;
use super::{BLOCK, FileError};
use crate::images::Identity;
use crate::promised::Promised;
use crate::storage_directories::StorageDirectories;
use crate::tunnel::Pace;

const NAME: &str = "/images/disk.raw";

struct Hosts {
    folder: tempfile::TempDir,
    migration: MigrationId,
    verified: Arc<Mutex<Vec<Identity>>>,
    /// As the destination's definition says.
    qcow2: Vec<PathBuf>,
}

fn noise(bytes: usize) -> Vec<u8> {
    let hashes = (0..bytes.div_ceil(32) as u64).flat_map(|n| super::blocks::hash(&n.to_le_bytes()));
    hashes.take(bytes).collect()
}

impl Hosts {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for host in ["a", "b"] {
            std::fs::create_dir_all(folder.path().join(host).join("images")).unwrap();
        }
        Self {
            folder,
            migration: MigrationId::generate(),
            verified: Arc::default(),
            qcow2: Vec::new(),
        }
    }

    fn path(&self, host: &str, name: &str) -> PathBuf {
        self.folder.path().join(host).join("images").join(name)
    }

    fn allowed(&self, host: &str) -> StorageDirectories {
        StorageDirectories::default().with_alias("/images".into(), self.folder.path().join(host).join("images"))
    }

    /// 8 MiB, of which two blocks hold data and half of another one does.
    fn sparse(&self) -> Vec<u8> {
        let mut content = vec![0; 8 * BLOCK + 123];
        content[BLOCK..3 * BLOCK].copy_from_slice(&noise(2 * BLOCK));
        content[5 * BLOCK..5 * BLOCK + 5000].fill(7);
        let file = File::create(self.path("a", "disk.raw")).unwrap();
        file.set_len(content.len() as u64).unwrap();
        file.write_all_at(&content[BLOCK..3 * BLOCK], BLOCK as u64).unwrap();
        file.write_all_at(&content[5 * BLOCK..5 * BLOCK + 5000], 5 * BLOCK as u64)
            .unwrap();
        content
    }

    fn hold(&self) -> Result<Arc<Image>, FileError> {
        Image::hold(&self.allowed("a"), Path::new(NAME), "raw", Others::None, &[]).map(Arc::new)
    }

    fn sink(&self, image: &Image) -> FileSink {
        self.sink_until(image, CancellationToken::new())
    }

    fn sink_until(&self, image: &Image, over: CancellationToken) -> FileSink {
        let expected = Expected {
            migration: self.migration,
            allowed: self.allowed("b"),
            files: vec![image.spec.clone()],
            qcow2: self.qcow2.clone(),
            group: None,
            writing: Arc::default(),
            over,
            gate: crate::gate::Gate::default(),
        };
        let (begun, verified) = (Arc::clone(&self.verified), Arc::clone(&self.verified));
        FileSink::new(
            expected,
            Arc::new(move || {
                begun.lock().unwrap().clear();
                Box::pin(async { Ok(()) })
            }),
            Arc::new(move |received| {
                *verified.lock().unwrap() = received;
                Box::pin(async { Ok(()) })
            }),
        )
    }

    /// One connection. What the source sends goes through `between`.
    async fn copy<F>(&self, image: &Arc<Image>, sink: &FileSink, between: F) -> (Result<(), SendError>, u64)
    where
        F: FnMut(&mut Vec<u8>) -> bool + Send + 'static,
    {
        let (near, middle) = tokio::io::duplex(64 * 1024);
        let (other, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(relay(middle, other, between));
        let sink = sink.clone();
        let receiving = tokio::spawn(async move { sink.serve(far).await });
        let progress = Progress::default();
        let sent = send(near, std::slice::from_ref(image), &Pace::new(0), &progress).await;
        let _ = receiving.await.unwrap();
        (sent, progress.wire.load(Ordering::Relaxed))
    }

    fn arriving(&self, image: &Image) -> Arriving {
        Arriving {
            spec: image.spec.clone(),
            identity: self.verified.lock().unwrap().first().cloned(),
        }
    }

    fn partial(&self) -> PathBuf {
        self.path("b", &format!("disk.raw.drover-partial-{}", self.migration))
    }
}

/// Passes bytes on until `between` says no.
async fn relay(source: DuplexStream, destination: DuplexStream, mut between: impl FnMut(&mut Vec<u8>) -> bool) {
    let (mut source_in, mut source_out) = tokio::io::split(source);
    let (mut destination_in, mut destination_out) = tokio::io::split(destination);
    let back = async move { tokio::io::copy(&mut destination_in, &mut source_out).await };
    let back = tokio::spawn(async move {
        let _ = back.await;
    });
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = source_in.read(&mut buffer).await {
        let mut piece = buffer[..read].to_vec();
        if !between(&mut piece) {
            back.abort();
            return;
        }
        if destination_out.write_all(&piece).await.is_err() {
            break;
        }
    }
    let _ = destination_out.shutdown().await;
    let _ = back.await;
}

#[tokio::test]
async fn a_file_arrives_byte_for_byte_and_its_holes_stay_holes() {
    let hosts = Hosts::new();
    let content = hosts.sparse();
    let image = hosts.hold().unwrap();
    let sink = hosts.sink(&image);
    let (sent, wire) = hosts.copy(&image, &sink, |_| true).await;
    sent.unwrap();
    assert!(wire < 2 * BLOCK as u64 + 10_000, "holes do not travel: {wire}");
    assert!(!hosts.path("b", "disk.raw").exists(), "it has no name yet");
    let arriving = hosts.arriving(&image);
    for _ in 0..2 {
        put_in_place(&hosts.allowed("b"), &arriving, hosts.migration).unwrap();
    }
    assert_eq!(std::fs::read(hosts.path("b", "disk.raw")).unwrap(), content);
    assert!(!hosts.partial().exists());
    let blocks = |host| std::fs::metadata(hosts.path(host, "disk.raw")).unwrap().blocks();
    assert!(
        blocks("b") <= blocks("a") + 16,
        "{} against {}",
        blocks("b"),
        blocks("a")
    );
    remove(&hosts.allowed("b"), &arriving, hosts.migration, Names::All).unwrap();
    assert!(!hosts.path("b", "disk.raw").exists());
}

#[tokio::test]
async fn a_copy_that_was_cut_goes_on_from_there_and_compares_what_was_sent() {
    let hosts = Hosts::new();
    let mut content = hosts.sparse();
    let image = hosts.hold().unwrap();
    let sink = hosts.sink(&image);
    let mut left = BLOCK + BLOCK / 2;
    let cut = move |piece: &mut Vec<u8>| {
        left = left.saturating_sub(piece.len());
        left > 0
    };
    let (sent, _) = hosts.copy(&image, &sink, cut).await;
    assert!(matches!(sent, Err(SendError::Cut(_))), "{sent:?}");
    let (sent, wire) = hosts.copy(&image, &sink, |_| true).await;
    sent.unwrap();
    assert!(wire < BLOCK as u64 + 10_000, "only what was missing: {wire}");
    // Whoever writes to it although nobody may is found out: what was sent before is compared again.
    content[BLOCK + 5] ^= 1;
    let writer = File::options().write(true).open(hosts.path("a", "disk.raw")).unwrap();
    writer
        .write_all_at(&content[BLOCK + 5..BLOCK + 6], BLOCK as u64 + 5)
        .unwrap();
    let (sent, wire) = hosts.copy(&image, &sink, |_| true).await;
    sent.unwrap();
    assert!(wire > BLOCK as u64, "one block again: {wire}");
    put_in_place(&hosts.allowed("b"), &hosts.arriving(&image), hosts.migration).unwrap();
    assert_eq!(std::fs::read(hosts.path("b", "disk.raw")).unwrap(), content);
}

#[tokio::test]
async fn a_byte_that_changes_on_its_way_is_noticed_and_sent_again() {
    let hosts = Hosts::new();
    let content = hosts.sparse();
    let image = hosts.hold().unwrap();
    let sink = hosts.sink(&image);
    let mut passed = 0;
    let flip = move |piece: &mut Vec<u8>| {
        let target = BLOCK / 2;
        if (passed..passed + piece.len()).contains(&target) {
            piece[target - passed] ^= 0x10;
        }
        passed += piece.len();
        true
    };
    let (sent, _) = hosts.copy(&image, &sink, flip).await;
    match sent {
        Err(SendError::Refused { again: true, why, .. }) => assert!(why.contains("damaged"), "{why}"),
        other => panic!("{other:?}"),
    }
    let (sent, _) = hosts.copy(&image, &sink, |_| true).await;
    sent.unwrap();
    put_in_place(&hosts.allowed("b"), &hosts.arriving(&image), hosts.migration).unwrap();
    assert_eq!(std::fs::read(hosts.path("b", "disk.raw")).unwrap(), content);
}

#[tokio::test]
async fn what_was_verified_counts_no_more_once_it_is_written_to_again() {
    let hosts = Hosts::new();
    hosts.sparse();
    let image = hosts.hold().unwrap();
    let sink = hosts.sink(&image);
    hosts.copy(&image, &sink, |_| true).await.0.unwrap();
    assert!(!hosts.verified.lock().unwrap().is_empty());
    let (sent, _) = hosts.copy(&image, &sink, |_| false).await;
    assert!(matches!(sent, Err(SendError::Cut(_))), "{sent:?}");
    // Whatever came of the second connection, the first one's word is gone.
    let (mut near, far) = tokio::io::duplex(64);
    let serving = tokio::spawn(async move { sink.serve(far).await });
    near.shutdown().await.unwrap();
    assert!(serving.await.unwrap().is_err());
    assert!(hosts.verified.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_block_that_cannot_be_read_ends_the_copy_and_is_named() {
    let hosts = Hosts::new();
    hosts.sparse();
    let image = hosts.hold().unwrap();
    let file = File::options().write(true).open(hosts.path("a", "disk.raw")).unwrap();
    file.set_len(2 * BLOCK as u64 + 5).unwrap();
    match hosts.copy(&image, &hosts.sink(&image), |_| true).await.0 {
        Err(read @ SendError::Read { .. }) => assert!(read.to_string().contains("disk.raw: block 2"), "{read}"),
        other => panic!("{other:?}"),
    }
    assert!(hosts.verified.lock().unwrap().is_empty());
}

/// Whoever undoes a migration waits for the writer: that one does not read a whole file first.
#[tokio::test]
async fn nothing_is_read_or_written_for_a_migration_that_is_over() {
    let hosts = Hosts::new();
    hosts.sparse();
    let image = hosts.hold().unwrap();
    let over = CancellationToken::new();
    let sink = hosts.sink_until(&image, over.clone());
    let mut left = BLOCK + BLOCK / 2;
    let cut = move |piece: &mut Vec<u8>| {
        left = left.saturating_sub(piece.len());
        left > 0
    };
    hosts.copy(&image, &sink, cut).await.0.unwrap_err();
    over.cancel();
    match hosts.copy(&image, &sink, |_| true).await.0 {
        Err(SendError::Refused { why, .. }) => assert!(why.contains("nobody wants it"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_touched_outside_of_the_allowed_directories() {
    let hosts = Hosts::new();
    hosts.sparse();
    let allowed = hosts.allowed("a");
    let outside = hosts.folder.path().join("a/secret.raw");
    std::fs::write(&outside, b"secret").unwrap();
    std::os::unix::fs::symlink(&outside, hosts.path("a", "link.raw")).unwrap();
    std::os::unix::fs::symlink(hosts.folder.path(), hosts.path("a", "way")).unwrap();
    let hold = |path: &str| Image::hold(&allowed, Path::new(path), "raw", Others::None, &[]).map(|_| ());
    assert!(matches!(hold("/secret.raw"), Err(FileError::Outside(_))));
    for path in [
        "/images/../secret.raw",
        "images/disk.raw",
        "/images/./disk.raw",
        "/images//disk.raw",
        "/images/",
    ] {
        assert!(
            matches!(hold(path), Err(FileError::Path(_))),
            "{path}: {:?}",
            hold(path)
        );
    }
    for path in ["/images/link.raw", "/images/way/a/secret.raw"] {
        assert!(
            matches!(hold(path), Err(FileError::Link(_))),
            "{path}: {:?}",
            hold(path)
        );
    }
    assert!(matches!(hold("/images/absent.raw"), Err(FileError::Absent(_))));
    assert!(hold(NAME).is_ok());
}

#[test]
fn a_chain_is_refused_and_so_is_what_is_no_qcow2() {
    let hosts = Hosts::new();
    let hold = |format: &str| Image::hold(&hosts.allowed("a"), Path::new(NAME), format, Others::None, &[]).map(|_| ());
    let write = |bytes: &[u8]| std::fs::write(hosts.path("a", "disk.raw"), bytes).unwrap();
    let mut header = vec![0_u8; 4096];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    write(&header);
    hold("qcow2").unwrap();
    header[8..16].copy_from_slice(&1024_u64.to_be_bytes());
    header[16..20].copy_from_slice(&8_u32.to_be_bytes());
    header[1024..1032].copy_from_slice(b"base.img");
    write(&header);
    match hold("qcow2") {
        Err(FileError::Chain { what, .. }) => assert!(what.starts_with("base.img"), "{what}"),
        other => panic!("{other:?}"),
    }
    hold("raw").unwrap();
    write(b"no image at all");
    for format in ["qcow2", "vmdk"] {
        assert!(matches!(hold(format), Err(FileError::Chain { .. })), "{format}");
    }
}

/// A source that sends one all the same: its guest would read a file of the destination's host.
#[tokio::test]
async fn an_image_that_names_another_file_is_not_taken() {
    let mut hosts = Hosts::new();
    let overlay = super::chain::tests::overlay(b"/etc/shadow", Some(b"raw"));
    std::fs::write(hosts.path("a", "disk.raw"), overlay).unwrap();
    let image = hosts.hold().unwrap();
    hosts.qcow2 = vec![PathBuf::from(NAME)];
    match hosts.copy(&image, &hosts.sink(&image), |_| true).await.0 {
        Err(SendError::Refused { again: false, why, .. }) => assert!(why.contains("/etc/shadow"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(hosts.verified.lock().unwrap().is_empty());
    // What the guest wrote into a raw image names nothing.
    hosts.qcow2 = Vec::new();
    hosts.copy(&image, &hosts.sink(&image), |_| true).await.0.unwrap();
}

#[test]
fn what_cannot_be_received_is_refused_before_it_is_sent() {
    let hosts = Hosts::new();
    hosts.sparse();
    let image = hosts.hold().unwrap();
    let check = |file: &Arriving| {
        check_room(
            &hosts.allowed("b"),
            std::slice::from_ref(file),
            hosts.migration,
            &Promised::default(),
        )
    };
    let mut arriving = hosts.arriving(&image);
    check(&arriving).unwrap();
    arriving.spec.allocated = u64::MAX / 4;
    assert!(matches!(check(&arriving), Err(FileError::Space { .. })));
    arriving.spec.allocated = 0;
    std::fs::write(hosts.path("b", "disk.raw"), b"somebody's").unwrap();
    assert!(matches!(check(&arriving), Err(FileError::Exists(_))));
    // And what came in between is not overwritten, nor removed.
    std::fs::write(hosts.partial(), b"ours").unwrap();
    arriving.identity = Identity::of(&hosts.partial()).unwrap();
    let put = put_in_place(&hosts.allowed("b"), &arriving, hosts.migration);
    assert!(matches!(put, Err(FileError::Exists(_))), "{put:?}");
    remove(&hosts.allowed("b"), &arriving, hosts.migration, Names::All).unwrap();
    assert!(!hosts.partial().exists());
    assert_eq!(std::fs::read(hosts.path("b", "disk.raw")).unwrap(), b"somebody's");
}
