//! The source: what its agent does about each letter, in which order, and what libvirt does around it.

mod outside;

use drover_agent::journal::{Decision, SourceState, Step, Verdict};

use super::rules::{Rule, Rules};
use super::state::{
    DestinationCopy, DestinationJournal, DestinationWork, Job, Letter, Source, SourceCopy, SourceJournal, SourceWork,
    State, Stream, Transfer,
};

pub(super) use outside::{die, lose_guest, reboot, restart_libvirtd, resumed_by_hand};

/// Everything that can happen next at the source, without a fault.
pub(super) fn steps(now: &State, rules: Rules, next: &mut Vec<State>) {
    libvirt(now, rules, next);
    if !now.source.up {
        next.push(with(now, |source| restart(source, rules)));
        return;
    }
    transfer(now, rules, next);
    answers(now, next);
    work(now, rules, next);
    if now.source.work == SourceWork::Idle {
        letters(now, rules, next);
        expiry(now, next);
    }
}

fn with(now: &State, change: impl FnOnce(&mut Source)) -> State {
    let mut next = *now;
    change(&mut next.source);
    next
}

fn is_here(source: &Source) -> bool {
    matches!(source.copy, SourceCopy::Running | SourceCopy::Still)
}

fn is_source(source: &Source, state: SourceState) -> bool {
    source.journal == SourceJournal::Part(state)
}

/// Perform goes on, ends or fails by itself.
fn libvirt(now: &State, rules: Rules, next: &mut Vec<State>) {
    let source = &now.source;
    match source.job {
        Job::Performing => {
            if let DestinationCopy::Waiting(_) = now.destination.copy
                && now.destination.up
            {
                let mut stopped = *now;
                stopped.source.job = Job::LastRound;
                stopped.source.copy = SourceCopy::Still;
                stopped.destination.copy = DestinationCopy::Waiting(Stream::Some);
                next.push(stopped);
            }
            next.push(with(now, perform_failed));
        }
        Job::LastRound => {
            if now.destination.copy == DestinationCopy::Waiting(Stream::Some) && now.destination.up {
                let mut sent = *now;
                sent.destination.copy = DestinationCopy::Waiting(Stream::All);
                sent.source.job = Job::Sent;
                sent.source.transfer = Transfer::HandingOver;
                sent.source.outcome = Some(true);
                next.push(sent);
                // All has arrived, and the source is told that it failed: libvirtd goes down, or lost the answer.
                let mut failed = *now;
                failed.destination.copy = DestinationCopy::Waiting(Stream::All);
                failed.source.job = Job::Dangling;
                failed.source.outcome = Some(false);
                failed.source.transfer = if rules.keep(Rule::HandOverAfterSuccess) {
                    Transfer::Over
                } else {
                    Transfer::HandingOver
                };
                next.push(failed);
            }
            next.push(with(now, perform_failed));
        }
        Job::Dangling => next.push(with(now, |source| {
            source.job = Job::None;
            if source.copy == SourceCopy::Still {
                source.copy = SourceCopy::Running;
            }
        })),
        Job::None | Job::Begun | Job::Sent => {}
    }
}

fn perform_failed(source: &mut Source) {
    source.job = Job::None;
    if source.copy == SourceCopy::Still {
        source.copy = SourceCopy::Running;
    }
    source.transfer = Transfer::Over;
    source.outcome = Some(false);
}

/// HandedOver, and the word to the destination.
fn transfer(now: &State, rules: Rules, next: &mut Vec<State>) {
    let source = &now.source;
    if source.transfer != Transfer::HandingOver {
        return;
    }
    if source.give_up {
        next.push(with(now, |source| source.transfer = Transfer::Over));
    }
    let SourceJournal::Part(state) = source.journal else {
        return;
    };
    if state == SourceState::HandedOver || source.work != SourceWork::Idle {
        return;
    }
    let tombstoned = source.tombstoned && rules.keep(Rule::TombstoneRefuses);
    match state.hand_over(tombstoned, source.decision) {
        Ok(Step::Write(state)) => {
            let mut written = *now;
            if rules.keep(Rule::WriteHandedOver) {
                written.source.journal = SourceJournal::Part(state);
            }
            written.sent.add(Letter::HandOverGuest);
            next.push(written);
        }
        Ok(Step::Already) => {}
        Err(_) => next.push(with(now, |source| source.transfer = Transfer::Over)),
    }
}

