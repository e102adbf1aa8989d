//! Log lines out of an engine's log stream.
//!
//! Each message of it is a line, or a part of one (engines cut lines after 16 KiB), behind its time and its attributes, each
//! with a space behind it. Attributes are what the log driver was told to attach to lines (`--log-opt labels=…` and the like).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::errors::Error as ApiError;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use swarm_agent::{LogLine, LogOptions, LogSink, LogStream};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::Engine;
use crate::demux::{Demux, Origin, Piece};

/// Longest line kept in one piece, and most of a message that is waited for.
const MAX_LINE: usize = 1024 * 1024;
/// Longest text of the engine's own, in bytes.
const MAX_TROUBLE: usize = 4 * 1024;

/// Sends a container's log lines until the log ends or nobody listens any more.
pub(crate) async fn copy(
    engine: &Engine,
    name: &str,
    tty: bool,
    options: &LogOptions,
    sink: &LogSink,
) -> Result<(), ApiError> {
    let Some(last) = read(engine, name, tty, options, sink).await? else { return Ok(()) };
    if !options.follow {
        return Ok(());
    }
    // Engines may end a followed log before its last lines: what came after the last one seen is asked for.
    let since = Some(last + Duration::from_nanos(1)).max(options.since);
    let rest = LogOptions { follow: false, tail: None, since, ..options.clone() };
    read(engine, name, tty, &rest, sink).await.map(|_| ())
}

/// One request; gives the time of the last line (or of the beginning), and nothing if nobody listens any more.
async fn read(
    engine: &Engine,
    name: &str,
    tty: bool,
    options: &LogOptions,
    sink: &LogSink,
) -> Result<Option<SystemTime>, ApiError> {
    let mut body = engine.stream(&request(name, options)).await?;
    let mut lines = Lines::new(tty);
    let (mut batch, mut last) = (Vec::new(), UNIX_EPOCH);
    loop {
        let frame = body.frame().await.transpose()?;
        let ended = frame.is_none();
        let result = match frame.map(|frame| frame.into_data()) {
            Some(Ok(data)) => lines.push(data, &mut batch),
            Some(Err(_)) => Ok(()), // trailers
            None => {
                lines.rest(&mut batch);
                Ok(())
            }
        };
        for line in batch.drain(..) {
            last = last.max(line.timestamp);
            if options.since.is_some_and(|since| line.timestamp < since) {
                continue;
            }
            if sink.send(line).await.is_err() {
                return Ok(None);
            }
        }
        result?;
        if ended {
            return Ok(Some(last));
        }
    }
}

/// Path and query. The client library has no word for attributes.
fn request(name: &str, options: &LogOptions) -> String {
    let wanted = |stream| u8::from(options.streams.is_empty() || options.streams.contains(&stream));
    let mut path = format!(
        "/containers/{name}/logs?follow={}&stdout={}&stderr={}&timestamps=1&details=1&tail={}",
        u8::from(options.follow),
        wanted(LogStream::Stdout),
        wanted(LogStream::Stderr),
        options.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string()),
    );
    if let Some(since) = options.since {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
        path.push_str(&format!("&since={}.{:09}", since.as_secs(), since.subsec_nanos()));
    }
    path
}

/// Lines, out of the stream's bytes.
struct Lines {
    cut: Cut,
    /// Of standard output and standard error.
    joiners: [Joiner; 2],
    /// What the engine has to say for itself.
    trouble: BytesMut,
}

/// What tells one message from the next.
enum Cut {
    /// Headers.
    Headers(Demux),
    /// Line feeds: with a terminal there is nothing else. Whether one is waited for.
    LineFeeds(bool),
}

impl Lines {
    fn new(tty: bool) -> Lines {
        let cut = if tty { Cut::LineFeeds(false) } else { Cut::Headers(Demux::default()) };
        Lines { cut, joiners: Default::default(), trouble: BytesMut::new() }
    }

    /// Takes bytes as they come, and puts lines behind those that are there.
    fn push(&mut self, data: Bytes, lines: &mut Vec<LogLine>) -> Result<(), ApiError> {
        let pieces = match &mut self.cut {
            Cut::Headers(demux) => demux.push(data),
            Cut::LineFeeds(inside) => at_line_feeds(data, inside),
        };
        for piece in pieces {
            let stream = match piece.origin {
                Origin::Stdout => LogStream::Stdout,
                Origin::Stderr => LogStream::Stderr,
                Origin::Engine => {
                    let room = MAX_TROUBLE.saturating_sub(self.trouble.len());
                    self.trouble.extend_from_slice(&piece.data[..piece.data.len().min(room)]);
                    if !piece.last {
                        continue;
                    }
                    let error = String::from_utf8_lossy(&self.trouble).trim().to_owned();
                    return Err(ApiError::DockerStreamError { error });
                }
            };
            lines.extend(self.joiners[usize::from(stream == LogStream::Stderr)].push(stream, &piece));
        }
        Ok(())
    }

    /// The lines that were never ended.
    fn rest(&mut self, lines: &mut Vec<LogLine>) {
        for (joiner, stream) in self.joiners.iter_mut().zip([LogStream::Stdout, LogStream::Stderr]) {
            lines.extend(joiner.rest(stream));
        }
    }
}

