//! The scenarios in which something goes wrong: an abort, a death, a broken stream. The guest runs once afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::stage::{Stage, flags};

/// Slow enough that a guest of 256 MiB is still being sent when something happens to it.
const SLOW: u64 = 8 << 20;

pub(crate) fn abort_during_perform(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let cookie = stage.prepare(&flags(true))?;
    stage.perform(&cookie, SLOW)?;
    stage.wait_until_sending()?;
    for _ in 0..20 {
        stage.prompt("set_bandwidth", json!({ "bytes": SLOW / 2 }))?;
        stage.prompt("set_max_downtime", json!({ "milliseconds": 20 }))?;
        stage.prompt("outgoing_job", json!({}))?;
    }
    stage.source.must("abort", json!({}))?;
    let error = stage
        .source
        .ask("performed", json!({}))?
        .result
        .err()
        .context("Perform succeeded")?;
    ensure!(error["class"] == "Aborted", "{error}");
    stage.destination.must("cancel", json!({}))?;
    stage.source.must("confirm_cancelled", json!({}))?;
    stage.expect("absent", "Running")
}

pub(crate) fn abort_before_perform(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let cookie = stage.prepare(&flags(true))?;
    stage.source.ask("abort", json!({}))?;
    stage.perform(&cookie, 0)?;
    let error = stage
        .source
        .ask("performed", json!({}))?
        .result
        .err()
        .context("Perform succeeded")?;
    ensure!(error["class"] == "Aborted", "{error}");
    stage.source.must("drop_outgoing", json!({}))?;
    stage.destination.must("drop_incoming", json!({}))?;
    stage.expect("absent", "Running")
}

/// Too late: it completes as if nobody had asked.
pub(crate) fn abort_after_perform(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let cookie = stage.prepare(&flags(true))?;
    let cookie = stage.send(&cookie)?;
    stage.source.ask("abort", json!({}))?;
    stage.expect("PausedMigrating", "PausedMigrating")?;
    let cookie = stage.destination.must("finish", json!({ "cookie": cookie }))?;
    stage.destination.must("resume", json!({ "guest": stage.guest }))?;
    stage.destination.must("resume", json!({ "guest": stage.guest }))?;
    stage.source.must("confirm_moved", json!({ "cookie": cookie }))?;
    stage.expect("Running", "absent")
}

/// All was sent, and the destination is told not to take it: the source may have it back.
pub(crate) fn destination_cancels(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let cookie = stage.prepare(&flags(true))?;
    stage.send(&cookie)?;
    stage.expect("PausedMigrating", "PausedMigrating")?;
    stage.destination.must("cancel", json!({}))?;
    let error = stage
        .destination
        .ask("finish", json!({ "cookie": [] }))?
        .result
        .err()
        .context("finished after all")?;
    ensure!(error["code"] == "DROVER_FINISH_TWICE", "{error}");
    stage.source.must("confirm_cancelled", json!({}))?;
    println!("      source after Confirm(1): {}", stage.source.state(&stage.guest)?);
    stage.source.must("resume", json!({ "guest": stage.guest }))?;
    stage.expect("absent", "Running")
}

/// A guest that its user had paused stays paused when the migration does not happen.
pub(crate) fn paused_then_cancelled(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    stage.source.must("suspend", json!({ "guest": stage.guest }))?;
    let cookie = stage.prepare(&flags(true))?;
    stage.send(&cookie)?;
    println!("      source, all sent: {}", stage.source.state(&stage.guest)?);
    stage.destination.must("cancel", json!({}))?;
    stage.source.must("confirm_cancelled", json!({}))?;
    stage.expect("absent", "Paused")
}

pub(crate) fn outgoing_dropped(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let cookie = stage.prepare(&flags(true))?;
    stage.perform(&cookie, SLOW)?;
    stage.wait_until_sending()?;
    stage.source.must("forget_perform", json!({}))?;
    stage.source.must("drop_outgoing", json!({}))?;
    stage.wait_without_job()?;
    stage.destination.must("drop_incoming", json!({}))?;
    stage.expect("absent", "Running")?;
    stage.migrate(&flags(true))?;
    stage.expect("Running", "absent")
}

pub(crate) fn outgoing_dropped_before_perform(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    stage.prepare(&flags(true))?;
    stage.source.must("drop_outgoing", json!({}))?;
    stage.destination.must("drop_incoming", json!({}))?;
    stage.wait_without_job()?;
    stage.expect("absent", "Running")?;
    stage.migrate(&flags(true))?;
    stage.expect("Running", "absent")
}

/// The future is dropped, the call goes on to its end, and the migration can be completed.
pub(crate) fn perform_forgotten(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let cookie = stage.prepare(&flags(true))?;
    stage.perform(&cookie, 0)?;
    stage.source.must("forget_perform", json!({}))?;
    stage.source.wait_for(&stage.guest, &["PausedMigrating"])?;
    std::thread::sleep(Duration::from_millis(500));
    // Its cookie is lost with the answer: Finish works without one.
    let cookie = stage.destination.must("finish", json!({ "cookie": [] }))?;
    stage.destination.must("resume", json!({ "guest": stage.guest }))?;
    stage.source.must("confirm_moved", json!({ "cookie": cookie }))?;
    stage.expect("Running", "absent")
}

pub(crate) fn incoming_dropped(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let cookie = stage.prepare(&flags(true))?;
    stage.send(&cookie)?;
    stage.destination.must("drop_incoming", json!({}))?;
    stage.destination.wait_for(&stage.guest, &["absent"])?;
    stage.expect("absent", "PausedMigrating")?;
    stage.source.must("drop_outgoing", json!({}))?;
    std::thread::sleep(Duration::from_millis(500));
    stage.expect("absent", "PausedMigrating")?;
    stage.source.must("resume", json!({ "guest": stage.guest }))?;
    stage.expect("absent", "Running")
}

