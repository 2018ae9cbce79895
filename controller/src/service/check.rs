//! CheckMigration: the checks of Validate for one guest and many destinations, as data. What stands in the way of one
//! destination, also that it does not answer, is a failed check of it; an error is only a request that makes no sense.

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::{GuestId, HostId, MigrationId};
use drover_proto::overrides::Overrides;
use drover_proto::v1::{
    Check, CheckMigrationRequest, CheckMigrationResponse, CheckResult, DestinationChecks, EstimateView, HostState,
    MigrationPolicy,
};

use super::validation::Fields;
use super::{Api, errors, to_the_end};
use crate::agents::Agent;
use crate::phases::{Examined, Source, Thorough, Wanted, absent, refuse_unmade};
use crate::policy::with_defaults;

/// At most so many destinations in one request.
const MOST_DESTINATIONS: usize = 1000;

/// A destination, or why it is not asked.
struct Candidate {
    host: HostId,
    cordoned: bool,
    agent: Result<Agent, Failure>,
}

/// A request whose fields are good.
struct Question {
    guest: GuestId,
    source: Option<HostId>,
    /// Empty: all others.
    destinations: Vec<HostId>,
    overrides: Overrides,
    policy: MigrationPolicy,
    estimates: EstimateView,
}

impl Api {
    /// Carried out to its end, also where the caller goes away: probe files are removed by the one who asked for them.
    pub(super) async fn check(&self, request: CheckMigrationRequest) -> Result<CheckMigrationResponse, Failure> {
        let api = self.clone();
        to_the_end(async move { api.check_all(request).await }).await
    }

