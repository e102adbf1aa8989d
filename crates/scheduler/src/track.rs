//! What the scheduler knows, and how it keeps in step with the tables.
//!
//! Every change ends in the same question, asked of the tables as they are: where does this task, or this node,
//! belong? So it does not matter whether changes come one by one, several at once, twice, or all at the beginning.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swarm_api::hash::FastSet;
use swarm_api::v1::{Node, Service, Task, TaskState, service_spec};
use swarm_api::{Shared, Text};
use swarm_placement::{FAILURE_LIMIT, FAILURE_WINDOW};
use swarm_reconcile::{Now, Sizer};
use swarm_store::Tables;

use crate::bound::was_moved;
use crate::depends::Gates;
use crate::ended::{failed_ago, held_for};
use crate::nodes::{Nodes, Slot};
use crate::places::{At, Loads, Placed, Places};
use crate::pools::Index;
use crate::queue::{GroupNo, Groups, Seen, Telling};

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
    pub(crate) index: Index,
    pub(crate) places: Places,
    pub(crate) loads: Loads,
    pub(crate) sizer: Sizer,
    pub(crate) groups: Groups,
    pub(crate) telling: Telling,
    pub(crate) gates: Gates,
    /// Passes of whose assignments not all are settled, with the tasks of theirs that were looked at meanwhile.
    pub(crate) in_flight: BTreeMap<u32, Vec<Text>>,
    /// When a pass is settled there may be more who can be displaced.
    pub(crate) look_again: bool,
    /// Nodes that are not there, and may have tasks.
    homeless: FastSet<Text>,
    /// With so many of these, it is time to forget those whose tasks are gone too.
    purge_homeless_at: usize,
    /// A node went while assignments were in flight: one that was meant for it may be written all the same, if it is back.
    pub(crate) node_went: bool,
    /// Tasks that wait for their own node, by node.
    pub(crate) bound: BTreeMap<Text, BTreeMap<Text, Shared<Task>>>,
    /// Those of them that were not looked at: node and task.
    pub(crate) fresh_bound: BTreeSet<(Text, Text)>,
    /// Those of them that have their turn in later passes.
    pub(crate) later_bound: BTreeSet<(Text, Text)>,
    /// Tasks that are to stop and were never on a node, by service.
    stopping: BTreeMap<Text, BTreeSet<Text>>,
    /// Those of them that no agent will ever stop, since their service has moved on.
    pub(crate) outdated: BTreeSet<Text>,
    /// When which task leaves its node.
    pub(crate) holds: BTreeSet<(Duration, Text)>,
    pub(crate) until: BTreeMap<Text, Duration>,
    /// Since when tasks are known to stop, of those whose room somebody has asked for.
    pub(crate) seen_stopping: BTreeMap<Text, Duration>,
    /// For whom others are displaced, as long as it is not known whether that is written; by the mark of the change.
    pub(crate) displacing: BTreeMap<u64, Text>,
    pub(crate) displacements: u32,
    /// Tasks with claims, by the slot of the node.
    pub(crate) claimed: BTreeSet<(Slot, Text)>,
    /// The same, by when their claims are given up.
    pub(crate) claims_end: BTreeSet<(Duration, Text)>,
    /// Tasks whose claims came to nothing, and until when they get no other.
    pub(crate) gave_up: BTreeMap<Text, Duration>,
    /// The lowest priority of a service, if it is known.
    pub(crate) lowest_priority: Option<i32>,
}

