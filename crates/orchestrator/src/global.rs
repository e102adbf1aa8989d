//! Global services: one task on every node that may have one (`orchestration.md` §6).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swarm_api::v1::{Node, Service, Task, TaskState};
use swarm_api::{Object, Shared};
use swarm_placement::{Constraint, all_hold, constraints_of};
use swarm_reconcile::{Ctx, Decision, Reconciler};
use swarm_scheduler::ended_by_manager;
use swarm_store::{Event, Tables};

use crate::dirty::is_dirty;
use crate::place::{Place, by_place, fills};
use crate::plan::{MOST, Plan};
use crate::restart::{Restarter, shut_down};
use crate::spec::{
    Mode, has_ended, is_down, is_drained, is_live, is_paused, is_stranded, loses_tasks, mode, node_matters,
    service_matters,
};
use crate::update::{Updates, remove, thin_out};

/// Creates, restarts, updates and removes the tasks of global services.
///
/// Beyond the original it makes a task again that was deleted by hand, leaves the tasks of a node that is gone to
/// the reaper, and brings tasks back to a node that was drained whatever their restart policy
/// (`orchestration.md` §20.24, §20.25). An update passes by nodes that come to be no place for a task (§20.12).
#[derive(Debug, Default)]
pub struct Global {
    restarter: Restarter,
    updates: Updates,
    /// Every global service, with its constraints.
    services: BTreeMap<String, Vec<Constraint>>,
    dirty_services: BTreeSet<String>,
    /// Nodes to look at; those that came back to use take what their tasks lack at once.
    dirty_nodes: BTreeMap<String, bool>,
    /// Places to look at, by service and node.
    dirty_places: BTreeSet<(String, String)>,
    ended: BTreeSet<String>,
    crowded: BTreeSet<(String, String)>,
}

fn service<'a>(tables: &'a Tables, id: &str) -> Option<&'a Shared<Service>> {
    let service = tables.services().get(id).filter(|s| !s.pending_delete)?;
    (mode(&service.spec)? == Mode::Global).then_some(service)
}

/// What a node is to a global service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// It is to have a task.
    Serves,
    /// What is there stays as it is.
    Paused,
    /// It is no place for the service.
    Unwanted,
    /// It can't keep tasks at all.
    Lost,
}

fn fit(constraints: &[Constraint], node: Option<&Shared<Node>>) -> Fit {
    match node {
        Some(node) if loses_tasks(Some(node)) => Fit::Lost,
        Some(node) if !all_hold(constraints, node) => Fit::Unwanted,
        Some(node) if is_paused(node) => Fit::Paused,
        Some(_) => Fit::Serves,
        None => Fit::Lost,
    }
}

/// The tasks that fill a node's place. One that was stopped on request fills nothing, nor does one that a manager gave
/// up: it is not its own end that keeps a place from being filled again (`orchestration.md` §20.25).
fn filled<'a>(tables: &Tables, service: &Service, tasks: &[&'a Shared<Task>]) -> Vec<&'a Shared<Task>> {
    let mut filled = fills(tables, service, tasks);
    let by_itself =
        |t: &Task| has_ended(t) && t.status.state() != TaskState::Shutdown && !ended_by_manager(t);
    filled.retain(|t| is_live(t) || by_itself(t));
    filled
}

fn needs_restart(tables: &Tables, task: &Task) -> bool {
    is_live(task) && (has_ended(task) || is_stranded(tables, task))
}

impl Global {
    fn task_changed(&mut self, tables: &Tables, old: Option<&Task>, task: &Task) {
        if !self.services.contains_key(task.service_id.as_str()) {
            return;
        }
        if needs_restart(tables, task) {
            self.ended.insert(task.id.to_string());
        }
        let runs = |t: &Task| t.status.state() == TaskState::Running && is_live(t);
        if runs(task) && !old.is_some_and(runs) {
            self.crowded.insert((task.service_id.to_string(), task.node_id.to_string()));
        }
    }

    fn service_changed(&mut self, service: &Service) {
        if mode(&service.spec) == Some(Mode::Global) {
            let constraints = constraints_of(service.spec.task.placement.as_ref());
            self.services.insert(service.id.clone(), constraints);
            self.dirty_services.insert(service.id.clone());
        }
    }

    fn constraints(&self, service: &str) -> &[Constraint] {
        self.services.get(service).map_or(&[], Vec::as_slice)
    }

    fn create(
        &mut self,
        ctx: &mut Ctx<'_>,
        tables: &Tables,
        service: &Service,
        place: &Place,
        plan: &mut Plan<'_>,
        mut patches: Vec<swarm_reconcile::Patch>,
    ) {
        let (task, create) =
            self.restarter.replacement(ctx, tables, service, place, Duration::ZERO, |_| true);
        tracing::info!(task.id = task, service.id = service.id, node.id = place.node(), "task is created");
        patches.insert(0, create);
        plan.push(&service.id, place, patches);
    }

