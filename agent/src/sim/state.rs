//! A simulated libvirtd's memory, and what can be done to a guest outside a migration. Nothing here waits.

use std::collections::HashMap;
use std::time::{Instant, SystemTime};

use drover_proto::ids::GuestId;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::config::SimGuest;
use super::domain::{Domain, Phase, Spec};
use super::error;
use super::fault::Script;
use super::watch::Watch;
use crate::gate::Gate;
use crate::guest_xml::HugePages;
use crate::hypervisor::{
    CpuAnswer, GuestEvent, GuestState, Happened, HostFacts, Incarnation, JobStats, MachineTypes, MigrateFlags, Result,
    StopReason, UserFaults,
};

const EVENTS: usize = 1024;

#[derive(Debug)]
pub(super) struct State {
    pub(super) name: String,
    watch: Watch,
    pub(super) events: broadcast::Sender<GuestEvent>,
    pub(super) domains: HashMap<GuestId, Domain>,
    boot_id: Uuid,
    lives: u64,
    next_connection: u64,
    /// Connections with a lower number were to a libvirtd that is gone.
    oldest_connection: u64,
    pub(super) facts: HostFacts,
    pub(super) cpu: CpuAnswer,
    pub(super) script: Script,
    pub(super) gate: Gate,
    off: bool,
}

impl State {
    pub(super) fn new(name: &str, watch: Watch) -> Self {
        let machines = MachineTypes {
            domain_type: "kvm".to_owned(),
            arch: "x86_64".to_owned(),
            names: vec!["pc-q35-10.0".to_owned(), "pc-i440fx-10.0".to_owned()],
        };
        let facts = HostFacts {
            uuid: Uuid::new_v4(),
            hostname: name.to_owned(),
            libvirt_version: 9_000_000,
            qemu_version: 10_000_002,
            arch: "x86_64".to_owned(),
            cpus: 4,
            memory_total: 64 << 30,
            memory_available: 64 << 30,
            machines: vec![machines],
            bridges: vec!["br0".to_owned()],
            huge_pages: vec![HugePages {
                page: 2 << 20,
                total: 1 << 30,
            }],
            numa_nodes: vec![0],
            online_cpus: vec![0, 1, 2, 3],
            lock_manager: Some("none".to_owned()),
            user_faults: UserFaults::Anybody,
            ..HostFacts::default()
        };
        Self {
            name: name.to_owned(),
            watch,
            events: broadcast::Sender::new(EVENTS),
            domains: HashMap::new(),
            boot_id: Uuid::new_v4(),
            lives: 0,
            next_connection: 1,
            oldest_connection: 1,
            facts,
            cpu: CpuAnswer::Fits,
            script: Script::default(),
            gate: Gate::default(),
            off: false,
        }
    }

    /// As a libvirt that is too old for what it is told.
    pub(super) fn knows_parameters(&self, flags: &MigrateFlags) -> Result<()> {
        if flags.detect_zeroes && flags.copied.is_some() && !self.facts.detects_zeroes() {
            return Err(error::unsupported(
                "parameter 'migrate_disks_detect_zeroes' not supported",
            ));
        }
        if flags.zstd && !self.facts.knows_zstd() {
            return Err(error::unsupported("Unsupported compression method 'zstd'"));
        }
        Ok(())
    }

    pub(super) fn boot_id(&self) -> Uuid {
        self.boot_id
    }

    pub(super) fn host_facts(&self) -> HostFacts {
        let used: u64 = self
            .domains
            .values()
            .filter(|copy| copy.state.is_active())
            .map(|copy| copy.spec.memory)
            .sum();
        let memory_available = self.facts.memory_available.saturating_sub(used);
        HostFacts {
            memory_available,
            ..self.facts.clone()
        }
    }

    pub(super) fn tell(&self, guest: GuestId, what: Happened) {
        // Nobody has to listen.
        let _ = self.events.send(GuestEvent {
            guest,
            at: SystemTime::now(),
            instant: Instant::now(),
            what,
        });
    }

    pub(super) fn find(&mut self, guest: GuestId) -> Result<&mut Domain> {
        self.domains.get_mut(&guest).ok_or_else(|| error::no_guest(guest))
    }

