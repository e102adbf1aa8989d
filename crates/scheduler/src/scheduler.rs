//! The scheduler as a reconciler.

use std::collections::BTreeSet;
use std::sync::Arc;

use swarm_api::Kind;
use swarm_api::v1::{GenericResource, Task, TaskState};
use swarm_placement::{FAILURE_LIMIT, Holding};
use swarm_reconcile::{Ctx, Decision, Group as Change, Guard, Now, Patch, Reconciler, Write};
use swarm_store::{Event, Tables};

use crate::filter::Requirements;
use crate::nodes::{Nodes, Slot};
use crate::queue::{Group, GroupKey};
use crate::spread::{Leaf, Rank, Tree};
use crate::track::{At, Placed, State};
use crate::verdict::{Tally, Verdict};

const ASSIGNED: &str = "scheduler assigned task to node";
const CONFIRMED: &str = "scheduler confirmed task can run on preassigned node";

/// Puts tasks that wait on nodes.
///
/// Tasks that come with a node are confirmed first. Each assignment is a [group](Change) of its own, guarded by
/// the node being READY and ACTIVE and the task still waiting, so that one that is refused costs no other; the
/// task is then seen waiting again, and placed anew.
///
/// A task whose end was declared by a manager holds what it has until its agent must have stopped it.
#[derive(Debug, Default)]
pub struct Scheduler {
    state: State,
    tag: u64,
}

impl Scheduler {
    /// A scheduler that knows nothing yet.
    pub fn new() -> Scheduler {
        Scheduler::default()
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
    }

    fn observe(&mut self, ctx: &mut Ctx<'_>, events: &[Event], tables: &Tables) {
        for event in events {
            match event.kind() {
                Kind::Task => self.state.sync_task(&ctx.now, event.id(), tables),
                Kind::Node => self.state.sync_node(&ctx.now, event.id(), tables),
                Kind::Service => self.state.sync_service(event.id(), tables),
                _ => {}
            }
        }
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        self.state.release(ctx.now.mono);
        let mut pass =
            Pass { state: &mut self.state, now: ctx.now, tables, tag: &mut self.tag, out: Vec::new() };
        let changed = std::mem::take(&mut pass.state.nodes.changed);
        pass.end_outdated();
        pass.confirm_bound(&changed);
        pass.place_waiting(&changed);
        let groups = pass.out;
        Decision { groups, wake_at: self.state.holds.first().map(|(until, _)| *until) }
    }
}

