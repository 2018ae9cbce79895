//! One migration in words: how it came out, and all that its record says.

use drover_proto::v1::{
    Check, CheckResult, Compression, DeadlineAction, FencedSide, Migration, MigrationPolicy, MigrationState, WaitingFor,
};

use super::table::table;
use super::{disks, estimate, units, words};

/// The outcome in a few lines: blackout, total time, bytes, rounds, trace.
pub(crate) fn summary(migration: &Migration) -> String {
    let mut lines = vec![headline(migration)];
    let facts = [why(migration), waiting(migration), fenced(migration), cost(migration)].concat();
    lines.extend(facts.iter().map(|(name, value)| format!("  {name:<12}{value}")));
    if !migration.trace_id.is_empty() {
        lines.push(format!("  {:<12}{}", "trace", migration.trace_id));
    }
    if migration.cancelled_too_late {
        let note = "the cancellation came too late: the guest ran at the destination already";
        lines.push(format!("  {:<12}{note}", "note"));
    }
    lines.push(format!(
        "  {:<12}drover timeline {}",
        "details",
        words::id(&migration.name)
    ));
    lines.join("\n")
}

/// Every check with what was found, and whether a migration would be accepted.
pub(crate) fn checks(migration: &Migration) -> String {
    let row = |check: &Check| {
        vec![
            check.id.clone(),
            words::check_result(check.result()),
            check.found.clone(),
        ]
    };
    let rows: Vec<_> = migration.checks.iter().map(row).collect();
    let mut lines = vec![table(&["CHECK", "RESULT", "FOUND"], &rows), String::new()];
    let guest = words::one_line(words::guest(&migration.guest_name, &migration.guest_uuid));
    let to = words::id(&migration.destination_host);
    match &migration.error {
        None => lines.push(format!("{guest} can move to {to}. Nothing was moved.")),
        Some(error) => {
            let why = words::one_line(&error.message);
            lines.push(format!("{guest} cannot move to {to}: {}: {why}", error.reason));
        }
    }
    let failed = migration
        .checks
        .iter()
        .filter(|check| check.result() != CheckResult::Passed);
    let remedies = failed.filter(|check| !check.remedy.is_empty());
    lines.extend(remedies.map(|check| format!("  {}: {}", check.id, words::one_line(&check.remedy))));
    if let Some(expected) = &migration.estimate {
        lines.push(String::new());
        lines.extend(estimate::table(expected));
    }
    lines.join("\n")
}

