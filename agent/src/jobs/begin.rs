//! Source: journal, autostart off, Begin. The guest runs on; libvirt's job lock is held from here on.
//!
//! If the process dies: before the journal, nothing happened; after it, the controller aborts and the verdict
//! NeverRan puts autostart back.

use std::sync::Arc;
use std::time::SystemTime;

use drover_proto::failure::{Failure, Reason};
use drover_proto::fault_points::{self, point};
use drover_proto::ids::HostId;
use drover_proto::overrides::Overrides;
use drover_proto::trace::names::span;
use tracing::Instrument;

use super::fence::{Fence, Reference, Side, concerns};
use super::offline_files::OfflineOrder;
use super::outgoing::OutgoingJob;
use super::{Jobs, Seen, lock, see};
use crate::guest_xml::flatten::flattened;
use crate::guest_xml::overrides::{self, Definition, Unfit};
use crate::hypervisor::{BeginRequest, Begun, CopiedDisks, GuestFacts, GuestState, Incarnation, MigrateFlags};
use crate::images::{CopiedImage, NewImage};
use crate::journal::{Decision, DefinitionNews, Limits, OpenPage, Part, Record, SourcePart, SourceState};
use crate::offline::FileSpec;

/// What is to be begun.
#[derive(Clone, Debug)]
pub struct BeginOrder {
    pub reference: Reference,
    pub destination: HostId,
    /// The life of the guest that was validated.
    pub incarnation: Incarnation,
    /// `persistent` is set by what libvirt says.
    pub flags: MigrateFlags,
    pub limits: Limits,
    /// What is different at the destination.
    pub overrides: Overrides,
    /// Remove the files of copied disks once the guest was seen at the destination.
    pub delete_source: bool,
    /// Set for a guest that is shut off.
    pub offline: Option<OfflineOrder>,
}

/// What the destination needs to know: definitions as it is to have them.
#[derive(Clone, Debug)]
pub struct BeginAnswer {
    pub begun: Begun,
    pub inactive_xml: Option<String>,
    pub guest_name: String,
    pub state_before: GuestState,
    pub autostart_before: bool,
    /// What the destination has to make first.
    pub images: Vec<NewImage>,
    /// Of a guest that is shut off: what will be sent.
    pub files: Vec<FileSpec>,
    pub is_offline: bool,
}

impl Jobs {
    /// A repeat answers the same; after a restart of the agent it takes the job lock anew.
    pub async fn begin_outgoing(self: &Arc<Self>, fence: Fence, order: BeginOrder) -> Result<BeginAnswer, Failure> {
        let Reference {
            migration,
            attempt,
            guest,
        } = order.reference;
        let mut page = self.obey_and_lock(&fence, migration).await?;
        if let Some(record) = page.record() {
            if record.is_tombstoned(attempt) {
                return Err(crate::journal::Forbidden::Tombstoned.into());
            }
            if !record.is_over_for(attempt) {
                concerns(&record, &order.reference, Side::Source)?;
                return self.begin_again(&mut page, &record, &order).await;
            }
        }
        self.refuse_while_stopping()?;
        if let Some(other) = self.undecided_other(guest, migration) {
            let message = format!("migration {} of this guest is undecided on this host", other.migration);
            return Err(Failure::new(Reason::GuestBusy, message));
        }
        if let Some(offline) = &order.offline {
            return self.begin_offline(&mut page, &fence, &order, offline).await;
        }
        let found = self.fit_to_leave(&order).await?;
        // Also the live one, though libvirt will say it anew: what does not fit is refused before anything is touched.
        let copies = order.flags.copied.as_ref();
        let there = for_destination(&found.xml, copies, &order.overrides, Definition::Live)?;
        let copied = self
            .look_at_copied(&found.xml, &there, copies, order.delete_source)
            .await?;
        let record = page.create(self.source_record(&fence, &order, found, copied)?).await?;
        self.clear_autostart_and_begin(&mut page, &record).await
    }

