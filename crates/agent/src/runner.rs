//! One task: drives its controller, step by step, and makes each new status durable before anybody hears of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use swarm_api::v1::{ContainerStatus, Task, TaskStatus, task_status};
use swarm_api::{Shared, TaskState, Text};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::database::Database;
use crate::dependencies::has_any;
use crate::lifecycle::{Operation, PREPARING, Step, Then, enter, next, resolved, settle};
use crate::reporter::Reporter;
use crate::{Controller, ControllerError};

/// Pause before a temporary error is tried again; doubled each time, up to [`LONGEST_RETRY`].
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(8);
/// Time without an error after which an earlier one is not reported any more.
const QUIET: Duration = Duration::from_secs(2);
/// Time before it is first told how far a preparation is, and between two such words: each is a write in the cluster's state.
const FIRST_PROGRESS: Duration = Duration::from_secs(2);
const PROGRESS: Duration = Duration::from_secs(5);
/// How often a controller is asked what holds it up.
const LOOK: Duration = Duration::from_secs(2);
/// Longest time that a controller may take to say what runs.
const PATIENCE: Duration = Duration::from_secs(5);

/// What all runners of an agent share.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) database: Database,
    pub(crate) reporter: Arc<Reporter>,
    /// True once the node knows its secrets and configs.
    pub(crate) complete: watch::Receiver<bool>,
}

/// Runs one task until it is closed.
pub(crate) struct Runner {
    context: Context,
    controller: Arc<dyn Controller>,
    updates: watch::Receiver<Shared<Task>>,
    close: CancellationToken,
    task: Shared<Task>,
    status: TaskStatus,
    /// The task was changed since the controller was told.
    changed: bool,
    pause: Duration,
}

/// Why something was not finished.
#[derive(Debug, PartialEq, Eq)]
enum Interrupted {
    /// The task is wanted otherwise now.
    Updated,
    /// The runner is to end.
    Closed,
}

impl Runner {
    pub(crate) fn new(
        context: Context,
        controller: Arc<dyn Controller>,
        mut updates: watch::Receiver<Shared<Task>>,
        close: CancellationToken,
        status: TaskStatus,
    ) -> Runner {
        let task = updates.borrow_and_update().clone();
        Runner { context, controller, updates, close, task, status, changed: false, pause: RETRY }
    }

    /// Goes on until closed. What the controller started is left alone then.
    pub(crate) async fn run(mut self) {
        let mut status = self.status.clone();
        resolved(&mut status, Ok(()));
        let mut interrupted = self.advance(status).await.err();
        while interrupted != Some(Interrupted::Closed) {
            interrupted = self.step().await.err();
        }
    }

    async fn step(&mut self) -> Result<(), Interrupted> {
        if self.changed {
            self.tell_controller().await?;
        }
        match next(self.status.state(), self.task.desired_state()) {
            Step::Rest => Err(self.rest().await),
            Step::Enter(state, message) => {
                let mut status = self.status.clone();
                enter(&mut status, state, message);
                self.advance(status).await
            }
            Step::Call(operation) => {
                self.wait_for_dependencies(operation).await?;
                let result = self.call(operation).await?;
                if let Err(error) = &result {
                    let (task, node) = (&self.task.id, &self.task.node_id);
                    tracing::info!(
                        task.id = task.as_str(),
                        node.id = node.as_str(),
                        ?operation,
                        %error,
                        "task operation failed"
                    );
                }
                let mut status = self.status.clone();
                if operation == Operation::Prepare {
                    // How far it was matters no more.
                    status.message = PREPARING.into();
                }
                let then = settle(&mut status, operation, &result);
                self.observe(&mut status, &result).await;
                self.advance(status).await?;
                match then {
                    Then::GoOn => self.pause = RETRY,
                    Then::Retry => self.rest_before_retry().await?,
                }
                Ok(())
            }
        }
    }

    /// Waits until there is something to do. A task that has ended is kept from running again meanwhile.
    async fn rest(&mut self) -> Interrupted {
        if !self.status.reached(TaskState::Complete) {
            return self.interruption().await;
        }
        let controller = self.controller.clone();
        tokio::select! {
            biased;
            interrupted = self.interruption() => interrupted,
            never = controller.keep_ended() => match never {},
        }
    }

    /// Tells the controller that the task was changed. If it can't take it now, once more after a pause.
    async fn tell_controller(&mut self) -> Result<(), Interrupted> {
        let (controller, task) = (self.controller.clone(), self.task.clone());
        let told = tokio::select! {
            biased;
            () = self.close.cancelled() => return Err(Interrupted::Closed),
            told = controller.update(&task) => told,
        };
        match told {
            Ok(()) => self.changed = false,
            Err(error) => {
                tracing::warn!(
                    task.id = self.task.id.as_str(),
                    %error,
                    "the controller did not take the task's update"
                );
                self.rest_before_retry().await?;
            }
        }
        Ok(())
    }

