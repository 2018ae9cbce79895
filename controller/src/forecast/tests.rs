//! Guests and links made up.

use proptest::prelude::*;

use super::*;

const MIB: f64 = 1_048_576.0;

/// 1000 MiB over 100 MiB/s; looked at for one and two seconds.
fn guest(one: f64, two: f64) -> Subject {
    Subject {
        memory: 1000.0 * MIB,
        writes: Writes::seen(&[(1.0, one * MIB), (2.0, two * MIB)], 1000.0 * MIB),
        disks: 0.0,
        bandwidth: 100.0 * MIB,
    }
}

fn terms() -> Terms {
    Terms {
        limit: Duration::from_millis(500),
        deadline: None,
        pause_at_deadline: false,
        post_copy_at_deadline: false,
        auto_converge: false,
        post_copy: false,
    }
}

fn near(value: f64, expected: f64) -> bool {
    (value - expected).abs() <= expected * 0.05
}

#[test]
fn a_guest_that_writes_nothing_is_sent_once() {
    let seen = forecast(&guest(0.0, 0.0), &terms());
    let cost = seen.cost.unwrap();
    assert!(near(cost.duration, 10.15), "{cost:?}");
    assert!(near(cost.blackout, FIXED_BLACKOUT) && near(cost.bytes, 1000.0 * MIB));
    assert_eq!((seen.chance, seen.needed), (1.0, Vec::new()));
}

#[test]
fn disks_come_before_memory() {
    let subject = Subject {
        disks: 500.0 * MIB,
        ..guest(0.0, 0.0)
    };
    let cost = forecast(&subject, &terms()).cost.unwrap();
    assert!(near(cost.duration, 15.15) && near(cost.bytes, 1500.0 * MIB), "{cost:?}");
}

#[test]
fn the_looks_tell_a_hot_set_from_new_pages() {
    let memory = 1000.0 * MIB;
    let ever_new = Writes::seen(&[(1.0, 20.0 * MIB), (2.0, 40.0 * MIB)], memory);
    assert!(
        near(ever_new.set(), memory) && near(ever_new.rate(), 20.4 * MIB),
        "{ever_new:?}"
    );
    let hot = Writes::seen(&[(1.0, 50.0 * MIB), (2.0, 50.0 * MIB)], memory);
    assert!(near(hot.set(), 50.0 * MIB) && hot.rate() > 140.0 * MIB, "{hot:?}");
    // 100 MiB of which 63 % are written in a second: D = W/τ with τ = 1 s.
    let between = Writes::seen(&[(1.0, 63.2 * MIB), (2.0, 86.5 * MIB)], memory);
    assert!(
        near(between.set(), 100.0 * MIB) && near(between.rate(), 100.0 * MIB),
        "{between:?}"
    );
    assert!(near(between.within(1.0, 0.5), 39.3 * MIB), "slowed down by half");
    assert_eq!(Writes::seen(&[], memory), Writes::NONE);
    // One look shows no bound.
    assert!(near(Writes::seen(&[(1.0, 50.0 * MIB)], memory).set(), memory));
    // More than there is cannot be.
    assert!(Writes::seen(&[(1.0, 5000.0 * MIB)], memory).within(60.0, 0.0) <= 1011.0 * MIB);
}

#[test]
fn a_small_hot_set_fits_into_the_blackout_however_fast_it_is_written() {
    let subject = Subject {
        writes: guest(30.0, 30.0).writes.faster(10.0),
        ..guest(0.0, 0.0)
    };
    let cost = forecast(&subject, &terms()).cost.unwrap();
    assert!((0.2..=0.4).contains(&cost.blackout), "{cost:?}");
    assert!(near(cost.duration, 11.0), "{cost:?}");
}

#[test]
fn what_does_not_converge_is_told_with_what_would_help() {
    // A hot set of 300 MiB: 3 s.
    let seen = forecast(&guest(300.0, 300.0), &terms());
    assert_eq!(seen.cost, None);
    assert_eq!(seen.chance, 0.0);
    assert!(seen.needed.contains(&Means::MaxDowntime) && seen.needed.contains(&Means::PostCopy));
    let needed = seen.needed_downtime.unwrap();
    assert!((3.0..4.0).contains(&needed), "{needed}");
    let enough = Terms {
        limit: Duration::from_secs_f64(needed),
        ..terms()
    };
    let cost = forecast(&guest(300.0, 300.0), &enough).cost.unwrap();
    assert!(cost.blackout <= needed + FIXED_BLACKOUT);
    let over = Terms {
        post_copy: true,
        ..terms()
    };
    let seen = forecast(&guest(300.0, 300.0), &over);
    assert_eq!(seen.needed, [Means::PostCopy]);
    // That the 300 MiB do not shrink is known when they were sent once.
    assert!(near(seen.cost.unwrap().duration, 16.15), "{seen:?}");
    assert!(near(seen.cost.unwrap().blackout, FIXED_BLACKOUT));
}

