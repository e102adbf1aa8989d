//! Properties that must hold after any history, refused and lost decisions included.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use swarm_api::v1::{
    Endpoint, GlobalService, Node, NodeDescription, Placement, PortConfig, ResourceRequirements, Resources,
    Service, Task, TaskState, Version, generic_resource, node_spec, node_status, port_config::PublishMode,
    service_spec,
};
use swarm_api::{Kind, Object, Shared, StoreObject, Text};
use swarm_placement::generic::{discrete, named};
use swarm_placement::{Constraint, NodeInfo};
use swarm_reconcile::{
    Assignments, Ctx, Guard, Now, Outcome, Patch, Reconciler, Refused, SequentialIds, Settled, Write,
};
use swarm_store::{Event, Tables};

use crate::Scheduler;
use crate::ended::{REJECTED_BY_CONSTRAINTS, held_for};
use crate::places::At;
use crate::track::State;

/// Something that happens in a cluster. Numbers choose among what there is.
#[derive(Debug, Clone)]
enum Op {
    AddNode {
        size: u8,
        zone: u8,
    },
    RemoveNode(u8),
    NodeState(u8, bool),
    Availability(u8, u8),
    Resize(u8, u8),
    Label(u8, u8),
    AddTasks {
        service: u8,
        version: u8,
        count: u8,
    },
    AddBound {
        service: u8,
        node: u8,
    },
    Report(u8, u8),
    Reject(u8),
    Desire(u8, u8),
    RemoveTask(u8),
    NewVersion(u8),
    RemoveService(u8),
    Pass(u8),
    /// The scheduler decides; of its first decisions every so manieth comes to nothing.
    Turn {
        lose: u8,
    },
    /// A new leader.
    Lead,
}

fn op() -> impl Strategy<Value = Op> {
    use Op::*;
    prop_oneof![
        3 => (any::<u8>(), any::<u8>()).prop_map(|(size, zone)| AddNode { size, zone }),
        1 => any::<u8>().prop_map(RemoveNode),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(n, up)| NodeState(n, up)),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(n, a)| Availability(n, a)),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(n, size)| Resize(n, size)),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(n, zone)| Label(n, zone)),
        8 => (any::<u8>(), any::<u8>(), 1..6u8)
            .prop_map(|(service, version, count)| AddTasks { service, version, count }),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(service, node)| AddBound { service, node }),
        8 => (any::<u8>(), any::<u8>()).prop_map(|(t, state)| Report(t, state)),
        2 => any::<u8>().prop_map(Reject),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(t, state)| Desire(t, state)),
        3 => any::<u8>().prop_map(RemoveTask),
        1 => any::<u8>().prop_map(NewVersion),
        1 => any::<u8>().prop_map(RemoveService),
        3 => any::<u8>().prop_map(Pass),
        12 => prop_oneof![3 => Just(0), 1 => 1..4u8].prop_map(|lose| Turn { lose }),
        1 => Just(Lead),
    ]
}

struct Cluster {
    tables: Tables,
    scheduler: Scheduler,
    events: Vec<Event>,
    now: Now,
    ids: SequentialIds,
    next: usize,
    removed: usize,
}

impl Cluster {
    fn new() -> Cluster {
        Cluster::with(Scheduler::new())
    }

    fn with(scheduler: Scheduler) -> Cluster {
        let now = Now {
            mono: Duration::from_secs(1000),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        };
        let ids = SequentialIds::default();
        Cluster { tables: Tables::default(), scheduler, events: Vec::new(), now, ids, next: 0, removed: 0 }
    }

    fn id(&mut self, kind: &str) -> String {
        self.next += 1;
        format!("{kind}{:04}", self.next)
    }

    fn insert(&mut self, object: impl Into<Object>) {
        let event = self.tables.insert(object.into()).unwrap();
        self.events.push(event);
    }

    fn replace(&mut self, object: impl Into<Object>) {
        let event = self.tables.replace(object.into()).unwrap();
        self.events.push(event);
    }

