//! A file at its destination, before it has its name: made, filled block by block, verified, put in its place, removed.
//! All functions block.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Instant;

use drover_proto::ids::MigrationId;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::blocks::{Hash, Whole, count, is_zero, length};
use super::chain::Layer;
use super::places::Place;
use super::stripes::{go_on, hashes};
use super::uncached::Uncached;
use super::{BLOCK, FileError, FileSpec, chain, folders};
use crate::images::Identity;
use crate::promised::{Promised, least_left};
use crate::storage_directories::StorageDirectories;

/// So many blocks a writer writes before it looks again how much room is left.
const LOOK_EVERY: u32 = 4;

/// What is all zeros within a block stays a hole in pieces of this size.
const PIECE: usize = 4096;

/// A file that arrives, as the journal has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arriving {
    pub spec: FileSpec,
    /// Of what was made for it here: under its own name only that one is ours.
    pub identity: Option<Identity>,
}

/// An open file that is being filled.
#[derive(Debug)]
pub struct Partial {
    file: File,
    place: Place,
    spec: FileSpec,
    /// Of each block that is there; none where the file was made now.
    pub known: Option<Vec<Hash>>,
    /// Nobody wants it any more.
    over: CancellationToken,
    /// Nobody else writes while this is open.
    _turn: OwnedMutexGuard<()>,
}

/// Puts blocks into an open file.
#[derive(Debug)]
pub struct Writer<'a> {
    partial: &'a Partial,
    file: Uncached<'a>,
    /// Blocks that were written since the room was looked at.
    unwatched: u32,
}

/// Where a file lies until it is whole.
pub fn partial_name(path: &Path, migration: MigrationId) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix(migration));
    PathBuf::from(name)
}

fn suffix(migration: MigrationId) -> String {
    format!(".drover-partial-{migration}")
}

fn places(allowed: &StorageDirectories, path: &Path, migration: MigrationId) -> Result<(Place, Place), FileError> {
    let place = allowed.find(path)?;
    let partial = place.beside(&suffix(migration))?;
    Ok((place, partial))
}

/// Refuses what could not be received: a name that is taken, a directory that may not be written to, too little space
/// beside what others were promised.
pub fn check_room(
    allowed: &StorageDirectories,
    files: &[Arriving],
    migration: MigrationId,
    promised: &Promised,
) -> Result<(), FileError> {
    let mut needs: Vec<(u64, u64, Place)> = Vec::new();
    for Arriving { spec, .. } in files {
        let (place, there) = match folders::missing(allowed, &spec.path)? {
            // Nothing can be there yet; what its folder is made in counts.
            Some(folder) => {
                folder.may_change()?;
                (folder, 0)
            }
            None => free_place(allowed, &spec.path, migration)?,
        };
        let (device, needed) = (place.device()?, spec.allocated.saturating_sub(there));
        match needs.iter_mut().find(|(known, _, _)| *known == device) {
            Some((_, sum, _)) => *sum += needed,
            None => needs.push((device, needed, place)),
        }
    }
    for (_, needed, place) in needs {
        let path = place.path().to_owned();
        let folder = allowed.real(path.parent().unwrap_or(&path)).into_owned();
        let free = promised.free(&folder, allowed).map_or_else(|| place.free(), Ok)?;
        if free < needed {
            return Err(FileError::Space { path, needed, free });
        }
    }
    Ok(())
}

/// Where nothing has its name, and bytes of it that are there already.
fn free_place(allowed: &StorageDirectories, path: &Path, migration: MigrationId) -> Result<(Place, u64), FileError> {
    let (place, partial) = places(allowed, path, migration)?;
    place.may_change()?;
    if place.look()?.is_some() {
        return Err(FileError::Exists(path.to_owned()));
    }
    let there = match partial.look()? {
        Some(_) => partial
            .open_to_read()?
            .metadata()
            .map_or(0, |found| found.blocks() * 512),
        None => 0,
    };
    Ok((place, there))
}

impl Partial {
    /// Makes it, or goes on with what an earlier connection left: all of that is read again.
    pub fn open(
        allowed: &StorageDirectories,
        spec: &FileSpec,
        migration: MigrationId,
        group: Option<u32>,
        over: &CancellationToken,
        turn: OwnedMutexGuard<()>,
    ) -> Result<Self, FileError> {
        folders::make(allowed, &spec.path)?;
        let (_, place) = places(allowed, &spec.path, migration)?;
        let error = |source| FileError::io(place.path(), source);
        let (file, is_new) = match place.create(0o600) {
            Ok(file) => (file, true),
            Err(FileError::Exists(_)) => (place.open_to_write()?, false),
            Err(other) => return Err(other),
        };
        file.set_len(spec.size).map_err(error)?;
        // Also of one that is there: whoever made it may have died before it had them.
        let mut mode = spec.mode | 0o600;
        if let Some(group) = group {
            // Where libvirt is told to leave owners alone the group has to do.
            mode |= 0o060;
            if let Err(error) = fchown(&file, None, Some(group)) {
                tracing::debug!(%error, "a new image keeps the agent's group");
            }
        }
        // What was there for everybody at the source is not, here: libvirt gives it to QEMU.
        file.set_permissions(PermissionsExt::from_mode(mode)).map_err(error)?;
        place.sync()?;
        let known = if is_new {
            None
        } else {
            Some(hashes(&file, spec.size, over).map_err(error)?)
        };
        Ok(Self {
            file,
            place,
            spec: spec.clone(),
            known,
            over: over.clone(),
            _turn: turn,
        })
    }

