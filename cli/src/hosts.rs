//! `drover host …`: looks at hosts, and takes them out of use.

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::HostId;
use drover_proto::v1::{CordonHostRequest, GetHostRequest, Host, ListHostsResponse, UncordonHostRequest};
use tonic::Status;

use crate::args::{Host as Command, Output};
use crate::client::{Controller, request};
use crate::exit::{Exit, Problem};
use crate::guests::near;
use crate::render::{lists, words};
use crate::{json, out};

pub(crate) async fn run(mut controller: Controller, command: Command, output: Output) -> Result<Exit, Problem> {
    let (wanted, answer) = match command {
        Command::List => return list(controller, output).await,
        Command::Get { host } => {
            let (id, name) = named(&host)?;
            (id, controller.hosts.get_host(request(GetHostRequest { name })).await)
        }
        Command::Cordon { host } => {
            let (id, name) = named(&host)?;
            let cordon = request(CordonHostRequest { name });
            (id, controller.hosts.cordon_host(cordon).await)
        }
        Command::Uncordon { host } => {
            let (id, name) = named(&host)?;
            let uncordon = request(UncordonHostRequest { name });
            (id, controller.hosts.uncordon_host(uncordon).await)
        }
    };
    match answer {
        Ok(host) => show(host.get_ref(), output).map(|()| Exit::Done),
        Err(status) => Err(explain(&mut controller, status, &wanted).await),
    }
}

/// A host as people type it: its id, or `hosts/{id}`.
pub(crate) fn host_id(text: &str) -> Result<HostId, Problem> {
    HostId::from_resource_name(text)
        .map_err(|error| Problem::new(Exit::Usage, error.to_string()).with_next("see `drover host list`"))
}

fn named(text: &str) -> Result<(HostId, String), Problem> {
    let id = host_id(text)?;
    let name = id.resource_name();
    Ok((id, name))
}

async fn list(mut controller: Controller, output: Output) -> Result<Exit, Problem> {
    let hosts = controller.list_hosts().await?;
    match output {
        Output::Table => out::result(&lists::hosts(&hosts))?,
        Output::Json => {
            let all = ListHostsResponse {
                hosts,
                next_page_token: String::new(),
            };
            out::json(&json::of("drover.v1.ListHostsResponse", &all)?)?;
        }
    }
    Ok(Exit::Done)
}

fn show(host: &Host, output: Output) -> Result<(), Problem> {
    match output {
        Output::Table => out::result(&lists::host(host)),
        Output::Json => out::json(&json::of("drover.v1.Host", host)?),
    }
}

/// Adds what the controller does not say: which host may have been meant.
pub(crate) async fn explain(controller: &mut Controller, status: Status, wanted: &HostId) -> Problem {
    let reason = Failure::from_status(&status).reason;
    let problem = Problem::from(status);
    if reason != Reason::HostNotFound {
        return problem;
    }
    let hosts = controller.list_hosts().await.unwrap_or_default();
    let near = near(wanted.as_str(), hosts.iter().map(|host| words::id(&host.name)));
    if near.is_empty() {
        problem
    } else {
        problem.with_next(format!("did you mean {near}?"))
    }
}
