//! API messages as JSON, by their descriptors, so that a new field is there without anybody writing it down twice.
//!
//! Promise: names as in the .proto files (snake case); times RFC 3339; durations in seconds; enums without their
//! prefix; integers as numbers; a message that is not set is left out, every other field is there.

use std::sync::LazyLock;

use anyhow::Context;
use drover_proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, ReflectMessage, Value as Field,
};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("our own descriptors are well formed"));

/// `name` is the full name of `message`'s type, `drover.v1.Migration`.
pub(crate) fn of(name: &str, message: &impl Message) -> anyhow::Result<Value> {
    let descriptor = POOL
        .get_message_by_name(name)
        .with_context(|| format!("no message {name}"))?;
    let bytes = message.encode_to_vec();
    Ok(of_message(&DynamicMessage::decode(descriptor, bytes.as_slice())?))
}

fn of_message(message: &DynamicMessage) -> Value {
    let number = |name: &str| {
        message
            .get_field_by_name(name)
            .and_then(|value| value.as_i64())
            .unwrap_or(0)
    };
    let nanos = || {
        message
            .get_field_by_name("nanos")
            .and_then(|value| value.as_i32())
            .unwrap_or(0)
    };
    match message.descriptor().full_name() {
        "google.protobuf.Timestamp" => rfc3339(number("seconds"), nanos()),
        // Nanoseconds are cut to microseconds: doubles keep those exactly over a human life.
        "google.protobuf.Duration" => {
            let micros = i128::from(number("seconds")) * 1_000_000 + i128::from(nanos() / 1000);
            Value::from(micros as f64 / 1e6)
        }
        _ => Value::Object(
            message
                .descriptor()
                .fields()
                .filter_map(|field| of_field(message, &field))
                .collect(),
        ),
    }
}

fn of_field(message: &DynamicMessage, field: &FieldDescriptor) -> Option<(String, Value)> {
    if field.supports_presence() && !message.has_field(field) {
        return None;
    }
    let value = message.get_field(field);
    let value = if let Field::List(items) = &*value {
        items.iter().map(|item| of_value(item, &field.kind())).collect()
    } else if let (Field::Map(entries), Kind::Message(entry)) = (&*value, field.kind()) {
        let kind = entry.map_entry_value_field().kind();
        let mut map: Map<String, Value> = Map::new();
        map.extend(
            entries
                .iter()
                .map(|(key, value)| (map_key(key), of_value(value, &kind))),
        );
        Value::Object(map)
    } else {
        of_value(&value, &field.kind())
    };
    Some((field.name().to_owned(), value))
}

fn of_value(value: &Field, kind: &Kind) -> Value {
    match (value, kind) {
        (Field::EnumNumber(number), Kind::Enum(descriptor)) => enum_name(descriptor, *number),
        (Field::Message(message), _) => of_message(message),
        (Field::Bool(value), _) => (*value).into(),
        (Field::I32(value), _) => (*value).into(),
        (Field::I64(value), _) => (*value).into(),
        (Field::U32(value), _) => (*value).into(),
        (Field::U64(value), _) => (*value).into(),
        (Field::F32(value), _) => (*value).into(),
        (Field::F64(value), _) => (*value).into(),
        (Field::String(text), _) => text.as_str().into(),
        (Field::Bytes(bytes), _) => bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
            .into(),
        (Field::EnumNumber(number), _) => (*number).into(),
        (Field::List(_) | Field::Map(_), _) => Value::Null,
    }
}

/// `MIGRATION_STATE_RUNNING` of `MigrationState` becomes `RUNNING`; a number that this program does not know stays one.
fn enum_name(descriptor: &EnumDescriptor, number: i32) -> Value {
    let Some(value) = descriptor.get_value(number) else {
        return number.into();
    };
    let mut prefix = String::new();
    for letter in descriptor.name().chars() {
        if letter.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(letter.to_ascii_uppercase());
    }
    prefix.push('_');
    value.name().strip_prefix(&prefix).unwrap_or(value.name()).into()
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

/// Microseconds are kept; what is out of range becomes null.
fn rfc3339(seconds: i64, nanos: i32) -> Value {
    let nanos = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .map(OffsetDateTime::truncate_to_microsecond);
    time.and_then(|time| time.format(&Rfc3339).ok())
        .map_or(Value::Null, Value::String)
}

#[cfg(test)]
mod tests {
    use drover_proto::v1::{Migration, MigrationState, Progress, WatchMigrationResponse, watch_migration_response};
    use prost_types::{Duration, Timestamp};

    use super::*;

    #[test]
    fn a_migration_has_stable_names() {
        let migration = Migration {
            name: "migrations/x".to_owned(),
            labels: [("team".to_owned(), "red".to_owned())].into(),
            state: MigrationState::Running.into(),
            create_time: Some(Timestamp {
                seconds: 1_700_000_000,
                nanos: 123_456_789,
            }),
            progress: Some(Progress {
                memory_total_bytes: 1 << 40,
                expected_blackout: Some(Duration {
                    seconds: 1,
                    nanos: 250_000_000,
                }),
                ..Progress::default()
            }),
            ..Migration::default()
        };
        let json = of("drover.v1.Migration", &migration).unwrap();
        assert_eq!(json["name"], "migrations/x");
        assert_eq!(json["labels"]["team"], "red");
        assert_eq!(json["state"], "RUNNING");
        assert_eq!(json["phase"], "UNSPECIFIED");
        assert_eq!(json["create_time"], "2023-11-14T22:13:20.123456Z");
        assert_eq!(json["progress"]["memory_total_bytes"], 1_u64 << 40);
        assert_eq!(json["progress"]["expected_blackout"], 1.25);
        assert_eq!(json["phases"], Value::Array(vec![]));
        let fields = json.as_object().unwrap();
        assert!(!fields.contains_key("end_time") && !fields.contains_key("summary"));
    }

    #[test]
    fn events_name_what_happened() {
        let event = watch_migration_response::Event::Progress(Progress {
            iteration: 3,
            ..Progress::default()
        });
        let message = WatchMigrationResponse {
            event: Some(event),
            ..WatchMigrationResponse::default()
        };
        let json = of("drover.v1.WatchMigrationResponse", &message).unwrap();
        assert_eq!(json["progress"]["iteration"], 3);
        assert!(!json.as_object().unwrap().contains_key("snapshot"));
    }
}
