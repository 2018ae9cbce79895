//! The controller, as seen from here: one channel, deadlines, pages put together.

use std::time::Duration;

use drover_proto::channel::channel;
use drover_proto::identity::Identity;
use drover_proto::tls::Tls;
use drover_proto::v1::host_service_client::HostServiceClient;
use drover_proto::v1::migration_service_client::MigrationServiceClient;
use drover_proto::v1::{
    GetMigrationRequest, Guest, Host, ListGuestsRequest, ListHostsRequest, ListMigrationsRequest, Migration,
};
use drover_proto::{MAX_DECODING_MESSAGE_BYTES, ids::MigrationId};
use tonic::Request;
use tonic::transport::Channel;

use crate::config::Settings;
use crate::exit::{Exit, Problem};
use crate::trouble::of_files;

/// Limit of one call; watches have none.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

const PAGE_SIZE: usize = 200;

#[derive(Clone, Debug)]
pub(crate) struct Controller {
    pub(crate) migrations: MigrationServiceClient<Channel>,
    pub(crate) hosts: HostServiceClient<Channel>,
}

/// Guests, and the hosts that did not answer.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) guests: Vec<Guest>,
    /// `hosts/{id}`.
    pub(crate) unreachable_hosts: Vec<String>,
}

impl Inventory {
    /// Whether the host of this id did not answer.
    pub(crate) fn is_silent(&self, host: &str) -> bool {
        let mut names = self.unreachable_hosts.iter();
        names.any(|name| name.strip_prefix("hosts/") == Some(host))
    }
}

impl Controller {
    /// Reads the certificates; connects at the first call.
    pub(crate) fn new(settings: Settings) -> Result<Self, Problem> {
        let files = settings.files.clone();
        let tls = Tls::load_with(settings.files, settings.identities).map_err(|error| of_files(error, &files))?;
        let channel = channel(&tls, &settings.controller, Identity::Controller)?;
        Ok(Self {
            migrations: MigrationServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_DECODING_MESSAGE_BYTES),
            hosts: HostServiceClient::new(channel).max_decoding_message_size(MAX_DECODING_MESSAGE_BYTES),
        })
    }

    pub(crate) async fn migration(&mut self, id: MigrationId) -> Result<Migration, Problem> {
        let answer = self
            .migrations
            .get_migration(request(GetMigrationRequest {
                name: id.resource_name(),
            }))
            .await;
        Ok(answer?.into_inner())
    }

    pub(crate) async fn list_hosts(&mut self) -> Result<Vec<Host>, Problem> {
        let (mut hosts, mut page_token) = (Vec::new(), String::new());
        loop {
            let page = ListHostsRequest {
                page_size: PAGE_SIZE as i32,
                page_token,
            };
            let page = self.hosts.list_hosts(request(page)).await?.into_inner();
            hosts.extend(page.hosts);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(hosts);
            }
        }
    }

    /// `parent` is `hosts/{id}`, or `hosts/-` for all.
    pub(crate) async fn list_guests(&mut self, parent: &str) -> Result<Inventory, Problem> {
        let (mut inventory, mut page_token) = (Inventory::default(), String::new());
        loop {
            let page = ListGuestsRequest {
                parent: parent.to_owned(),
                page_size: PAGE_SIZE as i32,
                page_token,
            };
            let page = self.hosts.list_guests(request(page)).await?.into_inner();
            inventory.guests.extend(page.guests);
            inventory.unreachable_hosts.extend(page.unreachable_hosts);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                inventory.unreachable_hosts.sort();
                inventory.unreachable_hosts.dedup();
                return Ok(inventory);
            }
        }
    }

    pub(crate) async fn list_migrations(&mut self, filter: &str, limit: usize) -> Result<Vec<Migration>, Problem> {
        let (mut migrations, mut page_token) = (Vec::new(), String::new());
        loop {
            let page_size = PAGE_SIZE.min(limit - migrations.len()) as i32;
            let page = ListMigrationsRequest {
                page_size,
                page_token,
                filter: filter.to_owned(),
            };
            let page = self.migrations.list_migrations(request(page)).await?.into_inner();
            migrations.extend(page.migrations);
            migrations.truncate(limit);
            page_token = page.next_page_token;
            if page_token.is_empty() || migrations.len() == limit {
                return Ok(migrations);
            }
        }
    }
}

/// A request with the usual deadline.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Reads an id as people type it: the UUID, or `migrations/{uuid}`.
pub(crate) fn migration_id(text: &str) -> Result<MigrationId, Problem> {
    MigrationId::from_resource_name(text)
        .map_err(|error| Problem::new(Exit::Usage, error.to_string()).with_next("see `drover migration list`"))
}
