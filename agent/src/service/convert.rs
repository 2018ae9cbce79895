//! Messages to our own types and back. What is not valid names its field.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use drover_proto::agent::v1 as agent;
use drover_proto::failure::Failure;
use drover_proto::ids::{Attempt, GuestId, HostId, MigrationId, Ticket};
use drover_proto::time::{proto_duration, std_duration, system_time};
use drover_proto::v1::{
    CallRecord, IterationRecord, MigrationError, MigrationPhase, Progress, TransferStage, TransferSummary,
    UnfinishedJournal,
};

use crate::guest_xml::GuestShape;
use crate::hypervisor::{GuestFacts, GuestState, HostFacts, Incarnation, JobStats};
use crate::jobs::begin::BeginAnswer;
use crate::jobs::fence::{Fence, Reference};
use crate::jobs::outgoing::PerformOutcome;
use crate::jobs::progress::{self, Event, Iteration, Problem, Stage, Summary, What};
use crate::jobs::status::Status;
use crate::journal::{Call, DestinationState, Limits, Part, Record, SourceState, Term, Verdict};
use crate::probe::Probe;

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

pub(super) fn limits(policy: Option<&agent::TransferPolicy>) -> Limits {
    policy.map_or_else(Limits::default, |policy| Limits {
        bandwidth: policy.bandwidth_limit_bytes_per_second,
        max_downtime: policy
            .max_downtime
            .as_ref()
            .and_then(std_duration)
            .filter(|max| *max > Duration::ZERO),
    })
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

fn state(state: GuestState) -> agent::LibvirtState {
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
    }
}

pub(super) fn host_facts(facts: &HostFacts) -> agent::HostFacts {
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
    }
}

fn incarnation_message(incarnation: &Incarnation) -> agent::Incarnation {
    agent::Incarnation {
        boot_id: incarnation.boot_id.to_string(),
        qemu_pid: incarnation.qemu_pid,
        qemu_start_time: incarnation.qemu_start_time,
    }
}

pub(super) fn guest(guest: &GuestFacts, shape: Option<GuestShape>, job_active: bool) -> agent::GuestFacts {
    let shape = shape.unwrap_or_default();
    let disk = |disk: crate::guest_xml::Disk| agent::DiskFacts {
        target: disk.target,
        source_type: disk.source_type,
        source: disk.source,
        format: disk.format,
        read_only: disk.read_only,
        shareable: disk.shareable,
        cache: disk.cache,
        backing: disk.backing,
    };
    let interface = |interface: crate::guest_xml::Interface| agent::InterfaceFacts {
        mac_address: interface.mac_address,
        source_type: interface.source_type,
        source: interface.source,
    };
    agent::GuestFacts {
        guest_uuid: guest.id.to_string(),
        name: guest.name.clone(),
        state: state(guest.state).into(),
        persistent: guest.persistent,
        autostart: guest.autostart,
        memory_bytes: guest.memory,
        vcpus: guest.vcpus,
        snapshots: guest.snapshots,
        incarnation: guest.incarnation.as_ref().map(incarnation_message),
        job_active,
        domain_type: shape.domain_type,
        arch: shape.arch,
        machine: shape.machine,
        cpu_xml: shape.cpu_xml,
        disks: shape.disks.into_iter().map(disk).collect(),
        interfaces: shape.interfaces.into_iter().map(interface).collect(),
        blockers: shape.blockers,
    }
}

pub(super) fn unfinished(own: &HostId, record: &Record) -> UnfinishedJournal {
    let own = own.resource_name();
    let (source_host, destination_host) = match &record.part {
        Part::Nothing => (String::new(), String::new()),
        Part::Source(part) => (own, part.peer.resource_name()),
        Part::Destination(part) => (part.peer.resource_name(), own),
    };
    UnfinishedJournal {
        migration: record.migration.resource_name(),
        guest_uuid: record.guest.to_string(),
        source_host,
        destination_host,
        journal_state: record.state_name().to_owned(),
    }
}

