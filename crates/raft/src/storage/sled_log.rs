//! The log in sled, with a watermark beside it.
//!
//! One sled tree holds everything, so that a turn is one atomic write:
//!
//! - `e`, first index (8 bytes, big-endian), chunk number (2 bytes): a sealed record, cut into chunks of at most
//!   [`CHUNK`] bytes. The first chunk begins with the number of chunks (2 bytes).
//! - `m` and a name: hard state, the position before the first entry, position of the newest snapshot, and the
//!   sealed identity, which tells a wrong key from a damaged log.
//!
//! A record replaces entries of earlier records from its first index on. It also holds the hard state; which one is
//! the last, its number tells. Most turns so are a single key, which costs sled one write to the disk; a batch costs
//! two, one after the other.
//!
//! sled's own `flush` leaves the data in the disk's cache; only a sync of its file makes it safe. What is larger
//! than a quarter of a segment (128 KiB) sled puts into files of their own, and never syncs those at all. It is
//! the *page* that counts there, up to some 19 values at once, so values must be small. Should a page become too
//! large nevertheless, `sled_dir` finds its file.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use raft_proto::eraftpb::{Entry, HardState};
use sled::{Batch, IVec};

use super::record::{self, Numbered, Record};
use super::sled_dir::{Generations, SledDir};
use super::watermark::{Mark, Watermark};
use super::{Identity, LogStorage, Position, Recovered, Write, oldest};
use crate::points::{Point, reach};
use crate::{Error, Result, Sealer};

/// Largest value that is given to sled: 19 of them stay below 128 KiB.
const CHUNK: usize = 6 * 1024;
/// A log is sealed anew in batches of about this size.
const COPIED: usize = 1024 * 1024;

const HARD_STATE: &[u8] = b"mhard-state";
const BASE: &[u8] = b"mbase";
const SNAPSHOT: &[u8] = b"msnapshot";
const IDENTITY: &[u8] = b"midentity";

/// What is kept in memory of a stored record.
#[derive(Debug, Clone, Copy)]
struct Stored {
    chunks: u16,
    bytes: u32,
    /// Checksum before its first entry.
    chain: u32,
}

/// The log of a manager.
pub struct SledLog {
    generations: Generations,
    files: SledDir,
    /// Sealed anew and finished; becomes `files` next.
    resealed: Option<(PathBuf, PathBuf, Arc<dyn Sealer>)>,
    watermark: Watermark,
    watermark_path: PathBuf,
    /// The mark that was found on opening.
    found: Option<Mark>,
    sealer: Arc<dyn Sealer>,
    records: BTreeMap<u64, Stored>,
    base: Position,
    base_chain: u32,
    last: u64,
    chain: u32,
    state: Numbered,
    bytes: u64,
}

impl std::fmt::Debug for SledLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledLog")
            .field("files", &self.files.path)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

fn key(first: u64, chunk: u16) -> [u8; 11] {
    let mut key = [b'e'; 11];
    key[1..9].copy_from_slice(&first.to_be_bytes());
    key[9..].copy_from_slice(&chunk.to_be_bytes());
    key
}

fn parse_key(key: &[u8]) -> Option<(u64, u16)> {
    let (first, chunk) = key.strip_prefix(b"e")?.split_at_checked(8)?;
    Some((u64::from_be_bytes(first.try_into().ok()?), u16::from_be_bytes(chunk.try_into().ok()?)))
}

fn position(at: Position) -> Vec<u8> {
    [at.index.to_be_bytes(), at.term.to_be_bytes()].concat()
}

fn parse_position(bytes: &[u8]) -> Option<(Position, &[u8])> {
    let (index, rest) = bytes.split_first_chunk::<8>()?;
    let (term, rest) = rest.split_first_chunk::<8>()?;
    Some((Position { index: u64::from_be_bytes(*index), term: u64::from_be_bytes(*term) }, rest))
}

/// What one write changes in the tree.
#[derive(Default)]
struct Changes(Vec<(IVec, Option<IVec>)>);

impl Changes {
    fn put(&mut self, key: &[u8], value: impl Into<IVec>) {
        self.0.push((key.into(), Some(value.into())));
    }

    fn remove(&mut self, key: &[u8]) {
        self.0.push((key.into(), None));
    }

