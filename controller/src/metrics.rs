//! Numbers for Prometheus: counted here, written as text on request. Times in seconds, sizes in bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_proto::time::std_duration;

use crate::saga::{Outcome, Phase};
use crate::store::Record;

/// Upper bounds of the buckets, in seconds.
const BLACKOUT_BUCKETS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0];
const DURATION_BUCKETS: [f64; 10] = [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];
const PHASE_BUCKETS: [f64; 10] = [0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 30.0, 300.0, 1800.0];

/// All numbers since the start of the process.
#[derive(Default)]
pub struct Metrics {
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Ended migrations by state.
    ended: BTreeMap<&'static str, u64>,
    /// Attempts by phase and outcome.
    attempts: BTreeMap<(&'static str, &'static str), u64>,
    phases: BTreeMap<&'static str, Histogram>,
    blackout: Histogram,
    duration: Histogram,
    memory_bytes: u64,
    /// Copies that ran on hosts said to be fenced.
    ran_twice: u64,
}

/// What is true right now, asked for when the text is written.
#[derive(Clone, Debug, Default)]
pub struct Now {
    pub active: u64,
    /// By what they wait for, as in `WaitingFor.reason`.
    pub waiting: BTreeMap<&'static str, u64>,
    pub attention: u64,
    pub hosts_up: u64,
    pub hosts_silent: u64,
    pub in_office: bool,
    /// End of the own certificate's life, in seconds since 1970.
    pub certificate_expiry: u64,
    /// New certificate files are not usable, or the certificate should have been renewed.
    pub certificate_problem: bool,
}

#[derive(Default)]
struct Histogram {
    /// Not cumulative; the last one is for everything above the bounds.
    buckets: [u64; 11],
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64, bounds: &[f64; 10]) {
        let bucket = bounds
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(bounds.len());
        self.buckets[bucket] += 1;
        self.sum += seconds;
    }

    fn write(&self, text: &mut String, name: &str, labels: &str, bounds: &[f64; 10]) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (bound, count) in bounds.iter().zip(self.buckets) {
            total += count;
            put(
                text,
                format_args!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}"),
            );
        }
        total += self.buckets[bounds.len()];
        put(
            text,
            format_args!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {total}"),
        );
        let braces = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{labels}}}")
        };
        put(text, format_args!("{name}_sum{braces} {}", self.sum));
        put(text, format_args!("{name}_count{braces} {total}"));
    }
}

/// Writing into a string does not fail.
fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "{line}");
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    put(text, format_args!("# HELP {name} {help}"));
    put(text, format_args!("# TYPE {name} {kind}"));
}

impl Metrics {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt at a phase has ended.
    pub fn attempt(&self, phase: Phase, outcome: Outcome, took: Duration) {
        let word = match outcome {
            Outcome::Done(_) => "done",
            Outcome::Refused => "refused",
            Outcome::Unknown => "unknown",
        };
        let mut counts = self.counts();
        *counts.attempts.entry((phase.name(), word)).or_default() += 1;
        counts
            .phases
            .entry(phase.name())
            .or_default()
            .add(took.as_secs_f64(), &PHASE_BUCKETS);
    }

    /// A migration has come to rest.
    pub fn ended(&self, record: &Record) {
        let mut counts = self.counts();
        *counts.ended.entry(record.state.as_str_name()).or_default() += 1;
        let took = record
            .ended
            .and_then(|ended| ended.duration_since(record.created).ok())
            .unwrap_or_default();
        counts.duration.add(took.as_secs_f64(), &DURATION_BUCKETS);
        let Some(summary) = &record.details.summary else { return };
        if let Some(blackout) = summary.blackout.as_ref().and_then(std_duration) {
            counts.blackout.add(blackout.as_secs_f64(), &BLACKOUT_BUCKETS);
        }
        counts.memory_bytes += u64::try_from(summary.memory_sent_bytes).unwrap_or(0);
    }

    /// A host that was said to be fenced ran its copy: the guest ran twice.
    pub fn ran_twice(&self) {
        self.counts().ran_twice += 1;
    }

    /// The text format of Prometheus, version 0.0.4.
    pub fn text(&self, now: &Now) -> String {
        let mut text = String::new();
        write_now(&mut text, now);
        self.counts().write(&mut text);
        text
    }
}

