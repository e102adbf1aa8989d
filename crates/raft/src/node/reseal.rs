//! Another data encryption key for everything on disk.
//!
//! A snapshot is taken and sealed with the new key, so that little of the log is left; the rest of the log is written
//! once more, sealed with the new key, and takes the old one's place; then everything else is removed. Until that is
//! done both keys are needed, and a restart with both begins again from the start.

use std::sync::Arc;

use super::turn::Turns;
use crate::inbox::Reply;
use crate::points::{Point, reach};
use crate::storage::Position;
use crate::{Error, Result, Sealer};

/// A change of the key under way.
pub(super) struct Reseal {
    sealer: Arc<dyn Sealer>,
    reply: Reply<()>,
    /// The snapshot that is being written for it.
    snapshot: Option<Position>,
}

impl Reseal {
    /// It waits for a snapshot to be begun.
    pub(super) fn wants_snapshot(&self) -> bool {
        self.snapshot.is_none()
    }

    /// A snapshot was begun.
    pub(super) fn snapshot_begun(&mut self, at: Position) {
        self.snapshot = Some(at);
    }
}

impl Turns {
    pub(super) fn begin_reseal(&mut self, sealer: Arc<dyn Sealer>, reply: Reply<()>) -> Result<()> {
        if self.reseal.is_some() {
            let _ = reply.send(Err(Error::Overloaded));
            return Ok(());
        }
        self.config.sealer = sealer.clone();
        self.snapshots = self.snapshots.sealed_with(sealer.clone());
        self.reseal = Some(Reseal { sealer, reply, snapshot: None });
        reach(Point::ResealBegun);
        if self.raw.raft.raft_log.applied == 0 { self.finish_reseal() } else { Ok(()) }
    }

    /// A snapshot was written, or could not be.
    pub(super) fn reseal_snapshot_taken(&mut self, at: Position, written: Result<()>) -> Result<()> {
        let Some(reseal) = self.reseal.take_if(|reseal| reseal.snapshot == Some(at)) else { return Ok(()) };
        match written {
            Ok(()) => {
                self.reseal = Some(reseal);
                self.finish_reseal()
            }
            Err(error) => {
                let _ = reseal.reply.send(Err(error));
                Ok(())
            }
        }
    }

    fn finish_reseal(&mut self) -> Result<()> {
        let Some(Reseal { sealer, reply, .. }) = self.reseal.take() else { return Ok(()) };
        let log = self.raw.mut_store();
        if let Err(error) = log.reseal(sealer) {
            let _ = reply.send(Err(error));
            return Ok(());
        }
        reach(Point::ResealCopied);
        log.switch()?;
        reach(Point::ResealCleaned);
        let newest = log.snapshot_at();
        self.compaction.wait_for_collected();
        let removed = self.snapshots.keep_only(newest);
        reach(Point::Resealed);
        if removed.is_ok() {
            tracing::info!("the raft log and its snapshots are sealed with another key");
        }
        let _ = reply.send(removed);
        Ok(())
    }
}