    fn remove(&mut self, kind: Kind, id: &str) {
        let event = self.tables.remove(kind, id).unwrap();
        self.events.push(event);
    }

    fn any_node(&self, n: u8) -> Option<Shared<Node>> {
        let len = self.tables.nodes().len();
        self.tables.nodes().iter().nth(usize::from(n) % len.max(1)).cloned()
    }

    fn any_task(&self, n: u8) -> Option<Shared<Task>> {
        let len = self.tables.tasks().len();
        self.tables.tasks().iter().nth(usize::from(n) % len.max(1)).cloned()
    }

    fn edit_node(&mut self, n: u8, change: impl FnOnce(&mut Node)) {
        if let Some(mut node) = self.any_node(n) {
            change(&mut node);
            self.replace(node);
        }
    }

    /// One of four services; the last one is global.
    fn service(&mut self, service: u8) -> String {
        let id = format!("{}-service{}", self.removed, service % 4);
        if self.tables.services().get(&id).is_none() {
            let mut new = Service { id: id.clone(), ..Default::default() };
            new.spec.annotations.name.clone_from(&id);
            new.spec_version = Some(Version { index: 3 });
            if service % 4 == 3 {
                new.spec.mode = Some(service_spec::Mode::Global(GlobalService {}));
            }
            self.insert(new);
        }
        id
    }

