//! Fault points: moments of a migration at which a test can hold or end a process, named by what is true there.
//!
//! Off unless `DROVER_FAULT_POINTS` names a folder when the process starts; then they cost one look at an empty cell.
//! Where it is on, that is logged as a warning, and the folder says what happens:
//!
//! ```text
//!  FOLDER/NAME holds "pause"   the process renames it to NAME.reached and goes on when that file is gone
//!  FOLDER/NAME holds "exit"    the process renames it to NAME.reached and ends at once, as in a crash
//! ```
//! One arming stops one process once, also across its restarts. Only the task that came by is held: the process
//! answers everything that does not need the migration's lock.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// The variable that names the folder.
pub const VARIABLE: &str = "DROVER_FAULT_POINTS";

/// What a process that was told to end exits with.
const EXIT: i32 = 70;

/// How often a held task looks whether it may go on.
const LOOK: Duration = Duration::from_millis(10);

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Names of the points. A name says what is true there and, by it, what is not true yet.
pub mod point {
    /// Source: libvirt's Begin has returned; nobody was told.
    pub const SOURCE_BEGUN: &str = "source.begun";
    /// Source: StartMigrate was accepted; Perform was not called.
    pub const SOURCE_SENDING: &str = "source.sending";
    /// Source: Perform has returned, the guest stands still; HandedOver is not written.
    pub const SOURCE_ALL_SENT: &str = "source.all-sent";
    /// Source: HandedOver is written; the destination's agent was not called.
    pub const SOURCE_HANDED_OVER: &str = "source.handed-over";
    /// Source: the destination has said that the guest runs there, the verdict is written; Confirm was not called.
    pub const SOURCE_CONFIRMING: &str = "source.confirming";
    /// Source: its copy is gone and that is written.
    pub const SOURCE_CONFIRMED: &str = "source.confirmed";
    /// Destination: libvirt's Prepare has returned, a copy waits; that is written, nobody was told.
    pub const DESTINATION_PREPARED: &str = "destination.prepared";
    /// Destination: Finishing is written; Finish was not called.
    pub const DESTINATION_FINISHING: &str = "destination.finishing";
    /// Destination: Finish has returned, the copy stands still; Resuming is not written.
    pub const DESTINATION_FINISHED: &str = "destination.finished";
    /// Destination: Resuming is written; the copy was not told to run.
    pub const DESTINATION_RESUMING: &str = "destination.resuming";
    /// Destination: the guest runs; Ran is not written.
    pub const DESTINATION_RESUMED: &str = "destination.resumed";
    /// Destination: Ran is written; the source's agent has no answer.
    pub const DESTINATION_RAN: &str = "destination.ran";
    /// Controller: the start of a phase is written; it did nothing yet. `controller.PHASE-started`, one per phase.
    pub const CONTROLLER_STARTED: [&str; 7] = [
        "controller.validate-started",
        "controller.prepare-started",
        "controller.transfer-started",
        "controller.verify-started",
        "controller.finalize-started",
        "controller.abort-started",
        "controller.discard-started",
    ];
    /// Controller: a phase has come out; that is not written. `controller.PHASE-over`, one per phase.
    pub const CONTROLLER_OVER: [&str; 7] = [
        "controller.validate-over",
        "controller.prepare-over",
        "controller.transfer-over",
        "controller.verify-over",
        "controller.finalize-over",
        "controller.abort-over",
        "controller.discard-over",
    ];
    /// Those of the agents, in the order of a migration.
    pub const AGENT: [&str; 12] = [
        SOURCE_BEGUN,
        DESTINATION_PREPARED,
        SOURCE_SENDING,
        SOURCE_ALL_SENT,
        SOURCE_HANDED_OVER,
        DESTINATION_FINISHING,
        DESTINATION_FINISHED,
        DESTINATION_RESUMING,
        DESTINATION_RESUMED,
        DESTINATION_RAN,
        SOURCE_CONFIRMING,
        SOURCE_CONFIRMED,
    ];
}

/// Reads the variable, once, at the start of the process.
pub fn enable_from_environment() {
    let Some(folder) = std::env::var_os(VARIABLE).filter(|folder| !folder.is_empty()) else {
        return;
    };
    let folder = FOLDER.get_or_init(|| folder.into());
    tracing::warn!(
        folder = %folder.display(),
        "FAULT POINTS ARE ON: whoever writes to this folder can hold or end this process ({VARIABLE})"
    );
}

/// The process has come to a point. Goes on at once unless points are on and this one is armed.
pub async fn reach(name: &str) {
    if let Some(folder) = FOLDER.get() {
        stop_at(folder, name).await;
    }
}

/// The same for a name that is made of a word and one that varies.
pub async fn reach_one_of(names: &[&'static str], which: usize) {
    if let (Some(folder), Some(name)) = (FOLDER.get(), names.get(which)) {
        stop_at(folder, name).await;
    }
}

async fn stop_at(folder: &Path, name: &str) {
    let (armed, reached) = (folder.join(name), folder.join(format!("{name}.reached")));
    let Ok(action) = tokio::fs::read_to_string(&armed).await else {
        return;
    };
    // Whoever renames it is the one that is stopped.
    if tokio::fs::rename(&armed, &reached).await.is_err() {
        return;
    }
    match action.trim() {
        "exit" => {
            tracing::error!(point = name, "fault point: this process ends here");
            std::process::exit(EXIT);
        }
        "pause" => {
            tracing::error!(point = name, "fault point: held here");
            while tokio::fs::try_exists(&reached).await.unwrap_or(false) {
                tokio::time::sleep(LOOK).await;
            }
            tracing::error!(point = name, "fault point: going on");
        }
        other => tracing::error!(point = name, "fault point: {other:?} is neither \"pause\" nor \"exit\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_point_that_is_not_armed_holds_nobody() {
        let folder = tempfile::tempdir().unwrap();
        stop_at(folder.path(), point::SOURCE_BEGUN).await;
        std::fs::write(folder.path().join(point::SOURCE_BEGUN), "puase").unwrap();
        stop_at(folder.path(), point::SOURCE_BEGUN).await;
    }

    #[tokio::test]
    async fn an_armed_point_holds_until_it_is_released_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(point::SOURCE_BEGUN), "pause\n").unwrap();
        let reached = folder.path().join(format!("{}.reached", point::SOURCE_BEGUN));
        let path = folder.path().to_owned();
        let held = tokio::spawn(async move { stop_at(&path, point::SOURCE_BEGUN).await });
        while !reached.exists() {
            tokio::time::sleep(LOOK).await;
        }
        // Other points, and the same one again, are passed meanwhile.
        stop_at(folder.path(), point::DESTINATION_RAN).await;
        stop_at(folder.path(), point::SOURCE_BEGUN).await;
        assert!(!held.is_finished());
        std::fs::remove_file(&reached).unwrap();
        held.await.unwrap();
    }

    #[test]
    fn no_name_is_used_twice() {
        let all = [
            point::AGENT.as_slice(),
            &point::CONTROLLER_STARTED,
            &point::CONTROLLER_OVER,
        ]
        .concat();
        let unique: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(unique.len(), all.len());
    }
}
