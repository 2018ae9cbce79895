//! Requests, field by field: every bad field is named at once, and nothing is begun before all are good.

use std::collections::HashMap;
use std::time::Duration;

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::{GuestId, HostId, InvalidId, MigrationId};
use drover_proto::overrides::Overrides;
use drover_proto::time::std_duration;
use drover_proto::v1::{
    BackingChain, Compression, DeadlineAction, DestinationOverrides, Host, MigrationAddress, MigrationMode,
    MigrationPolicy, StoragePolicy, Transport,
};
use uuid::Uuid;

/// Labels of one migration.
const MOST_LABELS: usize = 64;

/// Characters of a label's key.
const LONGEST_KEY: usize = 63;

/// Characters of a label's value.
const LONGEST_VALUE: usize = 255;
/// Bytes per second. The state of a guest's devices, about a megabyte, is sent in the blackout.
const LEAST_BANDWIDTH: u64 = 1 << 20;

/// Collects what is wrong.
#[derive(Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    pub(super) fn bad(&mut self, field: &str, why: impl Into<String>) {
        self.0.push((field.to_owned(), why.into()));
    }

    /// A value that is required, read from text.
    pub(super) fn required<T>(
        &mut self,
        field: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, InvalidId>,
    ) -> Option<T> {
        if text.is_empty() {
            self.bad(field, "is required");
            return None;
        }
        read(text).map_err(|error| self.bad(field, error.to_string())).ok()
    }

    /// A value that may be left out.
    pub(super) fn optional<T>(
        &mut self,
        field: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, InvalidId>,
    ) -> Option<T> {
        if text.is_empty() {
            None
        } else {
            self.required(field, text, read)
        }
    }

    pub(super) fn request_id(&mut self, text: &str) -> Option<Uuid> {
        if text.is_empty() {
            return None;
        }
        match Uuid::try_parse(text) {
            Ok(uuid) if !uuid.is_nil() => Some(uuid),
            Ok(_) | Err(_) => {
                self.bad("request_id", "must be a UUID");
                None
            }
        }
    }

    pub(super) fn labels(&mut self, labels: &HashMap<String, String>) {
        if labels.len() > MOST_LABELS {
            self.bad("migration.labels", format!("at most {MOST_LABELS}"));
            return;
        }
        let mut sorted: Vec<_> = labels.iter().collect();
        sorted.sort();
        for (key, value) in sorted {
            let shown: String = key.chars().take(LONGEST_KEY).collect();
            let field = format!("migration.labels.{shown}");
            if !(1..=LONGEST_KEY).contains(&key.chars().count()) {
                self.bad(&field, format!("a key has 1 to {LONGEST_KEY} characters"));
            }
            if value.chars().count() > LONGEST_VALUE {
                self.bad(&field, format!("a value has at most {LONGEST_VALUE} characters"));
            }
        }
    }

    /// `defaults` are what counts where the policy leaves something open.
    pub(super) fn policy(&mut self, prefix: &str, policy: &MigrationPolicy, defaults: &MigrationPolicy) {
        self.max_downtime(&format!("{prefix}.max_downtime"), policy.max_downtime.as_ref());
        self.deadline(&format!("{prefix}.deadline"), policy.deadline.as_ref());
        self.bandwidth(
            &format!("{prefix}.bandwidth_limit_bytes_per_second"),
            policy.bandwidth_limit_bytes_per_second,
        );
        if !(0..=64).contains(&policy.parallel_connections) {
            self.bad(&format!("{prefix}.parallel_connections"), "from 0 to 64");
        }
        if !(-100..=100).contains(&policy.priority) {
            self.bad(&format!("{prefix}.priority"), "from -100 to 100");
        }
        self.shutdown(&format!("{prefix}.shutdown_timeout"), policy);
        // Of a guest that is shut off all is copied that is not shared.
        let may_be_live = match policy.mode() {
            MigrationMode::Live | MigrationMode::Unspecified => true,
            MigrationMode::Offline | MigrationMode::Auto => false,
        };
        self.storage(&format!("{prefix}.storage"), policy.storage.as_ref(), may_be_live);
        self.backing_chain(&format!("{prefix}.storage.backing_chain"), policy);
        let has_deadline = policy.deadline.is_some() || defaults.deadline.is_some();
        if policy.on_deadline != DeadlineAction::Unspecified as i32 && !has_deadline {
            self.bad(&format!("{prefix}.on_deadline"), "needs a deadline");
        }
        if policy.on_deadline() == DeadlineAction::PostCopy && policy.allow_post_copy == Some(false) {
            self.bad(
                &format!("{prefix}.on_deadline"),
                "post-copy is not allowed by allow_post_copy: leave that unset, or choose another action",
            );
        }
        for (field, known) in [
            ("mode", MigrationMode::try_from(policy.mode).is_ok()),
            ("on_deadline", DeadlineAction::try_from(policy.on_deadline).is_ok()),
            ("compression", Compression::try_from(policy.compression).is_ok()),
            ("transport", Transport::try_from(policy.transport).is_ok()),
        ] {
            if !known {
                self.bad(
                    &format!("{prefix}.{field}"),
                    "is a value that this version does not know",
                );
            }
        }
    }

    /// A guest that moves live is not shut down.
    fn shutdown(&mut self, field: &str, policy: &MigrationPolicy) {
        let limit = policy.shutdown_timeout.as_ref();
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(3600));
        self.within(field, limit, least, most, "at least 1 s, at most an hour");
        if limit.is_some() && policy.mode() != MigrationMode::Offline {
            self.bad(field, "is only for MIGRATION_MODE_OFFLINE");
        }
    }

    /// Which disks may be copied.
    fn storage(&mut self, field: &str, storage: Option<&StoragePolicy>, names_copies: bool) {
        let Some(storage) = storage else { return };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_target = |name: &String| !name.is_empty() && name.len() <= 64 && name.chars().all(plain);
        let mut names: Vec<&String> = storage.copy_disks.iter().collect();
        names.sort();
        names.dedup();
        if names.len() != storage.copy_disks.len() || names.len() > 256 || !names.into_iter().all(is_target) {
            self.bad(
                &format!("{field}.copy_disks"),
                "targets of disks (`vda`), each once, at most 256",
            );
        }
        if names_copies && storage.delete_source && storage.copy_disks.is_empty() && !storage.copy_unshared {
            self.bad(&format!("{field}.delete_source"), "is only for disks that are copied");
        }
    }

    /// One way of moving has one way to copy what a disk lies on. Of a guest that moves either way the plan says it.
    fn backing_chain(&mut self, field: &str, policy: &MigrationPolicy) {
        let Some(storage) = &policy.storage else { return };
        let Ok(wanted) = BackingChain::try_from(storage.backing_chain) else {
            return self.bad(field, "is a value that this version does not know");
        };
        let is_offline = policy.mode() == MigrationMode::Offline;
        let is_live = matches!(policy.mode(), MigrationMode::Live | MigrationMode::Unspecified);
        match wanted {
            BackingChain::Flatten if is_offline => self.bad(
                field,
                "offline each file is copied as it is: leave it unset, or `whole`",
            ),
            BackingChain::Whole if is_live => self.bad(
                field,
                "live QEMU copies what the guest sees of a disk: leave it unset, or `flatten`",
            ),
            BackingChain::Unspecified | BackingChain::Whole | BackingChain::Flatten => {}
        }
    }

    /// The longest blackout.
    pub(super) fn max_downtime(&mut self, field: &str, value: Option<&prost_types::Duration>) -> Option<Duration> {
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(60));
        self.within(field, value, least, most, "from 1 ms to 60 s")
    }

    pub(super) fn deadline(&mut self, field: &str, value: Option<&prost_types::Duration>) -> Option<Duration> {
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(365 * 24 * 3600));
        self.within(field, value, least, most, "at least 1 ms, at most a year")
    }

    fn within(
        &mut self,
        field: &str,
        value: Option<&prost_types::Duration>,
        least: Duration,
        most: Duration,
        why: &str,
    ) -> Option<Duration> {
        let read = std_duration(value?).filter(|value| (least..=most).contains(value));
        if read.is_none() {
            self.bad(field, why);
        }
        read
    }

    /// Bytes per second; 0 is none.
    pub(super) fn bandwidth(&mut self, field: &str, value: i64) -> Option<u64> {
        let read = u64::try_from(value)
            .ok()
            .filter(|value| *value == 0 || *value >= LEAST_BANDWIDTH);
        if read.is_none() {
            let why = "0, or at least 1 MiB/s: the guest stands still while the last of it is sent at this speed";
            self.bad(field, why);
        }
        read
    }

    /// What must be different at the destination; nothing where it is not said, or not valid.
    pub(super) fn overrides(&mut self, prefix: &str, message: Option<&DestinationOverrides>) -> Overrides {
        let read = message.map(Overrides::read).unwrap_or_else(|| Ok(Overrides::default()));
        read.unwrap_or_else(|problems| {
            for (field, why) in problems {
                self.bad(&format!("{prefix}.{field}"), why);
            }
            Overrides::default()
        })
    }

    /// What an agent says of its host is kept and shown: it has bounds.
    pub(super) fn registration(&mut self, host: &Host, journals: usize) {
        let texts = [
            &host.management_address,
            &host.boot_id,
            &host.agent_instance,
            &host.agent_version,
            &host.libvirt_version,
            &host.qemu_version,
        ];
        if texts.into_iter().chain(&host.features).any(|text| text.len() > 300) || host.problem.len() > 4000 {
            self.bad("host", "texts have at most 300 bytes, `problem` at most 4000");
        }
        if host.features.len() > 64 {
            self.bad("host.features", "at most 64");
        }
        let address = |address: &MigrationAddress| address.address.len() <= 300 && address.network.len() <= 300;
        if host.migration_addresses.len() > 16 || !host.migration_addresses.iter().all(address) {
            self.bad("host.migration_addresses", "at most 16 of 300 bytes each");
        }
        if journals > 10_000 {
            self.bad("unfinished_journals", "at most 10000");
        }
    }

    /// Everything that was wrong, as one failure.
    pub(super) fn check(self) -> Result<(), Failure> {
        let Some((field, why)) = self.0.first() else {
            return Ok(());
        };
        let mut failure = Failure::new(Reason::InvalidArgument, format!("{field}: {why}"));
        failure.fields = self.0;
        Err(failure)
    }
}

