//! What is done with each disk: nothing, a copy while the guest runs, or a refusal. Pure.
//!
//! | the disk | asked to copy it | not asked |
//! |---|---|---|
//! | proved to be the same on both hosts | refused: it would be copied onto itself | nothing |
//! | read-only, the same content there | refused | nothing |
//! | neither | copied, where it can be and there is room | refused, naming the flag |
//! | a block device that is neither | the same where it is named itself, else refused: what is there is overwritten | refused, naming the flag |
//!
//! The destination's agent looks at the paths once more when it makes the images: it replaces nothing.

use std::collections::HashMap;

use drover_proto::agent::v1::{DiskFacts, ImageRoom, NewImage};
use drover_proto::v1::{BackingChain, Check, DiskAction, DiskPlan, StoragePolicy};

use super::proof::{Proved, Said, prove_disk};
use crate::phases::checks::{failed, passed};

/// Whether what is asked to be copied can be.
pub(in crate::phases) const COPY: &str = "storage-copy";

const WHOLE_REMEDY: &str =
    "--backing-chain flatten copies all of them into one image; offline each is copied to its own path";

const ELSEWHERE: &str = "put it on storage that both hosts have at the same path";

/// Whether a disk is asked to be copied, if it is not the same one anyway.
pub(super) fn is_asked(disk: &DiskFacts, policy: &StoragePolicy) -> bool {
    let named = policy.copy_disks.contains(&disk.target);
    named || (policy.copy_unshared && !disk.read_only && !disk.source.is_empty())
}

/// What a destination may have to make, as far as the question for room needs it.
pub(super) fn candidates(disks: &[DiskFacts], there: &[DiskFacts], policy: &StoragePolicy) -> Vec<NewImage> {
    let asked = disks.iter().filter(|disk| is_asked(disk, policy));
    let can = asked.filter(|disk| disk.copy_problem.is_empty() && disk.virtual_size_bytes > 0);
    let image = |disk: &DiskFacts| NewImage {
        target: disk.target.clone(),
        path: path_there(disk, there),
        format: disk.format.clone(),
        virtual_size_bytes: disk.virtual_size_bytes,
        allocated_bytes: disk.allocated_bytes,
        // The source says them when it begins; they change nothing about the room.
        qcow2_version: 3,
        qcow2_cluster_bits: 16,
        block_device: is_device(disk),
        ..NewImage::default()
    };
    can.map(image).collect()
}

pub(super) fn is_device(disk: &DiskFacts) -> bool {
    disk.source_type == "block"
}

pub(super) fn path_there(disk: &DiskFacts, there: &[DiskFacts]) -> String {
    let moved = there.iter().find(|other| other.target == disk.target);
    moved.map_or_else(|| disk.source.clone(), |other| other.source.clone())
}

/// Every disk, in the order of the definition.
pub(super) fn plan(
    disks: &[DiskFacts],
    there: &[DiskFacts],
    policy: &StoragePolicy,
    said: Said<'_>,
    rooms: &[ImageRoom],
) -> Vec<DiskPlan> {
    let mut plans: Vec<DiskPlan> = disks
        .iter()
        .map(|disk| one(disk, path_there(disk, there), policy, said, rooms))
        .collect();
    refuse_what_does_not_fit(&mut plans, rooms);
    plans
}

fn one(
    disk: &DiskFacts,
    destination_source: String,
    policy: &StoragePolicy,
    said: Said<'_>,
    rooms: &[ImageRoom],
) -> DiskPlan {
    let proved = prove_disk(disk, said);
    let room = rooms.iter().find(|room| room.target == disk.target);
    let (action, reason, remedy) = decide(disk, policy, &proved, room);
    let shared = matches!(proved, Ok(Proved::Same)) && !disk.source.is_empty();
    DiskPlan {
        action: action.into(),
        reason,
        remedy,
        destination_free_bytes: match action {
            DiskAction::CopyLive => signed(room.and_then(|room| room.free_bytes).unwrap_or(0)),
            DiskAction::Unspecified | DiskAction::None | DiskAction::Refuse | DiskAction::CopyOffline => 0,
        },
        ..described(disk, destination_source, shared)
    }
}

