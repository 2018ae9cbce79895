//! A probe proves what it should, is refused where it could be turned against a host, and never stays.

use super::*;

struct Scene {
    state: tempfile::TempDir,
    images: tempfile::TempDir,
    probes: Probes,
}

fn scene() -> Scene {
    let (state, images) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(images.path().join("a.img"), b"12345").unwrap();
    let probes = Probes::open(state.path()).unwrap();
    Scene { state, images, probes }
}

impl Scene {
    fn image(&self) -> PathBuf {
        self.images.path().join("a.img")
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.images.path()).unwrap().count()
    }
}

#[test]
fn the_same_folder_is_proved_and_left_clean() {
    let scene = scene();
    let probe = scene.probes.write(&scene.image()).unwrap();
    read(&probe).unwrap();
    let path = probe.directory.join(&probe.file_name);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    scene.probes.remove(&probe.file_name).unwrap();
    scene.probes.remove(&probe.file_name).unwrap();
    assert_eq!(scene.files(), 1);
    assert_eq!(std::fs::read_dir(scene.state.path().join("probes")).unwrap().count(), 0);
    assert!(matches!(read(&probe), Err(ProbeError::Absent(_))));
}

#[test]
fn another_folder_file_or_content_is_noticed() {
    let scene = scene();
    let probe = scene.probes.write(&scene.image()).unwrap();
    let other = Probe {
        content: vec![0; CONTENT],
        ..probe.clone()
    };
    assert!(matches!(read(&other), Err(ProbeError::Content(_))));
    let other = Probe {
        inode: probe.inode + 1,
        ..probe.clone()
    };
    assert!(matches!(read(&other), Err(ProbeError::Image { .. })));
    let other = Probe {
        size: 6,
        ..probe.clone()
    };
    assert!(matches!(read(&other), Err(ProbeError::Image { .. })));
    let other = Probe { inode: 0, ..probe };
    assert!(matches!(read(&other), Err(ProbeError::Image { .. })));
}

#[test]
fn links_and_odd_names_are_refused() {
    let scene = scene();
    let probe = scene.probes.write(&scene.image()).unwrap();
    let linked = format!("{PREFIX}{}", Uuid::new_v4());
    std::os::unix::fs::symlink(probe.directory.join(&probe.file_name), probe.directory.join(&linked)).unwrap();
    assert!(matches!(
        read(&Probe {
            file_name: linked,
            ..probe.clone()
        }),
        Err(ProbeError::Io { .. })
    ));
    let upper = format!("{PREFIX}{}", Uuid::new_v4()).to_uppercase();
    for name in [
        "../../etc/passwd",
        "",
        ".drover-probe-",
        ".drover-probe-x",
        &upper,
        "a/.drover-probe-",
    ] {
        assert!(
            matches!(
                read(&Probe {
                    file_name: name.to_owned(),
                    ..probe.clone()
                }),
                Err(ProbeError::Name(_))
            ),
            "{name}"
        );
        assert!(scene.probes.remove(name).is_err());
    }
    for path in ["relative/a.img", "/a/../b.img", "/", "/images/.."] {
        assert!(
            matches!(scene.probes.write(Path::new(path)), Err(ProbeError::Path(_))),
            "{path}"
        );
        assert!(
            read(&Probe {
                image: path.into(),
                ..probe.clone()
            })
            .is_err()
        );
    }
    assert!(
        read(&Probe {
            directory: "/etc".into(),
            ..probe
        })
        .is_err()
    );
}

#[test]
fn the_next_start_removes_what_was_left() {
    let scene = scene();
    let probe = scene.probes.write(&scene.image()).unwrap();
    assert_eq!(scene.files(), 2);
    let probes = Probes::open(scene.state.path()).unwrap();
    assert_eq!(scene.files(), 1);
    // A file that this agent did not make stays, whatever it is called.
    std::fs::write(scene.images.path().join(&probe.file_name), b"foreign").unwrap();
    probes.remove(&probe.file_name).unwrap();
    assert_eq!(scene.files(), 2);
}

#[test]
fn a_folder_that_cannot_be_written_to_leaves_no_note() {
    let scene = scene();
    assert!(scene.probes.write(&scene.images.path().join("absent/a.img")).is_err());
    assert_eq!(std::fs::read_dir(scene.state.path().join("probes")).unwrap().count(), 0);
}
