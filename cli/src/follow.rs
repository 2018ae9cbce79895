//! Following a migration: a watch that survives a controller's restart. It goes on from its last message, by the
//! resume token.

use std::time::Duration;

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::MigrationId;
use drover_proto::v1::watch_migration_response::Event;
use drover_proto::v1::{Migration, MigrationState, WatchMigrationRequest, WatchMigrationResponse};
use tokio::time::{Instant, sleep};
use tonic::{Status, Streaming};

use crate::client::Controller;
use crate::exit::{Exit, Problem};
use crate::render::words::one_line;

/// So long an absent controller is waited for.
const PATIENCE: Duration = Duration::from_secs(600);

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a follower hears.
pub(crate) enum News<'a> {
    /// A message, and the migration as it is with it.
    Message(&'a WatchMigrationResponse, &'a Migration),
    /// The controller went away; why, where it said so. Told once until it is back.
    Lost(Option<&'a str>),
}

/// Whether it will change no more.
pub(crate) fn is_at_rest(migration: &Migration) -> bool {
    match migration.state() {
        MigrationState::Succeeded | MigrationState::Failed | MigrationState::Cancelled | MigrationState::GuestEnded => {
            true
        }
        MigrationState::Unspecified
        | MigrationState::Queued
        | MigrationState::Running
        | MigrationState::Cancelling
        | MigrationState::AttentionRequired => false,
    }
}

pub(crate) struct Follower {
    controller: Controller,
    id: MigrationId,
    resume_token: String,
    /// As of the last message.
    migration: Option<Migration>,
    /// When the controller was heard last; none before the first time.
    heard: Option<Instant>,
}

impl Follower {
    /// `known` is the record where the controller has just answered with it: then its absence is borne at once.
    pub(crate) fn new(controller: Controller, id: MigrationId, known: Option<Migration>) -> Self {
        let heard = known.is_some().then(Instant::now);
        Self {
            controller,
            id,
            resume_token: String::new(),
            migration: known,
            heard,
        }
    }

    /// Tells all that happens until `enough` of it has; gives the record as of then.
    pub(crate) async fn follow(
        mut self,
        enough: impl Fn(&Migration) -> bool,
        mut tell: impl FnMut(News<'_>),
    ) -> Result<Migration, Problem> {
        let mut pause = FIRST_PAUSE;
        let mut told = false;
        loop {
            let heard_before = self.heard;
            let ended = match self.open().await {
                Ok(stream) => self.read(stream, &enough, &mut tell).await,
                Err(status) => Err(status),
            };
            if self.heard != heard_before {
                (pause, told) = (FIRST_PAUSE, false);
            }
            match ended {
                Ok(Some(migration)) => return Ok(migration),
                Ok(None) => {}
                Err(status) => {
                    self.bear(&status)?;
                    if !told {
                        let failure = Failure::from_status(&status);
                        let why = failure.is_answered().then(|| one_line(&failure.message));
                        tell(News::Lost(why.as_deref()));
                        told = true;
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn open(&mut self) -> Result<Streaming<WatchMigrationResponse>, Status> {
        let request = WatchMigrationRequest {
            name: self.id.resource_name(),
            resume_token: self.resume_token.clone(),
        };
        Ok(self.controller.migrations.watch_migration(request).await?.into_inner())
    }

    /// Reads until there is enough; none where the stream ended before.
    async fn read(
        &mut self,
        mut stream: Streaming<WatchMigrationResponse>,
        enough: impl Fn(&Migration) -> bool,
        tell: &mut impl FnMut(News<'_>),
    ) -> Result<Option<Migration>, Status> {
        while let Some(message) = stream.message().await? {
            self.heard = Some(Instant::now());
            self.resume_token.clone_from(&message.resume_token);
            take_in(&mut self.migration, &message);
            let Some(migration) = &self.migration else { continue };
            tell(News::Message(&message, migration));
            if enough(migration) {
                return Ok(Some(migration.clone()));
            }
        }
        Ok(None)
    }

    /// Whether to try again after this error.
    fn bear(&mut self, status: &Status) -> Result<(), Problem> {
        let failure = Failure::from_status(status);
        if failure.reason == Reason::ResumeTokenExpired && !self.resume_token.is_empty() {
            self.resume_token.clear();
            return Ok(());
        }
        let passes = !failure.is_evidence() && failure.reason != Reason::Unimplemented;
        match self.heard {
            Some(heard) if passes && heard.elapsed() < PATIENCE => Ok(()),
            Some(_) if passes => Err(Problem::new(Exit::Unreachable, failure.message)
                .with_next(format!("the migration goes on: drover migration watch {}", self.id))),
            Some(_) | None => Err(status.clone().into()),
        }
    }
}

/// Brings the record up to date.
fn take_in(migration: &mut Option<Migration>, message: &WatchMigrationResponse) {
    match &message.event {
        Some(Event::Snapshot(new) | Event::Changed(new)) => {
            // A record without progress does not take back what was told of it.
            let progress = migration.as_mut().and_then(|old| old.progress.take());
            *migration = Some(Migration {
                progress: new.progress.clone().or(progress),
                ..new.clone()
            });
        }
        Some(Event::Progress(progress)) => {
            if let Some(migration) = migration {
                migration.progress = Some(progress.clone());
            }
        }
        Some(Event::GuestSwitched(switched)) => {
            if let Some(migration) = migration {
                migration.guest_host.clone_from(&switched.host);
            }
        }
        Some(Event::Heartbeat(_)) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use drover_proto::v1::{GuestSwitched, Heartbeat, Progress};

    use super::*;

    fn message(event: Event) -> WatchMigrationResponse {
        WatchMigrationResponse {
            event: Some(event),
            ..WatchMigrationResponse::default()
        }
    }

    #[test]
    fn the_record_follows_the_messages() {
        let mut migration = None;
        take_in(&mut migration, &message(Event::Progress(Progress::default())));
        assert_eq!(migration, None);
        let snapshot = Migration {
            guest_name: "demo".to_owned(),
            ..Migration::default()
        };
        take_in(&mut migration, &message(Event::Snapshot(snapshot)));
        take_in(
            &mut migration,
            &message(Event::Progress(Progress {
                iteration: 2,
                ..Progress::default()
            })),
        );
        let switched = GuestSwitched {
            host: "hosts/host-b".to_owned(),
            ..GuestSwitched::default()
        };
        take_in(&mut migration, &message(Event::GuestSwitched(switched)));
        take_in(&mut migration, &message(Event::Heartbeat(Heartbeat {})));
        let migration = migration.unwrap();
        assert_eq!(
            (migration.guest_name.as_str(), migration.guest_host.as_str()),
            ("demo", "hosts/host-b")
        );
        assert_eq!(migration.progress.unwrap().iteration, 2);
    }

    #[test]
    fn only_final_states_are_rest() {
        let at_rest = |state: MigrationState| {
            is_at_rest(&Migration {
                state: state.into(),
                ..Migration::default()
            })
        };
        assert!(at_rest(MigrationState::Succeeded) && at_rest(MigrationState::GuestEnded));
        assert!(!at_rest(MigrationState::Cancelling) && !at_rest(MigrationState::AttentionRequired));
    }
}
