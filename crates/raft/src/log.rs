//! The log as the raft library sees it: a window of recent entries in memory, the rest on disk.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

use raft::{GetEntriesContext, RaftState, StorageError};
use raft_proto::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};

use crate::points::{Point, reach};
use crate::storage::{Identity, LogStorage, Position, Recovered, Write};
use crate::{Result, Sealer};

/// Entries are kept in memory up to this many bytes of data ...
const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// ... and up to this many, for what an empty one takes beside its data.
const CACHE_ENTRIES: usize = 8192;

/// The log of the raft library.
pub(crate) struct Log {
    storage: Box<dyn LogStorage>,
    hard_state: HardState,
    /// The entries begin after this position.
    base: Position,
    last: u64,
    /// First index of each run of entries of one term.
    terms: VecDeque<Position>,
    /// The last entries, without a gap.
    cache: VecDeque<Entry>,
    cached_bytes: usize,
    /// Voters as of the newest snapshot; what raft starts from.
    start: ConfState,
    /// Voters as of now; what goes with a snapshot that is sent.
    pub(crate) conf_state: ConfState,
    snapshot: Option<Position>,
    /// A peer needs a snapshot and there is none that would do.
    wanted: Cell<bool>,
}

impl Log {
    /// Reads back what is on disk.
    pub(crate) fn open(mut storage: Box<dyn LogStorage>) -> Result<(Log, Option<Identity>)> {
        let mut log = Log {
            storage: Box::new(NoStorage),
            hard_state: HardState::default(),
            base: Position::default(),
            last: 0,
            terms: VecDeque::new(),
            cache: VecDeque::new(),
            cached_bytes: 0,
            start: ConfState::default(),
            conf_state: ConfState::default(),
            snapshot: None,
            wanted: Cell::new(false),
        };
        let recovered = storage.recover(&mut |entry| {
            if log.terms.is_empty() && log.cache.is_empty() {
                log.last = entry.index - 1;
            }
            log.remember(&[entry]);
        })?;
        log.storage = storage;
        let Recovered { identity, hard_state, base, snapshot } = recovered;
        log.hard_state = hard_state;
        log.base = base;
        log.last = log.last.max(base.index);
        log.snapshot = snapshot;
        // An entry that was committed is in the log; if only the commit index was not written yet, it is found
        // again. The other way round can't be.
        log.hard_state.commit = log.hard_state.commit.max(base.index).min(log.last);
        Ok((log, identity))
    }

    /// Term, vote and commit index as they were written last.
    pub(crate) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    pub(crate) fn base(&self) -> Position {
        self.base
    }

    pub(crate) fn snapshot_at(&self) -> Option<Position> {
        self.snapshot
    }

    /// Sets what raft starts from: the newest snapshot, as far as it could be read.
    pub(crate) fn set_start(&mut self, at: Option<Position>, conf_state: ConfState) {
        self.snapshot = at;
        self.start = conf_state.clone();
        self.conf_state = conf_state;
        self.hard_state.commit = self.hard_state.commit.max(at.map_or(0, |at| at.index));
    }

