//! A bad certificate file of an agent: it serves on with the old one, and tells so in its host's PROBLEM.

use drover_agent::sim::SimGuest;
use drover_proto::agent::v1::{GetAgentStatusRequest, Verdict};

use crate::node::{Node, eventually};
use crate::scene::Scene;
use crate::stand_in::{StandIn, address};

/// What the host's agent says is wrong, to who asks.
async fn problem(scene: &Scene, node: &Node) -> String {
    let mut agent = scene.ask(node);
    let status = agent.get_agent_status(GetAgentStatusRequest::default()).await;
    status.unwrap().into_inner().host.unwrap().problem
}

fn is_told(problem: &str) -> bool {
    problem.contains("certificates are not usable, the old ones stay in use")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_certificate_file_is_a_problem_of_its_host_and_stops_nobody() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    assert!(!is_told(&problem(&scene, &scene.b).await));
    scene.spoil_certificate(&scene.b);
    // As the process looks at its files now and then.
    scene.b.tls.reload().unwrap_err();
    let told = problem(&scene, &scene.b).await;
    assert!(is_told(&told), "{told:?}");
    let other = problem(&scene, &scene.a).await;
    assert!(!is_told(&other), "it is not the other host's: {other:?}");

    let controller = StandIn::default();
    let (listener, address) = address().await;
    controller.serve(listener, scene.controller_tls());
    scene.b.registers_at(address.to_string());
    scene.b.restart().await;
    eventually("it is told to the controller", || {
        let said = controller.registrations();
        said.iter()
            .any(|said| said.host.as_ref().is_some_and(|host| is_told(&host.problem)))
    })
    .await;
    scene.moves().await;
    scene.rest(Verdict::Ran).await;
}
