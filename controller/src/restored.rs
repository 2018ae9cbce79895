//! A database that was restored from a backup becomes the one in use: `drover-controller adopt-restored`.
//!
//! Promise: afterwards its term is above everything that any agent who answered has obeyed, and every migration that
//! such an agent has not closed is a row, or is named as one that cannot be yet.

use std::sync::Arc;

use drover_proto::ids::{HostId, MigrationId};
use drover_proto::v1::UnfinishedJournal;
use uuid::Uuid;

use crate::adoption;
use crate::agents::Agents;
use crate::recovery::{ALL_HOSTS, ask_all};
use crate::store::{Result, Store, StoreError, Term};

/// What `drover-controller adopt-restored` found and did.
#[derive(Debug)]
pub struct Restored {
    pub term: Term,
    /// Migrations that this database did not know.
    pub adopted: Vec<MigrationId>,
    /// Journals that cannot be rows yet: their host is not registered, or their guest has another migration.
    pub left: Vec<String>,
    pub silent: Vec<HostId>,
}

/// Why a restored database was not adopted.
#[derive(Debug, thiserror::Error)]
pub enum NotAdopted {
    #[error(
        "these hosts do not answer: {0}; bring their agents back, or say --allow-silent: what they know is adopted when they register"
    )]
    Silent(String),
    #[error(
        "no host is registered in this database; start the controller, wait until the agents have registered, stop it, and try again"
    )]
    NoHosts,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a restored database the one in use: asks all agents, takes up what it does not know, and raises the term above
/// everything that any of them has obeyed. The next start is in office.
pub async fn adopt_restored(
    store: &Arc<dyn Store>,
    agents: &Agents,
    allow_silent: bool,
) -> std::result::Result<Restored, NotAdopted> {
    let hosts = store.hosts(None, ALL_HOSTS).await?;
    if hosts.is_empty() {
        return Err(NotAdopted::NoHosts);
    }
    let answers = ask_all(store, agents).await?;
    let answered = |host: &HostId| answers.iter().any(|(answer, _)| *answer == *host);
    let silent: Vec<_> = hosts
        .into_iter()
        .map(|host| host.id)
        .filter(|id| !answered(id))
        .collect();
    if !silent.is_empty() && !allow_silent {
        let names: Vec<_> = silent.iter().map(HostId::as_str).collect();
        return Err(NotAdopted::Silent(names.join(", ")));
    }
    let highest = answers.iter().map(|(_, status)| status.highest_term).max().unwrap_or(0);
    let mut restored = Restored {
        term: store.raise_term(highest, Uuid::new_v4()).await?,
        adopted: Vec::new(),
        left: Vec::new(),
        silent,
    };
    for (host, status) in &answers {
        for journal in &status.unfinished_journals {
            adopt_journal(store, host, journal, &mut restored).await?;
        }
    }
    Ok(restored)
}

async fn adopt_journal(
    store: &Arc<dyn Store>,
    host: &HostId,
    journal: &UnfinishedJournal,
    restored: &mut Restored,
) -> Result<()> {
    let Ok(id) = MigrationId::from_resource_name(&journal.migration) else {
        return Ok(());
    };
    if store.migration(id).await?.is_some() {
        return Ok(());
    }
    match adoption::adopt(&**store, host, journal).await? {
        Some(_) => restored.adopted.push(id),
        None => restored.left.push(format!("{} at {host}", journal.migration)),
    }
    Ok(())
}
