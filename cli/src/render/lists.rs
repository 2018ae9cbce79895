//! Hosts, guests and migrations as tables.

use drover_proto::v1::{Guest, Host, Migration};

use super::table::table;
use super::{units, words};

pub(crate) fn hosts(hosts: &[Host]) -> String {
    let row = |host: &Host| {
        let mut state = words::host_state(host.state());
        if host.cordoned {
            state.push_str(", cordoned");
        }
        vec![
            words::id(&host.name).to_owned(),
            state,
            host.management_address.clone(),
            host.libvirt_version.clone(),
            host.qemu_version.clone(),
            host.last_seen_time.map(units::moment).unwrap_or_default(),
            host.problem.clone(),
        ]
    };
    let rows: Vec<_> = hosts.iter().map(row).collect();
    table(
        &[
            "HOST",
            "STATE",
            "ADDRESS",
            "LIBVIRT",
            "QEMU",
            "LAST SEEN (UTC)",
            "PROBLEM",
        ],
        &rows,
    )
}

/// All that is known of one host.
pub(crate) fn host(host: &Host) -> String {
    let addresses: Vec<String> = host
        .migration_addresses
        .iter()
        .map(|one| match one.network.as_str() {
            "" => one.address.clone(),
            network => format!("{} ({network})", one.address),
        })
        .collect();
    let cordoned = if host.cordoned {
        "yes: no guest is moved to it"
    } else {
        "no"
    };
    let facts = [
        ("state", words::host_state(host.state())),
        ("cordoned", cordoned.to_owned()),
        ("problem", host.problem.clone()),
        ("address", host.management_address.clone()),
        ("data", addresses.join(", ")),
        ("features", host.features.join(", ")),
        ("agent", host.agent_version.clone()),
        ("libvirt", host.libvirt_version.clone()),
        ("qemu", host.qemu_version.clone()),
        ("boot id", host.boot_id.clone()),
        ("last seen", host.last_seen_time.map(units::moment).unwrap_or_default()),
    ];
    let told = facts.into_iter().filter(|(_, value)| !value.is_empty());
    let lines = told.map(|(name, value)| format!("  {name:<12}{}", words::one_line(&value)));
    let name = words::one_line(words::id(&host.name));
    std::iter::once(name).chain(lines).collect::<Vec<_>>().join("\n")
}

pub(crate) fn guests(guests: &[Guest]) -> String {
    let row = |guest: &Guest| {
        vec![
            guest.display_name.clone(),
            host_of(guest).to_owned(),
            words::guest_state(guest.state()),
            units::bytes(guest.memory_bytes),
            guest.vcpus.to_string(),
            guest.uuid.clone(),
            words::id_or_dash(&guest.migration).to_owned(),
        ]
    };
    let rows: Vec<_> = guests.iter().map(row).collect();
    table(
        &["GUEST", "HOST", "STATE", "MEMORY", "CPUS", "UUID", "MIGRATION"],
        &rows,
    )
}

/// The host in `hosts/{id}/guests/{uuid}`.
pub(crate) fn host_of(guest: &Guest) -> &str {
    guest.name.split('/').nth(1).unwrap_or("?")
}

pub(crate) fn migrations(migrations: &[Migration]) -> String {
    let row = |migration: &Migration| {
        let summary = migration.summary.as_ref();
        vec![
            words::id(&migration.name).to_owned(),
            words::guest(&migration.guest_name, &migration.guest_uuid).to_owned(),
            words::id_or_dash(&migration.source_host).to_owned(),
            words::id_or_dash(&migration.destination_host).to_owned(),
            words::state(migration.state()),
            words::phase(migration.phase()),
            summary
                .and_then(|summary| summary.blackout)
                .map_or_else(|| "-".to_owned(), units::duration),
            migration.create_time.map(units::moment).unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = migrations.iter().map(row).collect();
    table(
        &[
            "ID",
            "GUEST",
            "FROM",
            "TO",
            "STATE",
            "PHASE",
            "BLACKOUT",
            "CREATED (UTC)",
        ],
        &rows,
    )
}

#[cfg(test)]
mod tests {
    use drover_proto::v1::{GuestState, HostState, MigrationPhase, MigrationState, TransferSummary};
    use prost_types::{Duration, Timestamp};

    use super::*;

    #[test]
    fn a_host_shows_its_troubles() {
        let host = Host {
            name: "hosts/host-a".to_owned(),
            state: HostState::Silent.into(),
            management_address: "10.0.0.1:7450".to_owned(),
            last_seen_time: Some(Timestamp {
                seconds: 1_700_000_000,
                nanos: 0,
            }),
            cordoned: true,
            problem: "libvirt does not answer".to_owned(),
            ..Host::default()
        };
        assert_eq!(
            hosts(&[host]),
            "HOST    STATE             ADDRESS        LIBVIRT  QEMU  LAST SEEN (UTC)      PROBLEM\n\
             host-a  silent, cordoned  10.0.0.1:7450                 2023-11-14 22:13:20  libvirt does not answer"
        );
    }

    #[test]
    fn guests_and_migrations_have_a_line_each() {
        let guest = Guest {
            name: "hosts/host-a/guests/u-1".to_owned(),
            uuid: "u-1".to_owned(),
            display_name: "demo".to_owned(),
            state: GuestState::Running.into(),
            memory_bytes: 512 << 20,
            vcpus: 2,
            ..Guest::default()
        };
        assert_eq!(
            guests(&[guest]),
            "GUEST  HOST    STATE    MEMORY   CPUS  UUID  MIGRATION\n\
             demo   host-a  running  512 MiB  2     u-1   -"
        );
        let migration = Migration {
            name: "migrations/m-1".to_owned(),
            guest_uuid: "u-1".to_owned(),
            source_host: "hosts/host-a".to_owned(),
            destination_host: "hosts/host-b".to_owned(),
            state: MigrationState::Succeeded.into(),
            phase: MigrationPhase::Finalize.into(),
            summary: Some(TransferSummary {
                blackout: Some(Duration {
                    seconds: 0,
                    nanos: 87_000_000,
                }),
                ..TransferSummary::default()
            }),
            create_time: Some(Timestamp {
                seconds: 1_700_000_000,
                nanos: 0,
            }),
            ..Migration::default()
        };
        assert_eq!(
            migrations(&[migration]),
            "ID   GUEST  FROM    TO      STATE      PHASE     BLACKOUT  CREATED (UTC)\n\
             m-1  u-1    host-a  host-b  succeeded  finalize  87 ms     2023-11-14 22:13:20"
        );
    }
}
