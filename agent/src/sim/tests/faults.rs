//! Planted faults, and what daemons and hosts do when they die.

use tokio_util::sync::CancellationToken;

use super::*;
use crate::sim::{Call, Fault, SimConfig};

#[tokio::test]
async fn a_refused_call_does_nothing_and_only_once() {
    let lab = Lab::new();
    lab.a.script(Call::Suspend, Fault::Refuse);
    refused(
        lab.a.suspend(lab.guest).await,
        ErrorClass::UserMustAct,
        "VIR_ERR_OPERATION_DENIED",
    );
    assert_eq!(lab.running(), ["a"]);
    lab.a.suspend(lab.guest).await.unwrap();
    assert!(lab.running().is_empty());
}

#[tokio::test]
async fn a_lost_answer_means_that_it_was_done() {
    let lab = Lab::new();
    lab.a.script(Call::Suspend, Fault::LoseAnswer);
    refused(lab.a.suspend(lab.guest).await, ErrorClass::Ambiguous, "VIR_ERR_RPC");
    assert!(lab.running().is_empty());
    // The handle in a lost answer goes with its connection.
    lab.a.script(Call::Begin, Fault::LoseAnswer);
    lab.begin().await.err().unwrap();
    assert!(!lab.a.has_job(lab.guest));
}

#[tokio::test]
async fn a_held_call_is_done_when_it_is_let_go() {
    let lab = Lab::new();
    let token = CancellationToken::new();
    lab.a.script(Call::Suspend, Fault::Until(token.clone()));
    lab.a.script(Call::Suspend, Fault::Delay(Duration::from_millis(1)));
    let suspend = lab.a.suspend(lab.guest);
    tokio::pin!(suspend);
    assert!(futures::poll!(&mut suspend).is_pending());
    assert_eq!(lab.running(), ["a"]);
    token.cancel();
    suspend.await.unwrap();
    lab.a.suspend(lab.guest).await.unwrap();
}

#[tokio::test]
async fn a_held_answer_means_that_it_was_done() {
    let lab = Lab::new();
    let token = CancellationToken::new();
    lab.a.script(Call::Suspend, Fault::AnswerAfter(token.clone()));
    let suspend = lab.a.suspend(lab.guest);
    tokio::pin!(suspend);
    assert!(futures::poll!(&mut suspend).is_pending());
    assert!(lab.running().is_empty());
    token.cancel();
    suspend.await.unwrap();
}

#[tokio::test]
async fn what_is_only_defined_is_started_and_active_is_done() {
    let lab = Lab::new();
    lab.a.shut_down(lab.guest);
    assert!(lab.running().is_empty());
    lab.a.start(lab.guest).await.unwrap();
    let life = lab.a.look(lab.guest).unwrap().incarnation;
    lab.a.start(lab.guest).await.unwrap();
    assert_eq!(lab.a.look(lab.guest).unwrap().incarnation, life);
    assert_eq!(lab.running(), ["a"]);
}

#[tokio::test]
async fn a_libvirtd_that_dies_before_all_is_sent_cancels_and_the_guest_runs_on() {
    let lab = Lab::restless();
    let (outgoing, _incoming) = lab.both().await;
    let mut events = lab.a.events();
    let die = async {
        happens(&mut events, |what| matches!(what, Happened::Iteration(2..))).await;
        lab.a.restart_libvirtd();
    };
    let (performed, ()) = tokio::join!(outgoing.perform(lab.perform_request()), die);
    refused(performed, ErrorClass::Ambiguous, "VIR_ERR_RPC");
    assert_eq!(lab.running(), ["a"]);
    assert!(!lab.a.has_job(lab.guest));
}

