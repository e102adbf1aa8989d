//! Helpers of this crate's tests.

use std::process::{Command, Stdio};

/// Whether the `openssl` command line is there to check our work with.
pub(crate) fn have_openssl() -> bool {
    let found = Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("no openssl command: its checks are left out");
    }
    found
}

/// Runs `openssl` with these arguments and gives its output; panics with its complaint when it fails.
pub(crate) fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
