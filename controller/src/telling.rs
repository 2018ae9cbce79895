//! What the log says of a migration that could not go on: each wait once, not at every look. Pure.

use drover_proto::v1::WaitingFor;

use crate::saga::PATIENCE;
use crate::state::WaitReason;

/// What one look that did not help is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Somebody has to do something (ERROR).
    Attention,
    /// It waits for a host (WARN).
    Waits,
    /// Nothing new (DEBUG).
    Again,
}

/// `before` is what it waited for after the last look, as this process knows; `unknowns` counts missing answers in a
/// row.
pub fn told(before: Option<&WaitingFor>, now: Option<&WaitingFor>, unknowns: u32) -> Told {
    let Some(now) = now else {
        return if unknowns == PATIENCE {
            Told::Attention
        } else {
            Told::Again
        };
    };
    let same = before.is_some_and(|before| (&before.reason, &before.host) == (&now.reason, &now.host));
    if now.reason == WaitReason::ResolveNeeded.name() {
        // It asks for a person from the first look on.
        return if same { Told::Again } else { Told::Attention };
    }
    if unknowns == PATIENCE {
        return Told::Attention;
    }
    if now.reason == WaitReason::HostUnreachable.name() && !same {
        return Told::Waits;
    }
    Told::Again
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(reason: WaitReason, host: &str) -> Option<WaitingFor> {
        Some(WaitingFor {
            reason: reason.name().to_owned(),
            host: format!("hosts/{host}"),
            ..WaitingFor::default()
        })
    }

    /// What twenty looks in a row tell.
    fn of_looks(mut wait: impl FnMut(u32) -> Option<WaitingFor>) -> Vec<(u32, Told)> {
        let (mut before, mut all) = (None, Vec::new());
        for unknowns in 1..=20 {
            let now = wait(unknowns);
            let told = told(before.as_ref(), now.as_ref(), unknowns);
            if told != Told::Again {
                all.push((unknowns, told));
            }
            before = now;
        }
        all
    }

    #[test]
    fn a_host_that_is_away_is_told_once_and_asks_for_attention_once() {
        let looks = of_looks(|_| waits(WaitReason::HostUnreachable, "b"));
        assert_eq!(looks, [(1, Told::Waits), (PATIENCE, Told::Attention)]);
    }

    #[test]
    fn another_host_is_another_wait() {
        let host = |unknowns| if unknowns < 3 { "a" } else { "b" };
        let looks = of_looks(|unknowns| waits(WaitReason::HostUnreachable, host(unknowns)));
        assert_eq!(looks, [(1, Told::Waits), (3, Told::Waits), (PATIENCE, Told::Attention)]);
    }

    #[test]
    fn a_person_is_asked_for_once() {
        let looks = of_looks(|_| waits(WaitReason::ResolveNeeded, "b"));
        assert_eq!(looks, [(1, Told::Attention)]);
    }

    #[test]
    fn what_waits_for_nobody_asks_for_attention_in_the_end() {
        assert_eq!(of_looks(|_| None), [(PATIENCE, Told::Attention)]);
    }
}
