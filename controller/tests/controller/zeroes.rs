//! Blocks of zeros of disks that are copied live: told, and ordered, only where libvirt of both hosts can.

use drover_proto::v1::{CreateMigrationRequest, DiskAction, MigrationPolicy, StoragePolicy};

use super::lab::{Lab, wish};
use super::world::GUEST;

const NEW: u64 = 10_009_000;
const OLD: u64 = 10_008_000;

/// A guest with a disk that only its host has, between hosts with these versions of libvirt.
async fn local(source: u64, destination: u64) -> Lab {
    let lab = Lab::new().await;
    let mut state = lab.world.lock();
    state.libvirt.insert("host-1".to_owned(), source);
    state.libvirt.insert("host-2".to_owned(), destination);
    state.host("host-2").shares = false;
    let guest = state.host("host-1").guests.get_mut(GUEST).unwrap();
    guest.disks[0].format = "raw".to_owned();
    guest.disks[0].virtual_size_bytes = 64 << 20;
    guest.disks[0].allocated_bytes = 1 << 20;
    drop(state);
    lab
}

fn copying() -> CreateMigrationRequest {
    let mut wish = wish();
    wish.migration.as_mut().unwrap().policy = Some(MigrationPolicy {
        storage: Some(StoragePolicy {
            copy_disks: vec!["vda".to_owned()],
            ..StoragePolicy::default()
        }),
        ..MigrationPolicy::default()
    });
    wish
}

/// What the record of a migration that has moved says of the disk, and what its source was told.
async fn moved(lab: &Lab) -> (bool, String, bool) {
    let created = lab.migrations().create_migration(copying()).await.unwrap().into_inner();
    lab.world.open_gate();
    let record = lab.assert_moved(&created.name).await;
    let id = created.name.trim_start_matches("migrations/");
    let told = lab.world.lock().hosts["host-1"].journals[id].policy.unwrap();
    let disk = &record.disks[0];
    assert_eq!(disk.action(), DiskAction::CopyLive, "{disk:?}");
    (disk.detects_zeroes, disk.reason.clone(), told.detect_zeroes)
}

#[tokio::test(flavor = "multi_thread")]
async fn between_two_that_can_they_are_looked_for_and_the_record_says_so() {
    let (recorded, reason, told) = moved(&local(NEW, NEW + 1_000_000).await).await;
    assert!(recorded && told);
    assert_eq!(reason, "not shared; blocks of zeros are not sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_old_libvirt_at_either_end_nothing_is_told_or_ordered() {
    for (source, destination) in [(OLD, NEW), (NEW, OLD)] {
        let found = moved(&local(source, destination).await).await;
        assert_eq!(found, (false, "not shared".to_owned(), false));
    }
}