#[test]
fn a_guest_that_may_be_slowed_down_is() {
    // It writes new pages half as fast again as they are sent.
    let subject = guest(140.0, 261.0);
    assert_eq!(forecast(&subject, &terms()).cost, None);
    let slow = Terms {
        auto_converge: true,
        ..terms()
    };
    let seen = forecast(&subject, &slow);
    assert!(seen.cost.is_some(), "{seen:?}");
    assert_eq!(seen.needed, [Means::AutoConverge]);
    assert!(forecast(&subject, &terms()).needed.contains(&Means::AutoConverge));
    // It is told how that feels.
    let asleep = |seen: Forecast| seen.cost.unwrap().asleep;
    assert!((0.002..0.25).contains(&asleep(seen)), "two sleeps fit into the limit");
    assert_eq!(asleep(forecast(&guest(10.0, 20.0), &slow)), 0.0, "none is needed");
}

#[test]
fn one_that_writes_too_fast_goes_over_as_soon_as_that_is_seen() {
    let over = Terms {
        post_copy: true,
        ..terms()
    };
    // 750 MiB of it, written to at 150 MiB/s: 650 MiB remain after the first round, 545 after the second.
    let hot = Subject {
        writes: Writes::seen(&[(1.0, 136.0 * MIB), (2.0, 247.3 * MIB)], 750.0 * MIB),
        ..guest(0.0, 0.0)
    };
    let cost = forecast(&hot, &over).cost.unwrap();
    assert!((1.6..=2.3).contains(&(cost.bytes / hot.memory)), "{cost:?}");
    // Where the guest may be slowed down, that is tried before; in a hurry less long.
    let slowed = post_copy(
        &hot,
        &Terms {
            auto_converge: true,
            ..over
        },
    );
    assert!(slowed.bytes > 3.0 * hot.memory);
    let hurried = Terms {
        auto_converge: true,
        deadline: Some(Duration::from_secs(25)),
        ..over
    };
    assert!(post_copy(&hot, &hurried).duration < slowed.duration);
}

#[test]
fn a_deadline_decides() {
    let due = |seconds, pause_at_deadline| Terms {
        deadline: Some(Duration::from_secs_f64(seconds)),
        pause_at_deadline,
        ..terms()
    };
    let idle = guest(0.0, 0.0);
    assert!(forecast(&idle, &due(60.0, false)).cost.is_some());
    let seen = forecast(&idle, &due(5.0, false));
    assert_eq!((seen.cost, seen.needed), (None, vec![Means::PauseAndFinish]));
    // Half of it is sent by then.
    let paused = forecast(&idle, &due(5.0, true));
    assert_eq!(paused.needed, [Means::PauseAndFinish]);
    let cost = paused.cost.unwrap();
    assert!(near(cost.blackout, 5.2) && near(cost.duration, 10.15), "{cost:?}");
    // What a larger blackout would take is given in a hurry only.
    let busy = guest(70.0, 136.0);
    let patient = forecast(&busy, &terms()).cost.unwrap();
    let hurried = forecast(&busy, &due(patient.duration - 0.3, false)).cost.unwrap();
    assert!(hurried.blackout > patient.blackout && hurried.duration < patient.duration);
}

proptest! {
    #[test]
    fn promises_are_kept_by_the_model_itself(
        one in 0.0_f64..2000.0,
        more in 0.0_f64..2000.0,
        bandwidth in 1.0_f64..10_000.0,
        limit in 1_u64..60_000,
        deadline in proptest::option::of(1_u64..1000),
        auto_converge: bool,
        post_copy: bool,
        pause_at_deadline: bool,
    ) {
        let subject = Subject { bandwidth: bandwidth * MIB, ..guest(one, one + more) };
        let terms = Terms {
            limit: Duration::from_millis(limit),
            deadline: deadline.map(Duration::from_secs),
            auto_converge,
            post_copy,
            pause_at_deadline,
            post_copy_at_deadline: false,
        };
        let seen = forecast(&subject, &terms);
        prop_assert!((0.0..=1.0).contains(&seen.chance));
        prop_assert!(seen.cost.is_some() || !seen.needed.contains(&Means::PostCopy) || !post_copy);
        if let Some(cost) = seen.cost {
            prop_assert!(cost.duration.is_finite() && cost.blackout.is_finite() && cost.bytes.is_finite());
            prop_assert!(cost.bytes >= subject.memory - 1.0);
            let paused = seen.needed == [Means::PauseAndFinish];
            prop_assert!(paused || cost.blackout <= terms.limit.as_secs_f64() + FIXED_BLACKOUT);
            prop_assert!(paused || deadline.is_none_or(|deadline| cost.duration <= deadline as f64));
        }
    }
}
