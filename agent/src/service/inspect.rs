//! The questions that change nothing: host, guests, checks.

use drover_proto::agent::v1 as agent;
use drover_proto::failure::{Failure, Reason};
use drover_proto::overrides::{Overrides, Problem};

use super::{AgentServer, convert, images};
use crate::checks::{Candidate, Space, all, look};
use crate::guest_xml::overrides::{Definition, Unfit, apply};
use crate::guest_xml::{self, GuestShape, Unreadable};
use crate::host_cpu;
use crate::hypervisor::{CpuAnswer, CpuQuestion, GuestFacts, HostFacts};
use crate::space;

impl AgentServer {
    pub(super) async fn host_facts(&self) -> Result<agent::HostFacts, Failure> {
        let (facts, space) = (self.jobs.hypervisor.host().await?, self.space().await?);
        Ok(convert::host_facts(&facts, space))
    }

    async fn space(&self) -> Result<Space, Failure> {
        let (state, run) = (self.folders.state.clone(), self.folders.run.clone());
        let look = move || Space {
            state: space::free(&state),
            run: space::free(&run),
        };
        blocking(look).await
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
        let shape = self.shape(&guest).await?;
        let mut facts = convert::guest(&guest, Some(shape.clone()), job_active);
        images::add_sizes(&mut facts, shape.disks.clone()).await?;
        if active {
            facts.block_jobs = self.jobs.hypervisor.block_jobs(guest.id).await?;
        } else {
            images::add_offline_problems(&mut facts, shape, self.jobs.storage.clone()).await?;
        }
        if !overrides.is_empty() {
            convert::add_destination(&mut facts, at_destination(&guest, &overrides)?);
        }
        Ok(facts)
    }

    pub(super) async fn known_guest(&self, uuid: &str) -> Result<GuestFacts, Failure> {
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
        let cpu = self.cpu_fits(&guest, &source, &host).await;
        let boot_files = guest.boot_files.clone();
        let boot_files = blocking(move || look(&boot_files)).await?;
        let candidate = Candidate {
            guest: &guest,
            source: &source,
            policy: request.policy.as_ref(),
            host: &host,
            same_uuid: same_uuid.as_ref(),
            same_name: same_name.as_ref(),
            cpu,
            unfit: self.unfit.as_deref(),
            boot_files,
            space: self.space().await?,
        };
        Ok(agent::CheckIncomingResponse {
            checks: all(&candidate),
        })
    }

    async fn cpu_fits(
        &self,
        guest: &agent::GuestFacts,
        source: &agent::HostFacts,
        host: &HostFacts,
    ) -> Result<CpuAnswer, String> {
        if host_cpu::is_passed_through(&guest.cpu_xml) {
            return Ok(host_cpu::same(&source.cpu_xml, &host.cpu_xml));
        }
        let question = CpuQuestion {
            domain_type: guest.domain_type.clone(),
            arch: guest.arch.clone(),
            machine: guest.machine.clone(),
            cpu_xml: Some(guest.cpu_xml.clone()).filter(|xml| !xml.is_empty()),
        };
        let answer = self.jobs.hypervisor.cpu_fits(&question).await;
        answer.map_err(|error| error.to_string())
    }
}

impl AgentServer {
    /// Of a guest that is shut off with what its disks lie on, which libvirt says only of one that runs.
    pub(super) async fn shape(&self, guest: &GuestFacts) -> Result<GuestShape, Failure> {
        let shape = guest_xml::read(&guest.xml).map_err(unreadable)?;
        if guest.state.is_active() {
            return Ok(shape);
        }
        let (disks, storage) = (shape.disks, self.jobs.storage.clone());
        let disks = blocking(move || images::with_chains(disks, &storage)).await?;
        Ok(GuestShape { disks, ..shape })
    }
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

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::internal(error.to_string()))
}
