//! Fuzz targets: everything that reads bytes from a peer or a disk, as functions of bytes.
//!
//! The rule for each: no panic, no endless loop, and no allocation that is not in proportion to the input. Nothing
//! else is expected of bytes that make no sense; seeds, which are real encodings, must be understood.
//!
//! - [`TARGETS`]: the targets. A panic within one is a finding.
//! - [`corpus`]: the seeds that are checked in; `examples/seeds.rs` wrote them.
//! - [`Mutator`]: changes of seeds, drawn from a number. `tests/short.rs` runs every target on some of them.
//!
//! Guided by coverage, the same targets run in libFuzzer by `cargo xtask fuzz` (decision 0065).

mod mutate;
mod targets;

use std::path::{Path, PathBuf};

pub use mutate::Mutator;
pub use targets::{TARGETS, Target, kek, root};

/// Memory in bytes that an execution may take, beyond what is there before.
pub const MEMORY: usize = 64 * 1024 * 1024;

/// The directory of a target's seeds.
pub fn corpus_dir(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// The seeds of a target, in the order of their names.
///
/// # Errors
/// If they can't be read.
pub fn corpus(target: &str) -> std::io::Result<Vec<Vec<u8>>> {
    let mut paths = Vec::new();
    for file in std::fs::read_dir(corpus_dir(target))? {
        paths.push(file?.path());
    }
    paths.sort();
    paths.into_iter().map(std::fs::read).collect()
}
