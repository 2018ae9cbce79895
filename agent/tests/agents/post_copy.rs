//! Post-copy: the guest goes over before all its memory has; from then on nothing is undone and nothing destroyed.

use std::time::Duration;

use drover_agent::hypervisor::{GuestState, StopReason};
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::{Failure, Reason};
use drover_proto::time::proto_duration;
use drover_proto::v1::{DeadlineAction, TransferStage};
use tokio_util::sync::CancellationToken;

use crate::node::{Node, eventually};
use crate::policy::this_being_sent;
use crate::scene::{Scene, journal_state, reason};

const MIB: u64 = 1 << 20;

fn ms(millis: u64) -> Option<prost_types::Duration> {
    Some(proto_duration(Duration::from_millis(millis)))
}

/// So slow that nothing ends by itself while a test looks, and that a stream can be broken some times.
fn allowed() -> TransferPolicy {
    TransferPolicy {
        bandwidth_limit_bytes_per_second: MIB,
        max_downtime: ms(1),
        post_copy: true,
        ..TransferPolicy::default()
    }
}

fn busy() -> SimGuest {
    SimGuest {
        memory_mib: 8,
        dirty_mib_per_second: 1000,
        autostart: true,
        ..SimGuest::named("busy")
    }
}

async fn sending() -> Scene {
    this_being_sent(busy(), allowed()).await
}

fn now(revision: u64) -> TransferPolicy {
    TransferPolicy {
        post_copy_now: true,
        revision,
        ..allowed()
    }
}

/// The guest runs at b and most of its memory is at a.
pub(crate) async fn gone_over() -> Scene {
    let scene = sending().await;
    scene.adjust(now(1)).await.unwrap();
    scene
        .until(&scene.a, "the source knows that it runs there", |status| {
            status
                .progress
                .as_ref()
                .is_some_and(|progress| progress.stage() == TransferStage::PostCopy)
        })
        .await;
    scene
}

async fn arrived(scene: &Scene) {
    scene.until_moved().await;
    assert_eq!(scene.runs_on(), ["b"]);
    scene.rest(Verdict::Ran).await;
}

