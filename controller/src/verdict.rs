//! The verdict: who may run the guest, from what both hosts show.
//!
//! Only a decision: what was seen goes in, [`Judgement`] comes out. [`NeverRan`](Judgement::NeverRan) gives the guest
//! to the source, [`Ran`](Judgement::Ran) to the destination; while it is [`Open`](Judgement::Open) nobody starts or
//! resumes a copy, and [`Open`] says what may be done instead.
//!
//! Promise: a verdict is reached only from evidence, never from silence; what contradicts itself is a person's
//! business. The destination's journal decides; everything else is asked only where it cannot be.

mod evidence;
mod word;

pub use evidence::{
    Decided, Destination, DestinationCopy, DestinationJournal, Job, Seen, Source, SourceCopy, SourceJournal,
};
pub use word::judge_with_word;

/// What the evidence says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Judgement {
    /// The source keeps the guest.
    NeverRan,
    /// The destination has it; the source copy is removed, whatever its state.
    Ran,
    /// Nobody starts or resumes a copy.
    Open(Open),
}

/// What may be done while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Open {
    /// The source sends, or can be told to.
    ContinueTransfer,
    /// Tombstone the source, then revoke the destination: that decides.
    Abort,
    /// All is sent: the source agent hands over (again).
    HandOver,
    /// The waiting copy is the only one: let it finish, by the source agent or in its place.
    FinishInPlace,
    /// A call is on its way at the destination, which will write how it came out.
    Settling,
    /// The memory lies on two hosts and flows.
    TouchNothing,
    /// The memory lies on two hosts and its stream is broken: repair it, destroy neither.
    RecoverPostCopy,
    /// One of the two hosts died in post-copy. Say so, keep what is there.
    GuestLost,
    /// Nothing can be said until this host answers.
    WaitFor(Side),
    /// Two copies may run: the source is stopped at once, and somebody is told.
    SuspendSource,
    /// Nobody can decide but a person who knows which host is off.
    Resolve(Undecidable),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Source,
    Destination,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// Why only a person can decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Undecidable {
    /// The destination died after it may have told the guest to run.
    DiedWhileResuming,
    /// A journal that must exist is not there.
    JournalLost,
    /// Another guest with the same UUID runs where the copy should be.
    AnotherGuest,
    /// All was handed over, the source is gone, and what waits at the destination is not complete.
    IncompleteCopy,
    /// The source ran on after the hand-over: what waits at the destination is older, and cannot be called back.
    OlderCopy,
    /// The two sides prove opposite things.
    Contradiction,
}

/// Who may run the guest.
pub fn judge(source: Seen<Source>, destination: Seen<Destination>) -> Judgement {
    let ran = ran(source, destination);
    let never_ran = never_ran(source, destination);
    match (ran, never_ran) {
        (true, true) => Judgement::Open(Open::Resolve(Undecidable::Contradiction)),
        (true, false) => Judgement::Ran,
        (false, true) => Judgement::NeverRan,
        (false, false) => Judgement::Open(open(source, destination)),
    }
}

/// Whether both copies execute, whatever the verdict: somebody must be told.
pub fn both_run(source: Seen<Source>, destination: Seen<Destination>) -> bool {
    let (Seen::Journal(source), Seen::Journal(destination)) = (source, destination) else {
        return false;
    };
    // A guest that its user paused is `AsBefore` too; where the destination runs, the alarm is right all the same.
    let source_runs = matches!(source.copy, SourceCopy::AsBefore(_));
    source_runs && matches!(destination.copy, DestinationCopy::Runs | DestinationCopy::PostCopy)
}

/// Evidence that the destination had the guest.
fn ran(source: Seen<Source>, destination: Seen<Destination>) -> bool {
    let by_source = matches!(
        source,
        Seen::Journal(Source {
            verdict: Some(Decided::Ran),
            ..
        })
    );
    by_source
        || match destination {
            Seen::Journal(seen) => {
                let seen_running = !seen.post_copy && seen.copy == DestinationCopy::Runs;
                let may_have_run = match seen.journal {
                    DestinationJournal::Ran => true,
                    DestinationJournal::Waiting | DestinationJournal::Finishing | DestinationJournal::Resuming => {
                        seen_running
                    }
                    // What was revoked or failed and runs all the same was started by somebody else.
                    DestinationJournal::Revoked | DestinationJournal::Failed => false,
                };
                may_have_run || seen.verdict == Some(Decided::Ran)
            }
            Seen::Unreachable | Seen::NoJournal | Seen::JournalLost => false,
        }
}

