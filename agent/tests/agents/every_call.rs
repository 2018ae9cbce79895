//! Every call that changes something, at every point of a migration: twice, late and out of order. What was done is
//! not done again, what was undone is refused, and whatever came in between, the migration comes to a good end.

use drover_agent::hypervisor::{GuestState, Incarnation as Life};
use drover_agent::sim::SimGuest;
use drover_proto::agent::v1::*;
use drover_proto::authorization::TABLE;
use drover_proto::failure::{Failure, Reason};
use futures::StreamExt;

use crate::node::Node;
use crate::scene::{Ready, Scene, journal_state};

/// A call that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    WriteProbes,
    RemoveProbes,
    Begin,
    Prepare,
    Start,
    Adjust,
    HandOver,
    Finish,
    HandOverGuest,
    Abort,
    Revoke,
    SettleSource(Verdict),
    SettleDestination(Verdict),
    CloseSource,
    CloseDestination,
}

const ALL: [Step; 17] = [
    Step::WriteProbes,
    Step::RemoveProbes,
    Step::Begin,
    Step::Prepare,
    Step::Start,
    Step::Adjust,
    Step::HandOver,
    Step::Finish,
    Step::HandOverGuest,
    Step::Abort,
    Step::Revoke,
    Step::SettleSource(Verdict::NeverRan),
    Step::SettleSource(Verdict::Ran),
    Step::SettleDestination(Verdict::NeverRan),
    Step::SettleDestination(Verdict::Ran),
    Step::CloseSource,
    Step::CloseDestination,
];

/// Calls that change nothing.
const READING: [&str; 11] = [
    "AgentService/GetAgentStatus",
    "AgentService/InspectHost",
    "AgentService/ListGuests",
    "AgentService/InspectGuest",
    "AgentService/CheckIncoming",
    "AgentService/ReadStorageProbes",
    "AgentService/ProbePeer",
    "AgentService/SampleGuest",
    "PeerService/MeasureLink",
    "AgentService/WatchOutgoing",
    "AgentService/GetMigrationStatus",
];

const THERE: [Step; 9] = [
    Step::WriteProbes,
    Step::RemoveProbes,
    Step::Begin,
    Step::Prepare,
    Step::Start,
    Step::SettleSource(Verdict::Ran),
    Step::SettleDestination(Verdict::Ran),
    Step::CloseSource,
    Step::CloseDestination,
];

const BACK: [Step; 8] = [
    Step::Begin,
    Step::Prepare,
    Step::Abort,
    Step::Revoke,
    Step::SettleSource(Verdict::NeverRan),
    Step::SettleDestination(Verdict::NeverRan),
    Step::CloseSource,
    Step::CloseDestination,
];

impl Step {
    fn rpc(self) -> &'static str {
        match self {
            Self::WriteProbes => "AgentService/WriteStorageProbes",
            Self::RemoveProbes => "AgentService/RemoveStorageProbes",
            Self::Begin => "AgentService/BeginOutgoing",
            Self::Prepare => "AgentService/PrepareIncoming",
            Self::Start => "AgentService/StartMigrate",
            Self::Adjust => "AgentService/AdjustOutgoing",
            Self::HandOver => "AgentService/HandOver",
            Self::Finish => "AgentService/FinishIncoming",
            Self::HandOverGuest => "PeerService/HandOverGuest",
            Self::Abort => "AgentService/AbortOutgoing",
            Self::Revoke => "AgentService/RevokeIncoming",
            Self::SettleSource(_) => "AgentService/SettleOutgoing",
            Self::SettleDestination(_) => "AgentService/SettleIncoming",
            Self::CloseSource | Self::CloseDestination => "AgentService/CloseMigration",
        }
    }

    /// What an undo refuses from then on, and how.
    fn refused_after_the_undo(self) -> Option<Reason> {
        match self {
            Self::Begin | Self::Prepare | Self::Start | Self::Adjust | Self::HandOver | Self::Finish => {
                Some(Reason::Tombstoned)
            }
            Self::HandOverGuest => Some(Reason::NeverRan),
            Self::WriteProbes
            | Self::RemoveProbes
            | Self::Abort
            | Self::Revoke
            | Self::SettleSource(_)
            | Self::SettleDestination(_)
            | Self::CloseSource
            | Self::CloseDestination => None,
        }
    }
}

