//! Disks that are copied: made at the destination, filled, and gone where the guest never ran; the originals go only
//! where that was wanted and the guest was seen there.
//!
//! Both hosts are in one file system here, so a copied disk lies elsewhere at the destination.

use std::path::{Path, PathBuf};

use drover_agent::hypervisor::StopReason;
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use drover_proto::v1::{DestinationOverrides, DiskOverride};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::scene::{Scene, reason};

/// A guest with a shared disk and one that only a has.
pub(crate) struct Stage {
    pub(crate) scene: Scene,
    folder: TempDir,
    /// Of the local disk.
    content: Vec<u8>,
}

const CONTENT: &[u8] = b"what the guest wrote";

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(&padded()).await
    }

    pub(crate) async fn with(content: &[u8]) -> Self {
        Self::on_layers(content, &[]).await
    }

    /// Beneath the local disk lie these files of a's folder.
    async fn on_layers(content: &[u8], layers: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let (shared, local) = (folder.path().join("shared.raw"), folder.path().join("a/local.raw"));
        std::fs::write(&shared, b"shared").unwrap();
        std::fs::write(&local, content).unwrap();
        let mut scene = Scene::new(SimGuest {
            disks: [&shared, &local].map(|path| path.display().to_string()).to_vec(),
            layers: layers
                .iter()
                .map(|name| folder.path().join("a").join(name).display().to_string())
                .collect(),
            ..SimGuest::named("web")
        })
        .await;
        scene.copy_disks = vec!["vdb".to_owned()];
        let mut stage = Self {
            scene,
            folder,
            content: content.to_vec(),
        };
        stage.copy_to(&stage.copy());
        stage
    }

    fn copy_to(&mut self, path: &Path) {
        self.scene.overrides = Some(DestinationOverrides {
            disks: vec![DiskOverride {
                target: "vdb".to_owned(),
                source: path.display().to_string(),
            }],
            ..DestinationOverrides::default()
        });
    }

    fn original(&self) -> PathBuf {
        self.folder.path().join("a/local.raw")
    }

    fn copy(&self) -> PathBuf {
        self.folder.path().join("b/local.raw")
    }

    /// Names of all that is at the destination.
    fn there(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path().join("b")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// Undone the way a controller does it, and nothing of it is left.
    pub(crate) async fn undone(&self) {
        self.scene.abort().await.unwrap();
        self.scene.revoke().await.unwrap();
        self.scene.rest(Verdict::NeverRan).await;
        assert_eq!(self.there(), [""; 0]);
        self.source_is_whole();
    }

    fn source_is_whole(&self) {
        assert!(std::fs::read(self.original()).unwrap() == self.content);
        let shared = self.folder.path().join("shared.raw");
        assert_eq!(std::fs::read(shared).unwrap(), b"shared");
    }
}

