//! An operator's word that a host is fenced: taken where nobody else can decide, carried out, and adopted by the
//! fenced host's agent when it is back.

use drover_proto::agent::v1::{JournalState, LibvirtState};
use drover_proto::failure::Reason;
use drover_proto::v1::migration_service_client::MigrationServiceClient;
use drover_proto::v1::{
    AdoptedResolution, FencedSide, MigrationPhase, MigrationState, RegisterHostRequest, ResolveMigrationRequest,
    ResolvedOwner,
};

use super::agent::registration;
use super::lab::{Lab, reason};
use super::world::{GUEST, until};

/// All is sent and handed over, and this host does not answer any more.
pub(crate) async fn handed_over_without(host: &str) -> (Lab, String) {
    let lab = Lab::new().await;
    lab.world.lock().stalled = true;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    lab.world.hold("GetMigrationStatus");
    lab.world.open_gate();
    until("all is sent", async || {
        lab.world.guest_state("host-1") == Some(LibvirtState::PausedMigrating)
    })
    .await;
    lab.world.lock().away.insert(host.to_owned());
    lab.world.release("GetMigrationStatus");
    until("it waits for the host", async || {
        let waiting = lab.get(&created.name).await.waiting_for;
        waiting.is_some_and(|waiting| waiting.reason == "HOST_UNREACHABLE" && waiting.host == format!("hosts/{host}"))
    })
    .await;
    (lab, created.name)
}

