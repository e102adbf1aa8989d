//! The shim as a program of its own, for the tests of this crate; daemons are their own shims.

use std::process::ExitCode;

fn main() -> ExitCode {
    swarm_executor_process::maybe_run_shim().unwrap_or_else(|| {
        eprintln!("this program is started by the process executor only");
        ExitCode::FAILURE
    })
}
