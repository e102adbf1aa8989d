//! Texts behind a reference count, as fields of messages.

use bytes::{Buf, BufMut};
use prost::DecodeError;
use prost::encoding::{self, DecodeContext, WireType};

/// A text behind a reference count, of the size of a pointer. Cloning allocates nothing, and neither does one made of a
/// literal ([`text!`](crate::text!)), nor the empty one.
pub type Text = arcstr::ArcStr;

/// A [`Text`] made of a string literal, for nothing.
#[doc(inline)]
pub use arcstr::literal as text;

/// Writes a field. As always, an empty one is left out.
pub(crate) fn encode(tag: u32, value: &Text, buf: &mut impl BufMut) {
    if !value.is_empty() {
        encoding::encode_key(tag, WireType::LengthDelimited, buf);
        encoding::encode_varint(value.len() as u64, buf);
        buf.put_slice(value.as_bytes());
    }
}

/// What [`encode`] writes, in bytes.
pub(crate) fn encoded_len(tag: u32, value: &Text) -> usize {
    match value.len() {
        0 => 0,
        len => encoding::key_len(tag) + encoding::encoded_len_varint(len as u64) + len,
    }
}

/// Reads a field.
///
/// # Errors
/// Those of a `string` field: another type on the wire, too few bytes, or no UTF-8.
pub(crate) fn merge(
    wire_type: WireType,
    value: &mut Text,
    buf: &mut impl Buf,
    ctx: DecodeContext,
) -> Result<(), DecodeError> {
    // Where all of it lies in one piece, as it does as a rule, it is copied once.
    if wire_type == WireType::LengthDelimited {
        let mut rest = buf.chunk();
        let before = rest.len();
        if let Ok(len) = encoding::decode_varint(&mut rest)
            && let Ok(len) = usize::try_from(len)
            && let Some(Ok(read)) = rest.get(..len).map(std::str::from_utf8)
        {
            let advance = before - rest.len() + read.len();
            *value = Text::from(read);
            buf.advance(advance);
            return Ok(());
        }
    }
    let mut read = String::new();
    encoding::string::merge(wire_type, &mut read, buf, ctx)?;
    *value = read.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    use crate::v1::TaskStatus;

    /// A field that is a `String`, with the tag of a status' message.
    fn as_string(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        encoding::string::encode(3, &text.to_owned(), &mut bytes);
        bytes
    }

    #[test]
    fn a_text_is_a_string_on_the_wire() {
        for text in ["", "x", "größer", &"long ".repeat(100)] {
            let status = TaskStatus { message: text.into(), ..Default::default() };
            let mut expected = as_string(text);
            if text.is_empty() {
                expected.clear();
            }
            assert_eq!(status.encode_to_vec(), expected);
            assert_eq!(status.encoded_len(), expected.len());
            assert_eq!(TaskStatus::decode(&*expected).unwrap(), status);
            // In pieces of one byte.
            let pieces = expected.chunks(1).fold(None, |all: Option<Box<dyn Buf>>, piece| match all {
                Some(all) => Some(Box::new(all.chain(piece))),
                None => Some(Box::new(piece)),
            });
            if let Some(pieces) = pieces {
                assert_eq!(TaskStatus::decode(pieces).unwrap(), status);
            }
        }
    }

    #[test]
    fn states_are_shown_by_their_names() {
        let mut status = TaskStatus { state: crate::TaskState::Running as i32, ..Default::default() };
        assert!(
            format!("{status:?}").starts_with("TaskStatus { timestamp: None, state: Running, message: \"\"")
        );
        status.state = 7;
        assert!(format!("{status:?}").contains("state: 7,"));
    }

    #[test]
    fn what_is_no_text_is_refused_as_it_is_for_a_string() {
        let mut too_short = as_string("text");
        too_short.pop();
        let mut no_utf8 = as_string("text");
        no_utf8[3] = 0xff;
        let mut endless = as_string("");
        endless[1] = 0x80;
        let other_type = vec![3 << 3, 1];
        for bytes in [too_short, no_utf8, endless, other_type] {
            let error = TaskStatus::decode(&*bytes).unwrap_err().to_string();
            assert!(error.contains("TaskStatus.message"), "{error}");
        }
    }
}
