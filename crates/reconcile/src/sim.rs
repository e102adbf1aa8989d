//! A cluster in simulated time around a brain: a stage, agents and a scheduler of a few lines. For the tests of
//! reconcilers; like a test it panics where it is misused.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use swarm_api::v1::{
    Cluster, Node, ReplicatedService, Service, ServiceSpec, Task, TaskSpec, TaskState, Version, node_spec,
    node_status, service_spec,
};
use swarm_api::{Shared, defaults};
use swarm_store::{Event, Store, Tables, Tx};

use crate::{Batch, Ctx, Decision, Group, Guard, IdSource, Patch, Reconciler, SequentialIds, Stage, Write};

/// Wall time at which simulations begin, after the epoch.
const BEGIN: Duration = Duration::from_secs(1_700_000_000);

/// How an agent treats a task that is wanted on: the state it goes to next, with an error text; `None` leaves it.
pub type Behaviour = Box<dyn FnMut(&Task) -> Option<(TaskState, &'static str)> + Send>;

/// A brain on a [`Stage`], and the world around it.
pub struct Sim {
    stage: Stage,
    /// What agents do with tasks that are wanted on. Tasks that are not, they stop.
    pub behaviour: Behaviour,
    /// Nodes whose agents do nothing.
    pub silent: Vec<String>,
    /// Whether agents stop tasks that are not wanted any more.
    pub agents_stop_tasks: bool,
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim").field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl Deref for Sim {
    type Target = Stage;
    fn deref(&self) -> &Stage {
        &self.stage
    }
}

impl DerefMut for Sim {
    fn deref_mut(&mut self) -> &mut Stage {
        &mut self.stage
    }
}

/// The next state of a task on a healthy node.
pub fn healthy(task: &Task) -> Option<(TaskState, &'static str)> {
    let goal = task.desired_state().min(TaskState::Running);
    (!task.status.reached(goal)).then_some((goal, ""))
}

impl Sim {
    /// A cluster in this state, without a leader yet.
    pub fn new(setup: impl FnMut(&mut Tx) + Send) -> Sim {
        Sim::with_ids(Box::<SequentialIds>::default(), setup)
    }

    /// The same with ids of another kind.
    pub fn with_ids(ids: Box<dyn IdSource>, setup: impl FnMut(&mut Tx) + Send) -> Sim {
        let mut sim = Sim {
            stage: Stage::new(Store::local(), UNIX_EPOCH + BEGIN, ids),
            behaviour: Box::new(healthy),
            silent: Vec::new(),
            agents_stop_tasks: true,
        };
        sim.write(|tx| {
            let mut cluster = Cluster { id: "cluster".into(), ..Default::default() };
            cluster.spec.annotations.name = defaults::CLUSTER_NAME.into();
            cluster.spec.orchestration.task_history_retention_limit = defaults::TASK_HISTORY_RETENTION_LIMIT;
            tx.create(cluster).unwrap();
        });
        sim.write(setup);
        sim
    }

    /// Writes as any API would.
    pub fn write(&mut self, mut change: impl FnMut(&mut Tx) + Send) {
        self.stage
            .write(|tx| {
                change(tx);
                Ok(())
            })
            .unwrap();
    }

    /// Writes a batch of a leader that is forgotten.
    pub fn commit_late(&mut self, batch: Batch) {
        self.stage.commit_late(batch).unwrap();
    }

    /// Turns until nothing is left to do at this time, agents standing still.
    pub fn think(&mut self) {
        for _ in 0..10_000 {
            if !self.turn() && !self.is_due() {
                return;
            }
        }
        panic!("the brain does not come to rest");
    }

    /// The brain and the agents act until nothing is left to do at this time.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            self.think();
            if !self.agents() {
                return;
            }
        }
        panic!("brain and agents do not come to rest");
    }

    /// Lets time pass; everybody acts whenever there is something to do.
    pub fn advance(&mut self, time: Duration) {
        let end = self.now().mono + time;
        self.settle();
        while let Some(at) = self.wake_at().filter(|at| *at <= end) {
            self.pass_until(at);
            self.settle();
        }
        self.pass_until(end);
        self.settle();
    }

    /// One step of every agent. Returns whether any had something to report.
    pub fn agents(&mut self) -> bool {
        let mut reports = Vec::new();
        for task in self.view().tasks().iter().filter(|t| t.status.reached(TaskState::Assigned)) {
            if task.status.state().is_terminal() || self.silent.iter().any(|node| *node == task.node_id) {
                continue;
            }
            if task.desired_state() > TaskState::Complete {
                if self.agents_stop_tasks {
                    reports.push((task.id.clone(), TaskState::Shutdown, ""));
                }
            } else if let Some((state, err)) = (self.behaviour)(task) {
                reports.push((task.id.clone(), state, err));
            }
        }
        if !reports.is_empty() {
            self.report_all(&reports);
        }
        !reports.is_empty()
    }

    /// An agent's report, stored as the dispatcher would.
    pub fn report(&mut self, task: &str, state: TaskState, err: &str) {
        self.report_all(&[(task, state, err)]);
    }

    /// Reports of several tasks, stored in one transaction.
    pub fn report_all(&mut self, reports: &[(impl AsRef<str> + Sync, TaskState, &str)]) {
        let at = self.now().wall.into();
        self.write(|tx| {
            for (task, state, err) in reports {
                let Some(mut task) = tx.tasks().get(task.as_ref()).cloned() else { continue };
                if task.status.state > *state as i32 {
                    continue;
                }
                task.status.state = *state as i32;
                task.status.err = (*err).into();
                task.status.timestamp = Some(at);
                task.status.applied_at = Some(at);
                tx.update(task).unwrap();
            }
        });
    }

    /// Adds a READY and ACTIVE node.
    pub fn add_node(&mut self, id: &str) {
        self.write(|tx| drop(tx.create(node(id)).unwrap()));
    }

    /// Changes a node.
    pub fn edit_node(&mut self, id: &str, mut change: impl FnMut(&mut Node) + Send) {
        self.write(|tx| {
            let mut node = tx.nodes().get(id).unwrap().clone();
            change(&mut node);
            tx.update(node).unwrap();
        });
    }

    /// Changes a service's spec as `UpdateService` does.
    pub fn update_service(&mut self, id: &str, mut change: impl FnMut(&mut ServiceSpec) + Send) {
        self.write(|tx| {
            let mut service = tx.services().get(id).unwrap().clone();
            service.previous_spec = Some(service.spec.clone());
            service.previous_spec_version = service.spec_version;
            service.spec_version = Some(service.meta.version);
            service.update_status = None;
            if let Some(status) = &mut service.job_status {
                status.job_iteration.index += 1;
            }
            change(&mut service.spec);
            tx.update(service).unwrap();
        });
    }

    /// Sets the number of replicas.
    pub fn scale(&mut self, id: &str, replicas: u64) {
        self.update_service(id, |spec| {
            spec.mode = Some(service_spec::Mode::Replicated(ReplicatedService { replicas }));
        });
    }

    /// All tasks of a service, by slot, then in the order of their creation.
    pub fn tasks(&self, service: &str) -> Vec<Shared<Task>> {
        let mut tasks: Vec<_> = self.view().tasks().by_service(service).cloned().collect();
        tasks.sort_by(|a, b| (a.slot, &a.id).cmp(&(b.slot, &b.id)));
        tasks
    }

    /// Tasks of a service that are wanted at or below RUNNING.
    pub fn live(&self, service: &str) -> Vec<Shared<Task>> {
        let mut tasks = self.tasks(service);
        tasks.retain(|t| t.desired_state <= TaskState::Running as i32);
        tasks
    }

    /// How many tasks of a service were last seen RUNNING on each node.
    pub fn running(&self, service: &str) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        for task in self.tasks(service).iter().filter(|t| t.status.state() == TaskState::Running) {
            *count.entry(task.node_id.to_string()).or_default() += 1;
        }
        count
    }
}

