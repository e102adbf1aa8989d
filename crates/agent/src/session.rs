//! One session with one manager: everything that runs on its connection.
//!
//! Session, heartbeats, assignments, reports, log subscriptions, task sessions and orders for images run side by side in one
//! future; the first error ends them all,
//! and dropping the future does. Nothing is lost by that: assignments are applied by the worker's own task,
//! statuses stay with the reporter until a manager has answered.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::Shared;
use swarm_api::v1::dispatcher_client::DispatcherClient;
use swarm_api::v1::{
    Assignment, AssignmentChange, AssignmentsMessage, AssignmentsRequest, EncryptionKey, HeartbeatRequest,
    Node, NodeDescription, Peer, SessionMessage, SessionRequest, TasksRequest, UpdateTaskStatusRequest,
    assignment, assignment_change::AssignmentAction, assignments_message,
};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::agent::{LOCAL, Observed, Timings};
use crate::database::Database;
use crate::error::SessionError;
use crate::executors::Executors;
use crate::logs::Logs;
use crate::pulls::Pulls;
use crate::remotes::{Connector, FAILED, Remotes};
use crate::reporter::{Batch, Reporter};
use crate::task_sessions::TaskSessions;
use crate::worker::Worker;

/// Most statuses and about the most bytes in one call.
const BATCH: (usize, usize) = (1024, 1024 * 1024);
/// Longest time that a manager may take to accept a batch; it may hold reports back when it is busy.
const REPORT_PATIENCE: Duration = Duration::from_secs(30);
/// Shortest pause between heartbeats, whatever a manager asks for.
const SHORTEST_PERIOD: Duration = Duration::from_millis(20);
/// Pause before assignments are asked for anew after a gap, so that a confused manager is not hammered.
const GAP_PAUSE: Duration = Duration::from_millis(100);

/// What sessions need, and what one leaves to the next.
pub(crate) struct Sessions {
    pub(crate) remotes: Arc<Remotes>,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) worker: Worker,
    pub(crate) reporter: Arc<Reporter>,
    pub(crate) database: Database,
    pub(crate) executors: Executors,
    pub(crate) logs: Logs,
    pub(crate) task_sessions: TaskSessions,
    pub(crate) pulls: Pulls,
    pub(crate) description: watch::Receiver<Option<NodeDescription>>,
    pub(crate) observed: watch::Sender<Observed>,
    pub(crate) timings: Timings,
    /// The last session's id: the next one tries to go on with it.
    pub(crate) session_id: String,
    pub(crate) held: Held,
}

/// What the executors were told last.
#[derive(Debug, Default)]
pub(crate) struct Held {
    node: Option<Shared<Node>>,
    keys: Vec<u64>,
}

/// How a session went.
pub(crate) struct Outcome {
    pub(crate) error: SessionError,
    /// It lasted for a whole period of heartbeats; one that fails sooner, again and again, must not be opened anew
    /// without growing pauses.
    pub(crate) established: bool,
}

type Client = DispatcherClient<Channel>;
type Never = Result<Infallible, SessionError>;

impl Sessions {
    /// Opens a session with some manager and stays in it for as long as it goes well.
    pub(crate) async fn run(&mut self) -> Outcome {
        let mut established = false;
        let (manager, channel) = match self.connect().await {
            Ok(connected) => connected,
            Err(error) => return Outcome { error, established },
        };
        let error = match self.session(channel, manager.as_ref(), &mut established).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        if let Some(manager) = manager.filter(|_| error.blames_manager()) {
            self.remotes.observe(&manager, FAILED);
        }
        self.observed.send_modify(|observed| observed.manager = None);
        Outcome { error, established }
    }

