//! Takes apart the one stream in which engines send both streams of a process without a terminal: messages, each behind a
//! header of eight bytes, which are the stream's number, three zeros, and the length (big-endian).

use bytes::{Buf as _, Bytes, BytesMut};

const HEADER: usize = 8;

/// Where a message comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Origin {
    #[default]
    Stdout,
    Stderr,
    /// The engine itself: it says what went wrong.
    Engine,
}

impl Origin {
    fn of(number: u8) -> Origin {
        match number {
            2 => Origin::Stderr,
            3 => Origin::Engine,
            _ => Origin::Stdout,
        }
    }
}

/// Part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) origin: Origin,
    pub(crate) data: Bytes,
    /// The message begins with it.
    pub(crate) first: bool,
    /// The message ends with it.
    pub(crate) last: bool,
}

/// Where in the stream it is. Nothing is held back but parts of headers.
#[derive(Debug, Default)]
pub(crate) struct Demux {
    header: BytesMut,
    origin: Origin,
    /// Nothing of the message has come.
    fresh: bool,
    left: usize,
}

impl Demux {
    /// What is in the next bytes.
    pub(crate) fn push(&mut self, mut data: Bytes) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while !data.is_empty() {
            if self.left == 0 {
                let wanted = data.len().min(HEADER - self.header.len());
                self.header.extend_from_slice(&data.split_to(wanted));
                if self.header.len() == HEADER {
                    self.origin = Origin::of(self.header[0]);
                    self.header.advance(4);
                    self.left = usize::try_from(self.header.get_u32()).unwrap_or(usize::MAX);
                    self.header.clear();
                    self.fresh = true;
                }
                continue;
            }
            let part = data.split_to(data.len().min(self.left));
            self.left -= part.len();
            let first = std::mem::take(&mut self.fresh);
            pieces.push(Piece { origin: self.origin, data: part, first, last: self.left == 0 });
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_taken_apart_wherever_they_are_cut() {
        let mut whole = Vec::new();
        let messages =
            [(1u8, "one"), (2, "two"), (1, ""), (0, "three"), (3, "away")].map(|(number, text)| {
                whole.extend([number, 0, 0, 0]);
                whole.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                whole.extend(text.as_bytes());
                (Origin::of(number), text.as_bytes().to_vec())
            });
        let messages: Vec<_> = messages.into_iter().filter(|(_, text)| !text.is_empty()).collect();
        for size in 1..=whole.len() {
            let mut demux = Demux::default();
            let (mut found, mut inside) = (Vec::new(), false);
            for part in whole.chunks(size) {
                for piece in demux.push(Bytes::copy_from_slice(part)) {
                    assert_eq!(piece.first, !inside, "{size}");
                    if piece.first {
                        found.push((piece.origin, Vec::new()));
                    }
                    let (origin, text) = found.last_mut().unwrap();
                    assert_eq!(*origin, piece.origin);
                    text.extend(&piece.data);
                    inside = !piece.last;
                }
            }
            assert_eq!(found, messages, "{size}");
        }
    }
}
