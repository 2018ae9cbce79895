//! A guest whose disk is a block device that only its host has: copied onto a device of the destination while it writes.
//! What is there is overwritten only where that is asked for, listed, and blank.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, Expected, Process};
use drover_tests::{Disk, Guest, GuestSpec, Host, Lab, LoopDevice};

const REFUSED: i32 = 3;
const MIB: u64 = 1 << 20;
const DEVICE: &str = "/srv/devices/data";
const SIZE_MIB: u64 = 24;
/// The guest writes to what lies before, again and again.
const STILL: u64 = MIB;

/// All is prepared, and nothing was sent yet.
const SENDING: &str = "source.sending";

/// Nothing but zeros in the middle of the source's.
const ZEROS: std::ops::Range<u64> = 8 * MIB..10 * MIB;

/// A device on a new file of so many zeros.
fn blank(host: &Host, name: &str, mib: u64) -> Result<LoopDevice> {
    let path = format!("/srv/local/{name}");
    File::create(host.outside(&path))?.set_len(mib * MIB)?;
    LoopDevice::on(host, &path)
}

fn wipe(device: &LoopDevice) -> Result<()> {
    let done = Command::new("blkdiscard")
        .args(["--zeroout", "--force"])
        .arg(device.path())
        .status()?;
    ensure!(done.success(), "blkdiscard: {done}");
    Ok(())
}

fn read_only(device: &LoopDevice, set: bool) -> Result<()> {
    let flag = if set { "--setro" } else { "--setrw" };
    let done = Command::new("blockdev").arg(flag).arg(device.path()).status()?;
    ensure!(done.success(), "blockdev: {done}");
    Ok(())
}

/// A part of a device, as it is on the disk by now.
fn read(device: &LoopDevice, from: u64, to: u64) -> Result<Vec<u8>> {
    let file = File::open(device.path())?;
    let flushed = Command::new("blockdev")
        .arg("--flushbufs")
        .arg(device.path())
        .status()?;
    ensure!(flushed.success(), "blockdev: {flushed}");
    let mut bytes = vec![0; usize::try_from(to - from)?];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes)
}

/// A guest on a device of host-a, full of what repeats nowhere.
fn scene(lab: &mut Lab) -> Result<(Guest, LoopDevice)> {
    let a = lab.host("host-a");
    let source = blank(a, "source", SIZE_MIB)?;
    let mut random = File::open("/dev/urandom").map(|random| std::io::Read::take(random, SIZE_MIB * MIB))?;
    let mut file = File::options().write(true).open(source.path())?;
    std::io::copy(&mut random, &mut file)?;
    file.flush()?;
    zero(&file)?;
    source.appear(a, DEVICE)?;
    let disk = Disk::Device {
        path: DEVICE,
        size_mib: SIZE_MIB,
    };
    let guest = lab.start_guest("host-a", &GuestSpec::new("dev").disk(disk))?;
    Ok((guest, source))
}

fn zero(file: &File) -> Result<()> {
    file.write_all_at(&vec![0; usize::try_from(ZEROS.end - ZEROS.start)?], ZEROS.start)?;
    Ok(file.sync_all()?)
}

/// Something that nobody looks for, where the source has zeros.
fn litter(device: &LoopDevice) -> Result<()> {
    let file = File::options().write(true).open(device.path())?;
    file.write_all_at(b"left by somebody", ZEROS.start + 5000)?;
    Ok(file.sync_all()?)
}

/// A guest that is shut off, whose disk it is.
fn define_another(host: &Host) -> Result<()> {
    let xml = format!(
        "<domain type='qemu'><name>other</name><memory unit='MiB'>32</memory><os><type arch='x86_64'>hvm</type></os>\
         <devices><disk type='block' device='disk'><source dev='{DEVICE}'/><target dev='vda' bus='virtio'/></disk>\
         </devices></domain>"
    );
    fs::write(host.outside("/srv/local/other.xml"), xml)?;
    host.virsh(&["define", "/srv/local/other.xml"]).map(|_| ())
}

