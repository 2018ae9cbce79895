//! Which guest is meant: a name or a UUID against the inventory. Refuses what is ambiguous, naming the candidates.

use drover_proto::ids::GuestId;
use drover_proto::v1::{Guest, GuestState};

use crate::client::Inventory;
use crate::exit::{Exit, Problem};
use crate::render::{lists::host_of, words};

/// The one guest that `wanted` means, on `from` where it is given.
pub(crate) fn choose<'a>(inventory: &'a Inventory, wanted: &str, from: Option<&str>) -> Result<&'a Guest, Problem> {
    let here = |guest: &&Guest| from.is_none_or(|host| host_of(guest) == host);
    let meant: Vec<&Guest> = match wanted.parse::<GuestId>() {
        Ok(id) => inventory
            .guests
            .iter()
            .filter(|guest| guest.uuid.parse() == Ok(id))
            .filter(here)
            .collect(),
        Err(_) => inventory
            .guests
            .iter()
            .filter(|guest| guest.display_name == wanted)
            .filter(here)
            .collect(),
    };
    match without_waiting(meant)[..] {
        [guest] => Ok(guest),
        [] => Err(unknown(inventory, wanted, from)),
        ref several @ [_, _, ..] => Err(ambiguous(several, wanted)),
    }
}

/// The UUID of the one guest of this name, on however many hosts it shows while it moves.
pub(crate) fn uuid_of(inventory: &Inventory, wanted: &str) -> Result<String, Problem> {
    let meant: Vec<&Guest> = inventory
        .guests
        .iter()
        .filter(|guest| guest.display_name == wanted)
        .collect();
    match &meant[..] {
        [] => Err(unknown(inventory, wanted, None)),
        [first, rest @ ..] if rest.iter().all(|guest| guest.uuid == first.uuid) => Ok(first.uuid.clone()),
        several => Err(ambiguous(several, wanted)),
    }
}

/// While a guest migrates, its destination has a copy that waits: the other one is meant.
fn without_waiting(meant: Vec<&Guest>) -> Vec<&Guest> {
    let one_uuid = meant.iter().all(|guest| guest.uuid == meant[0].uuid);
    let settled = |guest: &&Guest| guest.state() != GuestState::Migrating;
    if one_uuid && meant.iter().any(settled) {
        meant.into_iter().filter(settled).collect()
    } else {
        meant
    }
}

fn unknown(inventory: &Inventory, wanted: &str, from: Option<&str>) -> Problem {
    let place = from.map(|host| format!(" on {host}")).unwrap_or_default();
    let mut message = format!("there is no guest {:?}{place}", words::one_line(wanted));
    if !inventory.unreachable_hosts.is_empty() {
        let hosts: Vec<&str> = inventory.unreachable_hosts.iter().map(|host| words::id(host)).collect();
        message.push_str(&format!(" (but these hosts do not answer: {})", hosts.join(", ")));
    }
    let near = near(wanted, inventory.guests.iter().map(|guest| guest.display_name.as_str()));
    let next = if near.is_empty() {
        "see `drover guest list`".to_owned()
    } else {
        format!("did you mean {near}?")
    };
    Problem::new(Exit::NotFound, message).with_next(next)
}

fn ambiguous(meant: &[&Guest], wanted: &str) -> Problem {
    let one_uuid = meant.iter().all(|guest| guest.uuid == meant[0].uuid);
    let mut message = format!("{:?} means more than one guest:", words::one_line(wanted));
    for guest in meant {
        let state = words::guest_state(guest.state());
        message.push_str(&format!("\n  {}  on {}  {state}", guest.uuid, host_of(guest)));
    }
    let next = if one_uuid {
        "say which by --from HOST"
    } else {
        "say which by its UUID, or by --from HOST"
    };
    Problem::new(Exit::NotFound, message).with_next(next)
}

