//! The `drover` command: moves guests, looks at migrations, makes certificates for trying it out.

mod args;
mod check;
mod client;
mod config;
mod exit;
mod follow;
mod guests;
mod hosts;
mod inventory;
mod json;
mod live;
mod lookup;
mod manual;
mod migrate;
mod migration;
mod out;
mod overrides;
mod pki;
mod policy;
mod render;
mod trouble;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command, Connection, Guest, Output};
use client::Controller;
use exit::{Exit, Problem};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(exit) => exit.into(),
        Err(problem) => {
            out::note(&format!("error: {problem}"));
            problem.exit.into()
        }
    }
}

async fn run(cli: Cli) -> Result<Exit, Problem> {
    let output = cli.output;
    match cli.command {
        Command::Pki(command) => pki::run(command, output).map(|()| Exit::Done),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "drover", &mut script);
            out::result(&String::from_utf8_lossy(&script)).map(|()| Exit::Done)
        }
        Command::Man { dir } => manual::write(&dir, output).map(|()| Exit::Done),
        Command::ExitCodes => exit_codes(output).map(|()| Exit::Done),
        Command::Migrate(command) => migrate::run(connect(&cli.connection)?, command, output).await,
        Command::Check(command) => check::run(connect(&cli.connection)?, command, output).await,
        Command::Migration(command) => migration::run(connect(&cli.connection)?, command, output).await,
        Command::Timeline { id } => migration::timeline(connect(&cli.connection)?, &id, output).await,
        Command::Host(command) => hosts::run(connect(&cli.connection)?, command, output).await,
        Command::Guest(Guest::List { host }) => inventory::guests(connect(&cli.connection)?, host, output).await,
        Command::Guest(Guest::Owner { guest }) => inventory::owner(connect(&cli.connection)?, &guest, output).await,
    }
}

fn exit_codes(output: Output) -> Result<(), Problem> {
    match output {
        Output::Table => out::result(exit::HELP),
        Output::Json => out::json(&exit::codes()),
    }
}

fn connect(connection: &Connection) -> Result<Controller, Problem> {
    Controller::new(config::load(connection)?)
}
