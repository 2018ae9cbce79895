//! A world of hosts in memory, as their agents would keep and show it: guests, journals, probe files. Every change is
//! checked for two running copies of one guest.

mod transfer;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use drover_proto::agent::v1::{
    DiskFacts, GuestFacts, Incarnation, InterfaceFacts, JournalRecord, JournalState, LibvirtState, MigrationRef,
    MigrationStatus, PerformOutcome, TransferPolicy,
};
use drover_proto::time::now;
use drover_proto::v1::{
    ActionRecord, CallRecord, DestinationOverrides, MigrationError, Progress, TransferSummary, UnfinishedJournal,
};
use tokio::sync::Semaphore;

pub(crate) const GUEST: &str = "0190a1b2-0000-7000-8000-00000000000a";

#[derive(Default)]
pub(crate) struct Host {
    pub(crate) guests: BTreeMap<String, GuestFacts>,
    pub(crate) journals: HashMap<String, Journal>,
    pub(crate) probes: BTreeSet<String>,
    /// Probe files of these hosts are seen here.
    pub(crate) shares: bool,
    /// Checks that this host fails as a destination.
    pub(crate) lacks: BTreeSet<String>,
    /// Hosts whose agents this one does not reach.
    pub(crate) cut_off_from: BTreeSet<String>,
    pub(crate) highest_term: u64,
    pub(crate) store_instance: String,
}

#[derive(Clone, Default)]
pub(crate) struct Journal {
    pub(crate) record: JournalRecord,
    pub(crate) performing: bool,
    pub(crate) outcome: PerformOutcome,
    pub(crate) in_flight: bool,
    pub(crate) summary: Option<TransferSummary>,
    pub(crate) calls: Vec<CallRecord>,
    /// As ordered last.
    pub(crate) policy: Option<TransferPolicy>,
    /// Dirty rate and link at the start, bytes/s.
    pub(crate) expected: (u64, u64),
    pub(crate) actions: Vec<ActionRecord>,
    pub(crate) error: Option<MigrationError>,
}

/// What an agent does with a call instead of just answering it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The call never arrives.
    LoseRequest,
    /// The call is carried out, its answer is lost.
    LoseAnswer,
    /// The agent refuses.
    Refuse(drover_proto::failure::Reason),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) hosts: BTreeMap<String, Host>,
    /// Method → what happens to its next calls.
    pub(crate) faults: HashMap<String, Vec<Fault>>,
    /// Every call that arrived: host and method.
    pub(crate) calls: Vec<(String, String)>,
    /// Hosts that answer nothing.
    pub(crate) away: BTreeSet<String>,
    /// Source agents hand nothing over by themselves: they died, or do not reach the destination.
    pub(crate) stalled: bool,
    /// Source agents that have sent everything could not write so down.
    pub(crate) unwritten: bool,
    /// What waits at destinations did not get everything.
    pub(crate) incomplete: bool,
    /// An operator has said that a host is fenced: what the hosts show does not have to prove it.
    pub(crate) word: bool,
    /// So often a source copy outlives its removal.
    pub(crate) stubborn: usize,
    /// Source agents do not keep deadlines.
    pub(crate) timeless: bool,
    /// Methods whose calls wait at their arrival.
    pub(crate) held: HashMap<String, Arc<Semaphore>>,
    /// What each BeginOutgoing brought.
    pub(crate) begun_with: Vec<Option<DestinationOverrides>>,
    /// Paths at the destination in the probes that were looked for.
    pub(crate) looked_for: Vec<String>,
    /// Bytes that the guest writes within one second, two, …
    pub(crate) writes: Vec<u64>,
    /// Bytes/s that a measurement finds.
    pub(crate) link: u64,
    /// Versions of libvirt; 9.0.0 where none is said.
    pub(crate) libvirt: HashMap<String, u64>,
    next_pid: u32,
}

#[derive(Clone)]
pub(crate) struct World {
    state: Arc<Mutex<State>>,
    /// Transfers end when they get one of these.
    pub(crate) gate: Arc<Semaphore>,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self {
            state: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
        };
        for host in ["host-1", "host-2"] {
            world.lock().hosts.insert(
                host.to_owned(),
                Host {
                    shares: true,
                    ..Host::default()
                },
            );
        }
        world.start_guest("host-1");
        world
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn start_guest(&self, host: &str) {
        let mut state = self.lock();
        let mut guest = GuestFacts {
            guest_uuid: GUEST.to_owned(),
            name: "web".to_owned(),
            state: LibvirtState::Running.into(),
            persistent: true,
            autostart: true,
            memory_bytes: 512 << 20,
            vcpus: 1,
            domain_type: "kvm".to_owned(),
            arch: "x86_64".to_owned(),
            machine: "pc-q35-10.0".to_owned(),
            disks: vec![DiskFacts {
                target: "vda".to_owned(),
                source_type: "file".to_owned(),
                source: "/shared/web.raw".to_owned(),
                ..DiskFacts::default()
            }],
            interfaces: vec![InterfaceFacts {
                source_type: "bridge".to_owned(),
                source: "br0".to_owned(),
                ..InterfaceFacts::default()
            }],
            ..GuestFacts::default()
        };
        guest.incarnation = Some(state.incarnation());
        state.host(host).guests.insert(GUEST.to_owned(), guest);
    }

    /// Lets the transfers that wait, or one to come, end.
    pub(crate) fn open_gate(&self) {
        self.gate.add_permits(1);
    }

    pub(crate) fn fault(&self, method: &str, fault: Fault) {
        self.lock().faults.entry(method.to_owned()).or_default().push(fault);
    }

