//! Sizes, rates and durations, short enough for a line.

use prost_types::{Duration, Timestamp};
use time::OffsetDateTime;
use time::macros::format_description;

/// `512 B`, `1.5 GiB`.
pub(crate) fn bytes(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes.max(0) as f64, 0);
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match value {
        _ if unit == 0 => format!("{value:.0} B"),
        small if small < 9.95 => format!("{small:.1} {}", UNITS[unit]),
        large => format!("{large:.0} {}", UNITS[unit]),
    }
}

/// `420 MiB/s`.
pub(crate) fn rate(bytes_per_second: i64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// `87 ms`, `1.92 s`, `3 min 20 s`.
pub(crate) fn seconds(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds == 0.0 {
        "0 ms".to_owned()
    } else if seconds < 0.000_05 {
        "<0.1 ms".to_owned()
    } else if seconds < 0.0095 {
        format!("{:.1} ms", seconds * 1e3)
    } else if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 9.995 {
        format!("{seconds:.2} s")
    } else if seconds < 99.95 {
        format!("{seconds:.1} s")
    } else {
        let whole = seconds.round() as u64;
        match (whole / 3600, whole / 60 % 60, whole % 60) {
            (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
            (hours, minutes, _) => format!("{hours} h {minutes} min"),
        }
    }
}

pub(crate) fn duration(duration: Duration) -> String {
    seconds(in_seconds(duration))
}

pub(crate) fn in_seconds(duration: Duration) -> f64 {
    duration.seconds as f64 + f64::from(duration.nanos) / 1e9
}

/// Seconds from `start` to `end`, negative where `end` is earlier.
pub(crate) fn between(start: Timestamp, end: Timestamp) -> f64 {
    (end.seconds - start.seconds) as f64 + f64::from(end.nanos - start.nanos) / 1e9
}

/// `2026-11-23 05:31:42` in UTC.
pub(crate) fn moment(time: Timestamp) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    let time = OffsetDateTime::from_unix_timestamp(time.seconds)
        .ok()
        .and_then(|time| time.format(&format).ok());
    time.unwrap_or_else(|| "?".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (size, expected) in [
            (-1, "0 B"),
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (536_870_912, "512 MiB"),
            (1_610_612_736, "1.5 GiB"),
            (i64::MAX, "8192 PiB"),
        ] {
            assert_eq!(bytes(size), expected);
        }
        assert_eq!(rate(440_401_920), "420 MiB/s");
    }

    #[test]
    fn durations_are_short() {
        for (time, expected) in [
            (-1.0, "0 ms"),
            (0.000_02, "<0.1 ms"),
            (0.0031, "3.1 ms"),
            (0.087, "87 ms"),
            (0.9999, "1.00 s"),
            (1.921, "1.92 s"),
            (42.04, "42.0 s"),
            (200.0, "3 min 20 s"),
            (7260.0, "2 h 1 min"),
        ] {
            assert_eq!(seconds(time), expected);
        }
    }

    #[test]
    fn times_are_utc() {
        let (early, late) = (
            Timestamp {
                seconds: 1_700_000_000,
                nanos: 900_000_000,
            },
            Timestamp {
                seconds: 1_700_000_001,
                nanos: 0,
            },
        );
        assert_eq!(moment(early), "2023-11-14 22:13:20");
        assert!((between(early, late) - 0.1).abs() < 1e-9);
        assert!(between(late, early) < 0.0);
    }
}