    /// Connects to the local manager, or to one at random.
    async fn connect(&self) -> Result<(Option<Peer>, Channel), SessionError> {
        if let Some(channel) = self.connector.local() {
            return Ok((None, channel));
        }
        let manager = self.remotes.select().ok_or(SessionError::NoManagers)?;
        let connected = timeout(self.timings.rpc, self.connector.connect(&manager)).await;
        let failed = |reason: String| {
            self.remotes.observe(&manager, FAILED);
            SessionError::Connect { manager: manager.addr.clone(), reason }
        };
        match connected {
            Ok(Ok(channel)) => Ok((Some(manager), channel)),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("timed out".into())),
        }
    }

    async fn session(&mut self, channel: Channel, manager: Option<&Peer>, established: &mut bool) -> Never {
        let client = DispatcherClient::new(channel.clone()).max_decoding_message_size(i32::MAX as usize);
        let description = self.description.borrow_and_update().clone();
        let (stream, first) = self.open(client.clone(), description).await?;
        self.session_id.clone_from(&first.session_id);
        take_message(&self.remotes, &self.executors, &self.observed, &mut self.held, first).await;
        let address = manager.map(|m| m.addr.clone()).unwrap_or_else(|| LOCAL.into());
        tracing::info!(manager = address, "agent: registered");
        self.observed.send_modify(|observed| {
            observed.manager = Some(address);
            observed.sessions += 1;
            observed.last_error = None;
            observed.removed = false;
        });
        // This manager knows nothing of what others were told.
        for (task_id, status) in self.database.statuses() {
            self.reporter.put_again(task_id, status);
        }
        let session_id = self.session_id.clone();
        let (worker, reporter, patience) = (self.worker.clone(), self.reporter.clone(), self.timings.rpc);
        let (logs, task_sessions, pulls) =
            (self.logs.clone(), self.task_sessions.clone(), self.pulls.clone());
        tokio::select! {
            never = logs.listen(channel.clone(), manager) => match never {},
            never = task_sessions.listen(channel.clone(), manager) => match never {},
            never = pulls.listen(channel) => match never {},
            end = heartbeats(client.clone(), &session_id, patience, established) => end,
            end = assignments(client.clone(), &session_id, &worker) => end,
            end = reports(client.clone(), &session_id, &reporter) => end,
            end = self.messages(client, stream) => end,
        }
    }

    /// Opens a Session stream and waits for its first message.
    async fn open(
        &self,
        mut client: Client,
        description: Option<NodeDescription>,
    ) -> Result<(Streaming<SessionMessage>, SessionMessage), SessionError> {
        let refused = SessionError::refused("session");
        let request = SessionRequest { description, session_id: self.session_id.clone() };
        let open = async {
            let mut stream = client.session(request).await.map_err(&refused)?.into_inner();
            let first = stream.message().await.map_err(&refused)?;
            Ok((stream, first.ok_or(SessionError::Ended("session"))?))
        };
        timeout(self.timings.rpc, open).await.map_err(|_| SessionError::Initiation)?
    }

    /// The rest of the Session stream. A new description is told on a new stream of the same session, on the
    /// same connection: assignments go on meanwhile.
    async fn messages(&mut self, client: Client, mut stream: Streaming<SessionMessage>) -> Never {
        loop {
            let message = tokio::select! {
                message = stream.message() => {
                    let message = message.map_err(SessionError::refused("session"))?;
                    message.ok_or(SessionError::Ended("session"))?
                }
                Ok(()) = self.description.changed() => {
                    let description = self.description.borrow_and_update().clone();
                    tracing::info!("agent: the node's description has changed");
                    let (next, first) = self.open(client.clone(), description).await?;
                    stream = next;
                    if first.session_id != self.session_id {
                        self.session_id = first.session_id;
                        return Err(SessionError::Replaced);
                    }
                    first
                }
            };
            take_message(&self.remotes, &self.executors, &self.observed, &mut self.held, message).await;
        }
    }
}

/// Takes note of what a manager says of managers, this node, roots and keys.
async fn take_message(
    remotes: &Remotes,
    executors: &Executors,
    observed: &watch::Sender<Observed>,
    held: &mut Held,
    message: SessionMessage,
) {
    remotes.replace(&message.managers);
    if let Some(node) = &message.node
        && !held.node.as_ref().is_some_and(|held| same_to_us(held, node))
    {
        executors.configure(node).await;
        held.node = Some(node.clone());
    }
    let keys = &message.network_bootstrap_keys;
    if keys.iter().any(|key| !held.keys.contains(&key.lamport_time)) {
        executors.set_network_keys(keys).await;
        held.keys = keys.iter().map(|key: &EncryptionKey| key.lamport_time).collect();
    }
    observed.send_if_modified(|observed| {
        let mut changed = false;
        if let Some(node) = message.node {
            changed |= !observed.node.as_ref().is_some_and(|held| same_to_us(held, &node));
            observed.node = Some(node);
        }
        if !message.root_ca.is_empty() && observed.root_ca != message.root_ca {
            observed.root_ca = message.root_ca;
            changed = true;
        }
        changed
    });
}

/// Equal in everything but status, version and times.
fn same_to_us(a: &Shared<Node>, b: &Shared<Node>) -> bool {
    let mut a = (**a).clone();
    a.meta = b.meta;
    a.status = b.status.clone();
    a == **b
}

