//! How fast a link is, from what earlier migrations between the same two hosts have sent over it. Pure.

use drover_proto::time::std_duration;
use drover_proto::v1::{Compression, LinkKnowledge, MigrationState};

use crate::store::Record;

/// What takes less says nothing of the link: a transfer takes a while in any case.
const ENOUGH_BYTES: i64 = 64 << 20;

/// What a transfer takes beside its bytes, seconds.
const FIXED: f64 = 0.15;

/// The newest so many count.
const NEWEST: usize = 5;

/// The speed of a link and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Bytes/s.
    pub speed: u64,
    pub known: LinkKnowledge,
}

/// The middle one of what the newest migrations reached; none where nothing can be learnt from them.
pub fn learnt(newest_first: &[Record]) -> Option<Link> {
    let mut reached: Vec<u64> = newest_first.iter().filter_map(reached).take(NEWEST).collect();
    reached.sort_unstable();
    let speed = *reached.get(reached.len() / 2)?;
    Some(Link {
        speed,
        known: LinkKnowledge::Learnt,
    })
}

/// Bytes/s that one migration reached, where the link was what held it up.
fn reached(record: &Record) -> Option<u64> {
    let limited = record
        .details
        .policy
        .as_ref()
        .is_some_and(|policy| policy.bandwidth_limit_bytes_per_second > 0);
    let summary = record.details.summary.as_ref()?;
    // Of what is compressed the cores may have been what held it up.
    let chosen = record.details.compression.as_ref();
    let compressed = chosen.is_some_and(|chosen| chosen.compression() == Compression::Zstd);
    if limited || compressed || record.state != MigrationState::Succeeded || summary.tunnel_bytes < ENOUGH_BYTES {
        return None;
    }
    let seconds = std_duration(summary.duration.as_ref()?)?.as_secs_f64();
    let speed = summary.tunnel_bytes as f64 / (seconds - FIXED).max(seconds / 4.0);
    (speed.is_finite() && speed >= 1.0).then_some(speed.round() as u64)
}

/// The policy's limit on top of what is known.
pub fn limited(link: Option<Link>, limit: i64) -> Option<Link> {
    let limit = u64::try_from(limit).unwrap_or(0);
    match (link, limit) {
        (link, 0) => link,
        (None, limit) => Some(Link {
            speed: limit,
            known: LinkKnowledge::Limit,
        }),
        (Some(link), limit) => Some(Link {
            speed: link.speed.min(limit),
            ..link
        }),
    }
}

#[cfg(test)]
mod tests {
    use drover_proto::time::proto_duration;
    use drover_proto::v1::{MigrationPolicy, TransferSummary};

    use super::*;
    use crate::store::conformance::record;

    fn moved(mib: i64, millis: u64) -> Record {
        let mut record = record(1);
        record.state = MigrationState::Succeeded;
        record.details.summary = Some(TransferSummary {
            tunnel_bytes: mib << 20,
            duration: Some(proto_duration(std::time::Duration::from_millis(millis))),
            ..TransferSummary::default()
        });
        record
    }

    fn mib(link: Option<Link>) -> Option<u64> {
        link.map(|link| link.speed >> 20)
    }

    #[test]
    fn the_middle_of_the_newest_counts() {
        let records = [moved(1000, 10_150), moved(1000, 2_150), moved(1000, 20_150)];
        assert_eq!(mib(learnt(&records)), Some(100));
        assert_eq!(
            mib(learnt(&[moved(100, 200)])),
            Some(2000),
            "what a transfer takes in any case is not the link's"
        );
        let mut old = vec![moved(1000, 10_150); 5];
        old.extend(vec![moved(1000, 1_150); 9]);
        assert_eq!(mib(learnt(&old)), Some(100), "only the newest");
    }

    #[test]
    fn what_says_nothing_of_the_link_is_left_out() {
        let mut held = moved(1000, 10_150);
        held.details.policy = Some(MigrationPolicy {
            bandwidth_limit_bytes_per_second: 1 << 20,
            ..MigrationPolicy::default()
        });
        let mut failed = moved(1000, 10_150);
        failed.state = MigrationState::Failed;
        assert_eq!(learnt(&[held, failed, moved(1, 100)]), None);
        assert_eq!(learnt(&[]), None);
    }

    #[test]
    fn a_limit_is_the_least_that_is_known() {
        let link = learnt(&[moved(1000, 10_150)]);
        assert_eq!(limited(link, 0), link);
        assert_eq!(mib(limited(link, 10 << 20)), Some(10));
        assert_eq!(mib(limited(link, 1000 << 20)), Some(100));
        let only = limited(None, 10 << 20).unwrap();
        assert_eq!(only.known, LinkKnowledge::Limit);
        assert_eq!(limited(None, 0), None);
    }
}
