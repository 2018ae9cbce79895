//! Random sequences of what may be asked of both journals of a migration: whatever comes, in whatever order and how
//! often, only drawn arrows are gone, and the promises hold.

use proptest::prelude::*;

use super::*;

/// Something that is asked of a destination's record.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Finish { post_copy: bool },
    Resume,
    Ran { arrives_paused: bool },
    Fail,
    Revoke,
    Decide(Verdict),
    CarryOut,
}

/// Something that is asked of a source's record.
#[derive(Clone, Copy, Debug)]
enum AskSource {
    HandOver,
    Bury,
    Decide(Verdict),
    CarryOut,
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    prop_oneof![Just(Verdict::NeverRan), Just(Verdict::Ran)]
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let ask = prop_oneof![
        any::<bool>().prop_map(|post_copy| Ask::Finish { post_copy }),
        Just(Ask::Resume),
        any::<bool>().prop_map(|arrives_paused| Ask::Ran { arrives_paused }),
        Just(Ask::Fail),
        Just(Ask::Revoke),
        verdicts().prop_map(Ask::Decide),
        Just(Ask::CarryOut),
    ];
    prop::collection::vec(ask, 0..40)
}

fn asks_of_a_source() -> impl Strategy<Value = Vec<AskSource>> {
    let ask = prop_oneof![
        Just(AskSource::HandOver),
        Just(AskSource::Bury),
        verdicts().prop_map(AskSource::Decide),
        Just(AskSource::CarryOut),
    ];
    prop::collection::vec(ask, 0..40)
}

/// A destination's record, and what was done on its word.
struct Destination {
    state: DestinationState,
    decision: Decision,
    finishes: u32,
    resumed: bool,
    said_never_ran: bool,
    said_ran: bool,
}

impl Destination {
    fn new() -> Self {
        Self {
            state: DestinationState::Waiting,
            decision: Decision::Open,
            finishes: 0,
            resumed: false,
            said_never_ran: false,
            said_ran: false,
        }
    }

    fn take(&mut self, step: Result<Step<DestinationState>, Forbidden>) -> bool {
        if let Ok(Step::Write(state)) = step {
            self.state = state;
        }
        step.is_ok()
    }

    /// As the agent does it: written first, then done.
    fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::Finish { post_copy } => match self.state.finish(post_copy) {
                Ok(FinishStep::Finish(state)) => {
                    self.state = state;
                    self.finishes += 1;
                    // In post-copy Finish itself starts the guest.
                    self.resumed |= post_copy;
                }
                Ok(FinishStep::Join) => {}
                Ok(FinishStep::Ran) => self.said_ran = true,
                Err(_) => self.said_never_ran = true,
            },
            Ask::Resume => {
                let step = self.state.resume();
                self.resumed |= step == Ok(Step::Write(DestinationState::Resuming));
                self.take(step);
            }
            Ask::Ran { arrives_paused } => {
                let step = self.state.ran(arrives_paused);
                self.said_ran |= self.take(step);
            }
            Ask::Fail => {
                let step = self.state.fail();
                self.said_never_ran |= self.take(step);
            }
            Ask::Revoke => {
                let step = self.state.revoke();
                self.said_never_ran |= self.take(step);
            }
            Ask::Decide(verdict) => {
                if self.state.agrees(verdict).is_ok()
                    && let Ok(Step::Write(decision)) = self.decision.decide(verdict)
                {
                    self.decision = decision;
                }
            }
            Ask::CarryOut => self.decision = carried_out(self.decision),
        }
    }
}

fn carried_out(decision: Decision) -> Decision {
    match decision {
        Decision::Open => Decision::Open,
        Decision::Decided(verdict) | Decision::Settled(verdict) => Decision::Settled(verdict),
    }
}

fn is_drawn(from: DestinationState, to: DestinationState) -> bool {
    use DestinationState::{Failed, Finishing, Ran, Resuming, Revoked, Waiting};
    from == to
        || matches!(
            (from, to),
            (Waiting, Finishing | Resuming | Revoked) | (Finishing, Resuming | Ran | Failed) | (Resuming, Ran)
        )
}

