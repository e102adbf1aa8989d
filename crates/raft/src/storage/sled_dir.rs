//! The directories of the log.
//!
//! A log that is sealed with another key gets a new directory: `log`, then `log-1`, `log-2` and so on. It is built
//! under a temporary name, synced and closed, and its final name makes it the log: of several, the one with the
//! highest number counts. What an interrupted change left behind is removed when the log is opened.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sled::{Db, Tree};

use super::ahead::{self, Ahead};
use crate::{Error, Result};

/// sled's default.
const SEGMENT: u64 = 512 * 1024;
/// Memory that sled may use for pages.
const PAGE_CACHE: u64 = 4 * 1024 * 1024;
/// Ending of the name while a directory is being built.
const UNFINISHED: &str = ".tmp";

/// One directory of sled, open.
#[derive(Debug)]
pub(super) struct SledDir {
    pub(super) path: PathBuf,
    pub(super) tree: Tree,
    db: Db,
    /// sled's file, opened a second time to sync it.
    file: File,
    ahead: Ahead,
    blobs: SyncedFiles,
}

impl SledDir {
    /// Opens a directory, and creates it if there is none.
    pub(super) fn open(path: &Path) -> Result<SledDir> {
        crate::disk::create_dir(path)?;
        let data = path.join("db");
        ahead::give_back(&data, SEGMENT).map_err(Error::io("shorten", &data))?;
        let config = sled::Config::new().path(path).flush_every_ms(None).cache_capacity(PAGE_CACHE);
        let db = open_unlocked(&config, path)?;
        let tree = db.open_tree("raft").map_err(|e| Error::damaged(path, e.to_string()))?;
        let file = OpenOptions::new().write(true).open(&data).map_err(Error::io("open", &data))?;
        let ahead = Ahead::of(file.try_clone().map_err(Error::io("open", &data))?);
        crate::disk::sync_dir(path)?;
        let blobs = SyncedFiles::new(path.join("blobs"));
        Ok(SledDir { path: path.to_owned(), tree, db, file, ahead, blobs })
    }

    /// An error of sled while it wrote.
    pub(super) fn write_error(&self, error: &sled::Error) -> Error {
        Error::Write(format!("{}: {error}", self.path.display()))
    }

    /// Returns when everything written so far will survive a power loss.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.db.flush().map_err(|e| self.write_error(&e))?;
        self.file.sync_data().map_err(Error::io("sync", &self.path.join("db")))?;
        self.ahead.synced();
        self.blobs.sync().map(|_| ())
    }
}

/// The directories of one log.
#[derive(Debug, Clone)]
pub(super) struct Generations {
    /// The first one.
    first: PathBuf,
}

impl Generations {
    /// Those of the log whose first directory is this.
    pub(super) fn of(first: &Path) -> Generations {
        Generations { first: first.to_owned() }
    }