    async fn begin_again(
        self: &Arc<Self>,
        page: &mut OpenPage,
        record: &Record,
        order: &BeginOrder,
    ) -> Result<BeginAnswer, Failure> {
        let attempt = order.reference.attempt;
        let sending = record.source().filter(|part| part.state == SourceState::Sending);
        let Some(part) = sending.filter(|_| record.attempt == attempt && record.decision == Decision::Open) else {
            let message = format!(
                "this host's journal says {} for try {}",
                record.state_name(),
                record.attempt
            );
            return Err(Failure::new(Reason::MigrationState, message));
        };
        if let Some(leaving) = &part.offline {
            return self.begin_offline_again(page, record, part, leaving, order).await;
        }
        if let Some(handle) = self.outgoing_job(record.migration).and_then(|job| job.handle()) {
            return answer(part, handle.begun().clone());
        }
        self.refuse_while_stopping()?;
        match self.look(record).await? {
            Seen::Ours(guest) if may_leave(guest.state).is_ok() => self.clear_autostart_and_begin(page, record).await,
            Seen::Ours(guest) => Err(not_now(guest.state)),
            Seen::Unknown | Seen::ShutOff(_) => Err(Failure::new(Reason::GuestEnded, "the guest ended meanwhile")),
            Seen::Another(_) => Err(another_life()),
        }
    }

    /// The guest as it is, if a migration may begin.
    async fn fit_to_leave(&self, order: &BeginOrder) -> Result<GuestFacts, Failure> {
        let guest = order.reference.guest;
        match see(self.hypervisor.guest(guest).await?, Some(&order.incarnation)) {
            Seen::Unknown => Err(Failure::new(
                Reason::GuestNotFound,
                format!("libvirt does not know guest {guest}"),
            )),
            Seen::ShutOff(_) => Err(Failure::new(Reason::GuestEnded, "the guest is shut off")),
            Seen::Another(_) => Err(another_life()),
            Seen::Ours(found) => {
                may_leave(found.state)?;
                if self.hypervisor.job(guest).await?.is_some() {
                    return Err(Failure::new(Reason::GuestBusy, "libvirt has another job on this guest"));
                }
                Ok(*found)
            }
        }
    }

    fn source_record(
        &self,
        fence: &Fence,
        order: &BeginOrder,
        guest: GuestFacts,
        copied: Vec<CopiedImage>,
    ) -> Result<Record, Failure> {
        let definition = guest.inactive_xml.filter(|_| guest.persistent);
        let copies = order.flags.copied.as_ref();
        let definition = definition.map(|xml| for_destination(&xml, copies, &order.overrides, Definition::Persistent));
        let part = SourcePart {
            state: SourceState::Sending,
            peer: order.destination.clone(),
            guest_name: guest.name,
            state_before: guest.state,
            runs: None,
            autostart_before: guest.autostart,
            inactive_xml: definition.transpose()?,
            definition: DefinitionNews::AsSent,
            overrides: order.overrides.clone(),
            incarnation: order.incarnation.clone(),
            flags: MigrateFlags {
                persistent: guest.persistent,
                post_copy: order.flags.post_copy && guest.state.runs(),
                ..order.flags.clone()
            },
            copied,
            delete_source: order.delete_source,
            limits: order.limits,
            suspended_by_agent: false,
            ran_on: false,
            post_copy_ordered: false,
            delivery: None,
            offline: None,
        };
        Ok(self.new_record(fence, order.reference, Part::Source(Box::new(part))))
    }

    /// A record in which nothing has happened yet.
    pub(super) fn new_record(&self, fence: &Fence, reference: Reference, part: Part) -> Record {
        Record {
            migration: reference.migration,
            attempt: reference.attempt,
            guest: reference.guest,
            serial: 0,
            created: SystemTime::now(),
            boot_id: self.boot_id,
            agent_instance: self.instance,
            lease: fence.lease,
            tombstone: None,
            decision: Decision::Open,
            guest_ended: false,
            adopted: None,
            closed: None,
            part,
            calls: Vec::new(),
        }
    }

