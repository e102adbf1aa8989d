//! A node's state directory, and tasks as real processes of this host.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part of it

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::{Message, Name};
use swarm_agent::{
    Controller, ControllerError, Dependencies, DependencyError, Executor, LogLine, LogOptions, LogSink,
};
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::{Annotations, Config, GenericRuntimeSpec, Secret, Task, TaskSpec, task_spec};
use swarm_api::{Shared, id};
use swarm_executor_process::ProcessExecutor;
use swarm_testkit::wait::until;

pub(crate) const LONG: Duration = Duration::from_secs(120);
pub(crate) const SLEEP: &str = "exec sleep 1000";

pub(crate) struct Nothing;

impl Dependencies for Nothing {
    fn secret(&self, _: &Task, id: &str) -> Result<Shared<Secret>, DependencyError> {
        Err(DependencyError { kind: "secret", id: id.to_owned(), refused: false })
    }
    fn config(&self, _: &Task, id: &str) -> Result<Shared<Config>, DependencyError> {
        Err(DependencyError { kind: "config", id: id.to_owned(), refused: false })
    }
}

/// A node's state directory, and the daemon that uses it at the moment.
pub(crate) struct Lab {
    pub(crate) state: tempfile::TempDir,
    pub(crate) executor: ProcessExecutor,
}

pub(crate) fn executor(state: &Path) -> ProcessExecutor {
    let shim = env!("CARGO_BIN_EXE_swarm-process-shim");
    ProcessExecutor::with_shim(state, shim.into()).unwrap()
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let state = tempfile::tempdir().unwrap();
        Lab { executor: executor(state.path()), state }
    }

    /// Another daemon takes over; the first one is gone without a word.
    pub(crate) fn restart(&mut self) {
        self.executor = executor(self.state.path());
    }

    pub(crate) fn task(&self, spec: &ProcessSpec) -> Task {
        let payload = prost_types::Any { type_url: ProcessSpec::type_url(), value: spec.encode_to_vec() };
        let runtime = GenericRuntimeSpec { kind: "process".into(), payload: Some(payload) };
        Task {
            id: id::random().into(),
            service_id: "s".into(),
            node_id: "n".into(),
            slot: 1,
            service_annotations: Annotations { name: "proctest".into(), ..Default::default() }.into(),
            spec: TaskSpec { runtime: Some(task_spec::Runtime::Generic(runtime)), ..Default::default() }
                .into(),
            ..Default::default()
        }
    }

    pub(crate) fn controller(&self, task: &Task) -> Arc<dyn Controller> {
        self.executor.controller(&task.clone().into(), Arc::new(Nothing)).unwrap()
    }

    pub(crate) fn run(&self, script: &str) -> Arc<dyn Controller> {
        self.controller(&self.task(&shell(script)))
    }

    pub(crate) fn dir(&self, task: &Task) -> std::path::PathBuf {
        self.state.path().join("processes").join(task.id.as_str())
    }

    /// Makes a file that a task waits for.
    pub(crate) fn tell(&self, task: &Task, file: &str) {
        std::fs::write(self.dir(task).join("work").join(file), "").unwrap();
    }

    /// Ends the test: nothing may be left of any task.
    pub(crate) async fn done(self) {
        within(self.executor.sweep(&[])).await.unwrap();
        let left: Vec<_> = std::fs::read_dir(self.state.path().join("processes")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        self.executor.close().await;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A failed test leaves no process behind: each is known by the directory it was given.
            for entry in
                std::fs::read_dir(self.state.path().join("processes")).into_iter().flatten().flatten()
            {
                for pid in processes_of(&entry.file_name().to_string_lossy()) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
    }
}

/// A command that may take its time to end when it is asked to.
pub(crate) fn shell(script: &str) -> ProcessSpec {
    ProcessSpec {
        command: vec!["sh".into(), "-c".into(), script.into()],
        stop_grace_period: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..Default::default()
    }
}

/// A shell's wait for a file in its working directory.
pub(crate) fn wait_for(file: &str) -> String {
    format!("until [ -e {file} ]; do sleep 0.02; done")
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("an answer in time")
}

pub(crate) fn exit(code: i32) -> Result<(), ControllerError> {
    Err(ControllerError::Exit { code, cause: None })
}

#[track_caller]
pub(crate) fn fatal(result: Result<(), ControllerError>) -> String {
    match result {
        Err(ControllerError::Fatal(text)) => text,
        other => panic!("not final: {other:?}"),
    }
}

/// Living processes of a task, its shim not counted, by the variable that all of them inherit.
pub(crate) fn processes_of(task_id: &str) -> BTreeSet<i32> {
    let marker = format!("SWARMD_TASK_ID={task_id}").into_bytes();
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == marker)
        })
        .collect()
}

/// Waits until no shim of a task is left, nor one on its way that has started nothing yet.
pub(crate) async fn until_no_shim(lab: &Lab, task: &Task) {
    let dir = lab.dir(task).into_os_string().into_encoded_bytes();
    let looked = || async {
        let entries = std::fs::read_dir("/proc")?.flatten();
        let mut lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        let there = lines.any(|line| line.split(|byte| *byte == 0).any(|argument| argument == dir));
        anyhow::ensure!(!there, "there is one for {}", task.id);
        Ok(())
    };
    until("the shims to be gone", LONG, looked).await.unwrap();
}

pub(crate) async fn pid_of(controller: &dyn Controller) -> i32 {
    controller.container_status().await.unwrap().pid
}

/// The shim of a task: the parent of its process.
pub(crate) async fn shim_of(controller: &dyn Controller) -> Pid {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid_of(controller).await)).unwrap();
    let parent = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap();
    Pid::from_raw(parent.parse().unwrap())
}

pub(crate) async fn until_processes(task: &Task, count: usize) {
    let looked = || async {
        let found = processes_of(&task.id);
        anyhow::ensure!(found.len() == count, "{} has {found:?}", task.id);
        Ok(())
    };
    until(&format!("{count} processes"), LONG, looked).await.unwrap();
}

pub(crate) async fn start(controller: &dyn Controller) {
    within(controller.prepare()).await.unwrap();
    within(controller.start()).await.unwrap();
}

pub(crate) async fn logs(controller: &dyn Controller, options: LogOptions) -> Vec<LogLine> {
    let (sink, lines) = LogSink::new();
    let (done, lines) = within(async { tokio::join!(controller.logs(options, sink), lines.collect()) }).await;
    done.unwrap();
    lines
}

pub(crate) fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| std::str::from_utf8(&line.data).unwrap()).collect()
}

pub(crate) async fn output(controller: &dyn Controller) -> Vec<String> {
    logs(controller, LogOptions::default())
        .await
        .iter()
        .map(|l| String::from_utf8_lossy(&l.data).into_owned())
        .collect()
}

pub(crate) async fn until_lines(task: &dyn Controller, count: usize) {
    let looked = || async {
        anyhow::ensure!(output(task).await.len() >= count);
        Ok(())
    };
    until("output", LONG, looked).await.unwrap();
}
