//! How far an update of a service is, and whose fault it is if it failed.

use std::time::SystemTime;

use prost_types::Timestamp;
use swarm_api::Shared;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{Service, Task, TaskState};

use super::task_view;
use crate::output::{Names, Table, time};

/// The task because of which an update was paused or rolled back.
#[derive(Debug, PartialEq)]
struct Cause<'a> {
    id: &'a str,
    /// None: its record is gone.
    task: Option<&'a Task>,
    /// How many tasks of the same update failed, as far as there are records of them.
    of: usize,
}

fn nanos(time: Option<&Timestamp>) -> Option<i128> {
    time.map(|time| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos))
}

/// When a task came to the state that it has.
fn ended(task: &Task) -> Option<i128> {
    nanos(task.status.applied_at.as_ref().or(task.status.timestamp.as_ref()))
}

/// The message names the task, until a rollback has come to its end: then it is the first of those that failed since the
/// update began and are of another version than what the service went back to.
fn cause<'a>(service: &'a Service, tasks: &'a [Shared<Task>]) -> Option<Cause<'a>> {
    let status = service.update_status.as_ref()?;
    if let Some(id) = status.culprit() {
        let task = tasks.iter().find(|task| task.id == id).map(|task| &**task);
        return Some(Cause { id, task, of: 1 });
    }
    if status.state() != UpdateState::RollbackCompleted {
        return None;
    }
    let began = nanos(status.started_at.as_ref())?;
    let failed = |task: &Task| {
        use TaskState::{Complete, Failed, Orphaned, Rejected};
        [Complete, Failed, Rejected, Orphaned].contains(&task.status.state()) || !task.status.err.is_empty()
    };
    let all = tasks.iter().map(|task| &**task).filter(|task| {
        task.service_id == service.id
            && task.spec_version != service.spec_version
            && nanos(task.meta.created_at.as_ref()).is_some_and(|created| created >= began)
            && failed(task)
    });
    let of = all.clone().count();
    let task = all.min_by_key(|task| (ended(task), &task.id))?;
    Some(Cause { id: &task.id, task: Some(task), of })
}

