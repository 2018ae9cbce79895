//! The way to another agent: RPCs about one migration, allowed by a ticket.

use std::time::{Duration, SystemTime};

use drover_proto::agent::v1::peer_service_client::PeerServiceClient;
use drover_proto::agent::v1::{HandOverGuestRequest, HandOverGuestResponse, ReopenStreamRequest};
use drover_proto::channel::channel_beyond_expiry;
use drover_proto::failure::{Failure, Reason};
use drover_proto::identity::Identity;
use drover_proto::ids::{Attempt, HostId, MigrationId, Ticket};
use drover_proto::time::{std_duration, system_time};
use drover_proto::tls::Tls;
use drover_proto::trace::TraceInterceptor;
use tonic::Request;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::hypervisor::Cookie;
use crate::jobs::reopen::Reopened;
use crate::journal::Call;

/// Longer than connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

const SILENT: &str = "the destination's agent did not answer in time";

/// Another host's agent.
pub struct PeerClient {
    host: HostId,
    channels: Vec<Result<Channel, String>>,
}

/// What is told of a guest that is handed over.
#[derive(Clone, Copy, Debug)]
pub struct HandedOver<'a> {
    /// From Perform; may be empty.
    pub cookie: &'a Cookie,
    /// Whether it ran until the migration stopped it. None: as was said at its Prepare.
    pub runs: Option<bool>,
}

/// What is told of a stream that broke in post-copy.
#[derive(Clone, Debug)]
pub struct Broken {
    /// The guest's definition, as it is to be there.
    pub xml: String,
    /// From Begin.
    pub cookie: Cookie,
}

/// What the destination says: the guest runs there.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// For Confirm.
    pub cookie: Cookie,
    /// By the destination's clock.
    pub switched: Option<SystemTime>,
    /// From the request's arrival to that moment; `None` in a repeat.
    pub elapsed: Option<Duration>,
    pub calls: Vec<Call>,
    /// Post-copy: not all of its memory is there.
    pub pages_missing: bool,
}

impl PeerClient {
    /// Connects at the first call. Addresses are `host:port`, best first.
    pub fn new(tls: &Tls, host: HostId, addresses: Vec<String>) -> Self {
        let open = |address: String| {
            let channel = channel_beyond_expiry(tls, &address, Identity::Agent(host.clone()));
            channel.map_err(|error| error.to_string())
        };
        let channels = addresses.into_iter().map(open).collect();
        Self { host, channels }
    }

    /// Connects now, so that no handshake falls into the blackout, and no certificate that expires on the way keeps
    /// the hand-over from being made. Where it fails, the hand-over tries again.
    pub async fn connect(&self) {
        let Some(Ok(channel)) = self.channels.first() else {
            return;
        };
        let request = HealthCheckRequest::default();
        let answer = tokio::time::timeout(CONNECT_LIMIT, HealthClient::new(channel.clone()).check(request)).await;
        if !matches!(answer, Ok(Ok(_))) {
            tracing::debug!(host = %self.host, "the destination's agent does not answer yet");
        }
    }

    /// Tells it that the guest is its own. The `call`th try goes to the next address in turn.
    pub async fn hand_over(
        &self,
        migration: MigrationId,
        attempt: Attempt,
        ticket: &Ticket,
        guest: HandedOver<'_>,
        call: usize,
        limit: Duration,
    ) -> Result<Arrived, Failure> {
        let channel = self.channel(call)?;
        let mut request = Request::new(HandOverGuestRequest {
            migration_id: migration.to_string(),
            attempt: attempt.0,
            ticket: ticket.as_bytes().to_vec().into(),
            cookie: guest.cookie.0.clone().into(),
            runs: guest.runs,
        });
        request.set_timeout(limit);
        let mut client = client(channel);
        match tokio::time::timeout(limit, client.hand_over_guest(request)).await {
            Ok(Ok(response)) => Ok(self.arrived(&response.into_inner())),
            Ok(Err(status)) => Err(Failure::from_status(&status)),
            Err(_) => Err(self.unreachable(SILENT)),
        }
    }

    /// Asks for another stream in the place of one that broke in post-copy. The `call`th try goes to the next address in
    /// turn.
    pub async fn reopen_stream(
        &self,
        migration: MigrationId,
        attempt: Attempt,
        ticket: &Ticket,
        broken: Broken,
        call: usize,
        limit: Duration,
    ) -> Result<Reopened, Failure> {
        let channel = self.channel(call)?;
        let mut request = Request::new(ReopenStreamRequest {
            migration_id: migration.to_string(),
            attempt: attempt.0,
            ticket: ticket.as_bytes().to_vec().into(),
            xml: broken.xml,
            cookie: broken.cookie.0.into(),
        });
        request.set_timeout(limit);
        let mut client = client(channel);
        let answer = match tokio::time::timeout(limit, client.reopen_stream(request)).await {
            Ok(answer) => answer.map_err(|status| Failure::from_status(&status))?.into_inner(),
            Err(_) => return Err(self.unreachable(SILENT)),
        };
        Ok(Reopened {
            ticket: Ticket::from_slice(&answer.ticket)
                .map_err(|error| Failure::internal(format!("a ticket that is none: {error}")))?,
            cookie: Cookie(answer.cookie.to_vec()),
        })
    }

    fn channel(&self, call: usize) -> Result<Channel, Failure> {
        match self.channels.get(call % self.channels.len().max(1)) {
            Some(Ok(channel)) => Ok(channel.clone()),
            Some(Err(error)) => Err(self.unreachable(error)),
            None => Err(self.unreachable("the destination's agent has no address")),
        }
    }

    fn unreachable(&self, message: &str) -> Failure {
        Failure::new(Reason::HostUnreachable, message).at_host(self.host.clone())
    }

    fn arrived(&self, response: &HandOverGuestResponse) -> Arrived {
        Arrived {
            cookie: Cookie(response.cookie.to_vec()),
            switched: response.switch_time.as_ref().and_then(system_time),
            elapsed: response.elapsed.as_ref().and_then(std_duration),
            pages_missing: response.pages_missing,
            calls: response
                .calls
                .iter()
                .filter_map(|call| crate::service::report::call_from(call, &self.host))
                .collect(),
        }
    }
}

fn client(channel: Channel) -> PeerServiceClient<InterceptedService<Channel, TraceInterceptor>> {
    PeerServiceClient::with_interceptor(channel, TraceInterceptor)
        .max_decoding_message_size(drover_proto::MAX_DECODING_MESSAGE_BYTES)
        .max_encoding_message_size(drover_proto::MAX_ENCODING_MESSAGE_BYTES)
}
