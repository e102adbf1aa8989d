//! Room for tasks with a higher priority.
//!
//! Where the cluster allows it, a task that finds no node takes the place of tasks of services with a lower priority:
//! of as few as possible, on one node. They are rejected, so that their orchestrator puts others in their place,
//! elsewhere or later. Until they have stopped the task has a claim: its part of the node is accounted for, so that
//! nobody else gets it.
//!
//! That ends: a task only ever displaces others of strictly lower priority, has one claim at a time, and if that
//! comes to nothing waits for a while before the next.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::extensions::{ClusterPolicy, PlacementPolicy};
use swarm_api::v1::restart_policy::RestartCondition;
use swarm_api::v1::{Cluster, RestartPolicy, Task, TaskState};
use swarm_api::{Object, Shared, Text};
use swarm_placement::{Demand, Holding, NodeInfo};
use swarm_reconcile::{Group as Change, Guard, Patch, Write};
use swarm_store::{Event, Tables};

use crate::ended::PREEMPTED;
use crate::filter::Requirements;
use crate::nodes::Slot;
use crate::places::{At, Claim};
use crate::queue::GroupNo;
use crate::scheduler::Pass;
use crate::verdict::Verdict;

/// Nodes that are looked at for one task.
const MOST_NODES: usize = 512;
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

/// Who would have to go from a node.
struct Offer {
    slot: Slot,
    victims: Vec<Shared<Task>>,
    /// The highest priority among them, and all together.
    priorities: (i32, i64),
}