    /// Adds a sealed record, and returns the number of its chunks.
    fn put_record(&mut self, first: u64, sealed: &[u8]) -> Result<u16> {
        let chunks = sealed.chunks(CHUNK);
        let count = u16::try_from(chunks.len())
            .map_err(|_| Error::Write(format!("entry {first} has {} bytes", sealed.len())))?;
        for (number, chunk) in (0u16..).zip(chunks) {
            if number == 0 {
                self.put(&key(first, 0), [&count.to_be_bytes(), chunk].concat());
            } else {
                self.put(&key(first, number), chunk);
            }
        }
        Ok(count)
    }

    /// All of it or nothing.
    fn apply(mut self, files: &SledDir) -> Result<()> {
        if self.0.len() == 1
            && let Some((key, Some(value))) = self.0.pop_if(|(_, value)| value.is_some())
        {
            return files.tree.insert(key, value).map(drop).map_err(|e| files.write_error(&e));
        }
        let mut batch = Batch::default();
        for (key, value) in self.0 {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        files.tree.apply_batch(batch).map_err(|e| files.write_error(&e))
    }
}

impl SledLog {
    /// Opens the log that began in a directory, and creates it if there is none. The watermark is the file
    /// `watermark` beside the directory.
    ///
    /// # Errors
    /// If another process has it open, or sled can't read it.
    pub fn open(dir: &Path, sealer: Arc<dyn Sealer>) -> Result<SledLog> {
        let generations = Generations::of(dir);
        let files = SledDir::open(&generations.live()?)?;
        generations.clean()?;
        let watermark_path = dir.with_file_name("watermark");
        let (watermark, found) = Watermark::open(&watermark_path)?;
        Ok(SledLog {
            generations,
            files,
            resealed: None,
            watermark,
            watermark_path,
            found,
            sealer,
            records: BTreeMap::new(),
            base: Position::default(),
            base_chain: record::chain_start(Position::default()),
            last: 0,
            chain: record::chain_start(Position::default()),
            state: Numbered::default(),
            bytes: 0,
        })
    }

    fn damaged(&self, reason: impl Into<String>) -> Error {
        Error::damaged(&self.files.path, reason)
    }

    fn meta(&self, name: &[u8]) -> Result<Option<IVec>> {
        self.files.tree.get(name).map_err(|e| self.damaged(e.to_string()))
    }

    fn identity(&self) -> Result<Option<Identity>> {
        let Some(sealed) = self.meta(IDENTITY)? else { return Ok(None) };
        let plain =
            self.sealer.open(&sealed).map_err(|_| Error::WrongKey { path: self.files.path.clone() })?;
        let parsed = plain.split_first_chunk::<8>().and_then(|(raft_id, node_id)| {
            let node_id = String::from_utf8(node_id.to_vec()).ok()?;
            Some(Identity { raft_id: u64::from_be_bytes(*raft_id), node_id })
        });
        parsed.map(Some).ok_or_else(|| self.damaged("the identity can't be read"))
    }

    fn seal_identity(&self, identity: &Identity) -> Result<Bytes> {
        let plain = [&identity.raft_id.to_be_bytes(), identity.node_id.as_bytes()].concat();
        self.sealer.seal(&plain).map_err(Error::Seal)
    }

    /// Writes the whole log, sealed anew, into a new directory, and makes it safe.
    fn copy(&self, to: &Path, sealer: &dyn Sealer) -> Result<()> {
        let mut files = SledDir::open(to)?;
        let reseal = |sealed: &[u8], what: &str| {
            let plain = self.sealer.open(sealed);
            let plain = plain.map_err(|e| self.damaged(format!("{what} can't be decrypted: {e}")))?;
            sealer.seal(&plain).map_err(Error::Seal)
        };
        let mut changes = Changes::default();
        for name in [HARD_STATE, BASE, SNAPSHOT] {
            if let Some(value) = self.meta(name)? {
                changes.put(name, value);
            }
        }
        if let Some(sealed) = self.meta(IDENTITY)? {
            changes.put(IDENTITY, &*reseal(&sealed, "the identity")?);
        }
        let mut size = 0;
        self.scan(&mut |first, _, sealed| {
            let sealed = reseal(&sealed, &format!("the record of entry {first}"))?;
            changes.put_record(first, &sealed)?;
            size += sealed.len();
            if size > COPIED {
                size = 0;
                std::mem::take(&mut changes).apply(&files)?;
            }
            Ok(())
        })?;
        changes.apply(&files)?;
        files.sync()
    }

    fn open_record(&self, first: u64, sealed: &[u8]) -> Result<Record> {
        let plain = self
            .sealer
            .open(sealed)
            .map_err(|e| self.damaged(format!("the record of entry {first} can't be decrypted: {e}")))?;
        let record = record::decode(plain).map_err(|reason| self.damaged(reason))?;
        if record.first != first {
            return Err(self.damaged(format!("the record of entry {first} holds entry {}", record.first)));
        }
        Ok(record)
    }