#[tokio::test]
async fn a_libvirtd_that_dies_after_all_was_sent_leaves_the_guest_still() {
    let lab = Lab::new();
    let (outgoing, _incoming) = lab.sent().await;
    lab.a.script(Call::ConfirmMoved, Fault::Die);
    refused(
        outgoing.confirm_moved(&Cookie::default()).await,
        ErrorClass::Ambiguous,
        "VIR_ERR_RPC",
    );
    assert_eq!(lab.state(&lab.a), Some(GuestState::PausedMigrating));
    assert!(!lab.a.has_job(lab.guest));
}

#[tokio::test]
async fn a_libvirtd_that_dies_at_the_destination_kills_what_waits_and_keeps_what_runs() {
    let lab = Lab::new();
    let (outgoing, incoming) = lab.sent().await;
    lab.b.script(Call::Finish, Fault::Die);
    refused(
        incoming.finish(&Cookie::default()).await,
        ErrorClass::Ambiguous,
        "VIR_ERR_RPC",
    );
    assert_eq!(lab.state(&lab.b), None);
    outgoing.confirm_cancelled().await.unwrap();

    let (_outgoing, incoming) = lab.sent().await;
    incoming.finish(&Cookie::default()).await.unwrap();
    lab.b.resume(lab.guest).await.unwrap();
    lab.b.restart_libvirtd();
    assert_eq!(lab.running(), ["b"]);
    lab.assert_clean();
}

#[tokio::test]
async fn a_reboot_starts_what_has_autostart_in_another_life() {
    let lab = Lab::new();
    let before = lab.a.look(lab.guest).unwrap().incarnation.unwrap();
    lab.a.reboot();
    assert_eq!(lab.state(&lab.a), Some(GuestState::ShutOff));
    lab.a.set_autostart(lab.guest, true).await.unwrap();
    lab.a.reboot();
    let after = lab.a.look(lab.guest).unwrap().incarnation.unwrap();
    assert_eq!(lab.running(), ["a"]);
    assert_eq!(after.boot_id, lab.a.boot_id());
    assert!(after.boot_id != before.boot_id && after.qemu_start_time != before.qemu_start_time);
}

#[tokio::test]
async fn guests_and_definitions_are_kept_as_libvirt_keeps_them() {
    let lab = Lab::new();
    lab.a.undefine(lab.guest).await.unwrap();
    let facts = lab.a.guest_by_name("web").await.unwrap().unwrap();
    assert!(!facts.persistent && facts.state == GuestState::Running);
    let autostart = lab.a.set_autostart(lab.guest, true).await;
    refused(autostart, ErrorClass::UserMustAct, "VIR_ERR_OPERATION_INVALID");
    lab.a.define(&facts.xml).await.unwrap();
    lab.a.shut_down(lab.guest);
    assert_eq!(lab.a.guests().await.unwrap().len(), 1);
    lab.a.undefine(lab.guest).await.unwrap();
    lab.a.undefine(lab.guest).await.unwrap();
    assert!(lab.a.guest(lab.guest).await.unwrap().is_none());
}

#[tokio::test]
async fn memory_that_guests_have_is_not_available() {
    let lab = Lab::new();
    let before = lab.b.host().await.unwrap().memory_available;
    lab.b
        .add(&SimGuest {
            memory_mib: 100,
            ..SimGuest::named("other")
        })
        .unwrap();
    assert_eq!(lab.b.host().await.unwrap().memory_available, before - (100 << 20));
}

#[tokio::test]
async fn guests_can_be_written_in_the_agents_configuration() {
    let config: SimConfig =
        serde_json::from_str(r#"{"guests": [{"name": "web"}, {"name": "db", "paused": true}]}"#).unwrap();
    let host = config.start("a").unwrap();
    let guests = host.guests().await.unwrap();
    assert_eq!(guests.len(), 2);
    assert_eq!(
        host.guest_by_name("db").await.unwrap().unwrap().state,
        GuestState::Paused
    );
    let again = config.start("a").unwrap();
    assert_eq!(
        again.guest_by_name("web").await.unwrap().unwrap().id,
        guests.iter().find(|guest| guest.name == "web").unwrap().id
    );
}
