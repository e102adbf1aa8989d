//! Tasks whose node no longer has what they ask for.

use std::collections::{BTreeMap, BTreeSet};

use swarm_api::v1::{Node, Service, Task, TaskState, node_spec};
use swarm_api::{Kind, Object, Shared};
use swarm_placement::{Demand, Holding, NodeInfo, all_hold, constraints_of};
use swarm_reconcile::{
    Ctx, Decision, Group, Guard, Outcome, Patch, Reconciler, Settled, Write, same_for_placement,
};
use swarm_store::{Event, Tables};

use crate::ended::REJECTED_BY_CONSTRAINTS;

/// What the user is told of a rejected task.
const WHY: &str = "assigned node no longer meets constraints";

/// Rejects tasks on ACTIVE nodes that changed so that constraints do not hold there any more, or reservations do
/// not fit.
///
/// What is wanted of a task is not touched: that is its orchestrator's, which sees the failure and replaces the
/// task elsewhere. Nodes that drain are the orchestrators' business, and on paused ones tasks may stay. Changes of
/// a service do nothing here, as updates replace tasks at their own pace; but a rollback leaves those that it finds.
#[derive(Debug, Default)]
pub struct ConstraintEnforcer {
    /// Nodes as they were when they were last looked at.
    seen: BTreeMap<String, Shared<Node>>,
    /// Nodes to look at.
    look: BTreeSet<String>,
    /// Services that may have gone back to a spec whose tasks had been left alone meanwhile.
    back: BTreeSet<String>,
    /// Tasks that are wanted on after all.
    undone: BTreeSet<String>,
    /// Decisions under way, with their node.
    pending: BTreeMap<u64, String>,
    tag: u64,
}

impl ConstraintEnforcer {
    /// An enforcer that knows nothing yet.
    pub fn new() -> ConstraintEnforcer {
        ConstraintEnforcer::default()
    }

    fn reject(&mut self, ctx: &Ctx<'_>, node: &Node, task: &Task) -> Group {
        tracing::info!(
            task.id = %task.id, node.id = %node.id, service.id = %task.service_id,
            "task rejected: its node no longer meets its constraints or reservations"
        );
        self.tag += 1;
        self.pending.insert(self.tag, node.id.clone());
        let guards = vec![
            // The node as it was judged. If it has changed again it is looked at again.
            Guard::Version(Kind::Node, node.id.clone(), node.meta.version.index),
            Guard::TaskOnNode(task.id.to_string(), node.id.clone()),
            Guard::DesiredAtMost(task.id.to_string(), TaskState::Complete),
            Guard::TaskBelow(task.id.to_string(), TaskState::Complete),
        ];
        let write = Write::RaiseState {
            task: task.id.to_string(),
            state: TaskState::Rejected,
            message: REJECTED_BY_CONSTRAINTS.to_owned(),
            err: WHY.to_owned(),
            at: ctx.now.wall,
        };
        Group { tag: self.tag, patches: vec![Patch { guards, write }] }
    }
}

