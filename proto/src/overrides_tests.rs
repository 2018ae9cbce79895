//! Overrides are read as they were meant, or every bad field is named.

use super::*;

fn disk(target: &str, source: &str) -> v1::DiskOverride {
    v1::DiskOverride {
        target: target.to_owned(),
        source: source.to_owned(),
    }
}

fn interface(mac: &str, network: Option<Message>) -> v1::InterfaceOverride {
    v1::InterfaceOverride {
        mac_address: mac.to_owned(),
        network,
    }
}

fn bridge(name: &str) -> Option<Message> {
    Some(Message::Bridge(name.to_owned()))
}

fn device(name: &str) -> Option<Message> {
    Some(Message::TargetDevice(name.to_owned()))
}

const MAC: &str = "52:54:00:AB:cd:01";

#[test]
fn good_overrides_are_read_and_written_back() {
    let message = v1::DestinationOverrides {
        disks: vec![disk("vda", "/mnt/ü b/a&b.qcow2"), disk("sda", "/dev/mapper/vg-a")],
        interfaces: vec![interface(MAC, bridge("br-int")), interface(MAC, device("tap7"))],
        graphics_listen_address: "2001:db8::1".to_owned(),
    };
    let read = Overrides::read(&message).unwrap();
    assert!(read.disks[1].source.is_device() && !read.disks[0].source.is_device());
    let again = read.message();
    assert_eq!(again.interfaces[0].mac_address, "52:54:00:ab:cd:01");
    assert_eq!(Overrides::read(&again).unwrap(), read);
    let kept: Overrides = serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap();
    assert_eq!(kept, read);
    assert!(
        Overrides::read(&v1::DestinationOverrides::default())
            .unwrap()
            .is_empty()
    );
}

#[test]
fn paths_without_tricks_are_accepted_and_no_others() {
    for good in ["/a", "/a/b.raw", "/dev/sda", "/a/..b", "/a/ b"] {
        assert!(good.parse::<SourcePath>().is_ok(), "{good}");
    }
    let long = format!("/{}", "a".repeat(4095));
    for bad in [
        "",
        "/",
        "a",
        "./a",
        "/a/../b",
        "/..",
        "/a/.",
        "/a//b",
        "/a/",
        "/a\0b",
        "/a\nb",
        "/a\u{ffff}",
        &long,
    ] {
        assert!(bad.parse::<SourcePath>().is_err(), "{bad:?}");
    }
    assert!(!"/dev/shm/a".parse::<SourcePath>().unwrap().is_device());
}

#[test]
fn addresses_and_names_are_what_they_claim() {
    for bad in [
        "",
        "52:54:00:ab:cd",
        "52:54:00:ab:cd:01:02",
        "52-54-00-ab-cd-01",
        "52:54:00:ab:cd:+1",
        "g2:54:00:ab:cd:01",
    ] {
        assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
    }
    for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-letters-", "ü"] {
        assert!(bad.parse::<InterfaceName>().is_err(), "{bad}");
    }
    for bad in ["", "vd a", "../vda", "vda'"] {
        assert!(bad.parse::<DiskTarget>().is_err(), "{bad}");
    }
}

#[test]
fn every_bad_field_is_named_at_once() {
    let message = v1::DestinationOverrides {
        disks: vec![disk("vda", "relative"), disk("vdb", "/b"), disk("vdb", "/c")],
        interfaces: vec![
            interface("x", bridge("br0")),
            interface(MAC, None),
            interface(MAC, device("vnet3")),
            interface(MAC, bridge("a")),
            interface(&MAC.to_lowercase(), bridge("b")),
        ],
        graphics_listen_address: "all".to_owned(),
    };
    let problems = Overrides::read(&message).unwrap_err();
    let fields: Vec<&str> = problems.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "disks[0].source",
            "disks[2].target",
            "interfaces[0].mac_address",
            "interfaces[1]",
            "interfaces[2].target_device",
            "interfaces[4].mac_address",
            "graphics_listen_address",
        ]
    );
}

#[test]
fn too_many_are_refused_without_reading_them_all() {
    let message = v1::DestinationOverrides {
        disks: vec![disk("", ""); 100_000],
        ..v1::DestinationOverrides::default()
    };
    assert!(Overrides::read(&message).unwrap_err().len() <= 2 * MOST + 1);
}
