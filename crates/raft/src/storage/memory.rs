//! A log in memory that loses and fails what a test tells it to. For tests and simulations.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message as _;
use raft_proto::eraftpb::{Entry, HardState};

use super::{Identity, LogStorage, Position, Recovered, Write, oldest};
use crate::{Error, Result, Sealer};

/// What is to go wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Writes fail with this text.
    pub fail_writes: Option<String>,
    /// Syncs fail with this text; what they should have covered stays unsafe.
    pub fail_syncs: Option<String>,
    /// The disk has room for this many bytes of entries.
    pub capacity: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct Content {
    identity: Option<Identity>,
    hard_state: HardState,
    base: Position,
    snapshot: Option<Position>,
    entries: BTreeMap<u64, Entry>,
    bytes: u64,
}

fn size<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> u64 {
    entries.into_iter().map(|e| e.encoded_len() as u64).sum()
}

#[derive(Debug, Default)]
struct Disk {
    /// Survives a power loss.
    durable: Content,
    /// With what was written, but not synced.
    cached: Content,
    /// What the durable content lacks.
    pending: Vec<Pending>,
    faults: Faults,
    syncs: u64,
}

/// A [`Write`] of its own.
#[derive(Debug)]
struct Pending {
    entries: Vec<Entry>,
    hard_state: Option<HardState>,
    compact: Option<Position>,
    install: Option<Position>,
    snapshot: Option<Position>,
    identity: Option<Identity>,
}

impl Pending {
    fn of(write: &Write<'_>) -> Pending {
        Pending {
            entries: write.entries.to_vec(),
            hard_state: write.hard_state.copied(),
            compact: write.compact,
            install: write.install,
            snapshot: write.snapshot,
            identity: write.identity.cloned(),
        }
    }

    fn as_write(&self) -> Write<'_> {
        Write {
            entries: &self.entries,
            hard_state: self.hard_state.as_ref(),
            compact: self.compact,
            install: self.install,
            snapshot: self.snapshot,
            identity: self.identity.as_ref(),
        }
    }
}

/// A simulated disk. Clones are the same disk; it outlives the [`MemoryLog`]s that are opened on it.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Disk>>);

impl MemoryDisk {
    /// An empty disk without faults.
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// Opens the log on it.
    pub fn open(&self) -> MemoryLog {
        MemoryLog { disk: self.clone() }
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.lock().faults = faults;
    }

    /// The power goes: everything that was not synced is lost.
    pub fn lose_power(&self) {
        self.lose_power_after(0);
    }

    /// The power goes: of what was not synced, the first so many writes happen to be safe, the others are lost.
    pub fn lose_power_after(&self, writes: usize) {
        let mut disk = self.0.lock();
        let pending = std::mem::take(&mut disk.pending);
        for write in pending.iter().take(writes) {
            // It was possible before, in the same order.
            let _ = disk.durable.write(&write.as_write());
        }
        disk.cached = disk.durable.clone();
    }

    /// Number of successful syncs.
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// The hard state that would survive a power loss.
    pub fn durable_hard_state(&self) -> HardState {
        self.0.lock().durable.hard_state
    }

    /// Index of the last entry that would survive a power loss.
    pub fn last_durable(&self) -> u64 {
        let disk = self.0.lock();
        disk.durable.entries.keys().next_back().copied().unwrap_or(disk.durable.base.index)
    }
}

/// A log on a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryLog {
    disk: MemoryDisk,
}

impl Content {
    fn write(&mut self, write: &Write<'_>) -> Result<()> {
        if let Some(at) = write.install {
            self.entries.clear();
            self.bytes = 0;
            self.base = at;
        }
        if let Some(first) = write.entries.first() {
            let last = self.entries.keys().next_back().copied().unwrap_or(self.base.index);
            if first.index > last + 1 || first.index <= self.base.index {
                return Err(Error::Write(format!("entry {} does not follow {last}", first.index)));
            }
            let replaced = self.entries.split_off(&first.index);
            self.bytes -= size(replaced.values());
        }
        self.bytes += size(write.entries);
        self.entries.extend(write.entries.iter().map(|e| (e.index, e.clone())));
        if let Some(at) = write.compact.filter(|at| at.index > self.base.index) {
            let kept = self.entries.split_off(&(at.index + 1));
            self.bytes -= size(self.entries.values());
            self.entries = kept;
            self.base = at;
        }
        if let Some(hard_state) = write.hard_state {
            self.hard_state = *hard_state;
        }
        if let Some(identity) = write.identity {
            self.identity = Some(identity.clone());
        }
        self.snapshot = write.snapshot.or(self.snapshot);
        Ok(())
    }
}

impl LogStorage for MemoryLog {
    fn recover(&mut self, visit: &mut dyn FnMut(Entry)) -> Result<Recovered> {
        let disk = self.disk.0.lock();
        let content = &disk.cached;
        content.entries.values().cloned().for_each(visit);
        Ok(Recovered {
            identity: content.identity.clone(),
            hard_state: content.hard_state,
            base: content.base,
            snapshot: content.snapshot,
        })
    }

    fn write(&mut self, write: &Write<'_>) -> Result<()> {
        let mut disk = self.disk.0.lock();
        if let Some(reason) = &disk.faults.fail_writes {
            return Err(Error::Write(reason.clone()));
        }
        if disk.faults.capacity.is_some_and(|capacity| disk.cached.bytes + size(write.entries) > capacity) {
            return Err(Error::Write("no space left on device".to_owned()));
        }
        disk.cached.write(write)?;
        disk.pending.push(Pending::of(write));
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        let mut disk = self.disk.0.lock();
        if let Some(reason) = &disk.faults.fail_syncs {
            let cause = std::io::Error::other(reason.clone());
            return Err(Error::io("sync", Path::new("memory"))(cause));
        }
        disk.syncs += 1;
        let pending = std::mem::take(&mut disk.pending);
        pending.iter().try_for_each(|p| disk.durable.write(&p.as_write()))
    }

    fn read(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>> {
        let disk = self.disk.0.lock();
        let mut size = 0;
        let fits = |e: &&Entry| {
            let first = size == 0;
            size += e.encoded_len() as u64;
            first || size <= max_bytes
        };
        let entries: Vec<Entry> =
            disk.cached.entries.range(low..high).map(|(_, e)| e).take_while(fits).cloned().collect();
        match entries.first() {
            Some(first) if first.index == low => Ok(entries),
            _ => Err(Error::damaged(Path::new("memory"), format!("entry {low} is gone"))),
        }
    }

    fn bytes(&self) -> u64 {
        self.disk.0.lock().cached.bytes
    }

    fn oldest(&self, pieces: usize, bytes: u64) -> u64 {
        let disk = self.disk.0.lock();
        let sizes = disk.cached.entries.iter().map(|(index, entry)| (*index, entry.encoded_len() as u64));
        oldest(sizes, pieces, bytes)
    }

    /// Nothing is sealed here.
    fn reseal(&mut self, _: Arc<dyn Sealer>) -> Result<()> {
        Ok(())
    }

    fn switch(&mut self) -> Result<()> {
        Ok(())
    }
}
