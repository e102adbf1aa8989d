//! The swarm daemon: parses flags, sets up the log, and runs a node.

mod flags;
mod logging;
mod run;
mod secrets;

use std::process::ExitCode;

use clap::Parser as _;

/// For what is allocated by one thread and freed by another; see `docs/decisions/0102-allocator.md`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // A native process task is watched by a copy of this program under another name.
    if let Some(code) = swarm_executor_process::maybe_run_shim() {
        return code;
    }
    let flags = match flags::Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            let _ = error.print();
            // Help and version are no errors; wrong usage exits with 2.
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    if flags.version {
        println!("swarmd {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    logging::init(flags.log_level);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: can't start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run::run(flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
