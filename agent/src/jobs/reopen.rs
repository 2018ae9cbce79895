//! Destination: the stream broke in post-copy, and the source asks for another one.
//!
//! ```text
//!  broken ──Prepare, once more──▶ QEMU listens again ──the stream comes──▶ pages arrive ──Finish, once more──▶ Ran
//!     ▲                                                      │
//!     └────────────────────── it breaks again ◀──────────────┘
//! ```
//!
//! The guest runs on all the time on what it has. Nothing is written: if this process dies, the stream breaks once more
//! and the source asks again. Nothing is destroyed, whatever fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::{Attempt, HostId, MigrationId, Ticket};
use drover_proto::trace::names::span;
use tokio::time::{sleep, timeout};

use super::arrive::refused;
use super::calls::CallLog;
use super::incoming::{IncomingJob, call_log};
use super::prepare::of_this_guest;
use super::{Jobs, Seen, errors, lock};
use crate::hypervisor::{Cookie, GuestState, Incoming, PrepareRequest};
use crate::journal::{DestinationPart, DestinationState, OpenPage, Record};
use crate::tunnel::Registration;

/// So long libvirt may take to notice; and how often it is asked.
const NOTICED: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_millis(100);

/// A QEMU that waits for a page itself never answers.
const ANSWERED: Duration = Duration::from_secs(5);

/// The source's word that its stream broke.
#[derive(Clone, Debug)]
pub struct ReopenOrder {
    /// Who says so, by its certificate.
    pub from: HostId,
    pub migration: MigrationId,
    pub attempt: Attempt,
    /// That of the hand-over.
    pub ticket: Ticket,
    /// The guest's definition, as it is to be here.
    pub xml: String,
    /// From Begin.
    pub cookie: Cookie,
}

/// What the source needs for another stream.
#[derive(Clone, Debug)]
pub struct Reopened {
    /// For the stream alone: everything else goes by the old one.
    pub ticket: Ticket,
    /// For Perform.
    pub cookie: Cookie,
}

impl Jobs {
    /// QEMU listens again. A repeat takes the place of what nobody has come to.
    pub async fn reopen_stream(self: &Arc<Self>, order: ReopenOrder) -> Result<Reopened, Failure> {
        let page = self.lock(order.migration).await?;
        let record = entitled(&page, &order.from, order.attempt, &order.ticket)?;
        let part = record.destination().ok_or_else(refused)?;
        of_this_guest("xml", &order.xml, record.guest, Some(&part.guest_name))?;
        self.refuse_while_stopping()?;
        let unnoticed = self.cut_stream(&record, part).await?;
        let reopened = self.listen_again(&record, part, &order, unnoticed).await?;
        self.watch_pages(record.migration, None);
        Ok(reopened)
    }

    /// Pages are missing. Cuts what is there of the stream: the other side knows better, for a connection may be dead for
    /// long before anybody notices. Gives whether libvirt has to notice something before it takes another.
    async fn cut_stream(&self, record: &Record, part: &DestinationPart) -> Result<bool, Failure> {
        if part.state != DestinationState::Resuming || !part.flags.post_copy {
            let message = format!("no page is missing here: the journal says {}", record.state_name());
            return Err(Failure::new(Reason::MigrationState, message));
        }
        let state = match self.look(record).await? {
            Seen::Ours(guest) => guest.state,
            Seen::Another(_) | Seen::Unknown | Seen::ShutOff(_) => {
                return Err(Failure::new(Reason::MigrationState, "the guest is not here any more"));
            }
        };
        let flowed = match state {
            GuestState::RunningPostCopyFailed | GuestState::PausedPostCopyFailed => false,
            // Also of one that was stopped meanwhile: libvirt does not say then that its stream broke.
            GuestState::RunningPostCopy | GuestState::PausedPostCopy | GuestState::Paused | GuestState::PausedFault => {
                true
            }
            GuestState::Running
            | GuestState::PausedMigrating
            | GuestState::ShuttingDown
            | GuestState::Crashed
            | GuestState::ShutOff => {
                let message = format!("the guest is {state:?} here: there is no broken stream");
                return Err(Failure::new(Reason::LibvirtUnavailable, message));
            }
        };
        let Some(former) = self.incoming_job(record.migration) else {
            return Ok(flowed);
        };
        former.tunnel.cut();
        let had_connection = former.is_waiting();
        // Where Finish was called it fails now; where it was not, it cannot be any more.
        self.forget_incoming(record.migration);
        Ok(flowed || had_connection)
    }

