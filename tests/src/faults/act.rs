//! What breaks, and how it is mended again.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{Cluster, Process};
use crate::{Guest, Network};

/// A side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Source,
    Destination,
}

/// A process that others depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    Controller,
    Agent(Role),
    Libvirtd(Role),
}

/// Something that breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// SIGKILL; a supervisor restarts it after a second.
    Kill(Daemon),
    KillBothAgents,
    KillQemu(Role),
    /// SIGSTOP, and SIGCONT later.
    Stop(Daemon),
    /// Nothing passes between the two hosts.
    Cut,
    /// Nothing that this side sends arrives at the other.
    CutOneWay(Role),
    /// Nothing passes between the controller and this side.
    CutController(Role),
    /// All TCP connections between the hosts are reset.
    Reset,
    /// The controller's disk is full.
    StoreFull,
    /// The disk under this side's journal is full.
    JournalFull(Role),
}

/// How long what does not end by itself lasts.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub stop: Duration,
    /// Cuts and full disks; they end before, when the migration is at rest.
    pub rest: Duration,
}

impl Patience {
    /// Longer than a hand-over is waited for (5 s).
    pub const SHORT: Patience = Patience {
        stop: Duration::from_secs(8),
        rest: Duration::from_secs(10),
    };
    /// Longer than every time limit but the ticket's.
    pub const LONG: Patience = Patience {
        stop: Duration::from_secs(40),
        rest: Duration::from_secs(40),
    };
}

/// A supervisor's pause before it starts a daemon again.
const SUPERVISOR: Duration = Duration::from_secs(1);

impl Act {
    pub fn all() -> Vec<Act> {
        use Role::{Destination, Source};
        let daemons = [
            Daemon::Controller,
            Daemon::Agent(Source),
            Daemon::Agent(Destination),
            Daemon::Libvirtd(Source),
            Daemon::Libvirtd(Destination),
        ];
        let mut all: Vec<Act> = daemons.into_iter().map(Act::Kill).collect();
        all.extend([Act::KillBothAgents, Act::KillQemu(Source), Act::KillQemu(Destination)]);
        all.extend(daemons.into_iter().map(Act::Stop));
        all.extend([Act::Cut, Act::CutOneWay(Source), Act::CutOneWay(Destination)]);
        all.extend([Act::CutController(Source), Act::CutController(Destination), Act::Reset]);
        all.extend([Act::StoreFull, Act::JournalFull(Source), Act::JournalFull(Destination)]);
        all
    }

    /// How long it lasts; none ends at once by itself.
    pub fn lasts(self, patience: Patience) -> Duration {
        match self {
            Act::Kill(_) | Act::KillBothAgents => SUPERVISOR,
            Act::Stop(_) => patience.stop,
            Act::Cut | Act::CutOneWay(_) | Act::CutController(_) | Act::StoreFull | Act::JournalFull(_) => {
                patience.rest
            }
            Act::KillQemu(_) | Act::Reset => Duration::ZERO,
        }
    }

    /// Whether it ends early when the migration is at rest.
    pub fn ends_at_rest(self) -> bool {
        match self {
            Act::Cut | Act::CutOneWay(_) | Act::CutController(_) | Act::StoreFull | Act::JournalFull(_) => true,
            Act::Kill(_) | Act::KillBothAgents | Act::KillQemu(_) | Act::Stop(_) | Act::Reset => false,
        }
    }

    /// Whether the controller answers meanwhile.
    pub fn leaves_controller(self) -> bool {
        !matches!(self, Act::Kill(Daemon::Controller) | Act::Stop(Daemon::Controller))
    }
}

/// The two hosts of a migration, in the roles that they have in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sides<'a> {
    pub(crate) source: &'a str,
    pub(crate) destination: &'a str,
}

impl<'a> Sides<'a> {
    pub(crate) fn host(self, role: Role) -> &'a str {
        match role {
            Role::Source => self.source,
            Role::Destination => self.destination,
        }
    }
}

