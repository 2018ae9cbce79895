//! Source: the verdict is journaled, then carried out.
//!
//! - NeverRan: the job lock goes, the guest is given back as it was: running only if it ran, autostart if it had it.
//!   One that its host would have started after a reboot, but for the autostart that was cleared, is started.
//! - Ran: the copy goes by Confirm(0), whatever its state; it is never resumed and never destroyed.
//!
//! If the process dies between the two, the repeat carries out what is written. What was carried out once is never
//! done again: the guest may have come back since.

use std::sync::Arc;

use drover_proto::failure::{Failure, Reason};
use drover_proto::trace::names::span;

use super::fence::{Fence, Reference, Side, concerns};
use super::outgoing::{OutgoingJob, TransferStep};
use super::resolve::By;
use super::{Jobs, Seen, errors};
use crate::hypervisor::{BeginRequest, Cookie, ErrorClass, GuestFacts, GuestState};
use crate::journal::{Decision, Forbidden, OpenPage, Part, Record, SourcePart, SourceState, Step, Tombstone, Verdict};

impl Jobs {
    /// The controller's verdict, from the destination's evidence.
    pub async fn settle_outgoing(
        self: &Arc<Self>,
        fence: Fence,
        reference: Reference,
        verdict: Verdict,
        by: By,
    ) -> Result<(), Failure> {
        let mut page = self.obey_and_lock(&fence, reference.migration).await?;
        let Some(record) = page.record() else {
            if verdict == Verdict::Ran {
                let message = "this host's journal knows nothing of this migration: it removes no copy";
                return Err(Failure::new(Reason::MigrationNotFound, message));
            }
            self.refuse_orphan(&reference).await?;
            // Nothing was begun here, and nothing will be.
            let tombstone = Tombstone {
                up_to: reference.attempt,
                reason: "never ran".to_owned(),
            };
            let nothing = self.new_record(&fence, reference, Part::Nothing);
            let settled = Decision::Settled(verdict);
            page.create(Record {
                tombstone: Some(tombstone),
                decision: settled,
                ..nothing
            })
            .await?;
            return Ok(());
        };
        concerns(&record, &reference, Side::Source)?;
        if by == By::Word {
            drop(page);
            return self.adopt_verdict(&fence, reference, verdict).await;
        }
        if verdict == Verdict::Ran && record.decision == Decision::Open && never_left(&record) {
            let message = "this host has not handed the guest over, so it cannot have run elsewhere: its copy stays";
            return Err(Failure::new(Reason::VerdictConflict, message).at_host(self.host.clone()));
        }
        let carried_out = matches!(record.decision, Decision::Settled(_)) || record.closed.is_some();
        if matches!(record.part, Part::Nothing) && verdict == Verdict::NeverRan && !carried_out {
            self.refuse_orphan(&reference).await?;
        }
        self.decide_and_settle_source(&mut page, verdict).await
    }

    /// Without a record of the source nobody knows which copy stands still here, and for whom: it is not resumed, and
    /// not said to be given back.
    async fn refuse_orphan(&self, reference: &Reference) -> Result<(), Failure> {
        let found = self.hypervisor.guest(reference.guest).await.map_err(errors::unsure)?;
        let by_migration =
            |guest: &GuestFacts| guest.state.is_post_copy() || guest.state == GuestState::PausedMigrating;
        let Some(guest) = found.filter(by_migration) else {
            return Ok(());
        };
        tracing::error!(
            migration_id = %reference.migration,
            "the guest is {:?} here and this host's journal knows nothing of it: it stays so until somebody decides",
            guest.state
        );
        let message = format!(
            "the guest is {:?} at the source, whose journal of this migration is lost: it is not resumed",
            guest.state
        );
        let remedy = "make sure that it runs nowhere else and that its disks were not used since, then `virsh resume` \
                      it at the source; the migration goes on by itself";
        Err(Failure::new(Reason::NoVerdict, message)
            .with_remedy(remedy)
            .at_host(self.host.clone()))
    }

