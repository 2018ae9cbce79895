//! How many connections carry memory: chosen before the transfer, told to both agents, kept with its reason.

use drover_proto::v1::{Migration, MigrationPolicy};

use super::lab::{Lab, wish};
use super::world::GUEST;

const GIB: u64 = 1 << 30;

/// A link of 10 Gbit/s, and a guest that is worth it.
async fn fast() -> Lab {
    let mut lab = Lab::new().await;
    lab.kill();
    lab.link_speed = 1_250_000_000;
    lab.start().await;
    for (host, address) in ["host-1", "host-2"].into_iter().zip(lab.addresses.clone()) {
        lab.register(host, &address).await.unwrap();
    }
    let mut state = lab.world.lock();
    state.host("host-1").guests.get_mut(GUEST).unwrap().memory_bytes = 64 * GIB;
    drop(state);
    lab
}

/// The record of a migration that has moved, and QEMU's channels as its source was told.
async fn moved(lab: &Lab, policy: MigrationPolicy) -> (Migration, u32) {
    let mut wish = wish();
    wish.migration.as_mut().unwrap().policy = Some(policy);
    let created = lab.migrations().create_migration(wish).await.unwrap().into_inner();
    lab.world.open_gate();
    let record = lab.assert_moved(&created.name).await;
    let id = created.name.trim_start_matches("migrations/");
    let told = lab.world.lock().hosts["host-1"].journals[id].policy.unwrap();
    (record, told.parallel_connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_link_gets_several_and_the_record_says_why() {
    let lab = fast().await;
    let (record, told) = moved(&lab, MigrationPolicy::default()).await;
    let chosen = record.connections.unwrap();
    assert_eq!((chosen.count, told), (3, 3), "{}", chosen.reason);
    assert!(chosen.reason.contains("1192 MiB/s"), "{}", chosen.reason);
    assert_eq!(
        record.policy.unwrap().parallel_connections,
        0,
        "the policy is the caller's word"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_post_copy_is_allowed_an_old_qemu_gets_one() {
    let lab = fast().await;
    let policy = MigrationPolicy {
        allow_post_copy: Some(true),
        ..MigrationPolicy::default()
    };
    let (record, told) = moved(&lab, policy).await;
    let chosen = record.connections.unwrap();
    assert_eq!((chosen.count, told), (1, 0), "{}", chosen.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_asked_for_is_a_plain_one_and_nothing_is_known_of_a_link() {
    let lab = fast().await;
    let policy = MigrationPolicy {
        parallel_connections: 1,
        ..MigrationPolicy::default()
    };
    let (record, told) = moved(&lab, policy).await;
    let chosen = record.connections.unwrap();
    assert_eq!(
        (chosen.count, chosen.reason.as_str(), told),
        (1, "as the policy says", 0)
    );

    let lab = Lab::new().await;
    let (record, told) = moved(&lab, MigrationPolicy::default()).await;
    let chosen = record.connections.unwrap();
    assert_eq!((chosen.count, told), (1, 0));
    assert_eq!(chosen.reason, "the speed of the link is not known");
}
