//! What the guests boot: Debian's cloud kernel and an initrd with busybox, a few modules and the guest program.
//! Built once per content and kept under `/var/cache/drover-lab`.

use crate::process;
use anyhow::{Context, Result, bail};
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const CACHE: &str = "/var/cache/drover-lab";
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guest");
const BUSYBOX: &str = "/bin/busybox";

/// In the order in which they must be loaded.
const MODULES: [&str; 12] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/char/hw_random/virtio-rng.ko",
    "drivers/input/evdev.ko",
    "drivers/acpi/button.ko",
];

/// A kernel and its initrd, readable by QEMU.
#[derive(Debug, Clone)]
pub(crate) struct BootImage {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

/// The boot image, built if this content was not built before.
pub(crate) fn boot_image() -> Result<BootImage> {
    let release = kernel_release()?;
    let modules = PathBuf::from(format!("/lib/modules/{release}/kernel"));
    let mut sources: Vec<PathBuf> = fs::read_dir(SOURCES)
        .context(SOURCES)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    sources.sort();
    let mut hasher = DefaultHasher::new();
    (&release, MODULES).hash(&mut hasher);
    for path in &sources {
        fs::read(path)?.hash(&mut hasher);
    }
    let folder = Path::new(CACHE).join(format!("{release}-{:016x}", hasher.finish()));
    let image = BootImage {
        kernel: folder.join("vmlinuz"),
        initrd: folder.join("initrd"),
    };
    if !image.initrd.exists() {
        fs::create_dir_all(CACHE)?;
        // Built beside and renamed: two tests at once build twice, and neither sees half a file.
        let work = tempfile::Builder::new().prefix("build-").tempdir_in(CACHE)?;
        build(work.path(), &release, &modules)?;
        fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
        if let Err(error) = fs::rename(work.path(), &folder)
            && !image.initrd.exists()
        {
            return Err(error).context("moving the boot image into place");
        }
    }
    Ok(image)
}

/// The newest cloud kernel in /boot; the running kernel may be anything.
fn kernel_release() -> Result<String> {
    let mut releases: Vec<String> = fs::read_dir("/boot")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_string))
        .filter(|release| release.contains("cloud"))
        .collect();
    releases.sort();
    releases
        .pop()
        .context("no cloud kernel in /boot: run scripts/install-packages")
}

fn build(work: &Path, release: &str, modules: &Path) -> Result<()> {
    let root = work.join("root");
    for folder in ["bin", "proc", "sys", "dev", "modules"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).context("no busybox: run scripts/install-packages")?;
    let init = root.join("init");
    fs::copy(Path::new(SOURCES).join("init"), &init)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let mut order = String::new();
    for module in MODULES {
        let path = modules.join(module);
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .context("module without a name")?;
        fs::copy(&path, root.join("modules").join(name)).with_context(|| path.display().to_string())?;
        order.push_str(&format!("{name}\n"));
    }
    fs::write(root.join("modules/order"), order)?;
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static"]);
    rustc
        .args(["-C", "panic=abort", "-C", "strip=symbols", "-o"])
        .arg(root.join("guest"));
    rustc.arg(Path::new(SOURCES).join("main.rs"));
    process::run(&mut rustc, Duration::from_secs(120)).context("building the guest program")?;
    pack(&root, &work.join("initrd"))?;
    fs::copy(format!("/boot/vmlinuz-{release}"), work.join("vmlinuz"))?;
    for file in ["initrd", "vmlinuz"] {
        fs::set_permissions(work.join(file), fs::Permissions::from_mode(0o644))?;
    }
    fs::remove_dir_all(root)?;
    Ok(())
}

fn pack(root: &Path, initrd: &Path) -> Result<()> {
    // Not compressed: 4 MB are read faster than an emulated processor unpacks them.
    let script = "find . | cpio --create --format=newc --quiet --owner=0:0 >\"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(initrd).current_dir(root);
    process::run(&mut command, Duration::from_secs(60)).context("packing the initrd")?;
    if fs::metadata(initrd)?.len() == 0 {
        bail!("cpio made an empty initrd");
    }
    Ok(())
}
