//! `drover guest list` and `drover guest owner`.

use drover_proto::ids::{GuestId, HostId};
use drover_proto::v1::{GetGuestOwnerRequest, GetGuestOwnerResponse, Guest, ListGuestsResponse};

use crate::args::Output;
use crate::client::{Controller, request};
use crate::exit::{Exit, Problem};
use crate::render::{lists, words};
use crate::{json, lookup, out};

pub(crate) async fn guests(mut controller: Controller, host: Option<String>, output: Output) -> Result<Exit, Problem> {
    let parent = match host {
        Some(host) => HostId::from_resource_name(&host)
            .map_err(|error| Problem::new(Exit::Usage, error.to_string()))?
            .resource_name(),
        None => "hosts/-".to_owned(),
    };
    let inventory = controller.list_guests(&parent).await?;
    match output {
        Output::Table => {
            out::result(&lists::guests(&inventory.guests))?;
            for host in &inventory.unreachable_hosts {
                out::note(&format!(
                    "{} does not answer: its guests are missing here",
                    words::id(host)
                ));
            }
        }
        Output::Json => {
            let all = ListGuestsResponse {
                guests: inventory.guests,
                next_page_token: String::new(),
                unreachable_hosts: inventory.unreachable_hosts,
            };
            out::json(&json::of("drover.v1.ListGuestsResponse", &all)?)?;
        }
    }
    Ok(Exit::Done)
}

pub(crate) async fn owner(mut controller: Controller, guest: &str, output: Output) -> Result<Exit, Problem> {
    // A UUID is asked for as it is: a guest that no host shows may still belong to one.
    let found = match guest.parse::<GuestId>() {
        Ok(id) => Ok(id.to_string()),
        Err(_) => lookup::guest(&mut controller, guest, None)
            .await
            .map(|meant| meant.uuid),
    };
    let (owner, problem) = match found {
        Ok(guest_uuid) => (asked(&mut controller, guest_uuid).await?, None),
        // A host that does not answer may have it.
        Err(problem) if problem.exit == Exit::Attention => (nobody_says(&problem), Some(problem)),
        Err(problem) => return Err(problem),
    };
    match output {
        Output::Table => out::result(&owner_words(guest, &owner))?,
        Output::Json => out::json(&json::of("drover.v1.GetGuestOwnerResponse", &owner)?)?,
    }
    if let Some(next) = problem.and_then(|problem| problem.next) {
        out::note(&format!("  next: {next}"));
    }
    match (owner.owner_host.as_str(), owner.migration.as_str()) {
        ("", "") => nowhere(&mut controller, guest).await,
        ("", _) => Ok(Exit::Attention),
        (_, _) => Ok(Exit::Done),
    }
}

async fn asked(controller: &mut Controller, guest_uuid: String) -> Result<GetGuestOwnerResponse, Problem> {
    let asked = request(GetGuestOwnerRequest { guest_uuid });
    Ok(controller.hosts.get_guest_owner(asked).await?.into_inner())
}

/// The answer where not even the guest of this name is known.
fn nobody_says(problem: &Problem) -> GetGuestOwnerResponse {
    GetGuestOwnerResponse {
        undecided_reason: problem.message.clone(),
        ..GetGuestOwnerResponse::default()
    }
}

/// Whether a guest that belongs to no host is absent, or may be where nobody answers.
async fn nowhere(controller: &mut Controller, guest: &str) -> Result<Exit, Problem> {
    let inventory = controller.list_guests("hosts/-").await?;
    let is_it = |one: &Guest| one.display_name == guest || one.uuid.eq_ignore_ascii_case(guest);
    let absent = inventory.unreachable_hosts.is_empty() && !inventory.guests.iter().any(is_it);
    Ok(if absent { Exit::NotFound } else { Exit::Attention })
}

fn owner_words(guest: &str, owner: &GetGuestOwnerResponse) -> String {
    let guest = words::one_line(guest);
    let mut line = match owner.owner_host.as_str() {
        "" => format!(
            "nobody knows where {guest} belongs: {}",
            words::one_line(&owner.undecided_reason)
        ),
        host => format!("{guest} belongs to {}", words::id(host)),
    };
    if !owner.migration.is_empty() {
        line.push_str(&format!(" (migration {} is unfinished)", words::id(&owner.migration)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undecided_owner_says_why() {
        let mut owner = GetGuestOwnerResponse {
            owner_host: "hosts/host-a".to_owned(),
            ..GetGuestOwnerResponse::default()
        };
        assert_eq!(owner_words("web", &owner), "web belongs to host-a");
        owner.migration = "migrations/m-1".to_owned();
        assert_eq!(
            owner_words("web", &owner),
            "web belongs to host-a (migration m-1 is unfinished)"
        );
        owner.owner_host.clear();
        owner.undecided_reason = "host-b does not answer".to_owned();
        assert_eq!(
            owner_words("web", &owner),
            "nobody knows where web belongs: host-b does not answer (migration m-1 is unfinished)"
        );
    }
}
