//! What must hold after each turn.

use std::collections::{BTreeMap, BTreeSet};

use swarm_api::v1::volume_access_mode::{Scope, Sharing};
use swarm_api::v1::{Node, Resources, Task, TaskState, generic_resource};
use swarm_api::{Shared, StoreObject, Text};
use swarm_placement::generic::named;
use swarm_placement::{Constraint, NodeInfo};
use swarm_store::Tables;

use super::cluster::{Cluster, SPREAD, VOLUME, kind_of};
use crate::ended::held_for;
use crate::filter::Requirements;
use crate::places::{At, Claim, Placed};
use crate::track::State;

/// A branch, and the one that it is on.
type Branch<'a> = (&'a str, &'a str);

/// Tasks on each of these branches, and whether it has a node that takes more.
type Siblings<'a> = BTreeMap<Branch<'a>, (u64, bool)>;

impl Cluster {
    /// Before the task goes to the node: everything there, counted anew from the tables, leaves room for it.
    pub(crate) fn check_room(&self, task: &str, node: &str, generic: &[swarm_api::v1::GenericResource]) {
        let node = self.tables.nodes().get(node).unwrap();
        let mut taken: Vec<&Task> = self
            .tables
            .tasks()
            .by_node(&node.id)
            .filter(|t| t.status.reached(TaskState::Assigned))
            .filter(|t| t.status.state <= TaskState::Running as i32 || held_for(t, &self.now).is_some())
            .map(|t| &**t)
            .collect();
        let mut placed = Task::clone(self.tables.tasks().get(task).unwrap());
        placed.assigned_generic_resources = generic.to_vec();
        let wants = reserved(&placed);
        taken.push(&placed);
        let has = node.description.as_ref().and_then(|d| d.resources.clone()).unwrap_or_default();
        let sum = |part: fn(&Resources) -> i64| taken.iter().map(|t| part(&reserved(t))).sum::<i64>();
        assert!(wants.nano_cpus == 0 || sum(|r| r.nano_cpus) <= has.nano_cpus, "CPU of {}", node.id);
        assert!(
            wants.memory_bytes == 0 || sum(|r| r.memory_bytes) <= has.memory_bytes,
            "memory of {}",
            node.id
        );
        let mut ports = BTreeSet::new();
        let mut names = BTreeSet::new();
        let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
        for t in &taken {
            for port in t.endpoint.iter().flat_map(|e| &e.ports) {
                assert!(ports.insert(port.published_port), "port of {}", node.id);
            }
            for r in t.assigned_generic_resources.iter().filter_map(|r| r.resource.as_ref()) {
                match r {
                    generic_resource::Resource::NamedResourceSpec(n) => {
                        assert!(names.insert((&n.kind, &n.value)), "{} twice on {}", n.value, node.id);
                    }
                    generic_resource::Resource::DiscreteResourceSpec(d) => {
                        *counts.entry(&d.kind).or_default() += d.value;
                    }
                }
            }
        }
        for r in generic.iter().filter_map(|r| r.resource.as_ref()) {
            match r {
                generic_resource::Resource::NamedResourceSpec(n) => {
                    assert!(has.generic.contains(&named(n.kind.clone(), n.value.clone())));
                }
                generic_resource::Resource::DiscreteResourceSpec(d) => {
                    let total = has.generic.iter().find_map(|r| match r.resource.as_ref()? {
                        generic_resource::Resource::DiscreteResourceSpec(has) if has.kind == d.kind => {
                            Some(has.value)
                        }
                        _ => None,
                    });
                    assert!(counts[d.kind.as_str()] <= total.unwrap_or(0), "{} of {}", d.kind, node.id);
                }
            }
        }
        let limit = placed.spec.placement.as_ref().map_or(0, |p| p.max_replicas);
        let same = taken.iter().filter(|t| {
            t.service_id == placed.service_id
                && t.desired_state <= TaskState::Complete as i32
                && t.status.state <= TaskState::Running as i32
        });
        assert!(limit == 0 || same.count() as u64 <= limit, "replicas on {}", node.id);
    }

    /// A task that waits for a node says why, and indeed no node has room for it beside what others claim.
    pub(crate) fn check_waiting(&self) {
        let state = self.scheduler.state();
        let claims = self.claims();
        for task in self.tables.tasks().by_observed_state(TaskState::Pending) {
            let wanted = task.desired_state <= TaskState::Complete as i32;
            let orphan = self.tables.services().get(&task.service_id).is_none();
            if !wanted || !task.node_id.is_empty() || orphan || claims.contains(&task.id) {
                continue;
            }
            assert!(task.status.err.starts_with("no suitable node"), "task {} waits in silence", task.id);
            let requirements = Requirements::of(task);
            let constraints = task.spec.placement.as_ref().map_or(&[][..], |p| &p.constraints);
            let constraints = Constraint::parse_all(constraints).unwrap();
            for node in self.tables.nodes().iter() {
                // What others than claims take is right, as a new leader would find the same.
                let slot = state.nodes.slot(&node.id).unwrap();
                let info = &state.nodes.get(slot).info;
                let fits = info.is_ready()
                    && info.has_resources(&requirements.demand)
                    && info.has_ports(&requirements.demand)
                    && swarm_placement::all_hold(&constraints, info.node())
                    && self.replicas_left(task, &node.id) > 0
                    && state.nodes.volumes.choose(&requirements.volumes, info.node()).is_some();
                assert!(!fits, "task {} waits though {} has room", task.id, node.id);
            }
        }
    }

