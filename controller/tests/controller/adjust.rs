//! Policies: defaults, refusals, and what is adjusted on the way.

use drover_controller::policy::PolicyDefaults;
use drover_proto::agent::v1::TransferPolicy;
use drover_proto::failure::{Failure, Reason};
use drover_proto::v1::watch_migration_response::Event;
use drover_proto::v1::{
    ActionRecord, AdjustAction, AdjustMigrationRequest, DeadlineAction, Migration, MigrationPhase, MigrationPolicy,
    MigrationState, WatchMigrationRequest,
};
use prost_types::Duration;
use tonic::Status;

use super::lab::{Lab, reason, wish};
use super::world::{Fault, until};

const ALICE: &str = "spiffe://drover.local/user/alice";

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

impl Lab {
    async fn adjust(&self, request: AdjustMigrationRequest) -> Result<Migration, Status> {
        Ok(self.migrations().adjust_migration(request).await?.into_inner())
    }

    async fn create_with(&self, policy: MigrationPolicy) -> Result<Migration, Status> {
        let mut wish = wish();
        wish.migration.as_mut().unwrap().policy = Some(policy);
        Ok(self.migrations().create_migration(wish).await?.into_inner())
    }

    /// What the source's agent keeps to.
    fn ordered(&self, name: &str) -> Option<TransferPolicy> {
        let id = name.trim_start_matches("migrations/");
        self.world.lock().hosts["host-1"].journals.get(id)?.policy
    }

    /// A migration that sends memory until the gate opens.
    async fn sending(&self) -> Migration {
        let created = self.create().await;
        self.world.called("WatchOutgoing", 1).await;
        created
    }
}

