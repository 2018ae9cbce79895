//! What the verdict reasons about: what each host's journal and libvirt say, without anything that does not matter.

/// What an agent answered about one migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen<T> {
    /// It did not answer.
    Unreachable,
    /// It never heard of the migration.
    NoJournal,
    /// It must have heard of it and knows nothing: its journal was lost.
    JournalLost,
    Journal(T),
}

impl<T> Seen<T> {
    /// The same about a part of what the journal says.
    pub fn map<U>(self, part: impl FnOnce(T) -> U) -> Seen<U> {
        match self {
            Self::Unreachable => Seen::Unreachable,
            Self::NoJournal => Seen::NoJournal,
            Self::JournalLost => Seen::JournalLost,
            Self::Journal(seen) => Seen::Journal(part(seen)),
        }
    }
}

/// What the source's journal and libvirt say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    pub journal: SourceJournal,
    /// Nothing of this attempt may begin or be handed over any more.
    pub tombstoned: bool,
    /// The verdict that was written there before it was acted upon.
    pub verdict: Option<Decided>,
    pub copy: SourceCopy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceJournal {
    /// Only a tombstone: Begin never came.
    NotBegun,
    Sending,
    HandedOver,
    /// Handed over, and somebody resumed it afterwards: its memory is newer than what the destination was sent.
    RanOn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceCopy {
    /// Runs, or stands still because its user wants it so.
    AsBefore(Job),
    /// Stands still with everything sent.
    AllSent,
    PostCopy,
    PostCopyFailed,
    /// Its QEMU is gone.
    Gone,
    /// Its QEMU is gone, and it was seen to end by its own or its user's wish.
    EndedByUser,
    /// A guest with this UUID lives there, but not the one that the journal speaks of.
    Another,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Job {
    /// Begun, not yet told to send.
    Held,
    Performing,
    /// Failed, or lost with a restart.
    None,
}

/// What the destination's journal and libvirt say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    pub journal: DestinationJournal,
    /// The migration may go post-copy: being seen running proves nothing before `Ran`.
    pub post_copy: bool,
    /// The main channel came to its end.
    pub stream_complete: bool,
    /// The main channel is there: what is missing may still come.
    pub stream_flows: bool,
    pub verdict: Option<Decided>,
    pub copy: DestinationCopy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationJournal {
    Waiting,
    Finishing,
    Resuming,
    Ran,
    Revoked,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationCopy {
    Absent,
    /// Waits for memory, or stands still.
    Still,
    Runs,
    /// Runs while pages are missing.
    PostCopy,
    PostCopyFailed,
    /// A guest with this UUID lives there, but not the one that the journal speaks of.
    Another,
}

/// A verdict as a journal records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decided {
    NeverRan,
    Ran,
}
