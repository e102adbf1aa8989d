//! What reads bytes of a disk, as functions of bytes, for the fuzz targets. Not for anybody else.

/// The file `state.json`.
pub fn managers(text: &[u8]) -> bool {
    crate::state::parse_managers(text).is_ok()
}
