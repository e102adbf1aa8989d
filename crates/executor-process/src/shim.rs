//! The supervisor of one task: a process of its own that outlives the daemon.
//!
//! Commands that operators execute in a task have a supervisor of their own (`session`), which ends with them.
//!
//! It is single-threaded on purpose: the command is killed by the kernel when the *thread* that started it ends.

mod exec;
mod health;
mod isolate;
mod session;
mod steps;
mod supervise;

use std::path::Path;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::launch::Identity;

/// First argument of a shim; the second is the task's directory.
pub(crate) const SHIM_ARG: &str = "__swarmd-task-shim";
/// First argument of the step between shim and command.
const EXEC_ARG: &str = "__swarmd-task-exec";

/// First argument of the supervisor of a command that is executed in a task; the second is the task's directory.
pub(crate) const SESSION_ARG: &str = "__swarmd-task-session";
/// First argument of the step between it and the command.
const SESSION_EXEC_ARG: &str = "__swarmd-task-session-exec";
/// Environment variable with the [`Visit`] of such a command, as JSON: nothing of it is written to a disk.
pub(crate) const SESSION_ENV: &str = "SWARMD_TASK_SESSION";

/// A command that is executed in a task, where it differs from the task's own.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Visit {
    /// Process that it ends with.
    pub(crate) daemon: i32,
    /// The task's process, whose mounts and root it is to see.
    pub(crate) process: i32,
    pub(crate) argv: Vec<String>,
    /// In addition to the task's.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) dir: Option<String>,
    pub(crate) identity: Option<Identity>,
    /// Its standard input is a terminal, to be its controlling one.
    pub(crate) tty: bool,
}

/// What the step between shim and command becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The task's command, or the first process of its namespace.
    Command,
    /// The command, started by the first process of its namespace.
    Inner,
    /// Something beside the task's process, which has this number.
    PreStop(i32),
    Health(i32),
    Session(i32),
}

impl Role {
    fn word(self) -> String {
        match self {
            Role::Command => "command".to_owned(),
            Role::Inner => "inner".to_owned(),
            Role::PreStop(pid) => format!("pre-stop:{pid}"),
            Role::Health(pid) => format!("health:{pid}"),
            Role::Session(pid) => format!("session:{pid}"),
        }
    }

    fn parse(word: &str) -> Option<Role> {
        match word.split_once(':') {
            None if word == "command" => Some(Role::Command),
            None if word == "inner" => Some(Role::Inner),
            Some(("pre-stop", pid)) => pid.parse().ok().map(Role::PreStop),
            Some(("health", pid)) => pid.parse().ok().map(Role::Health),
            Some(("session", pid)) => pid.parse().ok().map(Role::Session),
            _ => None,
        }
    }
}

/// What a shim tells its daemon, in one line, before it goes its own way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    /// The command runs.
    Started,
    /// The command can't be started; written down.
    Failed,
    /// Another shim has the task, or had it.
    Taken,
}

impl Word {
    fn text(&self) -> &'static str {
        match self {
            Word::Started => "started",
            Word::Failed => "failed",
            Word::Taken => "taken",
        }
    }

    pub(crate) fn parse(line: &str) -> Option<Word> {
        [Word::Started, Word::Failed, Word::Taken].into_iter().find(|word| word.text() == line.trim_end())
    }
}

/// A request to a running shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Send the signal to the process group; kill it after the time.
    Stop { signal: i32, grace_ms: u64 },
    /// Kill the process group now.
    Kill,
}

impl Request {
    /// As it stands in the pipe; short enough to be written at once.
    pub(crate) fn line(&self) -> String {
        match self {
            Request::Stop { signal, grace_ms } => format!("stop {signal} {grace_ms}\n"),
            Request::Kill => "kill\n".to_owned(),
        }
    }

    pub(crate) fn parse(line: &str) -> Option<Request> {
        let mut words = line.split_whitespace();
        match words.next()? {
            "kill" => Some(Request::Kill),
            "stop" => Some(Request::Stop {
                signal: words.next()?.parse().ok()?,
                grace_ms: words.next()?.parse().ok()?,
            }),
            _ => None,
        }
    }
}

/// Runs as a shim if this process was started as one. A daemon calls it first in `main`, before it starts
/// threads, and returns the exit code if there is one.
pub fn maybe_run_shim() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let first = args.next()?;
    let is_step = match first.to_str() {
        Some(SHIM_ARG | SESSION_ARG | SESSION_EXEC_ARG) => false,
        Some(EXEC_ARG) => true,
        _ => return None,
    };
    let Some(directory) = args.next() else { return Some(ExitCode::FAILURE) };
    let directory = Path::new(&directory);
    if is_step {
        let role = args.next().and_then(|word| Role::parse(&word.to_string_lossy()));
        return Some(role.map_or(ExitCode::FAILURE, |role| exec::run(directory, role)));
    }
    Some(match first.to_str() {
        Some(SESSION_ARG) => session::run(directory),
        Some(SESSION_EXEC_ARG) => exec::run_session(directory),
        _ => supervise::run(directory),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_requests_survive_the_pipe() {
        for word in [Word::Started, Word::Failed, Word::Taken] {
            assert_eq!(Word::parse(&format!("{}\n", word.text())), Some(word));
        }
        for request in [Request::Kill, Request::Stop { signal: 15, grace_ms: 10 }] {
            assert_eq!(Request::parse(&request.line()), Some(request));
        }
        for role in [Role::Command, Role::Inner, Role::PreStop(7), Role::Health(9)] {
            assert_eq!(Role::parse(&role.word()), Some(role));
        }
        assert_eq!((Role::parse("health"), Role::parse("health:x")), (None, None));
        assert_eq!((Request::parse("stop"), Request::parse("")), (None, None));
    }
}
