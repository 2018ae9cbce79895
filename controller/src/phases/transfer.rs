//! Transfer: memory is sent and the guest switches over; done when the destination's journal says Ran.
//!
//! It decides by the verdict alone, from both hosts' answers, never from what a stream said or did not say. The
//! stream only tells when to look again, and carries the progress.

use std::time::{Duration, Instant};

use drover_proto::agent::v1::watch_outgoing_response::Event;
use drover_proto::agent::v1::{
    FinishIncomingRequest, HandOverRequest, StartMigrateRequest, WatchOutgoingRequest, WatchOutgoingResponse,
};
use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::HostId;
use drover_proto::v1::{Estimate, LinkKnowledge, TransferSummary};
use tonic::Streaming;

use super::look::{self, Look};
use super::told::{has_gone_over, is_all_sent, is_broken};
use super::{Report, Wait, Work, prepare, steer, transfer_policy};
use crate::ledger::Change;
use crate::saga::Guest;
use crate::state::WaitReason;
use crate::store::{Record, StepWrite, now};
use crate::verdict::{Job, Judgement, Open, Seen, Source, SourceCopy};

/// A source that says nothing for so long is looked at.
const SILENCE: Duration = Duration::from_secs(15);

/// A hand-over takes milliseconds. One that takes so long is looked at: the guest stands still meanwhile.
const HAND_OVER: Duration = Duration::from_secs(5);

const POST_COPY_BROKE: &str = "the stream broke in post-copy: the guest waits at the destination for pages that the \
     source keeps. Leave both as they are: the agents repair it as soon as they reach each other; `drover migration \
     retry` lets them try at once";

const POST_COPY_LOST: &str = "the guest is lost: one of its two hosts died in post-copy. What the other one has cannot go \
     on without it, and is kept. When nobody needs to look into it any more, end it with `virsh destroy`: then the record \
     can be closed by `drover migration resolve`";

/// So often one attempt looks before it is written down as one that does not know.
const LOOKS: u32 = 12;

pub(super) async fn run(work: &Work) -> Report {
    let mut last_failure = None;
    let mut stalled = false;
    for _ in 0..LOOKS {
        let look = look::both(work).await;
        let open = match look.judgement() {
            Judgement::Ran => return ran(work, &look).await,
            // It never ran there, and libvirt does not let it run here again.
            Judgement::NeverRan if look.has_gone_from_source() => return Report::alarm(POST_COPY_LOST, look.learned()),
            Judgement::NeverRan => return Report::refused(&look.why_not(), look.learned()),
            Judgement::Open(open) => open,
        };
        if let Err(failure) = answers_again(work, &look).await {
            return Report::unknown(&failure, look.learned());
        }
        let acted = match open {
            Open::ContinueTransfer => match go_on(work, &look).await {
                Ok(followed) => {
                    stalled = followed == Followed::Stalled;
                    Ok(())
                }
                // It was never told to send, and never will, or its time is over: the safe way is back.
                Err(refused) if is_final(&refused) => return Report::refused(&refused, look.learned()),
                Err(silent) => Err(silent),
            },
            // The agents do not reach each other: in the place of the source, which has handed over and stands still.
            Open::HandOver if stalled && look.may_finish_alone() => finish_at_destination(work, &look).await,
            Open::HandOver if is_under_way(&look) => follow(work)
                .await
                .map(|followed| stalled = followed == Followed::Stalled),
            Open::HandOver => {
                let asked = tokio::time::timeout(HAND_OVER, hand_over(work)).await;
                stalled = asked.is_err();
                asked.unwrap_or_else(|_| Err(unanswered(work)))
            }
            Open::FinishInPlace => finish_in_place(work, &look).await,
            Open::Abort => return Report::refused(&look.why_not(), look.learned()),
            // Post-copy: the source's agent sees to it, and tells how far it is.
            Open::TouchNothing => match look.silent_in_post_copy() {
                Some(side) => return Report::wait_in_post_copy(side, &work.record, &look),
                None if is_under_way(&look) => follow(work).await.map(drop),
                None => return Report::again("the destination is at it", look.learned()),
            },
            Open::Settling => return Report::again("the destination is at it", look.learned()),
            Open::WaitFor(side) => return Report::wait_for(side, &work.record, &look),
            Open::Resolve(why) => {
                let mut report = Report::resolve(why, &work.record, &look);
                report.learned = report.learned.with_guest_nowhere_known();
                return report;
            }
            Open::RecoverPostCopy => return repair(work, &look).await,
            Open::GuestLost => return Report::alarm(POST_COPY_LOST, look.learned()),
            Open::SuspendSource => return Report::alarm("the source runs and must not: suspend it", look.learned()),
        };
        last_failure = acted.err();
    }
    let look = look::both(work).await;
    match last_failure {
        Some(failure) => Report::unknown(&failure, look.learned()),
        None => Report::again("it goes on, and nobody can say how", look.learned()),
    }
}

