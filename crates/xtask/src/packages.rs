//! Debian's packages.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run;

/// The program is on the path.
pub(crate) fn has_program(name: &str) -> bool {
    Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Installs packages, if there are any to install.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    println!("installing {}", packages.join(" "));
    let apt = |words: &[&str]| {
        run(Command::new("apt-get").args(["-qq", "-o", "DPkg::Lock::Timeout=120"]).args(words)).with_context(
            || {
                format!(
                    "{} must be there, and Debian's package manager could not install it",
                    packages.join(", ")
                )
            },
        )
    };
    apt(&["update"])?;
    apt(&[&["install", "--yes", "--no-install-recommends"], packages].concat())
}

/// What the build runs beside a compiler for C, without which there is no Rust either.
pub(crate) fn missing_for_build() -> Option<&'static str> {
    (!has_program("make")).then_some("make")
}
