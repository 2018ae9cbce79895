//! The seam: [`Hypervisor`] for a simulated host.

use std::time::Duration;

use async_trait::async_trait;
use drover_proto::ids::GuestId;
use tokio::sync::broadcast;

use super::domain::Domain;
use super::fault::Call;
use super::host::SimHost;
use super::incoming::SimIncoming;
use super::outgoing::SimOutgoing;
use crate::hypervisor::{
    BeginRequest, Begun, CpuAnswer, CpuQuestion, GuestEvent, GuestFacts, HostFacts, Hypervisor, Incoming, JobStats,
    Outgoing, PrepareRequest, Result, WriteSample,
};

#[async_trait]
impl Hypervisor for SimHost {
    async fn host(&self) -> Result<HostFacts> {
        self.call(Call::Look, async { Ok(self.lock().host_facts()) }).await
    }

    async fn guests(&self) -> Result<Vec<GuestFacts>> {
        self.call(Call::Look, async {
            Ok(self.lock().domains.values().map(Domain::facts).collect())
        })
        .await
    }

    async fn guest(&self, guest: GuestId) -> Result<Option<GuestFacts>> {
        self.call(Call::Look, async { Ok(self.look(guest)) }).await
    }

    async fn guest_by_name(&self, name: &str) -> Result<Option<GuestFacts>> {
        let look = async {
            let state = self.lock();
            Ok(state
                .domains
                .values()
                .find(|domain| domain.spec.name == name)
                .map(Domain::facts))
        };
        self.call(Call::Look, look).await
    }

    async fn cpu_fits(&self, _question: &CpuQuestion) -> Result<CpuAnswer> {
        self.call(Call::Look, async { Ok(self.lock().cpu.clone()) }).await
    }

    async fn job(&self, guest: GuestId) -> Result<Option<JobStats>> {
        self.call(Call::Look, async { self.lock().job(guest) }).await
    }

    async fn block_jobs(&self, guest: GuestId) -> Result<Vec<String>> {
        self.call(Call::Look, async { Ok(self.lock().find(guest)?.block_jobs.clone()) })
            .await
    }

    async fn sample_writes(&self, guest: GuestId, window: Duration) -> Result<WriteSample> {
        self.call(Call::Sample, async { self.lock().find(guest)?.sample_writes(window) })
            .await
    }

    async fn completed_job(&self, guest: GuestId) -> Result<Option<JobStats>> {
        self.call(Call::Look, async { self.lock().completed_job(guest) }).await
    }

    async fn resume(&self, guest: GuestId) -> Result<()> {
        self.call(Call::Resume, async { self.lock().resume(guest) }).await
    }

    async fn start(&self, guest: GuestId) -> Result<()> {
        self.call(Call::Start, async { self.lock().start_defined(guest) }).await
    }

    async fn shut_down(&self, guest: GuestId) -> Result<()> {
        self.call(Call::ShutDown, async { self.lock().shut_down(guest) }).await
    }

    async fn suspend(&self, guest: GuestId) -> Result<()> {
        self.call(Call::Suspend, async { self.lock().suspend(guest) }).await
    }

    async fn set_autostart(&self, guest: GuestId, autostart: bool) -> Result<()> {
        self.call(Call::SetAutostart, async {
            self.lock().set_autostart(guest, autostart)
        })
        .await
    }

    async fn define(&self, inactive_xml: &str) -> Result<()> {
        self.call(Call::Define, async { self.lock().define(inactive_xml) })
            .await
    }

    async fn undefine(&self, guest: GuestId) -> Result<()> {
        self.call(Call::Undefine, async { self.lock().undefine(guest) }).await
    }

    async fn begin(&self, request: BeginRequest) -> Result<Box<dyn Outgoing>> {
        let begin = async {
            self.lock().knows_parameters(&request.flags)?;
            let begun = if request.flags.resume {
                self.lock().begin_repair(request.guest)?
            } else {
                self.lock().begin(request.guest)?
            };
            Ok(self.outgoing(request, begun))
        };
        self.call(Call::Begin, begin).await
    }

    async fn take_up(&self, request: BeginRequest) -> Result<Box<dyn Outgoing>> {
        let take_up = async {
            let begun = self.lock().begin_repair(request.guest)?;
            Ok(self.outgoing(request, begun))
        };
        self.call(Call::Begin, take_up).await
    }

    async fn prepare(&self, request: PrepareRequest) -> Result<Box<dyn Incoming>> {
        let prepare = async { Ok(Box::new(SimIncoming::prepare(self, request)?) as Box<dyn Incoming>) };
        self.call(Call::Prepare, prepare).await
    }

    fn events(&self) -> broadcast::Receiver<GuestEvent> {
        self.lock().events.subscribe()
    }
}

impl SimHost {
    fn outgoing(&self, request: BeginRequest, (connection, begun): (u64, Begun)) -> Box<dyn Outgoing> {
        let (host, BeginRequest { guest, flags }) = (self.clone(), request);
        Box::new(SimOutgoing {
            host,
            guest,
            connection,
            flags,
            begun,
        })
    }
}
