//! What a benchmark makes of its samples.

/// First quartile, median, third quartile; zeros of nothing.
pub fn quartiles(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        values
            .get(((values.len().saturating_sub(1)) as f64 * share).round() as usize)
            .copied()
    };
    (at(0.25).unwrap_or(0.0), at(0.5).unwrap_or(0.0), at(0.75).unwrap_or(0.0))
}
