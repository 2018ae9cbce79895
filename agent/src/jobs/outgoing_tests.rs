//! Who stopped the guest: QEMU to finish, or somebody before. From the rounds that were seen.

use std::time::Instant;

use uuid::Uuid;

use super::*;

fn job(rounds_before: &[u64], rounds_after: &[u64]) -> OutgoingJob {
    let guest = GuestId::from_uuid(Uuid::from_u128(1));
    let host = "host-a".parse().expect("a valid name");
    let job = OutgoingJob::new(MigrationId::generate(), guest, host, Vec::new());
    rounds_before.iter().for_each(|round| job.saw_round(*round));
    job.saw_stop(Instant::now());
    rounds_after.iter().for_each(|round| job.saw_round(*round));
    job
}

#[test]
fn after_its_own_stop_qemu_counts_one_round_more() {
    assert!(!job(&[1, 2], &[3]).was_stopped_on_its_way());
    assert!(job(&[1, 2], &[3, 4]).was_stopped_on_its_way());
}

#[test]
fn events_may_be_late() {
    let job = job(&[1, 2], &[]);
    assert!(!job.was_stopped_before_round(3));
    assert!(job.was_stopped_before_round(4));
}

#[test]
fn where_an_event_was_lost_the_guest_is_to_run() {
    assert!(!job(&[1], &[3]).was_stopped_on_its_way(), "the second was lost");
    assert!(!job(&[2, 3], &[4, 5]).was_stopped_on_its_way(), "the first was lost");
}

#[test]
fn one_that_was_resumed_on_its_way_runs() {
    let job = job(&[1], &[2]);
    job.saw_run();
    job.saw_round(3);
    job.saw_stop(Instant::now());
    job.saw_round(4);
    assert!(!job.was_stopped_on_its_way());
}
