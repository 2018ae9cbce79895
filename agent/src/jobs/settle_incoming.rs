//! Destination: the verdict is journaled, then carried out.
//!
//! - NeverRan: what waits is let go, the definition and the images that this migration made are removed, the sockets
//!   too.
//! - Ran: the guest stays; its definition and its autostart are put right. One that its host would have started after
//!   a reboot, had its autostart come along with it, is started.
//!
//! What was carried out once is never done again: the guest may have left since.

use std::sync::Arc;

use drover_proto::failure::{Failure, Reason};

use super::fence::{Fence, Reference, Side, concerns};
use super::prepare::of_this_guest;
use super::resolve::By;
use super::{Jobs, Seen, errors};
use crate::hypervisor::{ErrorClass, GuestFacts};
use crate::journal::{
    Decision, DefinitionNews, DestinationPart, DestinationState, Forbidden, OpenPage, Part, Record, Step, Tombstone,
    Verdict,
};

/// Somebody changed the definition at the source while the guest was on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The newer one; none: it was removed.
    pub inactive_xml: Option<String>,
}

impl Jobs {
    /// The controller's verdict.
    pub async fn settle_incoming(
        self: &Arc<Self>,
        fence: Fence,
        reference: Reference,
        verdict: Verdict,
        by: By,
        news: Option<News>,
    ) -> Result<(), Failure> {
        let mut page = self.obey_and_lock(&fence, reference.migration).await?;
        let Some(record) = page.record() else {
            if verdict == Verdict::Ran {
                let message = "this host's journal knows nothing of this migration";
                return Err(Failure::new(Reason::MigrationNotFound, message));
            }
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
        concerns(&record, &reference, Side::Destination)?;
        if by == By::Word {
            drop(page);
            return self.adopt_verdict(&fence, reference, verdict).await;
        }
        let step = record.decision.decide(verdict)?;
        if matches!(record.decision, Decision::Settled(_)) || record.closed.is_some() {
            return Ok(());
        }
        if record.destination().is_some() {
            self.agree(&mut page, &reference, verdict).await?;
        } else if verdict == Verdict::Ran {
            return Err(Failure::new(
                Reason::VerdictConflict,
                "this host never waited for the guest",
            ));
        }
        if let Step::Write(decision) = step {
            page.change(|record| record.decision = decision).await?;
        }
        if let Some(news) = news.filter(|_| verdict == Verdict::Ran) {
            take_news(&mut page, news).await?;
        }
        match verdict {
            Verdict::NeverRan => self.discard(&mut page).await,
            Verdict::Ran => self.keep(&mut page).await,
        }
    }

    /// Brings the state to one that agrees with the verdict, where what is seen allows it; else refuses.
    pub(super) async fn agree(
        &self,
        page: &mut OpenPage,
        reference: &Reference,
        verdict: Verdict,
    ) -> Result<(), Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let Some(part) = record.destination() else {
            return Ok(());
        };
        match (part.state, verdict) {
            (DestinationState::Waiting, Verdict::NeverRan) => {
                self.revoke_waiting(page, reference, "never ran").await?;
            }
            // Whoever hands over again brings it to its end.
            (DestinationState::Finishing, Verdict::NeverRan) if part.offline.is_some() => {
                return Err(Forbidden::MayHaveRun.into());
            }
            (DestinationState::Finishing, Verdict::NeverRan) => match self.look(&record).await? {
                Seen::Unknown | Seen::ShutOff(_) => write_failed(page, part).await?,
                Seen::Ours(_) | Seen::Another(_) => return Err(Forbidden::MayHaveRun.into()),
            },
            (DestinationState::Finishing | DestinationState::Resuming, Verdict::Ran) => {
                match self.look(&record).await? {
                    Seen::Ours(guest) if guest.state.runs() && !guest.state.is_post_copy() => {
                        self.write_seen_running(page).await?;
                    }
                    // It was seen to run, which is why the verdict is Ran, and has ended since: nothing is left here
                    // that anybody could resume.
                    Seen::Another(_) | Seen::Unknown | Seen::ShutOff(_) if part.state == DestinationState::Resuming => {
                        self.write_seen_running(page).await?;
                    }
                    Seen::Ours(_) | Seen::Another(_) | Seen::Unknown | Seen::ShutOff(_) => {
                        return Err(Forbidden::TooEarly.into());
                    }
                }
            }
            (state, verdict) => state.agrees(verdict)?,
        }
        Ok(())
    }

