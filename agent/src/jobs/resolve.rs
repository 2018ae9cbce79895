//! An operator's word that this host was fenced decides: the agent, back again, adopts it before it serves.
//!
//! ```text
//!                      guest belongs to the source       guest belongs to the destination
//!  this is the source  given back as it was              its copy is stopped and goes
//!  the destination     its copy is stopped and goes      it stays; definition and autostart are put right
//! ```
//!
//! The verdict is journaled before anything is done, together with whether a copy ran here: then the host was not
//! fenced, and the guest ran twice. Such a copy goes by Confirm(0), which touches no image, and its definition stays.

use std::sync::Arc;
use std::time::SystemTime;

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::MigrationId;

use super::fence::{Fence, Reference};
use super::{Jobs, Seen, errors};
use crate::hypervisor::{BeginRequest, Cookie, GuestState, MigrateFlags};
use crate::journal::{
    Adopted, Decision, DestinationState, Forbidden, OpenPage, Part, Record, Step, Tombstone, Verdict,
};

/// So many adopted resolutions are told in one registration.
const MOST_TOLD: usize = 64;

/// What a verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// What the hosts' journals and libvirts show.
    Evidence,
    /// An operator's word that a host is fenced.
    Word,
}

impl By {
    /// As in a command.
    pub fn from_fenced(fenced: bool) -> Self {
        if fenced { Self::Word } else { Self::Evidence }
    }
}

impl Jobs {
    /// From the controller's answer to a registration. Adopted, carried out and closed; a repeat does nothing.
    pub async fn resolve(
        self: &Arc<Self>,
        fence: Fence,
        migration: MigrationId,
        verdict: Verdict,
    ) -> Result<(), Failure> {
        let reference = {
            let page = self.obey_and_lock(&fence, migration).await?;
            let Some(record) = page.record().filter(|record| record.closed.is_none()) else {
                return Ok(());
            };
            Reference {
                migration,
                attempt: record.attempt,
                guest: record.guest,
            }
        };
        self.adopt_verdict(&fence, reference, verdict).await?;
        self.close_migration(fence, reference).await?;
        tracing::warn!(migration_id = %migration, ?verdict, "an operator's word was adopted: this host was fenced");
        Ok(())
    }

    /// The verdict counts whatever the journal says.
    pub(super) async fn adopt_verdict(
        self: &Arc<Self>,
        fence: &Fence,
        reference: Reference,
        verdict: Verdict,
    ) -> Result<(), Failure> {
        self.silence(fence, &reference, verdict).await?;
        let mut page = self.obey_and_lock(fence, reference.migration).await?;
        let Some(record) = page.record() else { return Ok(()) };
        if record.closed.is_some() || record.decision == Decision::Settled(verdict) {
            return Ok(());
        }
        match (&record.part, verdict) {
            (Part::Source(_), Verdict::Ran) => self.lose(&mut page, &record, verdict).await,
            (Part::Destination(part), Verdict::NeverRan) => {
                if let Ok(Step::Write(_)) = part.state.revoke() {
                    self.revoke_waiting(&mut page, &reference, "fenced").await?;
                }
                self.lose(&mut page, &record, verdict).await
            }
            (Part::Source(_) | Part::Nothing, Verdict::NeverRan) => {
                // What the source knows by itself of a guest that ran over there is more than a word.
                record.decision.decide(verdict)?;
                write_adopted(&mut page, verdict, false).await?;
                self.decide_and_settle_source(&mut page, verdict).await
            }
            (Part::Destination(part), Verdict::Ran) => {
                record.decision.decide(verdict)?;
                if part.offline.is_some() {
                    self.arrive_by_word(&mut page).await?;
                } else if !self.died_while_resuming(&record, part.state).await? {
                    self.agree(&mut page, &reference, verdict).await?;
                }
                write_adopted(&mut page, verdict, false).await?;
                self.keep(&mut page).await
            }
            (Part::Nothing, Verdict::Ran) => Err(Forbidden::NeverRan.into()),
        }
    }

    /// The one case that the journal cannot decide.
    async fn died_while_resuming(&self, record: &Record, state: DestinationState) -> Result<bool, Failure> {
        let absent = matches!(self.look(record).await?, Seen::Unknown | Seen::ShutOff(_));
        Ok(absent && matches!(state, DestinationState::Finishing | DestinationState::Resuming))
    }

    /// The copy of this host is the one that goes.
    async fn lose(self: &Arc<Self>, page: &mut OpenPage, record: &Record, verdict: Verdict) -> Result<(), Failure> {
        let stopped = self.adopt_and_stop(page, record, verdict).await?;
        self.remove_loser(page, verdict, stopped).await
    }

    /// A source that lost goes on sending, or handing over, no more.
    async fn silence(self: &Arc<Self>, fence: &Fence, reference: &Reference, verdict: Verdict) -> Result<(), Failure> {
        let mut page = self.obey_and_lock(fence, reference.migration).await?;
        let Some(record) = page.record() else { return Ok(()) };
        if record.source().is_none() || record.closed.is_some() || record.decision == Decision::Settled(verdict) {
            return Ok(());
        }
        self.refuse_in_post_copy(&record).await?;
        super::abort::bury(&mut page, reference, "fenced".to_owned()).await?;
        drop(page);
        self.await_silence(reference).await
    }

