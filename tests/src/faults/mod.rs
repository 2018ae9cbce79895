//! Faults on real hosts: what may break, when, what must be true afterwards, and a stage on which it is tried.
//!
//! ```text
//!  Moment × Act ──▶ rules: which ends are right        deciding, no I/O
//!       │    │
//!       ▼    ▼
//!       Stage: hold the moment, do the act, heal, wait for rest, check all invariants ──▶ Outcome, one line
//! ```

mod act;
pub mod chaos;
mod decided;
pub mod figures;
mod moment;
pub mod outcome;
mod random;
mod rules;
mod stage;
mod table;

pub use act::{Act, Daemon, Patience, Role};
pub use moment::Moment;
pub use outcome::Outcome;
pub use rules::{End, expected, impossible};
pub use stage::{Held, Stage, run_all};
pub use table::render;

/// One case of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub moment: Moment,
    pub act: Act,
}

impl Case {
    /// Every case that can be: an act needs something that it can be done to.
    pub fn all() -> Vec<Case> {
        let every = Moment::ALL
            .into_iter()
            .flat_map(|moment| Act::all().into_iter().map(move |act| Case { moment, act }));
        every
            .filter(|case| impossible(case.moment, case.act).is_none())
            .collect()
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", self.act, self.moment)
    }
}
