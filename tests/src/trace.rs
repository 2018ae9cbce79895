//! A real OpenTelemetry collector in `control`, and what it received, read back as spans.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::network::Network;
use crate::{Daemon, Lab, wait_until};

const PORT: u16 = 4317;
/// Exporters send in batches, every five seconds at the latest.
const EXPORT: Duration = Duration::from_secs(30);

/// One span as the collector printed it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Span {
    /// Which process sent it (`service.name`, and the host where that is known).
    pub service: String,
    pub trace_id: String,
    pub id: String,
    /// Empty for a root.
    pub parent: String,
    pub name: String,
    pub kind: String,
    /// Nanoseconds since 1970.
    pub start: u64,
    pub end: u64,
    /// As printed, without their type.
    pub attributes: BTreeMap<String, String>,
    pub status: String,
}

/// All spans of one trace.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    pub spans: Vec<Span>,
}

/// A running collector (rotel), from the project's `.venv`.
#[derive(Debug)]
pub struct Collector {
    daemon: Daemon,
}

impl Collector {
    pub fn start(lab: &Lab) -> Result<Collector> {
        let node = lab.control();
        let program = program()?;
        let mut command = node.command(&program.display().to_string())?;
        let pid_file = lab.layout().folder().join("collector.pid");
        command.args(["start", "--otlp-grpc-endpoint", &format!("0.0.0.0:{PORT}")]);
        command.args(["--otlp-http-endpoint", "127.0.0.1:4318", "--exporter", "blackhole"]);
        command
            .args([
                "--debug-log",
                "traces",
                "--debug-log-verbosity",
                "detailed",
                "--pid-file",
            ])
            .arg(pid_file);
        let daemon = Daemon::spawn(&node, "collector", &mut command)?;
        let address = std::net::SocketAddr::from((Network::Management.address(1), PORT));
        let what = format!("the collector (log: {})", daemon.log().display());
        wait_until(&what, Duration::from_secs(60), || {
            node.connect(address, Duration::from_secs(1)).map(Some)
        })?;
        Ok(Collector { daemon })
    }

    /// What makes the controller and the agents send here.
    pub fn environment(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://{}:{PORT}", Network::Management.address(1));
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT".into(), endpoint),
            ("OTEL_BSP_SCHEDULE_DELAY".into(), "500".into()),
        ]
    }

    /// Every span received so far.
    pub fn spans(&self) -> Result<Vec<Span>> {
        Ok(parse(&std::fs::read_to_string(self.daemon.log())?))
    }

    /// Waits until the trace is whole: it has its `migration` span, and no span's parent is missing.
    pub fn wait_for_trace(&self, trace_id: &str) -> Result<Trace> {
        self.wait_for_trace_that(trace_id, |_| Ok(()))
    }

    /// Waits until the trace is whole and this can be said of it: each process sends its spans when it likes.
    pub fn wait_for_trace_that(&self, trace_id: &str, holds: impl Fn(&Trace) -> Result<()>) -> Result<Trace> {
        ensure!(trace_id.len() == 32, "{trace_id:?} is no trace id");
        wait_until(
            &format!("trace {trace_id} in {}", self.daemon.log().display()),
            EXPORT,
            || {
                let mut spans = self.spans()?;
                spans.retain(|span| span.trace_id == trace_id);
                let root = spans
                    .iter()
                    .find(|span| span.name == "migration")
                    .context("no span `migration` yet")?
                    .clone();
                // The caller's own span is the caller's to send. Where there is none the trace has one root.
                let is_the_callers = |span: &Span| !root.parent.is_empty() && span.parent == root.parent;
                let has_parent =
                    |span: &&Span| is_the_callers(span) || spans.iter().any(|other| other.id == span.parent);
                let orphan = spans.iter().find(|span| span.id != root.id && !has_parent(span));
                if let Some(orphan) = orphan {
                    anyhow::bail!("the parent of {} ({}) is missing", orphan.name, orphan.service);
                }
                let trace = Trace { spans };
                holds(&trace)?;
                Ok(Some(trace))
            },
        )
    }
}

/// pip leaves the program inside its package.
fn program() -> Result<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.venv/lib");
    let versions = std::fs::read_dir(&root).context("no .venv: run `make setup` (or `make test`) first")?;
    let mut programs = versions
        .flatten()
        .map(|entry| entry.path().join("site-packages/rotel/rotel-agent"));
    programs
        .find(|path| path.is_file())
        .context("rotel is not in .venv: remove .venv and run `make test` again")
}

impl Trace {
    pub fn named(&self, name: &str) -> Vec<&Span> {
        self.spans.iter().filter(|span| span.name == name).collect()
    }

