//! The source's side of a simulated migration.

use std::time::Duration;

use async_trait::async_trait;
use drover_proto::ids::GuestId;
use tokio::sync::oneshot;

use super::disks;
use super::domain::Limits;
use super::error;
use super::fault::Call;
use super::host::SimHost;
use super::sender::Sender;
use crate::hypervisor::{Begun, Cookie, JobStats, MigrateFlags, Outgoing, PerformRequest, Result};

pub(super) struct SimOutgoing {
    pub(super) host: SimHost,
    pub(super) guest: GuestId,
    pub(super) connection: u64,
    pub(super) flags: MigrateFlags,
    pub(super) begun: Begun,
}

impl Drop for SimOutgoing {
    fn drop(&mut self) {
        self.host.lock().close(self.guest, self.connection);
    }
}

/// A sender that ends with its runtime, which stands for the agent's process, has lost its stream as well.
struct PerformFails {
    host: SimHost,
    guest: GuestId,
    connection: u64,
}

impl Drop for PerformFails {
    fn drop(&mut self) {
        // Changes nothing where all was sent, or the failure was noted.
        self.host.lock().perform_failed(self.guest, self.connection);
    }
}

impl SimOutgoing {
    async fn set_limits(&self, set: impl FnOnce(&mut Limits) + Send) -> Result<()> {
        let work = async {
            self.host
                .lock()
                .update_job(self.guest, self.connection, |job| set(&mut job.limits))
        };
        self.host.call(Call::SetLimits, work).await
    }

    async fn perform_now(&self, request: &PerformRequest) -> Result<Cookie> {
        let (host, guest, connection) = (self.host.clone(), self.guest, self.connection);
        let resumes = self.flags.resume;
        let (spec, cut, owed, images) = if resumes {
            let (spec, cut, owed) = host.lock().start_repair(guest, connection)?;
            (spec, cut, Some(owed), Vec::new())
        } else {
            let (spec, cut) = host.lock().start_perform(guest, connection, request)?;
            let live = host.lock().find(guest)?.live_xml.clone();
            (spec, cut, None, disks::images(&live, self.flags.copied.as_ref())?)
        };
        let sender = Sender {
            images,
            owed,
            disks_socket: request.disks_socket.clone(),
            host: host.clone(),
            spec,
            connection,
            socket: request.socket.clone(),
            beside: self.flags.parallel,
            throttle: self.flags.auto_converge.then_some(request.throttle),
        };
        // QEMU goes on when the caller stops waiting; it ends with the connection, which is this handle.
        let failing = PerformFails {
            host,
            guest,
            connection,
        };
        let (tell, switched) = oneshot::channel();
        let sending = tokio::spawn(async move {
            let outcome = cut.run_until_cancelled(sender.run(tell)).await;
            if !matches!(outcome, Some(Ok(()))) {
                failing.host.lock().perform_failed(guest, connection);
            }
            outcome.unwrap_or_else(|| Err(failing.host.lock().why_cut(guest, connection)))
        });
        // As libvirt: QEMU was told, and that is all.
        if resumes {
            return Ok(Cookie::default());
        }
        let done = async { sending.await.map_err(|error| error::failed(error.to_string()))? };
        tokio::select! {
            biased;
            // The guest went over: the rest is sent behind the back of whoever asked.
            Ok(()) = switched => {}
            outcome = done => outcome?,
        }
        Ok(Cookie(format!("perform of {guest}").into_bytes()))
    }
}

#[async_trait]
impl Outgoing for SimOutgoing {
    fn begun(&self) -> &Begun {
        &self.begun
    }

    async fn perform(&self, request: PerformRequest) -> Result<Cookie> {
        self.host.call(Call::Perform, self.perform_now(&request)).await
    }

    async fn abort(&self) -> Result<()> {
        self.host
            .call(Call::Abort, async {
                self.host.lock().abort(self.guest, self.connection)
            })
            .await
    }

    async fn start_post_copy(&self) -> Result<()> {
        let start = async {
            self.host
                .lock()
                .start_post_copy(self.guest, self.connection, &self.flags)
        };
        self.host.call(Call::StartPostCopy, start).await
    }

    async fn job(&self) -> Result<Option<JobStats>> {
        self.host
            .call(Call::Look, async { self.host.lock().job(self.guest) })
            .await
    }

    async fn completed_job(&self) -> Result<Option<JobStats>> {
        self.host
            .call(Call::Look, async {
                Ok(self.host.lock().sent_stats(self.guest, self.connection))
            })
            .await
    }

    async fn set_max_downtime(&self, max: Duration) -> Result<()> {
        self.set_limits(|limits| limits.max_downtime = max).await
    }

    async fn set_bandwidth(&self, bytes_per_second: u64) -> Result<()> {
        let whole = bytes_per_second.next_multiple_of(1 << 20);
        self.set_limits(|limits| limits.bandwidth = whole).await
    }

    async fn confirm_moved(&self, _cookie: &Cookie) -> Result<()> {
        let confirm = async { self.host.lock().confirm_moved(self.guest, self.connection, &self.flags) };
        self.host.call(Call::ConfirmMoved, confirm).await
    }

    async fn confirm_cancelled(&self) -> Result<()> {
        let confirm = async { self.host.lock().confirm_cancelled(self.guest, self.connection) };
        self.host.call(Call::ConfirmCancelled, confirm).await
    }
}
