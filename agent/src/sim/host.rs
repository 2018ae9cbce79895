//! One simulated host: what its user, its power supply and a test can do to it.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_proto::ids::GuestId;
use tokio::time::sleep;
use uuid::Uuid;

use super::config::SimGuest;
use super::domain::Phase;
use super::error;
use super::fault::{Call, Fault};
use super::state::State;
use super::watch::Watch;
use crate::gate::{Gate, Moment, Pass};
use crate::hypervisor::{CpuAnswer, GuestFacts, HostFacts, Result, StopReason};

/// A host with its libvirtd and its guests. Cheap to clone; all clones are the same host.
#[derive(Clone, Debug)]
pub struct SimHost {
    state: Arc<Mutex<State>>,
}

impl SimHost {
    pub(super) fn new(name: &str, watch: Watch) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::new(name, watch))),
        }
    }

    /// Nothing that holds it panics half-way through a change, and nothing waits while it holds it.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call, with the fault that is planted for it.
    pub(super) async fn call<T>(&self, call: Call, work: impl Future<Output = Result<T>>) -> Result<T> {
        let (fault, gate) = {
            let mut state = self.lock();
            (state.script.take(call), state.gate.clone())
        };
        match gate.ask(call.name(), Moment::Before).await {
            Pass::Go => {}
            Pass::Refuse => return Err(error::scripted()),
            Pass::Lose => return Err(error::answer_lost()),
        }
        if self.lock().is_off() {
            return Err(error::disconnected());
        }
        let answer = self.with_fault(fault, work).await;
        match gate.ask(call.name(), Moment::After).await {
            Pass::Go if !self.lock().is_off() => answer,
            // A handle in the lost answer goes with its connection.
            Pass::Go | Pass::Refuse | Pass::Lose => Err(error::answer_lost()),
        }
    }

    async fn with_fault<T>(&self, fault: Option<Fault>, work: impl Future<Output = Result<T>>) -> Result<T> {
        match fault {
            None => work.await,
            Some(Fault::Refuse) => Err(error::scripted()),
            Some(Fault::LoseAnswer) => {
                // A handle in the lost answer goes with its connection.
                drop(work.await);
                Err(error::answer_lost())
            }
            Some(Fault::Delay(time)) => {
                sleep(time).await;
                work.await
            }
            Some(Fault::Until(token)) => {
                token.cancelled().await;
                work.await
            }
            Some(Fault::AnswerAfter(token)) => {
                let answer = work.await;
                token.cancelled().await;
                answer
            }
            Some(Fault::Panic) => panic!("the simulation's script wanted it so"),
            Some(Fault::Die) => {
                self.restart_libvirtd();
                Err(error::disconnected())
            }
        }
    }

    /// Plants a fault for the next call of this kind; several are met in turn.
    pub fn script(&self, call: Call, fault: Fault) {
        self.lock().script.plant(call, fault);
    }

    /// Who is asked at every call from now on.
    pub fn set_gate(&self, gate: Gate) {
        self.lock().gate = gate;
    }

    /// Defines and starts a guest.
    pub fn add(&self, guest: &SimGuest) -> Result<()> {
        self.lock().add(guest)
    }

    /// The guest as libvirt has it, without waiting and without faults.
    pub fn look(&self, guest: GuestId) -> Option<GuestFacts> {
        self.lock().domains.get(&guest).map(super::domain::Domain::facts)
    }

    /// Whether the guest's job lock is held.
    pub fn has_job(&self, guest: GuestId) -> bool {
        self.lock()
            .domains
            .get(&guest)
            .is_some_and(|domain| domain.job.is_some())
    }

    /// In post-copy the source will not hear that every page has arrived here.
    pub fn lose_last_word(&self, guest: GuestId) {
        if let Ok(domain) = self.lock().find(guest) {
            domain.loses_last_word = true;
        }
    }

    /// Whether all of the guest was sent, and libvirt waits to be told how that came out.
    pub fn is_sent(&self, guest: GuestId) -> bool {
        let state = self.lock();
        let job = state.domains.get(&guest).and_then(|domain| domain.job.as_ref());
        job.is_some_and(|job| matches!(job.phase, Phase::Sent { .. }))
    }

    /// The longest blackout that QEMU may choose for the guest's migration now.
    pub fn max_downtime(&self, guest: GuestId) -> Option<Duration> {
        let state = self.lock();
        Some(state.domains.get(&guest)?.job.as_ref()?.limits.max_downtime)
    }

    /// The guest shuts itself down.
    pub fn shut_down(&self, guest: GuestId) {
        self.lock().end(guest, StopReason::Shutdown);
    }

    /// Somebody destroys the guest, or its QEMU is killed.
    pub fn kill(&self, guest: GuestId, reason: StopReason) {
        self.lock().end(guest, reason);
    }

    /// Takes snapshots, which forbid a migration.
    pub fn set_snapshots(&self, guest: GuestId, snapshots: u32) {
        if let Ok(domain) = self.lock().find(guest) {
            domain.snapshots = snapshots;
        }
    }

    /// Makes checkpoints, as tools do that make backups.
    pub fn set_checkpoints(&self, guest: GuestId, checkpoints: u32) {
        if let Ok(domain) = self.lock().find(guest) {
            domain.checkpoints = checkpoints;
        }
    }

    /// libvirt keeps its memory, or does not.
    pub fn set_managed_save(&self, guest: GuestId, saved: bool) {
        if let Ok(domain) = self.lock().find(guest) {
            domain.managed_save = saved;
        }
    }

    /// The guest heeds its power button, or does not.
    pub fn set_deaf(&self, guest: GuestId, deaf: bool) {
        if let Ok(domain) = self.lock().find(guest) {
            domain.is_deaf = deaf;
        }
    }

    /// Starts a block job on a disk, which forbids a migration.
    pub fn start_block_job(&self, guest: GuestId, target: &str) {
        if let Ok(domain) = self.lock().find(guest) {
            domain.block_jobs.push(target.to_owned());
        }
    }

    /// libvirtd dies and is started again: guests stay, connections and jobs go.
    pub fn restart_libvirtd(&self) {
        self.lock().restart_libvirtd();
    }

    /// The host's power fails and comes back.
    pub fn reboot(&self) {
        let mut state = self.lock();
        state.power_off();
        state.power_on();
    }

    /// The host's power fails: guests end, no call is answered any more.
    pub fn power_off(&self) {
        self.lock().power_off();
    }

    /// Whether the power is off.
    pub fn is_off(&self) -> bool {
        self.lock().is_off()
    }

    /// The host starts: what has autostart is started anew.
    pub fn power_on(&self) {
        self.lock().power_on();
    }

    /// Changes with every reboot.
    pub fn boot_id(&self) -> Uuid {
        self.lock().boot_id()
    }

    /// Changes what the host says of itself; `memory_available` is what is free without any guest.
    pub fn set_facts(&self, change: impl FnOnce(&mut HostFacts)) {
        change(&mut self.lock().facts);
    }

    /// What every question about a CPU is answered with.
    pub fn set_cpu_answer(&self, answer: CpuAnswer) {
        self.lock().cpu = answer;
    }
}
