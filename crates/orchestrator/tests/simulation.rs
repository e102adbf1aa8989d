//! The whole brain in a cluster where everything happens: orchestrators, allocator, scheduler, enforcer and reaper
//! under random but repeatable histories of updates, failures, lost nodes and lost leaders.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use swarm_api::v1::restart_policy::RestartCondition;
use swarm_api::v1::update_config::{FailureAction, UpdateOrder};
use swarm_api::v1::{
    ContainerSpec, GlobalService, Node, RestartPolicy, Service, Task, TaskSpec, TaskState, UpdateConfig,
    node_spec, node_status, service_spec, task_spec,
};
use swarm_api::{Object, Shared};
use swarm_reconcile::Reconciler;
use swarm_reconcile::sim::healthy;
use swarm_store::{Event, Received, Subscription, Tables};

/// A small generator of its own: the same numbers for the same seed, for ever.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % sides as u64) as usize
    }
    fn one_in(&mut self, n: usize) -> bool {
        self.roll(n) == 0
    }
    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { Some(&from[self.roll(from.len())]) }
    }
}

/// What a manager runs.
fn leader() -> Vec<Box<dyn Reconciler>> {
    let mut all = swarm_orchestrator::reconcilers();
    all.push(Box::<swarm_allocator::Allocator>::default());
    all.push(Box::<swarm_scheduler::Scheduler>::default());
    all.push(Box::<swarm_scheduler::ConstraintEnforcer>::default());
    all.push(Box::<swarm_orchestrator::Reaper>::default());
    all
}

fn image(task: &Task) -> &str {
    match &task.spec.runtime {
        Some(task_spec::Runtime::Container(container)) => &container.image,
        _ => "",
    }
}

