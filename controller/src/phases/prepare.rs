//! Prepare: the destination waits for the guest, the source holds its job lock.
//!
//! The agents journal before they act and answer a repeat with what they have, so looking and acting are one call
//! each. Only a guest that is the life that was validated is begun.

use drover_proto::agent::v1::{
    BeginOutgoingRequest, BeginOutgoingResponse, LibvirtState, OfflineArrival, PrepareIncomingRequest,
};
use drover_proto::failure::Failure;

use super::{Learned, Report, Work, look, offline, storage, transfer_policy};
use crate::saga::Guest;
use crate::store::Prepared;
use crate::verdict::{Judgement, Seen};

pub(super) async fn run(work: &Work) -> Report {
    let look = look::both(work).await;
    let learned = look.learned();
    if let Some(report) = decided_already(&look) {
        return report;
    }
    match prepare(work).await {
        Ok(more) => {
            let learned = Learned {
                prepared: Some(more.prepared),
                guest_name: Some(more.guest_name),
                ..learned
            };
            Report::done(Guest::Lives, "the destination waits", learned)
        }
        Err(failure) => Report::of(&failure, learned),
    }
}

/// Both are asked again: an agent that was started anew holds the images, or waits for them, again.
pub(super) async fn again(work: &Work) -> Result<(), Failure> {
    prepare(work).await.map(|_| ())
}

/// An attempt that was undone, or has run, by whomever: nothing to prepare any more. Abort finds out which.
fn decided_already(look: &look::Look) -> Option<Report> {
    let known = !matches!(look.seen_source(), Seen::NoJournal | Seen::Unreachable);
    match look.judgement() {
        Judgement::NeverRan | Judgement::Ran if known => Some(Report::refused(&look.why_not(), look.learned())),
        Judgement::NeverRan | Judgement::Ran | Judgement::Open(_) => None,
    }
}

struct More {
    prepared: Prepared,
    guest_name: String,
}

async fn prepare(work: &Work) -> Result<More, Failure> {
    let (source, destination) = (work.source().await?, work.destination().await?);
    let policy = transfer_policy(&work.record);
    let begun = source
        .begin_outgoing(BeginOutgoingRequest {
            fence: source.fence()?,
            migration: Some(work.reference()),
            destination_host: work.record.destination.resource_name(),
            incarnation: work.record.incarnation.clone(),
            policy: Some(policy),
            destination_overrides: work.record.details.destination_overrides.clone(),
            copy_disks: storage::copied(&work.record.details.disks),
            delete_source: deletes_source(work),
            offline: offline::order(&work.record),
        })
        .await?;
    let BeginOutgoingResponse {
        xml,
        inactive_xml,
        cookie,
        guest_name,
        state_before,
        autostart_before,
        images,
        files,
        offline,
    } = begun;
    // What the source's journal says, also where this record knows less.
    let offline = offline || state_before == i32::from(LibvirtState::ShutOff);
    let offline = offline.then_some(OfflineArrival { files });
    let prepared = destination
        .prepare_incoming(PrepareIncomingRequest {
            fence: destination.fence()?,
            migration: Some(work.reference()),
            source_host: work.record.source.resource_name(),
            guest_name: guest_name.clone(),
            xml,
            inactive_xml,
            cookie,
            state_before,
            autostart_before,
            policy: Some(policy),
            images,
            offline,
        })
        .await?;
    Ok(More {
        prepared: Prepared {
            ticket: prepared.ticket,
            cookie: prepared.cookie,
        },
        guest_name,
    })
}

fn deletes_source(work: &Work) -> bool {
    let policy = work.record.details.policy.as_ref();
    policy
        .and_then(|policy| policy.storage.as_ref())
        .is_some_and(|storage| storage.delete_source)
}