    pub fn root(&self) -> Option<&Span> {
        self.spans.iter().find(|span| span.name == "migration")
    }

    fn children(&self, parent: &str) -> Vec<&Span> {
        let mut children: Vec<&Span> = self.spans.iter().filter(|span| span.parent == parent).collect();
        children.sort_by_key(|span| span.start);
        children
    }

    /// For people: one line a span, with offset, duration, and who did it.
    pub fn tree(&self) -> String {
        let mut text = String::new();
        if let Some(root) = self.root() {
            let services: std::collections::BTreeSet<&str> =
                self.spans.iter().map(|span| span.service.as_str()).collect();
            let services: Vec<&str> = services.into_iter().collect();
            let _ = writeln!(
                text,
                "trace {}: {} spans from {}",
                root.trace_id,
                self.spans.len(),
                services.join(", ")
            );
            self.branch(root, root.start, 0, &mut text);
        }
        text
    }

    fn branch(&self, span: &Span, origin: u64, depth: usize, text: &mut String) {
        let ms = |nanos: u64| nanos as f64 / 1e6;
        let name = format!(
            "{}{}",
            "  ".repeat(depth),
            span.name.rsplit("drover.").next().unwrap_or(&span.name)
        );
        let blackout = span
            .attributes
            .get("drover.blackout")
            .filter(|_| span.name == "switchover");
        let note = blackout
            .map(|blackout| format!("  blackout {blackout} s"))
            .unwrap_or_default();
        let (at, took) = (
            ms(span.start.saturating_sub(origin)),
            ms(span.end.saturating_sub(span.start)),
        );
        let _ = writeln!(text, "{name:<52} {at:>8.0} {took:>9.1} ms  {}{note}", span.service);
        for child in self.children(&span.id) {
            self.branch(child, origin, depth + 1, text);
        }
    }
}

/// Reads the collector's detailed log.
fn parse(log: &str) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let (mut service, mut host) = (String::new(), String::new());
    let mut in_resource = false;
    for line in log.lines() {
        let field = line.trim();
        if field.starts_with("ResourceSpans #") {
            (service, host, in_resource) = (String::new(), String::new(), true);
        } else if field.starts_with("ScopeSpans #") {
            in_resource = false;
        } else if field.starts_with("Span #") {
            let place = if host.is_empty() {
                service.clone()
            } else {
                format!("{service}@{host}")
            };
            spans.push(Span {
                service: place,
                ..Span::default()
            });
        } else if let Some((key, value)) = field.strip_prefix("-> ").and_then(|rest| rest.split_once(": ")) {
            let value = value
                .split_once('(')
                .map_or(value, |(_, inner)| inner.trim_end_matches(')'));
            match (in_resource, key) {
                (true, "service.name") => service = value.to_string(),
                (true, "host.name" | "drover.host.id") => host = value.to_string(),
                (true, _) => {}
                (false, _) => {
                    if let Some(span) = spans.last_mut() {
                        span.attributes.insert(key.to_string(), value.to_string());
                    }
                }
            }
        } else if let (Some((key, value)), Some(span)) = (field.split_once(':'), spans.last_mut()) {
            set(span, key.trim(), value.trim());
        }
    }
    spans
}

fn set(span: &mut Span, key: &str, value: &str) {
    match key {
        "Trace ID" => span.trace_id = value.to_string(),
        "Parent ID" => span.parent = value.to_string(),
        "ID" => span.id = value.to_string(),
        "Name" => span.name = value.to_string(),
        "Kind" => span.kind = value.to_string(),
        "Start time" => span.start = value.parse().unwrap_or(0),
        "End time" => span.end = value.parse().unwrap_or(0),
        "Status code" => span.status = value.to_string(),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ResourceSpans #0
Resource attributes:
     -> service.name: Str(drover-agent)
     -> host.name: Str(host-a)
ScopeSpans #0
InstrumentationScope s
Span #0
    Trace ID       : 5b8efff798038103d269b633813fc60c
    Parent ID      : eee19b7ec3c1b173
    ID             : eee19b7ec3c1b174
    Name           : switchover
    Kind           : SPAN_KIND_INTERNAL
Start time: 1000
End time: 3000
Attributes:
     -> drover.blackout: Double(0.12)
";

    #[test]
    fn a_span_is_read_as_the_collector_prints_it() {
        let spans = parse(LOG);
        assert_eq!(spans.len(), 1);
        let span = &spans[0];
        assert_eq!(
            (span.service.as_str(), span.name.as_str()),
            ("drover-agent@host-a", "switchover")
        );
        assert_eq!((span.start, span.end), (1000, 3000));
        assert_eq!(span.attributes["drover.blackout"], "0.12");
        assert_eq!(span.parent, "eee19b7ec3c1b173");
    }
}
