//! The API as a stranger meets it, who has only the `.proto` files: a Python program that moves a guest, `buf curl`
//! by reflection, requests that nobody should send, and very many watchers.

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, Expected};
use drover_tests::{GuestSpec, Lab, Network};
use serde_json::Value;

/// Slow enough that a guest is on its way until the limit is lifted.
const SLOW_MBIT: u32 = 40;

const WATCHERS: u64 = 200;

/// What one watcher may cost the controller, in bytes: TLS and HTTP/2 of a connection of its own, and a few messages.
const MOST_PER_WATCHER: u64 = 256 << 10;

/// What all odd requests together may cost the controller, at its peak: some messages of the largest size that is read.
const MOST_FOR_ODD: u64 = 64 << 20;

fn event<'a>(told: &'a [Value], name: &str) -> Option<&'a Value> {
    told.iter().find(|line| line["event"] == name)
}

fn count(told: &[Value], name: &str) -> usize {
    told.iter().filter(|line| line["event"] == name).count()
}

/// Reads `drover.v1.MigrationPhase` off the changes of a watch, in order and without repeats.
fn phases(told: &[Value]) -> Vec<u64> {
    let changed = told.iter().filter(|line| line["event"] == "changed");
    let mut phases: Vec<u64> = changed.filter_map(|line| line["phase"].as_u64()).collect();
    phases.dedup();
    phases
}

#[test]
fn a_python_program_moves_a_guest_through_a_cut_connection_and_a_dead_controller() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").fill_mib(160).dirty_mib_per_second(5))?;
    let mut cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let uuid = guest.uuid().to_string();

    // Cancelled on its way.
    let link = cluster.host("host-a").link(Network::Management);
    link.limit_mbit(Some(SLOW_MBIT))?;
    let program = "examples/python/move.py";
    let told = cluster
        .python(program, "cancels", &[&uuid, "host-b", "--cancel-at", "10"])?
        .finish()?;
    ensure!(event(&told, "cancelling").is_some(), "{told:#?}");
    ensure!(
        event(&told, "end").is_some_and(|end| end["state"] == "CANCELLED"),
        "{told:#?}"
    );

    // Moved, through a connection that is cut and a controller that dies.
    let mut mover = cluster.python(program, "moves", &[&uuid, "host-b"])?;
    mover.wait_for("progress", |told| event(told, "progress").map(|_| ()))?;
    ensure!(cluster.cut_clients()? > 0, "no connection to cut");
    mover.wait_for("a second snapshot", |told| (count(told, "snapshot") >= 2).then_some(()))?;
    let refused = cluster.python(program, "refused", &[&uuid, "host-b"])?.finish()?;
    let refusal = event(&refused, "refused").context("two migrations of one guest")?;
    ensure!(
        refusal["reason"] == "MIGRATION_EXISTS" && refusal["code"] == "ALREADY_EXISTS",
        "{refusal}"
    );
    cluster.kill_controller()?;
    cluster.start_controller()?;
    mover.wait_for("a third snapshot", |told| (count(told, "snapshot") >= 3).then_some(()))?;
    link.limit_mbit(None)?;
    let told = mover.finish()?;
    ensure!(
        event(&told, "end").is_some_and(|end| end["state"] == "SUCCEEDED"),
        "{told:#?}"
    );
    ensure!(count(&told, "guest_switched") == 1, "{told:#?}");
    let in_order = phases(&told).windows(2).all(|pair| pair[0] < pair[1]);
    ensure!(in_order, "a change was told twice or late: {told:#?}");

    // Errors, field by field.
    let refused = cluster.python(program, "mistakes", &["no-uuid", "host-b"])?.finish()?;
    let refusal = event(&refused, "refused").context("not a UUID, and taken")?;
    ensure!(refusal["reason"] == "INVALID_ARGUMENT", "{refusal}");
    ensure!(refusal["fields"]["migration.guest_uuid"].is_string(), "{refusal}");

    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    watch.finish()?.check_path("web", &["host-a", "host-b"])
}

