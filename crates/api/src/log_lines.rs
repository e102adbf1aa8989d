//! Messages with log lines, which few of those that pass them on have to look into.
//!
//! A line goes from its agent through one manager or two to whoever asked for it. Decoded, it takes half a dozen
//! allocations at each hop. So the two messages that carry lines, [`PublishLogsMessage`] and [`SubscribeLogsMessage`],
//! leave each as it stands on the wire ([`RawLogMessage`]); [`RawLogMessage::read`] looks into it without copying, and
//! [`LineWriter`] writes lines of one task without an allocation for each. [`Seen`] tells lines that came before from new
//! ones. On the wire nothing differs.

mod seen;

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};
use prost_types::Timestamp;

use crate::v1::{LogContext, LogMessage, LogStream};

pub use seen::{Mark, Seen};

/// Key of an attribute by which an agent of this make says that a task's log could not be read; its value says why.
/// The line itself says so too, for those that don't know the attribute.
pub const ERROR_ATTRIBUTE: &str = "swarmd.error";

/// Bytes that a line counts for beside its own when room is limited, so that empty ones count too.
const OVERHEAD: usize = 64;

/// A line that is no [`LogMessage`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed log message")]
pub struct Malformed;

impl From<DecodeError> for Malformed {
    fn from(_: DecodeError) -> Malformed {
        Malformed
    }
}

/// A [`LogMessage`] as it stands on the wire. What came from a peer may be anything.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RawLogMessage(Bytes);

impl RawLogMessage {
    /// Wraps bytes that are a [`LogMessage`], or are taken for one.
    pub fn new(encoded: Bytes) -> RawLogMessage {
        RawLogMessage(encoded)
    }

    /// What it counts for where room is limited, in bytes.
    pub fn cost(&self) -> usize {
        self.0.len() + OVERHEAD
    }

    /// Its bytes on the wire.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Looks into it.
    ///
    /// # Errors
    /// If it can't be decoded.
    pub fn read(&self) -> Result<Line<'_>, Malformed> {
        Line::parse(&self.0)
    }
}

impl From<&LogMessage> for RawLogMessage {
    fn from(message: &LogMessage) -> RawLogMessage {
        RawLogMessage(message.encode_to_vec().into())
    }
}

impl fmt::Debug for RawLogMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

/// The parts of a [`LogMessage`], where they lie. Absent ones are empty.
#[derive(Clone, Copy, PartialEq)]
pub struct Line<'a> {
    /// Service of the task.
    pub service_id: &'a str,
    /// Node that the line comes from.
    pub node_id: &'a str,
    /// The task.
    pub task_id: &'a str,
    /// When it was written.
    pub timestamp: Option<Timestamp>,
    /// Number of a [`LogStream`].
    pub stream: i32,
    /// The line, with its line feed if it ended in one.
    pub data: &'a [u8],
    whole: &'a [u8],
}