fn limit(name: &str, bytes: i64) -> AdjustMigrationRequest {
    AdjustMigrationRequest {
        name: name.to_owned(),
        bandwidth_limit_bytes_per_second: Some(bytes),
        ..AdjustMigrationRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_adjusted_is_in_force_when_the_answer_comes_and_in_the_record() {
    let lab = Lab::new().await;
    let created = lab.sending().await;
    let watch = WatchMigrationRequest {
        name: created.name.clone(),
        ..WatchMigrationRequest::default()
    };
    let mut watch = lab.migrations().watch_migration(watch).await.unwrap().into_inner();
    let all = AdjustMigrationRequest {
        max_downtime: seconds(2),
        deadline: seconds(3600),
        action: AdjustAction::PauseAndFinish.into(),
        ..limit(&created.name, 5 << 20)
    };
    let adjusted = lab.adjust(all).await.unwrap();
    let policy = lab.ordered(&created.name).unwrap();
    assert_eq!(policy.bandwidth_limit_bytes_per_second, 5 << 20);
    assert_eq!(policy.max_downtime, seconds(2));
    assert!(
        policy.deadline.unwrap().seconds >= 3600,
        "from the start of the transfer: {policy:?}"
    );
    assert!(policy.pause_and_finish);
    assert_eq!(adjusted.policy.as_ref().unwrap().max_downtime, seconds(2));
    assert!(adjusted.pause_and_finish_request_time.is_some());
    let names: Vec<_> = adjusted.actions.iter().map(|action| action.action.as_str()).collect();
    assert_eq!(names, ["max-downtime", "bandwidth", "deadline", "pause-and-finish"]);
    assert!(
        adjusted
            .actions
            .iter()
            .all(|action| action.actor == ALICE && action.time.is_some())
    );
    loop {
        let message = watch.message().await.unwrap().expect("it goes on");
        if let Some(Event::Changed(changed)) = message.event
            && changed.actions == adjusted.actions
        {
            break;
        }
    }
    lab.world.open_gate();
    let moved = lab.assert_moved(&created.name).await;
    assert_eq!(moved.actions, adjusted.actions);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_does_by_itself_is_in_the_record_once() {
    let lab = Lab::new().await;
    let created = lab.sending().await;
    let done = ActionRecord {
        time: Some(drover_proto::time::now()),
        action: "max-downtime".to_owned(),
        value: "100 ms".to_owned(),
        actor: "control-loop".to_owned(),
        ..ActionRecord::default()
    };
    let id = created.name.trim_start_matches("migrations/");
    let act = |state: &mut super::world::State| {
        let journal = state.host("host-1").journals.get_mut(id).unwrap();
        journal.actions.push(done.clone());
    };
    act(&mut lab.world.lock());
    until("it is told while it goes on", async || {
        lab.get(&created.name).await.actions == [done.clone()]
    })
    .await;
    lab.world.open_gate();
    assert_eq!(lab.assert_moved(&created.name).await.actions, [done]);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_transfer_it_is_written_down_and_in_force_from_the_start() {
    let lab = Lab::new().await;
    for method in ["InspectGuest", "PrepareIncoming"] {
        lab.world.hold(method);
        let before = lab.world.was_called(method);
        let mut wish = wish();
        wish.migration.as_mut().unwrap().source_host = "hosts/host-1".to_owned();
        let created = lab.migrations().create_migration(wish).await.unwrap().into_inner();
        lab.world.called(method, before + 1).await;
        lab.adjust(limit(&created.name, 7 << 20)).await.unwrap();
        lab.world.release(method);
        until("the transfer starts with it", async || {
            lab.ordered(&created.name)
                .is_some_and(|policy| policy.bandwidth_limit_bytes_per_second == 7 << 20)
        })
        .await;
        lab.cancel(&created.name).await;
        lab.assert_unmoved(&created.name, MigrationState::Cancelled).await;
    }
    assert_eq!(lab.world.was_called("AdjustOutgoing"), 0, "the start says it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_call_is_made_again() {
    for fault in [Fault::LoseRequest, Fault::LoseAnswer] {
        let lab = Lab::new().await;
        let created = lab.sending().await;
        lab.world.fault("AdjustOutgoing", fault);
        lab.adjust(limit(&created.name, 5 << 20)).await.unwrap();
        assert_eq!(
            lab.ordered(&created.name).unwrap().bandwidth_limit_bytes_per_second,
            5 << 20
        );
        lab.world.open_gate();
        assert_eq!(lab.assert_moved(&created.name).await.actions.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_did_not_hear_it_is_told_when_it_answers() {
    let lab = Lab::new().await;
    let created = lab.sending().await;
    lab.world.lock().away.insert("host-1".to_owned());
    let refused = lab.adjust(limit(&created.name, 5 << 20)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert_eq!(lab.get(&created.name).await.actions.len(), 1, "it is written down");
    lab.world.lock().away.clear();
    until("it is in force", async || {
        lab.ordered(&created.name).unwrap().bandwidth_limit_bytes_per_second == 5 << 20
    })
    .await;
    lab.world.open_gate();
    lab.assert_moved(&created.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_before_it_told_the_agent_tells_it_after_its_restart() {
    let mut lab = Lab::new().await;
    let created = lab.sending().await;
    lab.world.hold("AdjustOutgoing");
    let mut client = lab.migrations();
    let request = limit(&created.name, 5 << 20);
    let asking = tokio::spawn(async move { client.adjust_migration(request).await });
    lab.world.called("AdjustOutgoing", 1).await;
    lab.world.fault("AdjustOutgoing", Fault::LoseRequest);
    lab.kill();
    asking.await.unwrap().unwrap_err();
    lab.world.release("AdjustOutgoing");
    lab.start().await;
    until("it is in force", async || {
        lab.ordered(&created.name).unwrap().bandwidth_limit_bytes_per_second == 5 << 20
    })
    .await;
    lab.world.open_gate();
    lab.assert_moved(&created.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn adjusting_is_refused_where_it_makes_no_sense() {
    let lab = Lab::new().await;
    let created = lab.sending().await;
    let name = &created.name;
    let change = async |request| reason(&lab.adjust(request).await.unwrap_err());
    let nothing = AdjustMigrationRequest {
        name: name.clone(),
        ..AdjustMigrationRequest::default()
    };
    assert_eq!(change(nothing.clone()).await, Reason::InvalidArgument);
    let post_copy = AdjustMigrationRequest {
        action: AdjustAction::PostCopy.into(),
        ..nothing.clone()
    };
    assert_eq!(change(post_copy).await, Reason::MigrationState, "it was begun without");
    let other_etag = AdjustMigrationRequest {
        etag: "ffff".to_owned(),
        ..limit(name, 0)
    };
    assert_eq!(change(other_etag).await, Reason::EtagMismatch);
    let bad = AdjustMigrationRequest {
        max_downtime: seconds(61),
        deadline: seconds(0),
        action: 99,
        ..limit(name, 100)
    };
    let failure = Failure::from_status(&lab.adjust(bad).await.unwrap_err());
    let fields: Vec<_> = failure.fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(
        fields,
        ["max_downtime", "bandwidth_limit_bytes_per_second", "deadline", "action"]
    );
    assert_eq!(lab.world.was_called("AdjustOutgoing"), 0);

    lab.world.hold("SettleOutgoing");
    lab.world.open_gate();
    until("the guest has switched", async || {
        lab.get(name).await.guest_host == "hosts/host-2"
    })
    .await;
    assert_eq!(change(limit(name, 0)).await, Reason::TooLate);
    lab.world.release("SettleOutgoing");
    let moved = lab.assert_moved(name).await;
    assert_eq!(change(limit(name, 0)).await, Reason::MigrationState);
    assert_eq!(moved.actions, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_too_late_for_the_source_is_said_to_be() {
    let lab = Lab::new().await;
    let created = lab.sending().await;
    lab.world.fault("AdjustOutgoing", Fault::Refuse(Reason::TooLate));
    let refused = lab.adjust(limit(&created.name, 0)).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::TooLate);
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let actions = lab.get(&created.name).await.actions;
    assert!(actions[0].reason.contains("it came too late"), "{actions:?}");
    lab.world.open_gate();
    lab.assert_moved(&created.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_says_what_a_request_leaves_open() {
    let mut lab = Lab::new().await;
    lab.kill();
    lab.policy = PolicyDefaults {
        max_downtime: Some(std::time::Duration::from_secs(1)),
        deadline: Some(std::time::Duration::from_secs(600)),
        bandwidth: 9 << 20,
        parallel: 2,
        ..PolicyDefaults::default()
    };
    lab.start().await;
    let asked = MigrationPolicy {
        max_downtime: seconds(3),
        ..MigrationPolicy::default()
    };
    let created = lab.create_with(asked).await.unwrap();
    let policy = created.policy.unwrap();
    assert_eq!(
        (policy.max_downtime, policy.deadline, policy.on_deadline()),
        (seconds(3), seconds(600), DeadlineAction::Abort)
    );
    lab.world.called("WatchOutgoing", 1).await;
    let ordered = lab.ordered(&created.name).unwrap();
    assert_eq!(ordered.bandwidth_limit_bytes_per_second, 9 << 20);
    assert_eq!(ordered.parallel_connections, 2);
    lab.world.open_gate();
    lab.assert_moved(&created.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_is_refused_field_by_field() {
    let lab = Lab::new().await;
    let bad = MigrationPolicy {
        mode: 99,
        max_downtime: seconds(61),
        deadline: Some(Duration { seconds: -1, nanos: 0 }),
        on_deadline: 99,
        bandwidth_limit_bytes_per_second: 1000,
        parallel_connections: -1,
        compression: 99,
        transport: 99,
        priority: 101,
        ..MigrationPolicy::default()
    };
    let failure = Failure::from_status(&lab.create_with(bad).await.unwrap_err());
    let mut fields: Vec<_> = failure
        .fields
        .iter()
        .map(|(field, _)| field.trim_start_matches("migration.policy."))
        .collect();
    fields.sort_unstable();
    let all = [
        "bandwidth_limit_bytes_per_second",
        "compression",
        "deadline",
        "max_downtime",
        "mode",
        "on_deadline",
        "parallel_connections",
        "priority",
        "transport",
    ];
    assert_eq!(fields, all);
    let without_deadline = MigrationPolicy {
        on_deadline: DeadlineAction::Abort.into(),
        ..MigrationPolicy::default()
    };
    let failure = Failure::from_status(&lab.create_with(without_deadline).await.unwrap_err());
    assert_eq!(failure.fields[0].0, "migration.policy.on_deadline");
    let post_copy = MigrationPolicy {
        deadline: seconds(60),
        on_deadline: DeadlineAction::PostCopy.into(),
        allow_post_copy: Some(false),
        ..MigrationPolicy::default()
    };
    let refused = lab.create_with(post_copy).await.unwrap_err();
    let failure = Failure::from_status(&refused);
    assert_eq!(failure.fields[0].0, "migration.policy.on_deadline");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_keep_the_deadline_is_told_to_give_up() {
    let lab = Lab::new().await;
    lab.world.lock().timeless = true;
    let policy = MigrationPolicy {
        deadline: Some(Duration {
            seconds: 0,
            nanos: 1_000_000,
        }),
        ..MigrationPolicy::default()
    };
    let created = lab.create_with(policy).await.unwrap();
    let failed = lab.assert_unmoved(&created.name, MigrationState::Failed).await;
    let error = failed.error.unwrap();
    assert_eq!(error.reason, Reason::TransferDeadline.name());
    assert_eq!(error.phase(), MigrationPhase::Transfer);
}