    /// Several may write at once, each other blocks.
    pub fn writer(&self) -> Writer<'_> {
        Writer {
            file: Uncached::to_write(&self.file, BLOCK),
            partial: self,
            unwatched: LOOK_EVERY,
        }
    }

    pub fn path(&self) -> &Path {
        &self.spec.path
    }

    pub fn length(&self, block: u64) -> usize {
        length(self.spec.size, block)
    }

    pub fn blocks(&self) -> u64 {
        count(self.spec.size)
    }

    /// What lies beneath it, where it is opened as qcow2.
    pub fn beneath(&self) -> Result<Option<Layer>, FileError> {
        chain::beneath(&self.file, &self.spec.path, "qcow2")
    }

    /// Waits until all of it has reached the disk, then reads it again from there.
    pub fn verify(&self) -> Result<(Hash, Identity), FileError> {
        let error = |source| FileError::io(self.place.path(), source);
        let began = Instant::now();
        self.file.sync_all().map_err(error)?;
        let flushed = began.elapsed();
        // What the page cache holds was never on the disk for all that it shows.
        if let Err(errno) = posix_fadvise(self.file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
            tracing::debug!(%errno, "a file that was received is read from the page cache");
        }
        let mut whole = Whole::new(self.spec.size);
        for hash in hashes(&self.file, self.spec.size, &self.over).map_err(error)? {
            whole.add(&hash);
        }
        let identity = Identity::of_open(&self.file).map_err(error)?;
        let (flush_ms, read_back_ms) = (flushed.as_millis(), (began.elapsed() - flushed).as_millis());
        let path = self.place.path().display();
        tracing::info!(%path, flush_ms, read_back_ms, "a file has reached the disk and was read back");
        Ok((whole.hash(), identity))
    }
}

impl Writer<'_> {
    /// Puts a block's bytes where they belong. What is zeros stays or becomes a hole.
    pub fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), FileError> {
        self.leave_room()?;
        let written = self.write_pieces(block, bytes);
        written.map_err(|source| FileError::io(self.partial.place.path(), source))
    }

    /// A block of zeros.
    pub fn clear(&self, block: u64) -> Result<(), FileError> {
        let cleared = self.punch(block, self.partial.length(block));
        cleared.map_err(|source| FileError::io(self.partial.place.path(), source))
    }

    /// Stops before nothing is left for the guests that run here, whose images may grow.
    fn leave_room(&mut self) -> Result<(), FileError> {
        let Partial { place, spec, over, .. } = self.partial;
        go_on(over).map_err(|source| FileError::io(place.path(), source))?;
        self.unwatched += 1;
        if self.unwatched <= LOOK_EVERY {
            return Ok(());
        }
        self.unwatched = 0;
        let (free, needed) = (place.free()?, least_left(place.size()?));
        if free < needed {
            let path = spec.path.clone();
            return Err(FileError::Space { path, needed, free });
        }
        Ok(())
    }

    fn write_pieces(&mut self, block: u64, bytes: &[u8]) -> io::Result<()> {
        let start = block * BLOCK as u64;
        if self.partial.known.is_some() {
            self.punch(block, bytes.len())?;
        }
        let mut at = 0;
        while at < bytes.len() {
            let zero = |at: usize| is_zero(&bytes[at..bytes.len().min(at + PIECE)]);
            if zero(at) {
                at += PIECE;
                continue;
            }
            let mut end = at + PIECE;
            while end < bytes.len() && !zero(end) {
                end += PIECE;
            }
            let end = end.min(bytes.len());
            self.file.write_all_at(&bytes[at..end], start + at as u64)?;
            at = end;
        }
        Ok(())
    }

    fn punch(&self, block: u64, length: usize) -> io::Result<()> {
        let start = block * BLOCK as u64;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (from, bytes) = (i64::try_from(start), i64::try_from(length));
        let (Ok(from), Ok(bytes)) = (from, bytes) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let file = &self.partial.file;
        if bytes == 0 || fallocate(file.as_fd(), hole, from, bytes).is_ok() {
            return Ok(());
        }
        // A file system that cannot make holes.
        file.write_all_at(&vec![0; length], start)
    }
}

/// Gives what was verified its name. A repeat finds it there.
pub fn put_in_place(
    allowed: &StorageDirectories,
    arriving: &Arriving,
    migration: MigrationId,
) -> Result<(), FileError> {
    let (place, partial) = places(allowed, &arriving.spec.path, migration)?;
    let ours = &arriving.identity;
    if ours.is_some() && place.look()? == *ours {
        // Where a name is given by a link, the first one may be left.
        if partial.look()? == *ours {
            partial.remove()?;
        }
        return Ok(());
    }
    match partial.look()? {
        Some(found) if Some(&found) == ours.as_ref() => partial.rename_to(&place),
        Some(_) | None => Err(FileError::Absent(partial.path().to_owned())),
    }
}

/// Under which names it may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Its own, too: it was never the guest's.
    All,
    /// Only the one that it has until it is whole.
    Partial,
}

/// Removes what this migration made here. Absent is done.
pub fn remove(
    allowed: &StorageDirectories,
    arriving: &Arriving,
    migration: MigrationId,
    names: Names,
) -> Result<(), FileError> {
    match places(allowed, &arriving.spec.path, migration) {
        Ok((place, partial)) => {
            partial.remove()?;
            let is_ours = || arriving.identity.is_some() && place.look().ok().flatten() == arriving.identity;
            if names == Names::All && is_ours() {
                place.remove()?;
            }
        }
        Err(FileError::Absent(_)) => {}
        // Nothing can have been made where nothing may be.
        Err(FileError::Outside(_) | FileError::Path(_) | FileError::Link(_)) => return Ok(()),
        Err(other) => return Err(other),
    }
    folders::remove(allowed, &arriving.spec.path)
}
