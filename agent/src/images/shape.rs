//! What an image at the source is: its size, and what of its format a copy must share. Reads the head of a file and
//! takes no lock; the guest goes on writing. Blocks.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::{Format, Identity};

const MAGIC: &[u8] = b"QFI\xfb";
/// A header of version 3 without its extensions.
const HEADER: usize = 104;
/// QEMU counts raw images in whole sectors.
const SECTOR: u64 = 512;

/// Bits of the incompatible features that a copy would not have, with what they mean.
const NOT_COPIED: [(u64, &str); 2] = [
    (1 << 1, "it is marked corrupt"),
    (1 << 2, "its data lies in another file"),
];
/// Clusters are compressed by zstd: whoever asks for that has compressed ones.
const OTHER_COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// Dirty, compression type, and the two above.
const KNOWN: u64 = 0b1_1111;
const LAZY_REFCOUNTS: u64 = 1;

/// What was found. What lies beneath an image is in no shape: QEMU reads it as the guest does, and the copy has it all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub format: Format,
    /// What the guest sees, in bytes.
    pub virtual_size: u64,
    /// What the file takes, in bytes.
    pub allocated: u64,
    /// A copy takes no more than that.
    is_plain: bool,
    pub identity: Identity,
}

impl Shape {
    /// Of a block device of so many bytes: all of it is copied.
    pub(super) fn of_device(size: u64, identity: Identity) -> Result<Self, NotCopied> {
        if size == 0 {
            return Err(NotCopied::Header("it is empty".to_owned()));
        }
        Ok(Self {
            format: Format::Raw,
            virtual_size: size,
            allocated: size,
            is_plain: false,
            identity,
        })
    }

    /// What a copy that QEMU makes takes at most, in bytes: a raw one may have no holes any more, and what was compressed
    /// is not, as far as the header tells.
    pub fn copy_takes(&self) -> u64 {
        if self.is_plain {
            self.allocated
        } else {
            self.allocated.max(self.virtual_size)
        }
    }
}

/// Why an image cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum NotCopied {
    /// Most often the agent's user may not read it.
    #[error("the agent cannot read it: {0}")]
    Io(io::Error),
    #[error("images of the format {0:?} are not copied")]
    Format(String),
    #[error("{0}")]
    Header(String),
}

/// Reads what the definition calls an image of `format`.
pub fn read(path: &Path, format: &str) -> Result<Shape, NotCopied> {
    // Not through a link, and not held up by a pipe.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(NotCopied::Io)?;
    let found = file.metadata().map_err(NotCopied::Io)?;
    if !found.is_file() {
        return Err(NotCopied::Header("it is no regular file".to_owned()));
    }
    let (format, virtual_size, is_plain) = match format {
        "raw" => (Format::Raw, found.len().next_multiple_of(SECTOR), false),
        "qcow2" => qcow2(&head(&mut file).map_err(NotCopied::Io)?)?,
        other => return Err(NotCopied::Format(other.to_owned())),
    };
    if virtual_size == 0 {
        return Err(NotCopied::Header("it is empty".to_owned()));
    }
    Ok(Shape {
        format,
        virtual_size,
        // In units of 512 bytes, whatever the file system's own are.
        allocated: found.blocks().saturating_mul(512),
        is_plain,
        identity: Identity::from_metadata(&found),
    })
}

fn head(file: &mut File) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEADER);
    file.take(HEADER as u64).read_to_end(&mut head)?;
    // A header of version 2 is shorter: what it lacks is nothing.
    head.resize(HEADER, 0);
    Ok(head)
}

