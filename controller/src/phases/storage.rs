//! Proof that the guest's disks are the same ones at the destination: asks for it. What it means is decided in
//! [`proof`]. Probe files are written once, looked for by every destination, and removed in any case.

mod proof;

use drover_proto::agent::v1::{
    DiskFacts, GuestFacts, ReadStorageProbesRequest, RemoveStorageProbesRequest, StorageProbe, StorageProbeResult,
    WriteStorageProbesRequest,
};
use drover_proto::failure::Failure;
use drover_proto::v1::Check;

use super::{checks, overrides};
use crate::agents::Agent;

/// So often the removal of probe files is tried.
const REMOVALS: u32 = 3;

/// What the source has to show to the destinations.
#[derive(Default)]
pub(super) struct Written {
    probes: Vec<StorageProbe>,
    failures: Vec<StorageProbeResult>,
}

/// The checks, where they were not made.
pub(super) fn not_checked(why: &str) -> Vec<Check> {
    [proof::PATH, proof::SHARED]
        .into_iter()
        .map(|id| checks::not_checked(id, why))
        .collect()
}

/// Has the source write what a destination can look for.
pub(super) async fn write(guest: &GuestFacts, source: &Agent) -> Result<Written, Failure> {
    if !proof::needs_probes(&guest.disks) {
        return Ok(Written::default());
    }
    let request = WriteStorageProbesRequest {
        fence: source.fence()?,
        guest_uuid: guest.guest_uuid.clone(),
    };
    let written = source.write_storage_probes(request).await?;
    Ok(Written {
        probes: written.probes,
        failures: written.failures,
    })
}

/// Has a destination look for it. `there` are the disks as they will be at the destination.
pub(super) async fn look(
    guest: &GuestFacts,
    there: &[DiskFacts],
    written: &Written,
    destination: &Agent,
) -> Result<Vec<Check>, Failure> {
    if let Some(problem) = overrides::other_kind(&guest.disks, there) {
        return Ok(vec![proof::refused(problem)]);
    }
    let mut results = Vec::new();
    if !written.probes.is_empty() {
        let probes = overrides::where_they_lie(written.probes.clone(), &guest.disks, there);
        results = destination
            .read_storage_probes(ReadStorageProbesRequest { probes })
            .await?
            .results;
    }
    Ok(proof::judge(&guest.disks, &results, &written.failures))
}

/// Has the source remove what it wrote.
pub(super) async fn remove(source: &Agent, written: Written) -> Result<(), Failure> {
    if written.probes.is_empty() {
        return Ok(());
    }
    let mut tries = 0;
    loop {
        tries += 1;
        let request = RemoveStorageProbesRequest {
            fence: source.fence()?,
            probes: written.probes.clone(),
        };
        match source.remove_storage_probes(request).await {
            Ok(_) => return Ok(()),
            Err(failure) if tries >= REMOVALS => return Err(failure),
            Err(_) => {}
        }
    }
}
