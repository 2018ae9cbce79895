//! The destination's side of a simulated migration.

use async_trait::async_trait;
use drover_proto::ids::GuestId;
use tokio::sync::watch;

use super::disks;
use super::domain::Phase;
use super::error;
use super::fault::Call;
use super::host::SimHost;
use super::receiver::{Received, receive};
use super::transitions::Arrived;
use crate::hypervisor::{Cookie, Incoming, PrepareRequest, Result};
use crate::tunnel::socket;

pub(super) struct SimIncoming {
    host: SimHost,
    guest: GuestId,
    connection: u64,
    arrived: Arrived,
    cookie: Cookie,
    received: watch::Receiver<Received>,
    /// QEMU's sockets; they go with the handle, before anybody can make others in their place.
    files: Vec<socket::SocketFile>,
}

impl Drop for SimIncoming {
    fn drop(&mut self) {
        self.files.clear();
        self.host.lock().close(self.guest, self.connection);
    }
}

/// A receiver that ends with its runtime, which stands for the agent's process, has lost its stream.
struct StreamBreaks {
    host: SimHost,
    guest: GuestId,
    connection: u64,
}

impl Drop for StreamBreaks {
    fn drop(&mut self) {
        let mut state = self.host.lock();
        // One that only waits goes with its handle; one that has everything has no job.
        if state.phase(self.guest, self.connection) == Some(Phase::Arriving) {
            state.incoming_broke(self.guest, self.connection);
        }
    }
}

impl SimIncoming {
    /// A QEMU that waits, still, for its stream.
    pub(super) fn prepare(host: &SimHost, request: PrepareRequest) -> Result<Self> {
        let images = disks::images(&request.xml, request.flags.copied.as_ref())?;
        let (connection, spec, cut) = host.lock().prepare(&request)?;
        let (tell, received) = watch::channel(Received::Waiting);
        // From here on dropping the handle takes the waiting copy away again.
        let mut handle = Self {
            host: host.clone(),
            guest: spec.id,
            connection,
            arrived: Arrived {
                persistent_xml: request.persistent_xml,
                flags: request.flags.clone(),
            },
            cookie: Cookie(format!("prepare of {}", spec.id).into_bytes()),
            received,
            files: Vec::new(),
        };
        let (listener, file) =
            socket::listen(&request.socket, None).map_err(|error| error::failed(error.to_string()))?;
        handle.files.push(file);
        if !images.is_empty() {
            let listening = socket::listen(&request.disks_socket, None);
            let (disks, file) = listening.map_err(|error| error::failed(error.to_string()))?;
            handle.files.push(file);
            let cut = cut.clone();
            tokio::spawn(async move { cut.run_until_cancelled(disks::receive(disks, images)).await });
        }
        let breaks = StreamBreaks {
            host: host.clone(),
            guest: spec.id,
            connection,
        };
        let host = host.clone();
        let tell = std::sync::Arc::new(tell);
        let switched = std::sync::Arc::clone(&tell);
        let switch = move || {
            switched.send_replace(Received::Switched);
        };
        tokio::spawn(async move {
            let _breaks = breaks;
            let outcome = cut.run_until_cancelled(receive(&listener, spec.id, switch)).await;
            match outcome {
                Some(Ok(totals)) => {
                    // In this order: whoever finishes in this moment sees one of the two.
                    tell.send_replace(Received::Complete(totals));
                    host.lock().all_arrived(spec.id, connection, totals);
                }
                Some(Err(error)) => {
                    host.lock().incoming_broke(spec.id, connection);
                    tell.send_replace(Received::Broken(error.to_string()));
                }
                None => {
                    tell.send_replace(Received::Broken("QEMU is gone".to_owned()));
                }
            }
        });
        Ok(handle)
    }

    async fn finish_now(&self) -> Result<Cookie> {
        let (host, guest, connection) = (self.host.clone(), self.guest, self.connection);
        let (mut received, arrived) = (self.received.clone(), self.arrived.clone());
        host.lock().start_finish(guest, connection)?;
        // libvirtd goes on when the caller stops waiting.
        let finishing = tokio::spawn(async move {
            let outcome = received.wait_for(|received| *received != Received::Waiting).await;
            match outcome.map(|received| received.clone()) {
                Ok(Received::Complete(totals)) => {
                    let finished = async { host.lock().finished(guest, connection, &arrived, totals) };
                    host.call(Call::Finishing, finished).await
                }
                Ok(Received::Switched) => {
                    let finished = async { host.lock().finished_early(guest, connection, &arrived) };
                    host.call(Call::Finishing, finished).await?;
                    // As libvirt: Finish returns with the last page.
                    let outcome = received.wait_for(|received| *received != Received::Switched).await;
                    match outcome.map(|received| received.clone()) {
                        Ok(Received::Complete(totals)) => {
                            host.lock().all_arrived(guest, connection, totals);
                            Ok(())
                        }
                        Ok(Received::Broken(why)) => Err(error::failed(format!("post-copy failed: {why}"))),
                        Ok(Received::Waiting | Received::Switched) | Err(_) => {
                            Err(error::failed("post-copy failed: QEMU is gone"))
                        }
                    }
                }
                Ok(Received::Broken(why)) => Err(error::failed(format!("migration in job: {why}"))),
                Ok(Received::Waiting) | Err(_) => Err(error::failed("migration in job: QEMU is gone")),
            }
        });
        finishing.await.map_err(|error| error::failed(error.to_string()))??;
        Ok(Cookie(format!("finish of {guest}").into_bytes()))
    }
}

#[async_trait]
impl Incoming for SimIncoming {
    fn cookie(&self) -> &Cookie {
        &self.cookie
    }

    async fn finish(&self, _cookie: &Cookie) -> Result<Cookie> {
        self.host.call(Call::Finish, self.finish_now()).await
    }

    async fn cancel(&self) -> Result<()> {
        let cancel = async { self.host.lock().cancel_incoming(self.guest, self.connection) };
        self.host.call(Call::CancelIncoming, cancel).await
    }
}
