//! Small helpers for files that must survive a power loss.

use std::fs::File;
use std::path::Path;

use crate::{Error, Result};

/// Makes a creation, renaming or removal in the file's directory safe.
pub(crate) fn sync_dir_of(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    sync_dir(dir)
}

/// Makes creations, renamings and removals in a directory safe.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("sync", dir))
}

/// Creates a directory, and those above it, readable for the owner alone.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("create", dir))?;
    sync_dir_of(dir)
}
