//! Tells the controller that this host is here, and which migrations are unfinished: at the start, then at every
//! heartbeat. The agent works without a controller: what fails here is tried again.
//!
//! The answer tells what an operator's word has decided while this host was away. It is adopted before the agent
//! serves: [`Registration::first_word`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use drover_proto::failure::Failure;
use drover_proto::identity::Identity;
use drover_proto::ids::MigrationId;
use drover_proto::time::{std_duration, timestamp};
use drover_proto::tls::{Tls, TlsError};
use drover_proto::v1::host_service_client::HostServiceClient;
use drover_proto::v1::{AdoptedResolution, Host, HostResolution, RegisterHostRequest, ResolvedOwner};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::jobs::Jobs;
use crate::jobs::fence::Fence;
use crate::journal::{Term, Verdict};
use crate::service::unfinished;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(10);
/// What a controller may ask for.
const HEARTBEAT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
/// So long an agent with unfinished migrations waits for a controller before it serves. Afterwards it serves all the
/// same: a word was acted upon only where the other agent has it in its journal, and that one hands nothing over any
/// more; a guest that stands still must not wait for a controller that is away.
const FIRST_WORD: Duration = Duration::from_secs(3);
const FIRST_WORD_PAUSE: Duration = Duration::from_millis(200);
/// More resolutions in one answer are not read.
const MOST_RESOLUTIONS: usize = 1024;

/// The agent's word to its controller.
pub struct Registration {
    client: HostServiceClient<Channel>,
    controller: String,
    jobs: Arc<Jobs>,
    about: Arc<dyn Fn() -> Host + Send + Sync>,
    /// Adopted resolutions that the controller has taken note of.
    told: HashSet<MigrationId>,
}

/// What came of a registration.
struct Heard {
    /// When to call again.
    next: Duration,
    /// Nothing that was decided is left to adopt.
    all_adopted: bool,
}

impl Registration {
    pub fn new(
        tls: &Tls,
        controller: String,
        jobs: Arc<Jobs>,
        about: Arc<dyn Fn() -> Host + Send + Sync>,
    ) -> Result<Self, TlsError> {
        let channel = drover_proto::channel::channel(tls, &controller, Identity::Controller)?;
        Ok(Self {
            client: HostServiceClient::new(channel),
            controller,
            jobs,
            about,
            told: HashSet::new(),
        })
    }

    /// Before the agent serves: where migrations are unfinished, what was decided meanwhile is asked for and adopted.
    pub async fn first_word(&mut self) {
        if !self.jobs.has_unfinished() {
            return;
        }
        let asking = async {
            while !self.register().await.is_ok_and(|heard| heard.all_adopted) {
                tokio::time::sleep(FIRST_WORD_PAUSE).await;
            }
        };
        if tokio::time::timeout(FIRST_WORD, asking).await.is_err() {
            tracing::warn!(
                controller = self.controller,
                "there are unfinished migrations, and the controller does not answer: serving all the same"
            );
        }
    }

    /// Goes on until it is told to stop.
    pub async fn keep(mut self, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        let mut registered = false;
        loop {
            let next = match self.register().await {
                Ok(Heard { next, .. }) => {
                    if !registered {
                        tracing::info!(controller = self.controller, "registered");
                    }
                    (registered, pause) = (true, FIRST_PAUSE);
                    next
                }
                Err(error) => {
                    // Said once, not at every try.
                    if registered || pause == FIRST_PAUSE {
                        tracing::warn!(controller = self.controller, %error, "the controller did not take the registration");
                    }
                    registered = false;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    pause
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep(next)).await.is_none() {
                return;
            }
        }
    }

    async fn register(&mut self) -> Result<Heard, Failure> {
        let told = self.jobs.adopted();
        let news = told.iter().filter(|(id, _)| !self.told.contains(id));
        let adopted_resolutions = news.map(|(id, adopted)| AdoptedResolution {
            migration: id.resource_name(),
            adopt_time: Some(timestamp(adopted.at)),
            copy_ran: adopted.copy_ran,
        });
        let mut request = tonic::Request::new(RegisterHostRequest {
            host: Some((self.about)()),
            unfinished_journals: unfinished(&self.jobs),
            adopted_resolutions: adopted_resolutions.collect(),
        });
        request.set_timeout(LIMIT);
        let response = self.client.register_host(request).await?.into_inner();
        self.obey(response.term, &response.store_instance).await;
        self.told.extend(told.into_iter().map(|(id, _)| id));
        let resolutions = &response.resolutions[..response.resolutions.len().min(MOST_RESOLUTIONS)];
        let mut all_adopted = true;
        for resolution in resolutions {
            all_adopted &= self.adopt(resolution).await;
        }
        let wanted = response.heartbeat_interval.as_ref().and_then(std_duration);
        let wanted = wanted.unwrap_or(Duration::from_secs(10));
        // What was adopted is told at once.
        let next = if resolutions.is_empty() {
            wanted
        } else {
            *HEARTBEAT.start()
        };
        Ok(Heard {
            next: next.clamp(*HEARTBEAT.start(), *HEARTBEAT.end()),
            all_adopted,
        })
    }

    /// A controller that was in office before must not command any more, also where the present one has nothing to say.
    async fn obey(&self, number: u64, store_instance: &str) {
        if number == 0 {
            return;
        }
        let term = Term {
            number,
            store_instance: store_instance.to_owned(),
        };
        match self.jobs.terms.obey(&term).await {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                controller = self.controller,
                term = number,
                "this controller is not in office"
            ),
            Err(error) => tracing::error!(%error, "the controller's term could not be written down"),
        }
    }

    /// What fails is tried again at the next heartbeat: the controller repeats it while the journal is open.
    async fn adopt(&self, resolution: &HostResolution) -> bool {
        let Some((fence, migration, verdict)) = read(resolution) else {
            tracing::error!(
                ?resolution,
                "the controller's word cannot be understood: nothing is adopted"
            );
            return false;
        };
        let jobs = Arc::clone(&self.jobs);
        let adopted = self
            .jobs
            .detached(async move { jobs.resolve(fence, migration, verdict).await });
        match adopted.await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(migration_id = %migration, %error, "an operator's word could not be adopted yet");
                false
            }
        }
    }
}

fn read(resolution: &HostResolution) -> Option<(Fence, MigrationId, Verdict)> {
    let verdict = match resolution.owner() {
        ResolvedOwner::Unspecified => return None,
        ResolvedOwner::Source => Verdict::NeverRan,
        ResolvedOwner::Destination => Verdict::Ran,
    };
    let fence = Fence {
        term: Term {
            number: resolution.term,
            store_instance: resolution.store_instance.clone(),
        },
        lease: 0,
    };
    let migration = MigrationId::from_resource_name(&resolution.migration).ok()?;
    Some((fence, migration, verdict))
}
