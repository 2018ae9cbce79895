//! Destination: journal, ticket, sockets, Prepare: a QEMU that waits, paused.
//!
//! If the process dies, libvirt destroys the waiting copy (auto-destroy); the journal says Waiting, and a repeat
//! prepares anew with the same ticket. A repeat to a living copy changes nothing.

use std::sync::Arc;
use std::time::Duration;

use drover_proto::failure::{Failure, Reason};
use drover_proto::fault_points::{self, point};
use drover_proto::ids::{GuestId, HostId, Ticket};
use drover_proto::trace::names::span;
use tracing::Instrument;

use super::fence::{Fence, Reference, Side, concerns};
use super::incoming::{IncomingJob, call_log};
use super::{Jobs, Seen, copies, errors, lock, offline_coming};
use crate::guest_xml;
use crate::hypervisor::{Cookie, CopiedDisks, GuestState, MigrateFlags, PrepareRequest};
use crate::images::NewImage;
use crate::journal::{
    Coming, Decision, DefinitionNews, DestinationPart, DestinationState, Forbidden, OpenPage, Part, Record,
};
use crate::offline::FileSpec;
use crate::tunnel::Registration;

/// libvirt needs a moment to destroy the copy of a former agent.
const AUTO_DESTROY: Duration = Duration::from_secs(10);

/// What is to be prepared.
#[derive(Clone, Debug)]
pub struct PrepareOrder {
    pub reference: Reference,
    pub source: HostId,
    pub guest_name: String,
    pub xml: String,
    pub inactive_xml: Option<String>,
    pub cookie: Cookie,
    pub state_before: GuestState,
    pub autostart_before: bool,
    pub flags: MigrateFlags,
    /// What is to be made first; what is copied is exactly these.
    pub images: Vec<NewImage>,
    /// The files of a guest that is shut off.
    pub offline: Option<Vec<FileSpec>>,
}

/// What the source needs.
#[derive(Clone, Debug)]
pub struct PrepareAnswer {
    pub ticket: Ticket,
    pub cookie: Cookie,
}

impl Jobs {
    /// A repeat gets the same ticket and cookie.
    pub async fn prepare_incoming(
        self: &Arc<Self>,
        fence: Fence,
        mut order: PrepareOrder,
    ) -> Result<PrepareAnswer, Failure> {
        let Reference {
            migration,
            attempt,
            guest,
        } = order.reference;
        let mut page = self.obey_and_lock(&fence, migration).await?;
        if let Some(record) = page.record() {
            if record.is_tombstoned(attempt) {
                return Err(Forbidden::Tombstoned.into());
            }
            if !record.is_over_for(attempt) {
                concerns(&record, &order.reference, Side::Destination)?;
                return self.prepare_again(&mut page, &record, &order).await;
            }
        }
        self.refuse_while_stopping()?;
        if let Some(other) = self.undecided_other(guest, migration) {
            let message = format!("migration {} of this guest is undecided on this host", other.migration);
            return Err(Failure::new(Reason::GuestBusy, message));
        }
        for (field, xml) in [("xml", Some(&order.xml)), ("inactive_xml", order.inactive_xml.as_ref())] {
            if let Some(xml) = xml.filter(|xml| !xml.is_empty()) {
                of_this_guest(field, xml, guest, Some(&order.guest_name))?;
            }
        }
        self.refuse_known_guest(&order).await?;
        match &order.offline {
            // No memory comes, and no disk beside the files.
            Some(files) if order.images.is_empty() => {
                let definition = order.inactive_xml.as_deref().unwrap_or_default();
                offline_coming::refuse_layers(definition, files)?;
                order.offline = Some(offline_coming::mark_devices(definition, files.clone())?);
            }
            Some(_) => {
                return Err(Failure::invalid(
                    "images",
                    "the files of a guest that is shut off are copied",
                ));
            }
            None => copies::agree(&order.xml, &order.images)?,
        }
        let ticket = Ticket::generate().map_err(|error| Failure::internal(format!("no randomness: {error}")))?;
        let part = destination_part(&order, ticket);
        let record = self.new_record(&fence, order.reference, Part::Destination(Box::new(part)));
        self.create_where_room_is(&mut page, record).await?;
        if order.offline.is_some() {
            return self.wait_for_files(&mut page).await;
        }
        self.prepare_copy(&mut page, &order).await
    }

