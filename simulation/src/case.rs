//! One world from its beginning to its rest: a guest is moved, what the plan says goes wrong, and everything comes
//! back. What a supervisor and an operator would do is done here: cancel when the plan says so, retry what is stuck.

use std::sync::Arc;
use std::time::{Duration, Instant};

use drover_agent::sim::Call;
use drover_controller::saga::{Phase, Position};
use drover_controller::state::WaitReason;
use drover_controller::store::{Record, Store};
use drover_proto::channel::channel;
use drover_proto::identity::Identity;
use drover_proto::ids::MigrationId;
use drover_proto::v1::migration_service_client::MigrationServiceClient;
use drover_proto::v1::{CancelMigrationRequest, CreateMigrationRequest, Migration, RetryMigrationRequest};
use tonic::transport::Channel;
use uuid::Uuid;

use super::invariants::{self, Rest};
use super::pki::Pki;
use super::plan::{Event, Plan, Scenario};
use super::point::{Point, Site};
use super::wish;
use super::world::World;

/// Longer than any case takes in which everything comes back, also on a busy machine. Shorter than the 90 seconds after
/// which the controller gives up a call: one that is never answered is not to go unnoticed.
pub(super) const PATIENCE: Duration = Duration::from_secs(85);

/// Between two looks.
const TICK: Duration = Duration::from_millis(10);

/// A migration that only a person can decide waits; so long it is watched whether it does not change its mind.
const WAITS_FOR_A_PERSON: Duration = Duration::from_millis(1500);

/// Between two orders of an operator who was not heard.
const ASKED_AGAIN: Duration = Duration::from_millis(200);

/// How a case went.
#[derive(Debug)]
pub struct Outcome {
    pub plan: Plan,
    /// What of the plan did happen.
    pub fired: Vec<Event>,
    /// Every point that was passed.
    pub points: Vec<Point>,
    pub rest: Option<Rest>,
    /// What was not as it must be. Empty is right.
    pub broken: Vec<String>,
    /// The longest time in which the guest ran nowhere.
    pub standstill: Duration,
    pub took: Duration,
}

/// Runs it.
pub async fn run(plan: Plan) -> Outcome {
    let began = Instant::now();
    let world = match World::new(plan.scenario).await {
        Ok(world) => world,
        Err(error) => {
            return Outcome {
                plan,
                fired: Vec::new(),
                points: Vec::new(),
                rest: None,
                broken: vec![format!("the world did not begin: {error:#}")],
                standstill: Duration::ZERO,
                took: began.elapsed(),
            };
        }
    };
    let mut events = plan.scenario.events();
    events.extend(plan.events.iter().cloned());
    let (rest, broken) = match registered(&world).await {
        Ok(()) => {
            world.director.arm(events);
            let rest = to_rest(&world, plan.scenario).await;
            let broken = invariants::check(&world, &plan, &rest).await;
            (Some(rest), broken)
        }
        Err(error) => (None, vec![error.to_string()]),
    };
    let (fired, points) = (world.director.fired(), world.director.seen());
    let standstill = world.sim.standstills(world.guest_id()).into_iter().max();
    world.end().await;
    Outcome {
        plan,
        fired,
        points,
        rest,
        broken,
        standstill: standstill.unwrap_or_default(),
        took: began.elapsed(),
    }
}

/// The controller has heard of both hosts.
async fn registered(world: &World) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    for site in Site::BOTH {
        while world.store.host(&site.host().parse()?).await?.is_none() {
            anyhow::ensure!(Instant::now() < until, "{} did not register", site.host());
            tokio::time::sleep(TICK).await;
        }
    }
    Ok(())
}