    async fn rest_before_retry(&mut self) -> Result<(), Interrupted> {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_RETRY);
        tokio::select! {
            biased;
            interrupted = self.interruption() => {
                self.pause = RETRY;
                Err(interrupted)
            }
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }

    /// Waits until the task is wanted otherwise, or the runner is to end.
    async fn interruption(&mut self) -> Interrupted {
        tokio::select! {
            biased;
            () = self.close.cancelled() => Interrupted::Closed,
            changed = self.updates.changed() => match changed {
                Ok(()) => {
                    self.task = self.updates.borrow_and_update().clone();
                    self.changed = true;
                    Interrupted::Updated
                }
                Err(_) => Interrupted::Closed,
            }
        }
    }

    /// A task that was found in the database may need secrets that no manager has sent yet.
    async fn wait_for_dependencies(&mut self, operation: Operation) -> Result<(), Interrupted> {
        if !matches!(operation, Operation::Prepare | Operation::Start) || !has_any(&self.task) {
            return Ok(());
        }
        let mut complete = self.context.complete.clone();
        if *complete.borrow_and_update() {
            return Ok(());
        }
        tokio::select! {
            biased;
            interrupted = self.interruption() => Err(interrupted),
            _ = complete.wait_for(|complete| *complete) => Ok(()),
        }
    }

    /// Calls the controller. The call is dropped when the task is changed, unless what is wanted is still the
    /// same: a grace period that runs is not begun anew because a task is to be removed instead of stopped.
    async fn call(&mut self, operation: Operation) -> Result<Result<(), ControllerError>, Interrupted> {
        let controller = self.controller.clone();
        let call = async move {
            match operation {
                Operation::Prepare => controller.prepare().await,
                Operation::Start => controller.start().await,
                Operation::Wait => controller.wait().await,
                Operation::Shutdown => controller.shutdown().await,
            }
        };
        tokio::pin!(call);
        let mut progress = Progress::new(self.controller.progress());
        loop {
            let before = self.task.clone();
            // A task that is being waited for without trouble has none, whatever was said before.
            let trouble = operation == Operation::Wait && !self.status.err.is_empty();
            tokio::select! {
                biased;
                result = &mut call => return Ok(result), // first: what has happened must not be missed
                interrupted = self.interruption() => {
                    let same = || {
                        let mut before = before.clone();
                        before.desired_state = self.task.desired_state;
                        Task::is_same_to_its_node(&before, &self.task)
                            && next(self.status.state(), self.task.desired_state()) == Step::Call(operation)
                    };
                    if interrupted == Interrupted::Closed || !same() {
                        return Err(interrupted);
                    }
                }
                text = progress.next() => {
                    if text == self.status.message {
                        continue;
                    }
                    let mut status = self.status.clone();
                    status.message = text.into();
                    status.err = Text::default();
                    self.observe(&mut status, &Ok(())).await;
                    self.advance(status).await?;
                }
                () = tokio::time::sleep(LOOK), if operation != Operation::Wait => {
                    let mut status = self.status.clone();
                    if let Some(hindrance) = self.controller.hindrance() {
                        status.err = hindrance.into();
                        self.advance(status).await?;
                    }
                }
                () = tokio::time::sleep(QUIET), if trouble => {
                    let mut status = self.status.clone();
                    status.err = Text::default();
                    self.advance(status).await?;
                }
            }
        }
    }

    /// Adds what the controller knows of the container to a status from STARTING on.
    async fn observe(&self, status: &mut TaskStatus, result: &Result<(), ControllerError>) {
        if !status.reached(TaskState::Starting) {
            return;
        }
        let asked = async {
            let container = self.controller.container_status().await;
            (container, self.controller.port_status().await)
        };
        let (container, ports) = tokio::select! {
            biased;
            () = self.close.cancelled() => (None, None),
            answer = tokio::time::timeout(PATIENCE, asked) => answer.unwrap_or_default(),
        };
        let mut container = container.unwrap_or_else(|| match &status.runtime_status {
            Some(task_status::RuntimeStatus::Container(previous)) => ContainerStatus::clone(previous),
            None => ContainerStatus::default(),
        });
        if let Err(ControllerError::Exit { code, .. }) = result
            && *code != 0
        {
            container.exit_code = *code;
        }
        status.runtime_status = Some(task_status::RuntimeStatus::Container(container.into()));
        if ports.is_some() {
            status.port_status = ports.map(Box::new);
        }
    }

