//! Either side: sockets and tickets go, the originals of copied disks where the policy says so, the journal is closed and kept for 30 days.

use std::sync::Arc;
use std::time::SystemTime;

use drover_proto::failure::{Failure, Reason};

use super::fence::{Fence, Reference, Side, concerns};
use super::{Jobs, lock};
use crate::journal::Decision;

impl Jobs {
    /// Refused while the verdict is open or not carried out. What is not there is closed.
    pub async fn close_migration(self: &Arc<Self>, fence: Fence, reference: Reference) -> Result<(), Failure> {
        let mut page = self.obey_and_lock(&fence, reference.migration).await?;
        let Some(record) = page.record() else { return Ok(()) };
        concerns(&record, &reference, Side::Either)?;
        match record.decision {
            Decision::Settled(_) => {}
            Decision::Open => {
                return Err(Failure::new(
                    Reason::NoVerdict,
                    "nobody has decided who may run the guest",
                ));
            }
            Decision::Decided(_) => {
                return Err(Failure::new(
                    Reason::MigrationState,
                    "the verdict was not carried out yet",
                ));
            }
        }
        self.remove_originals(&record).await?;
        self.sockets.remove(reference.migration).await?;
        if record.closed.is_none() {
            page.close(SystemTime::now()).await?;
        }
        self.forget_incoming(reference.migration);
        if let Some(job) = lock(&self.outgoing).remove(&reference.migration) {
            job.let_go();
        }
        Ok(())
    }
}