/// The first at once, then each after the period that was answered.
async fn heartbeats(
    mut client: Client,
    session_id: &str,
    patience: Duration,
    established: &mut bool,
) -> Never {
    let mut before = false;
    loop {
        let request = HeartbeatRequest { session_id: session_id.to_owned() };
        let answer = timeout(patience, client.heartbeat(request)).await;
        let answer = answer.map_err(|_| SessionError::Timeout("heartbeat"))?;
        let answer = answer.map_err(SessionError::refused("heartbeat"))?.into_inner();
        *established = std::mem::replace(&mut before, true);
        sleep(swarm_api::duration::to_std(&answer.period).max(SHORTEST_PERIOD)).await;
    }
}

/// Receives assignments and has them applied, in an unbroken chain: a message that does not follow the one
/// before it is not applied, but everything asked for anew.
async fn assignments(mut client: Client, session_id: &str, worker: &Worker) -> Never {
    let refused = SessionError::refused("assignments");
    loop {
        let request = AssignmentsRequest { session_id: session_id.to_owned() };
        let mut stream = match client.assignments(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => {
                tracing::info!("falling back to Tasks");
                return tasks(client, session_id, worker).await;
            }
            Err(status) => return Err(refused(status)),
        };
        let mut reached: Option<String> = None;
        loop {
            let message = match stream.message().await {
                Ok(message) => message.ok_or(SessionError::Ended("assignments"))?,
                Err(status) if status.code() == Code::Unimplemented => {
                    tracing::info!("falling back to Tasks");
                    return tasks(client, session_id, worker).await;
                }
                Err(status) => return Err(refused(status)),
            };
            let complete = message.r#type() == assignments_message::Type::Complete;
            if !complete && reached.as_ref() != Some(&message.applies_to) {
                tracing::warn!(
                    applies_to = message.applies_to,
                    reached,
                    "an assignment is missing; asking for all of them anew"
                );
                break;
            }
            reached = Some(message.results_in.clone());
            worker.apply(message).await.map_err(SessionError::Apply)?;
        }
        drop(stream);
        sleep(GAP_PAUSE).await;
    }
}

/// The same with a manager of old: each message is the whole list of tasks.
async fn tasks(mut client: Client, session_id: &str, worker: &Worker) -> Never {
    let refused = SessionError::refused("tasks");
    let request = TasksRequest { session_id: session_id.to_owned() };
    #[allow(deprecated)] // for managers that have nothing newer
    let mut stream = client.tasks(request).await.map_err(&refused)?.into_inner();
    while let Some(message) = stream.message().await.map_err(&refused)? {
        let change = |task| AssignmentChange {
            assignment: Some(Assignment { item: Some(assignment::Item::Task(task)) }),
            action: AssignmentAction::Update as i32,
        };
        let changes = message.tasks.into_iter().map(change).collect();
        let complete = assignments_message::Type::Complete as i32;
        let message = AssignmentsMessage { r#type: complete, changes, ..Default::default() };
        worker.apply(message).await.map_err(SessionError::Apply)?;
    }
    Err(SessionError::Ended("tasks"))
}

/// Sends statuses as they come, as many as there are in one call.
async fn reports(mut client: Client, session_id: &str, reporter: &Reporter) -> Never {
    loop {
        let batch = reporter.take(BATCH.0, BATCH.1).await;
        send(&mut client, session_id, batch).await?;
    }
}

async fn send(client: &mut Client, session_id: &str, mut batch: Batch<'_>) -> Result<(), SessionError> {
    match call(client, session_id, &batch).await {
        Ok(()) => {
            tracing::debug!(statuses = batch.updates.len(), "statuses delivered");
            batch.delivered();
            Ok(())
        }
        // One task that is not ours spoils a whole call: find it, and let the others through.
        Err(SessionError::Refused { status, .. }) if status.code() == Code::PermissionDenied => {
            while let Some(single) = batch.split_last() {
                match call(client, session_id, &single).await {
                    Ok(()) => {}
                    Err(SessionError::Refused { status, .. })
                        if status.code() == Code::PermissionDenied
                            && status.message().contains("cannot update a task") =>
                    {
                        let id = single.updates.first().map(|u| u.task_id.as_str()).unwrap_or_default();
                        tracing::warn!(task.id = id, "the manager says that this task is not ours");
                    }
                    Err(error) => return Err(error),
                }
                single.delivered();
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn call(client: &mut Client, session_id: &str, batch: &Batch<'_>) -> Result<(), SessionError> {
    let request =
        UpdateTaskStatusRequest { session_id: session_id.to_owned(), updates: batch.updates.clone() };
    let answer = timeout(REPORT_PATIENCE, client.update_task_status(request)).await;
    let answer = answer.map_err(|_| SessionError::Timeout("update of task statuses"))?;
    answer.map(|_| ()).map_err(SessionError::refused("update of task statuses"))
}
