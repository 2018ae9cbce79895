//! The source's ways to the destination for one transfer: one for memory, and one for disks where any are copied.
//! The files of a guest that is shut off have one of their own.

use drover_proto::failure::Failure;
use drover_proto::identity::Identity;
use drover_proto::ids::HostId;

use super::Jobs;
use super::outgoing::OutgoingJob;
use crate::journal::{Delivery, Record, SourcePart};
use crate::tunnel::{Carrier, ChannelPlan, HelloTemplate, Source, SourceOptions, TunnelError};

/// Both ends live until the hand-over has ended.
pub(super) struct Ways {
    memory: Source,
    disks: Option<Source>,
}

impl Ways {
    /// Listens from now on.
    pub(super) fn open(jobs: &Jobs, record: &Record, to: &Delivery, job: &OutgoingJob) -> Result<Self, Failure> {
        let part = source_of(record)?;
        let memory = options(jobs, record, part, to, job);
        if let Some(offline) = job.offline() {
            offline.aim(Carrier::new(&memory), job.steering.pace());
        }
        let disks = SourceOptions {
            socket: jobs.sockets.source_disks(record.migration),
            channels: ChannelPlan::Disks,
            ..memory.clone()
        };
        Ok(Self {
            memory: Source::open(memory)?,
            disks: part.flags.copied.as_ref().map(|_| Source::open(disks)).transpose()?,
        })
    }

    /// In post-copy, after the first ones broke: there is only memory left.
    pub(super) fn again(jobs: &Jobs, record: &Record, to: &Delivery, job: &OutgoingJob) -> Result<Self, Failure> {
        let memory = options(jobs, record, source_of(record)?, to, job);
        Ok(Self {
            memory: Source::open(memory)?,
            disks: None,
        })
    }

    /// Bytes that left, of memory and of disks.
    pub(super) fn sent(&self) -> u64 {
        self.memory.bytes().sent + self.disks.as_ref().map_or(0, |disks| disks.bytes().sent)
    }

    /// What went wrong last; a disk's first, because memory comes after the disks.
    pub(super) fn error(&self) -> Option<TunnelError> {
        let disks = self.disks.as_ref().and_then(|disks| disks.errors().borrow().clone());
        disks.or_else(|| self.memory.errors().borrow().clone())
    }

    pub(super) async fn close(self) {
        if let Some(disks) = self.disks {
            disks.close().await;
        }
        self.memory.close().await;
    }
}

fn source_of(record: &Record) -> Result<&SourcePart, Failure> {
    let none = || Failure::internal("a record without a source cannot be sent");
    record.source().ok_or_else(none)
}

fn options(jobs: &Jobs, record: &Record, part: &SourcePart, to: &Delivery, job: &OutgoingJob) -> SourceOptions {
    let peer: HostId = part.peer.clone();
    SourceOptions {
        socket: jobs.sockets.source(record.migration),
        socket_group: jobs.sockets.group(),
        channels: ChannelPlan::Memory {
            multifd: u16::try_from(part.flags.parallel).unwrap_or(u16::MAX),
            postcopy_preempt: false,
        },
        addresses: to.addresses.clone(),
        expected: Identity::Agent(peer),
        tls: jobs.tls.clone(),
        hello: HelloTemplate {
            migration: record.migration,
            attempt: record.attempt,
            ticket: to.ticket.clone(),
        },
        pace: job.steering.pace(),
    }
}