/// The lines of the page.
pub(super) fn lines(
    page: &mut Table,
    service: &Service,
    tasks: &[Shared<Task>],
    names: &Names,
    now: SystemTime,
) {
    let Some(status) = &service.update_status else { return };
    page.line("Update Status\t");
    let state = match status.state() {
        UpdateState::Unknown => "UNKNOWN",
        UpdateState::Updating => "UPDATING",
        UpdateState::Paused => "PAUSED",
        UpdateState::Completed => "COMPLETED",
        UpdateState::RollbackStarted => "ROLLBACK_STARTED",
        UpdateState::RollbackPaused => "ROLLBACK_PAUSED",
        UpdateState::RollbackCompleted => "ROLLBACK_COMPLETED",
    };
    page.pair(" State", state);
    if status.started_at.is_some() {
        page.pair(" Started", time::relative(status.started_at.as_ref(), now));
    }
    if status.state() == UpdateState::Completed || status.completed_at.is_some() {
        page.pair(" Completed", time::relative(status.completed_at.as_ref(), now));
    }
    page.pair(" Message", &status.message);
    let Some(Cause { id, task, of }) = cause(service, tasks) else { return };
    let Some(task) = task else {
        page.pair(" Failed Task", format!("{id} (its record is gone)"));
        return;
    };
    let place = match names.node(&task.node_id) {
        "" => names.task(task),
        node => format!("{} on {node}", names.task(task)),
    };
    let first = if of > 1 { format!(", the first of {of} that failed") } else { String::new() };
    let state = task_view::last_state(task, now);
    page.pair(" Failed Task", format!("{id} ({place}), {state}{first}"));
    if !task.status.err.is_empty() {
        page.pair(" Error", task_view::one_line(&task.status.err));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use swarm_api::v1::{UpdateStatus, Version};

    use super::*;

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 0 })
    }

    /// A service that is of version 1, and what is said of its update since 100.
    fn service(state: UpdateState, message: &str) -> Service {
        let mut service = Service { id: "s".into(), ..Default::default() };
        service.spec.annotations.name = "web".into();
        service.spec_version = Some(Version { index: 1 });
        let message = message.to_owned();
        let completed_at = if state == UpdateState::RollbackCompleted { at(200) } else { None };
        let started_at = at(100);
        service.update_status = Some(UpdateStatus { state: state as i32, started_at, completed_at, message });
        service
    }

    fn task(id: &str, version: u64, created: i64, state: TaskState, ended: i64) -> Shared<Task> {
        let mut task = Task { id: id.into(), service_id: "s".into(), slot: 3, ..Default::default() };
        task.spec_version = Some(Version { index: version });
        task.meta.created_at = at(created);
        task.status.state = state as i32;
        task.status.timestamp = at(ended);
        if state == TaskState::Failed {
            task.status.err = "task: non-zero\nexit (1)".into();
        }
        task.into()
    }

    fn shown(service: &Service, tasks: &[Shared<Task>]) -> String {
        let mut page = Table::summary();
        let names = Names::new(&[], &[service.clone().into()]);
        lines(&mut page, service, tasks, &names, SystemTime::UNIX_EPOCH + Duration::from_secs(260));
        page.finish()
    }

    #[test]
    fn a_rollback_that_is_done_still_says_what_failed() {
        let tasks = [
            task("older", 2, 90, TaskState::Failed, 95),
            task("second", 2, 130, TaskState::Failed, 150),
            task("first", 2, 110, TaskState::Failed, 140),
            task("stopped", 2, 105, TaskState::Shutdown, 120),
            task("back", 1, 160, TaskState::Failed, 170),
            task("running", 1, 161, TaskState::Running, 171),
        ];
        let service = service(UpdateState::RollbackCompleted, "rollback completed");
        assert_eq!(
            shown(&service, &tasks),
            "Update Status        
 State               : ROLLBACK_COMPLETED
 Started             : 2 minutes ago
 Completed           : 1 minute ago
 Message             : rollback completed
 Failed Task         : first (web.3), FAILED 2 minutes ago, the first of 2 that failed
 Error               : task: non-zero exit (1)
"
        );
        assert_eq!(cause(&service, &tasks[..1]), None, "what failed before is no cause");
        assert_eq!(cause(&service, &tasks[4..]), None, "nor what fails of the version that it went back to");
    }

    #[test]
    fn the_task_that_the_message_names_is_looked_up() {
        let tasks = [task("t1", 2, 110, TaskState::Failed, 140), task("t2", 2, 110, TaskState::Failed, 139)];
        let id = |state, message: &str| {
            let service = service(state, message);
            cause(&service, &tasks).map(|cause| (cause.id.to_owned(), cause.task.is_some()))
        };
        let due =
            |what: &str, rest: &str| format!("{what} due to failure or early termination of task {rest}");
        let found = Some(("t1".to_owned(), true));
        assert_eq!(id(UpdateState::Paused, &due("update paused", "t1")), found);
        assert_eq!(
            id(UpdateState::Paused, &due("update paused", "t1; no previous spec to roll back to")),
            found
        );
        assert_eq!(id(UpdateState::RollbackStarted, &due("update rolled back", "t1")), found);
        assert_eq!(id(UpdateState::RollbackPaused, &due("rollback paused", "t1")), found);
        assert_eq!(id(UpdateState::Paused, &due("update paused", "gone")), Some(("gone".to_owned(), false)));
        assert_eq!(id(UpdateState::RollbackStarted, "manually requested rollback"), None);
        assert_eq!(id(UpdateState::Completed, "update completed"), None);
        let paused = service(UpdateState::Paused, &due("update paused", "gone"));
        assert!(shown(&paused, &tasks).ends_with(": gone (its record is gone)\n"));
    }
}
