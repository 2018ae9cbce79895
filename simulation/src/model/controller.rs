//! The controller: the saga, what it saw of both hosts, and the letters that it sends. Its own death is the same as an
//! answer that does not come: the phase looks again.

use drover_agent::journal::{Decision, DestinationState, SourceState, Verdict};
use drover_controller::saga::{self, Cancel, Guest, Outcome, Phase, Position};
use drover_controller::seen;
use drover_controller::verdict::{self, Judgement, Open, Seen, judge};
use drover_proto::agent::v1::{
    GuestFacts, JournalRecord, JournalState, LibvirtState, MigrationStatus, PerformOutcome, Verdict as Told,
};

use super::rules::{Rule, Rules};
use super::state::{
    Controller, DestinationCopy, DestinationJournal, DestinationWork, Job, Letter, SourceCopy, SourceJournal,
    SourceWork, State, Step, Stream, Transfer,
};

/// Everything that the controller may do or learn next.
pub(super) fn steps(now: &State, rules: Rules, next: &mut Vec<State>) {
    let Position::At(phase) = now.controller.position else {
        return;
    };
    if let Cancel::GoTo(there) = saga::cancel(now.controller.position) {
        next.push(go(now, there));
    }
    if now.controller.step != Step::Look || now.controller.source.is_some() || now.controller.destination.is_some() {
        // Nothing was heard: look again.
        next.push(look_again(now));
    }
    match phase {
        // Nothing is changed by it: the model begins behind it.
        Phase::Validate => {}
        Phase::Prepare => prepare(now, next),
        Phase::Transfer => looked(now, next, |next| transfer(now, rules, next)),
        Phase::Abort => abort(now, rules, next),
        Phase::Verify => verify(now, next),
        Phase::Finalize => last(now, phase, &[Letter::DestinationRan], Verdict::Ran, next),
        Phase::Discard => {
            let letters = [Letter::Revoke, Letter::DestinationNeverRan];
            last(now, phase, &letters, Verdict::NeverRan, next);
        }
    }
}

fn change(now: &State, change: impl FnOnce(&mut Controller)) -> State {
    let mut next = *now;
    change(&mut next.controller);
    next
}

/// To another place in the saga: what was seen before is forgotten.
fn go(now: &State, position: Position) -> State {
    change(now, |controller| {
        *controller = Controller {
            position,
            step: Step::Look,
            source: None,
            destination: None,
            prepared: controller.prepared,
        };
    })
}

fn come_out(now: &State, phase: Phase, outcome: Outcome) -> State {
    go(now, saga::next(phase, outcome))
}

fn look_again(now: &State) -> State {
    go(now, now.controller.position)
}

fn send(now: &State, letters: &[Letter], step: Step) -> State {
    let mut next = *now;
    for letter in letters {
        next.sent.add(*letter);
    }
    next.controller.step = step;
    next
}

/// Both are asked, one after the other, in any order; either may not answer. Then it goes on.
fn looked(now: &State, next: &mut Vec<State>, then: impl FnOnce(&mut Vec<State>)) {
    if now.controller.source.is_none() {
        let silent = Seen::Unreachable;
        next.push(change(now, |controller| controller.source = Some(silent)));
        if now.source.up {
            let seen = see_source(now);
            next.push(change(now, |controller| controller.source = Some(seen)));
        }
    } else if now.controller.destination.is_none() {
        let silent = Seen::Unreachable;
        next.push(change(now, |controller| controller.destination = Some(silent)));
        if now.destination.up {
            let seen = see_destination(now);
            next.push(change(now, |controller| controller.destination = Some(seen)));
        }
    } else {
        then(next);
    }
}

fn judgement(controller: &Controller) -> Judgement {
    let source = controller.source.unwrap_or(Seen::Unreachable);
    let destination = controller.destination.unwrap_or(Seen::Unreachable);
    judge(source, destination)
}

fn prepare(now: &State, next: &mut Vec<State>) {
    let (source, there) = (&now.source, &now.destination);
    match now.controller.step {
        Step::AwaitBegin => {
            let begun = source.up && source.work == SourceWork::Idle && source.job == Job::Begun && !source.tombstoned;
            if begun && source.journal == SourceJournal::Part(SourceState::Sending) {
                next.push(send(now, &[Letter::Prepare], Step::AwaitPrepare));
            }
        }
        Step::AwaitPrepare => {
            let waits = there.journal == DestinationJournal::Part(DestinationState::Waiting);
            if there.up && there.work == DestinationWork::Idle && waits && there.handle {
                let mut done = come_out(now, Phase::Prepare, Outcome::Done(Guest::Lives));
                done.controller.prepared = true;
                next.push(done);
            }
        }
        Step::Look | Step::AwaitAbort | Step::AwaitRevoke | Step::AwaitSource | Step::AwaitDestination => {
            next.push(send(now, &[Letter::Begin], Step::AwaitBegin));
        }
    }
    // Either agent may have a reason to refuse.
    next.push(come_out(now, Phase::Prepare, Outcome::Refused));
}

