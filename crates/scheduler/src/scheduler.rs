//! The scheduler as a reconciler.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use swarm_api::hash::FastMap;
use swarm_api::v1::{GenericResource, Task, TaskState};
use swarm_api::{Kind, Object, Shared, Text, text};
use swarm_reconcile::{
    Assignment, Assignments, Ctx, Decision, Group as Change, Guard, Now, Outcome, Patch, Reconciler, Refused,
    Settled, Write,
};
use swarm_store::{Event, Indexed as _, Tables};

use crate::filter::Requirements;
use crate::nodes::{Nodes, Slot};
use crate::places::{At, Load, Placed};
use crate::preempt::{allows_more, changes_priority, policy_of};
use crate::queue::{Group, GroupNo, Place, Seen};
use crate::services::ServiceNo;
use crate::spread::Chooser;
use crate::track::State;
use crate::verdict::{Tally, Verdict};
use crate::volumes;

static ASSIGNED: Text = text!("scheduler assigned task to node");
static CONFIRMED: Text = text!("scheduler confirmed task can run on preassigned node");

/// Tasks that are put on nodes in one pass, about: what is decided and not written yet takes memory.
const MOST: usize = 1 << 18;
/// So many tasks are looked at ahead of those that are taken note of.
const AHEAD: usize = 16;
/// Assignments in one list.
const LIST: usize = 1024;
/// Bytes that the assignments of a list take at most, unless one alone takes more.
const LIST_BYTES: usize = 512 << 10;

/// Puts tasks that wait on nodes.
///
/// Tasks that come with a node are confirmed first. Each [assignment](Assignment) is guarded by itself, so that one
/// that is refused costs no other; the task is then seen waiting again, and placed anew.
///
/// A task whose end was declared by a manager holds what it has until its agent must have stopped it.
#[derive(Debug)]
pub struct Scheduler {
    state: State,
    pass: u32,
    /// See [`MOST`].
    most: usize,
    assignments: Vec<Assignments>,
    /// Lists whose fate is not known, by pass and number.
    in_flight: BTreeMap<u64, Arc<[Assignment]>>,
}

impl Default for Scheduler {
    fn default() -> Scheduler {
        Scheduler::new()
    }
}

impl Scheduler {
    /// A scheduler that knows nothing yet.
    pub fn new() -> Scheduler {
        Scheduler {
            state: State::default(),
            pass: 0,
            most: MOST,
            assignments: Vec::new(),
            in_flight: BTreeMap::new(),
        }
    }

    /// One that puts about so many tasks on nodes in one pass.
    #[cfg(test)]
    pub(crate) fn with_most(most: usize) -> Scheduler {
        Scheduler { most, ..Scheduler::new() }
    }

    #[cfg(test)]
    pub(crate) fn state(&self) -> &State {
        &self.state
    }
}

