//! The world around the brain: services, nodes, agents good and bad.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use swarm_api::Shared;
use swarm_api::extensions::{ClusterPolicy, Condition, Dependency, StartOrder};
use swarm_api::v1::{
    Network, NetworkAttachmentConfig, NetworkAttachmentSpec, Node, ReplicatedService, Service, Task,
    TaskSpec, TaskState, TaskStatus, node_status, service_spec, task_spec,
};
use swarm_reconcile::{Batch, Fate, Reconciler};
use swarm_scheduler::circle;

use crate::acts::{Act, Plan, Step};
use crate::agents::{lie, next_state, stop_state};
use crate::common::{Sim, millis, rolled_back, secs};
use crate::dice::Dice;
use crate::specs::{NETWORK, container, described, is_job, new_node, new_service, reshape};

/// Makes a leader's reconcilers.
pub(crate) type Leader<'a> = dyn Fn() -> Vec<Box<dyn Reconciler>> + 'a;

/// A node that does not show itself to a new leader for so long is down.
const REGISTRATION: Duration = Duration::from_secs(15);

pub(crate) struct World<'a> {
    pub(crate) sim: Sim,
    pub(crate) leader: &'a Leader<'a>,
    pub(crate) large: bool,
    pub(crate) under_way: VecDeque<Batch>,
    pub(crate) refuse: bool,
    /// Made so far: their number names the next one.
    pub(crate) made: usize,
    /// Nodes whose agents say what they like.
    pub(crate) liars: BTreeSet<String>,
    /// Nodes that are cut off.
    pub(crate) cut_off: BTreeSet<String>,
    /// Since when nodes are not known to the leader.
    pub(crate) unknown: BTreeMap<String, Duration>,
    /// Nodes of which nobody can know what runs there: they were cut off, or lied, and have not told all since.
    pub(crate) unsure: BTreeSet<String>,
    pub(crate) deleted_by_hand: BTreeSet<String>,
    /// Services of which history was deleted by hand, or told in another way after it was acted upon.
    pub(crate) pruned: BTreeSet<String>,
    /// When another wall clock began to count.
    pub(crate) clock_changed: Option<Duration>,
    /// When the step wrote what it wrote; none: just now.
    pub(crate) wrote_at: Option<Duration>,
}

fn nth<T: Clone>(from: impl Iterator<Item = T>, which: u64) -> Option<T> {
    let all: Vec<T> = from.collect();
    let len = all.len() as u64;
    (len > 0).then(|| all[(which % len) as usize].clone())
}

fn order_of(service: &Service) -> StartOrder {
    StartOrder::read(&service.spec.annotations.labels).unwrap()
}

