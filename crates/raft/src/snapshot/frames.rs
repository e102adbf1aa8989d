//! Sealed frames: how a long stream is encrypted without having it in memory.
//!
//! A frame is its length (4 bytes, big-endian) and the sealed frame. A frame's plain form is the stream's number (8; of
//! a snapshot its index), the frame's number (4), 1 if it is the last (1) and the payload, so that frames can't be
//! exchanged, left out or cut off unnoticed. A snapshot's file is a magic, then frames; the first frame's payload is the
//! snapshot's metadata.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use raft_proto::eraftpb::SnapshotMetadata;

use super::Meta;
use crate::storage::Position;
use crate::{Error, Result, Sealer};

const MAGIC: &[u8; 8] = b"swrsnap1";
const HEADER: usize = 8 + 4 + 1;
/// Payload bytes per frame.
const PAYLOAD: usize = 256 * 1024;
/// No sealed frame is longer; a length above it is damage.
const LONGEST: usize = PAYLOAD * 2;

/// A file that is synced while it is written, not all at its end: the log's next sync on the same file system waits for at
/// most [`UNSYNCED`] of it.
#[derive(Debug)]
pub(crate) struct SyncedAlong {
    file: File,
    unsynced: usize,
}

/// Bytes that are written before they are synced.
const UNSYNCED: usize = 1024 * 1024;

impl SyncedAlong {
    /// Returns when all of it is safe.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

impl Write for SyncedAlong {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced += written;
        if self.unsynced >= UNSYNCED {
            self.unsynced = 0;
            self.file.sync_data()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a stream as frames.
pub struct FrameWriter<'a, W> {
    out: W,
    sealer: &'a dyn Sealer,
    frame: Vec<u8>,
    stream: u64,
    number: u32,
}

impl<W> std::fmt::Debug for FrameWriter<'_, W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameWriter").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<'a> FrameWriter<'a, SyncedAlong> {
    /// A snapshot's file.
    pub(super) fn create(
        path: &Path,
        sealer: &'a dyn Sealer,
        meta: &Meta,
    ) -> io::Result<FrameWriter<'a, SyncedAlong>> {
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut file = SyncedAlong { file, unsynced: 0 };
        file.write_all(MAGIC)?;
        let mut writer = FrameWriter::new(file, sealer, meta.at.index);
        let metadata = SnapshotMetadata {
            conf_state: Some(meta.conf_state.clone()),
            index: meta.at.index,
            term: meta.at.term,
        };
        writer.frame.extend(metadata.encode_to_vec());
        writer.end_frame(false)?;
        Ok(writer)
    }
}

impl<'a, W: Write> FrameWriter<'a, W> {
    /// Frames of a stream with this number.
    pub fn new(out: W, sealer: &'a dyn Sealer, stream: u64) -> FrameWriter<'a, W> {
        let mut writer = FrameWriter { out, sealer, frame: Vec::new(), stream, number: 0 };
        writer.start_frame();
        writer
    }

    fn start_frame(&mut self) {
        self.frame.clear();
        self.frame.extend(self.stream.to_be_bytes());
        self.frame.extend(self.number.to_be_bytes());
        self.frame.push(0);
    }

    fn end_frame(&mut self, last: bool) -> io::Result<()> {
        self.frame[HEADER - 1] = u8::from(last);
        let sealed = self.sealer.seal(&self.frame).map_err(io::Error::other)?;
        self.out.write_all(&(sealed.len() as u32).to_be_bytes())?;
        self.out.write_all(&sealed)?;
        self.number += 1;
        self.start_frame();
        Ok(())
    }

    /// Ends the stream, and returns where it was written to.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_frame(true)?;
        Ok(self.out)
    }
}

