//! Destination, a guest that is shut off: waits for its files, with a ticket, also after a restart of the agent.
//!
//! Nothing is made before the first connection comes. What was received stays while the migration is open: the next
//! connection goes on from there.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use drover_proto::failure::{Failure, Reason};
use drover_proto::fault_points::{self, point};
use drover_proto::ids::{GuestId, MigrationId};
use tokio_util::sync::CancellationToken;

use super::incoming::{IncomingJob, call_log};
use super::prepare::{PrepareAnswer, part_ticket};
use super::restart::awaits_files;
use super::{Jobs, errors, lock, offline_coming};
use crate::hypervisor::{Cookie, GuestFacts};
use crate::images::Identity;
use crate::journal::{Coming, DestinationPart, DestinationState, OpenPage};
use crate::offline::arriving::Names;
use crate::offline::calls::FileCall;
use crate::offline::receive::Expected;
use crate::offline::sink::{Begins, FileSink, Verified};
use crate::offline::{FileError, FileSpec, arriving};
use crate::storage_directories::StorageDirectories;
use crate::tunnel::Registration;

/// A source that is started anew needs longer than one that only has to connect.
const PATIENCE: u32 = 10;

impl Jobs {
    /// Before anything is written down: names that are free, directories that may be used, space.
    pub(super) async fn refuse_files(&self, migration: MigrationId, coming: &Coming) -> Result<(), Failure> {
        let (allowed, files, promised) = (self.storage.clone(), coming.files.clone(), self.promised(migration));
        let check = move || arriving::check_room(&allowed, &files, migration, &promised);
        let checked = tokio::task::spawn_blocking(check).await;
        let checked = checked.map_err(|error| Failure::internal(format!("a check broke off: {error}")))?;
        checked.map_err(|error| Failure::from(error).at_host(self.host.clone()))
    }

