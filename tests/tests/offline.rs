//! A guest that is shut off moves with its local disks, and starts at the destination with what it had.

use std::time::Duration;

use anyhow::{Result, ensure};
use drover_tests::cluster::{Cluster, Expected, Process, expect};
use drover_tests::{Disk, Guest, GuestSpec, Host, Lab, LoopDevice, wait_until};

/// Refused by a check before anything was touched.
const REFUSED: i32 = 3;

/// All is prepared, and nothing was sent yet.
const SENDING: &str = "source.sending";

const RAW: &str = "/srv/local/data.raw";
const QCOW2: &str = "/srv/local/web.qcow2";

/// A guest with a local qcow2 that it writes to and a local raw disk of random data and holes, shut off on host-a.
fn scene() -> Result<(Lab, Guest)> {
    let mut lab = Lab::builder().start()?;
    let random =
        format!("dd if=/dev/urandom of={RAW} bs=1M count=24 status=none && truncate -s 64M {RAW} && chmod 644 {RAW}");
    lab.host("host-a").run("sh", &["-c", &random])?;
    let local = Disk::Local {
        format: "qcow2",
        size_mib: 64,
    };
    let second = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{RAW}'/>\
         <target dev='vdb' bus='virtio'/></disk>"
    );
    let spec = GuestSpec::new("web").disk(local).autostart().devices(&second);
    let guest = lab.start_guest("host-a", &spec)?;
    guest.verify()?;
    lab.host("host-a").virsh(&["destroy", "web"])?;
    Ok((lab, guest))
}

fn sums(host: &Host) -> Result<Vec<String>> {
    let read = |path: &str| Ok(host.run("sha256sum", &[path])?.stdout.chars().take(64).collect());
    [RAW, QCOW2].into_iter().map(read).collect()
}

fn starts_at(cluster: &Cluster<'_>, guest: &Guest, host: &str) -> Result<()> {
    cluster.host(host).virsh(&["start", "web"])?;
    guest.wait_until_it_answers()?;
    cluster.check(&[Expected::Runs(guest, host)])
}

#[test]
fn a_guest_that_is_shut_off_moves_with_its_local_disks() -> Result<()> {
    let (lab, guest) = scene()?;
    let cluster = Cluster::start(&lab)?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    let before = sums(a)?;
    let definition = a.virsh(&["dumpxml", "--inactive", "web"])?;

    expect(
        &cluster.drover(&["migrate", "web", "--to", "host-b"])?,
        REFUSED,
        &["--offline"],
    )?;
    let check = cluster.drover(&["check", "web", "--to", "host-b", "--offline"])?;
    expect(&check, 0, &["storage-copy", QCOW2, RAW])?;

    let moved = cluster.drover(&["migrate", "web", "--to", "host-b", "--mode", "auto"])?;
    expect(&moved, 0, &["web moved from host-a to host-b"])?;
    ensure!(sums(b)? == before, "the files are not the same");
    ensure!(b.virsh(&["dumpxml", "--inactive", "web"])? == definition);
    ensure!(b.virsh(&["dominfo", "web"])?.contains("Autostart:      enable"));
    ensure!(
        !a.virsh(&["list", "--all", "--name"])?.contains("web"),
        "it is still defined at the source"
    );
    let left = a.run("ls", &["/srv/local"])?.stdout;
    let names: Vec<&str> = left.split_whitespace().collect();
    ensure!(
        names.len() == 2 && names.iter().all(|name| name.contains(".moved-")),
        "{left}"
    );
    let blocks: u64 = b.run("stat", &["-c", "%b", RAW])?.stdout.trim().parse()?;
    ensure!(blocks * 512 < 26 << 20, "holes were filled: {blocks} blocks");
    starts_at(&cluster, &guest, "host-b")
}