    fn restart(&mut self, ctx: &mut Ctx<'_>, base: &Tables, plan: &mut Plan<'_>) {
        for id in std::mem::take(&mut self.ended) {
            let Some(task) = base.tasks().get(&id) else { continue };
            let place = Place::Node(task.node_id.to_string());
            let tables = plan.tables_for_place(&task.service_id, &place);
            // Its node may be back.
            let Some(task) = tables.tasks().get(&id).filter(|t| needs_restart(&tables, t)) else { continue };
            let Some(service) = service(&tables, &task.service_id) else { continue };
            let node = tables.nodes().get(&task.node_id);
            // Nobody tells us of what we decide.
            self.updates.note(&service.id, &place);
            if node.is_none() {
                plan.push_task(&place, task, remove(task));
            } else if fit(self.constraints(&service.id), node) != Fit::Serves {
                tracing::info!(
                    task.id = id,
                    service.id = service.id,
                    node.id = task.node_id.as_str(),
                    "task leaves its node"
                );
                plan.push_task(&place, task, shut_down(task));
            } else if let Some(group) = self.restarter.restart(ctx, &tables, service, task) {
                if ended_by_manager(task) {
                    // The node gets it back whatever the policy says.
                    self.dirty_places.insert((service.id.clone(), task.node_id.to_string()));
                }
                plan.push(&service.id, &place, group.patches);
            }
        }
    }

    /// Compares a service with all nodes; what has to be replaced is left to a rolling update.
    fn reconcile_service(&mut self, ctx: &mut Ctx<'_>, id: &str, plan: &mut Plan<'_>) {
        let tables = plan.tables_for(id);
        let Some(service) = service(&tables, id) else {
            self.updates.forget(id);
            return;
        };
        let constraints = self.constraints(id).to_vec();
        let mut places = by_place(&tables, service);
        let mut live = BTreeMap::new();
        for node in tables.nodes().iter() {
            let place = Place::Node(node.id.clone());
            let tasks = places.remove(&place).unwrap_or_default();
            match fit(&constraints, Some(node)) {
                Fit::Paused => {}
                Fit::Lost | Fit::Unwanted => leave(&place, &tasks, plan),
                Fit::Serves => match filled(&tables, service, &tasks) {
                    tasks if tasks.is_empty() => {
                        self.create(ctx, &tables, service, &place, plan, Vec::new());
                    }
                    tasks => drop(live.insert(place, tasks)),
                },
            }
        }
        for (place, tasks) in places {
            forget(&place, &tasks, plan);
        }
        self.updates.refresh(ctx, &tables, service, &live, plan);
    }

    /// Sees to it that one place is filled. If its node came back, what is outdated there is replaced at once,
    /// without an update's pace; otherwise that is the update's business.
    fn reconcile_place(
        &mut self,
        ctx: &mut Ctx<'_>,
        id: &str,
        node: &str,
        came_back: bool,
        plan: &mut Plan<'_>,
    ) {
        let place = Place::Node(node.to_owned());
        let tables = plan.tables_for_place(id, &place);
        let Some(service) = service(&tables, id) else { return };
        let tasks = place.tasks(&tables, id);
        match fit(self.constraints(id), tables.nodes().get(node)) {
            // Tasks on a node that no longer suits are the enforcer's business: it rejects them and says why.
            Fit::Paused | Fit::Unwanted => self.updates.leave(id, &place),
            Fit::Lost => {
                self.updates.leave(id, &place);
                leave(&place, &tasks, plan);
            }
            Fit::Serves => {
                let filled = filled(&tables, service, &tasks);
                if !came_back && !filled.is_empty() {
                    // An update may have passed it by while it did not suit.
                    if filled.iter().all(|t| is_dirty(&tables, service, t))
                        && !self.updates.sees_to(id, &place)
                    {
                        self.dirty_services.insert(id.to_owned());
                    }
                    return;
                }
                let clean = filled.iter().find(|t| !is_dirty(&tables, service, t));
                let others = filled.iter().filter(|t| is_live(t) && clean.is_none_or(|c| c.id != t.id));
                let patches: Vec<_> = others.map(|t| shut_down(t)).collect();
                if clean.is_none() {
                    self.create(ctx, &tables, service, &place, plan, patches);
                } else if !patches.is_empty() {
                    plan.push(id, &place, patches);
                }
            }
        }
    }

    fn reconcile_node(
        &mut self,
        ctx: &mut Ctx<'_>,
        base: &Tables,
        node: &str,
        came_back: bool,
        plan: &mut Plan<'_>,
    ) {
        if base.nodes().get(node).is_some() {
            for id in self.services.keys().cloned().collect::<Vec<_>>() {
                self.reconcile_place(ctx, &id, node, came_back, plan);
            }
            return;
        }
        let place = Place::Node(node.to_owned());
        for id in self.services.keys() {
            self.updates.leave(id, &place);
        }
        let ours = base.tasks().by_node(node).filter(|t| self.services.contains_key(t.service_id.as_str()));
        forget(&place, &ours.collect::<Vec<_>>(), plan);
    }
}