/// One look at everything that may be decided.
struct Pass<'a> {
    state: &'a mut State,
    now: Now,
    tables: &'a Tables,
    tag: &'a mut u64,
    out: Vec<Change>,
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
    fn confirm_bound(&mut self, changed: &BTreeSet<Slot>) {
        let mut look = std::mem::take(&mut self.state.fresh_bound);
        if !self.state.bound.is_empty() {
            for slot in changed {
                let node = &self.state.nodes.get(*slot).id;
                if let Some(tasks) = self.state.bound.get(node) {
                    look.extend(tasks.keys().map(|task| (node.clone(), task.clone())));
                }
            }
        }
        // Tasks of one service ask the same.
        let mut known: Option<(GroupKey, Requirements)> = None;
        for (node, id) in look {
            let Some(task) = self.state.bound.get(&node).and_then(|tasks| tasks.get(&id)).cloned() else {
                continue;
            };
            let Some(slot) = self.state.nodes.slot(&node) else { continue };
            let key = GroupKey::of(&task);
            let requirements = match &known {
                Some((k, requirements)) if *k == key => requirements,
                _ => &known.insert((key, Requirements::of(&task))).1,
            };
            let nodes = &mut self.state.nodes;
            let table = nodes.table(&requirements.fixed);
            let verdict = nodes.verdict(table, requirements, slot);
            if verdict == Verdict::Fits {
                let generic = enter(nodes, slot, &id, &task, requirements);
                self.state.forget(&id);
                self.assign(id, Placed { slot, task, generic, active: true, bound: true, until: None });
            } else {
                let mut tally = Tally::default();
                tally.add(verdict);
                self.explain(&task, &tally.explanation(requirements.runtime()));
            }
        }
    }

    /// Looks at the groups that wait: those with new tasks, and those that a changed node may help.
    fn place_waiting(&mut self, changed: &BTreeSet<Slot>) {
        let mut look = std::mem::take(&mut self.state.fresh_groups);
        if !changed.is_empty() {
            let State { nodes, groups, .. } = &mut *self.state;
            for (key, group) in groups.iter_mut().filter(|(_, group)| group.is_known()) {
                let table = nodes.table(&group.requirements.fixed);
                let mut news = false;
                for slot in changed {
                    news |= group.set_verdict(*slot, nodes.verdict(table, &group.requirements, *slot));
                }
                if news && !look.contains(key) {
                    look.insert(key.clone());
                }
            }
        }
        let (mut ready, mut stuck) = (Vec::new(), Vec::new());
        for key in look {
            match self.state.groups.get(&key) {
                Some(group) if group.is_stuck() => stuck.push(key),
                Some(group) => ready.push((group.since, key)),
                None => {}
            }
        }
        for key in stuck {
            if let Some(group) = self.state.groups.remove(&key) {
                self.leave_waiting(key, group);
            }
        }
        // Who has waited longest goes first.
        ready.sort_unstable();
        for (_, key) in ready {
            if let Some(group) = self.state.groups.remove(&key) {
                self.place(key, group);
            }
        }
    }

    /// Puts as many tasks of a group on nodes as find room.
    fn place(&mut self, key: GroupKey, mut group: Group) {
        let nodes = &mut self.state.nodes;
        let requirements = &group.requirements;
        let table = nodes.table(&requirements.fixed);
        let order = nodes.order();
        let verdicts: Vec<Verdict> =
            order.iter().map(|slot| nodes.verdict(table, requirements, *slot)).collect();
        let mut tree = tree(nodes, &self.now, requirements, &order, &verdicts);
        let (mut placed, mut full) = (Vec::new(), Vec::new());
        while let Some((place, task)) = group.tasks.pop_first() {
            let mut chosen = None;
            tree.place(&mut |slot, rank| {
                chosen = Some((slot, enter(nodes, slot, &place.1, &task, requirements)));
                match nodes.verdict(table, requirements, slot) {
                    Verdict::Fits => {
                        Some(Rank { of_service: rank.of_service + 1, active: rank.active + 1, ..rank })
                    }
                    verdict => {
                        full.push((slot, verdict));
                        None
                    }
                }
            });
            let Some((slot, generic)) = chosen else {
                group.tasks.insert(place, task);
                break;
            };
            group.fresh.remove(&place);
            placed.push((place.1, Placed { slot, task, generic, active: true, bound: false, until: None }));
        }
        for (id, placed) in placed {
            self.assign(id, placed);
        }
        if group.tasks.is_empty() {
            return;
        }
        group.forget_verdicts();
        for (slot, verdict) in order.iter().zip(verdicts) {
            group.set_verdict(*slot, verdict);
        }
        for (slot, verdict) in full {
            group.set_verdict(slot, verdict);
        }
        self.leave_waiting(key, group);
    }

    /// The tasks of a group find no node for now: tell the user why, if that is news.
    fn leave_waiting(&mut self, key: GroupKey, mut group: Group) {
        if !key.service.is_empty() && self.tables.services().get(&key.service).is_none() {
            self.state.groups.insert(key.clone(), group);
            self.state.drop_group(&key);
            return;
        }
        let text = group.text();
        let fresh = std::mem::take(&mut group.fresh);
        if group.told != text {
            tracing::info!(service.id = %key.service, tasks = group.tasks.len(), "{text}");
            group.told = text;
            for task in group.tasks.values() {
                self.explain(task, &group.told);
            }
        } else {
            for task in fresh.iter().filter_map(|place| group.tasks.get(place)) {
                self.explain(task, &group.told);
            }
        }
        self.state.groups.insert(key, group);
    }

    /// A task is in its node's account: say so.
    fn assign(&mut self, id: Arc<str>, placed: Placed) {
        let (node, task) = (String::from(&*self.state.nodes.get(placed.slot).id), String::from(&*id));
        tracing::info!(
            task.id = %task, node.id = %node, service.id = %placed.task.service_id,
            "{}", if placed.bound { "task confirmed on its node" } else { "task assigned to node" }
        );
        let on = if placed.bound { node.clone() } else { String::new() };
        let guards = vec![
            Guard::TaskState(task.clone(), TaskState::Pending),
            Guard::DesiredAtMost(task.clone(), TaskState::Complete),
            Guard::TaskOnNode(task.clone(), on),
            Guard::NodeUsable(node.clone()),
        ];
        let write = Write::Assign {
            task,
            node,
            generic: placed.generic.clone(),
            volumes: Vec::new(),
            message: if placed.bound { CONFIRMED } else { ASSIGNED }.to_owned(),
            at: self.now.wall,
        };
        self.state.places.insert(id, At::Placed(placed));
        self.emit(guards, write);
    }

    /// Tells the user why a task waits, unless that is what it says already.
    fn explain(&mut self, task: &Task, err: &str) {
        if task.status.err == err {
            return;
        }
        let guards = vec![Guard::TaskState(task.id.clone(), TaskState::Pending)];
        self.emit(guards, Write::Explain { task: task.id.clone(), err: err.to_owned(), at: self.now.wall });
    }

    fn emit(&mut self, guards: Vec<Guard>, write: Write) {
        *self.tag += 1;
        self.out.push(Change { tag: *self.tag, patches: vec![Patch { guards, write }] });
    }
}

/// Enters a task in the account of a node that fits, and chooses its generic resources.
fn enter(
    nodes: &mut Nodes,
    slot: Slot,
    id: &Arc<str>,
    task: &Task,
    requirements: &Requirements,
) -> Vec<GenericResource> {
    let node = nodes.get_mut(slot);
    let generic = node.info.claim(&requirements.demand).expect("a node that fits has what is asked of it");
    node.info.add_claimed(Holding { task, generic: &generic, active: true });
    node.tasks.insert(id.clone());
    generic
}

/// The nodes of a group to choose from.
fn tree(nodes: &Nodes, now: &Now, requirements: &Requirements, order: &[Slot], verdicts: &[Verdict]) -> Tree {
    let leaves = order.iter().zip(verdicts).enumerate().filter_map(|(order, (slot, verdict))| {
        let fits = *verdict == Verdict::Fits;
        // Without branches, nodes that do not fit have no part in it.
        if !fits && requirements.spread.is_empty() {
            return None;
        }
        let info = &nodes.get(*slot).info;
        let failures = info.failures.count(&requirements.service, requirements.version, now.mono);
        let rank = Rank {
            failures: if failures >= FAILURE_LIMIT { failures as u32 } else { 0 },
            of_service: info.active_of(&requirements.service),
            active: info.active(),
            order: order as u32,
        };
        Some(Leaf { node: info.node(), slot: *slot, rank, fits })
    });
    Tree::new(&requirements.spread, &leaves.collect::<Vec<_>>())
}
