//! A guest with an emulated TPM that is shut off: the TPM's state goes along as its disks do, into folders that are made
//! for it; and where it does not arrive, neither it nor a folder is left.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use drover_agent::hypervisor::StopReason;
use drover_agent::jobs::Timing;
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use tokio_util::sync::CancellationToken;

use crate::node::{Node, eventually};
use crate::offline::{content, defined, some_has_come};
use crate::scene::{Scene, reason};

const KEYS: &[u8] = b"what only this TPM knows";

/// A guest with an image of a MiB and a TPM, shut off on a, where swtpm has left its lock as well.
async fn scene() -> Scene {
    let limits = Timing {
        hand_over: Duration::from_secs(2),
        ..Timing::default()
    };
    let guest = SimGuest {
        disks: vec!["/images/one.raw".to_owned()],
        tpm: true,
        ..SimGuest::named("web")
    };
    let mut scene = Scene::with_limits(guest, limits).await;
    std::fs::write(scene.a.image("one.raw"), content(1)).unwrap();
    let state = state(&scene, &scene.a);
    std::fs::create_dir_all(state.parent().unwrap()).unwrap();
    std::fs::write(&state, KEYS).unwrap();
    std::fs::write(state.with_file_name(".lock"), b"").unwrap();
    scene.a.host.kill(scene.guest, StopReason::Shutdown);
    scene.offline = Some(OfflineOrder {
        images: vec!["/images/one.raw".to_owned()],
        ..OfflineOrder::default()
    });
    scene
}

fn state(scene: &Scene, node: &Node) -> PathBuf {
    let folder = node.tpm_states().join(scene.guest.to_string());
    folder.join("tpm2/tpm2-00.permall")
}

fn is_empty(node: &Node) -> bool {
    std::fs::read_dir(node.tpm_states()).unwrap().next().is_none()
}

