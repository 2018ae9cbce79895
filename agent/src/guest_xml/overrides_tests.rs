//! What an override changes, what it never changes, and what is refused; each refusal names its field.

use drover_proto::v1;
use drover_proto::v1::interface_override::Network as Message;
use proptest::prelude::*;

use super::*;

const MAC: &str = "52:54:00:00:00:01";

fn read(message: &v1::DestinationOverrides) -> Overrides {
    Overrides::read(message).unwrap()
}

fn disk(target: &str, source: &str) -> Overrides {
    let disk = v1::DiskOverride {
        target: target.to_owned(),
        source: source.to_owned(),
    };
    read(&v1::DestinationOverrides {
        disks: vec![disk],
        ..v1::DestinationOverrides::default()
    })
}

fn network(network: Message) -> Overrides {
    let interface = v1::InterfaceOverride {
        mac_address: MAC.to_owned(),
        network: Some(network),
    };
    read(&v1::DestinationOverrides {
        interfaces: vec![interface],
        ..v1::DestinationOverrides::default()
    })
}

fn bridge(name: &str) -> Overrides {
    network(Message::Bridge(name.to_owned()))
}

fn device(name: &str) -> Overrides {
    network(Message::TargetDevice(name.to_owned()))
}

fn listen(address: &str) -> Overrides {
    read(&v1::DestinationOverrides {
        graphics_listen_address: address.to_owned(),
        ..v1::DestinationOverrides::default()
    })
}

fn domain(devices: &str) -> String {
    format!("<domain type='kvm'><name>a</name><devices>{devices}</devices></domain>")
}

/// The devices with the overrides, in the live definition.
fn changed(devices: &str, overrides: &Overrides) -> String {
    let whole = apply(&domain(devices), overrides, Definition::Live).unwrap();
    let inner = whole
        .strip_prefix("<domain type='kvm'><name>a</name><devices>")
        .unwrap();
    inner.strip_suffix("</devices></domain>").unwrap().to_owned()
}

/// The one field that is refused, and why.
fn refused(devices: &str, overrides: &Overrides, definition: Definition) -> Problem {
    match apply(&domain(devices), overrides, definition) {
        Err(Unfit::Problems(problems)) if problems.len() == 1 => problems.into_iter().next().unwrap(),
        other => panic!("{devices}: {other:?}"),
    }
}

#[test]
fn a_disk_lies_elsewhere_and_becomes_what_its_path_says() {
    let file = "<disk type='file'><source file='/a'/><target dev='vda'/></disk>";
    assert_eq!(changed(file, &disk("vda", "/b")), file.replace("/a", "/b"));
    assert_eq!(
        changed(file, &disk("vda", "/dev/vg/b")),
        "<disk type='block'><source dev='/dev/vg/b'/><target dev='vda'/></disk>"
    );
    let block = "<disk type=\"block\"><source dev=\"/dev/a\" index='1'/><target dev='vda'/></disk>";
    assert_eq!(
        changed(block, &disk("vda", "/b")),
        "<disk type=\"file\"><source file=\"/b\" index='1'/><target dev='vda'/></disk>"
    );
}

#[test]
fn an_interface_goes_to_another_bridge_or_device() {
    let plain = format!("<interface type='bridge'><mac address='{MAC}'/><source bridge='br0'/></interface>");
    assert_eq!(changed(&plain, &bridge("br1")), plain.replace("br0", "br1"));
    assert_eq!(
        changed(&plain, &device("tap7")),
        plain.replace("<source bridge='br0'/>", "<source bridge='br0'/><target dev='tap7'/>")
    );
    let network = format!(
        "<interface type='network'><mac address='{MAC}'/><source network='n' portid='p' bridge='virbr0'/>\
         <target dev='vnet0'/></interface>"
    );
    assert_eq!(
        changed(&network, &bridge("br1")),
        format!(
            "<interface type='bridge'><mac address='{MAC}'/><source bridge='br1'/><target dev='vnet0'/></interface>"
        )
    );
    assert_eq!(changed(&network, &device("tap7")), network.replace("vnet0", "tap7"));
}

