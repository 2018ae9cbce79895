//! Certificates for QEMU's own TLS, so that virsh can be measured with it too: one certificate for all hosts of a lab.

use crate::layout::Layout;
use crate::process;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Where a host finds them; its qemu.conf says so.
pub(crate) const FOLDER: &str = "/etc/libvirt/qemu-pki";

/// What a certificate of a migration has to be good for: both ends are called by their host's name.
const EXTENSIONS: &str = "subjectAltName=DNS:host-a,DNS:host-b,DNS:host-c,DNS:host-d\n\
    keyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n";

/// Makes them, once a lab.
pub(crate) fn make(layout: &Layout) -> Result<()> {
    let folder = made(layout);
    fs::create_dir_all(&folder)?;
    issue(&folder).context("certificates for QEMU")
}

fn made(layout: &Layout) -> PathBuf {
    layout.folder().join("qemu-pki")
}

/// Puts them into a host's `/etc/libvirt`, which is `etc` outside.
pub(crate) fn install(layout: &Layout, etc: &Path) -> Result<()> {
    let made = made(layout);
    let folder = etc.join("qemu-pki");
    fs::create_dir_all(&folder)?;
    let copies = [
        ("ca.pem", "ca-cert.pem"),
        ("cert.pem", "server-cert.pem"),
        ("key.pem", "server-key.pem"),
        ("cert.pem", "client-cert.pem"),
        ("key.pem", "client-key.pem"),
    ];
    for (from, to) in copies {
        let to = folder.join(to);
        fs::copy(made.join(from), &to)?;
        // QEMU's user reads them; nothing else than this lab trusts them.
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

fn issue(folder: &Path) -> Result<()> {
    fs::write(folder.join("extensions"), EXTENSIONS)?;
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let openssl = |arguments: &[&str]| process::run(Command::new("openssl").current_dir(folder).args(arguments), LIMIT);
    let authority = [
        "req", "-x509", "-days", "2", "-subj", "/CN=lab", "-keyout", "ca.key", "-out", "ca.pem",
    ];
    openssl(&[&authority[..], &new_key].concat())?;
    let request = ["req", "-subj", "/CN=host", "-keyout", "key.pem", "-out", "request"];
    openssl(&[&request[..], &new_key].concat())?;
    openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        "request",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-extfile",
        "extensions",
        "-out",
        "cert.pem",
    ])?;
    Ok(())
}
