//! What can go wrong at a point.

use std::fmt;
use std::time::Duration;

use super::point::{Moment, Site};

/// A fault, or somebody's wish at a bad moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// The call is refused and does nothing.
    Refused,
    /// It is done, and its answer is lost.
    AnswerLost,
    AgentDies(Site),
    BothAgentsDie,
    ControllerDies,
    /// Both agents and the controller at once.
    AllDie,
    HostReboots(Site),
    LibvirtdRestarts(Site),
    /// Between the two hosts.
    AgentsCut,
    /// Between the controller and one host.
    ControllerCut(Site),
    /// Between the controller and both hosts.
    ControllerAlone,
    /// A user cancels the migration.
    Cancel,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 16] = [
        Self::Refused,
        Self::AnswerLost,
        Self::AgentDies(Site::Source),
        Self::AgentDies(Site::Destination),
        Self::BothAgentsDie,
        Self::ControllerDies,
        Self::AllDie,
        Self::HostReboots(Site::Source),
        Self::HostReboots(Site::Destination),
        Self::LibvirtdRestarts(Site::Source),
        Self::LibvirtdRestarts(Site::Destination),
        Self::AgentsCut,
        Self::ControllerCut(Site::Source),
        Self::ControllerCut(Site::Destination),
        Self::ControllerAlone,
        Self::Cancel,
    ];

    /// Whether it makes sense at this moment of a call.
    pub fn fits(self, moment: Moment) -> bool {
        match self {
            Self::Refused => moment == Moment::Before,
            Self::AnswerLost => moment == Moment::After,
            Self::AgentDies(_)
            | Self::BothAgentsDie
            | Self::ControllerDies
            | Self::AllDie
            | Self::HostReboots(_)
            | Self::LibvirtdRestarts(_)
            | Self::AgentsCut
            | Self::ControllerCut(_)
            | Self::ControllerAlone
            | Self::Cancel => true,
        }
    }

    /// Whether it is a link that breaks.
    pub fn is_a_cut(self) -> bool {
        matches!(self, Self::AgentsCut | Self::ControllerCut(_) | Self::ControllerAlone)
    }

    /// The host whose power failed.
    pub fn rebooted(self) -> Option<Site> {
        match self {
            Self::HostReboots(site) => Some(site),
            Self::Refused
            | Self::AnswerLost
            | Self::AgentDies(_)
            | Self::BothAgentsDie
            | Self::ControllerDies
            | Self::AllDie
            | Self::LibvirtdRestarts(_)
            | Self::AgentsCut
            | Self::ControllerCut(_)
            | Self::ControllerAlone
            | Self::Cancel => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::AnswerLost => f.write_str("answer lost"),
            Self::AgentDies(site) => write!(f, "agent of {} dies", site.host()),
            Self::BothAgentsDie => f.write_str("both agents die"),
            Self::ControllerDies => f.write_str("controller dies"),
            Self::AllDie => f.write_str("all processes die"),
            Self::HostReboots(site) => write!(f, "{} reboots", site.host()),
            Self::LibvirtdRestarts(site) => write!(f, "libvirtd of {} restarts", site.host()),
            Self::AgentsCut => f.write_str("agents cut"),
            Self::ControllerCut(site) => write!(f, "controller cut from {}", site.host()),
            Self::ControllerAlone => f.write_str("controller cut from both"),
            Self::Cancel => f.write_str("cancel"),
        }
    }
}

/// How long it lasts, where it lasts.
pub type Outage = Duration;

/// What everything is back after, unless a plan says otherwise: longer than a first repeat, shorter than patience.
pub const SHORT: Outage = Duration::from_millis(80);
