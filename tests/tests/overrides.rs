//! A guest moves to a host where its bridge, the path of its disk and the address of its graphics are others, and back.

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, Expected, Run};
use drover_tests::{Disk, Guest, GuestSpec, Host, Lab};

/// Refused by a check before anything was touched.
const REFUSED: i32 = 3;

/// On host-b the guests' bridge is `br1`, and the shared folder is mounted elsewhere.
fn rearrange(host: &Host) -> Result<()> {
    host.run("ip", &["link", "set", "br0", "down"])?;
    host.run("ip", &["link", "set", "br0", "name", "br1"])?;
    host.run("ip", &["link", "set", "br1", "up"])?;
    host.run("mkdir", &["/srv/elsewhere"])?;
    host.run("mount", &["--bind", "/srv/shared", "/srv/elsewhere"])?;
    host.run("umount", &["/srv/shared"])?;
    Ok(())
}

struct Scene {
    lab: Lab,
    guest: Guest,
    mac: String,
    /// What is different on each host.
    a: Place,
    b: Place,
}

struct Place {
    host: &'static str,
    disk: &'static str,
    bridge: &'static str,
    address: String,
}

fn scene() -> Result<Scene> {
    let mut lab = Lab::builder().start()?;
    let disk = Disk::Shared {
        format: "raw",
        size_mib: 16,
    };
    let here = lab.host("host-a").address();
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").disk(disk).graphics(here))?;
    rearrange(lab.host("host-b"))?;
    let xml = lab.host("host-a").virsh(&["dumpxml", "web"])?;
    let mac = value(&xml, "<mac address='").context("no MAC address")?;
    let place = |host: &'static str, disk, bridge| Place {
        host,
        disk,
        bridge,
        address: lab.host(host).address().to_string(),
    };
    let (a, b) = (
        place("host-a", "/srv/shared/web.raw", "br0"),
        place("host-b", "/srv/elsewhere/web.raw", "br1"),
    );
    Ok(Scene { lab, guest, mac, a, b })
}

/// What stands between a beginning and the next quote.
fn value(xml: &str, beginning: &str) -> Option<String> {
    let rest = xml.split_once(beginning)?.1;
    Some(rest.split_once('\'')?.0.to_string())
}

impl Scene {
    fn migrate(&self, cluster: &Cluster<'_>, to: &Place) -> Result<Run> {
        let disk = format!("vda={}", to.disk);
        let interface = format!("{}=bridge:{}", self.mac, to.bridge);
        let overrides = [
            "--disk",
            &disk,
            "--interface",
            &interface,
            "--graphics-listen",
            &to.address,
        ];
        let run = cluster.drover(&[["migrate", "web", "--to", to.host].as_slice(), &overrides].concat())?;
        ensure!(run.code == 0, "{run:?}");
        Ok(run)
    }

    /// Both definitions on a host, without what libvirt gives each life of a guest anew.
    fn definitions(&self, place: &Place) -> Result<(String, String)> {
        let host = self.lab.host(place.host);
        let live = host.virsh(&["dumpxml", "--security-info", "web"])?;
        let inactive = host.virsh(&["dumpxml", "--inactive", "--security-info", "web"])?;
        Ok((without_fleeting(&live), inactive))
    }
}

/// Without the id of the domain and the name of the tap, which libvirt chooses.
fn without_fleeting(live: &str) -> String {
    let mut text = live.to_string();
    for beginning in [" id='", "<target dev='vnet"] {
        if let Some(found) = value(&text, beginning) {
            text = text.replacen(&format!("{beginning}{found}'"), beginning, 1);
        }
    }
    text
}

/// A definition as it must be at another place: these differences and no other.
fn moved(xml: &str, from: &Place, to: &Place) -> String {
    xml.replace(&format!("'{}'", from.disk), &format!("'{}'", to.disk))
        .replace(&format!("bridge='{}'", from.bridge), &format!("bridge='{}'", to.bridge))
        .replace(&format!("'{}'", from.address), &format!("'{}'", to.address))
}

/// Lines that only one of two texts has.
fn difference(one: &str, other: &str) -> String {
    let only = |this: &str, that: &str, mark: &str| -> Vec<String> {
        let missing = this.lines().filter(|line| !that.lines().any(|same| same == *line));
        missing.map(|line| format!("{mark}{line}")).collect()
    };
    [only(one, other, "-"), only(other, one, "+")].concat().join("\n")
}

