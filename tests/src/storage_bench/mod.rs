//! What `make bench-storage` measures: a disk that the hosts do not share, moved by Drover and by what people use
//! today, over a link of limited speed.
//!
//! Every contender moves the same image from host-a to host-b, which has nothing of it; each is timed from its start
//! until the file at host-b has been flushed (`sync FILE`, counted to everybody), and what host-a sent meanwhile is read
//! from its link. The image is in the page cache of the source. Afterwards the two files are compared, not timed.

mod cut;
mod image;
mod live;
mod offline;
mod ssh;

pub use cut::{Cut, copy_with_cut};
pub use image::Shape;
pub use live::Mover;
pub use offline::{Copier, Verification};
pub use ssh::Ssh;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, ClusterOptions};
use crate::{Guest, GuestSpec, Host, Lab, Network};

/// The guest whose disk it is.
const GUEST: &str = "archive";
/// Its image, by the name that both hosts use.
const IMAGE: &str = "/srv/local/archive.raw";
/// The longest that one contender may take.
const LIMIT: Duration = Duration::from_secs(900);

/// What one move cost.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// From the start of the contender until the copy has been flushed.
    pub wall: Duration,
    /// Bytes that the source sent over its link, headers included.
    pub wire: u64,
    /// Bytes that the copy takes on the disk of the destination: holes may have been filled.
    pub taken: u64,
}

/// Two hosts, a link, a guest that is shut off on host-a with an image of its own, and a Drover.
#[derive(Debug)]
pub struct Scene<'lab> {
    pub(super) lab: &'lab Lab,
    pub cluster: Cluster<'lab>,
    guest: Guest,
    shape: Shape,
}

/// Makes the guest and its image. Before the scene, because guests are put into a lab that nobody holds yet.
pub fn place_guest(lab: &mut Lab, shape: Shape) -> Result<Guest> {
    image::make(&lab.host("host-a").outside(IMAGE), shape)?;
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' discard='unmap'/>\
         <source file='{IMAGE}'/><target dev='vdb' bus='virtio'/></disk>"
    );
    let guest = lab.start_guest("host-a", &GuestSpec::new(GUEST).devices(&disk))?;
    lab.host("host-a").virsh(&["destroy", GUEST])?;
    Ok(guest)
}

impl<'lab> Scene<'lab> {
    /// Starts Drover and slows host-a's link down, to `link_mbit` in both directions.
    pub fn start(lab: &'lab Lab, guest: Guest, shape: Shape, link_mbit: u32) -> Result<Scene<'lab>> {
        let cluster = Cluster::start_with(lab, ClusterOptions::default())?;
        lab.host("host-a")
            .link(Network::Management)
            .limit_mbit(Some(link_mbit))?;
        Ok(Scene {
            lab,
            cluster,
            guest,
            shape,
        })
    }

    fn source(&self) -> &'lab Host {
        self.lab.host("host-a")
    }

    fn destination(&self) -> &'lab Host {
        self.lab.host("host-b")
    }

    /// As at the beginning: the guest shut off on host-a with its image, nothing of it on host-b.
    pub fn reset(&self) -> Result<()> {
        for host in [self.source(), self.destination()] {
            for domain in self.lab.domains_on(host)? {
                if domain.is_active() {
                    host.virsh(&["destroy", GUEST])?;
                }
                if domain.persistent {
                    host.virsh(&["undefine", GUEST])?;
                }
            }
        }
        let image = self.source().outside(IMAGE);
        for path in files(self.source())? {
            // Drover renames what it has moved.
            let moved = path.to_string_lossy().contains(".moved-");
            if moved {
                fs::rename(&path, &image)?;
            }
        }
        for path in files(self.destination())? {
            fs::remove_file(path)?;
        }
        let definition = self.lab.layout().folder().join(format!("{GUEST}.xml"));
        self.source().virsh(&["define", &definition.display().to_string()])?;
        image::warm(&image)
    }

    /// Times `work`, and the flush of what it left at the destination.
    fn measure(&self, work: impl FnOnce() -> Result<()>) -> Result<Sample> {
        let link = self.source().link(Network::Management);
        let (before, started) = (link.sent_bytes()?, Instant::now());
        work()?;
        let mut flush = self.destination().command("sync")?;
        crate::run(flush.arg(IMAGE), LIMIT).context("flushing the copy")?;
        let wall = started.elapsed();
        let wire = link.sent_bytes()? - before;
        let taken = fs::metadata(self.destination().outside(IMAGE))?.blocks() * 512;
        Ok(Sample { wall, wire, taken })
    }

    /// The copy is the image.
    fn compare(&self) -> Result<()> {
        let source = files(self.source())?;
        ensure!(source.len() == 1, "at the source: {source:?}");
        image::compare(&source[0], &self.destination().outside(IMAGE), self.shape)
    }
}

/// What lies in a host's own folder.
fn files(host: &Host) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(host.outside("/srv/local"))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}
