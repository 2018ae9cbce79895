//! From what an agent answers to what the verdict reasons about. Only a translation, and where an answer says less
//! than the verdict asks, it becomes the more careful thing.

use drover_proto::agent::v1::{
    GuestFacts, JournalRecord, JournalState, LibvirtState, MigrationStatus, PerformOutcome, Verdict,
};

use crate::verdict::{
    Decided, Destination, DestinationCopy, DestinationJournal, Job, Seen, Source, SourceCopy, SourceJournal,
};

/// What the source's answer means. `begun`: this controller has written down that its Begin was done, so that a
/// source that knows nothing of it has lost its journal.
pub fn source(status: &MigrationStatus, begun: bool) -> Seen<Source> {
    let Some(record) = &status.journal else {
        return no_journal(begun);
    };
    let journal = match record.state() {
        JournalState::Sending => SourceJournal::Sending,
        JournalState::HandedOver if record.ran_on => SourceJournal::RanOn,
        JournalState::HandedOver => SourceJournal::HandedOver,
        JournalState::Unspecified if begun => return Seen::JournalLost,
        JournalState::Unspecified => SourceJournal::NotBegun,
        // A destination's word from a source: not a journal of this migration's source.
        JournalState::Waiting
        | JournalState::Finishing
        | JournalState::Resuming
        | JournalState::Ran
        | JournalState::Revoked
        | JournalState::Failed => return Seen::JournalLost,
    };
    let copy = source_copy(status, record, journal);
    Seen::Journal(Source {
        journal,
        tombstoned: record.tombstoned,
        verdict: decided(record),
        copy,
    })
}

/// What the destination's answer means. `prepared`: this controller has written down that it was prepared.
pub fn destination(status: &MigrationStatus, prepared: bool) -> Seen<Destination> {
    let Some(record) = &status.journal else {
        return no_journal(prepared);
    };
    let journal = match record.state() {
        JournalState::Waiting => DestinationJournal::Waiting,
        JournalState::Finishing => DestinationJournal::Finishing,
        JournalState::Resuming => DestinationJournal::Resuming,
        JournalState::Ran => DestinationJournal::Ran,
        JournalState::Revoked => DestinationJournal::Revoked,
        JournalState::Failed => DestinationJournal::Failed,
        JournalState::Unspecified | JournalState::Sending | JournalState::HandedOver => return no_journal(prepared),
    };
    Seen::Journal(Destination {
        journal,
        post_copy: record.post_copy,
        stream_complete: status.stream_complete,
        stream_flows: status.stream_flows,
        verdict: decided(record),
        copy: if record.offline {
            offline_destination(status, record)
        } else {
            destination_copy(status)
        },
    })
}

/// Whether a guest has a QEMU, whatever it does.
pub fn is_active(guest: Option<&GuestFacts>) -> bool {
    guest.is_some_and(|guest| match guest.state() {
        LibvirtState::ShutOff => false,
        LibvirtState::Unspecified
        | LibvirtState::Running
        | LibvirtState::RunningPostCopy
        | LibvirtState::RunningPostCopyFailed
        | LibvirtState::Paused
        | LibvirtState::PausedMigrating
        | LibvirtState::PausedPostCopy
        | LibvirtState::PausedPostCopyFailed
        | LibvirtState::PausedFault
        | LibvirtState::ShuttingDown
        | LibvirtState::Crashed => true,
    })
}

/// Whether the guest moves shut off.
pub fn is_offline(status: &MigrationStatus) -> bool {
    status.journal.as_ref().is_some_and(|journal| journal.offline)
}

/// Whether the guest is there as it should be: with a QEMU, or, where it moves shut off, with its definition.
pub fn lives(status: &MigrationStatus) -> bool {
    is_active(status.guest.as_ref()) || (is_offline(status) && status.guest.is_some())
}

fn no_journal<T>(expected: bool) -> Seen<T> {
    if expected { Seen::JournalLost } else { Seen::NoJournal }
}

fn decided(record: &JournalRecord) -> Option<Decided> {
    match record.verdict() {
        Verdict::Unspecified => None,
        Verdict::NeverRan => Some(Decided::NeverRan),
        Verdict::Ran => Some(Decided::Ran),
    }
}

