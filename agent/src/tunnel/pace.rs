//! The bandwidth limit of a migration: one for all its channels together, changed at any moment.
//!
//! A bucket that fills with time. A channel takes what it has read as soon as the bucket is not in debt, and may put it
//! into debt by one piece; the next one waits until that is paid. So no channel waits for more than it sends, and what
//! leaves in any length of time is at most the rate times that length, the bucket and one piece.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

/// What may be saved up while nothing is sent, as time at the rate: more than a timer is late on a busy machine.
const SAVED: Duration = Duration::from_millis(50);
/// A piece is at most this much time at the rate, so that a slow limit is kept evenly.
const PIECE: Duration = Duration::from_millis(20);
/// A smaller piece costs more in system calls than evenness is worth.
const SMALLEST_PIECE: usize = 16 * 1024;

/// A limit. Cheap to clone; all clones are the same one.
#[derive(Clone, Debug)]
pub struct Pace {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Bytes/s; 0 is none.
    rate: watch::Sender<u64>,
    /// Held by the channel whose turn it is, also while it waits: the others queue up behind it, in order.
    bucket: Mutex<Bucket>,
}

/// How much may be sent, as of a moment. Only arithmetic.
#[derive(Debug)]
struct Bucket {
    /// Bytes; negative is debt.
    level: f64,
    filled: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self {
            level: 0.0,
            filled: now,
        }
    }

    /// Takes the bytes out, or says how long to wait before asking again.
    fn take(&mut self, bytes: usize, rate: u64, now: Instant) -> Result<(), Duration> {
        if rate == 0 {
            // What was owed at a limit that is lifted is not paid at the next one.
            *self = Self::new(now);
            return Ok(());
        }
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        let rate = rate as f64;
        self.level = (self.level + since * rate).min(SAVED.as_secs_f64() * rate);
        self.filled = now;
        if self.level < 0.0 {
            let wait = Duration::try_from_secs_f64(-self.level / rate).unwrap_or(Duration::MAX);
            // A debt of a fraction of a byte is rounded to no time at all, and would be asked about for ever.
            return Err(wait.max(Duration::from_nanos(1)));
        }
        self.level -= bytes as f64;
        Ok(())
    }
}

impl Pace {
    /// Bytes per second; 0 is no limit.
    pub fn new(rate: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                rate: watch::Sender::new(rate),
                bucket: Mutex::new(Bucket::new(Instant::now())),
            }),
        }
    }

    /// From now on, also for those who wait already.
    pub fn set(&self, rate: u64) {
        self.shared.rate.send_replace(rate);
    }

    pub fn rate(&self) -> u64 {
        *self.shared.rate.borrow()
    }

    /// The largest piece that should be taken at once, at most `most`.
    pub(super) fn piece(&self, most: usize) -> usize {
        match self.rate() {
            0 => most,
            rate => ((rate as f64 * PIECE.as_secs_f64()) as usize)
                .max(SMALLEST_PIECE)
                .min(most),
        }
    }

    /// Returns when these bytes may leave.
    pub(crate) async fn take(&self, bytes: usize) {
        if self.rate() == 0 {
            return;
        }
        let mut changes = self.shared.rate.subscribe();
        let mut bucket = self.shared.bucket.lock().await;
        loop {
            let rate = *changes.borrow_and_update();
            let Err(wait) = bucket.take(bytes, rate, Instant::now()) else {
                return;
            };
            // Time that passed at the old rate is counted at the new one: at most one wait of it.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // The sender is part of `self`: this cannot fail.
                _ = changes.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// How long it takes to send so much through so many channels that are always ready, by a clock that jumps from
    /// wait to wait, each a little late.
    fn send(rate: u64, bytes: u64, channels: usize, late: Duration) -> Duration {
        let began = Instant::now();
        let (mut now, mut bucket) = (began, Bucket::new(began));
        let piece = Pace::new(rate).piece(256 * 1024);
        let mut left = vec![bytes as usize / channels; channels];
        while left.iter().any(|left| *left > 0) {
            for left in left.iter_mut().filter(|left| **left > 0) {
                let bytes = piece.min(*left);
                while let Err(wait) = bucket.take(bytes, rate, now) {
                    now += wait + late;
                }
                *left -= bytes;
            }
        }
        now - began
    }

    #[test]
    fn the_limit_is_kept_over_all_channels_together() {
        for channels in [1, 4, 64] {
            for rate in [MIB, 100 * MIB, 10_000 * MIB] {
                for late in [Duration::ZERO, Duration::from_millis(2), Duration::from_millis(20)] {
                    let took = send(rate, 10 * rate, channels, late).as_secs_f64();
                    assert!(
                        (9.9..10.1).contains(&took),
                        "{channels} channels, {rate} B/s, {late:?} late: {took} s"
                    );
                }
            }
        }
    }

    #[test]
    fn a_pause_saves_up_little() {
        let began = Instant::now();
        let (mut bucket, later) = (Bucket::new(began), began + Duration::from_secs(3600));
        let mut sent = 0;
        while bucket.take(1024, MIB, later).is_ok() {
            sent += 1024;
        }
        assert!(sent <= MIB / 20 + 1024, "{sent}");
    }

    #[tokio::test]
    async fn a_change_counts_at_once_also_for_those_who_wait() {
        for rate in [0, 1 << 40] {
            let pace = Pace::new(1);
            // Years of debt.
            pace.take(1 << 30).await;
            let waiting = pace.clone();
            let waiting = tokio::spawn(async move { waiting.take(1).await });
            tokio::task::yield_now().await;
            pace.set(rate);
            let freed = tokio::time::timeout(Duration::from_secs(30), waiting);
            freed.await.expect("it waits on").unwrap();
        }
    }

    #[tokio::test]
    async fn without_a_limit_nothing_waits() {
        let pace = Pace::new(0);
        for _ in 0..1000 {
            pace.take(1 << 30).await;
        }
    }

    #[test]
    fn pieces_are_even_at_slow_limits() {
        assert_eq!(Pace::new(MIB).piece(256 * 1024), 20971);
        assert_eq!(Pace::new(1).piece(256 * 1024), SMALLEST_PIECE);
        assert_eq!(Pace::new(0).piece(256 * 1024), 256 * 1024);
        assert_eq!(Pace::new(1000 * MIB).piece(256 * 1024), 256 * 1024);
    }
}