/// Request, code, reason.
const ODD: [(&str, &str, &str); 13] = [
    ("deadline", "DEADLINE_EXCEEDED", ""),
    ("too large", "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"),
    ("unknown field", "OK", ""),
    ("bad UTF-8", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    ("no protobuf", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    ("no such method", "UNIMPLEMENTED", "UNIMPLEMENTED"),
    ("page of everything", "OK", ""),
    ("page of less than nothing", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    ("forged page token", "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID"),
    ("filter without end", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    ("long name", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    ("a hundred thousand hosts", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    ("good", "OK", ""),
];

#[test]
fn odd_requests_get_clear_answers_and_very_many_watchers_cost_little() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").fill_mib(160).dirty_mib_per_second(5))?;
    let mut cluster = Cluster::start(&lab)?;
    let uuid = guest.uuid().to_string();

    let (before, peak_before) = cluster.controller_memory()?;
    let told = cluster
        .python("tests/foreign/hostile.py", "odd", &["requests", &uuid])?
        .finish()?;
    for line in &told {
        println!("{line}");
    }
    for (request, code, reason) in ODD {
        let answer = told.iter().find(|line| line["request"] == request);
        let answer = answer.with_context(|| format!("no answer to {request:?}: {told:#?}"))?;
        let said = answer["reason"].as_str().unwrap_or_default();
        // An expired deadline may be noticed by the client first.
        let right = answer["code"] == code && (said == reason || request == "deadline");
        ensure!(right, "{request:?} should get {code} {reason}: {answer}");
    }
    let (after, peak) = cluster.controller_memory()?;
    println!(
        "memory of the controller: {} before these requests, {} after, {} at most",
        mib(before),
        mib(after),
        mib(peak)
    );

    // What was at its peak before, at its start, counts for nothing.
    let grown = peak.saturating_sub(before.max(peak_before));
    ensure!(grown < MOST_FOR_ODD, "{} for odd requests", mib(grown));

    by_reflection(&cluster, &uuid)?;
    many_watchers(&mut cluster, &guest)?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Nothing but the address and a certificate: what there is to call is asked of the controller.
fn by_reflection(cluster: &Cluster<'_>, uuid: &str) -> Result<()> {
    let (code, said) = cluster.buf_curl("drover.v1.HostService/ListHosts", "{}")?;
    ensure!(code == 0 && said.contains("hosts/host-a"), "{code}: {said}");
    let request = format!("{{\"guest_uuid\": \"{uuid}\", \"destination_hosts\": [\"hosts/host-b\"]}}");
    let (code, said) = cluster.buf_curl("drover.v1.MigrationService/CheckMigration", &request)?;
    ensure!(code == 0 && said.contains("\"acceptable\": true"), "{code}: {said}");
    let missing = "{\"name\": \"migrations/01a20763-a7d8-73cc-864e-e337a7ff31b8\"}";
    let (code, said) = cluster.buf_curl("drover.v1.MigrationService/GetMigration", missing)?;
    // Its value is base64: buf does not know the type.
    let right = code != 0 && said.contains("not_found") && said.contains("google.rpc.ErrorInfo");
    ensure!(right, "{code}: {said}");
    Ok(())
}

/// Two hundred, each with a connection of its own, twenty of which do not read while the guest moves.
fn many_watchers(cluster: &mut Cluster<'_>, guest: &drover_tests::Guest) -> Result<()> {
    let link = cluster.host("host-a").link(Network::Management);
    link.limit_mbit(Some(SLOW_MBIT))?;
    let id = cluster.begin(guest, "host-b")?.id().to_owned();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(1 << 20)
    })?;
    let (before, peak_before) = cluster.controller_memory()?;
    let name = format!("migrations/{id}");
    let mut watchers = cluster.python("tests/foreign/hostile.py", "watchers", &["watchers", &name])?;
    watchers.wait_for("all watchers to watch", |told| {
        told.iter().find(|line| line["ready"] == WATCHERS).map(|_| ())
    })?;
    let (with, _) = cluster.controller_memory()?;
    link.limit_mbit(None)?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    let told = watchers.finish()?;
    let (after, peak) = cluster.controller_memory()?;
    println!(
        "memory of the controller: {} before, {} with {WATCHERS} watchers, {} when they have gone, {} at most",
        mib(before),
        mib(with),
        mib(after),
        mib(peak)
    );
    let ends: Vec<&Value> = told.iter().filter(|line| line["watcher"].is_u64()).collect();
    ensure!(ends.len() as u64 == WATCHERS, "{told:#?}");
    for one in ends {
        // SUCCEEDED is 5. A change is never left out, read slowly or not.
        let right = one["problem"] == "" && one["guest_switched"] == 1 && one["state"] == 5;
        ensure!(right, "{one}");
    }
    // Also at its peak, when the guest has switched and those that do not read have all of it in their queues.
    for grown in [
        with.saturating_sub(before),
        peak.saturating_sub(before.max(peak_before)),
    ] {
        ensure!(
            grown < WATCHERS * MOST_PER_WATCHER,
            "{} for {WATCHERS} watchers",
            mib(grown)
        );
    }
    Ok(())
}
