//! Durations and bandwidths as people write them: `200ms`, `5m`, `500MiB/s`, `800Mbit/s`; in configurations, on command
//! lines, and in what the record says.

use std::time::Duration;

use crate::time::std_duration;

/// Units of time, in seconds.
const TIMES: [(&str, f64); 6] = [
    ("ms", 1e-3),
    ("s", 1.0),
    ("min", 60.0),
    ("m", 60.0),
    ("h", 3600.0),
    ("d", 86400.0),
];

/// Units of bandwidth, in bytes per second.
const RATES: [(&str, f64); 11] = [
    ("B/s", 1.0),
    ("kB/s", 1e3),
    ("MB/s", 1e6),
    ("GB/s", 1e9),
    ("KiB/s", 1024.0),
    ("MiB/s", 1_048_576.0),
    ("GiB/s", 1_073_741_824.0),
    ("bit/s", 0.125),
    ("kbit/s", 125.0),
    ("Mbit/s", 125e3),
    ("Gbit/s", 125e6),
];

/// What is not one of them; says what would be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotUnderstood(&'static str);

/// Reads `200ms`, `1.5s`, `5m`, `2h`. A number without a unit is refused.
pub fn duration(text: &str) -> Result<Duration, NotUnderstood> {
    let wrong = NotUnderstood("a time is a number with ms, s, m, h or d: 200ms, 1.5s, 5m");
    let seconds = measure(text, &TIMES).ok_or(wrong.clone())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong)
}

/// Reads `500MiB/s`, `800Mbit/s`, `1GB/s` as bytes per second; `none` and `0` are 0.
pub fn bytes_per_second(text: &str) -> Result<u64, NotUnderstood> {
    let wrong = NotUnderstood("a bandwidth is a number with its unit, 500MiB/s, 1GB/s, 800Mbit/s, or `none`");
    if matches!(text.trim(), "0" | "none") {
        return Ok(0);
    }
    let bytes = measure(text, &RATES).ok_or(wrong.clone())?.round();
    // 2^53: what a double counts exactly, and faster than any network.
    if !(1.0..=9_007_199_254_740_992.0).contains(&bytes) {
        return Err(wrong);
    }
    Ok(bytes as u64)
}

/// A number of digits with at most one point, then one of the units.
fn measure(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let unit = text[end..].trim_start();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    Some(number * factor)
}

/// `200 ms`, `1.5 s`, `300 s`.
pub fn duration_text(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1e3;
    if millis < 1000.0 {
        format!("{} ms", trimmed(millis))
    } else {
        format!("{} s", trimmed(millis / 1e3))
    }
}

/// The same of a message's duration; empty where it is negative.
pub fn proto_duration_text(duration: &prost_types::Duration) -> String {
    std_duration(duration).map(duration_text).unwrap_or_default()
}

/// `500 MiB/s`; 0 is `none`.
pub fn rate_text(bytes_per_second: u64) -> String {
    if bytes_per_second == 0 {
        "none".to_owned()
    } else {
        format!("{} MiB/s", trimmed(bytes_per_second as f64 / 1_048_576.0))
    }
}

/// At most three digits after the point, none that say nothing.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        let ms = Duration::from_millis;
        for (text, expected) in [
            ("200ms", ms(200)),
            ("1.5s", ms(1500)),
            (" 5 m ", ms(300_000)),
            ("2h", ms(7_200_000)),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "5",
            "ms",
            "-5s",
            "1e3s",
            "5 minutes",
            "1..5s",
            "99999999999999999999999d",
            "5M",
            "NaNs",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bandwidths_tell_bits_from_bytes() {
        for (text, expected) in [
            ("500MiB/s", 500 << 20),
            ("800Mbit/s", 100_000_000),
            ("1GB/s", 1_000_000_000),
            ("1.5 KiB/s", 1536),
            ("none", 0),
            ("0", 0),
        ] {
            assert_eq!(bytes_per_second(text), Ok(expected), "{text}");
        }
        for text in [
            "500",
            "500MB",
            "500mbit/s",
            "0MiB/s",
            "-1MiB/s",
            "1e30GiB/s",
            "99999999GiB/s",
            "MiB/s",
        ] {
            assert!(bytes_per_second(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_short() {
        assert_eq!(duration_text(Duration::from_millis(200)), "200 ms");
        assert_eq!(duration_text(Duration::from_millis(1500)), "1.5 s");
        assert_eq!(duration_text(Duration::from_secs(300)), "300 s");
        assert_eq!(
            (rate_text(500 << 20), rate_text(100_000_000), rate_text(0)),
            ("500 MiB/s".into(), "95.367 MiB/s".into(), "none".into())
        );
    }
}