impl Reconciler for ConstraintEnforcer {
    fn name(&self) -> &'static str {
        "constraint enforcer"
    }

    fn init(&mut self, _ctx: &mut Ctx<'_>, tables: &Tables) {
        *self = ConstraintEnforcer { tag: self.tag, ..Default::default() };
        for node in tables.nodes().iter() {
            self.look.insert(node.id.clone());
            self.seen.insert(node.id.clone(), node.clone());
        }
    }

    fn observe(&mut self, _ctx: &mut Ctx<'_>, events: &[Event], tables: &Tables) {
        for event in events {
            if let Event::Updated { old: Object::Task(old), new: Object::Task(new) } = event {
                // That it was to stop was decided, and came to nothing.
                if !is_wanted(old) && is_wanted(new) && !new.node_id.is_empty() {
                    self.undone.insert(new.id.to_string());
                }
            }
            if let Event::Updated { old: Object::Service(old), new: Object::Service(new) } = event {
                let constraints = |s: &Service| constraints_of(s.spec.task.placement.as_ref());
                if old.spec_version != new.spec_version && constraints(old) != constraints(new) {
                    self.back.insert(new.id.clone());
                }
            }
            if event.kind() != Kind::Node {
                continue;
            }
            let Some(node) = tables.nodes().get(event.id()) else {
                self.seen.remove(event.id());
                continue;
            };
            let before = self.seen.insert(node.id.clone(), node.clone());
            if before.is_none_or(|before| !same_for_placement(&before, node)) {
                self.look.insert(node.id.clone());
            }
        }
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let mut gone = BTreeMap::new();
        let undone = std::mem::take(&mut self.undone);
        let undone: Vec<_> = undone.iter().filter_map(|id| tables.tasks().get(id)).collect();
        let look = std::mem::take(&mut self.look);
        let changed = look.iter().map(|id| (id.as_str(), Lacks::Anything));
        // Without those that were to stop, what is there may have fitted.
        let crowded = undone.iter().map(|task| (&*task.node_id, Lacks::Room));
        for (id, lacks) in changed.chain(crowded.collect::<BTreeSet<_>>()) {
            let Some(node) = tables.nodes().get(id).filter(|node| is_active(node)) else { continue };
            gone.extend(misplaced(node, tables, lacks).into_iter().map(|task| (&task.id, (node, task))));
        }
        let back = std::mem::take(&mut self.back);
        let of_services = back.iter().flat_map(|id| tables.tasks().by_service(id));
        for task in of_services.chain(undone) {
            if let Some(node) = left_behind(task, tables) {
                gone.insert(&task.id, (node, task));
            }
        }
        let groups = gone.into_values().map(|(node, task)| self.reject(ctx, node, task)).collect();
        Decision { groups, wake_at: None }
    }

    fn settled(&mut self, _ctx: &mut Ctx<'_>, settled: &Settled, _tables: &Tables) {
        let Some(node) = self.pending.remove(&settled.tag) else { return };
        if !matches!(settled.outcome, Outcome::Committed(_)) {
            self.look.insert(node);
        }
    }
}

/// The node of a task that was made for the constraints that its service has, if they do not hold there: while the service
/// had other ones, or the task was to stop, nobody minded. No update replaces it.
fn left_behind<'a>(task: &Task, tables: &'a Tables) -> Option<&'a Shared<Node>> {
    let service = tables.services().get(&task.service_id)?;
    let placement = service.spec.task.placement.as_ref();
    if task.spec.placement.as_ref() != placement
        || !is_wanted(task)
        || task.status.reached(TaskState::Complete)
    {
        return None;
    }
    let node = tables.nodes().get(&task.node_id)?;
    (is_active(node) && !all_hold(&constraints_of(placement), node)).then_some(node)
}

fn is_active(node: &Node) -> bool {
    node.spec.availability() == node_spec::Availability::Active
}

/// The task is to be on a node.
fn is_wanted(task: &Task) -> bool {
    (TaskState::Assigned as i32..=TaskState::Complete as i32).contains(&task.desired_state)
}

/// What a node may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lacks {
    /// Room for all who are there.
    Room,
    /// That, or what their constraints ask for.
    Anything,
}

/// The tasks on a node that can't stay, as it lacks something of this kind. Room is given to small tasks first, so that as few as possible must go;
/// among equals, to those that came first.
fn misplaced<'a>(node: &Shared<Node>, tables: &'a Tables, lacks: Lacks) -> Vec<&'a Shared<Task>> {
    let mut tasks: Vec<(Demand, &Shared<Task>)> = tables
        .tasks()
        .by_node(&node.id)
        .filter(|task| is_wanted(task) && !task.status.reached(TaskState::Complete))
        .map(|task| (Demand::of(task), task))
        .collect();
    tasks.sort_by_cached_key(|(demand, task)| {
        let (generic, created) = (task.assigned_generic_resources.len(), task.meta.created_at);
        let created = created.map_or((0, 0), |at| (at.seconds, at.nanos));
        (generic, demand.memory_bytes, demand.nano_cpus, created, task.id.clone())
    });
    let mut info = NodeInfo::new(node.clone());
    let mut gone = Vec::new();
    for (demand, task) in tasks {
        let spec = tables.services().get(&task.service_id).map_or(&task.spec, |service| &service.spec.task);
        if lacks == Lacks::Anything && !all_hold(&constraints_of(spec.placement.as_ref()), node) {
            gone.push(task);
            continue;
        }
        // A task that waits for the node's confirmation has no part of it yet.
        if !task.status.reached(TaskState::Assigned) {
            continue;
        }
        let assigned = &task.assigned_generic_resources;
        let bare = Demand { generic: Default::default(), ..demand };
        if info.has_resources(&bare) && info.generic().covers(assigned) {
            info.add(Holding::of(task, assigned));
        } else {
            gone.push(task);
        }
    }
    gone
}