/// A READY and ACTIVE node.
pub fn node(id: &str) -> Node {
    let mut node = Node { id: id.into(), ..Default::default() };
    node.status.state = node_status::State::Ready as i32;
    node.spec.availability = node_spec::Availability::Active as i32;
    node
}

/// A replicated service with an empty task template.
pub fn service(id: &str, replicas: u64) -> Service {
    let mut service =
        Service { id: id.into(), spec_version: Some(Version { index: 1 }), ..Default::default() };
    service.spec.annotations.name = id.into();
    service.spec.task = TaskSpec::default().into();
    service.spec.mode = Some(service_spec::Mode::Replicated(ReplicatedService { replicas }));
    service
}

/// An allocator of one line: every NEW task becomes PENDING.
#[derive(Debug, Default)]
pub struct AnyAllocator(Vec<String>);

impl Reconciler for AnyAllocator {
    fn name(&self) -> &'static str {
        "any allocator"
    }
    fn init(&mut self, _: &mut Ctx<'_>, tables: &Tables) {
        self.0 = tables.tasks().by_observed_state(TaskState::New).map(|t| t.id.to_string()).collect();
    }
    fn observe(&mut self, _: &mut Ctx<'_>, events: &[Event], _: &Tables) {
        let new = events.iter().filter_map(|e| Some(e.new()?.id().to_owned()));
        self.0.extend(new);
    }
    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let is_new = |id: &String| tables.tasks().get(id).is_some_and(|t| t.status.state() == TaskState::New);
        let raise = |id: String| raise(&id, TaskState::Pending, ctx.now.wall);
        Decision { groups: self.0.drain(..).filter(is_new).map(raise).collect(), wake_at: None }
    }
}

