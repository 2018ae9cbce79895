//! Post-copy as changes of a simulated libvirtd's memory. Nothing here waits; `sender` and `incoming` do.
//!
//! ```text
//! source        Performing ──▶ PostCopy ──▶ Sent, or still there with a broken stream
//! destination   Finishing ──▶ Arriving ──▶ in place, or still there with a broken stream
//! ```

use drover_proto::ids::GuestId;

use super::domain::Phase;
use super::error;
use super::receiver::Totals;
use super::state::State;
use super::transitions::Arrived;
use crate::hypervisor::{GuestState, Happened, JobStats, MigrateFlags, Result};

impl State {
    /// Post-copy is wanted: the sender does it when it comes to it.
    pub(super) fn start_post_copy(&mut self, guest: GuestId, connection: u64, flags: &MigrateFlags) -> Result<()> {
        match self.phase(guest, connection) {
            Some(Phase::Performing { stopped: false }) if flags.post_copy => {
                self.update_job(guest, connection, |job| job.switch = true)
            }
            Some(_) | None => Err(error::invalid(
                "post-copy can only be started while outgoing migration is in progress",
            )),
        }
    }

    /// The point of no return: the guest is stopped for good here.
    pub(super) fn switch_to_post_copy(&mut self, guest: GuestId, connection: u64) -> Result<()> {
        match self.phase(guest, connection) {
            Some(Phase::Performing { stopped: false }) => {
                self.set_phase(guest, connection, Phase::PostCopy);
                self.set_state(guest, GuestState::PausedPostCopy);
                self.tell(guest, Happened::Suspended { by_migration: true });
                Ok(())
            }
            Some(_) | None => Err(error::aborted()),
        }
    }

    /// The guest runs on what is there, and the rest arrives.
    pub(super) fn finished_early(&mut self, guest: GuestId, connection: u64, arrived: &Arrived) -> Result<()> {
        let Arrived { persistent_xml, flags } = arrived;
        if self.phase(guest, connection) != Some(Phase::Finishing) {
            return Err(error::failed("domain is not running"));
        }
        self.set_phase(guest, connection, Phase::Arriving);
        let domain = self.find(guest)?;
        if flags.persistent {
            domain.definition = Some(persistent_xml.as_ref().unwrap_or(&domain.live_xml).clone());
        }
        self.set_state(guest, GuestState::RunningPostCopy);
        self.tell(guest, Happened::Resumed);
        Ok(())
    }

    /// The last page has arrived.
    pub(super) fn all_arrived(&mut self, guest: GuestId, connection: u64, totals: Totals) {
        if self.phase(guest, connection) != Some(Phase::Arriving) {
            return;
        }
        if let Ok(domain) = self.find(guest) {
            domain.completed = domain.job.take().map(|job| JobStats {
                memory_total: domain.spec.memory,
                memory_processed: totals.pages,
                ..job.stats()
            });
        }
        self.set_state(guest, GuestState::Running);
        self.tell(guest, Happened::Resumed);
    }
}
