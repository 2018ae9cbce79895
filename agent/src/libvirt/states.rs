//! libvirt's states and events in Drover's words. Pure; every number that libvirt 9.0 to 12.8 has is named here.

use drover_proto::ids::GuestId;
use std::time::{Instant, SystemTime};

use super::raw::{RawEvent, own_error};
use super::stats;
use crate::hypervisor::{ErrorClass, GuestEvent, GuestState, Happened, Result, StopReason};

/// The state for libvirt's state and reason.
pub(super) fn guest_state(state: u32, reason: u32) -> Result<GuestState> {
    Ok(match state {
        virt_sys::VIR_DOMAIN_RUNNING => match reason {
            virt_sys::VIR_DOMAIN_RUNNING_POSTCOPY => GuestState::RunningPostCopy,
            virt_sys::VIR_DOMAIN_RUNNING_POSTCOPY_FAILED => GuestState::RunningPostCopyFailed,
            _ => GuestState::Running,
        },
        virt_sys::VIR_DOMAIN_BLOCKED => GuestState::Running,
        virt_sys::VIR_DOMAIN_PAUSED => paused(reason),
        virt_sys::VIR_DOMAIN_SHUTDOWN => GuestState::ShuttingDown,
        virt_sys::VIR_DOMAIN_SHUTOFF => GuestState::ShutOff,
        virt_sys::VIR_DOMAIN_CRASHED => GuestState::Crashed,
        // Suspended by the guest's own power management: still, and only a wake-up helps.
        virt_sys::VIR_DOMAIN_PMSUSPENDED => GuestState::PausedFault,
        _ => {
            let message = format!("libvirt gives state {state}, reason {reason}, which Drover does not know");
            return Err(own_error(ErrorClass::Ambiguous, "UNKNOWN_STATE", message));
        }
    })
}

fn paused(reason: u32) -> GuestState {
    match reason {
        virt_sys::VIR_DOMAIN_PAUSED_MIGRATION => GuestState::PausedMigrating,
        virt_sys::VIR_DOMAIN_PAUSED_POSTCOPY => GuestState::PausedPostCopy,
        virt_sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED => GuestState::PausedPostCopyFailed,
        virt_sys::VIR_DOMAIN_PAUSED_IOERROR
        | virt_sys::VIR_DOMAIN_PAUSED_WATCHDOG
        | virt_sys::VIR_DOMAIN_PAUSED_CRASHED
        | virt_sys::VIR_DOMAIN_PAUSED_API_ERROR => GuestState::PausedFault,
        virt_sys::VIR_DOMAIN_PAUSED_SHUTTING_DOWN => GuestState::ShuttingDown,
        // By a user, or by a tool that saves, dumps, snapshots or starts it.
        _ => GuestState::Paused,
    }
}

/// The event for what libvirt called back with; `None` for what concerns no guest.
pub(super) fn guest_event(raw: RawEvent) -> Option<GuestEvent> {
    let (guest, what) = match raw {
        RawEvent::Lifecycle { guest, event, detail } => (guest, lifecycle(event, detail)),
        RawEvent::Iteration { guest, iteration } => (guest, Happened::Iteration(iteration)),
        RawEvent::JobCompleted { guest, stats } if stats::is_migration(&stats) => {
            (guest, Happened::JobCompleted(stats::job_stats(&stats)))
        }
        RawEvent::JobCompleted { guest, .. } => (guest, Happened::Changed),
        RawEvent::Closed => return None,
    };
    Some(now(guest, what))
}

/// An event of this moment.
pub(super) fn now(guest: GuestId, what: Happened) -> GuestEvent {
    GuestEvent {
        guest,
        at: SystemTime::now(),
        instant: Instant::now(),
        what,
    }
}

fn lifecycle(event: u32, detail: u32) -> Happened {
    match event {
        virt_sys::VIR_DOMAIN_EVENT_STARTED => Happened::Started,
        virt_sys::VIR_DOMAIN_EVENT_RESUMED if detail != virt_sys::VIR_DOMAIN_EVENT_RESUMED_POSTCOPY_FAILED => {
            Happened::Resumed
        }
        virt_sys::VIR_DOMAIN_EVENT_SUSPENDED => Happened::Suspended {
            by_migration: matches!(
                detail,
                virt_sys::VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED
                    | virt_sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY
                    | virt_sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED
            ),
        },
        virt_sys::VIR_DOMAIN_EVENT_PMSUSPENDED => Happened::Suspended { by_migration: false },
        virt_sys::VIR_DOMAIN_EVENT_STOPPED => Happened::Stopped(stop_reason(detail)),
        // Defined, undefined, about to shut down, crashed: the state says more than the event.
        _ => Happened::Changed,
    }
}

fn stop_reason(detail: u32) -> StopReason {
    match detail {
        virt_sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => StopReason::Shutdown,
        virt_sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => StopReason::Destroyed,
        virt_sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED => StopReason::Crashed,
        virt_sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED => StopReason::Migrated,
        virt_sys::VIR_DOMAIN_EVENT_STOPPED_FAILED => StopReason::Failed,
        // Saved to a file, or stopped by a snapshot.
        _ => StopReason::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_nobody_knows_is_no_state() {
        assert_eq!(guest_state(99, 0).unwrap_err().class, ErrorClass::Ambiguous);
        assert!(guest_state(virt_sys::VIR_DOMAIN_NOSTATE, 0).is_err());
    }

    #[test]
    fn post_copy_and_migration_pauses_are_told_apart() {
        let paused = |reason| guest_state(virt_sys::VIR_DOMAIN_PAUSED, reason).unwrap();
        assert_eq!(
            paused(virt_sys::VIR_DOMAIN_PAUSED_MIGRATION),
            GuestState::PausedMigrating
        );
        assert_eq!(paused(virt_sys::VIR_DOMAIN_PAUSED_POSTCOPY), GuestState::PausedPostCopy);
        assert_eq!(
            paused(virt_sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED),
            GuestState::PausedPostCopyFailed
        );
        assert_eq!(paused(virt_sys::VIR_DOMAIN_PAUSED_USER), GuestState::Paused);
        assert_eq!(paused(virt_sys::VIR_DOMAIN_PAUSED_IOERROR), GuestState::PausedFault);
        let running = |reason| guest_state(virt_sys::VIR_DOMAIN_RUNNING, reason).unwrap();
        assert_eq!(
            running(virt_sys::VIR_DOMAIN_RUNNING_POSTCOPY),
            GuestState::RunningPostCopy
        );
        assert_eq!(
            running(virt_sys::VIR_DOMAIN_RUNNING_MIGRATION_CANCELED),
            GuestState::Running
        );
    }

    #[test]
    fn a_broken_post_copy_stream_is_not_a_resume() {
        let resumed = virt_sys::VIR_DOMAIN_EVENT_RESUMED;
        assert!(matches!(
            lifecycle(resumed, virt_sys::VIR_DOMAIN_EVENT_RESUMED_MIGRATED),
            Happened::Resumed
        ));
        assert!(matches!(
            lifecycle(resumed, virt_sys::VIR_DOMAIN_EVENT_RESUMED_POSTCOPY_FAILED),
            Happened::Changed
        ));
    }

    #[test]
    fn a_pause_says_whether_a_migration_did_it() {
        let by = |detail| {
            let what = lifecycle(virt_sys::VIR_DOMAIN_EVENT_SUSPENDED, detail);
            matches!(what, Happened::Suspended { by_migration: true })
        };
        assert!(by(virt_sys::VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED));
        assert!(!by(virt_sys::VIR_DOMAIN_EVENT_SUSPENDED_PAUSED));
    }
}
