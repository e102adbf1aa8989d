//! Many tasks put on nodes at once.
//!
//! What [`Write::Assign`](crate::Write::Assign) says of one task, an [`Assignments`] says of many, for a fraction of
//! the cost: nothing is copied on its way to the store, guards are field comparisons, and the store changes its
//! tables once for all.

use std::sync::Arc;
use std::time::SystemTime;

use prost::Message as _;
use swarm_api::hash::FastMap;
use swarm_api::v1::{Annotations, Endpoint, GenericResource, Node, Task, TaskSpec, TaskState, TaskStatus};
use swarm_api::{Shared, Text};
use swarm_store::{Event, Table, Tx};

/// A task is put on a node.
///
/// Written if the task is still PENDING, wanted at or below COMPLETE, and on no node, or on this one; and if the node
/// is READY and ACTIVE, and what placement looks at is as it was. Else nobody would look whether the task may be there:
/// who watches nodes saw the change while the task was not on the node yet.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The task.
    pub task: Text,
    /// The node.
    pub node: Text,
    /// The task came with its node. Otherwise it must still be without one.
    pub bound: bool,
    /// Named and discrete generic resources taken on the node.
    pub generic: Vec<GenericResource>,
    /// How the node was found.
    pub message: Text,
}

/// Assignments that are written in one transaction, each for itself: one that is refused costs no other.
#[derive(Debug, Clone)]
pub struct Assignments {
    /// The reconciler's own mark, given back in [`Settled`](crate::Settled).
    pub tag: u64,
    /// The assignments.
    pub list: Arc<[Assignment]>,
    /// Time of the decision.
    pub at: SystemTime,
    /// What they take in a log entry at most, in bytes.
    pub bytes: usize,
    /// The nodes as they were then; all that are assigned to were READY and ACTIVE.
    pub nodes: Arc<Table<Node>>,
}

/// Writes those of these lists that hold, all at once. Returns for each list the places in it of those that don't.
pub(crate) fn apply(lists: &[Assignments], tx: &mut Tx) -> Vec<Vec<u32>> {
    let nodes = tx.shared_nodes();
    let mut all: Vec<(&Assignments, &Assignment, bool)> = Vec::new();
    for list in lists {
        if Arc::ptr_eq(&nodes, &list.nodes) {
            all.extend(list.list.iter().map(|assignment| (list, assignment, true)));
        } else {
            // Of a node, all assignments of a list share the id.
            let mut usable: FastMap<*const u8, bool> = FastMap::default();
            all.extend(list.list.iter().map(|assignment| {
                let usable = usable.entry(assignment.node.as_ptr());
                let is_usable = || is_as_it_was(&list.nodes, &nodes, &assignment.node);
                (list, assignment, *usable.or_insert_with(is_usable))
            }));
        }
    }
    let ids: Vec<&str> = all.iter().map(|(_, assignment, _)| &*assignment.task).collect();
    let written = tx.update_tasks(&ids, |at, task| {
        let (list, assignment, usable) = all[at];
        (usable && assignment.holds(task)).then(|| assignment.assigned(task, list.at))
    });
    let (mut written, mut begin) = (written.into_iter().peekable(), 0);
    let refused = |list: &Assignments| {
        let at = begin..begin + list.list.len();
        begin = at.end;
        at.clone()
            .zip(0..)
            .filter(|(at, _)| written.next_if_eq(at).is_none())
            .map(|(_, place)| place)
            .collect()
    };
    lists.iter().map(refused).collect()
}

/// Whether these are the changes that a transaction with nothing but these lists made.
pub(crate) fn is_outcome<'a>(events: &[Event], lists: impl Iterator<Item = &'a Assignments>) -> bool {
    let mut planned = lists.flat_map(|assignments| assignments.list.iter());
    let assigned = |event: &Event| match event {
        Event::Updated { new: swarm_api::Object::Task(task), .. } => {
            task.status.state == TaskState::Assigned as i32 && planned.any(|a| *a.task == *task.id)
        }
        _ => false,
    };
    events.iter().all(assigned)
}

/// The node takes new tasks.
pub(crate) fn is_usable(nodes: &Table<Node>, node: &str) -> bool {
    nodes.get(node).is_some_and(|n| n.is_usable())
}

/// The node takes new tasks, and fits what it was chosen for then.
fn is_as_it_was(then: &Table<Node>, now: &Table<Node>, node: &str) -> bool {
    match (then.get(node), now.get(node)) {
        (Some(then), Some(now)) => {
            Shared::ptr_eq(then, now) || (now.is_usable() && same_for_placement(then, now))
        }
        _ => false,
    }
}