impl<'a> Line<'a> {
    fn parse(whole: &'a [u8]) -> Result<Line<'a>, Malformed> {
        let mut line =
            Line { service_id: "", node_id: "", task_id: "", timestamp: None, stream: 0, data: &[], whole };
        let mut rest = whole;
        while !rest.is_empty() {
            let (tag, wire_type) = encoding::decode_key(&mut rest)?;
            match tag {
                1 => line.merge_context(delimited(wire_type, &mut rest)?)?,
                2 => {
                    let time = line.timestamp.get_or_insert_default();
                    time.merge(delimited(wire_type, &mut rest)?)?;
                }
                3 => {
                    encoding::int32::merge(wire_type, &mut line.stream, &mut rest, DecodeContext::default())?;
                }
                4 => line.data = delimited(wire_type, &mut rest)?,
                5 => _ = attribute(delimited(wire_type, &mut rest)?)?,
                _ => encoding::skip_field(wire_type, tag, &mut rest, DecodeContext::default())?,
            }
        }
        Ok(line)
    }

    fn merge_context(&mut self, mut rest: &'a [u8]) -> Result<(), Malformed> {
        while !rest.is_empty() {
            let (tag, wire_type) = encoding::decode_key(&mut rest)?;
            let field = match tag {
                1 => &mut self.service_id,
                2 => &mut self.node_id,
                3 => &mut self.task_id,
                _ => {
                    encoding::skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
                    continue;
                }
            };
            *field = text(delimited(wire_type, &mut rest)?)?;
        }
        Ok(())
    }

    /// Key and value of each attribute.
    pub fn attributes(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let mut rest = self.whole;
        std::iter::from_fn(move || {
            // It was read before; so nothing can fail, and if it did the list would end.
            while !rest.is_empty() {
                let (tag, wire_type) = encoding::decode_key(&mut rest).ok()?;
                if tag == 5 {
                    return attribute(delimited(wire_type, &mut rest).ok()?).ok();
                }
                encoding::skip_field(wire_type, tag, &mut rest, DecodeContext::default()).ok()?;
            }
            None
        })
    }
}

impl fmt::Debug for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("task_id", &self.task_id)
            .field("node_id", &self.node_id)
            .field("stream", &self.stream)
            .field("bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// The content of a field with a length before it.
fn delimited<'a>(wire_type: WireType, rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    encoding::check_wire_type(WireType::LengthDelimited, wire_type)?;
    let length = encoding::decode_varint(rest)?;
    let length = usize::try_from(length).map_err(|_| Malformed)?;
    let (content, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    Ok(content)
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed)
}

fn attribute(mut rest: &[u8]) -> Result<(&str, &str), Malformed> {
    let (mut key, mut value) = ("", "");
    while !rest.is_empty() {
        let (tag, wire_type) = encoding::decode_key(&mut rest)?;
        match tag {
            1 => key = text(delimited(wire_type, &mut rest)?)?,
            2 => value = text(delimited(wire_type, &mut rest)?)?,
            _ => encoding::skip_field(wire_type, tag, &mut rest, DecodeContext::default())?,
        }
    }
    Ok((key, value))
}

/// Writes lines of one task, one behind the other.
#[derive(Debug)]
pub struct LineWriter {
    /// The context as it begins each line.
    context: Vec<u8>,
    buffer: BytesMut,
    lines: Vec<RawLogMessage>,
    bytes: usize,
}

impl LineWriter {
    /// For the lines of one task.
    pub fn new(context: &LogContext) -> LineWriter {
        let mut begin = Vec::new();
        encoding::message::encode(1, context, &mut begin);
        LineWriter { context: begin, buffer: BytesMut::new(), lines: Vec::new(), bytes: 0 }
    }

    /// Adds a line; its line feed is added to it.
    pub fn push<'a>(
        &mut self,
        time: SystemTime,
        stream: LogStream,
        text: &[u8],
        attributes: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        // Moments before 1970 are of no use here, and none has them.
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        };
        let needed = self.context.len() + text.len() + 48;
        if self.buffer.capacity() < needed {
            self.buffer = BytesMut::with_capacity(needed.max(64 * 1024));
        }
        let buffer = &mut self.buffer;
        buffer.put_slice(&self.context);
        encoding::message::encode(2, &time, buffer);
        encoding::int32::encode(3, &(stream as i32), buffer);
        encoding::encode_key(4, WireType::LengthDelimited, buffer);
        encoding::encode_varint(text.len() as u64 + 1, buffer);
        buffer.put_slice(text);
        buffer.put_u8(b'\n');
        for (key, value) in attributes {
            let attribute = crate::v1::LogAttr { key: key.to_owned(), value: value.to_owned() };
            encoding::message::encode(5, &attribute, buffer);
        }
        let line = RawLogMessage(buffer.split().freeze());
        self.bytes += line.cost();
        self.lines.push(line);
    }

    /// What the lines count for since they were last taken, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The lines since they were last taken.
    pub fn take(&mut self) -> Vec<RawLogMessage> {
        self.bytes = 0;
        std::mem::take(&mut self.lines)
    }
}

fn encode_lines(tag: u32, lines: &[RawLogMessage], buf: &mut impl BufMut) {
    for line in lines {
        encoding::bytes::encode(tag, &line.0, buf);
    }
}

fn lines_length(tag: u32, lines: &[RawLogMessage]) -> usize {
    lines.iter().map(|line| encoding::bytes::encoded_len(tag, &line.0)).sum()
}

fn merge_line(
    lines: &mut Vec<RawLogMessage>,
    wire_type: WireType,
    buf: &mut impl Buf,
    ctx: DecodeContext,
) -> Result<(), DecodeError> {
    let mut line = Bytes::new();
    encoding::bytes::merge(wire_type, &mut line, buf, ctx)?;
    lines.push(RawLogMessage(line));
    Ok(())
}

/// Lines from an agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PublishLogsMessage {
    /// Must be present in every message and must not change within the stream.
    pub subscription_id: String,
    /// The lines.
    pub messages: Vec<RawLogMessage>,
    /// Last message of this publisher.
    pub close: bool,
}