impl Pass<'_> {
    /// Makes room for tasks of a group that found none.
    pub(crate) fn preempt(&mut self, no: GroupNo) {
        let Some(group) = self.state.groups.get(no).filter(|_| is_allowed(self.tables)) else { return };
        let requirements = group.requirements.clone();
        let tasks: Vec<_> = group.tasks.iter().map(|((_, id), task)| (id.clone(), task.clone())).collect();
        let priority = policy_of(self.tables, &requirements.service).priority;
        let (mut known, mut claims) = (BTreeMap::new(), 0);
        for (id, task) in tasks {
            if self.state.gave_up.contains_key(&id) {
                continue;
            }
            if claims == MOST_TASKS {
                // Another pass goes on.
                self.state.groups.note(no);
                self.again = true;
                return;
            }
            let Some(offer) = self.best_offer(&requirements, &task, priority, &mut known) else { return };
            self.claim(id, &task, &requirements, offer);
            claims += 1;
        }
    }

    /// Tasks whose claims came to nothing some time ago may have others.
    pub(crate) fn forgive(&mut self) {
        let now = self.now.mono;
        let over: Vec<Text> =
            self.state.gave_up.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for id in over {
            self.state.gave_up.remove(&id);
            if let Some(At::Waiting(no, _)) = self.state.places.get(&id) {
                self.state.groups.note(*no);
            }
        }
    }

    fn best_offer(
        &mut self,
        requirements: &Requirements,
        task: &Task,
        priority: i32,
        known: &mut BTreeMap<String, i32>,
    ) -> Option<Offer> {
        let state = &mut *self.state;
        let service = state.nodes.services.enter(&requirements.service);
        let needs = state.index.needs(&requirements.fixed, &state.nodes);
        let lacks_room = |slot: &Slot| {
            let verdict = requirements.verdict(needs.verdicts[*slot], &state.nodes, service, *slot);
            // Those that lack resources might lack more.
            matches!(verdict, Verdict::Ports | Verdict::Resources) && needs.verdicts[*slot] == Verdict::Fits
        };
        let slots: Vec<Slot> = (0..needs.verdicts.len()).filter(lacks_room).take(MOST_NODES).collect();
        state.nodes.services.leave(service);
        let mut priority_of = |service: &str| match known.get(service) {
            Some(priority) => *priority,
            None => {
                let priority = policy_of(self.tables, service).priority;
                known.insert(service.to_owned(), priority);
                priority
            }
        };
        let offers = slots.into_iter().filter_map(|slot| {
            let node = self.state.nodes.get(slot);
            let (mut info, mut lower) = (node.info.clone(), Vec::new());
            for task in self.tables.tasks().by_node(&node.id) {
                match self.state.places.get(task.id.as_str()) {
                    // Who is going anyway, perhaps by what this very pass decided.
                    Some(At::Placed(placed)) if placed.is_held() => info.remove(placed.holding()),
                    _ if may_go(task) && priority_of(&task.service_id) < priority => lower.push(task.clone()),
                    _ => {}
                }
            }
            let demand = Demand::of(task);
            let victims = fewest(info, &demand, &mut lower, &mut priority_of)?;
            let priorities: Vec<i32> = victims.iter().map(|t| priority_of(&t.service_id)).collect();
            let highest = priorities.iter().copied().max().unwrap_or(i32::MIN);
            let sum = priorities.into_iter().map(i64::from).sum();
            Some(Offer { slot, victims, priorities: (highest, sum) })
        });
        offers.min_by_key(|offer| (offer.victims.len(), offer.priorities, offer.slot))
    }

    fn claim(&mut self, id: Text, task: &Shared<Task>, requirements: &Arc<Requirements>, offer: Offer) {
        let node = self.state.nodes.get(offer.slot).id.to_string();
        let service = &task.service_annotations.name;
        tracing::info!(
            task.id = %id, node.id = %node, victims = offer.victims.len(),
            "a task takes the place of others with a lower priority"
        );
        let grace = offer.victims.iter().map(|t| t.spec.stop_grace_period()).max().unwrap_or_default();
        let patches = offer.victims.iter().map(|victim| Patch {
            guards: vec![
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
        if !patches.is_empty() {
            self.out.push(Change { tag: 0, patches });
        }
        // What is decided here is not told to who decided it.
        for mut victim in offer.victims {
            let status = &mut victim.status;
            status.state = TaskState::Rejected as i32;
            status.message = PREEMPTED.into();
            status.timestamp = Some(self.now.wall.into());
            self.state.put_task(&self.now, &victim, self.tables);
        }
        let until = self.now.mono + grace + PATIENCE;
        self.state.claim(id, task, Claim { slot: offer.slot, until, requirements: requirements.clone() });
        self.explain(task, &format!("waits for tasks with a lower priority to stop on node {node}"));
    }

    /// Looks at claims: those whose room is there are redeemed, those that come to nothing are given up.
    pub(crate) fn redeem(&mut self) {
        for id in self.state.claims() {
            let Some((task, claim)) = self.state.take_claim(&id) else { continue };
            let requirements = claim.requirements.clone();
            let state = &mut *self.state;
            let service = state.nodes.services.enter(&requirements.service);
            let needs = state.index.needs(&requirements.fixed, &state.nodes);
            let fixed = needs.verdicts[claim.slot];
            let verdict = requirements.verdict(fixed, &state.nodes, service, claim.slot);
            state.nodes.services.leave(service);
            let waits = fixed == Verdict::Fits && matches!(verdict, Verdict::Resources | Verdict::Ports);
            if verdict == Verdict::Fits {
                self.put(&id, &task, &requirements, claim.slot);
            } else if waits && claim.until > self.now.mono {
                self.state.claim(id, &task, claim);
            } else {
                self.state.gave_up.insert(id, self.now.mono + PATIENCE);
                self.state.put_task(&self.now, &task, self.tables);
            }
        }
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

/// The fewest of these tasks without which there is room, as far as trying the largest first finds them; none if there
/// is no room even without all of them.
fn fewest(
    mut info: NodeInfo,
    demand: &Demand,
    lower: &mut [Shared<Task>],
    priority_of: &mut dyn FnMut(&str) -> i32,
) -> Option<Vec<Shared<Task>>> {
    let fits = |info: &NodeInfo| info.has_resources(demand) && info.has_ports(demand);
    // What a task holds of what is wanted, as a share of that; its ports count as much as everything.
    let share = |task: &Task| {
        let held = Demand::of(task);
        let of =
            |held: i64, wanted: i64| if wanted > 0 { held.min(wanted) as f64 / wanted as f64 } else { 0.0 };
        let port = held.ports.iter().any(|port| demand.ports.contains(port));
        let generic = !task.assigned_generic_resources.is_empty() && !demand.generic.is_empty();
        of(held.nano_cpus, demand.nano_cpus)
            + of(held.memory_bytes, demand.memory_bytes)
            + f64::from(u8::from(port)) * 4.0
            + f64::from(u8::from(generic))
    };
    lower.sort_by(|a, b| {
        let key = |t: &Task| (share(t), t.service_id.clone(), t.id.clone());
        let ((x, s, a), (y, t, b)) = (key(a), key(b));
        y.total_cmp(&x).then_with(|| priority_of(&s).cmp(&priority_of(&t))).then_with(|| b.cmp(&a))
    });
    let mut victims: Vec<Shared<Task>> = Vec::new();
    for task in lower.iter() {
        if fits(&info) {
            break;
        }
        info.remove(Holding::of(task, &task.assigned_generic_resources));
        victims.push(task.clone());
    }
    if !fits(&info) {
        return None;
    }
    // Some may stay after all: those with the highest priority first.
    victims.sort_by_key(|t| Reverse(priority_of(&t.service_id)));
    victims.retain(|task| {
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
