//! What a transfer tells of each disk, and of each file of a guest that is shut off.

use drover_agent::sim::{Call, Fault};
use drover_proto::agent::v1::*;
use drover_proto::v1::DiskProgress;
use tokio_util::sync::CancellationToken;

use crate::copies::Stage;
use crate::offline;

fn disks(status: &MigrationStatus) -> Vec<DiskProgress> {
    let now = status.progress.iter();
    now.flat_map(|now| now.disks.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_disk_tells_how_far_its_copy_is() {
    let stage = Stage::new().await;
    let go_on = CancellationToken::new();
    stage.scene.a.host.script(Call::Copying, Fault::Until(go_on.clone()));
    let ready = stage.scene.ready().await;
    stage.scene.send(&ready).await.unwrap();
    let told = |status: &MigrationStatus| !disks(status).is_empty();
    let status = stage.scene.until(&stage.scene.a, "a disk is told", told).await;
    let disk = DiskProgress {
        disk: "vdb".to_owned(),
        total_bytes: 1024,
        remaining_bytes: 0,
    };
    assert_eq!(disks(&status), [disk]);
    go_on.cancel();
    stage.scene.until_moved().await;
    stage.scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_file_of_a_guest_that_is_shut_off_tells_how_far_its_copy_is() {
    let mut scene = offline::scene(2).await;
    scene.policy.bandwidth_limit_bytes_per_second = 128 << 10;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let under_way = |status: &MigrationStatus| match disks(status).as_slice() {
        [one, two] => one.remaining_bytes < one.total_bytes && two.remaining_bytes > 0,
        _ => false,
    };
    let status = scene.until(&scene.a, "some of the first file is told", under_way).await;
    let told: Vec<_> = disks(&status)
        .into_iter()
        .map(|disk| (disk.disk, disk.total_bytes))
        .collect();
    let whole = 2 << 20;
    assert_eq!(
        told,
        [
            ("/images/one.raw".to_owned(), whole),
            ("/images/two.raw".to_owned(), whole)
        ]
    );
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    offline::is_back(&scene, 2).await;
}
