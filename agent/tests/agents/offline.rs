//! A guest that is shut off moves with its files: it can be started on one host at most, at every moment, and whatever
//! dies, the bytes are right and nothing is left.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use drover_agent::hypervisor::{Hypervisor, StopReason};
use drover_agent::jobs::Timing;
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use drover_proto::v1::{DestinationOverrides, DiskOverride};

use crate::node::eventually;
use crate::scene::{Scene, journal_state, reason};

const MIB: usize = 1 << 20;

pub(crate) fn content(mib: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..mib * MIB).map(|_| next()).collect()
}

/// Two images on a, of so many MiB each; the guest is shut off and was started with its host.
pub(crate) async fn scene(mib: usize) -> Scene {
    let limits = Timing {
        hand_over: Duration::from_secs(2),
        ..Timing::default()
    };
    scene_with(mib, limits).await
}

pub(crate) async fn scene_with(mib: usize, limits: Timing) -> Scene {
    let guest = SimGuest {
        autostart: true,
        disks: vec!["/images/one.raw".to_owned(), "/images/two.raw".to_owned()],
        ..SimGuest::named("web")
    };
    let mut scene = Scene::with_limits(guest, limits).await;
    for name in ["one.raw", "two.raw"] {
        std::fs::write(scene.a.image(name), content(mib)).unwrap();
    }
    scene.a.host.kill(scene.guest, StopReason::Shutdown);
    scene.offline = Some(OfflineOrder {
        images: vec!["/images/one.raw".to_owned(), "/images/two.raw".to_owned()],
        ..OfflineOrder::default()
    });
    scene
}

/// So slow that something can be done meanwhile.
pub(crate) async fn slow_scene() -> Scene {
    let mut scene = scene(2).await;
    scene.policy.bandwidth_limit_bytes_per_second = 512 << 10;
    scene
}

pub(crate) async fn some_has_come(scene: &Scene) {
    let partial = scene.b.image(&format!("one.raw.drover-partial-{}", scene.migration));
    let has_data = || {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&partial).is_ok_and(|found| found.blocks() > 0)
    };
    eventually("some of the file has come", has_data).await;
}

pub(crate) fn defined(scene: &Scene) -> (bool, bool) {
    let there = |host: &drover_agent::sim::SimHost| host.look(scene.guest).is_some();
    (there(&scene.a.host), there(&scene.b.host))
}

pub(crate) async fn has_moved(scene: &Scene, mib: usize) {
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    assert_eq!(defined(scene), (false, true));
    scene.rest(Verdict::Ran).await;
    assert_eq!(scene.b.images(), ["one.raw", "two.raw"]);
    for name in scene.b.images() {
        assert!(std::fs::read(scene.b.image(&name)).unwrap() == content(mib), "{name}");
    }
    let moved = |name: &str| format!("{name}.moved-{}", scene.migration);
    assert_eq!(scene.a.images(), [moved("one.raw"), moved("two.raw")]);
    assert!(scene.autostart(&scene.b));
}

pub(crate) async fn is_back(scene: &Scene, mib: usize) {
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(defined(scene), (true, false));
    assert_eq!(scene.a.images(), ["one.raw", "two.raw"]);
    assert!(std::fs::read(scene.a.image("one.raw")).unwrap() == content(mib));
    assert_eq!(scene.b.images(), [""; 0]);
    assert!(scene.autostart(&scene.a), "its autostart is as before");
    let facts = scene.a.host.look(scene.guest).unwrap();
    assert!(facts.persistent && !facts.state.is_active());
}

#[tokio::test]
async fn a_guest_moves_with_its_files_and_its_definition() {
    let scene = scene(3).await;
    let before = scene.a.host.look(scene.guest).unwrap().inactive_xml;
    let ready = scene.ready().await;
    assert!(!scene.autostart(&scene.a), "a host that reboots does not start it");
    scene.send(&ready).await.unwrap();
    has_moved(&scene, 3).await;
    assert_eq!(scene.b.host.look(scene.guest).unwrap().inactive_xml, before);
}

#[tokio::test]
async fn the_sources_files_are_removed_where_that_was_asked_for() {
    let mut scene = scene(1).await;
    scene.offline.as_mut().unwrap().delete_source = true;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    scene.rest(Verdict::Ran).await;
    assert_eq!(scene.a.images(), [""; 0]);
}

#[tokio::test]
async fn nobody_can_write_to_an_image_meanwhile_and_nobody_may_have_it_open() {
    let scene = scene(1).await;
    let image = std::fs::File::options()
        .read(true)
        .write(true)
        .open(scene.a.image("two.raw"))
        .unwrap();
    lock(&image, 101, libc::F_RDLCK).unwrap();
    assert_eq!(reason(scene.begin().await), Reason::GuestBusy);
    assert!(scene.autostart(&scene.a), "nothing was touched");
    drop(image);
    scene.ready().await;
    let image = std::fs::File::open(scene.a.image("two.raw")).unwrap();
    assert!(!free(&image, 201), "a QEMU that comes now sees that it may not write");
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    is_back(&scene, 1).await;
    assert!(free(&image, 201));
}

