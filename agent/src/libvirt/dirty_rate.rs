//! What a guest writes, sampled by QEMU: begun, waited for without a thread, and read. It reads a part of the guest's
//! pages twice; the guest runs as before.

use std::ffi::CStr;
use std::sync::Arc;
use std::time::Duration;

use drover_proto::ids::GuestId;

use super::raw::{Domain, Value, Values, own_error};
use super::threads::Pool;
use crate::hypervisor::{ErrorClass, Result, WriteSample};

/// It is asked so often whether the sample is there.
const ASK: Duration = Duration::from_millis(50);

/// So much longer than the window it may take, on a loaded host.
const GRACE: Duration = Duration::from_secs(4);

/// How a sampling is.
#[derive(Debug, PartialEq)]
enum Sampling {
    UnderWay,
    Done(WriteSample),
}

pub(super) async fn sample(looks: &Arc<Pool>, guest: GuestId, window: Duration) -> Result<WriteSample> {
    let seconds = i32::try_from(window.as_secs().clamp(1, 60)).unwrap_or(1);
    let begun = looks
        .call(move |connection| {
            let domain = Domain::get(connection, guest)?;
            // Refused while somebody else samples: then that is what is waited for.
            domain.start_sampling(seconds).or_else(|error| match domain.sampled() {
                Ok(values) if reading(&values) == Some(Sampling::UnderWay) => Ok(()),
                Ok(_) | Err(_) => Err(error),
            })
        })
        .await;
    begun?;
    let wait = async {
        tokio::time::sleep(window).await;
        loop {
            let values = looks
                .call(move |connection| Domain::get(connection, guest)?.sampled())
                .await?;
            if let Some(Sampling::Done(sample)) = reading(&values) {
                return Ok(sample);
            }
            tokio::time::sleep(ASK).await;
        }
    };
    tokio::time::timeout(window + GRACE, wait).await.unwrap_or_else(|_| {
        Err(own_error(
            ErrorClass::Busy,
            "SAMPLE_LATE",
            "QEMU did not finish to sample the guest's memory in time",
        ))
    })
}

/// None where nothing is said of a sampling.
fn reading(values: &Values) -> Option<Sampling> {
    let status = number(values, virt_sys::VIR_DOMAIN_STATS_DIRTYRATE_CALC_STATUS)?;
    if status != u64::from(virt_sys::VIR_DOMAIN_DIRTYRATE_MEASURED) {
        return Some(Sampling::UnderWay);
    }
    let seconds = number(values, virt_sys::VIR_DOMAIN_STATS_DIRTYRATE_CALC_PERIOD)?;
    let rate = number(values, virt_sys::VIR_DOMAIN_STATS_DIRTYRATE_MEGABYTES_PER_SECOND)?;
    Some(Sampling::Done(WriteSample {
        window: Duration::from_secs(seconds),
        changed: rate.saturating_mul(seconds) << 20,
        resident: number(values, virt_sys::VIR_DOMAIN_STATS_BALLOON_RSS).map(|kib| kib << 10),
    }))
}

fn number(values: &Values, name: &CStr) -> Option<u64> {
    match values.get(name.to_string_lossy().as_ref()) {
        Some(Value::Number(number)) => Some(*number),
        Some(Value::Real(_) | Value::Truth(_) | Value::Text(_)) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, u64)]) -> Values {
        let pair = |&(name, value): &(&str, u64)| (name.to_owned(), Value::Number(value));
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_sample_is_in_bytes() {
        let done = values(&[
            ("dirtyrate.calc_status", 2),
            ("dirtyrate.calc_period", 2),
            ("dirtyrate.megabytes_per_second", 30),
            ("balloon.rss", 2048),
        ]);
        let expected = WriteSample {
            window: Duration::from_secs(2),
            changed: 60 << 20,
            resident: Some(2 << 20),
        };
        assert_eq!(reading(&done), Some(Sampling::Done(expected)));
    }

    #[test]
    fn what_is_not_done_is_waited_for_and_what_is_not_said_is_not_known() {
        let begun = values(&[("dirtyrate.calc_status", 1), ("dirtyrate.calc_period", 1)]);
        assert_eq!(reading(&begun), Some(Sampling::UnderWay));
        let fresh = values(&[("dirtyrate.calc_status", 0)]);
        assert_eq!(reading(&fresh), Some(Sampling::UnderWay));
        assert_eq!(reading(&values(&[("balloon.rss", 1)])), None);
    }
}
