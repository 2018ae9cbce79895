//! Who is not let in, and that nobody who is refused costs more than a moment.

use std::time::Duration;

use drover_proto::identity::Identity;
use drover_proto::ids::{Attempt, Ticket};
use drover_proto::serve::accept;
use drover_proto::tls::ALPN_DATA;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Pair, agent, error, soon};
use crate::tunnel::hello::{Channel, Hello, Reply};
use crate::tunnel::{HelloTemplate, Refusal, Source, SourceOptions, TunnelError};

/// Opens a source, lets QEMU connect, and returns what the tunnel says about it.
async fn attempt(pair: &Pair, options: SourceOptions) -> TunnelError {
    let source = Source::open(options).unwrap();
    let mut near = pair.connect().await;
    let said = error(source.errors()).await;
    assert_eq!(near.read(&mut [0; 1]).await.unwrap_or(0), 0, "QEMU sees the end");
    source.close().await;
    said
}

fn refused(refusal: Refusal) -> impl Fn(&TunnelError) -> bool {
    move |error| matches!(error, TunnelError::Refused { refusal: found, .. } if *found == refusal)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_ticket_attempt_or_migration_is_refused_and_the_right_one_still_gets_in() {
    let pair = Pair::start().await;
    let (qemu, waiting) = (pair.qemu(), pair.register());
    let with = |change: fn(&mut HelloTemplate)| {
        let mut options = pair.options();
        change(&mut options.hello);
        options
    };
    let said = attempt(&pair, with(|hello| hello.ticket = Ticket::generate().unwrap())).await;
    assert!(refused(Refusal::Ticket)(&said), "{said}");
    let said = attempt(
        &pair,
        with(|hello| hello.migration = drover_proto::ids::MigrationId::generate()),
    )
    .await;
    assert!(refused(Refusal::Ticket)(&said), "{said}");
    let said = attempt(&pair, with(|hello| hello.attempt = Attempt(2))).await;
    assert!(refused(Refusal::Attempt)(&said), "{said}");
    assert_eq!(pair.destination.refused(), 3);
    assert!(!*waiting.main_attached().borrow());
    let _source = pair.open();
    let _near = pair.connect().await;
    soon(qemu.accept()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ticket_is_no_use_to_another_identity() {
    let pair = Pair::start().await;
    let (_qemu, _waiting) = (pair.qemu(), pair.register());
    for stranger in [
        agent("c"),
        agent("b"),
        Identity::Controller,
        Identity::User("root".to_owned()),
    ] {
        let said = attempt(
            &pair,
            SourceOptions {
                tls: pair.tls(&stranger),
                ..pair.options()
            },
        )
        .await;
        assert!(refused(Refusal::Ticket)(&said), "{stranger:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_an_agent_that_is_not_the_expected_one() {
    let pair = Pair::start().await;
    let (_qemu, waiting) = (pair.qemu(), pair.register());
    let said = attempt(
        &pair,
        SourceOptions {
            expected: agent("c"),
            ..pair.options()
        },
    )
    .await;
    assert!(matches!(said, TunnelError::Connect { .. }), "{said}");
    assert!(!*waiting.main_attached().borrow());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_ticket_is_refused() {
    let pair = Pair::start().await;
    let _qemu = pair.qemu();
    let mut registration = pair.registration();
    registration.valid_for = Duration::ZERO;
    let waiting = pair.destination.register(registration).unwrap();
    waiting.expired().await;
    let said = attempt(&pair, pair.options()).await;
    assert!(refused(Refusal::Expired)(&said), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_or_dropped_migration_is_unknown() {
    let pair = Pair::start().await;
    let _qemu = pair.qemu();
    pair.register().revoke().await;
    let said = attempt(&pair, pair.options()).await;
    assert!(refused(Refusal::Ticket)(&said), "{said}");
    drop(pair.register());
    let said = attempt(&pair, pair.options()).await;
    assert!(refused(Refusal::Ticket)(&said), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_registration_of_a_migration_replaces_the_older_one() {
    let pair = Pair::start().await;
    let (qemu, older) = (pair.qemu(), pair.register());
    let mut registration = pair.registration();
    registration.ticket = Ticket::generate().unwrap();
    let hello = HelloTemplate {
        ticket: registration.ticket.clone(),
        ..pair.hello.clone()
    };
    let newer = pair.destination.register(registration).unwrap();
    let said = attempt(&pair, pair.options()).await;
    assert!(refused(Refusal::Ticket)(&said), "{said}");
    drop(older);
    let _source = Source::open(SourceOptions {
        hello,
        ..pair.options()
    })
    .unwrap();
    let _near = pair.connect().await;
    soon(qemu.accept()).await.unwrap();
    newer.main_attached().wait_for(|attached| *attached).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_never_listens_is_reported_with_its_path() {
    let pair = Pair::start().await;
    let waiting = pair.register();
    let hello = Hello {
        migration: pair.hello.migration,
        attempt: pair.hello.attempt,
        ticket: pair.hello.ticket.clone(),
        channel: Channel::Main,
    };
    let mut stream = pair
        .tls(&agent("a"))
        .connect(&pair.address, ALPN_DATA, &agent("b"))
        .await
        .unwrap();
    stream.write_all(&hello.encode()).await.unwrap();
    stream.flush().await.unwrap();
    let reply = Reply::read(&mut stream).await.unwrap();
    assert!(
        matches!(&reply, Reply::Refused { refusal: Refusal::Qemu, detail } if detail.contains("qemu")),
        "{reply:?}"
    );
    assert!(matches!(error(waiting.errors()).await, TunnelError::Qemu { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_hello_and_garbage_are_refused() {
    let pair = Pair::start().await;
    let _waiting = pair.register();
    let tls = pair.tls(&agent("a"));
    let mut garbage = tls.connect(&pair.address, ALPN_DATA, &agent("b")).await.unwrap();
    garbage.write_all(&[0x16; 64]).await.unwrap();
    garbage.flush().await.unwrap();
    let reply = Reply::read(&mut garbage).await.unwrap();
    assert!(
        matches!(
            reply,
            Reply::Refused {
                refusal: Refusal::Hello,
                ..
            }
        ),
        "{reply:?}"
    );
    let mut short = tls.connect(&pair.address, ALPN_DATA, &agent("b")).await.unwrap();
    short.write_all(&[0x16; 63]).await.unwrap();
    short.shutdown().await.unwrap();
    let reply = Reply::read(&mut short).await.unwrap();
    assert!(
        matches!(
            reply,
            Reply::Refused {
                refusal: Refusal::Hello,
                ..
            }
        ),
        "{reply:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_does_not_come_in_five_seconds_is_refused() {
    let pair = Pair::start().await;
    let began = Instant::now();
    let mut silent = pair
        .tls(&agent("a"))
        .connect(&pair.address, ALPN_DATA, &agent("b"))
        .await
        .unwrap();
    let reply = Reply::read(&mut silent).await.unwrap();
    assert!(
        matches!(
            reply,
            Reply::Refused {
                refusal: Refusal::Hello,
                ..
            }
        ),
        "{reply:?}"
    );
    assert!(began.elapsed() >= Duration::from_secs(4) && began.elapsed() < Duration::from_secs(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_beyond_the_limit_are_turned_away_at_once() {
    let pair = Pair::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (caller, server) = (pair.tls(&agent("a")), pair.tls(&agent("b")));
    let mut incoming = accept(listener, server, &[ALPN_DATA], CancellationToken::new());
    // However long so many handshakes take: the first is served when the last is done.
    let mut connected = Vec::new();
    for _ in 0..100 {
        let stream = caller.connect(&address, ALPN_DATA, &agent("b")).await.unwrap();
        connected.push((stream, soon(incoming.next()).await.unwrap()));
    }
    let mut replies = tokio::task::JoinSet::new();
    for (mut stream, accepted) in connected {
        let destination = pair.destination.clone();
        tokio::spawn(async move { destination.serve(accepted).await });
        replies.spawn(async move { Reply::read(&mut stream).await.unwrap() });
    }
    let (mut busy, mut waited) = (0, 0);
    while let Some(reply) = replies.join_next().await {
        match reply.unwrap() {
            Reply::Refused {
                refusal: Refusal::Busy, ..
            } => busy += 1,
            Reply::Refused {
                refusal: Refusal::Hello,
                ..
            } => waited += 1,
            reply @ (Reply::Accepted | Reply::Refused { .. }) => panic!("{reply:?}"),
        }
    }
    assert_eq!((busy, waited), (36, 64));
    // They are gone, and there is room again.
    let (qemu, _waiting, _source) = (pair.qemu(), pair.register(), pair.open());
    let _near = pair.connect().await;
    soon(qemu.accept()).await.unwrap();
}