    async fn listen_again(
        &self,
        record: &Record,
        part: &DestinationPart,
        order: &ReopenOrder,
        unnoticed: bool,
    ) -> Result<Reopened, Failure> {
        let migration = record.migration;
        let ticket = Ticket::generate().map_err(|error| Failure::internal(format!("no randomness: {error}")))?;
        self.sockets.make(migration).await?;
        let memory_socket = self.sockets.destination(migration);
        let request = PrepareRequest {
            guest: record.guest,
            name: part.guest_name.clone(),
            xml: order.xml.clone(),
            persistent_xml: None,
            cookie: order.cookie.clone(),
            flags: part.flags.resuming(),
            socket: memory_socket.clone(),
            disks_socket: self.sockets.destination_disks(migration),
        };
        let calls = call_log(&self.host, record.calls.clone());
        let handle = self.listen_until_noticed(&calls, request, unnoticed).await?;
        let cookie = handle.cookie().clone();
        let tunnel = self.tunnel.register(Registration {
            migration,
            attempt: record.attempt,
            ticket: ticket.clone(),
            source: part.peer.clone(),
            memory_socket,
            disks_socket: None,
            files: None,
            valid_for: self.limits.ticket,
        })?;
        let job = Arc::new(IncomingJob::new(migration, calls, handle, tunnel));
        lock(&self.incoming).insert(migration, job);
        Ok(Reopened { ticket, cookie })
    }

    /// libvirt sees only a moment later that the stream is cut, or that the connection of an earlier try has gone.
    async fn listen_until_noticed(
        &self,
        calls: &CallLog,
        request: PrepareRequest,
        unnoticed: bool,
    ) -> Result<Box<dyn Incoming>, Failure> {
        let until = Instant::now() + NOTICED;
        loop {
            let prepare = calls.call(span::LIBVIRT_PREPARE, self.hypervisor.prepare(request.clone()));
            match timeout(ANSWERED, prepare).await {
                Err(_) => return Err(mute()),
                Ok(Err(_)) if unnoticed && Instant::now() < until => sleep(AGAIN).await,
                Ok(outcome) => return outcome.map_err(errors::unsure),
            }
        }
    }

    /// The stream that was asked for has come, and the guest runs on what it brings: Finish, once more, in a task of its
    /// own. What libvirt shows tells whoever watches the pages how it comes out.
    pub(super) fn finish_again(self: &Arc<Self>, migration: MigrationId) {
        let job = self.incoming_job(migration).filter(|job| job.was_reached());
        if let Some((job, handle)) = job.and_then(|job| job.take().map(|handle| (job, handle))) {
            self.begin_finish(&job, handle, Cookie::default());
        }
    }
}

fn mute() -> Failure {
    let message = "QEMU at the destination does not answer libvirt: it may wait for a page of the guest itself";
    Failure::new(Reason::LibvirtUnavailable, message)
        .with_remedy("leave both sides as they are; see docs/failures.md, \"Post-copy that cannot be repaired\"")
}

/// Who has the ticket speaks for the source, and learns nothing otherwise.
pub(super) fn entitled(
    page: &OpenPage,
    from: &HostId,
    attempt: Attempt,
    ticket: &Ticket,
) -> Result<Arc<Record>, Failure> {
    let record = page.record().ok_or_else(refused)?;
    let part = record.destination().ok_or_else(refused)?;
    let entitled = part.peer == *from && record.attempt == attempt;
    if !(part.ticket == *ticket && entitled) {
        tracing::warn!(%from, "refused another agent: wrong ticket, try or host");
        return Err(refused());
    }
    Ok(record)
}
