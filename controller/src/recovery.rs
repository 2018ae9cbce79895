//! What a controller does before it works: takes office, and takes up what an earlier one left.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use drover_proto::agent::v1::{AgentStatus, GetAgentStatusRequest};
use drover_proto::ids::HostId;
use uuid::Uuid;

use crate::agents::Agents;
use crate::executor::Executor;
use crate::ledger::{Change, Ledger};
use crate::office::Standing;
use crate::progress;
use crate::saga::Position;
use crate::store::{Filter, Record, Result, Step, Store, Term};
use crate::trace;

/// So long an agent may take to say which term it obeys. One that is silent refuses our commands later.
const PATIENCE: Duration = Duration::from_secs(3);

/// More hosts than any controller has.
pub(crate) const ALL_HOSTS: u32 = u32::MAX;

/// A record that could not be written is tried again, first after this time, then less often.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A span is exported within this time after its end.
const EXPORT: Duration = Duration::from_secs(10);

/// So many migrations, the newest, are looked at for spans that were lost.
const NEWEST: u32 = 200;

/// Raises the term above everything that was ever obeyed, unless the agents know more than this store: then it is
/// an old copy, or another one, and must not command.
pub async fn take_office(store: &Arc<dyn Store>, agents: &Agents) -> Result<Standing> {
    let own = store.term().await?;
    let mut highest = 0;
    for (host, status) in ask_all(store, agents).await? {
        if let Some(why) = knows_more(own, &status) {
            let why = format!("the agent of {host} {why}: this database is an old copy, or not the one in use");
            tracing::error!("read-only: {why}");
            return Ok(Standing::ReadOnly(why));
        }
        highest = highest.max(status.highest_term);
    }
    let term = store.raise_term(highest, Uuid::new_v4()).await?;
    tracing::info!(term = term.number, "in office");
    Ok(Standing::InOffice(term))
}

/// Shows the new term to every registered agent, so that whoever was in office before commands nothing any more, also
/// where this controller has nothing to command. Those that do not answer hear of it when they register.
pub async fn announce(store: &Arc<dyn Store>, agents: &Agents) -> Result<()> {
    let hosts = store.hosts(None, ALL_HOSTS).await?;
    let told = hosts.into_iter().map(|host| async move {
        let agent = agents.of(&host.id).await.ok()?;
        let request = GetAgentStatusRequest {
            fence: agent.fence().ok()?,
        };
        tokio::time::timeout(PATIENCE, agent.get_agent_status(request))
            .await
            .ok()?
            .ok()
    });
    futures::future::join_all(told).await;
    Ok(())
}

/// Asks every registered agent at once; those that do not answer are not waited for.
pub(crate) async fn ask_all(store: &Arc<dyn Store>, agents: &Agents) -> Result<Vec<(HostId, AgentStatus)>> {
    let hosts = store.hosts(None, ALL_HOSTS).await?;
    let questions = hosts.into_iter().map(|host| async move {
        let agent = agents.of(&host.id).await.ok()?;
        let question = agent.get_agent_status(GetAgentStatusRequest { fence: None });
        let status = tokio::time::timeout(PATIENCE, question).await.ok()?.ok()?;
        Some((host.id, status))
    });
    Ok(futures::future::join_all(questions)
        .await
        .into_iter()
        .flatten()
        .collect())
}

fn knows_more(own: Option<Term>, status: &AgentStatus) -> Option<String> {
    let Some(own) = own else {
        let known = status.highest_term > 0;
        return known.then(|| format!("obeys term {}, this database has none", status.highest_term));
    };
    if status.highest_term > own.number {
        return Some(format!(
            "obeys term {}, this database is at {}",
            status.highest_term, own.number
        ));
    }
    let other = status.highest_term == own.number && status.store_instance != own.instance.to_string();
    other.then(|| format!("obeys term {} of another database", status.highest_term))
}

