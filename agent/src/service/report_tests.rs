//! Each number of a job comes out under its own name and in its own unit.

use std::time::{Duration, SystemTime};

use super::*;

#[test]
fn progress_says_what_libvirt_says() {
    let stats = JobStats {
        elapsed: Duration::from_secs(1),
        memory_total: 2,
        memory_processed: 3,
        memory_remaining: 4,
        bandwidth: 5,
        dirty_rate: 6,
        iteration: 7,
        throttle: 20,
        downtime: Some(Duration::from_millis(90)),
        post_copy_requests: 8,
        disk_total: 9,
        disk_processed: 10,
        disk_remaining: 11,
        disks: vec![DiskCopy {
            disk: "vda".to_owned(),
            total: 12,
            remaining: 13,
        }],
    };
    let told = progress(progress::Progress {
        time: SystemTime::UNIX_EPOCH,
        stage: Stage::PreCopy,
        stats,
        elapsed: Duration::from_secs(12),
        blackout: Some(Duration::from_millis(80)),
    });
    let expected = Progress {
        time: Some(SystemTime::UNIX_EPOCH.into()),
        iteration: 7,
        memory_total_bytes: 2,
        memory_sent_bytes: 3,
        memory_remaining_bytes: 4,
        dirty_bytes_per_second: 6,
        bandwidth_bytes_per_second: 5,
        throttle_percent: 20,
        expected_blackout: Some(proto_duration(Duration::from_millis(90))),
        measured_blackout: Some(proto_duration(Duration::from_millis(80))),
        disk_total_bytes: 9,
        disk_sent_bytes: 10,
        disk_remaining_bytes: 11,
        stage: TransferStage::PreCopy.into(),
        elapsed: Some(proto_duration(Duration::from_secs(12))),
        post_copy_faults: 8,
        disks: vec![DiskProgress {
            disk: "vda".to_owned(),
            total_bytes: 12,
            remaining_bytes: 13,
        }],
    };
    assert_eq!(told, expected);
}
