//! Writes the log; one writer per task, in its shim.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use swarm_agent::LogStream;

use super::{MAX_PIECE, Record, rotated};

/// Records gathered before they are written although nobody asked.
const BUFFER: usize = 256 * 1024;

pub(crate) struct Writer {
    path: PathBuf,
    file: File,
    /// Bytes of whole records in the file.
    size: u64,
    max_size: u64,
    max_files: u32,
    /// Records that are not in the file yet.
    pending: Vec<u8>,
    /// Beginnings of lines, of standard output and standard error.
    open: [Vec<u8>; 2],
    /// Records never go back in time.
    last: SystemTime,
}

impl Writer {
    /// Opens the log for appending. A record that was cut off by a crash is removed.
    pub(crate) fn open(path: &Path, max_size: u64, max_files: u32) -> io::Result<Writer> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)?;
        let size = whole_records(&mut file)?;
        file.set_len(size)?;
        Ok(Writer {
            path: path.to_owned(),
            file,
            size,
            max_size,
            max_files: max_files.max(1),
            pending: Vec::new(),
            open: [Vec::new(), Vec::new()],
            last: SystemTime::UNIX_EPOCH,
        })
    }

    /// Takes output as it comes.
    pub(crate) fn push(&mut self, stream: LogStream, mut bytes: &[u8], now: SystemTime) {
        self.last = self.last.max(now);
        let time = self.last;
        let open = &mut self.open[usize::from(stream == LogStream::Stderr)];
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            open.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let text = open.strip_suffix(b"\r").unwrap_or(open);
            pieces(text, true, |text, complete| {
                Record { time, stream, complete, text }.write(&mut self.pending);
            });
            open.clear();
        }
        open.extend_from_slice(bytes);
        if open.len() > MAX_PIECE {
            let whole = open.len() - open.len() % MAX_PIECE;
            pieces(&open[..whole], false, |text, complete| {
                Record { time, stream, complete, text }.write(&mut self.pending);
            });
            open.drain(..whole);
        }
        if self.pending.len() >= BUFFER {
            self.flush();
        }
    }

    /// Writes what is complete. Where the disk refuses, the records are dropped: the task must go on.
    pub(crate) fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        if self.size > 0 && self.size + self.pending.len() as u64 > self.max_size {
            // If it can't be rotated it grows; that is better than no log.
            let _ = self.rotate();
        }
        match self.file.write_all(&self.pending) {
            Ok(()) => self.size += self.pending.len() as u64,
            // Half a record must not stay.
            Err(_) => {
                let _ = self.file.set_len(self.size);
            }
        }
        self.pending.clear();
    }

    /// Writes everything, lines without an end too, and waits for the disk.
    pub(crate) fn finish(mut self) {
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            let text = std::mem::take(&mut self.open[usize::from(stream == LogStream::Stderr)]);
            if !text.is_empty() {
                let time = self.last;
                pieces(&text, true, |text, complete| {
                    Record { time, stream, complete, text }.write(&mut self.pending);
                });
            }
        }
        self.flush();
        let _ = self.file.sync_data();
    }

    fn rotate(&mut self) -> io::Result<()> {
        for age in (0..self.max_files - 1).rev() {
            match fs::rename(rotated(&self.path, age), rotated(&self.path, age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.max_files == 1 {
            fs::remove_file(&self.path)?;
        }
        self.file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
        self.size = self.file.metadata()?.len();
        Ok(())
    }
}

/// Cuts text into what fits a record; `complete` says whether the last piece ends the line.
fn pieces(text: &[u8], complete: bool, mut each: impl FnMut(&[u8], bool)) {
    if text.is_empty() {
        each(text, complete);
    }
    let count = text.len().div_ceil(MAX_PIECE);
    for (index, piece) in text.chunks(MAX_PIECE).enumerate() {
        each(piece, complete && index + 1 == count);
    }
}

/// Length up to the end of the last whole record.
fn whole_records(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    // A record is never longer than this.
    let from = length.saturating_sub(2 * MAX_PIECE as u64);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => from + at as u64 + 1,
        None => 0,
    })
}
