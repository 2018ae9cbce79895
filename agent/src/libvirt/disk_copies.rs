//! How far each disk of a live copy is: libvirt has a block job for each, from where its copy begins to the switch.

use std::sync::{Mutex, PoisonError};

use super::raw::{BlockJob, Domain};
use crate::hypervisor::{CopiedDisks, DiskCopy};

/// The copied disks of one migration, as they were seen last.
#[derive(Debug, Default)]
pub(super) struct DiskCopies {
    targets: Vec<String>,
    seen: Mutex<Vec<DiskCopy>>,
}

impl DiskCopies {
    pub(super) fn new(copied: Option<&CopiedDisks>) -> Self {
        let targets = copied.into_iter().flat_map(CopiedDisks::targets);
        Self {
            targets: targets.map(str::to_owned).collect(),
            seen: Mutex::default(),
        }
    }

    /// Asks libvirt, while the migration's job is there. Blocks.
    pub(super) fn look(&self, domain: &Domain) -> Vec<DiskCopy> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for target in &self.targets {
            match domain.block_job(target) {
                Ok(job) => take_in(&mut seen, target, job),
                // It is looked at again in a moment, and nothing is decided by it.
                Err(error) => tracing::debug!(%error, target, "how far a disk is cannot be told"),
            }
        }
        seen.clone()
    }
}

/// One that has no job any more is all there: where a copy fails, the migration fails with it.
fn take_in(seen: &mut Vec<DiskCopy>, target: &str, job: Option<BlockJob>) {
    let known = seen.iter_mut().find(|copy| copy.disk == target);
    match (known, job) {
        (Some(known), Some(job)) => {
            (known.total, known.remaining) = (job.end, job.end.saturating_sub(job.done));
        }
        (Some(known), None) => known.remaining = 0,
        // libvirt says one byte where QEMU does not know yet.
        (None, Some(job)) if job.end > 1 => seen.push(DiskCopy {
            disk: target.to_owned(),
            total: job.end,
            remaining: job.end.saturating_sub(job.done),
        }),
        (None, Some(_) | None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_told_from_where_its_copy_begins_and_is_whole_where_it_has_ended() {
        let mut seen = Vec::new();
        let mut look = |target: &str, job: Option<(u64, u64)>| {
            take_in(&mut seen, target, job.map(|(done, end)| BlockJob { done, end }));
            seen.iter()
                .map(|copy| (copy.disk.clone(), copy.total, copy.remaining))
                .collect::<Vec<_>>()
        };
        assert_eq!(look("vda", None), []);
        assert_eq!(look("vda", Some((0, 1))), []);
        assert_eq!(look("vda", Some((0, 100))), [("vda".to_owned(), 100, 100)]);
        assert_eq!(
            look("vda", Some((90, 120))),
            [("vda".to_owned(), 120, 30)],
            "the guest writes"
        );
        look("vdb", Some((60, 50)));
        assert_eq!(
            look("vda", None),
            [("vda".to_owned(), 120, 0), ("vdb".to_owned(), 50, 0)]
        );
    }
}
