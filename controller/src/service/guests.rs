//! Guests, as the agents see them now. Hosts that do not answer are named, not left out silently.

use std::collections::HashMap;

use drover_proto::agent::v1::{GuestFacts, LibvirtState};
use drover_proto::failure::Failure;
use drover_proto::ids::{GuestId, HostId};
use drover_proto::v1::{GetGuestOwnerResponse, Guest, GuestState, ListGuestsRequest, ListGuestsResponse};

use super::validation::host_name;
use super::{Api, errors, page};
use crate::inventory;
use crate::phases;
use crate::saga::{Phase, Position};
use crate::store::Record;
use crate::view;

/// Guests in a page where the caller does not say.
const PAGE: u32 = 100;

impl Api {
    pub(super) async fn guests(&self, request: &ListGuestsRequest) -> Result<ListGuestsResponse, Failure> {
        let size = page::size(request.page_size, PAGE)? as usize;
        let of = format!("guests {}", request.parent);
        let after = page::after(&of, &request.page_token)?.unwrap_or_default();
        let hosts = if request.parent == "hosts/-" {
            self.all_hosts().await?.into_iter().map(|host| host.id).collect()
        } else {
            vec![self.host(&host_name("parent", &request.parent)?).await?.id]
        };
        let migrations = self.unfinished_by_guest().await?;
        let mut guests = Vec::new();
        let mut unreachable_hosts = Vec::new();
        for (host, answer) in inventory::list(&self.agents, &hosts).await {
            match answer {
                Ok(facts) => guests.extend(facts.iter().map(|facts| shown(&host, facts, &migrations))),
                Err(_) => unreachable_hosts.push(host.resource_name()),
            }
        }
        guests.sort_by_key(key);
        guests.retain(|guest| key(guest) > after);
        let next_page_token = match guests.get(size.saturating_sub(1)) {
            Some(last) if guests.len() > size => page::token(&of, &key(last)),
            Some(_) | None => String::new(),
        };
        guests.truncate(size);
        Ok(ListGuestsResponse {
            guests,
            next_page_token,
            unreachable_hosts,
        })
    }

    async fn unfinished_by_guest(&self) -> Result<HashMap<String, String>, Failure> {
        let rows = self.ledger.store.unfinished().await.map_err(errors::store)?;
        Ok(rows
            .into_iter()
            .map(|row| (row.guest.to_string(), row.id.resource_name()))
            .collect())
    }

    pub(super) async fn owner(&self, guest: GuestId) -> Result<GetGuestOwnerResponse, Failure> {
        if let Some(id) = self.ledger.store.unfinished_of(guest).await.map_err(errors::store)? {
            let work = self.work(self.record(id).await?);
            let owner = match work.record.position {
                Position::At(Phase::Transfer | Phase::Abort) => {
                    phases::owner(&work).await.map(|side| work.record.host_of(side))
                }
                Position::At(Phase::Validate | Phase::Prepare | Phase::Verify | Phase::Finalize | Phase::Discard)
                | Position::Stuck(_)
                | Position::Ended(_) => view::guest_host(&work.record),
            };
            let record = &work.record;
            let undecided = match owner {
                Some(_) => String::new(),
                None => undecided(record),
            };
            return Ok(GetGuestOwnerResponse {
                owner_host: owner.map(HostId::resource_name).unwrap_or_default(),
                migration: id.resource_name(),
                undecided_reason: undecided,
            });
        }
        let hosts: Vec<HostId> = self.all_hosts().await?.into_iter().map(|host| host.id).collect();
        let found = inventory::find(&self.agents, &hosts, guest).await;
        let names = |hosts: &[HostId]| hosts.iter().map(HostId::as_str).collect::<Vec<_>>().join(", ");
        let (owner_host, undecided_reason) = match found.on.as_slice() {
            [only] => (only.resource_name(), String::new()),
            [] if found.silent.is_empty() => (String::new(), "no host has it".to_owned()),
            [] => (String::new(), format!("{} did not answer", names(&found.silent))),
            several => (String::new(), format!("several hosts have it: {}", names(several))),
        };
        Ok(GetGuestOwnerResponse {
            owner_host,
            migration: String::new(),
            undecided_reason,
        })
    }
}

/// Why nobody knows, and what would change that.
fn undecided(record: &Record) -> String {
    let Some(wait) = &record.details.waiting_for else {
        return "it is being found out".to_owned();
    };
    let host = HostId::from_resource_name(&wait.host).map_or_else(|_| String::new(), |host| format!(" {host}"));
    let reason = wait.reason.to_lowercase().replace('_', " ");
    format!("{reason}{host}: {}", wait.remedy)
}

/// Lists are by host and name; names are unique on a host.
fn key(guest: &Guest) -> String {
    let host = guest.name.split("/guests/").next().unwrap_or_default();
    format!("{host}\0{}\0{}", guest.display_name, guest.uuid)
}

fn shown(host: &HostId, facts: &GuestFacts, migrations: &HashMap<String, String>) -> Guest {
    Guest {
        name: format!("{}/guests/{}", host.resource_name(), facts.guest_uuid),
        uuid: facts.guest_uuid.clone(),
        display_name: facts.name.clone(),
        state: state(facts.state()).into(),
        memory_bytes: i64::try_from(facts.memory_bytes).unwrap_or(i64::MAX),
        vcpus: i32::try_from(facts.vcpus).unwrap_or(i32::MAX),
        persistent: facts.persistent,
        autostart: facts.autostart,
        migration: migrations.get(&facts.guest_uuid).cloned().unwrap_or_default(),
    }
}

fn state(state: LibvirtState) -> GuestState {
    match state {
        LibvirtState::Unspecified => GuestState::Unspecified,
        LibvirtState::Running | LibvirtState::ShuttingDown => GuestState::Running,
        LibvirtState::Paused | LibvirtState::PausedFault => GuestState::Paused,
        LibvirtState::PausedMigrating => GuestState::Migrating,
        LibvirtState::RunningPostCopy
        | LibvirtState::RunningPostCopyFailed
        | LibvirtState::PausedPostCopy
        | LibvirtState::PausedPostCopyFailed => GuestState::PostCopy,
        LibvirtState::Crashed => GuestState::Crashed,
        LibvirtState::ShutOff => GuestState::ShutOff,
    }
}