impl<'a> World<'a> {
    pub(crate) fn new(leader: &'a Leader<'a>, plan: &Plan) -> World<'a> {
        let mut sim = Sim::new(|tx| {
            let mut network = Network { id: NETWORK.into(), ..Default::default() };
            network.spec.annotations.name = NETWORK.into();
            network.spec.driver_config =
                Some(swarm_api::v1::Driver { name: "bridge".into(), ..Default::default() });
            tx.create(network).unwrap();
            for n in 0..plan.nodes {
                let mut node = new_node(&format!("m{n:02}"), 4);
                node.spec.annotations.labels.insert("rack".into(), format!("r{}", n % 3));
                tx.create(node).unwrap();
            }
        });
        sim.lead(leader());
        World {
            sim,
            leader,
            large: plan.is_large(),
            under_way: VecDeque::new(),
            refuse: false,
            made: 0,
            liars: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            unknown: BTreeMap::new(),
            unsure: BTreeSet::new(),
            deleted_by_hand: BTreeSet::new(),
            pruned: BTreeSet::new(),
            clock_changed: None,
            wrote_at: None,
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
        self.give_up_unknown();
        for _ in 0..step.writes {
            let Some(batch) = self.under_way.pop_front() else { break };
            self.sim.commit(batch);
        }
        self.wrote_at = Some(self.sim.now().mono);
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
            Act::CreateService { shape } => self.create_service(shape),
            Act::RemoveService { which } => {
                // As the control API, which refuses to remove what others wait for.
                let view = self.sim.view();
                let waited = |id: &String| view.services().iter().any(|s| order_of(s).names(id));
                if let Some(id) = self.service(which).filter(|id| !waited(id)) {
                    self.sim.write(|tx| drop(tx.remove::<Service>(&id).unwrap()));
                }
            }
            Act::Scale { which, to } => self.update(which, |spec, _| match &mut spec.mode {
                Some(service_spec::Mode::Replicated(ReplicatedService { replicas })) => *replicas = to,
                Some(service_spec::Mode::ReplicatedJob(job)) => job.total_completions = to,
                _ => (),
            }),
            Act::Concurrent { which, to } => self.update(which, |spec, _| {
                if let Some(service_spec::Mode::ReplicatedJob(job)) = &mut spec.mode {
                    job.max_concurrent = to;
                }
            }),
            Act::Image { which, version } => {
                self.update(which, |spec, _| spec.task.runtime = container(&format!("v{version}")));
            }
            Act::Force { which } => self.update(which, |spec, _| spec.task.force_update += 1),
            Act::Reshape { which, shape } => self.update(which, |spec, id| reshape(spec, id, shape)),
            Act::Depend { which, on, how } => {
                if let Some(id) = self.service(which) {
                    self.depend(&id, on, how);
                }
            }
            Act::RollBack { which } => self.roll_back(which),
            Act::Rebalance { which } => self.rebalance(which),
            Act::End { which, how } => self.end(which, how),
            Act::DeleteTask { which } => self.delete_task(which),
            Act::Attach { which } => self.attach(which),
            Act::HistoryLimit { to } => self.edit_cluster(|cluster| {
                cluster.spec.orchestration.task_history_retention_limit = to as i64 - 1;
            }),
            Act::Preemption { to } => self.edit_cluster(|cluster| {
                let policy = ClusterPolicy { preemption: to == 0, ..Default::default() };
                policy.write(&mut cluster.spec.annotations.labels);
            }),
            Act::NewLeader { written, ahead } => self.new_leader(written, ahead),
            Act::Refuse => self.refuse = true,
            Act::Lag => self.sim.lag(),
            act => self.node_act(act),
        }
    }

    /// What happens to nodes.
    fn node_act(&mut self, act: Act) {
        match act {
            Act::Down { which } => {
                let id = self.edit_node(which, |n| n.status.state = node_status::State::Down as i32);
                self.cut_off.extend(id.clone());
                self.unsure.extend(id);
            }
            Act::Ready { which } => {
                let id = self.edit_node(which, |n| n.status.state = node_status::State::Ready as i32);
                if let Some(id) = id {
                    self.cut_off.remove(&id);
                    self.unknown.remove(&id);
                }
            }
            Act::Availability { which, to } => {
                self.edit_node(which, |n| n.spec.availability = (to % 3) as i32);
            }
            Act::Zone { which, to } => {
                let zone = ["a", "b", "c"][(to % 3) as usize];
                self.edit_node(which, |n| {
                    n.spec.annotations.labels.insert("zone".into(), zone.into());
                });
            }
            Act::Resize { which, size } => {
                self.edit_node(which, |n| n.description = Some(described(size)));
            }
            Act::AddNode if self.sim.view().nodes().len() < if self.large { 30 } else { 7 } => {
                self.made += 1;
                let new = new_node(&format!("n{:02}", self.made), 4);
                self.sim.write(|tx| drop(tx.create(new.clone()).unwrap()));
            }
            Act::RemoveNode { which } => self.remove_node(which),
            Act::Lie { which } => {
                let Some(id) = self.node(which) else { return };
                if !self.liars.remove(&id) {
                    self.unsure.insert(id.clone());
                    self.liars.insert(id);
                }
            }
            _ => (),
        }
    }

    fn update(&mut self, which: u64, mut change: impl FnMut(&mut swarm_api::v1::ServiceSpec, &str) + Send) {
        let Some(id) = self.service(which) else { return };
        self.sim.update_service(&id, |spec| change(spec, &id));
    }

    fn edit_cluster(&mut self, mut change: impl FnMut(&mut swarm_api::v1::Cluster) + Send) {
        self.sim.write(|tx| {
            let mut cluster = tx.cluster().unwrap().clone();
            change(&mut cluster);
            tx.update(cluster).unwrap();
        });
    }

    fn create_service(&mut self, shape: u64) {
        if self.sim.view().services().len() >= if self.large { 8 } else { 4 } {
            return;
        }
        self.made += 1;
        let new = new_service(shape, self.made, self.large);
        self.sim.write(|tx| drop(tx.create(new.clone()).unwrap()));
        if shape.is_multiple_of(3) {
            // Before the brain has seen it.
            self.depend(&new.id, shape >> 8, shape >> 16);
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

    fn rebalance(&mut self, which: u64) {
        let Some(id) = self.service(which).filter(|id| id.starts_with("replicated")) else { return };
        self.sim.write(|tx| {
            let mut service = tx.services().get(&id).unwrap().clone();
            service.spec.annotations.labels.insert(swarm_api::extensions::REBALANCE_NOW.into(), "1".into());
            tx.update(service).unwrap();
        });
    }

    /// As the control API does it: the node's tasks become orphans with it.
    fn remove_node(&mut self, which: u64) {
        if self.sim.view().nodes().len() <= 2 {
            return;
        }
        let Some(id) = self.node(which) else { return };
        let now = self.sim.now().wall.into();
        self.sim.write(|tx| {
            let tasks: Vec<Shared<Task>> = tx.tasks().by_node(&id).cloned().collect();
            for mut task in tasks {
                if !task.status.reached(TaskState::Complete) {
                    task.status = TaskStatus { timestamp: Some(now), ..Default::default() };
                    task.status.state = TaskState::Orphaned as i32;
                    tx.update(task).unwrap();
                }
            }
            tx.remove::<Node>(&id).unwrap();
        });
        self.cut_off.remove(&id);
        self.liars.remove(&id);
        self.unknown.remove(&id);
    }

    fn delete_task(&mut self, which: u64) {
        let Some(task) = nth(self.sim.view().tasks().iter().cloned(), which) else { return };
        self.sim.write(|tx| drop(tx.remove::<Task>(&task.id).unwrap()));
        self.deleted_by_hand.insert(task.id.to_string());
        if task.status.state().is_terminal() || task.desired_state() > TaskState::Complete {
            self.pruned.insert(task.service_id.to_string());
        }
    }

    fn attach(&mut self, which: u64) {
        let Some(node) = self.node(which) else { return };
        self.made += 1;
        let runtime = NetworkAttachmentSpec { container_id: format!("c{}", self.made) };
        let config = NetworkAttachmentConfig { target: NETWORK.into(), ..Default::default() };
        let spec = TaskSpec {
            runtime: Some(task_spec::Runtime::Attachment(runtime)),
            networks: vec![config],
            ..Default::default()
        };
        let status = TaskStatus { state: TaskState::New as i32, ..Default::default() };
        let task = Task {
            id: format!("attachment{:015}", self.made).into(),
            node_id: node.as_str().into(),
            spec: spec.into(),
            status,
            desired_state: TaskState::Running as i32,
            ..Default::default()
        };
        self.sim.write(|tx| drop(tx.create(task.clone()).unwrap()));
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

    /// As managers do it: nodes must show themselves to the new leader before anything is put there.
    fn new_leader(&mut self, written: u64, ahead: u64) {
        // What is written late is written before the first entry of the next term.
        for batch in std::mem::take(&mut self.under_way).into_iter().take(written as usize) {
            self.sim.commit_late(batch);
        }
        let before = self.sim.now();
        self.sim.set_ahead(secs(ahead));
        if self.sim.now().wall != before.wall {
            self.clock_changed = Some(before.mono);
        }
        let unknown = node_status::State::Unknown as i32;
        let nodes: Vec<String> = self.sim.view().nodes().iter().map(|n| n.id.clone()).collect();
        for id in nodes {
            if self.sim.view().nodes().get(&id).is_some_and(|n| n.status.state() != node_status::State::Down)
            {
                self.sim.edit_node(&id, |n| n.status.state = unknown);
                self.unknown.entry(id).or_insert(before.mono);
            }
        }
        self.sim.lead((self.leader)());
    }

    /// Nodes that did not show themselves in time are down.
    fn give_up_unknown(&mut self) {
        let now = self.sim.now().mono;
        let late = |(id, since): (&String, &Duration)| (now >= *since + REGISTRATION).then(|| id.clone());
        let late: Vec<String> = self.unknown.iter().filter_map(late).collect();
        for id in late {
            self.sim.edit_node(&id, |n| n.status.state = node_status::State::Down as i32);
            self.unknown.remove(&id);
            self.unsure.insert(id);
        }
    }

    /// When what is new was written.
    pub(crate) fn wrote_at(&self) -> Duration {
        self.wrote_at.unwrap_or(self.sim.now().mono)
    }

    /// A day begins in which no agent says anything.
    pub(crate) fn begin_day(&mut self) {
        self.wrote_at = None;
        self.write_all();
    }

    /// Nodes that were down all day are given up.
    pub(crate) fn end_day(&mut self) {
        let view = self.sim.view();
        let is_down =
            |id: &str| view.nodes().get(id).is_some_and(|n| n.status.state() == node_status::State::Down);
        let open = |t: &Task| t.status.reached(TaskState::Assigned) && !t.status.state().is_terminal();
        let lost = view.tasks().iter().filter(|t| open(t) && is_down(&t.node_id));
        let lost: Vec<_> = lost.map(|t| (t.id.clone(), TaskState::Orphaned, "")).collect();
        self.sim.report_all(&lost);
    }

    pub(crate) fn write_all(&mut self) {
        for batch in std::mem::take(&mut self.under_way) {
            self.sim.commit(batch);
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
        for id in &awake {
            if self.unknown.remove(*id).is_some() {
                self.sim.edit_node(id, |n| n.status.state = node_status::State::Ready as i32);
            }
        }
        let mut reports = Vec::new();
        for task in view.tasks().iter() {
            let lies = self.liars.contains(task.node_id.as_str());
            let open = task.status.reached(TaskState::Assigned) && !task.status.state().is_terminal();
            if !open || !awake.contains(task.node_id.as_str()) {
                continue;
            }
            let mut dice = Dice::new(
                chance ^ task.id.bytes().fold(7u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(b))),
            );
            let next = if lies {
                lie(&mut dice)
            } else if task.desired_state() > TaskState::Complete {
                stop_state(&mut dice)
            } else {
                next_state(task, &mut dice)
            };
            reports.extend(next.map(|(state, err)| (task.id.clone(), state, err)));
        }
        self.sim.report_all(&reports);
        self.become_sure();
    }

    /// Nodes that are heard of again, and have said of all their tasks what became of them, hide nothing.
    fn become_sure(&mut self) {
        if self.sim.is_busy() {
            return; // what was decided when they were down is not written yet
        }
        let view = self.sim.view();
        let hides = |task: &Shared<Task>| {
            let state = task.status.state();
            let stops = task.desired_state() > TaskState::Complete && !state.is_terminal();
            let early = state >= TaskState::Starting && task.desired_state() < TaskState::Running;
            task.status.reached(TaskState::Assigned) && (stops || (early && !state.is_terminal()))
        };
        self.unsure.retain(|id| {
            let answers = view.nodes().get(id).is_some_and(|n| n.status.state() == node_status::State::Ready);
            !answers || self.liars.contains(id) || view.tasks().by_node(id).any(hides)
        });
    }
}
