//! Room for tasks with a higher priority.
//!
//! Where the cluster allows it, a task that finds no node takes the place of tasks of services with a lower priority:
//! of as few as possible, on one node. They are rejected, so that their orchestrator puts others in their place,
//! elsewhere or later. A task of its own node makes room there or nowhere. Until they have stopped the task has a claim: its part of the node is accounted for, so that
//! nobody else gets it.
//!
//! That ends: a task only ever displaces others of strictly lower priority, and never those that it waits for before it
//! starts; it has one claim at a time, and if that comes to nothing waits for a while before the next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use swarm_api::extensions::{ClusterPolicy, PlacementPolicy};
use swarm_api::v1::restart_policy::RestartCondition;
use swarm_api::v1::{Cluster, GenericResource, RestartPolicy, Task, TaskState};
use swarm_api::{Object, Shared, Text};
use swarm_placement::{Demand, Holding, NodeInfo};
use swarm_reconcile::{Group as Change, Guard, Patch, Write};
use swarm_store::{Event, Tables};

use crate::depends::before;
use crate::ended::PREEMPTED;
use crate::filter::Requirements;
use crate::nodes::Slot;
use crate::places::{At, Claim};
use crate::queue::GroupNo;
use crate::scheduler::Pass;
use crate::services::ServiceNo;
use crate::track::State;
use crate::verdict::Verdict;

/// Nodes that are looked at for a group in one pass, and tasks of nodes of their own.
pub(crate) const MOST_NODES: usize = 512;
/// Tasks of a group that get room in one pass.
const MOST_TASKS: usize = 16;
/// How long after its victims must have stopped a claim is given up, and how long it is until the next.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What the labels of a service say; what can't be read says nothing.
pub(crate) fn policy_of(tables: &Tables, service: &str) -> PlacementPolicy {
    tables.services().get(service).map(|s| read(&s.spec.annotations.labels)).unwrap_or_default()
}

fn read(labels: &BTreeMap<String, String>) -> PlacementPolicy {
    PlacementPolicy::read(labels).unwrap_or_default()
}

/// The cluster lets tasks take the place of others.
pub(crate) fn is_allowed(tables: &Tables) -> bool {
    tables.cluster().is_some_and(|cluster| allows(cluster))
}

fn allows(cluster: &Cluster) -> bool {
    ClusterPolicy::read(&cluster.spec.annotations.labels).is_ok_and(|policy| policy.preemption)
}

/// From this change of the cluster on, tasks may take the place of others.
pub(crate) fn allows_more(event: &Event) -> bool {
    let says_so = |object: Option<&Object>| matches!(object, Some(Object::Cluster(c)) if allows(c));
    says_so(event.new()) && !says_so(event.old())
}

/// A service has another priority than before, so that it, or others, may displace tasks that they could not.
pub(crate) fn changes_priority(event: &Event) -> bool {
    let priority = |object: Option<&Object>| match object {
        Some(Object::Service(service)) => Some(read(&service.spec.annotations.labels).priority),
        _ => None,
    };
    match (priority(event.old()), priority(event.new())) {
        (Some(old), Some(new)) => old != new,
        _ => false,
    }
}

/// Who is on a node, as far as they may leave it.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    /// Who may be displaced, with the priority of each.
    may_go: Vec<(i32, Shared<Task>)>,
    /// Who is going anyway, perhaps by what this very pass decided, and by when they must be gone.
    going: Vec<(Text, Duration)>,
}

/// Who would have to go from a node.
struct Offer {
    slot: Slot,
    victims: Vec<(i32, Shared<Task>)>,
    /// By when all must be gone, those who are going anyway included.
    until: Duration,
}

impl Offer {
    /// Fewer are better; then the lower the highest priority among them is, and all together; then who is gone sooner.
    fn cost(&self) -> (usize, i32, i64, Duration, Slot) {
        let priorities = self.victims.iter().map(|(priority, _)| *priority);
        let highest = priorities.clone().max().unwrap_or(i32::MIN);
        (self.victims.len(), highest, priorities.map(i64::from).sum(), self.until, self.slot)
    }
}

