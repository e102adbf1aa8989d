//! What the scheduler knows, and how it keeps in step with the tables.
//!
//! Every change ends in the same question, asked of the tables as they are: where does this task, or this node,
//! belong? So it does not matter whether changes come one by one, several at once, twice, or all at the beginning.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use swarm_api::Shared;
use swarm_api::v1::{GenericResource, Node, Service, Task, TaskState, service_spec};
use swarm_placement::{FAILURE_LIMIT, FAILURE_WINDOW, Holding};
use swarm_reconcile::Now;
use swarm_store::Tables;

use crate::ended::{failed_ago, held_for};
use crate::nodes::{Nodes, Slot};
use crate::queue::{Group, GroupKey, Place, place};

/// A task in the account of a node.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) slot: Slot,
    pub(crate) task: Shared<Task>,
    pub(crate) generic: Vec<GenericResource>,
    pub(crate) active: bool,
    /// It came with its node: its failures do not count against the node.
    pub(crate) bound: bool,
    /// It has ended by word of a manager, and may run until then.
    pub(crate) until: Option<Duration>,
}

impl Placed {
    fn holding(&self) -> Holding<'_> {
        Holding { task: &self.task, generic: &self.generic, active: self.active }
    }
}

/// Where a task is.
#[derive(Debug)]
pub(crate) enum At {
    /// Waits for a node.
    Waiting(GroupKey, Place),
    /// Waits for its own node.
    Bound(Arc<str>),
    /// Waits no more, and was never on a node; its service.
    Stopping(Arc<str>),
    /// In a node's account.
    Placed(Placed),
}

/// Where a task belongs.
enum Belongs {
    Nowhere,
    Waiting,
    Bound,
    Stopping,
    Placed,
    Held(Duration),
}

/// Everything the scheduler knows.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) nodes: Nodes,
    pub(crate) places: HashMap<Arc<str>, At>,
    pub(crate) groups: BTreeMap<GroupKey, Group>,
    /// Groups with tasks that were not looked at.
    pub(crate) fresh_groups: BTreeSet<GroupKey>,
    /// Tasks that wait for their own node, by node.
    pub(crate) bound: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Shared<Task>>>,
    /// Those of them that were not looked at: node and task.
    pub(crate) fresh_bound: BTreeSet<(Arc<str>, Arc<str>)>,
    /// Tasks that are to stop and were never on a node, by service.
    stopping: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Those of them that no agent will ever stop, since their service has moved on.
    pub(crate) outdated: BTreeSet<Arc<str>>,
    /// When which task leaves its node.
    pub(crate) holds: BTreeSet<(Duration, Arc<str>)>,
}

impl State {
    /// Learns everything from the tables.
    pub(crate) fn rebuild(now: &Now, tables: &Tables) -> State {
        let mut state = State::default();
        for node in tables.nodes().iter() {
            state.nodes.put(node);
        }
        for task in tables.tasks().iter() {
            state.put_task(now, task, tables);
            state.remember_failure(now, task, tables);
        }
        state
    }

    /// A node may have changed.
    pub(crate) fn sync_node(&mut self, now: &Now, id: &str, tables: &Tables) {
        let node: Option<&Shared<Node>> = tables.nodes().get(id);
        match node {
            None => {
                for task in self.nodes.remove(id) {
                    if let Some(At::Placed(Placed { until: Some(until), .. })) = self.places.remove(&task) {
                        self.holds.remove(&(until, task));
                    }
                }
            }
            Some(node) => {
                if self.nodes.put(node) {
                    for task in tables.tasks().by_node(id) {
                        self.put_task(now, task, tables);
                    }
                }
            }
        }
    }

    /// A service may have changed.
    pub(crate) fn sync_service(&mut self, id: &str, tables: &Tables) {
        let service: Option<&Shared<Service>> = tables.services().get(id);
        match service {
            None => {
                let first = GroupKey::first_of(id);
                let keys: Vec<GroupKey> = self
                    .groups
                    .range(first..)
                    .map(|(key, _)| key)
                    .take_while(|key| *key.service == *id)
                    .cloned()
                    .collect();
                keys.iter().for_each(|key| self.drop_group(key));
            }
            Some(_) => {
                for task in self.stopping.get(id).cloned().unwrap_or_default() {
                    if let Some(task) = tables.tasks().get(&task) {
                        self.note_outdated(task, tables);
                    }
                }
            }
        }
    }

    /// A task may have changed.
    pub(crate) fn sync_task(&mut self, now: &Now, id: &str, tables: &Tables) {
        match tables.tasks().get(id) {
            Some(task) => self.put_task(now, task, tables),
            // The container of a task that a manager declared ended may outlive the task's record.
            None if matches!(self.places.get(id), Some(At::Placed(Placed { until: Some(_), .. }))) => {}
            None => self.forget(id),
        }
    }

