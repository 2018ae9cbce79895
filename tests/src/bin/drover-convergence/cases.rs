//! Who moves what: the loads of the guest and the contenders.

use clap::ValueEnum;
use drover_tests::{Load, Pattern};

/// What the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    Idle,
    /// A part of what the link carries, over all of the filled memory.
    Quarter,
    ThreeQuarters,
    OneAndAHalf,
    /// One and a half times the link, over a set that fits into a blackout.
    HotSet,
}

/// Who moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Contender {
    Virsh,
    VirshAutoConverge,
    VirshPostCopy,
    /// It may slow the guest down.
    Drover,
    /// It may let the guest go over.
    DroverPostCopy,
    /// It may do neither: at the deadline the guest stays where it is.
    DroverAlone,
}

impl Case {
    pub(crate) fn load(self, link_kib: u64, fill_mib: u64) -> Load {
        let (percent, set_mib) = match self {
            Self::Idle => (0, fill_mib),
            Self::Quarter => (25, fill_mib),
            Self::ThreeQuarters => (75, fill_mib),
            Self::OneAndAHalf => (150, fill_mib),
            Self::HotSet => (150, 16),
        };
        Load {
            kib_per_second: link_kib * percent / 100,
            set_mib,
            pattern: Pattern::Uniform,
        }
    }
}

impl Contender {
    /// Beside the usual arguments of `virsh migrate`; none for Drover.
    pub(crate) fn virsh(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Virsh => Some(&[]),
            Self::VirshAutoConverge => Some(&["--auto-converge"]),
            Self::VirshPostCopy => Some(&["--postcopy", "--timeout", "15", "--timeout-postcopy"]),
            Self::Drover | Self::DroverPostCopy | Self::DroverAlone => None,
        }
    }

    /// Of Drover: what it is allowed beside the blackout and the deadline.
    pub(crate) fn allowed(self) -> &'static [&'static str] {
        match self {
            Self::Drover => &["--allow-auto-converge"],
            Self::DroverPostCopy => &["--allow-post-copy"],
            Self::DroverAlone | Self::Virsh | Self::VirshAutoConverge | Self::VirshPostCopy => &[],
        }
    }
}

pub(crate) fn name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}
