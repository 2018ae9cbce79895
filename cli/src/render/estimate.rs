//! What a move is expected to cost: in one line, as a table, and against what it cost in the end.

use drover_proto::v1::{Estimate, LinkKnowledge, Migration};

use super::checks::columns;
use super::{units, words};

/// Nobody asked for it.
pub(crate) const LEFT_OUT: &str = "left out";

/// `8.40 s, blackout 120 ms`, or why nothing can be said.
pub(crate) fn short(estimate: &Estimate) -> String {
    if !estimate.unknown.is_empty() {
        return "not known".to_owned();
    }
    let needed = estimate.needed_means.join(" or ");
    match (estimate.duration, estimate.blackout) {
        (Some(duration), Some(blackout)) => {
            let by = if needed.is_empty() {
                String::new()
            } else {
                format!(", with {needed}")
            };
            format!(
                "{}, blackout {}{by}",
                units::duration(duration),
                units::duration(blackout)
            )
        }
        (Some(_) | None, Some(_) | None) if needed.is_empty() => "would not end".to_owned(),
        (Some(_) | None, Some(_) | None) => format!("would not end without {needed}"),
    }
}

/// One line for each thing there is to say, within 80 columns.
pub(crate) fn table(estimate: &Estimate) -> Vec<String> {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String, how: String| rows.push([name.to_owned(), value, how]);
    if !estimate.unknown.is_empty() {
        row("outcome", "not known".to_owned(), estimate.unknown.clone());
    } else if let (Some(duration), Some(blackout)) = (estimate.duration, estimate.blackout) {
        row("transfer", units::duration(duration), sent(estimate));
        row("blackout", units::duration(blackout), String::new());
    } else {
        row(
            "outcome",
            "no end".to_owned(),
            "the guest would not move under this policy".to_owned(),
        );
    }
    if estimate.unknown.is_empty() {
        let percent = format!("{:.0} %", estimate.convergence_probability * 100.0);
        row(
            "chance",
            percent,
            "that it moves, if it writes ½ to 3 times as much".to_owned(),
        );
    }
    for means in &estimate.needed_means {
        let (value, how) = needed(means, estimate);
        row("needs", value, how);
    }
    if estimate.sample_time.is_some() {
        let set = units::bytes(estimate.writable_set_bytes);
        let rate = units::rate(estimate.dirty_bytes_per_second);
        row("guest writes", rate, format!("within {set}"));
    }
    if estimate.bandwidth_bytes_per_second > 0 {
        let rate = units::rate(estimate.bandwidth_bytes_per_second);
        row("link", rate, link(estimate.link_knowledge()).to_owned());
    }
    columns(["ESTIMATE", "VALUE", "HOW"], rows)
}

fn sent(estimate: &Estimate) -> String {
    format!("{} sent", units::bytes(estimate.transfer_bytes))
}

/// What it takes, and the flag that allows it. Where the estimate has an end, it is allowed already.
fn needed(means: &str, estimate: &Estimate) -> (String, String) {
    if estimate.duration.is_some() {
        let felt = estimate.standstill.map(units::duration);
        let felt = felt.map_or_else(String::new, |time| format!("; still for {time} at a time"));
        return (words::one_line(means), format!("as the policy allows{felt}"));
    }
    let how = match means {
        "auto-converge" => "--allow-auto-converge: the guest is slowed down".to_owned(),
        "max-downtime" => {
            let least = estimate.needed_max_downtime.map(units::duration).unwrap_or_default();
            format!("--max-downtime of {least} or more")
        }
        "pause-and-finish" => "--on-deadline pause-and-finish, or a later --deadline".to_owned(),
        "post-copy" => "the guest would run there before all of its memory is".to_owned(),
        _ => String::new(),
    };
    (words::one_line(means), how)
}

fn link(known: LinkKnowledge) -> &'static str {
    match known {
        LinkKnowledge::Learnt => "as earlier migrations reached it",
        LinkKnowledge::Measured => "as measured now",
        LinkKnowledge::Configured => "as the controller's configuration says",
        LinkKnowledge::Limit => "the policy's limit; the link may be slower",
        LinkKnowledge::Unspecified => "",
    }
}

