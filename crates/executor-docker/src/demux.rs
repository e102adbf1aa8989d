//! Takes apart the one stream in which engines send both streams of a process without a terminal: pieces, each behind a
//! header of eight bytes, which are the stream's number, three zeros, and the length (big-endian).

use bytes::{Buf as _, Bytes, BytesMut};

const HEADER: usize = 8;
const STDERR: u8 = 2;

/// Part of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// Where in the stream it is. Nothing is held back but parts of headers.
#[derive(Debug, Default)]
pub(crate) struct Demux {
    header: BytesMut,
    stream: u8,
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
                    self.stream = self.header[0];
                    self.header.advance(4);
                    self.left = usize::try_from(self.header.get_u32()).unwrap_or(usize::MAX);
                    self.header.clear();
                }
                continue;
            }
            let part = data.split_to(data.len().min(self.left));
            self.left -= part.len();
            pieces.push(if self.stream == STDERR { Piece::Stderr(part) } else { Piece::Stdout(part) });
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
        for (stream, text) in [(1u8, "one"), (2, "two"), (1, ""), (1, "three")] {
            whole.extend([stream, 0, 0, 0]);
            whole.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            whole.extend(text.as_bytes());
        }
        for size in 1..=whole.len() {
            let mut demux = Demux::default();
            let (mut out, mut err) = (Vec::new(), Vec::new());
            for part in whole.chunks(size) {
                for piece in demux.push(Bytes::copy_from_slice(part)) {
                    match piece {
                        Piece::Stdout(data) => out.extend(data),
                        Piece::Stderr(data) => err.extend(data),
                    }
                }
            }
            assert_eq!((out.as_slice(), err.as_slice()), (&b"onethree"[..], &b"two"[..]), "{size}");
        }
    }
}