    /// Makes a status the task's: on disk first, then for managers. Only then does the task go on.
    async fn advance(&mut self, mut status: TaskStatus) -> Result<(), Interrupted> {
        if status == self.status {
            return Ok(());
        }
        status.timestamp = Some(later(self.status.timestamp, SystemTime::now()));
        loop {
            match self.context.database.set_status(&self.task.id, &status).await {
                Ok(true) => break,
                Ok(false) => {
                    let id = &self.task.id;
                    tracing::info!(
                        task.id = id.as_str(),
                        "attempted to update status for a task that has been removed"
                    );
                    self.status = status;
                    return Ok(());
                }
                Err(error) => {
                    tracing::error!(
                        task.id = self.task.id.as_str(),
                        %error,
                        "the task can't go on: its status can't be stored"
                    );
                    tokio::select! {
                        () = self.close.cancelled() => return Err(Interrupted::Closed),
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
            }
        }
        if status.state != self.status.state {
            tracing::info!(
                task.id = self.task.id.as_str(),
                service.id = self.task.service_id.as_str(),
                node.id = self.task.node_id.as_str(),
                state.transition = format!("{}->{}", self.status.state().name(), status.state().name()),
                state.desired = self.task.desired_state().name(),
                err = status.err.as_str(),
                "state changed"
            );
        }
        self.status = status;
        self.context.reporter.put(&self.task.id, self.status.clone());
        Ok(())
    }
}

/// What a controller says that it is at, during one call.
struct Progress {
    said: Option<watch::Receiver<String>>,
    /// Not told yet.
    waiting: Option<String>,
    /// How far a pull is changes all the time, and is told from this moment on.
    next_pull: Instant,
}

impl Progress {
    fn new(said: Option<watch::Receiver<String>>) -> Progress {
        Progress { said, waiting: None, next_pull: Instant::now() + FIRST_PROGRESS }
    }

    /// What is to be told next.
    async fn next(&mut self) -> String {
        loop {
            let pull = self.waiting.as_ref().is_some_and(|text| text.starts_with("pulling "));
            if (!pull || Instant::now() >= self.next_pull)
                && let Some(text) = self.waiting.take()
            {
                if pull {
                    self.next_pull = Instant::now() + PROGRESS;
                }
                return text;
            }
            let changed = match (&mut self.said, pull) {
                (Some(said), true) => match tokio::time::timeout_at(self.next_pull, said.changed()).await {
                    Ok(changed) => changed.is_ok(),
                    Err(_) => continue,
                },
                (Some(said), false) => said.changed().await.is_ok(),
                (None, true) => {
                    tokio::time::sleep_until(self.next_pull).await;
                    continue;
                }
                (None, false) => std::future::pending().await,
            };
            match &mut self.said {
                Some(said) if changed => {
                    let text = said.borrow_and_update().clone();
                    self.waiting = (!text.is_empty()).then_some(text);
                }
                said => *said = None,
            }
        }
    }
}

/// Now, but never before an earlier status, whatever the clock does.
fn later(previous: Option<prost_types::Timestamp>, now: SystemTime) -> prost_types::Timestamp {
    let now = swarm_api::duration::timestamp(now);
    match previous {
        Some(previous) if (previous.seconds, previous.nanos) > (now.seconds, now.nanos) => previous,
        _ => now,
    }
}

/// Reports a task for which there is no controller; `false` if that could not be stored.
pub(crate) async fn report_unresolved(
    context: &Context,
    task: &Shared<Task>,
    mut status: TaskStatus,
    error: &ControllerError,
) {
    let before = status.clone();
    resolved(&mut status, Err(error));
    tracing::warn!(
        task.id = task.id.as_str(),
        service.id = task.service_id.as_str(),
        node.id = task.node_id.as_str(),
        %error,
        "no controller for the task"
    );
    if status == before {
        return;
    }
    status.timestamp = Some(later(before.timestamp, SystemTime::now()));
    match context.database.set_status(&task.id, &status).await {
        Ok(true) => context.reporter.put(&task.id, status),
        Ok(false) => {}
        Err(error) => tracing::error!(task.id = task.id.as_str(), %error, "its status can't be stored"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // 127
    #[test]
    fn times_of_statuses_never_go_back() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let stamp = |millis| swarm_api::duration::timestamp(at(millis));
        assert_eq!(later(None, at(5_500)), stamp(5_500));
        for (previous, now, expected) in [
            (5_500, 5_700, 5_700),
            (5_500, 6_200, 6_200),
            (5_500, 5_500, 5_500),
            // The clock was set back, within a second and by more.
            (5_500, 5_300, 5_500),
            (5_500, 4_900, 5_500),
        ] {
            assert_eq!(later(Some(stamp(previous)), at(now)), stamp(expected), "{previous} {now}");
        }
    }
}
