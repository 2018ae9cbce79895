//! What an agent answers to looking, and its probe files.

use drover_proto::v1::Compression;

use super::*;

/// What a destination has to say.
const BY_DESTINATION: [&str; 15] = [
    "migration-calls",
    "host-uuid",
    "uuid-free",
    "name-free",
    "machine-type",
    "cpu",
    "versions",
    "lock-manager",
    "memory",
    "huge-pages",
    "numa",
    "boot-files",
    "bridges",
    "networks",
    "space",
];

/// What the agent says of a guest whose disks are overridden.
fn override_disks(guest: &mut GuestFacts, overrides: &DestinationOverrides) {
    let mut disks = guest.disks.clone();
    for (at, wanted) in overrides.disks.iter().enumerate() {
        match disks.iter_mut().find(|disk| disk.target == wanted.target) {
            Some(disk) => disk.source.clone_from(&wanted.source),
            None => guest.override_problems.push(OverrideProblem {
                field: format!("disks[{at}].target"),
                problem: format!("the guest has no disk {}", wanted.target),
            }),
        }
    }
    if guest.override_problems.is_empty() {
        guest.destination_disks = disks;
        guest.destination_interfaces.clone_from(&guest.interfaces);
    }
}

impl Agent {
    pub(super) async fn do_get_agent_status(
        &self,
        request: Request<GetAgentStatusRequest>,
    ) -> Result<Response<AgentStatus>, Status> {
        let host = self.host.clone();
        self.call("GetAgentStatus", request.into_inner().fence, move |state| {
            let (highest_term, store_instance) = {
                let host = state.host(&host);
                (host.highest_term, host.store_instance.clone())
            };
            let unfinished_journals = state.unfinished(&host);
            let host = Some(registration(&host, "127.0.0.1:1"));
            Ok(AgentStatus {
                host,
                highest_term,
                store_instance,
                unfinished_journals,
            })
        })
        .await
    }

    pub(super) async fn do_inspect_host(&self, _: Request<InspectHostRequest>) -> Result<Response<HostFacts>, Status> {
        let host = self.host.clone();
        self.call("InspectHost", None, move |state| {
            let libvirt_version = state.libvirt.get(&host).copied().unwrap_or(9_000_000);
            let knows_zstd = libvirt_version >= 9_004_000;
            Ok(HostFacts {
                host_uuid: host,
                libvirt_version,
                compressions: knows_zstd.then_some(Compression::Zstd.into()).into_iter().collect(),
                detects_zeroes: libvirt_version >= 10_009_000,
                clock: Some(now()),
                arch: "x86_64".to_owned(),
                cpus: 16,
                qemu_version: 10_000_002,
                memory_available_bytes: 1 << 40,
                bridges: vec!["br0".to_owned()],
                ..HostFacts::default()
            })
        })
        .await
    }

    pub(super) async fn do_list_guests(
        &self,
        _: Request<ListGuestsRequest>,
    ) -> Result<Response<ListGuestsResponse>, Status> {
        let host = self.host.clone();
        self.call("ListGuests", None, move |state| {
            Ok(ListGuestsResponse {
                guests: state.host(&host).guests.values().cloned().collect(),
            })
        })
        .await
    }

