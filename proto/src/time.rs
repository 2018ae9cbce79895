//! Times and durations between the standard library and the messages.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A message's time.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

/// Now, as a message's time.
pub fn now() -> prost_types::Timestamp {
    SystemTime::now().into()
}

/// The time in a message; none where it is out of range.
pub fn system_time(timestamp: &prost_types::Timestamp) -> Option<SystemTime> {
    SystemTime::try_from(*timestamp).ok()
}

/// A message's duration; longer than 292 billion years becomes the longest there is.
pub fn proto_duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap_or(prost_types::Duration {
        seconds: i64::MAX,
        nanos: 999_999_999,
    })
}

/// The duration in a message; none where it is negative or out of range.
pub fn std_duration(duration: &prost_types::Duration) -> Option<Duration> {
    Duration::try_from(*duration).ok()
}

/// Microseconds since 1970, for stores; 0 before.
pub fn unix_micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// What `unix_micros` wrote.
pub fn from_unix_micros(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_durations_go_there_and_back() {
        let time = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_000);
        assert_eq!(system_time(&timestamp(time)), Some(time));
        assert_eq!(from_unix_micros(unix_micros(time)), time);
        let duration = Duration::new(3, 5);
        assert_eq!(std_duration(&proto_duration(duration)), Some(duration));
        assert_eq!(std_duration(&prost_types::Duration { seconds: -1, nanos: 0 }), None);
        assert!(proto_duration(Duration::MAX).seconds > 0);
        assert_eq!(unix_micros(UNIX_EPOCH - Duration::from_secs(1)), 0);
    }
}
