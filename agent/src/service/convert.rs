//! Requests to our own types, and facts of hosts and guests to messages. What is not valid names its field.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use drover_proto::agent::v1 as agent;
use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::{Attempt, GuestId, HostId, MigrationId, Ticket};
use drover_proto::overrides::{Overrides, Problem};
use drover_proto::time::{proto_duration, std_duration};
use drover_proto::v1::{self, Compression, DeadlineAction};

use super::images;
use crate::checks::Space;
use crate::guest_xml::{self, GuestShape, HugePages};
use crate::hypervisor::{GuestFacts, GuestState, HostFacts, Incarnation};
use crate::jobs::begin::BeginAnswer;
use crate::jobs::fence::{Fence, Reference};
use crate::jobs::settle_incoming::News;
use crate::journal::{AtDeadline, Limits, SourcePart, Term, Verdict};
use crate::offline::FileSpec;
use crate::probe::Probe;
use crate::probe::device::Device;

fn parse<T: FromStr>(field: &str, text: &str) -> Result<T, Failure>
where
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|error: T::Err| Failure::invalid(field, error.to_string()))
}

pub(super) fn guest_id(field: &str, text: &str) -> Result<GuestId, Failure> {
    parse(field, text)
}

pub(super) fn migration_id(field: &str, text: &str) -> Result<MigrationId, Failure> {
    parse(field, text)
}

pub(super) fn host_id(field: &str, name: &str) -> Result<HostId, Failure> {
    HostId::from_resource_name(name).map_err(|error| Failure::invalid(field, error.to_string()))
}

pub(super) fn ticket(bytes: &[u8]) -> Result<Ticket, Failure> {
    Ticket::from_slice(bytes).map_err(|error| Failure::invalid("ticket", error.to_string()))
}

pub(super) fn fence(fence: Option<agent::Fence>) -> Result<Fence, Failure> {
    let fence = fence.ok_or_else(|| Failure::invalid("fence", "is required"))?;
    if fence.store_instance.is_empty() || fence.store_instance.len() > 128 {
        return Err(Failure::invalid("fence.store_instance", "1 to 128 characters"));
    }
    Ok(Fence {
        term: Term {
            number: fence.term,
            store_instance: fence.store_instance,
        },
        lease: fence.lease,
    })
}

pub(super) fn reference(reference: Option<agent::MigrationRef>) -> Result<Reference, Failure> {
    let reference = reference.ok_or_else(|| Failure::invalid("migration", "is required"))?;
    if reference.attempt == 0 {
        return Err(Failure::invalid("migration.attempt", "counts from 1"));
    }
    Ok(Reference {
        migration: migration_id("migration.migration_id", &reference.migration_id)?,
        attempt: Attempt(reference.attempt),
        guest: guest_id("migration.guest_uuid", &reference.guest_uuid)?,
    })
}

pub(super) fn incarnation(message: Option<agent::Incarnation>) -> Result<Incarnation, Failure> {
    let message = message.ok_or_else(|| Failure::invalid("incarnation", "is required"))?;
    Ok(Incarnation {
        boot_id: parse("incarnation.boot_id", &message.boot_id)?,
        qemu_pid: message.qemu_pid,
        qemu_start_time: message.qemu_start_time,
    })
}

