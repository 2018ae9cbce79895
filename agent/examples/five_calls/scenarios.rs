//! The scenarios: each begins with a running guest on one host and says what must be true at its end.

use anyhow::{Context, ensure};
use serde_json::json;

use crate::stage::{Stage, flags};
use crate::{Run, mishaps};

type Scenario = fn(&mut Stage<'_>) -> anyhow::Result<()>;

const ALL: &[(&str, Scenario)] = &[
    ("there_and_back", there_and_back),
    ("multifd", multifd),
    ("post_copy_capable", post_copy_capable),
    ("paused", paused),
    ("transient", transient),
    ("abort_during_perform", mishaps::abort_during_perform),
    ("abort_before_perform", mishaps::abort_before_perform),
    ("destination_cancels", mishaps::destination_cancels),
    ("paused_then_cancelled", mishaps::paused_then_cancelled),
    ("outgoing_dropped", mishaps::outgoing_dropped),
    (
        "outgoing_dropped_before_perform",
        mishaps::outgoing_dropped_before_perform,
    ),
    ("perform_forgotten", mishaps::perform_forgotten),
    ("incoming_dropped", mishaps::incoming_dropped),
    ("incoming_dropped_mid_perform", mishaps::incoming_dropped_mid_perform),
    ("source_killed_after_perform", mishaps::source_killed_after_perform),
    ("source_killed_then_cancelled", mishaps::source_killed_then_cancelled),
    ("source_killed_mid_perform", mishaps::source_killed_mid_perform),
    ("stream_cut", mishaps::stream_cut),
    ("abort_after_perform", mishaps::abort_after_perform),
    ("libvirtd_restarted", mishaps::libvirtd_restarted),
    ("no_socket_to_connect_to", mishaps::no_socket_to_connect_to),
    ("two_at_the_same_time", two_at_the_same_time),
    ("cpu", cpu),
    ("autostart_and_definitions", autostart_and_definitions),
    ("absent_guest", absent_guest),
];

pub(crate) fn run(run: &Run) -> anyhow::Result<()> {
    let mut stage = Stage::new(run)?;
    let mut failed = 0;
    for (name, scenario) in ALL.iter().filter(|(name, _)| name.contains(&run.only)) {
        println!("{name}");
        let result = scenario(&mut stage);
        stage.clean_up();
        match result {
            Ok(()) => println!("  passed"),
            Err(error) => {
                failed += 1;
                println!("  FAILED: {error:#}");
            }
        }
    }
    ensure!(failed == 0, "{failed} scenarios failed");
    Ok(())
}

fn there_and_back(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let moving = flags(true);
    for _ in 0..2 {
        stage.migrate(&moving)?;
        stage.expect("Running", "absent")?;
        let facts = stage.destination.must("guest", json!({ "guest": stage.guest }))?;
        ensure!(facts["persistent"] == true, "it arrived without its definition");
        ensure!(
            facts["inactive_xml"]
                .as_str()
                .is_some_and(|xml| xml.contains("drover:mark")),
            "definition differs"
        );
        stage.swap();
    }
    Ok(())
}

fn multifd(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let mut moving = flags(true);
    moving["parallel"] = json!(3);
    stage.migrate(&moving)?;
    stage.expect("Running", "absent")
}

/// Finish starts the guest by itself.
fn post_copy_capable(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let mut moving = flags(true);
    moving["post_copy"] = json!(true);
    let cookie = stage.prepare(&moving)?;
    stage.perform(&cookie, 0)?;
    let cookie = stage.source.must("performed", json!({}))?;
    let cookie = stage.destination.must("finish", json!({ "cookie": cookie }))?;
    ensure!(stage.destination.state(&stage.guest)? == "Running");
    stage.source.must("confirm_moved", json!({ "cookie": cookie }))?;
    stage.expect("Running", "absent")
}

fn paused(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    stage.source.must("suspend", json!({ "guest": stage.guest }))?;
    stage.source.must("suspend", json!({ "guest": stage.guest }))?;
    let cookie = stage.prepare(&flags(true))?;
    let cookie = stage.send(&cookie)?;
    let cookie = stage.destination.must("finish", json!({ "cookie": cookie }))?;
    stage.source.must("confirm_moved", json!({ "cookie": cookie }))?;
    stage.expect("Paused", "absent")
}

fn transient(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(false)?;
    stage.migrate(&flags(false))?;
    stage.expect("Running", "absent")?;
    let facts = stage.destination.must("guest", json!({ "guest": stage.guest }))?;
    println!("      persistent on arrival: {}", facts["persistent"]);
    stage.destination.must("undefine", json!({ "guest": stage.guest }))?;
    stage.destination.must("undefine", json!({ "guest": stage.guest }))?;
    let facts = stage.destination.must("guest", json!({ "guest": stage.guest }))?;
    ensure!(
        facts["persistent"] == false && facts["state"] == "Running",
        "not transient again: {facts}"
    );
    Ok(())
}

/// The job of a migration refuses a second one, and a guest that is there refuses a second copy.
fn two_at_the_same_time(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let moving = flags(true);
    let begin = json!({ "guest": stage.guest, "flags": moving });
    let begun = stage.source.must("begin", begin.clone())?;
    let prepare = stage.prepare_request(&begun, &moving);
    let error = stage
        .source
        .ask("prepare", prepare.clone())?
        .result
        .err()
        .context("prepared onto itself")?;
    println!("      {error}");
    stage.destination.must("prepare", prepare.clone())?;
    let error = stage
        .destination
        .ask("prepare", prepare)?
        .result
        .err()
        .context("prepared twice")?;
    println!("      {error}");
    stage.expect("PausedMigrating", "Running")?;
    let error = stage.source.ask("begin", begin)?.result.err().context("begun twice")?;
    println!("      {error}");
    ensure!(error["class"] == "Busy", "{error}");
    stage.destination.must("cancel", json!({}))?;
    stage.expect("absent", "Running")
}

fn cpu(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let facts = stage.source.must("guest", json!({ "guest": stage.guest }))?;
    let xml = facts["xml"].as_str().context("no XML")?;
    let (_, rest) = xml.split_once("<cpu").context("no <cpu>")?;
    let live = format!("<cpu{}</cpu>", rest.split_once("</cpu>").context("odd <cpu>")?.0);
    let richer = "<cpu mode='custom' match='exact'><model fallback='forbid'>Skylake-Server</model></cpu>";
    let through = "<cpu mode='host-passthrough' check='none' migratable='on'/>";
    for kind in ["qemu", "kvm"] {
        for cpu in [live.as_str(), richer, through] {
            let question = json!({ "domain_type": kind, "machine": "pc", "cpu_xml": cpu });
            let answer = stage.destination.must("cpu_fits", question)?;
            println!("      {kind} {}: {answer}", cpu.replace('\n', ""));
            let expected = if cpu == through {
                "Unknown"
            } else if cpu == live {
                "Fits"
            } else {
                "Lacks"
            };
            ensure!(
                kind == "kvm" || answer.as_str().is_some_and(|answer| answer.starts_with(expected)),
                "{answer}"
            );
        }
    }
    Ok(())
}

fn autostart_and_definitions(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.start_guest(true)?;
    let guest = json!({ "guest": stage.guest });
    for wanted in [true, false] {
        stage
            .source
            .must("set_autostart", json!({ "guest": stage.guest, "autostart": wanted }))?;
        ensure!(stage.source.must("guest", guest.clone())?["autostart"] == wanted);
    }
    let facts = stage.source.must("guest", guest.clone())?;
    stage.source.must("undefine", guest.clone())?;
    ensure!(stage.source.must("guest", guest.clone())?["persistent"] == false);
    stage.source.must("define", json!({ "xml": facts["inactive_xml"] }))?;
    ensure!(stage.source.must("guest", guest)?["persistent"] == true);
    stage.expect("absent", "Running")
}

fn absent_guest(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let guest = json!({ "guest": stage.guest, "flags": flags(true), "autostart": true });
    for op in ["resume", "suspend", "set_autostart", "job", "begin"] {
        let error = stage
            .source
            .ask(op, guest.clone())?
            .result
            .err()
            .context("it succeeded")?;
        ensure!(error["class"] == "NoGuest", "{op}: {error}");
    }
    ensure!(stage.source.must("guest", guest.clone())?.is_null());
    stage.source.must("undefine", guest)?;
    Ok(())
}
