//! Which ends are right, from what is true at the moment and what the act takes away. Only decisions.

use super::{Act, Daemon, Moment, Role};

/// Where a guest may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// At the destination, the migration succeeded.
    Moved,
    /// At the source, the migration failed.
    Stayed,
    /// Nowhere: its QEMU died and nothing else of it was left.
    Ended,
}

/// Why there is no such case; none where there is one.
pub fn impossible(moment: Moment, act: Act) -> Option<&'static str> {
    match (moment, act) {
        // Confirm has removed the source's QEMU.
        (Moment::Finalizing, Act::KillQemu(Role::Source)) => Some("nothing to kill"),
        // Whether it had run is known to nobody: it does not come to an end by itself.
        (Moment::Resuming, Act::KillQemu(Role::Destination)) => Some("a person decides"),
        (_, _) => None,
    }
}

/// What an act takes away.
struct Loss {
    /// The QEMU at the source.
    source: bool,
    /// The QEMU at the destination, once the guest runs there.
    destination: bool,
    /// The copy at the destination while it waits: it belongs to the agent's connection to libvirt.
    waiting: bool,
    /// The stream, or the job that feeds it.
    stream: bool,
}

fn loss(act: Act) -> Loss {
    let agents = |roles: &[Role]| match act {
        Act::Kill(Daemon::Agent(role) | Daemon::Libvirtd(role)) => roles.contains(&role),
        Act::KillBothAgents => true,
        Act::Kill(Daemon::Controller)
        | Act::KillQemu(_)
        | Act::Stop(_)
        | Act::Cut
        | Act::CutOneWay(_)
        | Act::CutController(_)
        | Act::Reset
        | Act::StoreFull
        | Act::JournalFull(_) => false,
    };
    let destination = act == Act::KillQemu(Role::Destination);
    let waiting = destination || agents(&[Role::Destination]);
    Loss {
        source: act == Act::KillQemu(Role::Source),
        destination,
        waiting,
        stream: waiting || act == Act::Reset || agents(&[Role::Source]),
    }
}

/// Whether an act only makes things wait, without a part that had to be there all the time.
fn is_harmless(act: Act) -> bool {
    act == Act::Kill(Daemon::Controller)
}

/// The ends that are right.
pub fn expected(moment: Moment, act: Act) -> &'static [End] {
    let loss = loss(act);
    match moment {
        // What was lost is prepared again, or given up.
        Moment::Preparing if loss.source => &[End::Ended],
        Moment::Preparing if is_harmless(act) => &[End::Moved],
        Moment::Preparing => &[End::Moved, End::Stayed],
        Moment::EarlyTransfer | Moment::LateTransfer if loss.source => &[End::Ended],
        Moment::EarlyTransfer | Moment::LateTransfer if loss.stream => &[End::Stayed],
        Moment::EarlyTransfer | Moment::LateTransfer if is_harmless(act) => &[End::Moved],
        // Short enough and it goes on, too long and it is given up.
        Moment::EarlyTransfer | Moment::LateTransfer => &[End::Moved, End::Stayed],
        Moment::AllSent | Moment::Finishing if loss.waiting => &[End::Stayed],
        // libvirtd lets go of a client, and of what belongs to it, that gives no sign of life for 30 s.
        Moment::AllSent | Moment::Finishing if act == Act::Stop(Daemon::Agent(Role::Destination)) => {
            &[End::Moved, End::Stayed]
        }
        // The copy that waits is complete: nothing at the source is needed any more.
        Moment::AllSent | Moment::Finishing => &[End::Moved],
        // After Finish the copy belongs to no connection.
        Moment::Resuming => &[End::Moved],
        Moment::Running | Moment::Finished | Moment::Confirming | Moment::Finalizing if loss.destination => {
            &[End::Ended]
        }
        Moment::Running | Moment::Finished | Moment::Confirming | Moment::Finalizing => &[End::Moved],
    }
}

impl End {
    /// The state that the record has then.
    pub fn state(self) -> &'static str {
        match self {
            End::Moved => "SUCCEEDED",
            End::Stayed => "FAILED",
            End::Ended => "GUEST_ENDED",
        }
    }

    pub fn of_state(state: &str) -> Option<End> {
        [End::Moved, End::Stayed, End::Ended]
            .into_iter()
            .find(|end| end.state() == state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_all_is_sent_only_the_death_of_the_sources_qemu_ends_a_guest() {
        for moment in Moment::ALL.into_iter().filter(|moment| *moment < Moment::AllSent) {
            for act in Act::all() {
                let ends = expected(moment, act).contains(&End::Ended);
                assert_eq!(ends, act == Act::KillQemu(Role::Source), "{moment:?} {act:?}");
            }
        }
    }

    #[test]
    fn after_finish_nothing_brings_a_guest_back() {
        let after = Moment::ALL.into_iter().filter(|moment| *moment >= Moment::Resuming);
        for moment in after {
            for act in Act::all() {
                assert!(!expected(moment, act).contains(&End::Stayed), "{moment:?} {act:?}");
            }
        }
    }

    #[test]
    fn when_all_is_sent_the_source_is_not_needed() {
        for act in [Act::KillQemu(Role::Source), Act::Kill(Daemon::Agent(Role::Source))] {
            assert_eq!(expected(Moment::AllSent, act), [End::Moved]);
        }
        assert_eq!(expected(Moment::AllSent, Act::KillBothAgents), [End::Stayed]);
    }
}
