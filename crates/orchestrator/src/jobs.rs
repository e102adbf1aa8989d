//! Jobs: services whose tasks are to complete (`orchestration.md` §11). Every change of a job's spec begins a new
//! iteration, in which everything is done again.

mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swarm_api::v1::{Service, Task, TaskState};
use swarm_api::{Object, Shared};
use swarm_placement::{Constraint, all_hold, constraints_of};
use swarm_reconcile::{Ctx, Decision, Patch, Reconciler};
use swarm_store::{Event, Tables};

use crate::place::{Place, by_place, newest};
use crate::plan::{MOST, Plan};
use crate::restart::{Restarter, should_restart, shut_down};
use crate::spec::{
    Mode, has_ended, is_live, is_stranded, iteration, loses_tasks, mode, node_matters, service_matters,
};
use crate::update::remove;
use tally::Tally;

/// Creates, restarts and removes the tasks of jobs.
///
/// Beyond the original it follows nodes that come, drain, fail and go (`orchestration.md` §20.2), counts attempts of
/// global jobs (§20.3), and never fills a place again whose task has failed for good (§20.4).
#[derive(Debug, Default)]
pub struct Jobs {
    restarter: Restarter,
    jobs: BTreeMap<String, Job>,
    /// Jobs of which nothing is known yet in their present iteration.
    begun: BTreeSet<String>,
    /// Tasks that have failed or lost their node.
    ended: BTreeSet<String>,
    /// Places to look at, by service.
    places: BTreeSet<(String, Place)>,
    /// Replicated jobs that may lack tasks.
    short: BTreeSet<String>,
}

#[derive(Debug)]
enum Job {
    Replicated(Tally),
    Global(Vec<Constraint>),
}

/// How far a place is in the job's iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It wants a task.
    Free,
    /// It has one.
    Active,
    /// It has completed, or failed for good.
    Over,
}

/// The service, if it is a job and there to stay.
fn job<'a>(tables: &'a Tables, id: &str) -> Option<&'a Shared<Service>> {
    let service = tables.services().get(id).filter(|s| !s.pending_delete)?;
    iteration(service).map(|_| service)
}

/// The task belongs to the job's present iteration.
fn is_current(service: &Service, task: &Task) -> bool {
    task.job_iteration.map(|i| i.index) == iteration(service)
}

fn is_complete(task: &Task) -> bool {
    task.status.state() == TaskState::Complete
}

/// The last task of the place in the job's present iteration.
fn last<'a>(service: &Service, tasks: &[&'a Shared<Task>]) -> Option<&'a Shared<Task>> {
    let kept = |t: &&Shared<Task>| is_current(service, t) && t.desired_state < TaskState::Remove as i32;
    newest(&tasks.iter().copied().filter(kept).collect::<Vec<_>>())
}

fn standing(tables: &Tables, service: &Service, tasks: &[&Shared<Task>]) -> Standing {
    let current = || tasks.iter().filter(|t| is_current(service, t));
    if current().any(|t| is_complete(t)) {
        return Standing::Over;
    }
    if current().any(|t| is_live(t)) {
        return Standing::Active;
    }
    match last(service, tasks) {
        // It was ended before it had a place: nothing of it was begun.
        Some(task) if !task.status.reached(TaskState::Assigned) => Standing::Free,
        Some(task) if !should_restart(tables, service, task) => Standing::Over,
        _ => Standing::Free,
    }
}

/// The tasks of a place that tell how far it is: without them what is done would be done again. Those of other
/// services tell nothing.
pub(crate) fn records<'a>(service: &Service, tasks: &[&'a Shared<Task>]) -> Vec<&'a Shared<Task>> {
    if iteration(service).is_none() {
        return Vec::new();
    }
    let complete = tasks.iter().copied().filter(|t| is_current(service, t) && is_complete(t));
    complete.chain(last(service, tasks)).collect()
}

/// It has failed and something must be done about it, or its node can't keep it.
fn needs_restart(tables: &Tables, service: &Service, task: &Task) -> bool {
    is_live(task)
        && is_current(service, task)
        && if has_ended(task) { !is_complete(task) } else { is_stranded(tables, task) }
}

/// Nobody needs the task any more: it is of an earlier iteration, or its place is gone. What is left of earlier
/// iterations of replicated jobs is history, as long as the job still has the slot.
fn is_outdated(service: &Service, task: &Task) -> bool {
    let old = !is_current(service, task);
    match mode(&service.spec) {
        Some(Mode::ReplicatedJob { total, .. }) => old && (!has_ended(task) || task.slot >= total),
        _ => old,
    }
}

