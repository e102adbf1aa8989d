//! The watermark: a small file beside the log that says how far it reaches.
//!
//! sled ends its log silently at a record it can't read, which after a disk error could be long before the end.
//! A manager that then went on would have forgotten acknowledged writes, or its vote. So after each synced
//! write, term, vote, last index and the checksum there are written here and synced too, and a log that falls
//! short is refused. The watermark is never ahead of the log: it is lowered before entries are replaced.
//!
//! Two slots are written in turn, each in a disk block of its own, so that a torn write leaves the other one.
//!
//! A new term or vote is waited for. Of entries, the mark is written before they are acknowledged and synced right
//! after by a thread of its own, while the next turn goes on: that takes a quarter off the time of a lone write.
//! So a power loss may leave a mark that is one turn old; the entries of that turn are synced, only a disk that
//! lost them nevertheless would go unnoticed then.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"swraftwm";
const SLOT: u64 = 4096;
const LENGTH: usize = 8 + 8 * 4 + 4 + 4;

/// What the log must at least hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) term: u64,
    pub(super) vote: u64,
    pub(super) last: u64,
    pub(super) chain: u32,
}

#[derive(Debug)]
pub(super) struct Watermark {
    path: PathBuf,
    file: Arc<File>,
    sequence: u64,
    written: Mark,
    syncer: Syncer,
}

