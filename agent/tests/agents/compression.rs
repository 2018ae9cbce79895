//! Memory that QEMU compresses: where both hosts can, and where one is too old for it.

use drover_agent::sim::SimGuest;
use drover_proto::agent::v1::*;
use drover_proto::v1::Compression;

use crate::policy::moved;
use crate::scene::Scene;

const ENOUGH: u64 = 9_004_000;
const OLD: u64 = 9_003_000;

async fn between(source: u64, destination: u64) -> Scene {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    scene.a.host.set_facts(|facts| facts.libvirt_version = source);
    scene.b.host.set_facts(|facts| facts.libvirt_version = destination);
    scene.policy = TransferPolicy {
        compression: Compression::Zstd.into(),
        ..TransferPolicy::default()
    };
    scene
}

async fn compressions(scene: &Scene) -> [Vec<i32>; 2] {
    let (a, b) = tokio::join!(
        async { scene.ask_a().inspect_host(InspectHostRequest {}).await },
        async { scene.ask_b().inspect_host(InspectHostRequest {}).await }
    );
    [a, b].map(|facts| facts.unwrap().into_inner().compressions)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_that_know_it_compress_over_one_multifd_channel() {
    let scene = between(ENOUGH, ENOUGH + 1).await;
    let zstd = i32::from(Compression::Zstd);
    assert_eq!(compressions(&scene).await, [vec![zstd], vec![zstd]]);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    moved(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_too_old_says_nothing_of_it_and_refuses() {
    let scene = between(OLD, ENOUGH).await;
    assert!(compressions(&scene).await[0].is_empty());
    let refused = scene.begin().await.unwrap_err();
    assert!(refused.message.contains("zstd"), "{refused:?}");
    assert_eq!(scene.runs_on(), ["a"]);

    let scene = between(ENOUGH, OLD).await;
    assert!(compressions(&scene).await[1].is_empty());
    let begun = scene.begin().await.unwrap();
    let refused = scene.prepare(&begun).await.unwrap_err();
    assert!(refused.message.contains("zstd"), "{refused:?}");
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}
