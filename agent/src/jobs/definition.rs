//! Source: what its users did to the guest on its way, and libvirt would let fall: a definition that was changed or
//! removed, a pause.
//!
//! The definition is looked at just before the copy goes, and with it what is defined here. What is new is journaled
//! first; the controller carries it to the destination in Finalize. If the process dies before that write, copy and
//! definition are still here, and the repeat looks again.

use drover_proto::failure::Failure;

use super::begin::for_destination;
use super::{Jobs, Seen, errors};
use crate::guest_xml::overrides::Definition;
use crate::hypervisor::{GuestFacts, GuestState};
use crate::journal::{Decision, DefinitionNews, OpenPage, Record, SourcePart, SourceState};

/// What is defined here now, beside what was sent.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    AsSent,
    /// None: removed.
    Newer(Option<String>),
    /// It does not go with the overrides: why.
    Unfit(String),
}

fn compare(part: &SourcePart, guest: &GuestFacts) -> Found {
    let here = guest.inactive_xml.as_deref().filter(|_| guest.persistent);
    let Some(here) = here else {
        return if part.inactive_xml.is_some() {
            Found::Newer(None)
        } else {
            Found::AsSent
        };
    };
    let copied = part.flags.copied.as_ref();
    match for_destination(here, copied, &part.overrides, Definition::Persistent) {
        Ok(here) if part.inactive_xml.as_ref() == Some(&here) => Found::AsSent,
        Ok(here) => Found::Newer(Some(here)),
        Err(failure) => Found::Unfit(failure.message),
    }
}

impl Jobs {
    /// Before the copy of a guest that has moved is removed.
    pub(super) async fn note_definition(
        &self,
        page: &mut OpenPage,
        part: &SourcePart,
        guest: &GuestFacts,
    ) -> Result<(), Failure> {
        let problem = match compare(part, guest) {
            Found::AsSent => return Ok(()),
            Found::Unfit(problem) => problem,
            Found::Newer(newer) => {
                tracing::warn!(
                    guest = part.guest_name,
                    removed = newer.is_none(),
                    "its definition was changed while it moved"
                );
                let written =
                    page.change(|record| note(record, DefinitionNews::Changed, |part| part.inactive_xml = newer));
                match written.await {
                    Ok(_) => return Ok(()),
                    // What is larger than the journal's room must not keep the copy here.
                    Err(error) => error.to_string(),
                }
            }
        };
        tracing::error!(
            guest = part.guest_name,
            "a definition that was changed while it moved is lost: {problem}"
        );
        page.change(|record| note(record, DefinitionNews::NotTaken(problem), |_| {}))
            .await?;
        Ok(())
    }

    /// The guest as it is now; none where it is gone, which others look after.
    pub(super) async fn guest_now(&self, record: &Record) -> Result<Option<Box<GuestFacts>>, Failure> {
        Ok(match self.look(record).await? {
            Seen::Ours(guest) => Some(guest),
            Seen::Another(_) | Seen::ShutOff(_) | Seen::Unknown => None,
        })
    }

    /// A transfer has failed, and somebody had paused the guest while it was under way.
    pub(super) async fn note_pause(&self, record: &Record) {
        let noted = async {
            let mut page = self.lock(record.migration).await?;
            page.change(|record| {
                let open = record.decision == Decision::Open;
                if let Some(part) = record.source_mut()
                    && open
                    && part.state == SourceState::Sending
                    && part.tells_pauses()
                {
                    part.runs = Some(false);
                }
            })
            .await?;
            Ok::<(), Failure>(())
        };
        if let Err(error) = noted.await {
            tracing::error!(migration_id = %record.migration, %error, "that its user paused the guest could not be noted");
        }
    }

    /// libvirt lets a guest run again whose migration is called off, also one that its user has paused since Begin.
    /// Only right after that: later its user may have wished for it.
    pub(super) async fn keep_paused(&self, record: &Record, part: &SourcePart) -> Result<(), Failure> {
        let paused_since = part.state_before.runs() && !part.ran() && !part.suspended_by_agent;
        if !paused_since {
            return Ok(());
        }
        if let Seen::Ours(guest) = self.look(record).await?
            && guest.state == GuestState::Running
        {
            self.hypervisor.suspend(record.guest).await.map_err(errors::unsure)?;
            tracing::info!(migration_id = %record.migration, "the guest stands still again, as its user left it");
        }
        Ok(())
    }
}

fn note(record: &mut Record, news: DefinitionNews, change: impl FnOnce(&mut SourcePart)) {
    if let Some(part) = record.source_mut() {
        part.definition = news;
        change(part);
    }
}
