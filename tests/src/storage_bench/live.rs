//! The guest runs: its disk and memory go by Drover's tunnel, or by `virsh migrate --copy-storage-all`.

use anyhow::{Context, Result, ensure};

use super::{GUEST, IMAGE, Sample, Scene};

/// Who moves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mover {
    Drover,
    /// QEMU to QEMU, not encrypted.
    Virsh,
    /// QEMU to QEMU, encrypted by QEMU.
    VirshTls,
}

impl Mover {
    pub const ALL: [Self; 3] = [Self::Drover, Self::Virsh, Self::VirshTls];

    pub fn name(self) -> &'static str {
        match self {
            Self::Drover => "drover, tunnel",
            Self::Virsh => "virsh",
            Self::VirshTls => "virsh --tls",
        }
    }
}

impl Scene<'_> {
    /// Starts the guest in a scene that was reset, moves it once, and compares the copy with the image.
    pub fn move_live(&self, mover: Mover) -> Result<Sample> {
        self.source().virsh(&["start", GUEST])?;
        self.guest.wait_until_it_answers()?;
        let sample = match mover {
            Mover::Drover => self.measure(|| {
                let arguments = ["migrate", GUEST, "--to", "host-b", "--copy-unshared"];
                let run = self.cluster.drover(&arguments)?;
                ensure!(run.code == 0, "{}{}", run.stdout, run.stderr);
                Ok(())
            }),
            Mover::Virsh => self.by_virsh(&[]),
            Mover::VirshTls => self.by_virsh(&["--tls"]),
        };
        let sample = sample.with_context(|| mover.name())?;
        self.guest.verify().with_context(|| mover.name())?;
        self.compare().with_context(|| mover.name())?;
        Ok(sample)
    }

    /// libvirt wants the image to be there; Drover makes it itself.
    fn by_virsh(&self, more: &[&str]) -> Result<Sample> {
        let (source, destination) = (self.source(), self.destination());
        let size = format!("{}M", self.shape.virtual_mib);
        destination.run("qemu-img", &["create", "-q", "-f", "raw", IMAGE, &size])?;
        let arguments = [&["--copy-storage-all"], more].concat();
        self.measure(|| {
            let moved = self
                .lab
                .migrate_with_virsh(&self.guest, source, destination, &arguments);
            moved.map(|_| ())
        })
    }
}