/// A name and what there is to say.
type Fact = (&'static str, String);

fn why(migration: &Migration) -> Vec<Fact> {
    let mut facts = Vec::new();
    if let Some(error) = &migration.error {
        let place = if error.host.is_empty() {
            String::new()
        } else {
            format!(" at {}", words::id(&error.host))
        };
        facts.push((
            "why",
            format!("{}{place}: {}", error.reason, words::one_line(&error.message)),
        ));
        facts.extend(remedy(&error.remedy));
    }
    // What was not checked and stood in nobody's way is no reason for anything.
    let refused = migration.error.is_some();
    let bad = migration
        .checks
        .iter()
        .filter(|check| check.result() != CheckResult::Passed);
    for check in bad.filter(|_| refused) {
        let found = words::one_line(&check.found);
        facts.push((
            "check",
            format!("{} {}: {found}", check.id, words::check_result(check.result())),
        ));
    }
    facts
}

fn waiting(migration: &Migration) -> Vec<Fact> {
    let Some(waiting) = &migration.waiting_for else {
        return Vec::new();
    };
    let facts = [("waits for", waits_for(waiting))];
    facts.into_iter().chain(remedy(&waiting.remedy)).collect()
}

/// An operator's word, and what became of it.
fn fenced(migration: &Migration) -> Vec<Fact> {
    let Some(word) = &migration.resolution else {
        return Vec::new();
    };
    let host = match word.fenced_side() {
        FencedSide::Source => words::id(&migration.source_host),
        FencedSide::Destination => words::id(&migration.destination_host),
        FencedSide::Unspecified => "unknown",
    };
    let at = word
        .time
        .map(|time| format!(" at {}", units::moment(time)))
        .unwrap_or_default();
    let said = format!("{host}, said {}{at}", words::one_line(&word.operator));
    let then = match word.adopt_time {
        None => "; its agent has not been back since".to_owned(),
        Some(time) => format!("; adopted by its agent at {}", units::moment(time)),
    };
    let mut facts = vec![("fenced", format!("{said}{then}"))];
    if word.copy_ran {
        let alarm = format!("{host} was NOT fenced: the guest ran twice, its disks may be damaged");
        facts.push(("ALARM", alarm));
    }
    facts
}

fn cost(migration: &Migration) -> Vec<Fact> {
    let Some(summary) = &migration.summary else {
        return Vec::new();
    };
    let rounds = if summary.iterations == 1 { "round" } else { "rounds" };
    let memory = units::bytes(summary.memory_sent_bytes);
    let blackout = summary.blackout.map(|blackout| ("blackout", units::duration(blackout)));
    let total = total_time(migration).map(|total| ("total time", total));
    let sent = ("sent", format!("{memory} of memory in {} {rounds}", summary.iterations));
    let expected = estimate::against(migration).map(|text| ("expected", text));
    blackout
        .into_iter()
        .chain(total)
        .chain([sent])
        .chain(expected)
        .collect()
}

fn remedy(remedy: &str) -> Option<Fact> {
    (!remedy.is_empty()).then(|| ("remedy", words::one_line(remedy)))
}

fn headline(migration: &Migration) -> String {
    let guest = words::one_line(words::guest(&migration.guest_name, &migration.guest_uuid));
    let source = words::id_or_dash(&migration.source_host);
    let destination = words::id_or_dash(&migration.destination_host);
    match migration.state() {
        MigrationState::Succeeded if migration.guest_host == migration.source_host => {
            format!("{guest} moved from {source} to {destination}, and was moved back by hand")
        }
        MigrationState::Succeeded => format!("{guest} moved from {source} to {destination}"),
        MigrationState::Failed => format!("{guest} did not move: it is at {source} as before"),
        MigrationState::Cancelled => format!("{guest} did not move, as asked: it is at {source} as before"),
        MigrationState::GuestEnded => format!("{guest} ended by itself while it moved"),
        MigrationState::AttentionRequired => {
            format!("The migration of {guest} from {source} to {destination} needs attention")
        }
        state @ (MigrationState::Queued
        | MigrationState::Running
        | MigrationState::Cancelling
        | MigrationState::Unspecified) => {
            format!(
                "The migration of {guest} from {source} to {destination} is {}",
                words::state(state)
            )
        }
    }
}

fn waits_for(waiting: &WaitingFor) -> String {
    let host = if waiting.host.is_empty() {
        String::new()
    } else {
        format!(" {}", words::id(&waiting.host))
    };
    let since = waiting
        .since_time
        .map(|time| format!(" since {}", units::moment(time)))
        .unwrap_or_default();
    format!("{}{host}{since}", waiting.reason.to_lowercase().replace('_', " "))
}

fn total_time(migration: &Migration) -> Option<String> {
    let start = migration.start_time.or(migration.create_time)?;
    Some(units::seconds(units::between(start, migration.end_time?)))
}

/// What was limited or allowed: `blackout up to 200 ms, deadline 5 min 0 s then pause-and-finish, …`.
fn policy(policy: &MigrationPolicy) -> String {
    let mut parts = Vec::new();
    parts.extend(
        policy
            .max_downtime
            .map(|max| format!("blackout up to {}", units::duration(max))),
    );
    parts.extend(policy.deadline.map(|deadline| {
        let then = match policy.on_deadline() {
            DeadlineAction::Unspecified | DeadlineAction::Abort => "abort",
            DeadlineAction::PauseAndFinish => "pause and finish",
            DeadlineAction::PostCopy => "post-copy",
        };
        format!("deadline {}, then {then}", units::duration(deadline))
    }));
    if policy.bandwidth_limit_bytes_per_second > 0 {
        let limit = units::rate(policy.bandwidth_limit_bytes_per_second);
        parts.push(format!("at most {limit}"));
    }
    if policy.parallel_connections > 0 {
        parts.push(format!("{} connections", policy.parallel_connections));
    }
    match policy.compression() {
        Compression::Unspecified => {}
        Compression::None => parts.push("not compressed".to_owned()),
        Compression::Zstd => parts.push("compressed by zstd".to_owned()),
    }
    parts.extend(
        policy
            .shutdown_timeout
            .map(|limit| format!("shut down within {}", units::duration(limit))),
    );
    if policy.allow_auto_converge() {
        parts.push("may be slowed down".to_owned());
    }
    if policy.allow_post_copy() {
        parts.push("may go post-copy".to_owned());
    }
    parts.join(", ")
}

/// How many carry its memory, and why.
fn connections(migration: &Migration) -> String {
    let chosen = migration.connections.as_ref();
    chosen
        .map(|chosen| words::one_line(&format!("{}: {}", chosen.count, chosen.reason)))
        .unwrap_or_default()
}

/// Whether its memory is compressed, and why.
fn compression(migration: &Migration) -> String {
    let Some(chosen) = &migration.compression else {
        return String::new();
    };
    let kind = match chosen.compression() {
        Compression::Unspecified | Compression::None => "none",
        Compression::Zstd => "zstd",
    };
    words::one_line(&format!("{kind}: {}", chosen.reason))
}

/// Everything that `migration get` shows.
pub(crate) fn record(migration: &Migration) -> String {
    let mut lines = vec![words::id(&migration.name).to_owned(), summary(migration)];
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {name:<12}{value}"));
        }
    };
    add("guest", migration.guest_uuid.clone());
    let where_now = if migration.guest_host.is_empty() {
        "not known"
    } else {
        words::id(&migration.guest_host)
    };
    add("guest is at", where_now.to_owned());
    add("asked by", migration.requested_by.clone());
    let mut labels: Vec<_> = migration
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.sort();
    add("labels", words::one_line(&labels.join(" ")));
    for different in migration.destination_overrides.iter().flat_map(crate::overrides::words) {
        add("override", words::one_line(&different));
    }
    add("policy", migration.policy.as_ref().map(policy).unwrap_or_default());
    add("connections", connections(migration));
    add("compression", compression(migration));
    add("created", migration.create_time.map(units::moment).unwrap_or_default());
    add("ended", migration.end_time.map(units::moment).unwrap_or_default());
    for phase in &migration.phases {
        let took = match (phase.start_time, phase.end_time) {
            (Some(start), Some(end)) => format!(" in {}", units::seconds(units::between(start, end))),
            (Some(_) | None, Some(_) | None) => String::new(),
        };
        let detail = words::one_line(&phase.detail);
        let detail = if detail.is_empty() {
            detail
        } else {
            format!(": {detail}")
        };
        let name = format!("{} #{}", words::phase(phase.phase()), phase.attempt);
        add(
            "phase",
            format!("{name:<13}{}{took}{detail}", words::outcome(phase.outcome())),
        );
    }
    for disk in disks::all(migration) {
        add("disk", disk);
    }
    for action in &migration.actions {
        let text = format!(
            "{} {} ({}): {}",
            action.action, action.value, action.actor, action.reason
        );
        add("action", words::one_line(&text));
    }
    lines.join("\n")
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