fn refused(cluster: &Cluster<'_>, copy: &[&str], says: &[&str]) -> Result<()> {
    let run = cluster.drover(&[&["migrate", "dev", "--to", "host-b"][..], copy].concat())?;
    let said = format!("{}{}", run.stdout, run.stderr);
    ensure!(run.code == REFUSED, "exit code {}: {said}", run.code);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in says {
        ensure!(said.contains(word), "it does not say {word:?}: {said}");
    }
    Ok(())
}

#[test]
fn a_device_is_copied_onto_another_one_that_may_be_overwritten() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let (guest, source) = scene(&mut lab)?;
    let cluster = Cluster::start(&lab)?;
    let b = lab.host("host-b");
    let watch = lab.watch(&[&guest])?;
    let named = ["--copy-disks", "vda"];

    refused(&cluster, &[], &["storage-shared", "--copy-disks vda"])?;
    refused(&cluster, &["--copy-unshared"], &["only where its disk is named"])?;
    refused(&cluster, &named, &["storage-copy", "No such file"])?;
    for other in [SIZE_MIB - 1, SIZE_MIB + 1] {
        let device = blank(b, "other", other)?;
        device.appear(b, DEVICE)?;
        refused(&cluster, &named, &["storage-copy", "are needed"])?;
    }

    // One with a file system on it.
    let copy = blank(b, "copy", SIZE_MIB)?;
    copy.appear(b, DEVICE)?;
    b.run("mkfs.ext2", &["-q", DEVICE])?;
    refused(&cluster, &named, &["storage-copy", "something on"])?;
    b.run("mkdir", &["-p", "/srv/mounted"])?;
    b.run("mount", &[DEVICE, "/srv/mounted"])?;
    refused(&cluster, &named, &["storage-copy", "in use"])?;
    b.run("umount", &["/srv/mounted"])?;
    wipe(&copy)?;

    // A copy that does not end leaves the device where it was, half written, and says so to the next one.
    let flags = [&named[..], &["--bandwidth", "4MiB/s"]].concat();
    let id = cluster.begin_with(&guest, "host-b", &flags)?.id().to_string();
    cluster.wait_for(&id, "to copy a disk", |now| {
        now.0["progress"]["disk_sent_bytes"].as_u64() > Some(4 * MIB)
    })?;
    ensure!(cluster.drover(&["migration", "cancel", &id])?.code == 0);
    ensure!(cluster.wait_for_rest(&id)?.state() == "CANCELLED");
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    copy.appear(b, DEVICE)?;
    refused(&cluster, &named, &["half written", "wipe it"])?;
    wipe(&copy)?;

    litter(&copy)?;
    let before = guest.status()?.disk_writes;
    let still = read(&source, STILL, SIZE_MIB * MIB)?;
    let flags = [&named[..], &["--delete-source"]].concat();
    let end = cluster.wait_for_rest(cluster.begin_with(&guest, "host-b", &flags)?.id())?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    ensure!(guest.status()?.disk_writes > before, "it wrote meanwhile");
    ensure!(
        read(&copy, STILL, SIZE_MIB * MIB)? == still,
        "the copy is not what the source has"
    );
    ensure!(
        read(&source, STILL, SIZE_MIB * MIB)? == still,
        "the source's device was changed"
    );
    // Nothing was made beside it, and no device is gone.
    for host in ["host-a", "host-b"] {
        let names = lab.host(host).run("ls", &["-A", "/srv/devices"])?.stdout;
        ensure!(names.trim() == "data", "{host}: {names}");
    }
    fs::metadata(source.path()).context("the source's device")?;
    watch.finish()?.check_path("dev", &["host-a", "host-b"])
}

