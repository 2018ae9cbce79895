//! A host that an operator has said to be fenced comes back: its agent adopts what was decided before it serves.

use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::v1::{HostResolution, ResolvedOwner};
use tokio_util::sync::CancellationToken;

use crate::node::eventually;
use crate::scene::{Scene, journal_state};
use crate::stand_in::{StandIn, address};

/// The destination is at Finish, held by the token.
pub(crate) async fn finishing() -> (Scene, CancellationToken) {
    let scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    let go_on = CancellationToken::new();
    scene.b.host.script(Call::Finish, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Finishing).await;
    (scene, go_on)
}

/// All was handed over, the guest runs at the destination, and its source's agent has not heard of it.
async fn runs_at_the_destination() -> Scene {
    let (mut scene, go_on) = finishing().await;
    scene.a.kill().await;
    go_on.cancel();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene
}

impl Scene {
    fn word(&self, owner: ResolvedOwner) -> HostResolution {
        HostResolution {
            migration: format!("migrations/{}", self.migration),
            owner: owner.into(),
            term: self.term,
            store_instance: self.store.to_owned(),
        }
    }

    /// A controller that says so to whoever registers.
    async fn says(&self, owner: ResolvedOwner) -> (StandIn, String) {
        let stand_in = StandIn::default();
        stand_in.answer(self.word(owner));
        let (listener, address) = address().await;
        stand_in.serve(listener, self.controller_tls());
        (stand_in, address.to_string())
    }
}

fn is_closed(status: &MigrationStatus) -> bool {
    status.journal.as_ref().is_some_and(|journal| journal.closed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_destination_forgets_what_it_had_before_it_serves() {
    let (mut scene, go_on) = finishing().await;
    scene.b.kill().await;
    go_on.cancel();
    scene.abort().await.unwrap();
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    assert_eq!(scene.runs_on(), ["a"]);
    let (stand_in, address) = scene.says(ResolvedOwner::Source).await;
    scene.b.registers_at(address);
    scene.b.start().await;
    let status = scene.status(&scene.b).await;
    assert!(is_closed(&status), "adopted before it serves: {status:#?}");
    assert_eq!(status.journal.unwrap().verdict(), Verdict::NeverRan);
    eventually("the copy is gone", || scene.b.host.look(scene.guest).is_none()).await;
    assert_eq!(scene.b.sockets(), 0);
    let told = || {
        stand_in
            .registrations()
            .iter()
            .any(|said| said.adopted_resolutions.len() == 1)
    };
    eventually("the controller is told", told).await;
    assert!(
        !stand_in
            .registrations()
            .iter()
            .flat_map(|said| &said.adopted_resolutions)
            .any(|said| said.copy_ran)
    );
    assert_eq!(scene.runs_on(), ["a"]);
    scene.holds();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_was_not_fenced_is_stopped_and_tells() {
    let mut scene = runs_at_the_destination().await;
    // The word was wrong: the guest is given back while it runs over there.
    scene.a.start().await;
    scene.abort().await.unwrap();
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    assert_eq!(scene.runs_on(), ["a", "b"]);
    let (stand_in, address) = scene.says(ResolvedOwner::Source).await;
    scene.b.kill().await;
    scene.b.registers_at(address);
    scene.b.start().await;
    assert_eq!(scene.runs_on(), ["a"], "stopped before it serves");
    assert!(is_closed(&scene.status(&scene.b).await));
    let kept = scene
        .b
        .host
        .look(scene.guest)
        .expect("its definition is kept for whoever has to look");
    assert!(!kept.state.is_active(), "{kept:?}");
    let alarmed = || {
        let said = stand_in.registrations();
        said.iter()
            .flat_map(|said| &said.adopted_resolutions)
            .any(|said| said.copy_ran)
    };
    eventually("the controller is told", alarmed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_source_removes_its_copy_before_it_serves() {
    let mut scene = runs_at_the_destination().await;
    let (_stand_in, address) = scene.says(ResolvedOwner::Destination).await;
    scene.a.registers_at(address);
    scene.a.start().await;
    let status = scene.status(&scene.a).await;
    assert!(is_closed(&status), "{status:#?}");
    assert_eq!(status.journal.unwrap().verdict(), Verdict::Ran);
    assert!(scene.a.host.look(scene.guest).is_none(), "nothing is left");
    assert_eq!(scene.runs_on(), ["b"]);
    scene.holds();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_that_comes_late_is_adopted_when_the_controller_is_back() {
    let mut scene = runs_at_the_destination().await;
    // Whoever dials waits in the kernel's queue. The port is held: nobody else who looks for a free one gets it.
    let (listener, address) = address().await;
    scene.a.registers_at(address.to_string());
    // Nobody answers: it serves all the same, and its copy stands still.
    scene.a.start().await;
    let status = scene.status(&scene.a).await;
    assert_eq!(journal_state(&status), JournalState::HandedOver);
    assert!(!is_closed(&status));
    assert_eq!(scene.runs_on(), ["b"]);
    let stand_in = StandIn::default();
    stand_in.answer(scene.word(ResolvedOwner::Destination));
    stand_in.serve(listener, scene.controller_tls());
    scene.until(&scene.a, "adopted", is_closed).await;
    assert_eq!(scene.runs_on(), ["b"]);
    scene.holds();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_word_of_a_controller_out_of_office_is_not_adopted() {
    let mut scene = runs_at_the_destination().await;
    let stand_in = StandIn::default();
    stand_in.answer(HostResolution {
        term: scene.term - 1,
        ..scene.word(ResolvedOwner::Source)
    });
    let (listener, address) = address().await;
    stand_in.serve(listener, scene.controller_tls());
    scene.b.kill().await;
    scene.b.registers_at(address.to_string());
    scene.b.start().await;
    eventually("it has heard it", || !stand_in.registrations().is_empty()).await;
    let status = scene.status(&scene.b).await;
    assert!(!is_closed(&status));
    assert_eq!(status.journal.unwrap().verdict(), Verdict::Unspecified);
    assert_eq!(scene.runs_on(), ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_in_a_command_counts_against_the_journal() {
    let (mut scene, go_on) = finishing().await;
    scene.a.kill().await;
    go_on.cancel();
    scene.until_state(&scene.b, JournalState::Ran).await;
    let mut request = SettleIncomingRequest {
        fence: scene.fence(),
        migration: scene.reference(),
        verdict: Verdict::NeverRan.into(),
        fenced: false,
        definition: None,
    };
    assert!(scene.ask_b().settle_incoming(request.clone()).await.is_err());
    request.fenced = true;
    scene.ask_b().settle_incoming(request).await.unwrap();
    assert!(scene.runs_on().is_empty());
    scene.close(&scene.b).await.unwrap();
}