#[test]
fn a_guest_that_runs_is_shut_down_and_runs_on_at_the_destination() -> Result<()> {
    let (lab, guest) = scene()?;
    lab.host("host-a").virsh(&["start", "web"])?;
    guest.wait_until_it_answers()?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let offline = ["migrate", "web", "--to", "host-b", "--offline"];
    expect(&cluster.drover(&offline)?, REFUSED, &["guest-state", "--shutdown"])?;
    let moved = cluster.drover(&[&offline[..], &["--shutdown=5m"]].concat())?;
    expect(&moved, 0, &["web moved from host-a to host-b"])?;
    guest.wait_until_it_answers()?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    // Its sessions ended with its shutdown; that it never ran twice, and where it ran, is asked for all the same.
    let seen = watch.finish()?;
    ensure!(
        seen.verdict.violations.is_empty(),
        "it ran twice: {:#?}",
        seen.verdict.violations
    );
    ensure!(
        seen.path("web") == ["host-a", "host-b"],
        "it went {:?}",
        seen.path("web")
    );
    Ok(())
}

#[test]
fn a_copy_goes_on_after_the_death_of_each_process() -> Result<()> {
    let (lab, guest) = scene()?;
    let mut cluster = Cluster::start(&lab)?;
    let before = sums(lab.host("host-a"))?;
    let slow = ["--offline", "--bandwidth", "1MiB/s"];
    let migration = cluster.begin_with(&guest, "host-b", &slow)?;
    let id = migration.id().to_string();
    for (dies, least_kib) in [("destination", 3 << 10), ("source", 8 << 10), ("controller", 13 << 10)] {
        wait_until("some of it to arrive", Duration::from_secs(60), || {
            let there = lab.host("host-b").run("du", &["-sk", "/srv/local"])?.stdout;
            let kib: u64 = there.split_whitespace().next().unwrap_or_default().parse()?;
            Ok((kib > least_kib).then_some(()))
        })?;
        match dies {
            "destination" => {
                cluster.kill_agent("host-b")?;
                cluster.start_agent("host-b")?;
            }
            "source" => {
                cluster.kill_agent("host-a")?;
                cluster.start_agent("host-a")?;
            }
            _ => {
                cluster.kill_controller()?;
                cluster.start_controller()?;
            }
        }
        ensure!(
            !cluster.migration(&id)?.at_rest(),
            "it ended with the {dies}: {}",
            cluster.migration(&id)?.0
        );
    }
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    ensure!(sums(lab.host("host-b"))? == before, "the files are not the same");
    starts_at(&cluster, &guest, "host-b")
}

#[test]
fn what_stands_in_the_way_is_told_and_the_guest_stays() -> Result<()> {
    let (lab, guest) = scene()?;
    let cluster = Cluster::start(&lab)?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    let offline = ["migrate", "web", "--to", "host-b", "--offline"];
    // A file of that name is there.
    b.run("touch", &[RAW])?;
    expect(&cluster.drover(&offline)?, REFUSED, &["storage-path", RAW])?;
    b.run("rm", &[RAW])?;
    // Nothing can be written there.
    b.run("mount", &["-t", "tmpfs", "-o", "ro,mode=0777", "drover", "/srv/local"])?;
    expect(
        &cluster.drover(&offline)?,
        REFUSED,
        &["storage-copy", "may not use /srv/local"],
    )?;
    b.run("umount", &["/srv/local"])?;
    // Somebody has the image open for writing.
    let nbd = [
        "-c",
        &format!("qemu-nbd --persistent --fork --pid-file=/run/nbd.pid -k /run/nbd.sock -f raw {RAW}"),
    ];
    a.run("sh", &nbd)?;
    expect(&cluster.drover(&offline)?, REFUSED, &["storage-copy", "in use"])?;
    a.run("sh", &["-c", "kill $(cat /run/nbd.pid)"])?;
    wait_until("the image to be free", Duration::from_secs(60), || {
        let held = "ls -l /proc/$(cat /run/nbd.pid)/fd 2>/dev/null | grep -q data.raw && echo held || echo free";
        let free = a.run("sh", &["-c", held])?;
        Ok(free.stdout.contains("free").then_some(()))
    })?;
    // The kernel writes to it.
    let device = LoopDevice::on(a, RAW)?;
    expect(&cluster.drover(&offline)?, REFUSED, &["storage-copy", "loop device"])?;
    drop(device);
    // A backup tool was here.
    checkpoint(a)?;
    let refused = cluster.drover(&offline)?;
    expect(&refused, REFUSED, &["checkpoints", "checkpoint-delete"])?;
    a.virsh(&["checkpoint-delete", "web", "c1", "--metadata"])?;
    // It lies on a file that is none of the agent's.
    lies_on(a, "/run/base.qcow2")?;
    let refused = cluster.drover(&offline)?;
    expect(
        &refused,
        REFUSED,
        &["storage-copy", "/run/base.qcow2", "storage_directories"],
    )?;
    a.run("sh", &["-c", &format!("mv /run/base.qcow2 {QCOW2}")])?;
    ensure!(
        b.run("ls", &["/srv/local"])?.stdout.trim().is_empty(),
        "something is left at the destination"
    );
    ensure!(a.virsh(&["dominfo", "web"])?.contains("Autostart:      enable"));
    starts_at(&cluster, &guest, "host-a")
}

