//! A place in a migration at which something can go wrong: which phase, on which host, which call, before or after.

use std::fmt;

use drover_agent::offline::calls::FileCall;
use drover_agent::sim::Call;
use drover_controller::saga::Position;
use drover_proto::authorization;

pub use drover_agent::gate::Moment;

/// The host at which a call arrives, or whose hypervisor it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    Source,
    Destination,
}

impl Site {
    pub const BOTH: [Self; 2] = [Self::Source, Self::Destination];

    /// The name of its host in every world.
    pub fn host(self) -> &'static str {
        match self {
            Self::Source => "host-a",
            Self::Destination => "host-b",
        }
    }

    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// A call at a host in a phase. The `nth` time that this happens in a migration, from 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Point {
    /// Name of the position in the saga when the call was made.
    pub phase: &'static str,
    pub site: Site,
    /// As the [gate](drover_agent::gate::Gate) is asked: an RPC's path or a libvirt call's name.
    pub call: String,
    pub nth: u32,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { phase, site, call, nth } = self;
        let call = call.rsplit('/').next().unwrap_or(call);
        write!(f, "{phase}/{}/{call}", site.host())?;
        if *nth > 0 {
            write!(f, "#{nth}")?;
        }
        Ok(())
    }
}

impl Point {
    /// Whether it is an RPC, else a call to the hypervisor.
    pub fn is_rpc(&self) -> bool {
        self.call.starts_with('/')
    }
}

/// Before a migration is created, or after it has come to rest.
pub const NO_PHASE: &str = "none";

/// The phase's name of a position.
pub fn phase_name(position: Option<Position>) -> &'static str {
    position.map_or(NO_PHASE, Position::name)
}

/// Every call there is: all RPCs of an agent, all calls to the hypervisor, and all work with files of guests.
pub fn every_call() -> impl Iterator<Item = String> {
    let rpcs = authorization::TABLE
        .iter()
        .map(|(path, _)| (*path).to_owned())
        .filter(|path| path.starts_with("/drover.agent.v1."));
    let libvirt = Call::ALL.map(|call| call.name().to_owned());
    let files = FileCall::ALL.map(|call| call.name().to_owned());
    rpcs.chain(libvirt).chain(files)
}
