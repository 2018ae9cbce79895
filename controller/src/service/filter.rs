//! The filter of lists: `field = value` joined by `AND`, and nothing else. What is not understood is refused, because
//! a filter that is ignored lists too much.

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::{HostId, InvalidId};
use drover_proto::v1::MigrationState;

use crate::store::Filter;

/// Longest filter that is read, in bytes.
const MAX_FILTER_BYTES: usize = 2048;

const FIELDS: &str = "state, guest_uuid, source_host, destination_host and labels.KEY";

/// `at` counts characters from 1.
fn refuse(at: usize, why: impl Into<String>) -> Failure {
    let why = format!("at {at}: {}", why.into());
    Failure::new(Reason::InvalidArgument, format!("filter: {why}"))
        .with_field("filter", why)
        .with_remedy(format!("`field = \"value\"` joined by AND; fields are {FIELDS}"))
}

/// Reads a filter; an empty one lets everything through.
pub(super) fn parse(text: &str) -> Result<Filter, Failure> {
    if text.len() > MAX_FILTER_BYTES {
        return Err(refuse(MAX_FILTER_BYTES, "it is too long"));
    }
    let end = text.chars().count() + 1;
    let mut filter = Filter::default();
    let mut words = words(text)?.into_iter().peekable();
    while words.peek().is_some() {
        let field = expect_text(words.next(), end, "a field")?;
        match words.next() {
            Some((_, Word::Equals)) => {}
            Some((at, Word::Bare(_) | Word::Quoted(_))) => return Err(refuse(at, "expected = and a value")),
            None => return Err(refuse(end, "expected = and a value")),
        }
        let value = expect_text(words.next(), end, "a value")?;
        restrict(&mut filter, &field, &value)?;
        match words.next() {
            None => break,
            Some((_, Word::Bare(and))) if and == "AND" => {
                if words.peek().is_none() {
                    return Err(refuse(end, "expected another condition after AND"));
                }
            }
            Some((at, _)) => return Err(refuse(at, "only AND joins conditions")),
        }
    }
    Ok(filter)
}

/// A text, and where it stands.
type Text = (usize, String);

fn expect_text(word: Option<(usize, Word)>, end: usize, what: &str) -> Result<Text, Failure> {
    match word {
        Some((at, Word::Bare(text) | Word::Quoted(text))) => Ok((at, text)),
        Some((at, Word::Equals)) => Err(refuse(at, format!("expected {what}"))),
        None => Err(refuse(end, format!("expected {what}"))),
    }
}

fn restrict(filter: &mut Filter, (at, field): &Text, (value_at, value): &Text) -> Result<(), Failure> {
    let twice = || Err(refuse(*at, format!("{field} is there twice")));
    let bad = |error: InvalidId| refuse(*value_at, error.to_string());
    let host = || HostId::from_resource_name(value).map_err(bad);
    match field.as_str() {
        "state" => filter
            .state
            .replace(state(*value_at, value)?)
            .map_or(Ok(()), |_| twice()),
        "guest_uuid" => {
            let guest = value.parse().map_err(bad)?;
            filter.guest.replace(guest).map_or(Ok(()), |_| twice())
        }
        "source_host" => filter.source.replace(host()?).map_or(Ok(()), |_| twice()),
        "destination_host" => filter.destination.replace(host()?).map_or(Ok(()), |_| twice()),
        _ => match field.strip_prefix("labels.") {
            Some(key) if !key.is_empty() => filter
                .labels
                .insert(key.to_owned(), value.clone())
                .map_or(Ok(()), |_| twice()),
            Some(_) | None => Err(refuse(*at, format!("there is no field {field:?}; fields are {FIELDS}"))),
        },
    }
}

fn state(at: usize, value: &str) -> Result<MigrationState, Failure> {
    let known = MigrationState::from_str_name(&format!("MIGRATION_STATE_{value}"));
    match known.or_else(|| MigrationState::from_str_name(value)) {
        Some(MigrationState::Unspecified) | None => Err(refuse(at, format!("there is no state {value:?}"))),
        Some(
            state @ (MigrationState::Queued
            | MigrationState::Running
            | MigrationState::Cancelling
            | MigrationState::AttentionRequired
            | MigrationState::Succeeded
            | MigrationState::Failed
            | MigrationState::Cancelled
            | MigrationState::GuestEnded),
        ) => Ok(state),
    }
}

