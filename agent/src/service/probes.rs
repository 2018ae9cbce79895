//! Storage probes over gRPC: what the guest's disks are, written here or looked for here.

use std::path::{Path, PathBuf};

use drover_proto::agent::v1 as agent;
use drover_proto::failure::{Failure, Reason};

use super::inspect::blocking;
use super::{AgentServer, convert};
use crate::guest_xml::Disk;
use crate::probe::device::{self, Device};
use crate::probe::{self, Image, Probe, Proof};
use crate::storage_directories::StorageDirectories;

/// More places than any guest's disks and backing chains have.
const MOST_PLACES: usize = 256;

const SYS: &str = "/sys";

/// Where a guest's data lies on this host.
#[derive(Default)]
struct Places {
    images: Vec<Image>,
    devices: Vec<PathBuf>,
}

impl AgentServer {
    pub(super) async fn write_probes(&self, uuid: &str) -> Result<agent::WriteStorageProbesResponse, Failure> {
        let guest = self.known_guest(uuid).await?;
        let places = places(&self.shape(&guest).await?.disks)?;
        let (probes, storage) = (self.probes.clone(), self.jobs.storage.clone());
        let written = move || {
            let mut response = agent::WriteStorageProbesResponse::default();
            let real = |image: &Image| Image {
                path: storage.real(&image.path).into_owned(),
                ..image.clone()
            };
            let real: Vec<Image> = places.images.iter().map(real).collect();
            for (image, (path, result)) in places.images.iter().zip(probes.write_all(&real)) {
                match result {
                    Ok(probe) => response.probes.push(convert::probe(named(probe, &image.path))),
                    Err(error) => response.failures.push(failure(&image.path, &path, error.to_string())),
                }
            }
            for path in places.devices {
                match device::look(&path, Path::new(SYS)) {
                    Ok(device) => response.probes.push(convert::device(device)),
                    Err(error) => response.failures.push(failure(&path, &path, error.to_string())),
                }
            }
            response
        };
        blocking(written).await
    }

    pub(super) async fn remove_probes(&self, probes: Vec<agent::StorageProbe>) -> Result<(), Failure> {
        let own = self.probes.clone();
        let removed = blocking(move || {
            let mut files = probes.iter().filter(|probe| !probe.file_name.is_empty());
            files.try_for_each(|probe| own.remove(&probe.file_name))
        });
        removed
            .await?
            .map_err(|error| Failure::new(Reason::ResourceExhausted, error.to_string()))
    }
}

/// The images of all disks and all that lies beneath them, each once.
fn places(disks: &[Disk]) -> Result<Places, Failure> {
    let mut places = Places::default();
    for disk in disks {
        let top = (disk.source_type.as_str(), disk.source.as_str(), disk.read_only);
        let beneath = disk
            .backing
            .iter()
            .map(|layer| (layer.source_type.as_str(), layer.source.as_str(), false));
        for (source_type, source, read_only) in std::iter::once(top).chain(beneath) {
            let path = PathBuf::from(source);
            match source_type {
                _ if source.is_empty() => {}
                "file" => places.images.push(Image { path, read_only }),
                "block" => places.devices.push(path),
                // The controller compares what these say of themselves.
                _ => {}
            }
        }
    }
    places.devices.sort();
    places.devices.dedup();
    // An image that any disk writes to is no read-only one.
    places
        .images
        .sort_by(|a, b| (&a.path, a.read_only).cmp(&(&b.path, b.read_only)));
    places.images.dedup_by(|later, first| later.path == first.path);
    if places.images.len() + places.devices.len() > MOST_PLACES {
        let message = format!("the guest's disks lie in more than {MOST_PLACES} places");
        return Err(Failure::new(Reason::ChecksFailed, message));
    }
    Ok(places)
}

impl AgentServer {
    pub(super) async fn read_probes(
        &self,
        probes: Vec<agent::StorageProbe>,
    ) -> Result<agent::ReadStorageProbesResponse, Failure> {
        if probes.len() > MOST_PLACES {
            return Err(Failure::invalid("probes", format!("at most {MOST_PLACES}")));
        }
        let storage = self.jobs.storage.clone();
        let results = blocking(move || probes.into_iter().map(|probe| read(&storage, probe)).collect()).await?;
        Ok(agent::ReadStorageProbesResponse {
            results,
            rooms: Vec::new(),
        })
    }
}

fn read(storage: &StorageDirectories, message: agent::StorageProbe) -> agent::StorageProbeResult {
    let image_path = message.image_path.clone();
    // Where it lies here.
    let path = if message.destination_image_path.is_empty() {
        PathBuf::from(&image_path)
    } else {
        PathBuf::from(&message.destination_image_path)
    };
    let path = storage.real(&path).into_owned();
    let present = probe::is_present(&path);
    let proof = if message.device_identity.is_empty() {
        let probe = convert::probe_from(message);
        let directory = storage.real(&probe.directory).into_owned();
        let image = path;
        let probe = Probe {
            directory,
            image,
            ..probe
        };
        probe::read(&probe).map_err(|error| error.to_string())
    } else {
        let theirs = Device {
            path,
            identity: message.device_identity,
            size: message.image_size_bytes,
        };
        let compared = device::compare(&theirs, Path::new(SYS));
        compared.map(|()| Proof::Shared).map_err(|error| error.to_string())
    };
    agent::StorageProbeResult {
        image_path,
        present,
        shared: proof == Ok(Proof::Shared),
        same_content: proof == Ok(Proof::SameContent),
        problem: proof.err().unwrap_or_default(),
    }
}

/// The path by which the guest has its image, wherever that leads to here.
fn named(probe: Probe, image: &Path) -> Probe {
    Probe {
        directory: image.parent().map(Path::to_owned).unwrap_or_default(),
        image: image.to_owned(),
        ..probe
    }
}

/// Nothing could be made here that the other side could look for.
fn failure(image: &Path, path: &Path, problem: String) -> agent::StorageProbeResult {
    agent::StorageProbeResult {
        image_path: image.to_string_lossy().into_owned(),
        present: probe::is_present(path),
        problem,
        ..agent::StorageProbeResult::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_xml::Backing;

    fn disk(source_type: &str, source: &str, read_only: bool) -> Disk {
        Disk {
            source_type: source_type.to_owned(),
            source: source.to_owned(),
            read_only,
            ..Disk::default()
        }
    }

    #[test]
    fn every_file_and_device_is_a_place_once() {
        let layered = Disk {
            backing: vec![
                Backing {
                    source_type: "file".to_owned(),
                    source: "/base/b.raw".to_owned(),
                },
                Backing {
                    source_type: "block".to_owned(),
                    source: "/dev/vg/root".to_owned(),
                },
            ],
            ..disk("file", "/d/a.qcow2", false)
        };
        let found = places(&[
            layered,
            disk("file", "/d/a.qcow2", true),
            disk("file", "/iso/a.iso", true),
            disk("block", "/dev/vg/root", false),
            disk("network", "rbd://a/b", false),
            disk("file", "", true),
        ])
        .unwrap();
        let images: Vec<_> = found
            .images
            .iter()
            .map(|image| (image.path.to_str().unwrap(), image.read_only))
            .collect();
        assert_eq!(
            images,
            [("/base/b.raw", false), ("/d/a.qcow2", false), ("/iso/a.iso", true)]
        );
        assert_eq!(found.devices, [PathBuf::from("/dev/vg/root")]);
    }

    #[test]
    fn too_many_places_are_refused() {
        let many: Vec<Disk> = (0..300).map(|at| disk("file", &format!("/d/{at}"), false)).collect();
        assert!(places(&many).is_err());
    }
}
