//! The source: job lock, what a dropped handle leaves behind, Confirm.

use super::*;

#[tokio::test]
async fn the_job_lock_keeps_others_out_until_the_handle_is_dropped() {
    let lab = Lab::new();
    let outgoing = lab.begin().await.unwrap();
    refused(lab.begin().await, ErrorClass::Busy, "VIR_ERR_OPERATION_TIMEOUT");
    refused(
        lab.a.set_autostart(lab.guest, true).await,
        ErrorClass::Busy,
        "VIR_ERR_OPERATION_TIMEOUT",
    );
    lab.a.suspend(lab.guest).await.unwrap();
    refused(
        lab.a.resume(lab.guest).await,
        ErrorClass::Busy,
        "VIR_ERR_OPERATION_TIMEOUT",
    );
    drop(outgoing);
    lab.a.resume(lab.guest).await.unwrap();
    lab.a.set_autostart(lab.guest, true).await.unwrap();
    lab.begin().await.unwrap();
}

#[tokio::test]
async fn what_cannot_migrate_is_refused_at_begin() {
    let lab = Lab::new();
    lab.a.set_snapshots(lab.guest, 1);
    refused(lab.begin().await, ErrorClass::UserMustAct, "VIR_ERR_OPERATION_INVALID");
    lab.a.set_snapshots(lab.guest, 0);
    lab.a.shut_down(lab.guest);
    refused(lab.begin().await, ErrorClass::UserMustAct, "VIR_ERR_OPERATION_INVALID");
    lab.a.undefine(lab.guest).await.unwrap();
    refused(lab.begin().await, ErrorClass::NoGuest, "VIR_ERR_NO_DOMAIN");
}

#[tokio::test]
async fn a_handle_dropped_while_it_sends_leaves_the_guest_running() {
    let lab = Lab::restless();
    let (outgoing, _incoming) = lab.both().await;
    let mut events = lab.a.events();
    {
        let mut perform = outgoing.perform(lab.perform_request());
        tokio::select! {
            _ = &mut perform => panic!("it cannot end"),
            _ = happens(&mut events, |what| matches!(what, Happened::Iteration(3..))) => {}
        }
    }
    assert!(lab.a.has_job(lab.guest), "QEMU goes on while the handle is there");
    drop(outgoing);
    // The destination sees the cut.
    happens(&mut lab.b.events(), |what| matches!(what, Happened::Stopped(_))).await;
    assert_eq!(
        (lab.state(&lab.a), lab.state(&lab.b)),
        (Some(GuestState::Running), None)
    );
    assert!(!lab.a.has_job(lab.guest));
    lab.assert_clean();
}

#[tokio::test]
async fn a_handle_dropped_after_all_was_sent_leaves_the_guest_still() {
    let lab = Lab::new();
    let (outgoing, _incoming) = lab.sent().await;
    assert_eq!(lab.state(&lab.a), Some(GuestState::PausedMigrating));
    drop(outgoing);
    assert_eq!(lab.state(&lab.a), Some(GuestState::PausedMigrating));
    assert!(!lab.a.has_job(lab.guest));
    assert!(lab.running().is_empty());
    // And nobody protects it from a resume.
    lab.a.resume(lab.guest).await.unwrap();
    assert_eq!(lab.running(), ["a"]);
}

#[tokio::test]
async fn confirm_without_a_job_is_refused_and_a_fresh_begin_makes_it_work() {
    let lab = Lab::new();
    let (outgoing, incoming) = lab.sent().await;
    incoming.finish(&Cookie::default()).await.unwrap();
    lab.a.restart_libvirtd();
    let confirmed = outgoing.confirm_moved(&Cookie::default()).await;
    refused(confirmed, ErrorClass::Ambiguous, "VIR_ERR_RPC");
    assert_eq!(lab.state(&lab.a), Some(GuestState::PausedMigrating));
    let fresh = lab.begin().await.unwrap();
    fresh.confirm_moved(&Cookie::default()).await.unwrap();
    assert_eq!(lab.state(&lab.a), None);
    refused(
        fresh.confirm_moved(&Cookie::default()).await,
        ErrorClass::Ambiguous,
        "VIR_ERR_OPERATION_INVALID",
    );
}

#[tokio::test]
async fn a_cancelled_confirm_resumes_only_what_its_own_perform_stopped() {
    let lab = Lab::new();
    let (outgoing, incoming) = lab.sent().await;
    drop(incoming);
    outgoing.confirm_cancelled().await.unwrap();
    assert_eq!(lab.state(&lab.a), Some(GuestState::Running));

    let (outgoing, incoming) = lab.sent().await;
    drop((outgoing, incoming));
    lab.begin().await.unwrap().confirm_cancelled().await.unwrap();
    assert_eq!(lab.state(&lab.a), Some(GuestState::PausedMigrating));
    lab.a.resume(lab.guest).await.unwrap();
    lab.assert_clean();
}

