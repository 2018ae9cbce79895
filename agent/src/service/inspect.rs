//! The questions that change nothing: host, guests, checks; and the storage probes.

use std::time::Duration;

use drover_proto::agent::v1 as agent;
use drover_proto::failure::{Failure, Reason};
use drover_proto::overrides::{Overrides, Problem};

use super::{AgentServer, convert};
use crate::checks::{Candidate, all};
use crate::guest_xml::overrides::{Definition, Unfit, apply};
use crate::guest_xml::{self, GuestShape, Unreadable};
use crate::hypervisor::{CpuQuestion, GuestFacts};
use crate::probe::{self, ProbeError, Probes};

impl AgentServer {
    pub(super) async fn host_facts(&self) -> Result<agent::HostFacts, Failure> {
        Ok(convert::host_facts(&self.jobs.hypervisor.host().await?))
    }

    pub(super) async fn all_guests(&self) -> Result<agent::ListGuestsResponse, Failure> {
        let mut guests = self.jobs.hypervisor.guests().await?;
        guests.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(agent::ListGuestsResponse {
            guests: guests.iter().map(|guest| convert::guest(guest, None, false)).collect(),
        })
    }

    pub(super) async fn one_guest(&self, request: &agent::InspectGuestRequest) -> Result<agent::GuestFacts, Failure> {
        let overrides = convert::overrides(request.destination_overrides.as_ref())?;
        let guest = self.known_guest(&request.guest_uuid).await?;
        let active = guest.state.is_active();
        let job_active = active && self.jobs.hypervisor.job(guest.id).await?.is_some();
        let shape = shape(&guest)?;
        let mut facts = convert::guest(&guest, Some(shape), job_active);
        if !overrides.is_empty() {
            convert::add_destination(&mut facts, at_destination(&guest, &overrides)?);
        }
        Ok(facts)
    }

    async fn known_guest(&self, uuid: &str) -> Result<GuestFacts, Failure> {
        let id = convert::guest_id("guest_uuid", uuid)?;
        let unknown = || Failure::new(Reason::GuestNotFound, format!("libvirt does not know guest {id}"));
        let found = self.jobs.hypervisor.guest(id).await?;
        found.ok_or_else(|| unknown().at_host(self.jobs.host.clone()))
    }

    pub(super) async fn checks(
        &self,
        request: agent::CheckIncomingRequest,
    ) -> Result<agent::CheckIncomingResponse, Failure> {
        let guest = request.guest.ok_or_else(|| Failure::invalid("guest", "is required"))?;
        let source = request
            .source
            .ok_or_else(|| Failure::invalid("source", "is required"))?;
        let id = convert::guest_id("guest.guest_uuid", &guest.guest_uuid)?;
        let hypervisor = &self.jobs.hypervisor;
        let host = hypervisor.host().await?;
        let same_uuid = hypervisor.guest(id).await?;
        let same_name = hypervisor.guest_by_name(&guest.name).await?;
        let question = CpuQuestion {
            domain_type: guest.domain_type.clone(),
            arch: guest.arch.clone(),
            machine: guest.machine.clone(),
            cpu_xml: Some(guest.cpu_xml.clone()).filter(|xml| !xml.is_empty()),
        };
        let cpu = hypervisor.cpu_fits(&question).await.map_err(|error| error.to_string());
        let candidate = Candidate {
            guest: &guest,
            source: &source,
            host: &host,
            same_uuid: same_uuid.as_ref(),
            same_name: same_name.as_ref(),
            cpu,
            unfit: self.unfit.as_deref(),
        };
        Ok(agent::CheckIncomingResponse {
            checks: all(&candidate),
        })
    }

    pub(super) async fn write_probes(&self, uuid: &str) -> Result<agent::WriteStorageProbesResponse, Failure> {
        let guest = self.known_guest(uuid).await?;
        let disks = shape(&guest)?.disks.into_iter();
        let images: Vec<_> = disks
            .filter(|disk| disk.source_type == "file" && !disk.source.is_empty())
            .map(|disk| disk.source)
            .collect();
        let (probes, life) = (self.probes.clone(), self.jobs.limits.probe);
        let write = move |image: String| {
            let written = probes.write(image.as_ref());
            if let Ok(probe) = &written {
                expire(&probes, probe.file_name.clone(), life);
            }
            (written, image)
        };
        let written = blocking(move || images.into_iter().map(write).collect::<Vec<_>>());
        let mut response = agent::WriteStorageProbesResponse::default();
        for (result, image) in written.await? {
            match result {
                Ok(probe) => response.probes.push(convert::probe(probe)),
                Err(error) => response.failures.push(result_of(image, Err(error))),
            }
        }
        Ok(response)
    }

    pub(super) async fn remove_probes(&self, probes: Vec<agent::StorageProbe>) -> Result<(), Failure> {
        let own = self.probes.clone();
        let removed = blocking(move || probes.iter().try_for_each(|probe| own.remove(&probe.file_name))).await?;
        removed.map_err(|error| Failure::new(Reason::ResourceExhausted, error.to_string()))
    }
}

/// Whoever asked may be gone, or may never have got the names: then nobody else removes it.
fn expire(probes: &Probes, file_name: String, life: Duration) {
    let probes = probes.clone();
    tokio::spawn(async move {
        tokio::time::sleep(life).await;
        if let Ok(Err(error)) = blocking(move || probes.remove(&file_name)).await {
            tracing::warn!(%error, "a probe file stays until the next start");
        }
    });
}

pub(super) async fn read_probes(probes: Vec<agent::StorageProbe>) -> Result<agent::ReadStorageProbesResponse, Failure> {
    let read = |message: agent::StorageProbe| {
        let image = message.image_path.clone();
        result_of(image, probe::read(&convert::probe_from(message)))
    };
    let results = blocking(move || probes.into_iter().map(read).collect()).await?;
    Ok(agent::ReadStorageProbesResponse { results })
}

fn result_of(image_path: String, result: Result<(), ProbeError>) -> agent::StorageProbeResult {
    let problem = result.err().map(|error| error.to_string());
    agent::StorageProbeResult {
        image_path,
        shared: problem.is_none(),
        problem: problem.unwrap_or_default(),
    }
}

fn shape(guest: &GuestFacts) -> Result<GuestShape, Failure> {
    guest_xml::read(&guest.xml).map_err(unreadable)
}

// By value, so that it can be named in `map_err`.
#[allow(clippy::needless_pass_by_value)]
fn unreadable(error: Unreadable) -> Failure {
    Failure::new(Reason::LibvirtFailed, error.to_string())
}

/// The guest as it would be at the destination, or what of the overrides does not fit it. Nothing is changed.
fn at_destination(guest: &GuestFacts, overrides: &Overrides) -> Result<Result<GuestShape, Vec<Problem>>, Failure> {
    let persistent = guest.inactive_xml.as_deref().unwrap_or("<domain/>");
    let adapted = apply(persistent, overrides, Definition::Persistent)
        .and_then(|_| apply(&guest.xml, overrides, Definition::Live));
    match adapted {
        Ok(xml) => guest_xml::read(&xml).map(Ok).map_err(unreadable),
        Err(Unfit::Problems(problems)) => Ok(Err(problems)),
        Err(Unfit::Unreadable(error)) => Err(unreadable(error)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::internal(error.to_string()))
}