    fn name(&self) -> String {
        self.first.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn path(&self, number: u64) -> PathBuf {
        match number {
            0 => self.first.clone(),
            _ => self.first.with_file_name(format!("{}-{number}", self.name())),
        }
    }

    /// Numbers of the finished ones, in order, and the unfinished ones.
    fn found(&self) -> Result<(BTreeSet<u64>, Vec<PathBuf>)> {
        let parent = self.first.parent().unwrap_or(Path::new("."));
        let entries = match fs::read_dir(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
            entries => entries.map_err(Error::io("read", parent))?,
        };
        let (mut finished, mut unfinished) = (BTreeSet::new(), Vec::new());
        for entry in entries {
            let path = entry.map_err(Error::io("read", parent))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(rest) = name.strip_prefix(&self.name()) else { continue };
            if rest.is_empty() {
                finished.insert(0);
            } else if let Some(number) = rest.strip_prefix('-') {
                if let Ok(number) = number.parse() {
                    finished.insert(number);
                } else if number.ends_with(UNFINISHED) {
                    unfinished.push(path);
                }
            }
        }
        Ok((finished, unfinished))
    }

    /// The directory that is the log.
    pub(super) fn live(&self) -> Result<PathBuf> {
        let (finished, _) = self.found()?;
        Ok(self.path(finished.last().copied().unwrap_or(0)))
    }

    /// Removes everything but the log.
    pub(super) fn clean(&self) -> Result<()> {
        let (finished, unfinished) = self.found()?;
        let older = finished.iter().rev().skip(1).map(|number| self.path(*number));
        for path in older.chain(unfinished) {
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
        crate::disk::sync_dir_of(&self.first)
    }

    /// Where the next one is to be built, and its final name.
    pub(super) fn next(&self) -> Result<(PathBuf, PathBuf)> {
        let (finished, _) = self.found()?;
        let path = self.path(finished.last().map_or(0, |number| number + 1));
        let mut building = path.clone().into_os_string();
        building.push(UNFINISHED);
        Ok((building.into(), path))
    }
}

/// A directory whose files are written once and then removed: syncs each that it has not seen yet.
#[derive(Debug)]
struct SyncedFiles {
    dir: PathBuf,
    synced: BTreeSet<OsString>,
    /// The directory's time of change at the last look, if a later change will show in it.
    settled: Option<SystemTime>,
}

/// A file system's clock may tick as seldom as this: a change need not show in the time of one that was just made.
const CLOCK_TICK: Duration = Duration::from_millis(50);

impl SyncedFiles {
    fn new(dir: PathBuf) -> SyncedFiles {
        SyncedFiles { dir, synced: BTreeSet::new(), settled: None }
    }

    /// Syncs what is new; returns how many files that were.
    fn sync(&mut self) -> Result<usize> {
        let changed = || fs::metadata(&self.dir)?.modified();
        let changed = changed().map_err(Error::io("read", &self.dir))?;
        if self.settled == Some(changed) {
            return Ok(0);
        }
        let age = SystemTime::now().duration_since(changed).unwrap_or_default();
        let new = self.look()?;
        self.settled = (age > CLOCK_TICK).then_some(changed);
        Ok(new)
    }

    fn look(&mut self) -> Result<usize> {
        let entries = fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))?;
        let names: io::Result<BTreeSet<OsString>> = entries.map(|e| Ok(e?.file_name())).collect();
        let names = names.map_err(Error::io("read", &self.dir))?;
        let mut new = 0;
        for name in names.difference(&self.synced) {
            let path = self.dir.join(name);
            match File::open(&path).and_then(|f| f.sync_all()) {
                Ok(()) => new += 1,
                // Replaced meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("sync", &path)(e)),
            }
        }
        if new > 0 {
            crate::disk::sync_dir(&self.dir)?;
        }
        self.synced = names;
        Ok(new)
    }
}

/// How long a lock is waited for: sled lets go of it a moment after a log was closed, on a busy host a long one. (A
/// second daemon does not come so far: the state directory has a lock of its own.)
const LOCKED: Duration = Duration::from_secs(10);

fn open_unlocked(config: &sled::Config, dir: &Path) -> Result<sled::Db> {
    let end = std::time::Instant::now() + LOCKED;
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            Err(sled::Error::Io(error)) if error.to_string().contains("lock") => {
                if std::time::Instant::now() > end {
                    return Err(Error::InUse { path: dir.to_owned() });
                }
                std::thread::park_timeout(Duration::from_millis(10));
            }
            Err(other) => return Err(Error::damaged(dir, other.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_new_file_is_synced_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = SyncedFiles::new(dir.path().to_owned());
        assert_eq!(files.sync().unwrap(), 0);
        fs::write(dir.path().join("1"), b"x").unwrap();
        fs::write(dir.path().join("2"), b"x").unwrap();
        assert_eq!(files.sync().unwrap(), 2);
        fs::remove_file(dir.path().join("1")).unwrap();
        fs::write(dir.path().join("3"), b"x").unwrap();
        assert_eq!(files.sync().unwrap(), 1);
        assert_eq!(files.sync().unwrap(), 0);

        // Found also after a time without changes, in which nobody looked.
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        File::open(dir.path()).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(files.sync().unwrap(), 0);
        assert_eq!(files.settled, Some(long_ago));
        fs::write(dir.path().join("4"), b"x").unwrap();
        assert_eq!(files.sync().unwrap(), 1);
        assert_eq!(files.settled, None, "another change may bear the same time");
    }
}
