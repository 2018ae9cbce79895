//! How an attempt at a phase came out, with the words and data that go with it.

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::HostId;
use drover_proto::v1::MigrationError;

use super::Learned;
use super::look::Look;
use crate::saga::{Guest, Outcome};
use crate::state::WaitReason;
use crate::store::Record;
use crate::verdict::{Seen, Side, SourceCopy, Undecidable};

/// What a phase gives back.
#[derive(Debug)]
pub struct Report {
    pub answer: Answer,
    /// What was found, for people.
    pub detail: String,
    pub learned: Learned,
}

/// An outcome with its data.
#[derive(Debug)]
pub enum Answer {
    Done(Guest),
    Refused(Box<MigrationError>),
    Unknown(Wait),
}

/// What a missing answer is waited for.
#[derive(Clone, Debug)]
pub struct Wait {
    pub reason: WaitReason,
    pub host: Option<HostId>,
    /// For people.
    pub remedy: String,
}

impl Answer {
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Done(guest) => Outcome::Done(*guest),
            Self::Refused(_) => Outcome::Refused,
            Self::Unknown(_) => Outcome::Unknown,
        }
    }
}

impl Report {
    pub fn done(guest: Guest, detail: impl Into<String>, learned: Learned) -> Self {
        Self {
            answer: Answer::Done(guest),
            detail: detail.into(),
            learned,
        }
    }

    /// It is not so, by the evidence in `failure`.
    pub fn refused(failure: &Failure, learned: Learned) -> Self {
        Self {
            answer: Answer::Refused(Box::new(error(failure))),
            detail: failure.to_string(),
            learned,
        }
    }

    /// Refused where the peer really said so, else looked at again.
    pub fn of(failure: &Failure, learned: Learned) -> Self {
        // Who is not in office learns nothing by it about the migration.
        let is_evidence = failure.is_evidence() && failure.reason != Reason::StaleTerm;
        if is_evidence {
            Self::refused(failure, learned)
        } else {
            Self::unknown(failure, learned)
        }
    }

    /// Nobody knows, because of `failure`.
    pub fn unknown(failure: &Failure, learned: Learned) -> Self {
        let silent = matches!(failure.reason, Reason::HostUnreachable | Reason::DeadlineExceeded);
        let reason = if silent {
            WaitReason::HostUnreachable
        } else {
            WaitReason::Backoff
        };
        let wait = Wait {
            reason,
            host: failure.host.clone(),
            remedy: failure.remedy.clone().unwrap_or_default(),
        };
        Self {
            answer: Answer::Unknown(wait),
            detail: failure.to_string(),
            learned,
        }
    }

    /// It is looked at again soon.
    pub fn again(detail: impl Into<String>, learned: Learned) -> Self {
        let wait = Wait {
            reason: WaitReason::Backoff,
            host: None,
            remedy: String::new(),
        };
        Self {
            answer: Answer::Unknown(wait),
            detail: detail.into(),
            learned,
        }
    }

    /// It is looked at again, and what it waits for is told.
    pub(super) fn waits(wait: Wait, detail: impl Into<String>, learned: Learned) -> Self {
        Self {
            answer: Answer::Unknown(wait),
            detail: detail.into(),
            learned,
        }
    }

    /// Somebody has to look at once.
    pub(super) fn alarm(found: &str, learned: Learned) -> Self {
        let wait = Wait {
            reason: WaitReason::ResolveNeeded,
            host: None,
            remedy: found.to_owned(),
        };
        Self {
            answer: Answer::Unknown(wait),
            detail: found.to_owned(),
            learned,
        }
    }

    /// Only this host can say.
    pub(super) fn wait_for(side: Side, record: &Record, look: &Look) -> Self {
        let (host, failure) = match side {
            Side::Source => (&record.source, look.source.as_ref().err()),
            Side::Destination => (&record.destination, look.destination.as_ref().err()),
        };
        let why = failure.map_or_else(String::new, |failure| format!(": {failure}"));
        let wait = Wait {
            reason: WaitReason::HostUnreachable,
            host: Some(host.clone()),
            remedy: format!(
                "bring {host} or its agent back; where it is off for good, say so by `drover migration resolve`"
            ),
        };
        Self {
            answer: Answer::Unknown(wait),
            detail: format!("{host} has to answer{why}"),
            learned: look.learned(),
        }
    }

