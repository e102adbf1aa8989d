//! The world around the brain: services, nodes, agents good and bad.

use std::collections::{BTreeSet, VecDeque};

use swarm_api::extensions::{Condition, Dependency, REBALANCE, REBALANCE_NOW, StartOrder};
use swarm_api::v1::port_config::PublishMode;
use swarm_api::v1::restart_policy::RestartCondition;
use swarm_api::v1::update_config::{FailureAction, UpdateOrder};
use swarm_api::v1::{
    ContainerSpec, EndpointSpec, GlobalJob, GlobalService, JobStatus, Node, NodeDescription, Placement,
    PortConfig, ReplicatedJob, ReplicatedService, ResourceRequirements, Resources, RestartPolicy, Service,
    ServiceSpec, Task, TaskSpec, TaskState, UpdateConfig, node_spec, node_status, service_spec, task_spec,
};
use swarm_api::{Shared, StoreObject};
use swarm_reconcile::{Batch, Fate, Reconciler};
use swarm_scheduler::circle;

use crate::acts::{Act, Step};
use crate::common::{Sim, millis, node, rolled_back, secs, service, wire};
use crate::dice::Dice;

pub(crate) const NODES: usize = 5;
const MOST_SERVICES: usize = 4;

/// Makes a leader's reconcilers.
pub(crate) type Leader<'a> = dyn Fn() -> Vec<Box<dyn Reconciler>> + 'a;

pub(crate) struct World<'a> {
    pub(crate) sim: Sim,
    leader: &'a Leader<'a>,
    under_way: VecDeque<Batch>,
    refuse: bool,
    /// Made so far: their number names the next one.
    made: usize,
    /// Nodes whose agents say what they like.
    liars: BTreeSet<String>,
    /// Nodes that are cut off.
    cut_off: BTreeSet<String>,
    /// Nodes of which nobody can know what runs there: they were cut off, or lied, at some time.
    pub(crate) unsure: BTreeSet<String>,
    pub(crate) deleted_by_hand: BTreeSet<String>,
}

pub(crate) fn image(task: &Task) -> &str {
    match &task.spec.runtime {
        Some(task_spec::Runtime::Container(container)) => &container.image,
        _ => "",
    }
}

fn container(image: &str) -> Option<task_spec::Runtime> {
    Some(task_spec::Runtime::Container(ContainerSpec { image: image.into(), ..Default::default() }))
}

fn described(id: &str, cpus: u64) -> Node {
    let mut node = node(id);
    let resources = Resources { nano_cpus: cpus as i64, ..Default::default() };
    node.description = Some(NodeDescription { resources: Some(resources), ..Default::default() });
    node
}

fn nth<T: Clone>(from: impl Iterator<Item = T>, which: u64) -> Option<T> {
    let all: Vec<T> = from.collect();
    let len = all.len() as u64;
    (len > 0).then(|| all[(which % len) as usize].clone())
}

/// A service of any mode; its id says which, and in which order its updates go.
fn new_service(shape: u64, number: usize) -> Service {
    let mut dice = Dice::new(shape);
    let kind = dice.pick(["replicated", "replicated", "global", "replicated-job", "global-job"]);
    let order = dice.pick(["start-first", "stop-first", "stop-first"]);
    let mut new = service(&format!("{kind}-{number}-{order}"), dice.roll(6) as u64);
    let job = |dice: &mut Dice| ReplicatedJob {
        max_concurrent: dice.roll(4) as u64,
        total_completions: dice.roll(8) as u64,
    };
    new.spec.mode = match kind {
        "global" => Some(service_spec::Mode::Global(GlobalService {})),
        "replicated-job" => Some(service_spec::Mode::ReplicatedJob(job(&mut dice))),
        "global-job" => Some(service_spec::Mode::GlobalJob(GlobalJob {})),
        _ => new.spec.mode,
    };
    new.job_status = is_job(&new).then(JobStatus::default);
    new.spec.task = TaskSpec { runtime: container("v0"), ..Default::default() }.into();
    let (id, mut spec) = (new.id.clone(), new.spec);
    reshape(&mut spec, &id, dice.next());
    new.spec = spec;
    new
}