    /// Defines a guest and starts it, as the host's user would.
    pub(super) fn add(&mut self, guest: &SimGuest) -> Result<()> {
        let xml = guest.xml();
        let spec = Spec::parse(&xml)?;
        let id = spec.id;
        if self.domains.contains_key(&id) {
            return Err(error::exists(format!("domain {id} already exists")));
        }
        let mut domain = Domain::new(spec, xml.clone(), guest.persistent.then_some(xml));
        domain.autostart = guest.autostart;
        self.domains.insert(id, domain);
        self.start(id, guest.state());
        Ok(())
    }

    /// A QEMU of a new life.
    pub(super) fn start(&mut self, guest: GuestId, state: GuestState) {
        self.lives += 1;
        let life = self.lives;
        let boot_id = self.boot_id;
        if let Some(domain) = self.domains.get_mut(&guest) {
            let qemu_pid = 1000 + u32::try_from(life).unwrap_or(u32::MAX - 1000);
            domain.incarnation = Some(Incarnation {
                boot_id,
                qemu_pid,
                qemu_start_time: life,
            });
            domain.completed = None;
        }
        self.set_state(guest, state);
        self.tell(guest, Happened::Started);
    }

    /// Done when it is active already, as at the seam.
    pub(super) fn start_defined(&mut self, guest: GuestId) -> Result<()> {
        if !self.find(guest)?.state.is_active() {
            self.start(guest, GuestState::Running);
        }
        Ok(())
    }

    /// The only place where a copy's state changes: the watch sees every start and stop.
    pub(super) fn set_state(&mut self, guest: GuestId, state: GuestState) {
        let Some(domain) = self.domains.get_mut(&guest) else {
            return;
        };
        let (ran, runs) = (domain.state.runs(), state.runs());
        domain.state = state;
        let life = domain
            .incarnation
            .as_ref()
            .map_or(0, |incarnation| incarnation.qemu_start_time);
        match (ran, runs) {
            (false, true) => self.watch.started(guest, &self.name, life),
            (true, false) => self.watch.stopped(guest, &self.name, life),
            (true, true) | (false, false) => {}
        }
    }

    /// QEMU is gone, and with it the job and a transient guest.
    pub(super) fn end(&mut self, guest: GuestId, reason: StopReason) {
        self.set_state(guest, GuestState::ShutOff);
        let Some(domain) = self.domains.get_mut(&guest) else {
            return;
        };
        domain.incarnation = None;
        if let Some(job) = domain.job.take() {
            job.cut.cancel();
        }
        if domain.definition.is_none() {
            self.domains.remove(&guest);
        }
        self.tell(guest, Happened::Stopped(reason));
    }

    pub(super) fn resume(&mut self, guest: GuestId) -> Result<()> {
        let domain = self.find(guest)?;
        if domain.state.runs() {
            return Ok(());
        }
        if domain.job.is_some() {
            return Err(error::busy());
        }
        if !domain.state.is_active() || domain.state.is_post_copy() {
            return Err(error::invalid("domain is not running"));
        }
        self.set_state(guest, GuestState::Running);
        self.tell(guest, Happened::Resumed);
        Ok(())
    }

    pub(super) fn suspend(&mut self, guest: GuestId) -> Result<()> {
        let domain = self.find(guest)?;
        if !domain.state.is_active() {
            return Err(error::invalid("domain is not running"));
        }
        if domain.state.runs() {
            // libvirt takes whoever stops a guest that leaves for the migration itself.
            let by_migration = domain.job.is_some();
            let state = if by_migration {
                GuestState::PausedMigrating
            } else {
                GuestState::Paused
            };
            self.set_state(guest, state);
            self.tell(guest, Happened::Suspended { by_migration });
        }
        Ok(())
    }

    /// The guest heeds it at once, or not at all.
    pub(super) fn shut_down(&mut self, guest: GuestId) -> Result<()> {
        let domain = self.find(guest)?;
        if domain.state.runs() && !domain.is_deaf {
            self.end(guest, StopReason::Shutdown);
        }
        Ok(())
    }

    pub(super) fn set_autostart(&mut self, guest: GuestId, autostart: bool) -> Result<()> {
        let domain = self.find(guest)?;
        if domain.definition.is_none() {
            return Err(error::invalid("cannot set autostart for transient domain"));
        }
        if domain.job.is_some() {
            return Err(error::busy());
        }
        domain.autostart = autostart;
        Ok(())
    }

