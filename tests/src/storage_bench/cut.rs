//! A copy that is cut near its end: how much is sent again.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Scene;
use crate::{Network, wait_until};

/// What is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All connections between the hosts are reset.
    Connections,
    /// The source's agent is killed and started again.
    SourceAgent,
    /// The destination's agent is.
    DestinationAgent,
}

impl Cut {
    pub const ALL: [Self; 3] = [Self::Connections, Self::SourceAgent, Self::DestinationAgent];

    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections reset",
            Self::SourceAgent => "source's agent killed",
            Self::DestinationAgent => "destination's agent killed",
        }
    }
}

/// Copies by Drover in a scene that was reset, and cuts when `at` bytes have left the source. Returns how many left it
/// until the end.
pub fn copy_with_cut(scene: &mut Scene<'_>, cut: Cut, at: u64) -> Result<u64> {
    let link = scene.source().link(Network::Management);
    let before = link.sent_bytes()?;
    let migration = scene.cluster.begin_with(&scene.guest, "host-b", &["--offline"])?;
    wait_until("most of it to be sent", Duration::from_secs(180), || {
        Ok((link.sent_bytes()? - before >= at).then_some(()))
    })?;
    match cut {
        Cut::Connections => {
            link.reset_connections(scene.destination().address())?;
        }
        Cut::SourceAgent => {
            scene.cluster.kill_agent("host-a")?;
            scene.cluster.start_agent("host-a")?;
        }
        Cut::DestinationAgent => {
            scene.cluster.kill_agent("host-b")?;
            scene.cluster.start_agent("host-b")?;
        }
    }
    let end = scene.cluster.wait_for_rest(migration.id())?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    scene.compare()?;
    Ok(link.sent_bytes()? - before)
}
