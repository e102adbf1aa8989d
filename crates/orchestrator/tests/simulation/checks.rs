//! What must hold after every commit, whatever happened.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swarm_api::extensions::{DEPENDS_ON, REBALANCE};
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{Node, Service, ServiceSpec, Task, TaskState, node_spec, service_spec, task_spec};
use swarm_api::{Object, Shared};
use swarm_store::{Commit, Event, Received, Subscription, Tables};

use crate::broken::{Held, broken};
use crate::common::secs;
use crate::history::History;
use crate::room::{Taken, held_until, refuses};
use crate::specs::is_job;
use crate::watched::{Log, start_of};
use crate::world::World;

/// A task that was asked to stop so long ago may be taken for stopped.
const STOP_TIMEOUT: Duration = secs(60);

/// How long after an update both tasks of a place may still be there: a new one may be waited for for ten minutes.
const AFTERMATH: Duration = secs(700);

const PLACED: &str = "tasks go where they may";

/// Everything is looked at after so many steps.
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

/// All tasks of a place.
pub(crate) fn of_place<'a>(tables: &'a Tables, service: &str, at: &str) -> Vec<&'a Shared<Task>> {
    if service.starts_with("global") {
        tables.tasks().by_node(at).filter(|t| t.service_id == service).collect()
    } else {
        at.parse().map_or(Vec::new(), |slot| tables.tasks().by_slot(service, slot).collect())
    }
}

pub(crate) fn image(task: &Task) -> &str {
    match &task.spec.runtime {
        Some(task_spec::Runtime::Container(container)) => &container.image,
        _ => "",
    }
}

pub(crate) fn summary(task: &Task) -> String {
    format!(
        "{} of {} on {:?}: {} (wanted {}) {} version {:?}, {:?} {:?}",
        task.id.trim_start_matches('0'),
        task.service_id,
        task.node_id,
        task.status.state().name(),
        task.desired_state().name(),
        image(task),
        task.spec_version.map(|v| v.index),
        task.status.message,
        task.status.err,
    )
}

/// Watches every commit.
pub(crate) struct Checks {
    commits: Subscription,
    /// When tasks were asked to stop.
    asked: BTreeMap<String, Duration>,
    /// When services were last seen amid an update, or with a change of what they ask for.
    moving: BTreeMap<String, Duration>,
    /// Nodes that have less than they had when tasks were put there.
    resized: BTreeSet<String>,
    /// Until when nodes were paused or drained.
    idle: BTreeMap<String, Duration>,
    history: History,
    looked: u64,
    clock_changed: Option<Duration>,
}

impl Checks {
    pub(crate) fn new(world: &World<'_>) -> Checks {
        Checks {
            commits: world.sim.watch(),
            asked: BTreeMap::new(),
            moving: BTreeMap::new(),
            resized: BTreeSet::new(),
            idle: BTreeMap::new(),
            history: History::default(),
            looked: 0,
            clock_changed: None,
        }
    }

    /// Looks at what was committed since the last time.
    pub(crate) fn look(&mut self, world: &World<'_>, log: &mut Log) -> Held {
        if let Some(fault) = log.faults.pop() {
            return Err(fault);
        }
        if self.clock_changed != world.clock_changed {
            self.clock_changed = world.clock_changed;
            log.clock_changed(world.clock_changed);
            let view = world.sim.view();
            let held = view.tasks().iter().filter(|t| held_until(t).is_some());
            log.forgiven = held.map(|t| t.id.to_string()).collect();
        }
        while let Some(received) = self.commits.try_next() {
            match received {
                Received::Commit(commit) => self.commit(world, log, &commit)?,
                Received::Lagged(_) => return broken("every commit is looked at", "some were missed"),
                Received::Closed => break,
            }
        }
        self.history.is_pruned(world)?;
        if log.steps - self.looked >= FULL {
            self.looked = log.steps;
            self.everything(world, log)?;
        }
        Ok(())
    }

