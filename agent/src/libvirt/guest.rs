//! What libvirt and the kernel know of a guest, and the few things done to one outside a migration. All block.

use std::sync::Arc;

use super::process::Processes;
use super::raw::{Connection, Domain, own_error};
use super::{states, stats};
use crate::guest_xml;
use crate::hypervisor::{ErrorClass, GuestFacts, GuestState, HypervisorError, Incarnation, JobStats, Result};

/// Keep what belongs to the user. A saved memory image, snapshots or checkpoints are refused by libvirt, because no flag
/// that would delete them is given.
const UNDEFINE: u32 = virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM;

/// All facts. `None` where the guest went away while we looked.
pub(super) fn read(domain: &Domain, processes: &Processes) -> Result<Option<GuestFacts>> {
    match read_all(domain, processes) {
        Ok(facts) => Ok(Some(facts)),
        Err(HypervisorError {
            class: ErrorClass::NoGuest,
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn read_every(connection: &Arc<Connection>) -> Result<Vec<GuestFacts>> {
    let domains = Domain::all(connection)?;
    let processes = Processes::look()?;
    domains
        .iter()
        .filter_map(|domain| read(domain, &processes).transpose())
        .collect()
}

fn read_all(domain: &Domain, processes: &Processes) -> Result<GuestFacts> {
    let id = domain.id()?;
    let persistent = domain.is_persistent()?;
    let size = domain.size()?;
    let inactive = virt_sys::VIR_DOMAIN_XML_SECURE | virt_sys::VIR_DOMAIN_XML_INACTIVE;
    let inactive_xml = if persistent { Some(domain.xml(inactive)?) } else { None };
    // libvirt keeps the flag of persistent guests only.
    let autostart = persistent && domain.autostart()?;
    let (xml, snapshots, checkpoints) = (domain.xml(0)?, domain.snapshots()?, domain.checkpoints()?);
    let (state, incarnation) = state_and_life(domain, processes)?;
    Ok(GuestFacts {
        id,
        name: domain.name(),
        state,
        persistent,
        autostart,
        xml,
        inactive_xml,
        memory: size.memory,
        vcpus: size.vcpus,
        snapshots,
        checkpoints,
        managed_save: domain.has_managed_save()?,
        incarnation,
    })
}

/// The state, and the process that it is the state of: between the two questions the guest may have changed.
fn state_and_life(domain: &Domain, processes: &Processes) -> Result<(GuestState, Option<Incarnation>)> {
    let guest = domain.id()?;
    let mut life = processes.incarnation(guest)?;
    for _ in 0..3 {
        let state = state(domain)?;
        if state.is_active() == life.is_some() {
            return Ok((state, life));
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        life = Processes::look()?.incarnation(guest)?;
    }
    let state = state(domain)?;
    match (state.is_active(), life) {
        (false, _) => Ok((state, None)),
        (true, Some(life)) => Ok((state, Some(life))),
        (true, None) => {
            let message = format!(
                "libvirt says that guest {guest} is active, but no process with its -uuid can be seen: \
                 the agent has to run in libvirtd's pid namespace and see its /proc"
            );
            Err(own_error(ErrorClass::Unavailable, "NO_PROCESS", message))
        }
    }
}

pub(super) fn state(domain: &Domain) -> Result<GuestState> {
    let (state, reason) = domain.state()?;
    states::guest_state(state, reason)
}

/// The job that runs now.
pub(super) fn job(domain: &Domain) -> Result<Option<JobStats>> {
    let (kind, values) = match domain.job_stats(0) {
        // libvirt refuses the question for a guest that is shut off: it has no job.
        Err(error) if error.class == ErrorClass::UserMustAct => return Ok(None),
        answer => answer?,
    };
    let running = matches!(
        kind,
        virt_sys::VIR_DOMAIN_JOB_BOUNDED | virt_sys::VIR_DOMAIN_JOB_UNBOUNDED
    );
    Ok(running.then(|| stats::job_stats(&values)))
}

/// Targets of the disks that a block job runs on.
pub(super) fn block_jobs(domain: &Domain) -> Result<Vec<String>> {
    let shape = guest_xml::read(&domain.xml(0)?)
        .map_err(|error| own_error(ErrorClass::Unavailable, "DOMAIN_XML", error.to_string()))?;
    let mut busy = Vec::new();
    for disk in shape.disks {
        if domain.block_job(&disk.target)?.is_some() {
            busy.push(disk.target);
        }
    }
    Ok(busy)
}

/// The job that completed last, as long as libvirt remembers it. Reading does not make it forget.
pub(super) fn completed_job(domain: &Domain) -> Result<Option<JobStats>> {
    let flags = virt_sys::VIR_DOMAIN_JOB_STATS_COMPLETED | virt_sys::VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED;
    let (kind, values) = domain.job_stats(flags)?;
    Ok((kind == virt_sys::VIR_DOMAIN_JOB_COMPLETED).then(|| stats::job_stats(&values)))
}

/// Starts what is only defined; done when it is active already.
pub(super) fn start(domain: &Domain) -> Result<()> {
    domain.start().or_else(|error| match state(domain) {
        Ok(state) if state.is_active() => Ok(()),
        Ok(_) | Err(_) => Err(error),
    })
}

/// Asks it to shut itself down; done when it is off already.
pub(super) fn shut_down(domain: &Domain) -> Result<()> {
    domain.shut_down().or_else(|error| match state(domain) {
        Ok(state) if !state.is_active() => Ok(()),
        Ok(_) | Err(_) => Err(error),
    })
}

/// Stops the CPUs; done when they are still already.
pub(super) fn suspend(domain: &Domain) -> Result<()> {
    domain.suspend().or_else(|error| match state(domain) {
        Ok(state) if !state.runs() => Ok(()),
        Ok(_) | Err(_) => Err(error),
    })
}

/// Lets the CPUs run; done when they do already.
pub(super) fn resume(domain: &Domain) -> Result<()> {
    domain.resume().or_else(|error| match state(domain) {
        Ok(state) if state.runs() => Ok(()),
        Ok(_) | Err(_) => Err(error),
    })
}

/// Forgets the definition; absent is done.
pub(super) fn undefine(domain: &Domain) -> Result<()> {
    match domain.is_persistent() {
        Ok(false)
        | Err(HypervisorError {
            class: ErrorClass::NoGuest,
            ..
        }) => return Ok(()),
        Ok(true) => {}
        Err(error) => return Err(error),
    }
    match domain.undefine(UNDEFINE) {
        Err(HypervisorError {
            class: ErrorClass::NoGuest,
            ..
        }) => Ok(()),
        answer => answer,
    }
}
