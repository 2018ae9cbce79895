//! What a guest writes: a set of pages that it writes to over and over, at a rate that saturates.

/// Where two looks of different lengths saw the same, all of the set was written in the shorter one: so many times its
/// length would have been enough for 95 % of it.
const SATURATED: f64 = 3.0;

/// `W·(1 − e^(−D·t/W))` bytes are different after t seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Writes {
    /// W, bytes.
    set: f64,
    /// D, bytes/s.
    rate: f64,
}

/// What was seen in one look: its length in seconds, and bytes that were different at its end.
type Look = (f64, f64);

impl Writes {
    /// None at all: a guest that stands still.
    pub const NONE: Self = Self { set: 0.0, rate: 0.0 };

    /// What follows from looks of different lengths (seconds, bytes that were different at their end) at a guest with so many bytes of memory.
    pub fn seen(looks: &[(f64, f64)], memory: f64) -> Self {
        let mut looks: Vec<Look> = looks.iter().copied().filter(|look| look.0 > 0.0).collect();
        looks.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (Some(&short), Some(&long)) = (looks.first(), looks.last()) else {
            return Self::NONE;
        };
        let most = looks.iter().fold(0.0, |most: f64, look| most.max(look.1)).min(memory);
        if most <= 0.0 {
            return Self::NONE;
        }
        // Without two looks nothing speaks for a bound.
        let unbounded = memory.max(most * 1.01);
        if looks.len() == 1 || long.1 >= Self::through(short, unbounded).within(long.0, 0.0) {
            return Self::through(long, unbounded);
        }
        // The larger the set, the more the longer look should have seen.
        let (mut low, mut high) = (most, unbounded);
        for _ in 0..60 {
            let set = f64::midpoint(low, high);
            if Self::through(short, set).within(long.0, 0.0) < long.1 {
                low = set;
            } else {
                high = set;
            }
        }
        Self::through(short, high)
    }

    /// The rate that a look shows, where the set is known.
    fn through((seconds, bytes): Look, set: f64) -> Self {
        let part = (bytes / set).clamp(0.0, 1.0 - (-SATURATED).exp());
        Self {
            set,
            rate: -set / seconds * (1.0 - part).ln(),
        }
    }

    /// Bytes that are different after so many seconds, where the guest is kept from running for a part of them.
    pub fn within(&self, seconds: f64, slowed: f64) -> f64 {
        if self.set <= 0.0 {
            return 0.0;
        }
        self.set * -(-self.rate * (1.0 - slowed) * seconds / self.set).exp_m1()
    }

    /// The same guest, where it writes so many times as fast.
    #[must_use]
    pub fn faster(&self, factor: f64) -> Self {
        Self {
            rate: self.rate * factor,
            ..*self
        }
    }

    /// Bytes/s at the beginning of a look.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Bytes that it writes to over and over.
    pub fn set(&self) -> f64 {
        self.set
    }
}
