//! Where entries and hard state are kept.
//!
//! [`LogStorage`] is what the raft loop needs of a disk; [`SledLog`] is the one that managers use, [`MemoryLog`]
//! one whose failures a test decides on. `tests/storage.rs` holds both to the same rules.

mod ahead;
mod memory;
pub(crate) mod record;
mod sled_dir;
mod sled_log;
pub(crate) mod watermark;

pub use memory::{Faults, MemoryDisk, MemoryLog};
pub use sled_log::SledLog;

use std::sync::Arc;

use raft_proto::eraftpb::{Entry, HardState};

use crate::{Result, Sealer};

/// A place in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Index of the entry; 0 is before the first.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

/// Whose log it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Raft id of the member; chosen once, never used again after it was removed.
    pub raft_id: u64,
    /// Node id, from the certificate.
    pub node_id: String,
}

/// What is to be written at once: after a crash either all of it is there or nothing.
#[derive(Debug, Default)]
pub struct Write<'a> {
    /// Contiguous entries. They replace everything from the first one's index on, and begin no later than right
    /// after the last one.
    pub entries: &'a [Entry],
    /// Term, vote and commit index.
    pub hard_state: Option<&'a HardState>,
    /// Entries up to this one are no longer needed.
    pub compact: Option<Position>,
    /// The log is dropped and begins anew after this position, which a received snapshot covers.
    pub install: Option<Position>,
    /// The newest snapshot.
    pub snapshot: Option<Position>,
    /// Whose log it is; written with the first entries.
    pub identity: Option<&'a Identity>,
}

/// What was found on opening, beside the entries.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recovered {
    /// `None`: nothing was ever written.
    pub identity: Option<Identity>,
    /// Last hard state.
    pub hard_state: HardState,
    /// The entries begin after this position.
    pub base: Position,
    /// The newest snapshot, if there is one.
    pub snapshot: Option<Position>,
}

/// A log on disk. Every call comes from one thread. After an error the log is used no more: the node stops.
pub trait LogStorage: Send {
    /// Reads everything back and yields the entries in order. An entry whose index is not the next one
    /// replaces those from its index on.
    ///
    /// # Errors
    /// If what is there is not everything that a successful [`LogStorage::sync`] covered.
    fn recover(&mut self, visit: &mut dyn FnMut(Entry)) -> Result<Recovered>;

    /// Writes, not necessarily beyond a cache.
    fn write(&mut self, write: &Write<'_>) -> Result<()>;

    /// Returns when everything written so far will survive a power loss.
    fn sync(&mut self) -> Result<()>;

    /// Entries from `low` to before `high`, all of which exist: as many as fit in `max_bytes`, but at least one.
    fn read(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>>;

    /// Size of the entries that are kept, in bytes.
    fn bytes(&self) -> u64;

    /// The last entry of the oldest pieces that the log is kept in: no more than so many pieces and bytes, but at least one
    /// piece. 0 if there is none.
    fn oldest(&self, pieces: usize, bytes: u64) -> u64;

    /// Writes everything once more, sealed with another key, beside what is there. An error leaves the log as it
    /// was, and usable. Only [`LogStorage::switch`] may follow.
    fn reseal(&mut self, sealer: Arc<dyn Sealer>) -> Result<()>;

    /// Goes over to what [`LogStorage::reseal`] made, at once as far as a crash is concerned, and removes what was
    /// there before.
    fn switch(&mut self) -> Result<()>;
}

/// [`LogStorage::oldest`] of pieces, each with its last entry and its bytes.
fn oldest(all: impl Iterator<Item = (u64, u64)>, pieces: usize, bytes: u64) -> u64 {
    let (mut last, mut sum) = (0, 0);
    for (end, size) in all.take(pieces.max(1)) {
        sum += size;
        if last > 0 && sum > bytes {
            break;
        }
        last = end;
    }
    last
}