/// Who asks for room.
#[derive(Clone, Copy)]
struct Asks<'a> {
    requirements: &'a Requirements,
    service: ServiceNo,
    priority: i32,
    /// Ids of services that its own starts after: without them it could not start.
    spared: &'a BTreeSet<String>,
}

impl Pass<'_> {
    /// Makes room for tasks of a group that found none.
    pub(crate) fn preempt(&mut self, no: GroupNo) {
        let allowed = is_allowed(self.tables);
        let Some(group) = self.state.groups.get_mut(no) else { return };
        let from = std::mem::take(&mut group.asked_from);
        if from == 0 {
            group.news = false;
        }
        if !allowed {
            return;
        }
        let (requirements, service) = (group.requirements.clone(), group.service);
        let priority = policy_of(self.tables, &requirements.service).priority;
        if !self.is_above_others(priority) {
            return;
        }
        let group = self.state.groups.get(no).into_iter();
        let tasks =
            group.flat_map(|group| group.tasks.iter()).map(|((_, id), task)| (id.clone(), task.clone()));
        let gave_up = &self.state.gave_up;
        let tasks = tasks.filter(|(id, _)| gave_up.is_empty() || !gave_up.contains_key(id));
        let tasks: Vec<(Text, Shared<Task>)> = tasks.take(MOST_TASKS + 1).collect();
        if tasks.is_empty() {
            return;
        }
        let spared = before(self.tables, &requirements.service);
        let asks = Asks { requirements: &requirements, service, priority, spared: &spared };
        let (mut offers, rest) = self.offers(asks, from);
        for (at, (id, task)) in tasks.into_iter().enumerate() {
            if at == MOST_TASKS {
                return self.ask_on(no, from);
            }
            let Some(offer) = self.take_best(&mut offers, asks) else {
                self.look_again_when_settled();
                let news = self.state.groups.get(no).is_some_and(|group| group.news);
                return match rest {
                    Some(rest) => self.ask_on(no, rest),
                    // Perhaps of one of the first.
                    None if from > 0 && news => self.ask_on(no, 0),
                    None => {}
                };
            };
            let slot = offer.slot;
            self.claim(id, &task, &requirements, offer);
            // With the claim there, the node has less to offer to the next.
            offers.extend(self.offer(slot, asks));
        }
    }

    /// Another pass goes on with a group, from this node.
    fn ask_on(&mut self, no: GroupNo, from: Slot) {
        if let Some(group) = self.state.groups.get_mut(no) {
            group.asked_from = from;
            self.state.groups.note_again(no);
            self.again = true;
        }
    }

    /// Makes room for a task on its own node, if that lacks nothing else; true if it has a claim there now.
    pub(crate) fn preempt_on(
        &mut self,
        id: &Text,
        task: &Shared<Task>,
        requirements: &Requirements,
        service: ServiceNo,
        slot: Slot,
    ) -> bool {
        if !is_allowed(self.tables) || self.state.gave_up.contains_key(id) {
            return false;
        }
        let priority = policy_of(self.tables, &requirements.service).priority;
        if !self.is_above_others(priority) {
            return false;
        }
        if self.claims == MOST_NODES {
            self.state.later_bound.insert((task.node_id.clone(), id.clone()));
            self.again = true;
            return false;
        }
        let spared = before(self.tables, &requirements.service);
        let asks = Asks { requirements, service, priority, spared: &spared };
        if !self.lacks_only_room(slot, asks) {
            return false;
        }
        let Some(offer) = self.offer(slot, asks) else {
            self.look_again_when_settled();
            return false;
        };
        self.claims += 1;
        self.claim(id.clone(), task, &Arc::new(requirements.clone()), offer);
        true
    }

    /// There is a service with a lower priority.
    fn is_above_others(&mut self, priority: i32) -> bool {
        self.lowest_priority() < priority
    }

    /// The lowest priority that a service has.
    pub(crate) fn lowest_priority(&mut self) -> i32 {
        let all = || self.tables.services().iter().map(|s| read(&s.spec.annotations.labels).priority);
        *self.state.lowest_priority.get_or_insert_with(|| all().min().unwrap_or(i32::MAX))
    }

    /// Nobody could be displaced: but of those who are on their way the tables do not tell yet.
    fn look_again_when_settled(&mut self) {
        self.state.look_again |= !self.state.in_flight.is_empty() || !self.assigned.is_empty();
    }

    /// Tasks whose claims came to nothing some time ago may have others.
    pub(crate) fn forgive(&mut self) {
        let now = self.now.mono;
        let over: Vec<Text> =
            self.state.gave_up.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for id in over {
            self.state.gave_up.remove(&id);
            match self.state.places.get(&id) {
                Some(At::Waiting(no, _)) => self.state.groups.note(*no),
                Some(At::Bound(node)) => drop(self.state.fresh_bound.insert((node.clone(), id))),
                _ => {}
            }
        }
    }

    /// What some nodes that lack only room have to offer, of those from this one on; and the first that was not looked at.
    fn offers(&mut self, asks: Asks<'_>, from: Slot) -> (Vec<Offer>, Option<Slot>) {
        let state = &mut *self.state;
        let needs = state.index.needs(&asks.requirements.fixed, &state.nodes);
        let lacks_only_room = |slot: &Slot| {
            asks.requirements.lacks_only_room(needs.verdicts[*slot], &state.nodes, asks.service, *slot)
        };
        let slots = (from..needs.verdicts.len()).filter(lacks_only_room).take(MOST_NODES + 1);
        let mut slots: Vec<Slot> = slots.collect();
        let rest = if slots.len() > MOST_NODES { slots.pop() } else { None };
        (slots.into_iter().filter_map(|slot| self.offer(slot, asks)).collect(), rest)
    }

    /// Takes the best of these offers that still holds: what was claimed of a volume meanwhile, others can't have.
    fn take_best(&mut self, offers: &mut Vec<Offer>, asks: Asks<'_>) -> Option<Offer> {
        loop {
            let best = offers.iter().enumerate().min_by_key(|(_, offer)| offer.cost());
            let at = best.map(|(at, _)| at)?;
            let offer = offers.swap_remove(at);
            if self.lacks_only_room(offer.slot, asks) {
                return Some(offer);
            }
        }
    }

    fn lacks_only_room(&mut self, slot: Slot, asks: Asks<'_>) -> bool {
        let state = &mut *self.state;
        let fixed = state.index.needs(&asks.requirements.fixed, &state.nodes).verdicts[slot];
        asks.requirements.lacks_only_room(fixed, &state.nodes, asks.service, slot)
    }

    /// What a node that lacks only room has to offer, if anything.
    fn offer(&mut self, slot: Slot, asks: Asks<'_>) -> Option<Offer> {
        let tenants = self.tenants(slot);
        let may_go = |(priority, task): &&(i32, Shared<Task>)| {
            *priority < asks.priority && !asks.spared.contains(&*task.service_id)
        };
        let lower = tenants.may_go.iter().filter(may_go);
        let lower: Vec<(i32, Shared<Task>)> = lower.cloned().collect();
        if lower.is_empty() && tenants.going.is_empty() {
            return None;
        }
        let mut info = self.state.nodes.get(slot).info.clone();
        let mut until = self.now.mono;
        for (id, end) in &tenants.going {
            until = until.max(*end);
            if let Some(At::Placed(placed)) = self.state.places.get(id) {
                info.remove(placed.holding());
            }
        }
        // What others claim is theirs; of things with names they may not have all yet.
        for (_, placed, claim) in self.state.claims_on(slot) {
            info.release(&placed.generic);
            if info.claim(&claim.requirements.demand).is_none() {
                info.set_aside(&claim.requirements.demand);
            }
        }
        let victims = fewest(info, &asks.requirements.demand, lower)?;
        let grace = victims.iter().map(|(_, t)| t.spec.stop_grace_period()).max().unwrap_or_default();
        Some(Offer { slot, victims, until: until.max(self.now.mono + grace) })
    }

    fn tenants(&mut self, slot: Slot) -> Arc<Tenants> {
        if let Some(known) = self.tenants.get(&slot) {
            return known.clone();
        }
        let mut tenants = Tenants::default();
        for task in self.tables.tasks().by_node(&self.state.nodes.get(slot).id) {
            #[cfg(test)]
            crate::effort::count();
            match self.state.places.entry(&task.id) {
                Some((id, At::Placed(placed))) if placed.is_held() => {
                    let until = self.state.until.get(id).copied();
                    tenants.going.push((id.clone(), until.unwrap_or(self.now.mono)));
                }
                // It was asked to stop. Where that takes too long it may never come to an end.
                Some((id, At::Placed(placed))) if !placed.active => {
                    let now = self.now.mono;
                    let seen = *self.state.seen_stopping.entry(id.clone()).or_insert(now);
                    let until = seen + task.spec.stop_grace_period();
                    if now < until + PATIENCE {
                        tenants.going.push((id.clone(), until));
                    }
                }
                _ if may_go(task) => {
                    tenants.may_go.push((policy_of(self.tables, &task.service_id).priority, task.clone()));
                }
                _ => {}
            }
        }
        let tenants = Arc::new(tenants);
        self.tenants.insert(slot, tenants.clone());
        tenants
    }

    fn claim(&mut self, id: Text, task: &Shared<Task>, requirements: &Arc<Requirements>, offer: Offer) {
        let node = self.state.nodes.get(offer.slot).id.to_string();
        let service = &task.service_annotations.name;
        tracing::info!(
            task.id = %id, node.id = %node, victims = offer.victims.len(),
            "a task takes the place of others with a lower priority"
        );
        let patches = offer.victims.iter().map(|(_, victim)| Patch {
            guards: vec![
                // Nobody goes for one that waits no more.
                Guard::TaskState(id.to_string(), TaskState::Pending),
                Guard::DesiredAtMost(id.to_string(), TaskState::Complete),
                Guard::TaskOnNode(victim.id.to_string(), node.clone()),
                Guard::DesiredAtMost(victim.id.to_string(), TaskState::Complete),
                Guard::TaskBelow(victim.id.to_string(), TaskState::Complete),
            ],
            write: Write::RaiseState {
                task: victim.id.to_string(),
                state: TaskState::Rejected,
                message: PREEMPTED.to_owned(),
                err: made_room(service),
                at: self.now.wall,
            },
        });
        let patches: Vec<Patch> = patches.collect();
        let displaces = !patches.is_empty();
        if displaces {
            let tag = self.state.displaces(&id);
            self.out.push(Change { tag, patches });
        }
        // What is decided here is not told to who decided it.
        self.tenants.remove(&offer.slot);
        for (_, mut victim) in offer.victims {
            let status = &mut victim.status;
            status.state = TaskState::Rejected as i32;
            status.message = PREEMPTED.into();
            status.timestamp = Some(self.now.wall.into());
            self.state.put_task(&self.now, &victim, self.tables);
            self.displaced.insert(victim.service_id.clone());
        }
        let until = offer.until + PATIENCE;
        self.state.claim(id, task, Claim { slot: offer.slot, until, requirements: requirements.clone() });
        let whom = if displaces { "tasks with a lower priority" } else { "tasks" };
        self.explain(task, &format!("waits for {whom} to stop on node {node}"));
    }

    /// Looks at claims on nodes that changed, and at old ones: those whose room is there are redeemed, those that come to
    /// nothing are given up.
    pub(crate) fn redeem(&mut self, changed: &[Slot]) {
        let now = self.now.mono;
        for id in self.state.claims_to_look_at(changed, now) {
            let Some(At::Claimed(claimed)) = self.state.places.get(&id) else { continue };
            let (placed, _, claim) = &**claimed;
            let (slot, until, requirements) = (claim.slot, claim.until, claim.requirements.clone());
            let (is_there, service) = (placed.is_on(&self.state.nodes), placed.service);
            let room = is_there.then(|| self.room(&id, service, slot, &requirements)).flatten();
            if room.is_none() && is_there && until > now && self.may_still_come(slot, &requirements) {
                self.state.set_aside_more(&id);
                continue;
            }
            let Some((task, _)) = self.state.take_claim(&id) else { continue };
            // Whom its service waits for may have gone meanwhile.
            match room.filter(|_| self.waits(&task).is_none()) {
                Some(generic) => self.put_with(&id, &task, &requirements, slot, Some(generic)),
                None => {
                    self.state.gave_up.insert(id, now + PATIENCE);
                    self.state.put_task(&self.now, &task, self.tables);
                    // What it gives up is noticed by the next pass.
                    self.again = true;
                }
            }
        }
    }

    /// What a claim gets of generic resources, if all that it claims is there now.
    fn room(
        &mut self,
        id: &str,
        service: ServiceNo,
        slot: Slot,
        requirements: &Requirements,
    ) -> Option<Vec<GenericResource>> {
        let mut info = self.state.seen_by_claim(id, slot);
        let claims = self
            .state
            .claims_on(slot)
            .filter(|(_, placed, _)| placed.service == service && placed.is_on(&self.state.nodes));
        let claims = claims.count() as u32;
        let state = &mut *self.state;
        let fixed = state.index.needs(&requirements.fixed, &state.nodes).verdicts[slot];
        let of_service = || state.nodes.services.on(service, slot).saturating_sub(claims);
        let fits = requirements.verdict_without_volumes(fixed, &info, of_service) == Verdict::Fits;
        fits.then(|| info.claim(&requirements.demand)).flatten()
    }

    /// A claim lacks nothing but room.
    fn may_still_come(&mut self, slot: Slot, requirements: &Requirements) -> bool {
        let State { nodes, index, .. } = &mut *self.state;
        nodes.get(slot).info.is_ready()
            && index.needs(&requirements.fixed, nodes).verdicts[slot] == Verdict::Fits
    }
}

