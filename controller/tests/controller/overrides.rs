//! What must be different at the destination: refused by field, kept with the migration, given to the source's agent.

use drover_proto::failure::{Failure, Reason};
use drover_proto::v1::{
    CheckMigrationRequest, CheckResult, CreateMigrationRequest, DestinationOverrides, DiskOverride, MigrationState,
};

use super::lab::{Lab, reason, wish};
use super::world::{Fault, GUEST};

fn disk(target: &str, source: &str) -> DestinationOverrides {
    DestinationOverrides {
        disks: vec![DiskOverride {
            target: target.to_owned(),
            source: source.to_owned(),
        }],
        ..DestinationOverrides::default()
    }
}

fn wish_with(overrides: DestinationOverrides) -> CreateMigrationRequest {
    let mut request = wish();
    request.migration.as_mut().unwrap().destination_overrides = Some(overrides);
    request
}

fn fields(status: &tonic::Status) -> Vec<String> {
    let failure = Failure::from_status(status);
    assert_eq!(failure.reason, Reason::InvalidArgument);
    failure.fields.into_iter().map(|(field, _)| field).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_kept_and_given_to_the_source_also_after_a_restart() {
    let mut lab = Lab::new().await;
    let asked = disk("vda", "/elsewhere/web.raw");
    lab.world.hold("PrepareIncoming");
    let request = wish_with(asked.clone());
    let made = lab.migrations().create_migration(request).await.unwrap().into_inner();
    lab.world.called("PrepareIncoming", 1).await;
    lab.kill();
    lab.world.release("PrepareIncoming");
    lab.start().await;
    lab.world.open_gate();
    let moved = lab.assert_moved(&made.name).await;
    assert_eq!(
        moved.destination_overrides.as_ref(),
        Some(&asked),
        "the record tells them"
    );
    let check = moved.checks.iter().find(|check| check.id == "overrides").unwrap();
    assert_eq!(check.result(), CheckResult::Passed);
    let state = lab.world.lock();
    assert!(state.begun_with.len() >= 2, "begun again after the restart");
    assert!(state.begun_with.iter().all(|with| with.as_ref() == Some(&asked)));
    assert_eq!(state.looked_for, ["/elsewhere/web.raw"], "proved where it will lie");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_nothing_in_the_guest_is_refused_by_its_field() {
    let lab = Lab::new().await;
    let mut asked = disk("vda", "/b");
    asked.disks.extend(disk("vdz", "/b").disks);
    let refused = lab
        .migrations()
        .create_migration(wish_with(asked.clone()))
        .await
        .unwrap_err();
    assert_eq!(fields(&refused), ["migration.destination_overrides.disks[1].target"]);
    let request = CheckMigrationRequest {
        guest_uuid: GUEST.to_owned(),
        destination_hosts: vec!["hosts/host-2".to_owned()],
        destination_overrides: Some(asked),
        ..CheckMigrationRequest::default()
    };
    let refused = lab.migrations().check_migration(request).await.unwrap_err();
    assert_eq!(fields(&refused), ["destination_overrides.disks[1].target"]);
    assert_eq!(lab.world.was_called("BeginOutgoing"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_could_say_so_at_create_a_check_fails() {
    let lab = Lab::new().await;
    let mut request = wish_with(disk("vdz", "/b"));
    request.migration.as_mut().unwrap().source_host = "hosts/host-1".to_owned();
    lab.world.fault("InspectGuest", Fault::LoseRequest);
    let made = lab.migrations().create_migration(request).await.unwrap().into_inner();
    let failed = lab.assert_unmoved(&made.name, MigrationState::Failed).await;
    let check = failed.checks.iter().find(|check| check.id == "overrides").unwrap();
    assert_eq!(check.result(), CheckResult::Failed);
    assert!(check.found.contains("vdz"), "{check:?}");
    assert_eq!(lab.world.was_called("BeginOutgoing"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_values_are_all_named() {
    let lab = Lab::new().await;
    let mut asked = disk("vda", "../b");
    asked.disks.extend(disk("v/da", "/b").disks);
    asked.graphics_listen_address = "here".to_owned();
    let refused = lab.migrations().create_migration(wish_with(asked)).await.unwrap_err();
    assert_eq!(
        fields(&refused),
        [
            "migration.destination_overrides.disks[0].source",
            "migration.destination_overrides.disks[1].target",
            "migration.destination_overrides.graphics_listen_address",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_with_others_is_another_request() {
    let lab = Lab::new().await;
    lab.world.open_gate();
    let request = |overrides| CreateMigrationRequest {
        request_id: "0190a1b2-0000-7000-8000-0000000000e1".to_owned(),
        ..wish_with(overrides)
    };
    let create = async |overrides| lab.migrations().create_migration(request(overrides)).await;
    let first = create(disk("vda", "/b")).await.unwrap().into_inner();
    assert_eq!(create(disk("vda", "/b")).await.unwrap().into_inner().name, first.name);
    let other = create(disk("vda", "/c")).await.unwrap_err();
    assert_eq!(reason(&other), Reason::RequestIdReused);
    let none = create(DestinationOverrides::default()).await.unwrap_err();
    assert_eq!(reason(&none), Reason::RequestIdReused);
    lab.assert_moved(&first.name).await;
}
