//! Safety rules that the model can be told to forget. A checker that finds nothing then has checked nothing.
//!
//! Not among them: that the verdict is written before it is acted upon, and that another one is refused afterwards. In
//! one attempt the tombstone and the destination's record keep the guest safe without them; they are for the repeat.

/// One rule of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Autostart is cleared before Begin.
    ClearAutostart,
    /// HandedOver is written before any hand-over leaves.
    WriteHandedOver,
    /// HandedOver is written only after Perform's success.
    HandOverAfterSuccess,
    /// A tombstone refuses a hand-over.
    TombstoneRefuses,
    /// Resuming is written before the guest is told to run.
    WriteResuming,
    /// What left Waiting is not revoked.
    RevokeOnlyWaiting,
    /// What was revoked is not finished.
    RevokedIsFinal,
    /// The tombstone is written before the controller is told of it.
    WriteTombstone,
    /// A host that does not answer proves nothing.
    SilenceProvesNothing,
    /// A restarted agent does not resume what stands still.
    RestartStartsNothing,
    /// The source copy is removed only by the verdict Ran.
    RemoveOnlyRan,
    /// That a copy ran on after it was handed over is written down: what was sent is older then, and never runs.
    WriteRanOn,
}

impl Rule {
    pub const ALL: [Self; 12] = [
        Self::ClearAutostart,
        Self::WriteHandedOver,
        Self::HandOverAfterSuccess,
        Self::TombstoneRefuses,
        Self::WriteResuming,
        Self::RevokeOnlyWaiting,
        Self::RevokedIsFinal,
        Self::WriteTombstone,
        Self::SilenceProvesNothing,
        Self::RestartStartsNothing,
        Self::RemoveOnlyRan,
        Self::WriteRanOn,
    ];
}

/// All rules, or all but one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules(Option<Rule>);

impl Rules {
    pub fn without(rule: Rule) -> Self {
        Self(Some(rule))
    }

    pub fn keep(self, rule: Rule) -> bool {
        self.0 != Some(rule)
    }
}
