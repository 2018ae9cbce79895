//! Where the time of a migration went, as a waterfall of 80 columns: phases, the calls to libvirt of both hosts, rounds
//! of pre-copy, and the blackout; below it what was expected.

use drover_proto::v1::{IterationRecord, Migration};
use prost_types::{Duration, Timestamp};

use super::{expected, units, words};

const LABEL: usize = 24;
const BAR: usize = 30;
const OFFSET: usize = 12;
const TOOK: usize = 11;

/// More rounds than this are shown by their first and last ones.
const MAX_ROUNDS: usize = 12;
const FIRST_ROUNDS: usize = 4;
const LAST_ROUNDS: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Phase,
    Call,
    Round,
    Blackout,
    /// Stands for rounds that are not shown.
    Gap,
}

impl Kind {
    fn mark(self) -> char {
        match self {
            Self::Phase => '━',
            Self::Call => '─',
            Self::Round => '·',
            Self::Blackout => '█',
            Self::Gap => ' ',
        }
    }
}

/// One line of the waterfall.
#[derive(Clone, Debug)]
struct Row {
    kind: Kind,
    label: String,
    /// Seconds since the beginning.
    start: f64,
    /// Seconds; none while it goes on.
    took: Option<f64>,
    /// A line of its own below.
    trouble: String,
}

/// The whole page.
pub(crate) fn timeline(migration: &Migration) -> String {
    let Some(origin) = origin(migration) else {
        return format!("{}\n\nNothing has happened yet.", heading(migration));
    };
    let rows = rows(migration, origin);
    let end = rows
        .iter()
        .map(|row| row.start + row.took.unwrap_or(0.0))
        .fold(0.0, f64::max);
    let end = migration
        .end_time
        .map_or(end, |time| end.max(units::between(origin, time)));
    let span = end.max(1e-6);

    let mut lines = vec![heading(migration)];
    if !migration.trace_id.is_empty() {
        lines.push(format!("trace {}", migration.trace_id));
    }
    lines.push(String::new());
    let scale = format!(
        "{:<width$}{}",
        0,
        units::seconds(span),
        width = BAR - units::seconds(span).chars().count()
    );
    lines.push(format!(
        "{:<LABEL$} {scale} {:>OFFSET$} {:>TOOK$}",
        "PHASE / CALL", "AT", "TOOK"
    ));
    for row in &rows {
        lines.push(line(row, span));
        if !row.trouble.is_empty() {
            lines.push(shorten(&format!("    ! {}", words::one_line(&row.trouble)), 80));
        }
    }
    lines.push(String::new());
    let compared = expected::compared(migration);
    if !compared.is_empty() {
        lines.extend(compared.iter().map(|line| shorten(line, 80)));
        lines.push(String::new());
    }
    lines.push("━ phase   ─ call to libvirt   · round of pre-copy   █ blackout".to_owned());
    lines.push("Calls and rounds are placed by the clocks of their hosts.".to_owned());
    lines.join("\n")
}

fn heading(migration: &Migration) -> String {
    let guest = shorten(
        &words::one_line(words::guest(&migration.guest_name, &migration.guest_uuid)),
        36,
    );
    let (source, destination) = (&migration.source_host, &migration.destination_host);
    let mut heading = format!(
        "{guest}  {} → {}  {}",
        words::id_or_dash(source),
        words::id_or_dash(destination),
        words::state(migration.state())
    );
    if let Some(blackout) = blackout(migration) {
        heading.push_str(&format!("  blackout {}", units::duration(blackout)));
    }
    heading
}

fn blackout(migration: &Migration) -> Option<Duration> {
    migration.summary.as_ref()?.blackout
}

/// The beginning of the work: phases may have been recorded a moment before.
fn origin(migration: &Migration) -> Option<Timestamp> {
    let phases = migration.phases.iter().filter_map(|phase| phase.start_time);
    let times = migration.start_time.into_iter().chain(phases);
    times.min_by_key(|time| (time.seconds, time.nanos))
}

