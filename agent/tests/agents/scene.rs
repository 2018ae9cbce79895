//! Two hosts with an agent each, and the controller's side of the conversation.

mod asks;

use std::time::Duration;

use drover_agent::jobs::Timing;
use drover_agent::sim::{SimGuest, SimWorld};
use drover_proto::agent::v1::agent_service_client::AgentServiceClient;
use drover_proto::agent::v1::peer_service_client::PeerServiceClient;
use drover_proto::agent::v1::*;
use drover_proto::failure::{Failure, Reason};
use drover_proto::identity::Identity;
use drover_proto::ids::{GuestId, MigrationId};
use drover_proto::tls::Tls;
use drover_proto::v1::DestinationOverrides;
use tonic::transport::Channel;

use crate::node::{Node, PATIENCE};
use crate::pki::Pki;

pub(crate) struct Scene {
    pub(crate) world: SimWorld,
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) guest: GuestId,
    pub(crate) migration: MigrationId,
    pub(crate) attempt: u32,
    pub(crate) term: u64,
    pub(crate) store: &'static str,
    /// What is different at b.
    pub(crate) overrides: Option<DestinationOverrides>,
    pub(crate) policy: TransferPolicy,
    /// Targets of disks that are copied, and whether their originals go.
    pub(crate) copy_disks: Vec<String>,
    pub(crate) delete_source: bool,
    /// The guest is shut off, and these are copied.
    pub(crate) offline: Option<OfflineOrder>,
    controller: Tls,
    folder: tempfile::TempDir,
    pki: Pki,
}

/// What Begin and Prepare gave.
pub(crate) struct Ready {
    pub(crate) begun: BeginOutgoingResponse,
    pub(crate) prepared: PrepareIncomingResponse,
}

impl Scene {
    pub(crate) async fn new(guest: SimGuest) -> Self {
        Self::with_limits(
            guest,
            Timing {
                hand_over: Duration::from_secs(2),
                ..Timing::default()
            },
        )
        .await
    }

    /// The guest on host a; both agents serve.
    pub(crate) async fn with_limits(guest: SimGuest, limits: Timing) -> Self {
        Self::with_lives(guest, limits, Duration::from_secs(24 * 3600)).await
    }

