//! What an agent asks of a way to run tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use swarm_api::Shared;
use swarm_api::extensions::Feature;
use swarm_api::v1::{
    Config, ContainerStatus, EncryptionKey, Node, PluginDescription, PortStatus, Resources, Secret, Task,
};

use tokio::sync::watch;

use crate::log_sink::LogSink;
use crate::task_io::{AttachOptions, ExecOptions, Stats, TaskIo};

/// What went wrong in a controller. The text reaches the user in `TaskStatus.err`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControllerError {
    /// [`Controller::prepare`] found everything in place: a success.
    #[error("exec: task already prepared")]
    AlreadyPrepared,
    /// [`Controller::start`] found the task started: a success.
    #[error("exec: task already started")]
    AlreadyStarted,
    /// The executor can't run this kind of task.
    #[error("exec: unsupported runtime")]
    UnsupportedRuntime,
    /// The controller was closed.
    #[error("exec: controller closed")]
    Closed,
    /// May go away by itself: the step is tried again.
    #[error("{0}")]
    Temporary(String),
    /// The task ended with a code other than zero.
    #[error("task: non-zero exit ({code}){}", cause.as_deref().map(|c| format!(": {c}")).unwrap_or_default())]
    Exit {
        /// Exit code of the task; 128 + signal number where a signal ended it.
        code: i32,
        /// What else is known.
        cause: Option<String>,
    },
    /// Anything else; the task has failed for good.
    #[error("{0}")]
    Fatal(String),
}

/// Runs one task. The agent calls one method at a time, and may drop the future of a call at any moment to
/// cancel it; a call that is made again must then go on from what is there. Every call must be safe to
/// repeat after a restart of the daemon.
#[async_trait]
pub trait Controller: Send + Sync {
    /// Takes note of a changed task before the next step. What can't be changed is ignored.
    async fn update(&self, task: &Shared<Task>) -> Result<(), ControllerError>;

    /// Makes everything ready, so that [`Controller::start`] is quick: pulls, creates, writes files.
    async fn prepare(&self) -> Result<(), ControllerError>;

    /// Starts the task; returns once it runs (and is healthy, where it has a health check).
    async fn start(&self) -> Result<(), ControllerError>;

    /// Waits for the end: `Ok` for exit code zero.
    async fn wait(&self) -> Result<(), ControllerError>;

    /// Ends the task: stop signal, grace period, kill. Succeeds if there is nothing to end.
    async fn shutdown(&self) -> Result<(), ControllerError>;

    /// Ends the task at once.
    async fn terminate(&self) -> Result<(), ControllerError>;

    /// Frees everything that was made for the task, running or not. Succeeds if there is nothing.
    async fn remove(&self) -> Result<(), ControllerError>;

    /// Sees to it that a task that has ended does not run again, whoever starts it. Called for as long as it is kept; never returns.
    /// The default has nothing to look after: what has ended can't be started again.
    async fn keep_ended(&self) -> Infallible {
        std::future::pending().await
    }

    /// Why the call that is under way takes so long, where that is somebody else's doing; users find it in the task's
    /// status. `None` if nothing is known to be wrong.
    fn hindrance(&self) -> Option<String> {
        None
    }

    /// Identity, process id and exit code of what runs, or ran; `None` if there is nothing.
    async fn container_status(&self) -> Option<ContainerStatus>;

    /// Host-mode ports really published; `None` if there are none.
    async fn port_status(&self) -> Option<PortStatus>;

    /// What a call that takes its time is at, in words for the task's status; empty as long as there is nothing to say. `None`:
    /// it never says.
    fn progress(&self) -> Option<watch::Receiver<String>> {
        None
    }

    /// Sends log lines until the task's output ends (or for ever with `follow`), or the sink is closed.
    async fn logs(&self, options: LogOptions, sink: LogSink) -> Result<(), ControllerError>;

    /// Executes a command in the task, with its user, directory, environment and limits, and gives its exit code: 128 +
    /// signal number where a signal ended it. Side by side with the other calls. The command ends with the task, and soon
    /// after [`TaskOutput::gone`](crate::TaskOutput::gone) completes; this returns when it has ended. All of its output is
    /// sent before that.
    async fn exec(&self, options: ExecOptions, io: TaskIo) -> Result<i32, ControllerError>;

    /// Joins the input and output of the task's own process, from now on, until the task ends: its exit code. When
    /// [`TaskOutput::gone`](crate::TaskOutput::gone) completes this returns, and the task goes on.
    async fn attach(&self, options: AttachOptions, io: TaskIo) -> Result<i32, ControllerError>;

