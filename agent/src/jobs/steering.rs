//! Source: the limits in force while memory is sent, and how they get there: bandwidth into the tunnel, the blackout's
//! limit into QEMU, the deadline to whoever waits for it.
//!
//! Promise: what was ordered last is what QEMU has; a step of the agent's own never overtakes an order.

use std::time::Duration;

use drover_proto::units::duration_text;
use tokio::sync::{Mutex, watch};

use super::downtime::allowed;
use super::progress::Action;
use crate::hypervisor::{self, JobStats, Outgoing};
use crate::journal::Limits;
use crate::tunnel::Pace;

/// Of one leaving migration.
pub(super) struct Steering {
    limits: watch::Sender<Limits>,
    pace: Pace,
    /// Held while QEMU is told.
    given: Mutex<Given>,
}

/// What QEMU was told.
#[derive(Default)]
struct Given {
    round: u64,
    /// None where it is not known which of two calls came last.
    max_downtime: Option<Duration>,
}

impl Default for Steering {
    fn default() -> Self {
        Self {
            limits: watch::Sender::default(),
            pace: Pace::new(0),
            given: Mutex::default(),
        }
    }
}

impl Steering {
    pub(super) fn limits(&self) -> Limits {
        *self.limits.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Limits> {
        self.limits.subscribe()
    }

    pub(super) fn pace(&self) -> Pace {
        self.pace.clone()
    }

    /// Before anything is sent. Gives what Perform tells QEMU at first.
    pub(super) async fn start(&self, limits: Limits) -> Duration {
        let mut given = self.given.lock().await;
        self.publish(limits);
        let first = allowed(0, &limits);
        given.max_downtime = Some(first);
        first
    }

    fn publish(&self, limits: Limits) {
        self.pace.set(limits.bandwidth);
        self.limits.send_replace(limits);
    }

    /// Somebody ordered something else while memory is sent: in force when this returns.
    pub(super) async fn adjust(&self, limits: Limits, handle: &dyn Outgoing) -> hypervisor::Result<()> {
        let mut given = self.given.lock().await;
        self.publish(limits);
        let now = allowed(given.round, &limits);
        if given.max_downtime == Some(now) {
            return Ok(());
        }
        handle.set_max_downtime(now).await?;
        // Before the first round Perform may be about to tell QEMU what it began with: then it is told again.
        given.max_downtime = (given.round > 0).then_some(now);
        Ok(())
    }

    /// A round began: QEMU may be given more. What was done, where something was.
    pub(super) async fn next_round(
        &self,
        number: u64,
        stats: &JobStats,
        handle: &dyn Outgoing,
    ) -> hypervisor::Result<Option<Action>> {
        let mut given = self.given.lock().await;
        given.round = number;
        let limits = self.limits();
        let now = allowed(number, &limits);
        let before = given.max_downtime;
        if before == Some(now) {
            return Ok(None);
        }
        handle.set_max_downtime(now).await?;
        given.max_downtime = Some(now);
        // An order that is repeated is not a decision of this agent.
        Ok(before.map(|before| Action::now(Action::MAX_DOWNTIME, duration_text(now), why(number, before, stats))))
    }
}

fn why(round: u64, before: Duration, stats: &JobStats) -> String {
    const MIB: u64 = 1 << 20;
    format!(
        "round {round} begins and {} was not enough: {} MiB remain, the guest writes {} MiB/s, {} MiB/s are sent",
        duration_text(before),
        stats.memory_remaining / MIB,
        stats.dirty_rate / MIB,
        stats.bandwidth / MIB
    )
}
