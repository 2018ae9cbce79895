//! `drover check` on real hosts: what is good passes, what is wrong fails its own check by name, and nothing is touched.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drover_proto::agent::v1::agent_service_client::AgentServiceClient;
use drover_proto::agent::v1::{CheckIncomingRequest, GuestFacts, HostFacts, HugePages};
use drover_proto::identity::{Identity, TrustDomain};
use drover_proto::tls::{Tls, TlsFiles};
use drover_proto::v1::{Check, CheckResult};
use drover_tests::cluster::{AGENT_PORT, Cluster, Expected};
use drover_tests::{Disk, GuestSpec, Lab, Network, wait_until};
use serde_json::Value;

const ACCEPTABLE: i32 = 0;
const REFUSED: i32 = 3;

/// The exit code, and every check of the first destination that was not passed, with what was found.
fn not_passed(cluster: &Cluster<'_>, guest: &str, to: &str) -> Result<(i32, Vec<(String, String)>)> {
    let run = cluster.drover(&["check", guest, "--to", to, "--from", "host-a", "-o", "json"])?;
    let told: Value = serde_json::from_str(&run.stdout).with_context(|| format!("{run:?}"))?;
    let checks = told["destinations"][0]["checks"].as_array().context("no checks")?;
    let text = |check: &Value, field: &str| check[field].as_str().unwrap_or_default().to_string();
    let bad = checks.iter().filter(|check| check["result"] != "PASSED");
    // The agent's user may not look at the lab's kernel: a hint that does not stand in the way.
    let bad = bad.filter(|check| !(check["id"] == "boot-files" && check["result"] == "NOT_CHECKED"));
    let found = bad.map(|check| (text(check, "id"), text(check, "found"))).collect();
    no_probe_file(cluster)?;
    Ok((run.code, found))
}

fn no_probe_file(cluster: &Cluster<'_>) -> Result<()> {
    let left = cluster.lab().leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    Ok(())
}

/// This check failed, and no other one.
fn fails(cluster: &Cluster<'_>, guest: &str, to: &str, id: &str, says: &str) -> Result<()> {
    in_time(&format!("{id} to fail, and nothing else"), || {
        let (code, found) = not_passed(cluster, guest, to)?;
        let right = matches!(&found[..], [(failed, words)] if failed == id && words.contains(says));
        ensure!(
            code == REFUSED && right,
            "expected {id} with {says:?}: {code} {found:?}"
        );
        Ok(())
    })
}

/// On a loaded machine a host may be late with a heartbeat or a handshake: then a check fails that is looked at again.
fn in_time(what: &str, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    wait_until(what, Duration::from_secs(60), || look().map(Some))
}

fn passes(cluster: &Cluster<'_>, guest: &str, to: &str) -> Result<()> {
    in_time("all checks to pass", || {
        let (code, found) = not_passed(cluster, guest, to)?;
        ensure!(code == ACCEPTABLE && found.is_empty(), "{code} {found:?}");
        Ok(())
    })
}

fn shared() -> Disk {
    Disk::Shared {
        format: "qcow2",
        size_mib: 8,
    }
}

#[test]
fn good_hosts_pass_and_what_is_wrong_with_one_is_named() -> Result<()> {
    let mut lab = Lab::builder().hosts(3).start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").disk(shared()))?;
    let mut cluster = Cluster::start(&lab)?;
    passes(&cluster, "web", "host-b")?;

    // The destination lacks the bridge.
    let rename = |from: &str, to: &str| -> Result<()> {
        let host = cluster.host("host-b");
        host.run("ip", &["link", "set", from, "down"])?;
        host.run("ip", &["link", "set", from, "name", to])?;
        host.run("ip", &["link", "set", to, "up"])?;
        Ok(())
    };
    rename("br0", "br9")?;
    fails(&cluster, "web", "host-b", "bridges", "br0")?;
    rename("br9", "br0")?;
    passes(&cluster, "web", "host-b")?;

    // Its name is taken there.
    let xml = cluster.host("host-a").virsh(&["dumpxml", "--inactive", "web"])?;
    let path = lab.layout().folder().join("namesake.xml");
    let other = "11111111-2222-4333-8444-555555555555";
    fs::write(&path, xml.replace(&guest.uuid().to_string(), other))?;
    cluster.host("host-b").virsh(&["define", &path.display().to_string()])?;
    fails(&cluster, "web", "host-b", "name-free", other)?;
    cluster.host("host-b").virsh(&["undefine", "web"])?;

    // The port is shut in one direction, then in the other.
    for (from, to) in [("host-a", "host-b"), ("host-b", "host-a")] {
        let link = cluster.host(to).link(Network::Management);
        link.shut_port_to(cluster.host(from).address(), AGENT_PORT)?;
        fails(
            &cluster,
            "web",
            "host-b",
            "ports",
            &format!("{from} does not reach {to}"),
        )?;
        link.join_again()?;
    }
    passes(&cluster, "web", "host-b")?;

    // One host stops: all others are told of nevertheless.
    cluster.kill_agent("host-b")?;
    let (code, found) = not_passed(&cluster, "web", "host-b")?;
    ensure!(
        code == REFUSED && matches!(&found[..], [(id, _)] if id == "agents"),
        "{found:?}"
    );
    let all = cluster.drover(&["check", "web"])?;
    ensure!(all.code == ACCEPTABLE, "{all:?}");
    let line = |host: &str, word: &str| {
        all.stdout
            .lines()
            .any(|line| line.starts_with(host) && line.split_whitespace().nth(1) == Some(word))
    };
    ensure!(line("host-b", "no") && line("host-c", "yes"), "{}", all.stdout);
    ensure!(
        all.stdout.lines().all(|line| line.chars().count() <= 80),
        "{}",
        all.stdout
    );
    cluster.start_agent("host-b")?;
    passes(&cluster, "web", "host-b")?;
    cluster.check(&[Expected::Runs(&guest, "host-a")])
}

