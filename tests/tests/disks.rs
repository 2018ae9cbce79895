//! Guests with disks that only their host has: copied while they run, the shared ones left alone; and what remains
//! where a copy does not come to its end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, Expected, Migration, Run};
use drover_tests::{Disk, Guest, GuestSpec, Host, Lab, wait_until};

const REFUSED: i32 = 3;
const MIB: usize = 1 << 20;

/// A further disk of a guest, as its XML has it.
fn disk(target: &str, path: &str, more: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>\
         <target dev='{target}' bus='virtio'/>{more}</disk>"
    )
}

/// Bytes that repeat nowhere nearby.
fn noise(length: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Names of what lies in a host's own folder.
fn local(host: &Host) -> Result<Vec<String>> {
    let entries = fs::read_dir(host.outside("/srv/local"))?;
    let mut names: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

fn refused(run: &Run, says: &[&str]) -> Result<()> {
    let said = format!("{}{}", run.stdout, run.stderr);
    ensure!(run.code == REFUSED, "exit code {}: {said}", run.code);
    for word in says {
        ensure!(said.contains(word), "it does not say {word:?}: {said}");
    }
    Ok(())
}

/// A guest that writes to a local qcow2 image (vda), with a local raw one (vdb), a shared one (vdc) and a read-only one
/// of which both hosts have a copy (vdd).
fn mixed(lab: &mut Lab) -> Result<(Guest, PathBuf)> {
    let content = noise(24 * MIB);
    fs::write(lab.host("host-a").outside("/srv/local/data.raw"), &content)?;
    let shared = lab.layout().shared().join("shared.raw");
    fs::write(&shared, &content[..4 * MIB])?;
    for host in ["host-a", "host-b"] {
        fs::write(lab.host(host).outside("/srv/local/cd.iso"), &content[..MIB])?;
    }
    let devices = [
        disk("vdb", "/srv/local/data.raw", ""),
        disk("vdc", "/srv/shared/shared.raw", ""),
        disk("vdd", "/srv/local/cd.iso", "<readonly/>"),
    ];
    let spec = GuestSpec::new("mixed").disk(Disk::Local {
        format: "qcow2",
        size_mib: 64,
    });
    let guest = lab.start_guest("host-a", &spec.devices(&devices.concat()))?;
    Ok((guest, shared))
}

/// What `drover check` says of each disk.
fn plan_is_shown(cluster: &Cluster<'_>) -> Result<()> {
    let check = cluster.drover(&["check", "mixed", "--to", "host-b", "--copy-unshared"])?;
    ensure!(check.code == 0, "{check:?}");
    println!("{}", check.stdout);
    let plan: BTreeMap<&str, &str> = check
        .stdout
        .lines()
        .skip_while(|line| !line.starts_with("DISK"))
        .filter_map(|line| line.trim_start().split_once(' '))
        .map(|(target, rest)| (target, rest.trim_start()))
        .collect();
    for (target, action) in [("vda", "copy"), ("vdb", "copy"), ("vdc", "nothing"), ("vdd", "nothing")] {
        ensure!(
            plan.get(target).is_some_and(|plan| plan.starts_with(action)),
            "{}",
            check.stdout
        );
    }
    Ok(())
}

#[test]
fn local_disks_are_copied_while_the_guest_writes_and_shared_ones_are_left_alone() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let (guest, shared) = mixed(&mut lab)?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    let untouched = (
        fs::read(&shared)?,
        fs::metadata(&shared)?.ino(),
        fs::metadata(&shared)?.mtime(),
    );

    let without = cluster.drover(&["migrate", "mixed", "--to", "host-b"])?;
    refused(&without, &["storage-shared", "--copy-disks vda,vdb"])?;
    let itself = cluster.drover(&["migrate", "mixed", "--to", "host-b", "--copy-disks", "vda,vdb,vdc"])?;
    refused(&itself, &["vdc", "onto itself"])?;
    plan_is_shown(&cluster)?;

    let before = guest.status()?.disk_writes;
    let flags = ["--copy-disks", "vda,vdb", "--bandwidth", "40MiB/s"];
    let end = cluster.wait_for_rest(cluster.begin_with(&guest, "host-b", &flags)?.id())?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    let sent = end.0["summary"]["disk_sent_bytes"].as_u64().unwrap_or_default();
    ensure!(sent >= 24 * MIB as u64, "{}", end.0["summary"]);
    ensure!(guest.status()?.disk_writes > before, "it wrote meanwhile");
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    same(a, b, "data.raw")?;
    ensure!(local(b)? == ["cd.iso", "data.raw", "mixed.qcow2"], "{:?}", local(b)?);
    let after = (
        fs::read(&shared)?,
        fs::metadata(&shared)?.ino(),
        fs::metadata(&shared)?.mtime(),
    );
    ensure!(after == untouched, "the shared image was touched");

    // The originals were kept: they are in the way back, and nothing is written over.
    let back = cluster.drover(&["migrate", "mixed", "--to", "host-a", "--copy-disks", "vda,vdb"])?;
    refused(&back, &["already"])?;
    for old in ["data.raw", "mixed.qcow2"] {
        fs::remove_file(a.outside(&format!("/srv/local/{old}")))?;
    }
    let flags = ["--copy-unshared", "--delete-source"];
    let content = fs::read(b.outside("/srv/local/data.raw"))?;
    let end = cluster.wait_for_rest(cluster.begin_with(&guest, "host-a", &flags)?.id())?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    ensure!(
        fs::read(a.outside("/srv/local/data.raw"))? == content,
        "data.raw differs"
    );
    ensure!(local(b)? == ["cd.iso"], "{:?}", local(b)?);
    watch.finish()?.check_path("mixed", &["host-a", "host-b", "host-a"])
}

/// An image on an image on another one: in each something that is in no other. Beneath it there is less than it shows.
fn layered(host: &Host) -> Result<()> {
    fs::write(host.outside("/srv/local/base.raw"), noise(6 * MIB))?;
    for command in [
        "qemu-img create -q -f qcow2 -b base.raw -F raw middle.qcow2",
        "qemu-io -f qcow2 -c 'write -q -P 7 1M 2M' middle.qcow2",
        "qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 16M",
        "qemu-io -f qcow2 -c 'write -q -P 9 2M 1M' -c 'write -q -z 4M 64k' -c 'write -q -P 5 12M 64k' top.qcow2",
    ] {
        host.run("sh", &["-c", &format!("cd /srv/local && {command}")])?;
    }
    Ok(())
}

#[test]
fn a_disk_on_others_becomes_one_image_with_the_same_content() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    layered(lab.host("host-a"))?;
    let top = disk("vdb", "/srv/local/top.qcow2", "").replace("type='raw'", "type='qcow2'");
    let guest = lab.start_guest("host-a", &GuestSpec::new("layered").devices(&top))?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));

    let check = cluster.drover(&["check", "layered", "--to", "host-b", "--copy-disks", "vdb"])?;
    // A line may end between any two words.
    let said = check.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in ["flattened", "on /srv/local/middle.qcow2 on /srv/local/base.raw"] {
        ensure!(said.contains(word), "it does not say {word:?}: {}", check.stdout);
    }
    // The original goes: the copy is compared with another one on the same files.
    a.run("sh", &["-c", "cd /srv/local && cp top.qcow2 kept.qcow2"])?;
    let flags = ["--copy-disks", "vdb", "--delete-source"];
    let end = cluster.wait_for_rest(cluster.begin_with(&guest, "host-b", &flags)?.id())?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;

    ensure!(local(b)? == ["top.qcow2"], "{:?}", local(b)?);
    ensure!(
        local(a)? == ["base.raw", "kept.qcow2", "middle.qcow2"],
        "what lies beneath stays: {:?}",
        local(a)?
    );
    for xml in [&["dumpxml", "layered"][..], &["dumpxml", "layered", "--inactive"]] {
        let xml = b.virsh(xml)?;
        ensure!(!xml.contains("base.raw") && !xml.contains("middle.qcow2"), "{xml}");
    }
    let (old, new) = (a.outside("/srv/local/kept.qcow2"), b.outside("/srv/local/top.qcow2"));
    let info = b.run("qemu-img", &["info", "-U", "/srv/local/top.qcow2"])?.stdout;
    ensure!(!info.contains("backing file"), "{info}");
    let mut compare = Command::new("qemu-img");
    let compared = compare
        .args(["compare", "-U", "-f", "qcow2", "-F", "qcow2"])
        .args([old, new])
        .output()?;
    ensure!(compared.status.success(), "{compared:?}");
    watch.finish()?.check_path("layered", &["host-a", "host-b"])
}

