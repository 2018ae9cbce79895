//! Proof that the guest's disks are the same ones at the destination: asks for it. What it means is decided in
//! [`proof`]. Probe files are written once, looked for by every destination, and removed in any case.

mod plan;
mod plan_offline;
pub(super) mod proof;

use drover_proto::agent::v1::{
    DiskFacts, GuestFacts, NewImage, ReadStorageProbesRequest, ReadStorageProbesResponse, RemoveStorageProbesRequest,
    StorageProbe, StorageProbeResult, WriteStorageProbesRequest,
};
use drover_proto::failure::Failure;
use drover_proto::v1::{Check, CheckResult, DiskAction, DiskPlan, StoragePolicy};

pub(super) use self::plan::copied;
pub(super) use self::plan_offline::Planned;
use self::proof::Said;
use super::{checks, overrides};
use crate::agents::Agent;

/// So often the removal of probe files is tried.
const REMOVALS: u32 = 3;

/// What was found of one destination.
pub(super) struct Looked {
    pub(super) checks: Vec<Check>,
    pub(super) plans: Vec<DiskPlan>,
}

/// What the source has to show to the destinations.
#[derive(Default)]
pub(super) struct Written {
    pub(super) probes: Vec<StorageProbe>,
    pub(super) failures: Vec<StorageProbeResult>,
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
    policy: &StoragePolicy,
    written: &Written,
    destination: &Agent,
) -> Result<Looked, Failure> {
    if let Some(problem) = overrides::other_kind(&guest.disks, there) {
        return Ok(Looked {
            checks: vec![proof::refused(problem)],
            plans: Vec::new(),
        });
    }
    let images = plan::candidates(&guest.disks, there, policy);
    let answer = ask(guest, there, written, images, destination).await?;
    let said = Said {
        results: &answer.results,
        failures: &written.failures,
    };
    let plans = plan::plan(&guest.disks, there, policy, said, &answer.rooms);
    // What is to be copied need not be there, nor be the same.
    let asked = |disk: &&DiskFacts| plan::is_asked(disk, policy) && proof::prove_disk(disk, said).is_err();
    let stays: Vec<DiskFacts> = guest.disks.iter().filter(|disk| !asked(disk)).cloned().collect();
    let mut checks = proof::judge(&stays, said.results, said.failures);
    suggest_copies(&mut checks, &plans);
    checks.extend(plan::check(&plans, &guest.disks, policy));
    Ok(Looked { checks, plans })
}

/// Where disks are not shared, copying them may be the way out.
fn suggest_copies(checks: &mut [Check], plans: &[DiskPlan]) {
    let could = |plan: &&DiskPlan| plan.action() == DiskAction::Refuse && plan.remedy.contains("--copy-disks");
    let targets: Vec<&str> = plans.iter().filter(could).map(|plan| plan.target.as_str()).collect();
    if targets.is_empty() {
        return;
    }
    for check in checks.iter_mut().filter(|check| check.result() == CheckResult::Failed) {
        check.remedy = format!(
            "{}; or copy them while the guest runs: --copy-disks {}",
            check.remedy,
            targets.join(",")
        );
    }
}

/// The same for a guest that moves shut off.
pub(super) async fn look_offline(
    guest: &GuestFacts,
    there: &[DiskFacts],
    policy: &StoragePolicy,
    written: &Written,
    destination: &Agent,
) -> Result<Planned, Failure> {
    let images = plan_offline::candidates(guest, policy);
    let answer = ask(guest, there, written, images, destination).await?;
    let said = Said {
        results: &answer.results,
        failures: &written.failures,
    };
    Ok(plan_offline::plan(guest, there, policy, said, &answer.rooms))
}

/// What a destination has where the probes say, and what room there is for images.
async fn ask(
    guest: &GuestFacts,
    there: &[DiskFacts],
    written: &Written,
    images: Vec<NewImage>,
    destination: &Agent,
) -> Result<ReadStorageProbesResponse, Failure> {
    if written.probes.is_empty() && images.is_empty() {
        return Ok(ReadStorageProbesResponse::default());
    }
    let probes = overrides::where_they_lie(written.probes.clone(), &guest.disks, there);
    destination
        .read_storage_probes(ReadStorageProbesRequest { probes, images })
        .await
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
