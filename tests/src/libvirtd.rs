//! libvirtd of a host: its configuration, as a real Debian host has it where that matters, and its start.

use crate::host::Host;
use crate::layout::Layout;
use crate::node::NodeSpec;
use crate::process::{self, wait_until};
use crate::qemu_tls;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The user that agents run as.
pub(crate) const AGENT: &str = "drover";

/// Access to libvirt's socket, to KVM, and to what QEMU and the agent share.
const AGENT_GROUPS: [&str; 3] = ["libvirt", "kvm", "libvirt-qemu"];

const SHORT: Duration = Duration::from_secs(60);

/// Folders that a host has for itself; `/run` is fresh besides.
const OWN: [&str; 7] = [
    "/etc/libvirt",
    "/var/lib/libvirt",
    "/var/cache/libvirt",
    "/var/log/libvirt",
    "/var/log/swtpm",
    "/var/lib/drover",
    "/etc/drover",
];

/// Written into every host. `namespaces` and cgroups are off because the lab's nodes are namespaces themselves;
/// the user and the changing ownership are on because they are what breaks on real hosts.
const QEMU_CONF: &str = r#"security_driver = "none"
cgroup_controllers = []
namespaces = []
user = "libvirt-qemu"
group = "libvirt-qemu"
dynamic_ownership = 1
max_core = 0
"#;

fn libvirtd_conf(host_uuid: &str, listen_tcp: bool) -> String {
    format!(
        r#"host_uuid = "{host_uuid}"
unix_sock_group = "libvirt"
unix_sock_ro_perms = "0777"
unix_sock_rw_perms = "0770"
auth_unix_ro = "none"
auth_unix_rw = "none"
listen_tls = 0
listen_tcp = {}
auth_tcp = "none"
log_filters = "1:qemu.qemu_monitor 3:remote 4:event"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
"#,
        u8::from(listen_tcp)
    )
}

/// Sees to the user that agents run as, once per machine.
pub(crate) fn ensure_agent_user() -> Result<()> {
    if agent_is_ready()? {
        return Ok(());
    }
    let mut command = Command::new("useradd");
    command.args([
        "--system",
        "--user-group",
        "--home-dir",
        "/var/lib/drover",
        "--shell",
        "/usr/sbin/nologin",
    ]);
    command.args(["--groups", &AGENT_GROUPS.join(","), AGENT]);
    let made = process::run(&mut command, SHORT);
    // Another lab that starts in this moment may have made it.
    if agent_is_ready()? {
        Ok(())
    } else {
        made.map(|_| ()).context("making the user drover")
    }
}

/// Whether the user exists; one without the groups that an agent needs is an error, not ours to change.
fn agent_is_ready() -> Result<bool> {
    let said = process::run_any(Command::new("id").args(["-Gn", AGENT]), SHORT)?;
    let missing = AGENT_GROUPS
        .iter()
        .find(|group| !said.stdout.split_whitespace().any(|has| has == **group));
    match missing {
        Some(group) if said.status.success() => bail!("user {AGENT} exists but is not in group {group}"),
        Some(_) | None => Ok(said.status.success()),
    }
}

/// Writes a host's private folders and says how they are mounted.
pub(crate) fn prepare_host(layout: &Layout, name: &str, host_uuid: &str, listen_tcp: bool) -> Result<NodeSpec> {
    let folder = layout.node(name);
    let mut spec = NodeSpec::default();
    spec.fresh.extend(["/run".into(), "/srv".into()]);
    for own in OWN {
        let from = folder.join(own.trim_start_matches('/').replace('/', "-"));
        fs::create_dir_all(&from)?;
        spec.binds.push((from.display().to_string(), own.to_string()));
    }
    let etc = folder.join("etc-libvirt");
    let mut qemu = QEMU_CONF.to_owned();
    if listen_tcp {
        qemu_tls::install(layout, &etc)?;
        qemu.push_str(&format!("migrate_tls_x509_cert_dir = \"{}\"\n", qemu_tls::FOLDER));
    }
    fs::write(etc.join("qemu.conf"), qemu)?;
    fs::write(etc.join("libvirtd.conf"), libvirtd_conf(host_uuid, listen_tcp))?;
    // Without the default pools and networks of a fresh installation: the lab has its own.
    fs::create_dir_all(etc.join("qemu"))?;
    fs::create_dir_all(folder.join("var-log-libvirt/console"))?;
    fs::create_dir_all(folder.join("local"))?;
    crate::storage::open_to_agent(&folder.join("local"))?;
    spec.make.push("/run/lock".into());
    spec.binds
        .push((layout.shared().display().to_string(), "/srv/shared".into()));
    spec.binds
        .push((folder.join("local").display().to_string(), "/srv/local".into()));
    add_user_faults(&mut spec, &folder)?;
    add_identity(&mut spec, layout, name, host_uuid)?;
    Ok(spec)
}

/// A device of the host's own that QEMU's user may open: post-copy needs it, and the machine's setting stays as it is.
fn add_user_faults(spec: &mut NodeSpec, folder: &Path) -> Result<()> {
    const DEVICE: &str = "/dev/userfaultfd";
    let Ok(known) = fs::metadata(DEVICE) else {
        return Ok(());
    };
    let own = folder.join("userfaultfd");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    // A host that was without power has it from before.
    if !own.exists() {
        nix::sys::stat::mknod(&own, nix::sys::stat::SFlag::S_IFCHR, mode, known.rdev())?;
    }
    fs::set_permissions(&own, fs::Permissions::from_mode(0o666))?;
    spec.binds.push((own.display().to_string(), DEVICE.to_string()));
    Ok(())
}

/// What tells one machine from another besides its name. A new boot id belongs to every start of a host.
pub(crate) fn add_identity(spec: &mut NodeSpec, layout: &Layout, name: &str, machine: &str) -> Result<()> {
    let folder = layout.node(name);
    fs::create_dir_all(&folder)?;
    let mut file = |file: &str, text: String, inside: &str| -> Result<()> {
        let path = folder.join(file);
        fs::write(&path, text)?;
        spec.binds.push((path.display().to_string(), inside.to_string()));
        Ok(())
    };
    file(
        "boot_id",
        format!("{}\n", uuid::Uuid::new_v4()),
        "/proc/sys/kernel/random/boot_id",
    )?;
    file("hostname", format!("{name}\n"), "/etc/hostname")?;
    if Path::new("/etc/machine-id").exists() {
        file(
            "machine-id",
            format!("{}\n", machine.replace('-', "")),
            "/etc/machine-id",
        )?;
    }
    spec.binds
        .push((layout.folder().join("hosts").display().to_string(), "/etc/hosts".into()));
    Ok(())
}

/// Starts virtlogd and libvirtd on a host whose namespaces are up, and returns when libvirt answers.
pub(crate) fn start(host: &Host) -> Result<()> {
    let qemu = host.log("libvirtd.log");
    host.run("virtlogd", &["-d"])?;
    start_libvirtd(host).with_context(|| format!("log: {}", qemu.display()))
}

pub(crate) fn start_libvirtd(host: &Host) -> Result<()> {
    let mut arguments = vec!["-d"];
    if host.listens_on_tcp() {
        arguments.push("--listen");
    }
    host.run("libvirtd", &arguments)?;
    let what = format!(
        "libvirtd of {} (log: {})",
        host.name(),
        host.log("libvirtd.log").display()
    );
    wait_until(&what, Duration::from_secs(120), || {
        host.run("virsh", &["-q", "-c", "qemu:///system", "list", "--all", "--name"])
            .map(Some)
    })?;
    Ok(())
}
