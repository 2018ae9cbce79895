//! Whether a command comes from the controller that is in office.

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::{Attempt, GuestId, MigrationId};

use super::Jobs;
use crate::journal::{OpenPage, Part, Record, Term};

/// What every command of a controller carries.
#[derive(Clone, Debug)]
pub struct Fence {
    pub term: Term,
    /// Of this migration; 0 where leases are not used.
    pub lease: u64,
}

/// Which migration a command is about.
#[derive(Clone, Copy, Debug)]
pub struct Reference {
    pub migration: MigrationId,
    pub attempt: Attempt,
    pub guest: GuestId,
}

fn stale(message: String) -> Failure {
    Failure::new(Reason::StaleTerm, message)
}

impl Jobs {
    /// Obeys the term or refuses. Where a migration is concerned, its lock is held: an older command that waited for
    /// the lock behind a newer one is found out.
    pub async fn obey(&self, fence: &Fence) -> Result<(), Failure> {
        if self.terms.obey(&fence.term).await? {
            return Ok(());
        }
        let known = self.terms.known().map_or(0, |term| term.number);
        let shown = fence.term.number;
        Err(stale(format!("term {shown} is not in office: this agent obeys term {known}")).at_host(self.host.clone()))
    }

    /// The lock of a migration, for a command that may be obeyed.
    pub(super) async fn obey_and_lock(&self, fence: &Fence, migration: MigrationId) -> Result<OpenPage, Failure> {
        let mut page = self.lock(migration).await?;
        self.obey(fence).await?;
        if let Some(record) = page.record() {
            if fence.lease < record.lease {
                let (shown, known) = (fence.lease, record.lease);
                return Err(stale(format!(
                    "lease {shown} was taken over: this agent obeys lease {known}"
                )));
            }
            if fence.lease > record.lease {
                page.change(|record| record.lease = fence.lease).await?;
            }
        }
        Ok(page)
    }
}

/// Which part of a migration a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
    Either,
}

/// A command is for the guest, the side and the try that the record speaks of. A try that was begun since is none of
/// its business: it came late.
pub(super) fn concerns(record: &Record, reference: &Reference, side: Side) -> Result<(), Failure> {
    if record.guest != reference.guest {
        let message = format!("migration {} is about guest {}", record.migration, record.guest);
        return Err(Failure::invalid("migration.guest_uuid", message));
    }
    if reference.attempt < record.attempt {
        let message = format!(
            "try {} came too late: this host is at try {}",
            reference.attempt, record.attempt
        );
        return Err(Failure::new(Reason::MigrationState, message));
    }
    match (&record.part, side) {
        (Part::Source(_), Side::Destination) => Err(Failure::new(
            Reason::MigrationState,
            "this host is the source of this migration",
        )),
        (Part::Destination(_), Side::Source) => Err(Failure::new(
            Reason::MigrationState,
            "this host is the destination of this migration",
        )),
        (Part::Source(_) | Part::Destination(_) | Part::Nothing, _) => Ok(()),
    }
}
