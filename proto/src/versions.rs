//! Versions of libvirt and QEMU, as libvirt counts them: major * 1,000,000 + minor * 1,000 + release.

/// For people: `9.0.0`.
pub fn version(number: u64) -> String {
    let (major, minor) = release(number);
    format!("{major}.{minor}.{}", number % 1000)
}

/// Major and minor.
pub fn release(number: u64) -> (u64, u64) {
    (number / 1_000_000, number / 1000 % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_three() {
        assert_eq!(version(10_009_002), "10.9.2");
        assert_eq!((release(9_004_000), release(0)), ((9, 4), (0, 0)));
    }
}