#[test]
fn what_comes_in_the_way_meanwhile_leaves_the_guest_where_it_was() -> Result<()> {
    let (lab, guest) = scene()?;
    let cluster = Cluster::start_with_fault_points(&lab)?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    let offline = ["migrate", "web", "--to", "host-b", "--offline"];
    // A disk that would lie elsewhere.
    let elsewhere = [&offline[..], &["--disk", "vda=/srv/local/other.qcow2"]].concat();
    expect(&cluster.drover(&elsewhere)?, REFUSED, &["storage-copy", "elsewhere"])?;
    // libvirt has saved its memory.
    a.virsh(&["start", "web"])?;
    guest.wait_until_it_answers()?;
    a.virsh(&["managedsave", "web"])?;
    expect(&cluster.drover(&offline)?, REFUSED, &["saved on this host"])?;
    a.virsh(&["managedsave-remove", "web"])?;
    // It gets another definition: what was sent is not all of it any more, and nothing is asked again and again.
    let agent = Process::Agent("host-a".to_owned());
    cluster.arm(&agent, SENDING)?;
    let id = cluster.begin_with(&guest, "host-b", &["--offline"])?.id().to_string();
    cluster.wait_for_point(&agent, SENDING)?;
    a.virsh(&["desc", "web", "--config", "--title", "changed"])?;
    cluster.release()?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "FAILED" && end.reason() == "GUEST_BUSY", "{}", end.0);
    ensure!(
        b.run("ls", &["-A", "/srv/local"])?.stdout.trim().is_empty(),
        "something is left"
    );
    // Room that the check still sees, and that somebody else takes meanwhile.
    b.run(
        "mount",
        &["-t", "tmpfs", "-o", "size=40m,mode=0777", "drover", "/srv/local"],
    )?;
    let id = cluster
        .begin_with(&guest, "host-b", &["--offline", "--bandwidth", "1MiB/s"])?
        .id()
        .to_string();
    cluster.wait_for(&id, "to copy", |now| {
        let each = now.0["progress"]["disks"].as_array();
        let told = each.is_some_and(|each| each.iter().any(|disk| disk["disk"] == RAW));
        told && now.0["progress"]["disk_sent_bytes"].as_u64() > Some(1 << 20)
    })?;
    b.run("sh", &["-c", "cat /dev/zero >/srv/local/others 2>/dev/null; true"])?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "FAILED" && end.reason() == "NO_SPACE", "{}", end.0);
    let there = b.run("ls", &["-A", "/srv/local"])?.stdout;
    ensure!(there.trim() == "others", "{there}");
    b.run("umount", &["/srv/local"])?;
    starts_at(&cluster, &guest, "host-a")
}

/// What was the guest's image lies beneath a new one from now on.
fn lies_on(host: &Host, base: &str) -> Result<()> {
    host.run("sh", &["-c", &format!("mv {QCOW2} {base}")])?;
    // As people do it: by a name beside it, where it is beside it.
    let name = base.strip_prefix("/srv/local/").unwrap_or(base);
    let overlay = ["create", "-q", "-f", "qcow2", "-b", name, "-F", "qcow2", QCOW2];
    host.run("qemu-img", &overlay)?;
    Ok(())
}

