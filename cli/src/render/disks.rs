//! How far each disk of a migration is.

use drover_proto::v1::{DiskProgress, Migration, Progress};

use super::{units, words};

/// More are counted, not named.
const MOST: usize = 3;

/// Those that are not whole yet, for a line: `vda 40 %`.
pub(crate) fn under_way(migration: &Migration, progress: &Progress) -> Vec<String> {
    let left: Vec<_> = progress.disks.iter().filter(|disk| disk.remaining_bytes > 0).collect();
    let word = |disk: &&DiskProgress| format!("{} {} %", name(migration, disk), percent(disk));
    let mut words: Vec<String> = left.iter().take(MOST).map(word).collect();
    if left.len() > MOST {
        words.push(format!("{} more disks", left.len() - MOST));
    }
    words
}

/// All of them: `vda 13 MiB of 32 MiB (40 %)`.
pub(crate) fn all(migration: &Migration) -> Vec<String> {
    let disks = migration.progress.iter().flat_map(|progress| &progress.disks);
    let word = |disk: &DiskProgress| {
        let (name, percent) = (name(migration, disk), percent(disk));
        let total = disk.total_bytes.max(0);
        let done = (total - disk.remaining_bytes).clamp(0, total);
        format!("{name} {} of {} ({percent} %)", units::bytes(done), units::bytes(total))
    };
    disks.map(word).collect()
}

/// Whole percents; 100 only where nothing is left.
fn percent(disk: &DiskProgress) -> i64 {
    if disk.remaining_bytes <= 0 {
        return 100;
    }
    if disk.total_bytes <= 0 {
        return 0;
    }
    let done = 1.0 - disk.remaining_bytes as f64 / disk.total_bytes as f64;
    ((done * 100.0) as i64).clamp(0, 99)
}

/// Its target, also where an agent says the path of a file; what has none is a file's name.
fn name(migration: &Migration, disk: &DiskProgress) -> String {
    let plan = migration.disks.iter().find(|plan| plan.source == disk.disk);
    let file = || disk.disk.rsplit('/').next().unwrap_or_default();
    words::one_line(plan.map_or_else(file, |plan| plan.target.as_str()))
}

#[cfg(test)]
mod tests {
    use drover_proto::v1::DiskPlan;

    use super::*;

    fn disk(name: &str, remaining_bytes: i64) -> DiskProgress {
        DiskProgress {
            disk: name.to_owned(),
            total_bytes: 64 << 20,
            remaining_bytes,
        }
    }

    fn migration(disks: Vec<DiskProgress>) -> Migration {
        Migration {
            disks: vec![DiskPlan {
                target: "vda".to_owned(),
                source: "/images/web.qcow2".to_owned(),
                ..DiskPlan::default()
            }],
            progress: Some(Progress {
                disks,
                ..Progress::default()
            }),
            ..Migration::default()
        }
    }

    #[test]
    fn a_disk_is_named_by_its_target_and_a_file_that_is_none_by_its_name() {
        let migration = migration(vec![
            disk("/images/web.qcow2", 16 << 20),
            disk("vdb", 0),
            disk("/nvram/web_VARS.fd", 64 << 20),
        ]);
        let progress = migration.progress.clone().unwrap();
        assert_eq!(under_way(&migration, &progress), ["vda 75 %", "web_VARS.fd 0 %"]);
        assert_eq!(
            all(&migration),
            [
                "vda 48 MiB of 64 MiB (75 %)",
                "vdb 64 MiB of 64 MiB (100 %)",
                "web_VARS.fd 0 B of 64 MiB (0 %)"
            ]
        );
    }

    #[test]
    fn many_are_counted_and_odd_numbers_do_no_harm() {
        let disks = ["a", "b", "c", "d", "e"].map(|name| disk(name, 1));
        let migration = migration(disks.to_vec());
        let progress = migration.progress.clone().unwrap();
        assert_eq!(
            under_way(&migration, &progress),
            ["a 99 %", "b 99 %", "c 99 %", "2 more disks"]
        );
        let percents = [(0, 5), (-1, 5), (10, 50), (10, -1)].map(|(total_bytes, remaining_bytes)| {
            percent(&DiskProgress {
                total_bytes,
                remaining_bytes,
                ..DiskProgress::default()
            })
        });
        assert_eq!(percents, [0, 0, 0, 100]);
    }
}