    pub(super) async fn do_inspect_guest(
        &self,
        request: Request<InspectGuestRequest>,
    ) -> Result<Response<GuestFacts>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("InspectGuest", None, move |state| {
            let found = state.host(&host).guests.get(&request.guest_uuid).cloned();
            let mut guest = found.ok_or_else(|| refuse(Reason::GuestNotFound))?;
            if let Some(overrides) = &request.destination_overrides {
                override_disks(&mut guest, overrides);
            }
            Ok(guest)
        })
        .await
    }

    pub(super) async fn do_check_incoming(
        &self,
        request: Request<CheckIncomingRequest>,
    ) -> Result<Response<CheckIncomingResponse>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        let guest = request.guest.unwrap_or_default();
        let post_copy = request.policy.is_some_and(|policy| policy.post_copy);
        self.call("CheckIncoming", None, move |state| {
            let host = state.host(&host);
            let fails = |id: &str| {
                host.lacks.contains(id) || (id == "uuid-free" && host.guests.contains_key(&guest.guest_uuid))
            };
            let check = |id: &str| Check {
                id: id.to_owned(),
                result: if fails(id) {
                    CheckResult::Failed.into()
                } else {
                    CheckResult::Passed.into()
                },
                ..Check::default()
            };
            Ok(CheckIncomingResponse {
                checks: BY_DESTINATION
                    .into_iter()
                    .chain(post_copy.then_some("post-copy"))
                    .map(check)
                    .collect(),
            })
        })
        .await
    }

    pub(super) async fn do_probe_peer(
        &self,
        request: Request<ProbePeerRequest>,
    ) -> Result<Response<ProbePeerResponse>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("ProbePeer", None, move |state| {
            let peer = request.peer_host.trim_start_matches("hosts/");
            let reachable = !state.host(&host).cut_off_from.contains(peer);
            let bytes_per_second = if request.measure { state.link } else { 0 };
            let probe = |address| PeerProbe {
                address,
                reachable,
                bytes_per_second,
                ..PeerProbe::default()
            };
            Ok(ProbePeerResponse {
                probes: request.addresses.into_iter().map(probe).collect(),
            })
        })
        .await
    }

    pub(super) async fn do_sample_guest(
        &self,
        _: Request<SampleGuestRequest>,
    ) -> Result<Response<GuestSample>, Status> {
        self.call("SampleGuest", None, move |state| {
            let window = |(seconds, changed_bytes): (u64, u64)| WriteWindow {
                duration: Some(proto_duration(Duration::from_secs(seconds))),
                changed_bytes,
            };
            Ok(GuestSample {
                time: Some(now()),
                windows: (1..).zip(state.writes.clone()).map(window).collect(),
                resident_bytes: None,
            })
        })
        .await
    }

    pub(super) async fn do_write_storage_probes(
        &self,
        request: Request<WriteStorageProbesRequest>,
    ) -> Result<Response<WriteStorageProbesResponse>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("WriteStorageProbes", request.fence, move |state| {
            let disks = state.host(&host).guests[&request.guest_uuid].disks.clone();
            // A repeat replaces what an earlier one left.
            state.host(&host).probes.clear();
            let probes = disks.into_iter().map(|disk| {
                state.host(&host).probes.insert(disk.source.clone());
                StorageProbe {
                    image_path: disk.source,
                    ..StorageProbe::default()
                }
            });
            Ok(WriteStorageProbesResponse {
                probes: probes.collect(),
                failures: Vec::new(),
            })
        })
        .await
    }

    pub(super) async fn do_read_storage_probes(
        &self,
        request: Request<ReadStorageProbesRequest>,
    ) -> Result<Response<ReadStorageProbesResponse>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("ReadStorageProbes", None, move |state| {
            let shared = state.host(&host).shares;
            let paths = request.probes.iter().map(|probe| probe.destination_image_path.clone());
            state.looked_for.extend(paths);
            let room = |image: NewImage| ImageRoom {
                target: image.target,
                free_bytes: Some(1 << 40),
                ..ImageRoom::default()
            };
            let result = |probe: StorageProbe| StorageProbeResult {
                image_path: probe.image_path,
                shared,
                present: true,
                ..StorageProbeResult::default()
            };
            Ok(ReadStorageProbesResponse {
                results: request.probes.into_iter().map(result).collect(),
                rooms: request.images.into_iter().map(room).collect(),
            })
        })
        .await
    }

    pub(super) async fn do_remove_storage_probes(
        &self,
        request: Request<RemoveStorageProbesRequest>,
    ) -> Result<Response<RemoveStorageProbesResponse>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("RemoveStorageProbes", request.fence, move |state| {
            for probe in request.probes {
                state.host(&host).probes.remove(&probe.image_path);
            }
            Ok(RemoveStorageProbesResponse {})
        })
        .await
    }

    pub(super) async fn do_get_migration_status(
        &self,
        request: Request<GetMigrationStatusRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        let (host, reference) = (self.host.clone(), request.into_inner().migration.unwrap());
        self.call("GetMigrationStatus", None, move |state| {
            Ok(state.status(&host, &reference))
        })
        .await
    }
}