fn mode(path: &std::path::Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

/// All of it is at b, as libvirt wants to find it.
async fn has_moved(scene: &Scene) {
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    assert_eq!(defined(scene), (false, true));
    scene.rest(Verdict::Ran).await;
    let there = state(scene, &scene.b);
    assert_eq!(std::fs::read(&there).unwrap(), KEYS);
    let inner = there.parent().unwrap();
    assert_eq!((mode(inner.parent().unwrap()), mode(inner)), (0o711, 0o700));
    assert_eq!(std::fs::read_dir(inner).unwrap().count(), 1, "nothing beside it");
}

async fn is_back(scene: &Scene) {
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(defined(scene), (true, false));
    assert_eq!(std::fs::read(state(scene, &scene.a)).unwrap(), KEYS);
    assert!(
        is_empty(&scene.b),
        "a folder that is left would be taken for a TPM that has its keys"
    );
    assert_eq!(scene.b.images(), [""; 0]);
}

#[tokio::test]
async fn the_state_goes_along_and_what_is_kept_has_another_name() {
    let scene = scene().await;
    let ready = scene.ready().await;
    assert_eq!(ready.begun.files.len(), 2, "{:?}", ready.begun.files);
    assert!(is_empty(&scene.b), "nothing is made before something comes");
    scene.send(&ready).await.unwrap();
    has_moved(&scene).await;
    let here = state(&scene, &scene.a);
    assert!(!here.exists());
    let kept = here.with_file_name(format!("tpm2-00.permall.moved-{}", scene.migration));
    assert_eq!(std::fs::read(kept).unwrap(), KEYS);
}

#[tokio::test]
async fn it_moves_back_to_where_an_older_one_is_kept() {
    let mut scene = scene().await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    has_moved(&scene).await;
    let former = scene.turn_round();
    // The image that was kept has another name, too.
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    scene.rest(Verdict::Ran).await;
    let back = state(&scene, &scene.b);
    assert_eq!(std::fs::read(&back).unwrap(), KEYS);
    assert!(back.with_file_name(format!("tpm2-00.permall.moved-{former}")).exists());
}

#[tokio::test]
async fn where_the_sources_files_go_its_folders_go_too() {
    let mut scene = scene().await;
    scene.offline.as_mut().unwrap().delete_source = true;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    has_moved(&scene).await;
    assert!(is_empty(&scene.a));
    assert_eq!(scene.a.images(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_died_while_it_put_the_state_away_goes_on() {
    for files_left in [&["tpm2-00.permall", ".lock"][..], &[".lock"], &[]] {
        let mut scene = scene().await;
        scene.offline.as_mut().unwrap().delete_source = true;
        let go_on = CancellationToken::new();
        scene.b.host.script(Call::Define, Fault::AnswerAfter(go_on.clone()));
        let ready = scene.ready().await;
        scene.send(&ready).await.unwrap();
        eventually("it is defined there", || scene.b.host.look(scene.guest).is_some()).await;
        scene.a.kill().await;
        go_on.cancel();
        scene.until_state(&scene.b, JournalState::Ran).await;
        for gone in ["tpm2-00.permall", ".lock"]
            .iter()
            .filter(|name| !files_left.contains(name))
        {
            std::fs::remove_file(state(&scene, &scene.a).with_file_name(gone)).unwrap();
        }
        if files_left.is_empty() {
            std::fs::remove_dir(state(&scene, &scene.a).parent().unwrap()).unwrap();
        }
        scene.a.start().await;
        has_moved(&scene).await;
        assert!(is_empty(&scene.a), "{files_left:?}");
        let told = scene.status(&scene.a).await.actions;
        assert!(told.iter().all(|action| action.action != "file-stays"), "{told:?}");
    }
}

#[tokio::test]
async fn a_copy_that_is_given_up_leaves_no_folder() {
    let mut scene = scene().await;
    scene.policy.bandwidth_limit_bytes_per_second = 512 << 10;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    some_has_come(&scene).await;
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    is_back(&scene).await;
}

#[tokio::test]
async fn a_destination_that_died_when_it_had_made_a_folder_goes_on_or_removes_it() {
    for goes_on in [true, false] {
        for made in [1, 2] {
            let mut scene = scene().await;
            let ready = scene.ready().await;
            scene.b.kill().await;
            let inner = state(&scene, &scene.b).parent().unwrap().to_owned();
            let folders = [inner.parent().unwrap(), &inner];
            for folder in &folders[..made] {
                std::fs::create_dir(folder).unwrap();
            }
            scene.b.start().await;
            if goes_on {
                let again = scene.prepare(&ready.begun).await.unwrap();
                assert_eq!(again.ticket, ready.prepared.ticket);
                scene.send(&ready).await.unwrap();
                has_moved(&scene).await;
            } else {
                scene.abort().await.unwrap();
                scene.revoke().await.unwrap();
                is_back(&scene).await;
            }
        }
    }
}

#[tokio::test]
async fn one_that_the_destination_has_is_not_overwritten_and_stays() {
    let scene = scene().await;
    let begun = scene.begin().await.unwrap();
    let there = state(&scene, &scene.b);
    std::fs::create_dir_all(there.parent().unwrap()).unwrap();
    std::fs::write(&there, b"another one").unwrap();
    assert_eq!(reason(scene.prepare(&begun).await), Reason::StorageUnusable);
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    scene.settle_b(Verdict::NeverRan).await.unwrap();
    assert_eq!(std::fs::read(&there).unwrap(), b"another one");
    assert_eq!(std::fs::read(state(&scene, &scene.a)).unwrap(), KEYS);
    assert_eq!(defined(&scene), (true, false));
}

#[tokio::test]
async fn one_that_comes_into_being_there_at_the_last_moment_stays_too() {
    let scene = scene().await;
    let ready = scene.ready().await;
    let there = state(&scene, &scene.b);
    std::fs::create_dir_all(there.parent().unwrap()).unwrap();
    std::fs::write(&there, b"another one").unwrap();
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Failed).await;
    scene.until_quiet(&scene.a).await;
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    scene.settle_b(Verdict::NeverRan).await.unwrap();
    assert_eq!(std::fs::read(&there).unwrap(), b"another one");
    assert_eq!(std::fs::read_dir(there.parent().unwrap()).unwrap().count(), 1);
    assert_eq!(std::fs::read(state(&scene, &scene.a)).unwrap(), KEYS);
    assert_eq!(defined(&scene), (true, false));
}

#[tokio::test]
async fn a_guest_whose_state_is_nowhere_stays() {
    let scene = scene().await;
    let facts = inspect(&scene).await;
    assert!(
        facts.tpm_state.ends_with("/tpm2/tpm2-00.permall"),
        "{}",
        facts.tpm_state
    );
    assert_eq!(facts.tpm_problem, "");
    std::fs::remove_dir_all(scene.a.tpm_states().join(scene.guest.to_string())).unwrap();
    let facts = inspect(&scene).await;
    assert!(facts.tpm_problem.contains("not there"), "{}", facts.tpm_problem);
    assert!(facts.tpm_remedy.contains("start"), "{}", facts.tpm_remedy);
    assert_eq!(reason(scene.begin().await), Reason::StorageUnusable);
    assert_eq!(defined(&scene), (true, false));
}

async fn inspect(scene: &Scene) -> GuestFacts {
    let request = InspectGuestRequest {
        guest_uuid: scene.guest.to_string(),
        destination_overrides: None,
    };
    scene.ask_a().inspect_guest(request).await.unwrap().into_inner()
}
