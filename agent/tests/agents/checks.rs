//! What a controller asks before anything is touched: facts, checks, the way to the other agent, proofs of storage.

use drover_agent::sim::{Call, Fault, SimGuest};
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
        measure: false,
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
async fn the_link_is_measured_where_that_is_asked_for() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let addresses = vec!["127.0.0.1:1".to_owned(), scene.b.address()];
    let ask = async |measure| {
        let request = ProbePeerRequest {
            peer_host: "hosts/b".to_owned(),
            addresses: addresses.clone(),
            measure,
        };
        let answer = scene.ask_a().probe_peer(request).await.unwrap().into_inner();
        answer
            .probes
            .iter()
            .map(|probe| probe.bytes_per_second)
            .collect::<Vec<_>>()
    };
    assert_eq!(ask(false).await, [0, 0]);
    // On a busy machine a measurement may find nothing in its time.
    let mut found = Vec::new();
    for _ in 0..10 {
        let [nobody, there] = ask(true).await.try_into().unwrap();
        assert_eq!(nobody, 0);
        if there > 1 << 20 {
            return;
        }
        found.push(there);
    }
    panic!("within one machine, bytes/s: {found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_writes_is_looked_at_twice_where_it_is_much() {
    let sample = async |guest: SimGuest| {
        let scene = Scene::new(guest).await;
        let request = SampleGuestRequest {
            guest_uuid: scene.guest.to_string(),
        };
        let sample = scene.ask_a().sample_guest(request).await.unwrap().into_inner();
        assert!(sample.time.is_some());
        let windows = sample.windows.into_iter();
        windows
            .map(|window| (window.duration.unwrap().seconds, window.changed_bytes >> 20))
            .collect::<Vec<_>>()
    };
    let writing = |dirty_mib_per_second| SimGuest {
        dirty_mib_per_second,
        ..SimGuest::named("web")
    };
    assert_eq!(sample(writing(0)).await, [(1, 0)]);
    assert_eq!(sample(writing(10)).await, [(1, 10)]);
    assert_eq!(sample(writing(20)).await, [(1, 20), (2, 40)]);
    let paused = SimGuest {
        paused: true,
        ..writing(20)
    };
    assert_eq!(sample(paused).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_cannot_be_looked_at_is_refused_with_why() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let ask = async |guest_uuid: String| {
        let answer = scene.ask_a().sample_guest(SampleGuestRequest { guest_uuid }).await;
        reason(answer.map_err(Failure::from))
    };
    let nobody = "0190a1b2-0000-7000-8000-00000000dead".to_owned();
    assert_eq!(ask(nobody).await, Reason::GuestNotFound);
    assert_eq!(ask("web".to_owned()).await, Reason::InvalidArgument);
    // libvirt does not answer, and nothing stays: the next one is answered.
    scene.a.host.script(Call::Sample, Fault::LoseAnswer);
    assert_eq!(ask(scene.guest.to_string()).await, Reason::LibvirtFailed);
    // A migration has the job: it would be waited for.
    scene.begin().await.unwrap();
    assert_eq!(ask(scene.guest.to_string()).await, Reason::GuestBusy);
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
        policy: None,
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
