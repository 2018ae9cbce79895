//! The lab itself: that it comes up, that its eyes see what they must, and that nothing of it stays.

use anyhow::{Context, Result, ensure};
use drover_tests::watch::Violation;
use drover_tests::{Daemon, Disk, GuestSpec, Lab, Layout, Network, wait_until};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What happens at once on a quiet machine has happened by then.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a lab and says how long it took.
fn start(builder: drover_tests::LabBuilder) -> Result<Lab> {
    let lab = builder.start()?;
    println!("lab {} up in {:?}", lab.id(), lab.started_in());
    Ok(lab)
}

#[test]
fn a_guest_boots_and_answers_and_hosts_are_machines_of_their_own() -> Result<()> {
    let mut lab = start(Lab::builder())?;
    let started = Instant::now();
    let guest = lab.start_guest("host-a", &GuestSpec::new("one").autostart())?;
    println!("guest answers after {:?}", started.elapsed());
    ensure!(guest.verify()?.ticks > 0);

    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    for file in ["/proc/sys/kernel/random/boot_id", "/etc/machine-id", "/etc/hostname"] {
        ensure!(
            a.run("cat", &[file])?.stdout != b.run("cat", &[file])?.stdout,
            "{file} is the same on both hosts"
        );
    }
    let mut as_agent = a.command_as_agent("sh")?;
    as_agent.args([
        "-c",
        "id -un; virsh -q -c qemu:///system list --name; touch /run/drover/x; ! touch /etc/drover/x",
    ]);
    let said = drover_tests::run(&mut as_agent, Duration::from_secs(10))?.stdout;
    ensure!(said.contains("drover") && said.contains("one"), "{said}");
    ensure!(
        lab.leftovers()?.len() == 1,
        "the file in /run/drover: {:?}",
        lab.leftovers()?
    );
    a.run("rm", &["/run/drover/x"])?;
    lab.check_at_rest(&[(&guest, "host-a")])?;
    let domain = lab.running_copies(&guest)?.pop().context("it runs")?;
    ensure!(domain.autostart && domain.persistent && !domain.job, "{domain:?}");
    let qemu = a.processes_named("qemu-system")?.pop().context("a QEMU")?;
    let uid = fs::read_to_string(format!("/proc/{qemu}/status"))?;
    ensure!(uid.contains("Uid:\t64055"), "QEMU does not run as libvirt-qemu");
    lab.down()
}

#[test]
fn a_migration_by_virsh_is_watched_from_outside() -> Result<()> {
    let mut lab = start(Lab::builder().listen_tcp())?;
    let disk = Disk::Shared {
        format: "qcow2",
        size_mib: 16,
    };
    let spec = GuestSpec::new("two").fill_mib(64).dirty_mib_per_second(2).disk(disk);
    let guest = lab.start_guest("host-a", &spec)?;
    let watch = lab.watch(&[&guest])?;
    let watching = Instant::now();
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    // libvirt does not know that the folder is shared.
    let there = lab.migrate_with_virsh(&guest, a, b, &["--unsafe"])?;
    let back = lab.migrate_with_virsh(&guest, b, a, &["--unsafe"])?;
    lab.check_at_rest(&[(&guest, "host-a")])?;
    let watched = watching.elapsed();
    let report = watch.finish()?;
    report.check_path("two", &["host-a", "host-b", "host-a"])?;
    let seen = report.guest("two");
    println!(
        "there {:?}, back {:?}; blackout {:?} (sender late by {:?} at most), TCP stall {:?} in {} lines, {} beats",
        there.wall,
        back.wall,
        seen.blackout(),
        seen.pings.largest_delay,
        seen.session.largest_stall,
        seen.session.lines,
        report.verdict.beats
    );
    ensure!(
        seen.blackout() > Duration::from_millis(10),
        "a migration cannot be seen by ping: {:?}",
        seen.blackout()
    );
    ensure!(seen.blackout() < Duration::from_secs(30));
    let often = seen.pings.sent as f64 / watched.as_secs_f64();
    // A loaded machine sends fewer than 200; so many still show a blackout.
    ensure!(often > 20.0, "only {often} pings per second");
    let status = guest.status()?;
    ensure!(status.bytes_dirtied > 0 && status.disk_writes > 0, "{status:?}");
    lab.down()
}

