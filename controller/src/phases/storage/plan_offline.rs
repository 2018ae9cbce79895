//! What is done with each disk of a guest that moves shut off: nothing, a copy of its file, or a refusal. Pure.
//!
//! | the disk | to be copied: all of them, or named | others are named |
//! |---|---|---|
//! | proved to be the same on both hosts, or read-only with the same content | nothing | nothing |
//! | an image file and all that it lies on, nothing at their paths there | copied, where they can be taken and there is room | refused |
//! | a block device, one that is blank and may be overwritten at its path there | copied, where it is named itself | refused |
//! | anything else | refused | refused |
//!
//! Both agents look once more when it begins: what they would refuse then is said here already.

use drover_proto::agent::v1::{DiskFacts, GuestFacts, ImageRoom, NewImage};
use drover_proto::v1::{BackingChain, Check, DiskAction, DiskPlan, OfflinePlan, StoragePolicy};

use super::plan::{self, COPY};
use super::proof::{PATH, Proved, SHARED, Said, prove_disk};
use crate::phases::checks::{failed, passed};

const ELSEWHERE: &str = "it is to be elsewhere at the destination, and only what keeps its path is copied";

/// In place of a disk's target, where a destination is asked for the path of UEFI variables.
const VARIABLES: &str = "uefi-variables";
/// The same, for the state of its TPM.
const TPM: &str = "tpm-state";

const COPY_REMEDY: &str =
    "put it on shared storage, or copy it: --copy-disks names it, or is left out; only image files are copied";

const TAKEN_REMEDY: &str = "if it is the guest's own disk on shared storage, leave it and see why it could not be proved to be the same; if it \
     is a leftover, move it away";

const BENEATH_REMEDY: &str = "leave that file: guests of the destination may lie on it, also where it has the same content. Flatten the disk \
     while the guest is off (`qemu-img rebase -b ''`), or move the guest while it runs: --copy-disks copies all layers into one";

const CHAIN_REMEDY: &str = "flatten it while the guest is off (`qemu-img convert`, or `qemu-img rebase -b ''`), or move the guest while it \
     runs: --copy-disks copies all layers into one; only a chain of image files of which the destination has none is copied as it is";

const FLATTEN_REMEDY: &str = "--backing-chain whole copies each of them; one that moves while it runs gets one image; or flatten it yourself \
     (`qemu-img rebase -b ''`)";

/// What was found of all disks.
pub(in crate::phases) struct Planned {
    pub(in crate::phases) checks: Vec<Check>,
    pub(in crate::phases) plans: Vec<DiskPlan>,
    pub(in crate::phases) order: OfflinePlan,
}

/// What a destination may get, as far as the question for room needs it.
pub(super) fn candidates(guest: &GuestFacts, policy: &StoragePolicy) -> Vec<NewImage> {
    let image = |target: &str, path: &str, allocated_bytes| NewImage {
        target: target.to_owned(),
        path: path.to_owned(),
        // Only its path and its room are asked for.
        format: "raw".to_owned(),
        virtual_size_bytes: 1,
        allocated_bytes,
        ..NewImage::default()
    };
    let can = |disk: &&DiskFacts| disk.source_type == "file" && may_copy(disk, policy) && is_plain(&disk.source);
    let devices = guest.disks.iter().filter(|disk| {
        let is_named = plan::is_device(disk) && policy.copy_disks.contains(&disk.target);
        is_named && is_plain(&disk.source) && disk.virtual_size_bytes > 0
    });
    let devices = devices.map(|disk| NewImage {
        virtual_size_bytes: disk.virtual_size_bytes,
        block_device: true,
        ..image(&disk.target, &disk.source, disk.virtual_size_bytes)
    });
    let disks = guest.disks.iter().filter(can);
    let besides = besides(guest).into_iter().filter(|(_, _, path)| is_plain(path));
    let disks = disks.flat_map(|disk| {
        // All that the chain takes is said with the image on top.
        let top = image(&disk.target, &disk.source, disk.allocated_bytes);
        let layers = disk.backing.iter().enumerate().filter(|(_, path)| is_plain(path));
        let layers = layers.map(|(at, path)| image(&beneath(&disk.target, at), path, 0));
        std::iter::once(top).chain(layers).collect::<Vec<_>>()
    });
    disks
        .chain(devices)
        .chain(besides.map(|(target, _, path)| image(target, path, 0)))
        .collect()
}

