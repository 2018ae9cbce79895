//! Whatever comes from outside: read, or refused with a reason; never a panic, and what was read is what was meant.

use std::os::unix::fs::FileExt;
use std::path::Path;

use drover_agent::guest_xml::flatten::flattened;
use drover_agent::guest_xml::overrides::{Definition, Unfit, apply};
use drover_agent::guest_xml::{self, MAX_BYTES};
use drover_agent::offline::chain;
use drover_agent::tunnel::hello::{HELLO_SIZE, Hello, Reply};
use drover_controller::service::readers;
use drover_fuzz::Target;
use drover_proto::failure::Reason;
use drover_proto::overrides::{MOST, Overrides};
use drover_proto::v1::{self, interface_override::Network};
use futures::FutureExt;
use prost::Message;

const MAC: &str = "52:54:00:00:00:01";

/// Definitions of the agent's own tests, as other tools write them.
fn definitions() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/tests/data/domains");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|e| e == "xml"))
        .collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

const XML_WORDS: &[&str] = &[
    "<!DOCTYPE d [<!ENTITY a 'b'>]>",
    "&#x0;",
    "&a;",
    "<![CDATA[",
    "]]>",
    "<!--",
    "xmlns='urn:x'",
    "<disk type='file'><source file='/x'/><target dev='vda'/></disk>",
    "<backingStore>",
    "</domain>",
    "<a>",
    "\u{feff}",
];

fn message() -> v1::DestinationOverrides {
    let interface = |network| v1::InterfaceOverride {
        mac_address: MAC.to_owned(),
        network: Some(network),
    };
    v1::DestinationOverrides {
        disks: vec![v1::DiskOverride {
            target: "vda".to_owned(),
            source: "/a/b & 'c'.raw".to_owned(),
        }],
        interfaces: vec![
            interface(Network::Bridge("br1".to_owned())),
            interface(Network::TargetDevice("tap1".to_owned())),
        ],
        graphics_listen_address: "192.0.2.1".to_owned(),
    }
}

#[test]
fn filters() {
    let target = Target {
        name: "filter",
        seeds: Vec::new(),
        words: &["AND", "=", "\"", "\\", "labels.", "state", "hosts/", "\u{202e}"],
    };
    target.attack(|input| {
        let text = String::from_utf8_lossy(input);
        if let Err(failure) = readers::filter(&text) {
            assert_eq!(failure.reason, Reason::InvalidArgument);
            assert!(!failure.fields.is_empty(), "the field is named");
        }
    });
}

#[test]
fn page_tokens() {
    let target = Target {
        name: "page-token",
        seeds: vec![readers::page_token("migrations", "key").into_bytes()],
        words: &["e30", "=", "_", "-"],
    };
    target.attack(|input| {
        let text = String::from_utf8_lossy(input);
        if let Err(failure) = readers::page_after("migrations", &text) {
            assert_eq!(failure.reason, Reason::PageTokenInvalid);
        }
    });
}

#[test]
fn requests_to_create() {
    let request = v1::CreateMigrationRequest {
        migration: Some(v1::Migration {
            guest_uuid: "0190a1b2-0000-7000-8000-000000000001".to_owned(),
            destination_host: "hosts/b".to_owned(),
            labels: [("team".to_owned(), "red".to_owned())].into(),
            policy: Some(v1::MigrationPolicy {
                parallel_connections: 4,
                ..v1::MigrationPolicy::default()
            }),
            destination_overrides: Some(message()),
            ..v1::Migration::default()
        }),
        request_id: "0190a1b2-0000-7000-8000-000000000002".to_owned(),
        validate_only: true,
    };
    let target = Target {
        name: "create-request",
        seeds: vec![request.encode_to_vec(), Vec::new()],
        words: &["hosts/", "\u{0}", "vda", "/../"],
    };
    target.attack(|input| {
        let Ok(request) = v1::CreateMigrationRequest::decode(input) else {
            return;
        };
        if let Err(failure) = readers::create_request(request) {
            assert!(
                matches!(failure.reason, Reason::InvalidArgument | Reason::Unimplemented),
                "{failure:?}"
            );
        }
    });
}

#[test]
fn destination_overrides() {
    let target = Target {
        name: "overrides",
        seeds: vec![message().encode_to_vec()],
        words: &["/../", "/dev/", "vnet", "::", ":"],
    };
    target.attack(|input| {
        let Ok(message) = v1::DestinationOverrides::decode(input) else {
            return;
        };
        match Overrides::read(&message) {
            Ok(read) => {
                assert!(read.disks.len() <= MOST && read.interfaces.len() <= MOST);
                assert!(
                    read.disks
                        .iter()
                        .all(|disk| !disk.source.as_str().split('/').any(|part| part == ".."))
                );
                assert_eq!(Overrides::read(&read.message()).as_ref(), Ok(&read), "read back");
                let kept = serde_json::from_slice(&serde_json::to_vec(&read).unwrap()).unwrap();
                assert_eq!(read, kept, "in the journal");
            }
            Err(problems) => assert!(!problems.is_empty()),
        }
    });
}

