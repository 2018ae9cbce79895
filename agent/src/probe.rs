//! Proof that two hosts see the same storage: one writes a file beside the image, the other one reads it.
//!
//! Promise: a probe file is journaled before it is made, made with a name and content nobody can guess, never
//! through a link, and removed: by the check itself, after a while where nobody asked for that ([`Probes::expire`]), or
//! at the next start. Only files that this agent's own journal names are removed. All functions block; the service keeps
//! them off the async threads.

pub mod content;
pub mod device;
mod file;
mod names;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use self::file::Found;
use self::names::{PREFIX, check_name, check_path};

/// So many probe files may be there at once.
const MOST_PROBES: usize = 1024;

const CONTENT: usize = 32;

/// An image that is to be proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub path: PathBuf,
    /// Nobody writes to it: the same content is as good as the same file.
    pub read_only: bool,
}

/// One probe, as it travels to the other host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    pub directory: PathBuf,
    pub image: PathBuf,
    /// `.drover-probe-{uuid}`; empty where only the content can be compared.
    pub file_name: String,
    pub content: Vec<u8>,
    /// 0 where it could not be read.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Of a read-only image; empty where there is none.
    pub sha256: Vec<u8>,
}

/// What a probe proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It is the same file.
    Shared,
    /// It is read-only and has the same content.
    SameContent,
}

/// Why a probe was not made, or does not prove anything.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("{path} is no plain absolute path", path = .0.display())]
    Path(PathBuf),
    #[error("{0:?} is no name of a probe file")]
    Name(String),
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The folder is another one, though its path is the same.
    #[error("{path} is not there: the folder is not the same one", path = .0.display())]
    Absent(PathBuf),
    #[error("{path} has another content", path = .0.display())]
    Content(PathBuf),
    #[error("{path} is another file here: {what}", path = path.display())]
    Image { path: PathBuf, what: String },
    #[error("{path} leads out of its folder to another file system", path = .0.display())]
    Elsewhere(PathBuf),
    #[error("{MOST_PROBES} probe files are there already: wait until they are removed")]
    TooMany,
}

