//! What an operator reads in the log while a migration waits: once, not at every look.

use drover_controller::saga::PATIENCE;
use drover_proto::v1::MigrationState;
use tracing::Level;

use super::lab::Lab;
use super::log;
use super::resolve::{died_while_it_let_the_guest_run, handed_over_without};
use super::world::until;

/// Each call of the host makes the migration look at once. It looks so often again, in vain.
async fn looks_again(lab: &Lab, name: &str, often: usize) {
    let looks = lab.get(name).await.phases.len();
    until("it has looked often", async || {
        lab.comes_back("host-2").await;
        lab.get(name).await.phases.len() >= looks + often
    })
    .await;
}

fn told(name: &str) -> Vec<(Level, String)> {
    let lines = log::of(name).into_iter();
    lines.map(|line| (line.level, line.message)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_away_is_told_once_and_attention_is_asked_for_once() {
    log::keep();
    let (lab, name) = handed_over_without("host-2").await;
    looks_again(&lab, &name, 2).await;
    let (lines, looks) = (told(&name), lab.looked_in_vain(&name).await);
    let waits = match &lines[..] {
        [(Level::WARN, waits)] => waits,
        // On a busy machine it may have looked so often by now that attention is asked for.
        [(Level::WARN, waits), (Level::ERROR, _)] if looks >= PATIENCE as usize => waits,
        other => panic!("one warning after {looks} looks, not {other:?}"),
    };
    assert!(
        waits.starts_with("the migration waits: ") && waits.contains("host-2"),
        "{waits}"
    );
    until("it asks for attention", async || {
        lab.comes_back("host-2").await;
        lab.get(&name).await.state() == MigrationState::AttentionRequired
    })
    .await;
    looks_again(&lab, &name, 3).await;
    match &told(&name)[..] {
        [_, (Level::ERROR, asks)] => {
            assert!(
                asks.starts_with("the migration asks for attention: ") && asks.contains("host-2"),
                "{asks}"
            );
        }
        other => panic!("one warning and one error, not {other:?}"),
    }
    {
        let mut state = lab.world.lock();
        state.away.clear();
        state.stalled = false;
    }
    lab.comes_back("host-2").await;
    lab.assert_moved(&name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_asked_for_once() {
    log::keep();
    let (lab, name) = handed_over_without("host-2").await;
    died_while_it_let_the_guest_run(&lab, &name).await;
    looks_again(&lab, &name, 2).await;
    match &told(&name)[..] {
        [(Level::WARN, _), (Level::ERROR, asks)] => assert!(asks.contains("host-2 died"), "{asks}"),
        other => panic!("one warning and one error, not {other:?}"),
    }
}
