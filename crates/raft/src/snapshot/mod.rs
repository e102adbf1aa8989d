//! Snapshots: files beside the log.
//!
//! - `content`: the contract's `Snapshot` message, written and read as a stream, so that the whole of it is
//!   never in memory as bytes.
//! - `frames`: that stream cut into sealed frames.
//! - [`Snapshots`]: the directory of them.

mod content;
mod frames;

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_proto::eraftpb::ConfState;
use swarm_api::v1::{ClusterSnapshot, Snapshot};
use swarm_store::View;

pub use content::decode;
pub(crate) use content::encode;
pub(crate) use frames::open_frames;
pub use frames::{FrameReader, FrameWriter, SnapshotReader};

use crate::points::{Point, reach};
use crate::storage::Position;
use crate::{Error, Result, Sealer};

/// Largest snapshot that is taken from a peer, in bytes of the contract's encoding.
pub(crate) const MAX_SNAPSHOT: usize = 4 * 1024 * 1024 * 1024;
/// Bytes of a file that are freed at once.
const FREED_AT_ONCE: u64 = 1024 * 1024;

/// What the file of a state ends in that was fetched before joining.
const FETCHED: &str = "fetched";

/// Where a snapshot was taken, and who was a member then.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Meta {
    /// The last entry it covers.
    pub at: Position,
    /// Voters as of that entry.
    pub conf_state: ConfState,
}

/// The directory of snapshots. Cloning is cheap.
#[derive(Clone)]
pub struct Snapshots {
    dir: Arc<Path>,
    sealer: Arc<dyn Sealer>,
}

impl std::fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// The order is that of terms, then indexes, as in the original's file names.
fn file_name(at: Position) -> String {
    format!("{:016x}-{:016x}.snap", at.term, at.index)
}

fn parse_file_name(name: &str) -> Option<Position> {
    let (term, index) = name.strip_suffix(".snap")?.split_once('-')?;
    Some(Position { index: u64::from_str_radix(index, 16).ok()?, term: u64::from_str_radix(term, 16).ok()? })
}

impl Snapshots {
    /// Opens the directory, creates it if there is none, and removes files that were never finished.
    pub fn open(dir: &Path, sealer: Arc<dyn Sealer>) -> Result<Snapshots> {
        crate::disk::create_dir(dir)?;
        let snapshots = Snapshots { dir: dir.into(), sealer };
        for path in snapshots.files()? {
            if path.extension().is_some_and(|e| e == "tmp") {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(snapshots)
    }

    /// The same directory; what is written from now on is sealed with another key.
    pub(crate) fn sealed_with(&self, sealer: Arc<dyn Sealer>) -> Snapshots {
        Snapshots { dir: self.dir.clone(), sealer }
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))?;
        let paths: std::io::Result<Vec<_>> = entries.map(|e| Ok(e?.path())).collect();
        paths.map_err(Error::io("read", &self.dir))
    }

    /// Every finished snapshot, oldest first.
    pub fn list(&self) -> Result<Vec<Position>> {
        let names = self.files()?;
        let mut all: Vec<Position> =
            names.iter().filter_map(|p| parse_file_name(p.file_name()?.to_str()?)).collect();
        all.sort_unstable();
        Ok(all)
    }

    fn path(&self, at: Position) -> PathBuf {
        self.dir.join(file_name(at))
    }

    /// Bytes of a snapshot on the disk.
    pub(crate) fn size(&self, at: Position) -> Result<u64> {
        let path = self.path(at);
        Ok(fs::metadata(&path).map_err(Error::io("read", &path))?.len())
    }

    /// Writes a snapshot of the store; it is safe when this returns.
    pub fn save(&self, meta: &Meta, membership: &ClusterSnapshot, view: &View) -> Result<()> {
        self.write(meta, |out| content::encode(out, membership, view))
    }

    /// Writes a snapshot that a peer sent, in the contract's encoding; it is safe when this returns.
    pub fn save_bytes(&self, meta: &Meta, data: &[u8]) -> Result<()> {
        self.write(meta, |out| std::io::Write::write_all(out, data))
    }