    fn put_task(&mut self, now: &Now, task: &Shared<Task>, tables: &Tables) {
        match belongs(now, task) {
            Belongs::Nowhere => {
                self.note_failure(now, task);
                self.forget(&task.id);
            }
            Belongs::Waiting => self.put_waiting(task),
            Belongs::Bound => self.put_bound(task),
            Belongs::Stopping => self.put_stopping(task, tables),
            Belongs::Placed => self.put_placed(task, None, tables),
            Belongs::Held(left) => self.put_placed(task, Some(now.mono + left), tables),
        }
    }

    fn put_waiting(&mut self, task: &Shared<Task>) {
        if !matches!(self.places.get(task.id.as_str()), Some(At::Waiting(..))) {
            self.forget(&task.id);
            let at = At::Waiting(GroupKey::of(task), place(task));
            self.places.insert(task.id.as_str().into(), at);
        }
        let key = GroupKey::of(task);
        let group = self.groups.entry(key.clone()).or_insert_with(|| Group::new(task));
        if group.put(task) {
            self.fresh_groups.insert(key);
        }
    }

    fn put_bound(&mut self, task: &Shared<Task>) {
        let (node, id): (Arc<str>, Arc<str>) = (task.node_id.as_str().into(), task.id.as_str().into());
        if !matches!(self.places.get(&id), Some(At::Bound(known)) if *known == node) {
            self.forget(&id);
            self.places.insert(id.clone(), At::Bound(node.clone()));
        }
        self.bound.entry(node.clone()).or_default().insert(id.clone(), task.clone());
        self.fresh_bound.insert((node, id));
    }

    fn put_stopping(&mut self, task: &Shared<Task>, tables: &Tables) {
        let (service, id): (Arc<str>, Arc<str>) = (task.service_id.as_str().into(), task.id.as_str().into());
        if !matches!(self.places.get(&id), Some(At::Stopping(_))) {
            self.forget(&id);
            self.stopping.entry(service.clone()).or_default().insert(id.clone());
            self.places.insert(id, At::Stopping(service));
        }
        self.note_outdated(task, tables);
    }

    /// No agent ever hears of a task that has no node yet, so nobody would end it once the service has gone on to
    /// another version.
    fn note_outdated(&mut self, task: &Task, tables: &Tables) {
        let current = tables.services().get(&task.service_id).and_then(|s| s.spec_version);
        if let (Some(current), Some(own)) = (current, task.spec_version)
            && current.index > own.index
        {
            self.outdated.insert(task.id.as_str().into());
        }
    }

    fn put_placed(&mut self, task: &Shared<Task>, until: Option<Duration>, tables: &Tables) {
        let Some(slot) = self.nodes.slot(&task.node_id) else { return self.forget(&task.id) };
        let active = until.is_none() && task.desired_state <= TaskState::Complete as i32;
        if let Some((id, At::Placed(known))) = self.places.get_key_value(task.id.as_str()) {
            let same = known.slot == slot
                && known.generic == task.assigned_generic_resources
                && known.task.spec == task.spec
                && known.task.endpoint == task.endpoint;
            if same {
                let id = id.clone();
                return self.update_placed(id, task, active, until);
            }
        }
        let bound = match self.places.get(task.id.as_str()) {
            Some(At::Bound(_)) => true,
            Some(At::Placed(known)) => known.bound,
            _ => is_global(task, tables),
        };
        self.forget(&task.id);
        let id: Arc<str> = task.id.as_str().into();
        if let Some(until) = until {
            self.holds.insert((until, id.clone()));
        }
        let generic = task.assigned_generic_resources.clone();
        let placed = Placed { slot, task: task.clone(), generic, active, bound, until };
        let node = self.nodes.get_mut(slot);
        node.info.add(placed.holding());
        node.tasks.insert(id.clone());
        self.places.insert(id, At::Placed(placed));
    }

    /// A task that stays where it is has changed.
    fn update_placed(&mut self, id: Arc<str>, task: &Shared<Task>, active: bool, until: Option<Duration>) {
        let Some(At::Placed(placed)) = self.places.get_mut(&id) else { return };
        placed.task = task.clone();
        if placed.active != active {
            placed.active = active;
            self.nodes.get_mut(placed.slot).info.set_active(&task.service_id, active);
            if !active {
                self.nodes.changed.insert(placed.slot);
            }
        }
        // Seen again later, a hold must not end later: the first look counts.
        if placed.until.is_some() != until.is_some() {
            if let Some(old) = placed.until {
                self.holds.remove(&(old, id.clone()));
            }
            if let Some(new) = until {
                self.holds.insert((new, id));
            }
            placed.until = until;
        }
    }

