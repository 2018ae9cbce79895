//! Post-copy as changes of a simulated libvirtd's memory. Nothing here waits; `sender` and `incoming` do.
//!
//! ```text
//! source        Performing ──▶ PostCopy ──▶ Sent, or still there with a broken stream
//! destination   Finishing ──▶ Arriving ──▶ in place, or still there with a broken stream
//! ```
//! A broken stream is repaired by the five calls once more: job and phase stay, and belong to another connection. Begin
//! or no Begin, Confirm(0) takes such a copy away.

use drover_proto::ids::GuestId;
use tokio_util::sync::CancellationToken;

use super::domain::{Job, Phase, Spec};
use super::error;
use super::receiver::Totals;
use super::state::State;
use super::transitions::Arrived;
use crate::hypervisor::{Begun, Cookie, GuestState, Happened, JobStats, MigrateFlags, Result};

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

    /// Whether the guest left this host before all of its memory had.
    pub(super) fn is_in_post_copy(&self, guest: GuestId) -> bool {
        let state = self.domains.get(&guest).map(|domain| domain.state);
        state.is_some_and(GuestState::is_post_copy)
    }

    /// The job of a stream that broke, for another connection. It is cut anew.
    fn take_over_broken(&mut self, guest: GuestId, state: GuestState, phase: Phase) -> Result<(u64, &mut Job)> {
        let connection = self.connect();
        let domain = self.find(guest)?;
        let broken = domain.state == state;
        let job = domain.job.as_mut().filter(|job| broken && job.phase == phase);
        let job = job.ok_or_else(|| error::invalid("post-copy migration of the domain has not failed"))?;
        job.connection = connection;
        job.cut = CancellationToken::new();
        Ok((connection, job))
    }

    /// Begin once more.
    pub(super) fn begin_repair(&mut self, guest: GuestId) -> Result<(u64, Begun)> {
        let (connection, _) = self.take_over_broken(guest, GuestState::PausedPostCopyFailed, Phase::PostCopy)?;
        let begun = Begun {
            xml: self.find(guest)?.live_xml.clone(),
            cookie: Cookie(format!("begin of {guest}").into_bytes()),
        };
        Ok((connection, begun))
    }

    /// Prepare once more: the guest runs on.
    pub(super) fn prepare_repair(&mut self, guest: GuestId) -> Result<(u64, Spec, CancellationToken)> {
        let (connection, job) = self.take_over_broken(guest, GuestState::RunningPostCopyFailed, Phase::Arriving)?;
        let cut = job.cut.clone();
        Ok((connection, self.find(guest)?.spec.clone(), cut))
    }

    /// Perform once more. Gives how many bytes are owed.
    pub(super) fn start_repair(&mut self, guest: GuestId, connection: u64) -> Result<(Spec, CancellationToken, u64)> {
        if !self.is_connected(connection) {
            return Err(error::disconnected());
        }
        let ready = self.phase(guest, connection) == Some(Phase::PostCopy);
        let domain = self.find(guest)?;
        let spec = domain.spec.clone();
        match domain
            .job
            .as_ref()
            .filter(|_| ready && domain.state == GuestState::PausedPostCopyFailed)
        {
            Some(job) => Ok((spec, job.cut.clone(), job.stats.memory_remaining)),
            None => Err(error::too_late("migration protocol going backwards")),
        }
    }

    /// The source is connected again.
    pub(super) fn sends_again(&mut self, guest: GuestId, connection: u64) -> Result<()> {
        match self.phase(guest, connection) {
            Some(Phase::PostCopy) => {
                self.set_state(guest, GuestState::PausedPostCopy);
                Ok(())
            }
            Some(_) | None => Err(error::aborted()),
        }
    }

    /// Pages come again.
    pub(super) fn arrives_again(&mut self, guest: GuestId, connection: u64) {
        if self.phase(guest, connection) == Some(Phase::Arriving) {
            self.set_state(guest, GuestState::RunningPostCopy);
        }
    }

    /// Whether the one who was to call Finish has gone.
    pub(super) fn is_unattended(&mut self, guest: GuestId, connection: u64) -> bool {
        let state = self.domains.get(&guest).map(|domain| domain.state);
        self.phase(guest, connection) == Some(Phase::Arriving) && state == Some(GuestState::RunningPostCopyFailed)
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