#[test]
fn a_guest_moves_to_a_host_where_things_have_other_names_and_back() -> Result<()> {
    let scene = scene()?;
    let (lab, guest, a, b) = (&scene.lab, &scene.guest, &scene.a, &scene.b);
    let cluster = Cluster::start(lab)?;
    let watch = lab.watch(&[guest])?;
    let at_home = scene.definitions(a)?;

    let plain = cluster.drover(&["migrate", "web", "--to", "host-b"])?;
    let said = format!("{}{}", plain.stdout, plain.stderr);
    ensure!(plain.code == REFUSED && said.contains("bridges"), "{plain:?}");

    scene.migrate(&cluster, b)?;
    cluster.check(&[Expected::Runs(guest, "host-b")])?;
    let there = scene.definitions(b)?;
    for (found, before) in [(&there.0, &at_home.0), (&there.1, &at_home.1)] {
        let expected = moved(before, a, b);
        ensure!(expected != *before, "nothing differs");
        ensure!(*found == expected, "{}", difference(&expected, found));
    }

    scene.migrate(&cluster, a)?;
    cluster.check(&[Expected::Runs(guest, "host-a")])?;
    let back = scene.definitions(a)?;
    ensure!(back.0 == at_home.0, "{}", difference(&at_home.0, &back.0));
    ensure!(back.1 == at_home.1, "{}", difference(&at_home.1, &back.1));
    watch.finish()?.check_path("web", &["host-a", "host-b", "host-a"])
}

#[test]
fn overrides_that_do_not_fit_are_refused_and_the_guest_does_not_notice() -> Result<()> {
    let scene = scene()?;
    let (lab, guest) = (&scene.lab, &scene.guest);
    let cluster = Cluster::start(lab)?;
    let refused = |overrides: &[&str], says: &[&str]| -> Result<()> {
        let run = cluster.drover(&[["migrate", "web", "--to", "host-b"].as_slice(), overrides].concat())?;
        let said = format!("{}{}", run.stdout, run.stderr);
        ensure!(run.code != 0, "accepted: {said}");
        for word in says {
            ensure!(said.contains(word), "it does not say {word:?}: {said}");
        }
        Ok(())
    };
    refused(&["--disk", "vdz=/srv/elsewhere/web.raw"], &["disks[0].target", "vdz"])?;
    refused(
        &["--interface", "52:54:00:ff:ff:ff=bridge:br1"],
        &["interfaces[0].mac_address", "52:54:00:ff:ff:ff"],
    )?;
    refused(&["--disk", "vda=../web.raw"], &["TARGET=PATH"])?;
    // The bridge is right, the path is not: another file lies there, or none.
    let interface = format!("{}=bridge:br1", scene.mac);
    lab.host("host-b")
        .run("cp", &["/srv/elsewhere/web.raw", "/srv/local/web.raw"])?;
    for path in ["vda=/srv/local/web.raw", "vda=/srv/nowhere/web.raw", "vda=/dev/web"] {
        refused(&["--interface", &interface, "--disk", path], &["storage-shared"])?;
    }
    cluster.check(&[Expected::Runs(guest, "host-a")])
}

#[test]
fn overrides_survive_a_restart_of_the_controller() -> Result<()> {
    let scene = scene()?;
    let (lab, guest, a, b) = (&scene.lab, &scene.guest, &scene.a, &scene.b);
    let mut cluster = Cluster::start(lab)?;
    let at_home = scene.definitions(a)?;
    lab.host("host-a")
        .link(drover_tests::Network::Management)
        .limit_mbit(Some(100))?;
    let disk = format!("vda={}", b.disk);
    let interface = format!("{}=bridge:{}", scene.mac, b.bridge);
    let wish = [
        "migrate",
        "web",
        "--to",
        "host-b",
        "--no-wait",
        "--disk",
        &disk,
        "--interface",
        &interface,
    ];
    let begun = cluster.drover_json(&[wish.as_slice(), &["--graphics-listen", &b.address]].concat())?;
    let id = begun["name"]
        .as_str()
        .context("no name")?
        .trim_start_matches("migrations/")
        .to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(1 << 20)
    })?;
    cluster.kill_controller()?;
    cluster.start_controller()?;
    lab.host("host-a")
        .link(drover_tests::Network::Management)
        .limit_mbit(None)?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    ensure!(
        end.0["destination_overrides"]["disks"][0]["source"] == b.disk,
        "{}",
        end.0
    );
    let there = scene.definitions(b)?;
    ensure!(
        there.1 == moved(&at_home.1, a, b),
        "{}",
        difference(&moved(&at_home.1, a, b), &there.1)
    );
    cluster.check(&[Expected::Runs(guest, "host-b")])
}
