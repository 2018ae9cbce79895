//! What an agent tells of its migrations, as messages: journal, status, progress, calls.

use drover_proto::agent::v1 as agent;
use drover_proto::ids::HostId;
use drover_proto::time::{proto_duration, std_duration, system_time};
use drover_proto::v1::{
    ActionRecord, CallRecord, DiskProgress, IterationRecord, MigrationError, MigrationPhase, Progress, TransferStage,
    TransferSummary, UnfinishedJournal,
};

use super::convert::{guest, incarnation_message, policy, state};
use crate::hypervisor::{DiskCopy, JobStats};
use crate::jobs::outgoing::PerformOutcome;
use crate::jobs::progress::{self, Action, Event, Flow, Iteration, Problem, Stage, Summary, What};
use crate::jobs::status::Status;
use crate::journal::{Call, Decision, DefinitionNews, DestinationState, Part, Record, SourceState, Verdict};

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
        attempt: record.attempt.0,
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
        settled: matches!(record.decision, Decision::Settled(_)),
        offline: record.is_offline(),
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
            message.ran_on = part.ran_on;
            message.runs = part.runs;
            message.definition = definition(&part.definition, part.inactive_xml.as_deref());
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
            message.runs = part.runs;
            message.definition = definition(&part.definition, part.inactive_xml.as_deref());
        }
    }
    message
}

fn definition(news: &DefinitionNews, inactive_xml: Option<&str>) -> Option<agent::DefinitionNews> {
    match news {
        DefinitionNews::AsSent => None,
        DefinitionNews::Changed => Some(agent::DefinitionNews {
            inactive_xml: inactive_xml.unwrap_or_default().to_owned(),
            problem: String::new(),
        }),
        DefinitionNews::NotTaken(problem) => Some(agent::DefinitionNews {
            inactive_xml: String::new(),
            problem: problem.clone(),
        }),
    }
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
        stream_flows: status.stream_flows,
        agent_restarted: status.agent_restarted,
        host_rebooted: status.host_rebooted,
        guest_ended: status.record.as_ref().is_some_and(|record| record.guest_ended),
        progress: status.progress.map(progress),
        summary: status.summary.map(summary),
        calls: status.calls.into_iter().map(call).collect(),
        iterations: status.iterations.iter().map(iteration).collect(),
        error: status.problem.map(|found| problem(found, Some(host))),
        actions: status.actions.into_iter().map(action).collect(),
        policy: status.record.as_deref().and_then(Record::source).map(policy),
    }
}

/// What the agent did by itself; what others ordered, the controller knows.
fn action(action: Action) -> ActionRecord {
    ActionRecord {
        time: Some(action.time.into()),
        action: action.deed.name().to_owned(),
        value: action.value,
        reason: action.reason,
        actor: "control-loop".to_owned(),
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
        Stage::PostCopy(Flow::Flows) => TransferStage::PostCopy,
        Stage::PostCopy(Flow::Broken) => TransferStage::PostCopyFailed,
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
        post_copy_faults: count(stats.post_copy_requests),
        disks: stats.disks.into_iter().map(disk).collect(),
    }
}

fn disk(copy: DiskCopy) -> DiskProgress {
    DiskProgress {
        disk: copy.disk,
        total_bytes: count(copy.total),
        remaining_bytes: count(copy.remaining),
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

fn iteration(iteration: &Iteration) -> IterationRecord {
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
pub(crate) fn call_from(message: &CallRecord, host: &HostId) -> Option<Call> {
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
        What::Iteration(round) => Message::Iteration(iteration(&round)),
        What::Failed(why) => Message::Failed(problem(why, None)),
        What::Call(made) => Message::Call(call(made)),
        What::Action(done) => Message::Action(action(done)),
    };
    agent::WatchOutgoingResponse {
        time: Some(event.time.into()),
        event: Some(message),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
