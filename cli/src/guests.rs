//! Which guest is meant: a name or a UUID against what hosts and unfinished migrations show. Refuses what is ambiguous,
//! naming the candidates. A name that nobody has while a host does not answer is undecided, not absent.

use std::collections::BTreeSet;

use drover_proto::ids::GuestId;
use drover_proto::v1::{Guest, Migration};

use crate::client::Inventory;
use crate::exit::{Exit, Problem};
use crate::follow::is_at_rest;
use crate::render::{lists::host_of, words};

/// What there is to choose from.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) inventory: Inventory,
    /// Records of guests that no host shows now.
    pub(crate) migrations: Vec<Migration>,
}

/// The one guest that is meant, on however many hosts it shows while it moves.
#[derive(Debug, PartialEq)]
pub(crate) struct Meant {
    pub(crate) uuid: String,
    /// Its name, or what was typed where no host shows it.
    pub(crate) name: String,
    /// Ids of the hosts that show it.
    pub(crate) hosts: Vec<String>,
    /// `migrations/{uuid}` of its unfinished one, or empty.
    pub(crate) migration: String,
}

/// The one guest that `wanted` means, on `from` where it is given. A UUID means itself wherever it is, unless `from`
/// answers that it has no such guest.
pub(crate) fn choose(known: &Known, wanted: &str, from: Option<&str>) -> Result<Meant, Problem> {
    let id = wanted.parse::<GuestId>().ok().map(|id| id.to_string());
    let named = |uuid: &str, name: &str| match &id {
        Some(id) => uuid.eq_ignore_ascii_case(id),
        None => name == wanted,
    };
    let here = |host: &str| from.is_none_or(|from| from == host);
    let shown: Vec<&Guest> = known
        .inventory
        .guests
        .iter()
        .filter(|guest| named(&guest.uuid, &guest.display_name))
        .collect();
    let of_record = |migration: &&Migration| {
        let hosts = [&migration.source_host, &migration.destination_host];
        named(&migration.guest_uuid, &migration.guest_name) && hosts.into_iter().any(|host| here(words::id(host)))
    };
    let recorded = known.migrations.iter().filter(of_record);
    let mut uuids: BTreeSet<&str> = recorded.map(|migration| migration.guest_uuid.as_str()).collect();
    let on_from = shown.iter().filter(|guest| here(host_of(guest)));
    uuids.extend(on_from.map(|guest| guest.uuid.as_str()));
    let may_be_away = from.is_none_or(|from| known.inventory.is_silent(from));
    if uuids.is_empty() && may_be_away {
        uuids.extend(id.as_deref());
    }
    let uuids: Vec<&str> = uuids.into_iter().collect();
    match uuids[..] {
        [uuid] => Ok(meant(known, uuid, wanted)),
        [] => Err(unknown(known, wanted, from, &shown)),
        [_, _, ..] => Err(ambiguous(&shown, wanted)),
    }
}

fn meant(known: &Known, uuid: &str, wanted: &str) -> Meant {
    let shown: Vec<&Guest> = known
        .inventory
        .guests
        .iter()
        .filter(|guest| guest.uuid == uuid)
        .collect();
    let recorded = known.migrations.iter().find(|migration| migration.guest_uuid == uuid);
    let migration = shown.iter().map(|guest| &guest.migration).find(|name| !name.is_empty());
    let unfinished = recorded.filter(|migration| !is_at_rest(migration));
    Meant {
        uuid: uuid.to_owned(),
        name: shown.first().map_or(wanted, |guest| &guest.display_name).to_owned(),
        hosts: shown.iter().map(|guest| host_of(guest).to_owned()).collect(),
        migration: migration
            .or(unfinished.map(|migration| &migration.name))
            .cloned()
            .unwrap_or_default(),
    }
}

/// The refusal of what cannot be said of a guest while it moves.
pub(crate) fn under_way(meant: &Meant) -> Problem {
    let id = words::id(&meant.migration);
    let message = format!("a migration of {} is under way: {id}", words::one_line(&meant.name));
    Problem::new(Exit::Refused, message).with_next(format!("wait for it (drover migration watch {id}), or cancel it"))
}

fn unknown(known: &Known, wanted: &str, from: Option<&str>, elsewhere: &[&Guest]) -> Problem {
    let silent = &known.inventory.unreachable_hosts;
    let silent: Vec<&str> = silent
        .iter()
        .map(|host| words::id(host))
        .filter(|host| from.is_none_or(|from| from == *host))
        .collect();
    let names = known.inventory.guests.iter().map(|guest| guest.display_name.as_str());
    let near = near(wanted, names.filter(|name| *name != wanted));
    let there: Vec<&str> = elsewhere.iter().map(|guest| host_of(guest)).collect();
    let hint = match (&there[..], near.as_str()) {
        ([_, ..], _) => format!("it is on {}", there.join(", ")),
        ([], "") => "see `drover guest list`".to_owned(),
        ([], near) => format!("did you mean {near}?"),
    };
    let guest = words::one_line(wanted);
    if silent.is_empty() {
        let place = from.map(|host| format!(" on {host}")).unwrap_or_default();
        return Problem::new(Exit::NotFound, format!("there is no guest {guest:?}{place}")).with_next(hint);
    }
    let does = if silent.len() == 1 { "does" } else { "do" };
    let message = format!(
        "no host that answers has a guest {guest:?}; {} {does} not answer and may have it",
        silent.join(", ")
    );
    let look = format!("see why with `drover host get {}`", silent[0]);
    let next = if there.is_empty() && near.is_empty() {
        look
    } else {
        format!("{hint} Otherwise {look}")
    };
    Problem::new(Exit::Attention, message).with_next(next)
}