/// Breaks it.
pub(crate) fn apply(act: Act, cluster: &mut Cluster<'_>, sides: Sides<'_>, guest: &Guest) -> Result<()> {
    let host = |role: Role| cluster.host(sides.host(role));
    match act {
        Act::Kill(Daemon::Controller) => cluster.kill_controller(),
        Act::Kill(Daemon::Agent(role)) => cluster.kill_agent(sides.host(role)),
        Act::Kill(Daemon::Libvirtd(role)) => host(role).kill_libvirtd(),
        Act::KillBothAgents => {
            cluster.kill_agent(sides.source)?;
            cluster.kill_agent(sides.destination)
        }
        Act::KillQemu(role) => cluster.lab().kill_qemu(sides.host(role), guest),
        Act::Stop(daemon) => signal(daemon, Signal::SIGSTOP, cluster, sides),
        Act::Cut => link(cluster, sides.source).separate_from(host(Role::Destination).address()),
        Act::CutOneWay(role) => {
            let (speaker, listener) = match role {
                Role::Source => (sides.source, sides.destination),
                Role::Destination => (sides.destination, sides.source),
            };
            link(cluster, listener).deafen_to(cluster.host(speaker).address())
        }
        Act::CutController(role) => link(cluster, sides.host(role)).separate_from(Network::Management.address(1)),
        Act::Reset => link(cluster, sides.source)
            .reset_connections(host(Role::Destination).address())
            .map(|_| ()),
        Act::StoreFull => cluster.fill_disk(&Process::Controller),
        Act::JournalFull(role) => cluster.fill_disk(&Process::Agent(sides.host(role).to_string())),
    }
}

/// Mends it.
pub(crate) fn heal(act: Act, cluster: &mut Cluster<'_>, sides: Sides<'_>) -> Result<()> {
    match act {
        Act::Kill(Daemon::Controller) => cluster.start_controller(),
        Act::Kill(Daemon::Agent(role)) => cluster.start_agent(sides.host(role)),
        Act::Kill(Daemon::Libvirtd(role)) => cluster.host(sides.host(role)).start_libvirtd(),
        Act::KillBothAgents => {
            cluster.start_agent(sides.source)?;
            cluster.start_agent(sides.destination)
        }
        Act::KillQemu(_) | Act::Reset => Ok(()),
        Act::Stop(daemon) => signal(daemon, Signal::SIGCONT, cluster, sides),
        Act::Cut | Act::CutOneWay(_) | Act::CutController(_) => {
            for host in [sides.source, sides.destination] {
                link(cluster, host).join_again()?;
            }
            Ok(())
        }
        Act::StoreFull => cluster.empty_disk(&Process::Controller),
        Act::JournalFull(role) => cluster.empty_disk(&Process::Agent(sides.host(role).to_string())),
    }
}

fn link<'lab>(cluster: &Cluster<'lab>, host: &str) -> crate::Link<'lab> {
    cluster.host(host).link(Network::Management)
}

fn signal(daemon: Daemon, signal: Signal, cluster: &mut Cluster<'_>, sides: Sides<'_>) -> Result<()> {
    match daemon {
        Daemon::Controller => cluster.controller()?.signal(signal),
        Daemon::Agent(role) => cluster.agent(sides.host(role))?.signal(signal),
        Daemon::Libvirtd(role) => {
            let pid = cluster.host(sides.host(role)).libvirtd_pid()?;
            Ok(kill(Pid::from_raw(pid), signal)?)
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Source => "source",
            Role::Destination => "destination",
        })
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Daemon::Controller => f.write_str("controller"),
            Daemon::Agent(role) => write!(f, "{role} agent"),
            Daemon::Libvirtd(role) => write!(f, "{role} libvirtd"),
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Kill(daemon) => write!(f, "{daemon} killed"),
            Act::KillBothAgents => f.write_str("both agents killed"),
            Act::KillQemu(role) => write!(f, "{role} QEMU killed"),
            Act::Stop(daemon) => write!(f, "{daemon} stopped"),
            Act::Cut => f.write_str("link between the hosts cut"),
            Act::CutOneWay(role) => write!(f, "link from the {role} cut"),
            Act::CutController(role) => write!(f, "link controller to {role} cut"),
            Act::Reset => f.write_str("connections reset"),
            Act::StoreFull => f.write_str("store full"),
            Act::JournalFull(role) => write!(f, "{role} journal full"),
        }
    }
}