#[test]
fn definitions_that_are_read() {
    let target = Target {
        name: "domain-xml",
        seeds: definitions(),
        words: XML_WORDS,
    };
    target.attack(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        if let Ok(shape) = guest_xml::read(text) {
            assert!(text.len() <= MAX_BYTES, "larger than the limit");
            assert!(shape.cpu_xml.len() <= text.len());
            let flat = flattened(text, ["vda"].into_iter()).expect("it was read before");
            let flat = guest_xml::read(&flat).expect("still well-formed");
            assert_eq!(flat.disks.len(), shape.disks.len());
            let vda = flat.disks.iter().filter(|disk| disk.target == "vda");
            assert!(
                vda.flat_map(|disk| &disk.backing).next().is_none(),
                "nothing is beneath it"
            );
        }
    });
}

#[test]
fn definitions_that_are_written() {
    let target = Target {
        name: "domain-xml",
        seeds: definitions(),
        words: XML_WORDS,
    };
    let overrides = Overrides::read(&message()).unwrap();
    target.attack(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        assert_eq!(apply(text, &Overrides::default(), Definition::Live).unwrap(), text);
        for definition in [Definition::Live, Definition::Persistent] {
            match apply(text, &overrides, definition) {
                Ok(changed) => {
                    // What was just below a limit may be above it now.
                    if changed.len() > MAX_BYTES || text.matches('<').count() > 90_000 {
                        continue;
                    }
                    let shape = guest_xml::read(&changed).expect("still well-formed");
                    let before = guest_xml::read(text).unwrap();
                    assert_eq!(shape.disks.len(), before.disks.len());
                    assert_eq!(shape.interfaces.len(), before.interfaces.len());
                    assert_eq!(
                        apply(&changed, &overrides, definition).unwrap(),
                        changed,
                        "twice is once"
                    );
                }
                Err(Unfit::Problems(problems)) => assert!(!problems.is_empty()),
                Err(Unfit::Unreadable(_)) => {}
            }
        }
    });
}

/// A qcow2 image of version 3 on `/a/base`, which is raw.
fn overlay() -> Vec<u8> {
    let mut head = vec![0; 200];
    head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    head[8..16].copy_from_slice(&160_u64.to_be_bytes());
    head[16..20].copy_from_slice(&7_u32.to_be_bytes());
    head[100..104].copy_from_slice(&104_u32.to_be_bytes());
    head[104..115].copy_from_slice(b"\xe2\x79\x2a\xca\0\0\0\x03raw");
    head[160..167].copy_from_slice(b"/a/base");
    head
}

#[test]
fn heads_of_images() {
    let path = std::env::temp_dir().join(format!("drover-fuzz-head-{}", std::process::id()));
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path);
    let file = file.expect("a file");
    std::fs::remove_file(&path).expect("its name goes at once");
    let target = Target {
        name: "image-head",
        seeds: vec![overlay()],
        words: &["raw", "qcow2", "../", "json:", "\0\0\0\0"],
    };
    target.attack(|input| {
        file.set_len(0)
            .and_then(|()| file.write_all_at(input, 0))
            .expect("written");
        if let Ok(Some(layer)) = chain::beneath(&file, Path::new("/a/top"), "qcow2") {
            assert!(layer.path.is_absolute(), "{layer:?}");
            assert!(layer.format.len() <= input.len());
        }
    });
}

#[test]
fn hellos_and_replies() {
    let mut hello = b"DROVER-D\x01\x01\0\0\0\0\0\x01".to_vec();
    hello.extend([0x33; 48]);
    let target = Target {
        name: "hello",
        seeds: vec![hello, b"\x07\x04gone".to_vec()],
        words: &["DROVER-D"],
    };
    target.attack(|input| {
        let mut wire = [0; HELLO_SIZE];
        let length = input.len().min(HELLO_SIZE);
        wire[..length].copy_from_slice(&input[..length]);
        if let Ok(read) = Hello::decode(&wire) {
            assert_eq!(read.encode(), wire, "no two hellos mean the same");
        }
        let mut reader = input;
        if let Some(Ok(reply)) = Reply::read(&mut reader).now_or_never() {
            assert!(
                input.len() - reader.len() <= 2 + 255,
                "{reply:?} takes no more than it may"
            );
        }
    });
}
