//! Whether another agent can be reached from here, over the one port: a TLS connection of its own to each of its
//! migration addresses, and one RPC over it.

use std::time::{Duration, Instant};

use drover_proto::agent::v1::{PeerProbe, ProbePeerRequest, ProbePeerResponse};
use drover_proto::channel::channel;
use drover_proto::failure::{Failure, sources};
use drover_proto::identity::Identity;
use drover_proto::ids::HostId;
use drover_proto::time::proto_duration;
use drover_proto::tls::Tls;
use drover_proto::trace::TraceInterceptor;
use futures::future::join_all;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::{convert, link};

/// More addresses than any host has for migrations.
const MOST_ADDRESSES: usize = 8;

/// Longer than any network between two hosts takes.
const LIMIT: Duration = Duration::from_secs(3);

/// Tries all addresses at once.
pub(super) async fn probe(tls: &Tls, request: ProbePeerRequest) -> Result<ProbePeerResponse, Failure> {
    let host = convert::host_id("peer_host", &request.peer_host)?;
    if request.addresses.is_empty() || request.addresses.len() > MOST_ADDRESSES {
        return Err(Failure::invalid("addresses", format!("1 to {MOST_ADDRESSES}")));
    }
    let tries = request.addresses.into_iter().map(|address| {
        let expected = Identity::Agent(host.clone());
        async move {
            let started = Instant::now();
            let answer = tokio::time::timeout(LIMIT, ask(tls, &address, expected)).await;
            let elapsed = started.elapsed();
            let problem = answer
                .unwrap_or_else(|_| Err(format!("no answer within {} s", LIMIT.as_secs())))
                .err();
            PeerProbe {
                address,
                reachable: problem.is_none(),
                elapsed: problem.is_none().then(|| proto_duration(elapsed)),
                problem: problem.unwrap_or_default(),
                bytes_per_second: 0,
            }
        }
    });
    let mut probes = join_all(tries).await;
    if request.measure
        && let Some(first) = probes.iter_mut().find(|probe| probe.reachable)
    {
        first.bytes_per_second = measured(tls, &first.address, host).await;
    }
    Ok(ProbePeerResponse { probes })
}

/// 0 where it cannot be measured: an agent of an older version does not know how.
async fn measured(tls: &Tls, address: &str, host: HostId) -> u64 {
    let Ok(channel) = channel(tls, address, Identity::Agent(host)) else {
        return 0;
    };
    link::measure(channel).await.unwrap_or_else(|status| {
        tracing::debug!(address, "the link was not measured: {status}");
        0
    })
}

/// Only an answer proves that the other side has accepted this host's certificate: TLS 1.3 clients are done before.
async fn ask(tls: &Tls, address: &str, expected: Identity) -> Result<(), String> {
    let channel = channel(tls, address, expected).map_err(|error| error.to_string())?;
    let mut client = HealthClient::with_interceptor(channel, TraceInterceptor);
    match client.check(HealthCheckRequest::default()).await {
        Ok(_) => Ok(()),
        Err(status) => {
            let cause = sources(&status).last().map(ToString::to_string);
            Err(cause.unwrap_or_else(|| status.message().to_owned()))
        }
    }
}
