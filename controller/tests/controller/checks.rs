//! CheckMigration as its callers meet it: one table for each destination, whatever is wrong with it, and nothing touched.

use drover_proto::failure::Reason;
use drover_proto::v1::{self, Check, CheckMigrationRequest, CheckResult, DestinationChecks};

use super::lab::{Lab, reason, wish};
use super::world::{Fault, GUEST, until};

async fn check(lab: &Lab, hosts: &[&str]) -> Vec<DestinationChecks> {
    let request = CheckMigrationRequest {
        guest_uuid: GUEST.to_owned(),
        destination_hosts: hosts.iter().map(|host| format!("hosts/{host}")).collect(),
        ..Default::default()
    };
    let answer = lab.migrations().check_migration(request).await.unwrap().into_inner();
    lab.world.assert_clean("host-1");
    assert_eq!(lab.world.was_called("BeginOutgoing"), 0);
    answer.destinations
}

async fn check_one(lab: &Lab) -> DestinationChecks {
    let mut all = check(lab, &["host-2"]).await;
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn not_passed(checks: &[Check]) -> Vec<&str> {
    let bad = checks.iter().filter(|check| check.result() != CheckResult::Passed);
    bad.map(|check| check.id.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn good_hosts_pass_every_check_and_each_id_is_documented() {
    let lab = Lab::new().await;
    let found = check_one(&lab).await;
    assert!(found.acceptable, "{found:#?}");
    assert!(not_passed(&found.checks).is_empty());
    let documented = include_str!("../../../docs/checks.md");
    for check in &found.checks {
        assert!(
            documented.contains(&format!("`{}`", check.id)),
            "{} is not documented",
            check.id
        );
    }
    let ids: std::collections::BTreeSet<&str> = found.checks.iter().map(|check| check.id.as_str()).collect();
    assert_eq!(ids.len(), found.checks.len(), "an id is there twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_obstacle_fails_its_own_check() {
    let lab = Lab::new().await;
    lab.world.lock().host("host-2").lacks.insert("bridges".to_owned());
    let found = check_one(&lab).await;
    assert!(!found.acceptable);
    assert_eq!(not_passed(&found.checks), ["bridges"]);
    lab.world.lock().host("host-2").lacks.clear();

    lab.world.lock().host("host-2").shares = false;
    assert_eq!(not_passed(&check_one(&lab).await.checks), ["storage-shared"]);
    lab.world.lock().host("host-2").shares = true;

    for (from, to) in [("host-1", "host-2"), ("host-2", "host-1")] {
        lab.world.lock().host(from).cut_off_from.insert(to.to_owned());
        assert_eq!(not_passed(&check_one(&lab).await.checks), ["ports"]);
        lab.world.lock().host(from).cut_off_from.clear();
    }
    assert!(check_one(&lab).await.acceptable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_cannot_move_is_checked_without_probe_files() {
    let lab = Lab::new().await;
    lab.world.lock().host("host-1").guests.get_mut(GUEST).unwrap().snapshots = 2;
    let found = check_one(&lab).await;
    assert_eq!(
        not_passed(&found.checks),
        ["snapshots", "storage-path", "storage-shared"]
    );
    assert_eq!(lab.world.was_called("WriteStorageProbes"), 0);
    // The destination is looked at all the same.
    assert!(lab.world.was_called("CheckIncoming") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_cannot_be_asked_are_data() {
    let lab = Lab::new().await;
    // Registered, but nobody listens there.
    lab.register("host-3", "127.0.0.1:1").await.unwrap();
    let all = check(&lab, &[]).await;
    let found: Vec<_> = all
        .iter()
        .map(|one| (one.destination_host.as_str(), one.acceptable))
        .collect();
    assert_eq!(found, [("hosts/host-2", true), ("hosts/host-3", false)]);
    assert_eq!(not_passed(&all[1].checks), ["agents"]);
    assert!(!all[1].checks[0].remedy.is_empty());
    assert_eq!(lab.world.was_called("WriteStorageProbes"), 1);

    let odd = check(&lab, &["host-9", "host-1", "host-2", "host-2"]).await;
    let found: Vec<_> = odd.iter().map(|one| not_passed(&one.checks)).collect();
    assert_eq!(found, [vec!["agents"], vec!["uuid-free"], vec![]], "each host once");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_set_of_probe_files_serves_all_destinations_and_goes_when_one_falls_silent() {
    let lab = Lab::new().await;
    lab.world.fault("ReadStorageProbes", Fault::LoseRequest);
    let found = check_one(&lab).await;
    assert_eq!(not_passed(&found.checks), ["agents"], "it did not answer");
    assert!(lab.world.was_called("RemoveStorageProbes") > 0);
    lab.world.lock().away.insert("host-1".to_owned());
    let request = CheckMigrationRequest {
        guest_uuid: GUEST.to_owned(),
        source_host: "hosts/host-1".to_owned(),
        ..Default::default()
    };
    let answer = lab.migrations().check_migration(request).await.unwrap().into_inner();
    assert_eq!(not_passed(&answer.destinations[0].checks), ["agents"]);
    lab.world.lock().away.clear();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_leaves_no_probe_file() {
    let lab = Lab::new().await;
    lab.world.hold("ReadStorageProbes");
    let mut client = lab.migrations();
    let asking = tokio::spawn(async move {
        let request = CheckMigrationRequest {
            guest_uuid: GUEST.to_owned(),
            ..Default::default()
        };
        client.check_migration(request).await
    });
    lab.world.called("ReadStorageProbes", 1).await;
    asking.abort();
    lab.world.release("ReadStorageProbes");
    // That the call has arrived does not say that it was carried out.
    until("the probe files are gone", async || {
        lab.world.lock().hosts.values().all(|host| host.probes.is_empty())
    })
    .await;
    assert!(lab.world.was_called("RemoveStorageProbes") > 0);
    lab.world.assert_clean("host-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cordoned_host_is_checked_and_not_acceptable() {
    let lab = Lab::new().await;
    let name = "hosts/host-2".to_owned();
    lab.hosts().cordon_host(v1::CordonHostRequest { name }).await.unwrap();
    let found = check_one(&lab).await;
    assert!(!found.acceptable);
    assert_eq!(not_passed(&found.checks), ["cordoned"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_an_error_with_its_fields() {
    let lab = Lab::new().await;
    let refused = async |request: CheckMigrationRequest| {
        let status = lab.migrations().check_migration(request).await.unwrap_err();
        let failure = drover_proto::failure::Failure::from_status(&status);
        let fields: Vec<String> = failure.fields.into_iter().map(|(field, _)| field).collect();
        (failure.reason, fields)
    };
    let bad = CheckMigrationRequest {
        destination_hosts: vec!["Not A Host".to_owned()],
        ..Default::default()
    };
    let fields = ["guest_uuid", "destination_hosts"].map(str::to_owned).to_vec();
    assert_eq!(refused(bad).await, (Reason::InvalidArgument, fields));
    let nobody = CheckMigrationRequest {
        guest_uuid: "0190a1b2-0000-7000-8000-00000000dead".to_owned(),
        ..Default::default()
    };
    assert_eq!(refused(nobody).await.0, Reason::GuestNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_create_has_the_same_checks() {
    let lab = Lab::new().await;
    lab.world.lock().host("host-1").guests.get_mut(GUEST).unwrap().snapshots = 1;
    let checked = check(&lab, &["host-2"]).await.remove(0).checks;
    let ids = |checks: &[Check]| -> Vec<(String, CheckResult)> {
        checks.iter().map(|check| (check.id.clone(), check.result())).collect()
    };
    let request = v1::CreateMigrationRequest {
        validate_only: true,
        ..wish()
    };
    let told = lab.migrations().create_migration(request).await.unwrap().into_inner();
    assert_eq!(ids(&told.checks), ids(&checked));
    let created = lab.create().await;
    let record = lab.at_rest(&created.name).await;
    assert_eq!(ids(&record.checks), ids(&checked));
    let error = record.error.unwrap();
    assert_eq!(error.reason, Reason::ChecksFailed.name());
    assert!(error.message.starts_with("snapshots: "), "{}", error.message);
    let unknown = lab
        .migrations()
        .get_migration(v1::GetMigrationRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&unknown), Reason::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_guests_own_migration_does_is_not_called_a_leftover() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    let request = CheckMigrationRequest {
        guest_uuid: GUEST.to_owned(),
        source_host: "hosts/host-1".to_owned(),
        destination_hosts: vec!["hosts/host-2".to_owned()],
        ..Default::default()
    };
    let answer = lab.migrations().check_migration(request).await.unwrap().into_inner();
    let found = &answer.destinations[0];
    let id = created.name.trim_start_matches("migrations/");
    assert!(!found.acceptable && found.checks[0].id == "no-migration", "{found:#?}");
    assert!(found.checks[0].remedy.contains(id), "{found:#?}");
    let copy = found.checks.iter().find(|check| check.id == "uuid-free").unwrap();
    assert_eq!(copy.remedy, "see `no-migration`", "the waiting copy is no leftover");
    lab.world.open_gate();
    lab.assert_moved(&created.name).await;
}
