//! What reads bytes of a disk, as functions of bytes, for the fuzz targets. Not for anybody else.

use crate::generic_resources::{name_of_gpu, parse};

/// A record of the task database, without its checksum.
pub fn task_record(bytes: &[u8]) -> bool {
    crate::database::is_record(bytes)
}

/// A file with generic resources.
pub fn resource_file(text: &str) -> bool {
    parse(text).is_ok_and(|resources| !resources.is_empty())
}

/// What a driver says of a GPU; its name can stand in a list of resources.
pub fn gpu_information(text: &str) -> bool {
    let name = name_of_gpu(text);
    if let Some(name) = &name {
        assert!(!name.is_empty() && !name.contains([',', '=', ' ', '\n']), "{name:?}");
    }
    name.is_some()
}
