//! Looking at both hosts: every phase begins with it, and every decision is made from it.

use drover_proto::agent::v1::{self as agent, GetMigrationStatusRequest, JournalRecord, MigrationStatus};
use drover_proto::failure::{Failure, Reason};
use drover_proto::v1::TransferSummary;

use super::{Learned, Work, remedies};
use crate::agents::Agent;
use crate::seen;
use crate::verdict::{self, Destination, DestinationCopy, Judgement, Seen, Side, Source, SourceCopy, SourceJournal};

/// What both agents said, or why one did not.
pub(super) struct Look {
    pub(super) source: Result<MigrationStatus, Failure>,
    pub(super) destination: Result<MigrationStatus, Failure>,
    /// Prepare was written down as done: both must know of the migration.
    prepared: bool,
    fenced: Option<Side>,
    source_host: drover_proto::ids::HostId,
    destination_host: drover_proto::ids::HostId,
}

/// Asks both at once.
pub(super) async fn both(work: &Work) -> Look {
    let (source, destination) = tokio::join!(ask(work, work.source()), ask(work, work.destination()));
    let look = Look {
        source,
        destination,
        prepared: work.record.prepared.is_some(),
        fenced: work.record.fenced(),
        source_host: work.record.source.clone(),
        destination_host: work.record.destination.clone(),
    };
    if verdict::both_run(look.seen_source(), look.seen_destination()) {
        tracing::error!("the guest runs on both hosts");
    }
    look
}

/// Asks the source alone.
pub(super) async fn at_source(work: &Work) -> Result<MigrationStatus, Failure> {
    ask(work, work.source()).await
}

async fn ask(work: &Work, agent: impl Future<Output = Result<Agent, Failure>>) -> Result<MigrationStatus, Failure> {
    let request = GetMigrationStatusRequest {
        migration: Some(work.reference()),
    };
    agent.await?.get_migration_status(request).await
}

impl Look {
    pub(super) fn seen_source(&self) -> Seen<Source> {
        self.source
            .as_ref()
            .map_or(Seen::Unreachable, |status| seen::source(status, self.prepared))
    }

    pub(super) fn seen_destination(&self) -> Seen<Destination> {
        self.destination
            .as_ref()
            .map_or(Seen::Unreachable, |status| seen::destination(status, self.prepared))
    }

    /// Whether the destination may finish without the source's agent: all was handed over, and all has arrived.
    pub(super) fn may_finish_alone(&self) -> bool {
        let source = matches!(
            self.seen_source(),
            Seen::Journal(Source {
                journal: SourceJournal::HandedOver,
                copy: SourceCopy::AllSent | SourceCopy::Gone,
                ..
            })
        );
        let destination = matches!(
            self.seen_destination(),
            Seen::Journal(Destination {
                copy: DestinationCopy::Still,
                stream_complete: true,
                ..
            })
        );
        // A guest that is shut off has to be forgotten there first.
        let forgotten = !self.is_offline() || self.source.as_ref().is_ok_and(|status| status.guest.is_none());
        source && destination && forgotten
    }

    /// Whether the source has stopped its guest for post-copy.
    pub(super) fn has_gone_from_source(&self) -> bool {
        match self.seen_source() {
            Seen::Journal(source) => matches!(source.copy, SourceCopy::PostCopy | SourceCopy::PostCopyFailed),
            Seen::Unreachable | Seen::NoJournal | Seen::JournalLost => false,
        }
    }

    /// Whose answer is missing while the memory lies on both hosts. While pages flow the source's agent sees to it, and
    /// who reaches the destination is its business.
    pub(super) fn silent_in_post_copy(&self) -> Option<Side> {
        match (self.seen_source(), self.seen_destination()) {
            (Seen::Unreachable, Seen::Journal(there)) => {
                let lacks = matches!(there.copy, DestinationCopy::PostCopy | DestinationCopy::PostCopyFailed);
                lacks.then_some(Side::Source)
            }
            (Seen::Journal(here), Seen::Unreachable) => {
                (here.copy == SourceCopy::PostCopyFailed).then_some(Side::Destination)
            }
            (Seen::Unreachable | Seen::NoJournal | Seen::JournalLost, _)
            | (Seen::Journal(_), Seen::NoJournal | Seen::JournalLost | Seen::Journal(_)) => None,
        }
    }

    /// Whether the guest moves shut off, as either journal says.
    pub(super) fn is_offline(&self) -> bool {
        let says = |status: &Result<MigrationStatus, Failure>| status.as_ref().is_ok_and(seen::is_offline);
        says(&self.source) || says(&self.destination)
    }

