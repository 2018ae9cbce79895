//! Drives libvirt's five calls between two real hosts, through the agent's own seam: proof that `libvirt/` works.
//!
//! ```text
//! five_calls run ──JSON lines──▶ five_calls host (source)       ── libvirtd A
//!                ──JSON lines──▶ five_calls host (destination)  ── libvirtd B
//! ```
//! `run` starts both `host` processes with a command of the caller's (which enters a lab host as a user without
//! root) and takes a guest through each scenario. It needs libvirtd, QEMU and namespaces: the lab provides them.

mod host;
mod mishaps;
mod peer;
mod relay;
mod scenarios;
mod stage;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Does on one host what it reads from stdin.
    Host {
        #[arg(long, default_value = drover_agent::libvirt::DEFAULT_URI)]
        uri: String,
    },
    /// Runs the scenarios.
    Run(Run),
}

#[derive(clap::Args)]
pub(crate) struct Run {
    /// Command that enters the source host as the agent's user; the rest of the line is appended.
    #[arg(long)]
    source: String,
    #[arg(long)]
    destination: String,
    #[arg(long, default_value = drover_agent::libvirt::DEFAULT_URI)]
    source_uri: String,
    #[arg(long, default_value = drover_agent::libvirt::DEFAULT_URI)]
    destination_uri: String,
    /// Directory for sockets, the same on both hosts, that the agent's user can write and QEMU's can enter.
    #[arg(long)]
    sockets: PathBuf,
    /// The guest's definition, without disks that need proof of sharing.
    #[arg(long)]
    xml: PathBuf,
    /// Shell command that kills the source's libvirtd and starts it again.
    #[arg(long)]
    restart_source: Option<String>,
    /// Only the scenarios whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Host { uri } => tokio::runtime::Runtime::new()?.block_on(host::serve(&uri)),
        Command::Run(run) => scenarios::run(&run),
    }
}
