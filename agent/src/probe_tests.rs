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
    assert_eq!(read(&probe).unwrap(), Proof::Shared);
    let path = probe.directory.join(&probe.file_name);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    scene.probes.remove(&probe.file_name).unwrap();
    scene.probes.remove(&probe.file_name).unwrap();
    assert_eq!(scene.files(), 1);
    assert_eq!(std::fs::read_dir(scene.state.path().join("probes")).unwrap().count(), 0);
    assert!(matches!(read(&probe), Err(ProbeError::Absent(_))));
}

#[test]
fn an_image_may_grow_between_the_two_looks_and_not_shrink() {
    let scene = scene();
    let mut probe = scene.probes.write(&scene.image()).unwrap();
    let size = probe.size;
    probe.size = size - 1;
    assert_eq!(read(&probe).unwrap(), Proof::Shared, "the guest wrote to it");
    probe.size = size + 1;
    assert!(matches!(read(&probe), Err(ProbeError::Image { .. })));
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

/// As a link in a shared folder does that leads to a disk of each host's own.
#[test]
fn an_image_that_lies_on_another_file_system_than_its_folder_is_not_proved() {
    let scene = scene();
    // Whatever the tests run on: these are two file systems.
    let (elsewhere, device) = ("/proc/version", |path: &Path| file::look(path).unwrap().device);
    assert_ne!(device(Path::new(elsewhere)), device(&scene.image()));
    let link = scene.images.path().join("link.img");
    std::os::unix::fs::symlink(elsewhere, &link).unwrap();
    assert!(matches!(scene.probes.write(&link), Err(ProbeError::Elsewhere(_))));
    assert_eq!(scene.files(), 2, "no probe file stays");
    let both = [scene.image(), link.clone()].map(|path| super::Image { path, read_only: false });
    let written = scene.probes.write_all(&both);
    assert!(matches!(written[1].1, Err(ProbeError::Elsewhere(_))), "{written:?}");
    // At the destination, whatever the source said.
    let probe = Probe {
        image: link,
        inode: file::look(Path::new(elsewhere)).unwrap().inode,
        size: 0,
        ..written[0].1.as_ref().unwrap().clone()
    };
    assert!(matches!(read(&probe), Err(ProbeError::Elsewhere(_))));
    // One that stays on it is what it leads to.
    let near = scene.images.path().join("near.img");
    std::os::unix::fs::symlink(scene.image(), &near).unwrap();
    assert_eq!(read(&scene.probes.write(&near).unwrap()).unwrap(), Proof::Shared);
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
fn what_nobody_removed_goes_by_itself_when_it_is_old() {
    let scene = scene();
    let probe = scene.probes.write(&scene.image()).unwrap();
    scene.probes.expire(Duration::from_secs(3600));
    assert_eq!(scene.files(), 2, "it is young");
    scene.probes.expire(Duration::ZERO);
    assert_eq!(scene.files(), 1);
    assert_eq!(std::fs::read_dir(scene.state.path().join("probes")).unwrap().count(), 0);
    scene.probes.remove(&probe.file_name).unwrap();
}

#[test]
fn images_of_one_folder_share_a_probe_file() {
    let scene = scene();
    let image = |name: &str| Image {
        path: scene.images.path().join(name),
        read_only: false,
    };
    std::fs::write(scene.images.path().join("b.img"), b"1").unwrap();
    let written = scene
        .probes
        .write_all(&[image("a.img"), image("b.img"), image("a.img"), image("absent/c.img")]);
    assert_eq!((written.len(), scene.files()), (3, 3));
    let probes: Vec<&Probe> = written.iter().filter_map(|(_, probe)| probe.as_ref().ok()).collect();
    assert_eq!(probes.len(), 2);
    assert_ne!(probes[0].inode, probes[1].inode);
    assert!(probes.iter().all(|probe| read(probe).unwrap() == Proof::Shared));
}

#[test]
fn a_read_only_image_may_be_another_file_of_the_same_content() {
    let scene = scene();
    let image = Image {
        path: scene.image(),
        read_only: true,
    };
    let mut written = scene.probes.write_all(&[image]);
    let probe = written.remove(0).1.unwrap();
    assert_eq!(read(&probe).unwrap(), Proof::Shared);
    scene.probes.remove(&probe.file_name).unwrap();
    assert_eq!(read(&probe).unwrap(), Proof::SameContent, "another host's own file");
    let nameless = Probe {
        file_name: String::new(),
        content: Vec::new(),
        ..probe.clone()
    };
    assert_eq!(read(&nameless).unwrap(), Proof::SameContent);
    std::fs::write(scene.image(), b"54321").unwrap();
    assert!(matches!(read(&probe), Err(ProbeError::Image { .. })), "other content");
    std::fs::write(scene.image(), b"1234").unwrap();
    assert!(matches!(read(&probe), Err(ProbeError::Image { .. })), "another size");
    std::fs::remove_file(scene.image()).unwrap();
    assert!(read(&probe).is_err());
}

#[test]
fn a_read_only_image_needs_no_folder_that_can_be_written_to() {
    let probe = with_content(
        &Image {
            path: "/proc/self/absent".into(),
            read_only: true,
        },
        Err(ProbeError::TooMany),
    );
    assert!(probe.is_err(), "nothing is there");
    let scene = scene();
    let image = |read_only| Image {
        path: scene.image(),
        read_only,
    };
    let probe = with_content(&image(true), Err(ProbeError::TooMany)).unwrap();
    assert!(probe.file_name.is_empty() && !probe.sha256.is_empty());
    assert_eq!(read(&probe).unwrap(), Proof::SameContent);
    assert!(with_content(&image(false), Err(ProbeError::TooMany)).is_err());
}

#[test]
fn a_folder_that_cannot_be_written_to_leaves_no_note() {
    let scene = scene();
    assert!(scene.probes.write(&scene.images.path().join("absent/a.img")).is_err());
    assert_eq!(std::fs::read_dir(scene.state.path().join("probes")).unwrap().count(), 0);
}
