//! The five calls as changes of a simulated libvirtd's memory. Nothing here waits; `outgoing` and `incoming` do.
//!
//! ```text
//! source        Begun ──▶ Performing ──▶ (PostCopy ──▶) Sent ──▶ (Confirm) gone, or given back
//! destination   Waiting ──▶ Finishing ──▶ in place (at once, or when Arriving has ended), or gone
//! ```

use drover_proto::ids::GuestId;
use tokio_util::sync::CancellationToken;

use super::domain::{Domain, Job, Limits, Phase, Spec};
use super::error;
use super::receiver::Totals;
use super::state::State;
use crate::hypervisor::{
    Begun, Cookie, CpuAnswer, GuestState, Happened, HypervisorError, JobStats, MigrateFlags, PerformRequest,
    PrepareRequest, Result, StopReason,
};

/// What Finish needs to know of its Prepare.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    pub(super) persistent_xml: Option<String>,
    pub(super) flags: MigrateFlags,
}

impl State {
    /// The domain, if this connection holds its job.
    fn held(&mut self, guest: GuestId, connection: u64) -> Option<&mut Domain> {
        let domain = self.domains.get_mut(&guest)?;
        domain
            .job
            .as_ref()
            .is_some_and(|job| job.connection == connection)
            .then_some(domain)
    }

    pub(super) fn phase(&mut self, guest: GuestId, connection: u64) -> Option<Phase> {
        self.held(guest, connection)?.job.as_ref().map(|job| job.phase)
    }

    pub(super) fn set_phase(&mut self, guest: GuestId, connection: u64, phase: Phase) {
        if let Some(job) = self.held(guest, connection).and_then(|domain| domain.job.as_mut()) {
            job.phase = phase;
        }
    }

    pub(super) fn begin(&mut self, guest: GuestId) -> Result<(u64, Begun)> {
        let connection = self.connect();
        let domain = self.find(guest)?;
        if domain.job.is_some() {
            return Err(error::busy());
        }
        if !domain.state.is_active() {
            return Err(error::invalid("domain is not running"));
        }
        if domain.snapshots > 0 {
            return Err(error::invalid("cannot migrate domain with snapshots"));
        }
        if !domain.block_jobs.is_empty() {
            return Err(error::invalid("domain has active block job"));
        }
        domain.job = Some(Job::new(connection, Phase::Begun));
        let cookie = Cookie(format!("begin of {guest}").into_bytes());
        Ok((
            connection,
            Begun {
                xml: domain.live_xml.clone(),
                cookie,
            },
        ))
    }

    /// What the sender is told, if Perform may begin.
    pub(super) fn start_perform(
        &mut self,
        guest: GuestId,
        connection: u64,
        request: &PerformRequest,
    ) -> Result<(Spec, CancellationToken)> {
        if !self.is_connected(connection) {
            return Err(error::disconnected());
        }
        let domain = self
            .held(guest, connection)
            .ok_or_else(|| error::too_late("domain is not being migrated"))?;
        let spec = domain.spec.clone();
        let Some(job) = domain.job.as_mut().filter(|job| job.phase == Phase::Begun) else {
            return Err(error::too_late("migration protocol going backwards"));
        };
        job.phase = Phase::Performing { stopped: false };
        job.limits = Limits {
            bandwidth: request.bandwidth,
            max_downtime: request.max_downtime.unwrap_or(job.limits.max_downtime),
        };
        job.stats.memory_total = spec.memory;
        Ok((spec, job.cut.clone()))
    }

    pub(super) fn update_job(&mut self, guest: GuestId, connection: u64, update: impl FnOnce(&mut Job)) -> Result<()> {
        let job = self.held(guest, connection).and_then(|domain| domain.job.as_mut());
        job.map(update)
            .ok_or_else(|| error::invalid("no job is active on the domain"))
    }

    /// The guest is stopped for the last round; false where it stood still already.
    pub(super) fn stop_for_last_round(&mut self, guest: GuestId, connection: u64) -> Result<bool> {
        let domain = self
            .held(guest, connection)
            .ok_or_else(|| error::failed("domain is not running"))?;
        let ran = domain.state.runs();
        if ran {
            self.set_phase(guest, connection, Phase::Performing { stopped: true });
            self.set_state(guest, GuestState::PausedMigrating);
            self.tell(guest, Happened::Suspended { by_migration: true });
        }
        Ok(ran)
    }

    /// The last byte left. From here on only Confirm, or somebody's resume, changes the guest.
    pub(super) fn sent(&mut self, guest: GuestId, connection: u64) -> Result<()> {
        let domain = self
            .held(guest, connection)
            .ok_or_else(|| error::failed("domain is not running"))?;
        match domain.job.as_mut() {
            Some(Job {
                phase: phase @ Phase::Performing { .. },
                cut,
                ..
            }) if !cut.is_cancelled() => {
                *phase = Phase::Sent {
                    stopped: matches!(phase, Phase::Performing { stopped: true }),
                };
                Ok(())
            }
            Some(Job {
                phase: phase @ Phase::PostCopy,
                ..
            }) => {
                *phase = Phase::Sent { stopped: false };
                // Without an owner libvirt itself sees to the end.
                if !self.is_connected(connection) {
                    self.end(guest, StopReason::Migrated);
                }
                Ok(())
            }
            Some(_) | None => Err(error::aborted()),
        }
    }