impl Watermark {
    /// Opens the file, and creates it if there is none. The mark is `None` in a new file.
    pub(super) fn open(path: &Path) -> Result<(Watermark, Option<Mark>)> {
        let existed = path.exists();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io("open", path))?;
        let file = Arc::new(file);
        let syncer = Syncer::start(file.clone()).map_err(Error::io("start a thread for", path))?;
        let mut watermark =
            Watermark { path: path.to_owned(), file, sequence: 0, written: Mark::default(), syncer };
        if !existed {
            watermark.create()?;
            return Ok((watermark, None));
        }
        let slots = [watermark.read(0)?, watermark.read(1)?];
        let newest = slots.into_iter().flatten().max_by_key(|(sequence, _)| *sequence);
        if let Some((sequence, mark)) = newest {
            (watermark.sequence, watermark.written) = (sequence, mark);
            return Ok((watermark, Some(mark)));
        }
        // Created, but the first mark was never written; or both slots are unreadable.
        let mut all = vec![0; 2 * SLOT as usize];
        let length = watermark.file.read_at(&mut all, 0).map_err(Error::io("read", path))?;
        if all[..length].iter().any(|b| *b != 0) {
            return Err(Error::damaged(path, "neither of its two marks can be read"));
        }
        watermark.create()?;
        Ok((watermark, None))
    }

    /// Allocates both slots, so that later syncs need write no metadata.
    fn create(&self) -> Result<()> {
        let blank = [0u8; 2 * SLOT as usize];
        self.file.write_all_at(&blank, 0).map_err(Error::io("write", &self.path))?;
        self.file.sync_all().map_err(Error::io("sync", &self.path))?;
        crate::disk::sync_dir_of(&self.path)
    }

    fn read(&self, slot: u64) -> Result<Option<(u64, Mark)>> {
        let mut bytes = [0; LENGTH];
        match self.file.read_exact_at(&mut bytes, slot * SLOT) {
            Ok(()) => Ok(decode(&bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(Error::io("read", &self.path)(e)),
        }
    }

    /// Writes a mark. If it has another term or vote than the one before it, it is safe when this returns; else
    /// soon after, and before the next one is written.
    pub(super) fn write(&mut self, mark: Mark) -> Result<()> {
        // The other slot must be safe before this one may be torn.
        self.wait()?;
        self.sequence += 1;
        let bytes = encode(self.sequence, mark);
        let offset = (self.sequence % 2) * SLOT;
        self.file.write_all_at(&bytes, offset).map_err(Error::io("write", &self.path))?;
        self.syncer.request();
        let before = std::mem::replace(&mut self.written, mark);
        if (before.term, before.vote) == (mark.term, mark.vote) { Ok(()) } else { self.wait() }
    }

    /// Returns when the last mark is safe.
    pub(super) fn wait(&self) -> Result<()> {
        self.syncer.wait().map_err(Error::io("sync", &self.path))
    }
}

/// What the syncing thread is told, and tells.
#[derive(Debug, Default)]
struct Requests {
    /// Written and not synced.
    dirty: bool,
    closed: bool,
    failed: Option<io::Error>,
}

/// A thread that syncs a file on request.
#[derive(Debug)]
struct Syncer {
    shared: Arc<(Mutex<Requests>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    fn start(file: Arc<File>) -> io::Result<Syncer> {
        let shared: Arc<(Mutex<Requests>, Condvar)> = Arc::default();
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("raft-watermark".to_owned()).spawn(move || {
            let (requests, changed) = &*theirs;
            let mut state = requests.lock();
            loop {
                while !state.dirty && !state.closed {
                    changed.wait(&mut state);
                }
                if !state.dirty {
                    return;
                }
                drop(state);
                let result = file.sync_data();
                state = requests.lock();
                state.dirty = false;
                state.failed = result.err().or(state.failed.take());
                changed.notify_all();
            }
        })?;
        Ok(Syncer { shared, thread: Some(thread) })
    }

    /// Whatever was written until now is to be synced. Only called when nothing else is.
    fn request(&self) {
        let (requests, changed) = &*self.shared;
        requests.lock().dirty = true;
        changed.notify_all();
    }

    fn wait(&self) -> io::Result<()> {
        let (requests, changed) = &*self.shared;
        let mut state = requests.lock();
        while state.dirty {
            changed.wait(&mut state);
        }
        state.failed.take().map_or(Ok(()), Err)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        let (requests, changed) = &*self.shared;
        requests.lock().closed = true;
        changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn encode(sequence: u64, mark: Mark) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(MAGIC);
    for (i, number) in [sequence, mark.term, mark.vote, mark.last].into_iter().enumerate() {
        bytes[8 + i * 8..16 + i * 8].copy_from_slice(&number.to_be_bytes());
    }
    bytes[40..44].copy_from_slice(&mark.chain.to_be_bytes());
    let check = crc32fast::hash(&bytes[..44]);
    bytes[44..].copy_from_slice(&check.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8; LENGTH]) -> Option<(u64, Mark)> {
    let (body, check) = bytes.split_last_chunk::<4>()?;
    let body = body.strip_prefix(MAGIC)?;
    if crc32fast::hash(&bytes[..44]).to_be_bytes() != *check {
        return None;
    }
    let number =
        |i: usize| body.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
    let chain = body.get(32..36).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes)?;
    Some((number(0)?, Mark { term: number(1)?, vote: number(2)?, last: number(3)?, chain }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mark_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        let (mut watermark, none) = Watermark::open(&path).unwrap();
        assert_eq!(none, None);
        for last in 1..=5 {
            watermark.write(Mark { term: 2, vote: 3, last, chain: 4 }).unwrap();
        }
        drop(watermark);
        let (_, mark) = Watermark::open(&path).unwrap();
        assert_eq!(mark, Some(Mark { term: 2, vote: 3, last: 5, chain: 4 }));
    }

    #[test]
    fn a_torn_write_leaves_the_mark_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        let (mut watermark, _) = Watermark::open(&path).unwrap();
        for last in 1..=4 {
            watermark.write(Mark { last, ..Mark::default() }).unwrap();
        }
        watermark.file.write_all_at(&[0xff; 10], 20).unwrap();
        let (_, mark) = Watermark::open(&path).unwrap();
        assert_eq!(mark.unwrap().last, 3);
        watermark.file.write_all_at(&[0xff; 10], SLOT + 20).unwrap();
        assert!(Watermark::open(&path).unwrap_err().to_string().contains("watermark is damaged"));
    }
}