    pub(super) async fn discard(&self, page: &mut OpenPage) -> Result<(), Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        self.forget_incoming(record.migration);
        if record.destination().is_some() {
            if let Seen::Ours(_) = self.look(&record).await? {
                self.await_absence(&record).await?;
            }
            // The guest was not known here when Prepare was asked for: a definition now is this migration's.
            if let Seen::ShutOff(_) = self.look(&record).await?
                && !self.has_later(&record)
                && defines_before(&record)
            {
                self.hypervisor.undefine(record.guest).await.map_err(errors::unsure)?;
            }
        }
        self.remove_images(&record).await?;
        if let Some(part) = record.destination() {
            self.remove_files(record.migration, part).await?;
        }
        self.sockets.remove(record.migration).await?;
        page.change(|record| record.decision = Decision::Settled(Verdict::NeverRan))
            .await?;
        Ok(())
    }

    pub(super) async fn keep(&self, page: &mut OpenPage) -> Result<(), Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let Some(part) = record.destination() else {
            return Err(Failure::internal("a record without a destination has no guest to keep"));
        };
        self.forget_incoming(record.migration);
        let starts = self.starts_here(&record, part);
        let (ended, found) = match self.look(&record).await? {
            Seen::Ours(guest) => (false, Some(guest)),
            // It came shut off; what its user has done with it since is not this migration's business.
            Seen::Another(guest) | Seen::ShutOff(guest) if part.offline.is_some() => (false, Some(guest)),
            // Another life after a reboot: an earlier try of this has started it, or its user has.
            Seen::Another(guest) | Seen::ShutOff(guest) => (!starts, Some(guest)),
            Seen::Unknown => (true, None),
        };
        // A guest that has left again by a later migration is not ours to define.
        if !self.has_later(&record) {
            self.put_definition_right(page, part, found.as_deref()).await?;
            if part.autostart_before && part.inactive_xml.is_some() && found.is_some() {
                self.autostart(&record).await?;
            }
        }
        self.sockets.remove(record.migration).await?;
        // Last of all: a repeat after something that failed would start it again, and its user may have shut it down.
        if starts && found.is_some_and(|guest| !guest.state.is_active()) {
            self.hypervisor.start(record.guest).await.map_err(errors::unsure)?;
            tracing::info!(migration_id = %record.migration, "the guest is started here");
        }
        page.change(|record| {
            record.decision = Decision::Settled(Verdict::Ran);
            record.guest_ended |= ended;
        })
        .await?;
        Ok(())
    }

    /// Where libvirt would have started it at this host's reboot, for its autostart is set last of all; and where it ran
    /// before it was shut down to move. Another one that came shut off is its user's to start.
    fn starts_here(&self, record: &Record, part: &DestinationPart) -> bool {
        let rebooted = record.boot_id != self.boot_id;
        let has_autostart = part.inactive_xml.is_some() && part.autostart_before;
        let starts = match &part.offline {
            Some(_) => part.state_before.runs(),
            None => rebooted && has_autostart,
        };
        starts && !record.guest_ended && !self.has_later(record)
    }

    /// A persistent guest keeps its definition, a transient one gets none.
    async fn put_definition_right(
        &self,
        page: &mut OpenPage,
        part: &DestinationPart,
        found: Option<&GuestFacts>,
    ) -> Result<(), Failure> {
        match (&part.inactive_xml, found) {
            (Some(xml), Some(_)) if part.definition == DefinitionNews::Changed => {
                match self.hypervisor.define(xml).await {
                    Err(error) if matches!(error.class, ErrorClass::Unfit | ErrorClass::UserMustAct) => {
                        tracing::error!(guest = part.guest_name, %error, "a definition that was changed while it moved is not taken here");
                        let news = DefinitionNews::NotTaken(error.to_string());
                        page.change(|record| {
                            if let Some(part) = record.destination_mut() {
                                part.definition = news;
                            }
                        })
                        .await?;
                        Ok(())
                    }
                    defined => defined.map_err(errors::unsure),
                }
            }
            (Some(xml), Some(guest)) if !guest.persistent => self.hypervisor.define(xml).await.map_err(errors::unsure),
            (None, Some(guest)) if guest.persistent => self.hypervisor.undefine(guest.id).await.map_err(errors::unsure),
            // It was defined before it ran: whoever removed it since meant it.
            (Some(_) | None, Some(_) | None) => Ok(()),
        }
    }

    async fn autostart(&self, record: &Record) -> Result<(), Failure> {
        match self.hypervisor.set_autostart(record.guest, true).await {
            Err(error) if error.class != ErrorClass::NoGuest => Err(errors::unsure(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Whether a definition that is here may be this migration's: of a guest that is shut off there is none before it was
/// told to finish, and somebody else may have made one.
fn defines_before(record: &Record) -> bool {
    record.destination().is_some_and(|part| match part.state {
        DestinationState::Waiting | DestinationState::Revoked => part.offline.is_none(),
        DestinationState::Finishing | DestinationState::Failed | DestinationState::Resuming | DestinationState::Ran => {
            true
        }
    })
}

/// The source's word about the definition, in the journal before it is acted upon.
async fn take_news(page: &mut OpenPage, news: News) -> Result<(), Failure> {
    let guest = page.record().map(|record| record.guest);
    // Another guest's would take that one's place here.
    let foreign = match (&news.inactive_xml, guest) {
        (Some(xml), Some(guest)) => of_this_guest("definition", xml, guest, None).err(),
        (None, _) | (_, None) => None,
    };
    page.change(|record| {
        if let Some(part) = record.destination_mut()
            && part.definition == DefinitionNews::AsSent
        {
            match foreign {
                Some(failure) => part.definition = DefinitionNews::NotTaken(failure.to_string()),
                None => {
                    part.definition = DefinitionNews::Changed;
                    part.inactive_xml = news.inactive_xml;
                }
            }
        }
    })
    .await?;
    Ok(())
}

async fn write_failed(page: &mut OpenPage, part: &DestinationPart) -> Result<(), Failure> {
    if let Step::Write(state) = part.state.fail()? {
        page.change(|record| {
            if let Some(part) = record.destination_mut() {
                part.state = state;
            }
        })
        .await?;
    }
    Ok(())
}
