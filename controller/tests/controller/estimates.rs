//! What a move is expected to cost: told by a check, kept by a migration, and compared in the end.

use drover_proto::failure::Reason;
use drover_proto::time::std_duration;
use drover_proto::v1::{
    CheckMigrationRequest, CheckMigrationResponse, CreateMigrationRequest, Estimate, EstimateView, LinkKnowledge,
    Migration, MigrationPolicy,
};

use super::lab::{Lab, reason, wish};
use super::world::{Fault, GUEST};

const MIB: u64 = 1 << 20;

/// Of the guest, which has 512 MiB, and the only other host.
async fn check(lab: &Lab, policy: MigrationPolicy) -> Estimate {
    let request = CheckMigrationRequest {
        guest_uuid: GUEST.to_owned(),
        policy: Some(policy),
        ..Default::default()
    };
    let answer = lab.migrations().check_migration(request).await.unwrap().into_inner();
    let [only] = answer.destinations.try_into().unwrap();
    assert!(only.acceptable, "an estimate stands in nobody's way: {only:#?}");
    only.estimate.expect("an estimate")
}

async fn moved(lab: &Lab, policy: MigrationPolicy) -> Migration {
    let mut wish = wish();
    wish.migration.as_mut().unwrap().policy = Some(policy);
    let created = lab.migrations().create_migration(wish).await.unwrap().into_inner();
    lab.world.open_gate();
    lab.assert_moved(&created.name).await
}

fn millis(estimate: &Estimate) -> Option<u128> {
    let duration = estimate.duration.as_ref().and_then(std_duration);
    duration.map(|duration| duration.as_millis())
}

