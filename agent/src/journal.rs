//! What the agent durably knows: a record per migration, and the term of the controller in office.
//!
//! - [`state`]: what a record may become (deciding, no I/O)
//! - [`record`], [`files`]: what is in it; [`limits`]: what a transfer keeps to
//! - `encoding`, `slots`: how it lies on disk, torn writes and full disks included
//! - [`store`]: pages, locks, fsync
//! - [`term`]: which controller is obeyed

mod encoding;
pub mod files;
pub mod limits;
pub mod record;
mod slots;
pub mod state;
pub mod store;
pub mod term;

pub use files::{Coming, Leaving, LeavingFile, ShutDown};
pub use limits::{AtDeadline, Limits};
pub use record::{
    Adopted, Arrival, Call, DefinitionNews, Delivery, DestinationPart, Part, Record, SourcePart, Tombstone,
};
pub use state::{Decision, DestinationState, FinishStep, Forbidden, SourceState, Step, Verdict};
pub use store::{Journal, JournalError, OpenPage};
pub use term::{Term, Terms};
