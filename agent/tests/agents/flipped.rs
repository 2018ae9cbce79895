//! A byte that changes between the hosts: nothing wrong is kept. On the wire TLS finds it, and the channel ends; within
//! TLS there is the hash of each block of a file.

use drover_agent::sim::SimGuest;
use drover_proto::agent::v1::*;

use crate::copies::Stage;
use crate::network::{Flip, Network};
use crate::offline;
use crate::scene::{Ready, Scene, journal_state};

/// Deep in what is sent, far behind any handshake.
const DEEP: u64 = 300_000;
/// The hello of a data connection, the frame that names the file, the head of the first block, and some of its bytes.
const FIRST_BLOCK: u64 = 64 + 17 + 45 + 1000;

fn once(at: u64) -> Flip {
    Flip { at, connections: 1 }
}

async fn send_through(scene: &Scene, network: &Network, ready: &Ready) {
    let addresses = vec![network.address.to_string()];
    scene.send_to(ready, addresses, scene.b.address()).await.unwrap();
}

/// The transfer has failed, and says by which channel.
async fn failed(scene: &Scene, network: &Network, channel: &str) {
    let status = scene
        .until(&scene.a, "the transfer fails", |status| status.error.is_some())
        .await;
    let error = status.error.clone().unwrap();
    assert_eq!(error.reason, "TRANSFER_FAILED", "{error:?}");
    assert!(
        error.message.contains(channel) && error.message.contains("between the agents broke"),
        "{error:?}"
    );
    assert_eq!(journal_state(&status), JournalState::Sending);
    assert_eq!(network.flipped(), 1);
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_changed_on_the_wire_never_runs() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let network = Network::outside_of_tls(&scene, once(DEEP)).await;
    let ready = scene.ready().await;
    send_through(&scene, &network, &ready).await;
    failed(&scene, &network, "main channel").await;
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_changed_on_the_wire_is_not_kept() {
    let stage = Stage::with(&offline::content(1)).await;
    let network = Network::outside_of_tls(&stage.scene, once(DEEP)).await;
    let ready = stage.scene.ready().await;
    send_through(&stage.scene, &network, &ready).await;
    failed(&stage.scene, &network, "nbd 0 channel").await;
    stage.undone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_on_the_wire_is_sent_again_from_there() {
    let scene = offline::scene(2).await;
    let network = Network::outside_of_tls(&scene, once(DEEP)).await;
    let ready = scene.ready().await;
    send_through(&scene, &network, &ready).await;
    offline::has_moved(&scene, 2).await;
    assert_eq!((network.flipped(), network.connections()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_changed_within_tls_is_refused_and_sent_again() {
    let scene = offline::scene(2).await;
    let network = Network::inside_of_tls(&scene, once(FIRST_BLOCK)).await;
    let ready = scene.ready().await;
    send_through(&scene, &network, &ready).await;
    offline::has_moved(&scene, 2).await;
    assert_eq!((network.flipped(), network.connections()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_again_and_again_is_given_up() {
    let scene = offline::scene(1).await;
    let always = Flip {
        at: FIRST_BLOCK,
        connections: u32::MAX,
    };
    let network = Network::inside_of_tls(&scene, always).await;
    let ready = scene.ready().await;
    send_through(&scene, &network, &ready).await;
    let status = scene
        .until(&scene.a, "the copy is given up", |status| status.error.is_some())
        .await;
    let error = status.error.clone().unwrap();
    assert_eq!(error.reason, "STORAGE_UNUSABLE", "{error:?}");
    assert!(
        error.message.contains("block 0") && error.message.contains("damaged on its way"),
        "{error:?}"
    );
    assert_eq!(journal_state(&status), JournalState::Sending);
    assert_eq!(offline::defined(&scene), (true, false));
    assert_eq!(network.flipped(), network.connections());
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    offline::is_back(&scene, 1).await;
}
