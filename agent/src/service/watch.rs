//! The stream of what happens in a transfer, from now on, until it has ended.

use std::pin::Pin;

use drover_proto::agent::v1::WatchOutgoingResponse;
use drover_proto::failure::{Failure, Reason};
use futures::Stream;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::report;
use crate::jobs::Jobs;
use crate::jobs::fence::Reference;
use crate::jobs::outgoing::TransferStep;

type Events = Pin<Box<dyn Stream<Item = Result<WatchOutgoingResponse, Status>> + Send>>;

/// A slow reader holds nothing up: it loses the oldest messages, and looks.
pub(super) fn outgoing(jobs: &Jobs, reference: Reference) -> Result<Events, Failure> {
    let none = || Failure::new(Reason::MigrationNotFound, "this host sends no such migration now");
    let job = jobs.outgoing_job(reference.migration).ok_or_else(none)?;
    let (mut events, mut course) = job.watch();
    let (sender, receiver) = mpsc::channel(16);
    // What happened just before is said first, so that a watcher that comes a moment late sees something.
    let latest = job.progress().map(|progress| crate::jobs::progress::Event {
        time: progress.time,
        what: crate::jobs::progress::What::Progress(progress),
    });
    drop(job);
    tokio::spawn(async move {
        if let Some(event) = latest
            && sender.send(Ok(report::event(event))).await.is_err()
        {
            return;
        }
        loop {
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                () = sender.closed() => return,
                _ = course.wait_for(|course| course.step == TransferStep::Over) => break,
            };
            match event {
                Ok(event) => {
                    if sender.send(Ok(report::event(event))).await.is_err() {
                        return;
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
        // What was said before the end is still in the queue.
        loop {
            match events.try_recv() {
                Ok(event) => {
                    if sender.send(Ok(report::event(event))).await.is_err() {
                        return;
                    }
                }
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}