fn ambiguous(shown: &[&Guest], wanted: &str) -> Problem {
    let mut message = format!("{:?} means more than one guest:", words::one_line(wanted));
    for guest in shown {
        let state = words::guest_state(guest.state());
        message.push_str(&format!("\n  {}  on {}  {state}", guest.uuid, host_of(guest)));
    }
    Problem::new(Exit::NotFound, message).with_next("say which by its UUID, or by --from HOST")
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
    use drover_proto::v1::{GuestState, MigrationState};

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

    fn known(guests: Vec<Guest>) -> Known {
        Known {
            inventory: Inventory {
                guests,
                unreachable_hosts: vec![],
            },
            migrations: vec![],
        }
    }

    #[test]
    fn names_and_uuids_are_found() {
        let known = known(vec![guest("host-a", "web", ONE), guest("host-b", "db", TWO)]);
        assert_eq!(choose(&known, "web", None).unwrap().uuid, ONE);
        assert_eq!(choose(&known, &TWO.to_uppercase(), None).unwrap().uuid, TWO);
        assert_eq!(choose(&known, "db", Some("host-b")).unwrap().uuid, TWO);
        let problem = choose(&known, "db", Some("host-a")).unwrap_err();
        assert_eq!(problem.exit, Exit::NotFound);
        assert_eq!(problem.next.unwrap(), "it is on host-b");
        assert_eq!(choose(&known, TWO, Some("host-a")).unwrap_err().exit, Exit::NotFound);
        let other = "33333333-3333-4333-8333-333333333333";
        assert_eq!(choose(&known, other, None).unwrap().uuid, other, "the controller knows");
    }

    #[test]
    fn an_ambiguous_name_names_its_candidates() {
        let known = known(vec![guest("host-a", "web", ONE), guest("host-b", "web", TWO)]);
        let problem = choose(&known, "web", None).unwrap_err();
        assert_eq!(
            problem.to_string(),
            format!(
                "\"web\" means more than one guest:\n  {ONE}  on host-a  running\n  {TWO}  on host-b  running\n  \
                 next: say which by its UUID, or by --from HOST"
            )
        );
        assert_eq!(choose(&known, "web", Some("host-b")).unwrap().uuid, TWO);
    }

    #[test]
    fn a_guest_that_shows_on_two_hosts_is_one_guest() {
        let on = |host: &str| Guest {
            migration: "migrations/m".to_owned(),
            ..guest(host, "web", ONE)
        };
        let known = known(vec![on("host-a"), on("host-b")]);
        let meant = choose(&known, "web", None).unwrap();
        assert_eq!((meant.uuid.as_str(), meant.migration.as_str()), (ONE, "migrations/m"));
        assert_eq!(meant.hosts, ["host-a", "host-b"]);
        assert!(under_way(&meant).to_string().contains("migration watch m"));
    }

    #[test]
    fn a_name_of_an_unfinished_migration_is_known_though_no_host_shows_it() {
        let mut known = known(vec![]);
        known.inventory.unreachable_hosts = vec!["hosts/host-a".to_owned()];
        known.migrations = vec![Migration {
            name: "migrations/m".to_owned(),
            guest_uuid: ONE.to_owned(),
            guest_name: "web".to_owned(),
            source_host: "hosts/host-a".to_owned(),
            destination_host: "hosts/host-b".to_owned(),
            state: MigrationState::AttentionRequired.into(),
            ..Migration::default()
        }];
        let meant = choose(&known, "web", None).unwrap();
        assert_eq!((meant.uuid.as_str(), meant.migration.as_str()), (ONE, "migrations/m"));
        assert_eq!(choose(&known, "web", Some("host-a")).unwrap().uuid, ONE);
        known.migrations[0].state = MigrationState::Failed.into();
        assert_eq!(choose(&known, "web", None).unwrap().migration, "");
    }

    #[test]
    fn a_typo_is_noticed() {
        let known = known(vec![guest("host-a", "web-1", ONE), guest("host-b", "database", TWO)]);
        for (typed, next) in [
            ("wbe-1", "did you mean web-1?"),
            ("mail", "see `drover guest list`"),
            ("web1", "did you mean web-1?"),
            ("Databsae", "did you mean database?"),
        ] {
            assert_eq!(choose(&known, typed, None).unwrap_err().next.unwrap(), next);
        }
    }

    #[test]
    fn what_a_silent_host_may_have_is_undecided() {
        let mut known = known(vec![guest("host-a", "web-1", ONE)]);
        known.inventory.unreachable_hosts = vec!["hosts/host-c".to_owned()];
        let problem = choose(&known, "nothing-like-it", None).unwrap_err();
        assert_eq!(problem.exit, Exit::Attention);
        assert!(problem.message.contains("host-c does not answer"), "{problem}");
        assert!(problem.next.unwrap().contains("drover host get host-c"));
        let typo = choose(&known, "web1", None).unwrap_err();
        assert_eq!(typo.exit, Exit::Attention);
        assert!(typo.next.unwrap().starts_with("did you mean web-1? Otherwise see why"));
        assert_eq!(choose(&known, "mail", Some("host-a")).unwrap_err().exit, Exit::NotFound);
        assert_eq!(
            choose(&known, "mail", Some("host-c")).unwrap_err().exit,
            Exit::Attention
        );
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
