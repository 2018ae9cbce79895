//! The double-run detector: decides from the beats seen on the hosts' taps whether a guest ever ran twice.
//!
//! ```text
//!  one counter, two randoms           two copies of one memory image ran
//!  a counter that was passed already  a copy ran on behind another one's back
//!  an older boot after a newer one    the guest was started a second time beside itself
//! ```
//! No clock, no sockets: beats come in any order and are judged in the order of their times.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// One datagram of a guest, as it entered a host's bridge from the guest's tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Time of capture, since the epoch, by the kernel.
    pub at: Duration,
    pub host: String,
    pub guest: String,
    /// Drawn once per boot; part of the guest's memory, so copies share it.
    pub boot: u64,
    /// Counts up by one; part of the guest's memory.
    pub counter: u64,
    /// Drawn for this beat outside the guest's memory: copies never share it.
    pub random: u64,
}

/// Why somebody must look: a guest ran twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Both copies reached the same counter.
    TwoCopies {
        guest: String,
        counter: u64,
        first: String,
        second: String,
    },
    /// `host` still ran a copy with a counter that `ahead_on` had reached before.
    RanBehind {
        guest: String,
        counter: u64,
        host: String,
        ahead: u64,
        ahead_on: String,
    },
    /// A boot of the guest beat on `host` after a newer boot had begun on `newer_on`.
    TwoBoots {
        guest: String,
        host: String,
        newer_on: String,
    },
}

/// A stay of a guest on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stay {
    pub host: String,
    pub boot: u64,
    pub first_beat: Duration,
    pub last_beat: Duration,
}

/// What the beats say.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    pub beats: usize,
    /// One per guest, counter and kind at most; the first hundred.
    pub violations: Vec<Violation>,
    /// Where each guest was, in order of time.
    pub stays: BTreeMap<String, Vec<Stay>>,
}

impl Verdict {
    /// The hosts on which a guest was, in order.
    pub fn path(&self, guest: &str) -> Vec<&str> {
        self.stays
            .get(guest)
            .map(|stays| stays.iter().map(|stay| stay.host.as_str()).collect())
            .unwrap_or_default()
    }
}

const ENOUGH: usize = 100;

#[derive(Default)]
struct History {
    /// Boots in order of appearance.
    boots: Vec<u64>,
    /// (boot, counter) → (random, host) of the first sight.
    seen: HashMap<(u64, u64), (u64, String)>,
    /// Highest counter of the newest boot, and where.
    ahead: Option<(u64, String)>,
}

/// Judges all beats of all guests.
pub fn judge(mut beats: Vec<Beat>) -> Verdict {
    beats.sort_by_key(|beat| (beat.at, beat.counter));
    let mut verdict = Verdict {
        beats: beats.len(),
        ..Verdict::default()
    };
    let mut histories: HashMap<String, History> = HashMap::new();
    for beat in beats {
        let history = histories.entry(beat.guest.clone()).or_default();
        let found = judge_one(history, &beat);
        if verdict.violations.len() < ENOUGH {
            verdict.violations.extend(found);
        }
        let stays = verdict.stays.entry(beat.guest.clone()).or_default();
        match stays.last_mut() {
            Some(stay) if stay.host == beat.host && stay.boot == beat.boot => stay.last_beat = beat.at,
            _ => stays.push(Stay {
                host: beat.host,
                boot: beat.boot,
                first_beat: beat.at,
                last_beat: beat.at,
            }),
        }
    }
    verdict
}

fn judge_one(history: &mut History, beat: &Beat) -> Option<Violation> {
    let guest = || beat.guest.clone();
    let newest = history.boots.last().copied();
    if newest != Some(beat.boot) {
        if history.boots.contains(&beat.boot) {
            let newer_on = history.ahead.as_ref().map(|(_, host)| host.clone()).unwrap_or_default();
            return Some(Violation::TwoBoots {
                guest: guest(),
                host: beat.host.clone(),
                newer_on,
            });
        }
        history.boots.push(beat.boot);
        history.ahead = None;
    }
    if let Some((random, first)) = history.seen.get(&(beat.boot, beat.counter)) {
        // The same random again is one datagram seen twice: sent on one side, repeated from the ring on the other.
        return (*random != beat.random).then(|| Violation::TwoCopies {
            guest: guest(),
            counter: beat.counter,
            first: first.clone(),
            second: beat.host.clone(),
        });
    }
    history
        .seen
        .insert((beat.boot, beat.counter), (beat.random, beat.host.clone()));
    match &history.ahead {
        Some((ahead, ahead_on)) if *ahead > beat.counter => Some(Violation::RanBehind {
            guest: guest(),
            counter: beat.counter,
            host: beat.host.clone(),
            ahead: *ahead,
            ahead_on: ahead_on.clone(),
        }),
        Some(_) | None => {
            history.ahead = Some((beat.counter, beat.host.clone()));
            None
        }
    }
}

