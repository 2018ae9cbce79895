//! Counts refused connections and logs some: the first at once, then one line in a while with the number of others.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use drover_proto::identity::Identity;
use tokio::time::Instant;

use super::error::Refusal;

/// Between two log lines: somebody who tries tickets cannot fill the log.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    count: u64,
    logged: u64,
    last_line: Option<Instant>,
}

impl Refusals {
    pub(crate) fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    pub(crate) fn record(&self, refusal: Refusal, detail: &str, peer: &Identity) {
        if let Some(silent) = self.count_one(Instant::now()) {
            tracing::warn!(%refusal, detail, ?peer, silent, "refused a data connection");
        }
    }

    /// How many went by without a line since the last one, if it is time for a line.
    fn count_one(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.count += 1;
        if state.last_line.is_some_and(|last| now < last + QUIET) {
            return None;
        }
        let silent = state.count - state.logged - 1;
        (state.last_line, state.logged) = (Some(now), state.count);
        Some(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_refusals_make_two_lines() {
        let refusals = Refusals::default();
        let start = Instant::now();
        assert_eq!(refusals.count_one(start), Some(0));
        for _ in 0..999 {
            assert_eq!(refusals.count_one(start + Duration::from_secs(1)), None);
        }
        assert_eq!(refusals.count_one(start + QUIET), Some(999));
        assert_eq!(refusals.count(), 1001);
    }
}
