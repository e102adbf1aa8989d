//! A cluster in simulated time with nothing but a scheduler and an enforcer in its leader's mind.

#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part of it

use std::collections::BTreeMap;
use std::time::Duration;

use swarm_api::Shared;
use swarm_api::extensions::PREEMPTION;
use swarm_api::v1::{
    ContainerSpec, GenericResource, Node, NodeDescription, Placement, PlacementPreference,
    ResourceRequirements, Resources, SpreadOver, Task, TaskSpec, TaskState, Version, node_spec, node_status,
    placement_preference, task_spec,
};
use swarm_reconcile::sim::{self, Sim};
use swarm_reconcile::{Ctx, Decision, Reconciler};
use swarm_scheduler::{ConstraintEnforcer, Scheduler, VolumeEnforcer};
use swarm_store::{Event, Tables};

pub(crate) const READY: node_status::State = node_status::State::Ready;
pub(crate) const DOWN: node_status::State = node_status::State::Down;

/// Tasks and nodes around a scheduler. Names of tasks are their ids; so are those of nodes and services.
pub(crate) struct World {
    pub(crate) sim: Sim,
    slots: u64,
}

/// Shuts its eyes: for leaders that are not to do anything.
struct Nobody;

impl Reconciler for Nobody {
    fn name(&self) -> &'static str {
        "nobody"
    }
    fn init(&mut self, _: &mut Ctx<'_>, _: &Tables) {}
    fn observe(&mut self, _: &mut Ctx<'_>, _: &[Event], _: &Tables) {}
    fn decide(&mut self, _: &mut Ctx<'_>, _: &Tables) -> Decision {
        Decision::default()
    }
}

impl World {
    /// An empty cluster with a leader that schedules.
    pub(crate) fn new() -> World {
        let mut world = World::without_leader();
        world.lead();
        world
    }

    /// An empty cluster whose leader does nothing yet.
    pub(crate) fn without_leader() -> World {
        let mut sim = Sim::new(|_| {});
        sim.lead(vec![Box::new(Nobody)]);
        World { sim, slots: 0 }
    }

    /// A new leader takes over.
    pub(crate) fn lead(&mut self) {
        self.sim.lead(vec![
            Box::new(Scheduler::new()),
            Box::new(ConstraintEnforcer::new()),
            Box::new(VolumeEnforcer::new()),
        ]);
        self.sim.think();
    }

    /// Adds a READY and ACTIVE node.
    pub(crate) fn node(&mut self, id: &str, change: impl Fn(&mut Node) + Send + Sync) {
        self.sim.write(|tx| {
            let mut node = sim::node(id);
            change(&mut node);
            drop(tx.create(node).unwrap());
        });
    }

    pub(crate) fn nodes(&mut self, ids: &[&str]) {
        ids.iter().for_each(|id| self.node(id, |_| {}));
    }

    pub(crate) fn edit_node(&mut self, id: &str, change: impl Fn(&mut Node) + Send + Sync) {
        self.sim.edit_node(id, change);
        self.sim.think();
    }

    pub(crate) fn remove_node(&mut self, id: &str) {
        self.sim.write(|tx| drop(tx.remove::<Node>(id).unwrap()));
        self.sim.think();
    }

    /// Adds a service with this task template, unless it is there.
    pub(crate) fn service(&mut self, id: &str, template: &Shared<TaskSpec>) {
        self.sim.write(|tx| {
            if tx.services().get(id).is_none() {
                let mut service = sim::service(id, 1);
                service.spec.task = template.clone();
                drop(tx.create(service).unwrap());
            }
        });
    }

    /// A service with a label of ours.
    pub(crate) fn labelled_service(&mut self, id: &str, key: &str, value: &str) {
        self.service(id, &Shared::default());
        self.sim.write(|tx| {
            let mut service = tx.services().get(id).unwrap().clone();
            service.spec.annotations.labels.insert(key.into(), value.into());
            drop(tx.update(service).unwrap());
        });
        self.sim.think();
    }

    /// From now on tasks may take the place of others with a lower priority.
    pub(crate) fn allow_preemption(&mut self) {
        self.sim.write(|tx| {
            let mut cluster = tx.cluster().unwrap().clone();
            cluster.spec.annotations.labels.insert(PREEMPTION.into(), "on".into());
            drop(tx.update(cluster).unwrap());
        });
        self.sim.think();
    }

    /// Adds a task that waits for a node, of a service that is added if need be, and lets the scheduler act.
    pub(crate) fn task(&mut self, service: &str, id: &str, change: impl Fn(&mut Task) + Send + Sync) {
        self.tasks(service, &[id], change);
    }

    /// Adds several at once.
    pub(crate) fn tasks(&mut self, service: &str, ids: &[&str], change: impl Fn(&mut Task) + Send + Sync) {
        let mut first = task(service, ids[0], 1);
        change(&mut first);
        self.service(service, &first.spec);
        let first = self.slots + 1;
        self.slots += ids.len() as u64;
        self.sim.write(|tx| {
            for (slot, id) in (first..).zip(ids) {
                let mut task = task(service, id, slot);
                change(&mut task);
                drop(tx.create(task).unwrap());
            }
        });
        self.sim.think();
    }

    /// Adds `n` tasks at once, named after the service.
    pub(crate) fn replicas(&mut self, service: &str, n: usize, change: impl Fn(&mut Task) + Send + Sync) {
        let ids: Vec<String> = (1..=n).map(|i| format!("{service}-{}", self.slots + i as u64)).collect();
        self.tasks(service, &ids.iter().map(String::as_str).collect::<Vec<_>>(), change);
    }

    pub(crate) fn edit_task(&mut self, id: &str, change: impl Fn(&mut Task) + Send + Sync) {
        self.sim.write(|tx| {
            let mut task = tx.tasks().get(id).unwrap().clone();
            change(&mut task);
            drop(tx.update(task).unwrap());
        });
        self.sim.think();
    }

    pub(crate) fn remove_task(&mut self, id: &str) {
        self.sim.write(|tx| drop(tx.remove::<Task>(id).unwrap()));
        self.sim.think();
    }

    /// The agent reports.
    pub(crate) fn report(&mut self, id: &str, state: TaskState) {
        self.sim.report(id, state, "");
        self.sim.think();
    }

    /// Time passes; agents stand still.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.sim.behaviour = Box::new(|_| None);
        self.sim.agents_stop_tasks = false;
        self.sim.advance(time);
    }

    pub(crate) fn get(&self, id: &str) -> Shared<Task> {
        self.sim.view().tasks().get(id).unwrap().clone()
    }

    /// The node of a task; empty if it has none.
    pub(crate) fn on(&self, id: &str) -> String {
        self.get(id).node_id.to_string()
    }

    pub(crate) fn state(&self, id: &str) -> TaskState {
        self.get(id).status.state()
    }

    /// The task waits, and says this.
    #[track_caller]
    pub(crate) fn waits(&self, id: &str, err: &str) {
        let task = self.get(id);
        assert_eq!((task.status.state(), task.status.err.as_str()), (TaskState::Pending, err), "task {id}");
    }

    /// The task is assigned to this node.
    #[track_caller]
    pub(crate) fn runs_on(&self, id: &str, node: &str) {
        let task = self.get(id);
        assert_eq!((task.status.state(), task.node_id.as_str()), (TaskState::Assigned, node), "task {id}");
        assert_eq!(task.status.err, "");
    }

    /// The task runs.
    #[track_caller]
    pub(crate) fn runs(&self, id: &str) {
        assert_eq!(self.state(id), TaskState::Running, "task {id}");
    }

    /// Number of tasks of a service that were assigned, by node.
    pub(crate) fn spread(&self, service: &str) -> BTreeMap<String, usize> {
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        for task in self.sim.tasks(service).iter().filter(|t| t.status.reached(TaskState::Assigned)) {
            *count.entry(task.node_id.to_string()).or_default() += 1;
        }
        count
    }

    /// The same numbers, sorted.
    pub(crate) fn shares(&self, service: &str) -> Vec<usize> {
        let mut shares: Vec<usize> = self.spread(service).into_values().collect();
        shares.sort_unstable();
        shares
    }
}

