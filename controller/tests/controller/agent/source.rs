//! What the agent of a source does.

use super::*;

impl Agent {
    pub(super) async fn do_begin_outgoing(
        &self,
        request: Request<BeginOutgoingRequest>,
    ) -> Result<Response<BeginOutgoingResponse>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("BeginOutgoing", request.fence, move |state| {
            state.begun_with.push(request.destination_overrides.clone());
            let reference = request.migration.unwrap();
            let host = state.host(&name);
            let guest = host
                .guests
                .get_mut(&reference.guest_uuid)
                .ok_or_else(|| refuse(Reason::GuestNotFound))?;
            if guest.incarnation != request.incarnation {
                return Err(refuse(Reason::IncarnationMismatch));
            }
            let journal = host
                .journals
                .entry(reference.migration_id.clone())
                .or_insert_with(|| Journal {
                    record: JournalRecord {
                        migration: Some(reference.clone()),
                        state: JournalState::Sending.into(),
                        state_before: guest.state,
                        autostart_before: guest.autostart,
                        persistent: guest.persistent,
                        incarnation: guest.incarnation.clone(),
                        peer_host: request.destination_host.clone(),
                        ..JournalRecord::default()
                    },
                    policy: request.policy,
                    ..Journal::default()
                });
            if journal.record.tombstoned {
                return Err(refuse(Reason::Tombstoned));
            }
            guest.autostart = false;
            Ok(BeginOutgoingResponse {
                xml: "<domain/>".to_owned(),
                guest_name: guest.name.clone(),
                state_before: journal.record.state_before,
                autostart_before: journal.record.autostart_before,
                ..BeginOutgoingResponse::default()
            })
        })
        .await
    }

    pub(super) async fn do_start_migrate(
        &self,
        request: Request<StartMigrateRequest>,
    ) -> Result<Response<StartMigrateResponse>, Status> {
        let (name, request, world) = (self.host.clone(), request.into_inner(), self.world.clone());
        self.call("StartMigrate", request.fence, move |state| {
            let id = request.migration.unwrap().migration_id;
            let journal = state
                .host(&name)
                .journals
                .get_mut(&id)
                .ok_or_else(|| refuse(Reason::MigrationState))?;
            if journal.record.tombstoned {
                return Err(refuse(Reason::Tombstoned));
            }
            assert_eq!(request.ticket.as_ref(), [7; 32]);
            assert!(!request.destination_addresses.is_empty());
            if journal.performing || journal.outcome != PerformOutcome::Unspecified {
                return Ok(StartMigrateResponse {});
            }
            (journal.performing, journal.in_flight) = (true, true);
            journal.policy = request.policy;
            journal.expected = (request.dirty_bytes_per_second, request.link_bytes_per_second);
            if let Some(deadline) = request.policy.and_then(|policy| policy.deadline) {
                let (world, name, id) = (world.clone(), name.clone(), id.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(deadline.try_into().unwrap()).await;
                    world.lock().expire(&name, &id, deadline);
                });
            }
            let destination = peer_of(&journal.record);
            tokio::spawn(async move {
                world.gate.acquire().await.unwrap().forget();
                world.lock().complete(&name, &destination, &id);
            });
            Ok(StartMigrateResponse {})
        })
        .await
    }

    pub(super) async fn do_adjust_outgoing(
        &self,
        request: Request<AdjustOutgoingRequest>,
    ) -> Result<Response<AdjustOutgoingResponse>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("AdjustOutgoing", request.fence, move |state| {
            let id = request.migration.unwrap().migration_id;
            let journal = state
                .host(&name)
                .journals
                .get_mut(&id)
                .ok_or_else(|| refuse(Reason::MigrationNotFound))?;
            if journal.record.tombstoned {
                return Err(refuse(Reason::Tombstoned));
            }
            if !journal.performing && journal.outcome != PerformOutcome::Unspecified {
                return Err(refuse(Reason::TooLate));
            }
            let (ordered, known) = (request.policy.unwrap(), journal.policy.unwrap_or_default());
            if ordered.revision >= known.revision {
                journal.policy = Some(ordered);
            }
            Ok(AdjustOutgoingResponse {})
        })
        .await
    }

    pub(super) async fn do_watch_outgoing(
        &self,
        request: Request<WatchOutgoingRequest>,
    ) -> Result<Response<Watch>, Status> {
        let reference = request.into_inner().migration.unwrap();
        let (host, id) = (self.host.clone(), reference.migration_id.clone());
        self.call("WatchOutgoing", None, |_| Ok(())).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let world = self.world.clone();
        tokio::spawn(async move {
            let send = |event| WatchOutgoingResponse {
                time: Some(now()),
                event: Some(event),
            };
            let mut told = 0;
            loop {
                let journal = world.lock().host(&host).journals.get(&id).cloned();
                let actions = journal.unwrap_or_default().actions;
                for action in actions.iter().skip(told) {
                    if sender.send(Ok(send(Event::Action(action.clone())))).await.is_err() {
                        return;
                    }
                }
                told = actions.len();
                let (goes_on, summary) = {
                    let mut state = world.lock();
                    let away = state.away.contains(&host);
                    let journal = state.host(&host).journals.get(&id).cloned().unwrap_or_default();
                    (journal.in_flight && journal.performing && !away, journal.summary)
                };
                let event = match summary {
                    _ if goes_on => Event::Progress(progress()),
                    Some(summary) => Event::Switched(summary),
                    None => return,
                };
                if sender.send(Ok(send(event))).await.is_err() || !goes_on {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(
            receiver,
        ))))
    }

    pub(super) async fn do_hand_over(
        &self,
        request: Request<HandOverRequest>,
    ) -> Result<Response<HandOverResponse>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("HandOver", request.fence, move |state| {
            let id = request.migration.unwrap().migration_id;
            let journal = &state.host(&host).journals[&id];
            if journal.performing {
                return Err(refuse(Reason::StillPerforming));
            }
            if journal.record.tombstoned {
                return Err(refuse(Reason::Tombstoned));
            }
            let destination = peer_of(&journal.record);
            let journal = state.host(&host).journals.get_mut(&id).unwrap();
            journal.record.set_state(JournalState::HandedOver);
            state.hand_over(&host, &destination, &id);
            Ok(HandOverResponse {
                summary: state.host(&host).journals[&id].summary,
            })
        })
        .await
    }

    pub(super) async fn do_abort_outgoing(
        &self,
        request: Request<AbortOutgoingRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("AbortOutgoing", request.fence, move |state| {
            let reference = request.migration.unwrap();
            let journal = state
                .host(&host)
                .journals
                .entry(reference.migration_id.clone())
                .or_default();
            journal.record.tombstoned = true;
            if journal.performing {
                (journal.performing, journal.in_flight) = (false, false);
                journal.outcome = PerformOutcome::Failed;
            }
            Ok(state.status(&host, &reference))
        })
        .await
    }

    pub(super) async fn do_settle_outgoing(
        &self,
        request: Request<SettleOutgoingRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("SettleOutgoing", request.fence.clone(), move |state| {
            let (verdict, reference) = (request.verdict(), request.migration.clone().unwrap());
            let there = state
                .other_side(&name, &reference.migration_id)
                .map(JournalRecord::state);
            let here = state.hosts[&name].journals.get(&reference.migration_id);
            let here = here.map(|journal| (journal.record.state(), journal.record.tombstoned));
            if !request.fenced && !state.word {
                match verdict {
                    Verdict::Ran => assert_eq!(there, Some(JournalState::Ran), "removed before the guest ran there"),
                    Verdict::NeverRan => assert!(
                        matches!(there, Some(JournalState::Revoked | JournalState::Failed))
                            || matches!(here, Some((JournalState::Sending | JournalState::Unspecified, true))),
                        "given back without a verdict: {here:?} {there:?}"
                    ),
                    Verdict::Unspecified => {}
                }
            }
            let host = state.host(&name);
            let journal = host
                .journals
                .get_mut(&reference.migration_id)
                .ok_or_else(|| refuse(Reason::MigrationNotFound))?;
            let decided = journal.record.verdict();
            if decided != Verdict::Unspecified && decided != verdict {
                return Err(refuse(Reason::VerdictConflict));
            }
            journal.record.set_verdict(verdict);
            match verdict {
                Verdict::Ran => {
                    if host
                        .guests
                        .get(&reference.guest_uuid)
                        .is_some_and(|guest| guest.incarnation == journal.record.incarnation)
                    {
                        state.remove_copy(&name);
                    }
                }
                Verdict::NeverRan => {
                    if let Some(guest) = host.guests.get_mut(&reference.guest_uuid)
                        && journal.record.state() != JournalState::Unspecified
                    {
                        guest.state = journal.record.state_before;
                        guest.autostart = journal.record.autostart_before;
                    }
                }
                Verdict::Unspecified => return Err(refuse(Reason::InvalidArgument)),
            }
            Ok(state.status(&name, &reference))
        })
        .await
    }
}
