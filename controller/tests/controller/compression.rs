//! Whether memory is compressed: chosen before the transfer, told to both agents, kept with its reason; refused where a
//! host cannot.

use drover_proto::failure::Reason;
use drover_proto::v1::{Compression, CreateMigrationRequest, Migration, MigrationPolicy};

use super::lab::{Lab, wish};

/// A link of 800 Mbit/s between hosts with these versions of libvirt.
async fn slow(source: u64, destination: u64) -> Lab {
    let mut lab = Lab::new().await;
    lab.kill();
    lab.link_speed = 100_000_000;
    lab.start().await;
    for (host, address) in ["host-1", "host-2"].into_iter().zip(lab.addresses.clone()) {
        lab.register(host, &address).await.unwrap();
    }
    let mut state = lab.world.lock();
    state.libvirt.insert("host-1".to_owned(), source);
    state.libvirt.insert("host-2".to_owned(), destination);
    drop(state);
    lab
}

fn asking(compression: Compression) -> CreateMigrationRequest {
    let mut wish = wish();
    wish.migration.as_mut().unwrap().policy = Some(MigrationPolicy {
        compression: compression.into(),
        ..MigrationPolicy::default()
    });
    wish
}

/// The record of a migration that has moved, and what its source was told: compression and QEMU's channels.
async fn moved(lab: &Lab, asked: Compression) -> (Migration, Compression, u32) {
    let created = lab
        .migrations()
        .create_migration(asking(asked))
        .await
        .unwrap()
        .into_inner();
    lab.world.open_gate();
    let record = lab.assert_moved(&created.name).await;
    let id = created.name.trim_start_matches("migrations/");
    let told = lab.world.lock().hosts["host-1"].journals[id].policy.unwrap();
    (record, told.compression(), told.parallel_connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_link_between_hosts_that_can_gets_it_and_the_record_says_why() {
    let lab = slow(9_004_000, 10_000_000).await;
    let (record, told, channels) = moved(&lab, Compression::Unspecified).await;
    let chosen = record.compression.unwrap();
    assert_eq!(chosen.compression(), Compression::Zstd, "{}", chosen.reason);
    assert!(chosen.reason.contains("95 MiB/s"), "{}", chosen.reason);
    assert_eq!((told, channels), (Compression::Zstd, 1), "only multifd compresses");
    assert_eq!(record.policy.unwrap().compression(), Compression::Unspecified);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_none_has_none() {
    let lab = slow(10_000_000, 10_000_000).await;
    let (record, told, channels) = moved(&lab, Compression::None).await;
    assert_eq!(record.compression.unwrap().reason, "as the policy says");
    assert_eq!((told, channels), (Compression::Unspecified, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_libvirt_at_one_end_does_without() {
    let lab = slow(10_000_000, 9_000_000).await;
    let (record, told, channels) = moved(&lab, Compression::Unspecified).await;
    let chosen = record.compression.unwrap();
    assert_eq!(
        (chosen.compression(), told, channels),
        (Compression::None, Compression::Unspecified, 0)
    );
    assert!(chosen.reason.contains("libvirt 9.0.0"), "{}", chosen.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_it_where_it_cannot_be_is_told_the_versions() {
    let lab = slow(9_000_000, 10_000_000).await;
    let asked = CreateMigrationRequest {
        validate_only: true,
        ..asking(Compression::Zstd)
    };
    let error = lab
        .migrations()
        .create_migration(asked)
        .await
        .unwrap()
        .into_inner()
        .error
        .unwrap();
    assert_eq!(error.reason, Reason::Unfit.name());
    assert!(
        error.message.contains("compression: ") && error.message.contains("libvirt 9.0.0"),
        "{error:?}"
    );
    assert!(error.remedy.contains("policy.compression"), "{error:?}");

    let lab = slow(9_004_000, 9_004_000).await;
    let (record, told, channels) = moved(&lab, Compression::Zstd).await;
    assert_eq!(record.compression.unwrap().reason, "as the policy says");
    assert_eq!((told, channels), (Compression::Zstd, 1));
}