fn transfer(now: &State, rules: Rules, next: &mut Vec<State>) {
    let again = |letters: &[Letter]| {
        let mut sent = look_again(now);
        for letter in letters {
            sent.sent.add(*letter);
        }
        sent
    };
    let open = match judgement(&now.controller) {
        Judgement::Ran => return next.push(come_out(now, Phase::Transfer, Outcome::Done(Guest::Lives))),
        Judgement::NeverRan => return next.push(come_out(now, Phase::Transfer, Outcome::Refused)),
        Judgement::Open(open) => open,
    };
    match open {
        Open::ContinueTransfer => next.push(again(&[Letter::Start])),
        Open::HandOver => {
            next.push(again(&[Letter::HandOver]));
            if may_finish_alone(&now.controller) {
                next.push(again(&[Letter::FinishIncoming]));
            }
        }
        Open::FinishInPlace => {
            next.push(again(&[Letter::HandOver]));
            next.push(again(&[Letter::FinishIncoming]));
        }
        Open::Abort => next.push(come_out(now, Phase::Transfer, Outcome::Refused)),
        Open::Settling | Open::WaitFor(_) if !rules.keep(Rule::RemoveOnlyRan) => {
            next.push(come_out(now, Phase::Transfer, Outcome::Done(Guest::Lives)));
        }
        Open::Settling
        | Open::TouchNothing
        | Open::WaitFor(_)
        | Open::Resolve(_)
        | Open::RecoverPostCopy
        | Open::GuestLost
        | Open::SuspendSource => {}
    }
}

/// As in `phases/look.rs`.
fn may_finish_alone(controller: &Controller) -> bool {
    let source = matches!(
        controller.source,
        Some(Seen::Journal(verdict::Source {
            journal: verdict::SourceJournal::HandedOver,
            copy: verdict::SourceCopy::AllSent | verdict::SourceCopy::Gone,
            ..
        }))
    );
    let destination = matches!(
        controller.destination,
        Some(Seen::Journal(verdict::Destination {
            copy: verdict::DestinationCopy::Still,
            stream_complete: true,
            ..
        }))
    );
    source && destination
}

/// As in `phases/abort.rs`: tombstone the source, then revoke the destination, then judge.
fn abort(now: &State, rules: Rules, next: &mut Vec<State>) {
    let (source, there) = (&now.source, &now.destination);
    match now.controller.step {
        Step::Look => looked(now, next, |next| {
            if is_too_late(&now.controller) {
                next.push(come_out(now, Phase::Abort, Outcome::Refused));
            } else {
                next.push(send(now, &[Letter::Abort], Step::AwaitAbort));
            }
        }),
        Step::AwaitAbort => {
            let busy = matches!(source.transfer, Transfer::Performing | Transfer::HandingOver);
            let forgets = !rules.keep(Rule::WriteTombstone) && source.give_up;
            if source.up && (source.tombstoned || forgets) && !busy {
                let seen = see_source(now).map(|seen| verdict::Source {
                    tombstoned: true,
                    ..seen
                });
                let told = change(now, |controller| controller.source = Some(seen));
                if is_too_late(&told.controller) {
                    next.push(come_out(&told, Phase::Abort, Outcome::Refused));
                } else {
                    next.push(send(&told, &[Letter::Revoke], Step::AwaitRevoke));
                }
            }
        }
        Step::AwaitRevoke => {
            let revoked = there.tombstoned || there.journal != DestinationJournal::Part(DestinationState::Waiting);
            if there.up && there.work == DestinationWork::Idle && revoked {
                let seen = see_destination(now);
                let told = change(now, |controller| controller.destination = Some(seen));
                judged(&told, rules, next);
            }
            // It does not answer: what was seen before counts.
            judged(now, rules, next);
        }
        Step::AwaitSource => {
            if source.up && source.decision == Decision::Settled(Verdict::NeverRan) {
                next.push(come_out(now, Phase::Abort, Outcome::Done(Guest::Lives)));
            }
        }
        Step::AwaitBegin | Step::AwaitPrepare | Step::AwaitDestination => {}
    }
}

fn is_too_late(controller: &Controller) -> bool {
    match judgement(controller) {
        Judgement::Ran
        | Judgement::Open(Open::FinishInPlace | Open::RecoverPostCopy | Open::TouchNothing | Open::GuestLost) => true,
        Judgement::NeverRan
        | Judgement::Open(
            Open::ContinueTransfer
            | Open::Abort
            | Open::HandOver
            | Open::Settling
            | Open::WaitFor(_)
            | Open::SuspendSource
            | Open::Resolve(_),
        ) => false,
    }
}

