//! Who has the guest while it is sent or given back, asked of both hosts now: what the record says may be some seconds
//! old, and in the meantime the guest may have switched.

use std::time::Duration;

use super::{Work, look};
use crate::verdict::{Judgement, Seen, Side, Source, SourceCopy, SourceJournal};

/// Whoever asks does not wait longer for a host that is silent.
const PATIENCE: Duration = Duration::from_secs(3);

/// `None`: nobody can say now.
pub async fn owner(work: &Work) -> Option<Side> {
    // What ran there once never goes back.
    if work.record.guest_host.as_ref() == Some(&work.record.destination) {
        return Some(Side::Destination);
    }
    let look = tokio::time::timeout(PATIENCE, look::both(work)).await.ok()?;
    match look.judgement() {
        Judgement::Ran => Some(Side::Destination),
        // Somebody's word alone does not make the guest run there.
        Judgement::NeverRan if work.is_fenced(Side::Destination) && !look.is_settled_at_source() => None,
        Judgement::NeverRan => Some(Side::Source),
        Judgement::Open(_) => is_still_there(look.seen_source()).then_some(Side::Source),
    }
}

/// Nothing was handed over, and the source says so itself.
fn is_still_there(source: Seen<Source>) -> bool {
    let Seen::Journal(seen) = source else {
        return false;
    };
    let not_handed_over = match seen.journal {
        SourceJournal::NotBegun | SourceJournal::Sending => true,
        SourceJournal::HandedOver | SourceJournal::RanOn => false,
    };
    let there = match seen.copy {
        SourceCopy::AsBefore(_) | SourceCopy::AllSent => true,
        SourceCopy::PostCopy
        | SourceCopy::PostCopyFailed
        | SourceCopy::Gone
        | SourceCopy::EndedByUser
        | SourceCopy::Another => false,
    };
    not_handed_over && there
}