/// `9.80 s of transfer, 12 % too long`; none where nothing was expected.
pub(crate) fn against(migration: &Migration) -> Option<String> {
    let estimate = migration.estimate.as_ref()?;
    let Some(duration) = estimate.duration else {
        return Some(short(estimate));
    };
    let expected = format!("{} of transfer", units::duration(duration));
    let Some(error) = migration.estimate_error else {
        return Some(expected);
    };
    let real = migration.summary?.duration.map(units::duration).unwrap_or_default();
    Some(format!("{expected}; it took {real}: {}", off(error)))
}

/// Of a time: `12 % too long`.
pub(crate) fn off(error: f64) -> String {
    match (error * 100.0).round() {
        percent if percent > 0.0 => format!("{percent:.0} % too long"),
        percent if percent < 0.0 => format!("{:.0} % too short", -percent),
        _ => "exactly so".to_owned(),
    }
}

/// Of an estimate without an end: why there is none.
pub(crate) fn why_not(estimate: &Estimate) -> String {
    let why = words::one_line(&estimate.unknown);
    if why.is_empty() {
        short(estimate)
    } else {
        format!("not known: {why}")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use drover_proto::v1::TransferSummary;
    use prost_types::{Duration, Timestamp};

    use super::*;

    pub(crate) fn time(millis: i64) -> Option<Duration> {
        Some(Duration {
            seconds: millis / 1000,
            nanos: i32::try_from(millis % 1000).unwrap() * 1_000_000,
        })
    }

    fn good() -> Estimate {
        Estimate {
            duration: time(8400),
            blackout: time(120),
            transfer_bytes: 800 << 20,
            convergence_probability: 1.0,
            dirty_bytes_per_second: 12 << 20,
            writable_set_bytes: 300 << 20,
            bandwidth_bytes_per_second: 95 << 20,
            link_knowledge: LinkKnowledge::Learnt.into(),
            sample_time: Some(Timestamp::default()),
            ..Estimate::default()
        }
    }

    #[test]
    fn a_good_one_tells_time_and_blackout() {
        assert_eq!(short(&good()), "8.40 s, blackout 120 ms");
        assert_eq!(
            table(&good()).join("\n"),
            "ESTIMATE      VALUE     HOW\n\
             transfer      8.40 s    800 MiB sent\n\
             blackout      120 ms\n\
             chance        100 %     that it moves, if it writes ½ to 3 times as much\n\
             guest writes  12 MiB/s  within 300 MiB\n\
             link          95 MiB/s  as earlier migrations reached it"
        );
        let slowed = Estimate {
            needed_means: vec!["auto-converge".to_owned()],
            ..good()
        };
        assert_eq!(short(&slowed), "8.40 s, blackout 120 ms, with auto-converge");
        let felt = Estimate {
            standstill: time(240),
            ..slowed
        };
        let text = table(&felt).join("\n");
        assert!(
            text.contains("needs         auto-converge  as the policy allows; still for 240 ms at a time"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn one_without_an_end_tells_what_it_takes() {
        let endless = Estimate {
            duration: None,
            blackout: None,
            needed_means: vec!["auto-converge".to_owned(), "max-downtime".to_owned()],
            needed_max_downtime: time(3800),
            convergence_probability: 0.0,
            ..good()
        };
        assert_eq!(short(&endless), "would not end without auto-converge or max-downtime");
        let text = table(&endless).join("\n");
        assert!(
            text.contains("needs         max-downtime   --max-downtime of 3.80 s or more"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn what_is_not_known_is_not_hidden() {
        let unknown = Estimate {
            unknown: "the speed of the link is not known".to_owned(),
            ..Estimate::default()
        };
        assert_eq!(short(&unknown), "not known");
        assert!(
            table(&unknown)
                .join("\n")
                .contains("outcome   not known  the speed of the link is not known")
        );
    }

    #[test]
    fn in_the_end_it_is_compared() {
        let moved = |estimate_error| Migration {
            estimate: Some(good()),
            estimate_error,
            summary: Some(TransferSummary {
                duration: time(7500),
                ..TransferSummary::default()
            }),
            ..Migration::default()
        };
        let told = |error| against(&moved(error)).unwrap();
        assert_eq!(told(Some(0.12)), "8.40 s of transfer; it took 7.50 s: 12 % too long");
        assert_eq!(told(Some(-0.2)), "8.40 s of transfer; it took 7.50 s: 20 % too short");
        assert_eq!(told(None), "8.40 s of transfer");
        assert_eq!(against(&Migration::default()), None);
    }
}
