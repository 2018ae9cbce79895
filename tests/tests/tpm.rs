//! A guest with an emulated TPM keeps it: on its way while it runs libvirt takes the state along, while it is off Drover
//! does. The swtpm of the destination finds it, and makes none.
//!
//! The hosts are set up as docs/operating.md tells, with the hook that stands there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, Expected, expect};
use drover_tests::{Disk, Guest, GuestSpec, Host, Lab};

/// Refused by a check before anything was touched.
const REFUSED: i32 = 3;

const TPM: &str = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>";

const STATES: &str = "/var/lib/libvirt/swtpm";

/// What swtpm_setup and swtpm say of the guest's TPM.
const LOG: &str = "/var/log/swtpm/libvirt/qemu/web-swtpm.log";

/// The hook of docs/operating.md.
fn hook() -> Result<&'static str> {
    let page = include_str!("../../docs/operating.md");
    let begins = page.find("#!/bin/sh\n").context("no hook in docs/operating.md")?;
    let ends = page[begins..].find("```").context("the hook has no end")?;
    Ok(&page[begins..begins + ends])
}

/// As the page tells: the folder, the hook, a restart of libvirtd.
fn prepare(host: &Host) -> Result<()> {
    host.run("install", &["-d", "-m", "771", "-g", "drover", STATES])?;
    let script = host.outside("/etc/libvirt/hooks/qemu");
    std::fs::create_dir_all(script.parent().context("no folder")?)?;
    std::fs::write(&script, hook()?)?;
    host.run("chmod", &["755", "/etc/libvirt/hooks/qemu"])?;
    host.kill_libvirtd()?;
    host.start_libvirtd()
}

/// A guest with a disk that both hosts have, and a TPM; it runs on host-a.
fn scene() -> Result<(Lab, Guest)> {
    let mut lab = Lab::builder().start()?;
    for host in lab.hosts() {
        prepare(host)?;
    }
    let shared = Disk::Shared {
        format: "qcow2",
        size_mib: 64,
    };
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").disk(shared).devices(TPM))?;
    guest.verify()?;
    Ok((lab, guest))
}

fn folder(guest: &Guest) -> String {
    format!("{STATES}/{}", guest.uuid())
}

fn state(host: &Host, guest: &Guest) -> PathBuf {
    host.outside(&format!("{}/tpm2/tpm2-00.permall", folder(guest)))
}

/// The public part of the key that makes it this TPM, as swtpm_setup told it when it made it; it is in a certificate in
/// the state.
fn key(host: &Host) -> Result<Vec<u8>> {
    let log = std::fs::read_to_string(host.outside(LOG))?;
    let mut words = log.split_whitespace().skip_while(|word| *word != "--ek").skip(1);
    let hex = words.next().context("swtpm_setup has made no key")?;
    let byte = |at: usize| Ok(u8::from_str_radix(&hex[at..at + 2], 16)?);
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn is_in(key: &[u8], state: &Path) -> Result<bool> {
    Ok(std::fs::read(state)?.windows(key.len()).any(|bytes| bytes == key))
}

#[test]
fn a_tpm_goes_along_with_its_guest() -> Result<()> {
    let (lab, guest) = scene()?;
    let cluster = Cluster::start(&lab)?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    let key = key(a)?;
    ensure!(
        key.len() == 256 && is_in(&key, &state(a, &guest))?,
        "the key is not seen in the state"
    );

    called_off(&cluster, &guest)?;
    ensure!(
        is_in(&key, &state(a, &guest))?,
        "the state at the source is another one"
    );
    let live = cluster.drover(&["migrate", "web", "--to", "host-b"])?;
    expect(&live, 0, &["web moved from host-a to host-b"])?;
    guest.verify()?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    ensure!(is_in(&key, &state(b, &guest))?, "it is another TPM");
    ensure!(!a.outside(&folder(&guest)).exists(), "its state is left at the source");

    b.virsh(&["destroy", "web"])?;
    let offline = ["migrate", "web", "--to", "host-a", "--offline", "--delete-source"];
    refusals(&cluster, &guest, &offline)?;
    let before = std::fs::read(state(b, &guest))?;
    let check = cluster.drover(&["check", "web", "--to", "host-a", "--offline"])?;
    expect(&check, 0, &["tpm2-00.permall"])?;
    let moved = cluster.drover(&offline)?;
    expect(&moved, 0, &["web moved from host-b to host-a"])?;
    ensure!(std::fs::read(state(a, &guest))? == before, "it is another state");
    let left = b.run("ls", &["-A", STATES])?.stdout;
    ensure!(left.trim().is_empty(), "left at the source: {left}");

    a.virsh(&["start", "web"])?;
    guest.wait_until_it_answers()?;
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    ensure!(is_in(&key, &state(a, &guest))?, "swtpm has made another TPM");
    let (made, there) = (
        std::fs::read_to_string(a.outside(LOG))?,
        std::fs::read_to_string(b.outside(LOG))?,
    );
    ensure!(made.matches("Starting vTPM manufacturing").count() == 1, "{made}");
    ensure!(!there.contains("manufacturing"), "{there}");
    Ok(())
}

/// A move that somebody calls off while memory is sent: the guest stays with its TPM, nothing of it is at host-b.
fn called_off(cluster: &Cluster<'_>, guest: &Guest) -> Result<()> {
    let slow = cluster.begin_with(guest, "host-b", &["--bandwidth", "4MiB/s"])?;
    let id = slow.id().to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(1 << 20)
    })?;
    ensure!(cluster.drover(&["migration", "cancel", &id])?.code == 0);
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "CANCELLED", "{}", end.0);
    guest.verify()?;
    cluster.check(&[Expected::Runs(guest, "host-a")])?;
    let left = cluster.host("host-b").run("ls", &["-A", STATES])?.stdout;
    ensure!(left.trim().is_empty(), "left at the destination: {left}");
    Ok(())
}

/// What stands in the way of the guest, which is shut off on host-b.
fn refusals(cluster: &Cluster<'_>, guest: &Guest, offline: &[&str]) -> Result<()> {
    let (a, b) = (cluster.host("host-a"), cluster.host("host-b"));
    // Another TPM is where its state would come.
    let (theirs, place) = (state(a, guest), folder(guest));
    std::fs::create_dir_all(theirs.parent().context("no folder")?)?;
    std::fs::write(&theirs, b"another one")?;
    a.run("chgrp", &["-R", "drover", &place])?;
    a.run("chmod", &["-R", "g+rwX", &place])?;
    expect(&cluster.drover(offline)?, REFUSED, &["storage-path", "TPM", "already"])?;
    ensure!(std::fs::read(&theirs)? == b"another one");
    a.run("rm", &["-r", &place])?;
    // As libvirt leaves it where there is no hook.
    let inner = format!("{place}/tpm2");
    b.run("chmod", &["700", &inner])?;
    expect(&cluster.drover(offline)?, REFUSED, &["storage-copy", "hook"])?;
    b.run("chmod", &["770", &inner])?;
    ensure!(!a.outside(&place).exists(), "something is left at the destination");
    Ok(())
}