    /// In post-copy this host does not answer, and has a part of the memory.
    pub(super) fn wait_in_post_copy(side: Side, record: &Record, look: &Look) -> Self {
        let (host, other) = (record.host_of(side), record.host_of(side.other()));
        let flag = fenced_flag(side);
        let mut report = Self::wait_for(side, record, look);
        if let Answer::Unknown(wait) = &mut report.answer {
            wait.remedy = format!(
                "a part of the guest's memory is on {host}: bring it or its agent back, then the agents go on by \
                 themselves. Where it is off for good the guest is lost: end what {other} has of it with `virsh destroy`, \
                 then say so by `drover migration resolve {flag}`"
            );
        }
        report
    }

    /// Only a person can decide.
    pub(super) fn resolve(why: Undecidable, record: &Record, look: &Look) -> Self {
        let found = match why {
            Undecidable::DiedWhileResuming if is_gone(look) => {
                "neither host has a copy of the guest any more, and it was on its way from one to the other".to_owned()
            }
            Undecidable::DiedWhileResuming => {
                format!(
                    "{} died while it told the guest to run: it may have run there",
                    record.destination
                )
            }
            Undecidable::JournalLost => "the journal of this migration is gone from a host".to_owned(),
            Undecidable::AnotherGuest => "a guest with the same UUID was started outside of this migration".to_owned(),
            Undecidable::IncompleteCopy => {
                "the source copy is gone and the waiting copy did not get everything".to_owned()
            }
            Undecidable::OlderCopy => format!(
                "the guest ran on at {} after it was handed over: the copy that {} was told to finish is older",
                record.source, record.destination
            ),
            Undecidable::Contradiction => "the two hosts prove opposite things".to_owned(),
        };
        let remedy = match why {
            Undecidable::OlderCopy => format!(
                "end the copy that stands still on {}, then say so by `drover migration resolve --destination-is-fenced`",
                record.destination
            ),
            Undecidable::DiedWhileResuming if is_gone(look) => "make sure that no copy runs anywhere, then say so by \
                 `drover migration resolve --destination-is-fenced`: the record ends, and the guest can be started anew \
                 from its disks"
                .to_owned(),
            Undecidable::DiedWhileResuming if look.source.is_err() => format!(
                "bring {} or its agent back: it knows more. Where it is off for good, say so by `drover migration resolve \
                 {}`: the record ends, and the guest can be started anew from its disks",
                record.source,
                fenced_flag(Side::Source)
            ),
            Undecidable::DiedWhileResuming => format!(
                "make sure that no copy runs on {}, then say so by `drover migration resolve --destination-is-fenced`: the \
                 guest goes on at {}",
                record.destination, record.source
            ),
            Undecidable::JournalLost
            | Undecidable::AnotherGuest
            | Undecidable::IncompleteCopy
            | Undecidable::Contradiction => {
                "find out which host has the guest, fence the other one, and say so by `drover migration resolve`"
                    .to_owned()
            }
        };
        let wait = Wait {
            reason: WaitReason::ResolveNeeded,
            host: None,
            remedy,
        };
        Self {
            answer: Answer::Unknown(wait),
            detail: found,
            learned: look.learned(),
        }
    }
}

/// How an operator says that it is off.
pub(super) fn fenced_flag(side: Side) -> &'static str {
    match side {
        Side::Source => "--source-is-fenced",
        Side::Destination => "--destination-is-fenced",
    }
}

/// Whether the source's copy is gone.
fn is_gone(look: &Look) -> bool {
    match look.seen_source() {
        Seen::Journal(source) => matches!(source.copy, SourceCopy::Gone | SourceCopy::EndedByUser),
        Seen::Unreachable | Seen::NoJournal | Seen::JournalLost => false,
    }
}

/// A failure as the record keeps it. The phase is filled in by whoever knows it.
fn error(failure: &Failure) -> MigrationError {
    MigrationError {
        reason: failure.reason.name().to_owned(),
        message: failure.message.clone(),
        remedy: failure.remedy.clone().unwrap_or_default(),
        host: failure.host.as_ref().map(HostId::resource_name).unwrap_or_default(),
        phase: 0,
    }
}
