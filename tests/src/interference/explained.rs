//! What a record has to say of how a case ended, so that its reader is not left with a riddle. Only decisions.

use anyhow::{Result, ensure};

use super::{Case, Deed, End};
use crate::cluster::Migration;
use crate::faults::Role;

/// The record explains this end: by its error where the move was called off, by its last phase where it arrived.
pub(super) fn explained(case: Case, end: End, record: &Migration) -> Result<()> {
    let says = |words: &str| record.last_detail().contains(words);
    let has_error = !record.reason().is_empty() && !record.message().is_empty();
    let right = match end {
        End::Moved | End::MovedTransient => true,
        End::MovedPaused => says("stands still"),
        // What was changed at the destination is nothing that Drover did.
        End::MovedEdited => case.side == Role::Destination || says("changed at the source"),
        End::Stayed => has_error,
        // By its error where it ended at the source, by Finalize where it had arrived.
        End::Ended => says("ended") && (has_error || record.last_phase() == "FINALIZE"),
        End::BroughtBack => case.deed == Deed::Migrate && says("moved back by hand"),
    };
    ensure!(right, "the record does not explain {end:?}: {}", record.0);
    Ok(())
}
