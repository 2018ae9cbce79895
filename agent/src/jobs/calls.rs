//! Every call over the seam, as a span and as a line in the migration's record.

use std::future::Future;
use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use drover_proto::ids::HostId;
use tokio::sync::broadcast;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::lock;
use super::progress::Event;
use crate::hypervisor;
use crate::journal::Call;

/// More are not kept: a migration makes about ten.
const MOST: usize = 256;

/// The calls of one migration on this host.
#[derive(Debug)]
pub struct CallLog {
    host: HostId,
    calls: Mutex<Vec<Call>>,
    watchers: broadcast::Sender<Event>,
}

impl CallLog {
    /// A log that goes on from what a record says.
    pub fn new(host: HostId, earlier: Vec<Call>, watchers: broadcast::Sender<Event>) -> Self {
        Self {
            host,
            calls: Mutex::new(earlier),
            watchers,
        }
    }

    /// Makes a call: a span by its name around it, a line after it.
    pub async fn call<T>(
        &self,
        name: &'static str,
        future: impl Future<Output = hypervisor::Result<T>>,
    ) -> hypervisor::Result<T> {
        let span = tracing::info_span!(
            "libvirt",
            otel.name = name,
            otel.status_code = Empty,
            otel.status_description = Empty,
            drover.host.id = %self.host,
        );
        let (started, clock) = (SystemTime::now(), Instant::now());
        let result = future.instrument(span.clone()).await;
        let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        mark(&span, &error);
        let host = self.host.clone();
        self.add(Call {
            name: name.to_owned(),
            host,
            started,
            duration: clock.elapsed(),
            error,
        });
        result
    }

    /// A call that was made on the other host.
    pub fn add(&self, call: Call) {
        let mut calls = lock(&self.calls);
        if calls.len() < MOST {
            calls.push(call.clone());
        }
        drop(calls);
        // Nobody may be watching.
        let _ = self.watchers.send(Event::now(super::progress::What::Call(call)));
    }

    pub fn all(&self) -> Vec<Call> {
        lock(&self.calls).clone()
    }
}

fn mark(span: &Span, error: &str) {
    if !error.is_empty() {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", error);
    }
}
