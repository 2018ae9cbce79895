//! What a controller asks before anything is touched: facts, checks, the way to the other agent, proofs of storage.

use drover_agent::sim::SimGuest;
use drover_proto::agent::v1::*;
use drover_proto::failure::{Failure, Reason};
use drover_proto::v1::CheckResult;

use crate::scene::{Scene, reason};

async fn inspect(scene: &Scene) -> GuestFacts {
    let request = InspectGuestRequest {
        guest_uuid: scene.guest.to_string(),
        destination_overrides: None,
    };
    scene.ask_a().inspect_guest(request).await.unwrap().into_inner()
}

async fn probe(scene: &Scene, host: &str, addresses: &[String]) -> Result<Vec<PeerProbe>, Failure> {
    let request = ProbePeerRequest {
        peer_host: format!("hosts/{host}"),
        addresses: addresses.to_vec(),
    };
    let answer = scene.ask_a().probe_peer(request).await?;
    Ok(answer.into_inner().probes)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_agent_is_reached_only_where_it_is() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    let there = scene.b.address();
    let found = probe(&scene, "b", std::slice::from_ref(&there)).await.unwrap();
    assert!(found[0].reachable && found[0].elapsed.is_some(), "{found:?}");

    let found = probe(&scene, "c", std::slice::from_ref(&there)).await.unwrap();
    assert!(!found[0].reachable, "another host's agent answers there");
    assert!(
        found[0].problem.contains('b') && found[0].elapsed.is_none(),
        "{found:?}"
    );

    scene.b.kill().await;
    let nobody = [there.clone(), "nonsense".to_owned()];
    let found = probe(&scene, "b", &nobody).await.unwrap();
    assert_eq!(found.len(), 2);
    assert!(
        found.iter().all(|probe| !probe.reachable && !probe.problem.is_empty()),
        "{found:?}"
    );

    for many in [vec![], vec![there; 9]] {
        assert_eq!(reason(probe(&scene, "b", &many).await), Reason::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_controller_has_an_agent_look_for_another() {
    let scene = Scene::new(SimGuest::named("web")).await;
    for identity in ["agent/a", "user/alice"] {
        let request = ProbePeerRequest::default();
        let refused = scene
            .ask_b_as(identity)
            .probe_peer(request)
            .await
            .map_err(Failure::from);
        assert_eq!(reason(refused), Reason::PermissionDenied, "{identity}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_job_is_told_of() {
    let disks = vec!["/nowhere/web.raw".to_owned()];
    let scene = Scene::new(SimGuest {
        disks,
        ..SimGuest::named("web")
    })
    .await;
    assert!(inspect(&scene).await.block_jobs.is_empty());
    scene.a.host.start_block_job(scene.guest, "vda");
    assert_eq!(inspect(&scene).await.block_jobs, ["vda"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_makes_every_check_of_its_own() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let source = scene
        .ask_a()
        .inspect_host(InspectHostRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(source.state_free_bytes.is_some() && source.run_free_bytes.is_some() && source.clock.is_some());
    let request = CheckIncomingRequest {
        guest: Some(inspect(&scene).await),
        source: Some(source),
    };
    let checks = scene.ask_b().check_incoming(request).await.unwrap().into_inner().checks;
    let bad: Vec<_> = checks
        .iter()
        .filter(|check| check.result() != CheckResult::Passed)
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
    let ids: Vec<&str> = checks.iter().map(|check| check.id.as_str()).collect();
    assert_eq!(
        ids,
        [
            "migration-calls",
            "host-uuid",
            "uuid-free",
            "name-free",
            "machine-type",
            "cpu",
            "versions",
            "lock-manager",
            "memory",
            "huge-pages",
            "numa",
            "boot-files",
            "bridges",
            "networks",
            "space"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_is_proved_by_two_agents_and_nothing_stays() {
    let images = tempfile::tempdir().unwrap();
    let image = images.path().join("web.raw").display().to_string();
    std::fs::write(&image, b"12345").unwrap();
    let scene = Scene::new(SimGuest {
        disks: vec![image.clone()],
        ..SimGuest::named("web")
    })
    .await;
    let request = WriteStorageProbesRequest {
        fence: scene.fence(),
        guest_uuid: scene.guest.to_string(),
    };
    let written = scene.ask_a().write_storage_probes(request).await.unwrap().into_inner();
    assert!(written.failures.is_empty(), "{written:?}");
    assert_eq!(std::fs::read_dir(images.path()).unwrap().count(), 2);

    let read = async || {
        let request = ReadStorageProbesRequest {
            probes: written.probes.clone(),
            images: Vec::new(),
        };
        scene
            .ask_b()
            .read_storage_probes(request)
            .await
            .unwrap()
            .into_inner()
            .results
    };
    let [found] = read().await.try_into().unwrap();
    assert!(found.shared && found.present && found.problem.is_empty(), "{found:?}");

    let request = RemoveStorageProbesRequest {
        fence: scene.fence(),
        probes: written.probes.clone(),
    };
    scene.ask_a().remove_storage_probes(request).await.unwrap();
    assert_eq!(std::fs::read_dir(images.path()).unwrap().count(), 1);
    let [found] = read().await.try_into().unwrap();
    assert!(!found.shared && found.present && !found.problem.is_empty(), "{found:?}");
    std::fs::remove_file(&image).unwrap();
    let [found] = read().await.try_into().unwrap();
    assert!(!found.shared && !found.present, "{found:?}");
}