impl<W: Write> Write for FrameWriter<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = HEADER + PAYLOAD - self.frame.len();
        let taken = bytes.len().min(room);
        self.frame.extend_from_slice(&bytes[..taken]);
        if taken == room {
            self.end_frame(false)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a stream of frames to its last one.
pub struct FrameReader<R> {
    from: R,
    sealer: Arc<dyn Sealer>,
    frame: Bytes,
    at: usize,
    stream: u64,
    number: u32,
    last: bool,
}

impl<R> std::fmt::Debug for FrameReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameReader").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Reads a snapshot's content, in the contract's encoding, from its file.
#[derive(Debug)]
pub struct SnapshotReader {
    path: PathBuf,
    frames: FrameReader<BufReader<File>>,
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// Reads the beginning of a snapshot's file.
pub(crate) fn open_frames<R: Read>(
    mut file: R,
    sealer: Arc<dyn Sealer>,
) -> io::Result<(Meta, FrameReader<R>)> {
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(invalid("it is no snapshot"));
    }
    let mut frames = FrameReader::new(file, sealer);
    let metadata = SnapshotMetadata::decode(frames.first_frame()?)?;
    let at = Position { index: metadata.index, term: metadata.term };
    Ok((Meta { at, conf_state: metadata.conf_state.unwrap_or_default() }, frames))
}

impl SnapshotReader {
    pub(super) fn open(path: &Path, sealer: Arc<dyn Sealer>) -> Result<(Meta, SnapshotReader)> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        // For who removes it; see `Snapshots::remove`.
        let _ = file.try_lock_shared();
        let file = BufReader::with_capacity(64 * 1024, file);
        let (meta, frames) = open_frames(file, sealer).map_err(|e| Error::damaged(path, e.to_string()))?;
        Ok((meta, SnapshotReader { path: path.to_owned(), frames }))
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.frames.read(out)
    }
}

impl<R: Read> FrameReader<R> {
    /// Opens frames with this sealer.
    pub fn new(from: R, sealer: Arc<dyn Sealer>) -> FrameReader<R> {
        FrameReader { from, sealer, frame: Bytes::new(), at: 0, stream: 0, number: 0, last: false }
    }

    /// The payload of the first frame, which is not given out again.
    fn first_frame(&mut self) -> io::Result<Bytes> {
        self.next_frame()?;
        let payload = self.frame.slice(self.at..);
        self.at = self.frame.len();
        Ok(payload)
    }

    /// What the frames were read from.
    pub fn into_inner(self) -> R {
        self.from
    }

    fn next_frame(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        self.from.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > LONGEST {
            return Err(invalid("a frame's length makes no sense"));
        }
        let mut sealed = vec![0; length];
        self.from.read_exact(&mut sealed)?;
        self.frame = self.sealer.open(&sealed).map_err(|e| invalid(format!("it can't be decrypted: {e}")))?;
        let header = self.frame.split_first_chunk::<8>().and_then(|(stream, rest)| {
            let (number, rest) = rest.split_first_chunk::<4>()?;
            Some((u64::from_be_bytes(*stream), u32::from_be_bytes(*number), *rest.first()?))
        });
        let (stream, number, last) = header.ok_or_else(|| invalid("a frame is cut short"))?;
        if self.number == 0 {
            self.stream = stream;
        }
        if (stream, number) != (self.stream, self.number) {
            return Err(invalid(format!("frame {} is not where it should be", self.number)));
        }
        self.number += 1;
        self.last = last == 1;
        self.at = HEADER;
        Ok(())
    }
}

impl<R: Read> Read for FrameReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.frame.len() {
            if self.last {
                return Ok(0);
            }
            self.next_frame()?;
        }
        let taken = out.len().min(self.frame.len() - self.at);
        out[..taken].copy_from_slice(&self.frame[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MaskSealer;

    fn meta() -> Meta {
        Meta { at: Position { index: 4, term: 2 }, ..Meta::default() }
    }

    fn write(path: &Path, sealer: &dyn Sealer, data: &[u8]) {
        let mut out = FrameWriter::create(path, sealer, &meta()).unwrap();
        out.write_all(data).unwrap();
        out.finish().unwrap();
    }

    fn read(path: &Path, key: u8) -> io::Result<Vec<u8>> {
        let (_, mut reader) =
            SnapshotReader::open(path, Arc::new(MaskSealer(key))).map_err(io::Error::other)?;
        let mut data = Vec::new();
        reader.read_to_end(&mut data).map(|_| data)
    }

    #[test]
    fn streams_of_every_size_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        for size in [0, 1, PAYLOAD - 1, PAYLOAD, PAYLOAD + 1, 3 * PAYLOAD + 17] {
            let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            write(&path, &MaskSealer(3), &data);
            assert_eq!(read(&path, 3).unwrap(), data, "{size} bytes");
        }
    }

    #[test]
    fn another_key_a_cut_or_a_change_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        write(&path, &MaskSealer(3), &vec![9; PAYLOAD * 2]);
        assert!(read(&path, 4).unwrap_err().to_string().contains("can't be decrypted"));
        let whole = std::fs::read(&path).unwrap();
        for cut in [whole.len() - 1, whole.len() - 21, PAYLOAD, 5] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(read(&path, 3).is_err(), "cut at {cut}");
        }
        let mut changed = whole.clone();
        changed[PAYLOAD] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        assert!(read(&path, 3).is_err());
    }
}
