//! `drover migration …` and `drover timeline`: look at migrations and act on them.

use std::io::IsTerminal;

use drover_proto::ids::MigrationId;
use drover_proto::v1::{
    CancelMigrationRequest, FencedSide, ListMigrationsResponse, Migration, MigrationState, ResolveMigrationRequest,
    RetryMigrationRequest,
};

use crate::args::{Migration as Command, Output};
use crate::client::{Controller, migration_id, request};
use crate::exit::{Exit, Problem, of_migration};
use crate::follow::{Follower, News, is_at_rest};
use crate::live::lost_line;
use crate::migrate::{interrupted, show, watch};
use crate::render::{lists, record, timeline};
use crate::{json, out, policy};

pub(crate) async fn run(mut controller: Controller, command: Command, output: Output) -> Result<Exit, Problem> {
    match command {
        Command::List { filter, limit } => list(controller, &filter, limit, output).await,
        Command::Get { id } => {
            let migration = controller.migration(migration_id(&id)?).await?;
            match output {
                Output::Table => out::result(&record::record(&migration))?,
                Output::Json => show(&migration, output)?,
            }
            Ok(Exit::Done)
        }
        Command::Watch { id } => match output {
            Output::Table => watch(controller, migration_id(&id)?, None, output, is_at_rest).await,
            Output::Json => stream(controller, migration_id(&id)?).await,
        },
        Command::Cancel { id, no_wait } => cancel(controller, migration_id(&id)?, no_wait, output).await,
        Command::Adjust(command) => {
            let id = migration_id(&command.id)?;
            policy::adjust(controller, id, command, output).await
        }
        Command::Retry { id } => {
            let request = request(RetryMigrationRequest {
                name: migration_id(&id)?.resource_name(),
                ..Default::default()
            });
            let migration = controller.migrations.retry_migration(request).await?.into_inner();
            show(&migration, output).map(|()| Exit::Done)
        }
        Command::Resolve {
            id,
            source_is_fenced,
            destination_is_fenced: _,
            yes,
        } => {
            let side = if source_is_fenced {
                FencedSide::Source
            } else {
                FencedSide::Destination
            };
            resolve(controller, migration_id(&id)?, side, yes, output).await
        }
    }
}

async fn list(mut controller: Controller, filter: &str, limit: u32, output: Output) -> Result<Exit, Problem> {
    let migrations = controller.list_migrations(filter, limit as usize).await?;
    match output {
        Output::Table => out::result(&lists::migrations(&migrations))?,
        Output::Json => {
            let all = ListMigrationsResponse {
                migrations,
                next_page_token: String::new(),
            };
            out::json(&json::of("drover.v1.ListMigrationsResponse", &all)?)?;
        }
    }
    Ok(Exit::Done)
}

/// Every message of a watch as a line of JSON.
async fn stream(controller: Controller, id: MigrationId) -> Result<Exit, Problem> {
    let tell = |news: News<'_>| match news {
        News::Message(message, _) => {
            let line = json::of("drover.v1.WatchMigrationResponse", message).map_err(Problem::from);
            if let Err(problem) = line.and_then(|line| out::json_line(&line)) {
                out::note(&problem.to_string());
            }
        }
        News::Lost(why) => out::note(&lost_line(why)),
    };
    tokio::select! {
        followed = Follower::new(controller, id, None).follow(is_at_rest, tell) => Ok(of_migration(&followed?)),
        _ = tokio::signal::ctrl_c() => {
            out::note(&interrupted(id));
            Ok(Exit::Interrupted)
        }
    }
}

async fn cancel(mut controller: Controller, id: MigrationId, no_wait: bool, output: Output) -> Result<Exit, Problem> {
    let request = request(CancelMigrationRequest {
        name: id.resource_name(),
        ..Default::default()
    });
    let asked = controller.migrations.cancel_migration(request).await?.into_inner();
    let exit = if no_wait {
        show(&asked, output)?;
        of_cancelled(&asked)
    } else {
        match watch(controller.clone(), id, Some(asked), output, is_at_rest).await? {
            Exit::Interrupted => Exit::Interrupted,
            Exit::Cancelled => Exit::Done,
            Exit::Done => Exit::Refused,
            other @ (Exit::Failed
            | Exit::Usage
            | Exit::Refused
            | Exit::NotFound
            | Exit::Unreachable
            | Exit::Attention
            | Exit::GuestEnded
            | Exit::NotAllowed) => other,
        }
    };
    if exit == Exit::Refused {
        out::note("It was too late: the guest is at its destination.");
    }
    Ok(exit)
}

/// What was asked for is that the guest stays: only a migration that succeeded did otherwise.
fn of_cancelled(migration: &Migration) -> Exit {
    if migration.cancelled_too_late || migration.state() == MigrationState::Succeeded {
        Exit::Refused
    } else {
        Exit::Done
    }
}

async fn resolve(
    mut controller: Controller,
    id: MigrationId,
    side: FencedSide,
    yes: bool,
    output: Output,
) -> Result<Exit, Problem> {
    let seen = controller.migration(id).await?;
    if !yes && !confirm(&question(&seen, side))? {
        out::note("Nothing was said.");
        return Ok(Exit::Refused);
    }
    let request = request(ResolveMigrationRequest {
        name: id.resource_name(),
        fenced_side: side.into(),
        // What was asked about is what was seen; the controller looks at the hosts anew.
        etag: String::new(),
    });
    let migration = controller.migrations.resolve_migration(request).await?.into_inner();
    show(&migration, output).map(|()| Exit::Done)
}

/// What the word means, for whoever gives it.
fn question(migration: &Migration, side: FencedSide) -> String {
    let id = |host: &str| host.trim_start_matches("hosts/").to_owned();
    let (source, destination) = (id(&migration.source_host), id(&migration.destination_host));
    let (fenced, other) = match side {
        FencedSide::Source => (source, destination),
        FencedSide::Destination | FencedSide::Unspecified => (destination, source),
    };
    format!(
        "You say that no copy of the guest runs on {fenced} any more. Drover will act on it: the guest belongs to\n\
         {other} from now on. If {fenced} still runs it, the guest runs twice and its disks are damaged.\n\
         Is {fenced} switched off, cut from the guest's storage, or was it seen that it runs no copy? [yes/no] "
    )
}

/// Only a plain yes is one. Where nobody can be asked, it has to be said beforehand.
fn confirm(question: &str) -> Result<bool, Problem> {
    if !std::io::stdin().is_terminal() {
        let why = "this has to be confirmed, and nobody can be asked: say --yes if no copy of the guest runs there";
        return Err(Problem::new(Exit::Usage, why));
    }
    out::ask(question)?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Problem::new(Exit::Failed, error.to_string()))?;
    Ok(answer.trim().eq_ignore_ascii_case("yes"))
}

pub(crate) async fn timeline(mut controller: Controller, id: &str, output: Output) -> Result<Exit, Problem> {
    let migration = controller.migration(migration_id(id)?).await?;
    match output {
        Output::Table => out::result(&timeline::timeline(&migration))?,
        Output::Json => show(&migration, output)?,
    }
    Ok(Exit::Done)
}
