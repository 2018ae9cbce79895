//! The destination: what its agent does about each letter, in which order, and what libvirt does around it.

use drover_agent::journal::{Decision, DestinationState, FinishStep, Step, Verdict};

use super::rules::{Rule, Rules};
use super::state::{Destination, DestinationCopy, DestinationJournal, DestinationWork, Letter, State, Stream};

/// Everything that can happen next at the destination, without a fault.
pub(super) fn steps(now: &State, rules: Rules, next: &mut Vec<State>) {
    if !now.destination.up {
        next.push(with(now, restart));
        return;
    }
    work(now, rules, next);
    if now.destination.work == DestinationWork::Idle {
        letters(now, rules, next);
        expiry(now, next);
    }
}

fn with(now: &State, change: impl FnOnce(&mut Destination)) -> State {
    let mut next = *now;
    change(&mut next.destination);
    next
}

fn part(destination: &Destination) -> Option<DestinationState> {
    match destination.journal {
        DestinationJournal::Part(state) => Some(state),
        DestinationJournal::None | DestinationJournal::Nothing => None,
    }
}

fn write(destination: &mut Destination, step: Result<Step<DestinationState>, drover_agent::journal::Forbidden>) {
    if let Ok(Step::Write(state)) = step {
        destination.journal = DestinationJournal::Part(state);
    }
}

/// What is under way with the lock held, one step further.
fn work(now: &State, rules: Rules, next: &mut Vec<State>) {
    let Some(state) = part(&now.destination) else { return };
    match now.destination.work {
        DestinationWork::Idle => {}
        DestinationWork::Preparing => next.push(with(now, |there| {
            there.copy = DestinationCopy::Waiting(Stream::Nothing);
            there.handle = true;
            there.work = DestinationWork::Idle;
        })),
        DestinationWork::Finishing => finish(now, next),
        DestinationWork::Failing => next.push(with(now, |there| {
            write(there, state.fail());
            there.work = DestinationWork::Idle;
        })),
        DestinationWork::Finished => next.push(with(now, |there| {
            if rules.keep(Rule::WriteResuming) {
                write(there, state.resume());
            }
            there.work = DestinationWork::Resuming;
        })),
        DestinationWork::Resuming => {
            let mut resumed = *now;
            if resumed.destination.copy == DestinationCopy::Placed {
                resumed.destination.copy = DestinationCopy::Running;
                resumed.ran = true;
                resumed.destination.work = DestinationWork::Resumed;
            } else {
                resumed.destination.work = DestinationWork::Idle;
            }
            next.push(resumed);
            // libvirt refuses, or its answer is lost before it did anything.
            next.push(with(now, |there| there.work = DestinationWork::Idle));
        }
        DestinationWork::Resumed => next.push(with(now, |there| {
            write(there, state.resume());
            if let Some(state) = part(there) {
                write(there, state.ran(false));
            }
            there.work = DestinationWork::Idle;
        })),
        DestinationWork::Dropping => next.push(with(now, |there| {
            drop_copy(there);
            there.work = DestinationWork::Idle;
        })),
        DestinationWork::Discarding => next.push(with(now, |there| {
            drop_copy(there);
            there.decision = Decision::Settled(Verdict::NeverRan);
            there.work = DestinationWork::Idle;
        })),
    }
}

/// Only a copy that waits goes with its connection.
fn drop_copy(there: &mut Destination) {
    there.handle = false;
    if let DestinationCopy::Waiting(_) = there.copy {
        there.copy = DestinationCopy::Absent;
    }
}

/// Finish goes well, fails, or goes well and says that it failed.
fn finish(now: &State, next: &mut Vec<State>) {
    let placed = |work| {
        with(now, |there| {
            there.copy = DestinationCopy::Placed;
            there.handle = false;
            there.work = work;
        })
    };
    if now.destination.copy == DestinationCopy::Waiting(Stream::All) {
        next.push(placed(DestinationWork::Finished));
        next.push(placed(DestinationWork::Idle));
    }
    next.push(with(now, |there| {
        there.copy = DestinationCopy::Absent;
        there.handle = false;
        there.work = DestinationWork::Failing;
    }));
}

fn letters(now: &State, rules: Rules, next: &mut Vec<State>) {
    for letter in Letter::ALL.into_iter().filter(|letter| now.sent.holds(*letter)) {
        match letter {
            Letter::Prepare => prepare(now, next),
            Letter::HandOverGuest => arrive(now, rules, next),
            Letter::FinishIncoming => {
                let there = &now.destination;
                let waits = part(there) == Some(DestinationState::Waiting);
                let complete = there.copy == DestinationCopy::Waiting(Stream::All) && there.handle;
                if !there.tombstoned && (complete || !waits) {
                    arrive(now, rules, next);
                }
            }
            Letter::Revoke => revoke(now, rules, next),
            Letter::DestinationNeverRan => settle_never_ran(now, next),
            Letter::DestinationRan => settle_ran(now, next),
            Letter::Begin
            | Letter::Start
            | Letter::HandOver
            | Letter::Abort
            | Letter::SourceNeverRan
            | Letter::SourceRan => {}
        }
    }
}

fn prepare(now: &State, next: &mut Vec<State>) {
    let there = &now.destination;
    if there.tombstoned || there.handle || there.copy != DestinationCopy::Absent {
        return;
    }
    let again = part(there) == Some(DestinationState::Waiting) && there.decision == Decision::Open;
    if there.journal == DestinationJournal::None || again {
        next.push(with(now, |there| {
            there.journal = DestinationJournal::Part(DestinationState::Waiting);
            there.work = DestinationWork::Preparing;
        }));
    }
}

