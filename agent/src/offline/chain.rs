//! What lies beneath an image, read from the heads of the files: libvirt tells it only of guests that run. All functions
//! block.
//!
//! The format's own description: docs/interop/qcow2 of QEMU.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::FileError;

const MAGIC: &[u8] = b"QFI\xfb";
/// Head and extensions; a backing file's name is read by itself.
const HEAD: usize = 4096;
/// A header of version 2.
const OLD_HEADER: usize = 72;
/// QEMU's own limit.
const LONGEST_NAME: u64 = 1023;
const DATA_FILE: u64 = 1 << 2;
const BACKING_FORMAT: u64 = 0xe279_2aca;
/// More are not followed: libvirt's limit is 200, and people's is far lower.
const MOST: usize = 64;

/// An image that another one lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub path: PathBuf,
    pub format: String,
}

/// What a file names as lying beneath it; none where it is whole by itself. What is neither raw nor qcow2, or has its
/// data elsewhere, is refused.
pub fn beneath(file: &File, path: &Path, format: &str) -> Result<Option<Layer>, FileError> {
    let refused = |what: &str| FileError::Chain {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    match format {
        "raw" => return Ok(None),
        "qcow2" => {}
        other => return Err(refused(&format!("format {other:?} is not known to be one file"))),
    }
    let failed = |source| FileError::io(path, source);
    let head = head(file).map_err(failed)?;
    if head.len() < OLD_HEADER || !head.starts_with(MAGIC) {
        return Err(refused("it is not the qcow2 image that the guest's definition says"));
    }
    let (version, name_at, length) = (number(&head, 4, 4), number(&head, 8, 8), number(&head, 16, 4));
    if version >= 3 && number(&head, 72, 8) & DATA_FILE != 0 {
        return Err(refused("its data lie in another file"));
    }
    if name_at == 0 {
        return Ok(None);
    }
    let mut name = vec![0; usize::try_from(length.min(LONGEST_NAME)).unwrap_or(0)];
    file.read_exact_at(&mut name, name_at).map_err(failed)?;
    let name = String::from_utf8_lossy(&name).into_owned();
    // `json:…`, `nbd://…`: QEMU takes anything before a colon for a protocol.
    if name.is_empty() || name.split('/').next().is_some_and(|first| first.contains(':')) {
        return Err(refused(&name));
    }
    let Some(format) = backing_format(&head, version) else {
        return Err(refused(&format!("{name}, and it does not say of which format that is")));
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let path = folder.join(&name);
    Ok(Some(Layer { path, format }))
}

/// All that lies beneath an image, nearest first. Where it cannot be followed to its end it is told so far, and why.
pub fn read(
    path: &Path,
    format: &str,
    open: impl Fn(&Path) -> Result<File, FileError>,
) -> (Vec<Layer>, Option<FileError>) {
    let (mut layers, mut path, mut format) = (Vec::new(), path.to_owned(), format.to_owned());
    loop {
        // Nothing lies beneath a raw one, whatever it holds.
        if format == "raw" {
            return (layers, None);
        }
        match open(&path).and_then(|file| beneath(&file, &path, &format)) {
            Ok(None) => return (layers, None),
            Err(error) => return (layers, Some(error)),
            Ok(Some(layer)) if layers.len() == MOST || layers.contains(&layer) => {
                let what = format!("more than {MOST} files, or one on itself");
                return (layers, Some(FileError::Chain { path, what }));
            }
            Ok(Some(layer)) => {
                (path, format) = (layer.path.clone(), layer.format.clone());
                layers.push(layer);
            }
        }
    }
}

/// Refuses an image that lies on anything but these.
pub fn only_on(known: &[PathBuf], file: &File, path: &Path, format: &str) -> Result<(), FileError> {
    match beneath(file, path, format)? {
        Some(layer) if !known.contains(&layer.path) => Err(FileError::Chain {
            path: path.to_owned(),
            what: layer.path.display().to_string(),
        }),
        Some(_) | None => Ok(()),
    }
}

fn head(file: &File) -> io::Result<Vec<u8>> {
    let (mut head, mut filled) = (vec![0; HEAD], 0);
    while filled < HEAD {
        match file.read_at(&mut head[filled..], filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    head.truncate(filled);
    Ok(head)
}

/// What is beyond the end is zero.
fn number(head: &[u8], at: usize, bytes: usize) -> u64 {
    let digits = head.iter().skip(at).take(bytes);
    digits.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn backing_format(head: &[u8], version: u64) -> Option<String> {
    let mut at = match version {
        2 => OLD_HEADER,
        _ => usize::try_from(number(head, 100, 4)).ok()?,
    };
    loop {
        let (kind, length) = (number(head, at, 4), usize::try_from(number(head, at + 4, 4)).ok()?);
        let data = at.checked_add(8)?;
        let end = data.checked_add(length)?;
        match kind {
            0 => return None,
            BACKING_FORMAT => return String::from_utf8(head.get(data..end)?.to_vec()).ok(),
            _ => at = end.checked_next_multiple_of(8)?,
        }
        if at >= head.len() {
            return None;
        }
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
pub(super) mod tests;
