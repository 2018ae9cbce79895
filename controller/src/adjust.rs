//! What AdjustMigration makes of a record: a pure change, and when it makes no sense any more.

use std::time::{Duration, SystemTime};

use drover_proto::failure::{Failure, Reason};
use drover_proto::time::{proto_duration, timestamp};
use drover_proto::units::{duration_text, proto_duration_text, rate_text};
use drover_proto::v1::{ActionRecord, DeadlineAction};

use crate::phases::merge_actions;
use crate::saga::{Phase, Position, Stuck};
use crate::store::Record;

/// What somebody wants changed. Unset: as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    pub max_downtime: Option<Duration>,
    /// Bytes/s; 0 is none.
    pub bandwidth: Option<u64>,
    /// From now on.
    pub deadline: Option<Duration>,
    pub pause_and_finish: bool,
    pub post_copy: bool,
}

impl Wish {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether anything can still be changed.
pub fn possible(record: &Record) -> Result<(), Failure> {
    let refuse = |reason, why: &str| {
        let message = format!("{} {why}", record.id.resource_name());
        Err(Failure::new(reason, message))
    };
    let too_late = || refuse(Reason::TooLate, "has switched: the guest is at the destination");
    match record.position {
        Position::At(Phase::Validate | Phase::Prepare | Phase::Transfer) => {
            let switched = record
                .details
                .summary
                .is_some_and(|summary| summary.switch_time.is_some());
            if switched {
                too_late()
            } else if record.cancel_requested.is_some() && !record.too_late {
                refuse(Reason::MigrationState, "is being cancelled")
            } else if record.details.policy.is_none() {
                // Its source knows how it was to be done, and would take what is not named here for "none".
                refuse(
                    Reason::MigrationState,
                    "was taken up from a journal: only its source knows its limits",
                )
            } else {
                Ok(())
            }
        }
        Position::At(Phase::Verify | Phase::Finalize) | Position::Stuck(Stuck::Verify | Stuck::Finalize) => too_late(),
        Position::At(Phase::Abort | Phase::Discard) | Position::Stuck(Stuck::Discard) => {
            refuse(Reason::MigrationState, "is being undone")
        }
        Position::Ended(_) => refuse(Reason::MigrationState, "is at rest"),
    }
}

/// Whether the migration was begun so that it can do this.
pub fn allowed(record: &Record, wish: &Wish) -> Result<(), Failure> {
    let policy = record.details.policy.clone().unwrap_or_default();
    let may_go = policy.allow_post_copy() || policy.on_deadline() == DeadlineAction::PostCopy;
    if wish.post_copy && !may_go {
        let why = format!("{} was begun without post-copy", record.id.resource_name());
        let remedy = "let it pause to finish; or cancel it, and allow post-copy from the start";
        return Err(Failure::new(Reason::MigrationState, why).with_remedy(remedy));
    }
    Ok(())
}

/// Changes the policy, and notes each change with what was before.
pub fn adjust(record: &mut Record, wish: &Wish, actor: &str, now: SystemTime) {
    let elapsed = record
        .transfer_started
        .and_then(|started| now.duration_since(started).ok())
        .unwrap_or_default();
    let mut done = Vec::new();
    let mut note = |action: &str, value: String, reason: String| {
        done.push(ActionRecord {
            time: Some(timestamp(now)),
            action: action.to_owned(),
            value,
            reason,
            actor: actor.to_owned(),
        });
    };
    let policy = record.details.policy.get_or_insert_default();
    if let Some(longest) = wish.max_downtime {
        let before = policy.max_downtime.replace(proto_duration(longest));
        let before = before.as_ref().map_or("not limited".to_owned(), proto_duration_text);
        note(
            "max-downtime",
            duration_text(longest),
            format!("asked for; it was {before}"),
        );
    }
    if let Some(limit) = wish.bandwidth {
        let before = u64::try_from(policy.bandwidth_limit_bytes_per_second).unwrap_or(0);
        policy.bandwidth_limit_bytes_per_second = i64::try_from(limit).unwrap_or(i64::MAX);
        note(
            "bandwidth",
            rate_text(limit),
            format!("asked for; it was {}", rate_text(before)),
        );
    }
    if let Some(deadline) = wish.deadline {
        let before = policy.deadline.replace(proto_duration(elapsed + deadline));
        let before = before.as_ref().map_or("none".to_owned(), proto_duration_text);
        let reason = format!("asked for {} from now on; it was {before}", duration_text(deadline));
        note("deadline", duration_text(elapsed + deadline), reason);
    }
    if wish.pause_and_finish {
        record.details.pause_and_finish_requested.get_or_insert(timestamp(now));
        note("pause-and-finish", String::new(), "asked for".to_owned());
    }
    if wish.post_copy {
        record.details.post_copy_requested.get_or_insert(timestamp(now));
        note("post-copy", String::new(), "asked for".to_owned());
    }
    merge_actions(&mut record.details.actions, &done);
}

/// The source refused what was written down: said in the record, where the wish is.
pub fn note_refusal(record: &mut Record, actor: &str, asked: SystemTime, why: &str) {
    let asked = Some(timestamp(asked));
    for action in &mut record.details.actions {
        if action.time == asked && action.actor == actor {
            action.reason = format!("{}; it came too late: {why}", action.reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use drover_proto::v1::{MigrationPolicy, TransferSummary};

    use super::*;
    use crate::saga::End;
    use crate::store::conformance::record;
    use crate::store::now;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(position: Position) -> Record {
        let mut record = Record { position, ..record(1) };
        record.details.policy.get_or_insert_default();
        record
    }

    fn refused(record: &Record) -> Reason {
        possible(record).unwrap_err().reason
    }

    #[test]
    fn a_migration_that_was_taken_up_from_a_journal_keeps_the_limits_that_its_source_knows() {
        let mut adopted = at(Position::At(Phase::Transfer));
        assert!(possible(&adopted).is_ok());
        adopted.details.policy = None;
        assert_eq!(refused(&adopted), Reason::MigrationState);
    }

    #[test]
    fn until_the_guest_has_switched_and_while_nothing_is_undone() {
        for position in Position::all() {
            let reason = possible(&at(position)).err().map(|failure| failure.reason);
            let expected = match position {
                Position::At(Phase::Validate | Phase::Prepare | Phase::Transfer) => None,
                Position::At(Phase::Verify | Phase::Finalize) | Position::Stuck(Stuck::Verify | Stuck::Finalize) => {
                    Some(Reason::TooLate)
                }
                Position::At(Phase::Abort | Phase::Discard)
                | Position::Stuck(Stuck::Discard)
                | Position::Ended(End::Migrated | End::RolledBack | End::GuestEnded) => Some(Reason::MigrationState),
            };
            assert_eq!(reason, expected, "{position}");
        }
        let mut record = at(Position::At(Phase::Transfer));
        record.cancel_requested = Some(now());
        assert_eq!(refused(&record), Reason::MigrationState);
        record.too_late = true;
        assert!(
            possible(&record).is_ok(),
            "it goes on: the wish to cancel came too late"
        );
        record.details.summary = Some(TransferSummary {
            switch_time: Some(timestamp(now())),
            ..TransferSummary::default()
        });
        assert_eq!(refused(&record), Reason::TooLate);
    }

    #[test]
    fn every_change_is_noted_with_what_was_before() {
        let mut record = at(Position::At(Phase::Transfer));
        let time = now();
        record.transfer_started = Some(time - 10 * SECOND);
        record.details.policy = Some(MigrationPolicy {
            deadline: Some(proto_duration(20 * SECOND)),
            ..MigrationPolicy::default()
        });
        let wish = Wish {
            max_downtime: Some(2 * SECOND),
            bandwidth: Some(0),
            deadline: Some(60 * SECOND),
            pause_and_finish: true,
            post_copy: true,
        };
        adjust(&mut record, &wish, "spiffe://x/user/a", time);
        let policy = record.details.policy.clone().unwrap();
        assert_eq!(policy.max_downtime, Some(proto_duration(2 * SECOND)));
        assert_eq!(
            policy.deadline,
            Some(proto_duration(70 * SECOND)),
            "from the start of the transfer"
        );
        assert_eq!(record.details.pause_and_finish_requested, Some(timestamp(time)));
        let actions: Vec<_> = record
            .details
            .actions
            .iter()
            .map(|action| (action.action.as_str(), action.value.as_str(), action.reason.as_str()))
            .collect();
        assert_eq!(
            actions,
            [
                ("max-downtime", "2 s", "asked for; it was not limited"),
                ("bandwidth", "none", "asked for; it was none"),
                ("deadline", "70 s", "asked for 60 s from now on; it was 20 s"),
                ("pause-and-finish", "", "asked for"),
                ("post-copy", "", "asked for"),
            ]
        );
        assert!(
            record
                .details
                .actions
                .iter()
                .all(|action| action.actor == "spiffe://x/user/a")
        );
        note_refusal(&mut record, "spiffe://x/user/a", time, "all is sent");
        assert!(
            record.details.actions[0]
                .reason
                .ends_with("it came too late: all is sent")
        );
    }

    #[test]
    fn post_copy_must_have_been_allowed_from_the_start() {
        let wish = Wish {
            post_copy: true,
            ..Wish::default()
        };
        let with = |policy: MigrationPolicy| {
            let mut record = at(Position::At(Phase::Transfer));
            record.details.policy = Some(policy);
            allowed(&record, &wish).map_err(|failure| failure.reason)
        };
        assert_eq!(with(MigrationPolicy::default()), Err(Reason::MigrationState));
        let early = MigrationPolicy {
            allow_post_copy: Some(true),
            ..MigrationPolicy::default()
        };
        let at_deadline = MigrationPolicy {
            on_deadline: DeadlineAction::PostCopy.into(),
            ..MigrationPolicy::default()
        };
        assert_eq!((with(early), with(at_deadline)), (Ok(()), Ok(())));
    }

    #[test]
    fn before_the_transfer_a_deadline_counts_from_its_start() {
        let mut record = at(Position::At(Phase::Prepare));
        let wish = Wish {
            deadline: Some(SECOND),
            ..Wish::default()
        };
        adjust(&mut record, &wish, "a", now());
        assert_eq!(record.details.policy.unwrap().deadline, Some(proto_duration(SECOND)));
    }
}
