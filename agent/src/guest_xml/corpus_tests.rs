//! Definitions as other tools write them (`tests/data/domains`): for each the overrides (`.json`) and what has to come
//! out (`.expected`, written by hand), compared byte for byte.

use std::path::{Path, PathBuf};

use drover_proto::overrides::Overrides;
use drover_proto::v1;
use drover_proto::v1::interface_override::Network;

use super::overrides::{Definition, Unfit, apply};
use super::read;

/// One definition and what is to be different.
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) xml: String,
    pub(crate) overrides: Overrides,
    path: PathBuf,
}

impl Sample {
    fn expected(&self) -> PathBuf {
        self.path.with_extension("expected")
    }

    pub(crate) fn changed(&self) -> String {
        apply(&self.xml, &self.overrides, Definition::Live).unwrap_or_else(|unfit| panic!("{}: {unfit}", self.name))
    }
}

/// The corpus.
pub(crate) fn samples() -> Vec<Sample> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/domains");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|e| e == "xml"))
        .collect();
    paths.sort();
    let sample = |path: PathBuf| Sample {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        xml: std::fs::read_to_string(&path).unwrap(),
        overrides: overrides(&std::fs::read_to_string(path.with_extension("json")).unwrap()),
        path,
    };
    paths.into_iter().map(sample).collect()
}

fn overrides(json: &str) -> Overrides {
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    let text = |value: &serde_json::Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let each = |field: &str| json[field].as_array().cloned().unwrap_or_default();
    let disk = |value: &serde_json::Value| v1::DiskOverride {
        target: text(value, "target"),
        source: text(value, "source"),
    };
    let interface = |value: &serde_json::Value| v1::InterfaceOverride {
        mac_address: text(value, "mac_address"),
        network: Some(match value["bridge"].as_str() {
            Some(bridge) => Network::Bridge(bridge.to_owned()),
            None => Network::TargetDevice(text(value, "target_device")),
        }),
    };
    let message = v1::DestinationOverrides {
        disks: each("disks").iter().map(disk).collect(),
        interfaces: each("interfaces").iter().map(interface).collect(),
        graphics_listen_address: text(&json, "graphics_listen_address"),
    };
    Overrides::read(&message).unwrap()
}

#[test]
fn every_definition_comes_out_as_expected_byte_for_byte() {
    let samples = samples();
    assert!(samples.len() >= 14, "the corpus is there");
    for sample in samples {
        let changed = sample.changed();
        let expected = std::fs::read_to_string(sample.expected()).unwrap();
        assert!(changed == expected, "{}: {changed}", sample.name);
    }
}

#[test]
fn only_the_lines_of_what_was_asked_for_differ() {
    for sample in samples() {
        let changed = sample.changed();
        let kept = |text: &str| {
            text.lines()
                .filter(|line| sample.xml.lines().any(|old| old == *line))
                .count()
        };
        let different = changed.lines().count() - kept(&changed);
        let Overrides {
            disks,
            interfaces,
            graphics_listen,
        } = &sample.overrides;
        // A type and a path of each disk; type, source and target of an interface; attribute and child of graphics.
        let most = 2 * disks.len() + 2 * interfaces.len() + 2 * usize::from(graphics_listen.is_some());
        assert!(different <= most, "{}: {different} lines differ", sample.name);
    }
}

#[test]
fn without_overrides_every_definition_stays_as_it_is() {
    for sample in samples() {
        let same = apply(&sample.xml, &Overrides::default(), Definition::Live).unwrap();
        assert!(same == sample.xml, "{}", sample.name);
    }
}

#[test]
fn the_overrides_again_change_nothing_more() {
    for sample in samples() {
        let changed = sample.changed();
        let again = apply(&changed, &sample.overrides, Definition::Live).unwrap();
        assert!(again == changed, "{}", sample.name);
    }
}

#[test]
fn what_is_read_differs_in_what_was_asked_for_alone() {
    for sample in samples() {
        let (mut before, mut after) = (read(&sample.xml).unwrap(), read(&sample.changed()).unwrap());
        for shape in [&mut before, &mut after] {
            for disk in &mut shape.disks {
                if sample
                    .overrides
                    .disks
                    .iter()
                    .any(|wanted| wanted.target.as_str() == disk.target)
                {
                    (disk.source, disk.source_type) = (String::new(), String::new());
                }
            }
            for interface in &mut shape.interfaces {
                let mac = interface.mac_address.parse().unwrap();
                if sample
                    .overrides
                    .interfaces
                    .iter()
                    .any(|wanted| wanted.mac_address == mac)
                {
                    (interface.source, interface.source_type) = (String::new(), String::new());
                }
            }
        }
        assert_eq!(before, after, "{}", sample.name);
    }
}

#[test]
fn a_disk_with_a_backing_chain_stays_where_it_is() {
    let sample = samples()
        .into_iter()
        .find(|sample| sample.name == "backing-chain-live")
        .unwrap();
    let overrides = overrides(r#"{"disks":[{"target":"vda","source":"/mnt/vms/layered-top.qcow2"}]}"#);
    assert!(matches!(
        apply(&sample.xml, &overrides, Definition::Live),
        Err(Unfit::Problems(problems)) if problems[0].0 == "disks[0].target" && problems[0].1.contains("backing chain")
    ));
}

/// libvirt's own schemas, by its test driver: what it accepts before it accepts afterwards.
#[test]
fn libvirt_accepts_what_comes_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut accepted = 0;
    for sample in samples() {
        let before = define(folder.path(), &sample.xml);
        let after = define(folder.path(), &sample.changed());
        assert_eq!(
            before.is_ok(),
            after.is_ok(),
            "{}: {before:?}, then {after:?}",
            sample.name
        );
        accepted += usize::from(before.is_ok());
    }
    // All but the one that was made odd on purpose.
    assert!(accepted >= 14, "only {accepted}");
}

/// The test driver knows guests of type `test` on i686 only; nothing is kept of them.
fn define(folder: &Path, xml: &str) -> Result<(), String> {
    let xml = xml
        .replacen("type='kvm'", "type='test'", 1)
        .replacen("type=\"kvm\"", "type=\"test\"", 1);
    let path = folder.join("guest.xml");
    std::fs::write(&path, xml.replace("x86_64", "i686")).unwrap();
    let run = std::process::Command::new("virsh")
        .args(["-q", "-c", "test:///default", "define", "--validate"])
        .arg(&path)
        .output()
        .expect("virsh is installed by `make setup`");
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    if run.status.success() { Ok(()) } else { Err(said) }
}
