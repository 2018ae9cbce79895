//! Source: the destination has said that the guest runs there. That is told at once; what is missing there follows; then
//! the copy here goes.
//!
//! If the process dies before the copy is gone, the controller asks for it again.

use std::sync::Arc;
use std::time::Instant;

use drover_proto::failure::Failure;
use drover_proto::fault_points::{self, point};
use tracing::Instrument;

use super::Jobs;
use super::outgoing::{OutgoingJob, UnderWay};
use super::progress::{Flow, Problem, Progress, Stage, Summary, What, blackout};
use super::repair::Repaired;
use super::transfer::fail;
use crate::hypervisor::{Cookie, JobStats};
use crate::journal::{Record, Step, Verdict};
use crate::peer::Arrived;

/// What the destination answered, and when.
pub(super) struct Answer {
    pub(super) arrived: Arrived,
    pub(super) sent: Instant,
    pub(super) answered: Instant,
}

impl Jobs {
    /// The guest runs at the destination. What is missing there is waited for; then the copy here goes.
    pub(super) async fn after_switch(
        self: &Arc<Self>,
        job: &Arc<OutgoingJob>,
        record: &Record,
        answer: Answer,
        started: Instant,
        tunnel_bytes: impl Fn() -> u64,
    ) {
        let (mut answer, mut repaired) = (answer, Repaired::default());
        if answer.arrived.pages_missing {
            match self.follow_pages(job, record, started, &mut repaired).await {
                Ok(arrived) => {
                    answer.arrived.cookie = arrived.cookie;
                    let known = job.calls.all();
                    let news = arrived.calls.into_iter().filter(|call| !known.contains(call));
                    answer.arrived.calls = news.collect();
                }
                Err(failure) => {
                    repaired.close(job).await;
                    return fail(job, Problem::from(&failure));
                }
            }
            let sent = tunnel_bytes() + repaired.sent();
            let totals = self.summary(job, &answer, started, sent).await;
            job.change_course(|course| {
                if let Some(summary) = &mut course.summary {
                    (summary.stats, summary.tunnel_bytes) = (totals.stats, totals.tunnel_bytes);
                }
            });
        }
        self.remove_after_switch(job, answer.arrived.cookie).await;
        // Its last bytes may have been on their way until now.
        repaired.close(job).await;
    }

    /// Asks the destination, tells what it says, and sees to the rest. In post-copy that may take hours: nobody waits for
    /// it here.
    pub(super) async fn ask_and_follow(
        self: &Arc<Self>,
        job: Arc<OutgoingJob>,
        record: &Arc<Record>,
        under_way: UnderWay,
        cookie: &Cookie,
    ) -> Result<Summary, Failure> {
        let started = Instant::now();
        let answer = match self.call_until_answered(&job, record, cookie).await {
            Ok(answer) => answer,
            Err(failure) => {
                drop(under_way);
                self.forget_if_settled(&job);
                return Err(failure);
            }
        };
        let missing = answer.arrived.pages_missing;
        let summary = self.summary(&job, &answer, started, 0).await;
        switched(&job, summary.clone(), started, missing);
        let (jobs, record) = (Arc::clone(self), Arc::clone(record));
        // While it carries pages the process does not end by itself; where the stream is broken it may.
        let critical = self.critical();
        let rest = async move {
            jobs.after_switch(&job, &record, answer, started, || 0).await;
            drop(under_way);
            jobs.forget_if_settled(&job);
            drop(critical);
        };
        if missing {
            tokio::spawn(rest.in_current_span());
        } else {
            rest.await;
        }
        Ok(summary)
    }

    pub(super) async fn summary(
        &self,
        job: &OutgoingJob,
        answer: &Answer,
        started: Instant,
        tunnel_bytes: u64,
    ) -> Summary {
        let completed = match job.handle() {
            Some(handle) => handle.completed_job().await.ok().flatten(),
            None => None,
        };
        let stats = completed
            .or_else(|| job.progress().map(|progress| progress.stats))
            .unwrap_or_default();
        let measured = |elapsed| Some(blackout(job.stopped()?, answer.sent, answer.answered, elapsed));
        for call in &answer.arrived.calls {
            job.calls.add(call.clone());
        }
        Summary {
            switched: answer.arrived.switched,
            blackout: answer.arrived.elapsed.and_then(measured),
            stats: JobStats {
                iteration: stats.iteration.max(job.iterations().len() as u64),
                ..stats
            },
            tunnel_bytes: tunnel_bytes + job.all_sent_again(),
            duration: started.elapsed(),
        }
    }

    /// The destination itself has said that it ran: that is the verdict, written before it is acted upon.
    async fn remove_after_switch(self: &Arc<Self>, job: &Arc<OutgoingJob>, cookie: Cookie) {
        let settled = async {
            let mut page = self.lock(job.migration).await?;
            let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
            if let Step::Write(decision) = record.decision.decide(Verdict::Ran)? {
                page.change(|record| record.decision = decision).await?;
            }
            fault_points::reach(point::SOURCE_CONFIRMING).await;
            self.remove_source_copy(&mut page, Some(job), &cookie).await?;
            fault_points::reach(point::SOURCE_CONFIRMED).await;
            Ok::<(), Failure>(())
        };
        if let Err(failure) = settled.await {
            // The controller looks, and asks for it again.
            fail(job, Problem::from(&failure));
        }
    }
}

/// Told to those who watch, and kept.
pub(super) fn switched(job: &OutgoingJob, summary: Summary, started: Instant, pages_missing: bool) {
    tracing::info!(
        migration_id = %job.migration, blackout = ?summary.blackout, pages_missing, "the guest runs at the destination"
    );
    let stage = if pages_missing {
        job.saw_flow(Flow::Flows);
        Stage::PostCopy(Flow::Flows)
    } else {
        Stage::Switched
    };
    let progress = Progress {
        time: std::time::SystemTime::now(),
        stage,
        stats: summary.stats.clone(),
        elapsed: started.elapsed(),
        blackout: summary.blackout,
    };
    job.change_course(|course| course.summary = Some(summary.clone()));
    job.tell(What::Switched(summary));
    job.saw_progress(progress);
}