    /// Perform failed: the job ends by itself, the guest runs if the migration had stopped it.
    pub(super) fn perform_failed(&mut self, guest: GuestId, connection: u64) {
        match self.phase(guest, connection) {
            Some(phase @ Phase::Performing { .. }) => self.let_go(guest, phase),
            Some(Phase::PostCopy) => {
                self.set_state(guest, GuestState::PausedPostCopyFailed);
                self.tell(guest, Happened::Suspended { by_migration: true });
            }
            Some(Phase::Begun | Phase::Sent { .. } | Phase::Waiting | Phase::Finishing | Phase::Arriving) | None => {}
        }
    }

    pub(super) fn abort(&mut self, guest: GuestId, connection: u64) -> Result<()> {
        match self.phase(guest, connection) {
            Some(Phase::Performing { .. }) => self.update_job(guest, connection, |job| job.cut.cancel()),
            Some(
                Phase::Begun
                | Phase::Sent { .. }
                | Phase::Waiting
                | Phase::Finishing
                | Phase::PostCopy
                | Phase::Arriving,
            )
            | None => Err(error::invalid("no job is active on the domain")),
        }
    }

    pub(super) fn confirm_moved(&mut self, guest: GuestId, connection: u64, flags: &MigrateFlags) -> Result<()> {
        // As libvirt: in post-copy nobody looks whether the other side has every page.
        if self.phase(guest, connection) == Some(Phase::PostCopy) {
            self.set_phase(guest, connection, Phase::Sent { stopped: false });
        }
        let domain = self.for_confirm(guest, connection)?;
        if flags.persistent {
            domain.definition = None;
            domain.autostart = false;
        }
        let stats = domain.job.as_ref().map(Job::stats).unwrap_or_default();
        self.tell(guest, Happened::JobCompleted(stats));
        self.end(guest, StopReason::Migrated);
        Ok(())
    }

    /// A Perform that failed has ended the job by itself: then there is nothing left to cancel.
    pub(super) fn confirm_cancelled(&mut self, guest: GuestId, connection: u64) -> Result<()> {
        if self.is_connected(connection) && self.find(guest)?.job.is_none() {
            return Ok(());
        }
        let domain = self.for_confirm(guest, connection)?;
        if domain.state.is_post_copy() {
            return Err(error::invalid("the domain's memory is at the destination"));
        }
        let job = domain.job.take();
        // Only what this very job stopped is resumed: a fresh Begin knows of no stop.
        if job.is_some_and(|job| job.phase == (Phase::Sent { stopped: true })) {
            self.set_state(guest, GuestState::Running);
            self.tell(guest, Happened::Resumed);
        }
        Ok(())
    }

    fn for_confirm(&mut self, guest: GuestId, connection: u64) -> Result<&mut Domain> {
        if !self.is_connected(connection) {
            return Err(error::disconnected());
        }
        match self.phase(guest, connection) {
            Some(Phase::Begun | Phase::Sent { .. }) => self.find(guest),
            Some(Phase::Performing { .. } | Phase::Waiting | Phase::Finishing | Phase::PostCopy | Phase::Arriving)
            | None => Err(error::too_late("domain is not being migrated")),
        }
    }

    /// The handle of a migration was dropped.
    pub(super) fn close(&mut self, guest: GuestId, connection: u64) {
        match self.phase(guest, connection) {
            // The sender sees it, and restores the guest.
            Some(Phase::Performing { .. }) => drop(self.update_job(guest, connection, |job| job.cut.cancel())),
            // As libvirt: in post-copy it keeps the job, and calls it failed, whatever QEMU says.
            Some(Phase::Sent { .. }) if self.is_in_post_copy(guest) => {
                self.set_phase(guest, connection, Phase::PostCopy);
                self.set_state(guest, GuestState::PausedPostCopyFailed);
            }
            Some(phase @ (Phase::Begun | Phase::Sent { .. } | Phase::Waiting | Phase::Finishing)) => {
                self.let_go(guest, phase);
            }
            Some(Phase::PostCopy | Phase::Arriving) | None => {}
        }
    }

    pub(super) fn prepare(&mut self, request: &PrepareRequest) -> Result<(u64, Spec, CancellationToken)> {
        let spec = Spec::parse(&request.xml)?;
        if spec.id != request.guest {
            return Err(error::bad_xml("the XML is of another domain"));
        }
        if self
            .domains
            .get(&spec.id)
            .is_some_and(|domain| domain.state.is_active())
        {
            return Err(error::exists(format!("domain '{}' is already active", spec.name)));
        }
        self.refuse_other_with_name(&request.name, spec.id)?;
        self.refuse_unfit(&spec)?;
        let connection = self.connect();
        let job = Job::new(connection, Phase::Waiting);
        let cut = job.cut.clone();
        let fresh = || Domain::new(spec.clone(), String::new(), None);
        let domain = self.domains.entry(spec.id).or_insert_with(fresh);
        domain.live_xml.clone_from(&request.xml);
        domain.spec = spec.clone();
        domain.job = Some(job);
        self.start(spec.id, GuestState::PausedMigrating);
        Ok((connection, spec, cut))
    }

