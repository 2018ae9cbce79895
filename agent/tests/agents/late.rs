//! Commands that come late: from a controller out of office, for a guest that has come back, for another source.

use drover_agent::hypervisor::StopReason;
use drover_agent::jobs::fence::{Fence as Command, Reference};
use drover_agent::journal::Term;
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use drover_proto::ids::{Attempt, MigrationId};

use crate::node::Node;
use crate::scene::{Scene, journal_state, reason};

fn with_autostart() -> SimGuest {
    SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    }
}

/// The host's clock was set back between its two migrations: the later one looks like the earlier one.
async fn clock_was_set_back(node: &Node, migration: MigrationId) {
    let mut page = node.jobs().journal.lock(migration).await.unwrap();
    page.change(|record| record.created = std::time::SystemTime::UNIX_EPOCH)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ran_does_not_forget_the_definition_of_a_guest_that_came_back() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    scene.a.host.script(Call::ConfirmMoved, Fault::Refuse);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    // The copy goes by another way before the verdict is carried out.
    use drover_agent::hypervisor::Hypervisor;
    scene.a.host.kill(scene.guest, StopReason::Migrated);
    scene.a.host.undefine(scene.guest).await.unwrap();
    scene.settle_b(Verdict::Ran).await.unwrap();
    scene.close(&scene.b).await.unwrap();

    let first = scene.turn_round();
    scene.moves().await;
    clock_was_set_back(&scene.b, scene.migration).await;
    scene.settle_a(Verdict::Ran).await.unwrap();
    scene.settle_b(Verdict::Ran).await.unwrap();
    scene.b.host.shut_down(scene.guest);

    let back = std::mem::replace(&mut scene.migration, first);
    let settle = SettleOutgoingRequest {
        fence: scene.fence(),
        migration: scene.reference(),
        verdict: Verdict::Ran.into(),
        fenced: false,
    };
    scene.ask_b().settle_outgoing(settle).await.unwrap();
    assert!(
        scene.b.host.look(scene.guest).is_some_and(|guest| guest.persistent),
        "it is of migration {back}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn never_ran_neither_resumes_nor_autostarts_a_guest_that_leaves_again() {
    let mut scene = Scene::new(with_autostart()).await;
    scene.ready().await;
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    scene.a.host.script(Call::SetAutostart, Fault::Refuse);
    scene.settle_a(Verdict::NeverRan).await.unwrap_err();
    scene.settle_b(Verdict::NeverRan).await.unwrap();

    let first = std::mem::replace(&mut scene.migration, MigrationId::generate());
    let go_on = tokio_util::sync::CancellationToken::new();
    scene.b.host.script(Call::Finish, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Finishing).await;
    clock_was_set_back(&scene.a, scene.migration).await;
    // Without the job that would protect it.
    scene.a.host.restart_libvirtd();

    let second = std::mem::replace(&mut scene.migration, first);
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    assert!(scene.runs_on().is_empty(), "it is on its way to b");
    assert!(!scene.autostart(&scene.a));
    scene.migration = second;
    go_on.cancel();
    scene.until_state(&scene.b, JournalState::Ran).await;
    let source = scene.until_quiet(&scene.a).await;
    assert!(!source.journal.unwrap().suspended_by_agent, "it did not run in between");
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn never_ran_does_not_forget_the_definition_of_a_guest_that_came_after_all() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    scene.ready().await;
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    scene.b.host.script(Call::Look, Fault::Refuse);
    scene.settle_b(Verdict::NeverRan).await.unwrap_err();
    let verdict = scene.status(&scene.b).await.journal.unwrap().verdict();
    assert_eq!(verdict, Verdict::NeverRan, "written, not carried out");
    scene.settle_a(Verdict::NeverRan).await.unwrap();

    let first = std::mem::replace(&mut scene.migration, MigrationId::generate());
    scene.moves().await;
    clock_was_set_back(&scene.b, scene.migration).await;
    scene.settle_a(Verdict::Ran).await.unwrap();
    scene.settle_b(Verdict::Ran).await.unwrap();
    scene.b.host.shut_down(scene.guest);

    scene.migration = first;
    scene.settle_b(Verdict::NeverRan).await.unwrap();
    assert!(scene.b.host.look(scene.guest).is_some_and(|guest| guest.persistent));
    assert_eq!(scene.b.sockets(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ran_does_not_autostart_a_guest_that_leaves_again() {
    let mut scene = Scene::new(with_autostart()).await;
    scene.moves().await;
    scene.settle_a(Verdict::Ran).await.unwrap();
    scene.close(&scene.a).await.unwrap();
    scene.b.host.script(Call::SetAutostart, Fault::Refuse);
    scene.settle_b(Verdict::Ran).await.unwrap_err();

    let first = scene.turn_round();
    scene.begin().await.unwrap();
    clock_was_set_back(&scene.a, scene.migration).await;
    // Without the job that would protect it.
    scene.a.restart().await;
    let second = std::mem::replace(&mut scene.migration, first);
    let settle = SettleIncomingRequest {
        fence: scene.fence(),
        migration: scene.reference(),
        verdict: Verdict::Ran.into(),
        fenced: false,
        definition: None,
    };
    scene.ask_a().settle_incoming(settle).await.unwrap();
    assert!(!scene.autostart(&scene.a), "a host that reboots starts no second copy");
    scene.migration = second;
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_for_another_source_is_refused() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let ready = scene.ready().await;
    let request = PrepareIncomingRequest {
        fence: scene.fence(),
        migration: scene.reference(),
        source_host: "hosts/c".to_owned(),
        guest_name: ready.begun.guest_name.clone(),
        xml: ready.begun.xml.clone(),
        inactive_xml: ready.begun.inactive_xml.clone(),
        cookie: ready.begun.cookie.clone(),
        state_before: ready.begun.state_before,
        autostart_before: ready.begun.autostart_before,
        policy: Some(TransferPolicy::default()),
        images: Vec::new(),
        offline: None,
    };
    let refused = scene.ask_b().prepare_incoming(request).await;
    assert_eq!(
        reason(refused.map_err(drover_proto::failure::Failure::from)),
        Reason::MigrationState
    );
    let again = scene.prepare(&ready.begun).await.unwrap();
    assert_eq!(again, ready.prepared, "it waits for the one that it was prepared for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_waited_behind_a_newer_controller_is_found_out() {
    let scene = Scene::new(SimGuest::named("web")).await;
    scene.begin().await.unwrap();
    let jobs = scene.a.jobs();
    let command = |number| Command {
        term: Term {
            number,
            store_instance: scene.store.to_owned(),
        },
        lease: 0,
    };
    let reference = Reference {
        migration: scene.migration,
        attempt: Attempt(1),
        guest: scene.guest,
    };
    let hold = jobs.journal.lock(scene.migration).await.unwrap();
    let old = jobs.abort_outgoing(command(scene.term), reference, "late".to_owned());
    tokio::pin!(old);
    assert!(
        futures::poll!(&mut old).is_pending(),
        "it waits for the migration's lock"
    );
    jobs.obey(&command(scene.term + 1)).await.unwrap();
    drop(hold);
    assert_eq!(reason(old.await), Reason::StaleTerm);
    assert!(!scene.status(&scene.a).await.journal.unwrap().tombstoned);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_not_torn_by_what_happens_while_libvirt_is_asked() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let begun = scene.begin().await.unwrap();
    let jobs = scene.b.jobs();
    let reference = Reference {
        migration: scene.migration,
        attempt: Attempt(1),
        guest: scene.guest,
    };
    let go_on = tokio_util::sync::CancellationToken::new();
    scene.b.host.script(Call::Look, Fault::AnswerAfter(go_on.clone()));
    let status = jobs.status(reference);
    tokio::pin!(status);
    assert!(
        futures::poll!(&mut status).is_pending(),
        "libvirt's answer is on its way"
    );
    scene.prepare(&begun).await.unwrap();
    go_on.cancel();
    let status = status.await.unwrap();
    assert_eq!(
        status.record.map(|record| record.state_name()),
        Some("waiting"),
        "the newest journal"
    );
    assert!(
        status.guest.is_some(),
        "and the guest that goes with it, not the one from before"
    );
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Waiting);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_that_was_carried_out_does_not_undo_what_the_user_did_since() {
    use drover_agent::hypervisor::Hypervisor;
    let scene = Scene::new(with_autostart()).await;
    scene.ready().await;
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    assert_eq!(scene.runs_on(), ["a"]);
    scene.a.host.suspend(scene.guest).await.unwrap();
    scene.a.host.set_autostart(scene.guest, false).await.unwrap();
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    assert!(scene.runs_on().is_empty(), "its user paused it");
    assert!(!scene.autostart(&scene.a));
    scene.rest(Verdict::NeverRan).await;
}
