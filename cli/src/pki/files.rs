//! Files of a PKI: whole or not at all, and keys for their owner's eyes only.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use drover_proto::tls::TlsFiles;

use crate::exit::{Exit, Problem};

/// Where one holder's certificate lies.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn files(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.0.join("tls.crt"),
            key: self.0.join("tls.key"),
            ca: self.0.join("ca.crt"),
        }
    }

    pub(super) fn is_taken(&self) -> bool {
        let files = self.files();
        files.certificate.exists() || files.key.exists()
    }

    /// The certificate last: its reader finds a key that fits.
    pub(super) fn save(&self, certificate: &str, key: &str, ca: &str) -> Result<(), Problem> {
        let files = self.files();
        write_public(&files.ca, ca)?;
        write_secret(&files.key, key)?;
        write_public(&files.certificate, certificate)
    }
}

pub(super) fn read(path: &Path) -> Result<String, Problem> {
    std::fs::read_to_string(path)
        .map_err(|error| Problem::new(Exit::Failed, format!("cannot read {}: {error}", path.display())))
}

pub(super) fn write_secret(path: &Path, text: &str) -> Result<(), Problem> {
    write(path, text, 0o600)
}

pub(super) fn write_public(path: &Path, text: &str) -> Result<(), Problem> {
    write(path, text, 0o644)
}

/// Written beside the file and renamed over it, so that nobody reads half of it. The mode is set when it is made: a
/// key is at no moment readable by others.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Problem> {
    let failed = |error| Problem::new(Exit::Failed, format!("cannot write {}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", uuid::Uuid::new_v4()));
    let beside = PathBuf::from(beside);
    let made: std::io::Result<File> = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside);
    let written = made.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    });
    written.map_err(|error| {
        let _ = std::fs::remove_file(&beside);
        failed(error)
    })
}
