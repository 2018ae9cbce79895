//! Loop devices of a lab. They belong to the whole machine: each goes with its owner, and what a test that was killed
//! leaves goes with its lab.

use crate::host::Host;
use crate::layout::{LABS, Layout};
use crate::process;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(20);

/// A loop device on a file of one host.
#[derive(Debug)]
pub struct LoopDevice(String);

impl LoopDevice {
    /// On a file in `/srv/local` of a host, which is there.
    pub fn on(host: &Host, path: &str) -> Result<LoopDevice> {
        // By its name on the machine, which says whose it is.
        let name = path.strip_prefix("/srv/local/").context("a file in /srv/local")?;
        let file = host.folder().join("local").join(name);
        let mut command = Command::new("losetup");
        let made = process::run(command.args(["--find", "--show"]).arg(file), SHORT)?;
        Ok(LoopDevice(made.stdout.trim().to_owned()))
    }

    /// Gives it another name on a host; QEMU's group may use it, and the agent with it.
    pub fn appear(&self, host: &Host, path: &str) -> Result<()> {
        let number = fs::metadata(&self.0)?.rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let folder = Path::new(path).parent().context("a folder")?.display();
        let script = format!(
            "mkdir -p {folder} && rm -f {path} && mknod -m 660 {path} b {major} {minor} && chgrp libvirt-qemu {path}"
        );
        host.run("sh", &["-c", &script]).map(|_| ())
    }

    /// `/dev/loop7`.
    pub fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = detach(&self.0) {
            eprintln!("{} stays: {error:#}", self.0);
        }
    }
}

/// One that is in use goes with its last user.
fn detach(device: &str) -> Result<()> {
    process::run(Command::new("losetup").args(["--detach", device]), SHORT).map(|_| ())
}

/// Detaches all that lie on files of a lab. While its processes live: afterwards nobody can be started in it.
pub(crate) fn detach_all(layout: &Layout) {
    detach_where(|file| file.starts_with(layout.folder()));
}

/// Detaches those whose lab is gone.
pub(crate) fn detach_orphans() {
    let labs = Path::new(LABS);
    detach_where(|file| {
        let beneath = file.strip_prefix(labs).ok();
        let lab = beneath.and_then(|rest| rest.components().next());
        lab.is_some_and(|id| !labs.join(id).exists())
    });
}

fn detach_where(is_ours: impl Fn(&Path) -> bool) {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    for entry in entries {
        // One that lies on nothing has no such file.
        let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        let file = PathBuf::from(file.trim_end_matches('\n').trim_end_matches(" (deleted)"));
        let device = format!("/dev/{}", entry.file_name().to_string_lossy());
        if is_ours(&file)
            && let Err(error) = detach(&device)
        {
            eprintln!("{device} stays: {error:#}");
        }
    }
}
