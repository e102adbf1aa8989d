//! Replicated services: as many tasks as the spec asks for, each in a numbered slot (`orchestration.md` §5).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swarm_api::v1::{Service, Task, TaskState};
use swarm_api::{Object, Shared};
use swarm_reconcile::{Ctx, Decision, Reconciler};
use swarm_store::{Event, Tables};

use crate::create::{Ordered, Recipe};
use crate::place::{Place, by_place, fills, is_rolling_back};
use crate::plan::Plan;
use crate::rebalance::Rebalancer;
use crate::restart::Restarter;
use crate::spec::{Mode, is_live, is_stranded, loses_tasks, mode, service_matters};
use crate::update::{Updates, is_paused, is_updated, remove, thin_out};

/// Groups in one turn after which no further service is begun.
const MOST: usize = 10_000;

/// Tasks that one service gets in a turn: so many that a large one is not looked at as a whole over and over.
const MOST_NEW: usize = 100_000;

/// Creates, restarts, updates and removes the tasks of replicated services.
#[derive(Debug, Default)]
pub struct Replicated {
    restarter: Restarter,
    updates: Updates,
    /// Services to compare with their tasks.
    dirty: BTreeSet<String>,
    /// Tasks that have ended or lost their node.
    ended: BTreeSet<String>,
    /// Slots in which a task came to run beside others.
    crowded: BTreeSet<(String, u64)>,
    rebalancer: Rebalancer,
}

/// The service, if it is replicated and there to stay.
pub(crate) fn service<'a>(tables: &'a Tables, id: &str) -> Option<(&'a Shared<Service>, u64)> {
    let service = tables.services().get(id).filter(|s| !s.pending_delete)?;
    match mode(&service.spec)? {
        Mode::Replicated(replicas) => Some((service, replicas)),
        _ => None,
    }
}

/// The restart list's rule.
fn needs_restart(tables: &Tables, task: &Task) -> bool {
    is_live(task) && (task.status.state().is_terminal() || is_stranded(tables, task))
}

impl Replicated {
    fn task_changed(&mut self, tables: &Tables, old: Option<&Task>, task: &Task) {
        let Some((_, _)) = service(tables, &task.service_id) else { return };
        if needs_restart(tables, task) {
            self.ended.insert(task.id.to_string());
        }
        let runs = |t: &Task| t.status.state() == TaskState::Running && is_live(t);
        if runs(task) && !old.is_some_and(runs) {
            self.crowded.insert((task.service_id.to_string(), task.slot));
        }
    }

    fn node_changed(&mut self, tables: &Tables, node: &str) {
        if loses_tasks(tables.nodes().get(node)) {
            let tasks = tables.tasks().by_node(node).filter(|t| is_live(t));
            let ours = tasks.filter(|t| service(tables, &t.service_id).is_some());
            self.ended.extend(ours.map(|t| t.id.to_string()));
        }
    }

    /// Restarts what has ended.
    fn restart(&mut self, ctx: &mut Ctx<'_>, base: &Tables, plan: &mut Plan<'_>) {
        for id in std::mem::take(&mut self.ended) {
            let Some(task) = base.tasks().get(&id) else { continue };
            let place = Place::Slot(task.slot);
            let tables = plan.tables_for_place(&task.service_id, &place);
            // Its node may be back.
            let Some(task) = tables.tasks().get(&id).filter(|t| needs_restart(&tables, t)) else { continue };
            let Some((service, _)) = service(&tables, &task.service_id) else { continue };
            if let Some(group) = self.restarter.restart(ctx, &tables, service, task) {
                plan.push(&service.id, &place, group.patches);
                // Nobody tells us of what we decide.
                self.updates.note(&service.id, &place);
            }
        }
    }

    /// Compares a service with its tasks. True if there is more to do than fits in a turn.
    fn reconcile(&mut self, ctx: &mut Ctx<'_>, id: &str, plan: &mut Plan<'_>) -> bool {
        let tables = plan.tables_for(id);
        let Some((service, replicas)) = service(&tables, id) else {
            self.updates.forget(id);
            self.rebalancer.forget(id);
            return false;
        };
        self.rebalancer.service_changed(ctx.now.mono, service);
        let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
        let (mut live, mut dead) = (BTreeMap::new(), BTreeMap::new());
        for (place, tasks) in by_place(&tables, service) {
            match fills(&tables, service, &tasks) {
                filled if filled.is_empty() => drop(dead.insert(place, tasks)),
                filled => drop(live.insert(place, filled)),
            }
        }
        let mut more = false;
        if live.len() > wanted {
            for place in surplus(&live, wanted) {
                tracing::info!(service.id = id, slot = place.slot(), "slot is removed");
                live.remove(&place);
                for task in place.tasks(&tables, id) {
                    plan.push_task(&place, task, remove(task));
                }
            }
        }
        if is_rolling_back(service) {
            // A rollback brings dead slots back at its own pace, and watches them.
            while live.len() < wanted
                && let Some((place, _)) = dead.pop_first()
            {
                live.insert(place, Vec::new());
            }
        }
        for (place, tasks) in &mut live {
            if self.rebalancer.is_moving(id, place) {
                tasks.truncate(1); // one for the other
            }
        }
        self.updates.refresh(ctx, &tables, service, &live, plan);
        if self.updates.is_running(id) || is_paused(service) {
            let moves = self.rebalancer.stop(id);
            self.updates.take_over(ctx.now, &tables, service, moves);
        }
        let missing = wanted.saturating_sub(live.len());
        let free = (1..).map(Place::Slot).filter(|place| !live.contains_key(place));
        let recipe = Recipe::new(&tables, service);
        let mut ids = Ordered::new(ctx.ids, missing.min(MOST_NEW));
        let ctx = &mut Ctx { now: ctx.now, ids: &mut ids };
        for place in free.take(missing.min(MOST_NEW)) {
            let (task, create) = match dead.remove(&place) {
                None => recipe.create(ctx, &place, TaskState::Running),
                // Something may still run there.
                Some(_) => {
                    self.restarter.replacement(ctx, &tables, service, &place, Duration::ZERO, |_| true)
                }
            };
            tracing::info!(task.id = task, service.id = id, slot = place.slot(), "task is created");
            plan.push(id, &place, vec![create]);
        }
        more |= missing > MOST_NEW;
        // Slots that nobody needs: the reaper forgets their tasks once they have stopped. The original deletes
        // them at once, running or not (`orchestration.md` §20.8).
        for (place, tasks) in dead {
            for task in tasks.into_iter().filter(|t| t.desired_state < TaskState::Remove as i32) {
                plan.push_task(&place, task, remove(task));
            }
        }
        more
    }
}

