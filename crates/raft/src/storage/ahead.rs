//! Blocks for a growing file before they are written to.
//!
//! To sync a write that made a file longer, the file system must write its journal too, which takes longer than the data
//! and which all files wait for together. Blocks that the file has already cost nothing but their data. They hold
//! nothing before they are written to, and are given back when the file is opened next.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

/// Bytes that are allocated at once, when less than half of that is left.
const AHEAD: u64 = 4 * 1024 * 1024;
/// Syncs from one look at the file to the next.
const LOOK_EVERY: u32 = 16;

/// Keeps a file's blocks ahead of who writes to it. Never touches what is in the file.
#[derive(Debug)]
pub(super) struct Ahead {
    file: File,
    /// Everything before this was written.
    written: u64,
    syncs: u32,
    /// The file system can't do it, or does not say what was written.
    off: bool,
}

impl Ahead {
    /// For a file that somebody else writes to.
    pub(super) fn of(file: File) -> Ahead {
        Ahead { file, written: 0, syncs: 0, off: false }
    }

    /// To be called after each sync.
    pub(super) fn synced(&mut self) {
        self.syncs += 1;
        if self.off || self.syncs < LOOK_EVERY {
            return;
        }
        self.syncs = 0;
        if let Err(error) = self.look() {
            tracing::debug!(%error, "blocks of the raft log are allocated when they are written");
            self.off = true;
        }
    }

    fn look(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        self.written = first_hole(&self.file, self.written.min(length.saturating_sub(1)))?;
        if length.saturating_sub(self.written) >= AHEAD / 2 {
            return Ok(());
        }
        fallocate(&self.file, FallocateFlags::empty(), offset(length)?, offset(AHEAD)?)?;
        if first_hole(&self.file, length)? >= length + AHEAD {
            return Err(io::Error::other("the file system takes allocated blocks for written ones"));
        }
        Ok(())
    }
}

/// Gives back the blocks that were never written to, but for the rest of the last segment. A file that is locked, or whose
/// file system can't tell, stays as it is.
pub(super) fn give_back(path: &Path, segment: u64) -> io::Result<()> {
    let file = match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    if file.try_lock().is_err() {
        return Ok(());
    }
    let length = file.metadata()?.len();
    let mut end = 0;
    // The end of the last stretch that was written.
    loop {
        match lseek(&file, offset(end)?, Whence::SeekData) {
            Ok(data) => end = first_hole(&file, u64::try_from(data).map_err(io::Error::other)?)?,
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    let end = end.next_multiple_of(segment);
    if end < length { file.set_len(end) } else { Ok(()) }
}

/// Where what was written ends, from a place on. The end of the file counts as a hole.
fn first_hole(file: &File, from: u64) -> io::Result<u64> {
    match lseek(file, offset(from)?, Whence::SeekHole) {
        Ok(hole) => u64::try_from(hole).map_err(io::Error::other),
        Err(Errno::ENXIO) => Ok(from),
        Err(error) => Err(error.into()),
    }
}

fn offset(at: u64) -> io::Result<i64> {
    i64::try_from(at).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    const SEGMENT: u64 = 64 * 1024;

    fn data(path: &Path) -> File {
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).unwrap()
    }

    fn synced_often(ahead: &mut Ahead) {
        (0..LOOK_EVERY).for_each(|_| ahead.synced());
        assert!(!ahead.off, "the tests' file system can do it");
    }

    #[test]
    fn a_file_has_its_blocks_before_it_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let file = data(&path);
        file.write_all_at(&[1; 1000], 0).unwrap();
        let mut ahead = Ahead::of(data(&path));
        synced_often(&mut ahead);
        assert_eq!(file.metadata().unwrap().len(), 1000 + AHEAD);
        synced_often(&mut ahead);
        assert_eq!(file.metadata().unwrap().len(), 1000 + AHEAD, "enough is left");

        file.write_all_at(&vec![2; AHEAD as usize / 2 + 5000], 1000).unwrap();
        synced_often(&mut ahead);
        assert_eq!(file.metadata().unwrap().len(), 1000 + 2 * AHEAD);
        file.set_len(1000).unwrap();
        synced_often(&mut ahead);
        assert_eq!(file.metadata().unwrap().len(), 1000 + AHEAD, "its owner had cut it");
        let mut all = vec![0; 1001];
        file.read_exact_at(&mut all, 0).unwrap();
        assert_eq!((&all[..1000], all[1000]), (&[1; 1000][..], 0));
    }

    #[test]
    fn what_was_never_written_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        give_back(&path, SEGMENT).unwrap();
        assert!(!path.exists());
        for (at, length) in [(0, SEGMENT), (SEGMENT - 10, 2 * SEGMENT), (5 * SEGMENT, 6 * SEGMENT)] {
            let file = data(&path);
            file.write_all_at(&[1; 20], at).unwrap();
            synced_often(&mut Ahead::of(data(&path)));
            assert!(file.metadata().unwrap().len() >= AHEAD);
            drop(file);
            give_back(&path, SEGMENT).unwrap();
            let file = data(&path);
            assert_eq!(file.metadata().unwrap().len(), length);
            let mut written = [0; 20];
            file.read_exact_at(&mut written, at).unwrap();
            assert_eq!(written, [1; 20]);
        }
    }

    #[test]
    fn a_file_without_a_gap_keeps_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        data(&path).write_all_at(&[1; 1000], 0).unwrap();
        give_back(&path, SEGMENT).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1000);
    }
}
