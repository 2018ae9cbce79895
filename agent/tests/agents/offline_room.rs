//! A guest that is shut off: what it needs of both hosts before it moves, and what is held of what they share.

use drover_agent::hypervisor::StopReason;
use drover_agent::sim::SimGuest;
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use drover_proto::ids::MigrationId;

use crate::offline::{content, free, is_back, lock, scene};
use crate::scene::{Scene, reason};

/// Bytes that a user may still write where b's images lie.
fn free_at_b(scene: &Scene) -> u64 {
    let found = nix::sys::statvfs::statvfs(&scene.b.image(".")).unwrap();
    // Both are C types whose width differs between platforms.
    #[allow(clippy::useless_conversion)]
    let (blocks, size) = (u64::from(found.blocks_available()), u64::from(found.fragment_size()));
    blocks * size
}

/// The same scene, for another guest with one image on a.
fn another_guest(scene: &mut Scene) {
    let other = SimGuest {
        uuid: Some("0190a1b2-0000-7000-8000-0000000000bb".parse().unwrap()),
        disks: vec!["/images/db.raw".to_owned()],
        ..SimGuest::named("db")
    };
    scene.a.host.add(&other).unwrap();
    std::fs::write(scene.a.image("db.raw"), content(1)).unwrap();
    scene.a.host.kill(other.id(), StopReason::Shutdown);
    (scene.guest, scene.migration) = (other.id(), MigrationId::generate());
    scene.offline = Some(OfflineOrder {
        images: vec!["/images/db.raw".to_owned()],
        ..OfflineOrder::default()
    });
}

#[tokio::test]
async fn two_guests_that_fit_alone_and_not_together_are_not_both_let_in() {
    let mut scene = scene(1).await;
    let most = free_at_b(&scene) / 3 * 2;
    let mut first = scene.begin().await.unwrap();
    first.files[0].allocated_bytes = most;
    scene.prepare(&first).await.unwrap();
    scene.prepare(&first).await.unwrap();
    let (guest, migration) = (scene.guest, scene.migration);
    another_guest(&mut scene);
    let mut second = scene.begin().await.unwrap();
    second.files[0].allocated_bytes = most;
    assert_eq!(reason(scene.prepare(&second).await), Reason::NoSpace);
    // What was given up takes no room any more.
    let (other, later) = (scene.guest, scene.migration);
    (scene.guest, scene.migration) = (guest, migration);
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    scene.settle_b(Verdict::NeverRan).await.unwrap();
    (scene.guest, scene.migration) = (other, later);
    scene.prepare(&second).await.unwrap();
}

#[tokio::test]
async fn what_both_hosts_have_is_held_again_after_a_start_of_the_sources_agent() {
    let mut scene = scene(1).await;
    scene.offline = Some(OfflineOrder {
        images: vec!["/images/one.raw".to_owned()],
        shared: vec!["/images/two.raw".to_owned()],
        ..OfflineOrder::default()
    });
    scene.begin().await.unwrap();
    let shared = std::fs::File::open(scene.a.image("two.raw")).unwrap();
    assert!(!free(&shared, 201));
    scene.a.restart().await;
    assert!(free(&shared, 201));
    scene.begin().await.unwrap();
    assert!(!free(&shared, 201), "nobody starts it from there");
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    is_back(&scene, 1).await;
    assert!(free(&shared, 201));
}

#[tokio::test]
async fn a_disk_that_nobody_has_looked_at_is_refused() {
    let mut scene = scene(1).await;
    scene.offline.as_mut().unwrap().images.pop();
    assert_eq!(reason(scene.begin().await), Reason::ChecksFailed);
    assert!(scene.autostart(&scene.a), "nothing was touched");
}

async fn inspect(scene: &Scene) -> GuestFacts {
    let request = InspectGuestRequest {
        guest_uuid: scene.guest.to_string(),
        destination_overrides: None,
    };
    scene.ask_a().inspect_guest(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn what_would_be_refused_is_told_before_and_nobody_is_kept_from_his_image() {
    let scene = scene(1).await;
    assert!(
        inspect(&scene)
            .await
            .disks
            .iter()
            .all(|disk| disk.offline_problem.is_empty())
    );
    let user = std::fs::File::options()
        .read(true)
        .write(true)
        .open(scene.a.image("two.raw"))
        .unwrap();
    assert!(free(&user, 101) && free(&user, 201), "nothing was locked");
    lock(&user, 101, libc::F_RDLCK).unwrap();
    let disks = inspect(&scene).await.disks;
    assert_eq!(disks[0].offline_problem, "");
    assert!(disks[1].offline_problem.contains("in use"), "{:?}", disks[1]);
    assert!(!disks[1].offline_remedy.is_empty());
    drop(user);
    std::fs::remove_file(scene.a.image("one.raw")).unwrap();
    assert!(inspect(&scene).await.disks[0].offline_problem.contains("not there"));
    scene.a.host.set_checkpoints(scene.guest, 3);
    assert_eq!(inspect(&scene).await.checkpoints, 3);
}
