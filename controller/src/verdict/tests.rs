//! Every row of the design's two tables, and what must hold over all combinations.

use super::DestinationCopy as There;
use super::DestinationJournal::{Failed, Finishing, Ran, Resuming, Revoked, Waiting};
use super::SourceCopy as Here;
use super::SourceJournal::{HandedOver, NotBegun, RanOn, Sending};
use super::*;

mod combinations;
mod exhaustive;
mod open;
mod verdicts;

const UNREACHABLE_SOURCE: Seen<Source> = Seen::Unreachable;
const UNREACHABLE_DESTINATION: Seen<Destination> = Seen::Unreachable;

fn source(journal: SourceJournal, copy: SourceCopy) -> Seen<Source> {
    Seen::Journal(Source {
        journal,
        tombstoned: false,
        verdict: None,
        copy,
    })
}

fn tombstoned(journal: SourceJournal, copy: SourceCopy) -> Seen<Source> {
    Seen::Journal(Source {
        journal,
        tombstoned: true,
        verdict: None,
        copy,
    })
}

fn destination(journal: DestinationJournal, copy: DestinationCopy) -> Seen<Destination> {
    Seen::Journal(Destination {
        journal,
        post_copy: false,
        stream_complete: false,
        stream_flows: false,
        verdict: None,
        copy,
    })
}

fn received(journal: DestinationJournal, copy: DestinationCopy) -> Seen<Destination> {
    Seen::Journal(Destination {
        journal,
        post_copy: false,
        stream_complete: true,
        stream_flows: false,
        verdict: None,
        copy,
    })
}

fn post_copy_destination(journal: DestinationJournal, copy: DestinationCopy) -> Seen<Destination> {
    Seen::Journal(Destination {
        journal,
        post_copy: true,
        stream_complete: false,
        stream_flows: false,
        verdict: None,
        copy,
    })
}

fn running(job: Job) -> Seen<Source> {
    source(Sending, Here::AsBefore(job))
}

fn expect_open(source: Seen<Source>, destination: Seen<Destination>, expected: Open) {
    assert_eq!(
        judge(source, destination),
        Judgement::Open(expected),
        "{source:?} {destination:?}"
    );
}

fn claims_ran(seen: Seen<Source>) -> bool {
    matches!(
        seen,
        Seen::Journal(Source {
            verdict: Some(Decided::Ran),
            ..
        })
    )
}

fn every_source() -> Vec<Seen<Source>> {
    let copies = [Job::Held, Job::Performing, Job::None]
        .map(Here::AsBefore)
        .into_iter()
        .chain([
            Here::AllSent,
            Here::PostCopy,
            Here::PostCopyFailed,
            Here::Gone,
            Here::EndedByUser,
            Here::Another,
        ]);
    let mut all = vec![Seen::Unreachable, Seen::NoJournal, Seen::JournalLost];
    for copy in copies {
        for journal in [NotBegun, Sending, HandedOver, RanOn] {
            for tombstoned in [false, true] {
                for verdict in [None, Some(Decided::NeverRan), Some(Decided::Ran)] {
                    all.push(Seen::Journal(Source {
                        journal,
                        tombstoned,
                        verdict,
                        copy,
                    }));
                }
            }
        }
    }
    all
}

fn every_destination() -> Vec<Seen<Destination>> {
    let copies = [
        There::Absent,
        There::Still,
        There::Runs,
        There::PostCopy,
        There::PostCopyFailed,
        There::Another,
    ];
    let mut all = vec![Seen::Unreachable, Seen::NoJournal, Seen::JournalLost];
    for copy in copies {
        for journal in [Waiting, Finishing, Resuming, Ran, Revoked, Failed] {
            for bits in 0..8 {
                let [post_copy, stream_complete, stream_flows] = [1, 2, 4].map(|bit| bits & bit != 0);
                for verdict in [None, Some(Decided::NeverRan), Some(Decided::Ran)] {
                    all.push(Seen::Journal(Destination {
                        journal,
                        post_copy,
                        stream_complete,
                        stream_flows,
                        verdict,
                        copy,
                    }));
                }
            }
        }
    }
    all
}
