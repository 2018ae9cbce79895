//! What a message of the source's stream says about how far the transfer is.

use drover_proto::agent::v1::WatchOutgoingResponse;
use drover_proto::agent::v1::watch_outgoing_response::Event;
use drover_proto::v1::TransferStage;

/// All has left the source, and the destination has not answered yet.
pub(super) fn is_all_sent(message: &WatchOutgoingResponse) -> bool {
    match &message.event {
        Some(Event::AllSent(_)) => true,
        Some(Event::Progress(progress)) => progress.stage() == TransferStage::Switching,
        Some(Event::Switched(_) | Event::Failed(_) | Event::Iteration(_) | Event::Call(_) | Event::Action(_))
        | None => false,
    }
}

/// Pages are missing, and none come.
pub(super) fn is_broken(message: &WatchOutgoingResponse) -> bool {
    let progress = match &message.event {
        Some(Event::Progress(progress)) => Some(progress.stage()),
        Some(
            Event::Switched(_)
            | Event::AllSent(_)
            | Event::Failed(_)
            | Event::Iteration(_)
            | Event::Call(_)
            | Event::Action(_),
        )
        | None => None,
    };
    progress == Some(TransferStage::PostCopyFailed)
}

/// The guest runs at the destination: what follows takes its time.
pub(super) fn has_gone_over(message: &WatchOutgoingResponse) -> bool {
    match &message.event {
        Some(Event::Switched(_)) => true,
        Some(Event::Progress(progress)) => matches!(
            progress.stage(),
            TransferStage::PostCopy | TransferStage::PostCopyFailed | TransferStage::Switched
        ),
        Some(Event::AllSent(_) | Event::Failed(_) | Event::Iteration(_) | Event::Call(_) | Event::Action(_)) | None => {
            false
        }
    }
}