/// The source's device loses a part before it is read, and gets it back.
fn unreadable(cluster: &Cluster<'_>, guest: &Guest, source: &LoopDevice, named: &[&str]) -> Result<()> {
    let agent = Process::Agent("host-a".to_owned());
    let whole = read(source, 0, SIZE_MIB * MIB)?;
    cluster.arm(&agent, SENDING)?;
    let id = cluster.begin_with(guest, "host-b", named)?.id().to_string();
    cluster.wait_for_point(&agent, SENDING)?;
    let beneath = File::options()
        .write(true)
        .open(cluster.host("host-a").outside("/srv/local/source"))?;
    beneath.set_len(16 * MIB)?;
    cluster.release()?;
    let end = cluster.wait_for_rest(&id)?;
    beneath.write_all_at(&whole[usize::try_from(16 * MIB)?..], 16 * MIB)?;
    beneath.sync_all()?;
    ensure!(
        end.state() == "FAILED" && end.message().contains("cannot read"),
        "{}",
        end.0
    );
    ensure!(
        read(source, 0, SIZE_MIB * MIB)? == whole,
        "the source's device is not as it was"
    );
    cluster.check(&[])
}

#[test]
fn a_device_of_a_guest_that_is_shut_off_is_copied_and_goes_on_after_a_cut() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let (guest, source) = scene(&mut lab)?;
    let mut cluster = Cluster::start_with_fault_points(&lab)?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    a.virsh(&["destroy", "dev"])?;
    source.appear(a, DEVICE)?;
    let named = ["--offline", "--copy-disks", "vda"];

    let copy = blank(b, "copy", SIZE_MIB)?;
    copy.appear(b, DEVICE)?;
    refused(&cluster, &["--offline"], &["only where its disk is named"])?;
    b.run("mkfs.ext2", &["-q", DEVICE])?;
    refused(&cluster, &named, &["storage-copy", "something on"])?;
    wipe(&copy)?;
    read_only(&copy, true)?;
    refused(&cluster, &named, &["storage-copy", "read-only device"])?;
    read_only(&copy, false)?;
    litter(&copy)?;
    define_another(b)?;
    refused(&cluster, &named, &["storage-copy", "disk of guest other"])?;
    b.virsh(&["undefine", "other"])?;

    // One that does not come to its end leaves the ends blank: it may be tried again as it is.
    let slow = [&named[..], &["--bandwidth", "2MiB/s"]].concat();
    let id = cluster.begin_with(&guest, "host-b", &slow)?.id().to_string();
    cluster.wait_for(&id, "to copy", |now| {
        now.0["progress"]["disk_sent_bytes"].as_u64() > Some(2 * MIB)
    })?;
    ensure!(cluster.drover(&["migration", "cancel", &id])?.code == 0);
    ensure!(cluster.wait_for_rest(&id)?.state() == "CANCELLED");
    let ends = [read(&copy, 0, MIB)?, read(&copy, (SIZE_MIB - 1) * MIB, SIZE_MIB * MIB)?].concat();
    ensure!(ends.iter().all(|byte| *byte == 0), "an end was written before the rest");

    let still = read(&source, 0, SIZE_MIB * MIB)?;
    unreadable(&cluster, &guest, &source, &named)?;
    let flags = [&named[..], &["--bandwidth", "4MiB/s", "--delete-source"]].concat();
    let id = cluster.begin_with(&guest, "host-b", &flags)?.id().to_string();
    cluster.wait_for(&id, "to copy", |now| {
        now.0["progress"]["disk_sent_bytes"].as_u64() > Some(4 * MIB)
    })?;
    cluster.kill_agent("host-b")?;
    cluster.start_agent("host-b")?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    ensure!(
        read(&copy, 0, SIZE_MIB * MIB)? == still,
        "the copy is not what was sent"
    );
    ensure!(
        read(&source, 0, SIZE_MIB * MIB)? == still,
        "the source's device was changed"
    );
    ensure!(a.virsh(&["list", "--all", "--name"])?.trim().is_empty());
    b.virsh(&["start", "dev"])?;
    guest.wait_until_it_answers()?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])
}
