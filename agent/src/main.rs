//! The agent's process: reads its configuration, connects to the hypervisor, serves until it is told to stop.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use drover_agent::block_devices::BlockDevices;
use drover_agent::config::{Config, Flags, HypervisorKind};
use drover_agent::gate::Gate;
use drover_agent::hypervisor::Hypervisor;
use drover_agent::jobs::Timing;
use drover_agent::libvirt::Libvirt;
use drover_agent::server::{Agent, AgentOptions, Ailment};
use drover_agent::storage_directories::StorageDirectories;
use drover_proto::identity::Identity;
use drover_proto::telemetry::{self, TelemetryOptions};
use drover_proto::tls::Tls;
use drover_proto::trace::names::attribute;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Between two tries to reach libvirtd.
const PAUSE: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> ExitCode {
    match start(&Flags::parse()).await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
        // There is no log yet. Not by returning it: that would print a backtrace where the environment asks for one.
        Err(error) => {
            eprintln!("drover-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The outer error is one from before there was a log.
async fn start(flags: &Flags) -> anyhow::Result<anyhow::Result<()>> {
    let config = Config::read(flags)?;
    let telemetry = telemetry::init(
        "drover-agent",
        &TelemetryOptions {
            log_format: config.log_format,
            log_filter: config.log_filter.clone(),
            resource: vec![(attribute::HOST_ID, config.host_id.to_string())],
        },
    )?;
    drover_proto::fault_points::enable_from_environment();
    let mut signals = Signals::new()?;
    let result = run(config, &mut signals).await;
    telemetry.shutdown().await;
    Ok(result)
}

async fn run(config: Config, signals: &mut Signals) -> anyhow::Result<()> {
    let _state = only_one(&config.state_dir)?;
    let tls = Tls::load_with(config.tls.clone(), config.identities()?)?;
    if tls.own_identity() != Identity::Agent(config.host_id.clone()) {
        bail!(
            "the certificate is for {}, this host is {}",
            tls.own_identity(),
            config.host_id
        );
    }
    let stop = CancellationToken::new();
    tokio::spawn(tls.clone().keep_fresh(stop.clone()));

    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let Some((hypervisor, unfit, ailment)) = signals.unless_stopped(hypervisor(&config)).await.transpose()? else {
        return Ok(());
    };
    let agent = Agent::start(AgentOptions {
        host: config.host_id,
        listener,
        management_address: config.management_address,
        migration_addresses: config.migration_addresses,
        controller: config.controller,
        state_dir: config.state_dir,
        run_dir: config.run_dir,
        qemu_group: group(&config.qemu_group, config.hypervisor)?,
        storage: StorageDirectories::new(config.storage_directories)
            .context("storage_directories")?
            .with_devices(BlockDevices::new(config.block_devices).context("block_devices")?),
        tls,
        hypervisor,
        unfit,
        ailment,
        boot_id: boot_id()?,
        limits: Timing {
            keep_moved: keep_moved(config.keep_moved_days)?,
            ..Timing::default()
        },
        gate: Gate::default(),
    })
    .await?;
    tracing::info!(address = %agent.address(), "ready");
    tell_systemd("READY=1");

    signals.stopped().await;
    tracing::info!("stopping: a hand-over in flight is finished first");
    tell_systemd("STOPPING=1");
    agent.stop().await?;
    stop.cancel();
    Ok(())
}

/// The journal, which alone knows what was kept, forgets a migration after 30 days.
fn keep_moved(days: Option<u32>) -> anyhow::Result<Option<Duration>> {
    match days {
        None => Ok(None),
        Some(days @ 1..=29) => Ok(Some(Duration::from_secs(u64::from(days) * 24 * 3600))),
        Some(days) => {
            bail!("keep_moved_days: 1 to 29, not {days}; leave it out to keep what was moved until you remove it")
        }
    }
}

/// Two agents on the same journals would each believe that theirs is all that happens. Held until the process ends.
fn only_one(state_dir: &Path) -> anyhow::Result<File> {
    let path = state_dir.join("lock");
    let open = || {
        std::fs::create_dir_all(state_dir)?;
        File::options().create(true).append(true).open(&path)
    };
    let file = open().with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another agent works in {}: stop that one, or give this one a state_dir of its own",
            state_dir.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// The hypervisor, what it lacks, and how it is. libvirtd may come later than the agent.
async fn hypervisor(config: &Config) -> anyhow::Result<(Arc<dyn Hypervisor>, Option<String>, Ailment)> {
    if config.hypervisor == HypervisorKind::Sim {
        return Ok((
            Arc::new(config.sim.start(config.host_id.as_str())?),
            None,
            Arc::new(|| None),
        ));
    }
    let mut said = false;
    loop {
        match Libvirt::connect(&config.libvirt_uri).await {
            Ok(libvirt) => {
                let unfit = libvirt.can_migrate().err();
                if let Some(lack) = &unfit {
                    tracing::error!("this host cannot migrate: {lack}");
                }
                let asked = Arc::clone(&libvirt);
                let silent = move || (!asked.is_there()).then(|| "libvirtd does not answer".to_owned());
                return Ok((libvirt, unfit, Arc::new(silent)));
            }
            Err(error) => {
                if !said {
                    tracing::warn!(uri = config.libvirt_uri, %error, "libvirt does not answer; trying again");
                }
                said = true;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// QEMU's group. A simulated hypervisor is the agent itself.
fn group(name: &str, kind: HypervisorKind) -> anyhow::Result<Option<u32>> {
    if name.is_empty() || kind == HypervisorKind::Sim {
        return Ok(None);
    }
    let group =
        nix::unistd::Group::from_name(name)?.with_context(|| format!("there is no group {name} (qemu_group)"))?;
    Ok(Some(group.gid.as_raw()))
}

fn boot_id() -> anyhow::Result<Uuid> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().parse()?)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn stopped(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            value = work => Some(value),
            () = self.stopped() => None,
        }
    }
}

/// For units of type `notify`; nobody listens elsewhere.
fn tell_systemd(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| socket.send_to(state.as_bytes(), path));
    if let Err(error) = told {
        tracing::debug!(%error, "systemd was not told");
    }
}
