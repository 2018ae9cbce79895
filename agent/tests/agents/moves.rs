//! Guests that move, and what moves with them.

use drover_agent::sim::SimGuest;
use drover_proto::agent::v1::watch_outgoing_response::Event;
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use drover_proto::ids::MigrationId;
use tokio_stream::StreamExt;

use crate::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn a_running_guest_moves_and_leaves_nothing() {
    let scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    scene.moves().await;
    assert_eq!(scene.runs_on(), ["b"]);
    let source = scene.status(&scene.a).await;
    assert_eq!(
        source.journal.as_ref().unwrap().verdict(),
        Verdict::Ran,
        "the destination itself said so"
    );
    let summary = source.summary.unwrap();
    assert!(
        summary.blackout.is_some() && summary.switch_time.is_some() && summary.tunnel_bytes > 0,
        "{summary:?}"
    );
    let calls: Vec<_> = source
        .calls
        .iter()
        .map(|call| (call.call.as_str(), call.host.as_str()))
        .collect();
    for expected in [
        ("libvirt.begin", "hosts/a"),
        ("libvirt.perform", "hosts/a"),
        ("libvirt.prepare", "hosts/b"),
        ("libvirt.finish", "hosts/b"),
        ("libvirt.resume", "hosts/b"),
        ("libvirt.confirm", "hosts/a"),
    ] {
        assert!(calls.contains(&expected), "{expected:?} in {calls:?}");
    }
    scene.rest(Verdict::Ran).await;
    assert!(scene.autostart(&scene.b), "autostart moved along");
}

#[tokio::test(flavor = "multi_thread")]
async fn autostart_is_off_at_the_source_before_begin() {
    let scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    scene.begin().await.unwrap();
    assert!(!scene.autostart(&scene.a));
    assert!(scene.status(&scene.a).await.journal.unwrap().autostart_before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_its_user_paused_arrives_paused() {
    let scene = Scene::new(SimGuest {
        paused: true,
        ..SimGuest::named("web")
    })
    .await;
    let ready = scene.ready().await;
    assert_eq!(ready.begun.state_before(), LibvirtState::Paused);
    scene.send(&ready).await.unwrap();
    let arrived = scene.until_state(&scene.b, JournalState::Ran).await;
    assert_eq!(arrived.guest.unwrap().state(), LibvirtState::Paused);
    assert!(arrived.calls.iter().all(|call| call.call != "libvirt.resume"));
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    scene.rest(Verdict::Ran).await;
    assert!(scene.runs_on().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transient_guest_stays_transient() {
    let scene = Scene::new(SimGuest {
        persistent: false,
        ..SimGuest::named("web")
    })
    .await;
    scene.moves().await;
    scene.rest(Verdict::Ran).await;
    assert!(!scene.b.host.look(scene.guest).unwrap().persistent);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_watch_see_it_from_the_first_bytes_to_the_switch() {
    let scene = Scene::new(SimGuest {
        dirty_mib_per_second: 20,
        ..SimGuest::named("web")
    })
    .await;
    let ready = scene.ready().await;
    let request = WatchOutgoingRequest {
        migration: scene.reference(),
    };
    let mut events = scene.ask_a().watch_outgoing(request).await.unwrap().into_inner();
    scene.send(&ready).await.unwrap();
    let (mut progress, mut sent, mut rounds, mut switched, mut calls) = (0, 0, 0, 0, 0);
    while let Some(event) = events.next().await {
        match event.unwrap().event.unwrap() {
            Event::Progress(_) => progress += 1,
            Event::AllSent(_) => sent += 1,
            Event::Iteration(_) => rounds += 1,
            Event::Switched(_) => switched += 1,
            Event::Call(_) => calls += 1,
            Event::Action(_) => {}
            Event::Failed(error) => panic!("{error:?}"),
        }
    }
    assert_eq!((sent, switched), (1, 1));
    assert!(progress > 0 && rounds > 0 && calls >= 4, "{progress} {rounds} {calls}");
    scene.until_quiet(&scene.a).await;
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_waits_for_a_hand_over_and_refuses_new_migrations() {
    use drover_agent::sim::{Call, Fault};
    let mut scene = Scene::new(SimGuest::named("web")).await;
    let go_on = tokio_util::sync::CancellationToken::new();
    scene.b.host.script(Call::Finish, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Finishing).await;
    let jobs = scene.b.jobs();
    let stopping = tokio::spawn({
        let jobs = jobs.clone();
        async move { jobs.stop().await }
    });
    crate::node::eventually("it is being stopped", || jobs.is_stopping()).await;
    let moving = std::mem::replace(&mut scene.migration, MigrationId::generate());
    assert_eq!(
        crate::scene::reason(scene.prepare(&ready.begun).await),
        Reason::NotServing
    );
    scene.migration = moving;
    assert!(!stopping.is_finished(), "a guest is between two hosts");
    go_on.cancel();
    stopping.await.unwrap();
    assert_eq!(scene.runs_on(), ["b"]);
    drop(jobs);
    scene.b.stop().await;
    scene.holds();
}

#[tokio::test(flavor = "multi_thread")]
async fn autostart_is_written_down_before_it_is_cleared() {
    use drover_agent::sim::{Call, Fault};
    let scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    let go_on = tokio_util::sync::CancellationToken::new();
    scene.a.host.script(Call::SetAutostart, Fault::Until(go_on.clone()));
    let written = async {
        let known = |status: &MigrationStatus| status.journal.as_ref().is_some_and(|journal| journal.autostart_before);
        scene.until(&scene.a, "it is written down", known).await;
        assert!(scene.autostart(&scene.a));
        go_on.cancel();
    };
    let (begun, ()) = tokio::join!(scene.begin(), written);
    begun.unwrap();
    assert!(!scene.autostart(&scene.a));
}

#[tokio::test(flavor = "multi_thread")]
async fn ran_is_written_before_it_is_carried_out_on_either_side() {
    use drover_agent::sim::{Call, Fault};
    let scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    let (at_source, at_destination) = (
        tokio_util::sync::CancellationToken::new(),
        tokio_util::sync::CancellationToken::new(),
    );
    scene.a.host.script(Call::ConfirmMoved, Fault::Until(at_source.clone()));
    scene
        .b
        .host
        .script(Call::SetAutostart, Fault::Until(at_destination.clone()));
    let decided = |status: &MigrationStatus| status.journal.as_ref().unwrap().verdict() == Verdict::Ran;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let source = scene.until(&scene.a, "the source's verdict is written", decided).await;
    assert!(source.guest.is_some(), "before the copy goes");
    at_source.cancel();
    scene.until_quiet(&scene.a).await;
    let written = async {
        scene
            .until(&scene.b, "the destination's verdict is written", decided)
            .await;
        at_destination.cancel();
    };
    let (settled, ()) = tokio::join!(scene.settle_b(Verdict::Ran), written);
    settled.unwrap();
    scene.rest(Verdict::Ran).await;
}
