//! CreateMigration: reads the request, finds the source, writes the record; the work begins elsewhere.

use std::collections::BTreeMap;

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::{Attempt, GuestId, HostId, MigrationId};
use drover_proto::overrides::Overrides;
use drover_proto::trace::Context;
use drover_proto::v1::{self, HostState, MigrationState};
use prost::Message;

use super::validation::Fields;
use super::{Api, errors};
use crate::inventory;
use crate::phases::{Source, Thorough, Wanted, absent, find, refuse_unmade};
use crate::policy::with_defaults;
use crate::saga::{Phase, Position};
use crate::store::record::Details;
use crate::store::{Created, Record, RequestKey, StoreError, now};
use crate::trace;

/// Where overrides are in the request.
const OVERRIDES: &str = "migration.destination_overrides";

/// Who asks, and in which trace.
pub(super) struct Asker {
    /// SPIFFE URI.
    pub(super) uri: String,
    pub(super) context: Context,
}

/// A request whose fields are good.
pub(super) struct Wish {
    guest: GuestId,
    source: Option<HostId>,
    destination: HostId,
    labels: BTreeMap<String, String>,
    /// With this controller's defaults.
    policy: v1::MigrationPolicy,
    overrides: Overrides,
    request: Option<RequestKey>,
}

impl Api {
    pub(super) async fn create(
        &self,
        request: v1::CreateMigrationRequest,
        asker: Asker,
    ) -> Result<v1::Migration, Failure> {
        let validate_only = request.validate_only;
        let wish = read(request, &self.policy)?;
        let asked = wish.request.clone();
        if let Some(made) = self.made_before(asked.as_ref()).await? {
            return self.shown(&made).await;
        }
        match self.make(wish, asker, validate_only).await {
            Ok(made) => Ok(made),
            // The same request came twice at once, and the other one was faster.
            Err(failure) => match self.made_before(asked.as_ref()).await {
                Ok(Some(made)) => self.shown(&made).await,
                Ok(None) | Err(_) => Err(failure),
            },
        }
    }

    async fn make(&self, wish: Wish, asker: Asker, validate_only: bool) -> Result<v1::Migration, Failure> {
        self.office.fence()?;
        let source = self.usable(&wish).await?;
        self.refuse_misfits(OVERRIDES, wish.guest, &source, &wish.overrides)
            .await?;
        if validate_only {
            return self.validated(wish, source).await;
        }
        let record = record(wish, source, asker);
        tracing::Span::current().record("drover.migration.id", tracing::field::display(record.id));
        let record = match self
            .ledger
            .store
            .create(record)
            .await
            .map_err(|error| self.store_failed(error))?
        {
            Created::New(record) => {
                let (id, guest, by) = (record.id, record.guest, &record.requested_by);
                let (source, destination) = (&record.source, &record.destination);
                trace::tell(&record, || {
                    tracing::info!(migration_id = %id, %guest, %source, %destination, by, "created");
                });
                self.executor.take_up(record.id);
                record
            }
            Created::Same(record) => record,
        };
        self.shown(&record).await
    }

    /// The migration that the same request made: found before anything else is asked, because the guest may have
    /// moved since.
    async fn made_before(&self, asked: Option<&RequestKey>) -> Result<Option<Record>, Failure> {
        let Some(asked) = asked else { return Ok(None) };
        let made = self.ledger.store.by_request(asked.id).await.map_err(errors::store)?;
        match made {
            Some(made) if !is_same(asked, &made) => Err(errors::store(StoreError::RequestReused(made.id))),
            made => Ok(made),
        }
    }

    async fn unfinished_of(&self, guest: GuestId) -> Result<Option<MigrationId>, Failure> {
        self.ledger.store.unfinished_of(guest).await.map_err(errors::store)
    }

    /// Both hosts are known and not out of use. Gives the source.
    async fn usable(&self, wish: &Wish) -> Result<HostId, Failure> {
        // A guest on its way is on two hosts, and may be silent: that is not what stands in the way.
        if let Some(other) = self.unfinished_of(wish.guest).await? {
            return Err(errors::store(StoreError::GuestBusy(other)));
        }
        let destination = self.host(&wish.destination).await?;
        if destination.cordoned {
            let message = format!("{} is cordoned", destination.id);
            return Err(Failure::new(Reason::HostCordoned, message).at_host(destination.id));
        }
        self.heard_of(&wish.destination)?;
        let source = match &wish.source {
            Some(source) => self.host(source).await?.id,
            None => self.find_source(wish.guest, Some(&wish.destination)).await?,
        };
        if source == wish.destination {
            let why = "is the host on which the guest is";
            return Err(Failure::invalid("migration.destination_host", why));
        }
        self.heard_of(&source)?;
        Ok(source)
    }