/// The destination's agent answers the hand-over.
fn answers(now: &State, next: &mut Vec<State>) {
    let (source, there) = (&now.source, &now.destination);
    let asked = source.transfer == Transfer::HandingOver && now.sent.holds(Letter::HandOverGuest);
    if !asked || source.work != SourceWork::Idle || !there.up || there.work != DestinationWork::Idle {
        return;
    }
    let DestinationJournal::Part(state) = there.journal else {
        return;
    };
    use drover_agent::journal::DestinationState as There;
    match state {
        There::Ran => {
            if let Some(decided) = decide(source.decision, Verdict::Ran) {
                next.push(with(now, |source| {
                    source.decision = decided;
                    source.work = SourceWork::Removing;
                }));
            }
        }
        There::Revoked | There::Failed => next.push(with(now, |source| source.transfer = Transfer::Over)),
        There::Waiting | There::Finishing | There::Resuming => {}
    }
}

/// What is to be written, if the journal allows the verdict.
fn decide(decision: Decision, verdict: Verdict) -> Option<Decision> {
    match decision.decide(verdict) {
        Ok(Step::Write(decided)) => Some(decided),
        Ok(Step::Already) => Some(decision),
        Err(_) => None,
    }
}

/// What is under way with the lock held.
fn work(now: &State, rules: Rules, next: &mut Vec<State>) {
    match now.source.work {
        SourceWork::Idle => {}
        SourceWork::Beginning => next.push(with(now, |source| {
            source.work = SourceWork::Idle;
            if source.copy == SourceCopy::Running {
                source.autostart &= !rules.keep(Rule::ClearAutostart);
                source.job = Job::Begun;
                source.restarted = false;
                source.transfer = Transfer::NotStarted;
                source.outcome = None;
            }
        })),
        SourceWork::GivingBack => next.push(with(now, |source| {
            source.work = SourceWork::Idle;
            source.job = Job::None;
            if source.copy == SourceCopy::Still {
                source.copy = SourceCopy::Running;
            }
            source.autostart = true;
            source.decision = Decision::Settled(Verdict::NeverRan);
            source.transfer = Transfer::Over;
        })),
        SourceWork::Removing => {
            let mut removed = with(now, |source| {
                source.work = SourceWork::Idle;
                if is_here(source) {
                    source.copy = SourceCopy::Gone;
                }
                source.job = Job::None;
                source.decision = Decision::Settled(Verdict::Ran);
                source.transfer = Transfer::Over;
            });
            removed.removed_too_early = is_here(&now.source) && !now.ran;
            next.push(removed);
        }
    }
}

fn letters(now: &State, rules: Rules, next: &mut Vec<State>) {
    for letter in Letter::ALL.into_iter().filter(|letter| now.sent.holds(*letter)) {
        match letter {
            Letter::Begin => begin(now, next),
            Letter::Start => start(now, next),
            Letter::HandOver => hand_over(now, rules, next),
            Letter::Abort => next.push(with(now, |source| {
                if source.journal == SourceJournal::None {
                    source.journal = SourceJournal::Nothing;
                }
                source.tombstoned |= rules.keep(Rule::WriteTombstone);
                source.give_up = true;
            })),
            Letter::SourceNeverRan => settle(now, Verdict::NeverRan, next),
            Letter::SourceRan => settle(now, Verdict::Ran, next),
            Letter::Prepare
            | Letter::HandOverGuest
            | Letter::FinishIncoming
            | Letter::Revoke
            | Letter::DestinationNeverRan
            | Letter::DestinationRan => {}
        }
    }
}

fn begin(now: &State, next: &mut Vec<State>) {
    let source = &now.source;
    if source.tombstoned || source.copy != SourceCopy::Running || source.job != Job::None {
        return;
    }
    let again = is_source(source, SourceState::Sending) && source.decision == Decision::Open;
    if source.journal == SourceJournal::None || again {
        next.push(with(now, |source| {
            source.journal = SourceJournal::Part(SourceState::Sending);
            source.work = SourceWork::Beginning;
        }));
    }
}