fn journal(record: &Record) -> agent::JournalRecord {
    let mut message = agent::JournalRecord {
        migration: Some(agent::MigrationRef {
            migration_id: record.migration.to_string(),
            attempt: record.attempt.0,
            guest_uuid: record.guest.to_string(),
        }),
        tombstoned: record.is_tombstoned(record.attempt),
        verdict: record.verdict().map_or(agent::Verdict::Unspecified, verdict).into(),
        incarnation: record.incarnation().map(incarnation_message),
        create_time: Some(record.created.into()),
        closed: record.closed.is_some(),
        ..agent::JournalRecord::default()
    };
    match &record.part {
        Part::Nothing => {}
        Part::Source(part) => {
            message.set_state(match part.state {
                SourceState::Sending => agent::JournalState::Sending,
                SourceState::HandedOver => agent::JournalState::HandedOver,
            });
            message.set_state_before(state(part.state_before));
            message.autostart_before = part.autostart_before;
            message.persistent = part.flags.persistent;
            message.post_copy = part.flags.post_copy;
            message.suspended_by_agent = part.suspended_by_agent;
            message.peer_host = part.peer.resource_name();
        }
        Part::Destination(part) => {
            message.set_state(match part.state {
                DestinationState::Waiting => agent::JournalState::Waiting,
                DestinationState::Finishing => agent::JournalState::Finishing,
                DestinationState::Resuming => agent::JournalState::Resuming,
                DestinationState::Ran => agent::JournalState::Ran,
                DestinationState::Revoked => agent::JournalState::Revoked,
                DestinationState::Failed => agent::JournalState::Failed,
            });
            message.set_state_before(state(part.state_before));
            message.autostart_before = part.autostart_before;
            message.persistent = part.flags.persistent;
            message.post_copy = part.flags.post_copy;
            message.peer_host = part.peer.resource_name();
        }
    }
    message
}

fn verdict(verdict: Verdict) -> agent::Verdict {
    match verdict {
        Verdict::NeverRan => agent::Verdict::NeverRan,
        Verdict::Ran => agent::Verdict::Ran,
    }
}

pub(super) fn status(host: &HostId, status: Status) -> agent::MigrationStatus {
    let role = match status.record.as_deref().map(|record| &record.part) {
        Some(Part::Source(_)) => agent::AgentRole::Source,
        Some(Part::Destination(_)) => agent::AgentRole::Destination,
        Some(Part::Nothing) | None => agent::AgentRole::Unspecified,
    };
    let outcome = match status.perform_outcome {
        None => agent::PerformOutcome::Unspecified,
        Some(PerformOutcome::Sent(_)) => agent::PerformOutcome::Sent,
        Some(PerformOutcome::Failed) => agent::PerformOutcome::Failed,
    };
    agent::MigrationStatus {
        role: role.into(),
        journal: status.record.as_deref().map(journal),
        // Where it can be read; the controller asks InspectGuest for more.
        guest: status.guest.as_ref().map(|found| guest(found, None, status.job_active)),
        same_incarnation: status.same_incarnation,
        call_in_flight: status.call_in_flight,
        performing: status.performing,
        perform_outcome: outcome.into(),
        stream_complete: status.stream_complete,
        agent_restarted: status.agent_restarted,
        host_rebooted: status.host_rebooted,
        guest_ended: status.record.as_ref().is_some_and(|record| record.guest_ended),
        progress: status.progress.map(progress),
        summary: status.summary.map(summary),
        calls: status.calls.into_iter().map(call).collect(),
        iterations: status.iterations.into_iter().map(iteration).collect(),
        error: status.problem.map(|found| problem(found, Some(host))),
    }
}

/// Counts of bytes are signed in the public API.
fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn progress(progress: progress::Progress) -> Progress {
    let progress::Progress {
        time,
        stage,
        stats,
        elapsed,
        blackout,
    } = progress;
    let stage = match stage {
        Stage::PreCopy => TransferStage::PreCopy,
        Stage::Switching => TransferStage::Switching,
        Stage::Switched => TransferStage::Switched,
    };
    Progress {
        time: Some(time.into()),
        iteration: count(stats.iteration),
        memory_total_bytes: count(stats.memory_total),
        memory_sent_bytes: count(stats.memory_processed),
        memory_remaining_bytes: count(stats.memory_remaining),
        dirty_bytes_per_second: count(stats.dirty_rate),
        bandwidth_bytes_per_second: count(stats.bandwidth),
        throttle_percent: i32::try_from(stats.throttle).unwrap_or(i32::MAX),
        expected_blackout: stats.downtime.map(proto_duration),
        measured_blackout: blackout.map(proto_duration),
        disk_total_bytes: count(stats.disk_total),
        disk_sent_bytes: count(stats.disk_processed),
        disk_remaining_bytes: count(stats.disk_remaining),
        stage: stage.into(),
        elapsed: Some(proto_duration(elapsed)),
    }
}