fn judged(now: &State, rules: Rules, next: &mut Vec<State>) {
    let silent = now.controller.destination == Some(Seen::Unreachable);
    match judgement(&now.controller) {
        Judgement::NeverRan => next.push(send(now, &[Letter::SourceNeverRan], Step::AwaitSource)),
        Judgement::Ran => next.push(come_out(now, Phase::Abort, Outcome::Refused)),
        Judgement::Open(_) if silent && !rules.keep(Rule::SilenceProvesNothing) => {
            next.push(send(now, &[Letter::SourceNeverRan], Step::AwaitSource));
        }
        Judgement::Open(_) => {}
    }
}

fn verify(now: &State, next: &mut Vec<State>) {
    let source = &now.source;
    if now.controller.step == Step::AwaitSource {
        if source.up && source.work == SourceWork::Idle && source.decision == Decision::Settled(Verdict::Ran) {
            next.push(come_out(now, Phase::Verify, Outcome::Done(Guest::Lives)));
        }
        return;
    }
    looked(now, next, |next| match judgement(&now.controller) {
        Judgement::NeverRan => next.push(come_out(now, Phase::Verify, Outcome::Refused)),
        Judgement::Open(Open::Resolve(verdict::Undecidable::Contradiction)) => {}
        Judgement::Ran | Judgement::Open(_) => next.push(send(now, &[Letter::SourceRan], Step::AwaitSource)),
    });
}

/// Finalize and Discard: the destination carries the verdict out.
fn last(now: &State, phase: Phase, letters: &[Letter], verdict: Verdict, next: &mut Vec<State>) {
    if now.controller.step != Step::AwaitDestination {
        return next.push(send(now, letters, Step::AwaitDestination));
    }
    if now.destination.up && now.destination.decision == Decision::Settled(verdict) {
        next.push(come_out(now, phase, Outcome::Done(Guest::Lives)));
    }
}

fn told(decision: Decision) -> Told {
    match decision.verdict() {
        None => Told::Unspecified,
        Some(Verdict::NeverRan) => Told::NeverRan,
        Some(Verdict::Ran) => Told::Ran,
    }
}

fn guest(state: LibvirtState) -> Option<GuestFacts> {
    let mut facts = GuestFacts::default();
    facts.set_state(state);
    Some(facts)
}

/// What the source's agent would answer now, read as the controller reads it.
fn see_source(now: &State) -> Seen<verdict::Source> {
    let source = &now.source;
    let mut journal = JournalRecord {
        tombstoned: source.tombstoned,
        ran_on: source.ran_on,
        ..JournalRecord::default()
    };
    journal.set_verdict(told(source.decision));
    journal.set_state(match source.journal {
        SourceJournal::None | SourceJournal::Nothing => JournalState::Unspecified,
        SourceJournal::Part(SourceState::Sending) => JournalState::Sending,
        SourceJournal::Part(SourceState::HandedOver) => JournalState::HandedOver,
    });
    let mut status = MigrationStatus {
        journal: (source.journal != SourceJournal::None).then_some(journal),
        guest: match source.copy {
            SourceCopy::Running | SourceCopy::Anew => guest(LibvirtState::Running),
            SourceCopy::Still => guest(LibvirtState::PausedMigrating),
            SourceCopy::Gone => None,
        },
        same_incarnation: matches!(source.copy, SourceCopy::Running | SourceCopy::Still),
        performing: source.transfer == Transfer::Performing,
        call_in_flight: source.transfer == Transfer::HandingOver,
        agent_restarted: source.restarted,
        ..MigrationStatus::default()
    };
    status.set_perform_outcome(match source.outcome {
        None => PerformOutcome::Unspecified,
        Some(true) => PerformOutcome::Sent,
        Some(false) => PerformOutcome::Failed,
    });
    seen::source(&status, now.controller.prepared)
}

/// What the destination's agent would answer now, read as the controller reads it.
fn see_destination(now: &State) -> Seen<verdict::Destination> {
    let there = &now.destination;
    let mut journal = JournalRecord {
        tombstoned: there.tombstoned,
        ..JournalRecord::default()
    };
    journal.set_verdict(told(there.decision));
    journal.set_state(match there.journal {
        DestinationJournal::None | DestinationJournal::Nothing => JournalState::Unspecified,
        DestinationJournal::Part(state) => match state {
            DestinationState::Waiting => JournalState::Waiting,
            DestinationState::Finishing => JournalState::Finishing,
            DestinationState::Resuming => JournalState::Resuming,
            DestinationState::Ran => JournalState::Ran,
            DestinationState::Revoked => JournalState::Revoked,
            DestinationState::Failed => JournalState::Failed,
        },
    });
    let status = MigrationStatus {
        journal: (there.journal != DestinationJournal::None).then_some(journal),
        guest: match there.copy {
            DestinationCopy::Absent => None,
            DestinationCopy::Waiting(_) => guest(LibvirtState::PausedMigrating),
            DestinationCopy::Placed => guest(LibvirtState::Paused),
            DestinationCopy::Running => guest(LibvirtState::Running),
        },
        same_incarnation: true,
        stream_complete: there.handle && there.copy == DestinationCopy::Waiting(Stream::All),
        ..MigrationStatus::default()
    };
    seen::destination(&status, now.controller.prepared)
}