fn byte(kind: i32, at: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: 0,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    }
}

pub(crate) fn lock(file: &std::fs::File, at: i64, kind: i32) -> nix::Result<i32> {
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_SETLK(&byte(kind, at)))
}

pub(crate) fn free(file: &std::fs::File, at: i64) -> bool {
    let mut found = byte(libc::F_WRLCK, at);
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_GETLK(&mut found)).unwrap();
    i32::from(found.l_type) == libc::F_UNLCK
}

#[tokio::test]
async fn what_cannot_be_copied_is_refused_before_anything_is_touched() {
    let mut scene = scene(1).await;
    scene.a.host.set_snapshots(scene.guest, 1);
    assert_eq!(reason(scene.begin().await), Reason::ChecksFailed);
    scene.a.host.set_snapshots(scene.guest, 0);
    scene.a.host.set_managed_save(scene.guest, true);
    assert_eq!(reason(scene.begin().await), Reason::ChecksFailed);
    scene.a.host.set_managed_save(scene.guest, false);
    scene.a.host.set_checkpoints(scene.guest, 1);
    assert_eq!(reason(scene.begin().await), Reason::ChecksFailed);
    scene.a.host.set_checkpoints(scene.guest, 0);
    let target = || scene.a.host.look(scene.guest).unwrap().inactive_xml.unwrap();
    assert!(
        target().contains("dev='vda'") || target().contains("dev=\"vda\""),
        "{}",
        target()
    );
    scene.overrides = Some(DestinationOverrides {
        disks: vec![DiskOverride {
            target: "vda".to_owned(),
            source: "/images/other.raw".to_owned(),
        }],
        ..DestinationOverrides::default()
    });
    assert_eq!(reason(scene.begin().await), Reason::StorageUnusable);
    assert!(scene.autostart(&scene.a), "nothing was touched");
    scene.overrides = None;
    let begun = scene.begin().await.unwrap();
    std::fs::write(scene.b.image("two.raw"), b"somebody's").unwrap();
    assert_eq!(reason(scene.prepare(&begun).await), Reason::StorageUnusable);
    let mut large = begun.clone();
    large.files[0].allocated_bytes = u64::MAX / 4;
    std::fs::remove_file(scene.b.image("two.raw")).unwrap();
    assert_eq!(reason(scene.prepare(&large).await), Reason::NoSpace);
    let mut outside = begun.clone();
    outside.files[0].path = "/etc/shadow".to_owned();
    assert_eq!(reason(scene.prepare(&outside).await), Reason::StorageUnusable);
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    is_back(&scene, 1).await;
}

#[tokio::test]
async fn a_copy_that_is_given_up_leaves_nothing() {
    let scene = slow_scene().await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    some_has_come(&scene).await;
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    is_back(&scene, 2).await;
}

#[tokio::test]
async fn a_copy_goes_on_when_the_destinations_agent_is_back() {
    let mut scene = slow_scene().await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    some_has_come(&scene).await;
    scene.b.restart().await;
    has_moved(&scene, 2).await;
}

#[tokio::test]
async fn a_copy_goes_on_when_the_sources_agent_is_back() {
    let mut scene = slow_scene().await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    some_has_come(&scene).await;
    scene.a.kill().await;
    // Nobody held it meanwhile: what was sent already is compared again.
    let image = std::fs::File::options()
        .write(true)
        .open(scene.a.image("one.raw"))
        .unwrap();
    image.write_all_at(&[content(1)[5] ^ 1], 5).unwrap();
    scene.a.start().await;
    let status = scene.status(&scene.a).await;
    assert_eq!(journal_state(&status), JournalState::Sending);
    let again = scene.ready().await;
    assert_eq!(again.prepared.ticket, ready.prepared.ticket);
    scene.send(&again).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    let mut expected = content(2);
    expected[5] ^= 1;
    assert!(std::fs::read(scene.b.image("one.raw")).unwrap() == expected);
    scene.until_quiet(&scene.a).await;
    scene.rest(Verdict::Ran).await;
}