    fn heard_of(&self, host: &HostId) -> Result<(), Failure> {
        match self.registry.state(host) {
            HostState::Up | HostState::Unspecified => Ok(()),
            HostState::Silent => {
                let message = format!("the agent of {host} is silent");
                Err(Failure::new(Reason::HostUnreachable, message).at_host(host.clone()))
            }
        }
    }

    /// The one host that has the guest; it must not be the only destination.
    pub(super) async fn find_source(&self, guest: GuestId, destination: Option<&HostId>) -> Result<HostId, Failure> {
        let hosts: Vec<HostId> = self.all_hosts().await?.into_iter().map(|host| host.id).collect();
        let found = inventory::find(&self.agents, &hosts, guest).await;
        let names = |hosts: &[HostId]| hosts.iter().map(HostId::as_str).collect::<Vec<_>>().join(", ");
        match found.on.as_slice() {
            [only] if Some(only) == destination => {
                let message = format!("the guest is on {only} already");
                Err(Failure::new(Reason::GuestExists, message).at_host(only.clone()))
            }
            [only] => Ok(only.clone()),
            [] if found.silent.is_empty() => Err(Failure::new(
                Reason::GuestNotFound,
                format!("no host has guest {guest}"),
            )
            .with_remedy("`drover guest list` shows all guests")),
            [] => {
                let message = format!(
                    "no host that answers has guest {guest}; {} did not answer",
                    names(&found.silent)
                );
                Err(Failure::new(Reason::HostUnreachable, message).with_remedy("name the source host"))
            }
            several => {
                let message = format!("guest {guest} is on several hosts: {}", names(several));
                Err(Failure::new(Reason::GuestAmbiguous, message).with_remedy("name the source host"))
            }
        }
    }

    /// Refuses overrides that do not fit the guest, where its source can say so now; else Validate finds out.
    pub(super) async fn refuse_misfits(
        &self,
        prefix: &str,
        guest: GuestId,
        source: &HostId,
        overrides: &Overrides,
    ) -> Result<(), Failure> {
        if overrides.is_empty() {
            return Ok(());
        }
        let Ok(Some(found)) = find(guest, overrides, &self.agents.of(source).await?).await else {
            return Ok(());
        };
        let mut fields = Fields::default();
        for problem in found.override_problems {
            fields.bad(&format!("{prefix}.{}", problem.field), problem.problem);
        }
        fields.check()
    }

    /// What a migration would be refused for, and nothing is created.
    async fn validated(&self, wish: Wish, source: HostId) -> Result<v1::Migration, Failure> {
        let (from, to) = (self.agents.of(&source).await?, self.agents.of(&wish.destination).await?);
        let wanted = Wanted::new(&wish.overrides, Some(&wish.policy));
        let (guest_name, examined) = match Source::look(wish.guest, wanted, &from).await? {
            None => (String::new(), absent(wish.guest, &from)),
            Some(found) => {
                let only = found.estimated(vec![to], &self.estimates, Thorough::Looks).await.pop();
                let only = only.unwrap_or_else(|| Err(Failure::internal("no destination was asked")));
                (found.guest.name, only?)
            }
        };
        Ok(v1::Migration {
            guest_uuid: wish.guest.to_string(),
            guest_name,
            source_host: source.resource_name(),
            destination_host: wish.destination.resource_name(),
            destination_overrides: message(&wish.overrides),
            policy: Some(wish.policy),
            labels: wish.labels.into_iter().collect(),
            checks: examined.checks,
            disks: examined.disks,
            offline_plan: examined.offline_plan,
            estimate: examined.estimate,
            connections: examined.connections,
            compression: examined.compression,
            error: examined.refusal.map(|refusal| v1::MigrationError {
                reason: refusal.reason.name().to_owned(),
                message: refusal.message,
                remedy: refusal.remedy.unwrap_or_default(),
                host: refusal.host.map(|host| host.resource_name()).unwrap_or_default(),
                phase: v1::MigrationPhase::Validate.into(),
            }),
            ..v1::Migration::default()
        })
    }
}

