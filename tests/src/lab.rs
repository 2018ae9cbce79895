//! A whole lab: start it, find its hosts, put guests in, and be sure that nothing of it stays.

use crate::domain;
use crate::domain::GuestSpec;
use crate::guardian::{self, Guardian};
use crate::guest::Guest;
use crate::host::Host;
use crate::layout::{GuestRecord, LabRecord, Layout};
use crate::libvirtd;
use crate::network::{self, Network};
use crate::node::{Node, NodeSpec};
use crate::qemu_tls;
use crate::storage;
use crate::watch::Watch;
use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};

/// Address number of the first host on both networks.
pub(crate) const FIRST_HOST: u8 = 11;
/// Address number of the first guest on the guest network.
const FIRST_GUEST: u8 = 101;

#[derive(Debug, Clone)]
struct LabOptions {
    id: Option<String>,
    hosts: Vec<String>,
    nfs: bool,
    listen_tcp: bool,
    keep: bool,
}

/// Says what a lab consists of, then starts it.
#[derive(Debug)]
pub struct LabBuilder {
    options: LabOptions,
}

impl LabBuilder {
    /// `count` hosts: `host-a`, `host-b`, …
    pub fn hosts(mut self, count: u8) -> Self {
        self.options.hosts = (0..count).map(|at| format!("host-{}", char::from(b'a' + at))).collect();
        self
    }

    /// An id of the caller's choice; by default a random one.
    pub fn id(mut self, id: &str) -> Self {
        self.options.id = Some(id.to_string());
        self
    }

    /// With an NFS server, see [`Lab::NFS_SERVER`] and [`crate::Disk::Nfs`].
    pub fn nfs(mut self) -> Self {
        self.options.nfs = true;
        self
    }

    /// libvirtd listens on TCP, which Drover never needs but `virsh migrate --p2p` does.
    pub fn listen_tcp(mut self) -> Self {
        self.options.listen_tcp = true;
        self
    }

    /// The lab outlives this process, until `drover-lab down`.
    pub fn keep(mut self) -> Self {
        self.options.keep = true;
        self
    }

    /// Starts everything and returns when every libvirtd answers.
    pub fn start(self) -> Result<Lab> {
        let random = uuid::Uuid::new_v4().simple().to_string();
        let id = self.options.id.clone().unwrap_or_else(|| random[..6].to_string());
        let layout = Layout::new(&id)?;
        Lab::start(layout, &self.options).with_context(|| format!("starting lab {id}"))
    }
}

/// A running lab. Dropping it removes every trace, as does the death of this process.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    record: LabRecord,
    hosts: Vec<Host>,
    next_guest: u8,
    started_in: Duration,
    guardian: Option<Guardian>,
}

impl Lab {
    /// Name of the NFS server, which every host resolves.
    pub const NFS_SERVER: &'static str = "nfs";
    /// The folder that it exports, by the name that its clients use.
    pub const NFS_FOLDER: &'static str = "/srv/export";

    pub fn builder() -> LabBuilder {
        let options = LabOptions {
            id: None,
            hosts: Vec::new(),
            nfs: false,
            listen_tcp: false,
            keep: false,
        };
        LabBuilder { options }.hosts(2)
    }