fn random_service(dice: &mut Dice, id: &str) -> Service {
    let mut web = service(id, dice.roll(7) as u64);
    if id.starts_with("global") {
        web.spec.mode = Some(service_spec::Mode::Global(GlobalService {}));
    }
    let restart = RestartPolicy {
        condition: RestartCondition::Any as i32,
        delay: wire(secs([0, 1, 5][dice.roll(3)])),
        ..Default::default()
    };
    let order = if id.ends_with("start-first") { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
    let config = |dice: &mut Dice| UpdateConfig {
        parallelism: dice.roll(4) as u64,
        delay: wire(secs([0, 0, 3][dice.roll(3)])).unwrap(),
        failure_action: [FailureAction::Pause, FailureAction::Continue, FailureAction::Rollback][dice.roll(3)]
            as i32,
        max_failure_ratio: [0.0, 0.3, 1.0][dice.roll(3)],
        order: order as i32,
        ..Default::default()
    };
    web.spec.update = (!dice.one_in(4)).then(|| config(dice));
    web.spec.rollback = (!dice.one_in(4)).then(|| config(dice));
    if order == UpdateOrder::StartFirst {
        web.spec.update = Some(config(dice));
    }
    web.spec.task =
        TaskSpec { restart: Some(restart), runtime: container("v0"), ..Default::default() }.into();
    web
}

fn container(image: &str) -> Option<task_spec::Runtime> {
    Some(task_spec::Runtime::Container(ContainerSpec { image: image.into(), ..Default::default() }))
}

/// The slot of a task, or the node where that takes its place.
fn place(task: &Task) -> String {
    if task.slot == 0 { task.node_id.clone() } else { task.slot.to_string() }
}

/// Watches every commit.
struct Watch {
    commits: Subscription,
    seed: u64,
    /// Nodes that were cut off at some time: what ran there was replaced unseen.
    unsure: BTreeSet<String>,
}

impl Watch {
    fn check(&mut self, silent: &[String]) {
        self.unsure.extend(silent.iter().cloned());
        while let Some(Received::Commit(commit)) = self.commits.try_next() {
            let mut slots = BTreeSet::new();
            for event in &commit.events {
                if let (Some(Object::Task(old)), Some(Object::Task(new))) = (event.old(), event.new()) {
                    self.goes_forward(old, new);
                }
                if let (Event::Created(Object::Task(t)) | Event::Updated { new: Object::Task(t), .. }, _) =
                    (event, ())
                {
                    slots.insert((t.service_id.clone(), place(t)));
                }
            }
            for (service, slot) in slots {
                self.slot_is_sound(&commit.view, &service, &slot);
            }
        }
    }

    fn goes_forward(&self, old: &Task, new: &Task) {
        let seed = self.seed;
        assert!(new.status.state >= old.status.state, "seed {seed}: {old:?} -> {new:?}");
        assert!(new.desired_state >= old.desired_state, "seed {seed}: {old:?} -> {new:?}");
        assert!(old.node_id.is_empty() || old.node_id == new.node_id, "seed {seed}: {old:?} -> {new:?}");
        assert_eq!(old.spec, new.spec, "seed {seed}: a task's spec never changes");
    }

    /// One task of a slot is wanted on, and one runs. A start-first update makes it two, beside those that
    /// are about to stop.
    fn slot_is_sound(&self, tables: &Tables, service: &str, slot: &str) {
        let most = if service.ends_with("start-first") { 2 } else { 1 };
        let tasks: Vec<&Shared<Task>> =
            tables.tasks().by_service(service).filter(|t| place(t) == slot).collect();
        let live = tasks.iter().filter(|t| t.desired_state <= TaskState::Running as i32).count();
        assert!(live <= most, "seed {}: {live} live tasks in {service}.{slot}: {tasks:#?}", self.seed);
        let runs = |t: &&&Shared<Task>| {
            let state = t.status.state();
            let may_overlap = most > 1 && t.desired_state > TaskState::Running as i32;
            (TaskState::Starting..=TaskState::Running).contains(&state)
                && !may_overlap
                && !self.unsure.contains(&t.node_id)
        };
        let running = tasks.iter().filter(runs).count();
        assert!(running <= most, "seed {}: {running} run in {service}.{slot}: {tasks:#?}", self.seed);
    }
}

const NODES: usize = 6;

fn random_act(sim: &mut Sim, dice: &mut Dice, next: &mut usize) {
    let view = sim.view();
    let services: Vec<String> = view.services().iter().map(|s| s.id.clone()).collect();
    let nodes: Vec<String> = view.nodes().iter().map(|n| n.id.clone()).collect();
    let service = dice.pick(&services).cloned();
    let node = dice.pick(&nodes).cloned();
    let version = dice.roll(5);
    match (dice.roll(14), service, node) {
        (0, ..) if services.len() < 5 => {
            *next += 1;
            let order = if dice.one_in(3) { "start-first" } else { "stop-first" };
            let kind = if dice.one_in(3) { "global" } else { "replicated" };
            let new = random_service(dice, &format!("{kind}-{next}-{order}"));
            sim.write(|tx| drop(tx.create(new.clone()).unwrap()));
        }
        (1, Some(service), _) if services.len() > 2 => {
            sim.write(|tx| drop(tx.remove::<Service>(&service).unwrap()));
        }
        (2 | 3, Some(service), _) if service.starts_with("replicated") => {
            sim.scale(&service, dice.roll(9) as u64);
        }
        (4..=6, Some(service), _) => {
            sim.update_service(&service, |spec| spec.task.runtime = container(&format!("v{version}")));
        }
        (7, _, Some(node)) => {
            sim.silent.push(node.clone());
            sim.edit_node(&node, |n| n.status.state = node_status::State::Down as i32);
        }
        (8, _, Some(node)) => {
            sim.silent.retain(|n| *n != node);
            sim.edit_node(&node, |n| n.status.state = node_status::State::Ready as i32);
        }
        (9, _, Some(node)) => {
            let availability = dice.roll(3) as i32;
            sim.edit_node(&node, |n| n.spec.availability = availability);
        }
        (10, _, Some(node)) if nodes.len() > NODES / 2 => remove_node(sim, &node),
        (10, ..) => {
            *next += 1;
            sim.add_node(&format!("n{next}"));
        }
        (11 | 12, ..) => {
            let running: Vec<Shared<Task>> =
                view.tasks().by_observed_state(TaskState::Running).cloned().collect();
            if let Some(task) = dice.pick(&running).filter(|t| !sim.silent.contains(&t.node_id)) {
                sim.report(&task.id, TaskState::Failed, "by chance");
            }
        }
        _ => {
            let tasks: Vec<Shared<Task>> = view.tasks().iter().cloned().collect();
            if let Some(task) = dice.pick(&tasks).filter(|t| !t.status.reached(TaskState::Assigned)) {
                sim.write(|tx| drop(tx.remove::<Task>(&task.id)));
            }
        }
    }
}

/// As the control API does it: the node's tasks become orphans with it.
fn remove_node(sim: &mut Sim, id: &str) {
    sim.write(|tx| {
        let tasks: Vec<Shared<Task>> = tx.tasks().by_node(id).cloned().collect();
        for mut task in tasks {
            if !task.status.reached(TaskState::Complete) {
                task.status.state = TaskState::Orphaned as i32;
                tx.update(task).unwrap();
            }
        }
        tx.remove::<Node>(id).unwrap();
    });
    sim.silent.retain(|n| n != id);
}

/// Agents of some nodes act, others are slow today.
fn some_agents(sim: &mut Sim, dice: &mut Dice) {
    let silent = sim.silent.clone();
    for node in sim.view().nodes().iter().map(|n| n.id.clone()) {
        if dice.one_in(3) {
            sim.silent.push(node);
        }
    }
    sim.agents();
    sim.silent = silent;
}

fn run(seed: u64) -> Sim {
    let mut dice = Dice::new(seed);
    let mut sim = Sim::new(|tx| (0..NODES).for_each(|n| drop(tx.create(node(&format!("m{n}"))).unwrap())));
    let mut watch = Watch { commits: sim.watch(), seed, unsure: BTreeSet::new() };
    // Tasks go through every state, one step at a time; those of v3 never start, those of v4 fail sometimes.
    sim.behaviour = Box::new(move |task| {
        let (goal, err) = healthy(task)?;
        let chance = task.id.bytes().map(usize::from).sum::<usize>();
        let next = match task.status.state() {
            TaskState::Assigned => TaskState::Accepted,
            TaskState::Accepted => TaskState::Preparing,
            TaskState::Preparing if image(task) == "v3" => {
                return Some((TaskState::Rejected, "no such image"));
            }
            TaskState::Preparing => TaskState::Ready,
            TaskState::Ready => TaskState::Starting,
            _ if image(task) == "v4" && chance % 2 == 0 => return Some((TaskState::Failed, "broken")),
            _ => TaskState::Running,
        };
        Some((next.min(goal), err))
    });
    sim.lead(leader());
    let mut next = 0;
    for _ in 0..300 {
        let batches = sim.decide();
        // Others write between a decision and its commit.
        if dice.one_in(2) {
            random_act(&mut sim, &mut dice, &mut next);
        }
        if dice.one_in(2) {
            sim.agents_stop_tasks = dice.one_in(3);
            some_agents(&mut sim, &mut dice);
        }
        if dice.one_in(40) {
            // The leader is lost. What it had in flight is lost as well, or written without its knowing; but never
            // after the first entry of its successor.
            if dice.one_in(2) {
                batches.into_iter().for_each(|batch| sim.commit_late(batch));
            }
            sim.lead(leader());
        } else {
            batches.into_iter().for_each(|batch| sim.commit(batch));
        }
        sim.pass(millis([0, 0, 100, 2_000][dice.roll(4)]));
        watch.check(&sim.silent);
    }
    heal(&mut sim);
    for _ in 0..200 {
        sim.advance(secs(5));
        watch.check(&[]);
    }
    sim
}

/// Every node works, every image is good, and nobody waits for an operator.
fn heal(sim: &mut Sim) {
    sim.silent.clear();
    sim.agents_stop_tasks = true;
    sim.behaviour = Box::new(healthy);
    let nodes: Vec<String> = sim.view().nodes().iter().map(|n| n.id.clone()).collect();
    for node in nodes {
        sim.edit_node(&node, |n| {
            n.status.state = node_status::State::Ready as i32;
            n.spec.availability = node_spec::Availability::Active as i32;
        });
    }
    let services: Vec<String> = sim.view().services().iter().map(|s| s.id.clone()).collect();
    for service in services {
        sim.update_service(&service, |spec| spec.task.runtime = container("good"));
    }
}

fn converged(sim: &Sim, seed: u64) {
    let view = sim.view();
    for service in view.services().iter() {
        let wanted = match &service.spec.mode {
            Some(service_spec::Mode::Replicated(mode)) => mode.replicas as usize,
            _ => view.nodes().len(),
        };
        let live = sim.live(&service.id);
        let slots: BTreeSet<String> = live.iter().map(|t| place(t)).collect();
        assert_eq!((slots.len(), live.len()), (wanted, wanted), "seed {seed}: {live:#?}");
        for task in live {
            assert_eq!((task.status.state(), image(&task)), (TaskState::Running, "good"), "seed {seed}");
            assert!(swarm_orchestrator::is_up_to_date(&view, service, &task), "seed {seed}");
        }
    }
    let mut history = BTreeMap::<_, usize>::new();
    for task in view.tasks().iter() {
        assert!(
            view.services().get(&task.service_id).is_some(),
            "seed {seed}: a task without service is left"
        );
        assert_ne!(task.desired_state(), TaskState::Remove, "seed {seed}");
        *history.entry((task.service_id.clone(), place(task))).or_default() += 1;
    }
    assert!(history.values().all(|n| *n <= 5), "seed {seed}: {history:?}");
}

#[test]
fn whatever_happens_the_cluster_comes_to_what_was_asked_for_and_to_rest() {
    let seeds = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    let mut refused = 0;
    for seed in 1..=seeds {
        let mut sim = run(seed);
        converged(&sim, seed);
        refused += sim.refused;
        let index = sim.view().index();
        sim.advance(secs(24 * 3600));
        assert_eq!(sim.view().index(), index, "seed {seed}: nothing is written once nothing changes");
    }
    assert!(refused > 0, "no decision ever met a change that it did not know: the simulation is too tame");
}
