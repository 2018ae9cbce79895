//! The filter of lists: `field = value` joined by `AND`, and nothing else. What is not understood is refused, because
//! a filter that is ignored lists too much.

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::HostId;
use drover_proto::v1::MigrationState;

use crate::store::Filter;

/// Longest filter that is read, in bytes.
const MAX_FILTER_BYTES: usize = 2048;

const FIELDS: &str = "state, guest_uuid, source_host, destination_host and labels.KEY";

fn refuse(why: impl Into<String>) -> Failure {
    let why = why.into();
    Failure::new(Reason::InvalidArgument, format!("filter: {why}"))
        .with_field("filter", why)
        .with_remedy(format!("`field = \"value\"` joined by AND; fields are {FIELDS}"))
}

/// Reads a filter; an empty one lets everything through.
pub(super) fn parse(text: &str) -> Result<Filter, Failure> {
    if text.len() > MAX_FILTER_BYTES {
        return Err(refuse("it is too long"));
    }
    let mut filter = Filter::default();
    let mut words = words(text)?.into_iter().peekable();
    while words.peek().is_some() {
        let (field, equals, value) = (words.next(), words.next(), words.next());
        let (Some(Word::Bare(field)), Some(Word::Equals), Some(value)) = (field, equals, value) else {
            return Err(refuse("expected field = value"));
        };
        let (Word::Bare(value) | Word::Quoted(value)) = value else {
            return Err(refuse("expected field = value"));
        };
        restrict(&mut filter, &field, &value)?;
        match words.next() {
            None => break,
            Some(Word::Bare(and)) if and == "AND" && words.peek().is_some() => {}
            Some(_) => return Err(refuse("only AND joins conditions")),
        }
    }
    Ok(filter)
}

fn restrict(filter: &mut Filter, field: &str, value: &str) -> Result<(), Failure> {
    let twice = || Err(refuse(format!("{field} is there twice")));
    let host = || HostId::from_resource_name(value).map_err(|error| refuse(error.to_string()));
    match field {
        "state" => filter.state.replace(state(value)?).map_or(Ok(()), |_| twice()),
        "guest_uuid" => {
            let guest = value
                .parse()
                .map_err(|error: drover_proto::ids::InvalidId| refuse(error.to_string()))?;
            filter.guest.replace(guest).map_or(Ok(()), |_| twice())
        }
        "source_host" => filter.source.replace(host()?).map_or(Ok(()), |_| twice()),
        "destination_host" => filter.destination.replace(host()?).map_or(Ok(()), |_| twice()),
        _ => match field.strip_prefix("labels.") {
            Some(key) if !key.is_empty() => filter
                .labels
                .insert(key.to_owned(), value.to_owned())
                .map_or(Ok(()), |_| twice()),
            Some(_) | None => Err(refuse(format!("there is no field {field:?}; fields are {FIELDS}"))),
        },
    }
}

fn state(value: &str) -> Result<MigrationState, Failure> {
    let known = MigrationState::from_str_name(&format!("MIGRATION_STATE_{value}"));
    match known.or_else(|| MigrationState::from_str_name(value)) {
        Some(MigrationState::Unspecified) | None => Err(refuse(format!("there is no state {value:?}"))),
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

fn words(text: &str) -> Result<Vec<Word>, Failure> {
    let mut words = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(&first) = rest.peek() {
        match first {
            ' ' | '\t' => {
                rest.next();
            }
            '=' => {
                rest.next();
                words.push(Word::Equals);
            }
            '"' => {
                rest.next();
                words.push(Word::Quoted(quoted(&mut rest)?));
            }
            _ if is_bare(first) => {
                let mut word = String::new();
                while let Some(next) = rest.next_if(|&c| is_bare(c)) {
                    word.push(next);
                }
                words.push(Word::Bare(word));
            }
            other => return Err(refuse(format!("{other:?} is not understood"))),
        }
    }
    Ok(words)
}

fn quoted(rest: &mut impl Iterator<Item = char>) -> Result<String, Failure> {
    let mut word = String::new();
    loop {
        match rest.next() {
            Some('"') => return Ok(word),
            Some('\\') => word.push(rest.next().ok_or_else(|| refuse("a quote is not closed"))?),
            Some(other) => word.push(other),
            None => return Err(refuse("a quote is not closed")),
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
}
