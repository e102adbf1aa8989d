//! A cluster in which things happen to a scheduler.

use std::time::{Duration, SystemTime};

use swarm_api::defaults::CLUSTER_NAME;
use swarm_api::extensions::{PLACEMENT_STRATEGY, PREEMPTION, PRIORITY};
use swarm_api::v1::volume_access_mode::{Scope, Sharing};
use swarm_api::v1::{
    self, ContainerSpec, Endpoint, GlobalService, Mount, Node, NodeDescription, Placement,
    PlacementPreference, PortConfig, ResourceRequirements, Resources, Service, SpreadOver, Task, TaskState,
    Version, Volume, VolumeAccessMode, VolumeInfo, node_spec, node_status, placement_preference,
    port_config::PublishMode, service_spec, task_spec, volume_spec,
};
use swarm_api::{Kind, Object, Shared, Text};
use swarm_placement::generic::{discrete, named};
use swarm_reconcile::{
    Assignments, Ctx, Group, Guard, Now, Outcome, Patch, Reconciler, Refused, SequentialIds, Settled, Write,
};
use swarm_store::{Event, Tables};

use super::ops::Op;
use crate::Scheduler;
use crate::ended::{REJECTED_BY_CONSTRAINTS, held_for};

/// Services by their numbers; some that are not named here ask for other things.
const SERVICES: u8 = 8;
pub(crate) const CPU: u8 = 0;
pub(crate) const SPREAD: u8 = 4;
pub(crate) const VOLUME: u8 = 5;
pub(crate) const CPU_TOO: u8 = 6;
const GLOBAL: [u8; 2] = [3, 7];
const NOT_GLOBAL: [u8; 6] = [CPU, 1, 2, SPREAD, VOLUME, CPU_TOO];

/// A scheduler with all that it sees.
pub(crate) struct Cluster {
    pub(crate) tables: Tables,
    pub(crate) scheduler: Scheduler,
    events: Vec<Event>,
    pub(crate) now: Now,
    ids: SequentialIds,
    next: usize,
    removed: usize,
    /// What was put on which node since the last turn, and not chosen by others.
    pub(crate) placed: Vec<Text>,
}

impl Cluster {
    pub(crate) fn new() -> Cluster {
        Cluster::with(Scheduler::new())
    }

    pub(crate) fn with(scheduler: Scheduler) -> Cluster {
        let now = Now {
            mono: Duration::from_secs(1000),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        };
        let ids = SequentialIds::default();
        Cluster {
            tables: Tables::default(),
            scheduler,
            events: Vec::new(),
            now,
            ids,
            next: 0,
            removed: 0,
            placed: Vec::new(),
        }
    }

    pub(crate) fn id(&mut self, kind: &str) -> String {
        self.next += 1;
        format!("{kind}{:04}", self.next)
    }

    pub(crate) fn insert(&mut self, object: impl Into<Object>) {
        let event = self.tables.insert(object.into()).unwrap();
        self.events.push(event);
    }

    pub(crate) fn replace(&mut self, object: impl Into<Object>) {
        let event = self.tables.replace(object.into()).unwrap();
        self.events.push(event);
    }

    pub(crate) fn remove(&mut self, kind: Kind, id: &str) {
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

    /// One of eight services, by number; two are global.
    pub(crate) fn service(&mut self, service: u8) -> String {
        let id = format!("{}-service{}", self.removed, service % SERVICES);
        if self.tables.services().get(&id).is_none() {
            let mut new = Service { id: id.clone(), ..Default::default() };
            new.spec.annotations.name.clone_from(&id);
            new.spec_version = Some(Version { index: 3 });
            if GLOBAL.contains(&(service % SERVICES)) {
                new.spec.mode = Some(service_spec::Mode::Global(GlobalService {}));
            }
            self.insert(new);
        }
        id
    }

    /// A task as this version of this service has it: the spec follows from both.
    pub(crate) fn task(&mut self, service: String, version: u8) -> Task {
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
            CPU | CPU_TOO | 7 => reserved.nano_cpus = 1 + i64::from(version / 2),
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
            VOLUME => {
                reserved.nano_cpus = 1;
                mount(&mut task, version);
            }
            _ => {}
        }
        task.spec.resources =
            Some(ResourceRequirements { reservations: Some(reserved), ..Default::default() });
        let mut placement =
            Placement { max_replicas: u64::from(kind == CPU && version > 1), ..Default::default() };
        if kind == SPREAD {
            placement.preferences.extend(["zone", "rack"].map(spread_over));
        } else if version == 1 {
            placement.constraints.push("node.labels.zone!=0".to_owned());
        }
        task.spec.placement = Some(placement);
        // The first version stands for tasks without one.
        task.spec_version = (version > 0).then_some(Version { index: u64::from(version) });
        task.service_id = service.into();
        task
    }