#[derive(Debug, PartialEq)]
enum Word {
    Bare(String),
    Quoted(String),
    Equals,
}

/// Each word with its place.
fn words(text: &str) -> Result<Vec<(usize, Word)>, Failure> {
    let mut words = Vec::new();
    let mut rest = text.chars().zip(1..).peekable();
    while let Some(&(first, at)) = rest.peek() {
        match first {
            ' ' | '\t' => {
                rest.next();
            }
            '=' => {
                rest.next();
                words.push((at, Word::Equals));
            }
            '"' => {
                rest.next();
                words.push((at, Word::Quoted(quoted(at, &mut rest)?)));
            }
            _ if is_bare(first) => {
                let mut word = String::new();
                while let Some((next, _)) = rest.next_if(|&(c, _)| is_bare(c)) {
                    word.push(next);
                }
                words.push((at, Word::Bare(word)));
            }
            other => return Err(refuse(at, format!("{other:?} is not understood"))),
        }
    }
    Ok(words)
}

fn quoted(at: usize, rest: &mut impl Iterator<Item = (char, usize)>) -> Result<String, Failure> {
    let mut word = String::new();
    let mut next = || rest.next().map(|(letter, _)| letter);
    loop {
        match next() {
            Some('"') => return Ok(word),
            Some('\\') => word.push(next().ok_or_else(|| refuse(at, "a quote is not closed"))?),
            Some(other) => word.push(other),
            None => return Err(refuse(at, "a quote is not closed")),
        }
    }
}

fn is_bare(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read() {
        let uuid = "0190a1b2-0000-7000-8000-000000000001";
        let text = format!(
            "state = RUNNING AND guest_uuid=\"{uuid}\" AND source_host = hosts/a AND destination_host = \"b\" \
             AND labels.team = \"it's \\\"x\\\"\""
        );
        let filter = parse(&text).unwrap();
        assert_eq!(filter.state, Some(MigrationState::Running));
        assert_eq!(filter.guest.unwrap().to_string(), uuid);
        assert_eq!(filter.source.unwrap().as_str(), "a");
        assert_eq!(filter.destination.unwrap().as_str(), "b");
        assert_eq!(filter.labels["team"], "it's \"x\"");
        assert_eq!(parse("  ").unwrap(), Filter::default());
        assert_eq!(
            parse("state = MIGRATION_STATE_FAILED").unwrap().state,
            Some(MigrationState::Failed)
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "state",
            "state =",
            "= RUNNING",
            "state = WRONG",
            "state = UNSPECIFIED",
            "state = RUNNING OR state = FAILED",
            "state = RUNNING AND",
            "state = RUNNING state = FAILED",
            "state = RUNNING AND state = FAILED",
            "NOT state = RUNNING",
            "state != RUNNING",
            "state : RUNNING",
            "(state = RUNNING)",
            "priority = 1",
            "labels. = x",
            "guest_uuid = x",
            "source_host = \"A B\"",
            "state = \"RUNNING",
            &"x".repeat(3000),
        ] {
            assert_eq!(
                parse(text).map_err(|failure| failure.reason),
                Err(Reason::InvalidArgument),
                "{text}"
            );
        }
    }

    #[test]
    fn a_refusal_tells_where_and_what_is_allowed() {
        for (text, at) in [
            ("state", 6),
            ("state = ", 9),
            ("= RUNNING", 1),
            ("state RUNNING", 7),
            ("state = WRONG", 9),
            ("state = RUNNING OR state = FAILED", 17),
            ("state = RUNNING AND", 20),
            ("state = RUNNING AND state = FAILED", 21),
            ("state != RUNNING", 7),
            ("(state = RUNNING)", 1),
            ("state = RUNNING AND priority = 1", 21),
            ("state = \"RUNNING", 9),
            ("labels.ü = x", 8),
        ] {
            let failure = parse(text).unwrap_err();
            assert!(
                failure.message.starts_with(&format!("filter: at {at}: ")),
                "{text}: {failure}"
            );
            assert!(failure.remedy.unwrap().contains("labels.KEY"));
            assert_eq!(failure.fields[0].0, "filter");
        }
    }
}
