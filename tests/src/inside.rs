//! The processes that hold a lab up; all are hidden subcommands of `drover-lab`.
//!
//! ```text
//! guardian ── waits for its owner's pipe to close, then kills lab-init and removes the folder
//!   └─ lab-init     PID 1 of the lab: when it dies, everything in the lab dies with it
//!        ├─ node-init host-a   PID 1 of a node, in namespaces of its own; libvirtd, QEMU, agents are below it
//!        └─ node-init client   …
//! ```
//!
//! Nothing of a lab exists outside these namespaces but its folder. So the death of the owner by SIGKILL, of the
//! guardian, or of lab-init each take processes, interfaces and mounts along, in the kernel, without a clean-up to
//! forget.

use crate::layout::Layout;
use crate::namespaces;
use crate::node::NodeSpec;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

/// What lab-init says when its death is bound to the guardian's.
const READY: &[u8] = b"ready\n";

fn myself(subcommand: &str, layout: &Layout) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([subcommand, layout.id()]).stdin(Stdio::null());
    Ok(command)
}

/// Holds the lab until its owner ends (`keep`: until lab-init is killed by `drover-lab down`), then removes it.
pub fn guardian(layout: &Layout, keep: bool) -> Result<()> {
    // A session of its own: Ctrl-C in the owner's terminal must not stop the clean-up.
    setsid().context("leaving the owner's session")?;
    unshare(CloneFlags::CLONE_NEWPID).context("making the lab's PID namespace")?;
    let mut init = myself("lab-init", layout)?
        .stdout(Stdio::piped())
        .spawn()
        .context("starting lab-init")?;
    let heard = init.stdout.as_mut().context("lab-init has no output")?;
    heard
        .read_exact(&mut [0; READY.len()])
        .context("lab-init did not start")?;
    layout.write_pid("lab", init.id() as i32)?;
    println!("ready");
    std::io::stdout().flush()?;
    if !keep {
        wait_for_an_end(init.stdout.as_ref().context("lab-init has no output")?)?;
        crate::loop_device::detach_all(layout);
        init.kill()?;
    }
    // Returns only after the last process of the namespace is gone.
    init.wait()?;
    if let Some(folder) = std::env::var_os("DROVER_LAB_LOGS")
        && let Err(error) = save_logs(layout, &Path::new(&folder).join(layout.id()))
    {
        // A lab that cannot keep its logs still goes.
        eprintln!("saving the logs of lab {}: {error:#}", layout.id());
    }
    remove_folder(layout)
}

/// Keeps what a lab that ends has logged: its own logs and each host's `/var/log/libvirt`.
fn save_logs(layout: &Layout, target: &Path) -> Result<()> {
    copy_files(&layout.logs(), &target.join("log"))?;
    for host in layout.record()?.hosts {
        copy_files(&layout.node(&host).join("var-log-libvirt"), &target.join(&host))?;
    }
    Ok(())
}

/// Without `cp`: in a PID namespace whose first process is dead, nobody can start a program.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_files(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Returns when the owner's end of stdin is closed, by whatever death, or lab-init is gone.
fn wait_for_an_end(init: &ChildStdout) -> Result<()> {
    // No thread does this: after unshare(CLONE_NEWPID) the kernel refuses new threads.
    let stdin = std::io::stdin();
    let mut ends = [
        PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
        PollFd::new(init.as_fd(), PollFlags::POLLIN),
    ];
    loop {
        match poll(&mut ends, PollTimeout::NONE) {
            // Nobody writes: whatever happens on either is its end.
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the owner"),
        }
    }
}

/// Removes what a dead lab left on disk.
pub fn remove_folder(layout: &Layout) -> Result<()> {
    for attempt in 0.. {
        match fs::remove_dir_all(layout.folder()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if attempt == 400 => {
                return Err(error).with_context(|| format!("removing {}", layout.folder().display()));
            }
            // A mount namespace may outlive its last process for a moment.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            Ok(()) => return Ok(()),
        }
    }
    Ok(())
}

/// PID 1 of a whole lab: ends with the guardian and takes everything along.
pub fn lab_init() -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // A guardian that died before that line killed nobody: then this pipe is broken, and lab-init ends here.
    std::io::stdout().write_all(READY).context("the guardian is gone")?;
    std::io::stdout().flush().context("the guardian is gone")?;
    reap_forever()
}