fn at_line_feeds(mut data: Bytes, inside: &mut bool) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while !data.is_empty() {
        let end = data.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let part = data.split_to(end.unwrap_or(data.len()));
        let first = !std::mem::replace(inside, end.is_none());
        pieces.push(Piece { origin: Origin::Stdout, data: part, first, last: end.is_some() });
    }
    pieces
}

/// Puts the messages of one stream together to lines.
#[derive(Default)]
struct Joiner {
    /// What has come of a message that is not whole yet.
    message: BytesMut,
    /// The head of that message was taken off before.
    headless: bool,
    /// A line has begun.
    open: bool,
    /// Of the line's first message.
    head: Head,
    text: BytesMut,
}

/// What stands before the text of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Head {
    time: SystemTime,
    attributes: BTreeMap<String, String>,
}

impl Default for Head {
    fn default() -> Head {
        Head { time: UNIX_EPOCH, attributes: BTreeMap::new() }
    }
}

impl Joiner {
    /// Takes a part of a message; gives a line once it is complete.
    fn push(&mut self, stream: LogStream, piece: &Piece) -> Option<LogLine> {
        if piece.first {
            self.message.clear();
            self.headless = false;
            if piece.last {
                return self.take(stream, &piece.data);
            }
        }
        self.message.extend_from_slice(&piece.data);
        if !piece.last && self.message.len() < MAX_LINE {
            return None;
        }
        let message = self.message.split();
        let line = self.take(stream, &message);
        self.headless = !piece.last;
        line
    }

    fn take(&mut self, stream: LogStream, message: &[u8]) -> Option<LogLine> {
        let text = if self.headless {
            message
        } else {
            let (head, text) = split(message);
            if !self.open {
                self.head = head;
            }
            text
        };
        self.open = true;
        let text = match text.strip_suffix(b"\n") {
            None => {
                self.text.extend_from_slice(text);
                if self.text.len() < MAX_LINE {
                    return None;
                }
                &[]
            }
            Some(text) => text.strip_suffix(b"\r").unwrap_or(text),
        };
        self.text.extend_from_slice(text);
        Some(self.line(stream))
    }

    /// The line that was never ended.
    fn rest(&mut self, stream: LogStream) -> Option<LogLine> {
        let message = self.message.split();
        if !message.is_empty()
            && let Some(line) = self.take(stream, &message)
        {
            return Some(line);
        }
        self.open.then(|| self.line(stream))
    }

    fn line(&mut self, stream: LogStream) -> LogLine {
        self.open = false;
        let Head { time, attributes } = self.head.clone();
        LogLine { timestamp: time, stream, data: self.text.split().freeze(), attrs: attributes }
    }
}

/// `2024-05-01T10:00:00.123456789Z key=value,key=value text` into its parts; without a time, all is text.
fn split(message: &[u8]) -> (Head, &[u8]) {
    let word = |text: &'_ [u8]| text.iter().position(|byte| *byte == b' ');
    let parsed = word(message).and_then(|at| {
        let time = OffsetDateTime::parse(std::str::from_utf8(&message[..at]).ok()?, &Rfc3339).ok()?;
        let rest = &message[at + 1..];
        // There is a space behind them also where there are none.
        let (attributes, text) = word(rest).map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + 1..]));
        Some((Head { time: time.into(), attributes: attributes_of(attributes) }, text))
    });
    parsed.unwrap_or((Head::default(), message))
}

/// `key=value,key=value`, with what would be taken for the end of something in hexadecimal.
fn attributes_of(text: &[u8]) -> BTreeMap<String, String> {
    let pairs = text.split(|byte| *byte == b',').filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((unescaped(&pair[..at]), unescaped(&pair[at + 1..])))
    });
    pairs.collect()
}

