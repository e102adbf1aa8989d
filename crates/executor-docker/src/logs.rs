//! Log lines out of an engine's log stream.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use swarm_agent::{LogLine, LogOptions, LogSink, LogStream};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest line kept in one piece; engines cut lines into pieces of 16 KiB, which are put together again.
const MAX_LINE: usize = 1024 * 1024;

/// Sends a container's log lines until the log ends or nobody listens any more.
pub(crate) async fn copy(
    docker: &Docker,
    name: &str,
    options: &LogOptions,
    sink: &LogSink,
) -> Result<(), bollard::errors::Error> {
    let Some(last) = read(docker, name, options, sink).await? else { return Ok(()) };
    if !options.follow {
        return Ok(());
    }
    // Engines may end a followed log before its last lines: what came after the last one seen is asked for.
    let since = Some(last + Duration::from_nanos(1)).max(options.since);
    let rest = LogOptions { follow: false, tail: None, since, ..options.clone() };
    read(docker, name, &rest, sink).await.map(|_| ())
}

/// One request; gives the time of the last line (or of the beginning), and nothing if nobody listens any more.
async fn read(
    docker: &Docker,
    name: &str,
    options: &LogOptions,
    sink: &LogSink,
) -> Result<Option<SystemTime>, bollard::errors::Error> {
    let wanted = |stream| options.streams.is_empty() || options.streams.contains(&stream);
    let mut query = LogsOptionsBuilder::new()
        .follow(options.follow)
        .stdout(wanted(LogStream::Stdout))
        .stderr(wanted(LogStream::Stderr))
        .timestamps(true)
        .tail(&options.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string()));
    if let Some(since) = options.since {
        // Whole seconds here; the rest is left out below.
        let seconds = since.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        query = query.since(i32::try_from(seconds).unwrap_or(i32::MAX));
    }
    let mut frames = std::pin::pin!(docker.logs(name, Some(query.build())));
    let mut joiners = [(LogStream::Stdout, Joiner::default()), (LogStream::Stderr, Joiner::default())];
    let mut last = UNIX_EPOCH;
    loop {
        let frame = frames.next().await.transpose()?;
        let ended = frame.is_none();
        let lines = match frame {
            Some(LogOutput::StdErr { message }) => {
                [joiners[1].1.push(&message).map(|line| (LogStream::Stderr, line)), None]
            }
            Some(
                LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message },
            ) => [joiners[0].1.push(&message).map(|line| (LogStream::Stdout, line)), None],
            None => joiners.each_mut().map(|(stream, joiner)| joiner.rest().map(|line| (*stream, line))),
        };
        for (stream, (timestamp, data)) in lines.into_iter().flatten() {
            last = last.max(timestamp);
            if options.since.is_some_and(|since| timestamp < since) {
                continue;
            }
            let line = LogLine { timestamp, stream, data, attrs: BTreeMap::new() };
            if sink.send(line).await.is_err() {
                return Ok(None);
            }
        }
        if ended {
            return Ok(Some(last));
        }
    }
}

/// Puts the pieces of one stream's lines together. Each piece begins with its time.
#[derive(Default)]
struct Joiner {
    began: Option<SystemTime>,
    line: BytesMut,
}

impl Joiner {
    /// Takes one piece; gives a line once it is complete.
    fn push(&mut self, piece: &[u8]) -> Option<(SystemTime, Bytes)> {
        let (time, data) = split_time(piece);
        self.began.get_or_insert(time);
        let data = match data.strip_suffix(b"\n") {
            None => {
                self.line.extend_from_slice(data);
                if self.line.len() < MAX_LINE {
                    return None;
                }
                &[]
            }
            Some(data) => data.strip_suffix(b"\r").unwrap_or(data),
        };
        self.line.extend_from_slice(data);
        Some((self.began.take().unwrap_or(time), self.line.split().freeze()))
    }

    /// The line that was never ended.
    fn rest(&mut self) -> Option<(SystemTime, Bytes)> {
        Some((self.began.take()?, self.line.split().freeze()))
    }
}

/// `2024-05-01T10:00:00.123456789Z text` into its parts; without a time, all is text.
fn split_time(piece: &[u8]) -> (SystemTime, &[u8]) {
    let parsed = piece.iter().position(|byte| *byte == b' ').and_then(|at| {
        let time = OffsetDateTime::parse(std::str::from_utf8(&piece[..at]).ok()?, &Rfc3339).ok()?;
        Some((SystemTime::from(time), &piece[at + 1..]))
    });
    parsed.unwrap_or((UNIX_EPOCH, piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, nanos: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    #[test]
    fn time_is_cut_off_to_the_nanosecond() {
        let (time, text) = split_time(b"1970-01-01T00:00:01.000000002Z a b\n");
        assert_eq!((time, text), (at(1, 2), &b"a b\n"[..]));
        assert_eq!(split_time(b"no time"), (UNIX_EPOCH, &b"no time"[..]));
    }

    #[test]
    fn pieces_of_a_long_line_become_one() {
        let mut joiner = Joiner::default();
        assert_eq!(joiner.push(b"1970-01-01T00:00:01Z abc"), None);
        assert_eq!(joiner.push(b"1970-01-01T00:00:02Z def\n"), Some((at(1, 0), Bytes::from("abcdef"))));
        assert_eq!(joiner.push(b"1970-01-01T00:00:03Z \n"), Some((at(3, 0), Bytes::new())));
        assert_eq!(joiner.push(b"1970-01-01T00:00:04Z end"), None);
        assert_eq!(joiner.rest(), Some((at(4, 0), Bytes::from("end"))));
    }
}