    /// Journals the verdict, then stops the copy that lost. Gives whether one ran.
    async fn adopt_and_stop(&self, page: &mut OpenPage, record: &Record, verdict: Verdict) -> Result<bool, Failure> {
        let seen = self.look(record).await?;
        let runs = match &seen {
            Seen::Ours(guest) if guest.state.is_post_copy() => return Err(Forbidden::PostCopy.into()),
            // A guest that runs at its source because nothing was handed over counts as well: it ran twice.
            Seen::Ours(guest) => guest.state.runs(),
            // One that moved shut off has no life that the journal could know.
            Seen::Another(guest) if record.is_offline() && !self.has_later(record) => guest.state.runs(),
            Seen::Unknown | Seen::ShutOff(_) | Seen::Another(_) => false,
        };
        write_adopted(page, verdict, runs).await?;
        if runs {
            tracing::error!(
                migration_id = %record.migration,
                guest = %record.guest,
                "the guest runs here although an operator said that this host is fenced: it ran twice; it is stopped"
            );
            self.hypervisor.suspend(record.guest).await.map_err(errors::unsure)?;
        }
        // After a crash in between, the journal remembers.
        Ok(page
            .record()
            .and_then(|record| record.adopted.clone())
            .is_some_and(|adopted| adopted.copy_ran))
    }

    /// The copy goes. What was stopped keeps its definition, for the person who has to look at it.
    async fn remove_loser(
        self: &Arc<Self>,
        page: &mut OpenPage,
        verdict: Verdict,
        stopped: bool,
    ) -> Result<(), Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let job = self.outgoing_job(record.migration);
        match (&record.part, stopped) {
            (Part::Source(_), false) => return self.remove_source_copy(page, job.as_ref(), &Cookie::default()).await,
            (Part::Source(_), true) => {
                if let Some(job) = job {
                    job.let_go();
                }
                self.confirm_away(&record).await?;
            }
            (Part::Destination(_), stopped) => {
                self.forget_incoming(record.migration);
                self.confirm_away(&record).await?;
                if !stopped {
                    return self.discard(page).await;
                }
            }
            (Part::Nothing, _) => {}
        }
        self.sockets.remove(record.migration).await?;
        page.change(|record| record.decision = Decision::Settled(verdict))
            .await?;
        Ok(())
    }

    /// A fresh Begin and Confirm(0): the one way by which a copy goes without its images being touched.
    async fn confirm_away(&self, record: &Record) -> Result<(), Failure> {
        let Seen::Ours(guest) = self.look(record).await? else {
            return Ok(());
        };
        // What waits for memory that will not come is let go with its connection.
        if guest.state == GuestState::PausedMigrating && record.destination().is_some() {
            return Ok(());
        }
        let flags = match &record.part {
            Part::Source(part) => part.flags.clone(),
            Part::Destination(part) => part.flags.clone(),
            Part::Nothing => return Ok(()),
        };
        let request = BeginRequest {
            guest: record.guest,
            flags: MigrateFlags {
                persistent: false,
                ..flags
            },
        };
        let handle = self.hypervisor.begin(request).await.map_err(errors::unsure)?;
        let confirmed = handle.confirm_moved(&Cookie::default()).await;
        drop(handle);
        match self.look(record).await? {
            Seen::Ours(guest) => {
                let said = confirmed.err().map_or_else(String::new, |error| format!(": {error}"));
                let message = format!("the copy that lost is still here ({:?}){said}", guest.state);
                Err(Failure::new(Reason::LibvirtUnavailable, message))
            }
            Seen::Unknown | Seen::ShutOff(_) | Seen::Another(_) => Ok(()),
        }
    }

    /// Whether something waits here for a word that only the controller can have.
    pub fn has_unfinished(&self) -> bool {
        let open = |record: &Arc<Record>| record.closed.is_none() && !matches!(record.part, Part::Nothing);
        self.journal.records().iter().any(open)
    }

    /// What was adopted here, newest first.
    pub fn adopted(&self) -> Vec<(MigrationId, Adopted)> {
        let mut all: Vec<_> = self
            .journal
            .records()
            .into_iter()
            .filter_map(|record| Some((record.migration, record.adopted.clone()?)))
            .collect();
        all.sort_by_key(|(_, adopted)| std::cmp::Reverse(adopted.at));
        all.truncate(MOST_TOLD);
        all
    }
}

/// The decision, over whatever was decided before, and that nothing of this try begins any more.
async fn write_adopted(page: &mut OpenPage, verdict: Verdict, copy_ran: bool) -> Result<(), Failure> {
    page.change(|record| {
        if record.decision.verdict() != Some(verdict) {
            record.decision = Decision::Decided(verdict);
        }
        let up_to = record.attempt;
        if !record.is_tombstoned(up_to) {
            record.tombstone = Some(Tombstone {
                up_to,
                reason: "fenced".to_owned(),
            });
        }
        let ran_before = record.adopted.as_ref().is_some_and(|adopted| adopted.copy_ran);
        record.adopted = Some(Adopted {
            at: SystemTime::now(),
            copy_ran: copy_ran || ran_before,
        });
    })
    .await?;
    Ok(())
}
