//! Heads as QEMU writes them, and as nobody should.

use super::*;

/// A qcow2 image on another one.
pub(in crate::offline) fn overlay(name: &[u8], format: Option<&[u8]>) -> Vec<u8> {
    let mut head = vec![0; HEAD];
    head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    head[100..104].copy_from_slice(&104_u32.to_be_bytes());
    let mut at = 104;
    // One that nobody needs comes first, and is no multiple of 8.
    let mut extend = |kind: u64, data: &[u8]| {
        head[at..at + 4].copy_from_slice(&kind.to_be_bytes()[4..]);
        head[at + 4..at + 8].copy_from_slice(&(data.len() as u32).to_be_bytes());
        head[at + 8..at + 8 + data.len()].copy_from_slice(data);
        at += (8 + data.len()).next_multiple_of(8);
    };
    extend(0x6803_f857, b"features");
    if let Some(format) = format {
        extend(BACKING_FORMAT, format);
    }
    if !name.is_empty() {
        head[8..16].copy_from_slice(&2048_u64.to_be_bytes());
        head[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        head[2048..2048 + name.len()].copy_from_slice(name);
    }
    head
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(files: &[(&str, Vec<u8>)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        Self(folder)
    }

    fn read(&self, name: &str) -> (Vec<String>, Option<FileError>) {
        let open = |path: &Path| File::open(path).map_err(|source| FileError::io(path, source));
        let (layers, problem) = read(&self.0.path().join(name), "qcow2", open);
        let words = |layer: Layer| {
            let name = layer.path.strip_prefix(self.0.path()).unwrap_or(&layer.path).display();
            format!("{name} {}", layer.format)
        };
        (layers.into_iter().map(words).collect(), problem)
    }
}

#[test]
fn a_chain_is_followed_to_its_end() {
    let folder = Folder::with(&[
        ("top", overlay(b"middle", Some(b"qcow2"))),
        ("middle", overlay(b"base", Some(b"raw"))),
        ("base", overlay(b"/etc/shadow", Some(b"raw"))),
        ("whole", overlay(b"", None)),
    ]);
    let (layers, problem) = folder.read("top");
    assert!(problem.is_none(), "{problem:?}");
    assert_eq!(layers, ["middle qcow2", "base raw"], "a raw one has no head");
    assert_eq!(folder.read("whole").0, [""; 0]);
    let file = File::open(folder.0.path().join("top")).unwrap();
    let middle = folder.0.path().join("middle");
    let only_on = |known: &[PathBuf]| only_on(known, &file, &folder.0.path().join("top"), "qcow2");
    only_on(&[middle]).unwrap();
    assert!(matches!(only_on(&[]), Err(FileError::Chain { .. })));
}

#[test]
fn one_that_cannot_be_followed_is_told_so_far() {
    let folder = Folder::with(&[
        ("top", overlay(b"gone", Some(b"qcow2"))),
        ("loop", overlay(b"loop", Some(b"qcow2"))),
        ("guess", overlay(b"base", None)),
        ("json", overlay(b"json:{\"driver\":\"nbd\"}", Some(b"raw"))),
        ("nbd", overlay(b"nbd://host/x", Some(b"raw"))),
        ("other", overlay(b"base", Some(b"vmdk"))),
        ("base", b"no image".to_vec()),
        ("short", b"QFI\xfb".to_vec()),
    ]);
    let (layers, problem) = folder.read("top");
    assert_eq!(layers, ["gone qcow2"]);
    assert!(matches!(problem, Some(FileError::Absent(_))), "{problem:?}");
    for (name, says) in [
        ("loop", "one on itself"),
        ("guess", "of which format"),
        ("json", "json:"),
        ("nbd", "nbd://host/x"),
        ("other", "vmdk"),
        ("short", "not the qcow2 image"),
    ] {
        let problem = folder.read(name).1.unwrap().to_string();
        assert!(problem.contains(says), "{name}: {problem}");
    }
}

#[test]
fn a_head_that_makes_no_sense_is_no_trouble() {
    let mut odd = overlay(b"base", Some(b"raw"));
    for (at, value) in [(100, u32::MAX), (108, u32::MAX), (16, u32::MAX), (100, 4090)] {
        odd[at..at + 4].copy_from_slice(&value.to_be_bytes());
        let folder = Folder::with(&[("odd", odd.clone())]);
        assert!(folder.read("odd").1.is_some(), "{at}");
    }
}
