//! What reads bytes of a disk, as functions of bytes, for the fuzz targets. Not for anybody else.

use std::io::Cursor;
use std::sync::Arc;

use swarm_raft::PlainSealer;

use crate::backup::format;

/// A backup: its header, and behind that its frames as they would be without encryption.
pub fn backup(bytes: &[u8]) -> bool {
    let (header, frames) = bytes.split_at(bytes.len().min(format::WHOLE_HEADER));
    let mut right = header.to_vec();
    format::correct(&mut right);
    let header = format::parse_header(&right).is_ok() | format::parse_header(header).is_ok();
    header & format::read_content(Cursor::new(frames), Arc::new(PlainSealer), "a key").is_ok()
}