impl Jobs {
    fn task_changed(&mut self, tables: &Tables, old: Option<&Task>, task: &Task) {
        let Some(service) = job(tables, &task.service_id) else { return };
        if needs_restart(tables, service, task) {
            self.ended.insert(task.id.to_string());
        }
        let tells = |t: &Task| (t.desired_state, has_ended(t));
        if old.map(tells) != Some(tells(task)) {
            self.places.insert((service.id.clone(), Place::of(service, task)));
        }
    }

    fn service_changed(&mut self, service: &Service) {
        let job = match mode(&service.spec) {
            Some(Mode::ReplicatedJob { .. }) => Job::Replicated(Tally::default()),
            Some(Mode::GlobalJob) => Job::Global(constraints_of(service.spec.task.placement.as_ref())),
            _ => return,
        };
        self.jobs.insert(service.id.clone(), job);
        self.begun.insert(service.id.clone());
    }

    fn node_changed(&mut self, tables: &Tables, node: &str) {
        if loses_tasks(tables.nodes().get(node)) {
            let lost = tables.tasks().by_node(node).filter(|t| {
                job(tables, &t.service_id).is_some_and(|service| needs_restart(tables, service, t))
            });
            self.ended.extend(lost.map(|t| t.id.to_string()));
        }
        let global = self.jobs.iter().filter(|(_, job)| matches!(job, Job::Global(_)));
        self.places.extend(global.map(|(id, _)| (id.clone(), Place::Node(node.to_owned()))));
    }

    /// Replaces what failed or lost its node. Global jobs leave a node that is no place for them.
    fn restart(&mut self, ctx: &mut Ctx<'_>, base: &Tables, plan: &mut Plan<'_>) {
        for id in std::mem::take(&mut self.ended) {
            let Some(task) = base.tasks().get(&id) else { continue };
            let Some(service) = job(base, &task.service_id) else { continue };
            let place = Place::of(service, task);
            let tables = plan.tables_for_place(&service.id, &place);
            let Some(task) = tables.tasks().get(&id).filter(|t| needs_restart(&tables, service, t)) else {
                continue;
            };
            // Another task of the place, one that was taken for lost, may have completed.
            let over = standing(&tables, service, &place.tasks(&tables, &service.id)) == Standing::Over;
            let patches = match self.jobs.get(&service.id) {
                Some(_) if over => vec![shut_down(task)],
                Some(Job::Global(constraints)) if !serves(&tables, constraints, place.node()) => {
                    tracing::info!(
                        task.id = id,
                        service.id = service.id,
                        node.id = task.node_id.as_str(),
                        "task of a job leaves its node"
                    );
                    vec![shut_down(task)]
                }
                Some(_) => match self.restarter.restart(ctx, &tables, service, task) {
                    Some(group) => group.patches,
                    None => continue,
                },
                None => continue,
            };
            plan.push(&service.id, &place, patches);
            self.places.insert((service.id.clone(), place));
        }
    }

    /// Learns how far a job is, and ends what is left of its earlier iterations.
    fn begin(&mut self, ctx: &mut Ctx<'_>, id: &str, plan: &mut Plan<'_>) {
        let tables = plan.tables_for(id);
        let Some(service) = job(&tables, id) else { return };
        tracing::info!(service.id = id, iteration = iteration(service), "job is taken up");
        for place in by_place(&tables, service).into_keys() {
            self.look(ctx, id, &place, plan);
        }
        match self.jobs.get_mut(id) {
            Some(Job::Replicated(_)) => drop(self.short.insert(id.to_owned())),
            Some(Job::Global(_)) => {
                let nodes = tables.nodes().iter().map(|n| (id.to_owned(), Place::Node(n.id.clone())));
                self.places.extend(nodes);
            }
            None => (),
        }
    }

    /// Takes note of how far a place is; in global jobs, also sees to it that it has its task.
    fn look(&mut self, ctx: &mut Ctx<'_>, id: &str, place: &Place, plan: &mut Plan<'_>) {
        let tables = plan.tables_for_place(id, place);
        let Some(service) = job(&tables, id) else { return };
        let tasks = place.tasks(&tables, id);
        let gone = matches!(place, Place::Node(node) if tables.nodes().get(node).is_none());
        for task in tasks.iter().filter(|t| t.desired_state < TaskState::Remove as i32) {
            if gone || is_outdated(service, task) {
                plan.push_task(place, task, remove(task));
            }
        }
        let standing = standing(&tables, service, &tasks);
        if standing == Standing::Over {
            // A task that was taken for lost may have completed after all.
            for task in tasks.iter().filter(|t| is_live(t) && !has_ended(t) && is_current(service, t)) {
                plan.push_task(place, task, shut_down(task));
            }
        }
        match (self.jobs.get_mut(id), place) {
            (Some(Job::Replicated(tally)), Place::Slot(slot)) => {
                tally.set(*slot, standing);
                self.short.insert(id.to_owned());
            }
            (Some(Job::Global(constraints)), Place::Node(node)) if standing == Standing::Free => {
                let usable = tables.nodes().get(node).is_some_and(|n| n.is_usable());
                if usable && serves(&tables, constraints, node) {
                    let create = self.create(ctx, &tables, service, place);
                    plan.push(id, place, vec![create]);
                }
            }
            _ => (),
        }
    }