    /// Reads a stored record.
    fn load(&self, first: u64, stored: Stored) -> Result<Record> {
        let mut sealed = Vec::with_capacity(stored.bytes as usize);
        for chunk in 0..stored.chunks {
            let value = self.meta(&key(first, chunk))?;
            let value = value.ok_or_else(|| self.damaged(format!("the record of entry {first} is gone")))?;
            sealed.extend_from_slice(if chunk == 0 { value.get(2..).unwrap_or_default() } else { &value });
        }
        self.open_record(first, &sealed)
    }

    /// The checksum after an entry that exists (or the one before the first).
    fn chain_at(&self, index: u64) -> Result<u32> {
        if index == self.last {
            return Ok(self.chain);
        }
        if index == self.base.index {
            return Ok(self.base_chain);
        }
        // Often a record ends there, and the next one knows.
        if let Some(next) = self.records.get(&(index + 1)) {
            return Ok(next.chain);
        }
        let Some((&first, &stored)) = self.records.range(..=index).next_back() else {
            return Err(self.damaged(format!("entry {index} is gone")));
        };
        let record = self.load(first, stored)?;
        Ok(record.entries.iter().take_while(|e| e.index <= index).fold(record.chain, record::chain))
    }

    /// Adds the sealed records of contiguous entries to what is to be written.
    fn add_records(
        &self,
        changes: &mut Changes,
        entries: &[Entry],
        state: &Numbered,
        mut chain: u32,
    ) -> Result<(Vec<(u64, Stored)>, u32)> {
        let mut added = Vec::new();
        for run in record::runs(entries) {
            let first = run.first().map_or(0, |e| e.index);
            let (plain, after) = record::encode(state, chain, run);
            let sealed = self.sealer.seal(&plain).map_err(Error::Seal)?;
            let chunks = changes.put_record(first, &sealed)?;
            added.push((first, Stored { chunks, bytes: sealed.len() as u32, chain }));
            chain = after;
        }
        Ok((added, chain))
    }

    fn mark(&self) -> Mark {
        let HardState { term, vote, .. } = self.state.hard_state;
        Mark { term, vote, last: self.last, chain: self.chain }
    }

    /// Lowers the watermark before entries after `index` are replaced: should the process end in between, the
    /// log must not look shorter than the watermark says.
    fn lower_watermark(&mut self, index: u64, chain: u32) -> Result<()> {
        self.watermark.write(Mark { last: index, chain, ..self.mark() })?;
        self.watermark.wait()?;
        reach(Point::MarkLowered);
        Ok(())
    }

    fn check_watermark(&self, mark: Mark, chains: &VecDeque<u32>) -> Result<()> {
        let HardState { term, vote, .. } = self.state.hard_state;
        let reason = if self.last < mark.last {
            format!("it ends at entry {}, but entry {} was written", self.last, mark.last)
        } else if term < mark.term {
            format!("it knows of term {term}, but term {} was written", mark.term)
        } else if term == mark.term && mark.vote != 0 && vote != mark.vote {
            format!("the vote of term {} is gone", mark.term)
        } else if mark.last >= self.base.index && mark.last > 0 {
            let at = (mark.last - self.base.index) as usize;
            if chains.get(at) == Some(&mark.chain) {
                return Ok(());
            }
            format!("entry {} or one before it is not the one that was written", mark.last)
        } else {
            return Ok(());
        };
        Err(self.incomplete(reason))
    }

    fn incomplete(&self, reason: String) -> Error {
        Error::Incomplete { path: self.files.path.clone(), watermark: self.watermark_path.clone(), reason }
    }

