//! What must hold after every commit, whatever happened, and what must be so in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swarm_api::v1::{Service, Task, TaskState, service_spec};
use swarm_api::{Object, Shared};
use swarm_store::{Received, Subscription, Tables};

use crate::watched::Log;
use crate::world::{World, image, is_job};

/// A task that was asked to stop so long ago may be taken for stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Every place of every service is looked at after so many steps.
const FULL: u64 = 1_000;

pub(crate) fn is_live(task: &Task) -> bool {
    task.desired_state() <= TaskState::Complete
}

pub(crate) fn may_run(task: &Task) -> bool {
    task.status.reached(TaskState::Assigned) && !task.status.state().is_terminal()
}

pub(crate) fn is_current(service: &Service, task: &Task) -> bool {
    let iteration = service.job_status.as_ref().map(|s| s.job_iteration);
    task.job_iteration == iteration
}

/// The slot of a task, or the node where that takes its place.
pub(crate) fn place(task: &Task) -> String {
    if task.service_id.starts_with("global") { task.node_id.to_string() } else { task.slot.to_string() }
}

/// Watches every commit.
pub(crate) struct Checks {
    commits: Subscription,
    /// When tasks were asked to stop.
    asked: BTreeMap<String, Duration>,
    looked: u64,
}

impl Checks {
    pub(crate) fn new(world: &World<'_>) -> Checks {
        Checks { commits: world.sim.watch(), asked: BTreeMap::new(), looked: 0 }
    }

    /// Looks at what was committed since the last time.
    pub(crate) fn look(&mut self, world: &World<'_>, log: &mut Log) -> Result<(), String> {
        if let Some(fault) = log.faults.pop() {
            return Err(fault);
        }
        let now = world.sim.now().mono;
        while let Some(Received::Commit(commit)) = self.commits.try_next() {
            let mut places = BTreeSet::new();
            for event in &commit.events {
                let old = match event.old() {
                    Some(Object::Task(old)) => Some(old),
                    _ => None,
                };
                let Some(Object::Task(new)) = event.new() else { continue };
                if let Some(old) = old {
                    goes_forward(old, new)?;
                }
                if new.status.state() == TaskState::Running {
                    log.ran.insert(new.id.to_string());
                }
                if !is_live(new) {
                    self.asked.entry(new.id.to_string()).or_insert(now);
                }
                places.insert((new.service_id.clone(), place(new)));
            }
            let mut last = "";
            for (service, place) in &places {
                self.place_is_sound(world, &commit.view, service, place, now)?;
                if service != last {
                    job_is_within_its_limit(&commit.view, service)?;
                }
                last = service;
            }
        }
        if log.steps - self.looked >= FULL {
            self.looked = log.steps;
            self.everything(world, now)?;
        }
        Ok(())
    }

    fn everything(&self, world: &World<'_>, now: Duration) -> Result<(), String> {
        let view = world.sim.view();
        let places: BTreeSet<_> = view.tasks().iter().map(|t| (t.service_id.clone(), place(t))).collect();
        for (service, place) in &places {
            self.place_is_sound(world, &view, service, place, now)?;
        }
        for service in view.services().iter() {
            job_is_within_its_limit(&view, &service.id)?;
        }
        match view.tasks().iter().find(|t| may_run(t) && t.node_id.is_empty()) {
            Some(task) => Err(format!("it is on no node: {}", summary(task))),
            None => Ok(()),
        }
    }

    /// One task of a place is wanted on, and one runs. A start-first update makes it two, beside those that are
    /// about to stop.
    fn place_is_sound(
        &self,
        world: &World<'_>,
        tables: &Tables,
        service: &str,
        at: &str,
        now: Duration,
    ) -> Result<(), String> {
        let most = if service.ends_with("start-first") && !service.contains("job") { 2 } else { 1 };
        let known = tables.services().get(service);
        let current = |t: &Task| match known {
            Some(known) => !is_job(known) || is_current(known, t),
            // Which iteration of a job it was, nobody knows any more.
            None => !service.contains("job"),
        };
        let tasks: Vec<&Shared<Task>> =
            tables.tasks().by_service(service).filter(|t| place(t) == at && current(t)).collect();
        let list = || tasks.iter().map(|t| summary(t)).collect::<Vec<_>>().join("\n  ");
        let live = tasks.iter().filter(|t| is_live(t) && t.status.state() != TaskState::Complete).count();
        if live > most {
            return Err(format!("{live} live tasks in {service}.{at}:\n  {}", list()));
        }
        let runs = |t: &&&Shared<Task>| {
            let late = self.asked.get(t.id.as_str()).is_some_and(|since| now >= *since + STOP_TIMEOUT);
            let counts = (most == 1 || is_live(t)) && !late && !world.unsure.contains(t.node_id.as_str());
            counts && (TaskState::Starting..=TaskState::Running).contains(&t.status.state())
        };
        let running = tasks.iter().filter(runs).count();
        if running > most {
            return Err(format!("{running} run in {service}.{at}:\n  {}", list()));
        }
        Ok(())
    }
}

