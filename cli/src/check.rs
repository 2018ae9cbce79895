//! `drover check`: asks whether a guest could move, to one host, several or all, and shows why not.

use std::time::Duration;

use drover_proto::ids::HostId;
use drover_proto::v1::{CheckMigrationRequest, CheckMigrationResponse, EstimateView};
use tonic::Request;

use crate::args::{Check, Output};
use crate::client::Controller;
use crate::exit::{Exit, Problem};
use crate::guests::choose;
use crate::render::{checks, lists::host_of};
use crate::{json, out};

/// The controller asks many hosts, some of which may not answer: it needs longer than for other questions.
const CHECK_TIMEOUT: Duration = Duration::from_secs(300);

pub(crate) async fn run(mut controller: Controller, command: Check, output: Output) -> Result<Exit, Problem> {
    let host =
        |text: &str| HostId::from_resource_name(text).map_err(|error| Problem::new(Exit::Usage, error.to_string()));
    let destinations = command
        .to
        .iter()
        .map(|text| host(text))
        .collect::<Result<Vec<_>, _>>()?;
    let source = command.from.as_deref().map(host).transpose()?;

    let inventory = controller.list_guests("hosts/-").await?;
    let guest = choose(&inventory, &command.guest, source.as_ref().map(HostId::as_str))?;
    let mut request = Request::new(CheckMigrationRequest {
        guest_uuid: guest.uuid.clone(),
        source_host: format!("hosts/{}", host_of(guest)),
        policy: command.way.message(),
        destination_hosts: destinations.iter().map(HostId::resource_name).collect(),
        destination_overrides: command.overrides.message(),
        estimate_view: view(command.no_estimate).into(),
    });
    request.set_timeout(CHECK_TIMEOUT);
    let answer = controller.migrations.check_migration(request).await?.into_inner();
    match output {
        Output::Table => {
            let headline = checks::Headline {
                guest: &guest.display_name,
                source: host_of(guest),
                estimates: answer.estimate_view(),
            };
            // The only host of several is as good as one that was asked for.
            let every = command.verbose || answer.destinations.len() == 1;
            out::result(&checks::all(headline, &answer.destinations, every))?;
        }
        Output::Json => out::json(&json::of("drover.v1.CheckMigrationResponse", &answer)?)?,
    }
    Ok(exit(&answer))
}

fn view(no_estimate: bool) -> EstimateView {
    if no_estimate {
        EstimateView::None
    } else {
        EstimateView::Unspecified
    }
}

fn exit(answer: &CheckMigrationResponse) -> Exit {
    if answer.destinations.iter().any(|destination| destination.acceptable) {
        Exit::Done
    } else {
        Exit::Refused
    }
}
