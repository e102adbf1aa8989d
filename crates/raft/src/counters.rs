//! Numbers that show how well the log is used.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a raft node since its start. Relaxed: they are for measuring.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Turns of the loop that wrote something.
    pub(crate) turns: AtomicU64,
    /// Synced writes of the log.
    pub(crate) syncs: AtomicU64,
    /// Entries written.
    pub(crate) entries: AtomicU64,
    /// Own proposals that were committed.
    pub(crate) proposals: AtomicU64,
    /// Entries that could not be applied.
    pub(crate) failed: AtomicU64,
    /// Messages from peers that were ignored.
    pub(crate) ignored: AtomicU64,
    /// Snapshots taken.
    pub(crate) snapshots: AtomicU64,
    /// Snapshots that a leader sent.
    pub(crate) received: AtomicU64,
    /// Questions to other members whether the leader is gone.
    pub(crate) doubts: AtomicU64,
    /// Elections that were asked for because it is.
    pub(crate) takeovers: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Turns of the loop that wrote something.
    pub turns: u64,
    /// Synced writes of the log.
    pub syncs: u64,
    /// Entries written.
    pub entries: u64,
    /// Own proposals that were committed.
    pub proposals: u64,
    /// Entries that could not be applied.
    pub failed: u64,
    /// Messages from peers that were ignored.
    pub ignored: u64,
    /// Snapshots taken.
    pub snapshots: u64,
    /// Snapshots that a leader sent, and that were taken over.
    pub received: u64,
    /// Times that this member took the leader for gone and asked the others.
    pub doubts: u64,
    /// Times that it asked for votes because a quorum agreed.
    pub takeovers: u64,
}

pub(crate) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn read(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            turns: get(&self.turns),
            syncs: get(&self.syncs),
            entries: get(&self.entries),
            proposals: get(&self.proposals),
            failed: get(&self.failed),
            ignored: get(&self.ignored),
            snapshots: get(&self.snapshots),
            received: get(&self.received),
            doubts: get(&self.doubts),
            takeovers: get(&self.takeovers),
        }
    }
}
