//! Tells the controller that this host is here, and which migrations are unfinished: at the start, then at every
//! heartbeat. The agent works without a controller: what fails here is tried again.

use std::sync::Arc;
use std::time::Duration;

use drover_proto::identity::Identity;
use drover_proto::time::std_duration;
use drover_proto::tls::{Tls, TlsError};
use drover_proto::v1::host_service_client::HostServiceClient;
use drover_proto::v1::{Host, RegisterHostRequest};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::jobs::Jobs;
use crate::service::unfinished;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(10);
/// What a controller may ask for.
const HEARTBEAT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);

/// Goes on until it is told to stop.
pub async fn keep_registered(
    tls: Tls,
    controller: String,
    jobs: Arc<Jobs>,
    about: Arc<dyn Fn() -> Host + Send + Sync>,
    stop: CancellationToken,
) -> Result<(), TlsError> {
    let channel = drover_proto::channel::channel(&tls, &controller, Identity::Controller)?;
    let mut client = HostServiceClient::new(channel);
    let mut pause = FIRST_PAUSE;
    let mut registered = false;
    loop {
        let next = match register(&mut client, &jobs, about()).await {
            Ok(interval) => {
                if !registered {
                    tracing::info!(%controller, "registered");
                }
                (registered, pause) = (true, FIRST_PAUSE);
                interval
            }
            Err(status) => {
                let error = drover_proto::failure::Failure::from_status(&status);
                // Said once, not at every try.
                if registered || pause == FIRST_PAUSE {
                    tracing::warn!(%controller, %error, "the controller did not take the registration");
                }
                registered = false;
                pause = (pause * 2).min(LONGEST_PAUSE);
                pause
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(next)).await.is_none() {
            return Ok(());
        }
    }
}

async fn register(client: &mut HostServiceClient<Channel>, jobs: &Jobs, host: Host) -> Result<Duration, tonic::Status> {
    let mut request = tonic::Request::new(RegisterHostRequest {
        host: Some(host),
        unfinished_journals: unfinished(jobs),
    });
    request.set_timeout(LIMIT);
    let response = client.register_host(request).await?.into_inner();
    let wanted = response
        .heartbeat_interval
        .as_ref()
        .and_then(std_duration)
        .unwrap_or(Duration::from_secs(10));
    Ok(wanted.clamp(*HEARTBEAT.start(), *HEARTBEAT.end()))
}
