//! A job's statistics: libvirt's names and units on one side, bytes and durations on the other. Pure.

use std::ffi::CStr;
use std::time::Duration;

use super::raw::{Value, Values};
use crate::hypervisor::JobStats;

/// `VIR_DOMAIN_JOB_OPERATION_…` of a migration, in and out.
const MIGRATIONS: [u32; 2] = [
    virt_sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN,
    virt_sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT,
];

/// Whether the job is a migration and did not fail.
pub(super) fn is_migration(values: &Values) -> bool {
    let operation = number(values, virt_sys::VIR_DOMAIN_JOB_OPERATION);
    let failed = values.get(&text(virt_sys::VIR_DOMAIN_JOB_SUCCESS)) == Some(&Value::Truth(false));
    !failed && operation.is_some_and(|operation| MIGRATIONS.iter().any(|&one| u64::from(one) == operation))
}

pub(super) fn job_stats(values: &Values) -> JobStats {
    let get = |name| number(values, name).unwrap_or(0);
    let pages = get(virt_sys::VIR_DOMAIN_JOB_MEMORY_DIRTY_RATE);
    let throttle = get(virt_sys::VIR_DOMAIN_JOB_AUTO_CONVERGE_THROTTLE);
    JobStats {
        elapsed: Duration::from_millis(get(virt_sys::VIR_DOMAIN_JOB_TIME_ELAPSED)),
        memory_total: get(virt_sys::VIR_DOMAIN_JOB_MEMORY_TOTAL),
        memory_processed: get(virt_sys::VIR_DOMAIN_JOB_MEMORY_PROCESSED),
        memory_remaining: get(virt_sys::VIR_DOMAIN_JOB_MEMORY_REMAINING),
        bandwidth: get(virt_sys::VIR_DOMAIN_JOB_MEMORY_BPS),
        dirty_rate: pages.saturating_mul(get(virt_sys::VIR_DOMAIN_JOB_MEMORY_PAGE_SIZE)),
        iteration: get(virt_sys::VIR_DOMAIN_JOB_MEMORY_ITERATION),
        throttle: u32::try_from(throttle).unwrap_or(u32::MAX),
        downtime: number(values, virt_sys::VIR_DOMAIN_JOB_DOWNTIME).map(Duration::from_millis),
        post_copy_requests: get(virt_sys::VIR_DOMAIN_JOB_MEMORY_POSTCOPY_REQS),
        disk_total: get(virt_sys::VIR_DOMAIN_JOB_DISK_TOTAL),
        disk_processed: get(virt_sys::VIR_DOMAIN_JOB_DISK_PROCESSED),
        disk_remaining: get(virt_sys::VIR_DOMAIN_JOB_DISK_REMAINING),
        // libvirt has them elsewhere: each is a block job of its own.
        disks: Vec::new(),
    }
}

fn text(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}

fn number(values: &Values, name: &CStr) -> Option<u64> {
    match values.get(&text(name)) {
        Some(Value::Number(number)) => Some(*number),
        Some(Value::Real(_) | Value::Truth(_) | Value::Text(_)) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, u64)]) -> Values {
        pairs
            .iter()
            .map(|&(name, value)| (name.to_owned(), Value::Number(value)))
            .collect()
    }

    #[test]
    fn the_dirty_rate_is_in_bytes() {
        let stats = job_stats(&values(&[("memory_dirty_rate", 1000), ("memory_page_size", 4096)]));
        assert_eq!(stats.dirty_rate, 4_096_000);
    }

    #[test]
    fn what_is_missing_is_zero_and_an_unknown_downtime_stays_unknown() {
        assert_eq!(job_stats(&values(&[])), JobStats::default());
        assert_eq!(job_stats(&values(&[("downtime", 0)])).downtime, Some(Duration::ZERO));
    }

    #[test]
    fn a_backup_is_not_a_migration_and_a_failed_migration_is_not_completed() {
        let out = u64::from(virt_sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT);
        assert!(is_migration(&values(&[("operation", out)])));
        assert!(!is_migration(&values(&[("operation", 9)])));
        assert!(!is_migration(&values(&[])));
        let mut failed = values(&[("operation", out)]);
        failed.insert("success".to_owned(), Value::Truth(false));
        assert!(!is_migration(&failed));
    }
}