/// The guest belongs to the destination: told at once, with the destination's time.
async fn ran(work: &Work, look: &Look) -> Report {
    let learned = look.learned().with_guest_at(&work.record.destination);
    let mut learned = super::Learned {
        summary: Some(look.summary()),
        ..learned
    };
    if let Err(failure) = switched(work, look.summary()).await {
        return Report::unknown(&failure, learned);
    }
    if let Some(summary) = &mut learned.summary
        && summary.switch_time.is_none()
    {
        summary.switch_time = Some(drover_proto::time::timestamp(now()));
    }
    Report::done(Guest::Lives, "the guest is at the destination", learned)
}

/// A refusal that a repeat would not change. Who is not in office learns nothing about the migration.
fn is_final(failure: &Failure) -> bool {
    failure.is_evidence() && !matches!(failure.reason, Reason::StaleTerm | Reason::StillPerforming)
}

/// Starts the transfer where that was not done, and follows it.
async fn go_on(work: &Work, look: &Look) -> Result<Followed, Failure> {
    let record = steer::fresh(work).await?;
    if steer::until_late(&record).is_some_and(|left| left.is_zero()) {
        let why = "the deadline expired before the guest had moved";
        return Err(Failure::new(Reason::TransferDeadline, why));
    }
    // The start says it all; on the way it is compared with what the source keeps to.
    if !start_if_held(work, &record, look).await? {
        steer::bring_into_force(work, &record, look).await?;
    }
    follow(work).await
}

/// Gives whether it was started here.
async fn start_if_held(work: &Work, record: &Record, look: &Look) -> Result<bool, Failure> {
    let Seen::Journal(Source {
        copy: SourceCopy::AsBefore(Job::Held),
        ..
    }) = look.seen_source()
    else {
        return Ok(false);
    };
    let Some(prepared) = work.record.prepared.clone() else {
        return Err(Failure::internal("a transfer without its ticket"));
    };
    if look.is_offline() {
        prepare::again(work).await?;
    }
    let (source, destination) = (work.source().await?, work.destination().await?);
    let seen = |what: fn(&Estimate) -> i64| {
        let estimate = record.details.estimate.as_ref();
        estimate.map_or(0, |estimate| u64::try_from(what(estimate)).unwrap_or(0))
    };
    let request = StartMigrateRequest {
        fence: source.fence()?,
        migration: Some(work.reference()),
        ticket: prepared.ticket,
        cookie: prepared.cookie,
        destination_addresses: destination.migration_addresses,
        destination_management_address: destination.management_address,
        policy: Some(transfer_policy(record)),
        dirty_bytes_per_second: seen(|estimate| estimate.dirty_bytes_per_second),
        // A limit alone is in the policy anyway.
        link_bytes_per_second: seen(|estimate| match estimate.link_knowledge() {
            LinkKnowledge::Learnt | LinkKnowledge::Measured | LinkKnowledge::Configured => {
                estimate.bandwidth_bytes_per_second
            }
            LinkKnowledge::Limit | LinkKnowledge::Unspecified => 0,
        }),
    };
    source.start_migrate(request).await?;
    Ok(true)
}

/// The source asks on; whoever commanded it looks meanwhile.
fn unanswered(work: &Work) -> Failure {
    let message = "the destination has not answered the source yet";
    Failure::new(Reason::DeadlineExceeded, message).at_host(work.record.destination.clone())
}

async fn hand_over(work: &Work) -> Result<(), Failure> {
    let source = work.source().await?;
    source
        .hand_over(HandOverRequest {
            fence: source.fence()?,
            migration: Some(work.reference()),
        })
        .await?;
    Ok(())
}

/// The source agent first: it has the cookie and the ticket. In its place where it cannot or may not any more.
async fn finish_in_place(work: &Work, look: &Look) -> Result<(), Failure> {
    let tombstoned = matches!(look.seen_source(), Seen::Journal(Source { tombstoned: true, .. }));
    if !tombstoned && hand_over(work).await.is_ok() {
        return Ok(());
    }
    finish_at_destination(work, look).await
}

async fn finish_at_destination(work: &Work, look: &Look) -> Result<(), Failure> {
    let destination = work.destination().await?;
    let request = FinishIncomingRequest {
        fence: destination.fence()?,
        migration: Some(work.reference()),
        // A source that does not answer cannot say it: then as it was when the migration began.
        runs: look
            .source
            .as_ref()
            .ok()
            .and_then(|status| status.journal.as_ref()?.runs),
    };
    destination.finish_incoming(request).await?;
    Ok(())
}

/// The source's agent repairs the stream by itself, and at once when it is asked to hand over. It is looked at again soon
/// at first, and whenever somebody asks for a retry.
async fn repair(work: &Work, look: &Look) -> Report {
    let asked = tokio::time::timeout(HAND_OVER, hand_over(work)).await;
    if let Err(failure) = asked.unwrap_or_else(|_| Err(unanswered(work))) {
        tracing::info!("the source's agent was not told to repair the stream: {failure}");
    }
    let wait = Wait {
        reason: WaitReason::Backoff,
        host: None,
        remedy: POST_COPY_BROKE.to_owned(),
    };
    Report::waits(wait, POST_COPY_BROKE, look.learned())
}

