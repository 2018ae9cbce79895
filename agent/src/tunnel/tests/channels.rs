//! What the tunnel carries: all bytes, both ways, in order of channels, each end on its own.

use std::os::unix::fs::PermissionsExt;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Pair, error, soon};
use crate::tunnel::{ChannelPlan, SourceOptions, TunnelError};

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| seed.wrapping_mul(31).wrapping_add((at / 7) as u8))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_and_each_end_is_handed_on_alone() {
    let pair = Pair::start().await;
    let (qemu, waiting, source) = (pair.qemu(), pair.register(), pair.open());
    let mut near = pair.connect().await;
    let (mut far, _) = soon(qemu.accept()).await.unwrap();
    // More than all buffers on the way hold: the writer has to wait for the reader, which waits for the half-close.
    let memory = pattern(1, 9_000_001);
    let sent = memory.clone();
    let writer = tokio::spawn(async move {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        near
    });
    let mut received = Vec::new();
    far.read_to_end(&mut received).await.unwrap();
    assert!(received == memory, "{} bytes", received.len());
    soon(waiting.main_complete().wait_for(|complete| *complete))
        .await
        .unwrap();
    // The return path lives on.
    let answer = pattern(2, 3_000_000);
    let sent = answer.clone();
    let mut near = writer.await.unwrap();
    tokio::spawn(async move {
        far.write_all(&sent).await.unwrap();
    });
    let mut received = Vec::new();
    near.read_to_end(&mut received).await.unwrap();
    assert!(received == answer, "{} bytes", received.len());
    assert_eq!((source.bytes().sent, source.bytes().received), (9_000_001, 3_000_000));
    assert_eq!((waiting.bytes().sent, waiting.bytes().received), (3_000_000, 9_000_001));
    assert_eq!(
        (source.errors().borrow().clone(), waiting.errors().borrow().clone()),
        (None, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_destination_may_end_its_direction_first() {
    let pair = Pair::start().await;
    let (qemu, waiting, _source) = (pair.qemu(), pair.register(), pair.open());
    let mut near = pair.connect().await;
    let (mut far, _) = soon(qemu.accept()).await.unwrap();
    far.shutdown().await.unwrap();
    assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(!*waiting.main_complete().borrow());
    near.write_all(b"still open").await.unwrap();
    drop(near);
    let mut received = Vec::new();
    far.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"still open");
    soon(waiting.main_complete().wait_for(|complete| *complete))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_channel_reaches_qemu_before_any_other() {
    let pair = Pair::start().await;
    let (waiting, source) = (pair.register(), pair.open());
    // All four are there, each with a name in it, before the destination's QEMU listens at all.
    let mut near = Vec::new();
    for name in 0..4u8 {
        let mut channel = pair.connect().await;
        channel.write_all(&[name]).await.unwrap();
        near.push(channel);
    }
    assert!(!*waiting.main_attached().borrow());
    let qemu = pair.qemu();
    let mut names = Vec::new();
    for _ in 0..4 {
        let (mut channel, _) = soon(qemu.accept()).await.unwrap();
        names.push(channel.read_u8().await.unwrap());
    }
    assert_eq!(names[0], 0);
    names.sort_unstable();
    assert_eq!(names, [0, 1, 2, 3]);
    assert!(*waiting.main_attached().borrow());
    // A fifth is nobody's.
    let mut extra = pair.connect().await;
    assert_eq!(extra.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(
        error(source.errors()).await,
        TunnelError::TooManyChannels { expected: 4 }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_go_to_their_own_socket_and_may_come_before_memory() {
    let pair = Pair::start().await;
    let disks = tokio::net::UnixListener::bind(pair.path("nbd")).unwrap();
    let mut registration = pair.registration();
    registration.disks_socket = Some(pair.path("nbd"));
    let waiting = pair.destination.register(registration).unwrap();
    let options = SourceOptions {
        channels: ChannelPlan::Disks,
        ..pair.options()
    };
    let _source = crate::tunnel::Source::open(options).unwrap();
    for name in 0..2u8 {
        let mut near = pair.connect().await;
        near.write_u8(name).await.unwrap();
        let (mut far, _) = disks.accept().await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), name);
        far.write_u8(name).await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), name);
    }
    assert!(!*waiting.main_attached().borrow());
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_cuts_both_sides_and_is_not_a_complete_stream() {
    let pair = Pair::start().await;
    let (qemu, waiting, source) = (pair.qemu(), pair.register(), pair.open());
    let mut near = pair.connect().await;
    let (mut far, _) = soon(qemu.accept()).await.unwrap();
    near.write_all(b"some").await.unwrap();
    far.read_exact(&mut [0; 4]).await.unwrap();
    let complete = waiting.main_complete();
    soon(waiting.revoke()).await;
    assert_eq!(far.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(near.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert!(matches!(error(source.errors()).await, TunnelError::Cut { .. }));
    assert!(!*complete.borrow());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_source_agent_is_not_a_complete_stream() {
    let pair = Pair::start().await;
    let (qemu, waiting, source) = (pair.qemu(), pair.register(), pair.open());
    let mut near = pair.connect().await;
    let (mut far, _) = soon(qemu.accept()).await.unwrap();
    near.write_all(b"some").await.unwrap();
    far.read_exact(&mut [0; 4]).await.unwrap();
    assert!(waiting.main_flows());
    source.close().await;
    assert_eq!(far.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert!(matches!(error(waiting.errors()).await, TunnelError::Cut { .. }));
    assert!(!*waiting.main_complete().borrow() && !waiting.main_flows());
    assert_eq!(near.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_destination_qemu_reaches_the_source_qemu() {
    let pair = Pair::start().await;
    let (qemu, _waiting, source) = (pair.qemu(), pair.register(), pair.open());
    let mut near = pair.connect().await;
    let (far, _) = soon(qemu.accept()).await.unwrap();
    drop(far);
    let piece = vec![0; 1 << 20];
    while near.write_all(&piece).await.is_ok() {}
    assert!(matches!(
        error(source.errors()).await,
        TunnelError::Cut { .. } | TunnelError::Qemu { .. }
    ));
}

#[tokio::test]
async fn the_socket_is_for_its_group_only_and_goes_with_the_source() {
    let pair = Pair::start().await;
    let group = nix::unistd::getgid().as_raw();
    let options = SourceOptions {
        socket_group: Some(group),
        ..pair.options()
    };
    // What a former process left there is no hindrance.
    std::fs::write(pair.path("source"), "stale").unwrap();
    let source = crate::tunnel::Source::open(options).unwrap();
    let mode = std::fs::metadata(pair.path("source")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    source.close().await;
    assert!(!pair.path("source").exists());
    drop(pair.open());
    assert!(!pair.path("source").exists());
}

#[tokio::test]
async fn a_path_that_no_socket_can_have_is_named_with_its_length() {
    let pair = Pair::start().await;
    let long = pair.path(&"x".repeat(120));
    let options = SourceOptions {
        socket: long.clone(),
        ..pair.options()
    };
    let error = crate::tunnel::Source::open(options).unwrap_err();
    assert!(error.to_string().contains("the limit is 107"), "{error}");
    let mut registration = pair.registration();
    registration.memory_socket = long;
    assert!(matches!(
        pair.destination.register(registration),
        Err(TunnelError::PathTooLong { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_address_is_tried_where_one_does_not_answer() {
    let pair = Pair::start().await;
    let (qemu, _waiting) = (pair.qemu(), pair.register());
    // Bound, so that nobody else gets the port, and not listened at.
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = nobody.local_addr().unwrap().to_string();
    let options = SourceOptions {
        addresses: vec![closed, pair.address.clone()],
        ..pair.options()
    };
    let _source = crate::tunnel::Source::open(options).unwrap();
    let _near = pair.connect().await;
    soon(qemu.accept()).await.unwrap();
}