#[test]
fn storage_has_to_be_proved() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let local = Disk::Local {
        format: "raw",
        size_mib: 8,
    };
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").disk(local))?;
    let cluster = Cluster::start(&lab)?;
    let (code, found) = not_passed(&cluster, "web", "host-b")?;
    let ids: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    ensure!(
        code == REFUSED && ids == ["storage-path", "storage-shared"],
        "{found:?}"
    );
    // The same path and size, and yet another file.
    let there = cluster.host("host-b").folder().join("local/web.raw");
    fs::File::create(&there)?.set_len(8 << 20)?;
    fails(&cluster, "web", "host-b", "storage-shared", "/srv/local")?;
    ensure!(
        cluster.drover(&["migrate", "web", "--to", "host-b"])?.code == REFUSED,
        "it was not refused"
    );
    fs::remove_file(there)?;
    cluster.check(&[Expected::Runs(&guest, "host-a")])
}

#[test]
fn an_image_that_is_only_read_may_be_a_copy_of_the_same_content() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let image = |host: &str| lab.host(host).folder().join("local/config.iso");
    let write = |path: &std::path::Path, content: &[u8]| -> Result<()> {
        fs::write(path, content)?;
        // As an installed ISO is: whoever may enter the folder reads it.
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o644))?)
    };
    let (here, there) = (image("host-a"), image("host-b"));
    let content = vec![7; 1 << 20];
    write(&here, &content)?;
    let cdrom = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/srv/local/config.iso'/>\
                 <target dev='sda' bus='sata'/><readonly/></disk>";
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").disk(shared()).devices(cdrom))?;
    // libvirt gives an image to QEMU while the guest runs, and only root reads it then.
    fs::set_permissions(&here, fs::Permissions::from_mode(0o644))?;
    let cluster = Cluster::start(&lab)?;
    let (_, found) = not_passed(&cluster, "web", "host-b")?;
    ensure!(found.iter().any(|(id, _)| id == "storage-path"), "{found:?}");
    write(&there, &vec![8; 1 << 20])?;
    fails(&cluster, "web", "host-b", "storage-shared", "config.iso")?;
    write(&there, &content)?;
    passes(&cluster, "web", "host-b")?;
    cluster.migrate(&guest, "host-b")?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])
}

/// What the agent of host-b says of a guest that no host of the lab could start, asked as the controller asks.
fn asked_as_the_controller(cluster: &Cluster<'_>, guest: GuestFacts) -> Result<Vec<Check>> {
    let folder = cluster.pki().join("controller");
    let files = TlsFiles {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        ca: cluster.pki().join("ca.crt"),
    };
    let domain: TrustDomain = "drover.local".parse()?;
    let tls = Tls::load(files, domain)?;
    let agent = Identity::Agent("host-b".parse()?);
    let address = format!("{}:{AGENT_PORT}", cluster.host("host-b").address());
    cluster.lab().control().in_network(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let channel = drover_proto::channel::channel(&tls, &address, agent)?;
                let request = CheckIncomingRequest {
                    guest: Some(guest),
                    source: Some(HostFacts::default()),
                    policy: None,
                };
                let answer = AgentServiceClient::new(channel).check_incoming(request).await?;
                Ok(answer.into_inner().checks)
            })
    })
}

#[test]
fn what_a_host_cannot_give_a_guest_is_named() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("web"))?;
    let cluster = Cluster::start(&lab)?;
    let ordinary = GuestFacts {
        guest_uuid: uuid::Uuid::new_v4().to_string(),
        name: "demanding".to_owned(),
        domain_type: "qemu".to_owned(),
        arch: "x86_64".to_owned(),
        machine: "pc-q35-7.2".to_owned(),
        cpu_xml: "<cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>".to_owned(),
        memory_bytes: 64 << 20,
        ..GuestFacts::default()
    };
    let modern = GuestFacts {
        // An emulated CPU has no AVX-512, whatever the machine has.
        cpu_xml: "<cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model>\
                  <feature policy='require' name='avx512f'/></cpu>"
            .to_owned(),
        ..ordinary.clone()
    };
    let demanding = GuestFacts {
        machine: "pc-q35-99.0".to_owned(),
        memory_bytes: 1 << 50,
        huge_pages: vec![HugePages {
            page_bytes: 1 << 30,
            total_bytes: 1 << 40,
        }],
        numa_nodes: vec![63],
        ..ordinary.clone()
    };
    let good = asked_as_the_controller(&cluster, ordinary)?;
    let of = |checks: &[Check], id: &str| {
        let found = checks.iter().find(|check| check.id == id).cloned();
        found.with_context(|| format!("no check {id}: {checks:#?}"))
    };
    for (guest, lacks) in [
        (modern, &[("cpu", "lacks avx512f")][..]),
        (
            demanding,
            &[
                ("machine-type", "pc-q35-99.0"),
                ("memory", ""),
                ("huge-pages", ""),
                ("numa", "63"),
            ],
        ),
    ] {
        let bad = asked_as_the_controller(&cluster, guest)?;
        for (id, says) in lacks {
            let (passed, failed) = (of(&good, id)?, of(&bad, id)?);
            ensure!(passed.result() == CheckResult::Passed, "{passed:?}");
            let named = failed.found.contains(says) && !failed.remedy.is_empty();
            ensure!(failed.result() == CheckResult::Failed && named, "{failed:?}");
            println!("{id}: {}", failed.found);
        }
    }
    cluster.check(&[Expected::Runs(&guest, "host-a")])
}
