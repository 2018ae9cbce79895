//! The destination's side of a simulated migration.

use std::sync::Arc;

use async_trait::async_trait;
use drover_proto::ids::GuestId;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::disks;
use super::domain::{Domain, Phase};
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
        let mut state = self.host.lock();
        // As libvirt: without its owner a repair has failed.
        if self.arrived.flags.resume && state.phase(self.guest, self.connection) == Some(Phase::Arriving) {
            state.incoming_broke(self.guest, self.connection);
        }
        state.close(self.guest, self.connection);
    }
}

/// A receiver that ends with its runtime, which stands for the agent's process, has lost its stream.
struct StreamBreaks {
    host: SimHost,
    guest: GuestId,
    connection: u64,
    /// As libvirt: in a repair nobody notices before Finish is called, or the connection goes.
    unnoticed: bool,
}

impl Drop for StreamBreaks {
    fn drop(&mut self) {
        if self.unnoticed {
            return;
        }
        let mut state = self.host.lock();
        // One that only waits goes with its handle; one that has everything has no job.
        if state.phase(self.guest, self.connection) == Some(Phase::Arriving) {
            state.incoming_broke(self.guest, self.connection);
        }
    }
}

impl StreamBreaks {
    /// The stream, to its end.
    async fn take(self, listener: UnixListener, cut: CancellationToken, tell: watch::Sender<Received>) {
        let (host, guest, connection, resumes) = (self.host.clone(), self.guest, self.connection, self.unnoticed);
        let tell = Arc::new(tell);
        let (switched, at) = (Arc::clone(&tell), host.clone());
        let switch = move || {
            if resumes {
                at.lock().arrives_again(guest, connection);
            }
            switched.send_replace(Received::Switched);
        };
        match cut.run_until_cancelled(receive(&listener, guest, switch)).await {
            Some(Ok((totals, waits))) => {
                // In this order: whoever finishes in this moment sees one of the two.
                tell.send_replace(Received::Complete(totals));
                // As libvirt: after a repair Finish notices, and where nobody is to call it libvirt itself.
                if !resumes || host.lock().is_unattended(guest, connection) {
                    host.lock().all_arrived(guest, connection, totals);
                }
                let lost = |copy: &Domain| copy.loses_last_word;
                if !host.lock().domains.get(&guest).is_some_and(lost) {
                    waits.tell_whole().await;
                }
            }
            Some(Err(error)) => {
                if !resumes {
                    host.lock().incoming_broke(guest, connection);
                }
                tell.send_replace(Received::Broken(error.to_string()));
            }
            None => {
                tell.send_replace(Received::Broken("QEMU is gone".to_owned()));
            }
        }
    }
}

impl SimIncoming {
    /// A QEMU that waits, still, for its stream.
    pub(super) fn prepare(host: &SimHost, request: PrepareRequest) -> Result<Self> {
        host.lock().knows_parameters(&request.flags)?;
        let resumes = request.flags.resume;
        let (images, (connection, spec, cut)) = if resumes {
            (Vec::new(), host.lock().prepare_repair(request.guest)?)
        } else {
            let images = disks::images(&request.xml, request.flags.copied.as_ref())?;
            (images, host.lock().prepare(&request)?)
        };
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
            unnoticed: resumes,
        };
        tokio::spawn(breaks.take(listener, cut, tell));
        Ok(handle)
    }

    /// The guest runs already: there is only the last page to wait for.
    async fn finish_repair(&self) -> Result<Cookie> {
        let arrives = |host: &SimHost| host.lock().phase(self.guest, self.connection) == Some(Phase::Arriving);
        if !arrives(&self.host) {
            return Err(error::too_late("domain is not processing incoming migration"));
        }
        let mut received = self.received.clone();
        let over = |received: &Received| !matches!(received, Received::Waiting | Received::Switched);
        let outcome = received.wait_for(over).await.map(|received| received.clone());
        let why = match outcome {
            Ok(Received::Complete(totals)) => {
                self.host.lock().all_arrived(self.guest, self.connection, totals);
                return Ok(Cookie(format!("finish of {}", self.guest).into_bytes()));
            }
            Ok(Received::Broken(why)) => why,
            Ok(Received::Waiting | Received::Switched) | Err(_) => "QEMU is gone".to_owned(),
        };
        if arrives(&self.host) {
            self.host.lock().incoming_broke(self.guest, self.connection);
        }
        Err(error::failed(format!("post-copy failed: {why}")))
    }

    async fn finish_now(&self) -> Result<Cookie> {
        if self.arrived.flags.resume {
            return self.finish_repair().await;
        }
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
