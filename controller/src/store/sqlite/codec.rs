//! Rows of the database to records and back. What cannot be understood is an error, never a default.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::SystemTime;

use drover_proto::agent::v1::{Incarnation, PrepareIncomingResponse};
use drover_proto::ids::{Attempt, HostId, InvalidId};
use drover_proto::time::{from_unix_micros, system_time, timestamp};
use drover_proto::trace::{SpanId, TraceId};
use drover_proto::v1;
use prost::Message;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::store::record::{
    Details, Event, HostRecord, Prepared, Record, RequestKey, Resolution, Step, StepOutcome, Term, Trace,
};
use crate::store::{Result, StoreError};
use crate::verdict::Side;
use crate::view;

/// SQLite counts with a sign; generations and terms never get that far.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn labels(labels: &BTreeMap<String, String>) -> String {
    serde_json::json!(labels).to_string()
}

pub(super) fn prepared(prepared: &Prepared) -> Vec<u8> {
    PrepareIncomingResponse {
        ticket: prepared.ticket.clone(),
        cookie: prepared.cookie.clone(),
    }
    .encode_to_vec()
}

pub(super) fn resolution(resolution: &Resolution) -> Vec<u8> {
    view::resolution(resolution).encode_to_vec()
}

fn resolution_from(message: &v1::Resolution) -> Result<Resolution> {
    let fenced = match message.fenced_side() {
        v1::FencedSide::Source => Side::Source,
        v1::FencedSide::Destination => Side::Destination,
        v1::FencedSide::Unspecified => return Err(unreadable("resolution", "no side")),
    };
    let time = message.time.as_ref().and_then(system_time);
    Ok(Resolution {
        fenced,
        operator: message.operator.clone(),
        time: time.ok_or_else(|| unreadable("resolution", "no time"))?,
        adopted: message.adopt_time.as_ref().and_then(system_time),
        copy_ran: message.copy_ran,
    })
}

pub(super) fn event(event: &Event) -> Vec<u8> {
    let message = v1::WatchMigrationResponse {
        time: Some(timestamp(event.time)),
        event: Some(event.what.clone()),
        ..v1::WatchMigrationResponse::default()
    };
    message.encode_to_vec()
}

fn unreadable(column: &str, why: impl Display) -> StoreError {
    StoreError::Unreadable(format!("{column}: {why}"))
}

/// A column as a type that is read from words.
pub(super) fn parse<T>(row: &SqliteRow, column: &str) -> Result<T>
where
    T: FromStr,
    T::Err: Display,
{
    let text: String = row.try_get(column)?;
    text.parse().map_err(|error| unreadable(column, error))
}

fn parse_some<T>(row: &SqliteRow, column: &str) -> Result<Option<T>>
where
    T: FromStr<Err = InvalidId>,
{
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| text.parse().map_err(|error| unreadable(column, error)))
        .transpose()
}

fn unsigned(row: &SqliteRow, column: &str) -> Result<u64> {
    let number: i64 = row.try_get(column)?;
    u64::try_from(number).map_err(|error| unreadable(column, error))
}

fn time(row: &SqliteRow, column: &str) -> Result<SystemTime> {
    Ok(from_unix_micros(row.try_get(column)?))
}

fn some_time(row: &SqliteRow, column: &str) -> Result<Option<SystemTime>> {
    let micros: Option<i64> = row.try_get(column)?;
    Ok(micros.map(from_unix_micros))
}

fn message<M: Message + Default>(row: &SqliteRow, column: &str) -> Result<M> {
    let bytes: Vec<u8> = row.try_get(column)?;
    M::decode(bytes.as_slice()).map_err(|error| unreadable(column, error))
}

fn some_message<M: Message + Default>(row: &SqliteRow, column: &str) -> Result<Option<M>> {
    let bytes: Option<Vec<u8>> = row.try_get(column)?;
    bytes
        .map(|bytes| M::decode(bytes.as_slice()).map_err(|error| unreadable(column, error)))
        .transpose()
}

fn span(row: &SqliteRow, column: &str) -> Result<SpanId> {
    let text: String = row.try_get(column)?;
    SpanId::from_hex(&text).map_err(|error| unreadable(column, error))
}

