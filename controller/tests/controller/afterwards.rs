//! What became of the guest between its arrival and the record's rest: it ended, somebody moved it back by hand, or
//! its definition was changed while it moved.

use drover_proto::agent::v1::{DefinitionNews, LibvirtState};
use drover_proto::v1::{Migration, MigrationPhase, MigrationState};

use super::lab::Lab;
use super::world::{Fault, GUEST};

/// A migration whose guest has arrived; Finalize comes to the destination and waits there.
async fn arrived() -> (Lab, String) {
    let lab = Lab::new().await;
    lab.world.open_gate();
    lab.world.hold("SettleIncoming");
    let created = lab.create().await;
    lab.world.called("SettleIncoming", 1).await;
    (lab, created.name)
}

fn said_last(migration: &Migration) -> &str {
    let last = migration.phases.last().expect("a phase");
    assert_eq!(last.phase(), MigrationPhase::Finalize, "{migration:#?}");
    &last.detail
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ended_at_its_destination_has_ended() {
    let (lab, name) = arrived().await;
    lab.world.lock().host("host-2").guests.remove(GUEST);
    lab.world.release("SettleIncoming");
    let ended = lab.at_rest(&name).await;
    assert_eq!(ended.state(), MigrationState::GuestEnded, "{ended:#?}");
    assert_eq!(said_last(&ended), "the guest ended at the destination");
    assert_eq!(ended.guest_host, "hosts/host-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_somebody_moved_back_is_where_it_is() {
    let (lab, name) = arrived().await;
    lab.world.lock().host("host-2").guests.remove(GUEST);
    // Another life, at the source.
    lab.world.start_guest("host-1");
    lab.world.release("SettleIncoming");
    let back = lab.at_rest(&name).await;
    assert_eq!(back.state(), MigrationState::Succeeded, "{back:#?}");
    assert_eq!(back.guest_host, "hosts/host-1");
    assert!(said_last(&back).contains("moved back by hand"), "{back:#?}");
    lab.world.assert_clean("host-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn that_a_guest_stands_still_is_told() {
    let (lab, name) = arrived().await;
    let pause = |state: &mut super::world::State| {
        let guest = state.host("host-2").guests.get_mut(GUEST).unwrap();
        guest.set_state(LibvirtState::Paused);
    };
    pause(&mut lab.world.lock());
    lab.world.release("SettleIncoming");
    let moved = lab.at_rest(&name).await;
    assert_eq!(moved.state(), MigrationState::Succeeded, "{moved:#?}");
    assert!(said_last(&moved).ends_with("as its user left it"), "{moved:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_guest_that_left_has_ended_is_said_only_after_a_look_at_the_source() {
    let (lab, name) = arrived().await;
    lab.world.lock().host("host-2").guests.remove(GUEST);
    lab.world.start_guest("host-1");
    // The look at both hosts that Finalize begins with is over; the next one is lost.
    lab.world.fault("GetMigrationStatus", Fault::LoseRequest);
    lab.world.release("SettleIncoming");
    let back = lab.at_rest(&name).await;
    assert_eq!(back.guest_host, "hosts/host-1", "{back:#?}");
    let attempts = back
        .phases
        .iter()
        .filter(|phase| phase.phase() == MigrationPhase::Finalize);
    assert_eq!(attempts.count(), 2, "{back:#?}");
}

/// What Finalize tells of news about the definition: from the source, and what the destination made of it.
async fn told(news: DefinitionNews, taken: Option<DefinitionNews>) -> String {
    let lab = Lab::new().await;
    lab.world.open_gate();
    // Held in Verify: the source has journaled the news by then, and Finalize looks afterwards.
    lab.world.hold("SettleOutgoing");
    let created = lab.create().await;
    lab.world.called("SettleOutgoing", 1).await;
    {
        let mut state = lab.world.lock();
        for (host, definition) in [("host-1", Some(news)), ("host-2", taken)] {
            for journal in state.host(host).journals.values_mut() {
                journal.record.definition.clone_from(&definition);
            }
        }
    }
    lab.world.release("SettleOutgoing");
    let moved = lab.assert_moved(&created.name).await;
    said_last(&moved).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_a_definition_that_was_changed_on_the_way_is_told() {
    let newer = || DefinitionNews {
        inactive_xml: "<domain/>".to_owned(),
        ..DefinitionNews::default()
    };
    let refused = |problem: &str| DefinitionNews {
        problem: problem.to_owned(),
        ..DefinitionNews::default()
    };
    for (news, taken, words) in [
        (
            newer(),
            None,
            "was changed at the source on the way: it is the newer one here",
        ),
        (
            DefinitionNews::default(),
            None,
            "was removed at the source on the way: it has none here either",
        ),
        (refused("too large"), None, "and that change is lost: too large"),
        (
            newer(),
            Some(refused("no such machine")),
            "and that change is lost: no such machine",
        ),
    ] {
        let said = told(news, taken).await;
        assert!(
            said.starts_with("the source has forgotten the guest; ") && said.ends_with(words),
            "{said}"
        );
    }
}