    fn write(
        &self,
        meta: &Meta,
        fill: impl FnOnce(&mut FrameWriter<'_, frames::SyncedAlong>) -> std::io::Result<()>,
    ) -> Result<()> {
        let path = self.path(meta.at);
        let temporary = path.with_extension("tmp");
        let written = (|| {
            let mut out = FrameWriter::create(&temporary, &*self.sealer, meta)?;
            fill(&mut out)?;
            let file = out.finish()?;
            reach(Point::SnapshotWritten);
            file.sync_all()?;
            reach(Point::SnapshotSynced);
            fs::rename(&temporary, &path)
        })();
        if let Err(error) = written {
            // What is left of it would be removed at the next start, but the disk may be full now.
            let _ = fs::remove_file(&temporary);
            return Err(Error::io("write", &path)(error));
        }
        reach(Point::SnapshotRenamed);
        crate::disk::sync_dir(&self.dir)
    }

    /// Begins the file of a state that is being fetched. It is none of the log's snapshots.
    pub(crate) fn create_fetched(
        &self,
        meta: &Meta,
    ) -> Result<(PathBuf, FrameWriter<'_, frames::SyncedAlong>)> {
        let path = self.path(meta.at).with_extension(FETCHED);
        let out = FrameWriter::create(&path, &*self.sealer, meta).map_err(Error::io("write", &path))?;
        Ok((path, out))
    }

    /// The state that was fetched, if it is still called so, becomes the snapshot that the log names.
    pub(crate) fn adopt_fetched(&self, at: Position) -> Result<()> {
        let path = self.path(at);
        let fetched = path.with_extension(FETCHED);
        if path.exists() || !fetched.exists() {
            return Ok(());
        }
        fs::rename(&fetched, &path).map_err(Error::io("rename", &fetched))?;
        crate::disk::sync_dir(&self.dir)
    }

    /// Removes states that were fetched and never used, except this one.
    pub(crate) fn remove_fetched(&self, but: Option<&Path>) -> Result<()> {
        let stale = |path: &PathBuf| path.extension().is_some_and(|e| e == FETCHED) && Some(&**path) != but;
        for path in self.files()?.into_iter().filter(stale) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }

    /// Opens a snapshot to be read, for example to be sent to a peer.
    pub fn read(&self, at: Position) -> Result<(Meta, SnapshotReader)> {
        let path = self.path(at);
        let (meta, reader) = SnapshotReader::open(&path, self.sealer.clone())?;
        if meta.at != at {
            return Err(Error::damaged(&path, format!("it is the snapshot at index {}", meta.at.index)));
        }
        Ok((meta, reader))
    }

    /// Reads a whole snapshot.
    pub fn load(&self, at: Position) -> Result<(Meta, Snapshot)> {
        let path = self.path(at);
        let (meta, reader) = self.read(at)?;
        let snapshot = decode(BufReader::with_capacity(256 * 1024, reader))
            .map_err(|e| Error::damaged(&path, e.to_string()))?;
        Ok((meta, snapshot))
    }

    /// Puts an unreadable snapshot aside.
    pub fn set_aside(&self, at: Position) -> Result<()> {
        let path = self.path(at);
        fs::rename(&path, path.with_extension("snap.broken")).map_err(Error::io("rename", &path))?;
        crate::disk::sync_dir(&self.dir)
    }

    /// Removes every file but this snapshot's: nothing else may be left that another key opens.
    pub(crate) fn keep_only(&self, newest: Option<Position>) -> Result<()> {
        let kept = newest.map(|at| self.path(at));
        for path in self.files()?.into_iter().filter(|path| Some(path) != kept.as_ref()) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        crate::disk::sync_dir(&self.dir)
    }

    /// Removes a snapshot's file bit by bit: the file system keeps everybody waiting who syncs while it frees a large file.
    /// One that is being read, to be sent to a member, is left whole for its reader.
    pub(crate) fn remove(path: &Path) -> std::io::Result<()> {
        let file = fs::File::options().write(true).open(path)?;
        if file.try_lock().is_ok() {
            let mut length = file.metadata()?.len();
            while length > FREED_AT_ONCE {
                length -= FREED_AT_ONCE;
                file.set_len(length)?;
            }
        }
        fs::remove_file(path)
    }

    /// The files of all snapshots before this one but the last `keep_old`; the caller may remove them at any time, for
    /// nothing is ever written to them again. Later ones are removed at once. Nothing is to be removed if this one is not
    /// there.
    ///
    /// # Errors
    /// Those of reading the directory and of removing files.
    pub fn collect(&self, newest: Position, keep_old: u64) -> Result<Vec<PathBuf>> {
        let all = self.list()?;
        if !all.contains(&newest) {
            return Ok(Vec::new());
        }
        for at in all.iter().filter(|at| **at > newest) {
            let path = self.path(*at);
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        let kept = usize::try_from(keep_old).unwrap_or(usize::MAX);
        Ok(all.iter().rev().filter(|at| **at < newest).skip(kept).map(|at| self.path(*at)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PlainSealer;

    fn at(index: u64) -> Meta {
        Meta {
            at: Position { index, term: 3 },
            conf_state: ConfState { voters: vec![7], ..ConfState::default() },
        }
    }

    fn indexes(snapshots: &Snapshots) -> Vec<u64> {
        snapshots.list().unwrap().iter().map(|at| at.index).collect()
    }

    #[test]
    fn old_snapshots_are_collected() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path(), Arc::new(PlainSealer)).unwrap();
        for index in [9, 18, 27, 36] {
            snapshots.save(&at(index), &ClusterSnapshot::default(), &View::default()).unwrap();
        }
        let collect = |at, keep_old| {
            snapshots.collect(at, keep_old).unwrap().iter().for_each(|old| fs::remove_file(old).unwrap());
        };
        collect(Position { index: 99, term: 3 }, 0);
        assert_eq!(indexes(&snapshots), [9, 18, 27, 36], "the newest is not there");
        collect(at(36).at, 2);
        assert_eq!(indexes(&snapshots), [18, 27, 36]);
        collect(at(27).at, 1);
        assert_eq!(indexes(&snapshots), [18, 27], "a later one is none that was finished");
        collect(at(27).at, 0);
        assert_eq!(indexes(&snapshots), [27]);
    }

    #[test]
    fn a_snapshot_that_is_being_read_may_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path(), Arc::new(PlainSealer)).unwrap();
        let data = vec![7; 3 * FREED_AT_ONCE as usize + 5];
        snapshots.save_bytes(&at(9), &data).unwrap();
        snapshots.save_bytes(&at(18), &data).unwrap();
        let (_, mut reader) = snapshots.read(at(9).at).unwrap();
        for index in [9, 18] {
            Snapshots::remove(&snapshots.path(at(index).at)).unwrap();
        }
        assert_eq!(indexes(&snapshots), [0u64; 0]);
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut read).unwrap();
        assert!(read == data, "{} of {} bytes", read.len(), data.len());
    }

