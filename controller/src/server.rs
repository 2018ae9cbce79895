//! A running controller: its parts, put together in the order in which they need each other, and taken apart again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use drover_proto::authorization::Authorize;
use drover_proto::deadline::DeadlineLayer;
use drover_proto::explain::ExplainLayer;
use drover_proto::identity::Identity;
use drover_proto::serve::{GrpcStream, accept};
use drover_proto::tls::{ALPN_H2, Tls};
use drover_proto::trace::TraceLayer;
use drover_proto::v1::MigrationPolicy;
use drover_proto::v1::host_service_server::HostServiceServer;
use drover_proto::v1::migration_service_server::MigrationServiceServer;
use drover_proto::{FILE_DESCRIPTOR_SET, MAX_DECODING_MESSAGE_BYTES, MAX_ENCODING_MESSAGE_BYTES};
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::agents::Agents;
use crate::config::Config;
use crate::estimates::Estimates;
use crate::executor::Executor;
use crate::hub::Hub;
use crate::ledger::Ledger;
use crate::local::Local;
use crate::metrics::Metrics;
use crate::office::Office;
use crate::recovery;
use crate::registry::Registry;
use crate::restored::{self, Restored};
use crate::service::{Api, check_policy};
use crate::store::Store;
use crate::store::memory::MemoryStore;
use crate::store::sqlite::SqliteStore;

/// At the end, whoever is still connected has so long to go away.
const FAREWELL: Duration = Duration::from_secs(5);

/// A connection that says nothing is asked for a sign of life after this time.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Calls and watches at once on one connection; a client sends more of them later.
const MOST_STREAMS: u32 = 500;

/// A controller that serves.
pub struct Controller {
    /// Where the API listens.
    pub address: SocketAddr,
    /// Where health and metrics are served.
    pub local_address: SocketAddr,
    executor: Executor,
    /// Ends streams and accept loops.
    stopping: CancellationToken,
    api: JoinHandle<()>,
    local: JoinHandle<()>,
}

/// Opens the store that a configuration names.
pub async fn open_store(url: &str) -> anyhow::Result<Arc<dyn Store>> {
    if url == "memory:" {
        tracing::warn!("the store is in memory: it forgets everything when the controller ends");
        return Ok(Arc::new(MemoryStore::default()));
    }
    anyhow::ensure!(
        url.starts_with("sqlite:"),
        "store = \"{url}\" is no store: write sqlite:///path/to/drover.db, or memory:"
    );
    let store = SqliteStore::open(url)
        .await
        .with_context(|| format!("the store {url} cannot be opened"))?;
    Ok(Arc::new(store))
}

/// The certificates, which must be a controller's.
fn own_tls(config: &Config) -> anyhow::Result<Tls> {
    let tls = Tls::load_with(config.tls.clone(), config.identities()?)?;
    let own = tls.own_identity();
    anyhow::ensure!(
        own == Identity::Controller,
        "the certificate is that of {own}, not of a controller"
    );
    Ok(tls)
}

/// Makes a restored database the one in use (`drover-controller adopt-restored`). No controller serves meanwhile.
pub async fn adopt_restored(config: &Config, store: Arc<dyn Store>, allow_silent: bool) -> anyhow::Result<Restored> {
    // Held meanwhile: one that runs would be put out of office by a word about its own database.
    let _addresses = listen(config)
        .await
        .context("a controller seems to run with this configuration: stop it first")?;
    let tls = Tls::load_with(config.tls.clone(), config.identities()?)?;
    let agents = Agents::new(tls, Arc::clone(&store), Arc::new(Office::default()));
    Ok(restored::adopt_restored(&store, &agents, allow_silent).await?)
}

