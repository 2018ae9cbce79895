//! Bytes that change between two real hosts, and a block that cannot be read any more: nothing wrong is kept, the guest
//! stays unharmed, and what went wrong is told.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, Expected, Process};
use drover_tests::{BadCable, Guest, GuestSpec, Host, Lab, LoopDevice, wait_until};

const MIB: u64 = 1 << 20;

/// Deep in what is sent, far behind any handshake.
const DEEP: u64 = 5 * MIB;

/// All is prepared, and nothing was sent yet.
const SENDING: &str = "source.sending";

/// A further disk of a guest, which nobody writes to.
fn disk(path: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='{path}'/>\
         <target dev='vdb' bus='virtio'/></disk>"
    )
}

/// 24 MiB that repeat nowhere, in a file that everybody may read.
fn fill(host: &Host, path: &str) -> Result<()> {
    let script = format!("dd if=/dev/urandom of={path} bs=1M count=24 status=none && chmod 644 {path}");
    host.run("sh", &["-c", &script]).map(|_| ())
}

fn is_empty(host: &Host, folder: &str) -> Result<()> {
    wait_until(&format!("{folder} to be empty"), Duration::from_secs(60), || {
        let there = host.run("ls", &["-A", folder])?.stdout;
        ensure!(there.trim().is_empty(), "{there}");
        Ok(Some(()))
    })
}

/// The guest has stayed, with its disk, and nothing is at the destination.
fn unharmed(cluster: &Cluster<'_>, guest: &Guest, path: &str, content: &[u8]) -> Result<()> {
    let (a, b) = (cluster.host("host-a"), cluster.host("host-b"));
    let folder = path.rsplit_once('/').context("a folder")?.0;
    is_empty(b, folder)?;
    ensure!(fs::read(a.outside(path))? == content, "the source's image was changed");
    cluster.check(&[Expected::Runs(guest, "host-a")])
}

/// So often the destination's agent had to say that what came is not what was sent.
fn found_by_tls(cluster: &Cluster<'_>, times: usize) -> Result<()> {
    let path = cluster.agent_log("host-b")?;
    let what = format!("host-b to have told it {times} times (log: {})", path.display());
    wait_until(&what, Duration::from_secs(60), || {
        let found = fs::read_to_string(&path)?.matches("cannot decrypt").count();
        ensure!(found == times, "it told it {found} times");
        Ok(Some(()))
    })
}

#[test]
fn a_byte_that_changes_between_two_hosts_is_found() -> Result<()> {
    const PATH: &str = "/srv/local/data.raw";
    let mut lab = Lab::builder().start()?;
    fill(lab.host("host-a"), PATH)?;
    let content = fs::read(lab.host("host-a").outside(PATH))?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").devices(&disk(PATH)))?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    let cable = BadCable::between(a, b)?;

    // A disk that is copied while the guest runs: the first data connection is its own.
    cable.flip_at(DEEP);
    let live = cluster.begin_with(&guest, "host-b", &["--copy-disks", "vdb"])?;
    let end = cluster.wait_for_rest(live.id())?;
    println!("live: {} {}", end.reason(), end.message());
    ensure!(cable.flipped() == 1, "no byte was changed: {}", end.0);
    ensure!(
        end.state() == "FAILED" && end.reason() == "TRANSFER_FAILED" && end.message().contains("nbd 0 channel"),
        "{}",
        end.0
    );
    found_by_tls(&cluster, 1)?;
    unharmed(&cluster, &guest, PATH, &content)?;
    watch.finish()?.check_path("web", &["host-a"])?;

    // The same files when it is off: the copy goes on by itself.
    a.virsh(&["destroy", "web"])?;
    let before = cable.connections();
    cable.flip_at(DEEP);
    let offline = cluster.begin_with(&guest, "host-b", &["--offline"])?;
    let end = cluster.wait_for_rest(offline.id())?;
    ensure!(
        end.state() == "SUCCEEDED" && cable.flipped() == 2,
        "{} bytes were changed: {}",
        cable.flipped(),
        end.0
    );
    ensure!(cable.connections() - before >= 2, "it did not connect again");
    found_by_tls(&cluster, 2)?;
    ensure!(fs::read(b.outside(PATH))? == content, "the copy is not what was sent");
    b.virsh(&["start", "web"])?;
    guest.wait_until_it_answers()?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])
}

/// A file system of its own in /srv/local/small, on a file whose end can be taken away.
fn small_file_system(host: &Host) -> Result<LoopDevice> {
    host.run(
        "sh",
        &[
            "-c",
            "cd /srv/local && truncate -s 32M device && mkfs.ext2 -q -F device",
        ],
    )?;
    let device = LoopDevice::on(host, "/srv/local/device")?;
    device.appear(host, "/srv/devices/small")?;
    host.run("mkdir", &["-p", "/srv/local/small"])?;
    mount(host)?;
    host.run(
        "sh",
        &["-c", "rmdir /srv/local/small/lost+found && chmod 777 /srv/local/small"],
    )?;
    Ok(device)
}

fn mount(host: &Host) -> Result<()> {
    host.run("mount", &["/srv/devices/small", "/srv/local/small"])
        .map(|_| ())
}

#[test]
fn a_block_that_cannot_be_read_ends_a_live_copy_and_the_guest_stays() -> Result<()> {
    const PATH: &str = "/srv/local/small/data.raw";
    const KEPT: u64 = 16 * MIB;
    let mut lab = Lab::builder().start()?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    let _device = small_file_system(a)?;
    b.run("install", &["-d", "-m", "777", "/srv/local/small"])?;
    fill(a, PATH)?;
    let content = fs::read(a.outside(PATH))?;
    // What it has read so far the kernel would give without the device.
    a.run("umount", &["/srv/local/small"])?;
    mount(a)?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").devices(&disk(PATH)))?;
    let cluster = Cluster::start_with_fault_points(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let a = lab.host("host-a");

    let agent = Process::Agent("host-a".to_owned());
    cluster.arm(&agent, SENDING)?;
    let id = cluster
        .begin_with(&guest, "host-b", &["--copy-disks", "vdb"])?
        .id()
        .to_string();
    cluster.wait_for_point(&agent, SENDING)?;
    let beneath = File::options()
        .read(true)
        .write(true)
        .open(a.outside("/srv/local/device"))?;
    let mut rest = vec![0; usize::try_from(32 * MIB - KEPT)?];
    beneath.read_exact_at(&mut rest, KEPT)?;
    beneath.set_len(KEPT)?;
    cluster.release()?;
    let end = cluster.wait_for_rest(&id)?;
    println!("unreadable: {} {}", end.reason(), end.message());
    let state = a.virsh(&["domstate", "web", "--reason"])?;
    beneath.write_all_at(&rest, KEPT)?;
    beneath.sync_all()?;
    ensure!(
        end.state() == "FAILED" && end.message().contains("vdb") && end.message().contains("Input/output error"),
        "{}",
        end.0
    );
    ensure!(state.starts_with("running"), "the guest is {state}");
    unharmed(&cluster, &guest, PATH, &content)?;
    watch.finish()?.check_path("web", &["host-a"])
}