#[test]
fn an_image_moves_with_all_that_it_lies_on() -> Result<()> {
    let (lab, guest) = scene()?;
    let cluster = Cluster::start(&lab)?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    lies_on(a, "/srv/local/base.qcow2")?;
    let base = std::fs::read(a.outside("/srv/local/base.qcow2"))?;
    let before = sums(a)?;
    let offline = ["--to", "host-b", "--offline", "--delete-source"];
    // The file beneath is looked for as well.
    b.run("touch", &["/srv/local/base.qcow2"])?;
    let taken = cluster.drover(&[&["migrate", "web"][..], &offline].concat())?;
    expect(&taken, REFUSED, &["storage-path", "/srv/local/base.qcow2"])?;
    b.run("rm", &["/srv/local/base.qcow2"])?;
    let check = cluster.drover(&["check", "web", "--to", "host-b", "--offline"])?;
    expect(&check, 0, &["storage-copy", "/srv/local/base.qcow2"])?;
    let moved = cluster.drover(&[&["migrate", "web"][..], &offline].concat())?;
    expect(&moved, 0, &["web moved from host-a to host-b"])?;
    ensure!(sums(b)? == before, "the files are not the same");
    for host in [a, b] {
        let there = std::fs::read(host.outside("/srv/local/base.qcow2"))?;
        ensure!(there == base, "what it lies on is not the same");
    }
    let left = a.run("ls", &["-A", "/srv/local"])?.stdout;
    ensure!(left.trim() == "base.qcow2", "left at the source: {left}");
    starts_at(&cluster, &guest, "host-b")
}

/// Makes libvirt know a checkpoint of the guest, which is shut off.
fn checkpoint(host: &Host) -> Result<()> {
    let uuid = host.virsh(&["domuuid", "web"])?;
    let definition = host.virsh(&["dumpxml", "--inactive", "web"])?;
    let xml = format!(
        "<domaincheckpoint><name>c1</name><creationTime>1</creationTime>\
         <disks><disk name='vda' checkpoint='bitmap' bitmap='c1'/></disks>{definition}</domaincheckpoint>"
    );
    ensure!(definition.contains(uuid.trim()), "{definition}");
    let path = host.outside("/srv/local/c1.xml");
    std::fs::write(&path, xml)?;
    host.virsh(&["checkpoint-create", "web", "/srv/local/c1.xml", "--redefine"])?;
    Ok(std::fs::remove_file(&path)?)
}

/// The guest starts from firmware with variables of its own.
fn give_variables(host: &Host) -> Result<()> {
    let variables = "/srv/local/web_VARS.fd";
    host.run(
        "sh",
        &[
            "-c",
            &format!("cp /usr/share/OVMF/OVMF_VARS_4M.fd {variables} && chmod 644 {variables}"),
        ],
    )?;
    let definition = host.virsh(&["dumpxml", "--inactive", "web"])?;
    let firmware = format!(
        "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>{variables}</nvram><kernel>"
    );
    let with = definition.replacen("<kernel>", &firmware, 1);
    ensure!(with != definition, "{definition}");
    let path = host.outside("/srv/local/web.xml");
    std::fs::write(&path, with)?;
    host.virsh(&["define", "/srv/local/web.xml"])?;
    Ok(std::fs::remove_file(&path)?)
}

#[test]
fn uefi_variables_go_along_and_the_sources_files_go_where_that_is_wanted() -> Result<()> {
    let (lab, _guest) = scene()?;
    let cluster = Cluster::start(&lab)?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    give_variables(a)?;
    let (before, definition) = (sums(a)?, a.virsh(&["dumpxml", "--inactive", "web"])?);
    let variables = std::fs::read(a.outside("/srv/local/web_VARS.fd"))?;
    let moved = cluster.drover(&["migrate", "web", "--to", "host-b", "--offline", "--delete-source"])?;
    expect(&moved, 0, &["web moved from host-a to host-b"])?;
    ensure!(sums(b)? == before, "the files are not the same");
    ensure!(std::fs::read(b.outside("/srv/local/web_VARS.fd"))? == variables);
    ensure!(b.virsh(&["dumpxml", "--inactive", "web"])? == definition);
    let left = a.run("ls", &["-A", "/srv/local"])?.stdout;
    ensure!(left.trim().is_empty(), "left at the source: {left}");
    b.virsh(&["start", "web"])?;
    ensure!(b.virsh(&["domstate", "web"])? == "running");
    Ok(())
}