    /// The same, with certificates of both agents that live only so long.
    pub(crate) async fn with_lives(guest: SimGuest, limits: Timing, life: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (pki, world) = (Pki::new(), SimWorld::new());
        let node = |name: &'static str| {
            let tls = pki.tls_for(folder.path(), &format!("agent/{name}"), life);
            Node::new(name, world.host(name), tls, folder.path().join(name), limits)
        };
        let (mut a, mut b) = (node("a"), node("b"));
        a.host.add(&guest).unwrap();
        a.start().await;
        b.start().await;
        let controller = pki.tls(folder.path(), "controller");
        Self {
            world,
            a,
            b,
            guest: guest.id(),
            migration: MigrationId::generate(),
            attempt: 1,
            term: 1,
            store: "store-1",
            overrides: None,
            policy: TransferPolicy::default(),
            copy_disks: Vec::new(),
            delete_source: false,
            offline: None,
            controller,
            folder,
            pki,
        }
    }

    fn channel(tls: &Tls, node: &Node) -> Channel {
        let expected = Identity::Agent(node.name.parse().unwrap());
        drover_proto::channel::channel(tls, &node.address(), expected).unwrap()
    }

    /// Puts something that is no certificate in the place of an agent's.
    pub(crate) fn spoil_certificate(&self, node: &Node) {
        let file = self.folder.path().join(format!("agent-{}/tls.crt", node.name));
        assert!(file.exists());
        std::fs::write(file, "no certificate").unwrap();
    }

    /// For whoever stands in for the controller.
    pub(crate) fn controller_tls(&self) -> Tls {
        self.controller.clone()
    }

    /// The controller's way to an agent.
    pub(crate) fn ask(&self, node: &Node) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(Self::channel(&self.controller, node))
    }

    pub(crate) fn ask_a(&self) -> AgentServiceClient<Channel> {
        self.ask(&self.a)
    }

    pub(crate) fn ask_b(&self) -> AgentServiceClient<Channel> {
        self.ask(&self.b)
    }

    /// Somebody's way to what only the controller may ask of b.
    pub(crate) fn ask_b_as(&self, identity: &str) -> AgentServiceClient<Channel> {
        let tls = self.pki.tls(self.folder.path(), identity);
        AgentServiceClient::new(Self::channel(&tls, &self.b))
    }

    /// Somebody's way to b, as another agent.
    pub(crate) fn peer_of_b(&self, identity: &str) -> PeerServiceClient<Channel> {
        let tls = self.pki.tls(self.folder.path(), identity);
        PeerServiceClient::new(Self::channel(&tls, &self.b))
    }

    pub(crate) fn fence(&self) -> Option<Fence> {
        Some(Fence {
            term: self.term,
            store_instance: self.store.to_owned(),
            lease: 0,
        })
    }

    pub(crate) fn reference(&self) -> Option<MigrationRef> {
        Some(MigrationRef {
            migration_id: self.migration.to_string(),
            attempt: self.attempt,
            guest_uuid: self.guest.to_string(),
        })
    }

    pub(crate) async fn ready(&self) -> Ready {
        let begun = self.begin().await.unwrap();
        let prepared = self.prepare(&begun).await.unwrap();
        Ready { begun, prepared }
    }

    /// Waits until a side's status fulfils a condition.
    pub(crate) async fn until(
        &self,
        node: &Node,
        what: &str,
        condition: impl Fn(&MigrationStatus) -> bool,
    ) -> MigrationStatus {
        let wait = async {
            loop {
                let status = self.status(node).await;
                if condition(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(status) => status,
            Err(_) => panic!("never: {what}; last: {:#?}", self.status(node).await),
        }
    }

    pub(crate) async fn until_state(&self, node: &Node, state: JournalState) -> MigrationStatus {
        self.until(node, state.as_str_name(), |status| journal_state(status) == state)
            .await
    }

    pub(crate) async fn until_quiet(&self, node: &Node) -> MigrationStatus {
        self.until(node, "nothing in flight", |status| {
            !status.call_in_flight && !status.performing
        })
        .await
    }

    /// The whole way there, but for the controller's verdict.
    pub(crate) async fn moves(&self) {
        let ready = self.ready().await;
        self.send(&ready).await.unwrap();
        self.until_moved().await;
    }

    pub(crate) async fn until_moved(&self) {
        self.until_state(&self.b, JournalState::Ran).await;
        self.until(&self.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    }

    /// Another migration, the other way round: what was the destination is the source now. Gives back the former one.
    pub(crate) fn turn_round(&mut self) -> MigrationId {
        std::mem::swap(&mut self.a, &mut self.b);
        std::mem::replace(&mut self.migration, MigrationId::generate())
    }

    /// Verdict and close on both sides, the way a controller does it; then nothing may be left.
    pub(crate) async fn rest(&self, verdict: Verdict) {
        self.settle_a(verdict).await.unwrap();
        self.settle_b(verdict).await.unwrap();
        for node in [&self.a, &self.b] {
            self.close(node).await.unwrap();
            assert_eq!(node.sockets(), 0, "sockets on {}", node.name);
            assert!(!node.host.has_job(self.guest), "a job on {}", node.name);
        }
        let (home, other) = match verdict {
            Verdict::Ran => (&self.b, &self.a),
            Verdict::NeverRan | Verdict::Unspecified => (&self.a, &self.b),
        };
        assert!(home.host.look(self.guest).is_some(), "the guest is on {}", home.name);
        assert!(other.host.look(self.guest).is_none(), "nothing is on {}", other.name);
        self.holds();
    }

    /// At most one copy ran, at every moment.
    pub(crate) fn holds(&self) {
        assert!(self.world.violations().is_empty(), "{:?}", self.world.violations());
    }

    /// Another life of the guest on a host, by whatever way it came there.
    pub(crate) async fn another_life(&self, node: &Node, guest: &SimGuest) {
        use drover_agent::hypervisor::{Hypervisor, StopReason};
        node.host.kill(self.guest, StopReason::Destroyed);
        node.host.undefine(self.guest).await.unwrap();
        node.host.add(guest).unwrap();
    }

    pub(crate) fn runs_on(&self) -> Vec<String> {
        self.world.running(self.guest)
    }

    pub(crate) fn autostart(&self, node: &Node) -> bool {
        node.host.look(self.guest).unwrap().autostart
    }
}

pub(crate) fn journal_state(status: &MigrationStatus) -> JournalState {
    status
        .journal
        .as_ref()
        .map_or(JournalState::Unspecified, JournalRecord::state)
}

pub(crate) fn reason<T: std::fmt::Debug>(result: Result<T, Failure>) -> Reason {
    let failure = result.expect_err("it should have been refused");
    assert!(failure.is_answered(), "{failure:?}");
    failure.reason
}