pub(super) fn limits(policy: Option<&agent::TransferPolicy>) -> Result<Limits, Failure> {
    let Some(policy) = policy else {
        return Ok(Limits::default());
    };
    let time = |field: &str, read: Option<Option<Duration>>| match read {
        None => Ok(None),
        Some(None) => Err(Failure::invalid(field, "must not be negative")),
        Some(time) => Ok(time),
    };
    let at_deadline = match DeadlineAction::try_from(policy.on_deadline) {
        Ok(DeadlineAction::Unspecified | DeadlineAction::Abort) => AtDeadline::Abort,
        Ok(DeadlineAction::PauseAndFinish) => AtDeadline::PauseAndFinish,
        Ok(DeadlineAction::PostCopy) => AtDeadline::PostCopy,
        Err(_) => {
            let message = "this agent can abort, pause to finish or go post-copy at a deadline, nothing else";
            return Err(Failure::new(Reason::Unimplemented, message).with_field("policy.on_deadline", message));
        }
    };
    Ok(Limits {
        bandwidth: policy.bandwidth_limit_bytes_per_second,
        max_downtime: time("policy.max_downtime", policy.max_downtime.as_ref().map(std_duration))?
            .filter(|max| *max > Duration::ZERO),
        whole_downtime: false,
        deadline: time("policy.deadline", policy.deadline.as_ref().map(std_duration))?,
        at_deadline,
        pause_and_finish: policy.pause_and_finish,
        post_copy_early: policy.post_copy,
        post_copy_now: policy.post_copy_now,
        revision: policy.revision,
    })
}

/// The policy in force, as the controller would order it.
pub(super) fn policy(part: &SourcePart) -> agent::TransferPolicy {
    let SourcePart { flags, limits, .. } = part;
    let on_deadline = match limits.at_deadline {
        AtDeadline::Abort => DeadlineAction::Abort,
        AtDeadline::PauseAndFinish => DeadlineAction::PauseAndFinish,
        AtDeadline::PostCopy => DeadlineAction::PostCopy,
    };
    agent::TransferPolicy {
        bandwidth_limit_bytes_per_second: limits.bandwidth,
        max_downtime: limits.max_downtime.map(proto_duration),
        deadline: limits.deadline.map(proto_duration),
        parallel_connections: flags.parallel,
        compression: if flags.zstd { Compression::Zstd.into() } else { 0 },
        detect_zeroes: flags.detect_zeroes,
        auto_converge: flags.auto_converge,
        post_copy: flags.post_copy,
        storage_proved: flags.storage_proved,
        on_deadline: on_deadline.into(),
        pause_and_finish: limits.pause_and_finish,
        post_copy_now: limits.post_copy_now,
        revision: limits.revision,
    }
}

pub(super) fn verdict_from(verdict: i32) -> Result<Verdict, Failure> {
    match agent::Verdict::try_from(verdict) {
        Ok(agent::Verdict::NeverRan) => Ok(Verdict::NeverRan),
        Ok(agent::Verdict::Ran) => Ok(Verdict::Ran),
        Ok(agent::Verdict::Unspecified) | Err(_) => Err(Failure::invalid("verdict", "NEVER_RAN or RAN")),
    }
}

pub(super) fn state_from(state: i32) -> Result<GuestState, Failure> {
    use agent::LibvirtState as Message;
    Ok(match Message::try_from(state).unwrap_or_default() {
        Message::Unspecified => return Err(Failure::invalid("state_before", "is required")),
        Message::Running => GuestState::Running,
        Message::RunningPostCopy => GuestState::RunningPostCopy,
        Message::RunningPostCopyFailed => GuestState::RunningPostCopyFailed,
        Message::Paused => GuestState::Paused,
        Message::PausedMigrating => GuestState::PausedMigrating,
        Message::PausedPostCopy => GuestState::PausedPostCopy,
        Message::PausedPostCopyFailed => GuestState::PausedPostCopyFailed,
        Message::PausedFault => GuestState::PausedFault,
        Message::ShuttingDown => GuestState::ShuttingDown,
        Message::Crashed => GuestState::Crashed,
        Message::ShutOff => GuestState::ShutOff,
    })
}

pub(super) fn state(state: GuestState) -> agent::LibvirtState {
    use agent::LibvirtState as Message;
    match state {
        GuestState::Running => Message::Running,
        GuestState::RunningPostCopy => Message::RunningPostCopy,
        GuestState::RunningPostCopyFailed => Message::RunningPostCopyFailed,
        GuestState::Paused => Message::Paused,
        GuestState::PausedMigrating => Message::PausedMigrating,
        GuestState::PausedPostCopy => Message::PausedPostCopy,
        GuestState::PausedPostCopyFailed => Message::PausedPostCopyFailed,
        GuestState::PausedFault => Message::PausedFault,
        GuestState::ShuttingDown => Message::ShuttingDown,
        GuestState::Crashed => Message::Crashed,
        GuestState::ShutOff => Message::ShutOff,
    }
}

