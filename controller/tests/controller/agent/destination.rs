//! What the agent of a destination does, and the end on both sides.

use super::*;

impl Agent {
    pub(super) async fn do_prepare_incoming(
        &self,
        request: Request<PrepareIncomingRequest>,
    ) -> Result<Response<PrepareIncomingResponse>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("PrepareIncoming", request.fence, move |state| {
            let reference = request.migration.unwrap();
            let incarnation = state.incarnation();
            let source = request.source_host.trim_start_matches("hosts/").to_owned();
            let mut copy = state.host(&source).guests[&reference.guest_uuid].clone();
            let host = state.host(&name);
            if let Some(known) = host.journals.get(&reference.migration_id) {
                if known.record.tombstoned || known.record.state() != JournalState::Waiting {
                    return Err(refuse(Reason::Tombstoned));
                }
            } else {
                copy.set_state(LibvirtState::PausedMigrating);
                copy.incarnation = Some(incarnation.clone());
                copy.persistent = false;
                host.guests.insert(reference.guest_uuid.clone(), copy);
                let record = JournalRecord {
                    migration: Some(reference.clone()),
                    state: JournalState::Waiting.into(),
                    incarnation: Some(incarnation),
                    autostart_before: request.autostart_before,
                    peer_host: request.source_host.clone(),
                    ..JournalRecord::default()
                };
                host.journals.insert(
                    reference.migration_id,
                    Journal {
                        record,
                        ..Journal::default()
                    },
                );
            }
            Ok(PrepareIncomingResponse {
                ticket: vec![7; 32].into(),
                cookie: vec![8].into(),
            })
        })
        .await
    }

    pub(super) async fn do_finish_incoming(
        &self,
        request: Request<FinishIncomingRequest>,
    ) -> Result<Response<FinishIncomingResponse>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("FinishIncoming", request.fence, move |state| {
            let id = request.migration.unwrap().migration_id;
            let source = peer_of(&state.host(&host).journals[&id].record);
            let there = state.other_side(&host, &id).map(JournalRecord::state);
            assert_eq!(
                there,
                Some(JournalState::HandedOver),
                "finished before the source had written that it hands over"
            );
            state.hand_over(&source, &host, &id);
            Ok(FinishIncomingResponse {
                switch_time: Some(now()),
            })
        })
        .await
    }

    pub(super) async fn do_revoke_incoming(
        &self,
        request: Request<RevokeIncomingRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("RevokeIncoming", request.fence, move |state| {
            let reference = request.migration.unwrap();
            let source = state.other_side(&name, &reference.migration_id);
            assert!(
                source.is_some_and(|source| source.tombstoned) || state.word,
                "revoked before the source was tombstoned"
            );
            let host = state.host(&name);
            let journal = host.journals.entry(reference.migration_id.clone()).or_default();
            match journal.record.state() {
                JournalState::Waiting => {
                    journal.record.tombstoned = true;
                    journal.record.set_state(JournalState::Revoked);
                    host.guests.remove(&reference.guest_uuid);
                }
                JournalState::Unspecified => journal.record.tombstoned = true,
                JournalState::Sending
                | JournalState::HandedOver
                | JournalState::Finishing
                | JournalState::Resuming
                | JournalState::Ran
                | JournalState::Revoked
                | JournalState::Failed => {}
            }
            Ok(state.status(&name, &reference))
        })
        .await
    }

    pub(super) async fn do_settle_incoming(
        &self,
        request: Request<SettleIncomingRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("SettleIncoming", request.fence.clone(), move |state| {
            let (verdict, reference) = (request.verdict(), request.migration.clone().unwrap());
            let host = state.host(&name);
            let journal = host.journals.entry(reference.migration_id.clone()).or_default();
            let decided = journal.record.verdict();
            if decided != Verdict::Unspecified && decided != verdict {
                return Err(refuse(Reason::VerdictConflict));
            }
            journal.record.set_verdict(verdict);
            if request.fenced && verdict == Verdict::NeverRan {
                host.guests.remove(&reference.guest_uuid);
            }
            if verdict == Verdict::Ran
                && let Some(guest) = host.guests.get_mut(&reference.guest_uuid)
            {
                guest.autostart = journal.record.autostart_before;
            }
            Ok(state.status(&name, &reference))
        })
        .await
    }

    pub(super) async fn do_close_migration(
        &self,
        request: Request<CloseMigrationRequest>,
    ) -> Result<Response<CloseMigrationResponse>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("CloseMigration", request.fence, move |state| {
            let id = request.migration.unwrap().migration_id;
            let journal = state
                .host(&name)
                .journals
                .get_mut(&id)
                .ok_or_else(|| refuse(Reason::MigrationNotFound))?;
            if journal.record.verdict() == Verdict::Unspecified {
                return Err(refuse(Reason::NoVerdict));
            }
            journal.record.closed = true;
            Ok(CloseMigrationResponse {})
        })
        .await
    }
}
