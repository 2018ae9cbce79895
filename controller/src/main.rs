//! `drover-controller`: reads its configuration, serves until it is told to stop, and leaves nothing half-written.

use std::process::ExitCode;

use clap::Parser;
use drover_controller::config::{Command, Config, Flags};
use drover_controller::server::{Controller, adopt_restored, open_store};
use drover_proto::telemetry::{self, TelemetryOptions};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match start(&Flags::parse()).await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
        // There is no log yet. Not by returning it: that would print a backtrace where the environment asks for one.
        Err(error) => {
            eprintln!("drover-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The outer error is one from before there was a log.
async fn start(flags: &Flags) -> anyhow::Result<anyhow::Result<()>> {
    let config = Config::read(flags)?;
    let options = TelemetryOptions {
        log_format: config.log_format,
        log_filter: config.log_filter.clone(),
        ..TelemetryOptions::default()
    };
    let telemetry = telemetry::init("drover-controller", &options)?;
    drover_proto::fault_points::enable_from_environment();
    let outcome = match &flags.command {
        None => run(&config).await,
        Some(Command::AdoptRestored { allow_silent }) => restored(&config, *allow_silent).await,
    };
    telemetry.shutdown().await;
    Ok(outcome)
}

async fn restored(config: &Config, allow_silent: bool) -> anyhow::Result<()> {
    let store = open_store(&config.store).await?;
    let restored = adopt_restored(config, store, allow_silent).await?;
    for id in &restored.adopted {
        println!("taken up: {}", id.resource_name());
    }
    for journal in &restored.left {
        println!("left for later: {journal}");
    }
    for host in &restored.silent {
        println!("did not answer: {host}");
    }
    println!("term {}: start the controller", restored.term.number);
    Ok(())
}

async fn run(config: &Config) -> anyhow::Result<()> {
    // Before the first listener: a signal that comes early must not be lost.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let store = open_store(&config.store).await?;
    let controller = Controller::start(config, store).await?;
    tracing::info!(listen = %controller.address, metrics = %controller.local_address, "ready");
    tell_supervisor("READY=1");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    tell_supervisor("STOPPING=1");
    controller.stop().await;
    Ok(())
}

/// Tells systemd, where it started this process.
fn tell_supervisor(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| socket.send_to(state.as_bytes(), path));
    if let Err(error) = told {
        tracing::warn!("the supervisor cannot be told: {error}");
    }
}