    fn create(&mut self, ctx: &mut Ctx<'_>, tables: &Tables, service: &Service, place: &Place) -> Patch {
        let (task, create) =
            self.restarter.replacement(ctx, tables, service, place, Duration::ZERO, |_| true);
        tracing::info!(
            task.id = task,
            service.id = service.id,
            slot = place.slot(),
            node.id = place.node(),
            "task of a job is created"
        );
        create
    }

    /// Gives a replicated job the tasks it lacks, in its lowest free slots (`orchestration.md` §11.1). True if there
    /// is more to do than fits in a turn.
    fn fill(&mut self, ctx: &mut Ctx<'_>, id: &str, plan: &mut Plan<'_>) -> bool {
        let tables = plan.tables_for(id);
        let Some(service) = job(&tables, id) else { return false };
        let Some(Mode::ReplicatedJob { at_once, total }) = mode(&service.spec) else { return false };
        loop {
            let Some(Job::Replicated(tally)) = self.jobs.get_mut(id) else { return false };
            if tally.active() >= at_once {
                return false;
            }
            if plan.len() >= MOST {
                return true;
            }
            let Some(slot) = tally.take_free(total) else { return false };
            let place = Place::Slot(slot);
            let create = self.create(ctx, &tables, service, &place);
            plan.push(id, &place, vec![create]);
        }
    }
}

/// Tasks of a global job with these constraints may be on the node.
fn serves(tables: &Tables, constraints: &[Constraint], node: &str) -> bool {
    let node = tables.nodes().get(node);
    !loses_tasks(node) && node.is_some_and(|n| all_hold(constraints, n))
}

impl Reconciler for Jobs {
    fn name(&self) -> &'static str {
        "jobs"
    }

    fn init(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) {
        for service in tables.services().iter() {
            self.service_changed(service);
        }
        for task in tables.tasks().iter().filter(|t| is_live(t)) {
            if let Some(service) = job(tables, &task.service_id) {
                self.task_changed(tables, None, task);
                self.restarter.resume(ctx, tables, &Place::of(service, task), task);
            }
        }
    }

    fn observe(&mut self, ctx: &mut Ctx<'_>, events: &[Event], tables: &Tables) {
        for event in events {
            self.restarter.observe(ctx, event, tables, |id| job(tables, id));
            match (event.old(), event.new()) {
                (Some(Object::Task(task)), None) => {
                    if let Some(service) = job(tables, &task.service_id) {
                        self.places.insert((service.id.clone(), Place::of(service, task)));
                    }
                }
                (Some(Object::Task(old)), Some(Object::Task(new))) => {
                    self.task_changed(tables, Some(old), new);
                }
                (None, Some(Object::Task(task))) => self.task_changed(tables, None, task),
                (Some(Object::Service(old)), Some(Object::Service(new))) if !service_matters(old, new) => {}
                (_, Some(Object::Service(service))) => self.service_changed(service),
                (Some(Object::Service(service)), None) => drop(self.jobs.remove(&service.id)),
                (Some(Object::Node(old)), Some(Object::Node(new))) if !node_matters(old, new) => {}
                (_, Some(Object::Node(node))) | (Some(Object::Node(node)), None) => {
                    self.node_changed(tables, &node.id);
                }
                _ => (),
            }
        }
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let mut plan = Plan::new(tables);
        self.ended.extend(self.restarter.release(ctx.now.mono, tables, &mut plan));
        self.restart(ctx, tables, &mut plan);
        while plan.len() < MOST
            && let Some(id) = self.begun.pop_first()
        {
            self.begin(ctx, &id, &mut plan);
        }
        while plan.len() < MOST
            && let Some((id, place)) = self.places.pop_first()
        {
            self.look(ctx, &id, &place, &mut plan);
        }
        // What is not known yet would be taken for free.
        if self.begun.is_empty() && self.places.is_empty() {
            for id in std::mem::take(&mut self.short) {
                if self.fill(ctx, &id, &mut plan) {
                    self.short.insert(id);
                }
            }
        }
        let more = !self.begun.is_empty() || !self.places.is_empty() || !self.short.is_empty();
        let more = more.then_some(ctx.now.mono);
        let wake_at = [more, self.restarter.next()].into_iter().flatten().min();
        Decision { groups: plan.into_groups(), wake_at }
    }
}
