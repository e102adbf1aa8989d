//! The scheduler as a reconciler.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use swarm_api::hash::FastMap;
use swarm_api::v1::{Task, TaskState};
use swarm_api::{Kind, Object, Text};
use swarm_reconcile::{
    Assignment, Assignments, Ctx, Decision, Group as Change, Guard, Now, Outcome, Patch, Reconciler, Refused,
    Settled, Write,
};
use swarm_store::{Event, Indexed as _, Tables};

use crate::nodes::Slot;
use crate::preempt::{Tenants, allows_more, changes_priority};
use crate::track::State;
use crate::volumes;

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
                    self.state.lowest_priority = None;
                    if changes_priority(event) {
                        self.state.note_all_waiting();
                    }
                }
                Kind::Cluster if allows_more(event) => self.state.note_all_waiting(),
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
            told: 0,
            waits: FastMap::default(),
            tenants: FastMap::default(),
            claims: 0,
            displaced: BTreeSet::new(),
        };
        pass.forgive();
        pass.end_outdated();
        pass.redeem(&changed);
        pass.confirm_bound(&changed);
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
        self.state.displacement_settled(&ctx.now, settled, tables);
        let Some(list) = self.in_flight.remove(&settled.tag) else { return };
        let pass = (settled.tag >> 32) as u32;
        let mut refused =
            |assignment: &Assignment| self.state.refused(&ctx.now, &assignment.task, pass, tables);
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
    pub(crate) number: u32,
    pub(crate) most: usize,
    pub(crate) out: Vec<Change>,
    /// With the most bytes that they take in a log entry.
    pub(crate) assigned: Vec<(Assignment, usize)>,
    /// There is more to do at once.
    pub(crate) again: bool,
    /// Tasks that were looked at to be told something for the first time.
    pub(crate) told: usize,
    /// Why tasks of a service and version wait for other services, if they do.
    pub(crate) waits: FastMap<(String, Option<u64>), Option<String>>,
    /// Who is on nodes and may have to go, as far as that was asked.
    pub(crate) tenants: FastMap<Slot, Arc<Tenants>>,
    /// Services of which tasks were displaced. That is written after the assignments of this pass.
    pub(crate) displaced: BTreeSet<Text>,
    /// Claims of tasks of nodes of their own.
    pub(crate) claims: usize,
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

    /// Tells the user why a task waits, unless that is what it says already.
    pub(crate) fn explain(&mut self, task: &Task, err: &str) {
        // Nobody tells us what we wrote ourselves, so a task that was looked at earlier may say something else by now.
        let known = self.tables.tasks().get(&task.id).map_or(&task.status.err, |known| &known.status.err);
        if known != err {
            self.tell(task, err);
        }
    }

    pub(crate) fn tell(&mut self, task: &Task, err: &str) {
        let guards = vec![Guard::TaskState(task.id.to_string(), TaskState::Pending)];
        self.emit(
            guards,
            Write::Explain { task: task.id.to_string(), err: err.to_owned(), at: self.now.wall },
        );
    }

    /// Volumes leave nodes where nobody uses them any more.
    pub(crate) fn release_volumes(&mut self) {
        for (volume, nodes) in self.state.nodes.volumes.take_idle() {
            let guards = vec![Guard::Exists(Kind::Volume, volume.clone())];
            self.emit(guards, volumes::unpublish(&volume, nodes));
        }
    }

    fn emit(&mut self, guards: Vec<Guard>, write: Write) {
        self.out.push(Change { tag: 0, patches: vec![Patch { guards, write }] });
    }
}