    /// Lets the source's agent in from now on. A repeat changes nothing.
    pub(super) async fn wait_for_files(self: &Arc<Self>, page: &mut OpenPage) -> Result<PrepareAnswer, Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let none = || Failure::internal("a record without files cannot be waited for");
        let part = record.destination().ok_or_else(none)?;
        let coming = part.offline.as_ref().ok_or_else(none)?;
        let answer = PrepareAnswer {
            ticket: part_ticket(&record)?,
            cookie: Cookie::default(),
        };
        if self.incoming_job(record.migration).is_some() {
            return Ok(answer);
        }
        let files: Vec<FileSpec> = coming.files.iter().map(|file| file.spec.clone()).collect();
        let definition = part.inactive_xml.as_deref().unwrap_or_default();
        let (writing, over) = (Arc::new(tokio::sync::Mutex::new(())), CancellationToken::new());
        let expected = Expected {
            migration: record.migration,
            allowed: self.storage.clone(),
            qcow2: offline_coming::qcow2(definition, &files)?,
            files,
            group: self.sockets.group(),
            writing: Arc::clone(&writing),
            over: over.clone(),
            gate: self.gate.clone(),
        };
        let tunnel = self.tunnel.register(Registration {
            migration: record.migration,
            attempt: record.attempt,
            ticket: part.ticket.clone(),
            source: part.peer.clone(),
            memory_socket: self.sockets.destination(record.migration),
            disks_socket: None,
            files: Some(FileSink::new(
                expected,
                self.write_begins(record.migration),
                self.write_verified(record.migration),
            )),
            valid_for: self.limits.ticket * PATIENCE,
        })?;
        let calls = call_log(&self.host, record.calls.clone());
        let job = Arc::new(IncomingJob::of_files(record.migration, calls, tunnel, writing, over));
        lock(&self.incoming).insert(record.migration, Arc::clone(&job));
        // What is whole may be the only copy by now: it waits for whoever decides.
        if !coming.verified {
            self.expire_unused(&job, &record);
        }
        fault_points::reach(point::DESTINATION_PREPARED).await;
        Ok(answer)
    }

    /// From now on files are written to: what was verified is so no more.
    fn write_begins(self: &Arc<Self>, migration: MigrationId) -> Arc<Begins> {
        let jobs: Weak<Self> = Arc::downgrade(self);
        Arc::new(move || {
            let jobs = jobs.clone();
            Box::pin(async move {
                let gone = || Failure::new(Reason::NotServing, "the agent is being stopped");
                let jobs = jobs.upgrade().ok_or_else(gone)?;
                let writer = Arc::clone(&jobs);
                let write = async move { writer.write_incomplete(migration).await };
                jobs.detached(write).await
            })
        })
    }

    async fn write_incomplete(&self, migration: MigrationId) -> Result<(), Failure> {
        let mut page = self.lock(migration).await?;
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let part = record.destination();
        if !part.is_some_and(|part| awaits_files(&record, part.state)) {
            let message = format!("this host's journal says {}", record.state_name());
            return Err(Failure::new(Reason::MigrationState, message));
        }
        if part
            .and_then(|part| part.offline.as_ref())
            .is_some_and(|coming| coming.verified)
        {
            page.change(|record| {
                if let Some(coming) = record.destination_mut().and_then(|part| part.offline.as_mut()) {
                    coming.verified = false;
                }
            })
            .await?;
        }
        Ok(())
    }

    /// All files were read back from the disk: that is in the journal before the source hears of it.
    fn write_verified(self: &Arc<Self>, migration: MigrationId) -> Arc<Verified> {
        let jobs: Weak<Self> = Arc::downgrade(self);
        Arc::new(move |received: Vec<Identity>| {
            let jobs = jobs.clone();
            Box::pin(async move {
                let gone = || Failure::new(Reason::NotServing, "the agent is being stopped");
                let jobs = jobs.upgrade().ok_or_else(gone)?;
                let writer = Arc::clone(&jobs);
                let write = async move { writer.write_received(migration, &received).await };
                jobs.detached(write).await
            })
        })
    }

    async fn write_received(&self, migration: MigrationId, received: &[Identity]) -> Result<(), Failure> {
        let mut page = self.lock(migration).await?;
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let state = record.destination().map(|part| part.state);
        if state != Some(DestinationState::Waiting) {
            let message = format!("this host's journal says {}", record.state_name());
            return Err(Failure::new(Reason::MigrationState, message));
        }
        page.change(|record| {
            let coming = record.destination_mut().and_then(|part| part.offline.as_mut());
            if let Some(coming) = coming {
                for (file, identity) in coming.files.iter_mut().zip(received) {
                    file.identity = Some(identity.clone());
                }
                coming.verified = true;
            }
        })
        .await?;
        Ok(())
    }

    /// Work with one file, off the async threads. It is done to its end also where nobody waits for it.
    pub(super) async fn with_file(
        &self,
        call: FileCall,
        path: PathBuf,
        work: impl FnOnce(&StorageDirectories) -> Result<(), FileError> + Send + 'static,
    ) -> Result<(), FileError> {
        let (allowed, broken) = (self.storage.clone(), path.clone());
        let done = async {
            let done = tokio::task::spawn_blocking(move || work(&allowed)).await;
            done.unwrap_or_else(|error| Err(FileError::io(&broken, std::io::Error::other(error))))
        };
        call.through(&self.gate, |stopped| FileError::io(&path, stopped.into()), done)
            .await
    }

    /// Verdict NeverRan: what came goes. Where the guest may have been started from it, it stays.
    pub(super) async fn remove_files(&self, migration: MigrationId, part: &DestinationPart) -> Result<(), Failure> {
        let Some(coming) = &part.offline else { return Ok(()) };
        let names = match part.state {
            DestinationState::Waiting | DestinationState::Revoked | DestinationState::Failed => Names::All,
            DestinationState::Finishing => Names::Partial,
            DestinationState::Resuming | DestinationState::Ran => {
                tracing::warn!(migration_id = %migration, "the guest's files stay: it may have been started from them");
                return Ok(());
            }
        };
        let failed =
            |error: FileError| Failure::new(Reason::ResourceExhausted, error.to_string()).at_host(self.host.clone());
        for file in coming.files.clone() {
            let path = file.spec.path.clone();
            let work = move |allowed: &StorageDirectories| arriving::remove(allowed, &file, migration, names);
            self.with_file(FileCall::Remove, path, work).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Defines the guest here; done where it is defined.
    pub(super) async fn define_arrived(&self, guest: GuestId, name: &str, xml: &str) -> Result<bool, Failure> {
        let found = self.hypervisor.guest(guest).await.map_err(errors::unsure)?;
        if found.is_some() {
            return Ok(true);
        }
        let defined = self.hypervisor.define(xml).await;
        let found = self.hypervisor.guest(guest).await.map_err(errors::unsure)?;
        match (found, defined) {
            (Some(_), _) => Ok(true),
            // libvirt does not say by its code that the name is taken.
            (None, Err(error)) if self.has_name(name).await? => {
                tracing::error!(%guest, %error, "another guest has its name here");
                Ok(false)
            }
            (None, Err(error)) if error.is_certain() => {
                tracing::error!(%guest, %error, "libvirt does not take the definition");
                Ok(false)
            }
            (None, Err(error)) => Err(errors::unsure(error)),
            (None, Ok(())) => Err(Failure::new(
                Reason::LibvirtUnavailable,
                "a definition is not there yet",
            )),
        }
    }

    async fn has_name(&self, name: &str) -> Result<bool, Failure> {
        let found = self.hypervisor.guest_by_name(name).await.map_err(errors::unsure)?;
        Ok(found.is_some())
    }

    /// Of which guest of this host the arriving one would take the place; it was not there when it was waited for.
    pub(super) async fn in_the_way(&self, guest: GuestId, name: &str) -> Result<Option<String>, Failure> {
        let same = self.hypervisor.guest(guest).await.map_err(errors::unsure)?;
        let named = self.hypervisor.guest_by_name(name).await.map_err(errors::unsure)?;
        let words = |found: GuestFacts| format!("this host has a guest {} named {} by now", found.id, found.name);
        Ok(same.or(named).map(words))
    }
}