    /// A task as this version of this service has it: the spec follows from both.
    fn task(&mut self, service: String, version: u8) -> Task {
        let version = version % 4;
        let mut task = Task {
            id: self.id("task").into(),
            slot: self.next as u64,
            desired_state: TaskState::Running as i32,
            ..Default::default()
        };
        task.status.state = TaskState::Pending as i32;
        let kind = service.as_bytes()[service.len() - 1] - b'0';
        let mut reserved = Resources::default();
        match kind {
            0 => reserved.nano_cpus = 1 + i64::from(version),
            1 => reserved.generic = vec![discrete("gpu", 1 + i64::from(version % 2)), discrete("fpga", 1)],
            2 => {
                reserved.memory_bytes = 3;
                let port = PortConfig {
                    published_port: 80 + u32::from(version),
                    publish_mode: PublishMode::Host as i32,
                    ..Default::default()
                };
                task.endpoint = Some(Endpoint { ports: vec![port], ..Default::default() }.into());
            }
            _ => {}
        }
        task.spec.resources =
            Some(ResourceRequirements { reservations: Some(reserved), ..Default::default() });
        let mut placement =
            Placement { max_replicas: u64::from(kind == 0 && version == 2) * 2, ..Default::default() };
        if version == 1 {
            placement.constraints.push("node.labels.zone!=0".to_owned());
        }
        task.spec.placement = Some(placement);
        // The first version stands for tasks without one.
        task.spec_version = (version > 0).then_some(Version { index: u64::from(version) });
        task.service_id = service.into();
        task
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::AddNode { size, zone } => {
                if self.tables.nodes().len() < 6 {
                    let mut node = Node { id: self.id("node"), ..Default::default() };
                    node.status.state = node_status::State::Ready as i32;
                    describe(&mut node, size);
                    node.spec.annotations.labels.insert("zone".to_owned(), (zone % 2).to_string());
                    self.insert(node);
                }
            }
            Op::RemoveNode(n) => {
                if let Some(node) = self.any_node(n) {
                    self.remove(Kind::Node, &node.id);
                }
            }
            Op::NodeState(n, up) => self.edit_node(n, |node| {
                let state = if up { node_status::State::Ready } else { node_status::State::Down };
                node.status.state = state as i32;
            }),
            Op::Availability(n, a) => self.edit_node(n, |node| {
                use node_spec::Availability::*;
                node.spec.availability = [Active, Pause, Drain][usize::from(a % 3)] as i32;
            }),
            Op::Resize(n, size) => self.edit_node(n, |node| describe(node, size)),
            Op::Label(n, zone) => self.edit_node(n, |node| {
                node.spec.annotations.labels.insert("zone".to_owned(), (zone % 2).to_string());
            }),
            Op::AddTasks { service, version, count } => {
                let service = self.service(service % 3);
                for _ in 0..count {
                    let task = self.task(service.clone(), version);
                    self.insert(task);
                }
            }
            Op::AddBound { service, node } => {
                if let Some(node) = self.any_node(node) {
                    let service = self.service(service);
                    let mut task = self.task(service, 1);
                    task.node_id = node.id.as_str().into();
                    self.insert(task);
                }
            }
            Op::Report(t, state) => {
                use TaskState::*;
                if let Some(mut task) = self.any_task(t)
                    && task.status.reached(Assigned)
                {
                    let state =
                        [Accepted, Running, Complete, Shutdown, Failed, Rejected][usize::from(state % 6)];
                    if task.status.reached(state) {
                        return;
                    }
                    task.status.state = state as i32;
                    task.status.message = "reported".into();
                    task.status.applied_at = Some(self.now.wall.into());
                    self.replace(task);
                }
            }
            Op::Reject(t) => {
                if let Some(mut task) = self.any_task(t)
                    && task.status.reached(TaskState::Assigned)
                    && !task.status.reached(TaskState::Complete)
                {
                    task.status.state = TaskState::Rejected as i32;
                    task.status.message = REJECTED_BY_CONSTRAINTS.into();
                    task.status.timestamp = Some(self.now.wall.into());
                    self.replace(task);
                }
            }
            Op::Desire(t, state) => {
                use TaskState::*;
                if let Some(mut task) = self.any_task(t) {
                    let state = [Running, Complete, Shutdown, Remove][usize::from(state % 4)] as i32;
                    task.desired_state = state.max(task.desired_state);
                    self.replace(task);
                }
            }
            Op::RemoveTask(t) => {
                // While a hold lasts, the scheduler knows more than the tables say.
                if let Some(task) = self.any_task(t)
                    && held_for(&task, &self.now).is_none()
                {
                    self.remove(Kind::Task, &task.id);
                }
            }
            Op::NewVersion(service) => {
                let id = self.service(service);
                let mut service = self.tables.services().get(&id).unwrap().clone();
                service.spec_version = Some(Version { index: service.spec_version.unwrap().index + 1 });
                self.replace(service);
            }
            Op::RemoveService(service) => {
                let id = self.service(service);
                self.remove(Kind::Service, &id);
                // Ids are never given again.
                self.removed += 1;
            }
            Op::Pass(seconds) => {
                let time = Duration::from_secs(u64::from(seconds % 16));
                self.now = Now { mono: self.now.mono + time, wall: self.now.wall + time };
            }
            Op::Turn { lose } => self.turn(lose),
            Op::Lead => {
                self.events.clear();
                self.scheduler.init(&mut Ctx { now: self.now, ids: &mut self.ids }, &self.tables);
                self.turn(0);
            }
        }
    }

    /// Decides and writes until nothing is left to do; some of the first decisions come to nothing.
    fn turn(&mut self, lose: u8) {
        for round in 0.. {
            // One pass may place a single task.
            assert!(round < 10 + self.tables.tasks().len(), "the scheduler does not come to rest");
            let mut ctx = Ctx { now: self.now, ids: &mut self.ids };
            let events = std::mem::take(&mut self.events);
            self.scheduler.observe(&mut ctx, &events, &self.tables);
            let decision = self.scheduler.decide(&mut ctx, &self.tables);
            let lists = self.scheduler.assignments();
            if decision.groups.is_empty() && lists.is_empty() {
                break;
            }
            for (i, group) in decision.groups.iter().enumerate() {
                let [patch] = &group.patches[..] else { panic!("one patch a group") };
                let (kind, id) = patch.write.target();
                let lost = round == 0 && lose != 0 && i % usize::from(lose) == 0;
                if lost {
                    // What was decided and not written is seen to be as it was.
                    let object = self.tables.object(kind, id).unwrap();
                    self.events.push(Event::Updated { old: object.clone(), new: object });
                    continue;
                }
                let event =
                    patch.apply(&mut self.tables).expect("no guard is refused: nothing else has changed");
                self.events.extend(event);
            }
            for list in lists {
                self.assign(&list, if round == 0 { lose } else { 0 });
            }
        }
        self.check_waiting();
        self.check_rebuilt();
    }

    /// Writes a list of assignments; some of them come to nothing.
    fn assign(&mut self, list: &Assignments, lose: u8) {
        let mut refused = Vec::new();
        for (at, assignment) in list.list.iter().enumerate() {
            if lose != 0 && at % usize::from(lose) == 0 {
                refused.push(at as u32);
                continue;
            }
            let (task, node) = (assignment.task.to_string(), assignment.node.to_string());
            self.check_room(&task, &node, &assignment.generic);
            let on = if assignment.bound { node.clone() } else { String::new() };
            let patch = Patch::new(Write::Assign {
                task: task.clone(),
                node: node.clone(),
                generic: assignment.generic.clone(),
                volumes: Vec::new(),
                message: assignment.message.to_string(),
                at: list.at,
            })
            .guard(Guard::TaskState(task.clone(), TaskState::Pending))
            .guard(Guard::DesiredAtMost(task.clone(), TaskState::Complete))
            .guard(Guard::TaskOnNode(task, on))
            .guard(Guard::NodeUsable(node));
            let event = patch.apply(&mut self.tables).expect("no guard is refused: nothing else has changed");
            self.events.extend(event);
        }
        let outcome = match refused.is_empty() {
            true => Outcome::Committed(0),
            false => Outcome::Refused(Refused::Assignments(refused)),
        };
        let mut ctx = Ctx { now: self.now, ids: &mut self.ids };
        self.scheduler.settled(&mut ctx, &Settled { tag: list.tag, outcome }, &self.tables);
    }

    /// Before the task goes to the node: everything there, counted anew from the tables, leaves room for it.
    fn check_room(&self, task: &str, node: &str, generic: &[swarm_api::v1::GenericResource]) {
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

    /// A task that waits for a node says why, and indeed no node has room for it.
    fn check_waiting(&self) {
        for task in self.tables.tasks().by_observed_state(TaskState::Pending) {
            let wanted = task.desired_state <= TaskState::Complete as i32;
            let orphan = self.tables.services().get(&task.service_id).is_none();
            if !wanted || !task.node_id.is_empty() || orphan {
                continue;
            }
            assert!(task.status.err.starts_with("no suitable node"), "task {} waits in silence", task.id);
            let requirements = crate::filter::Requirements::of(task);
            let constraints = task.spec.placement.as_ref().map_or(&[][..], |p| &p.constraints);
            let constraints = Constraint::parse_all(constraints).unwrap();
            for (node, info) in self.naive() {
                let fits = info.is_ready()
                    && info.has_resources(&requirements.demand)
                    && info.has_ports(&requirements.demand)
                    && swarm_placement::all_hold(&constraints, info.node())
                    && task.spec.placement.as_ref().is_none_or(|p| {
                        p.max_replicas == 0 || self.replicas(&task.service_id, &node) < p.max_replicas
                    });
                assert!(!fits, "task {} waits though {node} has room", task.id);
            }
        }
    }

    fn replicas(&self, service: &str, node: &str) -> u64 {
        let active = |t: &&Shared<Task>| {
            t.service_id == service
                && t.desired_state <= TaskState::Complete as i32
                && (TaskState::Assigned as i32..=TaskState::Running as i32).contains(&t.status.state)
        };
        self.tables.tasks().by_node(node).filter(active).count() as u64
    }

    fn naive(&self) -> BTreeMap<String, NodeInfo> {
        let state = State::rebuild(&self.now, &self.tables);
        let mut all = BTreeMap::new();
        for node in self.tables.nodes().iter() {
            let slot = state.nodes.slot(&node.id).unwrap();
            all.insert(node.id.clone(), state.nodes.get(slot).info.clone());
        }
        all
    }

    /// What was learnt step by step is what a new leader would learn from the tables.
    fn check_rebuilt(&self) {
        let rebuilt = State::rebuild(&self.now, &self.tables);
        let (known, rebuilt) =
            (Summary::of(self.scheduler.state(), &self.tables), Summary::of(&rebuilt, &self.tables));
        assert_eq!(known, rebuilt);
    }
}