/// The place's node is gone: tasks, history as well, have no place any more.
fn forget(place: &Place, tasks: &[&Shared<Task>], plan: &mut Plan<'_>) {
    for task in tasks.iter().filter(|t| t.desired_state < TaskState::Remove as i32) {
        plan.push_task(place, task, remove(task));
    }
}

/// Stops a place's tasks.
fn leave(place: &Place, tasks: &[&Shared<Task>], plan: &mut Plan<'_>) {
    for task in tasks.iter().filter(|t| t.desired_state < TaskState::Shutdown as i32) {
        tracing::info!(
            task.id = task.id.as_str(),
            service.id = task.service_id.as_str(),
            node.id = place.node(),
            "task leaves its node"
        );
        plan.push_task(place, task, shut_down(task));
    }
}

impl Reconciler for Global {
    fn name(&self) -> &'static str {
        "global"
    }

    fn init(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) {
        for service in tables.services().iter() {
            self.service_changed(service);
        }
        for task in tables.tasks().iter().filter(|t| is_live(t)) {
            self.task_changed(tables, None, task);
            if self.services.contains_key(task.service_id.as_str()) {
                self.restarter.resume(ctx, tables, &Place::Node(task.node_id.to_string()), task);
            }
        }
    }

    fn observe(&mut self, ctx: &mut Ctx<'_>, events: &[Event], tables: &Tables) {
        for event in events {
            self.restarter.observe(ctx, event, tables, |id| service(tables, id));
            self.updates.observe(ctx.now.mono, event, tables);
            match (event.old(), event.new()) {
                (Some(Object::Task(task)), None) if is_live(task) => {
                    if self.updates.is_running(&task.service_id) {
                        self.dirty_services.insert(task.service_id.to_string());
                    } else if self.services.contains_key(task.service_id.as_str()) {
                        self.dirty_places.insert((task.service_id.to_string(), task.node_id.to_string()));
                    }
                }
                (Some(Object::Task(old)), Some(Object::Task(new))) => {
                    self.task_changed(tables, Some(old), new);
                }
                (None, Some(Object::Task(task))) => self.task_changed(tables, None, task),
                (Some(Object::Service(old)), Some(Object::Service(new))) if !service_matters(old, new) => {}
                (_, Some(Object::Service(service))) => self.service_changed(service),
                (Some(Object::Service(service)), None) => {
                    self.services.remove(&service.id);
                    self.updates.forget(&service.id);
                }
                (Some(Object::Node(old)), Some(Object::Node(new))) if !node_matters(old, new) => {}
                (old, Some(Object::Node(node))) => {
                    let idle = |n: &Node| is_drained(n) || is_down(n) || is_paused(n);
                    let was_idle = matches!(old, Some(Object::Node(old)) if idle(old));
                    *self.dirty_nodes.entry(node.id.clone()).or_default() |= was_idle && !idle(node);
                }
                (Some(Object::Node(node)), None) => drop(self.dirty_nodes.insert(node.id.clone(), false)),
                _ => (),
            }
        }
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let mut plan = Plan::new(tables);
        self.ended.extend(self.restarter.release(ctx.now.mono, tables, &mut plan));
        self.restart(ctx, tables, &mut plan);
        while plan.len() < MOST
            && let Some(service) = self.dirty_services.pop_first()
        {
            self.reconcile_service(ctx, &service, &mut plan);
        }
        while plan.len() < MOST
            && let Some((node, came_back)) = self.dirty_nodes.pop_first()
        {
            self.reconcile_node(ctx, tables, &node, came_back, &mut plan);
        }
        while plan.len() < MOST
            && let Some((service, node)) = self.dirty_places.pop_first()
        {
            self.reconcile_place(ctx, &service, &node, false, &mut plan);
        }
        for (id, node) in std::mem::take(&mut self.crowded) {
            let place = Place::Node(node);
            let tables = plan.tables_for_place(&id, &place);
            if let Some(service) = service(&tables, &id) {
                thin_out(&tables, service, &place, &mut plan);
            }
        }
        // What has become of nodes is known first.
        if self.dirty_nodes.is_empty() {
            for id in self.updates.advance(ctx, &mut self.restarter, &mut plan) {
                // Nobody tells us what we wrote ourselves: one that goes back has other constraints now.
                if let Some(service) = plan.tables_for(&id).services().get(&id) {
                    self.service_changed(service);
                }
            }
        }
        let more =
            !self.dirty_services.is_empty() || !self.dirty_nodes.is_empty() || !self.dirty_places.is_empty();
        let more = more.then_some(ctx.now.mono);
        let wake_at = [more, self.restarter.next(), self.updates.next()].into_iter().flatten().min();
        Decision { groups: plan.into_groups(), wake_at }
    }
}