#[test]
fn a_guest_lives_on_nfs_and_moves() -> Result<()> {
    let mut lab = start(Lab::builder().nfs().listen_tcp())?;
    let guest = lab.start_guest(
        "host-a",
        &GuestSpec::new("three").disk(Disk::Nfs { size_mib: 16 }).transient(),
    )?;
    let watch = lab.watch(&[&guest])?;
    // Without `--unsafe`: libvirt knows that NFS is shared.
    lab.migrate_with_virsh(&guest, lab.host("host-a"), lab.host("host-b"), &[])?;
    let before = guest.status()?.disk_writes;
    wait_until("more writes on NFS", Duration::from_secs(60), || {
        Ok((guest.status()?.disk_writes > before + 5).then_some(()))
    })?;
    lab.check_at_rest(&[(&guest, "host-b")])?;
    watch.finish()?.check_path("three", &["host-a", "host-b"])?;
    lab.down()
}

/// The alarm rings: a second copy of a guest's memory is really resumed on the other host.
#[test]
fn a_guest_that_runs_twice_is_seen() -> Result<()> {
    let mut lab = start(Lab::builder())?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("twin"))?;
    let watch = lab.watch(&[&guest])?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    a.virsh(&["save", "twin", "/srv/shared/twin.save"])?;
    fs::copy(a.outside("/srv/shared/twin.save"), a.outside("/srv/shared/copy.save"))?;
    a.virsh(&["restore", "/srv/shared/twin.save"])?;
    b.virsh(&["restore", "/srv/shared/copy.save"])?;
    ensure!(lab.running_copies(&guest)?.len() == 2);
    ensure!(
        lab.check_at_rest(&[(&guest, "host-a")]).is_err(),
        "two copies pass for one"
    );
    std::thread::sleep(Duration::from_secs(3)); // Time to beat; nothing to wait for.
    let report = watch.finish()?;
    let twice = |violation: &Violation| matches!(violation, Violation::TwoCopies { .. });
    ensure!(
        report.verdict.violations.iter().any(twice),
        "not seen: {:?}",
        report.verdict
    );
    ensure!(report.check().is_err());
    println!(
        "seen: {:?} and {} more",
        report.verdict.violations[0],
        report.verdict.violations.len() - 1
    );
    lab.down()
}

#[test]
fn links_are_slow_or_cut_as_told() -> Result<()> {
    let lab = start(Lab::builder())?;
    let (a, b) = (lab.host("host-a"), lab.host("host-b"));
    let link = a.link(Network::Management);
    let reaches = |from: &drover_tests::Host, to: &str| from.run("ping", &["-c1", "-W1", to]).is_ok();
    // One ping may be lost on a loaded machine: what is reachable answers sooner or later.
    let in_time = |from: &drover_tests::Host, to: &str| {
        wait_until(&format!("{to} to answer"), PATIENCE, || {
            Ok(reaches(from, to).then_some(()))
        })
    };
    in_time(a, "host-b")?;
    in_time(a, "control")?;
    link.unplug()?;
    ensure!(!reaches(b, "host-a"), "unplugged, yet reachable");
    link.plug()?;
    in_time(b, "host-a")?;
    link.black_hole(true)?;
    ensure!(!reaches(b, "host-a"), "a black hole, yet reachable");
    link.black_hole(false)?;
    in_time(b, "host-a")?;
    link.separate_from(b.address())?;
    ensure!(
        !reaches(a, "host-b") && !reaches(b, "host-a"),
        "separated, yet reachable"
    );
    in_time(a, "control")?;
    link.join_again()?;
    in_time(a, "host-b")?;

    // 80 Mbit/s are 9.5 MiB/s. A machine that has other things to do carries less in any one look.
    let slow_enough = |speed: f64| (2.0..12.0).contains(&speed);
    let (slow, fast) = wait_until("a link that is as slow as told, and faster without", PATIENCE, || {
        link.limit_mbit(Some(80))?;
        let slow = throughput(&lab)?;
        link.limit_mbit(None)?;
        let fast = throughput(&lab)?;
        ensure!(slow_enough(slow) && fast > 3.0 * slow, "{fast} and {slow} MiB/s");
        Ok(Some((slow, fast)))
    })?;
    println!("{fast:.0} MiB/s without a limit, {slow:.1} with 80 Mbit/s");

    let address = (b.address(), 9).into();
    let listener = b.in_network(|| Ok(std::net::TcpListener::bind(address)?))?;
    let near = a.connect(address, PATIENCE)?;
    let (far, _) = listener.accept()?;
    let reset = link.reset_connections(b.address())?;
    ensure!(reset == 1, "{reset} connections were reset, of 1");
    for mut end in [near, far] {
        end.set_read_timeout(Some(PATIENCE))?;
        let error = std::io::Read::read(&mut end, &mut [0; 1]).expect_err("reset");
        ensure!(error.kind() != std::io::ErrorKind::WouldBlock, "not reset: {error}");
    }
    lab.down()
}