/// The format's own description: docs/interop/qcow2 of QEMU.
fn qcow2(head: &[u8]) -> Result<(Format, u64, bool), NotCopied> {
    let number = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&head[at..at + 4]);
        u32::from_be_bytes(bytes)
    };
    let long = |at: usize| u64::from(number(at)) << 32 | u64::from(number(at + 4));
    let bad = |why: String| Err(NotCopied::Header(why));
    if &head[..4] != MAGIC {
        return bad("it is no qcow2 image".to_owned());
    }
    let version = number(4);
    if !(2..=3).contains(&version) {
        return bad(format!("qcow2 of version {version} is not known"));
    }
    if number(32) != 0 {
        return bad("it is encrypted".to_owned());
    }
    let snapshots = number(60);
    if snapshots != 0 {
        return bad(format!("it holds {snapshots} snapshots, which would not be copied"));
    }
    let (incompatible, compatible) = if version == 3 { (long(72), long(80)) } else { (0, 0) };
    if let Some((_, why)) = NOT_COPIED.iter().find(|(bit, _)| incompatible & bit != 0) {
        return bad((*why).to_owned());
    }
    if incompatible & !KNOWN != 0 {
        return bad(format!("it has features that are not known ({incompatible:#x})"));
    }
    let cluster_bits = number(20);
    if !(9..=21).contains(&cluster_bits) {
        return bad(format!("clusters of 2^{cluster_bits} bytes are not known"));
    }
    let format = Format::Qcow2 {
        version,
        cluster_bits,
        lazy_refcounts: compatible & LAZY_REFCOUNTS != 0,
        extended_l2: incompatible & EXTENDED_L2 != 0,
    };
    Ok((format, long(24), incompatible & OTHER_COMPRESSION == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut head = vec![0; HEADER];
        head[..4].copy_from_slice(MAGIC);
        head[4..8].copy_from_slice(&3u32.to_be_bytes());
        head[20..24].copy_from_slice(&16u32.to_be_bytes());
        head[24..32].copy_from_slice(&(64u64 << 20).to_be_bytes());
        change(&mut head);
        head
    }

    fn read_bytes(bytes: &[u8], format: &str) -> Result<Shape, NotCopied> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        read(&path, format)
    }

    #[test]
    fn a_raw_image_is_as_large_as_its_file() {
        let shape = read_bytes(&[1; 1000], "raw").unwrap();
        assert_eq!((shape.format, shape.virtual_size), (Format::Raw, 1024));
        assert!(shape.allocated > 0);
        assert!(shape.copy_takes() >= 1024, "its holes are lost on the way");
        assert!(read_bytes(&[], "raw").is_err());
    }

    #[test]
    fn a_qcow2_image_is_what_its_header_says() {
        let shape = read_bytes(&header(|head| head[87] = 1), "qcow2").unwrap();
        let expected = Format::Qcow2 {
            version: 3,
            cluster_bits: 16,
            lazy_refcounts: true,
            extended_l2: false,
        };
        assert_eq!((shape.format, shape.virtual_size), (expected, 64 << 20));
        assert_eq!(shape.copy_takes(), shape.allocated);
        let compressed = read_bytes(&header(|head| head[79] = 8), "qcow2").unwrap();
        assert_eq!(compressed.copy_takes(), 64 << 20, "it is not compressed any more");
    }

    #[test]
    fn what_lies_beneath_an_image_is_not_its_own_business() {
        let plain = read_bytes(&header(|_| {}), "qcow2").unwrap();
        let layered = read_bytes(&header(|head| head[15] = 104), "qcow2").unwrap();
        assert_eq!(
            (layered.format, layered.virtual_size),
            (plain.format, plain.virtual_size)
        );
    }

    #[test]
    fn what_a_copy_would_lose_is_refused() {
        type Change = fn(&mut [u8]);
        let cases: [(&str, Change); 6] = [
            ("encrypted", |head| head[35] = 1),
            ("snapshots", |head| head[63] = 2),
            ("corrupt", |head| head[79] = 2),
            ("another file", |head| head[79] = 4),
            ("not known", |head| head[79] = 64),
            ("version 4", |head| head[7] = 4),
        ];
        for (why, change) in cases {
            let error = read_bytes(&header(change), "qcow2").unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert!(read_bytes(b"short", "qcow2").is_err());
        assert!(matches!(read_bytes(b"x", "vmdk"), Err(NotCopied::Format(_))));
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path(), "raw").is_err());
        assert!(read(&folder.path().join("absent"), "raw").is_err());
        let link = folder.path().join("link");
        std::fs::write(folder.path().join("a"), [1; 512]).unwrap();
        std::os::unix::fs::symlink(folder.path().join("a"), &link).unwrap();
        assert!(read(&link, "raw").is_err());
    }
}