fn made_room(service: &str) -> String {
    format!("made room for a task of service {service}, which has a higher priority")
}

/// The task was displaced by one of the service of this name.
pub fn is_displaced_by(task: &Task, service: &str) -> bool {
    task.status.state() == TaskState::Rejected
        && task.status.message == PREEMPTED
        && task.status.err == made_room(service)
}

/// The task may be displaced: its service puts another one in its place, however often.
fn may_go(task: &Task) -> bool {
    let again = |r: &RestartPolicy| r.condition() != RestartCondition::None && r.max_attempts == 0;
    let restarts = task.spec.restart.as_ref().is_none_or(again);
    !task.service_id.is_empty()
        && task.job_iteration.is_none()
        && restarts
        && task.desired_state <= TaskState::Running as i32
        && task.status.reached(TaskState::Assigned)
        && task.status.state <= TaskState::Running as i32
}

/// The fewest of these tasks, with their priorities, without which there is room, as far as trying the largest first finds
/// them; none if there is no room even without all of them.
fn fewest(
    mut info: NodeInfo,
    demand: &Demand,
    lower: Vec<(i32, Shared<Task>)>,
) -> Option<Vec<(i32, Shared<Task>)>> {
    let fits = |info: &NodeInfo| info.has_resources(demand) && info.has_ports(demand);
    let mut lower: Vec<_> = lower.into_iter().map(|(priority, t)| (share(&t, demand), priority, t)).collect();
    lower.sort_by(|(x, p, a), (y, q, b)| y.total_cmp(x).then(p.cmp(q)).then_with(|| b.id.cmp(&a.id)));
    let mut victims = Vec::new();
    for (_, priority, task) in lower {
        if fits(&info) {
            break;
        }
        info.remove(Holding::of(&task, &task.assigned_generic_resources));
        victims.push((priority, task));
    }
    if !fits(&info) {
        return None;
    }
    // Some may stay after all: those with the highest priority first.
    victims.sort_by_key(|(priority, _)| Reverse(*priority));
    victims.retain(|(_, task)| {
        let mut with = info.clone();
        with.add(Holding::of(task, &task.assigned_generic_resources));
        let stays = fits(&with);
        if stays {
            info = with;
        }
        !stays
    });
    Some(victims)
}

/// What a task holds of what is wanted, as a share of that; its ports count as much as everything.
fn share(task: &Task, demand: &Demand) -> f64 {
    let held = Demand::of(task);
    let of = |held: i64, wanted: i64| if wanted > 0 { held.min(wanted) as f64 / wanted as f64 } else { 0.0 };
    let port = held.ports.iter().any(|port| demand.ports.contains(port));
    let generic = !task.assigned_generic_resources.is_empty() && !demand.generic.is_empty();
    of(held.nano_cpus, demand.nano_cpus)
        + of(held.memory_bytes, demand.memory_bytes)
        + f64::from(u8::from(port)) * 4.0
        + f64::from(u8::from(generic))
}