/// Host-2 is back from a death between "it shall run" and "it ran": nobody can tell any more.
pub(crate) async fn died_while_it_let_the_guest_run(lab: &Lab, name: &str) {
    {
        let mut state = lab.world.lock();
        let host = state.host("host-2");
        host.guests.clear();
        for journal in host.journals.values_mut() {
            journal.record.set_state(JournalState::Resuming);
        }
        state.away.clear();
    }
    lab.comes_back("host-2").await;
    until("nobody can decide", async || {
        let shown = lab.get(name).await;
        shown.state() == MigrationState::AttentionRequired
            && shown
                .waiting_for
                .is_some_and(|waiting| waiting.reason == "RESOLVE_NEEDED")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_destination_gives_the_guest_back_and_learns_it_before_it_serves() {
    let (mut lab, name) = handed_over_without("host-2").await;
    let before = lab.comes_back("host-2").await.resolutions;
    assert!(before.is_empty(), "nothing was said yet: {before:?}");
    lab.world.hold("SettleOutgoing");
    let said = lab.resolve(&name, FencedSide::Destination).await.unwrap();
    let word = said.resolution.unwrap();
    assert_eq!(word.fenced_side(), FencedSide::Destination);
    assert_eq!(word.operator, "spiffe://drover.local/user/alice");
    assert!(word.time.is_some() && word.adopt_time.is_none());
    lab.world.called("SettleOutgoing", 1).await;
    let early = lab.comes_back("host-2").await.resolutions;
    assert!(
        early.is_empty(),
        "nobody has acted on it yet: what the host knows counts: {early:?}"
    );
    lab.world.release("SettleOutgoing");
    let ended = lab.at_rest(&name).await;
    assert_eq!(ended.state(), MigrationState::Failed, "{ended:#?}");
    assert_eq!(ended.guest_host, "hosts/host-1");
    assert_eq!(lab.world.guest_state("host-1"), Some(LibvirtState::Running));
    // It survives the controller, and is told to the host when that calls.
    lab.kill();
    lab.start().await;
    let told = lab.comes_back("host-2").await.resolutions;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].migration, name);
    assert_eq!(told[0].owner(), ResolvedOwner::Source);
    assert!(told[0].term > 1 && !told[0].store_instance.is_empty());
    let others = lab.comes_back("host-1").await.resolutions;
    assert!(others.is_empty(), "only the fenced host has to adopt: {others:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_source_lets_the_complete_copy_run() {
    let (lab, name) = handed_over_without("host-1").await;
    lab.resolve(&name, FencedSide::Source).await.unwrap();
    let ended = lab.at_rest(&name).await;
    assert_eq!(ended.state(), MigrationState::Succeeded, "{ended:#?}");
    assert_eq!(lab.world.guest_state("host-2"), Some(LibvirtState::Running));
    let told = lab.comes_back("host-1").await.resolutions;
    assert_eq!(told[0].owner(), ResolvedOwner::Destination);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_had_not_come_whole_has_gone_with_its_fenced_source() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    lab.world.lock().incomplete = true;
    lab.world.lock().away.insert("host-1".to_owned());
    until("it waits for the source", async || {
        let waiting = lab.get(&created.name).await.waiting_for;
        waiting.is_some_and(|waiting| waiting.host == "hosts/host-1")
    })
    .await;
    lab.resolve(&created.name, FencedSide::Source).await.unwrap();
    let ended = lab.at_rest(&created.name).await;
    assert_eq!(ended.state(), MigrationState::GuestEnded, "{ended:#?}");
    assert_eq!(lab.world.guest_state("host-2"), None, "nothing is left there");
    let told = lab.comes_back("host-1").await.resolutions;
    assert_eq!(
        told[0].owner(),
        ResolvedOwner::Source,
        "what is left of it is the source's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_is_refused_where_the_hosts_can_decide() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    for side in [FencedSide::Source, FencedSide::Destination] {
        let refused = lab.resolve(&created.name, side).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::MigrationState);
        assert!(refused.message().contains("answers"), "{refused}");
    }
    let unsaid = lab.resolve(&created.name, FencedSide::Unspecified).await.unwrap_err();
    assert_eq!(reason(&unsaid), Reason::InvalidArgument);
    let request = ResolveMigrationRequest {
        name: created.name.clone(),
        fenced_side: FencedSide::Source.into(),
        etag: String::new(),
    };
    let mut viewer = MigrationServiceClient::new(lab.channel("user/vera"));
    let denied = viewer.resolve_migration(request).await.unwrap_err();
    assert_eq!(reason(&denied), Reason::PermissionDenied);
    assert!(lab.get(&created.name).await.resolution.is_none());
    lab.world.open_gate();
    lab.assert_moved(&created.name).await;
    let late = lab.resolve(&created.name, FencedSide::Source).await.unwrap_err();
    assert_eq!(reason(&late), Reason::MigrationState);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_about_the_host_that_is_not_waited_for_is_refused() {
    let (lab, name) = handed_over_without("host-2").await;
    let refused = lab.resolve(&name, FencedSide::Source).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::MigrationState);
    assert!(refused.message().contains("host-2 has to answer first"), "{refused}");
    lab.world.lock().away.insert("host-1".to_owned());
    let refused = lab.resolve(&name, FencedSide::Destination).await.unwrap_err();
    assert!(refused.message().contains("host-1 has to answer first"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_destination_of_a_guest_that_has_run_there_cannot_be_fenced() {
    let lab = Lab::new().await;
    lab.world.open_gate();
    lab.world.hold("SettleOutgoing");
    let created = lab.create().await;
    lab.world.called("SettleOutgoing", 1).await;
    lab.world.lock().away.insert("host-2".to_owned());
    let refused = lab.resolve(&created.name, FencedSide::Destination).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::VerdictConflict, "{refused}");
    lab.world.lock().away.clear();
    lab.world.release("SettleOutgoing");
    lab.assert_moved(&created.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_died_while_it_let_the_guest_run_is_decided_by_a_word() {
    let (lab, name) = handed_over_without("host-2").await;
    died_while_it_let_the_guest_run(&lab, &name).await;
    let metrics = lab.metrics().await;
    assert!(metrics.contains("drover_migration_attention 1\n"), "{metrics}");
    let owner = lab.owner_of(GUEST).await;
    assert_eq!(
        (owner.owner_host.as_str(), owner.migration.as_str()),
        ("", name.as_str())
    );
    assert!(owner.undecided_reason.contains("resolve"), "{owner:?}");
    let needless = lab.resolve(&name, FencedSide::Source).await.unwrap_err();
    assert!(needless.message().contains("the only copy"), "{needless}");
    lab.resolve(&name, FencedSide::Destination).await.unwrap();
    let again = lab.resolve(&name, FencedSide::Destination).await.unwrap();
    assert!(again.resolution.is_some(), "the same word again is the same word");
    let other = lab.resolve(&name, FencedSide::Source).await;
    assert!(other.is_err(), "another word is not");
    lab.assert_unmoved(&name, MigrationState::Failed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_destination_holds_the_guests_place_only_until_somebody_says_so() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    lab.world.lock().away.insert("host-2".to_owned());
    lab.cancel(&created.name).await;
    until("the source has its guest back", async || {
        lab.get(&created.name).await.phase() == MigrationPhase::Discard
    })
    .await;
    lab.resolve(&created.name, FencedSide::Destination).await.unwrap();
    let ended = lab.at_rest(&created.name).await;
    assert_eq!(ended.state(), MigrationState::Cancelled, "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_ran_on_a_fenced_host_is_an_alarm() {
    let (lab, name) = handed_over_without("host-2").await;
    lab.resolve(&name, FencedSide::Destination).await.unwrap();
    lab.at_rest(&name).await;
    let adopted = |host: &str| RegisterHostRequest {
        host: Some(registration(host, &lab.addresses[1])),
        adopted_resolutions: vec![AdoptedResolution {
            migration: name.clone(),
            adopt_time: Some(drover_proto::time::now()),
            copy_ran: true,
        }],
        ..RegisterHostRequest::default()
    };
    lab.register_as("host-1", adopted("host-1")).await.unwrap();
    let word = lab.get(&name).await.resolution.unwrap();
    assert!(word.adopt_time.is_none(), "only the fenced host can adopt");
    lab.register_as("host-2", adopted("host-2")).await.unwrap();
    let word = lab.get(&name).await.resolution.unwrap();
    assert!(word.adopt_time.is_some() && word.copy_ran, "{word:?}");
    let metrics = lab.metrics().await;
    assert!(metrics.contains("drover_guest_ran_twice_total 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_migration_waits_for_is_counted_and_ends_when_the_host_calls() {
    let (lab, name) = handed_over_without("host-2").await;
    let metrics = lab.metrics().await;
    assert!(
        metrics.contains("drover_migration_waiting{reason=\"HOST_UNREACHABLE\"} 1"),
        "{metrics}"
    );
    let owner = lab.owner_of(GUEST).await;
    assert_eq!(owner.owner_host, "", "{owner:?}");
    assert!(!owner.undecided_reason.is_empty());
    // Long enough that the next look is far away; the host's call brings it on.
    until("it looks seldom", async || lab.get(&name).await.phases.len() > 5).await;
    lab.world.lock().away.clear();
    lab.world.lock().stalled = false;
    lab.comes_back("host-2").await;
    let calls = lab.world.was_called("GetMigrationStatus");
    until("it looks at once", async || {
        lab.world.was_called("GetMigrationStatus") > calls || lab.get(&name).await.end_time.is_some()
    })
    .await;
    lab.assert_moved(&name).await;
    let metrics = lab.metrics().await;
    assert!(
        metrics.contains("drover_migration_waiting{reason=\"HOST_UNREACHABLE\"} 0"),
        "{metrics}"
    );
}