impl Message for PublishLogsMessage {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if !self.subscription_id.is_empty() {
            encoding::string::encode(1, &self.subscription_id, buf);
        }
        encode_lines(2, &self.messages, buf);
        if self.close {
            encoding::bool::encode(3, &self.close, buf);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => encoding::string::merge(wire_type, &mut self.subscription_id, buf, ctx),
            2 => merge_line(&mut self.messages, wire_type, buf, ctx),
            3 => encoding::bool::merge(wire_type, &mut self.close, buf, ctx),
            _ => encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let id = if self.subscription_id.is_empty() {
            0
        } else {
            encoding::string::encoded_len(1, &self.subscription_id)
        };
        let close = if self.close { encoding::bool::encoded_len(3, &self.close) } else { 0 };
        id + lines_length(2, &self.messages) + close
    }

    fn clear(&mut self) {
        *self = PublishLogsMessage::default();
    }
}

/// Lines for a subscriber.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SubscribeLogsMessage {
    /// The lines.
    pub messages: Vec<RawLogMessage>,
}

impl Message for SubscribeLogsMessage {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        encode_lines(1, &self.messages, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => merge_line(&mut self.messages, wire_type, buf, ctx),
            _ => encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        lines_length(1, &self.messages)
    }

    fn clear(&mut self) {
        self.messages.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::v1::LogAttr;

    fn message() -> LogMessage {
        LogMessage {
            context: LogContext { service_id: "s".into(), node_id: "n".into(), task_id: "t".into() },
            timestamp: Some(Timestamp { seconds: 5, nanos: 7 }),
            stream: LogStream::Stderr as i32,
            data: b"text\n".to_vec(),
            attrs: vec![
                LogAttr { key: "a".into(), value: "1".into() },
                LogAttr { key: "b".into(), value: String::new() },
            ],
        }
    }

    #[test]
    fn a_line_is_read_where_it_lies() {
        let raw = RawLogMessage::from(&message());
        let line = raw.read().unwrap();
        assert_eq!((line.service_id, line.node_id, line.task_id), ("s", "n", "t"));
        assert_eq!((line.timestamp, line.stream), (Some(Timestamp { seconds: 5, nanos: 7 }), 2));
        assert_eq!(line.data, b"text\n");
        assert_eq!(line.attributes().collect::<Vec<_>>(), [("a", "1"), ("b", "")]);
        assert_eq!(format!("{raw:?}"), format!("<{} bytes>", raw.as_bytes().len()));
    }

    #[test]
    fn what_is_written_is_the_contracts_message() {
        let whole = message();
        let mut writer = LineWriter::new(&whole.context);
        let time = UNIX_EPOCH + Duration::new(5, 7);
        writer.push(time, LogStream::Stderr, b"text", [("a", "1"), ("b", "")]);
        writer.push(time, LogStream::Stdout, b"", []);
        assert!(writer.bytes() > 2 * OVERHEAD);
        let lines = writer.take();
        assert_eq!((lines.len(), writer.bytes(), writer.take().len()), (2, 0, 0));
        assert_eq!(LogMessage::decode(lines[0].as_bytes().clone()).unwrap(), whole);
        assert_eq!(lines[1].read().unwrap().data, b"\n");
    }

    /// The last of several occurrences counts, as in every decoder: nobody is shown another node than is checked.
    #[test]
    fn repeated_fields_are_merged_as_everywhere() {
        let one = LogMessage { attrs: vec![], ..message() };
        let mut bytes = one.encode_to_vec();
        let second = LogMessage {
            context: LogContext { node_id: "other".into(), ..Default::default() },
            timestamp: Some(Timestamp { seconds: 0, nanos: 9 }),
            ..Default::default()
        };
        bytes.extend(second.encode_to_vec());
        let merged = LogMessage::decode(bytes.as_slice()).unwrap();
        let raw = RawLogMessage::new(bytes.into());
        let line = raw.read().unwrap();
        assert_eq!((line.node_id, line.task_id), ("other", "t"));
        assert_eq!((merged.context.node_id.as_str(), merged.timestamp), (line.node_id, line.timestamp));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            &b"\x0a"[..],
            b"\x0a\x05ab",
            b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x07",
            b"\x0a\x04\x12\x02\xff\xfe",
            b"\x08\x01",
        ] {
            assert_eq!(RawLogMessage::new(Bytes::copy_from_slice(bad)).read(), Err(Malformed), "{bad:?}");
        }
    }
}
