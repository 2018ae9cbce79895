//! A host with its agent, whose process can be killed.
//!
//! Every agent has a runtime of its own: ending it is the death of the process, with everything it held.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use drover_agent::gate::Gate;
use drover_agent::jobs::{Jobs, Timing};
use drover_agent::server::{Agent, AgentOptions};
use drover_agent::sim::SimHost;
use drover_agent::storage_directories::StorageDirectories;
use drover_proto::tls::Tls;
use tokio::net::TcpListener;

/// Longer than anything takes; what has not come by then does not come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) host: SimHost,
    pub(crate) tls: Tls,
    folder: PathBuf,
    address: Option<SocketAddr>,
    limits: Timing,
    controller: Option<String>,
    alive: Option<(tokio::runtime::Runtime, Agent)>,
}

impl Node {
    /// A host whose agent was not started yet.
    pub(crate) fn new(name: &'static str, host: SimHost, tls: Tls, folder: PathBuf, limits: Timing) -> Self {
        for own in ["root/images", "root/swtpm"] {
            std::fs::create_dir_all(folder.join(own)).unwrap();
        }
        Self {
            name,
            host,
            tls,
            folder,
            address: None,
            limits,
            controller: None,
            alive: None,
        }
    }

    /// Starts the agent, at the address that it had before.
    pub(crate) async fn start(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let address = self.address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
        let (host, tls, limits) = (self.host.clone(), self.tls.clone(), self.limits);
        let (name, folder, controller) = (self.name, self.folder.clone(), self.controller.clone());
        let starting = runtime.spawn(async move {
            let listener = eventually_some(|| TcpListener::bind(address)).await;
            let listening = listener.local_addr().unwrap().to_string();
            Agent::start(AgentOptions {
                host: name.parse().unwrap(),
                listener,
                management_address: listening,
                migration_addresses: Vec::new(),
                controller,
                state_dir: folder.join("state"),
                run_dir: folder.join("run"),
                qemu_group: None,
                storage: StorageDirectories::new(vec![std::env::temp_dir()])
                    .unwrap()
                    .with_alias("/images".into(), folder.join("root/images"))
                    .with_alias("/var/lib/libvirt/swtpm".into(), folder.join("root/swtpm")),
                tls,
                boot_id: host.boot_id(),
                hypervisor: Arc::new(host),
                unfit: None,
                ailment: Arc::new(|| None),
                limits,
                gate: Gate::default(),
            })
            .await
            .unwrap()
        });
        let agent = starting.await.unwrap();
        self.address = Some(agent.address());
        self.alive = Some((runtime, agent));
    }

    /// From its next start on it knows of a controller.
    pub(crate) fn registers_at(&mut self, controller: String) {
        self.controller = Some(controller);
    }

    /// The process dies: its tasks, connections and locks are gone when this returns.
    pub(crate) async fn kill(&mut self) {
        let (runtime, agent) = self.alive.take().unwrap();
        let jobs: Weak<Jobs> = Arc::downgrade(agent.jobs());
        runtime.shutdown_background();
        drop(agent);
        eventually("the killed agent is gone", || jobs.strong_count() == 0).await;
    }

    pub(crate) async fn restart(&mut self) {
        self.kill().await;
        self.start().await;
    }

    /// SIGTERM.
    pub(crate) async fn stop(&mut self) {
        let (runtime, agent) = self.alive.take().unwrap();
        runtime.spawn(agent.stop()).await.unwrap().unwrap();
        runtime.shutdown_background();
    }

    /// The folder with journal and term is lost, while the agent is dead.
    pub(crate) fn lose_state(&self) {
        assert!(self.alive.is_none(), "a living agent holds its files open");
        std::fs::remove_dir_all(self.folder.join("state")).unwrap();
    }

    pub(crate) fn jobs(&self) -> Arc<Jobs> {
        Arc::clone(self.alive.as_ref().unwrap().1.jobs())
    }

    pub(crate) fn address(&self) -> String {
        self.address.unwrap().to_string()
    }

    /// Where a file of a guest lies.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.folder.join("root/images").join(name)
    }

    /// Names of all files of guests, in order.
    pub(crate) fn images(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.join("root/images")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Where libvirt keeps the state of TPMs.
    pub(crate) fn tpm_states(&self) -> PathBuf {
        self.folder.join("root/swtpm")
    }

    pub(crate) fn sockets(&self) -> usize {
        std::fs::read_dir(self.folder.join("run")).map_or(0, Iterator::count)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A runtime may not be waited for in a test's own.
        if let Some((runtime, _)) = self.alive.take() {
            runtime.shutdown_background();
        }
    }
}

async fn eventually_some<T, E, F: Future<Output = Result<T, E>>>(attempt: impl Fn() -> F) -> T {
    let tries = async {
        loop {
            if let Ok(value) = attempt().await {
                return value;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, tries)
        .await
        .expect("it never came about")
}

/// Waits for a condition.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "never: {what}");
}
