//! Hosts' clocks.
//!
//! `libfaketime` stands between the program and the C library and adds an offset to the time of day; the monotonic clock
//! stays as it is, as on a host whose clock is set. The offset is in a file that is read again every second.

use std::path::Path;

use anyhow::{Result, ensure};

use super::Lab;
use super::node_image::FAKETIME;

/// File with the offset, in the host's directory.
const FILE: &str = "clock";

/// Environment of a program whose clock can be set.
pub(super) fn environment() -> [String; 4] {
    [
        format!("LD_PRELOAD={FAKETIME}"),
        format!("FAKETIME_TIMESTAMP_FILE=/lab/{FILE}"),
        // Seconds.
        "FAKETIME_CACHE_DURATION=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ]
}

pub(super) fn write(dir: &Path, seconds: i64) -> Result<()> {
    // Renamed, so that nobody reads half of it.
    std::fs::write(dir.join("clock.new"), format!("{seconds:+}\n"))?;
    Ok(std::fs::rename(dir.join("clock.new"), dir.join(FILE))?)
}

impl Lab {
    /// Sets the clock of a host to the true time and so many seconds, within a second or two. The host must have been
    /// added with a clock of its own.
    ///
    /// # Errors
    /// If it has none.
    pub fn set_clock(&mut self, name: &str, seconds: i64) -> Result<()> {
        ensure!(self.host(name)?.options().clock, "{name} has no clock of its own");
        self.note(format!("the clock of {name} goes to {seconds:+} s"));
        write(self.host(name)?.dir(), seconds)
    }
}