pub(super) fn read(request: v1::CreateMigrationRequest, defaults: &v1::MigrationPolicy) -> Result<Wish, Failure> {
    let Some(asked) = request.migration else {
        return Err(Failure::invalid("migration", "is required"));
    };
    let mut fields = Fields::default();
    let guest = fields.required("migration.guest_uuid", &asked.guest_uuid, str::parse::<GuestId>);
    let source = fields.optional("migration.source_host", &asked.source_host, HostId::from_resource_name);
    let destination = fields.required(
        "migration.destination_host",
        &asked.destination_host,
        HostId::from_resource_name,
    );
    if source.is_some() && source == destination {
        fields.bad("migration.destination_host", "must be another host than the source");
    }
    fields.labels(&asked.labels);
    if let Some(policy) = &asked.policy {
        fields.policy("migration.policy", policy, defaults);
    }
    let overrides = fields.overrides(OVERRIDES, asked.destination_overrides.as_ref());
    let request_id = fields.request_id(&request.request_id);
    fields.check()?;
    refuse_unmade(asked.policy.as_ref())?;
    let (Some(guest), Some(destination)) = (guest, destination) else {
        return Err(Failure::internal("a field that was checked is not there"));
    };
    let labels: BTreeMap<_, _> = asked.labels.into_iter().collect();
    let request = request_id.map(|id| RequestKey {
        id,
        content: content(
            (guest, source.as_ref(), &destination),
            &labels,
            asked.policy.as_ref(),
            &overrides,
        ),
    });
    Ok(Wish {
        guest,
        source,
        destination,
        labels,
        overrides,
        policy: with_defaults(asked.policy.as_ref(), defaults),
        request,
    })
}

/// Overrides as they go into a record: none is unset.
fn message(overrides: &Overrides) -> Option<v1::DestinationOverrides> {
    (!overrides.is_empty()).then(|| overrides.message())
}

/// All that is asked for, spelled in one way.
fn content(
    (guest, source, destination): (GuestId, Option<&HostId>, &HostId),
    labels: &BTreeMap<String, String>,
    policy: Option<&v1::MigrationPolicy>,
    overrides: &Overrides,
) -> Vec<u8> {
    let words = (
        guest.to_string(),
        source.map(HostId::as_str),
        destination.as_str(),
        labels,
    );
    let policy = policy.map(Message::encode_to_vec);
    // Strings, maps of strings and bytes are always JSON.
    let written = match message(overrides) {
        // As it was spelled before there were overrides: a request is repeated across an update.
        None => serde_json::to_vec(&(words, policy)),
        Some(overrides) => serde_json::to_vec(&(words, policy, overrides.encode_to_vec())),
    };
    written.unwrap_or_default()
}

/// Whether a request is the one that made this migration: also where only one of them named the source, and it was this.
fn is_same(asked: &RequestKey, made: &Record) -> bool {
    let Some(first) = &made.request else { return false };
    let both = (
        with_source(&asked.content, &made.source),
        with_source(&first.content, &made.source),
    );
    first == asked || matches!(both, (Some(asked), Some(first)) if asked == first)
}

/// A content in which the source is named; none where it is not understood.
fn with_source(content: &[u8], source: &HostId) -> Option<serde_json::Value> {
    let mut content: serde_json::Value = serde_json::from_slice(content).ok()?;
    let named = content.get_mut(0)?.get_mut(1)?;
    if named.is_null() {
        *named = source.as_str().into();
    }
    Some(content)
}

fn record(wish: Wish, source: HostId, asker: Asker) -> Record {
    let time = now();
    Record {
        id: MigrationId::generate(),
        generation: 0,
        request: wish.request,
        guest: wish.guest,
        guest_name: String::new(),
        source,
        destination: wish.destination,
        labels: wish.labels,
        requested_by: asker.uri,
        position: Position::At(Phase::Validate),
        phase: Phase::Validate,
        state: MigrationState::Queued,
        attempt: Attempt(1),
        unknowns: 0,
        cancel_requested: None,
        too_late: false,
        guest_host: None,
        incarnation: None,
        prepared: None,
        resolution: None,
        trace: trace::begin(&asker.context),
        created: time,
        started: None,
        transfer_started: None,
        ended: None,
        updated: time,
        details: Details {
            destination_overrides: message(&wish.overrides),
            policy: Some(wish.policy),
            ..Details::default()
        },
    }
}