pub(super) fn begun(answer: BeginAnswer) -> agent::BeginOutgoingResponse {
    agent::BeginOutgoingResponse {
        xml: answer.begun.xml,
        inactive_xml: answer.inactive_xml.unwrap_or_default(),
        cookie: answer.begun.cookie.0.into(),
        guest_name: answer.guest_name,
        state_before: state(answer.state_before).into(),
        autostart_before: answer.autostart_before,
        images: answer.images.into_iter().map(images::image).collect(),
        files: answer.files.iter().map(file).collect(),
        offline: answer.is_offline,
    }
}

fn file(file: &FileSpec) -> agent::OfflineFile {
    agent::OfflineFile {
        path: file.path.to_string_lossy().into_owned(),
        size_bytes: file.size,
        allocated_bytes: file.allocated,
        mode: file.mode,
    }
}

pub(super) fn host_facts(facts: &HostFacts, space: Space) -> agent::HostFacts {
    agent::HostFacts {
        host_uuid: facts.uuid.to_string(),
        hostname: facts.hostname.clone(),
        libvirt_version: facts.libvirt_version,
        qemu_version: facts.qemu_version,
        arch: facts.arch.clone(),
        cpus: facts.cpus,
        memory_total_bytes: facts.memory_total,
        memory_available_bytes: facts.memory_available,
        clock: Some(drover_proto::time::now()),
        bridges: facts.bridges.clone(),
        networks: facts.networks.clone(),
        cpu_xml: facts.cpu_xml.clone(),
        huge_pages: huge_pages(&facts.huge_pages),
        numa_nodes: facts.numa_nodes.clone(),
        online_cpus: facts.online_cpus.clone(),
        lock_manager: facts.lock_manager.clone().unwrap_or_default(),
        state_free_bytes: space.state,
        run_free_bytes: space.run,
        compressions: facts
            .knows_zstd()
            .then_some(Compression::Zstd.into())
            .into_iter()
            .collect(),
        detects_zeroes: facts.detects_zeroes(),
    }
}

fn huge_pages(pages: &[HugePages]) -> Vec<agent::HugePages> {
    let message = |pages: &HugePages| agent::HugePages {
        page_bytes: pages.page,
        total_bytes: pages.total,
    };
    pages.iter().map(message).collect()
}

pub(super) fn incarnation_message(incarnation: &Incarnation) -> agent::Incarnation {
    agent::Incarnation {
        boot_id: incarnation.boot_id.to_string(),
        qemu_pid: incarnation.qemu_pid,
        qemu_start_time: incarnation.qemu_start_time,
    }
}

pub(super) fn guest(guest: &GuestFacts, shape: Option<GuestShape>, job_active: bool) -> agent::GuestFacts {
    let shape = shape.unwrap_or_default();
    agent::GuestFacts {
        guest_uuid: guest.id.to_string(),
        name: guest.name.clone(),
        state: state(guest.state).into(),
        persistent: guest.persistent,
        autostart: guest.autostart,
        memory_bytes: guest.memory,
        vcpus: guest.vcpus,
        snapshots: guest.snapshots,
        checkpoints: guest.checkpoints,
        managed_save: guest.managed_save,
        incarnation: guest.incarnation.as_ref().map(incarnation_message),
        job_active,
        domain_type: shape.domain_type,
        arch: shape.arch,
        machine: shape.machine,
        cpu_xml: shape.cpu_xml,
        disks: shape.disks.into_iter().map(disk).collect(),
        interfaces: shape.interfaces.into_iter().map(interface).collect(),
        blockers: shape.blockers.iter().map(|blocker| blocker.what.clone()).collect(),
        ties: shape.blockers.into_iter().map(tie).collect(),
        huge_pages: huge_pages(&shape.needs.huge_pages),
        numa_nodes: shape.needs.numa_nodes,
        host_cpus: shape.needs.host_cpus,
        boot_files: shape.needs.boot_files,
        variables: shape.needs.nvram,
        tpm_state: shape.needs.tpm_state,
        ..agent::GuestFacts::default()
    }
}

