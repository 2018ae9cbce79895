//! The defaults of this controller for what callers leave open: `[policy]` in its configuration.

use std::time::Duration;

use drover_proto::time::proto_duration;
use drover_proto::units;
use drover_proto::v1::{DeadlineAction, MigrationPolicy};
use serde::{Deserialize, Deserializer};

/// The longest blackout where neither the caller nor the configuration names one.
const MAX_DOWNTIME: Duration = Duration::from_millis(500);

/// `[policy]`: every key may be left out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyDefaults {
    /// `500ms`.
    #[serde(deserialize_with = "time")]
    pub max_downtime: Option<Duration>,
    /// `10m`.
    #[serde(deserialize_with = "time")]
    pub deadline: Option<Duration>,
    pub on_deadline: Option<OnDeadline>,
    /// `500MiB/s`, `800Mbit/s`.
    #[serde(deserialize_with = "rate")]
    pub bandwidth: u64,
    /// Connections for memory; 0 is one.
    pub parallel: u8,
    pub allow_auto_converge: bool,
    pub allow_post_copy: bool,
}

/// What happens at the deadline.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDeadline {
    Abort,
    PauseAndFinish,
    PostCopy,
}

fn time<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(value)?;
    units::duration(&text).map(Some).map_err(serde::de::Error::custom)
}

pub(crate) fn rate<'de, D: Deserializer<'de>>(value: D) -> Result<u64, D::Error> {
    let text = String::deserialize(value)?;
    units::bytes_per_second(&text).map_err(serde::de::Error::custom)
}

impl PolicyDefaults {
    /// As a request would say it.
    pub fn message(&self) -> MigrationPolicy {
        let on_deadline = match (self.on_deadline, self.deadline) {
            (Some(OnDeadline::PauseAndFinish), _) => DeadlineAction::PauseAndFinish,
            (Some(OnDeadline::PostCopy), _) => DeadlineAction::PostCopy,
            (Some(OnDeadline::Abort), _) | (None, Some(_)) => DeadlineAction::Abort,
            (None, None) => DeadlineAction::Unspecified,
        };
        MigrationPolicy {
            max_downtime: Some(proto_duration(self.max_downtime.unwrap_or(MAX_DOWNTIME))),
            deadline: self.deadline.map(proto_duration),
            on_deadline: on_deadline.into(),
            allow_auto_converge: Some(self.allow_auto_converge),
            allow_post_copy: Some(self.allow_post_copy),
            bandwidth_limit_bytes_per_second: i64::try_from(self.bandwidth).unwrap_or(i64::MAX),
            parallel_connections: self.parallel.into(),
            ..MigrationPolicy::default()
        }
    }
}

/// What is asked for, and the defaults for the rest.
pub fn with_defaults(asked: Option<&MigrationPolicy>, defaults: &MigrationPolicy) -> MigrationPolicy {
    let asked = asked.cloned().unwrap_or_default();
    let or = |asked, default| if asked == 0 { default } else { asked };
    let deadline = asked.deadline.or(defaults.deadline);
    // What the configuration wants at a deadline counts also for one that the caller names.
    let on_deadline = or(asked.on_deadline, deadline.map_or(0, |_| defaults.on_deadline));
    MigrationPolicy {
        max_downtime: asked.max_downtime.or(defaults.max_downtime),
        deadline,
        on_deadline,
        allow_auto_converge: asked.allow_auto_converge.or(defaults.allow_auto_converge),
        // Who wants it at the deadline allows it then.
        allow_post_copy: asked.allow_post_copy.or(defaults.allow_post_copy),
        bandwidth_limit_bytes_per_second: match asked.bandwidth_limit_bytes_per_second {
            0 => defaults.bandwidth_limit_bytes_per_second,
            limit => limit,
        },
        parallel_connections: or(asked.parallel_connections, defaults.parallel_connections),
        ..asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Option<prost_types::Duration> {
        Some(proto_duration(Duration::from_secs(seconds)))
    }

    fn defaults() -> MigrationPolicy {
        MigrationPolicy {
            max_downtime: seconds(1),
            deadline: seconds(600),
            on_deadline: DeadlineAction::PauseAndFinish.into(),
            bandwidth_limit_bytes_per_second: 100 << 20,
            parallel_connections: 4,
            allow_auto_converge: Some(true),
            allow_post_copy: Some(true),
            ..MigrationPolicy::default()
        }
    }

    #[test]
    fn what_is_not_asked_for_is_the_default() {
        assert_eq!(with_defaults(None, &defaults()), defaults());
    }

    #[test]
    fn what_is_asked_for_counts() {
        let asked = MigrationPolicy {
            max_downtime: seconds(2),
            deadline: seconds(60),
            on_deadline: DeadlineAction::Abort.into(),
            bandwidth_limit_bytes_per_second: 1 << 20,
            parallel_connections: 1,
            allow_auto_converge: Some(false),
            allow_post_copy: Some(false),
            priority: 7,
            ..MigrationPolicy::default()
        };
        assert_eq!(with_defaults(Some(&asked), &defaults()), asked);
    }

    #[test]
    fn without_a_configuration_only_the_blackout_is_limited() {
        let defaults = PolicyDefaults::default().message();
        let policy = with_defaults(None, &defaults);
        assert_eq!(policy.max_downtime, Some(proto_duration(MAX_DOWNTIME)));
        assert_eq!(
            (
                policy.deadline,
                policy.on_deadline,
                policy.bandwidth_limit_bytes_per_second
            ),
            (None, 0, 0)
        );
    }
}
