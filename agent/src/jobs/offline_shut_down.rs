//! Source, a guest that runs and is to move shut off: it is asked to shut down, waited for, and started where it stays.
//!
//! ```text
//!  journal: it ran, and has so long ──▶ told ──▶ off ──▶ its images are held (offline_begin)
//!                                            └─ not in time: refused, and it runs on
//! ```
//! Promise: that this migration shuts it down is in the journal before the guest hears of it; it is started at most where
//! the verdict says that it belongs, and only if it is off. If the process dies in between, a repeat asks again, or the
//! verdict NeverRan starts it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use drover_proto::failure::{Failure, Reason};
use drover_proto::units::duration_text;

use super::begin::{BeginAnswer, BeginOrder, may_leave};
use super::{Jobs, Seen, errors};
use crate::hypervisor::{GuestFacts, GuestState};
use crate::journal::{Leaving, OpenPage, Record, ShutDown};

/// One call waits for so long: whoever wants to undo it waits for that call.
const ONE_CALL: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(200);

impl Jobs {
    /// Whether the guest, which runs, may be shut down: it is the life that was looked at, and hears of it.
    pub(super) fn fit_to_shut_down(order: &BeginOrder, guest: &GuestFacts) -> Result<(), Failure> {
        if guest.incarnation.as_ref() != Some(&order.incarnation) {
            let message = "the guest was started anew since it was looked at";
            return Err(Failure::new(Reason::IncarnationMismatch, message));
        }
        may_leave(guest.state)?;
        if guest.state != GuestState::Running {
            let message = format!("the guest is {:?}: it cannot shut itself down", guest.state);
            return Err(Failure::new(Reason::GuestBusy, message).with_remedy("resume it first"));
        }
        Ok(())
    }

    /// Asks, waits, and holds what the guest has let go of. A repeat goes on with it.
    pub(super) async fn shut_down_and_hold(
        self: &Arc<Self>,
        page: &mut OpenPage,
        record: &Record,
        shut_down: &ShutDown,
        order: &BeginOrder,
    ) -> Result<BeginAnswer, Failure> {
        let missing = || Failure::invalid("offline", "this migration was begun as one of a guest that is shut off");
        let offline = order.offline.as_ref().ok_or_else(missing)?;
        // A host that reboots must not start it, as it would one that has autostart.
        self.hypervisor.set_autostart(record.guest, false).await?;
        self.await_off(page, record, shut_down).await?;
        self.hold_what_was_shut_down(page, offline).await
    }

    async fn await_off(&self, page: &mut OpenPage, record: &Record, shut_down: &ShutDown) -> Result<(), Failure> {
        let (began, mut asked) = (Instant::now(), false);
        loop {
            let gone = || Failure::new(Reason::GuestEnded, "the guest was removed while it was to shut down");
            let guest = self.hypervisor.guest(record.guest).await.map_err(errors::unsure)?;
            if !guest.ok_or_else(gone)?.state.is_active() {
                return Ok(());
            }
            if shut_down.is_over() {
                let limit = duration_text(shut_down.within);
                let message = format!(
                    "the guest did not shut down within {limit}: it runs on. It was told to, and if it does so later it \
                     stays off"
                );
                let remedy = "see why it does not heed its power button or guest agent, and start it where it went off; \
                              shut it down yourself, or move it live";
                return Err(Failure::new(Reason::GuestBusy, message).with_remedy(remedy));
            }
            if !asked {
                self.ask(page, record, shut_down).await?;
                asked = true;
            }
            if began.elapsed() >= ONE_CALL {
                return Err(Failure::new(
                    Reason::DeadlineExceeded,
                    "the guest is still shutting down",
                ));
            }
            tokio::time::sleep(TICK).await;
        }
    }

    async fn ask(&self, page: &mut OpenPage, record: &Record, shut_down: &ShutDown) -> Result<(), Failure> {
        if !shut_down.told {
            write_told(page, true).await?;
        }
        let asked = self.hypervisor.shut_down(record.guest).await;
        if let Err(refused) = &asked
            && refused.is_certain()
            && !shut_down.told
        {
            write_told(page, false).await?;
        }
        asked.map_err(errors::unsure)
    }

    /// Verdict NeverRan: one that may still heed what it was told is waited for, so that it is not left off.
    pub(super) async fn await_shut_down(&self, record: &Record, leaving: &Leaving) -> Result<(), Failure> {
        let Some(shut_down) = &leaving.shut_down else {
            return Ok(());
        };
        // Once its images were held it was off: whoever has started it since wants it so.
        let may_heed = leaving.waits_for_off && shut_down.told && !shut_down.is_over() && !self.has_later(record);
        match self.look(record).await? {
            Seen::Ours(_) | Seen::Another(_) if may_heed => {
                let message = "the guest was told to shut down and may still do so: it is started again then";
                Err(Failure::new(Reason::DeadlineExceeded, message))
            }
            Seen::Ours(_) | Seen::Another(_) | Seen::ShutOff(_) | Seen::Unknown => Ok(()),
        }
    }

    /// The same, at its end: it runs here again. Nothing of it may be held any more.
    pub(super) async fn start_again(&self, record: &Record, leaving: &Leaving) -> Result<(), Failure> {
        if leaving.shut_down.is_none() || self.has_later(record) {
            return Ok(());
        }
        if let Seen::ShutOff(_) = self.look(record).await? {
            self.hypervisor.start(record.guest).await.map_err(errors::unsure)?;
            tracing::info!(migration_id = %record.migration, "the guest did not move and runs here again");
        }
        Ok(())
    }
}

impl ShutDown {
    pub(super) fn within(limit: Duration) -> Self {
        Self {
            within: limit,
            since: SystemTime::now(),
            told: false,
        }
    }

    /// A clock that was put back gives it no more time than it was to have.
    fn is_over(&self) -> bool {
        self.since.elapsed().is_ok_and(|since| since >= self.within)
    }
}

async fn write_told(page: &mut OpenPage, told: bool) -> Result<(), Failure> {
    page.change(|record| {
        let leaving = record.source_mut().and_then(|part| part.offline.as_mut());
        if let Some(shut_down) = leaving.and_then(|leaving| leaving.shut_down.as_mut()) {
            shut_down.told = told;
        }
    })
    .await?;
    Ok(())
}