fn same(one: &Host, other: &Host, name: &str) -> Result<()> {
    let read = |host: &Host| fs::read(host.outside(&format!("/srv/local/{name}")));
    ensure!(read(one)? == read(other)?, "{name} differs");
    Ok(())
}

/// Begins to copy 48 MiB at a pace that leaves time, and waits until some of it is there.
fn copying(cluster: &Cluster<'_>, guest: &Guest) -> Result<Migration> {
    let flags = ["--copy-disks", "vdb", "--bandwidth", "4MiB/s"];
    let id = cluster.begin_with(guest, "host-b", &flags)?.id().to_string();
    cluster.wait_for(&id, "to copy a disk", |now| {
        now.0["progress"]["disk_sent_bytes"].as_u64() > Some(1 << 20) && far(now, "vdb").is_some()
    })
}

/// How far a disk is, as far as it is under way: bytes in all, and left.
fn far(now: &Migration, target: &str) -> Option<(u64, u64)> {
    let disks = now.0["progress"]["disks"].as_array()?;
    let disk = disks.iter().find(|disk| disk["disk"] == target)?;
    let (total, left) = (disk["total_bytes"].as_u64()?, disk["remaining_bytes"].as_u64()?);
    (left < total).then_some((total, left))
}

#[test]
fn a_copy_that_does_not_end_leaves_nothing_and_the_guest_where_it_was() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let content = noise(48 * MIB);
    let original = lab.host("host-a").outside("/srv/local/data.raw");
    fs::write(&original, &content)?;
    let spec = GuestSpec::new("stays").devices(&disk("vdb", "/srv/local/data.raw", ""));
    let guest = lab.start_guest("host-a", &spec)?;
    let mut cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let b = lab.host("host-b");
    let nothing = |cluster: &Cluster<'_>, what: &str| -> Result<()> {
        wait_until(what, Duration::from_secs(60), || Ok(local(b)?.is_empty().then_some(())))?;
        ensure!(fs::read(&original)? == content, "{what}: the original was changed");
        cluster.check(&[Expected::Runs(&guest, "host-a")])
    };

    let now = copying(&cluster, &guest)?;
    let (id, told) = (now.id().to_string(), far(&now, "vdb"));
    ensure!(
        told.is_some_and(|(total, left)| total >= content.len() as u64 && left > 0),
        "{told:?}"
    );
    let shown = cluster.drover(&["migration", "get", &id])?.stdout;
    ensure!(shown.contains("  disk        vdb "), "{shown}");
    ensure!(local(b)? == ["data.raw"], "{:?}", local(b)?);
    ensure!(cluster.drover(&["migration", "cancel", &id])?.code == 0);
    ensure!(cluster.wait_for_rest(&id)?.state() == "CANCELLED");
    nothing(&cluster, "the cancelled copy to be gone")?;

    for host in ["host-b", "host-a"] {
        let id = copying(&cluster, &guest)?.id().to_string();
        cluster.kill_agent(host)?;
        cluster.start_agent(host)?;
        let end = cluster.wait_for_rest(&id)?;
        ensure!(end.state() == "FAILED", "{}", end.0);
        nothing(&cluster, "the copy of a dead agent to be gone")?;
    }

    // Room that the check still sees, and that somebody else takes meanwhile.
    b.run(
        "mount",
        &["-t", "tmpfs", "-o", "size=64m,mode=0777", "drover", "/srv/local"],
    )?;
    let id = copying(&cluster, &guest)?.id().to_string();
    b.run("sh", &["-c", "cat /dev/zero >/srv/local/others 2>/dev/null; true"])?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "FAILED", "{}", end.0);
    let there = b.run("ls", &["-A", "/srv/local"])?.stdout;
    ensure!(there.trim() == "others", "{there}");
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    let full = cluster.drover(&["migrate", "stays", "--to", "host-b", "--copy-disks", "vdb"])?;
    refused(&full, &["storage-copy", "bytes are needed"])?;
    b.run("umount", &["/srv/local"])?;

    fs::write(b.outside("/srv/local/data.raw"), b"precious").context("the file that is there")?;
    let there = cluster.drover(&["migrate", "stays", "--to", "host-b", "--copy-disks", "vdb"])?;
    refused(&there, &["already"])?;
    ensure!(fs::read(b.outside("/srv/local/data.raw"))? == b"precious");
    watch.finish()?.check_path("stays", &["host-a"])
}
