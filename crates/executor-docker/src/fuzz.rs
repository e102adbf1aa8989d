//! What reads bytes of an engine, as functions of bytes, for the fuzz targets. Not for anybody else.

use std::time::UNIX_EPOCH;

use bytes::Bytes;

/// A log as an engine sends it, behind a byte that says whether the container has a terminal, and in what chunks it comes:
/// they make no difference.
pub fn log_stream(bytes: &[u8]) -> bool {
    let Some((how, stream)) = bytes.split_first() else { return false };
    let (tty, size) = (how & 1 == 1, usize::from(how >> 1) + 1);
    let lines = crate::logs::lines_of(tty, std::iter::once(Bytes::copy_from_slice(stream)));
    let again = crate::logs::lines_of(tty, stream.chunks(size).map(Bytes::copy_from_slice));
    assert_eq!(lines, again, "{size}");
    !lines.is_empty() && lines.iter().all(|line| line.timestamp > UNIX_EPOCH)
}
