//! Source: files that were kept under another name when their guest moved away shut off go when their time is over,
//! where the configuration gives them one.
//!
//! Promise: only what this host's journal says that it put away, and nobody has used or changed since. If the process
//! dies in between, the next look goes on. The journal forgets them after 30 days: so do we.

use std::sync::Arc;
use std::time::Duration;

use drover_proto::ids::MigrationId;
use tokio_util::sync::CancellationToken;

use super::Jobs;
use crate::journal::{Decision, LeavingFile, Record, Verdict};
use crate::offline::FileError;
use crate::offline::calls::FileCall;
use crate::offline::image::Mark;
use crate::offline::image_lock::{self, Others};
use crate::offline::loops;
use crate::storage_directories::StorageDirectories;

/// How often it is looked for what is over.
const PAUSE: Duration = Duration::from_secs(3600);

impl Jobs {
    /// At the start, and then now and again.
    pub async fn remove_what_was_kept_long_enough(self: Arc<Self>, stop: CancellationToken) {
        let Some(keep) = self.limits.keep_moved else { return };
        loop {
            for record in self.journal.records().iter().filter(|record| is_over(record, keep)) {
                self.remove_kept(record).await;
            }
            if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                return;
            }
        }
    }

    async fn remove_kept(&self, record: &Record) {
        let suffix = moved_suffix(record.migration);
        let leaving = record.source().and_then(|part| part.offline.as_ref());
        for file in leaving.into_iter().flat_map(|leaving| &leaving.files).cloned() {
            let (path, suffix) = (file.spec.path.clone(), suffix.clone());
            let work = move |allowed: &StorageDirectories| remove(allowed, &file, &suffix);
            if let Err(error) = self.with_file(FileCall::Remove, path, work).await {
                tracing::info!(migration_id = %record.migration, %error, "a file that was moved away from here stays");
            }
        }
    }
}

/// Of the name that a file gets which stays at the source.
pub(super) fn moved_suffix(migration: MigrationId) -> String {
    format!(".moved-{migration}")
}

/// Whether a guest left from here for good, with files that were kept for so long.
fn is_over(record: &Record, keep: Duration) -> bool {
    let closed = record.closed.and_then(|closed| closed.elapsed().ok());
    closed.is_some_and(|since| since >= keep) && record.decision == Decision::Settled(Verdict::Ran)
}

fn remove(allowed: &StorageDirectories, file: &LeavingFile, suffix: &str) -> Result<(), FileError> {
    let place = allowed.find(&file.spec.path)?.beside(suffix)?;
    let opened = match place.open_to_read() {
        Ok(opened) => opened,
        Err(FileError::Absent(_)) => return Ok(()),
        Err(other) => return Err(other),
    };
    let error = |source| FileError::io(place.path(), source);
    if !image_lock::hold(&opened, Others::None).map_err(error)? {
        return Err(FileError::InUse(place.path().to_owned()));
    }
    loops::refuse(&opened, place.path(), Others::None)?;
    if Some(Mark::of(&opened).map_err(error)?) != file.mark {
        return Err(FileError::Changed(place.path().to_owned()));
    }
    place.remove()?;
    tracing::info!(path = %place.path().display(), "a file that was moved away from here was kept long enough and is removed");
    Ok(())
}
