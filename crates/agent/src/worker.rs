//! The worker: applies assignments, owns the runners of all tasks, removes what is no longer wanted.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use swarm_api::Shared;
use swarm_api::v1::{
    AssignmentsMessage, Task, TaskStatus, assignment, assignment_change::AssignmentAction,
    assignments_message,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::database::Record;
use crate::dependencies;
use crate::executors::Executors;
use crate::logs;
use crate::runner::{Context, Runner, report_unresolved};
use crate::{Controller, ControllerError, Error};

/// First and longest pause before the removal of a task is tried again.
const REMOVAL_RETRY: Duration = Duration::from_millis(500);
const LONGEST_REMOVAL_RETRY: Duration = Duration::from_secs(30);

/// Handle to the worker's own task.
#[derive(Debug, Clone)]
pub(crate) struct Worker {
    commands: mpsc::Sender<Command>,
}

#[derive(Debug)]
enum Command {
    Apply(AssignmentsMessage, oneshot::Sender<Result<(), String>>),
    Leave(oneshot::Sender<()>),
}

impl Worker {
    /// Starts the worker with the tasks that were found on disk. The future runs until `close`, and returns when
    /// every runner has ended; what runs is left running.
    pub(crate) fn new(
        node_id: String,
        context: Context,
        dependencies: Arc<dependencies::Store>,
        executors: Executors,
        logs: logs::Tasks,
        records: Vec<Record>,
        close: CancellationToken,
    ) -> (Worker, impl Future<Output = ()> + Send + use<>) {
        let (commands, receiver) = mpsc::channel(1);
        let state = State {
            node_id,
            context,
            dependencies,
            executors,
            logs,
            close,
            tasks: HashMap::new(),
            removing: HashMap::new(),
            tracker: TaskTracker::new(),
            sweep: Sweep::Unasked,
            left: false,
            warned_of_volumes: false,
        };
        (Worker { commands }, state.run(receiver, records))
    }

    /// Applies a message as a whole. Once this was called it is carried out even if the caller goes away.
    pub(crate) async fn apply(&self, message: AssignmentsMessage) -> Result<(), String> {
        let (done, result) = oneshot::channel();
        let closed = |_| Error::Closed.to_string();
        self.commands.send(Command::Apply(message, done)).await.map_err(|e| closed(e.to_string()))?;
        result.await.map_err(|e| closed(e.to_string()))?
    }

    /// Removes every task from this node, waits for it, and ignores assignments from then on.
    pub(crate) async fn leave(&self) {
        let (done, result) = oneshot::channel();
        if self.commands.send(Command::Leave(done)).await.is_ok() {
            let _ = result.await; // an error means that the worker has ended
        }
    }
}

/// A task with its runner.
struct Handle {
    task: Shared<Task>,
    updates: watch::Sender<Shared<Task>>,
    close: CancellationToken,
    runner: JoinHandle<()>,
    controller: Arc<dyn Controller>,
}

struct State {
    node_id: String,
    context: Context,
    dependencies: Arc<dependencies::Store>,
    executors: Executors,
    /// Told of every task with a controller, for whoever reads logs.
    logs: logs::Tasks,
    close: CancellationToken,
    tasks: HashMap<String, Handle>,
    /// Removals under way, by task; each ends by itself or by its token.
    removing: HashMap<String, Removal>,
    tracker: TaskTracker,
    sweep: Sweep,
    left: bool,
    warned_of_volumes: bool,
}

/// The removal of what earlier runs left behind.
enum Sweep {
    /// Nobody has said yet what belongs here.
    Unasked,
    /// To be begun with the next look.
    Due,
    Running(Removal),
    Done,
}

struct Removal {
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

/// A message, sorted.
#[derive(Debug, Default)]
struct Changes {
    dependencies: dependencies::Changes,
    tasks: Vec<Shared<Task>>,
    removed: Vec<String>,
    volumes: bool,
}

impl Changes {
    fn of(message: AssignmentsMessage, node_id: &str) -> Changes {
        let mut changes = Changes::default();
        for change in message.changes {
            let action = change.action();
            let item = change.assignment.and_then(|assignment| assignment.item);
            match (item, action) {
                (Some(assignment::Item::Task(task)), AssignmentAction::Update) if task.node_id == node_id => {
                    changes.tasks.push(task);
                }
                (Some(assignment::Item::Task(task)), AssignmentAction::Update) => {
                    tracing::warn!(
                        task.id = task.id.as_str(),
                        node.id = task.node_id.as_str(),
                        "a task of another node was ignored"
                    );
                }
                (Some(assignment::Item::Task(task)), AssignmentAction::Remove) => {
                    changes.removed.push(task.id.to_string());
                }
                (Some(assignment::Item::Secret(secret)), AssignmentAction::Update) => {
                    changes.dependencies.secrets.push(secret);
                }
                (Some(assignment::Item::Secret(secret)), AssignmentAction::Remove) => {
                    changes.dependencies.removed_secrets.push(secret.id.clone());
                }
                (Some(assignment::Item::Config(config)), AssignmentAction::Update) => {
                    changes.dependencies.configs.push(config);
                }
                (Some(assignment::Item::Config(config)), AssignmentAction::Remove) => {
                    changes.dependencies.removed_configs.push(config.id.clone());
                }
                (Some(assignment::Item::Volume(_)), _) => changes.volumes = true,
                (None, _) => {}
            }
        }
        changes
    }
}

impl State {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, records: Vec<Record>) {
        self.adopt(records).await;
        loop {
            let command = tokio::select! {
                biased;
                () = self.close.cancelled() => break,
                command = commands.recv() => match command {
                    Some(command) => command,
                    None => break,
                },
            };
            match command {
                Command::Apply(message, done) => {
                    let result = if self.left { Ok(()) } else { self.apply(message).await };
                    let _ = done.send(result); // the session may have ended
                }
                Command::Leave(done) => {
                    self.leave().await;
                    let _ = done.send(());
                }
            }
        }
        // Runners and removals end by tokens that are children of ours.
        self.close.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Goes on with tasks of an earlier run, before any manager is reached.
    async fn adopt(&mut self, records: Vec<Record>) {
        for Record { task } in records {
            tracing::info!(
                task.id = task.id.as_str(),
                service.id = task.service_id.as_str(),
                node.id = task.node_id.as_str(),
                state = task.status.state().name(),
                "a task of an earlier run goes on"
            );
            self.start(task).await;
        }
    }

    async fn apply(&mut self, message: AssignmentsMessage) -> Result<(), String> {
        let complete = message.r#type() == assignments_message::Type::Complete;
        let mut changes = Changes::of(message, &self.node_id);
        self.dependencies.apply(complete, std::mem::take(&mut changes.dependencies));
        if complete {
            // Everything that is not listed goes, also what is stored without a runner.
            let listed: HashSet<&str> = changes.tasks.iter().map(|task| task.id.as_str()).collect();
            let mut known = self.context.database.ids();
            known.extend(self.tasks.keys().cloned());
            known.retain(|id| !listed.contains(id.as_str()));
            known.sort_unstable();
            known.dedup();
            changes.removed = known;
        }
        if !changes.tasks.is_empty() {
            self.give_up_sweep().await;
        }
        if !changes.tasks.is_empty() || !changes.removed.is_empty() {
            self.context.database.assign(changes.tasks.clone(), changes.removed.clone()).await?;
        }
        for id in &changes.removed {
            self.remove(id);
        }
        for task in changes.tasks {
            self.assign(task).await;
        }
        if changes.volumes && !std::mem::replace(&mut self.warned_of_volumes, true) {
            tracing::warn!("volumes update ignored; executor does not support volumes");
        }
        if complete && matches!(self.sweep, Sweep::Unasked) {
            // Only now is known what belongs here.
            self.sweep = Sweep::Due;
        }
        if matches!(self.sweep, Sweep::Due) {
            self.begin_sweep();
        }
        Ok(())
    }

    /// Removes leftovers beside everything else, for as long as it takes: who runs other tasks does not wait for an engine
    /// that does not answer.
    fn begin_sweep(&mut self) {
        let mut known = self.context.database.ids();
        known.extend(self.removing.keys().cloned());
        let (executors, cancel) = (self.executors.clone(), self.close.child_token());
        let token = cancel.clone();
        let task = self.tracker.spawn(async move {
            let sweep = async {
                while !executors.sweep(&known).await {
                    tokio::time::sleep(LONGEST_REMOVAL_RETRY).await;
                }
            };
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                () = sweep => {}
            }
        });
        self.sweep = Sweep::Running(Removal { cancel, task });
    }

    /// A sweep must not take new tasks for leftovers: one that has not ended is given up for one that knows them.
    async fn give_up_sweep(&mut self) {
        let Sweep::Running(running) = &mut self.sweep else { return };
        if running.task.is_finished() {
            self.sweep = Sweep::Done;
        } else {
            running.cancel.cancel();
            let _ = (&mut running.task).await; // it has ended, one way or another
            self.sweep = Sweep::Due;
        }
    }

    async fn assign(&mut self, task: Shared<Task>) {
        let running = self.tasks.get_mut(task.id.as_str()).filter(|handle| !handle.runner.is_finished());
        let Some(handle) = running else {
            return self.start(task).await;
        };
        if Task::is_same_to_its_node(&handle.task, &task) {
            return;
        }
        if task.desired_state < handle.task.desired_state {
            let (old, new) = (handle.task.desired_state(), task.desired_state());
            tracing::error!(
                task.id = task.id.as_str(),
                ?old,
                ?new,
                "a task can't be wanted in a lower state than before"
            );
            return;
        }
        handle.task = task.clone();
        handle.updates.send_replace(task);
    }

    /// Starts a runner for a stored task. The stored status counts, not that in the task.
    async fn start(&mut self, task: Shared<Task>) {
        // A removal that is under way must not take away what is made now.
        if let Some(removal) = self.removing.remove(task.id.as_str()) {
            removal.cancel.cancel();
            let _ = removal.task.await; // it has ended, one way or another
        }
        let Some(status) = self.context.database.status(&task.id) else { return };
        let dependencies = self.dependencies.clone();
        match self.executors.controller(&task, dependencies) {
            Ok(controller) => self.spawn(task, status, controller),
            // The next time it is assigned it is tried again.
            Err(error) => report_unresolved(&self.context, &task, status, &error).await,
        }
    }

    fn spawn(&mut self, task: Shared<Task>, status: TaskStatus, controller: Arc<dyn Controller>) {
        let close = self.close.child_token();
        let (updates, receiver) = watch::channel(task.clone());
        let runner = Runner::new(self.context.clone(), controller.clone(), receiver, close.clone(), status);
        let runner = self.tracker.spawn(runner.run());
        self.logs.put(&task, &controller);
        let id = task.id.clone();
        self.tasks.insert(id.to_string(), Handle { task, updates, close, runner, controller });
    }

    /// Ends a task's runner and frees everything that was made for it, in the background.
    fn remove(&mut self, task_id: &str) {
        self.context.reporter.forget(task_id);
        self.logs.remove(task_id);
        self.removing.retain(|_, removal| !removal.task.is_finished());
        let Some(handle) = self.tasks.remove(task_id) else { return };
        let cancel = self.close.child_token();
        let token = cancel.clone();
        let task = self.tracker.spawn(async move {
            handle.close.cancel();
            let _ = handle.runner.await; // a runner that panicked has ended too
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                () = free(&*handle.controller, &handle.task) => {}
            }
        });
        self.removing.insert(task_id.to_owned(), Removal { cancel, task });
    }

    async fn leave(&mut self) {
        self.left = true;
        let empty = AssignmentsMessage::default(); // a complete set of nothing
        if let Err(error) = self.apply(empty).await {
            tracing::error!(%error, "tasks could not be forgotten");
        }
        for (_, removal) in self.removing.drain() {
            let _ = removal.task.await; // it has ended, one way or another
        }
    }
}

/// Has the controller remove everything, for as long as it takes.
async fn free(controller: &dyn Controller, task: &Shared<Task>) {
    let mut pause = REMOVAL_RETRY;
    while let Err(error) = controller.remove().await {
        if error == ControllerError::Closed {
            return;
        }
        tracing::warn!(
            task.id = task.id.as_str(),
            service.id = task.service_id.as_str(),
            node.id = task.node_id.as_str(),
            %error,
            "remove task failed"
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_REMOVAL_RETRY);
    }
    tracing::info!(
        task.id = task.id.as_str(),
        service.id = task.service_id.as_str(),
        node.id = task.node_id.as_str(),
        "task removed"
    );
}
