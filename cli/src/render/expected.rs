//! What a transfer was expected to cost beside what it cost, as a table below its timeline.

use drover_proto::v1::Migration;

use super::estimate;
use super::table::table;
use super::units;

/// Nothing where nothing was expected of it.
pub(crate) fn compared(migration: &Migration) -> Vec<String> {
    let Some(expected) = &migration.estimate else {
        return Vec::new();
    };
    let (Some(duration), Some(blackout)) = (expected.duration, expected.blackout) else {
        return vec![format!("expected: {}", estimate::why_not(expected))];
    };
    let was = migration.summary.unwrap_or_default();
    // A summary without a duration is of a transfer that has not ended.
    let sent = was.duration.map(|_| was.tunnel_bytes).filter(|sent| *sent > 0);
    let row = |what: &str, expected: String, was: Option<String>, off: Option<String>| {
        let was = was.unwrap_or_else(|| "-".to_owned());
        vec![what.to_owned(), expected, was, off.unwrap_or_default()]
    };
    let rows = [
        row(
            "transfer",
            units::duration(duration),
            was.duration.map(units::duration),
            migration.estimate_error.map(estimate::off),
        ),
        row(
            "blackout",
            units::duration(blackout),
            was.blackout.map(units::duration),
            migration.estimate_blackout_error.map(estimate::off),
        ),
        row(
            "sent",
            units::bytes(expected.transfer_bytes),
            sent.map(units::bytes),
            sent.map(|sent| much(expected.transfer_bytes as f64 / sent as f64 - 1.0)),
        ),
    ];
    let page = table(&["", "EXPECTED", "WAS", "ERROR"], &rows);
    page.lines().map(str::to_owned).collect()
}

/// Of an amount: `12 % too much`.
fn much(error: f64) -> String {
    match (error * 100.0).round() {
        percent if percent > 0.0 => format!("{percent:.0} % too much"),
        percent if percent < 0.0 => format!("{:.0} % too little", -percent),
        _ => "exactly so".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use drover_proto::v1::{Estimate, TransferSummary};

    use super::*;
    use crate::render::estimate::tests::time;

    fn expected() -> Migration {
        Migration {
            estimate: Some(Estimate {
                duration: time(8400),
                blackout: time(120),
                transfer_bytes: 800 << 20,
                ..Estimate::default()
            }),
            ..Migration::default()
        }
    }

    #[test]
    fn what_was_expected_is_beside_what_happened() {
        let moved = Migration {
            summary: Some(TransferSummary {
                duration: time(7500),
                blackout: time(240),
                tunnel_bytes: 1000 << 20,
                ..TransferSummary::default()
            }),
            estimate_error: Some(0.12),
            estimate_blackout_error: Some(-0.5),
            ..expected()
        };
        assert_eq!(
            compared(&moved).join("\n"),
            "          EXPECTED  WAS       ERROR\n\
             transfer  8.40 s    7.50 s    12 % too long\n\
             blackout  120 ms    240 ms    50 % too short\n\
             sent      800 MiB   1000 MiB  20 % too little"
        );
    }

    #[test]
    fn before_its_end_there_is_nothing_to_compare_with() {
        let page = compared(&expected()).join("\n");
        assert_eq!(
            page,
            "          EXPECTED  WAS  ERROR\n\
             transfer  8.40 s    -\n\
             blackout  120 ms    -\n\
             sent      800 MiB   -"
        );
    }

    #[test]
    fn what_was_not_expected_is_not_made_up() {
        assert!(compared(&Migration::default()).is_empty());
        let unknown = Migration {
            estimate: Some(Estimate {
                unknown: "nobody knows the link".to_owned(),
                ..Estimate::default()
            }),
            ..Migration::default()
        };
        assert_eq!(compared(&unknown), ["expected: not known: nobody knows the link"]);
        let endless = Migration {
            estimate: Some(Estimate {
                needed_means: vec!["post-copy".to_owned()],
                ..Estimate::default()
            }),
            ..Migration::default()
        };
        assert_eq!(compared(&endless), ["expected: would not end without post-copy"]);
    }
}
