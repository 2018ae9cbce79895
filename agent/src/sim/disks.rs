//! Copied disks between two simulated QEMUs: the bytes of one image file into another, over a unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::error;
use crate::guest_xml;
use crate::hypervisor::{CopiedDisks, DiskCopy, Result};

/// Between two looks whether it was aborted.
const PIECE: usize = 64 * 1024;
/// Longer than any target.
const LONGEST_TARGET: usize = 64;

/// Target and image file of a copied disk.
pub(super) type Image = (String, PathBuf);

/// Where a definition has the copied disks. Each has to be there, as for a real QEMU.
pub(super) fn images(xml: &str, copied: Option<&CopiedDisks>) -> Result<Vec<Image>> {
    let Some(copied) = copied else {
        return Ok(Vec::new());
    };
    let shape = guest_xml::read(xml).map_err(|unreadable| error::bad_xml(unreadable.to_string()))?;
    let find = |target: &str| {
        let disk = shape.disks.iter().find(|disk| disk.target == target);
        let path = disk.map(|disk| PathBuf::from(&disk.source)).unwrap_or_default();
        if path.is_file() {
            Ok((target.to_owned(), path))
        } else {
            Err(error::failed(format!(
                "Cannot access storage file '{}'",
                path.display()
            )))
        }
    };
    copied.targets().map(find).collect()
}

/// One image; returns when the other side has all of it. `sent` is told how many bytes more were, and of how many.
pub(super) async fn send(socket: &Path, (target, path): &Image, mut sent: impl FnMut(u64, u64)) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut file = File::open(path).await?;
    let length = file.metadata().await?.len();
    stream.write_u8(u8::try_from(target.len()).unwrap_or(u8::MAX)).await?;
    stream.write_all(target.as_bytes()).await?;
    stream.write_u64(length).await?;
    let mut piece = vec![0; PIECE];
    let mut left = length;
    while left > 0 {
        let at_once = piece.len().min(usize::try_from(left).unwrap_or(PIECE));
        file.read_exact(&mut piece[..at_once]).await?;
        stream.write_all(&piece[..at_once]).await?;
        left -= at_once as u64;
        sent(at_once as u64, length);
    }
    stream.flush().await?;
    stream.read_u8().await.map(drop)
}

/// As a block job counts.
pub(super) fn count(disks: &mut Vec<DiskCopy>, target: &str, sent: u64, total: u64) {
    match disks.iter_mut().find(|copy| copy.disk == target) {
        Some(copy) => copy.remaining = copy.remaining.saturating_sub(sent),
        None => disks.push(DiskCopy {
            disk: target.to_owned(),
            total,
            remaining: total.saturating_sub(sent),
        }),
    }
}

/// Takes images until it is cut off.
pub(super) async fn receive(listener: UnixListener, images: Vec<Image>) {
    let images = Arc::new(images);
    while let Ok((stream, _)) = listener.accept().await {
        let images = Arc::clone(&images);
        // What goes wrong is seen by the other side, whose connection ends without an answer.
        tokio::spawn(async move { fill(stream, &images).await });
    }
}

async fn fill(mut stream: UnixStream, images: &[Image]) -> io::Result<()> {
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, "no such disk");
    let mut target = vec![0; usize::from(stream.read_u8().await?).min(LONGEST_TARGET)];
    stream.read_exact(&mut target).await?;
    let image = images.iter().find(|(known, _)| known.as_bytes() == target);
    let (_, path) = image.ok_or_else(unknown)?;
    let mut left = stream.read_u64().await?;
    // Never made here: the agent has made it before.
    let mut file = File::options().write(true).open(path).await?;
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let at_once = piece.len().min(usize::try_from(left).unwrap_or(PIECE));
        stream.read_exact(&mut piece[..at_once]).await?;
        file.write_all(&piece[..at_once]).await?;
        left -= at_once as u64;
    }
    file.flush().await?;
    stream.write_u8(1).await
}