#[test]
fn graphics_listen_elsewhere_by_attribute_and_by_child() {
    let both = "<graphics type='vnc' listen='10.0.0.1'><listen type='address' address='10.0.0.1'/></graphics>";
    assert_eq!(changed(both, &listen("10.0.0.2")), both.replace("10.0.0.1", "10.0.0.2"));
    assert_eq!(
        changed(
            "<graphics type='spice'><listen type='network' network='n' address='1.2.3.4'/></graphics>",
            &listen("::1")
        ),
        "<graphics type='spice'><listen type='address' address='::1'/></graphics>"
    );
    assert_eq!(
        changed("<graphics type='vnc'/>", &listen("::1")),
        "<graphics type='vnc' listen='::1'/>"
    );
    let mixed = "<graphics type='sdl'/><graphics type='vnc'><listen type='socket' socket='/s'/></graphics>\
                 <graphics type='rdp' listen='0.0.0.0'/>";
    assert_eq!(
        changed(mixed, &listen("10.0.0.2")),
        mixed.replace("0.0.0.0", "10.0.0.2")
    );
}

#[test]
fn what_names_nothing_in_the_guest_is_refused_by_its_field() {
    let file = "<disk type='file'><source file='/a'/><target dev='vda'/></disk>";
    for (devices, overrides, field) in [
        (file, disk("vdb", "/b"), "disks[0].target"),
        (
            "<disk type='file'><target dev='vda'/></disk>",
            disk("vda", "/b"),
            "disks[0].target",
        ),
        (file, bridge("br1"), "interfaces[0].mac_address"),
        (file, listen("::1"), "graphics_listen_address"),
        (
            "<graphics type='vnc'><listen type='none'/></graphics>",
            listen("::1"),
            "graphics_listen_address",
        ),
    ] {
        assert_eq!(refused(devices, &overrides, Definition::Live).0, field, "{devices}");
        let kept = apply(&domain(devices), &overrides, Definition::Persistent).unwrap();
        assert_eq!(kept, domain(devices), "a definition without that device stays as it is");
    }
}

#[test]
fn what_cannot_be_elsewhere_is_refused_in_both_definitions() {
    let chain = "<disk type='file'><source file='/a'/><backingStore type='file'><source file='/base'/><backingStore/>\
                 </backingStore><target dev='vda'/></disk>";
    let twice = "<disk type='file'><source file='/a'/><target dev='vda'/></disk>";
    let interface =
        |kind: &str| format!("<interface type='{kind}'><mac address='{MAC}'/><source dev='x'/></interface>");
    for (devices, overrides) in [
        (chain.to_owned(), disk("vda", "/b")),
        (twice.repeat(2), disk("vda", "/b")),
        (
            "<disk type='network'><source protocol='rbd' name='p/i'/><target dev='vda'/></disk>".to_owned(),
            disk("vda", "/b"),
        ),
        (interface("direct"), bridge("br1")),
        (interface("hostdev"), device("tap7")),
        (interface("bridge").repeat(2), bridge("br1")),
        (interface("bridge"), bridge("br1")),
    ] {
        for definition in [Definition::Live, Definition::Persistent] {
            refused(&devices, &overrides, definition);
        }
    }
}

#[test]
fn all_that_does_not_fit_is_told_at_once() {
    let message = v1::DestinationOverrides {
        disks: disk("vdb", "/b").message().disks,
        interfaces: bridge("br1").message().interfaces,
        graphics_listen_address: "::1".to_owned(),
    };
    let Err(Unfit::Problems(problems)) = apply(&domain(""), &read(&message), Definition::Live) else {
        panic!("accepted");
    };
    assert_eq!(problems.len(), 3);
}