/// Evidence that the destination never had it.
fn never_ran(source: Seen<Source>, destination: Seen<Destination>) -> bool {
    let by_source = match source {
        Seen::Journal(seen) => {
            let never_handed_over = match seen.journal {
                SourceJournal::NotBegun | SourceJournal::Sending => true,
                SourceJournal::HandedOver | SourceJournal::RanOn => false,
            };
            // In post-copy a tombstone is refused; where one is seen all the same, it proves nothing.
            let in_post_copy = matches!(seen.copy, SourceCopy::PostCopy | SourceCopy::PostCopyFailed);
            seen.verdict == Some(Decided::NeverRan) || (seen.tombstoned && never_handed_over && !in_post_copy)
        }
        Seen::Unreachable | Seen::NoJournal | Seen::JournalLost => false,
    };
    by_source
        || match destination {
            Seen::Journal(seen) => {
                let by_journal = match seen.journal {
                    DestinationJournal::Revoked | DestinationJournal::Failed => true,
                    DestinationJournal::Finishing => seen.copy == DestinationCopy::Absent,
                    DestinationJournal::Waiting | DestinationJournal::Resuming | DestinationJournal::Ran => false,
                };
                by_journal || seen.verdict == Some(Decided::NeverRan)
            }
            Seen::Unreachable | Seen::NoJournal | Seen::JournalLost => false,
        }
}

/// What may be done without a verdict.
fn open(source: Seen<Source>, destination: Seen<Destination>) -> Open {
    if both_run(source, destination) {
        return Open::SuspendSource;
    }
    if let Some(open) = post_copy(source, destination) {
        return open;
    }
    match destination {
        Seen::Unreachable => destination_unreachable(source),
        Seen::NoJournal | Seen::JournalLost => destination_unknowing(source),
        Seen::Journal(seen) => match seen.journal {
            DestinationJournal::Waiting => destination_waiting(source, seen),
            DestinationJournal::Finishing | DestinationJournal::Resuming => destination_busy(source, seen),
            // These are verdicts; they do not come here.
            DestinationJournal::Ran | DestinationJournal::Revoked | DestinationJournal::Failed => {
                Open::Resolve(Undecidable::Contradiction)
            }
        },
    }
}

/// Where the memory lies on two hosts, nothing else counts.
fn post_copy(source: Seen<Source>, destination: Seen<Destination>) -> Option<Open> {
    let at_source = match source {
        Seen::Journal(seen) => Some(seen.copy),
        Seen::Unreachable | Seen::NoJournal | Seen::JournalLost => None,
    };
    let (at_destination, waiting) = match destination {
        Seen::Journal(seen) => (Some(seen.copy), seen.journal == DestinationJournal::Waiting),
        Seen::Unreachable | Seen::NoJournal | Seen::JournalLost => (None, false),
    };
    let source_in = matches!(at_source, Some(SourceCopy::PostCopy | SourceCopy::PostCopyFailed));
    let destination_in = matches!(
        at_destination,
        Some(DestinationCopy::PostCopy | DestinationCopy::PostCopyFailed)
    );
    let source_gone = matches!(at_source, Some(SourceCopy::Gone | SourceCopy::EndedByUser));
    if !source_in && !destination_in {
        return None;
    }
    let both_failed =
        at_source == Some(SourceCopy::PostCopyFailed) && at_destination == Some(DestinationCopy::PostCopyFailed);
    // What was sent there is gone with it, and what is at the source does not run without it.
    let destination_died = at_destination == Some(DestinationCopy::Absent);
    Some(if both_failed {
        Open::RecoverPostCopy
    } else if source_gone || destination_died {
        Open::GuestLost
    } else if source_in && waiting && !destination_in {
        Open::HandOver
    } else {
        Open::TouchNothing
    })
}

fn destination_unreachable(source: Seen<Source>) -> Open {
    match source {
        Seen::Unreachable => Open::WaitFor(Side::Source),
        Seen::NoJournal => Open::Abort,
        Seen::JournalLost => Open::WaitFor(Side::Destination),
        Seen::Journal(seen) => match seen.journal {
            SourceJournal::HandedOver | SourceJournal::RanOn => Open::WaitFor(Side::Destination),
            SourceJournal::NotBegun => Open::Abort,
            SourceJournal::Sending => match seen.copy {
                // The source goes on by itself: whom the controller reaches matters to nobody.
                SourceCopy::AsBefore(Job::Held | Job::Performing) => Open::ContinueTransfer,
                SourceCopy::AllSent => Open::HandOver,
                SourceCopy::PostCopy | SourceCopy::PostCopyFailed => Open::TouchNothing,
                SourceCopy::AsBefore(Job::None) | SourceCopy::Gone | SourceCopy::EndedByUser | SourceCopy::Another => {
                    Open::Abort
                }
            },
        },
    }
}