impl Reconciler for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    fn init(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) {
        self.state = State::rebuild(&ctx.now, tables);
        self.assignments.clear();
        self.in_flight.clear();
    }

    fn observe(&mut self, ctx: &mut Ctx<'_>, events: &[Event], tables: &Tables) {
        let is_new = |event: &&Event| matches!(event, Event::Created(Object::Task(_)));
        self.state.places.reserve(events.iter().filter(is_new).count());
        for (event, at) in events.iter().zip(0..) {
            if at % AHEAD == 0 {
                look(&events[at..events.len().min(at + AHEAD)]);
            }
            self.state.gates.observe(event);
            match event.kind() {
                Kind::Task => match event.new() {
                    Some(Object::Task(task)) => self.state.put_task(&ctx.now, task, tables),
                    _ => self.state.sync_task(&ctx.now, event.id(), tables),
                },
                Kind::Node => match event.new() {
                    Some(Object::Node(node)) => self.state.put_node(&ctx.now, node, tables),
                    _ => self.state.sync_node(&ctx.now, event.id(), tables),
                },
                Kind::Service => {
                    self.state.sync_service(event.id(), tables);
                    if changes_priority(event) {
                        self.state.groups.note_known();
                    }
                }
                Kind::Cluster if allows_more(event) => self.state.groups.note_known(),
                Kind::Volume => self.state.nodes.volumes.put(event.id(), tables.volumes().get(event.id())),
                _ => {}
            }
        }
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        self.state.release(ctx.now.mono);
        let changed = self.state.nodes.take_changed();
        self.state.wake();
        for no in self.state.telling.due(ctx.now.mono) {
            self.state.groups.note(no);
        }
        // Never 0, which stands for none.
        self.pass = self.pass.wrapping_add(1).max(1);
        let mut pass = Pass {
            state: &mut self.state,
            now: ctx.now,
            tables,
            number: self.pass,
            most: self.most,
            out: Vec::new(),
            assigned: Vec::new(),
            again: false,
            waits: FastMap::default(),
        };
        pass.forgive();
        pass.end_outdated();
        pass.confirm_bound(&changed);
        pass.redeem();
        pass.place_waiting(&changed);
        pass.release_volumes();
        let Pass { out, assigned, again, .. } = pass;
        if !assigned.is_empty() {
            self.state.in_flight.insert(self.pass, Vec::new());
            self.assignments = lists(assigned, self.pass, ctx.now.wall, tables);
            self.in_flight.extend(self.assignments.iter().map(|list| (list.tag, list.list.clone())));
        }
        let hold = self.state.holds.first().map(|(until, _)| *until);
        let soon = again.then_some(ctx.now.mono);
        let (claim, given_up) = (self.state.next_claim(), self.state.gave_up.values().min().copied());
        let wake_at = [hold, soon, claim, given_up, self.state.telling.next()];
        Decision { groups: out, wake_at: wake_at.into_iter().flatten().min() }
    }

    fn assignments(&mut self) -> Vec<Assignments> {
        std::mem::take(&mut self.assignments)
    }

    fn settled(&mut self, ctx: &mut Ctx<'_>, settled: &Settled, tables: &Tables) {
        let Some(list) = self.in_flight.remove(&settled.tag) else { return };
        let mut refused = |assignment: &Assignment| self.state.refused(&ctx.now, &assignment.task, tables);
        match &settled.outcome {
            Outcome::Committed(_) => {}
            Outcome::Refused(Refused::Assignments(places)) => {
                places.iter().filter_map(|at| list.get(*at as usize)).for_each(refused);
            }
            _ => list.iter().for_each(&mut refused),
        }
        if self.state.node_went {
            list.iter().for_each(|assignment| self.state.written(&ctx.now, &assignment.task, tables));
        }
        let pass = (settled.tag >> 32) as u32;
        let of_pass = settled.tag >> 32 << 32..=settled.tag | u64::from(u32::MAX);
        if self.in_flight.range(of_pass).next().is_none() {
            self.state.pass_settled(&ctx.now, pass, tables);
        }
    }
}

/// Looks at tasks, so that the processor has them: it waits for memory once for all of them.
fn look(events: &[Event]) {
    let number = |event: &Event| match event {
        Event::Created(Object::Task(task)) | Event::Updated { new: Object::Task(task), .. } => {
            task.look() ^ task.id.len() as u64
        }
        _ => 0,
    };
    std::hint::black_box(events.iter().fold(0, |all, event| all ^ number(event)));
}

/// Cuts assignments into lists. They are in the order of rows, so that each list touches few places of the store.
fn lists(
    mut assigned: Vec<(Assignment, usize)>,
    pass: u32,
    at: SystemTime,
    tables: &Tables,
) -> Vec<Assignments> {
    assigned.sort_by_cached_key(|(assignment, _)| swarm_store::place_of(&assignment.task));
    let nodes = tables.shared_nodes();
    let mut lists: Vec<Assignments> = Vec::new();
    let mut assigned = assigned.into_iter().peekable();
    while assigned.peek().is_some() {
        let (mut list, mut bytes) = (Vec::with_capacity(LIST), 0);
        while list.len() < LIST
            && bytes < LIST_BYTES
            && let Some((assignment, size)) = assigned.next()
        {
            list.push(assignment);
            bytes += size;
        }
        let tag = u64::from(pass) << 32 | lists.len() as u64;
        lists.push(Assignments { tag, list: list.into(), at, bytes, nodes: nodes.clone() });
    }
    lists
}