fn summary(task: &Task) -> String {
    format!(
        "{} on {:?}: {} (wanted {}) {} version {:?}",
        task.id.trim_start_matches('0'),
        task.node_id,
        task.status.state().name(),
        task.desired_state().name(),
        image(task),
        task.spec_version.map(|v| v.index)
    )
}

/// States only move forward, and what a task is never changes.
fn goes_forward(old: &Task, new: &Task) -> Result<(), String> {
    let same = old.spec == new.spec && old.slot == new.slot && old.service_id == new.service_id;
    let forward = new.status.state >= old.status.state
        && new.desired_state >= old.desired_state
        && (old.node_id.is_empty() || old.node_id == new.node_id);
    if same && forward { Ok(()) } else { Err(format!("{} became {}", summary(old), summary(new))) }
}

fn job_is_within_its_limit(tables: &Tables, id: &str) -> Result<(), String> {
    let Some(service) = tables.services().get(id) else { return Ok(()) };
    let Some(service_spec::Mode::ReplicatedJob(job)) = &service.spec.mode else { return Ok(()) };
    let open =
        |t: &&Shared<Task>| is_current(service, t) && is_live(t) && t.status.state() != TaskState::Complete;
    let at_once = tables.tasks().by_service(id).filter(open).count() as u64;
    if at_once > job.max_concurrent {
        return Err(format!("{id} has {at_once} tasks at once, more than {}", job.max_concurrent));
    }
    Ok(())
}

/// Everything is as it was asked for, and nothing of the past is left that should not be.
pub(crate) fn converged(world: &World<'_>) -> Result<(), String> {
    let view = world.sim.view();
    for service in view.services().iter() {
        let tasks: Vec<_> = world.sim.tasks(&service.id);
        let all = |what: &str| {
            let tasks = tasks.iter().map(|t| summary(t)).collect::<Vec<_>>().join("\n  ");
            Err(format!(
                "{} has not {what}: {:?}, {:?}\n  {tasks}",
                service.id, service.spec.mode, service.update_status
            ))
        };
        let nodes = view.nodes().len();
        let (wanted, job) = match &service.spec.mode {
            Some(service_spec::Mode::Replicated(mode)) => (mode.replicas as usize, false),
            Some(service_spec::Mode::ReplicatedJob(mode)) => (mode.total_completions as usize, true),
            Some(service_spec::Mode::GlobalJob(_)) => (nodes, true),
            _ => (nodes, false),
        };
        let current = tasks.iter().filter(|t| is_live(t) && (!job || is_current(service, t)));
        let goal = if job { TaskState::Complete } else { TaskState::Running };
        let mut places = BTreeSet::new();
        let mut count = 0;
        for task in current {
            if (task.status.state(), image(task)) != (goal, "good") {
                return all("come to what was asked for");
            }
            count += 1;
            places.insert(place(task));
        }
        if (places.len(), count) != (wanted, wanted) {
            return all("as many tasks as were asked for");
        }
    }
    let limit = view.cluster().unwrap().spec.orchestration.task_history_retention_limit as usize;
    let mut history = BTreeMap::<_, usize>::new();
    for task in view.tasks().iter() {
        if view.services().get(&task.service_id).is_none() || task.desired_state() == TaskState::Remove {
            return Err(format!("what is not wanted is left: {}", summary(task)));
        }
        *history.entry((task.service_id.clone(), place(task))).or_default() += 1;
    }
    let allowed = |service: &str| limit.max(if service.contains("job") { 2 } else { 1 });
    match history.iter().find(|((service, _), count)| **count > allowed(service)) {
        Some(((service, place), count)) => {
            Err(format!("{count} tasks are kept of {service}.{place}, limit {limit}"))
        }
        None => Ok(()),
    }
}