    /// Collects the records, in order, chunks put together.
    fn scan(&self, found: &mut dyn FnMut(u64, u16, Vec<u8>) -> Result<()>) -> Result<()> {
        let mut current: Option<(u64, u16, u16, Vec<u8>)> = None;
        let missing = |first| self.damaged(format!("a part of entry {first} is missing"));
        for item in self.files.tree.scan_prefix(b"e") {
            let (k, value) = item.map_err(|e| self.damaged(e.to_string()))?;
            let (first, chunk) = parse_key(&k).ok_or_else(|| self.damaged("a key makes no sense"))?;
            if chunk == 0 {
                if let Some((first, ..)) = current {
                    return Err(missing(first));
                }
                let (count, sealed) = value.split_first_chunk::<2>().ok_or_else(|| missing(first))?;
                current = Some((first, u16::from_be_bytes(*count), 1, sealed.to_vec()));
            } else {
                match &mut current {
                    Some((at, _, next, sealed)) if *at == first && *next == chunk => {
                        sealed.extend_from_slice(&value);
                        *next += 1;
                    }
                    _ => return Err(missing(first)),
                }
            }
            if let Some((first, count, _, sealed)) = current.take_if(|(_, count, next, _)| next == count) {
                found(first, count, sealed)?;
            }
        }
        match current {
            Some((first, ..)) => Err(missing(first)),
            None => Ok(()),
        }
    }
}

impl LogStorage for SledLog {
    fn recover(&mut self, visit: &mut dyn FnMut(Entry)) -> Result<Recovered> {
        let identity = self.identity()?;
        if identity.is_none() {
            if !self.files.tree.is_empty() {
                return Err(self.damaged("it has entries, but says not whose they are"));
            }
            if let Some(mark) = self.found.filter(|mark| *mark != Mark::default()) {
                return Err(self.incomplete(format!("it is empty, but entry {} was written", mark.last)));
            }
            self.watermark.write(Mark::default())?;
            self.watermark.wait()?;
            return Ok(Recovered::default());
        }
        if let Some(bytes) = self.meta(HARD_STATE)? {
            let state = Numbered::decode(&mut &*bytes);
            self.state = state.ok_or_else(|| self.damaged("the hard state can't be read"))?;
        }
        if let Some(bytes) = self.meta(BASE)? {
            let parsed = parse_position(&bytes).and_then(|(at, rest)| Some((at, rest.try_into().ok()?)));
            let (at, chain) = parsed.ok_or_else(|| self.damaged("the log's beginning can't be read"))?;
            (self.base, self.base_chain) = (at, u32::from_be_bytes(chain));
        }
        let snapshot = match self.meta(SNAPSHOT)? {
            Some(bytes) => {
                let parsed = parse_position(&bytes).map(|(at, _)| at);
                Some(parsed.ok_or_else(|| self.damaged("the snapshot's position can't be read"))?)
            }
            None => None,
        };

        let base = self.base.index;
        let mut records = BTreeMap::new();
        // Checksums after each entry from the base on.
        let mut chains = VecDeque::from([self.base_chain]);
        let mut bytes = 0;
        let mut state = self.state;
        self.scan(&mut |first, chunks, sealed| {
            let record = self.open_record(first, &sealed)?;
            if record.state.number > state.number {
                state = record.state;
            }
            let last = base + chains.len() as u64 - 1;
            if first > last + 1 {
                return Err(self.damaged(format!("entries {} to {} are missing", last + 1, first - 1)));
            }
            if first <= base && !records.is_empty() {
                return Err(self.damaged(format!("entry {first} is twice in it")));
            }
            if first > base {
                chains.truncate((first - base) as usize);
                if chains.back() != Some(&record.chain) {
                    return Err(self.damaged(format!("entry {first} does not follow the one before it")));
                }
            }
            records.insert(first, Stored { chunks, bytes: sealed.len() as u32, chain: record.chain });
            bytes += sealed.len() as u64;
            let mut chain = record.chain;
            for entry in record.entries {
                chain = record::chain(chain, &entry);
                if entry.index == base && chain != self.base_chain {
                    return Err(self.damaged(format!("entry {base} is not the one that was compacted")));
                }
                if entry.index > base {
                    chains.push_back(chain);
                    visit(entry);
                }
            }
            Ok(())
        })?;
        self.records = records;
        self.state = state;
        self.bytes = bytes;
        self.last = base + chains.len() as u64 - 1;
        self.chain = chains.back().copied().unwrap_or(self.base_chain);
        let Some(mark) = self.found else {
            return Err(self.incomplete("how far it should reach is unknown".to_owned()));
        };
        self.check_watermark(mark, &chains)?;
        Ok(Recovered { identity, hard_state: self.state.hard_state, base: self.base, snapshot })
    }

