//! Breadth first over every state that can be reached, with a few faults; and back from every rest, to see that none
//! is reached from which nobody can ever come to one.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::rules::Rules;
use super::state::State;
use super::{controller, destination, source};

/// What was found.
#[derive(Debug)]
pub struct Explored {
    /// States visited.
    pub states: usize,
    pub transitions: usize,
    /// The search ended at its limit, not at the end of what there is.
    pub cut_off: bool,
    /// The shortest way to something that must never be, and what that is.
    pub wrong: Option<(&'static str, Vec<State>)>,
    /// A state from which no way leads to a rest, though nothing more goes wrong, and it is not the documented one.
    pub hopeless: Option<Vec<State>>,
    /// States of the one documented case that nobody can decide.
    pub undecidable: usize,
}

/// Everything that can be reached from the first state with so many faults, at most `limit` states.
pub fn explore(faults: u8, limit: usize, rules: Rules) -> Explored {
    Search::new(faults).run(limit, rules)
}

/// FxHash: states are hashed often, and nobody attacks the table.
#[derive(Clone, Copy, Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x51_7c_c1_b7_27_22_0a_95);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}

struct Search {
    states: Vec<State>,
    numbers: HashMap<State, u32, BuildHasherDefault<Mixer>>,
    /// Where each state was reached from first.
    parents: Vec<u32>,
    /// Ways without a fault, from each state in turn.
    edges: Vec<u32>,
    edges_end: Vec<u32>,
}

impl Search {
    fn new(faults: u8) -> Self {
        let mut search = Self {
            states: Vec::new(),
            numbers: HashMap::default(),
            parents: Vec::new(),
            edges: Vec::new(),
            edges_end: Vec::new(),
        };
        search.number(State::first(faults), 0);
        search
    }

    fn number(&mut self, state: State, parent: u32) -> u32 {
        if let Some(number) = self.numbers.get(&state) {
            return *number;
        }
        let number = u32::try_from(self.states.len()).expect("fewer states than that");
        self.states.push(state);
        self.parents.push(parent);
        self.numbers.insert(state, number);
        number
    }

    fn run(mut self, limit: usize, rules: Rules) -> Explored {
        let (mut at, mut transitions, mut next) = (0, 0, Vec::new());
        while at < self.states.len() {
            let state = self.states[at];
            let number = u32::try_from(at).expect("fewer states than that");
            if let Some(what) = state.wrong() {
                let way = self.way_to(number);
                return self.found(transitions, false, Some((what, way)), None);
            }
            if self.states.len() > limit {
                return self.found(transitions, true, None, None);
            }
            source::steps(&state, rules, &mut next);
            destination::steps(&state, rules, &mut next);
            controller::steps(&state, rules, &mut next);
            transitions += next.len();
            for successor in next.drain(..) {
                let there = self.number(successor, number);
                self.edges.push(there);
            }
            self.edges_end
                .push(u32::try_from(self.edges.len()).expect("fewer ways than that"));
            faults(&state, &mut next);
            transitions += next.len();
            for successor in next.drain(..) {
                self.number(successor, number);
            }
            at += 1;
        }
        let hopeless = self.hopeless();
        self.found(transitions, false, None, hopeless)
    }

    fn found(
        self,
        transitions: usize,
        cut_off: bool,
        wrong: Option<(&'static str, Vec<State>)>,
        hopeless: Option<Vec<State>>,
    ) -> Explored {
        Explored {
            states: self.states.len(),
            transitions,
            cut_off,
            wrong,
            hopeless,
            undecidable: self.states.iter().filter(|state| state.is_undecidable()).count(),
        }
    }

    fn way_to(&self, mut number: u32) -> Vec<State> {
        let mut way = vec![self.states[number as usize]];
        while number != 0 {
            number = self.parents[number as usize];
            way.push(self.states[number as usize]);
        }
        way.reverse();
        way
    }

    /// The first state from which neither a rest nor the documented case can be reached without a further fault.
    fn hopeless(&self) -> Option<Vec<State>> {
        let mut into = vec![0_u32; self.states.len() + 1];
        for there in &self.edges {
            into[*there as usize + 1] += 1;
        }
        for at in 1..into.len() {
            into[at] += into[at - 1];
        }
        let (mut from, mut place) = (vec![0_u32; self.edges.len()], into.clone());
        let mut start = 0;
        for (number, end) in self.edges_end.iter().enumerate() {
            for there in &self.edges[start..*end as usize] {
                let slot = &mut place[*there as usize];
                from[*slot as usize] = u32::try_from(number).expect("fewer states than that");
                *slot += 1;
            }
            start = *end as usize;
        }
        let settled = |state: &State| state.rests() || state.is_undecidable();
        let mut good: Vec<bool> = self.states.iter().map(settled).collect();
        let mut open: Vec<usize> = (0..good.len()).filter(|at| good[*at]).collect();
        while let Some(at) = open.pop() {
            for before in &from[into[at] as usize..into[at + 1] as usize] {
                let before = *before as usize;
                if !good[before] {
                    good[before] = true;
                    open.push(before);
                }
            }
        }
        let lost = (0..good.len()).find(|at| !good[*at])?;
        Some(self.way_to(u32::try_from(lost).expect("fewer states than that")))
    }
}

/// What can go wrong, where something still may.
fn faults(now: &State, next: &mut Vec<State>) {
    let Some(left) = now.faults.checked_sub(1) else { return };
    let mut resumed = *now;
    resumed.faults = left;
    if source::resumed_by_hand(&mut resumed) {
        next.push(resumed);
    }
    let mut fault = |strike: &dyn Fn(&mut State)| {
        let mut after = *now;
        after.faults = left;
        strike(&mut after);
        next.push(after);
    };
    fault(&|after| source::die(&mut after.source));
    fault(&|after| source::restart_libvirtd(&mut after.source));
    fault(&|after| source::lose_guest(&mut after.source));
    fault(&|after| source::reboot(&mut after.source));
    fault(&|after| destination::die(&mut after.destination));
    fault(&|after| destination::restart_libvirtd(&mut after.destination));
    fault(&|after| destination::lose_guest(&mut after.destination));
    fault(&|after| {
        destination::lose_guest(&mut after.destination);
        destination::die(&mut after.destination);
    });
}

/// The ways of a counter-example, one line a state, for people.
pub fn tell(way: &[State]) -> String {
    way.iter().map(|state| format!("  {state:?}\n")).collect()
}