proptest! {
    #[test]
    fn a_destination_goes_only_where_it_may(asks in asks()) {
        let mut record = Destination::new();
        for ask in asks {
            let (before, decided) = (record.state, record.decision);
            record.ask(ask);
            prop_assert!(is_drawn(before, record.state), "{before:?} to {:?} by {ask:?}", record.state);
            prop_assert!(record.finishes <= 1, "Finish at most once");
            if record.state == DestinationState::Revoked {
                prop_assert!(matches!(before, DestinationState::Waiting | DestinationState::Revoked));
                prop_assert_eq!(record.finishes, 0, "what was told to finish is not revoked");
            }
            prop_assert!(!(record.said_ran && record.said_never_ran), "one of the two, for good");
            prop_assert!(!(record.resumed && record.said_never_ran), "what was told to run may have run");
            if let Some(verdict) = decided.verdict() {
                prop_assert_eq!(record.decision.verdict(), Some(verdict), "a verdict is never changed");
            }
            match record.decision.verdict() {
                Some(Verdict::Ran) => prop_assert_eq!(record.state, DestinationState::Ran),
                Some(Verdict::NeverRan) => prop_assert!(!record.resumed),
                None => {}
            }
        }
    }

    #[test]
    fn a_source_hands_over_only_while_nobody_has_decided(asks in asks_of_a_source()) {
        let (mut state, mut decision, mut tombstoned) = (SourceState::Sending, Decision::Open, false);
        for ask in asks {
            let (before, decided) = (state, decision);
            match ask {
                AskSource::HandOver => {
                    if let Ok(Step::Write(next)) = state.hand_over(tombstoned, decision) {
                        state = next;
                        prop_assert!(!tombstoned && decision == Decision::Open);
                    }
                }
                AskSource::Bury => tombstoned = true,
                AskSource::Decide(verdict) => {
                    if let Ok(Step::Write(next)) = decision.decide(verdict) {
                        (decision, tombstoned) = (next, true);
                    }
                }
                AskSource::CarryOut => decision = carried_out(decision),
            }
            prop_assert!(before == SourceState::Sending || state == SourceState::HandedOver, "there is no way back");
            prop_assert!(decided == Decision::Open || decision.verdict() == decided.verdict());
            prop_assert!(decided != Decision::Settled(Verdict::Ran) || decision == decided, "settled is final");
        }
    }

    /// Both journals of one migration, and requests that arrive late and twice: the source is never given its guest
    /// back, by the rules, where the destination was told to run it.
    #[test]
    fn at_most_one_side_may_run_the_guest(
        asks in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..60),
    ) {
        let (mut source, mut buried) = (SourceState::Sending, false);
        let mut destination = Destination::new();
        // Requests that have left the source; each may arrive at any time, and again.
        let mut left = 0;
        let mut given_back = false;
        for (repeat, which) in asks {
            match which.index(6) {
                0 if source.hand_over(buried, Decision::Open).is_ok() => {
                    source = SourceState::HandedOver;
                    left += 1;
                }
                1 if left > 0 => {
                    destination.ask(Ask::Finish { post_copy: false });
                    if repeat {
                        destination.ask(Ask::Finish { post_copy: false });
                    }
                }
                2 => destination.ask(Ask::Resume),
                3 => destination.ask(Ask::Ran { arrives_paused: false }),
                4 => buried = true,
                // The destination is revoked only after the source was tombstoned.
                5 if buried => {
                    destination.ask(if repeat { Ask::Fail } else { Ask::Revoke });
                    let proved = destination.state.agrees(Verdict::NeverRan).is_ok();
                    given_back |= proved || source == SourceState::Sending;
                }
                _ => {}
            }
            prop_assert!(!(given_back && destination.resumed), "two copies");
        }
    }
}