    pub(super) fn judgement(&self) -> Judgement {
        let (source, destination) = (self.seen_source(), self.seen_destination());
        if self.word_is_in_vain() && !verdict::both_run(source, destination) {
            let unsaid = source.map(|seen| Source { verdict: None, ..seen });
            if verdict::judge(unsaid, destination) == Judgement::Ran {
                return Judgement::Ran;
            }
        }
        verdict::judge_with_word(source, destination, self.fenced)
    }

    /// The source was told by an operator's word that the guest is its own, and could not run it: that is no proof
    /// against what the destination proves, back again.
    fn word_is_in_vain(&self) -> bool {
        let told = |journal: &JournalRecord| journal.verdict() == agent::Verdict::NeverRan && !journal.settled;
        self.fenced == Some(Side::Destination) && self.source_journal().is_some_and(told)
    }

    /// Whether the source has carried out what was decided.
    pub(super) fn is_settled_at_source(&self) -> bool {
        self.source_journal().is_some_and(|journal| journal.settled)
    }

    fn source_journal(&self) -> Option<&JournalRecord> {
        self.source.as_ref().ok()?.journal.as_ref()
    }

    /// Whether the source has no copy any more.
    fn ended_at_source(&self) -> bool {
        matches!(
            self.seen_source(),
            Seen::Journal(Source {
                copy: SourceCopy::EndedByUser | SourceCopy::Gone,
                ..
            })
        )
    }

    /// The answer of one side replaced by a newer one of the same.
    #[must_use]
    pub(super) fn with_source(self, source: MigrationStatus) -> Self {
        Self {
            source: Ok(source),
            ..self
        }
    }

    #[must_use]
    pub(super) fn with_destination(self, destination: MigrationStatus) -> Self {
        Self {
            destination: Ok(destination),
            ..self
        }
    }

    pub(super) fn learned(&self) -> Learned {
        let mut learned = Learned::default();
        for (status, host) in [
            (&self.source, &self.source_host),
            (&self.destination, &self.destination_host),
        ] {
            if let Ok(status) = status {
                learned.add(status, host);
            }
        }
        learned
    }

    /// Totals of a guest that has switched. Where the source cannot say when, the destination's calls do.
    pub(super) fn summary(&self) -> TransferSummary {
        let of_source = self.source.as_ref().ok().and_then(|status| status.summary);
        let of_destination = self.destination.as_ref().ok().and_then(|status| status.summary);
        let mut summary = of_source.or(of_destination).unwrap_or_default();
        if summary.switch_time.is_none() {
            let other = of_destination.and_then(|summary| summary.switch_time);
            summary.switch_time = other.or_else(|| self.end_of_resume());
        }
        summary
    }

    /// When the destination's call that lets the guest run came back.
    fn end_of_resume(&self) -> Option<prost_types::Timestamp> {
        let status = self.destination.as_ref().ok()?;
        let starts = |name: &str| {
            status
                .calls
                .iter()
                .rev()
                .find(|call| call.call == name && call.error.is_empty())
        };
        let call = starts("libvirt.resume").or_else(|| starts("libvirt.finish"))?;
        let start = drover_proto::time::system_time(call.start_time.as_ref()?)?;
        let duration = drover_proto::time::std_duration(call.duration.as_ref()?)?;
        Some(drover_proto::time::timestamp(start + duration))
    }

    /// What the source says went wrong, as the reason of an abort.
    pub(super) fn why_not(&self) -> Failure {
        let told = |status: &Result<MigrationStatus, Failure>| status.as_ref().ok().and_then(|s| s.error.clone());
        let Some(error) = told(&self.source).or_else(|| told(&self.destination)) else {
            if self.fenced.is_some() {
                let why = "one of the two hosts was fenced before the guest had moved";
                return Failure::new(Reason::TransferFailed, why);
            }
            return if self.ended_at_source() {
                Failure::new(Reason::GuestEnded, "the guest ended while it was being moved")
            } else {
                let message = "the transfer came to an end before the guest had moved";
                remedies::usual(Failure::new(Reason::TransferFailed, message))
            };
        };
        if self.ended_at_source() {
            // What broke by its end is no reason of its own.
            let message = format!("the guest ended while it was being moved ({})", error.message);
            return Failure::new(Reason::GuestEnded, message).at_host(self.source_host.clone());
        }
        let reason = Reason::from_name(&error.reason).unwrap_or(Reason::TransferFailed);
        let mut failure = Failure::new(reason, error.message);
        failure.remedy = Some(error.remedy).filter(|remedy| !remedy.is_empty());
        failure.host = drover_proto::ids::HostId::from_resource_name(&error.host).ok();
        remedies::usual(failure)
    }
}
