//! Where lines come from, by names.

use std::collections::{BTreeMap, HashMap};

use swarm_api::log_lines::Line;
use swarm_api::v1::{
    GetTaskRequest, ListNodesRequest, ListTasksRequest, LogSelector, Task, list_tasks_request, node_status,
};
use tonic::{Code, Status};

use super::Names;
use super::names::node_name;
use crate::commands::Context;
use crate::error::{Error, Result};

/// What stands between the names of task and node and the line.
const MARK: char = '❯';
/// How a broker begins to say that lines are missing.
const INCOMPLETE: &str = "incomplete log stream";

/// Tasks that lines came from. Names are looked up once.
#[derive(Debug)]
pub(crate) struct Sources {
    names: Option<Names>,
    /// Names of tasks have their ids behind them.
    full: bool,
    /// Slot and node of tasks that were there at the beginning, by id.
    tasks: HashMap<String, (u64, String)>,
    known: HashMap<String, usize>,
    /// `task@node` and the prefix of each source, by its number.
    shown: Vec<(String, String)>,
}

impl Sources {
    /// Looks up the names of all that is wanted: few calls, however many tasks there are.
    pub(crate) async fn new(context: &mut Context, selector: &LogSelector, full: bool) -> Result<Sources> {
        let names = match context.resolve {
            true => Some(context.names().await?),
            false => None,
        };
        let mut tasks = HashMap::new();
        let filters = [
            list_tasks_request::Filters { service_ids: selector.service_ids.clone(), ..Default::default() },
            list_tasks_request::Filters { id_prefixes: selector.task_ids.clone(), ..Default::default() },
        ];
        for filters in filters.into_iter().filter(|f| !f.service_ids.is_empty() || !f.id_prefixes.is_empty())
        {
            let request = ListTasksRequest { filters: Some(filters) };
            let found = context.control.list_tasks(request).await?.into_inner().tasks;
            tasks.extend(
                found.iter().map(|task| (task.id.to_string(), (task.slot, task.node_id.to_string()))),
            );
        }
        Ok(Sources { names, full, tasks, known: HashMap::new(), shown: Vec::new() })
    }

    /// Nodes with wanted tasks that do not answer now, as notes for people.
    pub(crate) async fn absent(&self, context: &mut Context) -> Result<Vec<String>> {
        let nodes = context.control.list_nodes(ListNodesRequest::default()).await?.into_inner().nodes;
        let mut absent: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, node_id) in self.tasks.values().filter(|(_, node_id)| !node_id.is_empty()) {
            let down = |state| state == node_status::State::Down;
            if nodes.iter().find(|node| node.id == *node_id).is_none_or(|node| down(node.status.state())) {
                *absent.entry(node_id).or_default() += 1;
            }
        }
        let note = |(id, tasks): (&str, usize)| match nodes.iter().find(|node| node.id == id) {
            Some(node) if self.names.is_some() && !node_name(node).is_empty() => {
                format!(
                    "node {} is not available: lines of {tasks} of its tasks come when it is back",
                    node_name(node)
                )
            }
            Some(_) => {
                format!("node {id} is not available: lines of {tasks} of its tasks come when it is back")
            }
            None => format!("node {id} is gone: lines of {tasks} of its tasks are not shown"),
        };
        Ok(absent.into_iter().map(note).collect())
    }

    /// The number of a source that is known. A task never moves, so its id says where it is.
    pub(crate) fn known(&self, task_id: &str) -> Option<usize> {
        self.known.get(task_id).copied()
    }

    /// Looks up what a new source is called. `number` gives its number, one after the other from 0.
    pub(crate) async fn add(
        &mut self,
        context: &mut Context,
        line: &Line<'_>,
        number: impl FnOnce() -> usize,
    ) -> Result<usize> {
        let name = match &self.names {
            None => format!("{}@{}", line.task_id, line.node_id),
            Some(_) => self.look_up(context, line).await?,
        };
        let source = number();
        self.known.insert(line.task_id.to_owned(), source);
        let prefix = format!("{name}{MARK} ");
        self.shown.push((name, prefix));
        Ok(source)
    }

    async fn look_up(&mut self, context: &mut Context, line: &Line<'_>) -> Result<String> {
        let mut slot = self.tasks.get(line.task_id).map(|(slot, _)| *slot);
        if slot.is_none() {
            // It came after the others.
            let request = GetTaskRequest { task_id: line.task_id.to_owned() };
            match context.control.get_task(request).await {
                Ok(answer) => slot = answer.into_inner().task.map(|task| task.slot),
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status.into()),
            }
        }
        let mut names = self.names.take().unwrap_or_default();
        if !line.node_id.is_empty() && !names.has_node(line.node_id) {
            names = context.names().await?;
        }
        let task = match slot {
            Some(slot) => {
                let task = Task { slot, service_id: line.service_id.into(), ..Default::default() };
                let name = names.task(&task);
                if self.full { format!("{name}.{}", line.task_id) } else { name }
            }
            None => line.task_id.to_owned(),
        };
        let name = format!("{task}@{}", names.node(line.node_id));
        self.names = Some(names);
        Ok(name)
    }

    /// `task@node`
    pub(crate) fn name(&self, source: usize) -> &str {
        self.shown.get(source).map_or("", |(name, _)| name)
    }

    /// What stands before each line.
    pub(crate) fn prefix(&self, source: usize) -> &str {
        self.shown.get(source).map_or("", |(_, prefix)| prefix)
    }

    /// The end of a subscription that was not complete, in words for people: one line for each reason, with names.
    pub(crate) fn explain(&self, status: Status) -> Error {
        let Some((before, reasons)) = status.message().split_once("reasons: ") else { return status.into() };
        if status.code() != Code::Unknown || !before.contains(INCOMPLETE) {
            return status.into();
        }
        let mut text = "some lines are missing:".to_owned();
        for reason in reasons.split(", ") {
            text.push_str("\n  ");
            text.push_str(&self.named(reason));
        }
        Error::plain(text)
    }

    /// `node ID …` with the node's name.
    fn named(&self, reason: &str) -> String {
        let Some(names) = &self.names else { return reason.to_owned() };
        let Some(rest) = reason.strip_prefix("node ") else { return reason.to_owned() };
        let (id, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        match names.node(id) {
            name if name == id => reason.to_owned(),
            name => format!("node {name} ({id}) {rest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use swarm_api::v1::Node;

    use super::*;

    fn sources(names: Option<Names>) -> Sources {
        Sources { names, full: false, tasks: HashMap::new(), known: HashMap::new(), shown: Vec::new() }
    }

    #[test]
    fn what_is_missing_is_said_with_names_and_line_by_line() {
        let mut node = Node { id: "n1".into(), ..Default::default() };
        node.spec.annotations.name = "host-1".into();
        let status = || {
            Status::unknown(
                "warning: incomplete log stream. some logs could not be retrieved for the following reasons: node n1 is \
                 not available, task t has not been scheduled",
            )
        };
        let names = Names::new(&[node.into()], &[]);
        assert_eq!(
            sources(Some(names)).explain(status()).to_string(),
            "some lines are missing:\n  node host-1 (n1) is not available\n  task t has not been scheduled"
        );
        assert_eq!(
            sources(None).explain(status()).to_string(),
            "some lines are missing:\n  node n1 is not available\n  task t has not been scheduled"
        );
        let other = sources(None).explain(Status::invalid_argument("log selector must be provided"));
        assert_eq!(other.to_string(), "log selector must be provided");
    }
}
