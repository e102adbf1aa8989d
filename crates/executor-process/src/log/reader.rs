//! Reads the log while it is written and rotated.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use swarm_agent::{LogLine, LogStream};

use super::{MAX_LINE, parse, rotated};

/// Bytes read for one batch.
const CHUNK: usize = 256 * 1024;
/// More files than a log can have.
const MAX_AGE: u32 = 128;

pub(crate) struct Reader {
    path: PathBuf,
    current: Option<File>,
    /// Read, but not the end of a record yet.
    rest: Vec<u8>,
    /// Beginnings of lines that came in several records, of standard output and standard error.
    open: [Option<(SystemTime, BytesMut)>; 2],
}

impl Reader {
    /// Reads from the oldest record that is kept.
    pub(crate) fn new(path: &Path) -> Reader {
        Reader { path: path.to_owned(), current: None, rest: Vec::new(), open: [None, None] }
    }

    /// The next lines. None: there are no more at the moment.
    pub(crate) fn batch(&mut self) -> io::Result<Vec<LogLine>> {
        let mut chunk = vec![0; CHUNK];
        loop {
            if self.current.is_none() {
                self.current = self.oldest()?;
            }
            let Some(file) = &mut self.current else { return Ok(Vec::new()) };
            let count = file.read(&mut chunk)?;
            if count > 0 {
                self.rest.extend_from_slice(&chunk[..count]);
                let lines = self.lines();
                if !lines.is_empty() {
                    return Ok(lines);
                }
                continue;
            }
            let Some(next) = self.next()? else { return Ok(Vec::new()) };
            // Something may have been written between the last read and the rotation.
            let count = self.current.as_mut().map_or(Ok(0), |file| file.read(&mut chunk))?;
            if count == 0 {
                self.rest.clear();
                self.current = Some(next);
            } else {
                self.rest.extend_from_slice(&chunk[..count]);
                let lines = self.lines();
                if !lines.is_empty() {
                    return Ok(lines);
                }
            }
        }
    }

    fn oldest(&self) -> io::Result<Option<File>> {
        for age in (0..MAX_AGE).rev() {
            if let Some(file) = open(&rotated(&self.path, age))? {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// The file after the current one, once there is one.
    fn next(&self) -> io::Result<Option<File>> {
        let Some(current) = &self.current else { return Ok(None) };
        let inode = current.metadata()?.ino();
        let age_of_current = || {
            (0..MAX_AGE)
                .find(|age| fs::metadata(rotated(&self.path, *age)).is_ok_and(|meta| meta.ino() == inode))
        };
        loop {
            match age_of_current() {
                Some(0) => return Ok(None),
                Some(age) => {
                    let next = open(&rotated(&self.path, age - 1))?;
                    // Unless it was rotated in between.
                    if age_of_current() == Some(age) {
                        return Ok(next);
                    }
                }
                // It is gone, and so may be some that came after it.
                None => return self.oldest(),
            }
        }
    }

    /// Whole lines out of what was read.
    fn lines(&mut self) -> Vec<LogLine> {
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let rest = self.rest.split_off(end + 1);
        // Lines are parts of it, without a copy; they are gone soon.
        let whole = Bytes::from(std::mem::replace(&mut self.rest, rest));
        let mut lines = Vec::new();
        for record in whole[..end].split(|byte| *byte == b'\n').filter_map(parse) {
            let open = &mut self.open[usize::from(record.stream == LogStream::Stderr)];
            let too_long = open.as_ref().is_some_and(|(_, text)| text.len() >= MAX_LINE);
            let (timestamp, data) = match (open.take(), record.complete || too_long) {
                (None, true) => (record.time, whole.slice_ref(record.text)),
                (begun, complete) => {
                    let (time, mut text) = begun.unwrap_or((record.time, BytesMut::new()));
                    text.extend_from_slice(record.text);
                    if !complete {
                        *open = Some((time, text));
                        continue;
                    }
                    (time, text.freeze())
                }
            };
            lines.push(LogLine { timestamp, stream: record.stream, data, attrs: BTreeMap::new() });
        }
        lines
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
