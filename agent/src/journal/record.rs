//! What an agent durably knows of one migration. Only data, and questions about it.

use std::time::{Duration, SystemTime};

use drover_proto::ids::{Attempt, GuestId, HostId, MigrationId, Ticket};
use drover_proto::overrides::Overrides;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::files::{Coming, Leaving};
use super::limits::Limits;
use super::state::{Decision, DestinationState, SourceState, Verdict};
use crate::hypervisor::{Cookie, GuestState, Incarnation, MigrateFlags};
use crate::images::{CopiedImage, MadeImage};

/// One migration, as one agent has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub migration: MigrationId,
    pub attempt: Attempt,
    pub guest: GuestId,
    /// Given by the journal when the record is made: in which order this host came to know of its migrations, whatever
    /// its clock said.
    #[serde(default)]
    pub serial: u64,
    pub created: SystemTime,
    /// Of the host when the record was made: another one means that the host was started anew since.
    pub boot_id: Uuid,
    /// Of the agent that made the record.
    pub agent_instance: Uuid,
    /// Highest lease of this migration that was obeyed.
    pub lease: u64,
    /// Tries up to this one were undone.
    pub tombstone: Option<Tombstone>,
    pub decision: Decision,
    /// The guest was found to have ended when the verdict was carried out.
    pub guest_ended: bool,
    /// The verdict came from an operator's word that a host was fenced.
    #[serde(default)]
    pub adopted: Option<Adopted>,
    /// When it was closed; swept 30 days later.
    pub closed: Option<SystemTime>,
    pub part: Part,
    /// Left out where the record would not fit.
    pub calls: Vec<Call>,
}

/// An undo was ordered: nothing of these tries may begin any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    pub up_to: Attempt,
    /// For people.
    pub reason: String,
}

/// An operator's word was adopted here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    pub at: SystemTime,
    /// A copy ran here that had lost: the host was not fenced.
    pub copy_ran: bool,
}

/// The agent's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Part {
    /// The undo, or the verdict, came before anything was begun here.
    Nothing,
    Source(Box<SourcePart>),
    Destination(Box<DestinationPart>),
}

/// What the source knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourcePart {
    pub state: SourceState,
    /// The destination.
    pub peer: HostId,
    pub guest_name: String,
    /// Recorded once, before the migration touched anything.
    pub state_before: GuestState,
    /// Whether it ran when last looked at before the migration stopped its CPUs: its user may have paused it since the
    /// beginning. None: as `state_before` says.
    #[serde(default)]
    pub runs: Option<bool>,
    /// Recorded once, before it was cleared.
    pub autostart_before: bool,
    /// As the destination is to have it; `None` for a transient guest.
    pub inactive_xml: Option<String>,
    #[serde(default)]
    pub definition: DefinitionNews,
    /// What is different there: a repeated Begin gives the same definition again.
    #[serde(default)]
    pub overrides: Overrides,
    pub incarnation: Incarnation,
    pub flags: MigrateFlags,
    /// The images that are copied, as they were before anything was begun.
    #[serde(default)]
    pub copied: Vec<CopiedImage>,
    /// Remove them when the migration is closed with the verdict Ran.
    #[serde(default)]
    pub delete_source: bool,
    pub limits: Limits,
    /// This agent stopped the guest: because it ran where no verdict was journaled, or so that its transfer finishes.
    pub suspended_by_agent: bool,
    /// It ran here after it was handed over: its memory is newer than what the destination was sent.
    #[serde(default)]
    pub ran_on: bool,
    /// QEMU was told to go post-copy, or is about to be.
    #[serde(default)]
    pub post_copy_ordered: bool,
    /// Set by StartMigrate.
    pub delivery: Option<Delivery>,
    /// Set where the guest is shut off: `incarnation` means nothing then.
    #[serde(default)]
    pub offline: Option<Leaving>,
}

/// Where the guest goes and by what right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    pub ticket: Ticket,
    /// `host:port` each, best first.
    pub addresses: Vec<String>,
    /// `host:port`; for the hand-over alone, where no other address answers. Empty where it is not known.
    #[serde(default)]
    pub management: String,
}

/// What the destination knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestinationPart {
    pub state: DestinationState,
    /// The source.
    pub peer: HostId,
    pub guest_name: String,
    pub state_before: GuestState,
    /// What the source said when it handed the guest over. None: as `state_before` says.
    #[serde(default)]
    pub runs: Option<bool>,
    pub autostart_before: bool,
    /// `None` for a transient guest.
    pub inactive_xml: Option<String>,
    #[serde(default)]
    pub definition: DefinitionNews,
    pub flags: MigrateFlags,
    /// The images that this migration makes here, written before the first of them is made.
    #[serde(default)]
    pub images: Vec<MadeImage>,
    pub ticket: Ticket,
    /// For Perform; known once Prepare returned.
    pub cookie: Option<Cookie>,
    /// Of the copy that Prepare made.
    pub incarnation: Option<Incarnation>,
    pub arrival: Option<Arrival>,
    /// Set where the guest comes shut off.
    #[serde(default)]
    pub offline: Option<Coming>,
}

