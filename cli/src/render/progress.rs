//! A running migration on one line, for the live display and for logs.

use drover_proto::v1::{Migration, MigrationPhase, Progress, TransferStage};

use super::{disks, units, words};

/// What a line has room for.
const COLUMNS: usize = 80;

/// What the live display shows of a moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Moment {
    /// `transfer`, `switching`.
    pub(crate) title: String,
    /// From 0 to 1, where there is something to measure.
    pub(crate) fraction: Option<f64>,
    /// The rest of the line.
    pub(crate) details: String,
}

impl Moment {
    pub(crate) fn of(migration: &Migration) -> Self {
        let waiting = migration.waiting_for.as_ref().map(|waiting| {
            let host = if waiting.host.is_empty() {
                String::new()
            } else {
                format!(" {}", words::id(&waiting.host))
            };
            format!("waits: {}{host}", waiting.reason.to_lowercase().replace('_', " "))
        });
        let quiet = |title| Self {
            title,
            fraction: None,
            details: waiting.clone().unwrap_or_default(),
        };
        match (migration.phase(), &migration.progress) {
            (MigrationPhase::Transfer, Some(progress)) => Self::of_transfer(migration, progress),
            (MigrationPhase::Unspecified, _) => quiet(words::state(migration.state())),
            (
                phase @ (MigrationPhase::Validate
                | MigrationPhase::Prepare
                | MigrationPhase::Transfer
                | MigrationPhase::Verify
                | MigrationPhase::Finalize
                | MigrationPhase::Abort
                | MigrationPhase::Discard),
                _,
            ) => quiet(words::phase(phase)),
        }
    }

    fn of_transfer(migration: &Migration, progress: &Progress) -> Self {
        let title = match progress.stage() {
            TransferStage::Unspecified | TransferStage::PreCopy => words::phase(MigrationPhase::Transfer),
            stage @ (TransferStage::Switching
            | TransferStage::PostCopy
            | TransferStage::PostCopyFailed
            | TransferStage::Switched) => words::stage(stage),
        };
        let total = progress.memory_total_bytes + progress.disk_total_bytes;
        let left = progress.memory_remaining_bytes + progress.disk_remaining_bytes;
        let fraction = (total > 0).then(|| ((total - left) as f64 / total as f64).clamp(0.0, 1.0));
        let mut details = vec![format!("{} left", units::bytes(left))];
        details.extend(disks::under_way(migration, progress));
        // Of a guest that is shut off there is no memory.
        if progress.memory_total_bytes > 0 || progress.disk_total_bytes == 0 {
            details.push(format!("dirty {}", units::rate(progress.dirty_bytes_per_second)));
        }
        details.push(format!("sent {}", units::rate(progress.bandwidth_bytes_per_second)));
        if progress.throttle_percent > 0 {
            details.push(format!("slowed {} %", progress.throttle_percent));
        }
        if progress.iteration > 0 {
            details.push(format!("round {}", progress.iteration));
        }
        Self {
            title,
            fraction,
            details: details.join(", "),
        }
    }

    /// The line of a log: `transfer 62 %: 195 MiB left, …`. What does not fit is left out, the last first.
    pub(crate) fn line(&self) -> String {
        let mut line = self.title.clone();
        if let Some(fraction) = self.fraction {
            line.push_str(&format!(" {:.0} %", fraction * 100.0));
        }
        for (index, detail) in self.details.split(", ").filter(|detail| !detail.is_empty()).enumerate() {
            let separator = if index == 0 { ": " } else { ", " };
            if index > 0 && line.chars().count() + separator.len() + detail.chars().count() > COLUMNS {
                break;
            }
            line.push_str(separator);
            line.push_str(detail);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use drover_proto::v1::{DiskProgress, MigrationState, WaitingFor};

    use super::*;

    fn migration(phase: MigrationPhase, progress: Option<Progress>) -> Migration {
        Migration {
            phase: phase.into(),
            state: MigrationState::Running.into(),
            progress,
            ..Migration::default()
        }
    }

    #[test]
    fn a_transfer_tells_how_far_it_is() {
        let progress = Progress {
            iteration: 3,
            memory_total_bytes: 512 << 20,
            memory_remaining_bytes: 128 << 20,
            dirty_bytes_per_second: 12 << 20,
            bandwidth_bytes_per_second: 420 << 20,
            throttle_percent: 20,
            stage: TransferStage::PreCopy.into(),
            ..Progress::default()
        };
        let moment = Moment::of(&migration(MigrationPhase::Transfer, Some(progress)));
        assert_eq!(moment.fraction, Some(0.75));
        assert_eq!(
            moment.line(),
            "transfer 75 %: 128 MiB left, dirty 12 MiB/s, sent 420 MiB/s, slowed 20 %"
        );
    }

    #[test]
    fn each_disk_that_is_copied_tells_how_far_it_is() {
        let disk = |name: &str, remaining_bytes| DiskProgress {
            disk: name.to_owned(),
            total_bytes: 64 << 20,
            remaining_bytes,
        };
        let progress = Progress {
            memory_total_bytes: 128 << 20,
            memory_remaining_bytes: 128 << 20,
            disk_total_bytes: 128 << 20,
            disk_remaining_bytes: 48 << 20,
            bandwidth_bytes_per_second: 40 << 20,
            disks: vec![disk("vda", 0), disk("vdb", 48 << 20)],
            ..Progress::default()
        };
        let moment = Moment::of(&migration(MigrationPhase::Transfer, Some(progress)));
        assert_eq!(
            moment.line(),
            "transfer 31 %: 176 MiB left, vdb 25 %, dirty 0 B/s, sent 40 MiB/s"
        );
    }

    #[test]
    fn a_line_fits_into_80_columns() {
        let progress = Progress {
            iteration: 12_345,
            memory_total_bytes: 2_000 << 30,
            memory_remaining_bytes: 1_023 << 30,
            dirty_bytes_per_second: 1_023 << 30,
            bandwidth_bytes_per_second: 1_023 << 30,
            throttle_percent: 99,
            stage: TransferStage::PostCopyFailed.into(),
            ..Progress::default()
        };
        let line = Moment::of(&migration(MigrationPhase::Transfer, Some(progress))).line();
        assert!(line.chars().count() <= 80, "{line}");
        assert!(
            line.starts_with("post-copy-failed 49 %: 1023 GiB left, dirty 1023 GiB/s"),
            "{line}"
        );
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        let progress = Progress {
            memory_total_bytes: 10,
            memory_remaining_bytes: 50,
            ..Progress::default()
        };
        assert_eq!(
            Moment::of(&migration(MigrationPhase::Transfer, Some(progress))).fraction,
            Some(0.0)
        );
        let nothing = Moment::of(&migration(MigrationPhase::Transfer, Some(Progress::default())));
        assert_eq!(nothing.fraction, None);
        assert_eq!(
            Moment::of(&migration(MigrationPhase::Unspecified, None)).line(),
            "running"
        );
    }

    #[test]
    fn who_waits_says_for_what() {
        let mut waiting = migration(MigrationPhase::Verify, None);
        waiting.waiting_for = Some(WaitingFor {
            reason: "HOST_UNREACHABLE".to_owned(),
            host: "hosts/host-b".to_owned(),
            ..WaitingFor::default()
        });
        assert_eq!(Moment::of(&waiting).line(), "verify: waits: host unreachable host-b");
    }
}