/// Nothing that placement looks at differs.
pub fn same_for_placement(a: &Node, b: &Node) -> bool {
    a.role == b.role
        && a.status.state == b.status.state
        && a.status.addr == b.status.addr
        && a.spec.availability == b.spec.availability
        && a.spec.annotations.labels == b.spec.annotations.labels
        && a.description == b.description
}

/// Says how much a task takes in a log entry, at most. What tasks share is measured once.
#[derive(Debug, Default)]
pub struct Sizer {
    shared: Option<(Parts, usize)>,
}

/// What tasks share.
#[derive(Debug)]
struct Parts {
    spec: Shared<TaskSpec>,
    annotations: Shared<Annotations>,
    endpoint: Option<Shared<Endpoint>>,
}

impl Parts {
    fn are_of(&self, task: &Task) -> bool {
        let same_endpoint = match (&self.endpoint, &task.endpoint) {
            (Some(a), Some(b)) => Shared::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        same_endpoint
            && Shared::ptr_eq(&self.spec, &task.spec)
            && Shared::ptr_eq(&self.annotations, &task.service_annotations)
    }
}

impl Sizer {
    /// Most bytes of this task, which has no generic resources yet. What an assignment adds is [`Assignment::bytes`].
    pub fn bytes_of(&mut self, task: &Task) -> usize {
        // Stamps, numbers, and every field's own key and length.
        const REST: usize = 128;
        let own = task.id.len() + task.service_id.len() + task.node_id.len();
        let mut seldom = 0;
        if !task.networks.is_empty() || task.log_driver.is_some() || !task.volumes.is_empty() {
            seldom += task.networks.iter().map(|n| n.encoded_len() + 12).sum::<usize>();
            seldom += task.volumes.iter().map(|v| v.encoded_len() + 12).sum::<usize>();
            seldom += task.log_driver.as_ref().map_or(0, prost::Message::encoded_len);
        }
        REST + own + seldom + task.status.encoded_len() + task.annotations.encoded_len() + self.shared(task)
    }

    fn shared(&mut self, task: &Task) -> usize {
        match &self.shared {
            Some((parts, bytes)) if parts.are_of(task) => *bytes,
            _ => {
                let parts = Parts {
                    spec: task.spec.clone(),
                    annotations: task.service_annotations.clone(),
                    endpoint: task.endpoint.clone(),
                };
                let endpoint = task.endpoint.as_ref().map_or(0, prost::Message::encoded_len);
                let bytes = task.spec.encoded_len() + task.service_annotations.encoded_len() + endpoint;
                self.shared = Some((parts, bytes));
                bytes
            }
        }
    }
}

impl Assignment {
    /// Most bytes that it adds to its task in a log entry.
    pub fn bytes(&self) -> usize {
        let generic = self.generic.iter().map(|g| g.encoded_len() + 12).sum::<usize>();
        self.node.len() + self.message.len() + generic
    }

    fn holds(&self, task: &Task) -> bool {
        let node = if self.bound { &*self.node } else { "" };
        task.status.state == TaskState::Pending as i32
            && task.desired_state <= TaskState::Complete as i32
            && task.node_id == node
    }

    /// The task as it is on its node. Every field is named, so that none is copied only to be replaced.
    fn assigned(&self, task: &Task, at: SystemTime) -> Task {
        let status = &task.status;
        Task {
            id: task.id.clone(),
            meta: task.meta,
            spec: task.spec.clone(),
            service_id: task.service_id.clone(),
            slot: task.slot,
            node_id: self.node.clone(),
            annotations: task.annotations.clone(),
            service_annotations: task.service_annotations.clone(),
            status: TaskStatus {
                timestamp: Some(at.into()),
                state: TaskState::Assigned as i32,
                message: self.message.clone(),
                err: Text::default(),
                port_status: status.port_status.clone(),
                applied_by: status.applied_by.clone(),
                applied_at: status.applied_at,
                runtime_status: status.runtime_status.clone(),
            },
            desired_state: task.desired_state,
            networks: task.networks.clone(),
            endpoint: task.endpoint.clone(),
            log_driver: task.log_driver.clone(),
            spec_version: task.spec_version,
            assigned_generic_resources: self.generic.clone(),
            job_iteration: task.job_iteration,
            volumes: task.volumes.clone(),
        }
    }
}
