//! Validate: both hosts can do it, and nothing was changed (but a probe file, removed).

use drover_proto::agent::v1::{
    CheckIncomingRequest, GetAgentStatusRequest, GuestFacts, Incarnation, InspectGuestRequest, InspectHostRequest,
    ListGuestsRequest,
};
use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::GuestId;
use drover_proto::overrides::Overrides;
use drover_proto::v1::Check;

use super::checks::{self, Facts};
use super::{Learned, Report, Work, overrides, storage};
use crate::agents::Agent;
use crate::saga::Guest;

/// What was found of one guest and one destination.
pub struct Examined {
    pub checks: Vec<Check>,
    pub guest_name: String,
    pub incarnation: Option<Incarnation>,
    /// Bytes.
    pub memory: u64,
    /// Why it would not be accepted.
    pub refusal: Option<Failure>,
}

/// Makes every check. An error is a missing answer, or an agent that refuses to answer.
pub async fn examine(
    guest: GuestId,
    overrides: &Overrides,
    source: &Agent,
    destination: &Agent,
) -> Result<Examined, Failure> {
    match find(guest, overrides, source).await? {
        Some(found) => examine_found(found, overrides, source, destination).await,
        None => Ok(absent(guest, source)),
    }
}

async fn examine_found(
    found: GuestFacts,
    overrides: &Overrides,
    source: &Agent,
    destination: &Agent,
) -> Result<Examined, Failure> {
    // What the destination must have is what the guest will be there.
    let facts = ask(overrides::at_destination(&found, overrides), source, destination).await?;
    let mut all = vec![checks::passed(
        "guest-present",
        format!("{} on {}", facts.guest.name, source.host),
    )];
    all.extend(overrides::check(
        &found,
        overrides,
        &facts.source_agent,
        &facts.destination_agent,
    ));
    all.extend(checks::compare(&facts));
    // A guest that cannot move anyway needs no probe files.
    if checks::acceptable(&all) {
        all.push(storage::check(&found, &facts.guest.disks, source, destination).await?);
    } else {
        all.push(checks::not_checked("storage-shared", "other checks failed before"));
    }
    Ok(Examined {
        refusal: checks::refusal(&all, &destination.host),
        checks: all,
        guest_name: facts.guest.name,
        incarnation: facts.guest.incarnation,
        memory: facts.guest.memory_bytes,
    })
}

fn absent(guest: GuestId, source: &Agent) -> Examined {
    let found = format!("{} has no guest {guest}", source.host);
    let checks = vec![checks::failed(
        "guest-present",
        found,
        "`drover guest list` shows where it is",
    )];
    Examined {
        refusal: checks::refusal(&checks, &source.host),
        checks,
        guest_name: String::new(),
        incarnation: None,
        memory: 0,
    }
}

/// The guest at its source, and what overrides make of it; none where libvirt does not know it.
pub async fn find(guest: GuestId, overrides: &Overrides, source: &Agent) -> Result<Option<GuestFacts>, Failure> {
    let request = InspectGuestRequest {
        guest_uuid: guest.to_string(),
        destination_overrides: (!overrides.is_empty()).then(|| overrides.message()),
    };
    match source.inspect_guest(request).await {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.reason == Reason::GuestNotFound && failure.is_evidence() => Ok(None),
        Err(failure) => Err(failure),
    }
}

async fn ask(guest: GuestFacts, source: &Agent, destination: &Agent) -> Result<Facts, Failure> {
    let (source_agent, destination_agent, source_facts, destination_facts, guests) = tokio::try_join!(
        source.get_agent_status(GetAgentStatusRequest { fence: None }),
        destination.get_agent_status(GetAgentStatusRequest { fence: None }),
        source.inspect_host(InspectHostRequest {}),
        destination.inspect_host(InspectHostRequest {}),
        destination.list_guests(ListGuestsRequest {}),
    )?;
    let question = CheckIncomingRequest {
        guest: Some(guest.clone()),
        source: Some(source_facts.clone()),
    };
    let incoming = destination.check_incoming(question).await?;
    Ok(Facts {
        guest,
        source: source_facts,
        destination: destination_facts,
        destination_guests: guests.guests,
        source_agent,
        destination_agent,
        incoming: incoming.checks,
    })
}

pub(super) async fn run(work: &Work) -> Report {
    let mut learned = Learned::default();
    match look(work, &mut learned).await {
        Ok(examined) => report(work, examined),
        Err(failure) => Report::of(&failure, learned),
    }
}

/// What the source says counts also where the destination says nothing.
async fn look(work: &Work, learned: &mut Learned) -> Result<Examined, Failure> {
    let source = work.source().await?;
    let overrides = overrides::of(&work.record)?;
    let Some(found) = find(work.record.guest, &overrides, &source).await? else {
        return Ok(absent(work.record.guest, &source));
    };
    *learned = Learned {
        guest_name: Some(found.name.clone()),
        ..Learned::default()
    }
    .with_guest_at(&work.record.source);
    examine_found(found, &overrides, &source, &work.destination().await?).await
}

fn report(work: &Work, examined: Examined) -> Report {
    let learned = Learned {
        guest_name: Some(examined.guest_name).filter(|name| !name.is_empty()),
        checks: Some(examined.checks),
        incarnation: examined.incarnation,
        ..Learned::default()
    };
    match examined.refusal {
        Some(failure) if failure.reason == Reason::GuestNotFound => Report::refused(&failure, learned),
        Some(failure) => Report::refused(&failure, learned.with_guest_at(&work.record.source)),
        None => Report::done(
            Guest::Lives,
            "every check passed",
            learned.with_guest_at(&work.record.source),
        ),
    }
}