fn disk(disk: guest_xml::Disk) -> agent::DiskFacts {
    agent::DiskFacts {
        target: disk.target,
        source_type: disk.source_type,
        source: disk.source,
        format: disk.format,
        read_only: disk.read_only,
        shareable: disk.shareable,
        cache: disk.cache,
        backing: disk.backing.iter().map(|layer| layer.source.clone()).collect(),
        backing_types: disk.backing.into_iter().map(|layer| layer.source_type).collect(),
        ..agent::DiskFacts::default()
    }
}

fn tie(blocker: guest_xml::Blocker) -> agent::Blocker {
    agent::Blocker {
        check_id: blocker.check.to_owned(),
        what: blocker.what,
        holds_data: blocker.holds_data,
    }
}

fn interface(interface: guest_xml::Interface) -> agent::InterfaceFacts {
    agent::InterfaceFacts {
        mac_address: interface.mac_address,
        source_type: interface.source_type,
        source: interface.source,
    }
}

/// Adds what overrides make of the guest, or why they do not fit it.
pub(super) fn add_destination(facts: &mut agent::GuestFacts, shape: Result<GuestShape, Vec<Problem>>) {
    match shape {
        Ok(shape) => {
            facts.destination_disks = shape.disks.into_iter().map(disk).collect();
            facts.destination_interfaces = shape.interfaces.into_iter().map(interface).collect();
        }
        Err(problems) => {
            let problem = |(field, problem)| agent::OverrideProblem { field, problem };
            facts.override_problems = problems.into_iter().map(problem).collect();
        }
    }
}

/// What is different at the destination; unset is nothing.
pub(super) fn overrides(message: Option<&v1::DestinationOverrides>) -> Result<Overrides, Failure> {
    let Some(message) = message else {
        return Ok(Overrides::default());
    };
    Overrides::read(message).map_err(|problems| {
        let mut failure = Failure::new(Reason::InvalidArgument, "destination_overrides");
        for (field, why) in problems {
            failure = failure.with_field(format!("destination_overrides.{field}"), why);
        }
        failure
    })
}

pub(super) fn probe(probe: Probe) -> agent::StorageProbe {
    agent::StorageProbe {
        directory: probe.directory.to_string_lossy().into_owned(),
        image_path: probe.image.to_string_lossy().into_owned(),
        file_name: probe.file_name,
        content: probe.content.into(),
        image_inode: probe.inode,
        image_size_bytes: probe.size,
        destination_image_path: String::new(),
        content_sha256: probe.sha256.into(),
        device_identity: String::new(),
    }
}

pub(super) fn device(device: Device) -> agent::StorageProbe {
    agent::StorageProbe {
        image_path: device.path.to_string_lossy().into_owned(),
        device_identity: device.identity,
        image_size_bytes: device.size,
        ..agent::StorageProbe::default()
    }
}

/// What this side has to look for: where the image lies here.
pub(super) fn probe_from(message: agent::StorageProbe) -> Probe {
    let (directory, image) = if message.destination_image_path.is_empty() {
        (message.directory.into(), message.image_path.into())
    } else {
        let image = PathBuf::from(message.destination_image_path);
        (image.parent().map(PathBuf::from).unwrap_or_default(), image)
    };
    Probe {
        directory,
        image,
        file_name: message.file_name,
        content: message.content.to_vec(),
        inode: message.image_inode,
        size: message.image_size_bytes,
        sha256: message.content_sha256.to_vec(),
    }
}

/// What the source's journal says of a definition that can be taken over.
pub(super) fn definition_news(message: agent::DefinitionNews) -> Option<News> {
    let agent::DefinitionNews { inactive_xml, problem } = message;
    problem.is_empty().then(|| News {
        inactive_xml: Some(inactive_xml).filter(|xml| !xml.is_empty()),
    })
}