    /// Of two that come at the same time the second one sees what the first one takes.
    async fn create_where_room_is(&self, page: &mut OpenPage, record: Record) -> Result<(), Failure> {
        let part = record.destination();
        let (files, images) = part.map_or((None, &[][..]), |part| (part.offline.as_ref(), &part.images[..]));
        let mut room = None;
        if files.is_some() || !images.is_empty() {
            let taken = tokio::time::timeout(super::PATIENCE, self.room.lock()).await;
            let busy = |_| {
                Failure::new(
                    Reason::DeadlineExceeded,
                    "another migration is still looking for room here",
                )
            };
            room = Some(taken.map_err(busy)?);
        }
        let of_files = files
            .into_iter()
            .flat_map(|coming| &coming.files)
            .map(|file| &file.spec);
        let of_files = of_files.filter(|spec| spec.block_device).map(|spec| spec.path.clone());
        let of_images = images.iter().map(|made| &made.image).filter(|image| image.block_device);
        let devices = of_files.chain(of_images.map(|image| image.path.clone())).collect();
        self.refuse_devices_of_guests(devices).await?;
        if let Some(coming) = files {
            self.refuse_files(record.migration, coming).await?;
        }
        self.refuse_images(record.migration, images).await?;
        page.create(record).await?;
        drop(room);
        Ok(())
    }

    async fn prepare_again(
        self: &Arc<Self>,
        page: &mut OpenPage,
        record: &Record,
        order: &PrepareOrder,
    ) -> Result<PrepareAnswer, Failure> {
        let waiting = record
            .destination()
            .filter(|part| part.state == DestinationState::Waiting);
        let same_try = record.attempt == order.reference.attempt && record.decision == Decision::Open;
        let Some(part) = waiting.filter(|part| same_try && part.peer == order.source) else {
            let message = format!(
                "this host's journal says {} for try {}",
                record.state_name(),
                record.attempt
            );
            return Err(Failure::new(Reason::MigrationState, message));
        };
        if part.offline.is_some() {
            return self.wait_for_files(page).await;
        }
        let alive = self.incoming_job(record.migration).is_some_and(|job| job.is_waiting());
        if let (true, Some(cookie)) = (alive, &part.cookie) {
            return Ok(PrepareAnswer {
                ticket: part.ticket.clone(),
                cookie: cookie.clone(),
            });
        }
        self.refuse_while_stopping()?;
        self.forget_incoming(record.migration);
        self.await_absence(record).await?;
        self.prepare_copy(page, order).await
    }

    async fn refuse_known_guest(&self, order: &PrepareOrder) -> Result<(), Failure> {
        let same = self.hypervisor.guest(order.reference.guest).await?;
        let named = self.hypervisor.guest_by_name(&order.guest_name).await?;
        match same.or(named) {
            None => Ok(()),
            Some(found) => {
                let message = format!("this host has a guest {} named {} already", found.id, found.name);
                Err(Failure::new(Reason::GuestExists, message).at_host(self.host.clone()))
            }
        }
    }