fn source_copy(status: &MigrationStatus, record: &JournalRecord, journal: SourceJournal) -> SourceCopy {
    if record.offline {
        return offline_source(status, record, journal);
    }
    let Some(guest) = status.guest.as_ref().filter(|guest| is_active(Some(guest))) else {
        return if status.guest_ended {
            SourceCopy::EndedByUser
        } else {
            SourceCopy::Gone
        };
    };
    // Before Begin no life was written down, and the guest that is there is the one.
    if !status.same_incarnation && journal != SourceJournal::NotBegun {
        return SourceCopy::Another;
    }
    let handed_over = matches!(journal, SourceJournal::HandedOver | SourceJournal::RanOn);
    let sent = handed_over || status.perform_outcome() == PerformOutcome::Sent;
    match guest.state() {
        LibvirtState::PausedPostCopy => SourceCopy::PostCopy,
        LibvirtState::PausedPostCopyFailed => SourceCopy::PostCopyFailed,
        // Only Perform's success says that all is sent: a guest may stand still by one that failed, and libvirt may yet
        // resume it. One that its user had paused stays paused that way.
        LibvirtState::PausedMigrating | LibvirtState::Paused | LibvirtState::PausedFault
            if sent && !status.performing =>
        {
            SourceCopy::AllSent
        }
        LibvirtState::Unspecified
        | LibvirtState::Running
        | LibvirtState::RunningPostCopy
        | LibvirtState::RunningPostCopyFailed
        | LibvirtState::Paused
        | LibvirtState::PausedMigrating
        | LibvirtState::PausedFault
        | LibvirtState::ShuttingDown
        | LibvirtState::Crashed
        | LibvirtState::ShutOff => SourceCopy::AsBefore(job(status, record)),
    }
}

/// A guest that is shut off: what counts is whether it can be started here. What its copy lost with a connection or an
/// agent is sent again, so that only a copy that failed for good has come to an end.
fn offline_source(status: &MigrationStatus, record: &JournalRecord, journal: SourceJournal) -> SourceCopy {
    match (&status.guest, journal) {
        (Some(guest), _) if is_active(Some(guest)) => SourceCopy::Another,
        // Forgotten, so that the destination may have it.
        (None, SourceJournal::HandedOver) => SourceCopy::Gone,
        // Where somebody has used it since, the verdict says so by the journal.
        (Some(_), SourceJournal::HandedOver | SourceJournal::RanOn) => SourceCopy::AllSent,
        (None, SourceJournal::Sending | SourceJournal::NotBegun | SourceJournal::RanOn) => SourceCopy::EndedByUser,
        (Some(_), SourceJournal::Sending | SourceJournal::NotBegun) => {
            if status.performing {
                SourceCopy::AsBefore(Job::Performing)
            } else if record.tombstoned {
                SourceCopy::AsBefore(Job::None)
            } else {
                match status.perform_outcome() {
                    PerformOutcome::Sent => SourceCopy::AllSent,
                    PerformOutcome::Failed => SourceCopy::AsBefore(Job::None),
                    PerformOutcome::Unspecified => SourceCopy::AsBefore(Job::Held),
                }
            }
        }
    }
}

/// Its files are there or on their way: whether it never will be here, only the journal says.
fn offline_destination(status: &MigrationStatus, record: &JournalRecord) -> DestinationCopy {
    let active = is_active(status.guest.as_ref());
    match record.state() {
        JournalState::Ran if active => DestinationCopy::Runs,
        // Prepare refused any other guest: its user was quicker than this was written down.
        JournalState::Finishing if active => DestinationCopy::Still,
        _ if active => DestinationCopy::Another,
        JournalState::Waiting | JournalState::Finishing | JournalState::Resuming | JournalState::Ran => {
            DestinationCopy::Still
        }
        JournalState::Unspecified
        | JournalState::Sending
        | JournalState::HandedOver
        | JournalState::Revoked
        | JournalState::Failed => DestinationCopy::Absent,
    }
}

fn job(status: &MigrationStatus, record: &JournalRecord) -> Job {
    let failed = match status.perform_outcome() {
        PerformOutcome::Failed => true,
        PerformOutcome::Unspecified | PerformOutcome::Sent => false,
    };
    if status.performing {
        // Also while it stands still: the last of it is on its way.
        Job::Performing
    } else if failed || status.agent_restarted || record.tombstoned || record.state() != JournalState::Sending {
        Job::None
    } else {
        Job::Held
    }
}

fn destination_copy(status: &MigrationStatus) -> DestinationCopy {
    let Some(guest) = status.guest.as_ref().filter(|guest| is_active(Some(guest))) else {
        return DestinationCopy::Absent;
    };
    if !status.same_incarnation {
        return DestinationCopy::Another;
    }
    match guest.state() {
        LibvirtState::Running | LibvirtState::ShuttingDown => DestinationCopy::Runs,
        LibvirtState::RunningPostCopy => DestinationCopy::PostCopy,
        LibvirtState::RunningPostCopyFailed | LibvirtState::PausedPostCopyFailed => DestinationCopy::PostCopyFailed,
        LibvirtState::Unspecified
        | LibvirtState::Paused
        | LibvirtState::PausedMigrating
        | LibvirtState::PausedPostCopy
        | LibvirtState::PausedFault
        | LibvirtState::Crashed
        | LibvirtState::ShutOff => DestinationCopy::Still,
    }
}

#[cfg(test)]
mod tests;