/// The probes of this agent, and the journal that remembers them.
#[derive(Clone, Debug)]
pub struct Probes {
    /// One file per probe, named like it, with its path as content.
    journal: PathBuf,
    /// When each probe file that is still there was made.
    made: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Probes {
    /// Removes what a former agent left, then is ready.
    pub fn open(state_dir: &Path) -> Result<Self, ProbeError> {
        let journal = state_dir.join("probes");
        std::fs::create_dir_all(&journal).map_err(|source| io_error(&journal, source))?;
        let probes = Self {
            journal,
            made: Arc::default(),
        };
        let entries = std::fs::read_dir(&probes.journal).map_err(|source| io_error(&probes.journal, source))?;
        for entry in entries.flatten() {
            if let Some(name) = entry.file_name().to_str().filter(|name| check_name(name).is_ok())
                && let Err(error) = probes.remove(name)
            {
                tracing::warn!(%error, "a probe file stays for now");
                probes.made().insert(name.to_owned(), Instant::now());
            }
        }
        Ok(probes)
    }

    fn made(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the probe files that are older. One that cannot be removed is tried again at the next call.
    pub fn expire(&self, age: Duration) {
        let old = |(name, made): (&String, &Instant)| (made.elapsed() >= age).then(|| name.clone());
        let names: Vec<String> = self.made().iter().filter_map(old).collect();
        for name in names {
            match self.remove(&name) {
                Ok(()) => tracing::warn!(%name, "nobody removed this probe file in time: it is removed now"),
                Err(error) => tracing::warn!(%error, "a probe file stays for now"),
            }
        }
    }

    /// Makes probes beside images, one file for each folder.
    pub fn write_all(&self, images: &[Image]) -> Vec<(PathBuf, Result<Probe, ProbeError>)> {
        let mut folders: HashMap<PathBuf, Probe> = HashMap::new();
        let mut written: Vec<(PathBuf, Result<Probe, ProbeError>)> = Vec::new();
        for image in images {
            if written.iter().any(|(path, _)| *path == image.path) {
                continue;
            }
            let known = image.path.parent().and_then(|folder| folders.get(folder)).cloned();
            let probe = match known {
                Some(first) => check_path(&image.path).and_then(|()| first.beside(&image.path)),
                None => self.write(&image.path),
            };
            if let Ok(probe) = &probe {
                folders.entry(probe.directory.clone()).or_insert_with(|| probe.clone());
            }
            written.push((image.path.clone(), with_content(image, probe)));
        }
        written
    }

    /// Makes a probe beside an image.
    pub fn write(&self, image: &Path) -> Result<Probe, ProbeError> {
        check_path(image)?;
        if self.made().len() >= MOST_PROBES {
            return Err(ProbeError::TooMany);
        }
        let directory = image.parent().ok_or_else(|| ProbeError::Path(image.to_owned()))?;
        let file_name = format!("{PREFIX}{}", Uuid::new_v4());
        // Two random UUIDs: 244 bits that only this agent and those it tells know.
        let content = [*Uuid::new_v4().as_bytes(), *Uuid::new_v4().as_bytes()].concat();
        let path = directory.join(&file_name);
        self.remember(&file_name, &path)?;
        let written = write_new(&path, &content).map_err(|source| io_error(&path, source));
        if let Err(error) = written {
            // Nothing, or a file of ours without its content.
            if let Err(left) = self.remove(&file_name) {
                tracing::warn!(error = %left, "a probe file stays for now");
            }
            return Err(error);
        }
        let probe = Probe {
            directory: directory.to_owned(),
            file_name,
            content,
            ..Probe::default()
        };
        // Nobody will be told its name.
        probe.beside(image).inspect_err(|_| {
            if let Err(left) = self.remove(&probe.file_name) {
                tracing::warn!(error = %left, "a probe file stays for now");
            }
        })
    }

    /// Removes a probe that this agent made. One that it did not make is not touched; absent is done.
    pub fn remove(&self, file_name: &str) -> Result<(), ProbeError> {
        check_name(file_name)?;
        let note = self.journal.join(file_name);
        let path = match std::fs::read_to_string(&note) {
            Ok(path) => PathBuf::from(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(io_error(&note, source)),
        };
        // A note that was cut off was written before any file was made.
        if path.file_name().is_some_and(|name| name == file_name) {
            remove_file(&path)?;
        }
        remove_file(&note)?;
        self.made().remove(file_name);
        Ok(())
    }

    fn remember(&self, file_name: &str, path: &Path) -> Result<(), ProbeError> {
        self.made().insert(file_name.to_owned(), Instant::now());
        let note = self.journal.join(file_name);
        let text = path.to_str().ok_or_else(|| ProbeError::Path(path.to_owned()))?;
        let written = write_new(&note, text.as_bytes()).and_then(|()| File::open(&self.journal)?.sync_all());
        written.map_err(|source| io_error(&note, source))
    }
}

impl Probe {
    /// The same probe file, for another image in its folder. It proves nothing of an image that lies elsewhere.
    fn beside(&self, image: &Path) -> Result<Self, ProbeError> {
        // Only search permission on the folder is needed: the image itself may be closed to this user.
        let found = file::look(image).ok();
        if let Some(found) = found.filter(|_| !self.file_name.is_empty()) {
            let path = self.directory.join(&self.file_name);
            same_file_system(
                image,
                found,
                file::look(&path).map_err(|source| io_error(&path, source))?,
            )?;
        }
        Ok(Self {
            image: image.to_owned(),
            inode: found.map_or(0, |found| found.inode),
            size: found.map_or(0, |found| found.size),
            ..self.clone()
        })
    }
}

/// A link, or a file that is mounted over it, may lead an image out of the folder that the probe file lies in: then its
/// number says nothing on another host.
fn same_file_system(image: &Path, found: Found, probe: Found) -> Result<(), ProbeError> {
    if found.device == probe.device {
        return Ok(());
    }
    Err(ProbeError::Elsewhere(image.to_owned()))
}

/// Adds the content of a read-only image, which may be all that there is.
fn with_content(image: &Image, probe: Result<Probe, ProbeError>) -> Result<Probe, ProbeError> {
    if !image.read_only || check_path(&image.path).is_err() {
        return probe;
    }
    let Ok(sha256) = content::sha256(&image.path) else {
        return probe;
    };
    let alone = || {
        let alone = Probe {
            directory: image.path.parent().map(Path::to_owned).unwrap_or_default(),
            ..Probe::default()
        };
        alone.beside(&image.path)
    };
    Ok(Probe {
        sha256,
        ..probe.or_else(|_| alone())?
    })
}

/// Whether anything is at a path. Blocks.
pub fn is_present(path: &Path) -> bool {
    std::fs::metadata(path).is_ok()
}

/// Looks for the other side's probe, then whether the image beside it is the same one; or, where it is read-only, has
/// the same content.
pub fn read(probe: &Probe) -> Result<Proof, ProbeError> {
    let shared = if probe.file_name.is_empty() && !probe.sha256.is_empty() {
        check_path(&probe.image).and(Err(ProbeError::Absent(probe.image.clone())))
    } else {
        read_file(probe)
    };
    match shared {
        Ok(()) => Ok(Proof::Shared),
        Err(_) if !probe.sha256.is_empty() && check_path(&probe.image).is_ok() => same_content(probe),
        Err(error) => Err(error),
    }
}

fn same_content(probe: &Probe) -> Result<Proof, ProbeError> {
    let found = file::look(&probe.image).map_err(|source| io_error(&probe.image, source))?;
    let differs = |what: String| {
        Err(ProbeError::Image {
            path: probe.image.clone(),
            what,
        })
    };
    if found.size != probe.size {
        return differs(format!("{} bytes instead of {}", found.size, probe.size));
    }
    let here = content::sha256(&probe.image).map_err(|source| io_error(&probe.image, source))?;
    if here == probe.sha256 {
        Ok(Proof::SameContent)
    } else {
        differs("its content differs".to_owned())
    }
}

fn read_file(probe: &Probe) -> Result<(), ProbeError> {
    check_path(&probe.image)?;
    check_name(&probe.file_name)?;
    if probe.image.parent() != Some(&probe.directory) || probe.content.len() != CONTENT {
        return Err(ProbeError::Path(probe.directory.clone()));
    }
    let path = probe.directory.join(&probe.file_name);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ProbeError::Absent(path)),
        Err(source) => return Err(io_error(&path, source)),
    };
    let found = file::look_at(&file).map_err(|source| io_error(&path, source))?;
    let mut content = Vec::with_capacity(CONTENT);
    file.take(CONTENT as u64 + 1)
        .read_to_end(&mut content)
        .map_err(|source| io_error(&path, source))?;
    if content != probe.content {
        return Err(ProbeError::Content(path));
    }
    same_image(probe, found)
}

/// Device numbers differ between hosts; the inode of one file does not, within the file system that the probe file is on.
/// Its size only grows between the two looks: the guest may be writing to it.
fn same_image(probe: &Probe, beside: Found) -> Result<(), ProbeError> {
    let found = file::look(&probe.image).map_err(|source| io_error(&probe.image, source))?;
    same_file_system(&probe.image, found, beside)?;
    let differs = |what: String| {
        Err(ProbeError::Image {
            path: probe.image.clone(),
            what,
        })
    };
    if probe.inode == 0 {
        return differs("the source could not look at it".to_owned());
    }
    if found.inode != probe.inode {
        return differs(format!("inode {} instead of {}", found.inode, probe.inode));
    }
    if found.size < probe.size {
        return differs(format!("{} bytes instead of {}", found.size, probe.size));
    }
    Ok(())
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    // The other host's agent may be another user; the umask must not shut it out.
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.write_all(content)?;
    file.sync_all()
}

fn remove_file(path: &Path) -> Result<(), ProbeError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn io_error(path: &Path, source: io::Error) -> ProbeError {
    ProbeError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
