//! How much of a guest's memory changes: one short look, and a longer one where the short one saw much. From two lengths
//! it follows whether the guest writes ever more pages, or the same ones again.

use std::time::{Duration, SystemTime};

use drover_proto::agent::v1::{GuestSample, WriteWindow};
use drover_proto::failure::{Failure, Reason};
use drover_proto::time::proto_duration;

use super::convert;
use crate::hypervisor::WriteSample;
use crate::jobs::Jobs;

const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(2);

/// Nobody waits longer, whatever libvirt does. The call itself may go on; it changes nothing.
const LIMIT: Duration = Duration::from_secs(9);

/// Where less changes in the short look, the long one would tell nothing more: any link carries that.
const MUCH: u64 = 16 << 20;

pub(super) async fn take(jobs: &Jobs, uuid: &str) -> Result<GuestSample, Failure> {
    tokio::time::timeout(LIMIT, look(jobs, uuid)).await.unwrap_or_else(|_| {
        let message = format!("the guest could not be sampled within {} s", LIMIT.as_secs());
        Err(Failure::new(Reason::GuestBusy, message).at_host(jobs.host.clone()))
    })
}

async fn look(jobs: &Jobs, uuid: &str) -> Result<GuestSample, Failure> {
    let id = convert::guest_id("guest_uuid", uuid)?;
    let (hypervisor, time) = (&jobs.hypervisor, SystemTime::now());
    let unknown = || Failure::new(Reason::GuestNotFound, format!("libvirt does not know guest {id}"));
    let guest = hypervisor.guest(id).await?;
    let guest = guest.ok_or_else(|| unknown().at_host(jobs.host.clone()))?;
    if !guest.state.runs() {
        return Ok(told(time, &[]));
    }
    // The sampling would wait for the job, a migration's for as long as that takes.
    if hypervisor.job(id).await?.is_some() {
        let message = "a libvirt job runs on the guest";
        return Err(Failure::new(Reason::GuestBusy, message).at_host(jobs.host.clone()));
    }
    let mut samples = vec![hypervisor.sample_writes(id, SHORT).await?];
    if samples[0].changed >= MUCH {
        samples.push(hypervisor.sample_writes(id, LONG).await?);
    }
    Ok(told(time, &samples))
}

fn told(time: SystemTime, samples: &[WriteSample]) -> GuestSample {
    let window = |sample: &WriteSample| WriteWindow {
        duration: Some(proto_duration(sample.window)),
        changed_bytes: sample.changed,
    };
    GuestSample {
        time: Some(time.into()),
        windows: samples.iter().map(window).collect(),
        resident_bytes: samples.iter().filter_map(|sample| sample.resident).max(),
    }
}