    /// Journal, then act. Refused, as no evidence of anything, while Perform goes on.
    pub(super) async fn decide_and_settle_source(
        self: &Arc<Self>,
        page: &mut OpenPage,
        verdict: Verdict,
    ) -> Result<(), Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let step = if verdict == Verdict::Ran && self.is_decided_in_vain(&record).await? {
            Step::Write(Decision::Decided(verdict))
        } else {
            record.decision.decide(verdict)?
        };
        if matches!(record.decision, Decision::Settled(_)) || record.closed.is_some() {
            return Ok(());
        }
        if verdict == Verdict::Ran && record.source().is_none() {
            return Err(Failure::new(
                Reason::VerdictConflict,
                "this host never sent the guest: it removes no copy",
            ));
        }
        let job = self.outgoing_job(record.migration);
        if let Some(job) = &job
            && job.course().step == TransferStep::Performing
        {
            return Err(Failure::new(Reason::DeadlineExceeded, "Perform has not ended yet"));
        }
        // Before anything is stopped: what follows the guest is carried on.
        if verdict == Verdict::NeverRan {
            self.refuse_in_post_copy(&record).await?;
        }
        if let Some(job) = &job {
            job.claimed.cancel();
            job.give_up.cancel();
        }
        if let Step::Write(decision) = step {
            let up_to = record.attempt;
            page.change(|record| {
                record.decision = decision;
                // What is decided is not handed over afterwards.
                if !record.is_tombstoned(up_to) {
                    record.tombstone = Some(Tombstone {
                        up_to,
                        reason: "settled".to_owned(),
                    });
                }
            })
            .await?;
        }
        match verdict {
            Verdict::NeverRan => self.give_guest_back(page, job.as_ref()).await,
            Verdict::Ran => self.remove_source_copy(page, job.as_ref(), &Cookie::default()).await,
        }
    }

    /// It was decided that the guest is this host's own, and it could not be run: its copy stands as it was handed
    /// over. Only an operator's word brings that about, and only the proof of the destination takes it back.
    async fn is_decided_in_vain(&self, record: &Record) -> Result<bool, Failure> {
        let handed_over =
            |part: &SourcePart| part.state == SourceState::HandedOver && !part.ran_on && part.offline.is_none();
        if record.decision != Decision::Decided(Verdict::NeverRan) || !record.source().is_some_and(handed_over) {
            return Ok(false);
        }
        let still = |guest: &GuestFacts| matches!(guest.state, GuestState::Paused | GuestState::PausedMigrating);
        Ok(matches!(self.look(record).await?, Seen::Ours(guest) if still(&guest)))
    }

    async fn give_guest_back(&self, page: &mut OpenPage, job: Option<&Arc<OutgoingJob>>) -> Result<(), Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let Some(part) = record.source() else {
            page.change(|record| record.decision = Decision::Settled(Verdict::NeverRan))
                .await?;
            return Ok(());
        };
        if let Some(leaving) = &part.offline {
            return self.give_back_offline(page, &record, part, leaving, job).await;
        }
        if let Some(job) = job {
            if let Some(handle) = job.handle() {
                // After a failed Perform libvirt has ended the job by itself and refuses this: what counts is below.
                if let Err(error) = job.calls.call(span::LIBVIRT_CONFIRM, handle.confirm_cancelled()).await {
                    tracing::debug!(%error, "the cancelled migration needed no confirmation");
                }
            }
            job.let_go();
        }
        let ended = match self.look(&record).await? {
            // A later migration has its own word about when this life runs.
            Seen::Ours(_) if self.has_later(&record) => false,
            Seen::Ours(guest) => {
                self.run_as_before(&record, part, &guest).await?;
                if job.is_some() {
                    self.keep_paused(&record, part).await?;
                }
                false
            }
            Seen::ShutOff(_) if self.starts_again(&record, part) => {
                self.hypervisor.start(record.guest).await.map_err(errors::unsure)?;
                tracing::info!(migration_id = %record.migration, "the guest is started again after its host's reboot");
                false
            }
            // An earlier try of this has started it, or its user has.
            Seen::Another(_) if self.starts_again(&record, part) => false,
            Seen::Unknown | Seen::ShutOff(_) | Seen::Another(_) => true,
        };
        self.restore_autostart(&record, part).await?;
        self.sockets.remove(record.migration).await?;
        let calls = job.map(|job| job.calls.all());
        page.change(|record| {
            record.decision = Decision::Settled(Verdict::NeverRan);
            record.guest_ended |= ended;
            record.calls = calls.unwrap_or_else(|| std::mem::take(&mut record.calls));
        })
        .await?;
        Ok(())
    }

    /// Only where libvirt would have started it at the host's reboot, had this migration not cleared its autostart.
    fn starts_again(&self, record: &Record, part: &SourcePart) -> bool {
        let rebooted = record.boot_id != self.boot_id;
        rebooted && part.flags.persistent && part.autostart_before && !record.guest_ended && !self.has_later(record)
    }

    /// Running again only if it ran before; a fault that happened meanwhile is not run over.
    async fn run_as_before(&self, record: &Record, part: &SourcePart, guest: &GuestFacts) -> Result<(), Failure> {
        let held = match guest.state {
            GuestState::Paused | GuestState::PausedMigrating => true,
            GuestState::RunningPostCopy
            | GuestState::RunningPostCopyFailed
            | GuestState::PausedPostCopy
            | GuestState::PausedPostCopyFailed => return Err(Forbidden::PostCopy.into()),
            GuestState::Running
            | GuestState::PausedFault
            | GuestState::ShuttingDown
            | GuestState::Crashed
            | GuestState::ShutOff => false,
        };
        // One that this agent stopped was running too, whoever had started it.
        if held && (part.ran() || part.suspended_by_agent) {
            let resume = self.hypervisor.resume(record.guest);
            resume.await.map_err(errors::unsure)?;
            tracing::info!(migration_id = %record.migration, "the guest runs here again");
        }
        Ok(())
    }

    pub(super) async fn restore_autostart(&self, record: &Record, part: &SourcePart) -> Result<(), Failure> {
        if !part.autostart_before || self.has_later(record) {
            return Ok(());
        }
        match self.hypervisor.set_autostart(record.guest, true).await {
            Err(error) if error.class != ErrorClass::NoGuest => Err(errors::unsure(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Confirm(0), after a fresh Begin where the job was lost; then the definition, where it was left.
    pub(super) async fn remove_source_copy(
        self: &Arc<Self>,
        page: &mut OpenPage,
        job: Option<&Arc<OutgoingJob>>,
        cookie: &Cookie,
    ) -> Result<(), Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        if matches!(record.decision, Decision::Settled(_)) {
            return Ok(());
        }
        let Some(part) = record.source() else {
            return Err(Failure::internal("a record without a source has no copy to remove"));
        };
        if let Seen::Ours(guest) = self.look(&record).await? {
            self.note_definition(page, part, &guest).await?;
            let kept = job.cloned().unwrap_or_else(|| self.adopt(&record));
            self.confirm(&record, part, &kept, cookie).await?;
        }
        if let Some(job) = self.outgoing_job(record.migration) {
            if let Some(offline) = job.offline() {
                offline.release();
            }
            job.let_go();
        }
        self.forget_definition(&record, part).await?;
        if let Some(leaving) = &part.offline {
            self.put_sources_away(&record, leaving).await?;
        }
        self.sockets.remove(record.migration).await?;
        let calls = self.outgoing_job(record.migration).map(|job| job.calls.all());
        page.change(|record| {
            record.decision = Decision::Settled(Verdict::Ran);
            record.calls = calls.unwrap_or_else(|| std::mem::take(&mut record.calls));
        })
        .await?;
        Ok(())
    }

    async fn confirm(
        &self,
        record: &Record,
        part: &SourcePart,
        job: &OutgoingJob,
        cookie: &Cookie,
    ) -> Result<(), Failure> {
        if job.handle().is_none() {
            let (guest, flags) = (record.guest, part.flags.clone());
            if self.flow(record).await.is_none() {
                self.hold_lock(job, flags).await?;
            } else {
                // In post-copy libvirt has kept the job of an owner that has gone.
                let handle = self.hypervisor.take_up(BeginRequest { guest, flags }).await;
                job.hold(handle.map_err(errors::unsure)?);
            }
        }
        let Some(handle) = job.handle() else {
            return Err(Failure::internal("the job lock was given back by somebody else"));
        };
        let confirmed = job
            .calls
            .call(span::LIBVIRT_CONFIRM, handle.confirm_moved(cookie))
            .await;
        drop(handle);
        // What libvirt says of it matters less than whether the copy is there.
        match self.look(record).await? {
            Seen::Ours(guest) => {
                job.let_go();
                let said = confirmed.err().map_or_else(String::new, |error| format!(": {error}"));
                let message = format!("the source copy is still here ({:?}){said}", guest.state);
                Err(Failure::new(Reason::LibvirtUnavailable, message))
            }
            Seen::Unknown | Seen::ShutOff(_) | Seen::Another(_) => Ok(()),
        }
    }

    /// Only a definition that this migration left; never that of a guest that lives, or that came later.
    async fn forget_definition(&self, record: &Record, part: &SourcePart) -> Result<(), Failure> {
        let journaled = self.journal.read(record.migration);
        // A definition that somebody made here on the way has moved too.
        let made = journaled.is_some_and(|now| now.source().is_some_and(|part| part.inactive_xml.is_some()));
        if !(part.flags.persistent || made) || self.has_later(record) {
            return Ok(());
        }
        match self.look(record).await? {
            Seen::ShutOff(_) => self.hypervisor.undefine(record.guest).await.map_err(errors::unsure),
            Seen::Ours(_) | Seen::Another(_) | Seen::Unknown => Ok(()),
        }
    }
}

/// HandedOver is written before anybody may finish. In post-copy the switch comes first.
fn never_left(record: &Record) -> bool {
    record
        .source()
        .is_some_and(|part| part.state == SourceState::Sending && !part.flags.post_copy)
}