/// Phases in order, and below each what began while it was the newest.
fn rows(migration: &Migration, origin: Timestamp) -> Vec<Row> {
    let at = |time: Option<Timestamp>| time.map_or(0.0, |time| units::between(origin, time));
    let mut below = calls(migration, &at);
    below.extend(rounds(&migration.iterations, &at));
    below.extend(blackout_row(migration, &at));
    below.sort_by(|one, other| one.start.total_cmp(&other.start));

    let mut rows = Vec::new();
    let mut below = below.into_iter().peekable();
    for (index, phase) in migration.phases.iter().enumerate() {
        let attempt = if phase.attempt > 1 {
            format!(" #{}", phase.attempt)
        } else {
            String::new()
        };
        let start = at(phase.start_time);
        rows.push(Row {
            kind: Kind::Phase,
            label: format!("{}{attempt}", words::phase(phase.phase())),
            start,
            took: phase.end_time.map(|end| (at(Some(end)) - start).max(0.0)),
            trouble: String::new(),
        });
        let next = migration
            .phases
            .get(index + 1)
            .map_or(f64::INFINITY, |next| at(next.start_time));
        while let Some(row) = below.next_if(|row| row.start < next) {
            rows.push(row);
        }
    }
    rows.extend(below);
    rows
}

fn calls(migration: &Migration, at: &impl Fn(Option<Timestamp>) -> f64) -> Vec<Row> {
    let call = |call: &drover_proto::v1::CallRecord| {
        let name = call.call.strip_prefix("libvirt.").unwrap_or(&call.call);
        Row {
            kind: Kind::Call,
            label: format!("  {name} @{}", words::id(&call.host)),
            start: at(call.start_time),
            took: call.duration.map(units::in_seconds),
            trouble: call.error.clone(),
        }
    };
    migration.calls.iter().map(call).collect()
}

fn rounds(rounds: &[IterationRecord], at: &impl Fn(Option<Timestamp>) -> f64) -> Vec<Row> {
    let row = |round: &IterationRecord| Row {
        kind: Kind::Round,
        label: format!("    round {} {}", round.iteration, units::bytes(round.remaining_bytes)),
        start: at(round.start_time),
        took: round.duration.map(units::in_seconds),
        trouble: String::new(),
    };
    if rounds.len() <= MAX_ROUNDS {
        return rounds.iter().map(row).collect();
    }
    let (first, rest) = rounds.split_at(FIRST_ROUNDS);
    let (hidden, last) = rest.split_at(rest.len() - LAST_ROUNDS);
    let gap = Row {
        kind: Kind::Gap,
        label: format!("    … {} more", hidden.len()),
        start: at(hidden.first().and_then(|round| round.start_time)),
        took: None,
        trouble: String::new(),
    };
    first.iter().map(row).chain([gap]).chain(last.iter().map(row)).collect()
}

fn blackout_row(migration: &Migration, at: &impl Fn(Option<Timestamp>) -> f64) -> Option<Row> {
    let took = units::in_seconds(blackout(migration)?);
    let start = at(Some(migration.summary.as_ref()?.switch_time?)) - took;
    Some(Row {
        kind: Kind::Blackout,
        label: "  BLACKOUT".to_owned(),
        start,
        took: Some(took),
        trouble: String::new(),
    })
}

fn line(row: &Row, span: f64) -> String {
    let label = shorten(&words::one_line(&row.label), LABEL);
    if row.kind == Kind::Gap {
        return label;
    }
    let took = row.took.map_or_else(|| "goes on".to_owned(), units::seconds);
    let sign = if row.start < 0.0 { '-' } else { '+' };
    let offset = format!("{sign}{}", units::seconds(row.start.abs()));
    format!("{label:<LABEL$} {} {offset:>OFFSET$} {took:>TOOK$}", bar(row, span))
}

/// At least one mark, however short; none outside.
fn bar(row: &Row, span: f64) -> String {
    let cell = |seconds: f64| (seconds / span * BAR as f64).clamp(0.0, BAR as f64);
    // A hair's breadth over a border is rounding, not time.
    let first = ((cell(row.start) + 1e-6).floor() as usize).min(BAR - 1);
    let end = (cell(row.took.map_or(span, |took| row.start + took)) - 1e-6).ceil() as usize;
    let end = end.clamp(first + 1, BAR);
    let mark = row.kind.mark();
    (0..BAR)
        .map(|cell| if (first..end).contains(&cell) { mark } else { ' ' })
        .collect()
}

fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