impl Controller {
    /// Takes office, takes up what was left, and serves.
    pub async fn start(config: &Config, store: Arc<dyn Store>) -> anyhow::Result<Self> {
        let tls = own_tls(config)?;
        let policy = defaults(config)?;
        let stopping = CancellationToken::new();
        tokio::spawn(tls.clone().keep_fresh(stopping.clone()));
        // Before anything is decided: an address in use must not cost a term.
        let (listener, local_listener) = listen(config).await?;
        let (address, local_address) = (listener.local_addr()?, local_listener.local_addr()?);
        let office = Arc::new(Office::default());
        let agents = Arc::new(Agents::new(tls.clone(), Arc::clone(&store), Arc::clone(&office)));
        office.enter(recovery::take_office(&store, &agents).await?);

        let ledger = Ledger {
            store: Arc::clone(&store),
            hub: Arc::new(Hub::default()),
        };
        let metrics = Arc::new(Metrics::default());
        let registry = Arc::new(Registry::new(config.heartbeat()));
        let estimates = Arc::new(Estimates::new(Arc::clone(&store), config.link_speed));
        let executor = Executor::new(
            ledger.clone(),
            Arc::clone(&agents),
            Arc::clone(&estimates),
            Arc::clone(&office),
            Arc::clone(&metrics),
        );
        if office.is_in_office() {
            recovery::announce(&store, &agents).await?;
            recovery::close_traces(&store).await?;
            recovery::take_up_all(&ledger, &executor).await?;
        }

        let local = Local {
            store,
            office: Arc::clone(&office),
            registry: Arc::clone(&registry),
            metrics,
            tls: tls.clone(),
        };
        let api = Api {
            ledger,
            agents,
            estimates,
            office,
            executor: executor.clone(),
            registry,
            trust_domain: config.trust_domain.clone(),
            policy,
            stopping: stopping.clone(),
        };
        Ok(Self {
            address,
            local_address,
            executor,
            api: tokio::spawn(serve(api, config.clone(), tls, listener, stopping.clone())),
            local: tokio::spawn(serve_local(local, local_listener, stopping.clone())),
            stopping,
        })
    }

    /// Ends it: migrations are left where they are and taken up by the next start. Bounded in time.
    pub async fn stop(self) {
        self.executor.stop().await;
        self.stopping.cancel();
        for mut task in [self.api, self.local] {
            if tokio::time::timeout(FAREWELL, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

/// The API's listener and the local one.
async fn listen(config: &Config) -> anyhow::Result<(TcpListener, TcpListener)> {
    let api = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listen {}", config.listen))?;
    let local = TcpListener::bind(config.metrics_listen)
        .await
        .with_context(|| format!("metrics_listen {}", config.metrics_listen))?;
    Ok((api, local))
}

/// What counts where a request leaves it open; no request could ask for what is refused here.
fn defaults(config: &Config) -> anyhow::Result<Arc<MigrationPolicy>> {
    let policy = config.policy.message();
    check_policy(&policy).context("[policy] of the configuration")?;
    Ok(Arc::new(policy))
}

async fn serve(api: Api, config: Config, tls: Tls, listener: TcpListener, stopping: CancellationToken) {
    let incoming = accept(listener, tls, &[ALPN_H2], stopping.clone());
    let incoming = incoming.map(|accepted| Ok::<_, std::io::Error>(GrpcStream::new(accepted)));
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<MigrationServiceServer<Api>>().await;
    health.set_serving::<HostServiceServer<Api>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let reflection = match reflection {
        Ok(reflection) => reflection,
        Err(error) => return tracing::error!("the API cannot describe itself: {error}"),
    };
    let migrations = MigrationServiceServer::new(api.clone())
        .max_decoding_message_size(MAX_DECODING_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_ENCODING_MESSAGE_BYTES);
    let hosts = HostServiceServer::new(api)
        .max_decoding_message_size(MAX_DECODING_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_ENCODING_MESSAGE_BYTES);
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .max_concurrent_streams(MOST_STREAMS)
        .layer(TraceLayer)
        .layer(ExplainLayer)
        .layer(DeadlineLayer)
        .layer(Authorize::new(config.roles))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(migrations)
        .add_service(hosts)
        .serve_with_incoming_shutdown(incoming, stopping.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!("the API ended: {error}");
    }
}

async fn serve_local(local: Local, listener: TcpListener, stopping: CancellationToken) {
    if let Err(error) = local.serve(listener, stopping).await {
        tracing::error!("health and metrics ended: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_that_is_none_is_no_file_either() {
        let error = open_store("nonsense").await.err().unwrap().to_string();
        assert!(error.contains("sqlite:///path/to/drover.db"), "{error}");
        assert!(!std::path::Path::new("nonsense").exists());
    }
}
