//! Asks for what is needed to know which guest is meant: the hosts first, and the records where no host shows it.

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::{GuestId, HostId};
use drover_proto::v1::{GetHostRequest, MigrationState};

use crate::client::{Controller, request};
use crate::exit::Problem;
use crate::guests::{Known, Meant, choose};
use crate::hosts::explain;

/// Records that are looked at, of each kind.
const MOST: usize = 1000;

/// The guest that is meant, on `from` where it is given.
pub(crate) async fn guest(controller: &mut Controller, wanted: &str, from: Option<&HostId>) -> Result<Meant, Problem> {
    let mut known = Known {
        inventory: controller.list_guests("hosts/-").await?,
        ..Known::default()
    };
    let chosen = choose(&known, wanted, from.map(HostId::as_str));
    if chosen.as_ref().is_ok_and(|meant| !meant.hosts.is_empty()) {
        return chosen;
    }
    for state in [
        MigrationState::Running,
        MigrationState::AttentionRequired,
        MigrationState::Cancelling,
        MigrationState::Queued,
    ] {
        let filter = format!("state = {}", state.as_str_name());
        known
            .migrations
            .extend(controller.list_migrations(&filter, MOST).await?);
    }
    let chosen = choose(&known, wanted, from.map(HostId::as_str));
    match (chosen, from) {
        (Err(problem), Some(from)) => Err(of_host(controller, from).await.unwrap_or(problem)),
        (chosen, _) => chosen,
    }
}

/// The guest of a request that may be a repeated one: its guest may have moved, or ended, since. The controller finds
/// the migration by the id of the request.
pub(crate) async fn guest_of_request(
    controller: &mut Controller,
    wanted: &str,
    from: Option<&HostId>,
) -> Result<Meant, Problem> {
    let problem = match guest(controller, wanted, from).await {
        Err(problem) => problem,
        found => return found,
    };
    let mut known = Known {
        inventory: controller.list_guests("hosts/-").await?,
        ..Known::default()
    };
    if let Ok(meant) = choose(&known, wanted, None) {
        return Ok(meant);
    }
    let named = |name: &str| wanted.parse::<GuestId>().is_err() && name == wanted;
    let newest = controller.list_migrations("", MOST).await?;
    known.migrations = newest
        .into_iter()
        .filter(|one| named(&one.guest_name))
        .take(1)
        .collect();
    choose(&known, wanted, None).map_err(|_| problem)
}

/// What is wrong with the host that was named, if there is none.
pub(crate) async fn of_host(controller: &mut Controller, host: &HostId) -> Option<Problem> {
    let name = host.resource_name();
    let status = controller
        .hosts
        .get_host(request(GetHostRequest { name }))
        .await
        .err()?;
    if Failure::from_status(&status).reason != Reason::HostNotFound {
        return None;
    }
    Some(explain(controller, status, host).await)
}