fn write_now(text: &mut String, now: &Now) {
    let name = "drover_migration_waiting";
    head(text, name, "gauge", "Migrations that wait, by what they wait for.");
    for (reason, count) in &now.waiting {
        put(text, format_args!("{name}{{reason=\"{reason}\"}} {count}"));
    }
    for (name, help, value) in [
        (
            "drover_migration_active",
            "Migrations that are worked on or stuck.",
            now.active,
        ),
        (
            "drover_migration_attention",
            "Migrations that ask for a person.",
            now.attention,
        ),
        ("drover_hosts_up", "Hosts whose agents are heard of.", now.hosts_up),
        (
            "drover_hosts_silent",
            "Hosts whose agents are silent.",
            now.hosts_silent,
        ),
        (
            "drover_controller_in_office",
            "1 while this controller commands.",
            u64::from(now.in_office),
        ),
        (
            "drover_certificate_expiry_timestamp_seconds",
            "When the controller's certificate expires.",
            now.certificate_expiry,
        ),
        (
            "drover_certificate_problem",
            "1 while the certificate files need a person: /readyz says why.",
            u64::from(now.certificate_problem),
        ),
    ] {
        head(text, name, "gauge", help);
        put(text, format_args!("{name} {value}"));
    }
}

impl Counts {
    fn write(&self, text: &mut String) {
        let name = "drover_guest_ran_twice_total";
        head(text, name, "counter", "Copies that ran on hosts said to be fenced.");
        put(text, format_args!("{name} {}", self.ran_twice));
        head(
            text,
            "drover_migrations_total",
            "counter",
            "Migrations that came to rest, by state.",
        );
        for (state, count) in &self.ended {
            put(
                text,
                format_args!("drover_migrations_total{{state=\"{state}\"}} {count}"),
            );
        }
        head(
            text,
            "drover_phase_attempts_total",
            "counter",
            "Attempts at phases, by outcome.",
        );
        for ((phase, outcome), count) in &self.attempts {
            let labels = format!("phase=\"{phase}\",outcome=\"{outcome}\"");
            put(text, format_args!("drover_phase_attempts_total{{{labels}}} {count}"));
        }
        head(
            text,
            "drover_memory_transferred_bytes_total",
            "counter",
            "Memory sent by migrations at rest.",
        );
        put(
            text,
            format_args!("drover_memory_transferred_bytes_total {}", self.memory_bytes),
        );
        head(
            text,
            "drover_blackout_seconds",
            "histogram",
            "How long guests ran nowhere.",
        );
        self.blackout
            .write(text, "drover_blackout_seconds", "", &BLACKOUT_BUCKETS);
        head(
            text,
            "drover_migration_duration_seconds",
            "histogram",
            "From creation to rest.",
        );
        self.duration
            .write(text, "drover_migration_duration_seconds", "", &DURATION_BUCKETS);
        head(text, "drover_phase_duration_seconds", "histogram", "Of one attempt.");
        for (phase, histogram) in &self.phases {
            let labels = format!("phase=\"{phase}\"");
            histogram.write(text, "drover_phase_duration_seconds", &labels, &PHASE_BUCKETS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saga::Guest;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let metrics = Metrics::default();
        metrics.attempt(Phase::Verify, Outcome::Done(Guest::Lives), Duration::from_millis(20));
        metrics.counts().blackout.add(0.15, &BLACKOUT_BUCKETS);
        metrics.counts().blackout.add(7.0, &BLACKOUT_BUCKETS);
        let text = metrics.text(&Now {
            active: 3,
            waiting: BTreeMap::from([("HOST_UNREACHABLE", 2)]),
            ..Now::default()
        });
        for line in [
            "drover_migration_active 3",
            "drover_migration_waiting{reason=\"HOST_UNREACHABLE\"} 2",
            "drover_phase_attempts_total{phase=\"verify\",outcome=\"done\"} 1",
            "drover_blackout_seconds_bucket{le=\"0.1\"} 0",
            "drover_blackout_seconds_bucket{le=\"0.2\"} 1",
            "drover_blackout_seconds_bucket{le=\"5\"} 1",
            "drover_blackout_seconds_bucket{le=\"+Inf\"} 2",
            "drover_blackout_seconds_sum 7.15",
            "drover_blackout_seconds_count 2",
            "drover_phase_duration_seconds_bucket{phase=\"verify\",le=\"0.05\"} 1",
            "drover_phase_duration_seconds_count{phase=\"verify\"} 1",
        ] {
            assert!(text.lines().any(|given| given == line), "no {line:?} in\n{text}");
        }
    }
}