/// MiB/s over TCP from host-a to host-b, over a second after a short start.
fn throughput(lab: &Lab) -> Result<f64> {
    use std::io::{Read, Write};
    let address = (lab.host("host-b").address(), 9000).into();
    let listener = lab
        .host("host-b")
        .in_network(|| Ok(std::net::TcpListener::bind(address)?))?;
    let mut sender = lab.host("host-a").connect(address, PATIENCE)?;
    let (mut receiver, _) = listener.accept()?;
    let sending = std::thread::spawn(move || while sender.write_all(&[7; 65536]).is_ok() {});
    let mut buffer = vec![0; 1 << 20];
    // The first megabytes pass at once: the limit's burst and the buffers.
    let (warm_up, length) = (Duration::from_millis(500), Duration::from_secs(1));
    let started = Instant::now();
    let mut bytes = 0;
    while started.elapsed() < warm_up + length {
        let read = receiver.read(&mut buffer)?;
        bytes += if started.elapsed() > warm_up { read } else { 0 };
    }
    let measured = started.elapsed() - warm_up;
    // The sender's end is gone before anybody counts connections.
    drop(receiver);
    sending.join().expect("the sender ends when it is reset");
    Ok(bytes as f64 / measured.as_secs_f64() / f64::from(1 << 20))
}

