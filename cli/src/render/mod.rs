//! Text for people, from fixed data: no clock, no terminal, no network.

pub(crate) mod checks;
pub(crate) mod disks;
pub(crate) mod estimate;
pub(crate) mod expected;
pub(crate) mod lists;
pub(crate) mod progress;
pub(crate) mod record;
pub(crate) mod table;
pub(crate) mod timeline;
pub(crate) mod units;
pub(crate) mod words;
