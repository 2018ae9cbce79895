//! Who decided where a guest belongs, from what both agents wrote into their journals and logs. Only decisions.

use anyhow::{Result, ensure};

use super::{Act, Case, Daemon, End, Moment, Role};
use crate::cluster::Page;

/// The destination has told the source's agent that the guest runs there.
const RUNS_THERE: &str = "the guest runs at the destination";
/// Known only where that answer was to the very call that let the destination finish.
const IN_TIME: &str = "blackout=Some(";

/// What the agents have left of one migration.
#[derive(Debug, Clone)]
pub(super) struct Evidence {
    pub(super) source: Option<Page>,
    pub(super) destination: Option<Page>,
    pub(super) answered: Answered,
    /// The message of the record's error.
    pub(super) because: String,
}

/// Whether the source's agent heard from the destination itself that the guest runs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    InTime,
    /// Another call than the one that was answered had let it finish.
    Later,
    Never,
}

impl Answered {
    /// By the log of the source's agent.
    pub(super) fn read(log: &str, migration: &str) -> Answered {
        let told = |line: &&str| line.contains(RUNS_THERE) && line.contains(migration);
        let mut told = log.lines().filter(told).peekable();
        if told.peek().is_none() {
            Answered::Never
        } else if told.any(|line| line.contains(IN_TIME)) {
            Answered::InTime
        } else {
            Answered::Later
        }
    }
}

impl Evidence {
    fn there(&self) -> &str {
        match self.destination.as_ref().map(Page::state) {
            None => "nothing",
            Some("") => "that it was undone",
            Some(state) => state,
        }
    }

    /// The journals bear out what the record says.
    pub(super) fn bears_out(&self, end: End) -> Result<()> {
        let verdict = self.source.as_ref().map_or("", Page::verdict);
        let right = match end {
            End::Moved => self.there() == "Ran",
            End::Stayed => self.there() != "Ran" && verdict == "NeverRan",
            End::Ended => true,
        };
        ensure!(right, "{end:?}, and the journals say: {self:?}");
        Ok(())
    }

    /// In one sentence: by whose journal, and for a guest that moved, by whose order it was let go on there.
    pub(super) fn who(&self, case: Case, end: End) -> String {
        let there = self.there();
        match end {
            End::Moved => format!("the destination, whose journal says {there}; {}", self.let_finish(case)),
            End::Stayed => {
                let handed_over = self.source.as_ref().is_some_and(|page| page.state() == "HandedOver");
                let source = if handed_over { "had" } else { "had not" };
                format!(
                    "the destination's journal, which says {there}; the source {source} handed it over ({})",
                    self.because
                )
            }
            End::Ended if there == "Ran" => "the destination, whose journal says Ran; its QEMU is gone".to_string(),
            End::Ended => format!("the source, whose QEMU is gone; the destination's journal says {there}"),
        }
    }

    fn let_finish(&self, case: Case) -> &'static str {
        // Up to its end Finish goes on by itself, unless who carries it out is gone.
        let goes_on = case.moment >= Moment::Running || case.moment >= Moment::Finishing && !stops_finish(case.act);
        if goes_on {
            return "the source's agent had let it finish before";
        }
        match self.answered {
            Answered::InTime => "the source's agent let it finish",
            Answered::Later if restarts_source(case.act) => "the source's agent, started anew, let it finish",
            Answered::Later | Answered::Never if keeps_orders_back(case.act) => {
                "the controller let it finish in the source's place"
            }
            Answered::Later => {
                "the source's agent, whose answer came too late, or the controller in its place let it finish"
            }
            Answered::Never => "the controller let it finish in the source's place",
        }
    }
}

/// Whether an act ends what carries Finish out.
fn stops_finish(act: Act) -> bool {
    matches!(
        act,
        Act::KillBothAgents
            | Act::Kill(Daemon::Agent(Role::Destination) | Daemon::Libvirtd(Role::Destination))
            | Act::KillQemu(Role::Destination)
    )
}

fn restarts_source(act: Act) -> bool {
    matches!(act, Act::KillBothAgents | Act::Kill(Daemon::Agent(Role::Source)))
}

/// Whether nothing that the source's agent says arrives at the destination as long as it lasts.
fn keeps_orders_back(act: Act) -> bool {
    matches!(act, Act::Cut | Act::CutOneWay(Role::Source))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-11-30T01:00:00.000Z INFO  the guest runs at the destination blackout=None pages_missing=false migration_id=7
2026-11-30T01:00:01.000Z INFO  the guest runs at the destination blackout=Some(90ms) pages_missing=false migration_id=8
";

    #[test]
    fn the_log_of_the_source_says_whether_it_was_answered() {
        let read = |migration| Answered::read(LOG, migration);
        assert_eq!(
            [read("migration_id=7"), read("migration_id=8"), read("migration_id=9")],
            [Answered::Later, Answered::InTime, Answered::Never]
        );
    }

    #[test]
    fn who_let_it_finish_follows_from_what_was_cut() {
        let evidence = |answered| Evidence {
            source: None,
            destination: None,
            answered,
            because: String::new(),
        };
        let who = |act, moment, answered| evidence(answered).let_finish(Case { moment, act });
        let cut = who(Act::Cut, Moment::AllSent, Answered::Later);
        assert_eq!(cut, "the controller let it finish in the source's place");
        let killed = who(Act::Kill(Daemon::Agent(Role::Source)), Moment::AllSent, Answered::Later);
        assert!(killed.contains("started anew"), "{killed}");
        let died = Act::Kill(Daemon::Agent(Role::Destination));
        assert!(who(died, Moment::Running, Answered::Never).ends_with("before"));
        assert!(!who(died, Moment::Resuming, Answered::InTime).ends_with("before"));
    }

    #[test]
    fn a_record_that_the_journals_do_not_bear_out_is_wrong() {
        let nothing = Evidence {
            source: None,
            destination: None,
            answered: Answered::Never,
            because: String::new(),
        };
        assert!(nothing.bears_out(End::Moved).is_err());
        assert!(nothing.bears_out(End::Stayed).is_err());
    }
}