/// At most three of `known` that could have been meant, nearest first: `a, b or c`.
pub(crate) fn near<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> String {
    let limit = wanted.chars().count().div_ceil(3);
    let mut close: Vec<(usize, &str)> = known
        .map(|name| (distance(wanted, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    close.sort_unstable();
    close.dedup();
    let close: Vec<String> = close.iter().take(3).map(|(_, name)| words::one_line(name)).collect();
    match &close[..] {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// How many letters must be added, left out or replaced (Levenshtein), upper and lower case alike.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, &against) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != against);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "11111111-1111-4111-8111-111111111111";
    const TWO: &str = "22222222-2222-4222-8222-222222222222";

    fn guest(host: &str, name: &str, uuid: &str) -> Guest {
        Guest {
            name: format!("hosts/{host}/guests/{uuid}"),
            uuid: uuid.to_owned(),
            display_name: name.to_owned(),
            state: GuestState::Running.into(),
            ..Guest::default()
        }
    }

    fn inventory(guests: Vec<Guest>) -> Inventory {
        Inventory {
            guests,
            unreachable_hosts: vec![],
        }
    }

    #[test]
    fn names_and_uuids_are_found() {
        let inventory = inventory(vec![guest("host-a", "web", ONE), guest("host-b", "db", TWO)]);
        assert_eq!(choose(&inventory, "web", None).unwrap().uuid, ONE);
        assert_eq!(choose(&inventory, &TWO.to_uppercase(), None).unwrap().uuid, TWO);
        assert_eq!(choose(&inventory, "db", Some("host-b")).unwrap().uuid, TWO);
        assert_eq!(
            choose(&inventory, "db", Some("host-a")).unwrap_err().exit,
            Exit::NotFound
        );
    }

    #[test]
    fn an_ambiguous_name_names_its_candidates() {
        let inventory = inventory(vec![guest("host-a", "web", ONE), guest("host-b", "web", TWO)]);
        let problem = choose(&inventory, "web", None).unwrap_err();
        assert_eq!(
            problem.to_string(),
            format!(
                "\"web\" means more than one guest:\n  {ONE}  on host-a  running\n  {TWO}  on host-b  running\n  \
                 next: say which by its UUID, or by --from HOST"
            )
        );
        assert_eq!(choose(&inventory, "web", Some("host-b")).unwrap().uuid, TWO);
    }

    #[test]
    fn a_waiting_copy_is_not_meant() {
        let waiting = Guest {
            state: GuestState::Migrating.into(),
            ..guest("host-b", "web", ONE)
        };
        let mut inventory = inventory(vec![guest("host-a", "web", ONE), waiting]);
        assert_eq!(host_of(choose(&inventory, "web", None).unwrap()), "host-a");
        inventory.guests[0].state = GuestState::Migrating.into();
        assert!(
            choose(&inventory, "web", None)
                .unwrap_err()
                .next
                .unwrap()
                .contains("--from HOST")
        );
    }

    #[test]
    fn a_typo_is_noticed() {
        let mut inventory = inventory(vec![guest("host-a", "web-1", ONE), guest("host-b", "database", TWO)]);
        assert_eq!(
            choose(&inventory, "wbe-1", None).unwrap_err().next.unwrap(),
            "did you mean web-1?"
        );
        assert_eq!(
            choose(&inventory, "mail", None).unwrap_err().next.unwrap(),
            "see `drover guest list`"
        );
        assert_eq!(
            choose(&inventory, "web1", None).unwrap_err().next.unwrap(),
            "did you mean web-1?"
        );
        assert_eq!(
            choose(&inventory, "Databsae", None).unwrap_err().next.unwrap(),
            "did you mean database?"
        );
        inventory.unreachable_hosts = vec!["hosts/host-c".to_owned()];
        let problem = choose(&inventory, "nothing-like-it", None).unwrap_err();
        assert!(problem.message.contains("do not answer: host-c"), "{problem}");
    }

    #[test]
    fn nearest_come_first() {
        assert_eq!(
            near("host-d", ["host-b", "other", "host-a", "host-dd"].into_iter()),
            "host-a, host-b or host-dd"
        );
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