    /// The entries take this much room on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.storage.bytes()
    }

    /// See [`LogStorage::oldest`].
    pub(crate) fn oldest(&self, pieces: usize, bytes: u64) -> u64 {
        self.storage.oldest(pieces, bytes)
    }

    /// Index of the first entry that is in memory.
    pub(crate) fn first_cached(&self) -> u64 {
        self.cache.front().map_or(self.last + 1, |e| e.index)
    }

    /// A peer asked for a snapshot that is not there.
    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.replace(false)
    }

    /// Writes, and makes it safe if asked to.
    pub(crate) fn write(&mut self, write: &Write<'_>, sync: bool) -> Result<()> {
        self.storage.write(write)?;
        match (write.install, write.compact) {
            (Some(_), _) => reach(Point::ReceivedInstalled),
            (None, Some(_)) => reach(Point::Compacted),
            (None, None) => reach(Point::Written),
        }
        if sync {
            self.storage.sync()?;
        }
        if let Some(at) = write.install {
            self.terms.clear();
            self.cache.clear();
            self.cached_bytes = 0;
            (self.base, self.last) = (at, at.index);
        }
        self.remember(write.entries);
        if let Some(at) = write.compact.filter(|at| at.index > self.base.index) {
            self.forget(at);
        }
        if let Some(hard_state) = write.hard_state {
            self.hard_state = *hard_state;
        }
        self.snapshot = write.snapshot.or(self.snapshot);
        Ok(())
    }

    /// See [`LogStorage::reseal`].
    pub(crate) fn reseal(&mut self, sealer: Arc<dyn Sealer>) -> Result<()> {
        self.storage.reseal(sealer)
    }

    /// See [`LogStorage::switch`].
    pub(crate) fn switch(&mut self) -> Result<()> {
        self.storage.switch()
    }

    fn remember(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.terms.back().is_some_and(|run| run.index >= first.index) {
            self.terms.pop_back();
        }
        while self.cache.back().is_some_and(|e| e.index >= first.index) {
            self.cached_bytes -= self.cache.pop_back().map_or(0, |e| e.data.len());
        }
        for entry in entries {
            if self.terms.back().is_none_or(|run| run.term != entry.term) {
                self.terms.push_back(Position { index: entry.index, term: entry.term });
            }
            self.cached_bytes += entry.data.len();
            self.cache.push_back(entry.clone());
            self.last = entry.index;
        }
        while self.cached_bytes > CACHE_BYTES || self.cache.len() > CACHE_ENTRIES {
            self.cached_bytes -= self.cache.pop_front().map_or(0, |e| e.data.len());
        }
    }

    fn forget(&mut self, at: Position) {
        self.base = at;
        while self.terms.get(1).is_some_and(|run| run.index <= at.index + 1) {
            self.terms.pop_front();
        }
        while self.cache.front().is_some_and(|e| e.index <= at.index) {
            self.cached_bytes -= self.cache.pop_front().map_or(0, |e| e.data.len());
        }
    }

    /// The term of an entry, if it is in the log or right before it.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        if index < self.base.index || index > self.last {
            return None;
        }
        let after = self.terms.partition_point(|run| run.index <= index);
        self.terms.get(after.checked_sub(1)?).map(|run| run.term)
    }
}

