//! The peer to compare with: libvirt moving a guest by itself, `virsh migrate --live --p2p`.

use crate::guest::Guest;
use crate::host::Host;
use crate::lab::Lab;
use anyhow::{Result, ensure};
use std::time::Duration;

/// How a move by virsh went.
#[derive(Debug, Clone)]
pub struct VirshOutcome {
    /// From the start of virsh to its end, as its user waits.
    pub wall: Duration,
}

impl Lab {
    /// Moves a guest with `virsh migrate --live --p2p`, memory over plain TCP. Needs [`crate::LabBuilder::listen_tcp`].
    /// `more` are further arguments, such as `--unsafe` for a guest with a disk in `/srv/shared`, or `--tls`.
    pub fn migrate_with_virsh(&self, guest: &Guest, from: &Host, to: &Host, more: &[&str]) -> Result<VirshOutcome> {
        ensure!(
            from.listens_on_tcp(),
            "this lab's libvirtd does not listen on TCP: Lab::builder().listen_tcp()"
        );
        let persistent = self
            .domains_on(from)?
            .iter()
            .any(|domain| domain.name == guest.name() && domain.persistent);
        let connection = format!("qemu+tcp://{}/system", to.name());
        let data = format!("tcp://{}", to.name());
        let mut arguments = vec![
            "migrate",
            "--live",
            "--p2p",
            guest.name(),
            &connection,
            "--migrateuri",
            &data,
        ];
        if persistent {
            arguments.extend(["--persistent", "--undefinesource"]);
        }
        arguments.extend(more);
        let output = from.virsh_within(Duration::from_secs(120), &arguments)?;
        Ok(VirshOutcome { wall: output.wall })
    }
}
