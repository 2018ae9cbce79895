//! The lab by hand: bring one up, look into it, take it down. Also the first process of every lab node (hidden
//! subcommands, see `drover_tests::inside`).

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use drover_tests::{Disk, GuestSpec, Lab, Layout, inside};
use std::process::ExitCode;

/// Hosts with real libvirtd and QEMU on this machine, for trying Drover out.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Start a lab that stays until `down`
    Up {
        /// How many hosts (host-a, host-b, …)
        #[arg(long, default_value_t = 2)]
        hosts: u8,
        /// Name of the lab, to have several
        #[arg(long, default_value = "lab")]
        id: String,
        /// Start a guest on host-a
        #[arg(long)]
        guest: bool,
        /// Start an NFS server
        #[arg(long)]
        nfs: bool,
        /// Where the guest's disk lies; without it the guest has none
        #[arg(long, value_enum)]
        disk: Option<DiskKind>,
        /// Have libvirtd listen on TCP, as `virsh migrate --p2p` needs it
        #[arg(long)]
        listen_tcp: bool,
    },
    /// End a lab and remove every trace of it
    Down {
        #[arg(long, default_value = "lab")]
        id: String,
        /// End all labs of this machine, also those of running tests
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
    /// Show the labs of this machine, their hosts and guests
    Status,
    /// A shell, or one command, inside a host
    Shell {
        host: String,
        #[arg(long, default_value = "lab")]
        id: String,
        /// As this user instead of root (the agent's is `drover`)
        #[arg(long)]
        user: Option<String>,
        #[arg(last = true)]
        program: Vec<String>,
    },
    /// What a guest says about itself
    Guest {
        name: String,
        #[arg(long, default_value = "lab")]
        id: String,
    },
    #[command(hide = true)]
    Guardian {
        id: String,
        #[arg(long)]
        keep: bool,
    },
    #[command(hide = true)]
    LabInit { id: String },
    #[command(hide = true)]
    StartNode { id: String, name: String },
    #[command(hide = true)]
    NodeFork { id: String, name: String },
    #[command(hide = true)]
    NodeInit { id: String, name: String },
    #[command(hide = true)]
    Enter {
        #[arg(long)]
        pid: i32,
        #[arg(long)]
        user: Option<String>,
        #[arg(last = true)]
        program: Vec<String>,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DiskKind {
    Shared,
    Local,
    Nfs,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("drover-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Subcommands) -> Result<i32> {
    match command {
        Subcommands::Up {
            hosts,
            id,
            guest,
            nfs,
            disk,
            listen_tcp,
        } => {
            let nfs = nfs || matches!(disk, Some(DiskKind::Nfs));
            let mut builder = Lab::builder().hosts(hosts).id(&id).keep();
            if nfs {
                builder = builder.nfs();
            }
            if listen_tcp {
                builder = builder.listen_tcp();
            }
            up(builder.start()?, guest || disk.is_some(), disk)?;
        }
        Subcommands::Down { id, all } => down(if all { Layout::all() } else { vec![id] })?,
        Subcommands::Status => status()?,
        Subcommands::Shell {
            host,
            id,
            user,
            program,
        } => return shell(&id, &host, user.as_deref(), &program),
        Subcommands::Guest { name, id } => println!("{:#?}", Lab::attach(&id)?.guest(&name)?.status()?),
        Subcommands::Guardian { id, keep } => inside::guardian(&Layout::new(&id)?, keep)?,
        Subcommands::LabInit { .. } => inside::lab_init()?,
        Subcommands::StartNode { id, name } => inside::start_node(&Layout::new(&id)?, &name)?,
        Subcommands::NodeFork { id, name } => inside::node_fork(&Layout::new(&id)?, &name)?,
        Subcommands::NodeInit { id, name } => inside::node_init(&Layout::new(&id)?, &name)?,
        Subcommands::Enter { pid, user, program } => return inside::enter(pid, user.as_deref(), &program),
    }
    Ok(0)
}

fn up(mut lab: Lab, guest: bool, disk: Option<DiskKind>) -> Result<()> {
    println!(
        "Lab '{}' is up after {:.1} s.",
        lab.id(),
        lab.started_in().as_secs_f32()
    );
    for host in lab.hosts() {
        println!(
            "  {:<8} {:<12} libvirtd and QEMU; log: {}",
            host.name(),
            host.address(),
            host.log("libvirtd.log").display()
        );
    }
    println!("  control  10.77.0.1    the controller's and your place");
    println!("  client   10.78.0.1    the guests' peer");
    if lab.record().nfs {
        println!("  nfs      10.77.0.2    NFS server, exports /srv/export");
    }
    if guest {
        let mut spec = GuestSpec::new("guest").fill_mib(64);
        if let Some(kind) = disk {
            spec = spec.disk(match kind {
                DiskKind::Shared => Disk::Shared {
                    format: "qcow2",
                    size_mib: 16,
                },
                DiskKind::Local => Disk::Local {
                    format: "qcow2",
                    size_mib: 16,
                },
                DiskKind::Nfs => Disk::Nfs { size_mib: 16 },
            });
        }
        let started = std::time::Instant::now();
        let first = lab.hosts().first().context("a lab has a host")?.name().to_string();
        let guest = lab.start_guest(&first, &spec)?;
        println!(
            "  guest    {:<12} on {first}, answers after {:.1} s",
            guest.address(),
            started.elapsed().as_secs_f32()
        );
    }
    let id = lab.id();
    let lab_program = program();
    println!("\nLook in:   {lab_program} shell host-a --id {id}     (or: … -- virsh list)");
    println!("As agent:  {lab_program} shell host-a --id {id} --user drover");
    println!("Logs:      {}", lab.layout().logs().display());
    println!("End it:    {lab_program} down --id {id}");
    Ok(())
}

/// This program, as it can be called from here.
fn program() -> String {
    let me = std::env::current_exe().unwrap_or_else(|_| "drover-lab".into());
    let here = std::env::current_dir().unwrap_or_default();
    me.strip_prefix(&here).unwrap_or(&me).display().to_string()
}

fn down(ids: Vec<String>) -> Result<()> {
    if ids.is_empty() {
        println!("No lab on this machine.");
    }
    for id in ids {
        if !Layout::new(&id)?.folder().exists() {
            println!("Lab '{id}' is not there.");
            continue;
        }
        Lab::remove(&id)?;
        println!("Lab '{id}' is down.");
    }
    Ok(())
}

fn status() -> Result<()> {
    let ids = Layout::all();
    if ids.is_empty() {
        println!("No lab on this machine.");
    }
    for id in ids {
        let Ok(lab) = Lab::attach(&id) else {
            println!("Lab '{id}': dead; `{} down --id {id}` removes what is left", program());
            continue;
        };
        println!("Lab '{id}' ({})", lab.layout().folder().display());
        for host in lab.hosts() {
            let guests = host
                .virsh(&["list", "--all"])
                .unwrap_or_else(|error| format!("{error:#}"));
            println!(
                "  {:<8} {:<12} {}",
                host.name(),
                host.address(),
                if guests.is_empty() { "no guests" } else { "" }
            );
            guests.lines().for_each(|line| println!("      {line}"));
        }
    }
    Ok(())
}

fn shell(id: &str, host: &str, user: Option<&str>, program: &[String]) -> Result<i32> {
    let lab = Lab::attach(id)?;
    let mut names: Vec<&str> = lab
        .record()
        .hosts
        .iter()
        .map(String::as_str)
        .chain(["control", "client"])
        .collect();
    if lab.record().nfs {
        names.push(Lab::NFS_SERVER);
    }
    if !names.contains(&host) {
        bail!("no host {host} in lab {id}; there are {}", names.join(", "));
    }
    let layout = Layout::new(id)?;
    let pid = layout
        .live_pid(host)
        .with_context(|| format!("{host} is powered off"))?;
    let shell = ["bash".to_string(), "--norc".to_string()];
    let program = if program.is_empty() { &shell[..] } else { program };
    inside::enter(pid, user, program)
}
