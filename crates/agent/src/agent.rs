//! The agent: start, stop, and what is seen of it from outside.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use swarm_api::Shared;
use swarm_api::v1::{Node, NodeTlsInfo};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::database::Database;
use crate::description::Describer;
use crate::error::{Error, SessionError};
use crate::executors::Executors;
use crate::generic_resources::{GenericResources, GenericSources};
use crate::logs::{self, Logs};
use crate::pulls::Pulls;
use crate::remotes::{Connector, Remotes};
use crate::reporter::Reporter;
use crate::runner::Context;
use crate::session::{Held, Outcome, Sessions};
use crate::task_sessions::TaskSessions;
use crate::worker::Worker;
use crate::{Executor, dependencies};

/// What an agent is made of.
pub struct Config {
    /// Identifier of the node (CN of its certificate).
    pub node_id: String,
    /// Name in the node's description; `None` is the host's.
    pub hostname: Option<String>,
    /// Directory of the node's state; the agent keeps its own in `worker` below it.
    pub state_dir: PathBuf,
    /// Ways of running tasks; where two have the same runtime, the first is used.
    pub executors: Vec<Arc<dyn Executor>>,
    /// Known managers; the agent adds and forgets as managers say.
    pub remotes: Arc<Remotes>,
    /// How to reach managers.
    pub connector: Arc<dyn Connector>,
    /// The node's TLS identity, for its description. Every change is announced at once.
    pub tls_info: watch::Receiver<Option<NodeTlsInfo>>,
    /// The node runs in FIPS mode.
    pub fips: bool,
    /// Commands may be executed in tasks, and tasks attached to, by whoever may control the cluster.
    pub exec: bool,
    /// What the node offers beside CPUs and memory.
    pub generic_resources: GenericSources,
    /// Periods and limits.
    pub timings: Timings,
}

/// Periods and limits of an agent.
#[derive(Debug, Clone)]
pub struct Timings {
    /// First back-off between sessions, and what is added with each failure to twice the last one.
    pub backoff: Duration,
    /// Longest back-off. The pause itself is drawn from zero up to the back-off.
    pub longest_backoff: Duration,
    /// Longest time for a connection, the first message of a session, and each heartbeat.
    pub rpc: Duration,
    /// Period of looks at the node's description.
    pub describe: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Timings {
            backoff: Duration::from_millis(100),
            longest_backoff: Duration::from_secs(8),
            rpc: Duration::from_secs(5),
            describe: Duration::from_secs(20),
        }
    }
}

/// What [`Observed::manager`] calls the manager in this process.
pub const LOCAL: &str = "local";

/// What the agent has seen of its cluster; see [`AgentHandle::observed`].
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The manager that the agent has a session with: its address, or [`LOCAL`].
    pub manager: Option<String>,
    /// Sessions that were ever established.
    pub sessions: u64,
    /// Attempts that failed since the last session was established.
    pub failures: u64,
    /// Why the last attempt or session ended; `None` while there is one.
    pub last_error: Option<Arc<SessionError>>,
    /// The managers say that this node was removed from the cluster.
    pub removed: bool,
    /// This node's object as the managers have it. Its desired role, its certificate's state and its VXLAN port
    /// are for the node to act on.
    pub node: Option<Shared<Node>>,
    /// Root certificates (PEM) that the node must trust from now on; empty until a manager named them.
    pub root_ca: Vec<u8>,
}

/// The agent of a node.
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// Opens the task database, goes on with the tasks in it, and keeps a session with a manager from then on.
    ///
    /// # Errors
    /// The task database can't be used.
    pub async fn start(config: Config) -> Result<AgentHandle, Error> {
        let directory = config.state_dir.join("worker");
        let executors = Executors::new(config.executors);
        let generic = GenericResources::new(config.generic_resources);
        let mut describer = Describer::new(
            executors.clone(),
            config.hostname,
            config.fips,
            config.exec,
            config.tls_info,
            generic,
        );
        let first = describer.describe().await;
        // The executors must know whose tasks they run before the first controller is made, and templates what the node
        // is called.
        let itself =
            Node { id: config.node_id.clone(), description: Some(first.clone()), ..Default::default() };
        executors.configure(&itself.into()).await;

        let stop = CancellationToken::new();
        let tracker = TaskTracker::new();
        let (database, records, writer) = Database::open(&directory, &config.node_id).await?;
        let dependencies = Arc::new(dependencies::Store::default());
        let reporter = Arc::new(Reporter::default());
        let context = Context {
            database: database.clone(),
            reporter: reporter.clone(),
            complete: dependencies.complete(),
        };
        let tasks = logs::Tasks::default();
        let logs = Logs::new(
            config.node_id.clone(),
            tasks.clone(),
            config.connector.clone(),
            tracker.clone(),
            stop.child_token(),
        );
        let task_sessions = TaskSessions::new(
            config.node_id.clone(),
            tasks.clone(),
            config.connector.clone(),
            config.exec,
            tracker.clone(),
            stop.child_token(),
        );
        let (worker, working) = Worker::new(
            config.node_id,
            context,
            dependencies,
            executors.clone(),
            tasks,
            records,
            stop.child_token(),
        );
        tracker.spawn(working);

        let (descriptions, description) = watch::channel(Some(first));
        let describing = stop.child_token();
        tracker.spawn(async move {
            let describe = describe(describer, descriptions, config.timings.describe);
            describing.run_until_cancelled(describe).await;
        });

        let observed = watch::Sender::new(Observed::default());
        let reconnect = Arc::new(Notify::new());
        let sessions = Sessions {
            remotes: config.remotes,
            connector: config.connector,
            worker: worker.clone(),
            reporter,
            database,
            pulls: Pulls::new(executors.clone()),
            executors,
            logs,
            task_sessions,
            description,
            observed: observed.clone(),
            timings: config.timings,
            session_id: String::new(),
            held: Held::default(),
        };
        let token = stop.child_token();
        let kick = reconnect.clone();
        tracker.spawn(async move {
            token.run_until_cancelled(Box::pin(keep_session(sessions, &kick))).await;
        });
        tracker.close();
        Ok(AgentHandle { stop: stop.drop_guard(), tracker, writer, worker, observed, reconnect })
    }
}