#[tokio::test]
async fn whatever_answer_is_lost_it_is_startable_on_one_host_at_most() {
    for (on_source, call) in [(true, Call::Undefine), (false, Call::Define)] {
        for fault in [Fault::LoseAnswer, Fault::Refuse] {
            let scene = scene(1).await;
            let host = if on_source { &scene.a.host } else { &scene.b.host };
            host.script(call, fault.clone());
            let ready = scene.ready().await;
            scene.send(&ready).await.unwrap();
            scene.until_quiet(&scene.a).await;
            assert_ne!(defined(&scene), (true, true));
            if on_source && matches!(fault, Fault::Refuse) {
                // It would be refused again: the guest stays.
                assert!(scene.status(&scene.a).await.journal.unwrap().ran_on);
                scene.abort().await.unwrap();
                scene.revoke().await.unwrap();
                is_back(&scene, 1).await;
                continue;
            }
            // As a controller does that looks: again.
            let ran = |status: &MigrationStatus| journal_state(status) == JournalState::Ran;
            if !ran(&scene.status(&scene.b).await) {
                let _ = scene.hand_over().await;
            }
            if ran(&scene.status(&scene.b).await) {
                has_moved(&scene, 1).await;
            } else {
                scene.until_state(&scene.b, JournalState::Failed).await;
                is_back(&scene, 1).await;
            }
        }
    }
}

#[tokio::test]
async fn one_that_the_destination_cannot_define_is_defined_at_the_source_again() {
    let scene = scene(1).await;
    let ready = scene.ready().await;
    // Somebody takes a name at the last moment.
    std::fs::write(scene.b.image("two.raw"), b"somebody's").unwrap();
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Failed).await;
    scene.until_quiet(&scene.a).await;
    assert_eq!(defined(&scene), (false, false));
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    assert_eq!(defined(&scene), (true, false));
    scene.settle_b(Verdict::NeverRan).await.unwrap();
    assert_eq!(scene.b.images(), ["two.raw"], "what is somebody's stays");
    assert_eq!(std::fs::read(scene.b.image("two.raw")).unwrap(), b"somebody's");
    std::fs::remove_file(scene.b.image("two.raw")).unwrap();
    is_back(&scene, 1).await;
}

#[tokio::test]
async fn a_guest_that_was_started_meanwhile_stays() {
    let scene = slow_scene().await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    some_has_come(&scene).await;
    scene.a.host.start(scene.guest).await.unwrap();
    let status = scene
        .until(&scene.a, "the hand-over is refused", |status| status.error.is_some())
        .await;
    assert_eq!(journal_state(&status), JournalState::Sending);
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    scene.settle_b(Verdict::NeverRan).await.unwrap();
    assert_eq!(scene.runs_on(), ["a"]);
    assert_eq!(scene.b.images(), [""; 0]);
    scene.holds();
}

#[tokio::test]
async fn what_libvirt_has_saved_or_defined_anew_meanwhile_is_not_left_behind() {
    for what in ["saved", "checkpoint", "defined"] {
        let scene = slow_scene().await;
        let ready = scene.ready().await;
        scene.send(&ready).await.unwrap();
        some_has_come(&scene).await;
        match what {
            "saved" => scene.a.host.set_managed_save(scene.guest, true),
            "checkpoint" => scene.a.host.set_checkpoints(scene.guest, 1),
            _ => {
                let before = scene.a.host.look(scene.guest).unwrap().inactive_xml.unwrap();
                let changed = before.replace("</domain>", "<!-- changed --></domain>");
                scene.a.host.define(&changed).await.unwrap();
            }
        }
        let status = scene
            .until(&scene.a, "the hand-over is refused", |status| status.error.is_some())
            .await;
        assert_eq!(journal_state(&status), JournalState::Sending);
        assert_eq!(
            status.perform_outcome(),
            PerformOutcome::Failed,
            "it is not asked for again"
        );
        assert_eq!(defined(&scene), (true, false));
        scene.abort().await.unwrap();
        scene.revoke().await.unwrap();
        is_back(&scene, 2).await;
    }
}

#[tokio::test]
async fn a_source_that_died_before_it_forgot_the_guest_looks_whether_it_was_used() {
    for used in [false, true] {
        let mut scene = scene(1).await;
        scene.a.host.script(Call::Undefine, Fault::Die);
        let ready = scene.ready().await;
        scene.send(&ready).await.unwrap();
        scene.until_state(&scene.a, JournalState::HandedOver).await;
        scene.until_quiet(&scene.a).await;
        assert_eq!(defined(&scene), (true, false));
        scene.a.kill().await;
        if used {
            let image = std::fs::File::options()
                .write(true)
                .open(scene.a.image("one.raw"))
                .unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            image.write_all_at(&content(1)[..1], 0).unwrap();
        }
        scene.a.start().await;
        let handed_over = scene.hand_over().await;
        if used {
            assert!(handed_over.is_err());
            assert!(scene.status(&scene.a).await.journal.unwrap().ran_on);
            scene.abort().await.unwrap();
            scene.revoke().await.unwrap();
            is_back(&scene, 1).await;
        } else {
            handed_over.unwrap();
            has_moved(&scene, 1).await;
        }
    }
}