    fn commit(&mut self, world: &World<'_>, log: &mut Log, commit: &Commit) -> Held {
        let now = world.wrote_at();
        let mut places = BTreeSet::new();
        let mut placed = BTreeMap::<&str, Vec<&Shared<Task>>>::new();
        for event in &commit.events {
            log.note(|| written(event));
            match (event.old(), event.new()) {
                (Some(Object::Task(old)), None) => {
                    is_not_lost(world, old)?;
                    if world.deleted_by_hand.contains(old.id.as_str()) {
                        log.forget_start(&old.service_id);
                    }
                }
                (old, Some(Object::Task(new))) => {
                    let old = if let Some(Object::Task(old)) = old { Some(old) } else { None };
                    goes_forward(old, new)?;
                    if old.is_none() {
                        log.saw(new, now);
                    }
                    // It was never there.
                    if new.status.state().is_terminal()
                        && old.is_none_or(|old| !old.status.reached(TaskState::Assigned))
                    {
                        log.forgiven.insert(new.id.to_string());
                    }
                    if new.status.state() == TaskState::Running && may_ever_have_two(&new.service_id) {
                        self.moving.insert(new.service_id.to_string(), now);
                    }
                    if !is_live(new) {
                        self.asked.entry(new.id.to_string()).or_insert(now);
                    }
                    if new.status.state() == TaskState::Assigned
                        && old.is_none_or(|old| !old.status.reached(TaskState::Assigned))
                    {
                        placed.entry(&new.node_id).or_default().push(new);
                        let service = commit.view.services().get(&new.service_id);
                        if service.is_some_and(|service| size(service) > 0 && waits_for_others(service)) {
                            log.began.insert(start_of(new));
                        }
                    }
                    if !new.service_id.is_empty() {
                        places.insert((new.service_id.clone(), place(new)));
                    }
                }
                (old, Some(Object::Service(new))) => {
                    if let Some(Object::Service(old)) = old {
                        status_moves(old, new)?;
                        // Who has fewer tasks may have none left that ever ran.
                        if !waits_for_others(new) || size(new) < size(old) {
                            log.forget_start(&new.id);
                        }
                    }
                    self.moving.insert(new.id.clone(), now);
                }
                (Some(Object::Node(old)), Some(Object::Node(new))) => {
                    if old.description != new.description {
                        self.resized.insert(new.id.clone());
                    }
                    if is_idle(old) {
                        self.idle.insert(new.id.clone(), now);
                    }
                }
                _ => (),
            }
        }
        for (node, new) in placed {
            self.has_room(world, log, &commit.view, node, &new)?;
        }
        let mut last = "";
        for (service, place) in &places {
            self.place_is_sound(world, &commit.view, service, place, now)?;
            self.history.look(&commit.view, service, place, world);
            if service != last {
                job_is_within_its_limit(world, &commit.view, service)?;
            }
            last = service;
        }
        Ok(())
    }

    /// All of it again, from nothing but the tables.
    pub(crate) fn everything(&mut self, world: &World<'_>, log: &Log) -> Held {
        let view = world.sim.view();
        let now = world.sim.now();
        let of_services = view.tasks().iter().filter(|t| !t.service_id.is_empty());
        let places: BTreeSet<_> = of_services.map(|t| (t.service_id.clone(), place(t))).collect();
        for (service, place) in &places {
            self.place_is_sound(world, &view, service, place, now.mono)?;
            self.history.look(&view, service, place, world);
        }
        for service in view.services().iter() {
            job_is_within_its_limit(world, &view, &service.id)?;
        }
        for node in view.nodes().iter() {
            let taken = Taken::of(&view, &node.id, now.wall, &log.forgiven, |_| true);
            match taken.exceeds(node) {
                Some(what) if !self.resized.contains(&node.id) => {
                    return broken("nothing is over-committed", format!("{}: {what}", node.id));
                }
                Some(_) => (),
                None => drop(self.resized.remove(&node.id)),
            }
        }
        match view.tasks().iter().find(|t| may_run(t) && t.node_id.is_empty()) {
            Some(task) => broken("what runs is on a node", summary(task)),
            None => Ok(()),
        }
    }

    /// What was put on a node may be there as everything is then.
    fn has_room(
        &self,
        world: &World<'_>,
        log: &Log,
        tables: &Tables,
        node: &str,
        new: &[&Shared<Task>],
    ) -> Held {
        let Some(there) = tables.nodes().get(node) else {
            return broken(PLACED, format!("there is no node for {}", summary(new[0])));
        };
        let is_old = |t: &Task| new.iter().all(|n| n.id != t.id);
        let mut taken = Taken::of(tables, node, world.sim.now().wall, &log.forgiven, is_old);
        for task in new {
            if let Some(why) = refuses(there, task, &taken) {
                return broken(PLACED, format!("{why} when it comes: {}", summary(task)));
            }
            taken.add(task);
        }
        Ok(())
    }

