//! The table of `docs/failures.md`, from results.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Act, End, Moment, Outcome, impossible};

/// Faults down, moments across; in each cell how the migration ended and how long the guest stood still.
pub fn render(outcomes: &[Outcome]) -> String {
    let mut cells: BTreeMap<(&str, &str), Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        cells.entry((&outcome.act, &outcome.moment)).or_default().push(outcome);
    }
    let mut text = String::from("| what breaks |");
    for moment in Moment::ALL {
        let _ = write!(text, " {moment} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(Moment::ALL.len()));
    text.push('\n');
    for act in Act::all() {
        let name = act.to_string();
        let _ = write!(text, "| {name} |");
        for moment in Moment::ALL {
            let seen = cells.get(&(name.as_str(), moment.to_string().as_str())).cloned();
            let word = match seen {
                Some(seen) => cell(&seen),
                None => impossible(moment, act).unwrap_or("·").to_string(),
            };
            let _ = write!(text, " {word} |");
        }
        text.push('\n');
    }
    text
}

/// Every end that was seen, with the longest standstill of each.
fn cell(seen: &[&Outcome]) -> String {
    let words = [End::Moved, End::Stayed, End::Ended].into_iter().filter_map(|end| {
        let of_end: Vec<_> = seen.iter().filter(|outcome| outcome.state == end.state()).collect();
        let longest = of_end.iter().filter_map(|outcome| outcome.still_ms).max();
        if of_end.is_empty() {
            return None;
        }
        Some(match (end, longest) {
            (End::Ended, _) | (_, None) => "ended".to_string(),
            (End::Moved, Some(ms)) => format!("moved, {}", duration(ms)),
            (End::Stayed, Some(ms)) => format!("stayed, {}", duration(ms)),
        })
    });
    words.collect::<Vec<_>>().join("; ")
}

fn duration(ms: u64) -> String {
    if ms < 1000 {
        format!("{ms} ms")
    } else {
        format!("{}.{} s", ms / 1000, ms % 1000 / 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_found_in_its_cell_with_its_longest_standstill() {
        let outcome = |still| Outcome {
            act: Act::Reset.to_string(),
            moment: Moment::EarlyTransfer.to_string(),
            state: "FAILED".to_string(),
            reason: String::new(),
            decided: String::new(),
            still_ms: Some(still),
            healed_ms: 0,
            rested_ms: 0,
            repeats: 0,
        };
        let text = render(&[outcome(20), outcome(1234)]);
        let row = text.lines().find(|line| line.starts_with("| connections reset |"));
        assert_eq!(
            row,
            Some("| connections reset | · | stayed, 1.2 s | · | · | · | · | · | · | · | · |")
        );
        assert_eq!(text.lines().count(), 2 + Act::all().len());
    }
}
