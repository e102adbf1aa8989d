//! What reads bytes of a disk, as functions of bytes, for the fuzz targets. Not for anybody else.

/// A record of the task database, without its checksum.
pub fn task_record(bytes: &[u8]) -> bool {
    crate::database::is_record(bytes)
}