fn order_of(service: &Service) -> StartOrder {
    StartOrder::read(&service.spec.annotations.labels).unwrap()
}

pub(crate) fn is_job(service: &Service) -> bool {
    service.id.contains("job")
}

/// Gives a spec another shape, whatever its mode.
fn reshape(spec: &mut ServiceSpec, id: &str, shape: u64) {
    let mut dice = Dice::new(shape);
    let order = if id.ends_with("start-first") { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
    let mut config = || {
        let config = UpdateConfig {
            parallelism: dice.roll(4) as u64,
            delay: wire(secs(dice.pick([0, 0, 3]))).unwrap(),
            failure_action: dice.pick([
                FailureAction::Pause,
                FailureAction::Continue,
                FailureAction::Rollback,
            ]) as i32,
            max_failure_ratio: dice.pick([0.0, 0.3, 1.0]),
            order: order as i32,
            ..Default::default()
        };
        (order == UpdateOrder::StartFirst || !dice.one_in(4)).then_some(config)
    };
    (spec.update, spec.rollback) = if id.contains("job") { (None, None) } else { (config(), config()) };
    let mut dice = Dice::new(shape ^ 0xabcd);
    let condition = dice.pick([
        RestartCondition::Any,
        RestartCondition::Any,
        RestartCondition::OnFailure,
        RestartCondition::None,
    ]);
    let restart = RestartPolicy {
        condition: condition as i32,
        delay: wire(secs(dice.pick([0, 1, 5]))),
        max_attempts: dice.pick([0, 0, 0, 1, 3]),
        window: dice.one_in(3).then(|| wire(secs(20))).flatten(),
    };
    let constraint = dice.pick([None, None, None, Some("node.labels.zone==a"), Some("node.labels.zone!=b")]);
    let most = if id.starts_with("replicated") { dice.pick([0, 0, 0, 2]) } else { 0 };
    let cpus = dice.pick([0, 0, 1, 2]);
    let reserved = Resources { nano_cpus: cpus, ..Default::default() };
    let port = PortConfig {
        target_port: 80,
        published_port: 8080,
        publish_mode: PublishMode::Host as i32,
        ..Default::default()
    };
    spec.endpoint = dice.one_in(6).then(|| EndpointSpec { ports: vec![port], ..Default::default() });
    if id.starts_with("replicated-") && dice.one_in(3) {
        spec.annotations.labels.insert(REBALANCE.into(), "auto".into());
    } else {
        spec.annotations.labels.remove(REBALANCE);
    }
    let task = &mut *spec.task;
    task.restart = Some(restart);
    task.placement = Some(Placement {
        constraints: constraint.map(str::to_owned).into_iter().collect(),
        max_replicas: most,
        ..Default::default()
    });
    task.resources =
        (cpus > 0).then(|| ResourceRequirements { reservations: Some(reserved), ..Default::default() });
}

/// What an honest agent does next with a task that is wanted on.
fn next_state(task: &Task, dice: &mut Dice) -> Option<(TaskState, &'static str)> {
    let lot = task.id.bytes().map(usize::from).sum::<usize>();
    let state = task.status.state();
    let goes = |goal: TaskState| (task.desired_state() >= goal).then_some((goal, ""));
    match state {
        TaskState::Assigned => goes(TaskState::Accepted),
        TaskState::Accepted => goes(TaskState::Preparing),
        TaskState::Preparing if image(task) == "v3" => Some((TaskState::Rejected, "no such image")),
        TaskState::Preparing => goes(TaskState::Ready),
        TaskState::Ready if task.desired_state() > TaskState::Ready => Some((TaskState::Starting, "")),
        TaskState::Starting if image(task) == "v4" && lot % 2 == 0 => Some((TaskState::Failed, "broken")),
        TaskState::Starting => Some((TaskState::Running, "")),
        TaskState::Running if task.desired_state() == TaskState::Complete && dice.one_in(2) => {
            Some((TaskState::Complete, ""))
        }
        _ => None,
    }
}

/// A task that is not wanted any more: most stop on request, some come to their own end first.
fn stop_state(dice: &mut Dice) -> Option<(TaskState, &'static str)> {
    match dice.roll(8) {
        0 | 1 => None,
        2 => Some((TaskState::Failed, "of itself")),
        3 => Some((TaskState::Complete, "")),
        _ => Some((TaskState::Shutdown, "")),
    }
}

fn lie(dice: &mut Dice) -> Option<(TaskState, &'static str)> {
    use TaskState::{Complete, Failed, Preparing, Ready, Rejected, Running, Shutdown};
    dice.one_in(3)
        .then(|| (dice.pick([Preparing, Ready, Running, Complete, Shutdown, Failed, Rejected]), "a lie"))
}

impl<'a> World<'a> {
    pub(crate) fn new(leader: &'a Leader<'a>) -> World<'a> {
        let mut sim = Sim::new(|tx| {
            for n in 0..NODES {
                tx.create(described(&format!("m{n}"), 4)).unwrap();
            }
        });
        sim.lead(leader());
        World {
            sim,
            leader,
            under_way: VecDeque::new(),
            refuse: false,
            made: 0,
            liars: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            unsure: BTreeSet::new(),
            deleted_by_hand: BTreeSet::new(),
        }
    }

    /// The brain decides; then this happens; then what is under way is written.
    pub(crate) fn step(&mut self, step: &Step) {
        self.decide();
        if let Some(act) = step.act {
            self.act(act);
        }
        if let Some(chance) = step.agents {
            self.agents(chance);
        }
        for _ in 0..step.writes {
            let Some(batch) = self.under_way.pop_front() else { break };
            self.sim.commit(batch);
        }
        // Time never stands still between turns.
        self.sim.pass(millis(step.pass.max(1)));
    }

    fn decide(&mut self) {
        let batches = self.sim.decide();
        if std::mem::take(&mut self.refuse) {
            for batch in batches {
                self.sim.settle_batch(batch.id, Fate::Failed(swarm_store::Error::TooLarge));
            }
        } else {
            self.under_way.extend(batches);
        }
    }

    fn service(&self, which: u64) -> Option<String> {
        nth(self.sim.view().services().iter().map(|s| s.id.clone()), which)
    }

    fn node(&self, which: u64) -> Option<String> {
        nth(self.sim.view().nodes().iter().map(|n| n.id.clone()), which)
    }

    fn edit_node(&mut self, which: u64, change: impl FnMut(&mut Node) + Send) -> Option<String> {
        let id = self.node(which)?;
        self.sim.edit_node(&id, change);
        Some(id)
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::CreateService { shape } if self.sim.view().services().len() < MOST_SERVICES => {
                self.made += 1;
                let new = new_service(shape, self.made);
                self.sim.write(|tx| drop(tx.create(new.clone()).unwrap()));
                if shape.is_multiple_of(3) {
                    // Before the brain has seen it.
                    self.depend(&new.id, shape >> 8, shape >> 16);
                }
            }
            Act::CreateService { .. } => {}
            Act::RemoveService { which } => {
                // As the control API, which refuses to remove what others wait for.
                let view = self.sim.view();
                let waited = |id: &String| view.services().iter().any(|s| order_of(s).names(id));
                if let Some(id) = self.service(which).filter(|id| !waited(id)) {
                    self.sim.write(|tx| drop(tx.remove::<Service>(&id).unwrap()));
                }
            }
            Act::Scale { which, to } => {
                let Some(id) = self.service(which) else { return };
                self.sim.update_service(&id, |spec| match &mut spec.mode {
                    Some(service_spec::Mode::Replicated(ReplicatedService { replicas })) => *replicas = to,
                    Some(service_spec::Mode::ReplicatedJob(job)) => job.total_completions = to,
                    _ => (),
                });
            }
            Act::Image { which, version } => {
                let Some(id) = self.service(which) else { return };
                self.sim.update_service(&id, |spec| spec.task.runtime = container(&format!("v{version}")));
            }
            Act::Reshape { which, shape } => {
                let Some(id) = self.service(which) else { return };
                self.sim.update_service(&id, |spec| reshape(spec, &id, shape));
            }
            Act::Depend { which, on, how } => {
                if let Some(id) = self.service(which) {
                    self.depend(&id, on, how);
                }
            }
            Act::RollBack { which } => self.roll_back(which),
            Act::Rebalance { which } => {
                let Some(id) = self.service(which).filter(|id| id.starts_with("replicated")) else { return };
                self.sim.write(|tx| {
                    let mut service = tx.services().get(&id).unwrap().clone();
                    service.spec.annotations.labels.insert(REBALANCE_NOW.into(), "1".into());
                    tx.update(service).unwrap();
                });
            }
            Act::Down { which } => {
                let id = self.edit_node(which, |n| n.status.state = node_status::State::Down as i32);
                self.cut_off.extend(id.clone());
                self.unsure.extend(id);
            }
            Act::Ready { which } => {
                if let Some(id) = self.edit_node(which, |n| n.status.state = node_status::State::Ready as i32)
                {
                    self.cut_off.remove(&id);
                }
            }
            Act::Availability { which, to } => {
                self.edit_node(which, |n| n.spec.availability = to as i32);
            }
            Act::Zone { which, to } => {
                let zone = ["a", "b", "c"][to as usize];
                self.edit_node(which, |n| {
                    n.spec.annotations.labels.insert("zone".into(), zone.into());
                });
            }
            Act::Resize { which, cpus } => {
                self.edit_node(which, |n| n.description = described("", cpus).description);
            }
            Act::AddNode if self.sim.view().nodes().len() < NODES + 2 => {
                self.made += 1;
                let new = described(&format!("n{}", self.made), 4);
                self.sim.write(|tx| drop(tx.create(new.clone()).unwrap()));
            }
            Act::AddNode => {}
            Act::RemoveNode { which } => self.remove_node(which),
            Act::End { which, how } => self.end(which, how),
            Act::DeleteTask { which } => {
                let id = nth(self.sim.view().tasks().iter().map(|t| t.id.clone()), which);
                if let Some(id) = id {
                    self.sim.write(|tx| drop(tx.remove::<Task>(&id).unwrap()));
                    self.deleted_by_hand.insert(id.to_string());
                }
            }
            Act::Lie { which } => {
                let Some(id) = self.node(which) else { return };
                if !self.liars.remove(&id) {
                    self.unsure.insert(id.clone());
                    self.liars.insert(id);
                }
            }
            Act::HistoryLimit { to } => self.sim.write(|tx| {
                let mut cluster = tx.cluster().unwrap().clone();
                cluster.spec.orchestration.task_history_retention_limit = to as i64;
                tx.update(cluster).unwrap();
            }),
            Act::NewLeader { written } => {
                // What is written late is written before the first entry of the next term.
                for batch in std::mem::take(&mut self.under_way).into_iter().take(written as usize) {
                    self.sim.commit_late(batch);
                }
                self.sim.lead((self.leader)());
            }
            Act::Refuse => self.refuse = true,
            Act::Lag => self.sim.lag(),
        }
    }

    /// Lets a service wait for another one. As the control API, it makes nobody wait for itself; a rollback may.
    fn depend(&mut self, id: &str, on: u64, how: u64) {
        let view = self.sim.view();
        let other = nth(view.services().iter().cloned(), on).filter(|other| other.id != id);
        let order = other.map(|other| {
            let healthy = if how.is_multiple_of(2) { Condition::Healthy } else { Condition::Running };
            let condition = if is_job(&other) { Condition::Completed } else { healthy };
            StartOrder(vec![Dependency { service: other.id.clone(), condition }])
        });
        let order = order.unwrap_or_default();
        if circle(&view, id, &order).is_none() {
            self.sim.update_service(id, |spec| order.write(&mut spec.annotations.labels));
        }
    }

    /// As the control API does it.
    fn roll_back(&mut self, which: u64) {
        let Some(id) = self.service(which) else { return };
        let now = self.sim.now().wall;
        self.sim.write(|tx| {
            let mut service = tx.services().get(&id).unwrap().clone();
            if service.previous_spec.is_none() {
                return;
            }
            rolled_back(&mut service, now);
            if let Some(status) = &mut service.job_status {
                status.job_iteration.index += 1;
            }
            tx.update(service).unwrap();
        });
    }

    /// As the control API does it: the node's tasks become orphans with it.
    fn remove_node(&mut self, which: u64) {
        if self.sim.view().nodes().len() <= NODES / 2 {
            return;
        }
        let Some(id) = self.node(which) else { return };
        self.sim.write(|tx| {
            let tasks: Vec<Shared<Task>> = tx.tasks().by_node(&id).cloned().collect();
            for mut task in tasks {
                if !task.status.reached(TaskState::Complete) {
                    task.status.state = TaskState::Orphaned as i32;
                    tx.update(task).unwrap();
                }
            }
            tx.remove::<Node>(&id).unwrap();
        });
        self.cut_off.remove(&id);
        self.liars.remove(&id);
    }

    fn end(&mut self, which: u64, how: u64) {
        let view = self.sim.view();
        let running = view.tasks().by_observed_state(TaskState::Running);
        let running = running.filter(|t| !self.cut_off.contains(t.node_id.as_str())).map(|t| t.id.clone());
        if let Some(id) = nth(running, which) {
            let state = if how.is_multiple_of(3) { TaskState::Complete } else { TaskState::Failed };
            self.sim.report(&id, state, "by chance");
        }
    }

    /// One step of the agents; some are slow. All reports are one transaction, as a dispatcher writes them.
    fn agents(&mut self, chance: u64) {
        let view = self.sim.view();
        let mut slow = Dice::new(chance);
        let awake: BTreeSet<&str> = view
            .nodes()
            .iter()
            .map(|n| n.id.as_str())
            .filter(|n| !slow.one_in(3) && !self.cut_off.contains(*n))
            .collect();
        let mut reports = Vec::new();
        for task in view.tasks().iter() {
            let open = task.status.reached(TaskState::Assigned) && !task.status.state().is_terminal();
            if !open || !awake.contains(task.node_id.as_str()) {
                continue;
            }
            let mut dice = Dice::new(
                chance ^ task.id.bytes().fold(7u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(b))),
            );
            let next = if self.liars.contains(task.node_id.as_str()) {
                lie(&mut dice)
            } else if task.desired_state() > TaskState::Complete {
                stop_state(&mut dice)
            } else {
                next_state(task, &mut dice)
            };
            reports.extend(next.map(|(state, err)| (task.id.clone(), state, err)));
        }
        self.sim.report_all(&reports);
    }

    /// From now on everything works, every image is good, and nobody waits for an operator.
    pub(crate) fn heal(&mut self) {
        for batch in std::mem::take(&mut self.under_way) {
            self.sim.commit(batch);
        }
        self.cut_off.clear();
        self.liars.clear();
        self.sim.behaviour = Box::new(|task| {
            let running = task.status.state() == TaskState::Running;
            let done = running && task.desired_state() == TaskState::Complete;
            if done { Some((TaskState::Complete, "")) } else { swarm_reconcile::sim::healthy(task) }
        });
        let nodes: Vec<String> = self.sim.view().nodes().iter().map(|n| n.id.clone()).collect();
        for id in nodes {
            self.sim.edit_node(&id, |n| {
                n.status.state = node_status::State::Ready as i32;
                n.spec.availability = node_spec::Availability::Active as i32;
                n.spec.annotations.labels.clear();
                n.description = described("", 1_000).description;
            });
        }
        let view = self.sim.view();
        let services: Vec<String> = view.services().iter().map(|s| s.annotations().name.clone()).collect();
        for id in services {
            self.sim.update_service(&id, |spec| {
                spec.endpoint = None;
                spec.task = TaskSpec { runtime: container("good"), ..Default::default() }.into();
                if let Some(service_spec::Mode::ReplicatedJob(job)) = &mut spec.mode {
                    job.max_concurrent = job.max_concurrent.max(1);
                }
                // An automatic rollback may come to wait for somebody who is gone, and without tasks nobody is healthy.
                let waits_in_vain = StartOrder::read(&spec.annotations.labels).unwrap().0.iter().any(|d| {
                    let other = view.services().get(&d.service);
                    other.is_none_or(|o| {
                        o.spec.mode == Some(service_spec::Mode::Replicated(ReplicatedService { replicas: 0 }))
                    })
                });
                if waits_in_vain {
                    StartOrder::default().write(&mut spec.annotations.labels);
                }
            });
        }
    }
}