    /// How many more tasks of its service the task lets be on a node, claims included.
    fn replicas_left(&self, task: &Task, node: &str) -> i64 {
        let limit = task.spec.placement.as_ref().map_or(0, |p| p.max_replicas);
        if limit == 0 {
            return i64::MAX;
        }
        let state = self.scheduler.state();
        let claims = state.claims_on(state.nodes.slot(node).unwrap());
        let claims = claims.filter(|(.., claim)| claim.requirements.service == task.service_id);
        limit as i64 - self.replicas(&task.service_id, node) as i64 - claims.count() as i64
    }

    fn replicas(&self, service: &str, node: &str) -> u64 {
        let active = |t: &&Shared<Task>| {
            t.service_id == service
                && t.desired_state <= TaskState::Complete as i32
                && (TaskState::Assigned as i32..=TaskState::Running as i32).contains(&t.status.state)
        };
        self.tables.tasks().by_node(node).filter(active).count() as u64
    }

    /// Tasks with claims.
    pub(crate) fn claims(&self) -> BTreeSet<Text> {
        self.scheduler.state().claims().map(|(id, ..)| id.clone()).collect()
    }

    /// What was claimed now will be redeemed when the room is there: nothing else is missing.
    pub(crate) fn check_claims(&self, before: &BTreeSet<Text>) {
        let state = self.scheduler.state();
        for (id, placed, claim) in state.claims().filter(|(id, ..)| !before.contains(*id)) {
            let task = self.tables.tasks().get(id).unwrap();
            let node = &state.nodes.get(claim.slot).id;
            assert!(placed.is_on(&state.nodes) && state.nodes.get(claim.slot).info.is_ready(), "{node}");
            assert!(
                task.node_id.is_empty() || task.node_id == *node,
                "task {id} is to be on {}",
                task.node_id
            );
            assert_eq!(state.nodes.volumes.of(id).len(), claim.requirements.volumes.len(), "volumes of {id}");
            let limit = task.spec.placement.as_ref().map_or(0, |p| p.max_replicas);
            let same = |other: &Claim| other.requirements == claim.requirements;
            let claims = state.claims_on(claim.slot).filter(|(.., other)| same(other)).count() as u64;
            let there = self.replicas(&task.service_id, node);
            assert!(limit == 0 || there + claims <= limit, "{there} replicas and {claims} claims on {node}");
        }
    }

    /// Who mounts cluster volumes has them, and no volume has users that its mode does not let it have.
    pub(crate) fn check_volumes(&self) {
        let mut users: BTreeMap<&str, Vec<&Task>> = BTreeMap::new();
        for task in self.tables.tasks().iter() {
            let lives = task.status.reached(TaskState::Assigned)
                && (task.status.state <= TaskState::Running as i32 || held_for(task, &self.now).is_some());
            // Of those whose node is gone a new leader knows nothing.
            if !lives || self.tables.nodes().get(&task.node_id).is_none() {
                continue;
            }
            let wanted = usize::from(kind_of(&task.service_id) == VOLUME);
            assert_eq!(task.volumes.len(), wanted, "volumes of task {}", task.id);
            task.volumes.iter().for_each(|volume| users.entry(&volume.id).or_default().push(task));
        }
        for (id, users) in users {
            let mode = self.tables.volumes().get(id).unwrap().spec.access_mode.as_ref().unwrap();
            let nodes: BTreeSet<&Text> = users.iter().map(|task| &task.node_id).collect();
            assert!(mode.scope() != Scope::SingleNode || nodes.len() == 1, "{id} on {nodes:?}");
            let writers = users.iter().filter(|task| task.spec_version.map_or(0, |v| v.index) != 1).count();
            let right = match mode.sharing() {
                Sharing::None => users.len() == 1,
                Sharing::ReadOnly => writers == 0,
                Sharing::OneWriter => writers <= 1,
                Sharing::All => true,
            };
            assert!(right, "{id} has {} users, {writers} of them writers, with {mode:?}", users.len());
        }
    }