    /// Both an old and a new task may be wanted in a place: the service is being updated start-first, or rebalanced, or was a
    /// short while ago.
    fn may_have_two(&self, service: &str, known: Option<&Service>, now: Duration) -> bool {
        use UpdateState::{Paused, RollbackPaused, RollbackStarted, Updating};
        let amid = known.is_none_or(|known| {
            let state = known.update_status.as_ref().map(|s| s.state());
            let updates = matches!(state, Some(Updating | RollbackStarted | Paused | RollbackPaused));
            updates || known.spec.annotations.labels.contains_key(REBALANCE)
        });
        let lately = self.moving.get(service).is_some_and(|at| now < *at + AFTERMATH);
        may_ever_have_two(service) && (amid || lately)
    }

    /// The node took no new tasks a little while ago.
    fn lately_idle(&self, node: &str, now: Duration) -> bool {
        self.idle.get(node).is_some_and(|until| now < *until + STOP_TIMEOUT)
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
    ) -> Held {
        let known = tables.services().get(service);
        let current = |t: &Task| match known {
            Some(known) => !is_job(known) || is_current(known, t),
            // Which iteration of a job it was, nobody knows any more.
            None => !service.contains("job"),
        };
        let mut tasks = of_place(tables, service, at);
        tasks.retain(|t| current(t));
        let list = || tasks.iter().map(|t| summary(t)).collect::<Vec<_>>().join("\n  ");
        // Where the new task never came to run, the old one stays for good; on nodes that are paused, both.
        let waits = tasks.iter().any(|t| is_live(t) && t.status.state() != TaskState::Running);
        let is_paused = service.starts_with("global")
            && (tables.nodes().get(at).is_some_and(|n| is_idle(n)) || self.lately_idle(at, now));
        let in_vain = may_ever_have_two(service) && (waits || is_paused);
        let most = if in_vain || self.may_have_two(service, known.map(|k| &**k), now) { 2 } else { 1 };
        let live = tasks.iter().filter(|t| is_live(t) && t.status.state() != TaskState::Complete).count();
        if live > most {
            return broken(
                "one task is wanted in a place",
                format!("{live} in {service}.{at}:\n  {}", list()),
            );
        }
        let runs = |t: &&&Shared<Task>| {
            let late = self.asked.get(t.id.as_str()).is_some_and(|since| now >= *since + STOP_TIMEOUT);
            let counts = (most == 1 || is_live(t)) && !late && !world.unsure.contains(t.node_id.as_str());
            counts && (TaskState::Starting..=TaskState::Running).contains(&t.status.state())
        };
        let running = tasks.iter().filter(runs).count();
        if running > most {
            return broken("one task runs in a place", format!("{running} in {service}.{at}:\n  {}", list()));
        }
        Ok(())
    }
}

fn waits_for_others(service: &Service) -> bool {
    service.spec.annotations.labels.contains_key(DEPENDS_ON)
}

/// How many tasks the service is to have, if it says so.
fn size(service: &Service) -> u64 {
    match &service.spec.mode {
        Some(Mode::Replicated(mode)) => mode.replicas,
        Some(Mode::ReplicatedJob(job)) => job.total_completions,
        _ => 0,
    }
}

fn is_idle(node: &Node) -> bool {
    node.spec.availability() != node_spec::Availability::Active
}

pub(crate) fn may_ever_have_two(service: &str) -> bool {
    service.ends_with("start-first") && !service.contains("job")
}

/// What a spec asks for, for who reads a history.
fn asked(spec: &ServiceSpec) -> String {
    let task = &spec.task;
    let reserved = task.resources.as_ref().and_then(|r| r.reservations.as_ref());
    let wants = reserved.map(|r| (r.nano_cpus, r.memory_bytes, &r.generic));
    let ports = spec.endpoint.iter().flat_map(|e| &e.ports);
    let ports: Vec<_> =
        ports.map(|p| (p.publish_mode().as_str_name(), p.protocol, p.published_port)).collect();
    let limits = task.placement.as_ref().map(|p| (&p.constraints, p.max_replicas, &p.platforms));
    let update = (spec.update.as_ref(), spec.rollback.as_ref());
    format!(
        "{:?} labels {:?} wants {wants:?} ports {ports:?} limits {limits:?} restart {:?} updates {update:?}",
        spec.mode, spec.annotations.labels, task.restart
    )
}