/// Asks for the migration, and waits until it has come to its rest.
async fn to_rest(world: &Arc<World>, scenario: Scenario) -> Rest {
    let until = Instant::now() + PATIENCE;
    let Some(id) = create(world, scenario, until).await else {
        return Rest::NotCreated;
    };
    let mut adjusted = scenario != Scenario::Adjust;
    let mut asked_for_a_person: Option<Instant> = None;
    let mut retries = 0;
    loop {
        // The memory store does not fail.
        let Ok(Some(record)) = world.store.migration(id).await else {
            return Rest::NotCreated;
        };
        if record.position.is_final() {
            world.director.all_is_back().await;
            return Rest::Ended { record, retries };
        }
        if let Position::Stuck(_) = record.position {
            world.director.all_is_back().await;
            retries += u32::from(retry(world, id).await);
        }
        if !adjusted && is_on_its_way(world, &record) {
            adjusted = adjust(world, id).await;
        }
        let needs_a_person = waits_for(&record, WaitReason::ResolveNeeded);
        if !needs_a_person {
            asked_for_a_person = None;
        } else if *world.director.open_faults().borrow() == 0
            && asked_for_a_person.get_or_insert_with(Instant::now).elapsed() > WAITS_FOR_A_PERSON
        {
            return Rest::NeedsPerson { record };
        }
        if Instant::now() > until {
            return Rest::Restless { record };
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Memory was sent once, and is sent again.
fn is_on_its_way(world: &World, record: &Record) -> bool {
    record.position == Position::At(Phase::Transfer) && world.director.has_seen(Call::Sending.name())
}

fn waits_for(record: &Record, reason: WaitReason) -> bool {
    let waiting = record.details.waiting_for.as_ref();
    waiting.is_some_and(|waiting| waiting.reason == reason.name())
}

/// Asked again, with the same request id, until it is answered.
async fn create(world: &Arc<World>, scenario: Scenario, until: Instant) -> Option<MigrationId> {
    let request = CreateMigrationRequest {
        migration: Some(Migration {
            guest_uuid: world.guest_id().to_string(),
            destination_host: format!("hosts/{}", Site::Destination.host()),
            policy: wish::policy(scenario),
            destination_overrides: scenario.copies().then(|| wish::elsewhere(world)),
            ..Migration::default()
        }),
        request_id: Uuid::new_v4().to_string(),
        ..CreateMigrationRequest::default()
    };
    while Instant::now() < until {
        if let Some(mut client) = client(world) {
            match client.create_migration(request.clone()).await {
                Ok(created) => return MigrationId::from_resource_name(&created.into_inner().name).ok(),
                Err(status) => tracing::info!("asked again: {status}"),
            }
        }
        tokio::time::sleep(TICK).await;
    }
    None
}

/// A user's way to the controller, while it is up.
fn client(world: &World) -> Option<MigrationServiceClient<Channel>> {
    let address = world.controller_address()?.to_string();
    let tls = Pki::shared().tls("user/operator").ok()?;
    let channel = channel(&tls, &address, Identity::Controller).ok()?;
    Some(MigrationServiceClient::new(channel))
}

/// A user wants it undone.
pub async fn cancel(world: &World) {
    let Ok(Some(id)) = world.store.unfinished_of(world.guest_id()).await else {
        return;
    };
    if let Some(mut client) = client(world) {
        let name = id.resource_name();
        let etag = String::new();
        // A refusal says that it was too late.
        let _ = client.cancel_migration(CancelMigrationRequest { name, etag }).await;
    }
}

/// An operator lets it have more. Gives whether that was heard; else it is said again.
async fn adjust(world: &World, id: MigrationId) -> bool {
    let Some(mut client) = client(world) else { return false };
    match client.adjust_migration(wish::more(id)).await {
        Ok(_) => true,
        Err(status) => {
            tracing::info!("not adjusted: {status}");
            tokio::time::sleep(ASKED_AGAIN).await;
            false
        }
    }
}

/// An operator has looked at a stuck migration, and lets it try again. Gives whether that was heard.
async fn retry(world: &World, id: MigrationId) -> bool {
    let Some(mut client) = client(world) else {
        return false;
    };
    let name = id.resource_name();
    let etag = String::new();
    let heard = client.retry_migration(RetryMigrationRequest { name, etag }).await;
    if let Err(status) = &heard {
        tracing::info!("not tried again: {status}");
    }
    heard.is_ok()
}