fn destination_unknowing(source: Seen<Source>) -> Open {
    match source {
        Seen::Unreachable => Open::WaitFor(Side::Source),
        Seen::NoJournal => Open::Abort,
        Seen::JournalLost => Open::Resolve(Undecidable::JournalLost),
        Seen::Journal(seen) => match seen.journal {
            SourceJournal::HandedOver | SourceJournal::RanOn => Open::Resolve(Undecidable::JournalLost),
            SourceJournal::NotBegun | SourceJournal::Sending => Open::Abort,
        },
    }
}

fn destination_waiting(source: Seen<Source>, destination: Destination) -> Open {
    let source = match source {
        Seen::Unreachable => return Open::WaitFor(Side::Source),
        // Whoever waits was prepared after a Begin. What waits may be the only copy.
        Seen::NoJournal | Seen::JournalLost if destination.stream_complete => {
            return Open::Resolve(Undecidable::JournalLost);
        }
        Seen::NoJournal | Seen::JournalLost => return Open::Abort,
        Seen::Journal(seen) => seen,
    };
    // Not where it ran on: what waits is older then, and must not run over newer disks.
    let is_all = match source.journal {
        SourceJournal::HandedOver => true,
        SourceJournal::NotBegun | SourceJournal::Sending | SourceJournal::RanOn => false,
    };
    match source.copy {
        SourceCopy::AsBefore(Job::Held | Job::Performing) if source.journal == SourceJournal::Sending => {
            Open::ContinueTransfer
        }
        // Without a job, or although all was handed over: its memory is newer than what was sent.
        SourceCopy::AsBefore(Job::Held | Job::Performing | Job::None) => Open::Abort,
        SourceCopy::AllSent if source.tombstoned || source.journal == SourceJournal::RanOn => Open::Abort,
        SourceCopy::AllSent => Open::HandOver,
        SourceCopy::Gone if is_all => source_gone(destination),
        SourceCopy::Gone | SourceCopy::EndedByUser | SourceCopy::Another => Open::Abort,
        SourceCopy::PostCopy | SourceCopy::PostCopyFailed => Open::TouchNothing,
    }
}

/// All was handed over and the source is gone: what waits may be the only copy.
fn source_gone(destination: Destination) -> Open {
    match destination.copy {
        DestinationCopy::Still if destination.stream_complete => Open::FinishInPlace,
        // The source had sent all of it: the rest is on its way through the destination's agent, or the channel ends.
        DestinationCopy::Still if destination.stream_flows => Open::Settling,
        DestinationCopy::Absent => Open::Abort,
        DestinationCopy::Another => Open::Resolve(Undecidable::AnotherGuest),
        DestinationCopy::Still
        | DestinationCopy::Runs
        | DestinationCopy::PostCopy
        | DestinationCopy::PostCopyFailed => Open::Resolve(Undecidable::IncompleteCopy),
    }
}

/// Finish may have been called, or the guest told to run: only the destination can say how that went.
fn destination_busy(source: Seen<Source>, destination: Destination) -> Open {
    match destination.copy {
        DestinationCopy::Absent => return Open::Resolve(Undecidable::DiedWhileResuming),
        DestinationCopy::Another => return Open::Resolve(Undecidable::AnotherGuest),
        // In post-copy: it writes Ran when every page has arrived.
        DestinationCopy::Runs | DestinationCopy::PostCopy | DestinationCopy::PostCopyFailed => {
            return Open::TouchNothing;
        }
        DestinationCopy::Still => {}
    }
    // It left Waiting because all was handed over, and cannot go back: it may finish alone.
    let Seen::Journal(source) = source else {
        return Open::FinishInPlace;
    };
    match (source.journal, source.copy) {
        (SourceJournal::NotBegun | SourceJournal::Sending, _) => Open::Settling,
        (
            SourceJournal::HandedOver | SourceJournal::RanOn,
            SourceCopy::AsBefore(Job::Held | Job::Performing | Job::None),
        ) => Open::SuspendSource,
        (SourceJournal::RanOn, SourceCopy::AllSent | SourceCopy::Gone | SourceCopy::EndedByUser) => {
            Open::Resolve(Undecidable::OlderCopy)
        }
        // A repeat joins the call that is under way, or gets its journaled result.
        (SourceJournal::HandedOver, SourceCopy::AllSent | SourceCopy::Gone) if !source.tombstoned => Open::HandOver,
        // The source may not ask any more, or has nothing left.
        (SourceJournal::HandedOver, SourceCopy::AllSent | SourceCopy::Gone | SourceCopy::EndedByUser) => {
            Open::FinishInPlace
        }
        (SourceJournal::HandedOver | SourceJournal::RanOn, SourceCopy::Another) => {
            Open::Resolve(Undecidable::AnotherGuest)
        }
        (SourceJournal::HandedOver | SourceJournal::RanOn, SourceCopy::PostCopy | SourceCopy::PostCopyFailed) => {
            Open::Settling
        }
    }
}

#[cfg(test)]
mod tests;