    pub(super) fn define(&mut self, xml: &str) -> Result<()> {
        let spec = Spec::parse(xml)?;
        let id = spec.id;
        self.refuse_other_with_name(&spec.name, id)?;
        let domain = self
            .domains
            .entry(id)
            .or_insert_with(|| Domain::new(spec.clone(), xml.to_owned(), None));
        domain.definition = Some(xml.to_owned());
        if !domain.state.is_active() {
            domain.spec = spec;
        }
        self.tell(id, Happened::Changed);
        Ok(())
    }

    pub(super) fn undefine(&mut self, guest: GuestId) -> Result<()> {
        let Some(domain) = self.domains.get_mut(&guest) else {
            return Ok(());
        };
        if domain.checkpoints > 0 && !domain.state.is_active() {
            return Err(error::invalid("cannot delete inactive domain with checkpoints"));
        }
        domain.definition = None;
        domain.autostart = false;
        if !domain.state.is_active() {
            self.domains.remove(&guest);
        }
        self.tell(guest, Happened::Changed);
        Ok(())
    }

    pub(super) fn refuse_other_with_name(&self, name: &str, guest: GuestId) -> Result<()> {
        match self
            .domains
            .values()
            .find(|domain| domain.spec.name == name && domain.spec.id != guest)
        {
            Some(other) => Err(error::exists(format!(
                "domain '{name}' already exists with uuid {}",
                other.spec.id
            ))),
            None => Ok(()),
        }
    }

    pub(super) fn job(&mut self, guest: GuestId) -> Result<Option<JobStats>> {
        Ok(self.find(guest)?.job.as_ref().map(super::domain::Job::stats))
    }

    pub(super) fn connect(&mut self) -> u64 {
        let connection = self.next_connection;
        self.next_connection += 1;
        connection
    }

    pub(super) fn is_connected(&self, connection: u64) -> bool {
        connection >= self.oldest_connection
    }

    /// libvirtd dies and is started again. What was being sent is cancelled and runs on; what was all sent stays
    /// still ("third party needs to check"); what was waited for is killed.
    pub(super) fn restart_libvirtd(&mut self) {
        self.oldest_connection = self.next_connection;
        let jobs: Vec<_> = self
            .domains
            .iter()
            .filter_map(|(id, copy)| Some((*id, copy.job.as_ref()?.phase)))
            .collect();
        for (guest, phase) in jobs {
            self.let_go(guest, phase);
        }
    }

    /// What libvirt does with a job whose owner is gone.
    pub(super) fn let_go(&mut self, guest: GuestId, phase: Phase) {
        // The memory lies on two hosts: QEMU goes on as it can.
        if matches!(phase, Phase::PostCopy | Phase::Arriving) {
            return;
        }
        if phase.is_incoming() {
            return self.end(guest, StopReason::Destroyed);
        }
        // Post-copy is complete: a libvirtd that starts sees to the end by itself.
        if matches!(phase, Phase::Sent { .. }) && self.is_in_post_copy(guest) {
            return self.end(guest, StopReason::Migrated);
        }
        let Some(job) = self.domains.get_mut(&guest).and_then(|domain| domain.job.take()) else {
            return;
        };
        job.cut.cancel();
        if phase == (Phase::Performing { stopped: true }) {
            self.set_state(guest, GuestState::Running);
            self.tell(guest, Happened::Resumed);
        }
    }

    pub(super) fn is_off(&self) -> bool {
        self.off
    }

    /// The host's power fails.
    pub(super) fn power_off(&mut self) {
        self.off = true;
        self.oldest_connection = self.next_connection;
        let active: Vec<_> = self
            .domains
            .iter()
            .filter(|(_, copy)| copy.state.is_active())
            .map(|(id, _)| *id)
            .collect();
        for guest in active {
            self.end(guest, StopReason::Failed);
        }
    }

    /// The host starts: what has autostart is started anew.
    pub(super) fn power_on(&mut self) {
        if !self.off {
            return;
        }
        self.off = false;
        self.boot_id = Uuid::new_v4();
        let again: Vec<_> = self
            .domains
            .iter()
            .filter(|(_, copy)| copy.autostart)
            .map(|(id, _)| *id)
            .collect();
        for guest in again {
            self.start(guest, GuestState::Running);
        }
    }
}
