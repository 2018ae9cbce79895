//! Finalize: definition and autostart are right at the destination, and nothing is left over on either host.
//!
//! A guest that is not at its destination any more has ended there, or somebody has moved it back by hand meanwhile:
//! the source is asked again before anything is said of it.

use drover_proto::agent::v1::{
    CloseMigrationRequest, DefinitionNews, GuestFacts, LibvirtState, MigrationStatus, SettleIncomingRequest, Verdict,
};
use drover_proto::failure::Failure;

use super::{Learned, Report, Work, look};
use crate::agents::Agent;
use crate::saga::Guest;
use crate::seen;
use crate::verdict::Side;

pub(super) async fn run(work: &Work) -> Report {
    let look = look::both(work).await;
    let learned = look.learned().with_guest_at(&work.record.destination);
    let news = match &look.source {
        Ok(status) => status.journal.as_ref().and_then(|journal| journal.definition.clone()),
        // A fenced source takes what was changed there with it.
        Err(failure) if work.goes_without(Side::Source, failure) => None,
        Err(failure) => return Report::of(failure, learned),
    };
    match finalize(work, news.clone()).await {
        Ok(status) => {
            let mut learned = learned;
            learned.add(&status, &work.record.destination);
            let changed = told(news.as_ref(), &status);
            if seen::lives(&status) {
                let what = format!("the source has forgotten the guest{}{changed}", stillness(&status));
                Report::done(Guest::Lives, what, learned)
            } else {
                not_there(work, learned, &changed).await
            }
        }
        Err(failure) => Report::of(&failure, learned),
    }
}

/// It ran at the destination and is not there any more.
async fn not_there(work: &Work, learned: Learned, changed: &str) -> Report {
    let ended = format!("the guest ended at the destination{changed}");
    let (source, destination) = (&work.record.source, &work.record.destination);
    match look::at_source(work).await {
        Ok(status) if seen::lives(&status) && !status.same_incarnation => {
            let what = format!(
                "the guest ran at {destination}, and was moved back by hand since: it is at {source}; autostart does \
                 not come along with such a move"
            );
            Report::done(Guest::Lives, what, learned.with_guest_at(source))
        }
        Ok(_) => Report::done(Guest::Ended, ended, learned),
        // On a fenced source nothing runs.
        Err(failure) if work.goes_without(Side::Source, &failure) => Report::done(Guest::Ended, ended, learned),
        Err(failure) => Report::unknown(&failure, learned),
    }
}

/// That it does not run is no fault of the move.
fn stillness(status: &MigrationStatus) -> &'static str {
    if status.guest.as_ref().map(GuestFacts::state) == Some(LibvirtState::Paused) {
        "; it stands still there, as its user left it"
    } else {
        ""
    }
}

/// What its users have to know of a definition that was changed while the guest moved.
fn told(news: Option<&DefinitionNews>, status: &MigrationStatus) -> String {
    let Some(news) = news else { return String::new() };
    let taken = status.journal.as_ref().and_then(|journal| journal.definition.as_ref());
    let problem = [Some(news), taken]
        .into_iter()
        .flatten()
        .find(|news| !news.problem.is_empty());
    match problem {
        Some(DefinitionNews { problem, .. }) => {
            format!("; its definition was changed at the source on the way, and that change is lost: {problem}")
        }
        None if news.inactive_xml.is_empty() => {
            "; its definition was removed at the source on the way: it has none here either".to_owned()
        }
        None => "; its definition was changed at the source on the way: it is the newer one here".to_owned(),
    }
}

async fn finalize(work: &Work, definition: Option<DefinitionNews>) -> Result<MigrationStatus, Failure> {
    let (source, destination) = (work.source().await?, work.destination().await?);
    let request = SettleIncomingRequest {
        fence: destination.fence()?,
        migration: Some(work.reference()),
        verdict: Verdict::Ran.into(),
        fenced: work.is_fenced(Side::Source),
        definition,
    };
    let status = destination.settle_incoming(request).await?;
    // The source first: while its journal is open, its agent still guards against a second copy.
    match close(work, &source).await {
        Err(failure) if !work.goes_without(Side::Source, &failure) => return Err(failure),
        // A fenced source closes it when its agent is back.
        Ok(()) | Err(_) => {}
    }
    close(work, &destination).await?;
    Ok(status)
}

/// Closes a journal that has its verdict; a closed one stays closed.
pub(super) async fn close(work: &Work, agent: &Agent) -> Result<(), Failure> {
    let request = CloseMigrationRequest {
        fence: agent.fence()?,
        migration: Some(work.reference()),
    };
    agent.close_migration(request).await?;
    Ok(())
}