fn deadline() -> MigrationPolicy {
    MigrationPolicy {
        deadline: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..MigrationPolicy::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_tells_what_the_move_would_cost() {
    let lab = Lab::new().await;
    (lab.world.lock().writes, lab.world.lock().link) = (vec![0], 100 * MIB);
    let told = check(&lab, MigrationPolicy::default()).await;
    assert_eq!(millis(&told), Some(5270));
    assert_eq!(told.link_knowledge(), LinkKnowledge::Measured);
    assert!(told.needed_means.is_empty() && told.sample_time.is_some());
    // A guest that rewrites 200 MiB all the time does not fit into the blackout.
    lab.world.lock().writes = vec![200 * MIB, 200 * MIB];
    let told = check(&lab, MigrationPolicy::default()).await;
    assert_eq!((millis(&told), told.convergence_probability), (None, 0.0));
    assert!(told.needed_means.contains(&"max-downtime".to_owned()), "{told:?}");
    let request = CreateMigrationRequest {
        validate_only: true,
        ..wish()
    };
    let only_checked = lab.migrations().create_migration(request).await.unwrap().into_inner();
    assert_eq!(only_checked.estimate.unwrap().needed_means, told.needed_means);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_the_estimate_out_gets_the_checks_alone_and_is_told_so() {
    let lab = Lab::new().await;
    (lab.world.lock().writes, lab.world.lock().link) = (vec![0], 100 * MIB);
    let ask = async |view: i32| -> Result<CheckMigrationResponse, tonic::Status> {
        let request = CheckMigrationRequest {
            guest_uuid: GUEST.to_owned(),
            estimate_view: view,
            ..Default::default()
        };
        Ok(lab.migrations().check_migration(request).await?.into_inner())
    };
    let without = ask(EstimateView::None.into()).await.unwrap();
    assert_eq!(without.estimate_view(), EstimateView::None);
    assert_eq!(without.destinations[0].estimate, None);
    assert_eq!(lab.world.was_called("SampleGuest"), 0, "no time is spent on it");
    for view in [EstimateView::Unspecified, EstimateView::Full] {
        let with = ask(view.into()).await.unwrap();
        assert_eq!(with.estimate_view(), EstimateView::Full);
        assert!(with.destinations[0].estimate.is_some());
        let checks = |answer: &CheckMigrationResponse| -> Vec<(String, i32)> {
            let checks = answer.destinations[0].checks.iter();
            checks.map(|check| (check.id.clone(), check.result)).collect()
        };
        assert_eq!(checks(&with), checks(&without), "the checks are the same");
        assert!(without.destinations[0].acceptable && with.destinations[0].acceptable);
    }
    let refused = ask(99).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_knows_is_said() {
    let lab = Lab::new().await;
    let told = check(&lab, MigrationPolicy::default()).await;
    assert!(
        told.unknown.contains("link_speed") && told.duration.is_none(),
        "{told:?}"
    );
    for fault in [
        Fault::LoseAnswer,
        Fault::Refuse(Reason::GuestBusy),
        Fault::Refuse(Reason::Unimplemented),
    ] {
        lab.world.fault("SampleGuest", fault);
        let told = check(&lab, MigrationPolicy::default()).await;
        assert!(told.unknown.contains("could not be seen"), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_cannot_move_is_not_looked_at() {
    let lab = Lab::new().await;
    lab.world.lock().host("host-1").guests.get_mut(GUEST).unwrap().snapshots = 1;
    let request = CheckMigrationRequest {
        guest_uuid: GUEST.to_owned(),
        ..Default::default()
    };
    let answer = lab.migrations().check_migration(request).await.unwrap().into_inner();
    assert_eq!(answer.destinations[0].estimate, None);
    assert_eq!(lab.world.was_called("SampleGuest"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_keeps_what_a_check_expected_and_tells_how_far_it_was_off() {
    let lab = Lab::new().await;
    (lab.world.lock().writes, lab.world.lock().link) = (vec![0], 100 * MIB);
    let expected = check(&lab, MigrationPolicy::default()).await;
    let record = moved(&lab, MigrationPolicy::default()).await;
    assert_eq!(lab.world.was_called("SampleGuest"), 1);
    let kept = record.estimate.expect("what was expected");
    assert_eq!(kept, expected);
    // The world's transfers take 10.15 s.
    let error = record.estimate_error.unwrap();
    assert!((error - (5.27 / 10.15 - 1.0)).abs() < 1e-6, "{error}");
    // And have a blackout of 42 ms.
    let expected = kept.blackout.as_ref().and_then(std_duration).unwrap();
    let error = record.estimate_blackout_error.unwrap();
    assert!((error - (expected.as_secs_f64() / 0.042 - 1.0)).abs() < 1e-6, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_check_nothing_was_expected_and_no_time_is_spent() {
    let lab = Lab::new().await;
    let record = moved(&lab, MigrationPolicy::default()).await;
    assert_eq!((record.estimate, record.estimate_error), (None, None));
    assert_eq!(lab.world.was_called("SampleGuest"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_names_a_deadline_gets_a_look_and_the_agent_learns_of_it() {
    let lab = Lab::new().await;
    (lab.world.lock().writes, lab.world.lock().link) = (vec![10 * MIB], 100 * MIB);
    let record = moved(&lab, deadline()).await;
    let expected = record.estimate.unwrap();
    assert_eq!(expected.link_knowledge(), LinkKnowledge::Measured);
    // The world's transfers take 10.15 s.
    let error = record.estimate_error.unwrap();
    let by = millis(&expected).unwrap() as f64 / 10_150.0 - 1.0;
    assert!((error - by).abs() < 1e-6, "{error}, not {by}");
    let id = record.name.trim_start_matches("migrations/").to_owned();
    let told = lab.world.lock().hosts["host-1"].journals[&id].expected;
    assert_eq!(told.0, u64::try_from(expected.dirty_bytes_per_second).unwrap());
    assert_eq!(told.1, 100 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_fails_holds_no_migration_up() {
    let lab = Lab::new().await;
    lab.world.fault("SampleGuest", Fault::LoseAnswer);
    let record = moved(&lab, deadline()).await;
    assert!(record.estimate.unwrap().unknown.contains("could not be seen"));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_learnt_from_what_moved_over_them() {
    let mut lab = Lab::new().await;
    moved(&lab, MigrationPolicy::default()).await;
    // The guest is at host-2 now: the way back is the same link. What was learnt outlives the controller.
    lab.kill();
    lab.start().await;
    for (host, address) in ["host-1", "host-2"].into_iter().zip(lab.addresses.clone()) {
        lab.register(host, &address).await.unwrap();
    }
    lab.world.lock().writes = vec![0];
    let told = check(&lab, MigrationPolicy::default()).await;
    assert_eq!(told.link_knowledge(), LinkKnowledge::Learnt);
    assert_eq!(told.bandwidth_bytes_per_second, 100 << 20);
    assert_eq!(millis(&told), Some(5270));
}