    fn write(&mut self, write: &Write<'_>) -> Result<()> {
        let mut changes = Changes::default();
        let mut removed = Vec::new();
        let (mut base, mut base_chain) = (self.base, self.base_chain);
        let (mut last, mut chain) = (self.last, self.chain);
        let hard_state = write.hard_state.copied().unwrap_or(self.state.hard_state);
        let state = Numbered { number: self.state.number + 1, hard_state };

        if let Some(identity) = write.identity {
            changes.put(IDENTITY, &*self.seal_identity(identity)?);
        }
        if let Some(at) = write.snapshot {
            changes.put(SNAPSHOT, position(at));
        }
        if let Some(at) = write.install {
            self.lower_watermark(0, 0)?;
            removed.extend(self.records.keys().copied());
            (base, base_chain) = (at, record::chain_start(at));
            (last, chain) = (at.index, base_chain);
        }
        if let Some(first) = write.entries.first() {
            if first.index > last + 1 || first.index <= base.index {
                return Err(Error::Write(format!(
                    "entry {} does not follow {} (after {})",
                    first.index, last, base.index
                )));
            }
            if first.index <= last {
                chain = self.chain_at(first.index - 1)?;
                self.lower_watermark(first.index - 1, chain)?;
                removed.extend(self.records.range(first.index..).map(|(first, _)| *first));
            }
        }
        if let Some(at) = write.compact.filter(|at| at.index > base.index) {
            (base_chain, base) = (self.chain_at(at.index)?, at);
            // All records whose successor begins no later than the first entry that stays.
            let firsts = self.records.range(..=at.index + 1).map(|(first, _)| *first);
            let mut firsts: Vec<u64> = firsts.collect();
            if self.last > at.index {
                firsts.pop();
            }
            removed.extend(firsts);
        }
        if (base, base_chain) != (self.base, self.base_chain) {
            changes.put(BASE, [position(base).as_slice(), &base_chain.to_be_bytes()].concat());
        }
        for first in &removed {
            let chunks = self.records.get(first).map_or(0, |stored| stored.chunks);
            (0..chunks).for_each(|chunk| changes.remove(&key(*first, chunk)));
        }
        // A record that is removed may hold the newest one.
        if write.entries.is_empty() && (write.hard_state.is_some() || !removed.is_empty()) {
            changes.put(HARD_STATE, &state.encode());
        }
        let (added, chain) = self.add_records(&mut changes, write.entries, &state, chain)?;
        changes.apply(&self.files)?;

        for first in removed {
            if let Some(stored) = self.records.remove(&first) {
                self.bytes -= u64::from(stored.bytes);
            }
        }
        for (first, stored) in added {
            self.bytes += u64::from(stored.bytes);
            self.records.insert(first, stored);
        }
        (self.base, self.base_chain) = (base, base_chain);
        last = write.entries.last().map_or(last, |e| e.index);
        (self.last, self.chain) = (last, chain);
        self.state = state;
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.files.sync()?;
        reach(Point::Synced);
        self.watermark.write(self.mark())
    }

    fn read(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>> {
        if low <= self.base.index {
            return Err(self.damaged(format!("entry {low} is compacted")));
        }
        let mut entries: Vec<Entry> = Vec::new();
        let mut size = 0;
        let from = self.records.range(..=low).next_back().map_or(low, |(first, _)| *first);
        let mut records = self.records.range(from..high).peekable();
        while let Some((&first, &stored)) = records.next() {
            let end = records.peek().map_or(high, |(next, _)| **next);
            let record = self.load(first, stored)?;
            for entry in record.entries.into_iter().filter(|e| e.index >= low && e.index < end) {
                size += entry.encoded_len() as u64;
                if size > max_bytes && !entries.is_empty() {
                    return Ok(entries);
                }
                entries.push(entry);
            }
        }
        if entries.first().map(|e| e.index) != Some(low) {
            return Err(self.damaged(format!("entry {low} is gone")));
        }
        Ok(entries)
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn oldest(&self, pieces: usize, bytes: u64) -> u64 {
        let ends = self.records.keys().skip(1).map(|next| next - 1).chain([self.last]);
        let sizes = self.records.values().map(|stored| u64::from(stored.bytes));
        oldest(ends.zip(sizes), pieces, bytes)
    }

    fn reseal(&mut self, sealer: Arc<dyn Sealer>) -> Result<()> {
        let (building, path) = self.generations.next()?;
        // Of an attempt that failed.
        remove_dir(&building)?;
        if let Err(error) = self.copy(&building, &*sealer) {
            let _ = remove_dir(&building);
            return Err(error);
        }
        self.resealed = Some((building, path, sealer));
        Ok(())
    }

    fn switch(&mut self) -> Result<()> {
        let Some((building, path, sealer)) = self.resealed.take() else { return Ok(()) };
        std::fs::rename(&building, &path).map_err(Error::io("rename", &building))?;
        reach(Point::ResealRenamed);
        crate::disk::sync_dir_of(&path)?;
        self.files = SledDir::open(&path)?;
        self.sealer = sealer;
        reach(Point::ResealSwitched);
        self.generations.clean()
    }
}

fn remove_dir(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