/// The slots to give up, so that `wanted` are left: unassigned ones first, then the n-th copies on the most
/// loaded nodes, then those not running, then higher numbers (`orchestration.md` §5.2).
fn surplus(live: &BTreeMap<Place, Vec<&Shared<Task>>>, wanted: usize) -> Vec<Place> {
    let runs = |tasks: &[&Shared<Task>]| tasks.iter().any(|t| t.status.state() == TaskState::Running);
    let mut slots: Vec<(&Place, &Vec<&Shared<Task>>)> = live.iter().collect();
    slots.sort_by_key(|(place, tasks)| (!runs(tasks), place.slot()));
    let mut copies = BTreeMap::<&str, usize>::new();
    let mut ranked: Vec<(usize, &Place)> = slots
        .into_iter()
        .map(|(place, tasks)| match tasks[..] {
            [task] if !task.node_id.is_empty() => {
                let copy = copies.entry(&task.node_id).or_default();
                *copy += 1;
                (*copy, place)
            }
            _ => (usize::MAX, place),
        })
        .collect();
    ranked.sort_by_key(|(copy, _)| *copy); // stable: ties keep their order
    ranked.into_iter().skip(wanted).map(|(_, place)| place.clone()).collect()
}

impl Reconciler for Replicated {
    fn name(&self) -> &'static str {
        "replicated"
    }

    fn init(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) {
        for task in tables.tasks().iter().filter(|t| is_live(t)) {
            if service(tables, &task.service_id).is_none() {
                continue;
            }
            self.task_changed(tables, None, task);
            self.restarter.resume(ctx, tables, &Place::Slot(task.slot), task);
        }
        self.dirty = tables.services().iter().map(|s| s.id.clone()).collect();
    }

    fn observe(&mut self, ctx: &mut Ctx<'_>, events: &[Event], tables: &Tables) {
        for event in events {
            self.restarter.observe(ctx, event, tables, |id| service(tables, id).map(|(service, _)| service));
            self.updates.observe(ctx.now.mono, event, tables);
            self.rebalancer.observe(ctx.now.mono, event);
            match (event.old(), event.new()) {
                (Some(Object::Task(task)), None) => {
                    // One that was to be removed had no part in its slot any more.
                    let has_part = |task: &Task| task.desired_state() < TaskState::Remove;
                    let is_last = has_part(task)
                        && !tables.tasks().by_slot(&task.service_id, task.slot).any(|t| has_part(t));
                    if (is_live(task) || is_last) && service(tables, &task.service_id).is_some() {
                        self.dirty.insert(task.service_id.to_string());
                    }
                }
                (Some(Object::Task(old)), Some(Object::Task(new))) => {
                    self.task_changed(tables, Some(old), new);
                }
                (None, Some(Object::Task(task))) => self.task_changed(tables, None, task),
                (Some(Object::Service(old)), Some(Object::Service(new))) if !service_matters(old, new) => {}
                (_, Some(Object::Service(service))) => drop(self.dirty.insert(service.id.clone())),
                (Some(Object::Service(service)), None) => {
                    self.updates.forget(&service.id);
                    self.rebalancer.forget(&service.id);
                }
                (Some(Object::Node(node)), None) => self.node_changed(tables, &node.id),
                (_, Some(Object::Node(node))) => self.node_changed(tables, &node.id),
                _ => (),
            }
        }
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let mut plan = Plan::new(tables);
        self.ended.extend(self.restarter.release(ctx.now.mono, tables, &mut plan));
        self.restart(ctx, tables, &mut plan);
        let mut later = BTreeSet::new();
        while plan.len() < MOST
            && let Some(service) = self.dirty.pop_first()
        {
            if self.reconcile(ctx, &service, &mut plan) {
                later.insert(service);
            }
        }
        self.dirty.append(&mut later);
        for (id, slot) in std::mem::take(&mut self.crowded) {
            let place = Place::Slot(slot);
            if self.rebalancer.is_moving(&id, &place) {
                continue;
            }
            let tables = plan.tables_for_place(&id, &place);
            if let Some((service, _)) = service(&tables, &id) {
                thin_out(&tables, service, &place, &mut plan);
            }
        }
        self.dirty.append(&mut self.updates.advance(ctx, &mut self.restarter, &mut plan));
        let updates = &self.updates;
        let busy = |service: &Service| updates.is_running(&service.id) || is_updated(service);
        let mut given_up = self.rebalancer.advance(ctx, &mut self.restarter, busy, &mut plan);
        self.dirty.append(&mut given_up);
        let more = (!self.dirty.is_empty()).then_some(ctx.now.mono);
        let due = [more, self.restarter.next(), self.updates.next(), self.rebalancer.next()];
        let wake_at = due.into_iter().flatten().min();
        Decision { groups: plan.into_groups(), wake_at }
    }
}