/// A PID 1 must collect orphans at once: libvirt takes a QEMU zombie for a QEMU that does not want to die.
fn reap_forever() -> Result<()> {
    loop {
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(error).context("waiting for orphans"),
        }
    }
}

/// Starts a node below lab-init: a step into the lab's PIDs, then `node-fork`.
pub fn start_node(layout: &Layout, name: &str) -> Result<()> {
    let lab = layout.live_pid("lab").context("the lab is down")?;
    namespaces::enter_pids(lab)?;
    let status = myself("node-fork", layout)?.arg(name).status()?;
    if !status.success() {
        bail!("node-fork {name} ended with {status}");
    }
    Ok(())
}

/// Makes the node's PID namespace and leaves: node-init becomes a child of lab-init.
pub fn node_fork(layout: &Layout, name: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWPID).context("making the node's PID namespace")?;
    let mut init = myself("node-init", layout)?
        .arg(name)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting node-init")?;
    // An error before "ready" is seen here; afterwards nobody waits.
    let mut said = String::new();
    let mut stdout = init.stdout.take().context("node-init has no output")?;
    let mut buffer = [0; 64];
    while !said.ends_with('\n') {
        match stdout.read(&mut buffer)? {
            0 => bail!("node-init {name} ended with {}", init.wait()?),
            length => said.push_str(&String::from_utf8_lossy(&buffer[..length])),
        }
    }
    Ok(())
}

/// PID 1 of a node: makes its namespaces and mounts, then collects orphans.
pub fn node_init(layout: &Layout, name: &str) -> Result<()> {
    // The /proc of the machine is still mounted here, so this is the PID as everybody outside sees it.
    let outside = fs::read_link("/proc/self")?.to_string_lossy().parse()?;
    let spec = NodeSpec::read(layout, name)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS)
        .context("making the node's namespaces")?;
    layout.write_pid(name, outside)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .context("making mounts private")?;
    mount_new("proc", "/proc")?;
    mount_new("sysfs", "/sys")?;
    for folder in &spec.fresh {
        mount_new("tmpfs", folder)?;
    }
    for folder in &spec.make {
        fs::create_dir_all(folder).with_context(|| format!("making {folder}"))?;
    }
    for (from, to) in &spec.binds {
        bind(Path::new(from), Path::new(to))?;
    }
    fs::write("/proc/sys/kernel/hostname", name).context("setting the hostname")?;
    println!("ready");
    std::io::stdout().flush()?;
    reap_forever()
}

fn mount_new(kind: &str, target: &str) -> Result<()> {
    let mode = (kind == "tmpfs").then_some("mode=755");
    mount(Some(kind), target, Some(kind), MsFlags::empty(), mode)
        .with_context(|| format!("mounting {kind} on {target}"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    }
    mount(
        Some(from),
        to,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("mounting {} on {}", from.display(), to.display()))
}

/// Runs a program inside a node in this process's place: same input and output, same exit, signals passed on, and
/// killed when this process is killed. Needs a process of its own because a PID namespace is entered by forking.
pub fn enter(pid: i32, user: Option<&str>, program: &[String]) -> Result<i32> {
    let folder = std::env::current_dir().ok();
    namespaces::enter_all(pid)?;
    if let Some(folder) = folder {
        let _ = std::env::set_current_dir(folder);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(user) = user {
        command.args(["--reuid", user, "--regid", user, "--init-groups", "--inh-caps=-all"]);
        command.env("USER", user).env("HOME", format!("/var/lib/{user}"));
    }
    let child = command.arg("--").args(program).spawn().context("starting setpriv")?;
    forward_until_exit(Pid::from_raw(child.id() as i32))
}

/// Passes signals on to `child` until it ends; returns its exit code, 128 + n for signal n.
fn forward_until_exit(child: Pid) -> Result<i32> {
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;
    loop {
        // Looked at before each wait: the child may have ended before its signal was blocked.
        match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, code) => return Ok(code),
            WaitStatus::Signaled(_, signal, _) => return Ok(128 + signal as i32),
            WaitStatus::StillAlive
            | WaitStatus::Stopped(..)
            | WaitStatus::PtraceEvent(..)
            | WaitStatus::PtraceSyscall(_)
            | WaitStatus::Continued(_) => {}
        }
        let signal = signals.wait().context("waiting for a signal")?;
        if signal != Signal::SIGCHLD {
            let _ = kill(child, signal);
        }
    }
}
