//! `drover host list` and `drover guest list`.

use drover_proto::ids::HostId;
use drover_proto::v1::{ListGuestsResponse, ListHostsResponse};

use crate::args::Output;
use crate::client::Controller;
use crate::exit::{Exit, Problem};
use crate::render::{lists, words};
use crate::{json, out};

pub(crate) async fn hosts(mut controller: Controller, output: Output) -> Result<Exit, Problem> {
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