/// What a disk is, without what is done with it.
pub(super) fn described(disk: &DiskFacts, destination_source: String, shared: bool) -> DiskPlan {
    DiskPlan {
        target: disk.target.clone(),
        source_type: disk.source_type.clone(),
        source: disk.source.clone(),
        destination_source,
        format: disk.format.clone(),
        backing: disk.backing.clone(),
        virtual_size_bytes: signed(disk.virtual_size_bytes),
        allocated_bytes: signed(disk.allocated_bytes),
        read_only: disk.read_only,
        shared,
        ..DiskPlan::default()
    }
}

fn decide(
    disk: &DiskFacts,
    policy: &StoragePolicy,
    proved: &Result<Proved, String>,
    room: Option<&ImageRoom>,
) -> (DiskAction, String, String) {
    let named = policy.copy_disks.contains(&disk.target);
    let refuse = |why: String, remedy: &str| (DiskAction::Refuse, why, remedy.to_owned());
    match proved {
        _ if disk.source.is_empty() && named => refuse("the drive is empty".to_owned(), "do not name it"),
        _ if disk.source.is_empty() => (DiskAction::None, "empty drive".to_owned(), String::new()),
        Ok(_) if named => refuse(
            "both hosts have it already: it would be copied onto itself".to_owned(),
            "do not name it: nothing has to be copied",
        ),
        Ok(Proved::Same) => (DiskAction::None, "shared".to_owned(), String::new()),
        Ok(Proved::Copy) => (
            DiskAction::None,
            "read-only with the same content".to_owned(),
            String::new(),
        ),
        Err(_) if is_device(disk) && !named && is_asked(disk, policy) => refuse(
            "a block device at the destination is overwritten only where its disk is named".to_owned(),
            &format!("--copy-disks {}", disk.target),
        ),
        Err(_) if is_asked(disk, policy) => copy(disk, policy, room),
        Err(why) if disk.copy_problem.is_empty() && disk.virtual_size_bytes > 0 => {
            let remedy = format!(
                "{ELSEWHERE}; or copy it while the guest runs: --copy-disks {}",
                disk.target
            );
            (DiskAction::Refuse, format!("not shared: {why}"), remedy)
        }
        Err(why) => refuse(format!("not shared: {why}"), ELSEWHERE),
    }
}

/// What stands in the way of a copy, besides room.
fn copy(disk: &DiskFacts, policy: &StoragePolicy, room: Option<&ImageRoom>) -> (DiskAction, String, String) {
    let refuse = |why: &str, remedy: &str| (DiskAction::Refuse, why.to_owned(), remedy.to_owned());
    if !disk.copy_problem.is_empty() {
        return refuse(&disk.copy_problem, ELSEWHERE);
    }
    if disk.virtual_size_bytes == 0 {
        return refuse(
            "the source's agent does not say how large it is",
            "update the agent of the source",
        );
    }
    match room {
        None => refuse(
            "the destination's agent cannot make images",
            "update the agent of the destination",
        ),
        Some(room) if !room.problem.is_empty() => refuse(&room.problem, &room.remedy),
        Some(_) if is_device(disk) => {
            let why = "not shared; onto the block device there, which is overwritten and stays half written where the \
                       migration fails";
            (DiskAction::CopyLive, why.to_owned(), String::new())
        }
        Some(_) if disk.backing.is_empty() => (DiskAction::CopyLive, "not shared".to_owned(), String::new()),
        Some(_) if policy.backing_chain() == BackingChain::Whole => refuse(
            "it lies on other files, which cannot be copied as they are while the guest runs",
            WHOLE_REMEDY,
        ),
        Some(_) => {
            let why = "not shared; flattened: what lies beneath it is copied into it";
            (DiskAction::CopyLive, why.to_owned(), String::new())
        }
    }
}