    /// The task is nowhere any more.
    pub(crate) fn forget(&mut self, id: &str) {
        let Some((id, at)) = self.places.remove_entry(id) else { return };
        match at {
            At::Waiting(key, place) => {
                if let Some(group) = self.groups.get_mut(&key) {
                    group.remove(&place);
                    if group.tasks.is_empty() {
                        self.groups.remove(&key);
                        self.fresh_groups.remove(&key);
                    }
                }
            }
            At::Bound(node) => self.unbind(&node, &id),
            At::Stopping(service) => {
                self.outdated.remove(&id);
                if let Some(tasks) = self.stopping.get_mut(&service) {
                    tasks.remove(&id);
                    if tasks.is_empty() {
                        self.stopping.remove(&service);
                    }
                }
            }
            At::Placed(placed) => {
                let node = self.nodes.get_mut(placed.slot);
                node.info.remove(placed.holding());
                node.tasks.remove(&id);
                self.nodes.changed.insert(placed.slot);
                if let Some(until) = placed.until {
                    self.holds.remove(&(until, id));
                }
            }
        }
    }

    fn unbind(&mut self, node: &Arc<str>, task: &Arc<str>) {
        if let Some(tasks) = self.bound.get_mut(node) {
            tasks.remove(task);
            if tasks.is_empty() {
                self.bound.remove(node);
            }
        }
        self.fresh_bound.remove(&(node.clone(), task.clone()));
    }

    /// The tasks of the group wait no more.
    pub(crate) fn drop_group(&mut self, key: &GroupKey) {
        self.fresh_groups.remove(key);
        for (_, id) in self.groups.remove(key).map(|group| group.tasks.into_keys()).into_iter().flatten() {
            self.places.remove(&id);
        }
    }

    /// Takes tasks off their nodes whose time is over.
    pub(crate) fn release(&mut self, now: Duration) {
        while let Some((until, id)) = self.holds.first().cloned()
            && until <= now
        {
            self.forget(&id);
            self.holds.remove(&(until, id));
        }
    }

    /// If the task has just failed, its node is avoided for others of its kind when that happens too often.
    fn note_failure(&mut self, now: &Now, task: &Task) {
        let Some(At::Placed(placed)) = self.places.get(task.id.as_str()) else { return };
        if placed.bound || placed.until.is_some() {
            return;
        }
        if let Some(ago) = failed_ago(task, now) {
            self.record_failure(now, task, placed.slot, ago);
        }
    }

    /// At the beginning: as [`State::note_failure`], for tasks whose failure an earlier leader saw.
    fn remember_failure(&mut self, now: &Now, task: &Task, tables: &Tables) {
        let Some(ago) = failed_ago(task, now) else { return };
        if ago < FAILURE_WINDOW
            && !is_global(task, tables)
            && let Some(slot) = self.nodes.slot(&task.node_id)
        {
            self.record_failure(now, task, slot, ago);
        }
    }

    fn record_failure(&mut self, now: &Now, task: &Task, slot: Slot, ago: Duration) {
        let node = self.nodes.get_mut(slot);
        let version = task.spec_version.map_or(0, |v| v.index);
        let failures = node.info.failures.record(&task.service_id, version, now.mono, ago);
        if failures == FAILURE_LIMIT {
            tracing::warn!(
                node.id = %node.id, service.id = %task.service_id, failures, window = ?FAILURE_WINDOW,
                "tasks of the service keep failing on the node: others are preferred"
            );
        }
    }
}

/// Where a task belongs by what it says of itself.
fn belongs(now: &Now, task: &Task) -> Belongs {
    let status = &task.status;
    if !status.reached(TaskState::Pending) {
        return Belongs::Nowhere;
    }
    if !status.reached(TaskState::Assigned) {
        return match task.desired_state {
            desired if desired <= TaskState::Complete as i32 && task.node_id.is_empty() => Belongs::Waiting,
            desired if desired <= TaskState::Complete as i32 => Belongs::Bound,
            desired if desired < TaskState::Remove as i32 => Belongs::Stopping,
            _ => Belongs::Nowhere,
        };
    }
    if status.state <= TaskState::Running as i32 {
        return Belongs::Placed;
    }
    held_for(task, now).map_or(Belongs::Nowhere, Belongs::Held)
}

/// Its service puts one task on each node by itself.
fn is_global(task: &Task, tables: &Tables) -> bool {
    use service_spec::Mode;
    let mode = tables.services().get(&task.service_id).and_then(|s| s.spec.mode.as_ref());
    matches!(mode, Some(Mode::Global(_) | Mode::GlobalJob(_)))
}