/// Whole sectors.
fn padded() -> Vec<u8> {
    let mut content = CONTENT.to_vec();
    content.resize(1024, 7);
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_disk_arrives_and_its_original_is_kept() {
    let stage = Stage::new().await;
    stage.scene.moves().await;
    assert_eq!(std::fs::read(stage.copy()).unwrap(), padded());
    assert_eq!(stage.there(), ["local.raw"]);
    stage.scene.rest(Verdict::Ran).await;
    stage.source_is_whole();
    assert_eq!(std::fs::read(stage.copy()).unwrap(), padded());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_original_goes_when_the_migration_is_closed_and_not_before() {
    let mut stage = Stage::new().await;
    stage.scene.delete_source = true;
    stage.scene.moves().await;
    stage.scene.settle_a(Verdict::Ran).await.unwrap();
    assert!(stage.original().exists());
    stage.scene.rest(Verdict::Ran).await;
    assert!(!stage.original().exists() && stage.copy().exists());
    assert!(stage.folder.path().join("shared.raw").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_on_others_becomes_one_image_and_the_others_stay() {
    let mut stage = Stage::on_layers(&padded(), &["snapshot.raw", "base.raw"]).await;
    let base = stage.folder.path().join("a/base.raw");
    std::fs::write(&base, vec![1; 64 * 1024]).unwrap();
    std::fs::write(base.with_file_name("snapshot.raw"), vec![1; 512]).unwrap();
    stage.scene.delete_source = true;
    let ready = stage.scene.ready().await;
    let begun = &ready.begun;
    for xml in [&begun.xml, &begun.inactive_xml] {
        assert!(!xml.contains("base.raw") && !xml.contains("snapshot.raw"), "{xml}");
    }
    assert!(
        begun.images[0].allocated_bytes > 64 * 1024,
        "room for all layers: {:?}",
        begun.images
    );
    stage.scene.send(&ready).await.unwrap();
    stage.scene.until_moved().await;
    stage.scene.rest(Verdict::Ran).await;
    assert!(!stage.original().exists() && base.exists(), "others may lie on it, too");
    assert_eq!(stage.there(), ["local.raw"]);
}

/// A source that would have the destination's QEMU read one of its host's files.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_would_lie_on_another_file_is_not_made() {
    let stage = Stage::new().await;
    let mut begun = stage.scene.begin().await.unwrap();
    let source = format!("<source file='{}'/>", stage.copy().display());
    assert!(begun.xml.contains(&source), "{}", begun.xml);
    let layer = format!("{source}<backingStore type='file'><source file='/etc/shadow'/></backingStore>");
    begun.xml = begun.xml.replace(&source, &layer);
    assert_eq!(reason(stage.scene.prepare(&begun).await), Reason::ChecksFailed);
    stage.undone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_original_of_a_guest_that_came_back_is_kept() {
    let mut stage = Stage::new().await;
    stage.scene.delete_source = true;
    stage.scene.moves().await;
    stage.scene.settle_a(Verdict::Ran).await.unwrap();
    stage.scene.settle_b(Verdict::Ran).await.unwrap();
    // Somebody has brought it back to its old disks.
    let scene = &stage.scene;
    scene.b.host.kill(scene.guest, StopReason::Destroyed);
    scene.a.host.add(&SimGuest::named("web")).unwrap();
    scene.close(&scene.a).await.unwrap();
    assert!(stage.original().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_for_a_guest_that_never_came_is_removed() {
    let stage = Stage::new().await;
    stage.scene.ready().await;
    assert_eq!(stage.there(), ["local.raw"]);
    stage.undone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_there_is_neither_used_nor_removed() {
    let stage = Stage::new().await;
    std::fs::write(stage.copy(), b"precious").unwrap();
    let begun = stage.scene.begin().await.unwrap();
    assert_eq!(reason(stage.scene.prepare(&begun).await), Reason::ChecksFailed);
    stage.scene.abort().await.unwrap();
    stage.scene.revoke().await.unwrap();
    stage.scene.rest(Verdict::NeverRan).await;
    assert_eq!(std::fs::read(stage.copy()).unwrap(), b"precious");
    stage.source_is_whole();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_never_copied_onto_itself() {
    let mut stage = Stage::new().await;
    // The same path on both hosts, and the same storage.
    stage.scene.overrides = None;
    let begun = stage.scene.begin().await.unwrap();
    assert_eq!(reason(stage.scene.prepare(&begun).await), Reason::ChecksFailed);
    stage.undone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_outside_of_the_listed_folders_is_refused() {
    let mut stage = Stage::new().await;
    stage.copy_to(Path::new("/var/drover-nobody-listed-this.raw"));
    let begun = stage.scene.begin().await.unwrap();
    assert_eq!(reason(stage.scene.prepare(&begun).await), Reason::ChecksFailed);
    std::os::unix::fs::symlink(stage.folder.path().join("b"), stage.folder.path().join("link")).unwrap();
    stage.undone().await;
    stage.scene.attempt += 1;
    stage.copy_to(&stage.folder.path().join("link/local.raw"));
    let begun = stage.scene.begin().await.unwrap();
    assert_eq!(reason(stage.scene.prepare(&begun).await), Reason::ChecksFailed);
    stage.undone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_copied_is_refused_before_anything_is_touched() {
    let mut stage = Stage::new().await;
    stage.scene.copy_disks = vec!["vdz".to_owned()];
    assert_eq!(reason(stage.scene.begin().await), Reason::ChecksFailed);
    stage.scene.copy_disks = vec!["vdb".to_owned()];
    std::fs::remove_file(stage.original()).unwrap();
    assert_eq!(reason(stage.scene.begin().await), Reason::ChecksFailed);
    assert!(!stage.scene.a.host.has_job(stage.scene.guest));
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_prepare_that_failed_go() {
    let stage = Stage::new().await;
    stage.scene.b.host.script(Call::Prepare, Fault::Refuse);
    let begun = stage.scene.begin().await.unwrap();
    assert!(stage.scene.prepare(&begun).await.is_err());
    stage.undone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_dies_makes_them_anew() {
    let mut stage = Stage::new().await;
    let ready = stage.scene.ready().await;
    stage.scene.b.restart().await;
    let prepared = stage.scene.prepare(&ready.begun).await.unwrap();
    let ready = crate::scene::Ready {
        begun: ready.begun,
        prepared,
    };
    stage.scene.send(&ready).await.unwrap();
    stage.scene.until_moved().await;
    stage.scene.rest(Verdict::Ran).await;
    assert_eq!(std::fs::read(stage.copy()).unwrap(), padded());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_dies_in_the_copy_leaves_nothing() {
    let mut stage = Stage::new().await;
    let go_on = CancellationToken::new();
    stage.scene.a.host.script(Call::Copying, Fault::Until(go_on.clone()));
    let ready = stage.scene.ready().await;
    stage.scene.send(&ready).await.unwrap();
    stage
        .scene
        .until(&stage.scene.a, "performing", |status| status.performing)
        .await;
    stage.scene.b.kill().await;
    go_on.cancel();
    stage.scene.until_quiet(&stage.scene.a).await;
    stage.scene.b.start().await;
    stage.undone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_dies_in_the_copy_goes_on_with_its_disks() {
    let mut stage = Stage::new().await;
    let go_on = CancellationToken::new();
    stage.scene.a.host.script(Call::Copying, Fault::Until(go_on.clone()));
    let ready = stage.scene.ready().await;
    stage.scene.send(&ready).await.unwrap();
    stage
        .scene
        .until(&stage.scene.a, "performing", |status| status.performing)
        .await;
    stage.scene.a.restart().await;
    go_on.cancel();
    assert_eq!(stage.scene.runs_on(), ["a"]);
    stage.undone().await;
}
