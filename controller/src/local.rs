//! The plain local port: whether this process lives, whether it can work, and its numbers.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use drover_proto::tls::Tls;
use drover_proto::v1::{HostState, MigrationState};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, Now};
use crate::office::Office;
use crate::registry::Registry;
use crate::state::WaitReason;
use crate::store::{Record, Result, Store};

/// What the answers are made of.
#[derive(Clone)]
pub struct Local {
    pub store: Arc<dyn Store>,
    pub office: Arc<Office>,
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    pub tls: Tls,
}

impl Local {
    /// Serves until `shutdown`.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> std::io::Result<()> {
        let router = Router::new()
            .route("/healthz", get(async || "alive\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self);
        axum::serve(listener, router)
            .with_graceful_shutdown(async move { shutdown.cancelled().await })
            .await
    }

    async fn now(&self) -> Result<Now> {
        let unfinished = self.store.unfinished().await?;
        let attention = unfinished
            .iter()
            .filter(|row| row.state == MigrationState::AttentionRequired)
            .count();
        let waits = |row: &Record, reason: WaitReason| {
            let waiting = row.details.waiting_for.as_ref();
            waiting.is_some_and(|waiting| waiting.reason == reason.name())
        };
        let waiting = WaitReason::ALL.into_iter().map(|reason| {
            let count = unfinished.iter().filter(|row| waits(row, reason)).count();
            (reason.name(), count as u64)
        });
        let hosts = self.store.hosts(None, u32::MAX).await?;
        let up = hosts
            .iter()
            .filter(|host| self.registry.state(&host.id) == HostState::Up)
            .count();
        Ok(Now {
            active: unfinished.len() as u64,
            waiting: waiting.collect(),
            attention: attention as u64,
            hosts_up: up as u64,
            hosts_silent: (hosts.len() - up) as u64,
            in_office: self.office.is_in_office(),
            certificate_expiry: self
                .tls
                .expires()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            certificate_problem: self.tls.problem().is_some(),
        })
    }
}

/// Not ready is who can serve nobody. What a person should look at is told in either case.
async fn ready(State(local): State<Local>) -> impl IntoResponse {
    let certificates = local.tls.problem().map(|problem| format!("certificates: {problem}\n"));
    let certificates = certificates.unwrap_or_default();
    match local.store.check().await {
        Ok(()) if local.tls.has_expired() => (StatusCode::SERVICE_UNAVAILABLE, certificates),
        Ok(()) if local.office.is_in_office() => (StatusCode::OK, format!("ready\n{certificates}")),
        Ok(()) => (StatusCode::OK, format!("read-only: not in office\n{certificates}")),
        Err(error) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the store cannot be written: {error}\n"),
        ),
    }
}

async fn metrics(State(local): State<Local>) -> impl IntoResponse {
    const TEXT: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    match local.now().await {
        Ok(now) => (StatusCode::OK, TEXT, local.metrics.text(&now)),
        Err(error) => (
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            format!("# the store cannot be read: {error}\n"),
        ),
    }
}
