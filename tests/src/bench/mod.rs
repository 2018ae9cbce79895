//! What `drover-bench` measures beside whole migrations.

pub mod adjust;
pub mod check;

use std::time::Duration;

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
