//! `drover check`: asks whether a guest could move, to one host, several or all, and shows why not.

use std::time::Duration;

use drover_proto::ids::HostId;
use drover_proto::v1::{CheckMigrationRequest, CheckMigrationResponse, EstimateView};
use tonic::Request;

use crate::args::{Check, Output};
use crate::client::Controller;
use crate::exit::{Exit, Problem};
use crate::guests::under_way;
use crate::hosts::host_id;
use crate::render::checks;
use crate::{json, lookup, out};

/// The controller asks many hosts, some of which may not answer: it needs longer than for other questions.
const CHECK_TIMEOUT: Duration = Duration::from_secs(300);

pub(crate) async fn run(mut controller: Controller, command: Check, output: Output) -> Result<Exit, Problem> {
    let destinations = command
        .to
        .iter()
        .map(|text| host_id(text))
        .collect::<Result<Vec<_>, _>>()?;
    let source = command.from.as_deref().map(host_id).transpose()?;

    // A host that is not there is a mistake of whoever asks, not a check that failed.
    for host in &destinations {
        if let Some(problem) = lookup::of_host(&mut controller, host).await {
            return Err(problem);
        }
    }
    let meant = lookup::guest(&mut controller, &command.guest, source.as_ref()).await?;
    if source.is_none() && !meant.migration.is_empty() {
        return Err(under_way(&meant));
    }
    let source = source.map(|host| host.as_str().to_owned());
    let source = source.or_else(|| match &meant.hosts[..] {
        [only] => Some(only.clone()),
        [] | [_, _, ..] => None,
    });
    let mut request = Request::new(CheckMigrationRequest {
        guest_uuid: meant.uuid.clone(),
        // Where it is not known, the controller finds it or says why not.
        source_host: source.as_ref().map(|host| format!("hosts/{host}")).unwrap_or_default(),
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
                guest: &meant.name,
                source: source.as_deref().unwrap_or("?"),
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