/// All copies on one file system share its room. Where nobody can say how much there is, the copy itself will.
pub(super) fn refuse_what_does_not_fit(plans: &mut [DiskPlan], rooms: &[ImageRoom]) {
    let mut needed: HashMap<u64, i64> = HashMap::new();
    for plan in plans.iter_mut().filter(|plan| needs(plan).is_some()) {
        let Some(room) = rooms.iter().find(|room| room.target == plan.target) else {
            continue;
        };
        let sum = needed.entry(room.file_system).or_default();
        *sum = sum.saturating_add(needs(plan).unwrap_or_default());
        if room.free_bytes.is_some_and(|free| *sum > signed(free)) {
            plan.set_action(DiskAction::Refuse);
            plan.reason = format!(
                "{} bytes are needed at the destination, {} are free",
                sum, plan.destination_free_bytes
            );
            plan.remedy = "make room there, or name another place for the disk (--disk)".to_owned();
        }
    }
}

/// Bytes that a copy takes at the destination; none where nothing is copied. One that QEMU makes of a raw image may have no
/// holes any more: that depends on its version and on the definition (docs/operating.md).
fn needs(plan: &DiskPlan) -> Option<i64> {
    match plan.action() {
        DiskAction::CopyLive if plan.format == "qcow2" => Some(plan.allocated_bytes),
        DiskAction::CopyLive => Some(plan.allocated_bytes.max(plan.virtual_size_bytes)),
        DiskAction::CopyOffline => Some(plan.allocated_bytes),
        DiskAction::Unspecified | DiskAction::None | DiskAction::Refuse => None,
    }
}

pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A name that is no disk's.
pub(super) fn unknown_disk(disks: &[DiskFacts], policy: &StoragePolicy) -> Option<Check> {
    let is_unknown = |name: &&String| disks.iter().all(|disk| disk.target != **name);
    let unknown = policy.copy_disks.iter().find(is_unknown)?;
    let known: Vec<&str> = disks.iter().map(|disk| disk.target.as_str()).collect();
    let found = format!("the guest has no disk {unknown}; it has {}", known.join(", "));
    let remedy = "name disks by their target, as `virsh domblklist` shows it";
    Some(failed(COPY, found, remedy))
}

/// Whether what is asked for can be copied; none where nothing is asked for.
pub(super) fn check(plans: &[DiskPlan], disks: &[DiskFacts], policy: &StoragePolicy) -> Option<Check> {
    if policy.copy_disks.is_empty() && !policy.copy_unshared {
        return None;
    }
    if let Some(unknown) = unknown_disk(disks, policy) {
        return Some(unknown);
    }
    let asked = || plans.iter().zip(disks).filter(|(_, disk)| is_asked(disk, policy));
    let refused: Vec<&DiskPlan> = asked()
        .map(|(plan, _)| plan)
        .filter(|plan| plan.action() == DiskAction::Refuse)
        .collect();
    if !refused.is_empty() {
        let words = |word: fn(&DiskPlan) -> &str| {
            let all = refused.iter().map(|plan| format!("{}: {}", plan.target, word(plan)));
            all.collect::<Vec<_>>().join("; ")
        };
        return Some(failed(COPY, words(|plan| &plan.reason), words(|plan| &plan.remedy)));
    }
    let copied: Vec<String> = plans
        .iter()
        .filter(|plan| plan.action() == DiskAction::CopyLive)
        .map(|plan| {
            format!(
                "{} to {} ({} bytes of {}, {} needed there)",
                plan.target,
                plan.destination_source,
                plan.allocated_bytes,
                plan.virtual_size_bytes,
                needs(plan).unwrap_or_default()
            )
        })
        .collect();
    let found = if copied.is_empty() {
        "nothing has to be copied".to_owned()
    } else {
        copied.join("; ")
    };
    Some(passed(COPY, found))
}

/// Targets of what is copied.
pub(in crate::phases) fn copied(plans: &[DiskPlan]) -> Vec<String> {
    let live = plans.iter().filter(|plan| plan.action() == DiskAction::CopyLive);
    live.map(|plan| plan.target.clone()).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