/// Whether the source agent is handing over by itself.
fn is_under_way(look: &Look) -> bool {
    look.source.as_ref().is_ok_and(|status| status.call_in_flight)
}

/// Follows the source until its stream ends, for whatever reason, or it should have: then it is time to look.
async fn follow(work: &Work) -> Result<Followed, Failure> {
    let stream = work.source().await?;
    let stream = stream
        .watch_outgoing(WatchOutgoingRequest {
            migration: Some(work.reference()),
        })
        .await?;
    match steer::until_late(&steer::fresh(work).await?) {
        Some(left) => tokio::time::timeout(left, read(work, stream))
            .await
            .unwrap_or(Ok(Followed::Ended)),
        None => read(work, stream).await,
    }
}

/// Why it is time to look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Followed {
    /// The stream ended, or fell silent.
    Ended,
    /// All is sent, and the destination has not answered the source for too long.
    Stalled,
}

async fn read(work: &Work, mut stream: Streaming<WatchOutgoingResponse>) -> Result<Followed, Failure> {
    let (mut well, mut gone_over) = (false, false);
    let mut sent_at: Option<Instant> = None;
    loop {
        let patience = sent_at.map_or(SILENCE, |sent| HAND_OVER.saturating_sub(sent.elapsed()));
        let Ok(next) = tokio::time::timeout(patience, stream.message()).await else {
            return Ok(if sent_at.is_some() {
                Followed::Stalled
            } else {
                Followed::Ended
            });
        };
        let Some(message) = next? else {
            return Ok(Followed::Ended);
        };
        if has_gone_over(&message) {
            gone_over = true;
            sent_at = None;
        }
        if is_all_sent(&message) && !gone_over {
            sent_at.get_or_insert_with(Instant::now);
        }
        let broken = is_broken(&message);
        if !well && !broken {
            well = true;
            goes_well(work).await?;
        }
        match message.event {
            Some(Event::Progress(progress)) => {
                work.ledger.hub.progress(work.record.id, progress);
                if broken {
                    return Ok(Followed::Ended);
                }
            }
            Some(Event::Switched(summary)) => switched(work, summary).await?,
            Some(Event::Failed(error)) => {
                tracing::info!(
                    reason = error.reason,
                    "the source says that the transfer failed: {}",
                    error.message
                );
            }
            Some(Event::Action(action)) => steer::acted(work, action).await?,
            // What they tell is in the status as well, and read from there.
            Some(Event::AllSent(_) | Event::Iteration(_) | Event::Call(_)) | None => {}
        }
    }
}

/// The source is heard of: what was waited for is over.
async fn goes_well(work: &Work) -> Result<(), Failure> {
    let clear = |record: &mut Record| {
        if record.unknowns == 0 && record.details.waiting_for.is_none() {
            return Change::Leave;
        }
        record.unknowns = 0;
        record.details.waiting_for = None;
        Change::Write(StepWrite::Nothing)
    };
    write(work, clear).await
}

/// A host that was waited for has answered: what is done now may take long, and nobody is to be sent to look after
/// that host meanwhile.
async fn answers_again(work: &Work, look: &Look) -> Result<(), Failure> {
    if work.record.details.waiting_for.is_none() {
        return Ok(());
    }
    let answered = [
        (&work.record.source, look.source.is_ok()),
        (&work.record.destination, look.destination.is_ok()),
    ];
    let clear = |record: &mut Record| {
        let waits_for_it = record.details.waiting_for.as_ref().is_some_and(|wait| {
            let is_it = |(host, answers): &(&HostId, bool)| *answers && host.resource_name() == wait.host;
            answered.iter().any(is_it)
        });
        if !waits_for_it {
            return Change::Leave;
        }
        record.details.waiting_for = None;
        Change::Write(StepWrite::Nothing)
    };
    write(work, clear).await
}

/// Written down and told the moment it is known: a platform switches its network by it.
async fn switched(work: &Work, mut summary: TransferSummary) -> Result<(), Failure> {
    if summary.switch_time.is_none() {
        summary.switch_time = Some(drover_proto::time::timestamp(now()));
    }
    let destination = work.record.destination.clone();
    let told = move |record: &mut Record| {
        let known = record
            .details
            .summary
            .is_some_and(|summary| summary.switch_time.is_some());
        if known && record.guest_host.as_ref() == Some(&destination) {
            return Change::Leave;
        }
        let news = super::Learned {
            summary: Some(summary),
            ..super::Learned::default()
        };
        news.with_guest_at(&destination).apply(record);
        Change::Write(StepWrite::Nothing)
    };
    write(work, told).await
}

pub(super) async fn write(work: &Work, change: impl FnMut(&mut Record) -> Change + Send) -> Result<(), Failure> {
    let failed = |error| Failure::new(Reason::StoreFailed, format!("the record could not be written: {error}"));
    work.ledger.change(work.record.id, change).await.map_err(failed)?;
    Ok(())
}
