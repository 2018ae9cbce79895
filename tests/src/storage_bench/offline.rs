//! The guest is shut off: its image goes by Drover, by rsync over ssh, or by qemu-img to an NBD server.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{GUEST, IMAGE, LIMIT, Sample, Scene, Ssh};
use crate::{Daemon, run, wait_until};

/// Who copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copier {
    /// `drover migrate --offline`: the whole migration, the copy read back from the disk included.
    Drover,
    /// `rsync -S` over ssh.
    Rsync,
    /// The same with rsync's compression.
    RsyncCompressed,
    /// `qemu-img convert` to `qemu-nbd`, not encrypted.
    QemuImg,
}

/// How long the destination of a Drover took to make sure.
#[derive(Debug, Clone, Copy)]
pub struct Verification {
    pub flush: Duration,
    pub read_back: Duration,
}

impl Copier {
    pub const ALL: [Self; 4] = [Self::Drover, Self::Rsync, Self::RsyncCompressed, Self::QemuImg];

    pub fn name(self) -> &'static str {
        match self {
            Self::Drover => "drover --offline",
            Self::Rsync => "rsync -S, ssh",
            Self::RsyncCompressed => "rsync -Sz, ssh",
            Self::QemuImg => "qemu-img, NBD",
        }
    }
}

impl Scene<'_> {
    /// One copy, from a scene that was reset; it is compared with the image afterwards.
    pub fn copy(&self, copier: Copier, ssh: &Ssh) -> Result<Sample> {
        let sample = match copier {
            Copier::Drover => self.measure(|| {
                let run = self
                    .cluster
                    .drover(&["migrate", GUEST, "--to", "host-b", "--offline"])?;
                ensure!(run.code == 0, "{}{}", run.stdout, run.stderr);
                Ok(())
            }),
            Copier::Rsync => self.measure(|| self.rsync("-S", ssh)),
            Copier::RsyncCompressed => self.measure(|| self.rsync("-Sz", ssh)),
            Copier::QemuImg => self.qemu_img(),
        };
        let sample = sample.with_context(|| copier.name())?;
        self.compare().with_context(|| copier.name())?;
        Ok(sample)
    }

    fn rsync(&self, flags: &str, ssh: &Ssh) -> Result<()> {
        let mut command = self.source().command("rsync")?;
        command.args([flags, "-e", &ssh.shell(), IMAGE, &ssh.place(IMAGE)]);
        run(&mut command, LIMIT).map(|_| ())
    }

    /// The empty image and the server are there before the time begins.
    fn qemu_img(&self) -> Result<Sample> {
        let (source, destination) = (self.source(), self.destination());
        let size = format!("{}M", self.shape.virtual_mib);
        destination.run("qemu-img", &["create", "-q", "-f", "raw", IMAGE, &size])?;
        let address = destination.address().to_string();
        let mut server = destination.command("qemu-nbd")?;
        server.args([
            "--persistent",
            "--format=raw",
            "--discard=unmap",
            "--bind",
            &address,
            IMAGE,
        ]);
        let mut server = Daemon::spawn(destination, "qemu-nbd", &mut server)?;
        wait_until("qemu-nbd", Duration::from_secs(20), || {
            let listens = destination.run("ss", &["-Hltn", "sport = :10809"])?.stdout;
            Ok(listens.contains(&address).then_some(()))
        })?;
        let sample = self.measure(|| {
            let mut command = source.command("qemu-img")?;
            command.args(["convert", "-n", "--target-is-zero", "-W", "-m", "8", "-t", "writeback"]);
            command.args(["-f", "raw", "-O", "raw", IMAGE, &format!("nbd://{address}:10809")]);
            run(&mut command, LIMIT).map(|_| ())
        })?;
        server.stop(Duration::from_secs(20))?;
        Ok(sample)
    }

    /// Of the last copy by Drover, from the log of the destination's agent.
    pub fn verification(&mut self) -> Result<Verification> {
        let log = fs::read_to_string(self.cluster.agent("host-b")?.log())?;
        let line = log
            .lines()
            .rev()
            .find(|line| line.contains("flush_ms"))
            .context("the agent does not say how long it took")?;
        let value = |key: &str| -> Result<Duration> {
            let rest = line.split(key).nth(1).with_context(|| format!("no {key}: {line}"))?;
            // Between key and number there may be colours.
            let rest = rest.split_once('=').map_or(rest, |(_, value)| value);
            let plain = rest.trim_start_matches("\u{1b}[0m");
            let digits: String = plain.chars().take_while(char::is_ascii_digit).collect();
            Ok(Duration::from_millis(digits.parse().with_context(|| line.to_owned())?))
        };
        Ok(Verification {
            flush: value("flush_ms")?,
            read_back: value("read_back_ms")?,
        })
    }
}