/// A PENDING task without a node.
pub(crate) fn task(service: &str, id: &str, slot: u64) -> Task {
    let mut task = Task {
        id: id.into(),
        service_id: service.into(),
        slot,
        desired_state: TaskState::Running as i32,
        spec_version: Some(Version { index: 1 }),
        ..Default::default()
    };
    task.status.state = TaskState::Pending as i32;
    task.status.message = "pending task scheduling".into();
    task
}

pub(crate) fn description(node: &mut Node) -> &mut NodeDescription {
    node.description.get_or_insert_default()
}

/// Describes what a node has.
pub(crate) fn has(node: &mut Node, nano_cpus: i64, memory_bytes: i64, generic: Vec<GenericResource>) {
    description(node).resources = Some(Resources { nano_cpus, memory_bytes, generic });
}

/// Reserves.
pub(crate) fn wants(task: &mut Task, nano_cpus: i64, memory_bytes: i64, generic: Vec<GenericResource>) {
    let reservations = Some(Resources { nano_cpus, memory_bytes, generic });
    task.spec.resources = Some(ResourceRequirements { reservations, ..Default::default() });
}

pub(crate) fn placement(spec: &mut TaskSpec) -> &mut Placement {
    spec.placement.get_or_insert_default()
}

pub(crate) fn constrain(task: &mut Task, constraint: &str) {
    placement(&mut task.spec).constraints.push(constraint.into());
}

pub(crate) fn spread_over(task: &mut Task, labels: &[&str]) {
    for label in labels {
        let over = SpreadOver { spread_descriptor: (*label).into() };
        let preference = Some(placement_preference::Preference::Spread(over));
        placement(&mut task.spec).preferences.push(PlacementPreference { preference });
    }
}

pub(crate) fn label(node: &mut Node, key: &str, value: &str) {
    node.spec.annotations.labels.insert(key.into(), value.into());
}

pub(crate) fn engine_label(node: &mut Node, key: &str, value: &str) {
    description(node).engine.get_or_insert_default().labels.insert(key.into(), value.into());
}

pub(crate) fn set_state(node: &mut Node, state: node_status::State) {
    node.status.state = state as i32;
}

pub(crate) fn set_availability(node: &mut Node, availability: node_spec::Availability) {
    node.spec.availability = availability as i32;
}

/// The container of a task.
pub(crate) fn container(task: &mut Task) -> &mut ContainerSpec {
    if !matches!(task.spec.runtime, Some(task_spec::Runtime::Container(_))) {
        task.spec.runtime = Some(task_spec::Runtime::Container(ContainerSpec::default()));
    }
    match &mut task.spec.runtime {
        Some(task_spec::Runtime::Container(container)) => container,
        _ => unreachable!(),
    }
}
