//! Blocks of zeros of disks that are copied: looked for where both hosts' libvirt can, refused by one that is too old.

use drover_proto::agent::v1::*;

use crate::copies::Stage;
use crate::offline;

const NEW: u64 = 10_009_000;
const OLD: u64 = 10_008_000;

async fn between(source: u64, destination: u64) -> Stage {
    let mut stage = Stage::with(&offline::content(1)).await;
    stage.scene.a.host.set_facts(|facts| facts.libvirt_version = source);
    stage
        .scene
        .b
        .host
        .set_facts(|facts| facts.libvirt_version = destination);
    stage.scene.policy.detect_zeroes = true;
    stage
}

async fn say(stage: &Stage) -> [bool; 2] {
    let (a, b) = tokio::join!(
        async { stage.scene.ask_a().inspect_host(InspectHostRequest {}).await },
        async { stage.scene.ask_b().inspect_host(InspectHostRequest {}).await }
    );
    [a, b].map(|facts| facts.unwrap().into_inner().detects_zeroes)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_can_are_told_and_what_the_source_keeps_to_says_so() {
    let stage = between(NEW, NEW + 1).await;
    assert_eq!(say(&stage).await, [true, true]);
    let ready = stage.scene.ready().await;
    let status = stage.scene.status(&stage.scene.a).await;
    assert!(status.policy.unwrap().detect_zeroes);
    stage.scene.send(&ready).await.unwrap();
    stage.scene.until_moved().await;
    stage.scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_too_old_does_not_say_that_it_can_and_refuses() {
    let stage = between(OLD, NEW).await;
    assert_eq!(say(&stage).await, [false, true]);
    let refused = stage.scene.begin().await.unwrap_err();
    assert!(refused.message.contains("migrate_disks_detect_zeroes"), "{refused:?}");

    let stage = between(NEW, OLD).await;
    assert_eq!(say(&stage).await, [true, false]);
    let begun = stage.scene.begin().await.unwrap();
    let refused = stage.scene.prepare(&begun).await.unwrap_err();
    assert!(refused.message.contains("migrate_disks_detect_zeroes"), "{refused:?}");
    stage.undone().await;
}