    fn refuse_unfit(&self, spec: &Spec) -> Result<()> {
        let facts = self.host_facts();
        let known = facts
            .machines
            .iter()
            .filter(|machines| machines.domain_type == spec.domain_type);
        if !known
            .flat_map(|machines| &machines.names)
            .any(|name| *name == spec.machine)
        {
            let message = format!(
                "machine type '{}' is not supported for '{}'",
                spec.machine, spec.domain_type
            );
            return Err(error::unfit("VIR_ERR_CONFIG_UNSUPPORTED", message));
        }
        if spec.memory > facts.memory_available {
            return Err(error::unfit(
                "VIR_ERR_NO_MEMORY",
                "cannot set up guest memory".to_owned(),
            ));
        }
        match &self.cpu {
            CpuAnswer::Lacks(what) => {
                let message = format!("the host CPU does not provide: {what}");
                Err(error::unfit("VIR_ERR_CPU_INCOMPATIBLE", message))
            }
            CpuAnswer::Fits | CpuAnswer::Unknown(_) => Ok(()),
        }
    }

    pub(super) fn start_finish(&mut self, guest: GuestId, connection: u64) -> Result<()> {
        if !self.is_connected(connection) {
            return Err(error::disconnected());
        }
        match self.phase(guest, connection) {
            Some(Phase::Waiting) => {
                self.set_phase(guest, connection, Phase::Finishing);
                Ok(())
            }
            Some(
                Phase::Finishing
                | Phase::Begun
                | Phase::Performing { .. }
                | Phase::Sent { .. }
                | Phase::PostCopy
                | Phase::Arriving,
            )
            | None => Err(error::too_late("domain is not processing incoming migration")),
        }
    }

    /// The whole stream is there: the guest is in place. With post-copy allowed it runs, else it stands still.
    pub(super) fn finished(
        &mut self,
        guest: GuestId,
        connection: u64,
        arrived: &Arrived,
        totals: Totals,
    ) -> Result<()> {
        let Arrived { persistent_xml, flags } = arrived;
        if self.phase(guest, connection) != Some(Phase::Finishing) {
            return Err(error::failed("domain is not running"));
        }
        let domain = self.find(guest)?;
        if flags.persistent {
            // Without one, libvirt makes the definition from the live XML.
            domain.definition = Some(persistent_xml.as_ref().unwrap_or(&domain.live_xml).clone());
        }
        domain.completed = domain.job.take().map(|job| JobStats {
            memory_total: domain.spec.memory,
            memory_processed: totals.pages,
            downtime: totals.stopped.and_then(|stopped| stopped.elapsed().ok()),
            ..job.stats()
        });
        if flags.post_copy {
            self.set_state(guest, GuestState::Running);
            self.tell(guest, Happened::Resumed);
        } else {
            self.set_state(guest, GuestState::Paused);
            self.tell(guest, Happened::Suspended { by_migration: false });
        }
        Ok(())
    }

    /// The stream broke: the waiting QEMU gives up; one that runs waits for its pages.
    pub(super) fn incoming_broke(&mut self, guest: GuestId, connection: u64) {
        match self.phase(guest, connection) {
            Some(Phase::Arriving) => {
                self.set_state(guest, GuestState::RunningPostCopyFailed);
                self.tell(guest, Happened::Changed);
            }
            Some(
                Phase::Waiting
                | Phase::Finishing
                | Phase::Begun
                | Phase::Performing { .. }
                | Phase::Sent { .. }
                | Phase::PostCopy,
            ) => self.end(guest, StopReason::Failed),
            None => {}
        }
    }

    pub(super) fn cancel_incoming(&mut self, guest: GuestId, connection: u64) -> Result<()> {
        self.start_finish(guest, connection)?;
        self.end(guest, StopReason::Failed);
        Ok(())
    }

    /// The totals of what was sent, once all is.
    pub(super) fn sent_stats(&mut self, guest: GuestId, connection: u64) -> Option<JobStats> {
        let job = self.held(guest, connection)?.job.as_ref()?;
        matches!(job.phase, Phase::Sent { .. }).then(|| job.stats())
    }

    /// What Perform says when its sender was cut.
    pub(super) fn why_cut(&self, guest: GuestId, connection: u64) -> HypervisorError {
        if !self.is_connected(connection) {
            return error::disconnected();
        }
        match self.domains.get(&guest) {
            Some(domain) if domain.state.is_active() => error::aborted(),
            Some(_) | None => error::failed("domain is not running: guest unexpectedly quit"),
        }
    }

    pub(super) fn completed_job(&mut self, guest: GuestId) -> Result<Option<JobStats>> {
        Ok(self.find(guest)?.completed.clone())
    }
}