    #[test]
    fn unfinished_files_go_and_broken_ones_stay_aside() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path(), Arc::new(PlainSealer)).unwrap();
        snapshots.save(&at(9), &ClusterSnapshot::default(), &View::default()).unwrap();
        fs::write(dir.path().join("0000000000000003-0000000000000012.tmp"), b"half").unwrap();
        let path = snapshots.path(at(9).at);
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 1);
        fs::write(&path, bytes).unwrap();

        let snapshots = Snapshots::open(dir.path(), Arc::new(PlainSealer)).unwrap();
        assert_eq!(snapshots.files().unwrap().len(), 1);
        let error = snapshots.load(at(9).at).unwrap_err().to_string();
        assert!(error.contains("is damaged"), "{error}");
        snapshots.set_aside(at(9).at).unwrap();
        assert_eq!(indexes(&snapshots), [0u64; 0]);
        assert!(dir.path().join("0000000000000003-0000000000000009.snap.broken").exists());
    }

    #[test]
    fn a_snapshot_reads_back_with_its_members() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path(), Arc::new(PlainSealer)).unwrap();
        let membership = ClusterSnapshot { removed: vec![5, 6], ..ClusterSnapshot::default() };
        snapshots.save(&at(9), &membership, &View::default()).unwrap();
        let (meta, snapshot) = snapshots.load(at(9).at).unwrap();
        assert_eq!(meta, at(9));
        assert_eq!(snapshot.membership, membership);
    }
}
