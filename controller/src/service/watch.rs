//! WatchMigration: a snapshot, then everything that happens, until the migration is at rest.
//!
//! Changes come from the store, in order, and none is left out; progress is only ever the newest. A watcher costs a
//! channel of a few messages, however slow it reads. After a resume the snapshot is followed by all that was missed.

use std::pin::Pin;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::MigrationId;
use drover_proto::time::{now, timestamp};
use drover_proto::v1::watch_migration_response::Event as Happened;
use drover_proto::v1::{Heartbeat, Progress, WatchMigrationResponse};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Api, errors};
use crate::hub::Subscription;
use crate::store::sequence;

/// Messages that wait for a slow reader.
const QUEUE: usize = 8;

/// Watchers at once, of all callers: what they cost must have an end.
const MOST_WATCHERS: usize = 5000;

static WATCHERS: Semaphore = Semaphore::const_new(MOST_WATCHERS);

/// Events read from the store at once.
const BATCH: u32 = 32;

/// Without other news.
const HEARTBEAT: Duration = Duration::from_secs(15);

pub(super) type Stream = Pin<Box<dyn tokio_stream::Stream<Item = Result<WatchMigrationResponse, Status>> + Send>>;

/// The reader has gone, or nothing more is to be told.
struct Over;

/// One watcher.
struct Watcher {
    api: Api,
    id: MigrationId,
    /// Everything up to it was told.
    sequence: u64,
    told_progress: Option<Progress>,
    sender: mpsc::Sender<Result<WatchMigrationResponse, Status>>,
}

impl Api {
    pub(super) async fn watch(&self, id: MigrationId, token: &str) -> Result<Stream, Failure> {
        let place = WATCHERS.try_acquire().map_err(|_| {
            let message = format!("{MOST_WATCHERS} watches are open");
            Failure::new(Reason::ResourceExhausted, message).with_remedy("watch less, or ask with GetMigration")
        })?;
        // Before the record is read: what is written in between is told twice rather than not at all.
        let news = self.ledger.hub.subscribe(id);
        let record = self.record(id).await?;
        let snapshot = self.shown(&record).await?;
        let newest = sequence(record.generation + 1, 0) - 1;
        let sequence = match read_token(token, id)? {
            Some(sequence) if sequence <= newest => sequence,
            Some(_) => return Err(expired("this token is from another life of the store")),
            None => newest,
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let watcher = Watcher {
            api: self.clone(),
            id,
            sequence,
            told_progress: snapshot.progress.clone(),
            sender,
        };
        let at_rest = record.position.is_final();
        tokio::spawn(async move {
            watcher.run(snapshot, news, at_rest).await;
            drop(place);
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

impl Watcher {
    async fn run(mut self, snapshot: drover_proto::v1::Migration, mut news: Subscription, at_rest: bool) {
        let closed = self.sender.clone();
        let stopping = self.api.stopping.clone();
        tokio::select! {
            _ = self.tell_all(snapshot, &mut news, at_rest) => {}
            () = closed.closed() => {}
            () = stopping.cancelled() => {
                let failure = Failure::new(Reason::NotServing, "the controller is being stopped");
                // The reader may be full or gone: it learns it from the end of the stream.
                let _ = closed.try_send(Err(failure.with_remedy("watch again with the last resume token").into()));
            }
        }
    }

    async fn tell_all(
        &mut self,
        snapshot: drover_proto::v1::Migration,
        news: &mut Subscription,
        mut at_rest: bool,
    ) -> Result<(), Over> {
        self.tell(now(), Happened::Snapshot(snapshot)).await?;
        loop {
            let newest = news.newest();
            let progress = newest.progress;
            at_rest |= newest.at_rest;
            self.tell_events().await?;
            if at_rest {
                return Ok(());
            }
            if progress.is_some() && progress != self.told_progress {
                self.told_progress.clone_from(&progress);
                if let Some(progress) = progress {
                    self.tell(now(), Happened::Progress(progress)).await?;
                }
            }
            match tokio::time::timeout(HEARTBEAT, news.changed()).await {
                Ok(true) => {}
                // Whoever told the news has no more: the migration is at rest.
                Ok(false) => at_rest = true,
                Err(_) => self.tell(now(), Happened::Heartbeat(Heartbeat {})).await?,
            }
        }
    }

    /// All that was written since.
    async fn tell_events(&mut self) -> Result<(), Over> {
        loop {
            let events = match self.api.ledger.store.events(self.id, self.sequence, BATCH).await {
                Ok(events) => events,
                Err(error) => {
                    let _ = self.sender.send(Err(errors::store(error).into())).await;
                    return Err(Over);
                }
            };
            if events.is_empty() {
                return Ok(());
            }
            for event in events {
                self.sequence = event.sequence;
                self.tell(timestamp(event.time), event.what).await?;
            }
        }
    }

    async fn tell(&self, time: prost_types::Timestamp, event: Happened) -> Result<(), Over> {
        let message = WatchMigrationResponse {
            resume_token: token(self.id, self.sequence),
            time: Some(time),
            event: Some(event),
        };
        self.sender.send(Ok(message)).await.map_err(|_| Over)
    }
}

fn token(id: MigrationId, sequence: u64) -> String {
    URL_SAFE_NO_PAD.encode(format!("{id} {sequence}"))
}

fn read_token(text: &str, id: MigrationId) -> Result<Option<u64>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (of, sequence) = text.split_once(' ')?;
        (of.parse() == Ok(id)).then_some(())?;
        sequence.parse().ok()
    };
    match read() {
        Some(sequence) => Ok(Some(sequence)),
        None => Err(Failure::invalid(
            "resume_token",
            "was not made by a watch of this migration",
        )),
    }
}

fn expired(why: &str) -> Failure {
    Failure::new(Reason::ResumeTokenExpired, why).with_remedy("watch without a resume token")
}
