//! Tasks that may go to any node are given one, group by group.

use std::cmp::Reverse;

use swarm_api::v1::{GenericResource, Task, TaskState};
use swarm_api::{Kind, Shared, Text, text};
use swarm_reconcile::{Assignment, Group as Change, Guard, Patch, Write};

use crate::bound::was_moved;
use crate::filter::Requirements;
use crate::nodes::{Nodes, Slot};
use crate::places::{At, Load, Placed};
use crate::preempt::{is_allowed, policy_of};
use crate::queue::{Group, GroupNo, Seen, Telling};
use crate::scheduler::Pass;
use crate::services::ServiceNo;
use crate::spread::Chooser;
use crate::track::State;
use crate::verdict::Verdict;
use crate::volumes;

static ASSIGNED: Text = text!("scheduler assigned task to node");
static CONFIRMED: Text = text!("scheduler confirmed task can run on preassigned node");

impl Pass<'_> {
    /// Looks at the groups that wait: those with new tasks, and those that a changed node may help.
    pub(crate) fn place_waiting(&mut self, changed: &[Slot]) {
        if std::mem::take(&mut self.state.nodes.volumes.changed) {
            let all: Vec<Slot> = (0..self.state.nodes.all().len()).collect();
            self.ask_again(&all, |requirements| !requirements.volumes.is_empty());
        }
        if !changed.is_empty() {
            self.ask_again(changed, |_| true);
        }
        let (mut look, mut held) = (Vec::new(), Vec::new());
        for no in self.state.groups.take_noted() {
            let task = self.state.groups.get(no).and_then(|group| group.any_task(self.tables));
            let Some(task) = task.cloned() else { continue };
            if let Some((service, text)) = self.waits(&task) {
                held.push((no, service, text));
                continue;
            }
            let Some(group) = self.state.groups.get(no) else { continue };
            let priority = policy_of(self.tables, &group.key.service).priority;
            look.push((Reverse(priority), !group.is_stuck(), group.since, group.key.clone(), no));
        }
        // Of one priority, those who make room for themselves go first; then who has waited longest.
        look.sort_unstable();
        for (_, is_ready, .., no) in look {
            if is_ready && (self.assigned.len() >= self.most || self.may_exceed_replicas(no)) {
                self.put_off(no);
            } else if let Some(group) = self.state.groups.take(no) {
                match is_ready {
                    true => self.place(no, group),
                    false => self.leave_waiting(no, group),
                }
            }
        }
        // Nobody has to wait for what is only told.
        for (no, service, text) in held {
            self.hold(no, service, text);
        }
    }

    /// The group's turn comes when what was decided so far is about to be written.
    pub(crate) fn put_off(&mut self, no: GroupNo) {
        self.state.groups.note(no);
        self.again = true;
    }

    /// Tasks of the group's service were displaced in this pass, and it limits how many a node has: until that is written
    /// they count.
    fn may_exceed_replicas(&self, no: GroupNo) -> bool {
        let group = self.state.groups.get(no);
        group.is_some_and(|group| {
            group.requirements.max_replicas > 0 && self.displaced.contains(group.key.service.as_str())
        })
    }

    /// What nodes say to these groups, of those that were looked at, may be something else now.
    fn ask_again(&mut self, slots: &[Slot], of: impl Fn(&Requirements) -> bool) {
        let lowest = is_allowed(self.tables).then(|| self.lowest_priority());
        let (state, tables) = (&mut *self.state, self.tables);
        let known: Vec<GroupNo> = state.groups.known.iter().copied().collect();
        for no in known {
            let Some(group) = state.groups.get_mut(no).filter(|group| of(&group.requirements)) else {
                continue;
            };
            let needs = state.index.needs(&group.requirements.fixed, &state.nodes);
            let mut news = false;
            let is_above = |lowest| policy_of(tables, &group.requirements.service).priority > lowest;
            let displaces = group.is_stuck() && lowest.is_some_and(is_above);
            for slot in slots {
                let fixed = needs.verdicts[*slot];
                let verdict = group.requirements.verdict(fixed, &state.nodes, group.service, *slot);
                news |= group.set_verdict(*slot, verdict);
                // Who is there may be others now, of lower priorities.
                news |= displaces
                    && fixed == Verdict::Fits
                    && matches!(verdict, Verdict::Resources | Verdict::Ports);
            }
            if news {
                state.groups.note(no);
            }
        }
    }

    /// Puts as many tasks of a group on nodes as find room, up to what is left of this pass. The first one that finds none
    /// speaks for all after it, which are not looked at.
    fn place(&mut self, no: GroupNo, mut group: Group) {
        let policy = policy_of(self.tables, &group.key.service);
        let State { nodes, index, places, loads, sizer, .. } = &mut *self.state;
        let candidates = group.candidates();
        let requirements = group.requirements.clone();
        let mut chooser = Chooser::new(
            index,
            nodes,
            &requirements,
            group.service,
            (policy.strategy, self.now.mono),
            group.len(),
            candidates.as_deref(),
        );
        let (mut placed, mut full, mut last) = (0, false, None);
        let mut with_volumes = Vec::new();
        let most = self.most - self.assigned.len().min(self.most - 1);
        let mut fresh = group.take_fresh().into_iter().peekable();
        while let Some((place, seen)) = group.take_next(&mut fresh) {
            if placed >= most {
                last = Some((place, seen));
                break;
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
            chooser.place(nodes, &mut |nodes, slot| {
                let generic = enter(nodes, slot, group.service, &place.1, &load, &requirements, None);
                chosen = generic.map(|generic| (slot, generic));
            });
            let Some((slot, generic)) = chosen else {
                (last, full) = (Some((place, seen)), true);
                break;
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
        let put_off = last.is_some() && !full;
        group.placed(placed);
        group.put_back(last, fresh);
        if full {
            match &candidates {
                // Only these may have changed.
                Some(slots) => slots.iter().for_each(|slot| {
                    group.set_verdict(*slot, chooser.verdict(nodes, *slot));
                }),
                None => {
                    let verdict = |slot| chooser.verdict(nodes, slot);
                    group.set_verdicts((0..nodes.all().len()).map(verdict).collect());
                }
            }
        }
        chooser.finish(nodes);
        for assignment in with_volumes {
            self.assign_with_volumes(assignment);
        }
        if full {
            self.leave_waiting(no, group);
        } else {
            self.state.groups.put_back(no, group, &mut self.state.nodes.services);
        }
        if put_off {
            self.put_off(no);
        }
    }

    /// The tasks of a group find no node for now: tell the user why, if that is news.
    fn leave_waiting(&mut self, no: GroupNo, mut group: Group) {
        let service = group.key.service.clone();
        if !service.is_empty() && self.tables.services().get(&service).is_none() {
            self.state.groups.put_back(no, group, &mut self.state.nodes.services);
            return self.state.drop_group(no);
        }
        let text = group.text();
        let more = self.tell_group(no, &mut group, text);
        self.state.groups.put_back(no, group, &mut self.state.nodes.services);
        if more {
            self.put_off(no);
        }
        self.preempt(no);
    }

    /// Tells the user why the tasks of a group wait. True if there are so many that others must have their turn before the
    /// rest: then it is to be looked at again.
    pub(crate) fn tell_group(&mut self, no: GroupNo, group: &mut Group, text: String) -> bool {
        let mut look = Vec::new();
        let mut fresh = group.take_fresh();
        // All of them are moved each time, so of very many more at once are told.
        let most = Telling::MOST_NEW.max(fresh.len() / 16);
        let left = most - self.told.min(most);
        let rest = fresh.split_off(left.min(fresh.len()));
        let more = !rest.is_empty();
        self.told += fresh.len();
        for (place, _) in fresh {
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
        // Those that say nothing yet are told as soon as can be, others little by little.
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
        group.put_back(None, rest.into_iter().peekable());
        more
    }

    /// Puts a task that waits nowhere on a node that fits. If it does not after all, the task waits again.
    pub(crate) fn put(&mut self, id: &Text, task: &Shared<Task>, requirements: &Requirements, slot: Slot) {
        self.put_with(id, task, requirements, slot, None);
    }

    /// The same, perhaps with generic resources that were chosen already.
    pub(crate) fn put_with(
        &mut self,
        id: &Text,
        task: &Shared<Task>,
        requirements: &Requirements,
        slot: Slot,
        chosen: Option<Vec<GenericResource>>,
    ) {
        let state = &mut *self.state;
        let service = state.nodes.services.enter(&task.service_id);
        let load = state.loads.of(&task.spec, task.endpoint.as_ref());
        let Some(generic) = enter(&mut state.nodes, slot, service, id, &load, requirements, chosen) else {
            state.nodes.services.leave(service);
            return state.put_task(&self.now, task, self.tables);
        };
        let placed = Placed::new(&state.nodes, slot, service, load, generic.clone(), self.number);
        let bound = !task.node_id.is_empty();
        let of_node = bound && !was_moved(task);
        state.places.insert(id.clone(), At::Placed(Placed { bound: of_node, ..placed }));
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
        // As it was when it was chosen; if it is not, another look is taken at once.
        guards.extend(
            self.tables
                .nodes()
                .get(&node)
                .map(|known| Guard::Version(Kind::Node, node.clone(), known.meta.version.index)),
        );
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
}

/// Enters a task in the account of a node that fits, and chooses its generic resources, unless that was done, and volumes.
/// `None`, and nothing is entered, if some of them can't be had: a task never goes without.
fn enter(
    nodes: &mut Nodes,
    slot: Slot,
    service: ServiceNo,
    id: &Text,
    load: &Load,
    requirements: &Requirements,
    chosen: Option<Vec<GenericResource>>,
) -> Option<Vec<GenericResource>> {
    let volumes = match &requirements.volumes[..] {
        [] => Vec::new(),
        wanted => nodes.volumes.choose(wanted, nodes.get(slot).info.node())?,
    };
    let is_held = chosen.is_none();
    let generic = match chosen {
        None => nodes.get_mut(slot).info.claim(&requirements.demand)?,
        Some(generic) => generic,
    };
    if !volumes.is_empty() {
        let node = nodes.get(slot).id.clone();
        nodes.volumes.enter(id, &node, load.spec(), &volumes);
    }
    nodes.enter(slot, service, load.holding(&generic, true), is_held);
    Some(generic)
}
