//! How soon a changed policy is in force: from the start of the call until QEMU itself shows the new value. By a client
//! that is connected, and by the command with its start, during one migration that does not end by itself.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::ms;
use crate::cluster::Cluster;
use crate::{Guest, GuestSpec, Lab};

/// It writes twice as fast as this lets it be sent, and no blackout that is tried suffices.
const HOPELESS: [&str; 4] = ["--bandwidth", "30MiB/s", "--max-downtime", "100ms"];

/// The blackouts that are tried begin here, in milliseconds, each one greater than the last.
const BY_CALL: u64 = 201;
const BY_COMMAND: u64 = 301;

/// What has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(120);

/// Prints medians and maxima.
pub fn run(calls: u64) -> Result<()> {
    let most = BY_COMMAND - BY_CALL;
    ensure!((1..=most).contains(&calls), "1 to {most} calls");
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("busy").fill_mib(128).dirty_mib_per_second(60))?;
    let cluster = Cluster::start(&lab)?;
    let id = cluster.begin_with(&guest, "host-b", &HOPELESS)?.id().to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(1 << 20)
    })?;
    println!("{calls} changes each of one running migration, until query-migrate-parameters shows them");
    let one_look = (0..5)
        .map(|_| {
            let began = Instant::now();
            in_qemu(&lab, &guest).map(|_| ms(began.elapsed()))
        })
        .collect::<Result<Vec<_>>>()?;
    print("one look into QEMU, in each", one_look);
    let (answered, in_force) = by_call(&cluster, &guest, &id, calls)?;
    print("RPC, answered", answered);
    print("RPC, in force", in_force);
    print("drover migration adjust", by_command(&cluster, &guest, &id, calls)?);
    let now = cluster.migration(&id)?;
    ensure!(now.phase() == "TRANSFER", "it ended meanwhile: {}", now.0);
    cluster.drover(&["migration", "cancel", &id])?;
    cluster.wait_for_rest(&id)?;
    lab.check_at_rest(&[(&guest, "host-a")])
}

/// The blackout that QEMU at the source may use, in milliseconds, as it says itself.
fn in_qemu(lab: &Lab, guest: &Guest) -> Result<u64> {
    let ask = r#"{"execute":"query-migrate-parameters"}"#;
    let said = lab.host("host-a").virsh(&["qemu-monitor-command", guest.name(), ask])?;
    let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    said["return"]["downtime-limit"]
        .as_u64()
        .with_context(|| said.to_string())
}

/// By one client in one connection: milliseconds until each answer, and until the value was seen.
fn by_call(cluster: &Cluster<'_>, guest: &Guest, id: &str, calls: u64) -> Result<(Vec<f64>, Vec<f64>)> {
    let values: Vec<String> = (BY_CALL..BY_CALL + calls).map(|value| value.to_string()).collect();
    let name = format!("migrations/{id}");
    let arguments: Vec<&str> = [name.as_str()]
        .into_iter()
        .chain(values.iter().map(String::as_str))
        .collect();
    let client = cluster.python("tests/foreign/adjust.py", "adjuster", &arguments)?;
    let mut seen: Vec<(u64, f64)> = Vec::new();
    let began = Instant::now();
    // Without a pause: what is not looked for is not seen.
    while seen.last().is_none_or(|(value, _)| *value != BY_CALL + calls - 1) {
        ensure!(
            began.elapsed() < PATIENCE,
            "it saw {seen:?}; the client told {:?}",
            client.told()
        );
        let value = in_qemu(cluster.lab(), guest)?;
        if seen.last().is_none_or(|(last, _)| *last != value) {
            seen.push((value, now()));
        }
    }
    let (mut answered, mut in_force) = (Vec::new(), Vec::new());
    for told in client.finish()? {
        let field = |name: &str| told[name].as_f64().with_context(|| told.to_string());
        let value = told["value"].as_u64().with_context(|| told.to_string())?;
        let at = seen.iter().find(|(seen, _)| *seen == value);
        let (_, at) = at.with_context(|| format!("{value} was never seen: {seen:?}"))?;
        answered.push((field("answered")? - field("began")?) * 1000.0);
        in_force.push((at - field("began")?) * 1000.0);
    }
    ensure!(in_force.len() as u64 == calls, "it made {} calls", in_force.len());
    Ok((answered, in_force))
}

/// By the command, each time a process of its own: milliseconds until the value was seen.
fn by_command(cluster: &Cluster<'_>, guest: &Guest, id: &str, calls: u64) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    for value in BY_COMMAND..BY_COMMAND + calls {
        let began = Instant::now();
        cluster.adjust(id, &["--max-downtime", &format!("{value}ms")])?;
        while in_qemu(cluster.lab(), guest)? != value {
            ensure!(began.elapsed() < PATIENCE, "{value} ms were never seen");
        }
        took.push(ms(began.elapsed()));
    }
    Ok(took)
}

/// Seconds since the epoch, as the client tells them.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs_f64()
}

fn print(what: &str, values: Vec<f64>) {
    let most = values.iter().copied().fold(0.0, f64::max);
    let (_, middle, _) = crate::figures::quartiles(values);
    println!("{what:<28}  median {middle:.0} ms, at most {most:.0} ms");
}