/// Reads a guest's datagram: `drover-beat NAME BOOT COUNTER RANDOM`.
pub fn parse(payload: &[u8], host: &str, at: Duration) -> Option<Beat> {
    let words: Vec<&str> = std::str::from_utf8(payload).ok()?.split_whitespace().collect();
    let ["drover-beat", guest, boot, counter, random] = words.as_slice() else {
        return None;
    };
    Some(Beat {
        at,
        host: host.to_string(),
        guest: (*guest).to_string(),
        boot: u64::from_str_radix(boot, 16).ok()?,
        counter: counter.parse().ok()?,
        random: u64::from_str_radix(random, 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beats from (milliseconds, host, boot, counter, random).
    fn beats(list: &[(u64, &str, u64, u64, u64)]) -> Vec<Beat> {
        let beat = |&(ms, host, boot, counter, random): &(u64, &str, u64, u64, u64)| Beat {
            at: Duration::from_millis(ms),
            host: host.into(),
            guest: "g".into(),
            boot,
            counter,
            random,
        };
        list.iter().map(beat).collect()
    }

    #[test]
    fn a_migration_and_back_is_silent() {
        let verdict = judge(beats(&[
            (0, "a", 1, 0, 70),
            (20, "a", 1, 1, 71),
            (150, "b", 1, 2, 72),
            (170, "b", 1, 4, 74),
            (400, "a", 1, 5, 75),
        ]));
        assert_eq!(verdict.violations, []);
        assert_eq!(verdict.path("g"), ["a", "b", "a"]);
    }

    #[test]
    fn one_counter_with_two_randoms_is_two_copies() {
        let verdict = judge(beats(&[(0, "a", 1, 7, 70), (20, "b", 1, 8, 71), (21, "a", 1, 8, 99)]));
        let expected = Violation::TwoCopies {
            guest: "g".into(),
            counter: 8,
            first: "b".into(),
            second: "a".into(),
        };
        assert_eq!(verdict.violations, [expected]);
    }

    #[test]
    fn a_copy_that_stayed_behind_is_seen_even_if_no_counter_meets() {
        let verdict = judge(beats(&[(0, "a", 1, 7, 70), (20, "b", 1, 9, 71), (40, "a", 1, 8, 99)]));
        assert!(matches!(
            &verdict.violations[..],
            [Violation::RanBehind {
                counter: 8,
                ahead: 9,
                ..
            }]
        ));
    }

    #[test]
    fn an_old_boot_beside_a_new_one_is_seen() {
        let verdict = judge(beats(&[
            (0, "a", 1, 500, 70),
            (20, "b", 2, 0, 71),
            (40, "a", 1, 501, 72),
        ]));
        assert!(matches!(&verdict.violations[..], [Violation::TwoBoots { .. }]));
    }

    #[test]
    fn a_reboot_is_silent() {
        let verdict = judge(beats(&[(0, "a", 1, 500, 70), (20, "a", 2, 0, 71), (40, "b", 2, 1, 72)]));
        assert_eq!(verdict.violations, []);
    }

    #[test]
    fn a_datagram_seen_twice_is_silent() {
        let verdict = judge(beats(&[(0, "a", 1, 7, 70), (150, "b", 1, 7, 70), (170, "b", 1, 8, 71)]));
        assert_eq!(verdict.violations, []);
    }

    #[test]
    fn order_of_arrival_does_not_matter() {
        let mut list = beats(&[(0, "a", 1, 0, 70), (20, "a", 1, 1, 71), (150, "b", 1, 2, 72)]);
        list.reverse();
        assert_eq!(judge(list).violations, []);
    }

    #[test]
    fn datagrams_are_read_or_refused() {
        let beat = parse(b"drover-beat g 0f 12 00ff", "a", Duration::ZERO).expect("a beat");
        assert_eq!((beat.boot, beat.counter, beat.random), (15, 12, 255));
        assert_eq!(parse(b"drover-beat g 12", "a", Duration::ZERO), None);
        assert_eq!(parse(b"\xff\xfe", "a", Duration::ZERO), None);
    }
}
