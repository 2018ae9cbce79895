//! Either side: what the journal says and what libvirt shows, read now. Waits for no lock: a call that is under way
//! is said to be so.

use std::sync::Arc;
use std::time::SystemTime;

use drover_proto::failure::Failure;

use super::fence::Reference;
use super::incoming::IncomingJob;
use super::outgoing::{Course, PerformOutcome, TransferStep};
use super::progress::{Action, Iteration, Problem, Progress, Summary};
use super::{Jobs, errors};
use crate::hypervisor::{ErrorClass, GuestFacts};
use crate::journal::{Call, Record};

/// All that an agent can say of a migration.
#[derive(Debug)]
pub struct Status {
    pub record: Option<Arc<Record>>,
    pub guest: Option<GuestFacts>,
    pub job_active: bool,
    pub same_incarnation: bool,
    pub call_in_flight: bool,
    pub performing: bool,
    pub perform_outcome: Option<PerformOutcome>,
    pub stream_flows: bool,
    pub stream_complete: bool,
    pub agent_restarted: bool,
    pub host_rebooted: bool,
    pub progress: Option<Progress>,
    pub summary: Option<Summary>,
    pub calls: Vec<Call>,
    pub iterations: Vec<Iteration>,
    pub actions: Vec<Action>,
    pub problem: Option<Problem>,
    pub read: SystemTime,
}

/// A journal that changes at every look is shown as it is, with a call in flight.
const LOOKS: u32 = 3;

impl Jobs {
    async fn ask_libvirt(&self, reference: Reference) -> Result<(Option<GuestFacts>, bool), Failure> {
        let guest = self.hypervisor.guest(reference.guest).await.map_err(errors::unsure)?;
        let active = guest.as_ref().is_some_and(|found| found.state.is_active());
        if !active {
            return Ok((guest, false));
        }
        let job_active = match self.hypervisor.job(reference.guest).await {
            Ok(job) => job.is_some(),
            // It ended between the two questions.
            Err(error) if error.class == ErrorClass::NoGuest => false,
            Err(error) => return Err(errors::unsure(error)),
        };
        Ok((guest, job_active))
    }

    /// The journal is read before libvirt, and again after: where it changed in between libvirt is asked anew, so that
    /// a guest from before a step is not shown with a journal from after it.
    pub async fn status(&self, reference: Reference) -> Result<Status, Failure> {
        let mut before = self.journal.read(reference.migration);
        let busy_before = self.is_busy(reference);
        let (mut guest, mut job_active) = self.ask_libvirt(reference).await?;
        let mut record = self.journal.read(reference.migration);
        for _ in 0..LOOKS {
            if record == before {
                break;
            }
            before = record;
            (guest, job_active) = self.ask_libvirt(reference).await?;
            record = self.journal.read(reference.migration);
        }
        let call_in_flight = busy_before || self.is_busy(reference) || record != before;
        let outgoing = self.outgoing_job(reference.migration);
        let incoming = self.incoming_job(reference.migration);
        let course = outgoing.as_ref().map_or_else(Course::default, |job| job.course());
        let seen = guest.as_ref().and_then(|guest| guest.incarnation.as_ref());
        let expected = record.as_deref().and_then(Record::incarnation);
        let journaled = || record.as_ref().map(|record| record.calls.clone()).unwrap_or_default();
        Ok(Status {
            same_incarnation: expected.is_some() && seen == expected,
            job_active,
            call_in_flight,
            performing: course.step == TransferStep::Performing,
            perform_outcome: course.outcome,
            // In this order: a channel that ends in between is not taken for one that broke.
            stream_flows: incoming.as_deref().is_some_and(IncomingJob::stream_flows),
            stream_complete: is_complete(record.as_deref(), incoming.as_deref()),
            agent_restarted: record
                .as_ref()
                .is_some_and(|record| record.agent_instance != self.instance),
            host_rebooted: record.as_ref().is_some_and(|record| record.boot_id != self.boot_id),
            progress: outgoing.as_ref().and_then(|job| job.progress()),
            summary: course.summary,
            calls: match (&outgoing, &incoming) {
                (Some(job), _) => job.calls.all(),
                (None, Some(job)) => job.calls.all(),
                (None, None) => journaled(),
            },
            iterations: outgoing.as_ref().map(|job| job.iterations()).unwrap_or_default(),
            actions: outgoing.as_ref().map(|job| job.actions()).unwrap_or_default(),
            problem: course.problem,
            read: SystemTime::now(),
            record,
            guest,
        })
    }

    fn is_busy(&self, reference: Reference) -> bool {
        let transferring = self.outgoing_job(reference.migration).is_some_and(|job| job.is_busy());
        transferring || self.journal.is_locked(reference.migration)
    }
}

/// Whether all has come, and, of files, was verified.
fn is_complete(record: Option<&Record>, job: Option<&IncomingJob>) -> bool {
    let coming = record
        .and_then(Record::destination)
        .and_then(|part| part.offline.as_ref());
    match coming {
        Some(coming) => coming.verified,
        None => job.is_some_and(IncomingJob::stream_complete),
    }
}
