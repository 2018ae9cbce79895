//! By how much a guest is slowed down, as the source's agent chooses it (`agent/src/jobs/throttle.rs`, where the facts are).

use super::{Subject, Terms};

/// For so long QEMU lets a guest run between two sleeps, seconds.
const SLICE: f64 = 0.01;

/// How long each sleep of a guest is that is slowed down so much, seconds.
pub(super) fn asleep(slowed: f64) -> f64 {
    SLICE * slowed / (1.0 - slowed)
}

/// By how much at first, and by how much more each time: θ ≥ 1 − B/D and a little to spare; then by small steps to where
/// two sleeps still fit into the limit.
pub(super) fn steps(subject: &Subject, terms: &Terms) -> (f64, f64) {
    let sleep = (terms.limit.as_secs_f64() / 2.0).max(0.05);
    let most = (sleep / (sleep + SLICE)).min(0.99);
    let needed = 1.0 - subject.bandwidth / subject.writes.rate() + 0.05;
    let first = needed.clamp(0.2, most.min(0.9));
    let steps = ((most - first) / 0.2).ceil();
    let longest = (2.0 * (steps + 1.0) + 1.0) * subject.memory / subject.bandwidth;
    let near = terms.deadline.is_some_and(|deadline| deadline.as_secs_f64() < longest);
    let steps = if near { steps.min(2.0) } else { steps };
    (first, ((most - first) / steps.max(1.0)).max(0.05))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Writes;
    use super::*;

    #[test]
    fn the_steps_are_those_of_the_agent() {
        // What agent/src/jobs/throttle.rs tests: twice as much is written as sent.
        let subject = Subject {
            memory: 1000.0,
            writes: Writes::seen(&[(1.0, 200.0)], 1e12),
            disks: 0.0,
            bandwidth: 100.0,
        };
        let terms = |deadline| Terms {
            limit: Duration::from_millis(500),
            deadline,
            pause_at_deadline: false,
            post_copy_at_deadline: false,
            auto_converge: true,
            post_copy: false,
        };
        let percent = |deadline| {
            let (first, next) = steps(&subject, &terms(deadline));
            ((first * 100.0).round(), (next * 100.0).round())
        };
        assert_eq!(percent(None), (55.0, 14.0), "the agent has 55 and 13: whole percents");
        assert_eq!(percent(Some(Duration::from_secs(1))), (55.0, 21.0));
        assert!((asleep(0.5) - 0.01).abs() < 1e-9 && (asleep(0.9) - 0.09).abs() < 1e-9);
    }
}