    async fn check_all(&self, request: CheckMigrationRequest) -> Result<CheckMigrationResponse, Failure> {
        let Question {
            guest,
            source,
            mut destinations,
            overrides,
            policy,
            estimates,
        } = read(&request, &self.policy)?;
        self.office.fence()?;
        let source = self.source_to_check(guest, source, &destinations).await?;
        if destinations.is_empty() {
            let others = self.all_hosts().await?.into_iter().map(|host| host.id);
            destinations = others.filter(|host| *host != source).collect();
        }
        self.refuse_misfits("destination_overrides", guest, &source, &overrides)
            .await?;
        let mut candidates = Vec::with_capacity(destinations.len());
        for host in destinations {
            candidates.push(self.candidate(host, &source).await);
        }
        let wanted = Wanted::new(&overrides, Some(&policy));
        let mut destinations = self.examine(guest, wanted, estimates, &source, candidates).await;
        let under_way = self.ledger.store.unfinished_of(guest).await.map_err(errors::store)?;
        if let Some(id) = under_way {
            destinations.iter_mut().for_each(|one| tell_under_way(one, id));
        }
        Ok(CheckMigrationResponse {
            destinations,
            estimate_view: estimates.into(),
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
            (None, [only]) => self.find_source(guest, Some(only)).await,
            // With several destinations none of them is the one where the guest must not be.
            (None, _) => self.find_source(guest, None).await,
        }
    }

    async fn candidate(&self, host: HostId, source: &HostId) -> Candidate {
        let unusable = |failure| Candidate {
            host: host.clone(),
            cordoned: false,
            agent: Err(failure),
        };
        if host == *source {
            let why = format!("the guest is on {host} already");
            return unusable(Failure::new(Reason::GuestExists, why));
        }
        let cordoned = match self.host(&host).await {
            Ok(record) => record.cordoned,
            Err(failure) => return unusable(failure),
        };
        let agent = match self.registry.state(&host) {
            HostState::Up | HostState::Unspecified => self.agents.of(&host).await,
            HostState::Silent => Err(Failure::new(
                Reason::HostUnreachable,
                format!("the agent of {host} is silent"),
            )),
        };
        Candidate { host, cordoned, agent }
    }

    async fn examine(
        &self,
        guest: GuestId,
        wanted: Wanted<'_>,
        estimates: EstimateView,
        source: &HostId,
        candidates: Vec<Candidate>,
    ) -> Vec<DestinationChecks> {
        let agents: Vec<Agent> = candidates.iter().filter_map(|one| one.agent.clone().ok()).collect();
        let mut examined = match self.ask(guest, wanted, estimates, source, agents).await {
            Ok(examined) => examined.into_iter(),
            Err(failure) => {
                let failed = |one: &Candidate| told(&one.host, one.cordoned, Err(failure.clone()));
                return candidates.iter().map(failed).collect();
            }
        };
        let answers = candidates.into_iter().map(|one| {
            let examined = one.agent.and_then(|_| {
                examined
                    .next()
                    .unwrap_or_else(|| Err(Failure::internal("it was not asked")))
            });
            told(&one.host, one.cordoned, examined)
        });
        answers.collect()
    }

    async fn ask(
        &self,
        guest: GuestId,
        wanted: Wanted<'_>,
        estimates: EstimateView,
        source: &HostId,
        destinations: Vec<Agent>,
    ) -> Result<Vec<Result<Examined, Failure>>, Failure> {
        let agent = self.agents.of(source).await?;
        let Some(found) = Source::look(guest, wanted, &agent).await? else {
            return Ok(destinations.iter().map(|_| Ok(absent(guest, &agent))).collect());
        };
        Ok(match estimates {
            EstimateView::None => found.examine(destinations).await,
            EstimateView::Full | EstimateView::Unspecified => {
                found.estimated(destinations, &self.estimates, Thorough::Looks).await
            }
        })
    }
}

fn read(request: &CheckMigrationRequest, defaults: &MigrationPolicy) -> Result<Question, Failure> {
    let mut fields = Fields::default();
    let guest = fields.required("guest_uuid", &request.guest_uuid, str::parse::<GuestId>);
    let source = fields.optional("source_host", &request.source_host, HostId::from_resource_name);
    if request.destination_hosts.len() > MOST_DESTINATIONS {
        fields.bad("destination_hosts", format!("at most {MOST_DESTINATIONS}"));
    }
    let mut destinations: Vec<HostId> = Vec::new();
    for name in request.destination_hosts.iter().take(MOST_DESTINATIONS) {
        let read = fields.required("destination_hosts", name, HostId::from_resource_name);
        destinations.extend(read.filter(|host| !destinations.contains(host)));
    }
    if let Some(policy) = &request.policy {
        fields.policy("policy", policy, defaults);
    }
    let overrides = fields.overrides("destination_overrides", request.destination_overrides.as_ref());
    let estimates = match EstimateView::try_from(request.estimate_view) {
        Ok(EstimateView::None) => EstimateView::None,
        Ok(EstimateView::Full | EstimateView::Unspecified) => EstimateView::Full,
        Err(_) => {
            fields.bad("estimate_view", "is a value that this version does not know");
            EstimateView::Full
        }
    };
    fields.check()?;
    refuse_unmade(request.policy.as_ref())?;
    let guest = guest.ok_or_else(|| Failure::invalid("guest_uuid", "is required"))?;
    Ok(Question {
        guest,
        source,
        destinations,
        overrides,
        policy: with_defaults(request.policy.as_ref(), defaults),
        estimates,
    })
}

/// One destination's table.
fn told(host: &HostId, cordoned: bool, examined: Result<Examined, Failure>) -> DestinationChecks {
    let (mut checks, disks, estimate, refused) = match examined {
        Ok(examined) => {
            let refused = examined.refusal.is_some();
            (examined.checks, examined.disks, examined.estimate, refused)
        }
        Err(failure) => (vec![unanswered(host, &failure)], Vec::new(), None, true),
    };
    if cordoned {
        let remedy = format!("`drover host uncordon {host}`, or choose another host");
        checks.insert(0, check("cordoned", "the host is cordoned", remedy));
    }
    DestinationChecks {
        destination_host: host.resource_name(),
        acceptable: !refused && !cordoned,
        checks,
        estimate,
        disks,
    }
}

/// What its own migration does to a guest is no leftover, and nobody is to clear it away.
fn tell_under_way(destination: &mut DestinationChecks, id: MigrationId) {
    for check in &mut destination.checks {
        let by_migration = ["guest-idle", "guest-state", "uuid-free", "name-free"].contains(&check.id.as_str());
        if by_migration && check.result() != CheckResult::Passed {
            check.remedy = "see `no-migration`".to_owned();
        }
    }
    let found = format!("migration {id} of this guest is under way");
    let remedy = format!(
        "wait for it (`drover migration watch {id}`) or cancel it (`drover migration cancel {id}`); leave its job and \
         its copy alone"
    );
    destination.checks.insert(0, check("no-migration", &found, remedy));
    destination.acceptable = false;
}

/// What is not known of a host because somebody did not answer.
fn unanswered(host: &HostId, failure: &Failure) -> Check {
    let id = if failure.reason == Reason::GuestExists {
        "uuid-free"
    } else {
        "agents"
    };
    let remedy = failure.remedy.clone().unwrap_or_else(|| match &failure.host {
        Some(silent) => format!("see why the agent of {silent} does not answer"),
        None => format!("see `drover host list` for {host}"),
    });
    check(id, &failure.message, remedy)
}

fn check(id: &str, found: &str, remedy: String) -> Check {
    Check {
        id: id.to_owned(),
        result: CheckResult::Failed.into(),
        found: found.to_owned(),
        remedy,
    }
}