pub(crate) fn incoming_dropped_mid_perform(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let cookie = stage.prepare(&flags(true))?;
    stage.perform(&cookie, SLOW)?;
    stage.wait_until_sending()?;
    stage.destination.must("drop_incoming", json!({}))?;
    let error = stage
        .source
        .ask("performed", json!({}))?
        .result
        .err()
        .context("Perform succeeded")?;
    ensure!(error["class"] == "Ambiguous", "{error}");
    stage.expect("absent", "Running")?;
    stage.source.must("confirm_cancelled", json!({}))?;
    stage.expect("absent", "Running")
}

/// The agent dies when all is sent; its successor removes the source copy by a fresh Begin.
pub(crate) fn source_killed_after_perform(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let moving = flags(true);
    let cookie = stage.prepare(&moving)?;
    let cookie = stage.send(&cookie)?;
    stage.source.kill_and_restart()?;
    stage.destination.must("finish", json!({ "cookie": cookie }))?;
    stage.destination.must("resume", json!({ "guest": stage.guest }))?;
    stage.expect("Running", "PausedMigrating")?;
    stage
        .source
        .must("begin", json!({ "guest": stage.guest, "flags": moving }))?;
    stage.source.must("confirm_moved", json!({ "cookie": [] }))?;
    stage.expect("Running", "absent")
}

pub(crate) fn source_killed_then_cancelled(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let moving = flags(true);
    let cookie = stage.prepare(&moving)?;
    stage.send(&cookie)?;
    stage.source.kill_and_restart()?;
    stage.destination.must("cancel", json!({}))?;
    stage
        .source
        .must("begin", json!({ "guest": stage.guest, "flags": moving }))?;
    stage.source.must("confirm_cancelled", json!({}))?;
    println!(
        "      source after fresh Begin and Confirm(1): {}",
        stage.source.state(&stage.guest)?
    );
    stage.source.must("resume", json!({ "guest": stage.guest }))?;
    stage.expect("absent", "Running")
}

/// The relay dies with the agent: the stream is cut, and libvirt lets the guest run on.
pub(crate) fn source_killed_mid_perform(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let cookie = stage.prepare(&flags(true))?;
    stage.perform(&cookie, SLOW)?;
    stage.wait_until_sending()?;
    stage.source.kill_and_restart()?;
    stage.wait_without_job()?;
    println!("      destination: {}", stage.destination.state(&stage.guest)?);
    stage.destination.must("cancel", json!({}))?;
    stage.expect("absent", "Running")?;
    stage.migrate(&flags(true))?;
    stage.expect("Running", "absent")
}

pub(crate) fn stream_cut(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let cookie = stage.prepare(&flags(true))?;
    stage.perform(&cookie, SLOW)?;
    stage.wait_until_sending()?;
    stage.source.must("cut_relay", json!({}))?;
    let started = Instant::now();
    let error = stage
        .source
        .ask("performed", json!({}))?
        .result
        .err()
        .context("Perform succeeded")?;
    ensure!(
        error["class"] == "Ambiguous" && started.elapsed() < Duration::from_secs(5),
        "{error}"
    );
    println!("      destination: {}", stage.destination.state(&stage.guest)?);
    stage.destination.must("cancel", json!({}))?;
    stage.source.must("confirm_cancelled", json!({}))?;
    stage.expect("absent", "Running")
}

/// With all sent, the source's libvirtd is replaced: the guest stays still, and questions are answered again.
pub(crate) fn libvirtd_restarted(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let Some(restart) = &stage.run.restart_source else {
        println!("      skipped: no --restart-source");
        return Ok(());
    };
    stage.start_guest(true)?;
    let moving = flags(true);
    let cookie = stage.prepare(&moving)?;
    let cookie = stage.send(&cookie)?;
    stage.source.must("events", json!({}))?;
    let status = std::process::Command::new("sh").args(["-c", restart]).status()?;
    ensure!(status.success(), "{restart}: {status}");
    stage.expect("PausedMigrating", "PausedMigrating")?;
    std::thread::sleep(Duration::from_secs(1));
    let events = stage.source.must("events", json!({}))?;
    ensure!(
        events
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one == "Changed")),
        "no event: {events}"
    );
    stage.destination.must("finish", json!({ "cookie": cookie }))?;
    stage.destination.must("resume", json!({ "guest": stage.guest }))?;
    let error = stage
        .source
        .ask("confirm_moved", json!({ "cookie": [] }))?
        .result
        .err()
        .context("confirmed")?;
    ensure!(error["class"] == "Ambiguous", "{error}");
    stage
        .source
        .must("begin", json!({ "guest": stage.guest, "flags": moving }))?;
    stage.source.must("confirm_moved", json!({ "cookie": [] }))?;
    stage.expect("Running", "absent")
}

pub(crate) fn no_socket_to_connect_to(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    for parallel in [0, 2] {
        let mut moving = flags(true);
        moving["parallel"] = json!(parallel);
        let cookie = stage.prepare(&moving)?;
        stage.source.must("cut_relay", json!({}))?;
        stage.remove_sockets();
        let error = stage.send(&cookie).err().context("Perform succeeded")?;
        println!("      {error}");
        stage.destination.must("cancel", json!({}))?;
        stage.source.must("confirm_cancelled", json!({}))?;
        stage.expect("absent", "Running")?;
    }
    Ok(())
}
