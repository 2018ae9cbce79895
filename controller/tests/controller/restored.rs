//! A database that was restored from a backup: nothing is commanded by it before it was adopted, and what it does not
//! know is taken up from the agents' journals.

use drover_controller::server::{adopt_restored, open_store};
use drover_proto::failure::Reason;
use drover_proto::v1::{HostState, MigrationState};

use super::lab::{Lab, reason, wish};
use super::world::until;

/// A lab whose database is from before its migration.
async fn restored(run: impl AsyncFnOnce(&mut Lab) -> String) -> (Lab, String) {
    let mut lab = Lab::new().await;
    lab.stop().await;
    lab.back_up();
    lab.start().await;
    let name = run(&mut lab).await;
    lab.kill();
    lab.restore();
    (lab, name)
}

async fn adopt(lab: &Lab, allow_silent: bool) -> anyhow::Result<drover_controller::restored::Restored> {
    let config = lab.config();
    let store = open_store(&config.store).await?;
    adopt_restored(&config, store, allow_silent).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_a_restored_database_does_not_know_is_taken_up_and_undone() {
    let (mut lab, name) = restored(async |lab| {
        let created = lab.create().await;
        lab.world.called("WatchOutgoing", 1).await;
        created.name
    })
    .await;
    lab.start().await;
    let refused = lab.migrations().create_migration(wish()).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::StaleTerm, "read-only");
    lab.comes_back("host-1").await;
    lab.stop().await;
    let found = adopt(&lab, false).await.unwrap();
    assert_eq!(found.adopted.len(), 1, "{found:?}");
    assert!(found.left.is_empty() && found.silent.is_empty(), "{found:?}");
    lab.start().await;
    let ended = lab.assert_unmoved(&name, MigrationState::Failed).await;
    assert_eq!(ended.error.unwrap().reason, "STORE_LOST");
    // It is in office again. (The transfer that was undone still waits for its end.)
    lab.world.open_gate();
    lab.world.open_gate();
    let created = lab.create().await;
    lab.assert_moved(&created.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_had_moved_meanwhile_stays_where_it_is() {
    let (mut lab, name) = restored(async |lab| {
        lab.world.hold("SettleIncoming");
        lab.world.open_gate();
        let created = lab.create().await;
        lab.world.called("SettleIncoming", 1).await;
        created.name
    })
    .await;
    lab.world.release("SettleIncoming");
    adopt(&lab, false).await.unwrap();
    lab.start().await;
    lab.assert_moved(&name).await;
}

/// What asks and changes nothing.
const QUESTIONS: [&str; 5] = [
    "GetAgentStatus",
    "GetMigrationStatus",
    "InspectHost",
    "InspectGuest",
    "ListGuests",
];

/// The database believes that a guest is on its way which has arrived long ago.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_a_restored_database_believes_to_go_on_is_not_touched_before_it_is_adopted() {
    let mut lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    lab.stop().await;
    lab.back_up();
    lab.start().await;
    lab.world.called("WatchOutgoing", 2).await;
    lab.world.open_gate();
    lab.assert_moved(&created.name).await;
    lab.stop().await;
    lab.restore();
    let before = lab.world.lock().calls.len();
    lab.start().await;
    for host in ["host-1", "host-2"] {
        lab.comes_back(host).await;
    }
    let refused = lab.migrations().create_migration(wish()).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::StaleTerm, "read-only");
    let believed = lab.get(&created.name).await;
    assert!(believed.end_time.is_none(), "{believed:#?}");
    let made = lab.world.lock().calls[before..].to_vec();
    let commands: Vec<_> = made
        .iter()
        .filter(|(_, call)| !QUESTIONS.contains(&call.as_str()))
        .collect();
    assert!(commands.is_empty(), "{commands:?}");
    lab.stop().await;
    adopt(&lab, false).await.unwrap();
    lab.start().await;
    lab.assert_moved(&created.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_silent_agent_knows_is_taken_up_when_it_registers() {
    let (mut lab, name) = restored(async |lab| {
        let created = lab.create().await;
        lab.world.called("WatchOutgoing", 1).await;
        created.name
    })
    .await;
    lab.world.lock().away.extend(["host-1".to_owned(), "host-2".to_owned()]);
    let refused = adopt(&lab, false).await.unwrap_err().to_string();
    assert!(refused.contains("host-1, host-2"), "{refused}");
    lab.world.lock().away.remove("host-1");
    lab.world
        .lock()
        .host("host-1")
        .journals
        .retain(|_, journal| journal.record.closed);
    let found = adopt(&lab, true).await.unwrap();
    assert!(found.adopted.is_empty(), "{found:?}");
    lab.world.lock().away.clear();
    lab.start().await;
    lab.comes_back("host-2").await;
    let ended = lab.at_rest(&name).await;
    assert_eq!(ended.state(), MigrationState::Failed, "{ended:#?}");
}

/// `drover-controller adopt-restored` itself: its exit code and what it says.
async fn command(lab: &Lab, arguments: &[&str]) -> (Option<i32>, String) {
    let (config, files) = (lab.config(), lab.pki.files("controller"));
    let text = format!(
        "store = '{}'\n[tls]\ncertificate = '{}'\nkey = '{}'\nca = '{}'\n",
        config.store,
        files.certificate.display(),
        files.key.display(),
        files.ca.display()
    );
    let file = files.key.with_file_name("controller.toml");
    std::fs::write(&file, text).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_drover-controller"));
    command.arg("--config").arg(&file).arg("adopt-restored").args(arguments);
    let output = command.kill_on_drop(true).output().await.unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
    (output.status.code(), said.concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_asks_the_hosts_and_says_what_to_do_next() {
    let (mut lab, name) = restored(async |lab| {
        let created = lab.create().await;
        lab.world.called("WatchOutgoing", 1).await;
        created.name
    })
    .await;
    lab.world.lock().away.insert("host-2".to_owned());
    let (code, said) = command(&lab, &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("host-2") && said.contains("--allow-silent"), "{said}");
    let (code, said) = command(&lab, &["--allow-silent"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("taken up: {name}")), "{said}");
    assert!(
        said.contains("did not answer: host-2") && said.contains(": start the controller"),
        "{said}"
    );
    lab.world.lock().away.clear();
    lab.start().await;
    lab.comes_back("host-2").await;
    lab.assert_unmoved(&name, MigrationState::Failed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_written_by_the_controller_in_office_only() {
    let mut lab = Lab::new().await;
    let old = lab.controller.take().unwrap();
    // A second one takes office on the same file while the first is still there.
    lab.start().await;
    for host in ["host-1", "host-2"] {
        lab.comes_back(host).await;
    }
    let new = lab.controller.replace(old);
    let refused = lab.migrations().create_migration(wish()).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::StaleTerm, "{refused}");
    lab.kill();
    lab.controller = new;
    lab.world.open_gate();
    let created = lab.create().await;
    lab.assert_moved(&created.name).await;
    let request = drover_proto::v1::GetHostRequest {
        name: "hosts/host-1".to_owned(),
    };
    let host = lab.hosts().get_host(request).await.unwrap().into_inner();
    assert_eq!(host.state(), HostState::Up);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_database_in_use_makes_no_agent_do_anything() {
    let mut lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    // The old one falls asleep with its own file; a new one runs on a copy of it.
    let old = lab.controller.take().unwrap();
    lab.move_store();
    lab.start().await;
    for host in ["host-1", "host-2"] {
        lab.comes_back(host).await;
    }
    until("the new one has taken it up", async || {
        lab.world.was_called("WatchOutgoing") >= 2
    })
    .await;
    let new = lab.controller.replace(old);
    let begun = lab.world.was_called("BeginOutgoing");
    // The old one wakes: it wants to undo what the new one goes on with.
    lab.cancel(&created.name).await;
    until("it knows", async || {
        lab.migrations()
            .create_migration(wish())
            .await
            .is_err_and(|status| reason(&status) == Reason::StaleTerm)
    })
    .await;
    lab.kill();
    lab.controller = new;
    lab.world.open_gate();
    lab.assert_moved(&created.name).await;
    assert_eq!(lab.world.was_called("BeginOutgoing"), begun);
    let state = lab.world.lock();
    assert!(
        state.hosts["host-1"]
            .journals
            .values()
            .all(|journal| !journal.record.tombstoned)
    );
}
