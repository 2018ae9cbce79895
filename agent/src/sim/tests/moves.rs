//! Whole moves: over plain sockets and over the tunnel, there and back.

use super::*;
use crate::tunnel::{ChannelPlan, Source, SourceOptions};

async fn move_over(lab: &Lab, from: &SimHost, to: &SimHost) {
    let outgoing = from
        .begin(BeginRequest {
            guest: lab.guest,
            flags: FLAGS,
        })
        .await
        .unwrap();
    let facts = from.look(lab.guest).unwrap();
    let request = PrepareRequest {
        persistent_xml: facts.inactive_xml,
        ..request_from(lab, &*outgoing)
    };
    let incoming = to.prepare(request).await.unwrap();
    outgoing.perform(lab.perform_request()).await.unwrap();
    let cookie = incoming.finish(&Cookie::default()).await.unwrap();
    to.resume(lab.guest).await.unwrap();
    outgoing.confirm_moved(&cookie).await.unwrap();
}

fn request_from(lab: &Lab, outgoing: &dyn Outgoing) -> PrepareRequest {
    PrepareRequest {
        guest: lab.guest,
        name: "web".to_owned(),
        xml: outgoing.begun().xml.clone(),
        persistent_xml: None,
        cookie: outgoing.begun().cookie.clone(),
        flags: FLAGS,
        socket: lab.socket(),
        disks_socket: lab.disks_socket(),
    }
}

#[tokio::test]
async fn a_guest_goes_there_and_back_and_runs_once_at_every_moment() {
    let lab = Lab::with(&SimGuest {
        memory_mib: 4,
        dirty_mib_per_second: 20,
        ..SimGuest::named("web")
    });
    let first_life = lab.a.look(lab.guest).unwrap().incarnation;
    for _ in 0..3 {
        move_over(&lab, &lab.a, &lab.b).await;
        assert_eq!((lab.state(&lab.a), lab.running()), (None, vec!["b".to_owned()]));
        move_over(&lab, &lab.b, &lab.a).await;
        assert_eq!((lab.state(&lab.b), lab.running()), (None, vec!["a".to_owned()]));
    }
    let facts = lab.a.look(lab.guest).unwrap();
    assert!(facts.persistent && facts.inactive_xml.is_some());
    assert_ne!(facts.incarnation, first_life, "it is another life");
    lab.assert_clean();
}

#[tokio::test]
async fn with_post_copy_allowed_finish_starts_the_guest_by_itself() {
    let lab = Lab::new();
    let outgoing = lab.begin().await.unwrap();
    let flags = MigrateFlags {
        post_copy: true,
        ..FLAGS
    };
    let incoming = lab.b.prepare(lab.request(&*outgoing, flags)).await.unwrap();
    outgoing.perform(lab.perform_request()).await.unwrap();
    incoming.finish(&Cookie::default()).await.unwrap();
    assert_eq!(lab.running(), ["b"]);
}

#[tokio::test]
async fn a_transient_guest_leaves_and_arrives_without_a_definition() {
    let lab = Lab::with(&SimGuest {
        memory_mib: 4,
        persistent: false,
        ..SimGuest::named("web")
    });
    let flags = MigrateFlags {
        persistent: false,
        ..FLAGS
    };
    let outgoing = lab
        .a
        .begin(BeginRequest {
            guest: lab.guest,
            flags: flags.clone(),
        })
        .await
        .unwrap();
    let incoming = lab.b.prepare(lab.request(&*outgoing, flags)).await.unwrap();
    outgoing.perform(lab.perform_request()).await.unwrap();
    incoming.finish(&Cookie::default()).await.unwrap();
    outgoing.confirm_moved(&Cookie::default()).await.unwrap();
    assert_eq!(lab.state(&lab.a), None);
    assert!(!lab.b.look(lab.guest).unwrap().persistent);
}

#[tokio::test]
async fn the_watch_sees_a_source_that_is_resumed_beside_its_destination() {
    let lab = Lab::new();
    let (outgoing, incoming) = lab.sent().await;
    incoming.finish(&Cookie::default()).await.unwrap();
    lab.b.resume(lab.guest).await.unwrap();
    outgoing.confirm_cancelled().await.unwrap();
    assert_eq!(lab.running(), ["a", "b"]);
    assert_eq!(lab.world.violations().len(), 2, "twice at once, and old memory");
}

/// The memory goes over the real tunnel, several channels of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_moves_through_the_tunnel() {
    let pair = crate::tunnel::tests::Pair::start().await;
    let lab = Lab::with(&SimGuest {
        memory_mib: 16,
        dirty_mib_per_second: 30,
        ..SimGuest::named("web")
    });
    let flags = MigrateFlags { parallel: 3, ..FLAGS };
    let outgoing = lab
        .a
        .begin(BeginRequest {
            guest: lab.guest,
            flags: flags.clone(),
        })
        .await
        .unwrap();
    let incoming = lab
        .b
        .prepare(PrepareRequest {
            socket: pair.path("qemu"),
            ..lab.request(&*outgoing, flags)
        })
        .await
        .unwrap();
    let waiting = pair.register();
    let options = SourceOptions {
        channels: ChannelPlan::Memory {
            multifd: 3,
            postcopy_preempt: false,
        },
        ..pair.options()
    };
    let source = Source::open(options).unwrap();
    let request = PerformRequest {
        socket: pair.path("source"),
        ..lab.perform_request()
    };
    outgoing.perform(request).await.unwrap();
    incoming.finish(&Cookie::default()).await.unwrap();
    waiting.main_complete().wait_for(|complete| *complete).await.unwrap();
    lab.b.resume(lab.guest).await.unwrap();
    outgoing.confirm_moved(&Cookie::default()).await.unwrap();
    assert!(source.bytes().sent >= 16 << 20);
    assert_eq!((lab.state(&lab.a), lab.running()), (None, vec!["b".to_owned()]));
    lab.assert_clean();
    source.close().await;
    waiting.revoke().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_is_cut_fails_perform_and_the_guest_runs_on() {
    let pair = crate::tunnel::tests::Pair::start().await;
    let lab = Lab::restless();
    let outgoing = lab.begin().await.unwrap();
    let request = PrepareRequest {
        socket: pair.path("qemu"),
        ..lab.request(&*outgoing, FLAGS)
    };
    let incoming = lab.b.prepare(request).await.unwrap();
    let (waiting, _source) = (pair.register(), pair.open());
    let mut events = lab.a.events();
    let cut = async {
        happens(&mut events, |what| matches!(what, Happened::Iteration(2..))).await;
        waiting.revoke().await;
    };
    let request = PerformRequest {
        socket: pair.path("source"),
        ..lab.perform_request()
    };
    let (performed, ()) = tokio::join!(outgoing.perform(request), cut);
    refused(performed, ErrorClass::Ambiguous, "VIR_ERR_OPERATION_FAILED");
    assert_eq!(lab.running(), ["a"]);
    incoming.finish(&Cookie::default()).await.unwrap_err();
    assert_eq!(lab.state(&lab.b), None);
    lab.assert_clean();
}