fn written(event: &Event) -> String {
    match (event.old(), event.new()) {
        (_, Some(Object::Task(task))) => format!("      task {} {}", place(task), summary(task)),
        (Some(Object::Task(task)), None) => format!("      without task {}", summary(task)),
        (old, Some(Object::Service(service))) => {
            let is_new = !matches!(old, Some(Object::Service(old)) if old.spec == service.spec);
            let line = format!(
                "      service {} {:?} {:?}",
                service.id, service.spec_version, service.update_status
            );
            if is_new { format!("{line}\n        {}", asked(&service.spec)) } else { line }
        }
        (_, Some(Object::Node(node))) => format!(
            "      node {} {} {}",
            node.id,
            node.status.state().as_str_name(),
            node.spec.availability().as_str_name()
        ),
        _ => format!("      {} {}", event.kind().name(), event.id()),
    }
}

/// Nothing that may run is deleted, but by hand.
fn is_not_lost(world: &World<'_>, task: &Task) -> Held {
    if may_run(task) && !world.deleted_by_hand.contains(task.id.as_str()) {
        return broken("no work is lost", format!("deleted: {}", summary(task)));
    }
    Ok(())
}

/// States only move forward, and what a task is never changes.
fn goes_forward(old: Option<&Shared<Task>>, new: &Task) -> Held {
    let Some(old) = old else {
        // What is made and what comes of that may be one commit: it is put on a node, or a manager finds it out of place.
        return match new.status.state() <= TaskState::Assigned || held_until(new).is_some() {
            true => Ok(()),
            false => broken("states only move forward", format!("it begins as {}", summary(new))),
        };
    };
    let same = old.spec == new.spec && old.slot == new.slot && old.service_id == new.service_id;
    let forward = new.status.state >= old.status.state
        && new.desired_state >= old.desired_state
        && (old.node_id.is_empty() || old.node_id == new.node_id);
    match same && forward {
        true => Ok(()),
        false => broken("states only move forward", format!("{} became {}", summary(old), summary(new))),
    }
}

/// An update begins, and ends in one of the ways in which it may. With another spec it is another one.
fn status_moves(old: &Service, new: &Service) -> Held {
    use UpdateState::{
        Completed, Paused, RollbackCompleted, RollbackPaused, RollbackStarted, Unknown, Updating,
    };
    let state = |s: &Service| s.update_status.as_ref().map_or(Unknown, |s| s.state());
    let (from, to) = (state(old), state(new));
    let may = match (from, to) {
        _ if from == to => true,
        (_, Unknown | RollbackStarted) => old.spec_version != new.spec_version,
        (Unknown, Updating) | (Updating, Completed | Paused) => true,
        (RollbackStarted, RollbackCompleted | RollbackPaused) => true,
        // What is replaced without another spec is an update that has no beginning of its own (decision 0021).
        (Completed | RollbackCompleted, Completed | Paused) => true,
        _ => false,
    };
    match may {
        true => Ok(()),
        false => broken(
            "updates go their way",
            format!("{} of {} became {}", from.as_str_name(), new.id, to.as_str_name()),
        ),
    }
}

fn job_is_within_its_limit(world: &World<'_>, tables: &Tables, id: &str) -> Held {
    let Some(service) = tables.services().get(id) else { return Ok(()) };
    let Some(service_spec::Mode::ReplicatedJob(job)) = &service.spec.mode else { return Ok(()) };
    let open =
        |t: &&Shared<Task>| is_current(service, t) && is_live(t) && t.status.state() != TaskState::Complete;
    let at_once = tables.tasks().by_service(id).filter(open).count() as u64;
    if at_once > job.max_concurrent && !world.pruned.contains(id) {
        let what = format!("{id} has {at_once} tasks at once, more than {}", job.max_concurrent);
        return broken("jobs keep to their limit", what);
    }
    Ok(())
}
