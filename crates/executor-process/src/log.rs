//! The output of a task, in files.
//!
//! Both streams go into one file, so that their order is kept. A record is one line:
//! `1700000000.123456789 o. text`: seconds and nanoseconds since 1970, the stream (`o` or `e`), and `.` for the
//! end of a line or `+` for a part of one that is too long for one record.

mod reader;
mod writer;

pub(crate) use reader::Reader;
pub(crate) use writer::Writer;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use swarm_agent::LogStream;

/// Longest text in one record.
const MAX_PIECE: usize = 16 * 1024;
/// Longest line that a reader puts together.
const MAX_LINE: usize = 1024 * 1024;

/// The file with this age; 0 is the one being written.
fn rotated(path: &Path, age: u32) -> PathBuf {
    if age == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{age}"));
    name.into()
}

pub(crate) struct Record<'a> {
    time: SystemTime,
    stream: LogStream,
    /// The line ends here.
    complete: bool,
    text: &'a [u8],
}

impl Record<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let time = self.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let stream = if self.stream == LogStream::Stdout { 'o' } else { 'e' };
        let end = if self.complete { '.' } else { '+' };
        out.extend_from_slice(
            format!("{}.{:09} {stream}{end} ", time.as_secs(), time.subsec_nanos()).as_bytes(),
        );
        out.extend_from_slice(self.text);
        out.push(b'\n');
    }
}

/// A record from its line, without the line feed.
pub(crate) fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let (time, kind, text) = (parts.next()?, parts.next()?, parts.next()?);
    let (seconds, nanos) = std::str::from_utf8(time).ok()?.split_once('.')?;
    let nanos = nanos.parse().ok().filter(|nanos| *nanos < 1_000_000_000)?;
    let time = UNIX_EPOCH.checked_add(Duration::new(seconds.parse().ok()?, nanos))?;
    let stream = match kind.first()? {
        b'o' => LogStream::Stdout,
        b'e' => LogStream::Stderr,
        _ => return None,
    };
    Some(Record { time, stream, complete: kind.get(1)? == &b'.', text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_all(writer: &mut Writer, stream: LogStream, text: &str, seconds: u64) {
        writer.push(stream, text.as_bytes(), UNIX_EPOCH + Duration::from_secs(seconds));
        writer.flush();
    }

    fn read_all(reader: &mut Reader) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let batch = reader.batch().unwrap();
            if batch.is_empty() {
                return all;
            }
            all.extend(batch.into_iter().map(|line| String::from_utf8(line.data.to_vec()).unwrap()));
        }
    }

    #[test]
    fn lines_come_back_in_order_with_their_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = Writer::open(&path, 1 << 20, 2).unwrap();
        write_all(&mut writer, LogStream::Stdout, "a\nb", 1);
        write_all(&mut writer, LogStream::Stderr, "err \n\n", 2);
        write_all(&mut writer, LogStream::Stdout, "c\r\n", 3);
        let mut reader = Reader::new(&path);
        let batch = reader.batch().unwrap();
        let brief: Vec<_> = batch.iter().map(|line| (line.stream, line.data.as_ref())).collect();
        let (out, err) = (LogStream::Stdout, LogStream::Stderr);
        assert_eq!(brief, [(out, &b"a"[..]), (err, b"err "), (err, b""), (out, b"bc")]);
        write_all(&mut writer, LogStream::Stdout, "tail", 4);
        assert!(reader.batch().unwrap().is_empty());
        writer.finish();
        assert_eq!(read_all(&mut reader), ["tail"]);
    }

    #[test]
    fn a_time_that_makes_no_sense_is_no_record() {
        assert!(parse(b"18446744073709551615.4000000000 o. x").is_none());
        assert!(parse(b"1.1000000000 o. x").is_none());
        assert!(parse(b"1.999999999 o. x").is_some());
    }

    #[test]
    fn long_lines_are_put_together_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = Writer::open(&path, 1 << 20, 2).unwrap();
        let long = "x".repeat(3 * MAX_PIECE + 5);
        write_all(&mut writer, LogStream::Stdout, &long[..MAX_PIECE + 1], 1);
        write_all(&mut writer, LogStream::Stderr, "between\n", 1);
        write_all(&mut writer, LogStream::Stdout, &long[MAX_PIECE + 1..], 1);
        write_all(&mut writer, LogStream::Stdout, "\n", 1);
        assert_eq!(read_all(&mut Reader::new(&path)), ["between", long.as_str()]);
    }

    #[test]
    fn a_reader_follows_rotation_and_misses_nothing_that_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = Writer::open(&path, 200, 3).unwrap();
        let mut reader = Reader::new(&path);
        let mut seen = Vec::new();
        for n in 0..200 {
            write_all(&mut writer, LogStream::Stdout, &format!("line {n}\n"), n);
            if n % 5 == 0 {
                seen.extend(read_all(&mut reader));
            }
        }
        seen.extend(read_all(&mut reader));
        assert_eq!(seen, (0..200).map(|n| format!("line {n}")).collect::<Vec<_>>());
        let kept = read_all(&mut Reader::new(&path));
        assert!(kept.len() < 40 && seen.ends_with(&kept), "{}", kept.len());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn writing_goes_on_in_the_same_file_after_a_torn_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "1.000000000 o. whole\n1.00000").unwrap();
        let mut writer = Writer::open(&path, 1 << 20, 2).unwrap();
        write_all(&mut writer, LogStream::Stdout, "next\n", 2);
        assert_eq!(read_all(&mut Reader::new(&path)), ["whole", "next"]);
    }
}
