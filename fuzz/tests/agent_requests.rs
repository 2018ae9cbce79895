//! What the controller asks of agents, and what agents tell the controller: read, or refused with a reason; never a
//! panic, and what was read keeps within its limits.

use drover_agent::guest_xml::MAX_BYTES;
use drover_agent::images::NewImage;
use drover_agent::service::readers;
use drover_controller::service::readers as controller;
use drover_fuzz::Target;
use drover_proto::agent::v1::*;
use drover_proto::failure::{Failure, Reason};
use drover_proto::overrides::MOST;
use drover_proto::v1;
use prost::Message;

const GUEST: &str = "0190a1b2-0000-7000-8000-000000000001";
const MIGRATION: &str = "0190a1b2-0000-7000-8000-000000000002";

const WORDS: &[&str] = &[
    "hosts/",
    "/../",
    "\u{0}",
    "vda",
    "qcow2",
    "raw",
    "0190a1b2-0000-7000-8000-000000000003",
];

fn fence() -> Option<Fence> {
    Some(Fence {
        term: 3,
        store_instance: "store".to_owned(),
        lease: 0,
    })
}

fn migration() -> Option<MigrationRef> {
    Some(MigrationRef {
        migration_id: MIGRATION.to_owned(),
        attempt: 1,
        guest_uuid: GUEST.to_owned(),
    })
}

fn policy() -> Option<TransferPolicy> {
    Some(TransferPolicy {
        bandwidth_limit_bytes_per_second: 40 << 20,
        max_downtime: Some(prost_types::Duration {
            seconds: 0,
            nanos: 300_000_000,
        }),
        deadline: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        parallel_connections: 4,
        ..TransferPolicy::default()
    })
}

fn image() -> drover_proto::agent::v1::NewImage {
    drover_proto::agent::v1::NewImage {
        target: "vda".to_owned(),
        path: "/images/a.qcow2".to_owned(),
        format: "qcow2".to_owned(),
        virtual_size_bytes: 1 << 30,
        allocated_bytes: 1 << 20,
        qcow2_version: 3,
        qcow2_cluster_bits: 16,
        ..Default::default()
    }
}

/// A refusal names what is wrong.
fn refused(failure: &Failure) {
    let known = matches!(failure.reason, Reason::InvalidArgument | Reason::Unimplemented);
    assert!(known && !failure.fields.is_empty(), "{failure:?}");
}

/// What is made at the destination has a plain name, a plain path, and a size that a file can have.
fn sound(images: &[NewImage]) {
    for image in images {
        assert!(
            image
                .target
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
        );
        let path = image.path.to_str().unwrap();
        assert!(path.starts_with('/') && path.split('/').all(|part| part != ".." && part != "."));
        assert!(image.virtual_size > 0 && i64::try_from(image.virtual_size).is_ok());
    }
}

/// Feeds a reader with a message of its own, changed, and with what is no such message.
fn attack<M: Message + Default>(name: &str, seeds: &[M], check: impl Fn(M)) {
    let target = Target {
        name,
        seeds: seeds.iter().map(M::encode_to_vec).chain([Vec::new()]).collect(),
        words: WORDS,
    };
    target.attack(|input| {
        if let Ok(message) = M::decode(input) {
            check(message);
        }
    });
}

#[test]
fn orders_to_begin() {
    let live = BeginOutgoingRequest {
        fence: fence(),
        migration: migration(),
        destination_host: "hosts/b".to_owned(),
        incarnation: Some(Incarnation {
            boot_id: MIGRATION.to_owned(),
            qemu_pid: 7,
            qemu_start_time: 9,
        }),
        policy: policy(),
        destination_overrides: Some(v1::DestinationOverrides {
            disks: vec![v1::DiskOverride {
                target: "vda".to_owned(),
                source: "/b.raw".to_owned(),
            }],
            ..v1::DestinationOverrides::default()
        }),
        copy_disks: vec!["vda".to_owned(), "vdb".to_owned()],
        ..BeginOutgoingRequest::default()
    };
    let offline = BeginOutgoingRequest {
        incarnation: None,
        offline: Some(OfflineOrder {
            images: vec!["/images/a.qcow2".to_owned()],
            delete_source: true,
            shared: vec!["/images/b.qcow2".to_owned()],
            shutdown_timeout: Some(drover_proto::time::proto_duration(std::time::Duration::from_secs(60))),
        }),
        ..live.clone()
    };
    attack(
        "begin-outgoing",
        &[live, offline],
        |request| match readers::begin_outgoing(request) {
            Ok(order) => {
                assert!(order.overrides.disks.len() <= MOST && order.reference.attempt.0 > 0);
                let copied = order.flags.copied.iter().flat_map(|disks| disks.targets());
                assert!(copied.count() <= 256);
                assert!(order.offline.is_none_or(|order| order.images.len() <= 64));
            }
            Err(failure) => refused(&failure),
        },
    );
}