/// What became of the persistent definition at the source while the guest was on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DefinitionNews {
    /// It is what was sent.
    #[default]
    AsSent,
    /// Somebody changed or removed it: `inactive_xml` is the newer one, or none.
    Changed,
    /// Somebody changed it, and the newer one cannot be taken over: why.
    NotTaken(String),
}

/// How the guest came to run here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    pub switched: SystemTime,
    /// For Confirm; empty where it did not fit.
    pub cookie: Cookie,
}

/// One call to libvirt, for the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// As in `names::span`: `libvirt.begin`, ….
    pub name: String,
    /// Where it was made.
    pub host: HostId,
    pub started: SystemTime,
    pub duration: Duration,
    /// Empty where it succeeded.
    pub error: String,
}

impl SourcePart {
    /// Whether the guest ran until the migration stopped it.
    pub fn ran(&self) -> bool {
        self.runs.unwrap_or(self.state_before.runs())
    }

    /// Whether CPUs that stood still for more than the last round were stopped by somebody else: not where this agent
    /// stopped them, and not where QEMU may count rounds of its own while they stand still, as it does to slow a guest
    /// down.
    pub fn tells_pauses(&self) -> bool {
        !self.suspended_by_agent && !self.flags.auto_converge && !self.flags.post_copy
    }
}

impl DestinationPart {
    /// Whether the guest is to run here once it has arrived. One that comes shut off is started later, if at all.
    pub fn arrives_running(&self) -> bool {
        self.offline.is_none() && self.runs.unwrap_or(self.state_before.runs())
    }
}

impl Delivery {
    /// Where the destination's agent may be told that the guest is its own, best first.
    pub fn hand_over_addresses(&self) -> Vec<String> {
        let mut addresses = self.addresses.clone();
        if !self.management.is_empty() && !addresses.contains(&self.management) {
            addresses.push(self.management.clone());
        }
        addresses
    }
}

impl Record {
    /// Whether an undo covers this try.
    pub fn is_tombstoned(&self, attempt: Attempt) -> bool {
        self.tombstone
            .as_ref()
            .is_some_and(|tombstone| attempt <= tombstone.up_to)
    }

    pub fn verdict(&self) -> Option<Verdict> {
        self.decision.verdict()
    }

    pub fn source(&self) -> Option<&SourcePart> {
        match &self.part {
            Part::Source(part) => Some(part),
            Part::Destination(_) | Part::Nothing => None,
        }
    }

    pub fn source_mut(&mut self) -> Option<&mut SourcePart> {
        match &mut self.part {
            Part::Source(part) => Some(part),
            Part::Destination(_) | Part::Nothing => None,
        }
    }

    pub fn destination(&self) -> Option<&DestinationPart> {
        match &self.part {
            Part::Destination(part) => Some(part),
            Part::Source(_) | Part::Nothing => None,
        }
    }

    pub fn destination_mut(&mut self) -> Option<&mut DestinationPart> {
        match &mut self.part {
            Part::Destination(part) => Some(part),
            Part::Source(_) | Part::Nothing => None,
        }
    }

    /// Whether the guest moves shut off.
    pub fn is_offline(&self) -> bool {
        match &self.part {
            Part::Source(part) => part.offline.is_some(),
            Part::Destination(part) => part.offline.is_some(),
            Part::Nothing => false,
        }
    }

    /// The life of the guest that this record speaks of.
    pub fn incarnation(&self) -> Option<&Incarnation> {
        match &self.part {
            Part::Source(part) => Some(&part.incarnation),
            Part::Destination(part) => part.incarnation.as_ref(),
            Part::Nothing => None,
        }
    }

    /// Name of the state, for people and for the controller's registry.
    pub fn state_name(&self) -> &'static str {
        match &self.part {
            Part::Nothing => "tombstone",
            Part::Source(part) => match part.state {
                SourceState::Sending => "sending",
                SourceState::HandedOver => "handed-over",
            },
            Part::Destination(part) => match part.state {
                DestinationState::Waiting => "waiting",
                DestinationState::Finishing => "finishing",
                DestinationState::Resuming => "resuming",
                DestinationState::Ran => "ran",
                DestinationState::Revoked => "revoked",
                DestinationState::Failed => "failed",
            },
        }
    }

    /// Whether a new try may take the place of this record: only where the older one is known to be over.
    pub fn is_over_for(&self, attempt: Attempt) -> bool {
        let over = match self.part {
            Part::Nothing => true,
            Part::Source(_) | Part::Destination(_) => {
                self.closed.is_some() && self.decision == Decision::Settled(Verdict::NeverRan)
            }
        };
        over && attempt > self.attempt && !self.is_tombstoned(attempt)
    }
}
