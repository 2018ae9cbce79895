//! `drover migrate`: finds the guest, asks for the move, and watches it go.

use std::time::Duration;

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::{GuestId, HostId, MigrationId};
use drover_proto::v1::{CreateMigrationRequest, Migration, MigrationState};
use tonic::{Request, Status};

use crate::args::{Migrate, Output};
use crate::client::{Controller, request};
use crate::exit::{Exit, Problem, of_failed, of_migration};
use crate::follow::{Follower, News, is_at_rest};
use crate::hosts::{explain, host_id};
use crate::live::Display;
use crate::render::record;
use crate::{json, lookup, out};

/// The same request is sent so often while the controller does not answer: its id makes that one migration.
const TRIES: u32 = 3;

const PAUSE: Duration = Duration::from_millis(500);

pub(crate) async fn run(mut controller: Controller, command: Migrate, output: Output) -> Result<Exit, Problem> {
    let destination = host_id(&command.to)?;
    let source = command.from.as_deref().map(host_id).transpose()?;

    let meant = match (command.guest.parse::<GuestId>(), &source, command.request_id) {
        (Ok(id), None, _) | (Ok(id), Some(_), Some(_)) => id.to_string(),
        (_, _, Some(_)) => {
            let found = lookup::guest_of_request(&mut controller, &command.guest, source.as_ref());
            found.await?.uuid
        }
        (_, _, None) => {
            lookup::guest(&mut controller, &command.guest, source.as_ref())
                .await?
                .uuid
        }
    };
    let wanted = CreateMigrationRequest {
        migration: Some(Migration {
            guest_uuid: meant,
            // As it was typed, and nothing else: the same command is the same request, wherever the guest is by now.
            source_host: source.as_ref().map(HostId::resource_name).unwrap_or_default(),
            destination_host: destination.resource_name(),
            labels: command.labels.into_iter().collect(),
            destination_overrides: command.overrides.message(),
            policy: command.policy.message(),
            ..Migration::default()
        }),
        request_id: command.request_id.unwrap_or_else(uuid::Uuid::new_v4).to_string(),
        validate_only: command.dry_run,
    };
    let created = match create(&mut controller, &wanted).await {
        Ok(created) => created,
        Err(status) => return Err(explain(&mut controller, status, &destination).await),
    };
    if command.dry_run {
        return checked(&created, output);
    }
    if command.no_wait {
        return show(&created, output).map(|()| Exit::Done);
    }
    let id = id_of(&created)?;
    let attention = |migration: &Migration| migration.state() == MigrationState::AttentionRequired;
    watch(controller, id, Some(created), output, |migration| {
        is_at_rest(migration) || attention(migration)
    })
    .await
}

async fn create(controller: &mut Controller, wanted: &CreateMigrationRequest) -> Result<Migration, Status> {
    let mut tries = 1;
    loop {
        let mut request = request(wanted.clone());
        pass_trace_on(&mut request);
        match controller.migrations.create_migration(request).await {
            Ok(created) => return Ok(created.into_inner()),
            Err(status) => {
                let failure = Failure::from_status(&status);
                let passes = matches!(
                    failure.reason,
                    Reason::HostUnreachable | Reason::DeadlineExceeded | Reason::NotServing | Reason::StoreFailed
                );
                if !passes || tries == TRIES {
                    return Err(status);
                }
            }
        }
        tries += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

/// What was checked, and whether the same command without `--dry-run` would be accepted.
fn checked(migration: &Migration, output: Output) -> Result<Exit, Problem> {
    match output {
        Output::Table => out::result(&record::checks(migration))?,
        Output::Json => show(migration, output)?,
    }
    Ok(match &migration.error {
        Some(_) => of_failed(migration),
        None => Exit::Done,
    })
}

/// A script that has a trace of its own gives it by the usual variable; the migration becomes part of it.
fn pass_trace_on<T>(request: &mut Request<T>) {
    let parent = std::env::var("TRACEPARENT").ok().and_then(|parent| parent.parse().ok());
    if let Some(parent) = parent {
        request.metadata_mut().insert("traceparent", parent);
    }
}

pub(crate) fn id_of(migration: &Migration) -> Result<MigrationId, Problem> {
    MigrationId::from_resource_name(&migration.name)
        .map_err(|error| Problem::new(Exit::Failed, format!("the controller's answer is not valid: {error}")))
}

/// Follows a migration with a display, then shows how it stands.
pub(crate) async fn watch(
    mut controller: Controller,
    id: MigrationId,
    known: Option<Migration>,
    output: Output,
    enough: impl Fn(&Migration) -> bool,
) -> Result<Exit, Problem> {
    let mut display = Display::new(output);
    if let Some(known) = &known {
        display.show(known);
    }
    let follow = Follower::new(controller.clone(), id, known).follow(enough, |news: News<'_>| display.hear(&news));
    let followed = tokio::select! {
        followed = follow => Some(followed),
        _ = tokio::signal::ctrl_c() => None,
    };
    display.clear();
    let Some(followed) = followed else {
        out::note(&interrupted(id));
        return Ok(Exit::Interrupted);
    };
    let followed = followed?;
    // The record holds more than the watch told: calls of both hosts, rounds.
    let migration = controller.migration(id).await.unwrap_or(followed);
    show(&migration, output)?;
    Ok(of_migration(&migration))
}

pub(crate) fn interrupted(id: MigrationId) -> String {
    format!(
        "\nThe migration goes on without you.\n  watch it again:  drover migration watch {id}\n  \
         undo it:         drover migration cancel {id}"
    )
}

pub(crate) fn show(migration: &Migration, output: Output) -> Result<(), Problem> {
    match output {
        Output::Table => out::result(&record::summary(migration)),
        Output::Json => out::json(&json::of("drover.v1.Migration", migration)?),
    }
}
