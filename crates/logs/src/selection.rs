//! Whose lines are wanted.

use std::collections::{BTreeSet, HashSet};

use swarm_api::v1::{LogSelector, Task, TaskState};
use swarm_store::View;

/// A selector. A task is wanted if any of the three lists has it.
#[derive(Debug)]
pub(crate) struct Selection {
    services: HashSet<String>,
    nodes: HashSet<String>,
    tasks: HashSet<String>,
}

/// What a selection comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selected {
    /// Nodes that have wanted tasks.
    pub(crate) nodes: BTreeSet<String>,
    /// Wanted tasks that are on no node.
    pub(crate) waiting: BTreeSet<String>,
    /// Tasks that were asked for by their ids, and that nobody knows.
    pub(crate) unknown: BTreeSet<String>,
}

impl Selection {
    pub(crate) fn new(selector: &LogSelector) -> Selection {
        let set = |ids: &[String]| ids.iter().cloned().collect();
        Selection {
            services: set(&selector.service_ids),
            nodes: set(&selector.node_ids),
            tasks: set(&selector.task_ids),
        }
    }

    /// The task itself, or all of its service, is wanted.
    pub(crate) fn has(&self, task: &Task) -> bool {
        self.tasks.contains(task.id.as_str()) || self.services.contains(task.service_id.as_str())
    }

    /// The nodes to be asked. Who does not follow gets nothing of tasks of services that never ran.
    pub(crate) fn look(&self, view: &View, follow: bool) -> Selected {
        let mut selected = Selected { nodes: self.nodes.iter().cloned().collect(), ..Selected::default() };
        for id in &self.tasks {
            match view.tasks().get(id) {
                Some(task) => selected.add(task),
                None => _ = selected.unknown.insert(id.clone()),
            }
        }
        let of_services = self.services.iter().flat_map(|id| view.tasks().by_service(id));
        for task in of_services.filter(|task| follow || task.status.reached(TaskState::Running)) {
            selected.add(task);
        }
        selected
    }
}

impl Selected {
    fn add(&mut self, task: &Task) {
        if task.node_id.is_empty() {
            self.waiting.insert(task.id.to_string());
        } else {
            self.nodes.insert(task.node_id.to_string());
        }
    }
}
