//! Stepping into the namespaces of a lab node.

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use std::fs::File;

/// The namespaces of a node, in the order in which to enter them: the mounts last, they take `/proc` along.
const ALL: [(&str, CloneFlags); 4] = [
    ("net", CloneFlags::CLONE_NEWNET),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

fn open(pid: i32, name: &str) -> Result<File> {
    let path = format!("/proc/{pid}/ns/{name}");
    File::open(&path).with_context(|| format!("the lab node is gone: {path}"))
}

/// Moves this single-threaded process into all namespaces of a node; its children will be in the PID namespace.
pub(crate) fn enter_all(pid: i32) -> Result<()> {
    let files = ALL
        .iter()
        .map(|(name, flag)| Ok((open(pid, name)?, *flag)))
        .collect::<Result<Vec<_>>>()?;
    for (file, flag) in files {
        setns(file, flag).with_context(|| format!("entering {flag:?} of {pid}"))?;
    }
    Ok(())
}

/// Makes later children of this process members of a node's PID namespace.
pub(crate) fn enter_pids(pid: i32) -> Result<()> {
    setns(open(pid, "pid")?, CloneFlags::CLONE_NEWPID).with_context(|| format!("entering the PIDs of {pid}"))
}

/// Moves the calling *thread* into a node's network. Only for threads that end afterwards.
pub(crate) fn enter_network(pid: i32) -> Result<()> {
    setns(open(pid, "net")?, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering the network of {pid}"))
}

/// Runs `work` on a thread of its own inside a node's network. Sockets made there stay there wherever they are used.
pub(crate) fn in_network<T: Send>(pid: i32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            enter_network(pid)?;
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
