//! MigrationService: one method per RPC, each a few lines over the rest of this folder.

use drover_proto::failure::{Failure, Reason};
use drover_proto::serve::peer;
use drover_proto::trace::extract;
use drover_proto::v1::migration_service_server::MigrationService;
use drover_proto::v1::{self, ListMigrationsResponse};
use tonic::{Request, Response, Status};

use super::create::Asker;
use super::validation::migration_name;
use super::{Api, errors, to_the_end, watch};
use crate::ledger::Change;
use crate::progress;
use crate::saga::Position;
use crate::store::Record;
use crate::view;

#[tonic::async_trait]
impl MigrationService for Api {
    type WatchMigrationStream = watch::Stream;

    async fn check_migration(
        &self,
        request: Request<v1::CheckMigrationRequest>,
    ) -> Result<Response<v1::CheckMigrationResponse>, Status> {
        Ok(Response::new(self.check(request.into_inner()).await?))
    }

    async fn create_migration(
        &self,
        request: Request<v1::CreateMigrationRequest>,
    ) -> Result<Response<v1::Migration>, Status> {
        let asker = Asker {
            uri: peer(&request)?.identity.uri(&self.trust_domain),
            context: extract(request.metadata()),
        };
        let api = self.clone();
        let created = to_the_end(async move { api.create(request.into_inner(), asker).await });
        Ok(Response::new(created.await?))
    }

    async fn get_migration(
        &self,
        request: Request<v1::GetMigrationRequest>,
    ) -> Result<Response<v1::Migration>, Status> {
        let record = self.record(migration_name(&request.get_ref().name)?).await?;
        Ok(Response::new(self.shown(&record).await?))
    }

    async fn list_migrations(
        &self,
        request: Request<v1::ListMigrationsRequest>,
    ) -> Result<Response<ListMigrationsResponse>, Status> {
        Ok(Response::new(self.list(request.get_ref()).await?))
    }

    async fn watch_migration(
        &self,
        request: Request<v1::WatchMigrationRequest>,
    ) -> Result<Response<Self::WatchMigrationStream>, Status> {
        let request = request.into_inner();
        let id = migration_name(&request.name)?;
        Ok(Response::new(self.watch(id, &request.resume_token).await?))
    }

    async fn adjust_migration(
        &self,
        request: Request<v1::AdjustMigrationRequest>,
    ) -> Result<Response<v1::Migration>, Status> {
        let actor = peer(&request)?.identity.uri(&self.trust_domain);
        let api = self.clone();
        let adjusted = to_the_end(async move { api.adjust(request.into_inner(), actor).await });
        Ok(Response::new(adjusted.await?))
    }

    async fn cancel_migration(
        &self,
        request: Request<v1::CancelMigrationRequest>,
    ) -> Result<Response<v1::Migration>, Status> {
        let v1::CancelMigrationRequest { name, etag } = request.into_inner();
        let api = self.clone();
        let cancelled = to_the_end(async move {
            let record = api
                .change(&name, &etag, |record| Ok(progress::request_cancel(record)))
                .await?;
            api.executor.cancel(record.id);
            api.shown(&record).await
        });
        Ok(Response::new(cancelled.await?))
    }

    async fn retry_migration(
        &self,
        request: Request<v1::RetryMigrationRequest>,
    ) -> Result<Response<v1::Migration>, Status> {
        let v1::RetryMigrationRequest { name, etag } = request.into_inner();
        let before = self.record(migration_name(&name)?).await?;
        if before.position.is_final() {
            let message = format!("{} is at rest", before.id.resource_name());
            return Err(Failure::new(Reason::MigrationState, message).into());
        }
        let api = self.clone();
        let retried = to_the_end(async move {
            // One that waits for its next look is woken; one that is stuck goes back to its phase.
            let record = api.change(&name, &etag, |record| Ok(progress::retry(record))).await?;
            if matches!(record.position, Position::At(_)) {
                api.executor.take_up(record.id);
            }
            api.shown(&record).await
        });
        Ok(Response::new(retried.await?))
    }

    async fn resolve_migration(
        &self,
        request: Request<v1::ResolveMigrationRequest>,
    ) -> Result<Response<v1::Migration>, Status> {
        let operator = peer(&request)?.identity.uri(&self.trust_domain);
        let api = self.clone();
        let resolved = to_the_end(async move { api.resolve(request.into_inner(), operator).await });
        Ok(Response::new(resolved.await?))
    }
}

impl Api {
    /// Changes a record on somebody's wish, if it is the one that they have read and the wish makes sense.
    pub(super) async fn change(
        &self,
        name: &str,
        etag: &str,
        change: impl Fn(&mut Record) -> Result<Change, Failure> + Send + Sync,
    ) -> Result<Record, Failure> {
        let id = migration_name(name)?;
        tracing::Span::current().record("drover.migration.id", tracing::field::display(id));
        self.office.fence()?;
        self.record(id).await?;
        let mut refused = None;
        let changed = self.ledger.change(id, |record| {
            let known = etag.is_empty() || etag == view::etag(record);
            let change = if known {
                change(record)
            } else {
                Err(errors::etag_mismatch())
            };
            refused = change.as_ref().err().cloned();
            change.unwrap_or(Change::Leave)
        });
        let record = changed.await.map_err(|error| self.store_failed(error))?;
        match refused {
            Some(failure) => Err(failure),
            None => Ok(record),
        }
    }
}