impl raft::Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state, self.start.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let max = max_size.into().unwrap_or(u64::MAX);
        match self.cache.front() {
            Some(first) if low >= first.index => {
                let (from, to) = ((low - first.index) as usize, (high - first.index) as usize);
                let mut entries: Vec<Entry> = self.cache.range(from..to).cloned().collect();
                raft::util::limit_size(&mut entries, Some(max));
                Ok(entries)
            }
            _ => self
                .storage
                .read(low, high, max)
                .map_err(|e| raft::Error::Store(StorageError::Other(Box::new(e)))),
        }
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_of(index) {
            Some(term) => Ok(term),
            None if index < self.base.index => Err(raft::Error::Store(StorageError::Compacted)),
            None => Err(raft::Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    /// The newest snapshot with the voters as of now, or its receiver might not find itself among them. Its data
    /// stays in its file until it is sent.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        match self.snapshot {
            Some(at) if at.index >= request_index && at.index >= self.base.index => Ok(Snapshot {
                metadata: Some(SnapshotMetadata {
                    conf_state: Some(self.conf_state.clone()),
                    index: at.index,
                    term: at.term,
                }),
                ..Snapshot::default()
            }),
            _ => {
                self.wanted.set(true);
                Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

/// Stands in while the real storage is being read.
struct NoStorage;

impl LogStorage for NoStorage {
    fn recover(&mut self, _: &mut dyn FnMut(Entry)) -> Result<Recovered> {
        Ok(Recovered::default())
    }
    fn write(&mut self, _: &Write<'_>) -> Result<()> {
        Ok(())
    }
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
    fn read(&self, _: u64, _: u64, _: u64) -> Result<Vec<Entry>> {
        Ok(Vec::new())
    }
    fn bytes(&self) -> u64 {
        0
    }
    fn oldest(&self, _: usize, _: u64) -> u64 {
        0
    }
    fn reseal(&mut self, _: Arc<dyn Sealer>) -> Result<()> {
        Ok(())
    }
    fn switch(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryDisk;
    use raft::Storage as _;

    fn entry(index: u64, term: u64, size: usize) -> Entry {
        Entry { index, term, data: vec![0u8; size].into(), ..Entry::default() }
    }

    fn entries(log: &Log, low: u64, high: u64, max: u64) -> Vec<u64> {
        let found = log.entries(low, high, Some(max), GetEntriesContext::empty(false)).unwrap();
        found.iter().map(|e| e.index).collect()
    }

    fn log_of(terms: &[u64]) -> Log {
        let (mut log, _) = Log::open(Box::new(MemoryDisk::new().open())).unwrap();
        let entries: Vec<Entry> = (1..).zip(terms).map(|(i, t)| entry(i, *t, 10)).collect();
        log.write(&Write { entries: &entries, ..Write::default() }, true).unwrap();
        log
    }

    #[test]
    fn terms_are_known_without_the_entries() {
        let mut log = log_of(&[1, 1, 2, 2, 5]);
        let terms = |log: &Log| (0..=6).map(|i| log.term_of(i)).collect::<Vec<_>>();
        assert_eq!(terms(&log), [Some(0), Some(1), Some(1), Some(2), Some(2), Some(5), None]);
        let tail = [entry(4, 6, 1)];
        log.write(&Write { entries: &tail, ..Write::default() }, true).unwrap();
        assert_eq!(terms(&log), [Some(0), Some(1), Some(1), Some(2), Some(6), None, None]);
        let compact = Some(Position { index: 3, term: 2 });
        log.write(&Write { compact, ..Write::default() }, true).unwrap();
        assert_eq!(terms(&log), [None, None, None, Some(2), Some(6), None, None]);
    }

    #[test]
    fn entries_that_left_the_cache_come_from_disk() {
        let mut log = log_of(&[]);
        for index in 1..=30 {
            let one = [entry(index, 1, 1_000_000)];
            log.write(&Write { entries: &one, ..Write::default() }, true).unwrap();
        }
        assert!(log.cache.len() < 10);
        assert_eq!(entries(&log, 1, 31, 3_100_000), [1, 2, 3]);
        assert_eq!(entries(&log, 29, 31, 0), [29], "at least one");
        assert_eq!(entries(&log, 29, 31, u64::MAX), [29, 30]);
    }

    #[test]
    fn a_reopened_log_is_the_same() {
        let disk = MemoryDisk::new();
        let (mut log, _) = Log::open(Box::new(disk.open())).unwrap();
        let all: Vec<Entry> = (1..=20).map(|i| entry(i, i / 6 + 1, 3)).collect();
        let hard_state = HardState { term: 4, vote: 1, commit: 18 };
        let write = Write { entries: &all, hard_state: Some(&hard_state), ..Write::default() };
        log.write(&write, true).unwrap();
        let compact = Some(Position { index: 7, term: 2 });
        log.write(&Write { compact, ..Write::default() }, true).unwrap();
        drop(log);
        let (log, _) = Log::open(Box::new(disk.open())).unwrap();
        assert_eq!((log.first_index().unwrap(), log.last_index().unwrap()), (8, 20));
        assert_eq!((7..=20).map(|i| log.term_of(i).unwrap()).max(), Some(4));
        assert_eq!(log.term_of(7), Some(2));
        assert_eq!(log.hard_state, hard_state);
        assert_eq!(entries(&log, 8, 21, u64::MAX), (8..=20).collect::<Vec<_>>());
    }
}
