//! The content of an image that nobody writes to, in 32 bytes. Blocks.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};

/// Larger images are not read: that would take longer than people wait for a check.
pub const MOST_BYTES: u64 = 256 << 20;

/// SHA-256 of a regular file of at most [`MOST_BYTES`].
pub fn sha256(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.len() > MOST_BYTES {
        return Err(io::Error::other(format!(
            "only regular files of at most {} MiB are compared by content",
            MOST_BYTES >> 20
        )));
    }
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 256 << 10];
    // It may grow while it is read.
    let mut file = file.take(MOST_BYTES);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(context.finish().as_ref().to_vec()),
            some => context.update(&buffer[..some]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_sha_256() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.iso");
        std::fs::write(&path, b"abc").unwrap();
        let hash = sha256(&path).unwrap();
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn what_is_large_or_no_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.iso");
        std::fs::File::create(&path).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert!(sha256(&path).is_err());
        assert!(sha256(folder.path()).is_err());
        assert!(sha256(&folder.path().join("absent")).is_err());
    }
}
