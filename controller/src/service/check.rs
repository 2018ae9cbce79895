//! CheckMigration: the checks of Validate for one guest and many destinations, as data.

use drover_proto::failure::Failure;
use drover_proto::ids::{GuestId, HostId};
use drover_proto::overrides::Overrides;
use drover_proto::v1::{Check, CheckMigrationRequest, CheckMigrationResponse, CheckResult, DestinationChecks};
use futures::{StreamExt, stream};

use super::Api;
use super::validation::Fields;
use crate::phases::{examine, refuse_unmade};

/// So many destinations at once: each writes probe files at the source.
const AT_ONCE: usize = 4;

/// At most so many destinations in one request.
const MOST_DESTINATIONS: usize = 1000;

impl Api {
    pub(super) async fn check(&self, request: CheckMigrationRequest) -> Result<CheckMigrationResponse, Failure> {
        let mut fields = Fields::default();
        let guest = fields.required("guest_uuid", &request.guest_uuid, str::parse::<GuestId>);
        let source = fields.optional("source_host", &request.source_host, HostId::from_resource_name);
        let mut destinations = Vec::new();
        if request.destination_hosts.len() > MOST_DESTINATIONS {
            fields.bad("destination_hosts", format!("at most {MOST_DESTINATIONS}"));
        }
        for name in request.destination_hosts.iter().take(MOST_DESTINATIONS) {
            destinations.extend(fields.required("destination_hosts", name, HostId::from_resource_name));
        }
        if let Some(policy) = &request.policy {
            fields.policy("policy", policy);
        }
        let overrides = fields.overrides("destination_overrides", request.destination_overrides.as_ref());
        fields.check()?;
        refuse_unmade(request.policy.as_ref())?;
        let Some(guest) = guest else {
            return Err(Failure::invalid("guest_uuid", "is required"));
        };

        self.office.fence()?;
        let source = self.source_to_check(guest, source, &destinations).await?;
        if destinations.is_empty() {
            let others = self.all_hosts().await?.into_iter().map(|host| host.id);
            destinations = others.filter(|host| *host != source).collect();
        }
        self.refuse_misfits("destination_overrides", guest, &source, &overrides)
            .await?;
        let one = |destination| self.check_one(guest, source.clone(), destination, &overrides);
        let checks = stream::iter(destinations).map(one);
        Ok(CheckMigrationResponse {
            destinations: checks.buffered(AT_ONCE).collect().await,
        })
    }

    async fn source_to_check(
        &self,
        guest: GuestId,
        source: Option<HostId>,
        destinations: &[HostId],
    ) -> Result<HostId, Failure> {
        match (source, destinations) {
            (Some(source), _) => Ok(self.host(&source).await?.id),
            (None, [only]) => self.find_source(guest, only).await,
            // With several destinations none of them is the one where the guest must not be.
            (None, _) => {
                let hosts: Vec<HostId> = self.all_hosts().await?.into_iter().map(|host| host.id).collect();
                let found = crate::inventory::find(&self.agents, &hosts, guest).await;
                match found.on.as_slice() {
                    [only] => Ok(only.clone()),
                    _ => Err(Failure::invalid(
                        "source_host",
                        "the guest is not on exactly one host: name it",
                    )),
                }
            }
        }
    }

    async fn check_one(
        &self,
        guest: GuestId,
        source: HostId,
        destination: HostId,
        overrides: &Overrides,
    ) -> DestinationChecks {
        let name = destination.resource_name();
        let examined = async {
            if source == destination {
                return Err(Failure::invalid("destination_hosts", "the guest is there already"));
            }
            let cordoned = self.host(&destination).await?.cordoned;
            let (from, to) = (self.agents.of(&source).await?, self.agents.of(&destination).await?);
            Ok((cordoned, examine(guest, overrides, &from, &to).await?))
        };
        match examined.await {
            Ok((cordoned, mut examined)) => {
                if cordoned {
                    examined.checks.push(check(
                        "cordoned",
                        CheckResult::Failed,
                        "the host is cordoned".to_owned(),
                    ));
                }
                let acceptable = examined.refusal.is_none() && !cordoned;
                DestinationChecks {
                    destination_host: name,
                    acceptable,
                    checks: examined.checks,
                    estimate: None,
                }
            }
            Err(failure) => {
                let checks = vec![check("reachable", CheckResult::NotChecked, failure.to_string())];
                DestinationChecks {
                    destination_host: name,
                    acceptable: false,
                    checks,
                    estimate: None,
                }
            }
        }
    }
}

fn check(id: &str, result: CheckResult, found: String) -> Check {
    Check {
        id: id.to_owned(),
        result: result.into(),
        found,
        remedy: String::new(),
    }
}