/// The guest is handed over.
fn arrive(now: &State, rules: Rules, next: &mut Vec<State>) {
    let there = &now.destination;
    let Some(state) = part(there) else { return };
    let step = match state.finish(false) {
        Err(_) if !rules.keep(Rule::RevokedIsFinal) => Ok(FinishStep::Finish(DestinationState::Finishing)),
        step => step,
    };
    match step {
        Ok(FinishStep::Finish(finishing)) => {
            let reached = matches!(there.copy, DestinationCopy::Waiting(Stream::Some | Stream::All));
            if there.handle && reached {
                next.push(with(now, |there| {
                    there.journal = DestinationJournal::Part(finishing);
                    there.work = DestinationWork::Finishing;
                }));
            } else {
                // The copy that the memory went to is gone.
                revoke(now, rules, next);
            }
        }
        Ok(FinishStep::Join) => go_on(now, state, next),
        Ok(FinishStep::Ran) | Err(_) => {}
    }
}

/// Finish was called before, and nobody wrote how it came out.
fn go_on(now: &State, state: DestinationState, next: &mut Vec<State>) {
    match now.destination.copy {
        DestinationCopy::Placed => next.push(with(now, |there| {
            write(there, state.resume());
            there.work = DestinationWork::Resuming;
        })),
        DestinationCopy::Running => next.push(with(now, |there| there.work = DestinationWork::Resumed)),
        DestinationCopy::Absent => next.push(with(now, |there| write(there, state.fail()))),
        DestinationCopy::Waiting(_) => {}
    }
}

fn revoke(now: &State, rules: Rules, next: &mut Vec<State>) {
    let there = &now.destination;
    let Some(state) = part(there) else {
        next.push(with(now, |there| {
            there.journal = DestinationJournal::Nothing;
            there.tombstoned = true;
        }));
        return;
    };
    let step = match state.revoke() {
        Err(_) if !rules.keep(Rule::RevokeOnlyWaiting) && state != DestinationState::Ran => {
            Ok(Step::Write(DestinationState::Revoked))
        }
        step => step,
    };
    if let Ok(step) = step {
        let drops = rules.keep(Rule::RevokedIsFinal);
        next.push(with(now, |there| {
            write(there, Ok(step));
            there.tombstoned = true;
            if drops {
                there.work = DestinationWork::Dropping;
            }
        }));
    }
}

fn settle_never_ran(now: &State, next: &mut Vec<State>) {
    let there = &now.destination;
    if let Decision::Settled(_) = there.decision {
        return;
    }
    let Ok(decided) = there.decision.decide(Verdict::NeverRan) else {
        return;
    };
    let Some(state) = part(there) else {
        next.push(with(now, |there| {
            there.journal = DestinationJournal::Nothing;
            there.tombstoned = true;
            there.decision = Decision::Settled(Verdict::NeverRan);
        }));
        return;
    };
    let agreed = match state {
        DestinationState::Waiting => state.revoke(),
        DestinationState::Finishing if there.copy == DestinationCopy::Absent => state.fail(),
        DestinationState::Finishing
        | DestinationState::Resuming
        | DestinationState::Ran
        | DestinationState::Revoked
        | DestinationState::Failed => state.agrees(Verdict::NeverRan).map(|()| Step::Already),
    };
    if let Ok(agreed) = agreed {
        next.push(with(now, |there| {
            write(there, Ok(agreed));
            if let Step::Write(decided) = decided {
                there.decision = decided;
            }
            there.tombstoned = true;
            there.work = DestinationWork::Discarding;
        }));
    }
}

fn settle_ran(now: &State, next: &mut Vec<State>) {
    let there = &now.destination;
    let (Some(state), Ok(_)) = (part(there), there.decision.decide(Verdict::Ran)) else {
        return;
    };
    let runs = there.copy == DestinationCopy::Running;
    let busy = matches!(state, DestinationState::Finishing | DestinationState::Resuming);
    if state.agrees(Verdict::Ran).is_ok() || (runs && busy) {
        next.push(with(now, |there| {
            write(there, state.resume());
            if let Some(state) = part(there) {
                write(there, state.ran(false));
            }
            there.decision = Decision::Settled(Verdict::Ran);
        }));
    }
}

/// A ticket that nobody came with.
fn expiry(now: &State, next: &mut Vec<State>) {
    let there = &now.destination;
    let unused = there.copy == DestinationCopy::Waiting(Stream::Nothing) && there.handle;
    if unused && part(there) == Some(DestinationState::Waiting) {
        next.push(with(now, |there| {
            write(there, DestinationState::Waiting.revoke());
            there.tombstoned = true;
            there.work = DestinationWork::Dropping;
        }));
    }
}

fn restart(there: &mut Destination) {
    there.up = true;
    if part(there) == Some(DestinationState::Resuming) && there.copy == DestinationCopy::Running {
        write(there, DestinationState::Resuming.ran(false));
    }
}

/// The agent's process dies: libvirt destroys what waited.
pub(super) fn die(there: &mut Destination) {
    there.up = false;
    there.work = DestinationWork::Idle;
    drop_copy(there);
}

/// libvirtd dies and is started again: it kills what waited.
pub(super) fn restart_libvirtd(there: &mut Destination) {
    if let DestinationCopy::Waiting(_) = there.copy {
        there.copy = DestinationCopy::Absent;
    }
}

/// QEMU dies, or the host's power fails.
pub(super) fn lose_guest(there: &mut Destination) {
    there.copy = DestinationCopy::Absent;
}
