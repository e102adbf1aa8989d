//! Runs tasks as native processes, with no engine.
//!
//! Every task has a directory of its own, and in it all that is known of it. A small supervisor, the *shim* (the
//! daemon's own program, started anew), starts the command, keeps its output, and writes down how it ended. It
//! lives as long as the command does, so that a daemon may end, crash and come back meanwhile.
//!
//! **Invariant: a command runs at most once per task directory, and whatever runs can be found.**
//! - A shim holds the directory's lock for its whole life, and the kernel frees it when the shim ends in any way.
//! - Before it starts the command it creates the file `started`, which must not exist, and waits until that is on
//!   the disk. A shim that finds the file does nothing. From here on the task counts as started.
//! - How it ended is written to `exit.json`, at once and for good. A task that was started, whose lock is free and
//!   that has no such file lost its shim: what is left of it is killed, and the task has failed.
//!
//! - [`ProcessExecutor`]: makes controllers for tasks of the generic runtime [`RUNTIME`].
//! - [`maybe_run_shim`]: must be the first thing in the daemon's `main`.
//! - `launch`: a task as instructions for the shim; a pure function but for the names of users and groups.
//! - `dir`: a task's directory, its files, and the state they tell.
//! - `init`: what runs before it.
//! - `files`: its secrets and configs, in memory. `outcome`: what the end of a process means for its task.
//! - `shim`: supervisor (`shim`) and the step between it and the command (`shim::exec`); namespaces
//!   and roots (`shim::isolate`), health checks (`shim::health`), commands beside the task's own (`shim::steps`).
//! - `session`: commands that operators execute in a task (`shim::session` supervises one), `terminal` what they do it
//!   in; `output`: what a task has written, and writes; `stats`: what it uses.
//! - `log`: the file that keeps the output. `cgroup`, `procfs`: control groups, and what `/proc` tells.

mod cgroup;
mod controller;
mod dir;
mod executor;
mod files;
#[doc(hidden)]
pub mod fuzz;
mod init;
mod launch;
mod log;
mod outcome;
mod output;
mod procfs;
mod session;
mod shim;
mod stats;
mod terminal;

pub use executor::{Error, ProcessExecutor};
pub use launch::RUNTIME;
pub use shim::maybe_run_shim;