fn raise(task: &str, state: TaskState, at: SystemTime) -> Group {
    let write =
        Write::RaiseState { task: task.into(), state, message: String::new(), err: String::new(), at };
    Group { tag: 0, patches: vec![Patch::new(write)] }
}

/// A scheduler of a few lines: a PENDING task goes to the usable node with the fewest tasks; a task that has
/// its node already is confirmed.
#[derive(Debug, Default)]
pub struct AnyScheduler;

impl Reconciler for AnyScheduler {
    fn name(&self) -> &'static str {
        "any scheduler"
    }
    fn init(&mut self, _: &mut Ctx<'_>, _: &Tables) {}
    fn observe(&mut self, _: &mut Ctx<'_>, _: &[Event], _: &Tables) {}
    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let usable = |n: &&Shared<Node>| Guard::NodeUsable(n.id.clone()).holds(tables);
        let busy = |n: &Shared<Node>| {
            tables.tasks().by_node(&n.id).filter(|t| t.desired_state <= TaskState::Complete as i32).count()
        };
        let mut load: BTreeMap<String, usize> =
            tables.nodes().iter().filter(usable).map(|n| (n.id.clone(), busy(n))).collect();
        let mut groups = Vec::new();
        for task in tables.tasks().by_observed_state(TaskState::Pending) {
            if task.desired_state > TaskState::Complete as i32 {
                continue;
            }
            let node = match load.iter().min_by_key(|(id, n)| (**n, (*id).clone())) {
                _ if !task.node_id.is_empty() => task.node_id.clone(),
                Some((id, _)) => id.as_str().into(),
                None => continue,
            };
            *load.entry(node.to_string()).or_default() += 1;
            let write = Write::Assign {
                task: task.id.to_string(),
                node: node.to_string(),
                generic: Vec::new(),
                volumes: Vec::new(),
                message: String::new(),
                at: ctx.now.wall,
            };
            groups.push(Group { tag: 0, patches: vec![Patch::new(write)] });
        }
        Decision { groups, wake_at: None }
    }
}