#[test]
fn a_daemon_gets_its_signals_and_dies_with_its_stand_in() -> Result<()> {
    let lab = start(Lab::builder().hosts(1))?;
    let host = lab.host("host-a");
    let script = "trap 'echo asked to end; exit 7' TERM; echo begun; while :; do sleep 0.05; done";
    let spawn = || -> Result<Daemon> {
        let daemon = Daemon::spawn(host, "script", host.command_as_agent("bash")?.args(["-c", script]))?;
        daemon.wait_for_log("begun", Duration::from_secs(60))?;
        Ok(daemon)
    };
    let mut asked = spawn()?;
    ensure!(asked.is_running());
    ensure!(asked.stop(Duration::from_secs(60))? == Some(7));
    ensure!(fs::read_to_string(asked.log())?.contains("asked to end"));

    let is_gone = |pid: i32| move || Ok((!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    let mut killed = spawn()?;
    let pid = killed.pid()?;
    ensure!(
        fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() == "bash",
        "the program itself, not its stand-in"
    );
    killed.kill()?;
    wait_until("the killed daemon", PATIENCE, is_gone(pid))?;

    let dropped = spawn()?;
    let pid = dropped.pid()?;
    drop(dropped);
    wait_until("the dropped daemon", PATIENCE, is_gone(pid))?;

    // A command's stand-in is all that std knows: its death must be the program's.
    let mut child = host.command("sleep")?.arg("60").spawn()?;
    let sleep = || Ok(host.processes_named("sleep")?.first().copied());
    let pid = wait_until("the command", Duration::from_secs(60), sleep)?;
    child.kill()?;
    child.wait()?;
    wait_until("the killed command", PATIENCE, is_gone(pid))?;
    lab.down()
}

#[test]
fn a_host_loses_power_and_comes_back() -> Result<()> {
    let mut lab = start(Lab::builder())?;
    lab.start_guest("host-a", &GuestSpec::new("four").autostart())?;
    let a = lab.host("host-a");
    let boot = a.run("cat", &["/proc/sys/kernel/random/boot_id"])?.stdout;
    a.power_off()?;
    ensure!(!a.is_up() && a.run("true", &[]).is_err());
    a.power_on()?;
    ensure!(
        boot != a.run("cat", &["/proc/sys/kernel/random/boot_id"])?.stdout,
        "the boot id is the old one"
    );
    lab.guest("four")?.wait_until_it_answers()?;
    a.kill_libvirtd()?;
    a.start_libvirtd()?;
    lab.check_at_rest(&[(&lab.guest("four")?, "host-a")])?;
    lab.down()
}

#[test]
fn two_labs_at_once_do_not_meet() -> Result<()> {
    let mut one = start(Lab::builder().hosts(1))?;
    let mut two = start(Lab::builder().hosts(1))?;
    let first = one.start_guest("host-a", &GuestSpec::new("same"))?;
    let second = two.start_guest("host-a", &GuestSpec::new("same"))?;
    ensure!(first.address() == second.address());
    second.power_off()?;
    wait_until("the second guest's end", Duration::from_secs(60), || {
        Ok(two.running_copies(&second)?.is_empty().then_some(()))
    })?;
    first.status()?;
    ensure!(!second.answers());
    two.down()?;
    one.check_at_rest(&[(&first, "host-a")])?;
    one.down()
}

/// Set for the child of the next test, which is this very program.
const VICTIM: &str = "DROVER_LAB_TEST_VICTIM";

/// Not a test by itself: a test that is killed while its lab is up.
#[test]
fn victim() -> Result<()> {
    let Ok(id) = std::env::var(VICTIM) else { return Ok(()) };
    let mut lab = Lab::builder().nfs().id(&id).start()?;
    lab.start_guest("host-a", &GuestSpec::new("orphan"))?;
    fs::write(lab.layout().folder().join("victim-is-ready"), "")?;
    std::thread::sleep(Duration::from_secs(60));
    panic!("nobody killed the victim");
}

#[test]
fn a_killed_test_leaves_nothing() -> Result<()> {
    let id = format!("kill-{}", std::process::id());
    let layout = Layout::new(&id)?;
    let interfaces = || -> Result<usize> { Ok(fs::read_dir("/sys/class/net")?.count()) };
    // Only what is this lab's: others may mount meanwhile, the kernel's NFS does.
    let mounts = || -> Result<usize> {
        let all = fs::read_to_string("/proc/mounts")?;
        Ok(all.lines().filter(|line| line.contains(&id)).count())
    };
    let before = (interfaces()?, mounts()?);
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "victim"])
        .env(VICTIM, &id)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let ready = layout.folder().join("victim-is-ready");
    wait_until("the victim's lab", Duration::from_secs(180), || {
        Ok(ready.exists().then_some(()))
    })?;
    let lab = Lab::attach(&id)?;
    let members = processes_of(&lab)?;
    ensure!(
        members.len() > 8,
        "libvirtd, QEMU, ganesha and their hosts: {members:?}"
    );
    victim.kill()?;
    victim.wait()?;
    wait_until("the folder's end", Duration::from_secs(60), || {
        Ok((!layout.folder().exists()).then_some(()))
    })?;
    let alive: Vec<_> = members
        .iter()
        .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()))
        .collect();
    ensure!(alive.is_empty(), "still alive: {alive:?}");
    ensure!(before == (interfaces()?, mounts()?), "interfaces or mounts stay");
    ensure!(Layout::all().iter().all(|left| *left != id));
    Ok(())
}

/// PIDs of everything in a lab: whatever lives in a PID namespace below the lab's.
fn processes_of(lab: &Lab) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    let nodes: Vec<_> = lab
        .hosts()
        .iter()
        .map(|host| (**host).clone())
        .chain([lab.control(), lab.client(), lab.nfs()])
        .collect();
    for node in nodes {
        let mine = fs::read_link(format!("/proc/{}/ns/pid", node.pid()?))?;
        for entry in fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            if fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|namespace| namespace == mine) {
                found.push(pid);
            }
        }
    }
    Ok(found)
}
