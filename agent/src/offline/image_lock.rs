//! QEMU's image locks, taken by the agent on the very descriptor that it reads from.
//!
//! QEMU locks single bytes of an image with open-file-description locks, always shared ones: byte 100 + n says "I use
//! permission n", byte 200 + n says "nobody else may". Whoever opens an image looks for the other kind. So a QEMU that
//! wants to write finds our "nobody may write" and ends with "Failed to get "write" lock"; qemu-img and qemu-nbd do too.
//! The lock lasts as long as the descriptor, and ends with the process.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

const USED: i64 = 100;
const NOT_SHARED: i64 = 200;

/// QEMU's numbers of its permissions.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const WRITE_UNCHANGED: i64 = 2;
const RESIZE: i64 = 3;

/// Who else may have the image open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Those that only read.
    Read,
    /// Nobody: it gets another name, or goes.
    None,
}

/// Keeps writers away until the file is closed. False: somebody is there who may not. Blocks nowhere.
pub fn hold(file: &File, others: Others) -> io::Result<bool> {
    // First said, then looked: of two that do so at the same time at least one sees the other.
    set(file, USED + CONSISTENT_READ)?;
    for permission in [WRITE, WRITE_UNCHANGED, RESIZE] {
        set(file, NOT_SHARED + permission)?;
    }
    is_free_for(file, others)
}

/// Whether nobody has it open who may not, now. Locks nothing.
pub fn is_free_for(file: &File, others: Others) -> io::Result<bool> {
    if others == Others::None {
        return Ok(are_free(file, USED, 2 * NOT_SHARED - USED)?);
    }
    let mut free = is_free(file, NOT_SHARED + CONSISTENT_READ)?;
    for permission in [WRITE, WRITE_UNCHANGED, RESIZE] {
        free &= is_free(file, USED + permission)?;
    }
    Ok(free)
}

fn byte(kind: i32, at: i64) -> libc::flock {
    libc::flock {
        // The constants are small and of another type than the field.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    }
}

fn set(file: &File, at: i64) -> io::Result<()> {
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&byte(libc::F_RDLCK, at)))?;
    Ok(())
}

/// Whether nobody else has locked this byte, in whatever way.
fn is_free(file: &File, at: i64) -> Result<bool, Errno> {
    are_free(file, at, 1)
}

/// The same for so many bytes.
fn are_free(file: &File, at: i64, bytes: i64) -> Result<bool, Errno> {
    let mut found = libc::flock {
        l_len: bytes,
        ..byte(libc::F_WRLCK, at)
    };
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(i32::from(found.l_type) == libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_is_there_is_seen_and_readers_are_not_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.raw");
        std::fs::write(&path, b"x").unwrap();
        let open = || File::open(&path).unwrap();
        let (first, second) = (open(), open());
        assert!(hold(&first, Others::None).unwrap());
        assert!(hold(&second, Others::Read).unwrap(), "two that only read");
        assert!(!hold(&second, Others::None).unwrap(), "and one that wants it alone");
        let writer = open();
        set(&writer, USED + WRITE).unwrap();
        assert!(!hold(&first, Others::Read).unwrap());
        drop(writer);
        assert!(hold(&first, Others::Read).unwrap());
        assert!(
            !is_free(&open(), NOT_SHARED + WRITE).unwrap(),
            "a QEMU that comes now sees that it may not write"
        );
        drop((first, second));
        assert!(is_free(&open(), NOT_SHARED + WRITE).unwrap());
    }
}
