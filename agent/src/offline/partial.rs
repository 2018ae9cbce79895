//! A file at its destination, before it has its name (`arriving`): made, filled block by block, verified. A block device
//! is only filled and verified; what it is known by comes last (`ends`). All functions block.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use drover_proto::ids::MigrationId;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::arriving::places;
use super::blocks::{Hash, Whole, count, is_zero, length};
use super::chain::Layer;
use super::ends::{Ends, EndsError};
use super::places::Place;
use super::stripes::{go_on, hashes};
use super::uncached::Uncached;
use super::{BLOCK, FileError, FileSpec, chain, folders};
use crate::images::Identity;
use crate::images::device::{self, Unfit};
use crate::promised::least_left;
use crate::storage_directories::StorageDirectories;

/// So many blocks a writer writes before it looks again how much room is left.
const LOOK_EVERY: u32 = 4;

/// What is all zeros within a block stays a hole in pieces of this size.
const PIECE: usize = 4096;

/// An open file that is being filled.
#[derive(Debug)]
pub struct Partial {
    file: File,
    onto: Onto,
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

#[derive(Debug)]
enum Onto {
    /// A new file, until it is whole.
    File(Place),
    /// It has its name already.
    Device(Mutex<Ends>),
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
        if spec.block_device {
            return Self::on_device(allowed, spec, over, turn);
        }
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
            onto: Onto::File(place),
            spec: spec.clone(),
            known,
            over: over.clone(),
            _turn: turn,
        })
    }

    /// What was there before is no hole: all of it is read, and whatever differs is written.
    fn on_device(
        allowed: &StorageDirectories,
        spec: &FileSpec,
        over: &CancellationToken,
        turn: OwnedMutexGuard<()>,
    ) -> Result<Self, FileError> {
        let (file, blank) = device::open_to_overwrite(&spec.path, spec.size, allowed.devices())?;
        let known = hashes(&file, spec.size, over).map_err(|source| FileError::io(&spec.path, source))?;
        Ok(Self {
            file,
            onto: Onto::Device(Mutex::new(Ends::new(spec.size, blank))),
            spec: spec.clone(),
            known: Some(known),
            over: over.clone(),
            _turn: turn,
        })
    }

    fn error(&self, source: io::Error) -> FileError {
        match &self.onto {
            Onto::File(place) => FileError::io(place.path(), source),
            Onto::Device(_) => FileError::io(&self.spec.path, source),
        }
    }

    /// Whether a block is kept back: it belongs to an end of a device.
    fn keep(&self, block: u64, bytes: Option<&[u8]>) -> Result<bool, FileError> {
        match &self.onto {
            Onto::File(_) => Ok(false),
            Onto::Device(ends) => {
                let mut ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
                ends.keep(block, bytes)
                    .map_err(|error| known_device(&self.spec.path, error))
            }
        }
    }

    /// All has come.
    pub fn complete(&self) -> Result<(), FileError> {
        match &self.onto {
            Onto::File(_) => Ok(()),
            Onto::Device(ends) => {
                let written = ends.lock().unwrap_or_else(PoisonError::into_inner).write(&self.file);
                written.map_err(|error| known_device(&self.spec.path, error))
            }
        }
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
        let error = |source| self.error(source);
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
        let path = self.spec.path.display();
        tracing::info!(%path, flush_ms, read_back_ms, "a file has reached the disk and was read back");
        Ok((whole.hash(), identity))
    }
}

impl Writer<'_> {
    /// Where the bytes of this block are put before they are written.
    pub fn memory(&mut self, block: u64) -> &mut [u8] {
        self.file.memory(self.partial.length(block))
    }

    /// Puts what is in the memory where it belongs. What is zeros stays or becomes a hole.
    pub fn write(&mut self, block: u64) -> Result<(), FileError> {
        self.leave_room()?;
        if self.partial.keep(block, Some(self.memory(block)))? {
            return Ok(());
        }
        let written = self.write_pieces(block);
        written.map_err(|source| self.partial.error(source))
    }

    /// A block of zeros.
    pub fn clear(&self, block: u64) -> Result<(), FileError> {
        if self.partial.keep(block, None)? {
            return Ok(());
        }
        let cleared = self.punch(block, self.partial.length(block));
        cleared.map_err(|source| self.partial.error(source))
    }

    /// Stops before nothing is left for the guests that run here, whose images may grow.
    fn leave_room(&mut self) -> Result<(), FileError> {
        let Partial { onto, spec, over, .. } = self.partial;
        go_on(over).map_err(|source| self.partial.error(source))?;
        let Onto::File(place) = onto else { return Ok(()) };
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

    fn write_pieces(&mut self, block: u64) -> io::Result<()> {
        let (start, length) = (block * BLOCK as u64, self.partial.length(block));
        if let Onto::Device(_) = self.partial.onto {
            return self.file.write(0..length, start);
        }
        if self.partial.known.is_some() {
            self.punch(block, length)?;
        }
        let mut at = 0;
        while at < length {
            let bytes = self.file.memory(length);
            let zero = |at: usize| is_zero(&bytes[at..length.min(at + PIECE)]);
            if zero(at) {
                at += PIECE;
                continue;
            }
            let mut end = at + PIECE;
            while end < length && !zero(end) {
                end += PIECE;
            }
            let end = end.min(length);
            self.file.write(at..end, start + at as u64)?;
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

fn known_device(path: &Path, error: EndsError) -> FileError {
    match error {
        EndsError::NotBlank => Unfit::NotBlank(path.to_owned()).into(),
        EndsError::Io(source) => FileError::io(path, source),
    }
}