    /// Tasks that are spread went to the branches with the fewest of them.
    pub(crate) fn check_shares(&self) {
        let branches: [fn(&Node) -> Branch<'_>; 2] =
            [|node| ("", label(node, "zone")), |node| (label(node, "zone"), label(node, "rack"))];
        for branch in branches {
            // Those under one branch are compared with each other; no task asks for more than a READY node.
            let mut counts: BTreeMap<(&str, &str), Siblings<'_>> = BTreeMap::new();
            let services: BTreeSet<&str> = self.spread().map(|task| task.service_id.as_str()).collect();
            for service in services {
                for node in self.tables.nodes().iter() {
                    let at = branch(node);
                    let (count, usable) = counts.entry((service, at.0)).or_default().entry(at).or_default();
                    *count += self.replicas(service, &node.id);
                    *usable |= node.is_usable();
                }
            }
            for task in self.spread() {
                let at = branch(self.tables.nodes().get(&task.node_id).unwrap());
                let siblings = &counts[&(task.service_id.as_str(), at.0)];
                let fewest = siblings.values().filter(|(_, usable)| *usable).map(|(count, _)| *count).min();
                let own = siblings[&at].0;
                assert!(
                    fewest.is_some_and(|fewest| own <= fewest + 1),
                    "task {} went to {at:?}: {siblings:?}",
                    task.id
                );
            }
        }
    }

    /// Tasks that are spread over branches, and were placed in this turn.
    fn spread(&self) -> impl Iterator<Item = &Shared<Task>> {
        let placed = self.placed.iter().filter_map(|id| self.tables.tasks().get(id));
        placed.filter(|task| kind_of(&task.service_id) == SPREAD)
    }

    /// What was learnt step by step is what a new leader would learn from the tables.
    pub(crate) fn check_rebuilt(&self) {
        let rebuilt = State::rebuild(&self.now, &self.tables);
        let claims = self.claims();
        let summary = |state: &State| Summary::of(state, &self.tables, &claims);
        let (known, rebuilt) = (summary(self.scheduler.state()), summary(&rebuilt));
        assert_eq!(known, rebuilt);
    }
}

fn reserved(task: &Task) -> Resources {
    task.spec.resources.as_ref().and_then(|r| r.reservations.clone()).unwrap_or_default()
}

fn label<'a>(node: &'a Node, name: &str) -> &'a str {
    node.spec.annotations.labels.get(name).map_or("", String::as_str)
}

/// What two schedulers must agree on, but for the claims of one of them.
#[derive(Debug, PartialEq)]
struct Summary {
    nodes: BTreeMap<String, NodeInfo>,
    places: BTreeMap<String, String>,
    holds: BTreeSet<String>,
}

impl Summary {
    fn of(state: &State, tables: &Tables, claims: &BTreeSet<Text>) -> Summary {
        let nodes = tables.nodes().iter().map(|node| {
            let slot = state.nodes.slot(&node.id).unwrap();
            let mut info = state.nodes.get(slot).info.clone();
            state.claims_on(slot).for_each(|(_, placed, _)| info.remove(placed.holding()));
            // Of failures more is known than there is on record.
            info.failures = Default::default();
            (StoreObject::id(&**node).to_owned(), info)
        });
        // A group whose service is gone is dropped when it is looked at, and not before.
        let live = |task: &str| {
            tables.tasks().get(task).is_none_or(|t| tables.services().get(&t.service_id).is_some())
        };
        let unclaimed = state.places.iter().filter(|(id, _)| !claims.contains(*id));
        let places = unclaimed.filter_map(|(id, at)| {
            let place = match at {
                At::Waiting(..) | At::Stopping(_) if !live(id) => return None,
                At::Waiting(no, _) => {
                    format!("waiting in {:?}", state.groups.get(*no).map(|group| &group.key))
                }
                At::Claimed(_) => unreachable!("it is left out"),
                At::Bound(node) => format!("bound to {node}"),
                At::Stopping(service) => format!("stopping in {service}"),
                At::Placed(p) if !p.is_on(&state.nodes) => return None,
                At::Placed(p) => {
                    let of_service = |(_, placed, _): &(_, &Placed, _)| placed.service == p.service;
                    let claims = state.claims_on(p.slot()).filter(of_service).count() as u32;
                    let service = state.nodes.services.on(p.service, p.slot()) - claims;
                    let node = &state.nodes.get(p.slot()).id;
                    let volumes = state.nodes.volumes.of(id);
                    format!("on {node} {} {:?} beside {service} with {volumes:?}", p.active, p.generic)
                }
            };
            Some((id.to_string(), place))
        });
        // What was held on a node that is gone is of no consequence.
        let held = |id: &&Text| match state.places.get(id) {
            Some(At::Placed(placed)) => placed.is_on(&state.nodes),
            _ => true,
        };
        let holds = state.holds.iter().map(|(_, id)| id).filter(held).map(|id| id.to_string()).collect();
        Summary { nodes: nodes.collect(), places: places.collect(), holds }
    }
}