    /// What the task uses.
    async fn stats(&self) -> Result<Stats, ControllerError>;
}

/// Which of a task's streams a log line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a task's output, without its line feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written.
    pub timestamp: SystemTime,
    /// Where it was written to.
    pub stream: LogStream,
    /// The line.
    pub data: Bytes,
    /// Attributes that the log driver attached.
    pub attrs: BTreeMap<String, String>,
}

/// Which lines are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Streams; empty means both.
    pub streams: Vec<LogStream>,
    /// Go on as long as the task writes.
    pub follow: bool,
    /// Only the last so many lines; `None` means all.
    pub tail: Option<u64>,
    /// Only lines written at or after this time.
    pub since: Option<SystemTime>,
}

/// A secret or config that a task can't have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", if *refused {
    format!("task not authorized to access {kind} {id}")
} else {
    format!("dependency not ready: {kind} {id} not found")
})]
pub struct DependencyError {
    /// `secret` or `config`.
    pub kind: &'static str,
    /// Identifier of what is missing.
    pub id: String,
    /// The task does not refer to it; otherwise it may still arrive.
    pub refused: bool,
}

impl From<DependencyError> for ControllerError {
    fn from(error: DependencyError) -> Self {
        if error.refused {
            ControllerError::Fatal(error.to_string())
        } else {
            ControllerError::Temporary(error.to_string())
        }
    }
}

/// Secrets and configs that this node's tasks were given, in memory only.
pub trait Dependencies: Send + Sync {
    /// The secret as a task may see it: refused unless the task refers to it.
    fn secret(&self, task: &Task, secret_id: &str) -> Result<Shared<Secret>, DependencyError>;
    /// The config as a task may see it.
    fn config(&self, task: &Task, config_id: &str) -> Result<Shared<Config>, DependencyError>;
}

/// What one executor adds to its node's description.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExecutorDescription {
    /// Version of the engine, if there is one.
    pub engine_version: String,
    /// Labels of the engine; keys that begin with `swarmd.` are reserved for the daemon and removed.
    pub engine_labels: BTreeMap<String, String>,
    /// Plug-ins of the engine.
    pub plugins: Vec<PluginDescription>,
    /// What it can do for tasks beyond the contract.
    pub features: BTreeSet<Feature>,
    /// Platform and resources as the engine sees them; `None` leaves it to the daemon.
    pub resources: Option<Resources>,
    /// Architecture, in the engine's words (`x86_64`).
    pub architecture: Option<String>,
    /// Operating system (`linux`).
    pub os: Option<String>,
}

/// One way of running tasks. A node may have several; the agent picks by the task's runtime.
#[async_trait]
pub trait Executor: Send + Sync {
    /// The runtimes it takes: `container`, or kinds of generic runtimes such as `process`.
    fn runtimes(&self) -> Vec<String>;

    /// What the node should say of itself. An error (an engine that does not answer) leaves the last
    /// description in force.
    async fn describe(&self) -> Result<ExecutorDescription, ControllerError>;

    /// Completes when [`Executor::describe`] has something new to say that is not to wait for the next regular look: an
    /// engine that answers at last. May be cancelled and called again at any moment. The default never has.
    async fn changed(&self) {
        std::future::pending::<()>().await;
    }

    /// Takes note of the node object, its id above all. Called before the first controller is made.
    async fn configure(&self, node: &Shared<Node>) -> Result<(), ControllerError>;

    /// Takes the keys of the cluster's network.
    async fn set_network_keys(&self, keys: &[EncryptionKey]) -> Result<(), ControllerError>;

    /// A controller for a task; must not have effects outside memory.
    fn controller(
        &self,
        task: &Shared<Task>,
        dependencies: Arc<dyn Dependencies>,
    ) -> Result<Arc<dyn Controller>, ControllerError>;

    /// Has an image at hand before a task needs it, and tells how far it is, in percent. The default has no images.
    ///
    /// # Errors
    /// [`ControllerError::UnsupportedRuntime`] if there are no images here, else why it could not be had.
    async fn pull_image(
        &self,
        _image: &str,
        _registry_auth: &str,
        _progress: &watch::Sender<Option<u8>>,
    ) -> Result<(), ControllerError> {
        Err(ControllerError::UnsupportedRuntime)
    }

    /// Removes what earlier runs left behind on this node and that belongs to none of these tasks. Touches only
    /// what carries this node's id.
    async fn sweep(&self, known_tasks: &[String]) -> Result<(), ControllerError>;
}