#[test]
fn devices_of_another_namespace_are_not_the_guests() {
    let xml = "<domain xmlns:x='urn:x'><devices><x:disk type='file'><source file='/a'/><target dev='vda'/></x:disk>\
               <disk type='file'><x:source file='/a'/><target dev='vda'/></disk></devices></domain>";
    assert!(apply(xml, &disk("vda", "/b"), Definition::Live).is_err());
}

/// Spaces, comments and whatever else may stand between elements.
fn filler() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[ \n\t]{0,6}",
        "<!-- [a-z<>&'\" ]{0,20} -->",
        Just("<?keep me?>".to_owned()),
        Just("<x:source xmlns:x='urn:x' file='/keep' bridge='keep'/>".to_owned()),
        Just("<![CDATA[<source file='/keep'/>]]>".to_owned()),
    ]
}

fn quoted(value: &str, double: bool) -> String {
    let escaped = escape(value);
    if double {
        format!("\"{escaped}\"")
    } else {
        format!("'{escaped}'")
    }
}

/// A path with all that has to be escaped.
fn paths() -> impl Strategy<Value = String> {
    "(/[a-zäß&<>'\" ]{1,8}){1,4}"
}

prop_compose! {
    fn guests()(
        fill in prop::collection::vec(filler(), 12),
        path in paths(),
        double in prop::collection::vec(any::<bool>(), 6),
        bridge in "[a-z]{1,8}",
        tap in "t[a-z]{1,8}",
        sibling in paths(),
    ) -> (String, String, String, String) {
        let [f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11] = &fill[..] else { unreachable!() };
        let xml = format!(
            "<domain type='kvm'>{f0}<name>{f1}a</name><devices>{f2}<disk type={kind}>{f3}<source file={path}/>{f4}\
             <target dev='vda'/>{f5}</disk>{f6}<disk type='file'><source file={sibling}/><target dev='vdb'/></disk>\
             <interface type='bridge'>{f7}<mac address={mac}/>{f8}<source bridge={bridge}/>{f9}<target dev={tap}/>\
             </interface>{f10}<graphics type='vnc' listen={listen}/></devices>{f11}</domain>",
            kind = quoted("file", double[0]),
            path = quoted(&path, double[1]),
            sibling = quoted(&sibling, double[2]),
            mac = quoted(MAC, double[3]),
            bridge = quoted(&bridge, double[4]),
            tap = quoted(&tap, double[5]),
            listen = quoted("10.0.0.1", double[0]),
        );
        (xml, path, bridge, tap)
    }
}

fn all(path: &str, bridge: &str, tap: &str, address: &str) -> Overrides {
    let interface = |network| v1::InterfaceOverride {
        mac_address: MAC.to_owned(),
        network: Some(network),
    };
    read(&v1::DestinationOverrides {
        disks: disk("vda", path).message().disks,
        interfaces: vec![
            interface(Message::Bridge(bridge.to_owned())),
            interface(Message::TargetDevice(tap.to_owned())),
        ],
        graphics_listen_address: address.to_owned(),
    })
}

proptest! {
    /// Changed and changed back it is the very same text, and in between it says what was asked for.
    #[test]
    fn undone_it_is_what_it_was((xml, path, bridge, tap) in guests(), other in paths()) {
        let there = apply(&xml, &all(&other, "br-new", "tap-new", "10.0.0.2"), Definition::Live).unwrap();
        let shape = crate::guest_xml::read(&there).unwrap();
        let before = crate::guest_xml::read(&xml).unwrap();
        prop_assert_eq!(&shape.disks[0].source, &other);
        prop_assert_eq!(&shape.disks[1], &before.disks[1]);
        prop_assert_eq!(&shape.interfaces[0].source, "br-new");
        let back = apply(&there, &all(&path, &bridge, &tap, "10.0.0.1"), Definition::Live).unwrap();
        prop_assert_eq!(back, xml);
    }

    #[test]
    fn without_overrides_nothing_is_touched(xml in ".{0,200}") {
        prop_assert_eq!(apply(&xml, &Overrides::default(), Definition::Live).unwrap(), xml);
    }
}
