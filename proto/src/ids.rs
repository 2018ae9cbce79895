//! Identifiers as types: parsed once, where they enter, and never mixed up afterwards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An identifier that could not be parsed; says what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is not valid: {expected}")]
pub struct InvalidId {
    pub what: &'static str,
    pub given: String,
    pub expected: &'static str,
}

fn invalid(what: &'static str, given: &str, expected: &'static str) -> InvalidId {
    // What comes from outside may be long: an error quotes only its beginning.
    let given = given.chars().take(80).collect();
    InvalidId { what, given, expected }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                match Uuid::try_parse(text) {
                    Ok(uuid) if !uuid.is_nil() => Ok(Self(uuid)),
                    Ok(_) | Err(_) => Err(invalid($what, text, "a UUID like 0190a1b2-…-c3d4e5f60718")),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

uuid_id! {
    /// A guest: the UUID of its libvirt domain.
    GuestId, "guest UUID"
}

uuid_id! {
    /// A migration: a UUIDv7, so that ids sort by time of creation.
    MigrationId, "migration id"
}

impl MigrationId {
    /// A new id, made from the clock and randomness.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The resource name, `migrations/{uuid}`.
    pub fn resource_name(&self) -> String {
        format!("migrations/{self}")
    }

    /// Reads a resource name, or the bare UUID.
    pub fn from_resource_name(name: &str) -> Result<Self, InvalidId> {
        name.strip_prefix("migrations/").unwrap_or(name).parse()
    }
}

/// A host: one machine with libvirt and one agent. DNS-like: lower case letters, digits, `-` and `.`,
/// 1 to 63 characters, starting and ending with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostId(String);

impl HostId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The resource name, `hosts/{id}`.
    pub fn resource_name(&self) -> String {
        format!("hosts/{}", self.0)
    }

    /// Reads a resource name, or the bare id.
    pub fn from_resource_name(name: &str) -> Result<Self, InvalidId> {
        name.strip_prefix("hosts/").unwrap_or(name).parse()
    }
}

impl FromStr for HostId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = text.as_bytes();
        let fits = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|&c| edge(c) || c == b'-' || c == b'.')
            && edge(bytes[0])
            && edge(bytes[bytes.len() - 1]);
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            let expected = "1 to 63 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit";
            Err(invalid("host id", text, expected))
        }
    }
}

impl TryFrom<String> for HostId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<HostId> for String {
    fn from(id: HostId) -> Self {
        id.0
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How often the work of a migration was begun anew; 1 is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What lets the source agent talk to the destination agent about one migration: 256 random bits.
/// Compared in constant time, never printed.
#[derive(Clone, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticket([u8; 32]);

impl Ticket {
    /// Fresh randomness from the operating system.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn from_slice(bytes: &[u8]) -> Result<Self, InvalidId> {
        let bytes = bytes.try_into().map_err(|_| InvalidId {
            what: "ticket",
            given: format!("{} bytes", bytes.len()),
            expected: "32 bytes",
        })?;
        Ok(Self(bytes))
    }
}

impl PartialEq for Ticket {
    fn eq(&self, other: &Self) -> bool {
        let different = self.0.iter().zip(other.0).fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(different) == 0
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ids_are_dns_like() {
        for good in ["a", "host-1", "node3.rack2", "0"] {
            assert_eq!(good.parse::<HostId>().unwrap().as_str(), good);
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "ä", long.as_str()] {
            assert!(bad.parse::<HostId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn migration_ids_sort_by_time_and_read_back() {
        let (first, second) = (MigrationId::generate(), MigrationId::generate());
        assert!(first < second);
        assert_eq!(MigrationId::from_resource_name(&first.resource_name()).unwrap(), first);
        assert!(MigrationId::from_resource_name("migrations/00000000-0000-0000-0000-000000000000").is_err());
    }

    #[test]
    fn a_ticket_is_never_printed() {
        let ticket = Ticket::generate().unwrap();
        assert_eq!(format!("{ticket:?}"), "Ticket(…)");
        assert_ne!(ticket, Ticket::generate().unwrap());
        assert_eq!(ticket, Ticket::from_slice(ticket.as_bytes()).unwrap());
        assert!(Ticket::from_slice(&[0; 31]).is_err());
    }
}
