//! WatchMigration: nothing is missed, and nothing is held open.

use base64::Engine;
use drover_proto::failure::Reason;
use drover_proto::v1::watch_migration_response::Event;
use drover_proto::v1::{self, MigrationState, WatchMigrationRequest, WatchMigrationResponse};
use tonic::Streaming;

use super::lab::{Lab, reason};

async fn next(stream: &mut Streaming<WatchMigrationResponse>) -> Option<WatchMigrationResponse> {
    let next = tokio::time::timeout(std::time::Duration::from_secs(60), stream.message());
    next.await.expect("the stream says nothing").unwrap()
}

async fn watch(lab: &Lab, name: &str, resume_token: &str) -> Streaming<WatchMigrationResponse> {
    let request = WatchMigrationRequest {
        name: name.to_owned(),
        resume_token: resume_token.to_owned(),
    };
    lab.migrations().watch_migration(request).await.unwrap().into_inner()
}

fn states(messages: &[WatchMigrationResponse]) -> Vec<(MigrationState, v1::MigrationPhase)> {
    let changed = |message: &WatchMigrationResponse| match message.event.as_ref().unwrap() {
        Event::Changed(migration) => Some((migration.state(), migration.phase())),
        Event::Snapshot(_) | Event::Progress(_) | Event::GuestSwitched(_) | Event::Heartbeat(_) => None,
    };
    messages.iter().filter_map(changed).collect()
}

/// Where the phase after the switch begins.
fn verifies(messages: &[WatchMigrationResponse]) -> usize {
    let is_there = |message: &WatchMigrationResponse| match &message.event {
        Some(Event::Changed(migration)) => migration.phase() == v1::MigrationPhase::Verify,
        _ => false,
    };
    messages.iter().position(is_there).unwrap()
}

/// Begun, watched, and let end: all that was told.
async fn all_of_one(lab: &Lab, name: &str) -> Vec<WatchMigrationResponse> {
    let mut stream = watch(lab, name, "").await;
    let mut messages = vec![next(&mut stream).await.unwrap()];
    assert!(matches!(messages[0].event, Some(Event::Snapshot(_))));
    loop {
        let message = next(&mut stream).await.unwrap();
        let is_progress = matches!(message.event, Some(Event::Progress(_)));
        messages.push(message);
        if is_progress {
            break;
        }
    }
    lab.world.open_gate();
    while let Some(message) = next(&mut stream).await {
        messages.push(message);
    }
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_begins_with_a_snapshot_and_misses_nothing() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    let messages = all_of_one(&lab, &created.name).await;
    let switched = messages
        .iter()
        .position(|message| matches!(message.event, Some(Event::GuestSwitched(_))))
        .unwrap();
    let Some(Event::GuestSwitched(told)) = &messages[switched].event else {
        unreachable!()
    };
    assert_eq!(told.host, "hosts/host-2");
    assert!(
        switched < verifies(&messages),
        "it is told before anything that comes after it"
    );
    assert!(told.switch_time.is_some() && told.blackout.is_some());
    let states = states(&messages);
    assert!(
        states.contains(&(MigrationState::Running, v1::MigrationPhase::Verify)),
        "{states:?}"
    );
    assert_eq!(
        states.last(),
        Some(&(MigrationState::Succeeded, v1::MigrationPhase::Finalize))
    );

    // Resumed anywhere, all the changes that came after are told again, and the switch too.
    let from = &messages[0];
    let mut resumed = watch(&lab, &created.name, &from.resume_token).await;
    let mut again = Vec::new();
    while let Some(message) = next(&mut resumed).await {
        again.push(message);
    }
    assert!(matches!(again[0].event, Some(Event::Snapshot(_))));
    assert_eq!(self::states(&again), states);
    assert_eq!(
        again
            .iter()
            .filter(|message| matches!(message.event, Some(Event::GuestSwitched(_))))
            .count(),
        1
    );

    let last = messages.last().unwrap();
    let mut resumed = watch(&lab, &created.name, &last.resume_token).await;
    assert!(matches!(
        next(&mut resumed).await.unwrap().event,
        Some(Event::Snapshot(_))
    ));
    assert!(next(&mut resumed).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_resume_token_is_refused() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    let id = created.name.trim_start_matches("migrations/");
    let future = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(format!("{id} 99999"));
    for (token, expected) in [
        ("!", Reason::InvalidArgument),
        (future.as_str(), Reason::ResumeTokenExpired),
    ] {
        let request = WatchMigrationRequest {
            name: created.name.clone(),
            resume_token: token.to_owned(),
        };
        let refused = lab.migrations().watch_migration(request).await.unwrap_err();
        assert_eq!(reason(&refused), expected);
    }
    lab.cancel(&created.name).await;
    lab.at_rest(&created.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_does_not_hold_the_end_of_the_controller_open() {
    let mut lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    let mut stream = watch(&lab, &created.name, "").await;
    next(&mut stream).await.unwrap();
    let began = std::time::Instant::now();
    lab.stop().await;
    assert!(
        began.elapsed() < std::time::Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
}