#[test]
fn orders_to_prepare() {
    let request = PrepareIncomingRequest {
        fence: fence(),
        migration: migration(),
        source_host: "hosts/a".to_owned(),
        guest_name: "web".to_owned(),
        xml: "<domain/>".to_owned(),
        inactive_xml: "<domain/>".to_owned(),
        cookie: b"<qemu-migration/>".to_vec().into(),
        state_before: LibvirtState::Running.into(),
        autostart_before: true,
        policy: policy(),
        images: vec![image()],
        offline: Some(OfflineArrival {
            files: vec![OfflineFile {
                path: "/images/a.raw".to_owned(),
                size_bytes: 1 << 20,
                allocated_bytes: 4096,
                mode: 0o640,
            }],
        }),
    };
    attack(
        "prepare-incoming",
        &[request],
        |request| match readers::prepare_incoming(request) {
            Ok(order) => {
                assert!(order.xml.len() <= MAX_BYTES && order.cookie.0.len() <= MAX_BYTES + (64 << 10));
                assert!(
                    order
                        .inactive_xml
                        .is_none_or(|xml| !xml.is_empty() && xml.len() <= MAX_BYTES)
                );
                sound(&order.images);
                let files = order.offline.unwrap_or_default();
                assert!(files.len() <= 64 && files.iter().all(|file| file.mode & !0o660 == 0));
            }
            Err(failure) => refused(&failure),
        },
    );
}

#[test]
fn orders_to_start_and_to_change() {
    let request = StartMigrateRequest {
        fence: fence(),
        migration: migration(),
        ticket: vec![7; 32].into(),
        cookie: b"<qemu-migration/>".to_vec().into(),
        destination_addresses: vec!["192.0.2.1:7450".to_owned()],
        destination_management_address: "192.0.2.1:7450".to_owned(),
        policy: policy(),
        ..StartMigrateRequest::default()
    };
    attack("start-migrate", &[request], |request| {
        match readers::start_migrate(request) {
            Ok(order) => {
                let addresses = &order.delivery.addresses;
                assert!(addresses.len() <= 16 && addresses.iter().all(|address| address.len() <= 300));
            }
            Err(failure) => refused(&failure),
        }
    });
    let request = AdjustOutgoingRequest {
        fence: fence(),
        migration: migration(),
        policy: policy(),
    };
    attack(
        "adjust-outgoing",
        &[request],
        |request| match readers::adjust_outgoing(request) {
            Ok(limits) => assert!(limits.max_downtime.is_none_or(|most| !most.is_zero())),
            Err(failure) => refused(&failure),
        },
    );
}

#[test]
fn orders_to_settle() {
    let request = SettleIncomingRequest {
        fence: fence(),
        migration: migration(),
        verdict: Verdict::Ran.into(),
        fenced: true,
        definition: Some(DefinitionNews {
            inactive_xml: "<domain/>".to_owned(),
            problem: String::new(),
        }),
    };
    attack("settle-incoming", &[request], |request| {
        if let Err(failure) = readers::settle_incoming(request) {
            refused(&failure);
        }
    });
}

#[test]
fn probes_of_storage() {
    let request = ReadStorageProbesRequest {
        probes: vec![StorageProbe {
            directory: "/images".to_owned(),
            image_path: "/images/a.raw".to_owned(),
            file_name: format!(".drover-probe-{MIGRATION}"),
            content: vec![1; 64].into(),
            image_inode: 5,
            image_size_bytes: 1 << 20,
            destination_image_path: "/data/b.raw".to_owned(),
            ..StorageProbe::default()
        }],
        images: vec![image()],
    };
    attack("storage-probes", &[request], |request| {
        match readers::storage_probes(request) {
            Ok((probes, images)) => {
                assert!(probes.len() <= 1024);
                sound(&images);
            }
            Err(failure) => refused(&failure),
        }
    });
}

#[test]
fn registrations() {
    let journal = v1::UnfinishedJournal {
        migration: format!("migrations/{MIGRATION}"),
        guest_uuid: GUEST.to_owned(),
        source_host: "hosts/a".to_owned(),
        destination_host: "hosts/b".to_owned(),
        journal_state: "ran".to_owned(),
        attempt: 1,
    };
    let request = v1::RegisterHostRequest {
        host: Some(v1::Host {
            name: "hosts/b".to_owned(),
            management_address: "192.0.2.1:7450".to_owned(),
            agent_instance: MIGRATION.to_owned(),
            boot_id: GUEST.to_owned(),
            features: vec!["live".to_owned()],
            ..v1::Host::default()
        }),
        unfinished_journals: vec![journal],
        adopted_resolutions: vec![v1::AdoptedResolution {
            migration: format!("migrations/{MIGRATION}"),
            adopt_time: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 5,
            }),
            copy_ran: true,
        }],
    };
    attack("register-host", &[request], |request| {
        match controller::register_host(request) {
            Ok((host, rows)) => {
                for row in rows {
                    assert!(row.source != row.destination, "{row:?}");
                    assert!(row.source == host || row.destination == host, "it is not this host's");
                }
            }
            Err(failure) => refused(&failure),
        }
    });
}
