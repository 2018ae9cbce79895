//! The API as a scheduler meets it: requests, refusals, numbers.

use drover_proto::failure::{Failure, Reason};
use drover_proto::v1::host_service_client::HostServiceClient;
use drover_proto::v1::migration_service_client::MigrationServiceClient;
use drover_proto::v1::{self, CheckMigrationRequest, ListMigrationsRequest, RegisterHostRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::agent::registration;
use super::lab::{Lab, reason, wish};
use super::world::GUEST;

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_twice_makes_one_migration() {
    let lab = Lab::new().await;
    lab.world.open_gate();
    let mut request = wish();
    request.request_id = "0190a1b2-0000-7000-8000-0000000000e1".to_owned();
    let first = lab
        .migrations()
        .create_migration(request.clone())
        .await
        .unwrap()
        .into_inner();
    let second = lab
        .migrations()
        .create_migration(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first.name, second.name);
    lab.assert_moved(&first.name).await;
    let third = lab
        .migrations()
        .create_migration(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first.name, third.name, "also after the guest has moved");
    let mut from = request.clone();
    from.migration.as_mut().unwrap().source_host = "hosts/host-1".to_owned();
    let fourth = lab.migrations().create_migration(from.clone()).await.unwrap();
    assert_eq!(first.name, fourth.into_inner().name, "also where the source is named");
    from.migration.as_mut().unwrap().source_host = "hosts/host-9".to_owned();
    let other = lab.migrations().create_migration(from).await.unwrap_err();
    assert_eq!(reason(&other), Reason::RequestIdReused, "another source");

    request
        .migration
        .as_mut()
        .unwrap()
        .labels
        .insert("a".to_owned(), "b".to_owned());
    let other = lab.migrations().create_migration(request).await.unwrap_err();
    assert_eq!(reason(&other), Reason::RequestIdReused);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_many_times_at_once_makes_one_migration() {
    let lab = Lab::new().await;
    let mut request = wish();
    request.request_id = "0190a1b2-0000-7000-8000-0000000000e2".to_owned();
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..8 {
        let (mut migrations, mut request) = (lab.migrations(), request.clone());
        if at % 2 == 0 {
            request.migration.as_mut().unwrap().source_host = "hosts/host-1".to_owned();
        }
        tasks.spawn(async move { migrations.create_migration(request).await.unwrap().into_inner().name });
    }
    let names = tasks.join_all().await;
    assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    lab.world.called("WatchOutgoing", 1).await;
    let again = lab.migrations().create_migration(request).await.unwrap();
    assert_eq!(again.into_inner().name, names[0], "also on the way");
    lab.world.open_gate();
    lab.assert_moved(&names[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_has_one_migration_at_a_time() {
    let lab = Lab::new().await;
    let first = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    let mut again = wish();
    again.migration.as_mut().unwrap().source_host = "hosts/host-1".to_owned();
    let refused = lab.migrations().create_migration(again.clone()).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::MigrationExists);
    again.validate_only = true;
    let refused = lab.migrations().create_migration(again).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::MigrationExists, "also where it is only asked");
    assert!(refused.message().contains(&first.name));
    lab.world.open_gate();
    lab.assert_moved(&first.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_fields_are_all_named() {
    let lab = Lab::new().await;
    let mut request = wish();
    let migration = request.migration.as_mut().unwrap();
    migration.guest_uuid = "nonsense".to_owned();
    migration.destination_host = String::new();
    migration.policy = Some(v1::MigrationPolicy {
        parallel_connections: 65,
        ..Default::default()
    });
    request.request_id = "x".to_owned();
    let refused = lab.migrations().create_migration(request).await.unwrap_err();
    let failure = Failure::from_status(&refused);
    assert_eq!(failure.reason, Reason::InvalidArgument);
    let fields: Vec<_> = failure.fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "migration.guest_uuid",
            "migration.destination_host",
            "migration.policy.parallel_connections",
            "request_id"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_with_its_reason() {
    let lab = Lab::new().await;
    let create = async |change: fn(&mut v1::Migration)| {
        let mut request = wish();
        change(request.migration.as_mut().unwrap());
        reason(&lab.migrations().create_migration(request).await.unwrap_err())
    };
    let nobody = |m: &mut v1::Migration| m.guest_uuid = "0190a1b2-0000-7000-8000-00000000dead".to_owned();
    assert_eq!(create(nobody).await, Reason::GuestNotFound);
    assert_eq!(
        create(|m| m.destination_host = "hosts/host-9".to_owned()).await,
        Reason::HostNotFound
    );
    assert_eq!(
        create(|m| m.destination_host = "hosts/host-1".to_owned()).await,
        Reason::GuestExists
    );
    let direct = |m: &mut v1::Migration| {
        m.policy = Some(v1::MigrationPolicy {
            transport: v1::Transport::DirectPlain.into(),
            ..Default::default()
        });
    };
    assert_eq!(create(direct).await, Reason::Unimplemented);
    let cordon = v1::CordonHostRequest {
        name: "hosts/host-2".to_owned(),
    };
    assert!(lab.hosts().cordon_host(cordon).await.unwrap().into_inner().cordoned);
    assert_eq!(create(|_| {}).await, Reason::HostCordoned);
    assert!(
        lab.migrations()
            .list_migrations(ListMigrationsRequest::default())
            .await
            .unwrap()
            .get_ref()
            .migrations
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn validate_only_and_check_tell_and_create_nothing() {
    let lab = Lab::new().await;
    lab.world.lock().host("host-2").shares = false;
    let request = v1::CreateMigrationRequest {
        validate_only: true,
        ..wish()
    };
    let told = lab.migrations().create_migration(request).await.unwrap().into_inner();
    assert!(told.name.is_empty());
    assert_eq!(told.error.unwrap().reason, Reason::StorageNotShared.name());

    let request = CheckMigrationRequest {
        guest_uuid: GUEST.to_owned(),
        ..Default::default()
    };
    let checked = lab.migrations().check_migration(request).await.unwrap().into_inner();
    assert_eq!(checked.destinations.len(), 1);
    assert!(!checked.destinations[0].acceptable);
    lab.world.lock().host("host-2").shares = true;
    let request = CheckMigrationRequest {
        guest_uuid: GUEST.to_owned(),
        destination_hosts: vec!["hosts/host-2".to_owned(), "hosts/host-9".to_owned()],
        ..Default::default()
    };
    let checked = lab.migrations().check_migration(request).await.unwrap().into_inner();
    let acceptable: Vec<_> = checked.destinations.iter().map(|one| one.acceptable).collect();
    assert_eq!(acceptable, [true, false]);
    lab.world.assert_clean("host-1");
    assert_eq!(lab.world.was_called("BeginOutgoing"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etag_changes_with_each_change_and_guards_against_the_next() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    super::world::until("the phase is shown", async || {
        lab.get(&created.name).await.phase() == v1::MigrationPhase::Transfer
    })
    .await;
    let seen = lab.get(&created.name).await;
    assert_ne!(seen.etag, created.etag);
    let cancel = |etag: &str| v1::CancelMigrationRequest {
        name: created.name.clone(),
        etag: etag.to_owned(),
    };
    for stale in [created.etag.as_str(), "nonsense"] {
        let refused = lab.migrations().cancel_migration(cancel(stale)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Aborted);
        assert_eq!(reason(&refused), Reason::EtagMismatch);
    }
    let untouched = lab.get(&created.name).await;
    assert_eq!(
        (untouched.etag, untouched.cancel_request_time),
        (seen.etag.clone(), None)
    );
    let cancelled = lab
        .migrations()
        .cancel_migration(cancel(&seen.etag))
        .await
        .unwrap()
        .into_inner();
    assert_ne!(cancelled.etag, seen.etag);
    lab.at_rest(&created.name).await;
    let retry = v1::RetryMigrationRequest {
        name: created.name.clone(),
        etag: String::new(),
    };
    let refused = lab.migrations().retry_migration(retry).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::MigrationState);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_agent_of_a_host_registers_it() {
    let lab = Lab::new().await;
    let mut client = HostServiceClient::new(lab.channel("agent/host-1"));
    let host = Some(registration("host-2", &lab.addresses[1]));
    let request = RegisterHostRequest {
        host,
        unfinished_journals: Vec::new(),
        ..RegisterHostRequest::default()
    };
    assert_eq!(
        reason(&client.register_host(request).await.unwrap_err()),
        Reason::PermissionDenied
    );
    let mut viewer = MigrationServiceClient::new(lab.channel("user/vera"));
    assert_eq!(
        reason(&viewer.create_migration(wish()).await.unwrap_err()),
        Reason::PermissionDenied
    );
    let mut stranger = MigrationServiceClient::new(lab.channel("user/eve"));
    let request = ListMigrationsRequest::default();
    assert_eq!(
        reason(&stranger.list_migrations(request).await.unwrap_err()),
        Reason::PermissionDenied
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_numbers_are_on_the_local_port() {
    let lab = Lab::new().await;
    lab.world.open_gate();
    let created = lab.create().await;
    lab.assert_moved(&created.name).await;
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(lab.local_address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").await.contains("ready"));
    let numbers = get("/metrics").await;
    for line in [
        "drover_migrations_total{state=\"MIGRATION_STATE_SUCCEEDED\"} 1",
        "drover_migration_active 0",
        "drover_blackout_seconds_count 1",
        "drover_controller_in_office 1",
    ] {
        assert!(numbers.contains(line), "no {line} in\n{numbers}");
    }
}