pub(super) fn summary(summary: Summary) -> TransferSummary {
    let Summary {
        switched,
        blackout,
        stats,
        tunnel_bytes,
        duration,
    } = summary;
    let JobStats {
        downtime,
        memory_processed,
        disk_processed,
        iteration,
        dirty_rate,
        ..
    } = stats;
    TransferSummary {
        switch_time: switched.map(Into::into),
        blackout: blackout.map(proto_duration),
        libvirt_downtime: downtime.map(proto_duration),
        memory_sent_bytes: count(memory_processed),
        disk_sent_bytes: count(disk_processed),
        tunnel_bytes: count(tunnel_bytes),
        iterations: count(iteration),
        dirty_bytes_per_second: count(dirty_rate),
        duration: Some(proto_duration(duration)),
    }
}

fn iteration(iteration: Iteration) -> IterationRecord {
    IterationRecord {
        iteration: count(iteration.number),
        start_time: Some(iteration.started.into()),
        duration: iteration.duration.map(proto_duration),
        remaining_bytes: count(iteration.remaining),
        dirty_bytes_per_second: count(iteration.dirty_rate),
        bandwidth_bytes_per_second: count(iteration.bandwidth),
    }
}

fn problem(problem: Problem, host: Option<&HostId>) -> MigrationError {
    MigrationError {
        reason: problem.reason.to_owned(),
        message: problem.message,
        remedy: problem.remedy,
        host: host.map(HostId::resource_name).unwrap_or_default(),
        phase: MigrationPhase::Transfer.into(),
    }
}

pub(super) fn call(call: Call) -> CallRecord {
    CallRecord {
        call: call.name,
        host: call.host.resource_name(),
        start_time: Some(call.started.into()),
        duration: Some(proto_duration(call.duration)),
        error: call.error,
    }
}

/// A call that another agent reported; it may only speak for itself.
pub(crate) fn call_from(message: CallRecord, host: &HostId) -> Option<Call> {
    Some(Call {
        name: message.call.chars().take(64).collect(),
        host: host.clone(),
        started: message.start_time.as_ref().and_then(system_time)?,
        duration: message.duration.as_ref().and_then(std_duration)?,
        error: message.error.chars().take(1000).collect(),
    })
}

pub(super) fn event(event: Event) -> agent::WatchOutgoingResponse {
    use agent::watch_outgoing_response::Event as Message;
    let message = match event.what {
        What::Progress(moment) => Message::Progress(progress(moment)),
        What::AllSent => Message::AllSent(agent::AllSent {}),
        What::Switched(totals) => Message::Switched(summary(totals)),
        What::Iteration(round) => Message::Iteration(iteration(round)),
        What::Failed(why) => Message::Failed(problem(why, None)),
        What::Call(made) => Message::Call(call(made)),
    };
    agent::WatchOutgoingResponse {
        time: Some(event.time.into()),
        event: Some(message),
    }
}

pub(super) fn probe(probe: Probe) -> agent::StorageProbe {
    agent::StorageProbe {
        directory: probe.directory.to_string_lossy().into_owned(),
        image_path: probe.image.to_string_lossy().into_owned(),
        file_name: probe.file_name,
        content: probe.content.into(),
        image_inode: probe.inode,
        image_size_bytes: probe.size,
    }
}

pub(super) fn probe_from(message: agent::StorageProbe) -> Probe {
    Probe {
        directory: PathBuf::from(message.directory),
        image: PathBuf::from(message.image_path),
        file_name: message.file_name,
        content: message.content.to_vec(),
        inode: message.image_inode,
        size: message.image_size_bytes,
    }
}
