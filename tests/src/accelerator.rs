//! Whether guests run on KVM or under software emulation, found out by booting one.
//!
//! `/dev/kvm` alone says nothing: some hypervisors offer it and still cannot run a stock kernel.

use crate::image::BootImage;
use crate::process::wait_until;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A guest on working KVM is ready within a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// What executes the guests' instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    Emulation,
}

impl Accelerator {
    /// What works here; remembered until the machine boots again. `DROVER_LAB_ACCELERATOR=kvm|tcg` overrules it.
    pub(crate) fn find(image: &BootImage) -> Result<Accelerator> {
        match std::env::var("DROVER_LAB_ACCELERATOR").as_deref() {
            Ok("kvm") => return Ok(Accelerator::Kvm),
            Ok("tcg") => return Ok(Accelerator::Emulation),
            Ok(other) => bail!("DROVER_LAB_ACCELERATOR is kvm or tcg, not {other:?}"),
            Err(_) => {}
        }
        if !Path::new("/dev/kvm").exists() {
            return Ok(Accelerator::Emulation);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let remembered = image.initrd.with_file_name(format!("kvm-works-{}", boot.trim()));
        if let Ok(answer) = fs::read_to_string(&remembered) {
            return Ok(if answer == "yes" {
                Accelerator::Kvm
            } else {
                Accelerator::Emulation
            });
        }
        let works = boots_on_kvm(image)?;
        fs::write(&remembered, if works { "yes" } else { "no" })?;
        Ok(if works {
            Accelerator::Kvm
        } else {
            Accelerator::Emulation
        })
    }

    /// The parts of a domain's XML that differ: its type, its processor, and a source of randomness for it.
    pub(crate) fn domain_type(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Emulation => "qemu",
        }
    }

    pub(crate) fn processor(self) -> &'static str {
        match self {
            Accelerator::Kvm => "<cpu mode='host-passthrough' check='none' migratable='on'/>",
            Accelerator::Emulation => {
                "<cpu mode='custom' match='exact'><model>qemu64</model><feature policy='require' name='rdrand'/></cpu>"
            }
        }
    }

    /// For processors without RDRAND; the emulated one has it.
    pub(crate) fn random_device(self) -> &'static str {
        match self {
            Accelerator::Kvm => "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
            Accelerator::Emulation => "",
        }
    }
}

fn boots_on_kvm(image: &BootImage) -> Result<bool> {
    let console = tempfile::NamedTempFile::new()?;
    let mut qemu = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "kvm",
            "-machine",
            "q35",
            "-cpu",
            "host",
            "-m",
            "128",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-nodefaults", "-device", "virtio-rng-pci"])
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 drover.fill=1 drover.ip=10.78.0.254/24",
        ])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initrd)
        .arg("-serial")
        .arg(format!("file:{}", console.path().display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting qemu-system-x86_64")?;
    let ready = wait_until("a guest on KVM", PATIENCE, || {
        let text = String::from_utf8_lossy(&fs::read(console.path())?).into_owned();
        let ended = qemu.try_wait()?.is_some();
        Ok((ended || text.contains("drover-guest: ready")).then_some(!ended))
    });
    qemu.kill().context("ending the trial")?;
    qemu.wait()?;
    Ok(ready.unwrap_or(false))
}
