//! Source: a stream that broke in post-copy is made anew: libvirt's calls once more, with another ticket.
//!
//! ```text
//!  Begin ──▶ the destination: Prepare, ticket ──▶ Perform: QEMU was told ──▶ it is connected: pages flow ──▶ Finish there
//! ```
//!
//! Promise: whatever fails, both copies are as before, and it may be tried again. Nothing is written; if the process dies
//! the stream is broken as it was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use drover_proto::failure::{Failure, Reason};
use drover_proto::trace::names::span;
use tokio::time::sleep;

use super::begin::adapted;
use super::outgoing::OutgoingJob;
use super::progress::Flow;
use super::ways::Ways;
use super::{Jobs, errors};
use crate::guest_xml::overrides::Definition;
use crate::hypervisor::{PerformRequest, Throttle};
use crate::journal::{Delivery, Record, SourcePart};
use crate::peer::Broken;

/// libvirt's Prepare takes less than a second; a network that is away must not hold up the next try.
const REOPEN: Duration = Duration::from_secs(10);

/// So long QEMU may take to connect; and how often it is looked whether it has.
const CONNECT: Duration = Duration::from_secs(20);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The newest stream, if the first one broke.
#[derive(Default)]
pub(super) struct Repaired {
    ways: Option<Ways>,
}

impl Repaired {
    /// Bytes that went over it.
    pub(super) fn sent(&self) -> u64 {
        self.ways.as_ref().map_or(0, Ways::sent)
    }

    /// What went over it counts as sent.
    pub(super) async fn close(&mut self, job: &OutgoingJob) {
        if let Some(ways) = self.ways.take() {
            job.sent_again(ways.sent());
            ways.close().await;
        }
    }
}

impl Jobs {
    /// One try. Where it succeeds pages flow, over `repaired`. The `call`th one asks at the next address in turn.
    pub(super) async fn repair(
        self: &Arc<Self>,
        job: &OutgoingJob,
        record: &Record,
        call: usize,
        repaired: &mut Repaired,
    ) -> Result<(), Failure> {
        repaired.close(job).await;
        let outcome = self.make_anew(job, record, call, repaired).await;
        if outcome.is_err() {
            // libvirt sees that the connection has gone while the next try is waited for.
            job.let_go_of_handle();
        }
        outcome
    }

    async fn make_anew(
        self: &Arc<Self>,
        job: &OutgoingJob,
        record: &Record,
        call: usize,
        repaired: &mut Repaired,
    ) -> Result<(), Failure> {
        let (peer, ticket) = self.way_to_peer(job, record)?;
        let (part, delivery) = self.as_ordered(record)?;
        // The limit that was ordered last holds for what is sent now.
        job.steering.keep_to(part.limits);
        // The former connection was let go before.
        self.hold_lock(job, part.flags.resuming()).await?;
        let lost = || Failure::new(Reason::Cancelled, "the job lock was given back by somebody else");
        let handle = job.handle().ok_or_else(lost)?;
        let broken = Broken {
            xml: adapted(&handle.begun().xml, &part.overrides, Definition::Live)?,
            cookie: handle.begun().cookie.clone(),
        };
        let reopened = peer
            .reopen_stream(
                record.migration,
                record.attempt,
                &ticket,
                broken,
                call,
                self.limits.hand_over.min(REOPEN),
            )
            .await?;
        self.sockets.make(record.migration).await?;
        let delivery = Delivery {
            ticket: reopened.ticket,
            ..delivery
        };
        let ways = repaired.ways.insert(Ways::again(self, record, &delivery, job)?);
        let request = PerformRequest {
            cookie: reopened.cookie,
            socket: self.sockets.source(record.migration),
            disks_socket: self.sockets.source_disks(record.migration),
            persistent_xml: None,
            bandwidth: 0,
            max_downtime: None,
            throttle: Throttle {
                initial: 0,
                increment: 0,
            },
        };
        let performed = job.calls.call(span::LIBVIRT_PERFORM, handle.perform(request)).await;
        performed.map_err(errors::unsure)?;
        self.flows_again(record, ways).await?;
        tracing::info!(migration_id = %record.migration, "pages flow again");
        Ok(())
    }

    /// QEMU was told to connect: waits until it has.
    async fn flows_again(&self, record: &Record, ways: &Ways) -> Result<(), Failure> {
        let until = Instant::now() + CONNECT;
        while self.flow(record).await == Some(Flow::Broken) {
            if let Some(error) = ways.error() {
                return Err(error.into());
            }
            if Instant::now() >= until {
                let message = "QEMU was told to send again and has not connected";
                return Err(Failure::new(Reason::LibvirtUnavailable, message));
            }
            sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// What was ordered since the record was read counts.
    fn as_ordered(&self, record: &Record) -> Result<(SourcePart, Delivery), Failure> {
        let now = self.journal.read(record.migration);
        let part = now.as_ref().and_then(|now| now.source()).or(record.source());
        let part = part.ok_or_else(|| Failure::internal("this host is not the source"))?;
        let delivery = part.delivery.clone();
        let delivery = delivery.ok_or_else(|| Failure::internal("nobody has said where the guest goes"))?;
        Ok((part.clone(), delivery))
    }
}