fn start(now: &State, next: &mut Vec<State>) {
    let source = &now.source;
    let may = is_source(source, SourceState::Sending)
        && !source.tombstoned
        && source.decision == Decision::Open
        && source.transfer == Transfer::NotStarted
        && source.job == Job::Begun;
    if may {
        next.push(with(now, |source| {
            source.transfer = Transfer::Performing;
            source.job = Job::Performing;
        }));
    }
}

/// The controller asks for the hand-over.
fn hand_over(now: &State, rules: Rules, next: &mut Vec<State>) {
    let source = &now.source;
    let tombstoned = source.tombstoned && rules.keep(Rule::TombstoneRefuses);
    if tombstoned || matches!(source.transfer, Transfer::Performing | Transfer::HandingOver) {
        return;
    }
    let handed_over = is_source(source, SourceState::HandedOver);
    let sent = source.outcome == Some(true) || !rules.keep(Rule::HandOverAfterSuccess);
    let still = match source.copy {
        SourceCopy::Still | SourceCopy::Gone if source.ran_on => false,
        SourceCopy::Still => handed_over || sent,
        SourceCopy::Gone => handed_over,
        SourceCopy::Running | SourceCopy::Anew => false,
    };
    let SourceJournal::Part(state) = source.journal else {
        return;
    };
    if still && state.hand_over(tombstoned, source.decision).is_ok() {
        let mut written = *now;
        if rules.keep(Rule::WriteHandedOver) {
            written.source.journal = SourceJournal::Part(SourceState::HandedOver);
        }
        written.source.transfer = Transfer::HandingOver;
        written.source.give_up = false;
        written.sent.add(Letter::HandOverGuest);
        next.push(written);
    }
}

fn settle(now: &State, verdict: Verdict, next: &mut Vec<State>) {
    let source = &now.source;
    if let Decision::Settled(_) = source.decision {
        return;
    }
    if source.transfer == Transfer::Performing {
        return;
    }
    let SourceJournal::Part(_) = source.journal else {
        if verdict == Verdict::NeverRan {
            next.push(with(now, |source| {
                source.journal = SourceJournal::Nothing;
                source.tombstoned = true;
                source.decision = Decision::Settled(verdict);
            }));
        }
        return;
    };
    let Some(decided) = decide(source.decision, verdict) else {
        return;
    };
    next.push(with(now, |source| {
        source.give_up = true;
        source.decision = decided;
        source.tombstoned = true;
        source.work = match verdict {
            Verdict::NeverRan => SourceWork::GivingBack,
            Verdict::Ran => SourceWork::Removing,
        };
    }));
}

/// A Begin that no Start came for.
fn expiry(now: &State, next: &mut Vec<State>) {
    let source = &now.source;
    let unclaimed = source.transfer == Transfer::NotStarted && source.job == Job::Begun && !source.give_up;
    if !(unclaimed && is_source(source, SourceState::Sending)) || now.sent.holds(Letter::Abort) {
        return;
    }
    if let Some(decided) = decide(source.decision, Verdict::NeverRan) {
        next.push(with(now, |source| {
            source.tombstoned = true;
            source.decision = decided;
            source.work = SourceWork::GivingBack;
        }));
    }
}

/// A handed-over copy that runs is stopped; the job lock of one that stands still is taken again.
fn restart(source: &mut Source, rules: Rules) {
    source.up = true;
    source.transfer = Transfer::NotStarted;
    source.outcome = None;
    source.give_up = false;
    source.restarted = source.journal != SourceJournal::None;
    if !rules.keep(Rule::RestartStartsNothing) && source.copy == SourceCopy::Still {
        source.copy = SourceCopy::Running;
        return;
    }
    let held = is_source(source, SourceState::HandedOver) && source.decision == Decision::Open;
    if held && is_here(source) {
        source.ran_on |= source.copy == SourceCopy::Running && rules.keep(Rule::WriteRanOn);
        source.copy = SourceCopy::Still;
        source.job = Job::Begun;
        // A job that was adopted is claimed: it does not expire.
        source.give_up = true;
    }
}
