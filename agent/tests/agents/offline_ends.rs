//! A guest that is shut off, where its move does not end as planned: what is here stays somebody's, on either host.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use drover_agent::gate::{Gate, Moment, Pass};
use drover_agent::hypervisor::{GuestState, Hypervisor, StopReason};
use drover_agent::jobs::Timing;
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::node::eventually;
use crate::offline::{content, defined, free, has_moved, is_back, lock, scene, scene_with, slow_scene, some_has_come};
use crate::scene::{Scene, journal_state, reason};

/// All is handed over and the source has forgotten the guest; the destination has not heard of it, and its agent is
/// dead. The source asks again and again.
async fn forgotten_and_unheard() -> Scene {
    let mut scene = scene(1).await;
    let go_on = CancellationToken::new();
    scene.a.host.script(Call::Undefine, Fault::AnswerAfter(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.a, JournalState::HandedOver).await;
    eventually("it is forgotten", || scene.a.host.look(scene.guest).is_none()).await;
    scene.b.kill().await;
    go_on.cancel();
    scene
}

/// The destination has it, and the source's agent died before it heard that.
async fn taken_and_unheard(delete_source: bool) -> Scene {
    let mut scene = scene(1).await;
    scene.offline.as_mut().unwrap().delete_source = delete_source;
    let go_on = CancellationToken::new();
    scene.b.host.script(Call::Define, Fault::AnswerAfter(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    eventually("it is defined there", || scene.b.host.look(scene.guest).is_some()).await;
    scene.a.kill().await;
    go_on.cancel();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene
}

fn change(path: &Path) {
    let image = std::fs::File::options().write(true).open(path).unwrap();
    image.write_all_at(b"changed", 0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_cannot_be_used_until_somebody_has_decided() {
    let mut scene = forgotten_and_unheard().await;
    let image = std::fs::File::open(scene.a.image("one.raw")).unwrap();
    assert!(!free(&image, 201), "a QEMU that comes now sees that it may not write");
    scene.a.restart().await;
    assert!(!free(&image, 201), "nor after a start of the agent");
    drop(image);
    scene.b.start().await;
    scene.hand_over().await.unwrap();
    has_moved(&scene, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_defined_and_used_again_at_its_source_stays_there() {
    for runs in [true, false] {
        let mut scene = forgotten_and_unheard().await;
        let xml = SimGuest {
            autostart: true,
            disks: vec!["/images/one.raw".to_owned(), "/images/two.raw".to_owned()],
            ..SimGuest::named("web")
        }
        .xml();
        scene.a.host.define(&xml).await.unwrap();
        if runs {
            scene.a.host.start(scene.guest).await.unwrap();
        }
        change(&scene.a.image("one.raw"));
        let ran_on = |status: &MigrationStatus| status.journal.as_ref().is_some_and(|journal| journal.ran_on);
        scene.until(&scene.a, "it is seen", ran_on).await;
        scene.b.start().await;
        scene.until_quiet(&scene.a).await;
        assert!(scene.hand_over().await.is_err());
        scene.abort().await.unwrap();
        scene.revoke().await.unwrap();
        scene.settle_a(Verdict::NeverRan).await.unwrap();
        scene.settle_b(Verdict::NeverRan).await.unwrap();
        assert_eq!(defined(&scene), (true, false));
        assert_eq!(scene.a.images(), ["one.raw", "two.raw"]);
        assert!(std::fs::read(scene.a.image("one.raw")).unwrap().starts_with(b"changed"));
        assert_eq!(scene.b.images(), [""; 0]);
        scene.holds();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_used_again_at_the_source_are_neither_renamed_nor_removed() {
    for delete_source in [true, false] {
        let mut scene = taken_and_unheard(delete_source).await;
        // Another file has the name, perhaps with the same number.
        std::fs::remove_file(scene.a.image("one.raw")).unwrap();
        std::fs::write(scene.a.image("one.raw"), b"another guest's").unwrap();
        let user = std::fs::File::open(scene.a.image("two.raw")).unwrap();
        lock(&user, 101, libc::F_RDLCK).unwrap();
        scene.a.start().await;
        scene.settle_a(Verdict::Ran).await.unwrap();
        assert_eq!(scene.a.images(), ["one.raw", "two.raw"]);
        assert_eq!(std::fs::read(scene.a.image("one.raw")).unwrap(), b"another guest's");
        let actions = scene.status(&scene.a).await.actions;
        let told: Vec<_> = actions.iter().filter(|action| action.action == "file-stays").collect();
        assert_eq!(told.len(), 2, "somebody is told: {actions:?}");
    }
    // The guest itself is here again.
    let mut scene = taken_and_unheard(true).await;
    scene.a.host.add(&SimGuest::named("web")).unwrap();
    scene.a.start().await;
    scene.settle_a(Verdict::Ran).await.unwrap();
    assert_eq!(scene.a.images(), ["one.raw", "two.raw"]);
}

/// Loses the answer to one look, and counts all.
fn losing(lost: usize, looks: &Arc<AtomicUsize>) -> Gate {
    let looks = Arc::clone(looks);
    Gate::watched(move |call, moment| {
        let is_look = call == Call::Look.name() && moment == Moment::Before;
        let is_it = is_look && looks.fetch_add(1, Ordering::Relaxed) == lost;
        std::future::ready(if is_it { Pass::Lose } else { Pass::Go }).boxed()
    })
}

/// It was taken for a guest that is here again, and the files stayed.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_fails_says_nothing_of_the_guest_and_its_files_are_put_away() {
    for lost in 0.. {
        let mut scene = taken_and_unheard(false).await;
        scene.a.start().await;
        let looks = Arc::new(AtomicUsize::new(0));
        scene.a.host.set_gate(losing(lost, &looks));
        let settled = scene.settle_a(Verdict::Ran).await;
        scene.a.host.set_gate(Gate::default());
        if settled.is_err() {
            scene.settle_a(Verdict::Ran).await.unwrap();
        }
        let moved = |name: &str| format!("{name}.moved-{}", scene.migration);
        assert_eq!(scene.a.images(), [moved("one.raw"), moved("two.raw")], "look {lost}");
        if looks.load(Ordering::Relaxed) <= lost {
            return;
        }
    }
}

/// An operator has said that the destination is fenced; its agent hears of it.
async fn fenced_by_word(scene: &Scene) {
    let word = SettleIncomingRequest {
        fence: scene.fence(),
        migration: scene.reference(),
        verdict: Verdict::NeverRan.into(),
        fenced: true,
        definition: None,
    };
    scene.ask_b().settle_incoming(word).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_was_not_fenced_is_stopped_and_keeps_its_files() {
    let scene = taken_and_unheard(false).await;
    scene.b.host.start(scene.guest).await.unwrap();
    fenced_by_word(&scene).await;
    let found = scene.b.host.look(scene.guest).expect("its definition stays");
    assert_eq!(found.state, GuestState::Paused, "it is stopped");
    assert_eq!(scene.b.images(), ["one.raw", "two.raw"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_was_fenced_keeps_what_it_had_been_given() {
    let scene = taken_and_unheard(false).await;
    fenced_by_word(&scene).await;
    assert!(scene.b.host.look(scene.guest).is_none(), "nobody starts it here");
    assert_eq!(scene.b.images(), ["one.raw", "two.raw"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_copy_outlives_its_ticket() {
    // For a guest that is shut off ten times as long: time enough to connect, also on a busy machine.
    let limits = Timing {
        ticket: Duration::from_millis(300),
        hand_over: Duration::from_secs(2),
        ..Timing::default()
    };
    let mut scene = scene_with(1, limits).await;
    let go_on = CancellationToken::new();
    scene.a.host.script(Call::Undefine, Fault::AnswerAfter(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.a, JournalState::HandedOver).await;
    scene.a.kill().await;
    scene.b.restart().await;
    // Until after it would have been over.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Waiting);
    go_on.cancel();
    scene.a.start().await;
    scene.hand_over().await.unwrap();
    has_moved(&scene, 1).await;
}

#[tokio::test]
async fn an_image_that_is_written_to_without_any_lock_is_compared_and_sent_again() {
    let scene = slow_scene().await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    // What is changed was sent before.
    some_has_come(&scene).await;
    change(&scene.a.image("one.raw"));
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    assert_eq!(defined(&scene), (false, true));
    scene.rest(Verdict::Ran).await;
    let mut changed = content(2);
    assert!(std::fs::read(scene.b.image("two.raw")).unwrap() == changed);
    changed[..7].copy_from_slice(b"changed");
    assert!(std::fs::read(scene.b.image("one.raw")).unwrap() == changed);
}

#[tokio::test]
async fn an_image_that_is_written_to_again_and_again_is_not_handed_over() {
    let scene = slow_scene().await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    some_has_come(&scene).await;
    let over = CancellationToken::new();
    let (image, ends) = (scene.a.image("one.raw"), over.clone());
    // Each time the whole block is sent again, which takes two seconds.
    let writer = std::thread::spawn(move || {
        let image = std::fs::File::options().write(true).open(image).unwrap();
        for number in 0_u64.. {
            image.write_all_at(&number.to_le_bytes(), 0).unwrap();
            if ends.is_cancelled() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        image.write_all_at(&content(2)[..8], 0).unwrap();
    });
    let status = scene
        .until(&scene.a, "the hand-over is refused", |status| status.error.is_some())
        .await;
    over.cancel();
    writer.join().unwrap();
    assert_eq!(journal_state(&status), JournalState::Sending);
    assert_eq!(
        status.perform_outcome(),
        PerformOutcome::Failed,
        "asking again changes nothing"
    );
    let error = status.error.unwrap();
    assert_eq!(error.reason, Reason::GuestBusy.name());
    assert!(error.message.contains("one.raw"), "{}", error.message);
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    is_back(&scene, 2).await;
}

#[tokio::test]
async fn what_was_kept_goes_when_its_time_is_over_and_nobody_has_used_it() {
    let limits = Timing {
        keep_moved: Some(Duration::ZERO),
        ..Timing::default()
    };
    let mut scene = scene_with(1, limits).await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    has_moved(&scene, 1).await;
    let moved = |name: &str| scene.a.image(&format!("{name}.moved-{}", scene.migration));
    let (one, two) = (moved("one.raw"), moved("two.raw"));
    change(&one);
    scene.a.restart().await;
    eventually("what nobody has used is gone", || !two.exists()).await;
    assert!(one.exists(), "somebody has used it since");
}

#[tokio::test]
async fn what_others_use_too_is_not_taken_from_them() {
    let scene = scene(1).await;
    // Somebody only reads it, as a guest does whose image lies on it.
    let reader = std::fs::File::open(scene.a.image("two.raw")).unwrap();
    for byte in [100, 201] {
        lock(&reader, byte, libc::F_RDLCK).unwrap();
    }
    assert_eq!(reason(scene.begin().await), Reason::GuestBusy);
    drop(reader);
    let xml = scene.a.host.look(scene.guest).unwrap().inactive_xml.unwrap();
    let shared = xml.replacen("<target dev='vda'", "<shareable/><target dev='vda'", 1);
    assert_ne!(xml, shared);
    scene.a.host.define(&shared).await.unwrap();
    assert_eq!(reason(scene.begin().await), Reason::ChecksFailed);
    assert!(scene.autostart(&scene.a), "nothing was touched");
}

#[tokio::test]
async fn a_guest_that_the_destination_has_by_now_stays_as_it_is() {
    for same in [true, false] {
        let scene = slow_scene().await;
        let ready = scene.ready().await;
        scene.send(&ready).await.unwrap();
        some_has_come(&scene).await;
        let other = SimGuest {
            uuid: (!same).then(|| "0190a1b2-0000-7000-8000-0000000000aa".parse().unwrap()),
            ..SimGuest::named("web")
        };
        scene.b.host.add(&other).unwrap();
        scene.b.host.kill(other.id(), StopReason::Shutdown);
        let before = scene.b.host.look(other.id()).unwrap().inactive_xml;
        scene.until_state(&scene.b, JournalState::Revoked).await;
        scene.until_quiet(&scene.a).await;
        scene.abort().await.unwrap();
        scene.settle_a(Verdict::NeverRan).await.unwrap();
        scene.settle_b(Verdict::NeverRan).await.unwrap();
        assert!(scene.a.host.look(scene.guest).is_some());
        assert_eq!(scene.b.host.look(other.id()).unwrap().inactive_xml, before);
        assert_eq!(scene.b.images(), [""; 0]);
        assert_eq!(scene.a.images(), ["one.raw", "two.raw"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_defined_at_its_destination_has_arrived_whatever_became_of_its_files() {
    let mut scene = scene(1).await;
    let go_on = CancellationToken::new();
    scene.b.host.script(Call::Define, Fault::AnswerAfter(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    eventually("it is defined there", || scene.b.host.look(scene.guest).is_some()).await;
    scene.b.kill().await;
    go_on.cancel();
    // A snapshot was put back, say: the same bytes in another file.
    std::fs::remove_file(scene.b.image("one.raw")).unwrap();
    std::fs::write(scene.b.image("one.raw"), content(1)).unwrap();
    scene.b.start().await;
    has_moved(&scene, 1).await;
}

#[tokio::test]
async fn a_source_cannot_define_another_guest_nor_announce_what_no_disk_holds() {
    let scene = scene(1).await;
    let begun = scene.begin().await.unwrap();
    let mut other = begun.clone();
    let xml = std::mem::take(&mut other.inactive_xml);
    let named = xml.replace("<name>web</name>", "<name>db</name>");
    let other_id = xml.replace(&scene.guest.to_string(), "0190a1b2-0000-7000-8000-0000000000aa");
    for definition in [named, other_id] {
        assert_ne!(definition, xml);
        other.inactive_xml = definition;
        assert_eq!(reason(scene.prepare(&other).await), Reason::InvalidArgument);
    }
    let mut large = begun.clone();
    large.files[0].size_bytes = 1 << 50;
    assert_eq!(reason(scene.prepare(&large).await), Reason::InvalidArgument);
}
