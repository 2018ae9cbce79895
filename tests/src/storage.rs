//! Disks of the lab's guests, and the NFS server that some of them live on.

use crate::domain::Disk;
use crate::host::Host;
use crate::lab::Lab;
use crate::layout::Layout;
use crate::libvirtd::{AGENT, add_identity};
use crate::network::{self, Network};
use crate::node::{Node, NodeSpec};
use crate::process::wait_until;
use anyhow::{Context, Result};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// What QEMU runs as; NFS has no ownership that libvirt could change, so the image belongs to it from the start.
const QEMU_UID: u32 = 64055;

fn ganesha_conf(export: &str) -> String {
    format!(
        r#"NFS_CORE_PARAM {{ Protocols = 3, 4; Enable_NLM = false; Enable_RQUOTA = false; mount_path_pseudo = true; }}
NFSV4 {{ Graceless = true; Minor_Versions = 0, 1, 2; RecoveryBackend = fs; }}
EXPORT_DEFAULTS {{ SecType = sys; }}
EXPORT {{
    Export_Id = 1; Path = {export}; Pseudo = {export}; Access_Type = RW;
    Squash = No_Root_Squash; Protocols = 3, 4; Transports = TCP;
    FSAL {{ Name = VFS; }}
}}
"#
    )
}

/// Starts the node `nfs` with rpcbind and nfs-ganesha; returns when it accepts connections.
pub(crate) fn start_nfs(layout: &Layout) -> Result<()> {
    let node = Node::new(layout, Lab::NFS_SERVER);
    let mut spec = NodeSpec::default();
    add_identity(&mut spec, layout, node.name(), &uuid::Uuid::new_v4().to_string())?;
    let state = node.folder().join("state");
    fs::create_dir_all(&state)?;
    spec.fresh.extend(["/run".into(), "/srv".into()]);
    spec.make.extend(["/run/ganesha".into(), "/run/rpcbind".into()]);
    spec.binds.push((state.display().to_string(), "/var/lib/nfs".into()));
    let outside = layout.nfs_export().display().to_string();
    let config = node.folder().join("ganesha.conf");
    fs::write(&config, ganesha_conf(Lab::NFS_FOLDER))?;
    spec.binds.push((outside, Lab::NFS_FOLDER.to_string()));
    node.start(&spec)?;
    network::join(
        &Node::new(layout, Network::Management.centre()),
        &node,
        Network::Management,
        2,
    )?;
    node.run("rpcbind", &["-w"])?;
    let log = layout.logs().join("ganesha.log");
    let arguments = [
        "-f",
        &config.display().to_string(),
        "-L",
        &log.display().to_string(),
        "-p",
        "/run/ganesha/pid",
    ];
    node.run("ganesha.nfsd", &arguments)
        .with_context(|| format!("log: {}", log.display()))?;
    wait_until(
        &format!("the NFS server (log: {})", log.display()),
        Duration::from_secs(60),
        || {
            let address = SocketAddr::from((Network::Management.address(2), 2049));
            node.in_network(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1))?))?;
            // Registered with the portmapper last: NFSv3 clients ask there.
            let known = node.run("rpcinfo", &["-p", "127.0.0.1"])?.stdout;
            Ok((known.contains(" 2049") && known.contains("mountd")).then_some(()))
        },
    )
}

/// Whether this machine's kernel mounts NFS; where it does not, QEMU's libnfs opens the images.
pub(crate) fn kernel_mounts_nfs() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        // Fails where there is no such module, which is an answer too.
        let _ = crate::process::run_any(Command::new("modprobe").args(["-q", "nfsv4"]), Duration::from_secs(60));
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        known.split_whitespace().any(|name| name == "nfs4")
    })
}

/// Mounts the server's folder on a host, at the path that it has on every other. [`Host::power_on`] does not.
pub(crate) fn mount_nfs(host: &Host) -> Result<()> {
    let source = format!("{}:{}", Lab::NFS_SERVER, Lab::NFS_FOLDER);
    host.run("mkdir", &["-p", Lab::NFS_FOLDER])?;
    // As docs/nfs.md has it: sizes are asked for each time, so that an image that grows is not taken for another one.
    let options = "vers=4.2,hard,acregmin=0,acregmax=0";
    let how = ["-t", "nfs", "-o", options, &source, Lab::NFS_FOLDER];
    host.run("mount", &how).map(|_| ())
}

/// Makes the image behind a guest's disk where the disk's kind says.
pub(crate) fn make_image(lab: &Lab, host: &Host, guest: &str, disk: &Disk) -> Result<()> {
    let path = match disk {
        Disk::Shared { .. } => lab.layout().shared().join(disk.file_name(guest)),
        Disk::Local { .. } => host.folder().join("local").join(disk.file_name(guest)),
        Disk::Nfs { .. } => lab.layout().nfs_export().join(disk.file_name(guest)),
        Disk::Device { .. } => return Ok(()),
    };
    let size = disk.size_mib() * (1 << 20);
    if disk.format() == "raw" {
        // 8 MiB of holes: fast to make, and real writes allocate.
        fs::File::create(&path)?.set_len(size)?;
    } else {
        let mut command = std::process::Command::new("qemu-img");
        command
            .args(["create", "-q", "-f", disk.format()])
            .arg(&path)
            .arg(size.to_string());
        crate::process::run(&mut command, Duration::from_secs(60))?;
    }
    if matches!(disk, Disk::Nfs { .. }) {
        chown(&path, Some(QEMU_UID), None).context("giving the image to QEMU")?;
    }
    Ok(())
}

/// Agents write probe files beside images, to prove that storage is shared: an administrator lets them.
pub(crate) fn open_to_agent(folder: &Path) -> Result<()> {
    let group = nix::unistd::Group::from_name(AGENT)?.context("no group of the agent")?;
    nix::unistd::chown(folder, None, Some(group.gid))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o2775))?;
    Ok(())
}
