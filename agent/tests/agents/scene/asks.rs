//! What a controller asks of the two agents of a scene, one call each.

use drover_proto::agent::v1::*;
use drover_proto::failure::Failure;

use super::{Ready, Scene};
use crate::node::Node;

impl Scene {
    pub(crate) async fn begin(&self) -> Result<BeginOutgoingResponse, Failure> {
        self.begin_with(self.policy).await
    }

    pub(crate) async fn begin_life(&self, incarnation: Option<Incarnation>) -> Result<BeginOutgoingResponse, Failure> {
        self.begin_so(incarnation, self.policy).await
    }

    pub(crate) async fn begin_with(&self, policy: TransferPolicy) -> Result<BeginOutgoingResponse, Failure> {
        let facts = self
            .ask_a()
            .inspect_guest(InspectGuestRequest {
                guest_uuid: self.guest.to_string(),
                destination_overrides: None,
            })
            .await?;
        self.begin_so(facts.into_inner().incarnation, policy).await
    }

    async fn begin_so(
        &self,
        incarnation: Option<Incarnation>,
        policy: TransferPolicy,
    ) -> Result<BeginOutgoingResponse, Failure> {
        let request = BeginOutgoingRequest {
            fence: self.fence(),
            migration: self.reference(),
            destination_host: format!("hosts/{}", self.b.name),
            incarnation,
            policy: Some(policy),
            destination_overrides: self.overrides.clone(),
            copy_disks: self.copy_disks.clone(),
            delete_source: self.delete_source,
            offline: self.offline.clone(),
        };
        Ok(self.ask_a().begin_outgoing(request).await?.into_inner())
    }

    pub(crate) async fn prepare(&self, begun: &BeginOutgoingResponse) -> Result<PrepareIncomingResponse, Failure> {
        let request = PrepareIncomingRequest {
            fence: self.fence(),
            migration: self.reference(),
            source_host: format!("hosts/{}", self.a.name),
            guest_name: begun.guest_name.clone(),
            xml: begun.xml.clone(),
            inactive_xml: begun.inactive_xml.clone(),
            cookie: begun.cookie.clone(),
            state_before: begun.state_before,
            autostart_before: begun.autostart_before,
            policy: Some(self.policy),
            images: begun.images.clone(),
            offline: self.offline.as_ref().map(|_| OfflineArrival {
                files: begun.files.clone(),
            }),
        };
        Ok(self.ask_b().prepare_incoming(request).await?.into_inner())
    }

    pub(crate) async fn send(&self, ready: &Ready) -> Result<(), Failure> {
        self.send_to(ready, vec![self.b.address()], String::new()).await
    }

    /// Sends to these addresses; the last one is where b is managed.
    pub(crate) async fn send_to(
        &self,
        ready: &Ready,
        addresses: Vec<String>,
        management: String,
    ) -> Result<(), Failure> {
        let request = StartMigrateRequest {
            fence: self.fence(),
            migration: self.reference(),
            ticket: ready.prepared.ticket.clone(),
            cookie: ready.prepared.cookie.clone(),
            destination_addresses: addresses,
            destination_management_address: management,
            policy: None,
            ..StartMigrateRequest::default()
        };
        self.ask_a().start_migrate(request).await?;
        Ok(())
    }

    pub(crate) async fn status(&self, node: &Node) -> MigrationStatus {
        let request = GetMigrationStatusRequest {
            migration: self.reference(),
        };
        self.ask(node).get_migration_status(request).await.unwrap().into_inner()
    }

    pub(crate) async fn adjust(&self, policy: TransferPolicy) -> Result<(), Failure> {
        let request = AdjustOutgoingRequest {
            fence: self.fence(),
            migration: self.reference(),
            policy: Some(policy),
        };
        self.ask_a().adjust_outgoing(request).await?;
        Ok(())
    }

    pub(crate) async fn abort(&self) -> Result<MigrationStatus, Failure> {
        let request = AbortOutgoingRequest {
            fence: self.fence(),
            migration: self.reference(),
            reason: "test".to_owned(),
        };
        Ok(self.ask_a().abort_outgoing(request).await?.into_inner())
    }

    pub(crate) async fn revoke(&self) -> Result<MigrationStatus, Failure> {
        let request = RevokeIncomingRequest {
            fence: self.fence(),
            migration: self.reference(),
        };
        Ok(self.ask_b().revoke_incoming(request).await?.into_inner())
    }

    pub(crate) async fn hand_over(&self) -> Result<HandOverResponse, Failure> {
        let request = HandOverRequest {
            fence: self.fence(),
            migration: self.reference(),
        };
        Ok(self.ask_a().hand_over(request).await?.into_inner())
    }

    pub(crate) async fn settle_a(&self, verdict: Verdict) -> Result<MigrationStatus, Failure> {
        let mut request = SettleOutgoingRequest {
            fence: self.fence(),
            migration: self.reference(),
            verdict: 0,
            fenced: false,
        };
        request.set_verdict(verdict);
        Ok(self.ask_a().settle_outgoing(request).await?.into_inner())
    }

    pub(crate) async fn settle_b(&self, verdict: Verdict) -> Result<MigrationStatus, Failure> {
        let mut request = SettleIncomingRequest {
            fence: self.fence(),
            migration: self.reference(),
            verdict: 0,
            fenced: false,
            definition: None,
        };
        request.set_verdict(verdict);
        Ok(self.ask_b().settle_incoming(request).await?.into_inner())
    }

    pub(crate) async fn close(&self, node: &Node) -> Result<(), Failure> {
        let request = CloseMigrationRequest {
            fence: self.fence(),
            migration: self.reference(),
        };
        self.ask(node).close_migration(request).await?;
        Ok(())
    }
}