/// As in the query of an address: `+` is a space, `%2C` a comma.
fn unescaped(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text;
    while let [first, rest @ ..] = left {
        let escaped = || u8::from_str_radix(std::str::from_utf8(rest.get(..2)?).ok()?, 16).ok();
        let (byte, used) = match first {
            b'+' => (b' ', 0),
            b'%' => escaped().map_or((b'%', 0), |byte| (byte, 2)),
            other => (*other, 0),
        };
        bytes.push(byte);
        left = &rest[used..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// For the fuzz target: the lines of a stream, which comes in chunks.
pub(crate) fn lines_of(tty: bool, chunks: impl Iterator<Item = Bytes>) -> Vec<LogLine> {
    let (mut lines, mut all) = (Lines::new(tty), Vec::new());
    for chunk in chunks {
        if lines.push(chunk, &mut all).is_err() {
            return all;
        }
    }
    lines.rest(&mut all);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, nanos: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[track_caller]
    fn check(message: &str, time: SystemTime, pairs: &[(&str, &str)], text: &str) {
        let (head, rest) = split(message.as_bytes());
        assert_eq!(head, Head { time, attributes: attributes(pairs) }, "{message}");
        assert_eq!(rest, text.as_bytes(), "{message}");
    }

    #[test]
    fn time_and_attributes_are_cut_off() {
        check("1970-01-01T00:00:01.000000002Z  a b\n", at(1, 2), &[], "a b\n");
        check("1970-01-01T00:00:01Z a=b,c=d x=y", at(1, 0), &[("a", "b"), ("c", "d")], "x=y");
        check("1970-01-01T00:00:01Z a%3D=b%2Cc+d%,e= \n", at(1, 0), &[("a=", "b,c d%"), ("e", "")], "\n");
        check("1970-01-01T00:00:01Z a=%C3%A4", at(1, 0), &[("a", "ä")], "");
        check("no time", UNIX_EPOCH, &[], "no time");
    }

    /// As an engine sends it.
    fn framed(messages: &[(u8, &str)]) -> Vec<u8> {
        let mut stream = Vec::new();
        for (number, message) in messages {
            stream.extend([*number, 0, 0, 0]);
            stream.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            stream.extend(message.as_bytes());
        }
        stream
    }

    fn texts(lines: &[LogLine]) -> Vec<(SystemTime, LogStream, &str)> {
        lines.iter().map(|l| (l.timestamp, l.stream, std::str::from_utf8(&l.data).unwrap())).collect()
    }

    #[test]
    fn lines_are_whole_wherever_the_stream_is_cut() {
        let (out, err) = (LogStream::Stdout, LogStream::Stderr);
        let stream = framed(&[
            (1, "1970-01-01T00:00:01Z k=v abc"),
            (2, "1970-01-01T00:00:02Z  between\n"),
            (1, "1970-01-01T00:00:03Z k=v def\r\n"),
            (1, "1970-01-01T00:00:04Z k=v \n"),
            (1, "1970-01-01T00:00:05Z k=v end"),
        ]);
        for size in 1..=stream.len() {
            let lines = lines_of(false, stream.chunks(size).map(Bytes::copy_from_slice));
            let expected = [
                (at(2, 0), err, "between"),
                (at(1, 0), out, "abcdef"),
                (at(4, 0), out, ""),
                (at(5, 0), out, "end"),
            ];
            assert_eq!(texts(&lines), expected, "{size}");
            assert!(lines.iter().all(|line| line.attrs.is_empty() == (line.stream == err)), "{size}");
        }
    }

    #[test]
    fn with_a_terminal_lines_end_where_they_end() {
        let stream = b"1970-01-01T00:00:01Z  one\r\n1970-01-01T00:00:02Z a=b two\n1970-01-01T00:00:03Z  rest";
        for size in 1..=stream.len() {
            let lines = lines_of(true, stream.chunks(size).map(Bytes::copy_from_slice));
            let out = LogStream::Stdout;
            let expected = [(at(1, 0), out, "one"), (at(2, 0), out, "two"), (at(3, 0), out, "rest")];
            assert_eq!(texts(&lines), expected, "{size}");
            assert_eq!(lines[1].attrs, attributes(&[("a", "b")]));
        }
    }

    #[test]
    fn what_the_engine_says_for_itself_is_an_error() {
        let stream = framed(&[(1, "1970-01-01T00:00:01Z  a\n"), (3, "it went wrong\n"), (1, "never")]);
        for size in 1..=stream.len() {
            let (mut lines, mut all) = (Lines::new(false), Vec::new());
            let mut chunks = stream.chunks(size).map(Bytes::copy_from_slice);
            let error = chunks.find_map(|chunk| lines.push(chunk, &mut all).err()).unwrap();
            assert_eq!(crate::error::message(&error), "it went wrong");
            assert_eq!(texts(&all), [(at(1, 0), LogStream::Stdout, "a")], "{size}");
        }
    }

    #[test]
    fn lines_that_never_end_are_cut() {
        let long = "x".repeat(MAX_LINE + MAX_LINE / 2);
        let stream =
            framed(&[(1, &format!("1970-01-01T00:00:01Z k=v {long}")), (1, "1970-01-01T00:00:02Z  y\n")]);
        let lines = lines_of(false, stream.chunks(64 * 1024).map(Bytes::copy_from_slice));
        assert!(lines.iter().all(|line| line.data.len() < 2 * MAX_LINE));
        let whole: Vec<u8> = lines.iter().flat_map(|line| line.data.to_vec()).collect();
        assert_eq!(whole.len(), long.len() + 1);
        assert_eq!((lines[0].timestamp, lines[0].attrs.len()), (at(1, 0), 1));
    }

    #[test]
    fn what_is_asked_for_stands_in_the_request() {
        let options = LogOptions {
            streams: vec![LogStream::Stderr],
            follow: true,
            tail: Some(3),
            since: Some(at(7, 5)),
        };
        assert_eq!(
            request("web.1.x", &options),
            "/containers/web.1.x/logs?follow=1&stdout=0&stderr=1&timestamps=1&details=1&tail=3&since=7.000000005"
        );
        assert_eq!(
            request("web.1.x", &LogOptions::default()),
            "/containers/web.1.x/logs?follow=0&stdout=1&stderr=1&timestamps=1&details=1&tail=all"
        );
    }
}
