//! The watermark: a small file beside the log that says how far it reaches.
//!
//! sled ends its log silently at a record it can't read, which after a disk error could be long before the end.
//! A manager that then went on would have forgotten acknowledged writes, or its vote. So after each synced
//! write, term, vote, last index and the checksum there are written here and synced too, and a log that falls
//! short is refused. The watermark is never ahead of the log: it is lowered before entries are replaced.
//!
//! Two slots are written in turn, each in a disk block of its own, so that a torn write leaves the other one.
//!
//! A new term or vote is waited for. Of entries, the mark is written by a thread of its own while the next turns go on,
//! at most every [`INTERVAL`]: waiting for it in every turn takes a third of the speed of a lone writer. So what is
//! found after a crash may be a few turns old; the entries of those turns are synced, only a disk that lost them
//! nevertheless would go unnoticed then.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::points::{Point, Points, reach};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"swraftwm";
const SLOT: u64 = 4096;
const LENGTH: usize = 8 + 8 * 4 + 4 + 4;
/// Least time from one write of a mark of entries to the next.
const INTERVAL: Duration = Duration::from_millis(20);

/// What the log must at least hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(super) term: u64,
    pub(super) vote: u64,
    pub(super) last: u64,
    pub(super) chain: u32,
}

/// The file's newest mark, and who writes the next ones.
#[derive(Debug)]
pub(super) struct Watermark {
    path: PathBuf,
    newest: Mark,
    writer: Writer,
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
        let found = if existed { read_newest(&file, path)? } else { None };
        if found.is_none() {
            create(&file, path)?;
        }
        let (sequence, mark) = found.unzip();
        let slots = Slots { file, sequence: sequence.unwrap_or(0) };
        let writer = Writer::start(slots).map_err(Error::io("start a thread for", path))?;
        Ok((Watermark { path: path.to_owned(), newest: mark.unwrap_or_default(), writer }, mark))
    }

    /// Gives a mark to be written. If it has another term or vote than the one before it, it is safe when this
    /// returns; else soon after. The error may be that of an earlier mark.
    pub(super) fn write(&mut self, mark: Mark) -> Result<()> {
        self.writer.give(mark).map_err(Error::io("write", &self.path))?;
        let before = std::mem::replace(&mut self.newest, mark);
        if (before.term, before.vote) == (mark.term, mark.vote) { Ok(()) } else { self.wait() }
    }

    /// Returns when the last mark is safe.
    pub(super) fn wait(&self) -> Result<()> {
        self.writer.wait().map_err(Error::io("write", &self.path))
    }
}

/// Allocates both slots, so that later syncs need write no metadata.
fn create(file: &File, path: &Path) -> Result<()> {
    let blank = [0u8; 2 * SLOT as usize];
    file.write_all_at(&blank, 0).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))?;
    crate::disk::sync_dir_of(path)
}

/// The newest mark and its number; `None` if none was ever written.
fn read_newest(file: &File, path: &Path) -> Result<Option<(u64, Mark)>> {
    let mut all = vec![0; 2 * SLOT as usize];
    let mut length = 0;
    while length < all.len() {
        match file.read_at(&mut all[length..], length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", path)(e)),
        }
    }
    newest(&all).map_err(|reason| Error::damaged(path, reason))
}

/// The newest mark in a whole file.
pub(crate) fn newest(all: &[u8]) -> Result<Option<(u64, Mark)>, &'static str> {
    let slots = all.chunks_exact(SLOT as usize).filter_map(|slot| decode(slot.first_chunk()?));
    match slots.max_by_key(|(sequence, _)| *sequence) {
        None if all.iter().any(|b| *b != 0) => Err("neither of its two marks can be read"),
        newest => Ok(newest),
    }
}

/// Makes the checksums right, for the fuzz target, which would never hit upon them.
pub(crate) fn correct(all: &mut [u8]) {
    for slot in all.chunks_mut(SLOT as usize).filter(|slot| slot.len() >= LENGTH) {
        let check = crc32fast::hash(&slot[..44]);
        slot[44..LENGTH].copy_from_slice(&check.to_be_bytes());
    }
}

/// The file, as its thread writes it.
#[derive(Debug)]
struct Slots {
    file: File,
    sequence: u64,
}

impl Slots {
    /// The mark is safe when this returns.
    fn write(&mut self, mark: Mark) -> io::Result<()> {
        self.sequence += 1;
        self.file.write_all_at(&encode(self.sequence, mark), (self.sequence % 2) * SLOT)?;
        reach(Point::MarkWritten);
        self.file.sync_data()?;
        reach(Point::MarkSynced);
        Ok(())
    }
}

/// What the writing thread is told, and tells.
#[derive(Debug, Default)]
struct Orders {
    /// The next mark; a later one takes its place.
    next: Option<Mark>,
    writing: bool,
    /// Somebody waits.
    urgent: bool,
    closed: bool,
    failed: Option<io::Error>,
}

/// The thread that writes marks.
#[derive(Debug)]
struct Writer {
    shared: Arc<(Mutex<Orders>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(slots: Slots) -> io::Result<Writer> {
        let shared: Arc<(Mutex<Orders>, Condvar)> = Arc::default();
        let theirs = shared.clone();
        let name = "raft-watermark".to_owned();
        let points = Points::here();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _entered = points.enter();
            write_all(&theirs, slots);
        })?;
        Ok(Writer { shared, thread: Some(thread) })
    }

    fn give(&self, mark: Mark) -> io::Result<()> {
        let (orders, changed) = &*self.shared;
        let mut orders = orders.lock();
        if let Some(error) = orders.failed.take() {
            return Err(error);
        }
        if orders.next.replace(mark).is_none() {
            changed.notify_all();
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        let (orders, changed) = &*self.shared;
        let mut orders = orders.lock();
        while orders.next.is_some() || orders.writing {
            orders.urgent = true;
            changed.notify_all();
            changed.wait(&mut orders);
        }
        orders.failed.take().map_or(Ok(()), Err)
    }
}

/// The thread's whole life. What was given before the end is written.
fn write_all((shared, changed): &(Mutex<Orders>, Condvar), mut slots: Slots) {
    let mut orders = shared.lock();
    let mut earliest = Instant::now();
    loop {
        while orders.next.is_none() && !orders.closed {
            changed.wait(&mut orders);
        }
        while !orders.urgent && !orders.closed && !changed.wait_until(&mut orders, earliest).timed_out() {}
        let Some(mark) = orders.next.take() else { return };
        orders.writing = true;
        MutexGuard::unlocked(&mut orders, || {
            earliest = Instant::now() + INTERVAL;
            slots.write(mark)
        })
        .unwrap_or_else(|error| orders.failed = Some(error));
        orders.writing = false;
        orders.urgent &= orders.next.is_some();
        changed.notify_all();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let (orders, changed) = &*self.shared;
        orders.lock().closed = true;
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
            watermark.wait().unwrap();
        }
        drop(watermark);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff; 10], 20).unwrap();
        let (_, mark) = Watermark::open(&path).unwrap();
        assert_eq!(mark.unwrap().last, 3);
        file.write_all_at(&[0xff; 10], SLOT + 20).unwrap();
        assert!(Watermark::open(&path).unwrap_err().to_string().contains("watermark is damaged"));
    }
}
