//! Tables of tasks.

use std::time::SystemTime;

use swarm_api::v1::{Task, TaskState, task_spec};
use swarm_api::{Shared, naming};

use crate::output::{Names, Table, time};
use crate::spec::decode_process;

/// Tasks that are not meant to have ended; those of jobs are meant to, and are current until they have.
pub(super) fn is_current(task: &Task) -> bool {
    task.desired_state <= TaskState::Running as i32
        || (task.desired_state() == TaskState::Complete && task.status.state() != TaskState::Complete)
}

/// State and when it was seen.
pub(super) fn last_state(task: &Task, now: SystemTime) -> String {
    let since = time::relative(task.status.timestamp.as_ref(), now);
    let text = format!("{} {since}", state(task.status.state)).trim_end().to_owned();
    match doing(task) {
        Some(what) => format!("{text} ({})", one_line(what)),
        None => text,
    }
}

/// What an agent says of a step that takes its time; what it says of every task on its way tells nobody anything.
pub(super) fn doing(task: &Task) -> Option<&str> {
    const USUAL: [&str; 6] = ["", "preparing", "prepared", "starting", "started", "accepted"];
    let under_way =
        [TaskState::Preparing, TaskState::Starting, TaskState::Running].contains(&task.status.state());
    let message = task.status.message.as_str();
    (under_way && !USUAL.contains(&message)).then_some(message)
}

/// The state in capitals; its number if this version does not know it.
pub(super) fn state(state: i32) -> String {
    TaskState::try_from(state).map_or_else(|_| state.to_string(), |state| state.name().to_owned())
}

/// What a task runs: its image, or its program.
pub(super) fn image(runtime: Option<&task_spec::Runtime>) -> String {
    match runtime {
        Some(task_spec::Runtime::Container(container)) => container.image.clone(),
        Some(task_spec::Runtime::Generic(generic)) => match decode_process(generic) {
            Some(process) => process.command.into_iter().next().unwrap_or_default(),
            None => String::new(),
        },
        _ => String::new(),
    }
}

/// Why tasks wait or failed is one more column, if there is anything to say.
fn errors<'a>(tasks: impl IntoIterator<Item = &'a Shared<Task>>) -> bool {
    tasks.into_iter().any(|task| !task.status.err.is_empty())
}

/// `task ls`
pub(super) fn list(tasks: &[Shared<Task>], names: &Names, now: SystemTime) -> String {
    let mut table = Table::list();
    let errors = errors(tasks);
    let mut columns = vec!["ID", "Service", "Desired State", "Last State", "Node"];
    columns.extend(errors.then_some("Error"));
    table.header(&columns);
    for task in tasks {
        let mut cells = vec![
            task.id.to_string(),
            names.task(task),
            state(task.desired_state),
            last_state(task, now),
            names.node(&task.node_id).to_owned(),
        ];
        cells.extend(errors.then(|| one_line(&task.status.err)));
        table.line(cells.join("\t"));
    }
    table.finish()
}

/// The table below summaries: by slot, newest first.
pub(super) fn table(tasks: &[Shared<Task>], all: bool, names: &Names, now: SystemTime) -> String {
    let mut shown: Vec<&Shared<Task>> = tasks.iter().filter(|task| all || is_current(task)).collect();
    let created = |task: &Task| task.meta.created_at.map_or((0, 0), |t| (t.seconds, t.nanos));
    shown.sort_by(|a, b| a.slot.cmp(&b.slot).then_with(|| created(b).cmp(&created(a))));
    let mut table = Table::tasks();
    let errors = errors(shown.iter().copied());
    let mut columns = vec!["Task ID", "Service", "Slot", "Image", "Desired State", "Last State", "Node"];
    columns.extend(errors.then_some("Error"));
    table.header(&columns);
    for task in shown {
        let mut cells = vec![
            task.id.to_string(),
            task.service_annotations.name.clone(),
            task.slot.to_string(),
            image(task.spec.runtime.as_ref()),
            state(task.desired_state),
            last_state(task, now),
            names.node(&task.node_id).to_owned(),
        ];
        cells.extend(errors.then(|| one_line(&task.status.err)));
        table.line(cells.join("\t"));
    }
    table.finish()
}

/// A text as a cell: no line ends, no tabs.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The kind of a runtime that is no container.
pub(super) fn runtime(runtime: Option<&task_spec::Runtime>) -> String {
    naming::runtime(runtime).unwrap_or_default()
}
