//! What befalls the source from outside: deaths of its processes, of its host, and a person's hand.

use drover_agent::journal::{Decision, SourceState};

use super::is_source;
use crate::model::state::{Job, Letter, Source, SourceCopy, SourceJournal, SourceWork, State, Transfer};

/// The agent's process dies: libvirt cancels what was being sent, and leaves alone what was sent.
pub(in crate::model) fn die(source: &mut Source) {
    source.up = false;
    source.work = SourceWork::Idle;
    libvirt_lets_go(source);
    source.transfer = Transfer::NotStarted;
    source.outcome = None;
}

/// The agent's process dies with HandedOver written and its word not sent, and somebody resumes the copy: no job
/// protects it any more. Where the word may be on its way that would be two copies, by that person's doing.
pub(in crate::model) fn resumed_by_hand(now: &mut State) -> bool {
    let source = &now.source;
    let about_to_ask = source.transfer == Transfer::HandingOver && is_source(source, SourceState::Sending);
    let nobody_asked = !now.sent.holds(Letter::HandOverGuest) && !now.sent.holds(Letter::FinishIncoming);
    let open = !source.tombstoned && source.decision == Decision::Open && source.copy == SourceCopy::Still;
    if !(about_to_ask && nobody_asked && open && source.outcome == Some(true)) {
        return false;
    }
    die(&mut now.source);
    now.source.journal = SourceJournal::Part(SourceState::HandedOver);
    now.source.copy = SourceCopy::Running;
    now.source.newer = true;
    true
}

/// libvirtd dies and is started again.
pub(in crate::model) fn restart_libvirtd(source: &mut Source) {
    let performing = source.transfer == Transfer::Performing;
    libvirt_lets_go(source);
    if performing {
        source.transfer = Transfer::Over;
        source.outcome = Some(false);
    }
}

fn libvirt_lets_go(source: &mut Source) {
    if matches!(source.job, Job::LastRound | Job::Dangling) && source.copy == SourceCopy::Still {
        source.copy = SourceCopy::Running;
    }
    source.job = Job::None;
}

/// QEMU dies.
pub(in crate::model) fn lose_guest(source: &mut Source) {
    source.copy = SourceCopy::Gone;
    // One that ran on and went before its agent was back leaves no trace of it: nobody can know.
    source.newer &= source.ran_on;
    source.job = Job::None;
    if source.transfer == Transfer::Performing {
        source.transfer = Transfer::Over;
        source.outcome = Some(false);
    }
}

/// The host's power fails and comes back: what has autostart is started anew.
pub(in crate::model) fn reboot(source: &mut Source) {
    lose_guest(source);
    die(source);
    if source.autostart {
        source.copy = SourceCopy::Anew;
    }
}
