//! The agent of a node: takes assignments from a dispatcher, runs them with an executor, reports what became
//! of them. It knows no engine: that is behind [`Executor`] and [`Controller`].
//!
//! - [`Agent::start`] gives an [`AgentHandle`]; what managers tell the node comes up in [`Observed`].
//! - [`Remotes`]: the managers that the node knows, and how good they were; [`Connector`]: how to reach them.
//!
//! Inside: `session` talks to one manager at a time, `worker` applies assignments and owns one `runner` per
//! task, `lifecycle` says what a task's next step is, `reporter` keeps what managers must still hear, and
//! `logs` publishes what managers want of logs, `task_sessions` serves those whom managers let into tasks, `pulls` has images
//! at hand before tasks need them, `description` and `generic_resources` say what the node has, and `database` keeps tasks and
//! statuses over a restart. A status is on disk before anybody hears of it.
//!
//! For executors: [`memory`] keeps the files of secrets and configs where no disk is, [`payloads`] says what is in them.

mod agent;
mod database;
mod dependencies;
mod description;
mod error;
mod executor;
mod executors;
#[doc(hidden)]
pub mod fuzz;
mod generic_resources;
mod lifecycle;
mod log_sink;
mod logs;
pub mod memory;
pub mod payloads;
mod pulls;
mod remotes;
mod reporter;
mod runner;
mod session;
mod task_io;
mod task_sessions;
mod worker;

pub use agent::{Agent, AgentHandle, Config, LOCAL, Observed, Reconnect, Timings};
pub use error::{Error, SessionError};
pub use executor::{
    Controller, ControllerError, Dependencies, DependencyError, Executor, ExecutorDescription, LogLine,
    LogOptions, LogStream,
};
pub use generic_resources::{DevicePattern, GenericSources};
pub use log_sink::{Closed, LogLines, LogSink};
pub use remotes::{Connector, Remotes};
pub use swarm_template as template;
pub use task_io::{
    AttachOptions, ExecOptions, Gone, Input, MAX_OUTPUT, Output, Size, Stats, TaskIo, TaskIoPeer, TaskOutput,
};