#[tokio::test]
async fn a_paused_guest_stays_paused_when_its_migration_is_cancelled() {
    let lab = Lab::with(&SimGuest {
        memory_mib: 4,
        paused: true,
        ..SimGuest::named("web")
    });
    let (outgoing, incoming) = lab.sent().await;
    assert_eq!(lab.state(&lab.a), Some(GuestState::Paused));
    drop(incoming);
    outgoing.confirm_cancelled().await.unwrap();
    assert_eq!(lab.state(&lab.a), Some(GuestState::Paused));
}

#[tokio::test]
async fn an_aborted_perform_ends_its_job_and_the_guest_runs() {
    let lab = Lab::restless();
    let (outgoing, _incoming) = lab.both().await;
    let mut events = lab.a.events();
    let abort = async {
        happens(&mut events, |what| matches!(what, Happened::Iteration(2..))).await;
        outgoing.abort().await
    };
    let (performed, aborted) = tokio::join!(outgoing.perform(lab.perform_request()), abort);
    aborted.unwrap();
    refused(performed, ErrorClass::Aborted, "VIR_ERR_OPERATION_ABORTED");
    assert!(!lab.a.has_job(lab.guest));
    assert_eq!(lab.running(), ["a"]);
    outgoing.confirm_cancelled().await.unwrap();
}

#[tokio::test]
async fn a_guest_that_shuts_down_while_it_is_sent_ends_everywhere() {
    let lab = Lab::restless();
    let (outgoing, incoming) = lab.both().await;
    let mut events = lab.a.events();
    let end = async {
        happens(&mut events, |what| matches!(what, Happened::Iteration(2..))).await;
        lab.a.shut_down(lab.guest);
    };
    let (performed, ()) = tokio::join!(outgoing.perform(lab.perform_request()), end);
    refused(performed, ErrorClass::Ambiguous, "VIR_ERR_OPERATION_FAILED");
    // Whether the destination has noticed by now or not.
    let error = incoming.finish(&Cookie::default()).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Ambiguous);
    assert_eq!(
        (lab.state(&lab.a), lab.state(&lab.b)),
        (Some(GuestState::ShutOff), None)
    );
}

#[tokio::test]
async fn limits_are_kept_and_can_be_changed_on_the_way() {
    let lab = Lab::with(&SimGuest {
        memory_mib: 32,
        ..SimGuest::named("web")
    });
    let (outgoing, _incoming) = lab.both().await;
    let began = std::time::Instant::now();
    let request = PerformRequest {
        bandwidth: 1 << 20,
        ..lab.perform_request()
    };
    let mut events = lab.a.events();
    let faster = async {
        happens(&mut events, |what| matches!(what, Happened::Iteration(1))).await;
        let stats = outgoing.job().await.unwrap().unwrap();
        assert_eq!((stats.memory_total, stats.iteration), (32 << 20, 1));
        outgoing.set_bandwidth((128 << 20) - 5).await.unwrap();
    };
    let (performed, ()) = tokio::join!(outgoing.perform(request), faster);
    performed.unwrap();
    let took = began.elapsed();
    // At the old limit it would take 32 s.
    assert!(took.as_millis() >= 200 && took.as_secs() < 20, "{took:?}");
    assert_eq!(
        outgoing.completed_job().await.unwrap().unwrap().memory_processed,
        32 << 20
    );
}

#[tokio::test]
async fn a_busy_guest_is_slowed_down_by_steps_where_that_is_allowed() {
    let lab = Lab::restless();
    let flags = MigrateFlags {
        auto_converge: true,
        ..FLAGS
    };
    let begin = BeginRequest {
        guest: lab.guest,
        flags: flags.clone(),
    };
    let outgoing = lab.a.begin(begin).await.unwrap();
    let _incoming = lab.b.prepare(lab.request(&*outgoing, flags)).await.unwrap();
    let mut events = lab.a.events();
    let mut steps = Vec::new();
    let slowed = async {
        while steps.last() != Some(&99) {
            happens(&mut events, |what| matches!(what, Happened::Iteration(_))).await;
            let throttle = outgoing.job().await.unwrap().unwrap().throttle;
            if throttle > 0 && steps.last() != Some(&throttle) {
                steps.push(throttle);
            }
        }
        outgoing.abort().await.unwrap();
    };
    let (performed, ()) = tokio::join!(outgoing.perform(lab.perform_request()), slowed);
    assert!(performed.is_err());
    // One may have been over before it was looked at.
    let known = [20, 30, 40, 50, 60, 70, 80, 90, 99];
    assert!(
        steps.is_sorted() && steps.iter().all(|step| known.contains(step)),
        "{steps:?}"
    );
}