    pub(crate) fn step(&mut self, op: &Op) {
        match *op {
            Op::AddNode { size, zone } => {
                if self.tables.nodes().len() < 6 {
                    let mut node = Node { id: self.id("node"), ..Default::default() };
                    node.status.state = node_status::State::Ready as i32;
                    describe(&mut node, size);
                    node.spec.annotations.labels.insert("zone".to_owned(), (zone % 3).to_string());
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
            Op::Label(n, value) => self.edit_node(n, |node| {
                let (label, value) = if value < 192 { ("zone", value % 3) } else { ("rack", value % 2) };
                node.spec.annotations.labels.insert(label.to_owned(), value.to_string());
            }),
            Op::Priority(service, priority) => self.label_service(service, PRIORITY, &priority.to_string()),
            Op::Pack(service, packed) => {
                let strategy = if packed { "binpack" } else { "spread" };
                self.label_service(service, PLACEMENT_STRATEGY, strategy);
            }
            Op::Preemption(allowed) => self.allow_preemption(allowed),
            Op::AddVolume(v) => {
                let id = format!("volume{}", v % 4);
                if self.tables.volumes().get(&id).is_none() {
                    self.insert(volume(&id, v / 4));
                }
            }
            Op::VolumeState(v, active) => {
                use volume_spec::VolumeAvailability::{Active, Pause};
                if let Some(mut volume) = self.tables.volumes().get(&format!("volume{}", v % 4)).cloned() {
                    volume.spec.availability = if active { Active } else { Pause } as i32;
                    self.replace(volume);
                }
            }
            Op::AddTasks { service, version, count } => {
                let service = self.service(NOT_GLOBAL[usize::from(service) % NOT_GLOBAL.len()]);
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
                let time = Duration::from_secs(if seconds < 230 { u64::from(seconds % 16) } else { 90 });
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
    pub(crate) fn turn(&mut self, lose: u8) {
        self.placed.clear();
        for round in 0.. {
            // One pass may place a single task.
            assert!(round < 20 + 2 * self.tables.tasks().len(), "the scheduler does not come to rest");
            let claims = self.claims();
            let mut ctx = Ctx { now: self.now, ids: &mut self.ids };
            let events = std::mem::take(&mut self.events);
            self.scheduler.observe(&mut ctx, &events, &self.tables);
            let decision = self.scheduler.decide(&mut ctx, &self.tables);
            self.check_claims(&claims);
            let lists = self.scheduler.assignments();
            let again = decision.wake_at.is_some_and(|at| at <= self.now.mono);
            if decision.groups.is_empty() && lists.is_empty() && !again {
                break;
            }
            let lose = if round == 0 { usize::from(lose) } else { 0 };
            for (i, group) in decision.groups.iter().enumerate() {
                self.write(group, lose != 0 && i % lose == 0);
            }
            for list in lists {
                self.assign(&list, lose);
            }
        }
        self.check_waiting();
        self.check_volumes();
        if lose == 0 {
            self.check_shares();
        }
        self.check_rebuilt();
    }

    /// Writes what goes together, unless it comes to nothing.
    fn write(&mut self, group: &Group, lost: bool) {
        for patch in &group.patches {
            if lost {
                // What was decided and not written is seen to be as it was.
                let (kind, id) = patch.write.target();
                let object = self.tables.object(kind, id).unwrap();
                self.events.push(Event::Updated { old: object.clone(), new: object });
                continue;
            }
            if let Write::Assign { task, node, generic, .. } = &patch.write {
                self.check_room(task, node, generic);
                self.note_placed(task);
            }
            let event = patch.apply(&mut self.tables).expect("no guard is refused: nothing else has changed");
            self.events.extend(event);
        }
    }

    fn note_placed(&mut self, task: &str) {
        let task = self.tables.tasks().get(task).unwrap();
        if task.node_id.is_empty() {
            self.placed.push(task.id.clone());
        }
    }

    fn label_service(&mut self, service: u8, key: &str, value: &str) {
        let id = self.service(service);
        let mut service = self.tables.services().get(&id).unwrap().clone();
        service.spec.annotations.labels.insert(key.to_owned(), value.to_owned());
        self.replace(service);
    }

    pub(crate) fn allow_preemption(&mut self, allowed: bool) {
        let mut cluster = match self.tables.cluster().cloned() {
            Some(cluster) => cluster,
            None => {
                let mut cluster = v1::Cluster { id: "cluster".to_owned(), ..Default::default() };
                CLUSTER_NAME.clone_into(&mut cluster.spec.annotations.name);
                self.insert(cluster);
                self.tables.cluster().unwrap().clone()
            }
        };
        let value = if allowed { "on" } else { "off" };
        cluster.spec.annotations.labels.insert(PREEMPTION.to_owned(), value.to_owned());
        self.replace(cluster);
    }

    /// Writes a list of assignments; some of them come to nothing.
    fn assign(&mut self, list: &Assignments, lose: usize) {
        let mut refused = Vec::new();
        for (at, assignment) in list.list.iter().enumerate() {
            if lose != 0 && at % lose == 0 {
                refused.push(at as u32);
                continue;
            }
            let (task, node) = (assignment.task.to_string(), assignment.node.to_string());
            self.check_room(&task, &node, &assignment.generic);
            self.note_placed(&task);
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
}

/// The number of a service by its id.
pub(crate) fn kind_of(service: &str) -> u8 {
    service.as_bytes()[service.len() - 1] - b'0'
}

fn spread_over(label: &str) -> PlacementPreference {
    let over = SpreadOver { spread_descriptor: format!("node.labels.{label}") };
    PlacementPreference { preference: Some(placement_preference::Preference::Spread(over)) }
}

/// A cluster volume: one by name, or any of a group.
fn mount(task: &mut Task, version: u8) {
    let source = match version {
        0 | 1 => format!("name-of-volume{version}"),
        _ => "group:both".to_owned(),
    };
    let mount = Mount {
        r#type: v1::mount::Type::Cluster as i32,
        source,
        target: "/data".to_owned(),
        readonly: version == 1,
        ..Default::default()
    };
    let container = ContainerSpec { mounts: vec![mount], ..Default::default() };
    task.spec.runtime = Some(task_spec::Runtime::Container(container));
}

fn volume(id: &str, mode: u8) -> Volume {
    let mut volume = Volume { id: id.to_owned(), ..Default::default() };
    volume.spec.annotations.name = format!("name-of-{id}");
    if matches!(id, "volume2" | "volume3") {
        volume.spec.group = "both".to_owned();
    }
    let (scope, sharing) = [
        (Scope::SingleNode, Sharing::All),
        (Scope::MultiNode, Sharing::None),
        (Scope::MultiNode, Sharing::OneWriter),
        (Scope::SingleNode, Sharing::ReadOnly),
        (Scope::MultiNode, Sharing::All),
    ][usize::from(mode % 5)];
    volume.spec.access_mode =
        Some(VolumeAccessMode { scope: scope as i32, sharing: sharing as i32, access_type: None });
    volume.volume_info = Some(VolumeInfo { volume_id: id.to_owned(), ..Default::default() });
    volume
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
