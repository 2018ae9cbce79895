//! What must be different at the destination: in the live and in the persistent definition, at every repeat, and
//! nowhere where it does not fit.

use drover_agent::sim::SimGuest;
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use drover_proto::v1::interface_override::Network;
use drover_proto::v1::{DestinationOverrides, DiskOverride, InterfaceOverride};

use crate::node::Node;
use crate::scene::{Scene, reason};

const HERE: &str = "/a/web & co.raw";
const THERE: &str = "/b/web & co.raw";

fn guest() -> SimGuest {
    SimGuest {
        autostart: true,
        disks: vec![HERE.to_owned(), "/a/second.raw".to_owned()],
        bridges: vec!["br0".to_owned(), "br0".to_owned()],
        ..SimGuest::named("web")
    }
}

/// The first disk at this path, the first interface on this bridge.
async fn overrides(scene: &Scene, node: &Node, path: &str, bridge: &str) -> DestinationOverrides {
    let facts = inspect(scene, node, None).await;
    DestinationOverrides {
        disks: vec![DiskOverride {
            target: "vda".to_owned(),
            source: path.to_owned(),
        }],
        interfaces: vec![InterfaceOverride {
            mac_address: facts.interfaces[0].mac_address.to_uppercase(),
            network: Some(Network::Bridge(bridge.to_owned())),
        }],
        graphics_listen_address: String::new(),
    }
}

async fn inspect(scene: &Scene, node: &Node, destination_overrides: Option<DestinationOverrides>) -> GuestFacts {
    let request = InspectGuestRequest {
        guest_uuid: scene.guest.to_string(),
        destination_overrides,
    };
    scene.ask(node).inspect_guest(request).await.unwrap().into_inner()
}

/// Both definitions as libvirt has them on a host.
fn definitions(scene: &Scene, node: &Node) -> (String, Option<String>) {
    let found = node.host.look(scene.guest).unwrap();
    (found.xml, found.inactive_xml)
}

/// A definition with the two places changed, the second disk and interface as they were.
fn moved(xml: &str) -> String {
    let there = THERE.replace('&', "&amp;");
    xml.replacen(&HERE.replace('&', "&amp;"), &there, 1)
        .replacen("bridge='br0'", "bridge='br1'", 1)
}

async fn arrive(scene: &Scene) {
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_definitions_differ_in_what_was_asked_for_alone() {
    let mut scene = Scene::new(guest()).await;
    scene.overrides = Some(overrides(&scene, &scene.a, THERE, "br1").await);
    let (live, persistent) = definitions(&scene, &scene.a);
    arrive(&scene).await;
    let (live_there, persistent_there) = definitions(&scene, &scene.b);
    assert_eq!(live_there, moved(&live));
    assert_eq!(persistent_there, persistent.as_deref().map(moved));
    assert_ne!(live_there, live);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_uses_what_the_first_call_brought_also_after_a_restart() {
    let mut scene = Scene::new(guest()).await;
    scene.overrides = Some(overrides(&scene, &scene.a, THERE, "br1").await);
    let first = scene.begin().await.unwrap();
    scene.overrides = None;
    assert_eq!(
        scene.begin().await.unwrap(),
        first,
        "journaled, not taken from the repeat"
    );
    let alive = definitions(&scene, &scene.a);
    scene.a.restart().await;
    let after = scene.begin().await.unwrap();
    assert_eq!((&after.xml, &after.inactive_xml), (&first.xml, &first.inactive_xml));
    assert_eq!(
        definitions(&scene, &scene.a),
        alive,
        "the source's own stay as they are"
    );
    let prepared = scene.prepare(&after).await.unwrap();
    scene
        .send(&crate::scene::Ready { begun: after, prepared })
        .await
        .unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    scene.rest(Verdict::Ran).await;
    assert!(definitions(&scene, &scene.b).0.contains("bridge='br1'"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_before_anything_is_touched() {
    let mut scene = Scene::new(guest()).await;
    let mut asked = overrides(&scene, &scene.a, THERE, "br1").await;
    asked.disks[0].target = "vdz".to_owned();
    let facts = inspect(&scene, &scene.a, Some(asked.clone())).await;
    assert_eq!(facts.override_problems[0].field, "disks[0].target");
    assert!(facts.destination_disks.is_empty());
    scene.overrides = Some(asked);
    assert_eq!(reason(scene.begin().await), Reason::ChecksFailed);
    assert!(
        scene.status(&scene.a).await.journal.is_none(),
        "nothing was written down"
    );
    assert!(scene.autostart(&scene.a) && !scene.a.host.has_job(scene.guest));
    let bad = DestinationOverrides {
        graphics_listen_address: "everywhere".to_owned(),
        ..DestinationOverrides::default()
    };
    scene.overrides = Some(bad);
    assert_eq!(reason(scene.begin().await), Reason::InvalidArgument);
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_would_be_there_is_told_without_changing_anything() {
    let scene = Scene::new(guest()).await;
    let asked = overrides(&scene, &scene.a, THERE, "br1").await;
    let before = definitions(&scene, &scene.a);
    let facts = inspect(&scene, &scene.a, Some(asked)).await;
    assert_eq!(facts.disks[0].source, HERE);
    assert_eq!(facts.destination_disks[0].source, THERE);
    // Only what lies here can be looked at: its size, and whether it could be copied.
    let named = |disk: &DiskFacts| (disk.target.clone(), disk.source.clone(), disk.format.clone());
    assert_eq!(named(&facts.destination_disks[1]), named(&facts.disks[1]));
    assert_eq!(facts.destination_interfaces[0].source, "br1");
    assert!(facts.override_problems.is_empty());
    assert_eq!(definitions(&scene, &scene.a), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transient_guest_has_only_its_live_definition_changed() {
    let mut scene = Scene::new(SimGuest {
        persistent: false,
        autostart: false,
        ..guest()
    })
    .await;
    scene.overrides = Some(overrides(&scene, &scene.a, THERE, "br1").await);
    let (live, persistent) = definitions(&scene, &scene.a);
    assert_eq!(persistent, None);
    arrive(&scene).await;
    assert_eq!(definitions(&scene, &scene.b), (moved(&live), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_is_repaired_at_the_end_has_them_too() {
    use drover_agent::hypervisor::Hypervisor;
    let mut scene = Scene::new(guest()).await;
    scene.overrides = Some(overrides(&scene, &scene.a, THERE, "br1").await);
    let (_, persistent) = definitions(&scene, &scene.a);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    scene.b.host.undefine(scene.guest).await.unwrap();
    assert_eq!(definitions(&scene, &scene.b).1, None);
    scene.rest(Verdict::Ran).await;
    assert_eq!(definitions(&scene, &scene.b).1, persistent.as_deref().map(moved));
}