/// One look at everything that may be decided.
pub(crate) struct Pass<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) now: Now,
    pub(crate) tables: &'a Tables,
    number: u32,
    most: usize,
    pub(crate) out: Vec<Change>,
    /// With the most bytes that they take in a log entry.
    assigned: Vec<(Assignment, usize)>,
    /// There is more to do at once.
    pub(crate) again: bool,
    /// Why tasks of a service and version wait for other services, if they do.
    pub(crate) waits: FastMap<(String, Option<u64>), Option<String>>,
}

impl Pass<'_> {
    /// Ends tasks that nobody else would end.
    fn end_outdated(&mut self) {
        for task in std::mem::take(&mut self.state.outdated) {
            tracing::info!(task.id = %task, "task of an earlier version of its service ends without having run");
            let task = String::from(&*task);
            let guards = vec![Guard::TaskState(task.clone(), TaskState::Pending)];
            let write = Write::RaiseState {
                task,
                state: TaskState::Shutdown,
                message: "shutdown".to_owned(),
                err: String::new(),
                at: self.now.wall,
            };
            self.emit(guards, write);
        }
    }

    /// Looks at the tasks that wait for nodes of their own: new ones, and those of nodes that changed.
    fn confirm_bound(&mut self, changed: &[Slot]) {
        let mut look = std::mem::take(&mut self.state.fresh_bound);
        if self.state.nodes.volumes.changed {
            look.extend(
                self.state
                    .bound
                    .iter()
                    .flat_map(|(node, tasks)| tasks.keys().map(|t| (node.clone(), t.clone()))),
            );
        }
        if !self.state.bound.is_empty() {
            for slot in changed {
                let node = &self.state.nodes.get(*slot).id;
                if let Some(tasks) = self.state.bound.get(node) {
                    look.extend(tasks.keys().map(|task| (node.clone(), task.clone())));
                }
            }
        }
        for (node, id) in look {
            let Some(task) = self.state.bound.get(&node).and_then(|tasks| tasks.get(&id)).cloned() else {
                continue;
            };
            if let Some((service, text)) = self.waits(&task) {
                self.state.gates.hold(self.tables, service, Some((node, id)));
                self.explain(&task, &text);
                continue;
            }
            let Some(slot) = self.state.nodes.slot(&node) else { continue };
            let requirements = Requirements::of(&task);
            let nodes = &mut self.state.nodes;
            let service = nodes.services.enter(&task.service_id);
            let needs = self.state.index.needs(&requirements.fixed, nodes);
            let fixed = needs.verdicts[slot];
            let verdict = requirements.verdict(fixed, nodes, service, slot);
            if verdict == Verdict::Fits {
                nodes.services.leave(service);
                self.state.forget(&id);
                self.put(&id, &task, &requirements, slot);
            } else {
                nodes.services.leave(service);
                let mut tally = Tally::default();
                tally.add(verdict);
                self.explain(&task, &tally.explanation(requirements.runtime()));
            }
        }
    }

    /// Looks at the groups that wait: those with new tasks, and those that a changed node may help.
    fn place_waiting(&mut self, changed: &[Slot]) {
        let state = &mut *self.state;
        if std::mem::take(&mut state.nodes.volumes.changed) {
            let known: Vec<GroupNo> = state.groups.known.iter().copied().collect();
            for no in known {
                let Some(group) = state.groups.get_mut(no).filter(|g| !g.requirements.volumes.is_empty())
                else {
                    continue;
                };
                let needs = state.index.needs(&group.requirements.fixed, &state.nodes);
                let mut news = false;
                for (slot, fixed) in needs.verdicts.iter().enumerate() {
                    let verdict = group.requirements.verdict(*fixed, &state.nodes, group.service, slot);
                    news |= group.set_verdict(slot, verdict);
                }
                if news {
                    state.groups.note(no);
                }
            }
        }
        if !changed.is_empty() {
            let known: Vec<GroupNo> = state.groups.known.iter().copied().collect();
            for no in known {
                let Some(group) = state.groups.get_mut(no) else { continue };
                let needs = state.index.needs(&group.requirements.fixed, &state.nodes);
                let mut news = false;
                for slot in changed {
                    let fixed = needs.verdicts[*slot];
                    let verdict = group.requirements.verdict(fixed, &state.nodes, group.service, *slot);
                    news |= group.set_verdict(*slot, verdict);
                }
                if news {
                    state.groups.note(no);
                }
            }
        }
        let (mut ready, mut stuck) = (Vec::new(), Vec::new());
        for no in state.groups.take_noted() {
            let task = self.state.groups.get(no).and_then(|group| group.any_task(self.tables));
            let Some(task) = task.cloned() else { continue };
            if let Some((service, text)) = self.waits(&task) {
                self.hold(no, service, text);
                continue;
            }
            let Some(group) = self.state.groups.get(no) else { continue };
            let priority = policy_of(self.tables, &group.key.service).priority;
            let list = if group.is_stuck() { &mut stuck } else { &mut ready };
            list.push((Reverse(priority), group.since, group.key.clone(), no));
        }
        // Of one priority, who has waited longest goes first.
        stuck.sort_unstable();
        ready.sort_unstable();
        for (.., no) in stuck {
            if let Some(group) = self.state.groups.take(no) {
                self.leave_waiting(no, group, Vec::new());
            }
        }
        for (.., no) in ready {
            if self.assigned.len() >= self.most {
                self.put_off(no);
            } else if let Some(group) = self.state.groups.take(no) {
                self.place(no, group);
            }
        }
    }

    /// The group's turn comes when what was decided so far is about to be written.
    fn put_off(&mut self, no: GroupNo) {
        self.state.groups.note(no);
        self.again = true;
    }

    /// Puts as many tasks of a group on nodes as find room, up to what is left of this pass.
    fn place(&mut self, no: GroupNo, mut group: Group) {
        let policy = policy_of(self.tables, &group.key.service);
        let State { nodes, index, places, loads, sizer, .. } = &mut *self.state;
        let candidates = group.candidates();
        let tasks = group.take_tasks();
        let requirements = group.requirements.clone();
        let needs = index.needs(&requirements.fixed, nodes);
        let mut chooser = Chooser::new(
            needs,
            nodes,
            &requirements,
            group.service,
            (policy.strategy, self.now.mono),
            tasks.len(),
            candidates.as_deref(),
        );
        let (mut placed, mut gone, mut full) = (0, 0, false);
        let (mut fresh, mut with_volumes) = (Vec::new(), Vec::new());
        let most = self.most - self.assigned.len().min(self.most - 1);
        let mut left = Vec::new();
        for (place, seen) in tasks {
            if placed >= most && !full {
                left.push((place, seen));
                continue;
            }
            let at = match &seen {
                Seen::Fresh { at, .. } => places.at(*at, &place.1),
                Seen::Known(_) => places.get_mut(&place.1),
            };
            let Some(at) = at else { continue };
            if !matches!(at, At::Waiting(known, slot) if (*known, *slot) == (no, place.0)) {
                continue;
            }
            let (load, bytes) = match &seen {
                Seen::Fresh { load, bytes, .. } => (load.clone(), *bytes as usize),
                Seen::Known(task) => (loads.of(&task.spec, task.endpoint.as_ref()), sizer.bytes_of(task)),
            };
            let mut chosen = None;
            full = full
                || !chooser.place(nodes, &mut |nodes, slot| {
                    chosen = Some((slot, enter(nodes, slot, group.service, &place.1, &load, &requirements)));
                });
            let Some((slot, generic)) = chosen else {
                match (seen, self.tables.tasks().get(&place.1)) {
                    (Seen::Known(task), _) => drop(group.tasks.insert(place, task)),
                    (Seen::Fresh { .. }, Some(task)) => {
                        fresh.push(place.clone());
                        group.tasks.insert(place, task.clone());
                    }
                    (Seen::Fresh { .. }, None) => {
                        places.remove(&place.1);
                        gone += 1;
                    }
                }
                continue;
            };
            placed += 1;
            nodes.services.enter_again(group.service);
            *at = At::Placed(Placed::new(nodes, slot, group.service, load, generic.clone(), self.number));
            let node = nodes.get(slot).id.clone();
            let assignment =
                Assignment { task: place.1, node, bound: false, generic, message: ASSIGNED.clone() };
            if requirements.volumes.is_empty() {
                let bytes = bytes + assignment.bytes();
                self.assigned.push((assignment, bytes));
            } else {
                with_volumes.push(assignment);
            }
        }
        group.placed(placed + gone);
        let put_off = !left.is_empty();
        let waits = !group.is_empty() && !put_off;
        group.put_back(left);
        if waits {
            group.set_verdicts((0..nodes.all().len()).map(|slot| chooser.verdict(nodes, slot)).collect());
        }
        chooser.finish(nodes);
        for assignment in with_volumes {
            self.assign_with_volumes(assignment);
        }
        if waits {
            self.leave_waiting(no, group, fresh);
        } else {
            self.state.groups.put_back(no, group, &mut self.state.nodes.services);
        }
        if put_off {
            self.put_off(no);
        }
    }

    /// The tasks of a group find no node for now: tell the user why, if that is news.
    fn leave_waiting(&mut self, no: GroupNo, mut group: Group, look: Vec<Place>) {
        let service = group.key.service.clone();
        if !service.is_empty() && self.tables.services().get(&service).is_none() {
            self.state.groups.put_back(no, group, &mut self.state.nodes.services);
            return self.state.drop_group(no);
        }
        let text = group.text();
        self.tell_group(no, &mut group, text, look);
        self.state.groups.put_back(no, group, &mut self.state.nodes.services);
        self.preempt(no);
    }

    /// Tells the user why the tasks of a group wait. Those at these places were not looked at before.
    pub(crate) fn tell_group(&mut self, no: GroupNo, group: &mut Group, text: String, mut look: Vec<Place>) {
        for (place, _) in group.take_fresh() {
            if matches!(self.state.places.get(&place.1), Some(At::Waiting(known, slot)) if (*known, *slot) == (no, place.0))
                && let Some(task) = self.tables.tasks().get(&place.1)
            {
                look.push(place.clone());
                group.tasks.insert(place, task.clone());
            }
        }
        if group.told != text {
            tracing::info!(service.id = %group.key.service, tasks = group.tasks.len(), "{text}");
            group.tell(text);
        }
        // Those that say nothing yet are told at once, others little by little.
        let mut now = Vec::new();
        for place in look {
            match group.tasks.get(&place) {
                Some(task) if task.status.err.is_empty() => {
                    self.explain(task, &group.told);
                    now.push(place);
                }
                Some(task) if task.status.err != group.told => group.falls_behind(place),
                _ => {}
            }
        }
        let telling = &mut self.state.telling;
        let behind = group.take_behind(telling.left(self.now.mono), &now);
        telling.told(no, behind.len(), group.is_behind());
        for task in &behind {
            self.tell(task, &group.told);
        }
    }

    /// Puts a task that waits nowhere on a node that fits.
    pub(crate) fn put(&mut self, id: &Text, task: &Shared<Task>, requirements: &Requirements, slot: Slot) {
        let state = &mut *self.state;
        let service = state.nodes.services.enter(&task.service_id);
        let load = state.loads.of(&task.spec, task.endpoint.as_ref());
        let generic = enter(&mut state.nodes, slot, service, id, &load, requirements);
        let placed = Placed::new(&state.nodes, slot, service, load, generic.clone(), self.number);
        let bound = !task.node_id.is_empty();
        state.places.insert(id.clone(), At::Placed(Placed { bound, ..placed }));
        let message = if bound { CONFIRMED.clone() } else { ASSIGNED.clone() };
        let node = state.nodes.get(slot).id.clone();
        let assignment = Assignment { task: id.clone(), node, bound, generic, message };
        if requirements.volumes.is_empty() {
            let bytes = state.sizer.bytes_of(task) + assignment.bytes();
            self.assigned.push((assignment, bytes));
        } else {
            self.assign_with_volumes(assignment);
        }
    }

    /// Tells the user why a task waits, unless that is what it says already.
    pub(crate) fn explain(&mut self, task: &Task, err: &str) {
        if task.status.err != err {
            self.tell(task, err);
        }
    }

    fn tell(&mut self, task: &Task, err: &str) {
        let guards = vec![Guard::TaskState(task.id.to_string(), TaskState::Pending)];
        self.emit(
            guards,
            Write::Explain { task: task.id.to_string(), err: err.to_owned(), at: self.now.wall },
        );
    }

    /// A task is in its node's account, with volumes that are taken in the same group: say so.
    fn assign_with_volumes(&mut self, assignment: Assignment) {
        if let Some(At::Placed(placed)) = self.state.places.get_mut(&assignment.task) {
            placed.pass = 0;
        }
        let volumes = self.state.nodes.volumes.of(&assignment.task).to_vec();
        let (id, node) = (assignment.task.to_string(), assignment.node.to_string());
        let on = if assignment.bound { node.clone() } else { String::new() };
        let mut guards = vec![
            Guard::TaskState(id.clone(), TaskState::Pending),
            Guard::DesiredAtMost(id.clone(), TaskState::Complete),
            Guard::TaskOnNode(id.clone(), on),
            Guard::NodeUsable(node.clone()),
        ];
        guards.extend(volumes.iter().map(|volume| Guard::VolumeUsable(volume.id.clone())));
        let published = volumes.iter().map(|volume| Patch::new(volumes::publish(&volume.id, &node)));
        let published: Vec<Patch> = published.collect();
        let write = Write::Assign {
            task: id,
            node,
            generic: assignment.generic,
            volumes,
            message: assignment.message.to_string(),
            at: self.now.wall,
        };
        let patches = std::iter::once(Patch { guards, write }).chain(published).collect();
        self.out.push(Change { tag: 0, patches });
    }

    /// Volumes leave nodes where nobody uses them any more.
    fn release_volumes(&mut self) {
        for (volume, nodes) in self.state.nodes.volumes.take_idle() {
            let guards = vec![Guard::Exists(Kind::Volume, volume.clone())];
            self.emit(guards, volumes::unpublish(&volume, nodes));
        }
    }

    fn emit(&mut self, guards: Vec<Guard>, write: Write) {
        self.out.push(Change { tag: 0, patches: vec![Patch { guards, write }] });
    }
}

/// Enters a task in the account of a node that fits, and chooses its generic resources and volumes.
fn enter(
    nodes: &mut Nodes,
    slot: Slot,
    service: ServiceNo,
    id: &Text,
    load: &Load,
    requirements: &Requirements,
) -> Vec<GenericResource> {
    if !requirements.volumes.is_empty() {
        let node = nodes.get(slot);
        let volumes = nodes.volumes.choose(&requirements.volumes, node.info.node());
        let (node, volumes) = (node.id.clone(), volumes.unwrap_or_default());
        nodes.volumes.enter(id, &node, load.spec(), &volumes);
    }
    let info = &mut nodes.get_mut(slot).info;
    let generic = info.claim(&requirements.demand).expect("a node that fits has what is asked of it");
    nodes.enter(slot, service, load.holding(&generic, true), true);
    generic
}
