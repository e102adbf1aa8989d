//! Developer commands: `cargo xtask <command>`.

mod demo;
mod engine;
mod fuzz;
mod packages;
mod test;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Developer commands")]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build, start a manager and two workers on this host, and run a service.
    Demo(demo::Args),
    /// Install what the tests need and run them all.
    Test(test::Args),
    /// Fuzz what reads bytes from a peer or a disk, guided by coverage.
    Fuzz(fuzz::Args),
    /// Rewrite the generated code from proto/.
    Codegen,
    /// Print a line a second for ever: the task of the demo where there is no other program.
    #[command(hide = true)]
    Idle,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Task::Demo(args) => demo::run_args(&args),
        Task::Test(args) => test::run_args(&args),
        Task::Fuzz(args) => fuzz::run_args(&args),
        Task::Codegen => run(cargo().args(["run", "--quiet", "--package", "swarm-codegen"])),
        Task::Idle => idle(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn idle() -> Result<()> {
    // Receiving on a channel that nobody sends to is a wait that a signal ends.
    let (_sender, receiver) = std::sync::mpsc::channel::<()>();
    for second in 0u64.. {
        println!("still here after {second} s");
        let _ = receiver.recv_timeout(std::time::Duration::from_secs(1));
    }
    Ok(())
}

/// The repository's root.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    here.canonicalize().unwrap_or(here)
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command and fails if it does.
fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("can't run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Runs a command and returns what it printed.
fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("can't run {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?} ended with {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
