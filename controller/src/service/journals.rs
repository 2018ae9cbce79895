//! What agents say of their journals when they register: words that they have to adopt, words that they have
//! adopted, and migrations that the store does not know.

use std::time::SystemTime;

use drover_proto::failure::Failure;
use drover_proto::ids::{HostId, MigrationId};
use drover_proto::time::system_time;
use drover_proto::v1::{AdoptedResolution, HostResolution, ResolvedOwner, UnfinishedJournal};

use super::{Api, errors};
use crate::progress;
use crate::saga::Phase;
use crate::store::{Created, Record, StoreError};
use crate::{adoption, trace};

/// More journals in one registration are not read; the rest follows when these are closed.
const MOST_JOURNALS: usize = 1000;

impl Api {
    /// What an agent has to know before it serves: what was decided by an operator's word while it was away. Only a
    /// word that was acted upon: before that, what the agent knows counts.
    pub(super) async fn resolutions(
        &self,
        host: &HostId,
        journals: &[UnfinishedJournal],
    ) -> Result<Vec<HostResolution>, Failure> {
        // Who is not in office has nothing to say.
        let Ok(fence) = self.office.fence() else {
            return Ok(Vec::new());
        };
        let mut resolutions = Vec::new();
        for (_, record) in self.known(journals).await? {
            let fenced = record.fenced().is_some_and(|side| record.host_of(side) == host);
            let Some(owner) = owner(&record).filter(|_| fenced) else {
                continue;
            };
            resolutions.push(HostResolution {
                migration: record.id.resource_name(),
                owner: owner.into(),
                term: fence.term,
                store_instance: fence.store_instance.clone(),
            });
        }
        Ok(resolutions)
    }

    /// The agent of a fenced host did what was decided. Where a copy ran there, somebody has to be told.
    pub(super) async fn note_adopted(&self, host: &HostId, all: &[AdoptedResolution]) -> Result<(), Failure> {
        for said in all.iter().take(MOST_JOURNALS) {
            let Some((id, at)) = adopted(said) else { continue };
            let mut news = false;
            let changed = self.ledger.change(id, |record| {
                let change = progress::adopted(record, host, at, said.copy_ran);
                news = matches!(change, crate::ledger::Change::Write(_));
                change
            });
            let record = match changed.await {
                Ok(record) => record,
                Err(StoreError::NotFound) => continue,
                Err(error) => return Err(errors::store(error)),
            };
            if news {
                self.tell_adopted(&record, host, said.copy_ran);
            }
        }
        Ok(())
    }

    fn tell_adopted(&self, record: &Record, host: &HostId, copy_ran: bool) {
        let (id, guest) = (record.id, record.guest);
        trace::tell(record, || {
            if copy_ran {
                tracing::error!(
                    migration_id = %id, %host, %guest,
                    "{host} was said to be fenced, and was not: the guest ran twice; its copy there was stopped, its disks may be damaged"
                );
            } else {
                tracing::info!(migration_id = %id, %host, "the fenced host is back and has adopted what was decided");
            }
        });
        if copy_ran {
            self.executor.metrics().ran_twice();
        }
    }

    /// Journals of migrations that this store does not know: it was lost, or restored from a backup. They are taken
    /// up as rows, and looking decides how they end.
    pub(super) async fn note_journals(&self, host: &HostId, journals: &[UnfinishedJournal]) -> Result<(), Failure> {
        let mut orphans = Vec::new();
        for journal in journals.iter().take(MOST_JOURNALS) {
            let Ok(id) = MigrationId::from_resource_name(&journal.migration) else {
                continue;
            };
            let known = self.ledger.store.migration(id).await.map_err(errors::store)?;
            if known.is_none() && !self.adopt(host, journal).await? {
                orphans.push(id);
            }
        }
        for id in self.registry.note_orphans(host, orphans) {
            let state = journals
                .iter()
                .find(|journal| journal.migration.ends_with(&id.to_string()));
            let state = state.map_or("", |journal| journal.journal_state.as_str());
            tracing::error!(%host, migration_id = %id, state, "this agent has a journal of a migration that the store does not know");
        }
        Ok(())
    }

    /// Whether the migration has a row now.
    async fn adopt(&self, host: &HostId, journal: &UnfinishedJournal) -> Result<bool, Failure> {
        if !self.office.is_in_office() {
            return Ok(false);
        }
        let adopted = adoption::adopt(&*self.ledger.store, host, journal).await;
        match adopted.map_err(errors::store)? {
            Some(Created::New(record)) => {
                self.executor.take_up(record.id);
                Ok(true)
            }
            Some(Created::Same(_)) => Ok(true),
            None => Ok(false),
        }
    }

    async fn known<'a>(
        &self,
        journals: &'a [UnfinishedJournal],
    ) -> Result<Vec<(&'a UnfinishedJournal, Record)>, Failure> {
        let mut known = Vec::new();
        for journal in journals.iter().take(MOST_JOURNALS) {
            let Ok(id) = MigrationId::from_resource_name(&journal.migration) else {
                continue;
            };
            if let Some(record) = self.ledger.store.migration(id).await.map_err(errors::store)? {
                known.push((journal, record));
            }
        }
        Ok(known)
    }
}

/// Which word was adopted, and when: now, where the agent does not say.
pub(super) fn adopted(said: &AdoptedResolution) -> Option<(MigrationId, SystemTime)> {
    let id = MigrationId::from_resource_name(&said.migration).ok()?;
    let at = said.adopt_time.as_ref().and_then(system_time);
    Some((id, at.unwrap_or_else(SystemTime::now)))
}

/// Who has the guest, once that was carried out at the side that is not fenced.
fn owner(record: &Record) -> Option<ResolvedOwner> {
    match record.phase {
        Phase::Verify | Phase::Finalize => Some(ResolvedOwner::Destination),
        Phase::Discard => Some(ResolvedOwner::Source),
        Phase::Validate | Phase::Prepare | Phase::Transfer | Phase::Abort => None,
    }
}