/// Takes up every unfinished migration: steps that were under way are marked, and the phases look again. One whose
/// record cannot be written now is tried again until it can.
pub async fn take_up_all(ledger: &Ledger, executor: &Executor) -> Result<()> {
    for record in ledger.store.unfinished().await? {
        if let Err(error) = take_up(ledger, executor, &record).await {
            tracing::error!(migration_id = %record.id, "it cannot be taken up yet: {error}");
            tokio::spawn(take_up_later(ledger.clone(), executor.clone(), record));
        }
    }
    Ok(())
}

async fn take_up_later(ledger: Ledger, executor: Executor, record: Record) {
    let mut pause = FIRST_PAUSE;
    while !executor.is_over() {
        tokio::time::sleep(pause).await;
        match take_up(&ledger, &executor, &record).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(migration_id = %record.id, "it cannot be taken up yet: {error}"),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn take_up(ledger: &Ledger, executor: &Executor, record: &Record) -> Result<()> {
    close_steps(ledger, record).await?;
    match record.position {
        Position::At(phase) => {
            trace::tell(
                record,
                || tracing::info!(migration_id = %record.id, %phase, "taken up again"),
            );
            executor.take_up(record.id);
        }
        Position::Stuck(_) => {
            tracing::warn!(migration_id = %record.id, position = %record.position, "still stuck");
        }
        Position::Ended(_) => {}
    }
    Ok(())
}

/// Marks the steps that were under way, and writes the spans that may have been lost with their controller.
async fn close_steps(ledger: &Ledger, record: &Record) -> Result<()> {
    for step in ledger.store.steps(record.id).await? {
        if step.end.is_none() {
            ledger
                .change(record.id, |_| Change::Write(progress::interrupted(&step)))
                .await?;
        }
        if may_be_lost(&step, record.updated) {
            trace::write_step(record, &step);
        }
    }
    Ok(())
}

/// Spans of migrations that came to rest right before the controller was lost.
pub async fn close_traces(store: &Arc<dyn Store>) -> Result<()> {
    let newest = store.migrations(&Filter::default(), None, NEWEST).await?;
    let Some(last_sign) = newest.iter().map(|record| record.updated).max() else {
        return Ok(());
    };
    let ended = |record: &&Record| record.ended.is_some_and(|ended| is_recent(ended, last_sign));
    for record in newest.iter().filter(ended) {
        for step in store.steps(record.id).await? {
            if may_be_lost(&step, last_sign) {
                trace::write_step(record, &step);
            }
        }
        trace::write_root(record);
    }
    Ok(())
}

/// What ended long before the last sign of life was exported by the process that gave it.
fn may_be_lost(step: &Step, last_sign: SystemTime) -> bool {
    step.end.is_none_or(|(ended, _)| is_recent(ended, last_sign))
}

fn is_recent(ended: SystemTime, last_sign: SystemTime) -> bool {
    last_sign.duration_since(ended).is_ok_and(|age| age < EXPORT) || ended >= last_sign
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(highest_term: u64, instance: Uuid) -> AgentStatus {
        AgentStatus {
            highest_term,
            store_instance: instance.to_string(),
            ..AgentStatus::default()
        }
    }

    #[test]
    fn a_database_that_is_behind_its_agents_is_noticed() {
        let (own, other) = (Uuid::new_v4(), Uuid::new_v4());
        let term = Some(Term {
            number: 5,
            instance: own,
        });
        assert_eq!(knows_more(term, &status(5, own)), None);
        assert_eq!(knows_more(term, &status(4, other)), None);
        assert_eq!(knows_more(term, &status(0, Uuid::nil())), None);
        assert!(knows_more(term, &status(6, own)).is_some());
        assert!(knows_more(term, &status(5, other)).is_some());
        assert!(knows_more(None, &status(1, other)).is_some());
        assert_eq!(knows_more(None, &status(0, Uuid::nil())), None);
    }
}