    /// Waits until libvirt has destroyed a copy that was let go.
    pub(super) async fn await_absence(&self, record: &Record) -> Result<(), Failure> {
        let deadline = tokio::time::Instant::now() + AUTO_DESTROY;
        loop {
            match self.look(record).await? {
                Seen::Unknown | Seen::ShutOff(_) => return Ok(()),
                Seen::Ours(_) | Seen::Another(_) if tokio::time::Instant::now() >= deadline => {
                    let message = "a copy of the guest is still here, though it was let go";
                    return Err(Failure::new(Reason::LibvirtUnavailable, message));
                }
                Seen::Ours(_) | Seen::Another(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn prepare_copy(
        self: &Arc<Self>,
        page: &mut OpenPage,
        order: &PrepareOrder,
    ) -> Result<PrepareAnswer, Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let Some(part) = record.destination() else {
            return Err(Failure::internal("a record without a destination cannot be prepared"));
        };
        let (migration, guest) = (record.migration, record.guest);
        self.sockets.make(migration).await?;
        self.make_images(page).await?;
        let request = PrepareRequest {
            guest,
            name: order.guest_name.clone(),
            xml: order.xml.clone(),
            persistent_xml: order.inactive_xml.clone(),
            cookie: order.cookie.clone(),
            flags: part.flags.clone(),
            socket: self.sockets.destination(migration),
            disks_socket: self.sockets.destination_disks(migration),
        };
        let calls = call_log(&self.host, record.calls.clone());
        let handle = calls
            .call(span::LIBVIRT_PREPARE, self.hypervisor.prepare(request))
            .await?;
        let cookie = handle.cookie().clone();
        // Dropping the handle on any error below lets libvirt destroy the copy again.
        let found = self.hypervisor.guest(guest).await.map_err(errors::unsure)?;
        // Without it nobody could tell this copy from another life of the guest.
        let unknown = || Failure::new(Reason::LibvirtFailed, "the copy that was prepared cannot be found");
        let incarnation = found.and_then(|copy| copy.incarnation).ok_or_else(unknown)?;
        let tunnel = self.tunnel.register(Registration {
            migration,
            attempt: record.attempt,
            ticket: part.ticket.clone(),
            source: part.peer.clone(),
            memory_socket: self.sockets.destination(migration),
            disks_socket: part
                .flags
                .copied
                .as_ref()
                .map(|_| self.sockets.destination_disks(migration)),
            files: None,
            valid_for: self.limits.ticket,
        })?;
        let record = page
            .change(|record| {
                record.calls = calls.all();
                if let Some(part) = record.destination_mut() {
                    part.cookie = Some(cookie.clone());
                    part.incarnation = Some(incarnation);
                }
            })
            .await?;
        let job = Arc::new(IncomingJob::new(migration, calls, handle, tunnel));
        lock(&self.incoming).insert(migration, Arc::clone(&job));
        self.expire_unused(&job, &record);
        fault_points::reach(point::DESTINATION_PREPARED).await;
        Ok(PrepareAnswer {
            ticket: part_ticket(&record)?,
            cookie,
        })
    }

    /// A ticket that nobody came with: the destination revokes itself.
    pub(super) fn expire_unused(self: &Arc<Self>, job: &Arc<IncomingJob>, record: &Record) {
        let (jobs, job) = (Arc::clone(self), Arc::clone(job));
        let reference = Reference {
            migration: record.migration,
            attempt: record.attempt,
            guest: record.guest,
        };
        let expiry = async move {
            if job.over.run_until_cancelled(job.tunnel.expired()).await.is_none() {
                return;
            }
            let revoking = Arc::clone(&jobs);
            let work = async move { revoking.revoke_expired(reference).await };
            if let Err(error) = jobs.detached(work).await {
                tracing::warn!(%error, migration_id = %reference.migration, "an expired ticket could not be revoked");
            }
        };
        tokio::spawn(expiry.in_current_span());
    }

    /// The job is told, or lost: its way in is closed and what waits is let go.
    pub(super) fn forget_incoming(&self, migration: drover_proto::ids::MigrationId) {
        if let Some(job) = lock(&self.incoming).remove(&migration) {
            job.over.cancel();
            drop(job.take());
        }
    }
}

pub(super) fn part_ticket(record: &Record) -> Result<Ticket, Failure> {
    let part = record
        .destination()
        .ok_or_else(|| Failure::internal("the record is of another side"))?;
    Ok(part.ticket.clone())
}

fn destination_part(order: &PrepareOrder, ticket: Ticket) -> DestinationPart {
    DestinationPart {
        state: DestinationState::Waiting,
        peer: order.source.clone(),
        guest_name: order.guest_name.clone(),
        state_before: order.state_before,
        runs: None,
        autostart_before: order.autostart_before,
        inactive_xml: order.inactive_xml.clone(),
        definition: DefinitionNews::AsSent,
        // As the source has it: one that stands still does not go post-copy, which would let it run here.
        flags: MigrateFlags {
            post_copy: order.flags.post_copy && order.state_before.runs(),
            copied: CopiedDisks::new(order.images.iter().map(|image| image.target.clone()).collect()),
            ..order.flags.clone()
        },
        images: copies::to_make(&order.images),
        ticket,
        cookie: None,
        incarnation: None,
        arrival: None,
        offline: order.offline.clone().map(Coming::expected),
    }
}

/// A definition from the source must be of the guest that was ordered: under another UUID it would take another
/// guest's place here.
pub(super) fn of_this_guest(field: &str, xml: &str, guest: GuestId, name: Option<&str>) -> Result<(), Failure> {
    let named = guest_xml::named(xml).map_err(|error| Failure::invalid(field, error.to_string()))?;
    let same_guest = named.uuid.parse::<GuestId>().is_ok_and(|named| named == guest);
    let same_name = name.is_none_or(|name| name == named.name);
    if same_guest && same_name {
        return Ok(());
    }
    let why = format!(
        "it is the definition of {} ({}), not of {guest}",
        named.name, named.uuid
    );
    Err(Failure::invalid(field, why))
}