fn state(status: &MigrationStatus) -> LibvirtState {
    status
        .guest
        .as_ref()
        .map_or(LibvirtState::Unspecified, GuestFacts::state)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_goes_over_when_somebody_asks_and_has_ran_when_its_last_page_is_there() {
    let scene = gone_over().await;
    let (a, b) = (scene.status(&scene.a).await, scene.status(&scene.b).await);
    assert_eq!(journal_state(&a), JournalState::HandedOver);
    assert_eq!(journal_state(&b), JournalState::Resuming, "pages are missing");
    assert_eq!(
        (state(&a), state(&b)),
        (LibvirtState::PausedPostCopy, LibvirtState::RunningPostCopy)
    );
    let summary = a.summary.expect("a platform switches its network now");
    assert!(
        summary.switch_time.is_some() && summary.blackout.is_some(),
        "{summary:?}"
    );
    assert_eq!(scene.runs_on(), ["b"]);
    scene.until_moved().await;
    let calls = scene.status(&scene.a).await.calls;
    for once in ["libvirt.perform", "libvirt.finish", "libvirt.confirm"] {
        let made = calls.iter().filter(|call| call.call == once).count();
        assert_eq!(made, 1, "{once}: {calls:#?}");
    }
    arrived(&scene).await;
    assert!(scene.autostart(&scene.b));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_converge_goes_over_by_itself() {
    let mut scene = Scene::new(busy()).await;
    scene.policy = TransferPolicy {
        bandwidth_limit_bytes_per_second: 50 * MIB,
        ..allowed()
    };
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let status = scene.until_state(&scene.a, JournalState::HandedOver).await;
    let action = status.actions.last().expect("the control loop did it");
    assert_eq!(
        (action.action.as_str(), action.actor.as_str()),
        ("post-copy", "control-loop")
    );
    assert!(action.reason.contains("MiB remain"), "{action:?}");
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_deadline_a_guest_goes_over_and_not_before() {
    let mut scene = Scene::new(busy()).await;
    scene.policy = TransferPolicy {
        bandwidth_limit_bytes_per_second: 50 * MIB,
        deadline: ms(700),
        on_deadline: DeadlineAction::PostCopy.into(),
        post_copy: false,
        ..allowed()
    };
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let status = scene.until_state(&scene.a, JournalState::HandedOver).await;
    let action = status.actions.last().unwrap();
    assert_eq!(action.action, "post-copy");
    assert!(action.reason.contains("700 ms"), "{action:?}");
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_is_refused_is_tried_again() {
    let scene = sending().await;
    scene.a.host.script(Call::StartPostCopy, Fault::Refuse);
    scene.adjust(now(1)).await.unwrap();
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_switch_nothing_is_undone() {
    let scene = gone_over().await;
    assert_eq!(reason(scene.abort().await), Reason::PostCopy);
    let revoked = scene.revoke().await.unwrap();
    assert_eq!(journal_state(&revoked), JournalState::Resuming);
    assert!(!scene.status(&scene.a).await.journal.unwrap().tombstoned);
    assert!(scene.settle_a(Verdict::NeverRan).await.is_err());
    assert!(scene.settle_b(Verdict::NeverRan).await.is_err());
    assert!(scene.settle_b(Verdict::Ran).await.is_err(), "pages are missing");
    let order = TransferPolicy {
        pause_and_finish: true,
        ..now(2)
    };
    assert_eq!(reason(scene.adjust(order).await), Reason::TooLate);
    assert_eq!(scene.runs_on(), ["b"]);
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_does_not_come_between_the_order_and_the_switch() {
    let scene = sending().await;
    let held = CancellationToken::new();
    // QEMU was told, and switches when it comes to it.
    scene.a.host.script(Call::Sending, Fault::Until(held.clone()));
    scene.adjust(now(1)).await.unwrap();
    scene
        .until(&scene.a, "QEMU was told", |status| {
            status.calls.iter().any(|call| call.call == "libvirt.start-post-copy")
        })
        .await;
    assert_eq!(reason(scene.abort().await), Reason::PostCopy);
    held.cancel();
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_its_user_paused_does_not_run_by_it() {
    let mut scene = Scene::new(SimGuest { paused: true, ..busy() }).await;
    scene.policy = TransferPolicy {
        post_copy_now: false,
        ..allowed()
    };
    let ready = scene.ready().await;
    assert!(!scene.status(&scene.b).await.journal.unwrap().post_copy);
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    assert!(scene.runs_on().is_empty());
    scene.until_quiet(&scene.a).await;
    scene.rest(Verdict::Ran).await;
}

pub(crate) fn both_wait(scene: &Scene) -> bool {
    let state = |node: &Node| node.host.look(scene.guest).map(|guest| guest.state);
    (state(&scene.a), state(&scene.b))
        == (
            Some(GuestState::PausedPostCopyFailed),
            Some(GuestState::RunningPostCopyFailed),
        )
}

/// What the other side is asked while one is away.
async fn nothing_is_undone(scene: &Scene, source_is_away: bool) {
    eventually("both sides wait", || both_wait(scene)).await;
    if source_is_away {
        assert_eq!(journal_state(&scene.revoke().await.unwrap()), JournalState::Resuming);
        assert!(scene.settle_b(Verdict::Ran).await.is_err(), "pages are missing");
    } else {
        assert_eq!(reason(scene.abort().await), Reason::PostCopy);
        assert!(scene.settle_a(Verdict::NeverRan).await.is_err());
    }
    assert_eq!(scene.runs_on(), ["b"]);
    assert!(both_wait(scene), "with what they have");
    scene.holds();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_is_repaired_when_the_agent_is_back() {
    for source_dies in [true, false] {
        let mut scene = gone_over().await;
        let node = if source_dies { &mut scene.a } else { &mut scene.b };
        node.kill().await;
        nothing_is_undone(&scene, source_dies).await;
        let node = if source_dies { &mut scene.a } else { &mut scene.b };
        node.start().await;
        arrived(&scene).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_again_and_again_is_repaired_each_time() {
    let mut scene = gone_over().await;
    for source_dies in [true, false, true, false, true] {
        let node = if source_dies { &mut scene.a } else { &mut scene.b };
        node.kill().await;
        eventually("both sides wait", || both_wait(&scene)).await;
        let node = if source_dies { &mut scene.a } else { &mut scene.b };
        node.start().await;
        eventually("pages flow again", || {
            let state = |node: &Node| node.host.look(scene.guest).map(|guest| guest.state);
            state(&scene.a) == Some(GuestState::PausedPostCopy) && state(&scene.b) == Some(GuestState::RunningPostCopy)
        })
        .await;
    }
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_fails_anywhere_is_tried_again() {
    let mut scene = gone_over().await;
    scene.b.kill().await;
    for (call, fault) in [
        (Call::Begin, Fault::Refuse),
        (Call::Begin, Fault::LoseAnswer),
        (Call::Perform, Fault::Refuse),
    ] {
        scene.a.host.script(call, fault);
    }
    for (call, fault) in [
        (Call::Prepare, Fault::Refuse),
        (Call::Prepare, Fault::LoseAnswer),
        (Call::Finish, Fault::LoseAnswer),
    ] {
        scene.b.host.script(call, fault);
    }
    scene.b.start().await;
    // Whoever asks for it does not wait for the next try.
    let asking = async {
        while state(&scene.status(&scene.a).await) != LibvirtState::PausedPostCopy {
            if let Err(failure) = scene.hand_over().await {
                assert!(!failure.is_evidence(), "{failure:?}");
            }
            scene.holds();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asking)
        .await
        .expect("pages flow again");
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_copy_is_gone_says_so_and_what_came_is_kept() {
    let scene = gone_over().await;
    scene.a.host.kill(scene.guest, StopReason::Crashed);
    let lost = |status: &MigrationStatus| status.error.as_ref().is_some_and(|error| error.reason == "GUEST_ENDED");
    scene.until(&scene.a, "the source says that it is lost", lost).await;
    let there = scene.b.host.look(scene.guest);
    assert!(there.is_some_and(|guest| guest.state.is_active()), "what came is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_last_word_was_lost_goes_all_the_same() {
    let scene = gone_over().await;
    scene.b.host.lose_last_word(scene.guest);
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_agent_died_when_all_had_arrived_goes_all_the_same() {
    let mut scene = gone_over().await;
    scene
        .a
        .host
        .script(Call::ConfirmMoved, Fault::Until(CancellationToken::new()));
    scene
        .until(&scene.a, "the copy is being removed", |status| {
            status
                .journal
                .as_ref()
                .is_some_and(|journal| journal.verdict() == Verdict::Ran)
        })
        .await;
    scene.a.kill().await;
    // libvirt calls it broken, whatever QEMU says, and takes no other Begin.
    let copy = scene.a.host.look(scene.guest).map(|guest| guest.state);
    assert_eq!(copy, Some(GuestState::PausedPostCopyFailed));
    scene.a.start().await;
    scene.settle_a(Verdict::Ran).await.unwrap();
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_source_with_its_ticket_gets_another_stream() {
    let scene = sending().await;
    let order = |ticket: Vec<u8>| ReopenStreamRequest {
        migration_id: scene.migration.to_string(),
        attempt: scene.attempt,
        ticket: ticket.into(),
        xml: scene.b.host.look(scene.guest).unwrap().xml,
        ..ReopenStreamRequest::default()
    };
    let ask = async |identity: &str, ticket: Vec<u8>| {
        let answer = scene.peer_of_b(identity).reopen_stream(order(ticket)).await;
        Failure::from_status(&answer.unwrap_err()).reason
    };
    let right = scene.a.jobs().journal.read(scene.migration).unwrap();
    let right = right
        .source()
        .unwrap()
        .delivery
        .as_ref()
        .unwrap()
        .ticket
        .as_bytes()
        .to_vec();
    assert_eq!(ask("agent/a", vec![7; 32]).await, Reason::TicketRefused);
    assert_eq!(ask("agent/c", right.clone()).await, Reason::TicketRefused);
    assert_eq!(
        ask("agent/a", right.clone()).await,
        Reason::MigrationState,
        "it waits for the first stream"
    );
    scene.adjust(now(1)).await.unwrap();
    arrived(&scene).await;
    assert_eq!(
        ask("agent/a", right).await,
        Reason::MigrationState,
        "no page is missing"
    );
}