fn reserved(task: &Task) -> Resources {
    task.spec.resources.as_ref().and_then(|r| r.reservations.clone()).unwrap_or_default()
}

fn describe(node: &mut Node, size: u8) {
    let generic = match size % 3 {
        0 => vec![],
        1 => vec![named("gpu", "a"), named("gpu", "b"), discrete("fpga", 2)],
        _ => vec![discrete("gpu", 3), named("fpga", "x")],
    };
    let resources = Resources { nano_cpus: i64::from(size % 8), memory_bytes: i64::from(size % 11), generic };
    node.description = Some(NodeDescription { resources: Some(resources), ..Default::default() });
}

/// What two schedulers must agree on.
#[derive(Debug, PartialEq)]
struct Summary {
    nodes: BTreeMap<String, NodeInfo>,
    places: BTreeMap<String, String>,
    holds: BTreeSet<String>,
}

impl Summary {
    fn of(state: &State, tables: &Tables) -> Summary {
        let nodes = tables.nodes().iter().map(|node| {
            let slot = state.nodes.get(state.nodes.slot(&node.id).unwrap());
            let mut info = slot.info.clone();
            // Of failures more is known than there is on record.
            info.failures = Default::default();
            (StoreObject::id(&**node).to_owned(), info)
        });
        // A group whose service is gone is dropped when it is looked at, and not before.
        let live = |task: &str| {
            tables.tasks().get(task).is_none_or(|t| tables.services().get(&t.service_id).is_some())
        };
        let places = state.places.iter().filter_map(|(id, at)| {
            let place = match at {
                At::Waiting(..) | At::Stopping(_) if !live(id) => return None,
                At::Waiting(no, _) => {
                    format!("waiting in {:?}", state.groups.get(*no).map(|group| &group.key))
                }
                At::Claimed(_) => "claimed".to_owned(),
                At::Bound(node) => format!("bound to {node}"),
                At::Stopping(service) => format!("stopping in {service}"),
                At::Placed(p) if !p.is_on(&state.nodes) => return None,
                At::Placed(p) => {
                    let service = state.nodes.services.on(p.service, p.slot());
                    let node = &state.nodes.get(p.slot()).id;
                    format!("on {node} {} {:?} beside {service}", p.active, p.generic)
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 20_000, ..Default::default() })]

    #[test]
    fn any_history_leaves_room_accounts_and_reasons_right(
        ops in prop::collection::vec(op(), 1..120),
        most in prop_oneof![Just(1usize), Just(3), Just(1000)],
    ) {
        let mut cluster = Cluster::with(Scheduler::with_most(most));
        cluster.step(&Op::Lead);
        for op in &ops {
            cluster.step(op);
        }
        cluster.step(&Op::Turn { lose: 0 });
    }

    #[test]
    fn equal_nodes_have_equal_shares_within_one(nodes in 1..9u8, counts in prop::collection::vec((0..3u8, 1..20u8), 1..8)) {
        let mut cluster = Cluster::new();
        for _ in 0..nodes {
            let id = cluster.id("node");
            let mut node = Node { id, ..Default::default() };
            node.status.state = node_status::State::Ready as i32;
            cluster.insert(node);
        }
        cluster.step(&Op::Lead);
        for (service, count) in counts {
            let service = cluster.service(service);
            for _ in 0..count {
                let mut task = cluster.task(service.clone(), 3);
                task.spec = Shared::default();
                task.endpoint = None;
                cluster.insert(task);
            }
            cluster.turn(0);
            let shares = |of: &dyn Fn(&Task) -> bool| -> Vec<usize> {
                let on = |n: &Shared<Node>| cluster.tables.tasks().by_node(&n.id).filter(|t| of(t)).count();
                cluster.tables.nodes().iter().map(on).collect()
            };
            let shares = shares(&|t| t.service_id == service);
            prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
        }
    }
}
