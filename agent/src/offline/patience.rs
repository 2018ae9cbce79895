//! When a copy that is cut again and again is given up: after a time without any progress in which the other side said
//! nothing. Pure.
//!
//! That bytes were sent is no progress: a peer whose disk hangs takes a few of them each time. Time in which the other
//! side tells that it reads its disk does not count: after a cut it reads all that it has.

use std::time::Duration;

/// So long altogether.
const LIMIT: Duration = Duration::from_secs(150);

/// What has come of a copy so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    /// Files that the destination has verified in this connection.
    pub(super) verified: u64,
    /// Bytes that are still to be sent or compared.
    pub(super) left: u64,
}

/// Counts over all connections of one copy.
#[derive(Debug, Default)]
pub(super) struct Patience {
    best: Option<Reached>,
    idle: Duration,
}

impl Patience {
    /// A connection came to its end, having reached this much; for so long the other side had said nothing. Gives whether
    /// that is further than any one before.
    pub(super) fn cut(&mut self, reached: Reached, silence: Duration) -> bool {
        let further = self
            .best
            .is_none_or(|best| reached.verified > best.verified || reached.left < best.left);
        if further {
            let best = self.best.unwrap_or(reached);
            self.best = Some(Reached {
                verified: best.verified.max(reached.verified),
                left: best.left.min(reached.left),
            });
            self.idle = Duration::ZERO;
        } else {
            self.idle += silence;
        }
        further
    }

    /// Nothing was tried for so long.
    pub(super) fn waited(&mut self, pause: Duration) {
        self.idle += pause;
    }

    pub(super) fn is_over(&self) -> bool {
        self.idle > LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(60);

    fn reached(verified: u64, left: u64) -> Reached {
        Reached { verified, left }
    }

    #[test]
    fn a_peer_that_takes_the_same_bytes_again_and_again_is_given_up() {
        let mut patience = Patience::default();
        assert!(patience.cut(reached(0, 90), SILENCE));
        let tries = (1..).find(|_| {
            assert!(!patience.cut(reached(0, 90), SILENCE));
            patience.is_over()
        });
        assert_eq!(tries, Some(3));
    }

    #[test]
    fn whoever_gets_further_each_time_may_go_on_for_ever() {
        let mut patience = Patience::default();
        for left in (0..1000).rev() {
            assert!(patience.cut(reached(0, left), SILENCE));
            patience.waited(SILENCE);
            assert!(!patience.is_over());
        }
        assert!(patience.cut(reached(1, 1000), SILENCE), "another file is verified");
    }

    #[test]
    fn a_peer_that_reads_its_disk_is_waited_for() {
        let mut patience = Patience::default();
        patience.cut(reached(0, 10), SILENCE);
        for _ in 0..1000 {
            assert!(!patience.cut(reached(0, 50), Duration::ZERO));
        }
        assert!(!patience.is_over());
        patience.waited(LIMIT);
        patience.waited(SILENCE);
        assert!(patience.is_over());
    }
}
