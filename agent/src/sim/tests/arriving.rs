//! The destination: who is taken in, what waits, Finish once.

use super::*;
use crate::hypervisor::CpuAnswer;

#[tokio::test]
async fn a_waiting_copy_goes_with_its_handle_and_leaves_no_socket() {
    let lab = Lab::new();
    let (_outgoing, incoming) = lab.both().await;
    assert_eq!(lab.state(&lab.b), Some(GuestState::PausedMigrating));
    assert!(lab.socket().exists());
    drop(incoming);
    assert_eq!(lab.state(&lab.b), None);
    assert!(!lab.socket().exists());
}

#[tokio::test]
async fn a_waiting_copy_is_not_resumed_by_hand() {
    let lab = Lab::new();
    let (_outgoing, _incoming) = lab.both().await;
    refused(
        lab.b.resume(lab.guest).await,
        ErrorClass::Busy,
        "VIR_ERR_OPERATION_TIMEOUT",
    );
    assert_eq!(lab.running(), ["a"]);
}

#[tokio::test]
async fn a_definition_that_was_there_before_survives_a_cancelled_arrival() {
    let lab = Lab::new();
    lab.b.define(&lab.a.look(lab.guest).unwrap().xml).await.unwrap();
    let (_outgoing, incoming) = lab.both().await;
    incoming.cancel().await.unwrap();
    assert_eq!(lab.state(&lab.b), Some(GuestState::ShutOff));
    refused(
        incoming.cancel().await,
        ErrorClass::Ambiguous,
        "VIR_ERR_OPERATION_INVALID",
    );
}

#[tokio::test]
async fn a_guest_that_is_there_or_does_not_fit_is_refused() {
    let lab = Lab::new();
    let outgoing = lab.begin().await.unwrap();
    let request = || lab.request(&*outgoing, FLAGS);
    lab.b
        .add(&SimGuest {
            uuid: Some("0190a1b2-0000-7000-8000-0000000000bb".parse().unwrap()),
            ..SimGuest::named("web")
        })
        .unwrap();
    refused(
        lab.b.prepare(request()).await,
        ErrorClass::UserMustAct,
        "VIR_ERR_DOM_EXIST",
    );
    let lab_c = lab.world.host("c");
    lab_c
        .add(&SimGuest {
            uuid: Some(lab.guest),
            ..SimGuest::named("other")
        })
        .unwrap();
    refused(
        lab_c.prepare(request()).await,
        ErrorClass::UserMustAct,
        "VIR_ERR_DOM_EXIST",
    );
    let fresh = lab.world.host("d");
    fresh.set_facts(|facts| facts.memory_available = 1 << 20);
    refused(fresh.prepare(request()).await, ErrorClass::Unfit, "VIR_ERR_NO_MEMORY");
    fresh.set_facts(|facts| facts.memory_available = 1 << 30);
    fresh.set_cpu_answer(CpuAnswer::Lacks("avx512f".to_owned()));
    refused(
        fresh.prepare(request()).await,
        ErrorClass::Unfit,
        "VIR_ERR_CPU_INCOMPATIBLE",
    );
    fresh.set_cpu_answer(CpuAnswer::Fits);
    fresh.set_facts(|facts| facts.machines.clear());
    refused(
        fresh.prepare(request()).await,
        ErrorClass::Unfit,
        "VIR_ERR_CONFIG_UNSUPPORTED",
    );
    assert!(fresh.look(lab.guest).is_none());
}

#[tokio::test]
async fn a_second_finish_is_refused_and_harms_nothing() {
    let lab = Lab::new();
    let (_outgoing, incoming) = lab.sent().await;
    incoming.finish(&Cookie::default()).await.unwrap();
    lab.b.resume(lab.guest).await.unwrap();
    refused(
        incoming.finish(&Cookie::default()).await,
        ErrorClass::Ambiguous,
        "VIR_ERR_OPERATION_INVALID",
    );
    refused(
        incoming.cancel().await,
        ErrorClass::Ambiguous,
        "VIR_ERR_OPERATION_INVALID",
    );
    drop(incoming);
    assert_eq!(lab.running(), ["b"]);
    lab.assert_clean();
}

#[tokio::test]
async fn finish_waits_for_the_whole_stream() {
    let lab = Lab::restless();
    let (outgoing, incoming) = lab.both().await;
    let mut events = lab.a.events();
    let slow = async {
        happens(&mut events, |what| matches!(what, Happened::Iteration(2..))).await;
        // Now everything is within the limit: the next round is the last.
        outgoing.set_max_downtime(Duration::from_secs(3600)).await.unwrap();
    };
    let cookie = Cookie::default();
    let (finished, performed, ()) =
        tokio::join!(incoming.finish(&cookie), outgoing.perform(lab.perform_request()), slow);
    performed.unwrap();
    finished.unwrap();
    assert_eq!(lab.state(&lab.b), Some(GuestState::Paused));
    let done = lab.b.completed_job(lab.guest).await.unwrap().unwrap();
    assert!(done.downtime.is_some() && done.memory_processed > done.memory_total);
}

#[tokio::test]
async fn a_stream_that_breaks_takes_the_waiting_copy_with_it() {
    let lab = Lab::restless();
    let (outgoing, incoming) = lab.both().await;
    let mut events = lab.a.events();
    let cut = async {
        happens(&mut events, |what| matches!(what, Happened::Iteration(2..))).await;
        lab.a.kill(lab.guest, crate::hypervisor::StopReason::Crashed);
    };
    let cookie = Cookie::default();
    let (finished, performed, ()) =
        tokio::join!(incoming.finish(&cookie), outgoing.perform(lab.perform_request()), cut);
    performed.unwrap_err();
    refused(finished, ErrorClass::Ambiguous, "VIR_ERR_OPERATION_FAILED");
    assert_eq!(lab.state(&lab.b), None);
}

#[tokio::test]
async fn a_caller_that_stops_waiting_does_not_stop_finish() {
    let lab = Lab::new();
    let (_outgoing, incoming) = lab.sent().await;
    let mut events = lab.b.events();
    {
        let cookie = Cookie::default();
        let finish = incoming.finish(&cookie);
        tokio::pin!(finish);
        // Begun, and left alone.
        assert!(futures::poll!(&mut finish).is_pending());
    }
    happens(&mut events, |what| {
        matches!(what, Happened::Suspended { by_migration: false })
    })
    .await;
    assert_eq!(lab.state(&lab.b), Some(GuestState::Paused));
}
