//! What a controller does before it works: takes office, and takes up what an earlier one left.

use std::sync::Arc;
use std::time::Duration;

use drover_proto::agent::v1::{AgentStatus, GetAgentStatusRequest};
use uuid::Uuid;

use crate::agents::Agents;
use crate::executor::Executor;
use crate::ledger::{Change, Ledger};
use crate::office::Standing;
use crate::progress;
use crate::saga::Position;
use crate::store::{Record, Result, Store, Term};
use crate::trace;

/// So long an agent may take to say which term it obeys. One that is silent refuses our commands later.
const PATIENCE: Duration = Duration::from_secs(3);

/// More hosts than any controller has.
const ALL_HOSTS: u32 = u32::MAX;

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

/// Asks every registered agent at once; those that do not answer are not waited for.
async fn ask_all(store: &Arc<dyn Store>, agents: &Agents) -> Result<Vec<(String, AgentStatus)>> {
    let hosts = store.hosts(None, ALL_HOSTS).await?;
    let questions = hosts.into_iter().map(|host| async move {
        let agent = agents.of(&host.id).await.ok()?;
        let question = agent.get_agent_status(GetAgentStatusRequest {});
        let status = tokio::time::timeout(PATIENCE, question).await.ok()?.ok()?;
        Some((host.id.to_string(), status))
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

/// Takes up every unfinished migration: steps that were under way are marked, and the phases look again.
pub async fn take_up_all(ledger: &Ledger, executor: &Executor) -> Result<()> {
    for record in ledger.store.unfinished().await? {
        mark_interrupted(ledger, &record).await?;
        match record.position {
            Position::At(phase) => {
                trace::tell(
                    &record,
                    || tracing::info!(migration_id = %record.id, %phase, "taken up again"),
                );
                executor.take_up(record.id);
            }
            Position::Stuck(_) => {
                tracing::warn!(migration_id = %record.id, position = %record.position, "still stuck");
            }
            Position::Ended(_) => {}
        }
    }
    Ok(())
}

async fn mark_interrupted(ledger: &Ledger, record: &Record) -> Result<()> {
    for step in ledger
        .store
        .steps(record.id)
        .await?
        .iter()
        .filter(|step| step.end.is_none())
    {
        ledger
            .change(record.id, |_| Change::Write(progress::interrupted(step)))
            .await?;
        trace::write_interrupted(record, step);
    }
    Ok(())
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