    /// Lets calls of a method wait at their arrival until `release`.
    pub(crate) fn hold(&self, method: &str) {
        self.lock().held.insert(method.to_owned(), Arc::new(Semaphore::new(0)));
    }

    pub(crate) fn release(&self, method: &str) {
        if let Some(held) = self.lock().held.remove(method) {
            held.add_permits(1000);
        }
    }

    pub(crate) fn was_called(&self, method: &str) -> usize {
        self.lock().calls.iter().filter(|(_, called)| called == method).count()
    }

    /// Waits until a method was called so often.
    pub(crate) async fn called(&self, method: &str, times: usize) {
        until(&format!("{method} is called"), async || {
            self.was_called(method) >= times
        })
        .await;
    }

    pub(crate) fn guest_state(&self, host: &str) -> Option<LibvirtState> {
        self.lock().hosts[host].guests.get(GUEST).map(GuestFacts::state)
    }

    /// The invariants at rest: one copy, no open journal, no probe file.
    pub(crate) fn assert_clean(&self, owner: &str) {
        let state = self.lock();
        for (name, host) in &state.hosts {
            let running = host
                .guests
                .get(GUEST)
                .is_some_and(|guest| guest.state() == LibvirtState::Running);
            assert_eq!(running, name == owner, "the guest on {name}");
            assert!(
                name == owner || !host.guests.contains_key(GUEST),
                "something is left on {name}"
            );
            assert!(host.probes.is_empty(), "probe files are left on {name}");
            for journal in host.journals.values() {
                assert!(
                    journal.record.closed,
                    "a journal is open on {name}: {:?}",
                    journal.record
                );
            }
        }
        let autostart = state.hosts[owner].guests[GUEST].autostart;
        assert!(autostart, "autostart was lost");
    }
}

impl State {
    pub(crate) fn host(&mut self, host: &str) -> &mut Host {
        self.hosts.get_mut(host).expect("a host of this world")
    }

    pub(crate) fn incarnation(&mut self) -> Incarnation {
        self.next_pid += 1;
        Incarnation {
            boot_id: "0190a1b2-0000-7000-8000-0000000000b0".to_owned(),
            qemu_pid: self.next_pid,
            qemu_start_time: 1,
        }
    }

    /// The journal of the other side of a migration.
    pub(crate) fn other_side(&self, host: &str, id: &str) -> Option<&JournalRecord> {
        let others = self.hosts.iter().filter(|(name, _)| name.as_str() != host);
        others
            .filter_map(|(_, other)| other.journals.get(id))
            .map(|journal| &journal.record)
            .next()
    }

    pub(crate) fn assert_one_runs(&self) {
        let runs = |host: &&Host| {
            host.guests
                .get(GUEST)
                .is_some_and(|guest| guest.state() == LibvirtState::Running)
        };
        assert!(self.hosts.values().filter(runs).count() <= 1, "two copies run");
    }

    pub(crate) fn status(&self, host: &str, reference: &MigrationRef) -> MigrationStatus {
        let host = &self.hosts[host];
        let guest = host.guests.get(&reference.guest_uuid).cloned();
        let Some(journal) = host.journals.get(&reference.migration_id) else {
            return MigrationStatus {
                guest,
                ..MigrationStatus::default()
            };
        };
        let same = guest
            .as_ref()
            .is_some_and(|guest| guest.incarnation == journal.record.incarnation);
        MigrationStatus {
            journal: Some(journal.record.clone()),
            same_incarnation: same && journal.record.incarnation.is_some(),
            guest,
            call_in_flight: journal.in_flight,
            performing: journal.performing,
            perform_outcome: journal.outcome.into(),
            stream_complete: journal.record.state() == JournalState::Waiting && !self.incomplete,
            summary: journal.summary,
            calls: journal.calls.clone(),
            progress: journal.performing.then(progress),
            policy: journal.policy,
            actions: journal.actions.clone(),
            error: journal.error.clone(),
            ..MigrationStatus::default()
        }
    }

    /// The journals of a host that are not closed, as its agent tells them.
    pub(crate) fn unfinished(&self, host: &str) -> Vec<UnfinishedJournal> {
        let open = self.hosts[host]
            .journals
            .iter()
            .filter(|(_, journal)| !journal.record.closed);
        let told = open.map(|(id, Journal { record, .. })| {
            let own = format!("hosts/{host}");
            let (state, source_host, destination_host) = match record.state() {
                JournalState::Sending => ("sending", own, record.peer_host.clone()),
                JournalState::HandedOver => ("handed-over", own, record.peer_host.clone()),
                JournalState::Waiting => ("waiting", record.peer_host.clone(), own),
                JournalState::Ran => ("ran", record.peer_host.clone(), own),
                JournalState::Unspecified
                | JournalState::Finishing
                | JournalState::Resuming
                | JournalState::Revoked
                | JournalState::Failed => ("other", record.peer_host.clone(), own),
            };
            UnfinishedJournal {
                migration: format!("migrations/{id}"),
                guest_uuid: GUEST.to_owned(),
                source_host,
                destination_host,
                journal_state: state.to_owned(),
                attempt: 1,
            }
        });
        told.collect()
    }
}

pub(crate) fn progress() -> Progress {
    Progress {
        time: Some(now()),
        iteration: 1,
        memory_total_bytes: 512 << 20,
        ..Progress::default()
    }
}

/// Waits for something that must come true. Not for so long that a migration that looks by itself, in the end every 30
/// seconds, has looked three times: by that it is seen that a sign of life makes it look.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(80), wait)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"));
}