/// What goes along beside its disks: in place of a target, in words, its path.
fn besides(guest: &GuestFacts) -> [(&'static str, &'static str, &str); 2] {
    [
        (VARIABLES, "UEFI variables", &guest.variables),
        (TPM, "the state of its TPM", &guest.tpm_state),
    ]
}

/// In place of a target, for what a disk lies on.
fn beneath(target: &str, at: usize) -> String {
    format!("{target}-beneath-{at}")
}

/// What an agent can be asked about.
fn is_plain(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|part| part != "." && part != "..")
}

/// Without a word about disks all are copied that have to be.
fn may_copy(disk: &DiskFacts, policy: &StoragePolicy) -> bool {
    policy.copy_unshared || policy.copy_disks.is_empty() || policy.copy_disks.contains(&disk.target)
}

/// What becomes of a disk.
enum Fate {
    Stays(&'static str),
    Copied,
    /// Something is at its path there.
    Taken(String),
    /// The same of what it lies on.
    TakenBeneath(String),
    Refused {
        why: String,
        remedy: String,
    },
}

/// Every disk, in the order of the definition, and the variables. `there` are the disks as they will be.
pub(super) fn plan(
    guest: &GuestFacts,
    there: &[DiskFacts],
    policy: &StoragePolicy,
    said: Said<'_>,
    rooms: &[ImageRoom],
) -> Planned {
    let mut taken = Vec::new();
    let mut plans: Vec<DiskPlan> = Vec::new();
    for disk in &guest.disks {
        let room = rooms.iter().find(|room| room.target == disk.target);
        let destination = plan::path_there(disk, there);
        let fate = fate(disk, &destination, policy, said, rooms);
        if let Fate::Taken(why) | Fate::TakenBeneath(why) = &fate {
            let remedy = if matches!(fate, Fate::Taken(_)) {
                TAKEN_REMEDY
            } else {
                BENEATH_REMEDY
            };
            taken.push((format!("{} ({}): {why}", disk.target, disk.source), remedy));
        }
        let shared = matches!(prove_disk(disk, said), Ok(Proved::Same)) && !disk.source.is_empty();
        let known = plan::described(disk, destination, shared);
        plans.push(told(known, fate, room));
    }
    plan::refuse_what_does_not_fit(&mut plans, rooms);
    let order = order(&plans);
    let checks = vec![
        path(&taken, guest, rooms),
        passed(SHARED, named(&plans, DiskAction::None)),
        copy(&plans, &taken, guest, policy),
    ];
    Planned { checks, plans, order }
}

fn fate(disk: &DiskFacts, destination: &str, policy: &StoragePolicy, said: Said<'_>, rooms: &[ImageRoom]) -> Fate {
    let room = rooms.iter().find(|room| room.target == disk.target);
    let refused = |why: String, remedy: &str| Fate::Refused {
        why,
        remedy: remedy.to_owned(),
    };
    let why = match prove_disk(disk, said) {
        _ if disk.source.is_empty() => return Fate::Stays("empty drive"),
        Ok(Proved::Same) => return Fate::Stays("shared"),
        Ok(Proved::Copy) => return Fate::Stays("read-only with the same content"),
        Err(why) => why,
    };
    if plan::is_device(disk) {
        return device(disk, destination, policy, &why, room);
    }
    let result = said.results.iter().find(|result| result.image_path == disk.source);
    match result {
        _ if disk.source_type != "file" => refused(format!("not shared, and no image file: {why}"), COPY_REMEDY),
        Some(result) if result.shared => refused(
            format!("both hosts have it, and not what it lies on: {why}"),
            CHAIN_REMEDY,
        ),
        _ if destination != disk.source => refused(ELSEWHERE.to_owned(), "leave out --disk for it"),
        _ if !may_copy(disk, policy) => refused(format!("not shared: {why}"), COPY_REMEDY),
        _ if !disk.offline_problem.is_empty() => refused(disk.offline_problem.clone(), &disk.offline_remedy),
        None => refused(format!("not shared: {why}"), COPY_REMEDY),
        Some(result) if result.present => Fate::Taken(why),
        Some(_) => match room {
            Some(room) if !room.problem.is_empty() => refused(room.problem.clone(), &room.remedy),
            _ if !disk.backing.is_empty() && policy.backing_chain() == BackingChain::Flatten => refused(
                "it lies on other files, and files are copied as they are while the guest is off".to_owned(),
                FLATTEN_REMEDY,
            ),
            Some(_) | None => layers(disk, said, rooms),
        },
    }
}

/// What is at its path there is overwritten: it has to be named itself.
fn device(disk: &DiskFacts, destination: &str, policy: &StoragePolicy, why: &str, room: Option<&ImageRoom>) -> Fate {
    let refused = |why: String, remedy: &str| Fate::Refused {
        why,
        remedy: remedy.to_owned(),
    };
    let named = policy.copy_disks.contains(&disk.target);
    match room {
        _ if !named => refused(
            format!(
                "not shared ({why}), and a block device at the destination is overwritten only where its disk is named"
            ),
            &format!("--copy-disks {}", disk.target),
        ),
        _ if destination != disk.source => refused(ELSEWHERE.to_owned(), "leave out --disk for it"),
        _ if !disk.offline_problem.is_empty() => refused(disk.offline_problem.clone(), &disk.offline_remedy),
        _ if !disk.copy_problem.is_empty() => refused(disk.copy_problem.clone(), COPY_REMEDY),
        None => refused(format!("not shared: {why}"), COPY_REMEDY),
        Some(room) if !room.problem.is_empty() => refused(room.problem.clone(), &room.remedy),
        Some(_) => Fate::Copied,
    }
}

/// A chain is copied whole: each of its files has to be one that nobody has there.
fn layers(disk: &DiskFacts, said: Said<'_>, rooms: &[ImageRoom]) -> Fate {
    for (at, path) in disk.backing.iter().enumerate() {
        let refused = |why: &str, remedy: &str| Fate::Refused {
            why: format!("it lies on {path}: {why}"),
            remedy: remedy.to_owned(),
        };
        if disk.backing_types.get(at).is_none_or(|kind| kind != "file") {
            return refused("that is no image file", CHAIN_REMEDY);
        }
        let room = rooms.iter().find(|room| room.target == beneath(&disk.target, at));
        match said.results.iter().find(|result| result.image_path == *path) {
            None => return refused("it was not looked at", CHAIN_REMEDY),
            Some(result) if result.shared => return refused("both hosts have that", CHAIN_REMEDY),
            Some(result) if result.present => {
                return Fate::TakenBeneath(format!("it lies on {path}, {}", result.problem));
            }
            Some(_) => {}
        }
        if let Some(room) = room.filter(|room| !room.problem.is_empty()) {
            return refused(&room.problem, &room.remedy);
        }
    }
    Fate::Copied
}

fn told(known: DiskPlan, fate: Fate, room: Option<&ImageRoom>) -> DiskPlan {
    let free = room.and_then(|room| room.free_bytes).unwrap_or(0);
    let (action, reason, remedy) = match fate {
        Fate::Stays(why) => (DiskAction::None, why.to_owned(), String::new()),
        Fate::Copied if known.source_type == "block" => {
            let why = "not shared; onto the block device there, which is overwritten";
            (DiskAction::CopyOffline, why.to_owned(), String::new())
        }
        Fate::Copied if known.backing.is_empty() => (DiskAction::CopyOffline, "not shared".to_owned(), String::new()),
        Fate::Copied => {
            let why = "not shared; copied with all that it lies on, which stays at the source as well";
            (DiskAction::CopyOffline, why.to_owned(), String::new())
        }
        Fate::Taken(why) => {
            let why = format!("not proved to be shared ({why}), and the destination has a file there");
            (DiskAction::Refuse, why, TAKEN_REMEDY.to_owned())
        }
        Fate::TakenBeneath(why) => {
            let why = format!("the destination has a file there, not proved to be the same: {why}");
            (DiskAction::Refuse, why, BENEATH_REMEDY.to_owned())
        }
        Fate::Refused { why, remedy } => (DiskAction::Refuse, why, remedy),
    };
    DiskPlan {
        action: action.into(),
        reason,
        remedy,
        destination_free_bytes: if action == DiskAction::CopyOffline {
            plan::signed(free)
        } else {
            0
        },
        ..known
    }
}

fn order(plans: &[DiskPlan]) -> OfflinePlan {
    let of = |wanted: DiskAction| {
        let is = move |plan: &&DiskPlan| plan.action() == wanted && !plan.source.is_empty();
        plans.iter().filter(is)
    };
    let mut copied_images: Vec<String> = Vec::new();
    for plan in of(DiskAction::CopyOffline) {
        for path in std::iter::once(&plan.source).chain(&plan.backing) {
            // Two disks may lie on the same file.
            if !copied_images.contains(path) {
                copied_images.push(path.clone());
            }
        }
    }
    OfflinePlan {
        copied_images,
        shared_images: of(DiskAction::None).map(|plan| plan.source.clone()).collect(),
    }
}

fn named(plans: &[DiskPlan], wanted: DiskAction) -> String {
    let found = plans
        .iter()
        .filter(|plan| plan.action() == wanted && !plan.source.is_empty());
    let words: Vec<&str> = found.map(|plan| plan.target.as_str()).collect();
    or_none(&words.join(", "))
}

fn or_none(found: &str) -> String {
    if found.is_empty() { "none" } else { found }.to_owned()
}

/// Whether nothing is where something is to come.
fn path(taken: &[(String, &'static str)], guest: &GuestFacts, rooms: &[ImageRoom]) -> Check {
    let mut found = Vec::new();
    let mut remedies = Vec::new();
    if !taken.is_empty() {
        let words: Vec<&str> = taken.iter().map(|(word, _)| word.as_str()).collect();
        let words = words.join("; ");
        found.push(format!(
            "not proved to be shared, and the destination has a file there: {words}"
        ));
        remedies.extend(taken.iter().map(|(_, remedy)| *remedy));
        remedies.dedup();
    }
    for (target, what, path) in besides(guest) {
        let room = rooms.iter().find(|room| room.target == target);
        if let Some(room) = room.filter(|room| !room.problem.is_empty()) {
            found.push(format!("{what} ({path}): {}", room.problem));
            remedies.push(&room.remedy);
        }
    }
    if found.is_empty() {
        return passed(PATH, "nothing is in the way at the destination");
    }
    failed(PATH, found.join("; "), remedies.join("; "))
}

/// Whether what has to be copied can be.
fn copy(plans: &[DiskPlan], taken: &[(String, &'static str)], guest: &GuestFacts, policy: &StoragePolicy) -> Check {
    if let Some(unknown) = plan::unknown_disk(&guest.disks, policy) {
        return unknown;
    }
    let is_taken = |plan: &DiskPlan| {
        taken
            .iter()
            .any(|(word, _)| word.starts_with(&format!("{} (", plan.target)))
    };
    let refused = plans
        .iter()
        .filter(|plan| plan.action() == DiskAction::Refuse && !is_taken(plan));
    let mut problems: Vec<(String, &str)> = refused
        .map(|plan| {
            (
                format!("{} ({}): {}", plan.target, plan.source, plan.reason),
                plan.remedy.as_str(),
            )
        })
        .collect();
    for (problem, remedy) in [
        (&guest.variables_problem, &guest.variables_remedy),
        (&guest.tpm_problem, &guest.tpm_remedy),
    ] {
        if !problem.is_empty() {
            problems.push((problem.clone(), remedy));
        }
    }
    if !problems.is_empty() {
        let mut remedies: Vec<&str> = problems.iter().map(|(_, remedy)| *remedy).collect();
        remedies.dedup();
        let found: Vec<&str> = problems.iter().map(|(problem, _)| problem.as_str()).collect();
        return failed(COPY, found.join("; "), remedies.join("; "));
    }
    let copied = plans.iter().filter(|plan| plan.action() == DiskAction::CopyOffline);
    let words = copied.map(|plan| {
        let mib = plan.allocated_bytes.max(0).unsigned_abs().div_ceil(1 << 20);
        let beneath = match plan.backing.len() {
            0 => String::new(),
            1 => " with a file beneath it".to_owned(),
            files => format!(" with {files} files beneath it"),
        };
        format!("{} ({}){beneath}, {mib} MiB", plan.target, plan.source)
    });
    let tpm = Some(&guest.tpm_state).filter(|path| !path.is_empty());
    let words: Vec<String> = words
        .chain(tpm.map(|path| format!("the state of its TPM ({path})")))
        .collect();
    passed(COPY, or_none(&words.join("; ")))
}

#[cfg(test)]
#[path = "plan_offline_tests.rs"]
mod tests;