#[test]
fn every_rpc_of_an_agent_is_listed() {
    // The last one means something in post-copy only: `reopened` repeats it.
    let others = READING.into_iter().chain(["PeerService/ReopenStream"]);
    let listed: Vec<_> = ALL.iter().map(|step| step.rpc()).chain(others).collect();
    for (path, _) in TABLE {
        if let Some(rpc) = path.strip_prefix("/drover.agent.v1.") {
            assert!(
                listed.contains(&rpc),
                "{rpc} is neither said to change something nor to only read"
            );
        }
    }
    for rpc in listed {
        assert!(
            TABLE.iter().any(|(path, _)| path.ends_with(rpc)),
            "there is no {rpc} any more"
        );
    }
}

/// What is true of both hosts.
#[derive(Debug, PartialEq)]
struct World {
    hosts: Vec<HostWorld>,
    running: Vec<String>,
}

#[derive(Debug, PartialEq)]
struct HostWorld {
    journal: Option<JournalRecord>,
    ended: bool,
    /// State, whether it is persistent, autostart, life.
    guest: Option<(GuestState, bool, bool, Option<Life>)>,
    job: bool,
    sockets: usize,
}

struct Run {
    scene: Scene,
    model: SimGuest,
    images: tempfile::TempDir,
    begun: Option<BeginOutgoingResponse>,
    prepared: PrepareIncomingResponse,
    probes: Vec<StorageProbe>,
}

impl Run {
    async fn new() -> Self {
        let images = tempfile::tempdir().unwrap();
        let image = images.path().join("web.raw");
        std::fs::write(&image, b"image").unwrap();
        let model = SimGuest {
            memory_mib: 1,
            autostart: true,
            disks: vec![image.to_str().unwrap().to_owned()],
            ..SimGuest::named("web")
        };
        Self {
            scene: Scene::new(model.clone()).await,
            model,
            images,
            begun: None,
            prepared: PrepareIncomingResponse {
                ticket: vec![7; 32].into(),
                ..Default::default()
            },
            probes: Vec::new(),
        }
    }

    /// What Begin gave, or would have given.
    fn begun(&self) -> BeginOutgoingResponse {
        let xml = self.model.xml();
        let mut likely = BeginOutgoingResponse {
            inactive_xml: xml.clone(),
            xml,
            guest_name: self.model.name.clone(),
            autostart_before: true,
            ..Default::default()
        };
        likely.set_state_before(LibvirtState::Running);
        self.begun.clone().unwrap_or(likely)
    }

    async fn make(&mut self, step: Step) -> Result<(), Failure> {
        let (fence, migration) = (self.scene.fence(), self.scene.reference());
        let scene = &self.scene;
        match step {
            Step::WriteProbes => {
                let guest_uuid = scene.guest.to_string();
                let request = WriteStorageProbesRequest { fence, guest_uuid };
                let written = scene.ask_a().write_storage_probes(request).await?.into_inner();
                self.probes.extend(written.probes);
            }
            Step::RemoveProbes => {
                let probes = self.probes.clone();
                let request = RemoveStorageProbesRequest { fence, probes };
                scene.ask_a().remove_storage_probes(request).await?;
            }
            Step::Begin => self.begun = Some(scene.begin().await?),
            Step::Prepare => self.prepared = scene.prepare(&self.begun()).await?,
            Step::Start => {
                let (begun, prepared) = (self.begun(), self.prepared.clone());
                scene.send(&Ready { begun, prepared }).await?;
            }
            Step::Adjust => {
                let policy = TransferPolicy {
                    pause_and_finish: true,
                    revision: 1,
                    ..TransferPolicy::default()
                };
                scene.adjust(policy).await?;
            }
            Step::HandOver => drop(scene.hand_over().await?),
            Step::Finish => {
                let request = FinishIncomingRequest {
                    fence,
                    migration,
                    runs: None,
                };
                scene.ask_b().finish_incoming(request).await?;
            }
            Step::HandOverGuest => {
                let request = HandOverGuestRequest {
                    migration_id: scene.migration.to_string(),
                    attempt: scene.attempt,
                    ticket: self.prepared.ticket.clone(),
                    cookie: Vec::new().into(),
                    ..HandOverGuestRequest::default()
                };
                scene.peer_of_b("agent/a").hand_over_guest(request).await?;
            }
            Step::Abort => drop(scene.abort().await?),
            Step::Revoke => drop(scene.revoke().await?),
            Step::SettleSource(verdict) => drop(scene.settle_a(verdict).await?),
            Step::SettleDestination(verdict) => drop(scene.settle_b(verdict).await?),
            Step::CloseSource => scene.close(&scene.a).await?,
            Step::CloseDestination => scene.close(&scene.b).await?,
        }
        Ok(())
    }