impl State {
    /// Learns everything from the tables.
    pub(crate) fn rebuild(now: &Now, tables: &Tables) -> State {
        let mut state = State::default();
        for node in tables.nodes().iter() {
            state.nodes.put(node);
        }
        for volume in tables.volumes().iter() {
            state.nodes.volumes.put(&volume.id, Some(volume));
        }
        state.places.reserve(tables.tasks().len());
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
                self.nodes.remove(id);
                self.node_went |= !self.in_flight.is_empty();
                if tables.tasks().by_node(id).next().is_some() {
                    self.note_homeless(&id.into(), tables);
                }
            }
            Some(node) => self.put_node(now, node, tables),
        }
    }

    /// A node is as it says.
    pub(crate) fn put_node(&mut self, now: &Now, node: &Shared<Node>, tables: &Tables) {
        if self.nodes.put(node) && self.homeless.remove(node.id.as_str()) {
            for task in tables.tasks().by_node(&node.id) {
                self.put_task(now, task, tables);
            }
        }
    }

    /// A node with tasks is not there. It may never come back, and once its tasks are gone it does not matter if it does.
    fn note_homeless(&mut self, node: &Text, tables: &Tables) {
        if self.homeless.contains(node) {
            return;
        }
        if self.homeless.len() >= self.purge_homeless_at {
            self.homeless.retain(|node| tables.tasks().by_node(node).next().is_some());
            self.purge_homeless_at = 2 * self.homeless.len() + 64;
        }
        self.homeless.insert(node.clone());
    }

    /// Nodes that are not there, and are remembered.
    #[cfg(test)]
    pub(crate) fn homeless(&self) -> usize {
        self.homeless.len()
    }

    /// All who wait are to be looked at.
    pub(crate) fn note_all_waiting(&mut self) {
        self.groups.note_known();
        let bound = self.bound.iter();
        let bound = bound.flat_map(|(node, tasks)| tasks.keys().map(|task| (node.clone(), task.clone())));
        self.fresh_bound.extend(bound);
    }

    /// Those who waited for something that has changed are to be looked at.
    pub(crate) fn wake(&mut self) {
        for (service, bound) in self.gates.take_woken() {
            self.groups.of_service(&service).into_iter().for_each(|no| self.groups.note(no));
            self.fresh_bound.extend(bound);
        }
    }

    /// A service may have changed.
    pub(crate) fn sync_service(&mut self, id: &str, tables: &Tables) {
        let service: Option<&Shared<Service>> = tables.services().get(id);
        match service {
            None => {
                for no in self.groups.of_service(id) {
                    self.drop_group(no);
                }
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
            // It may still be written to its node, if what removes it is not.
            None if self.is_on_its_way(id) => {}
            // The container of a task that a manager declared ended may outlive the task's record.
            None if matches!(self.places.get(id), Some(At::Placed(Placed { held: true, .. }))) => {}
            None => self.forget(id),
        }
    }

    /// A task is as it says.
    pub(crate) fn put_task(&mut self, now: &Now, task: &Shared<Task>, tables: &Tables) {
        let belongs = belongs(now, task);
        // Who asked it to stop may come too late: until that is known it has its room.
        if matches!(belongs, Belongs::Nowhere | Belongs::Stopping)
            && !task.status.reached(TaskState::Assigned)
            && self.is_on_its_way(&task.id)
        {
            return;
        }
        match belongs {
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

    /// The task is on its way to a node, of which the tables do not know. It is looked at again when that is settled.
    fn is_on_its_way(&mut self, id: &str) -> bool {
        if self.in_flight.is_empty() {
            return false;
        }
        let Some((id, At::Placed(placed))) = self.places.entry(id) else { return false };
        match self.in_flight.get_mut(&placed.pass) {
            Some(looked_at) if placed.is_on(&self.nodes) => {
                looked_at.push(id.clone());
                true
            }
            _ => false,
        }
    }

    /// An assignment of a pass came to nothing. If another one of the same task is under way, that one counts.
    pub(crate) fn refused(&mut self, now: &Now, id: &str, pass: u32, tables: &Tables) {
        match self.places.get_mut(id) {
            Some(At::Placed(placed)) if placed.pass == pass => placed.pass = 0,
            Some(At::Placed(placed)) if placed.pass != 0 => return,
            _ => {}
        }
        self.sync_task(now, id, tables);
    }

    /// An assignment is written. Where its node went meanwhile, the tables know what became of it.
    pub(crate) fn written(&mut self, now: &Now, id: &str, tables: &Tables) {
        if let Some(At::Placed(placed)) = self.places.get(id)
            && !placed.is_on(&self.nodes)
        {
            self.sync_task(now, id, tables);
        }
    }

    /// All assignments of a pass are settled.
    pub(crate) fn pass_settled(&mut self, now: &Now, pass: u32, tables: &Tables) {
        for id in self.in_flight.remove(&pass).unwrap_or_default() {
            self.sync_task(now, &id, tables);
        }
        self.node_went &= !self.in_flight.is_empty();
        if std::mem::take(&mut self.look_again) {
            self.note_all_waiting();
        }
    }

    fn put_waiting(&mut self, task: &Shared<Task>) {
        if self.is_on_its_way(&task.id) {
            return;
        }
        let id = task.id.clone();
        if self.renew_claim(task) {
            return;
        }
        let (mut no, mut load) = self.groups.of(task, &mut self.loads, &mut self.nodes.services);
        let here = move || At::Waiting(no, task.slot);
        let was_here = move |at: Option<&At>| matches!(at, Some(At::Waiting(known, slot)) if (*known, *slot) == (no, task.slot));
        let (at, is_new) = match self.places.enter(&id, here) {
            (at, None) => (at, true),
            (at, Some(_)) if was_here(self.places.get(&id)) => (at, false),
            _ => {
                self.forget(&id);
                // With its last task a group goes.
                (no, load) = self.groups.of(task, &mut self.loads, &mut self.nodes.services);
                (self.places.insert(id.clone(), At::Waiting(no, task.slot)), true)
            }
        };
        let fresh = Seen::Fresh { load, bytes: self.sizer.bytes_of(task) as u32, at };
        if let Some(group) = self.groups.get_mut(no) {
            group.put((task.slot, id), task, fresh, is_new);
            self.groups.note(no);
        }
    }

    fn put_bound(&mut self, task: &Shared<Task>) {
        if self.is_on_its_way(&task.id) {
            return;
        }
        if self.renew_claim(task) {
            return;
        }
        let (node, id): (Text, Text) = (task.node_id.clone(), task.id.clone());
        if !matches!(self.places.get(&id), Some(At::Bound(known)) if *known == node) {
            self.forget(&id);
            self.places.insert(id.clone(), At::Bound(node.clone()));
        }
        self.bound.entry(node.clone()).or_default().insert(id.clone(), task.clone());
        self.fresh_bound.insert((node, id));
    }

    fn put_stopping(&mut self, task: &Shared<Task>, tables: &Tables) {
        let (service, id): (Text, Text) = (task.service_id.clone(), task.id.clone());
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
            self.outdated.insert(task.id.clone());
        }
    }

    fn put_placed(&mut self, task: &Shared<Task>, until: Option<Duration>, tables: &Tables) {
        let Some(slot) = self.nodes.slot(&task.node_id) else {
            self.note_homeless(&task.node_id, tables);
            return self.forget(&task.id);
        };
        let active = until.is_none() && task.desired_state <= TaskState::Complete as i32;
        let known = self.places.get_mut(task.id.as_str());
        let bound = match &known {
            Some(At::Bound(_)) => !was_moved(task),
            Some(At::Placed(known)) => known.bound,
            _ => is_global(task, tables),
        };
        if let Some(At::Placed(known)) = known {
            let same = known.slot() == slot
                && known.is_on(&self.nodes)
                && *known.generic == *task.assigned_generic_resources
                && known.load.is_of(task)
                && *self.nodes.volumes.of(&task.id) == *task.volumes;
            if same {
                known.pass = 0;
                if known.active != active {
                    known.active = active;
                    self.nodes.set_active(slot, known.service, active);
                }
                return self.set_until(&task.id, until);
            }
        }
        self.forget(&task.id);
        let load = self.loads.of(&task.spec, task.endpoint.as_ref());
        let service = self.nodes.services.enter(&task.service_id);
        let generic = task.assigned_generic_resources.clone();
        let placed = Placed { active, bound, ..Placed::new(&self.nodes, slot, service, load, generic, 0) };
        self.nodes.enter(slot, service, placed.holding(), false);
        let id: Text = task.id.clone();
        let node = self.nodes.get(slot).id.clone();
        self.nodes.volumes.enter(&id, &node, &task.spec, &task.volumes);
        self.places.insert(id, At::Placed(placed));
        self.set_until(&task.id, until);
    }

    /// A task is held until then, or not any more. Seen again later, a hold must not end later: the first look counts.
    fn set_until(&mut self, task: &str, until: Option<Duration>) {
        let Some((id, _)) = self.places.entry(task) else { return };
        let id = id.clone();
        let Some(At::Placed(placed)) = self.places.get_mut(task) else { return };
        if placed.held == until.is_some() {
            return;
        }
        placed.held = until.is_some();
        match until {
            Some(until) => {
                self.until.insert(id.clone(), until);
                self.holds.insert((until, id));
            }
            None => self.end_hold(id),
        }
    }

    fn end_hold(&mut self, id: Text) {
        if let Some(until) = self.until.remove(&id) {
            self.holds.remove(&(until, id));
        }
    }

    /// The task is nowhere any more.
    pub(crate) fn forget(&mut self, id: &str) {
        if matches!(self.places.get(id), Some(At::Claimed(_))) {
            self.take_claim(id);
            return;
        }
        let Some((id, at)) = self.places.remove(id) else { return };
        self.seen_stopping.remove(&id);
        match at {
            At::Claimed(_) => {}
            At::Waiting(no, slot) => {
                if let Some(mut group) = self.groups.take(no) {
                    group.remove(&(slot, id));
                    self.groups.put_back(no, group, &mut self.nodes.services);
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
                if placed.is_on(&self.nodes) {
                    self.nodes.leave(placed.slot(), placed.service, placed.holding());
                }
                self.nodes.services.leave(placed.service);
                self.nodes.volumes.leave(&id);
                if placed.held {
                    self.end_hold(id);
                }
            }
        }
    }

    fn unbind(&mut self, node: &Text, task: &Text) {
        if let Some(tasks) = self.bound.get_mut(node) {
            tasks.remove(task);
            if tasks.is_empty() {
                self.bound.remove(node);
            }
        }
        self.fresh_bound.remove(&(node.clone(), task.clone()));
    }

    /// The tasks of the group wait no more.
    pub(crate) fn drop_group(&mut self, no: GroupNo) {
        let Some(group) = self.groups.take(no) else { return };
        self.groups.end(no, &group, &mut self.nodes.services);
        for (_, id) in group.into_places() {
            if matches!(self.places.get(&id), Some(At::Waiting(known, _)) if *known == no) {
                self.places.remove(&id);
            }
        }
    }

    /// Takes tasks off their nodes whose time is over.
    pub(crate) fn release(&mut self, now: Duration) {
        while let Some((until, id)) = self.holds.first().cloned()
            && until <= now
        {
            self.forget(&id);
            self.end_hold(id);
        }
    }

    /// If the task has just failed, its node is avoided for others of its kind when that happens too often.
    fn note_failure(&mut self, now: &Now, task: &Task) {
        let Some(At::Placed(placed)) = self.places.get(task.id.as_str()) else { return };
        if placed.bound || placed.held || !placed.is_on(&self.nodes) {
            return;
        }
        let slot = placed.slot();
        if let Some(ago) = failed_ago(task, now) {
            self.record_failure(now, task, slot, ago);
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
