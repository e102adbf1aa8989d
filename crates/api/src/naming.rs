//! Names that are derived, not stored.

use std::fmt::Write as _;

use crate::v1::{Task, task_spec};

/// The name of a task: its own, or `service.slot.id` (the node id stands for the slot where there is none).
pub fn task_name(task: &Task) -> String {
    if !task.annotations.name.is_empty() {
        return task.annotations.name.clone();
    }
    let (service, node, id) = (&task.service_annotations.name, &task.node_id, &task.id);
    let mut name = String::with_capacity(service.len() + node.len().max(20) + id.len() + 2);
    // A `String` takes all that is written.
    let _ = match task.slot {
        0 => write!(name, "{service}.{node}.{id}"),
        slot => write!(name, "{service}.{slot}.{id}"),
    };
    name
}

/// The runtime of a task: `container`, `attachment`, or the kind of a generic runtime in lower case.
pub fn runtime(runtime: Option<&task_spec::Runtime>) -> Option<String> {
    match runtime? {
        task_spec::Runtime::Container(_) => Some("container".to_owned()),
        task_spec::Runtime::Attachment(_) => Some("attachment".to_owned()),
        task_spec::Runtime::Generic(generic) => Some(generic.kind.to_lowercase()),
    }
}