    /// Once nothing is under way.
    async fn world(&self) -> World {
        let scene = &self.scene;
        for node in [&scene.a, &scene.b, &scene.a] {
            scene.until_quiet(node).await;
        }
        let hosts = vec![self.host(&scene.a).await, self.host(&scene.b).await];
        let running = scene.runs_on();
        World { hosts, running }
    }

    async fn host(&self, node: &Node) -> HostWorld {
        let status = self.scene.status(node).await;
        let guest = node.host.look(self.scene.guest);
        HostWorld {
            journal: status.journal,
            ended: status.guest_ended,
            guest: guest.map(|guest| (guest.state, guest.persistent, guest.autostart, guest.incarnation)),
            job: node.host.has_job(self.scene.guest),
            sockets: node.sockets(),
        }
    }

    /// The way a controller does it, from whatever there is; then nothing may be left.
    async fn come_to_an_end(&mut self) {
        self.make(Step::RemoveProbes).await.unwrap();
        let scene = &self.scene;
        let mut tombstoned = false;
        let verdict = loop {
            let destination = scene.status(&scene.b).await;
            match journal_state(&destination) {
                JournalState::Ran => break Verdict::Ran,
                JournalState::Revoked | JournalState::Failed => break Verdict::NeverRan,
                JournalState::Unspecified if tombstoned => break Verdict::NeverRan,
                JournalState::Finishing | JournalState::Resuming => drop(scene.hand_over().await),
                JournalState::Unspecified
                | JournalState::Waiting
                | JournalState::Sending
                | JournalState::HandedOver => {
                    scene.abort().await.unwrap();
                    scene.revoke().await.unwrap();
                    tombstoned = true;
                }
            }
        };
        scene.rest(verdict).await;
        let home = if verdict == Verdict::Ran { &scene.b } else { &scene.a };
        assert_eq!(scene.runs_on(), [home.name]);
        assert!(scene.autostart(home));
        let images = std::fs::read_dir(self.images.path()).unwrap().count();
        assert_eq!(images, 1, "no probe file is left");
    }
}

/// The first steps of a way, then one call that does not belong there, or not again.
async fn disturbed(way: &'static [Step], done: usize, call: Step) {
    let mut run = Run::new().await;
    for step in &way[..done] {
        run.make(*step).await.unwrap();
        run.world().await;
    }
    let before = run.world().await;
    let answer = run.make(call).await;
    let after = run.world().await;
    let undone = way[..done].contains(&Step::Revoke);
    // A probe is another file each time; that none stays is looked at in the end.
    if way[..done].contains(&call) || done == way.len() {
        assert_eq!(before, after, "{call:?} again, or late, after {:?}", &way[..done]);
    }
    if let Some(reason) = call.refused_after_the_undo()
        && undone
    {
        let failure = answer.expect_err("it was undone");
        assert_eq!(failure.reason, reason, "{call:?} after {:?}", &way[..done]);
        assert_eq!(before, after, "{call:?} after {:?}", &way[..done]);
    }
    run.come_to_an_end().await;
}

async fn disturb_everywhere(way: &'static [Step]) {
    let cases = (0..=way.len()).flat_map(|done| ALL.map(|call| (done, call)));
    let runs = cases.map(|(done, call)| async move {
        let run = tokio::spawn(disturbed(way, done, call));
        run.await
            .map_err(|error| format!("{call:?} after {:?}: {error}", &way[..done]))
    });
    let failed: Vec<_> = futures::stream::iter(runs)
        .buffer_unordered(4)
        .filter_map(async |result| result.err())
        .collect()
        .await;
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_call_at_any_point_of_the_way_there() {
    disturb_everywhere(&THERE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_call_at_any_point_of_the_way_back() {
    disturb_everywhere(&BACK).await;
}

/// A controller that another one has followed is obeyed in nothing, whatever it asks for.
#[tokio::test(flavor = "multi_thread")]
async fn no_call_of_a_controller_out_of_office_does_anything() {
    // Authorised by its ticket alone: a guest must not be stranded by a take-over.
    let fenced = ALL.into_iter().filter(|step| *step != Step::HandOverGuest);
    for call in fenced {
        let mut run = Run::new().await;
        for step in &THERE[..4] {
            run.make(*step).await.unwrap();
        }
        run.scene.term = 9;
        for step in [Step::Begin, Step::Prepare] {
            run.make(step).await.unwrap();
        }
        run.scene.term = 8;
        let before = run.world().await;
        let refused = run.make(call).await.expect_err("it is out of office");
        assert_eq!(refused.reason, Reason::StaleTerm, "{call:?}");
        assert_eq!(run.world().await, before, "{call:?}");
        run.scene.term = 9;
        run.come_to_an_end().await;
    }
}