pub(super) fn term_from(row: &SqliteRow) -> Result<Term> {
    Ok(Term {
        number: unsigned(row, "number")?,
        instance: parse(row, "instance")?,
    })
}

fn trace_from(row: &SqliteRow) -> Result<Trace> {
    let id: String = row.try_get("trace_id")?;
    let parent: Option<String> = row.try_get("parent_span")?;
    Ok(Trace {
        id: TraceId::from_hex(&id).map_err(|error| unreadable("trace_id", error))?,
        root: span(row, "root_span")?,
        parent: parent.map(|_| span(row, "parent_span")).transpose()?,
    })
}

fn request_from(row: &SqliteRow) -> Result<Option<RequestKey>> {
    let id: Option<String> = row.try_get("request_id")?;
    let content: Option<Vec<u8>> = row.try_get("request_content")?;
    let (Some(_), Some(content)) = (id, content) else {
        return Ok(None);
    };
    Ok(Some(RequestKey {
        id: parse(row, "request_id")?,
        content,
    }))
}

pub(super) fn record_from(row: &SqliteRow) -> Result<Record> {
    let labels: String = row.try_get("labels")?;
    let state: String = row.try_get("state")?;
    let prepared: Option<PrepareIncomingResponse> = some_message(row, "prepared")?;
    Ok(Record {
        id: parse(row, "id")?,
        generation: unsigned(row, "generation")?,
        request: request_from(row)?,
        guest: parse(row, "guest")?,
        guest_name: row.try_get("guest_name")?,
        source: parse(row, "source")?,
        destination: parse(row, "destination")?,
        labels: serde_json::from_str(&labels).map_err(|error| unreadable("labels", error))?,
        requested_by: row.try_get("requested_by")?,
        position: parse(row, "position")?,
        phase: parse(row, "phase")?,
        state: v1::MigrationState::from_str_name(&state).ok_or_else(|| unreadable("state", &state))?,
        attempt: Attempt(row.try_get("attempt")?),
        unknowns: row.try_get("unknowns")?,
        cancel_requested: some_time(row, "cancel_requested")?,
        too_late: row.try_get("too_late")?,
        guest_host: parse_some::<HostId>(row, "guest_host")?,
        incarnation: some_message::<Incarnation>(row, "incarnation")?,
        prepared: prepared.map(|message| Prepared {
            ticket: message.ticket,
            cookie: message.cookie,
        }),
        resolution: some_message(row, "resolution")?
            .as_ref()
            .map(resolution_from)
            .transpose()?,
        trace: trace_from(row)?,
        created: time(row, "created")?,
        started: some_time(row, "started")?,
        transfer_started: some_time(row, "transfer_started")?,
        ended: some_time(row, "ended")?,
        updated: time(row, "updated")?,
        details: Details::from_message(message(row, "details")?),
    })
}

pub(super) fn step_from(row: &SqliteRow) -> Result<Step> {
    let outcome: Option<String> = row.try_get("outcome")?;
    let outcome = outcome.map(|word| {
        let known = StepOutcome::ALL.into_iter().find(|outcome| outcome.name() == word);
        known.ok_or_else(|| unreadable("outcome", word))
    });
    Ok(Step {
        number: row.try_get("number")?,
        phase: parse(row, "phase")?,
        attempt: row.try_get("attempt")?,
        span: span(row, "span_id")?,
        started: time(row, "started")?,
        end: some_time(row, "ended")?.zip(outcome.transpose()?),
        detail: row.try_get("detail")?,
    })
}

pub(super) fn event_from(row: &SqliteRow) -> Result<Event> {
    let content: v1::WatchMigrationResponse = message(row, "content")?;
    Ok(Event {
        sequence: unsigned(row, "sequence")?,
        time: time(row, "time")?,
        what: content.event.ok_or_else(|| unreadable("content", "no event"))?,
    })
}

pub(super) fn host_from(row: &SqliteRow) -> Result<HostRecord> {
    Ok(HostRecord {
        id: parse(row, "id")?,
        registration: message(row, "registration")?,
        cordoned: row.try_get("cordoned")?,
        generation: unsigned(row, "generation")?,
        registered: time(row, "registered")?,
    })
}