    fn start(layout: Layout, options: &LabOptions) -> Result<Lab> {
        let started = Instant::now();
        if options.hosts.is_empty() || options.hosts.len() > 20 {
            bail!("a lab has 1 to 20 hosts");
        }
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab needs root: namespaces, mounts and interfaces are made");
        }
        libvirtd::ensure_agent_user()?;
        guardian::sweep();
        let record = LabRecord {
            id: layout.id().to_string(),
            hosts: options.hosts.clone(),
            nfs: options.nfs,
            listen_tcp: options.listen_tcp,
            ..LabRecord::default()
        };
        guardian::make_folder(&layout, &record)?;
        let guardian = Guardian::start(&layout, options.keep)?;
        // From here on a failure drops the lab, and with it the guardian's pipe.
        let mut lab = Lab::of(layout, record, guardian);
        lab.start_nodes().with_context(|| {
            format!(
                "logs: {} (DROVER_LAB_LOGS=FOLDER saves them)",
                lab.layout.folder().display()
            )
        })?;
        lab.started_in = started.elapsed();
        Ok(lab)
    }

    fn of(layout: Layout, record: LabRecord, guardian: Option<Guardian>) -> Lab {
        let hosts = record
            .hosts
            .iter()
            .zip(FIRST_HOST..)
            .map(|(name, number)| Host::new(&layout, name, number, record.listen_tcp))
            .collect();
        let next_guest = record
            .guests
            .values()
            .map(|guest| guest.number)
            .max()
            .map_or(FIRST_GUEST, |last| last + 1);
        Lab {
            layout,
            record,
            hosts,
            next_guest,
            started_in: Duration::ZERO,
            guardian,
        }
    }

    /// Joins a lab that another process started; dropping the value leaves the lab alone.
    pub fn attach(id: &str) -> Result<Lab> {
        let layout = Layout::new(id)?;
        let record = layout.record()?;
        layout.live_pid("lab").with_context(|| format!("lab {id} is down"))?;
        Ok(Lab::of(layout, record, None))
    }

    fn start_nodes(&self) -> Result<()> {
        if self.record.listen_tcp {
            qemu_tls::make(&self.layout)?;
        }
        for (node, network) in [(self.control(), Network::Management), (self.client(), Network::Guests)] {
            let mut spec = NodeSpec::default();
            spec.fresh.push("/run".into());
            libvirtd::add_identity(&mut spec, &self.layout, node.name(), &uuid::Uuid::new_v4().to_string())?;
            node.start(&spec)?;
            network::make_centre(&node, network)?;
        }
        std::thread::scope(|scope| {
            let mut starts: Vec<_> = self
                .hosts
                .iter()
                .map(|host| scope.spawn(|| host.start_node().and_then(|()| host.start_services())))
                .collect();
            if self.record.nfs {
                starts.push(scope.spawn(|| storage::start_nfs(&self.layout)));
            }
            starts
                .into_iter()
                .try_for_each(|start| start.join().unwrap_or_else(|_| bail!("a start panicked")))
        })?;
        if self.record.nfs && storage::kernel_mounts_nfs() {
            self.hosts.iter().try_for_each(storage::mount_nfs)?;
        }
        Ok(())
    }

    pub fn id(&self) -> &str {
        self.layout.id()
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn record(&self) -> &LabRecord {
        &self.record
    }

    /// How long [`LabBuilder::start`] took.
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// A host by name; panics when there is none, as that is a mistake in the test.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts
            .iter()
            .find(|host| host.name() == name)
            .unwrap_or_else(|| panic!("no host {name} in this lab"))
    }

    /// Where the controller, the command line and collectors run: 10.77.0.1 on the management network.
    pub fn control(&self) -> Node {
        Node::new(&self.layout, Network::Management.centre())
    }

    /// The guests' peer: 10.78.0.1 on the guest network.
    pub fn client(&self) -> Node {
        Node::new(&self.layout, Network::Guests.centre())
    }

    /// Where the NFS server runs, if the lab has one.
    pub fn nfs(&self) -> Node {
        Node::new(&self.layout, Lab::NFS_SERVER)
    }

    /// Defines (or creates, if transient) and starts a guest on a host, and waits until it answers.
    pub fn start_guest(&mut self, host: &str, spec: &GuestSpec) -> Result<Guest> {
        let guest = self.place_guest(host, spec)?;
        guest.wait_until_it_answers().with_context(|| {
            let console = guest.console(self.host(host));
            format!(
                "end of its console: {}",
                console.lines().rev().take(3).collect::<Vec<_>>().join(" / ")
            )
        })?;
        Ok(guest)
    }

    /// Like [`Lab::start_guest`] without the wait, for guests that cannot answer yet.
    pub fn place_guest(&mut self, host: &str, spec: &GuestSpec) -> Result<Guest> {
        let record = GuestRecord {
            uuid: spec.uuid,
            number: self.next_guest,
            autostart: spec.autostart && !spec.transient,
        };
        self.next_guest += 1;
        self.record.guests.insert(spec.name.clone(), record.clone());
        self.layout.write_record(&self.record)?;
        domain::start(self, self.host(host), spec, record.number)?;
        Ok(Guest::new(&spec.name, record, self.client()))
    }

    /// A guest that was started before, maybe by another process.
    pub fn guest(&self, name: &str) -> Result<Guest> {
        let record = self
            .record
            .guests
            .get(name)
            .with_context(|| format!("no guest {name} in lab {}", self.id()))?;
        Ok(Guest::new(name, record.clone(), self.client()))
    }

    /// Starts watching from outside: these guests by ping and TCP session, all guests by their beats.
    pub fn watch(&self, guests: &[&Guest]) -> Result<Watch> {
        Watch::start(self, guests)
    }

    /// Ends the lab now and says if that did not work. Works on kept and attached labs too.
    pub fn down(mut self) -> Result<()> {
        match &mut self.guardian {
            Some(guardian) => guardian.end(),
            None => guardian::remove(&self.layout),
        }
    }

    /// Ends a lab by its id, whoever owns it and whatever is left of it.
    pub fn remove(id: &str) -> Result<()> {
        guardian::remove(&Layout::new(id)?)
    }
}
