//! In the controller's place: answers registrations, and keeps what the agents said.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use drover_proto::serve::{GrpcStream, accept};
use drover_proto::tls::{ALPN_H2, Tls};
use drover_proto::v1::host_service_server::{HostService, HostServiceServer};
use drover_proto::v1::*;
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
pub(crate) struct StandIn(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    answer: Vec<HostResolution>,
    registrations: Vec<RegisterHostRequest>,
}

impl StandIn {
    /// Serves for as long as the test's runtime lives.
    pub(crate) fn serve(&self, listener: TcpListener, tls: Tls) {
        let incoming = accept(listener, tls, &[ALPN_H2], CancellationToken::new());
        let incoming = incoming.map(|accepted| Ok::<_, std::io::Error>(GrpcStream::new(accepted)));
        let server = tonic::transport::Server::builder().add_service(HostServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
    }

    /// What every registration is answered with.
    pub(crate) fn answer(&self, resolution: HostResolution) {
        self.0.lock().unwrap().answer = vec![resolution];
    }

    pub(crate) fn registrations(&self) -> Vec<RegisterHostRequest> {
        self.0.lock().unwrap().registrations.clone()
    }
}

/// A port at which nobody listens yet.
pub(crate) async fn address() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in these tests"))
}

#[tonic::async_trait]
impl HostService for StandIn {
    async fn register_host(
        &self,
        request: Request<RegisterHostRequest>,
    ) -> Result<Response<RegisterHostResponse>, Status> {
        let mut said = self.0.lock().unwrap();
        said.registrations.push(request.into_inner());
        Ok(Response::new(RegisterHostResponse {
            heartbeat_interval: None,
            resolutions: said.answer.clone(),
            ..RegisterHostResponse::default()
        }))
    }

    async fn list_hosts(&self, _: Request<ListHostsRequest>) -> Result<Response<ListHostsResponse>, Status> {
        not_here()
    }

    async fn get_host(&self, _: Request<GetHostRequest>) -> Result<Response<Host>, Status> {
        not_here()
    }

    async fn cordon_host(&self, _: Request<CordonHostRequest>) -> Result<Response<Host>, Status> {
        not_here()
    }

    async fn uncordon_host(&self, _: Request<UncordonHostRequest>) -> Result<Response<Host>, Status> {
        not_here()
    }

    async fn drain_host(&self, _: Request<DrainHostRequest>) -> Result<Response<DrainHostResponse>, Status> {
        not_here()
    }

    async fn list_guests(&self, _: Request<ListGuestsRequest>) -> Result<Response<ListGuestsResponse>, Status> {
        not_here()
    }

    async fn get_guest_owner(
        &self,
        _: Request<GetGuestOwnerRequest>,
    ) -> Result<Response<GetGuestOwnerResponse>, Status> {
        not_here()
    }
}