/// Tells an agent to leave the connection that it has.
#[derive(Debug, Clone)]
pub struct Reconnect(Arc<Notify>);

impl Reconnect {
    /// Ends the session and opens a new one at once, on a new connection: after the node's identity or role has
    /// changed. The session itself is resumed.
    pub fn now(&self) {
        self.0.notify_one();
    }
}

/// A running agent. Dropping it stops it too, but nobody then knows when it has.
#[derive(Debug)]
pub struct AgentHandle {
    stop: DropGuard,
    tracker: TaskTracker,
    writer: tokio::task::JoinHandle<()>,
    worker: Worker,
    observed: watch::Sender<Observed>,
    reconnect: Arc<Notify>,
}

impl AgentHandle {
    /// What the agent sees of its cluster, as it changes.
    pub fn observed(&self) -> watch::Receiver<Observed> {
        self.observed.subscribe()
    }

    /// Waits until a session was established for the first time.
    pub async fn ready(&self) {
        // The sender is ours, so this can't fail.
        let _ = self.observed.subscribe().wait_for(|observed| observed.sessions > 0).await;
    }

    /// Has the agent open a new connection whenever it is told to.
    pub fn reconnect(&self) -> Reconnect {
        Reconnect(self.reconnect.clone())
    }

    /// Removes all tasks of this node, and waits until everything that was made for them is gone. Assignments
    /// are ignored from then on.
    pub async fn leave(&self) {
        self.worker.leave().await;
    }

    /// Ends the session and lets go of all tasks: they run on, and the next agent on this state directory takes
    /// them up.
    pub async fn stop(self) {
        drop(self.stop);
        self.tracker.wait().await;
        drop(self.worker);
        if self.writer.await.is_err() {
            tracing::error!("the task database failed while stopping");
        }
    }
}

/// Looks at the description again and again; the receiver hears only of changes.
async fn describe(
    mut describer: Describer,
    descriptions: watch::Sender<Option<swarm_api::v1::NodeDescription>>,
    period: Duration,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = describer.changed() => {}
        }
        let now = Some(describer.describe().await);
        descriptions.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

/// One session after the other, with growing pauses while they fail.
async fn keep_session(mut sessions: Sessions, reconnect: &Notify) {
    let timings = sessions.timings.clone();
    let mut backoff = timings.backoff;
    let mut pause = Duration::ZERO; // the first attempt is made at once
    loop {
        if !pause.is_zero() {
            tracing::debug!("waiting {pause:?} before registering session");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = reconnect.notified() => {}
            }
        }
        let (outcome, kicked) = tokio::select! {
            outcome = sessions.run() => (outcome, false),
            () = reconnect.notified() => {
                (Outcome { error: SessionError::Reconnect, established: true }, true)
            }
        };
        let Outcome { error, established } = outcome;
        if kicked {
            sessions.observed.send_modify(|observed| observed.manager = None);
            (backoff, pause) = (timings.backoff, Duration::ZERO);
            continue;
        }
        if established {
            backoff = timings.backoff;
        }
        let removed = error.is_removal();
        if removed {
            // Nobody will have this node back soon; asking often helps nobody.
            backoff = timings.longest_backoff;
        }
        pause = draw(backoff);
        tracing::error!(%error, ?backoff, "agent: session failed");
        backoff = (timings.backoff + 2 * backoff).min(timings.longest_backoff);
        let error = Arc::new(error);
        sessions.observed.send_modify(|observed| {
            observed.failures = if established { 1 } else { observed.failures + 1 };
            observed.last_error = Some(error);
            observed.removed = removed;
        });
    }
}

/// A pause from zero up to the back-off.
fn draw(backoff: Duration) -> Duration {
    backoff.mul_f64(rand::rng().random_range(0.0..1.0))
}