    async fn clear_autostart_and_begin(
        self: &Arc<Self>,
        page: &mut OpenPage,
        record: &Record,
    ) -> Result<BeginAnswer, Failure> {
        let Some(part) = record.source() else {
            return Err(Failure::internal("a record without a source cannot begin"));
        };
        // A source host that reboots must not start a second copy.
        if part.flags.persistent {
            self.hypervisor.set_autostart(record.guest, false).await?;
        }
        let job = OutgoingJob::new(record.migration, record.guest, self.host.clone(), record.calls.clone());
        let request = BeginRequest {
            guest: record.guest,
            flags: part.flags.clone(),
        };
        let handle = job
            .calls
            .call(span::LIBVIRT_BEGIN, self.hypervisor.begin(request))
            .await?;
        let begun = handle.begun().clone();
        job.hold(handle);
        let job = Arc::new(job);
        lock(&self.outgoing).insert(record.migration, Arc::clone(&job));
        let instance = self.instance;
        page.change(|record| {
            record.calls = job.calls.all();
            // The job lock is this agent's now, also where a former one made the record.
            record.agent_instance = instance;
        })
        .await?;
        self.expire_unclaimed(&job, record);
        fault_points::reach(point::SOURCE_BEGUN).await;
        answer(part, begun)
    }

    /// A Begin that no StartMigrate came for is given up: the destination's ticket has expired long before.
    pub(super) fn expire_unclaimed(self: &Arc<Self>, job: &Arc<OutgoingJob>, record: &Record) {
        let (jobs, claimed, limit) = (Arc::clone(self), job.claimed.clone(), self.limits.begin);
        let reference = Reference {
            migration: record.migration,
            attempt: record.attempt,
            guest: record.guest,
        };
        let expiry = async move {
            if claimed.run_until_cancelled(tokio::time::sleep(limit)).await.is_none() {
                return;
            }
            let given_up = Arc::clone(&jobs);
            let work = async move { given_up.give_up(reference, "StartMigrate did not come in time").await };
            if let Err(error) = jobs.detached(work).await {
                tracing::warn!(%error, migration_id = %reference.migration, "an expired Begin could not be given up");
            }
        };
        tokio::spawn(expiry.in_current_span());
    }
}

fn answer(part: &SourcePart, begun: Begun) -> Result<BeginAnswer, Failure> {
    Ok(BeginAnswer {
        begun: Begun {
            xml: for_destination(
                &begun.xml,
                part.flags.copied.as_ref(),
                &part.overrides,
                Definition::Live,
            )?,
            ..begun
        },
        inactive_xml: part.inactive_xml.clone(),
        guest_name: part.guest_name.clone(),
        state_before: part.state_before,
        autostart_before: part.autostart_before,
        images: part.copied.iter().map(|copied| copied.image.clone()).collect(),
        files: Vec::new(),
        is_offline: false,
    })
}

/// A definition as the destination is to have it: copied disks have nothing beneath them there.
pub(super) fn for_destination(
    xml: &str,
    copied: Option<&CopiedDisks>,
    overrides: &Overrides,
    definition: Definition,
) -> Result<String, Failure> {
    let Some(copied) = copied else {
        return adapted(xml, overrides, definition);
    };
    let flat = flattened(xml, copied.targets());
    let flat = flat.map_err(|error| Failure::new(Reason::LibvirtFailed, error.to_string()))?;
    adapted(&flat, overrides, definition)
}

/// A definition with what is different at the destination.
pub(super) fn adapted(xml: &str, overrides: &Overrides, definition: Definition) -> Result<String, Failure> {
    overrides::apply(xml, overrides, definition).map_err(|unfit| {
        let mut failure = Failure::new(Reason::ChecksFailed, format!("overrides: {unfit}"));
        if let Unfit::Problems(problems) = unfit {
            failure.fields = problems;
        }
        failure
    })
}

pub(super) fn may_leave(state: GuestState) -> Result<(), Failure> {
    match state {
        GuestState::Running | GuestState::Paused => Ok(()),
        GuestState::RunningPostCopy
        | GuestState::RunningPostCopyFailed
        | GuestState::PausedPostCopy
        | GuestState::PausedPostCopyFailed
        | GuestState::PausedMigrating
        | GuestState::PausedFault
        | GuestState::ShuttingDown
        | GuestState::Crashed
        | GuestState::ShutOff => Err(not_now(state)),
    }
}

fn not_now(state: GuestState) -> Failure {
    let reason = if state.is_post_copy() {
        Reason::PostCopy
    } else {
        Reason::GuestBusy
    };
    Failure::new(
        reason,
        format!("the guest is {state:?}: it can leave only while it runs or was paused by a user"),
    )
}

fn another_life() -> Failure {
    let message = "the guest was started anew since it was validated, or came back: it is another life of it";
    Failure::new(Reason::IncarnationMismatch, message)
}