/// The name of a migration in a request.
pub(super) fn migration_name(name: &str) -> Result<MigrationId, Failure> {
    read("name", name, MigrationId::from_resource_name)
}

/// The name of a host in a request.
pub(super) fn host_name(field: &str, name: &str) -> Result<HostId, Failure> {
    read(field, name, HostId::from_resource_name)
}

pub(super) fn guest_uuid(field: &str, uuid: &str) -> Result<GuestId, Failure> {
    read(field, uuid, str::parse)
}

fn read<T>(field: &str, text: &str, read: impl FnOnce(&str) -> Result<T, InvalidId>) -> Result<T, Failure> {
    let mut fields = Fields::default();
    let value = fields.required(field, text, read);
    fields.check()?;
    value.ok_or_else(|| Failure::invalid(field, "is required"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(labels: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut fields = Fields::default();
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        fields.labels(&labels.iter().map(owned).collect());
        fields.0
    }

    #[test]
    fn each_bad_label_is_named() {
        let (key, value) = ("ä".repeat(LONGEST_KEY), "ä".repeat(LONGEST_VALUE));
        assert!(bad(&[(&key, &value), ("team", "")]).is_empty());
        let found = bad(&[
            ("", "x"),
            (&format!("{key}k"), "x"),
            ("team", &format!("{value}v")),
            ("fine", "x"),
        ]);
        let fields: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
        let long = format!("migration.labels.{key}");
        assert_eq!(fields, ["migration.labels.", "migration.labels.team", &long]);
        let many: Vec<(String, &str)> = (0..=MOST_LABELS).map(|at| (at.to_string(), "x")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        assert_eq!(bad(&many), [("migration.labels".to_owned(), "at most 64".to_owned())]);
    }

    #[test]
    fn one_way_of_moving_has_one_way_for_a_backing_chain() {
        use BackingChain::{Flatten, Unspecified, Whole};
        let is_good = |mode: MigrationMode, chain: i32| {
            let policy = MigrationPolicy {
                mode: mode.into(),
                storage: Some(StoragePolicy {
                    backing_chain: chain,
                    ..StoragePolicy::default()
                }),
                ..MigrationPolicy::default()
            };
            let mut fields = Fields::default();
            fields.policy("policy", &policy, &MigrationPolicy::default());
            let fields = fields.0;
            assert!(fields.iter().all(|(field, _)| field == "policy.storage.backing_chain"));
            fields.is_empty()
        };
        for (mode, whole, flatten) in [
            (MigrationMode::Live, false, true),
            (MigrationMode::Unspecified, false, true),
            (MigrationMode::Offline, true, false),
            (MigrationMode::Auto, true, true),
        ] {
            assert!(is_good(mode, Unspecified.into()));
            assert_eq!(is_good(mode, Whole.into()), whole, "{mode:?}");
            assert_eq!(is_good(mode, Flatten.into()), flatten, "{mode:?}");
            assert!(!is_good(mode, 7));
        }
    }
}
