//! After a start of the agent: what the journals say is compared with what libvirt shows.
//!
//! Promise: a copy may be stopped here, never started; but one that an agent stopped itself, for a transfer that never
//! handed it over, is given back.
//!
//! | journal | libvirt | then |
//! |---|---|---|
//! | source, Sending, stopped by the agent | anything | verdict NeverRan: given back |
//! | source, Sending | anything | the controller aborts |
//! | source, HandedOver, open | runs | suspended, and that is journaled |
//! | source, HandedOver, open | stands still | its job lock is taken again |
//! | source, HandedOver, open | post-copy | its pages are given again, over a new stream |
//! | source, HandedOver, open, shut off | anything | what was sent is held again |
//! | source, verdict written, not carried out | anything | the controller repeats it |
//! | destination, Waiting, Finishing | anything | the controller, or a repeated hand-over |
//! | destination, Waiting for files | anything | waits again, with the same ticket |
//! | destination, Resuming | runs, pre-copy | Ran is written |
//! | destination, Resuming | post-copy | its pages are waited for again |

use std::sync::Arc;
use std::time::Duration;

use drover_proto::failure::Failure;
use drover_proto::ids::MigrationId;
use drover_proto::trace::names::span;

use super::fence::Reference;
use super::outgoing::OutgoingJob;
use super::{Jobs, Seen, errors};
use crate::hypervisor::{BeginRequest, MigrateFlags};
use crate::journal::{Decision, DestinationState, OpenPage, Part, Record, SourceState};

/// What fails is tried again, first after this time, then less often.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Jobs {
    /// Before anything is served.
    pub async fn recover(self: &Arc<Self>) {
        let open: Vec<_> = self
            .journal
            .records()
            .into_iter()
            .filter(|record| record.closed.is_none())
            .collect();
        // No socket outlives the agent that served it.
        self.sockets.sweep(|_| false).await;
        for record in open {
            let state = record.state_name();
            tracing::info!(migration_id = %record.migration, state, "an unfinished migration was found");
            if let Err(error) = self.recover_one(record.migration).await {
                tracing::error!(migration_id = %record.migration, state, %error, "it could not be looked after yet");
                tokio::spawn(Arc::clone(self).recover_later(record.migration));
            }
        }
    }

    /// libvirtd may come later, or be busy: tried again until it works or somebody has decided.
    async fn recover_later(self: Arc<Self>, migration: MigrationId) {
        let mut pause = FIRST_PAUSE;
        while !self.is_stopping() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match self.recover_one(migration).await {
                Ok(()) => {
                    tracing::info!(migration_id = %migration, "it was looked after");
                    return;
                }
                Err(error) => tracing::debug!(migration_id = %migration, %error, "it could not be looked after yet"),
            }
        }
    }

    async fn recover_one(self: &Arc<Self>, migration: MigrationId) -> Result<(), Failure> {
        let mut page = self.lock(migration).await?;
        let Some(record) = page.record().filter(|record| record.closed.is_none()) else {
            return Ok(());
        };
        let record = &record;
        match &record.part {
            Part::Source(part) if part.state == SourceState::Sending && part.suspended_by_agent => {
                // Others may look after it meanwhile: what is done is judged anew.
                drop(page);
                let reference = Reference {
                    migration: record.migration,
                    attempt: record.attempt,
                    guest: record.guest,
                };
                let deadline = tokio::time::Instant::now() + self.limits.abort;
                self.await_lost_job(&reference, deadline).await?;
                self.give_back_paused(reference).await
            }
            Part::Source(part) if part.state == SourceState::HandedOver && record.verdict().is_none() => {
                self.hold_source(&mut page, record).await
            }
            Part::Destination(part) if part.state == DestinationState::Resuming => match self.look(record).await? {
                Seen::Ours(guest) if guest.state.runs() && !guest.state.is_post_copy() => {
                    self.write_seen_running(&mut page).await
                }
                Seen::Ours(guest) if guest.state.is_post_copy() => {
                    self.watch_pages(migration, None);
                    Ok(())
                }
                Seen::Ours(_) | Seen::Another(_) | Seen::Unknown | Seen::ShutOff(_) => Ok(()),
            },
            Part::Destination(part) if part.offline.is_some() && awaits_files(record, part.state) => {
                self.wait_for_files(&mut page).await.map(|_| ())
            }
            Part::Source(_) | Part::Destination(_) | Part::Nothing => Ok(()),
        }
    }

    /// A copy that was handed over must stand still until somebody decides, and nothing else may resume it.
    async fn hold_source(self: &Arc<Self>, page: &mut OpenPage, record: &Arc<Record>) -> Result<(), Failure> {
        if record.is_offline() {
            return self.hold_left_images(record).await;
        }
        let Seen::Ours(guest) = self.look(record).await? else {
            return Ok(());
        };
        if guest.state.is_post_copy() {
            // With the former agent its stream has gone.
            self.follow_anew(record);
            return Ok(());
        }
        self.suspend_if_running(page, record).await?;
        let Some(part) = record.source() else { return Ok(()) };
        // A command that came meanwhile may have taken it.
        if self
            .outgoing_job(record.migration)
            .is_some_and(|job| job.handle().is_some())
        {
            return Ok(());
        }
        self.hold_lock(&self.adopt(record), part.flags.clone()).await
    }

    /// libvirt's job lock, for a migration that this agent goes on with.
    pub(super) async fn hold_lock(&self, job: &OutgoingJob, flags: MigrateFlags) -> Result<(), Failure> {
        let guest = job.guest;
        let begin = self.hypervisor.begin(BeginRequest { guest, flags });
        let handle = job.calls.call(span::LIBVIRT_BEGIN, begin).await;
        job.hold(handle.map_err(errors::unsure)?);
        Ok(())
    }

    /// Journals that this agent does it, then suspends. The record must be handed over, without a verdict.
    pub(super) async fn suspend_if_running(&self, page: &mut OpenPage, record: &Record) -> Result<(), Failure> {
        let Seen::Ours(guest) = self.look(record).await? else {
            return Ok(());
        };
        if guest.state.runs() && !guest.state.is_post_copy() {
            tracing::error!(
                migration_id = %record.migration,
                "the guest runs here though it was handed over and nobody has decided: it is suspended"
            );
            page.change(|record| {
                if let Some(part) = record.source_mut() {
                    part.suspended_by_agent = true;
                    part.ran_on = true;
                }
            })
            .await?;
            self.hypervisor.suspend(record.guest).await.map_err(errors::unsure)?;
        }
        Ok(())
    }
}

/// The source's agent goes on with its copy by itself.
pub(super) fn awaits_files(record: &Record, state: DestinationState) -> bool {
    let undone = record.is_tombstoned(record.attempt);
    state == DestinationState::Waiting && record.decision == Decision::Open && !undone
}
