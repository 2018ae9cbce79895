//! How much the agent can still write. Blocks; the service keeps it off the async threads.

use std::path::Path;

/// Bytes that a user other than root may still write there; `None` where nobody can say.
pub fn free(folder: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(folder).ok()?;
    // Both are C types whose width differs between platforms.
    #[allow(clippy::useless_conversion)]
    let (blocks, size) = (u64::from(found.blocks_available()), u64::from(found.fragment_size()));
    Some(blocks.saturating_mul(size))
}

/// Bytes that are kept free there for those that run on this host; `None` where nobody can say.
pub fn least_left(folder: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(folder).ok()?;
    // As above.
    #[allow(clippy::useless_conversion)]
    let (blocks, size) = (u64::from(found.blocks()), u64::from(found.fragment_size()));
    Some(crate::promised::least_left(blocks.saturating_mul(size)))
}

/// The number of the file system that a folder is on, as long as it stays mounted.
pub fn file_system(folder: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(folder).ok().map(|found| found.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_there_has_a_number() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free(folder.path()).unwrap() > 0);
        assert_eq!(free(&folder.path().join("absent")), None);
    }
}
