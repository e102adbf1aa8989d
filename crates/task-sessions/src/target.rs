//! Which node is asked for a session, or why none is.

use swarm_api::extensions::{self, EXEC_ABILITY};
use swarm_api::swarmd::{OpenTask, open_task::What};
use swarm_api::v1::{Node, NodeDescription, Task, TaskState, node_status};
use swarm_store::View;
use tonic::Status;

use crate::error::status;

/// Most tasks of one session.
const MAX_TASKS: usize = 1000;
/// Most bytes of a command with its environment.
const MAX_COMMAND: usize = 64 * 1024;

/// What a session comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) node_id: String,
    /// For people.
    pub(crate) node_name: String,
    /// One, but for figures.
    pub(crate) task_ids: Vec<String>,
}

/// `exec`, `attach` or `stats`, and the program of a command: its arguments may hold what nobody is to see.
pub(crate) fn describe(open: &OpenTask) -> (&'static str, &str) {
    match &open.what {
        Some(What::Exec(exec)) => ("exec", exec.command.first().map_or("", String::as_str)),
        Some(What::Attach(_)) => ("attach", ""),
        Some(What::Stats(_)) => ("stats", ""),
        None => ("nothing", ""),
    }
}

/// The task that somebody wants into, as they name it; of figures the first one.
pub(crate) fn task_of(open: &OpenTask) -> &str {
    match &open.what {
        Some(What::Exec(exec)) => &exec.task_id,
        Some(What::Attach(attach)) => &attach.task_id,
        Some(What::Stats(stats)) => stats.task_ids.first().map_or("", String::as_str),
        None => "",
    }
}

/// Finds the node.
///
/// # Errors
/// As the contract of `Tasks.Open` says.
pub(crate) fn find(view: &View, open: &OpenTask) -> Result<Target, Status> {
    let tasks = match open.what.as_ref().ok_or_else(status::no_open)? {
        What::Exec(exec) => {
            check_command(exec.command.first(), exec.command.iter().chain(&exec.env))?;
            vec![running(view, &exec.task_id)?]
        }
        What::Attach(attach) => vec![running(view, &attach.task_id)?],
        What::Stats(stats) => {
            if stats.task_ids.is_empty() || stats.task_ids.len() > MAX_TASKS {
                return Err(Status::invalid_argument(format!(
                    "name at least one task, and at most {MAX_TASKS}"
                )));
            }
            stats.task_ids.iter().map(|id| known(view, id)).collect::<Result<_, _>>()?
        }
    };
    let node_id = tasks.first().map_or("", |task| task.node_id.as_str());
    if let Some(other) = tasks.iter().find(|task| task.node_id != node_id) {
        let text =
            format!("task {} is on another node than task {}: ask node by node", other.id, tasks[0].id);
        return Err(Status::invalid_argument(text));
    }
    let node = view.nodes().get(node_id);
    let node = node.ok_or_else(|| Status::failed_precondition(format!("node {node_id} is gone")))?;
    let node_name = name(node);
    check_node(node, &node_name, matches!(open.what, Some(What::Stats(_))))?;
    let task_ids = tasks.iter().map(|task| task.id.to_string()).collect();
    Ok(Target { node_id: node_id.to_owned(), node_name, task_ids })
}

fn check_command<'a>(
    program: Option<&String>,
    texts: impl Iterator<Item = &'a String> + Clone,
) -> Result<(), Status> {
    if program.is_none_or(String::is_empty) {
        return Err(Status::invalid_argument("a command is needed"));
    }
    if texts.clone().any(|text| text.contains('\0')) {
        return Err(Status::invalid_argument("a NUL byte in the command or its environment"));
    }
    let bytes: usize = texts.map(String::len).sum();
    if bytes > MAX_COMMAND {
        let text =
            format!("the command and its environment have {bytes} bytes, at most {MAX_COMMAND} are allowed");
        return Err(Status::invalid_argument(text));
    }
    Ok(())
}

fn known<'a>(view: &'a View, id: &str) -> Result<&'a Task, Status> {
    let task = view.tasks().get(id).ok_or_else(|| Status::not_found(format!("task {id} not found")))?;
    if task.node_id.is_empty() {
        return Err(Status::failed_precondition(format!("task {id} has no node yet: it is {}", state(task))));
    }
    Ok(task)
}

fn running<'a>(view: &'a View, id: &str) -> Result<&'a Task, Status> {
    let task = known(view, id)?;
    if task.status.state() != TaskState::Running {
        return Err(Status::failed_precondition(format!("task {id} does not run: it is {}", state(task))));
    }
    Ok(task)
}

fn state(task: &Task) -> String {
    task.status.state().name().to_lowercase()
}

/// What people call a node.
fn name(node: &Node) -> String {
    let hostname = node.description.as_ref().map_or("", |description| description.hostname.as_str());
    let given = node.spec.annotations.name.as_str();
    let names = [given, hostname, &node.id];
    names.into_iter().find(|name| !name.is_empty()).unwrap_or_default().to_owned()
}

fn check_node(node: &Node, name: &str, figures: bool) -> Result<(), Status> {
    use node_status::State;
    if matches!(node.status.state(), State::Down | State::Disconnected) {
        return Err(status::node_down(name));
    }
    let labels =
        node.description.as_ref().and_then(|description| description.engine.as_ref()).map(|e| &e.labels);
    match labels.and_then(|labels| labels.get(EXEC_ABILITY)).map(String::as_str) {
        Some("0") if !figures => Err(Status::permission_denied(format!(
            "node {name} lets nobody into its tasks: its daemon was started with --no-exec"
        ))),
        Some(_) => Ok(()),
        None if labels
            .is_some_and(|labels| labels.keys().any(|label| label.starts_with(extensions::PREFIX))) =>
        {
            Err(Status::failed_precondition(format!(
                "node {name} runs an older version of swarmd, which knows no exec, attach and stats: update it"
            )))
        }
        None => Err(Status::failed_precondition(format!(
            "node {name} is {}, which knows no exec, attach and stats through the swarm: use docker on that host",
            engine(node.description.as_ref())
        ))),
    }
}

fn engine(description: Option<&NodeDescription>) -> String {
    let version =
        description.and_then(|description| description.engine.as_ref()).map(|e| e.engine_version.as_str());
    match version.filter(|version| !version.is_empty()) {
        Some(version) => format!("a Docker Engine ({version})"),
        None => "a Docker Engine".to_owned(),
    }
}
