//! The update supervisor: replaces tasks that no longer match their service, place by place, at the pace its
//! spec sets, and watches what becomes of the new ones (`orchestration.md` §8). What a new leader learns of an update
//! that it finds is in `found`.

mod found;
mod pace;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, SystemTime};

use swarm_api::v1::update_config::FailureAction;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{Service, ServiceSpec, Task, TaskState};
use swarm_api::{Object, Shared};
use swarm_reconcile::{Ctx, Guard, Now, Patch, Write};
use swarm_store::{Event, Tables};

use crate::create::Recipe;
use crate::dirty::is_dirty;
use crate::place::{Place, is_rolling_back};
use crate::plan::Plan;
use crate::restart::{Restarter, shut_down};
use crate::spec::{created_at, has_ended, is_live, version};
use crate::status;

use found::{began, is_under_way};
pub(crate) use found::{evidence, has_evidence};
pub(crate) use pace::{Pace, config_of};
use work::{Work, Works};

/// How long a new task may wait for a node before it counts as failed. Without a limit one that fits nowhere
/// would keep the update in UPDATING for ever (`orchestration.md` §20.12).
pub(crate) const PLACEMENT_LIMIT: Duration = Duration::from_secs(600);

/// One service's update.
#[derive(Debug)]
struct Update {
    /// What its status says of when it began, also after that was cleared.
    began: SystemTime,
    spec: ServiceSpec,
    version: u64,
    pace: Pace,
    /// Places that need or needed a new task: what the failure ratio refers to.
    needed: BTreeSet<Place>,
    todo: VecDeque<Place>,
    work: Works,
    /// When workers that rest after a place may go on.
    resting: Vec<Duration>,
    /// Places that this update gave a new task.
    started: BTreeSet<Place>,
    failed: BTreeSet<Place>,
    /// The task that failed last, for the message.
    culprit: String,
    /// New tasks that came to run, and until when their end is a failure; `None`: that time is over.
    watched: BTreeMap<String, Option<Duration>>,
    /// End of the watch after the last place.
    finish: Option<Duration>,
}

impl Update {
    fn new(tables: &Tables, service: &Service, now: SystemTime) -> Update {
        Update {
            began: began(tables, service).unwrap_or(now),
            spec: service.spec.clone(),
            version: version(service),
            pace: Pace::of(service),
            needed: BTreeSet::new(),
            todo: VecDeque::new(),
            work: Works::default(),
            resting: Vec::new(),
            started: BTreeSet::new(),
            failed: BTreeSet::new(),
            culprit: String::new(),
            watched: BTreeMap::new(),
            finish: None,
        }
    }

    /// The service still asks for the same tasks at the same pace.
    fn is_of(&self, service: &Service) -> bool {
        self.spec.task == service.spec.task
            && self.spec.endpoint == service.spec.endpoint
            && self.pace == Pace::of(service)
    }

    /// Adds places that need a new task and are not known yet.
    fn add(&mut self, places: Vec<Place>) {
        let known: BTreeSet<&Place> = self.todo.iter().chain(self.work.places()).collect();
        let new: Vec<Place> = places.into_iter().filter(|p| !known.contains(p)).collect();
        if !new.is_empty() {
            self.finish = None;
        }
        self.needed.extend(new.iter().cloned());
        self.todo.extend(new);
    }

    /// Only these places still belong to the service. What was done elsewhere, or failed there, says nothing of them.
    fn keep(&mut self, is_kept: impl Fn(&Place) -> bool) {
        self.todo.retain(&is_kept);
        self.work.keep(&is_kept);
        for places in [&mut self.needed, &mut self.started, &mut self.failed] {
            places.retain(&is_kept);
        }
    }

    fn is_over_ratio(&self) -> bool {
        self.pace.is_exceeded(self.failed.len(), self.needed.len())
    }

    fn next(&self) -> Option<Duration> {
        self.work.next().into_iter().chain(self.resting.iter().copied()).chain(self.finish).min()
    }
}

/// The service is being updated or goes back, or waits for an operator amid that.
pub(crate) fn is_updated(service: &Service) -> bool {
    is_paused(service) || is_under_way(service)
}

/// The service waits for an operator.
pub(crate) fn is_paused(service: &Service) -> bool {
    let status = service.update_status.as_ref();
    status.is_some_and(|s| matches!(s.state(), UpdateState::Paused | UpdateState::RollbackPaused))
}

/// The updates of all services of one orchestrator.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    running: BTreeMap<String, Update>,
    touched: BTreeSet<String>,
}

impl Updates {
    /// Starts, refreshes or drops the update of a service whose places are filled by these tasks.
    pub(crate) fn refresh(
        &mut self,
        ctx: &Ctx<'_>,
        tables: &Tables,
        service: &Service,
        places: &BTreeMap<Place, Vec<&Shared<Task>>>,
        plan: &mut Plan<'_>,
    ) {
        use UpdateState::{RollbackStarted, Updating};
        let status = service.update_status.as_ref();
        let state = status.map(|s| s.state());
        if is_paused(service) {
            self.running.remove(&service.id);
            return;
        }
        let dirty = |tasks: &[&Shared<Task>]| match tasks {
            [one] => is_dirty(tables, service, one),
            _ => true,
        };
        let todo: Vec<Place> = places.iter().filter(|(_, t)| dirty(t)).map(|(p, _)| p.clone()).collect();
        let update = match self.running.remove(&service.id).filter(|u| u.is_of(service)) {
            Some(mut update) => {
                update.spec = service.spec.clone();
                update.version = version(service);
                update.keep(|place| places.contains_key(place));
                // A task that was never written leaves its place to be done again.
                update.work.keep_existing(tables);
                update.work.note_all();
                update.add(todo);
                Some(update)
            }
            None => {
                let mut update = Update::new(tables, service, ctx.now.wall);
                update.add(todo);
                if matches!(state, Some(Updating | RollbackStarted)) {
                    update.inherit(ctx.now, tables, service, places);
                }
                update.find_under_way(ctx.now, tables, service, places);
                update.is_to_go_on(ctx.now.mono).then(|| {
                    tracing::info!(service.id = service.id, tasks = update.needed.len(), "update begins");
                    update
                })
            }
        };
        match update {
            None if matches!(state, Some(Updating | RollbackStarted)) => {
                plan.push_service(&service.id, status::complete(service, ctx.now.wall));
            }
            None => (),
            Some(update) => {
                if status.is_none() {
                    plan.push_service(&service.id, status::begin(service, update.began));
                }
                self.running.insert(service.id.clone(), update);
                self.touched.insert(service.id.clone());
            }
        }
    }

    /// Places that have new tasks already, which are to stay, are at work too.
    pub(crate) fn take_over(
        &mut self,
        now: Now,
        tables: &Tables,
        service: &Service,
        moves: Vec<(Place, String)>,
    ) {
        let Some(update) = self.running.get_mut(&service.id) else { return };
        for (place, task) in moves {
            let task = tables.tasks().get(&task).filter(|t| !is_dirty(tables, service, t));
            if let Some(work) = task.and_then(|t| Work::found(now, t)) {
                update.work.insert_new(place, work);
            }
        }
    }

    /// Something is decided about a task of the place.
    pub(crate) fn note(&mut self, service: &str, place: &Place) {
        if let Some(update) = self.running.get_mut(service) {
            update.work.note(place);
            self.touched.insert(service.to_owned());
        }
    }

    /// Whether the service is being updated.
    pub(crate) fn is_running(&self, service: &str) -> bool {
        self.running.contains_key(service)
    }

    /// The place has left the service, or nothing is to be changed there for now.
    pub(crate) fn leave(&mut self, service: &str, place: &Place) {
        let Some(update) = self.running.get_mut(service) else { return };
        let (worked, needed) = (update.work.remove(place), update.needed.remove(place));
        if needed {
            update.todo.retain(|p| p != place);
            update.started.remove(place);
            update.failed.remove(place);
        }
        if worked || needed {
            self.touched.insert(service.to_owned());
        }
    }

    /// Whether the update of the service will see to the place, or does.
    pub(crate) fn sees_to(&self, service: &str, place: &Place) -> bool {
        let update = self.running.get(service);
        update.is_some_and(|u| u.work.contains(place) || u.todo.contains(place))
    }

    /// The service is gone or not ours any more.
    pub(crate) fn forget(&mut self, service: &str) {
        self.running.remove(service);
        self.touched.remove(service);
    }

    /// Takes note of what new tasks do.
    pub(crate) fn observe(&mut self, now: Duration, event: &Event, tables: &Tables) {
        let (Object::Task(task), old) = (event.object(), event.old()) else { return };
        let Some(update) = self.running.get_mut(task.service_id.as_str()) else { return };
        self.touched.insert(task.service_id.to_string());
        let Some(service) = tables.services().get(&task.service_id) else { return };
        let place = Place::of(service, task);
        update.work.note(&place);
        let is_new = !is_dirty(tables, service, task);
        if !update.started.contains(&place) || !is_new || matches!(event, Event::Removed(_)) {
            return;
        }
        if task.status.state() == TaskState::Running {
            update.watched.entry(task.id.to_string()).or_insert(Some(now + update.pace.monitor));
        }
        let had_ended = matches!(old, Some(Object::Task(old)) if has_ended(old));
        if has_ended(task) && !had_ended {
            let ran_for_long = match update.watched.remove(task.id.as_str()) {
                None => false,
                Some(until) => until.is_none_or(|until| until < now),
            };
            // However a task ends that is not wanted any more, it is no failure: in a rollback, those from before the
            // update are as good as new ones, and may still be stopping.
            if is_live(task) && !ran_for_long {
                tracing::info!(
                    task.id = task.id.as_str(),
                    service.id = task.service_id.as_str(),
                    slot = task.slot,
                    "task of an update failed"
                );
                update.failed.insert(place);
                update.culprit = task.id.to_string();
            }
        }
    }

    /// Moves every update on that has news or is due. Returns services that must be looked at again: they go back to
    /// another spec, or what is missing there is not this update's business any more.
    pub(crate) fn advance(
        &mut self,
        ctx: &mut Ctx<'_>,
        restarter: &mut Restarter,
        plan: &mut Plan<'_>,
    ) -> BTreeSet<String> {
        let due = |u: &Update| u.next().is_some_and(|at| at <= ctx.now.mono);
        let mut services = std::mem::take(&mut self.touched);
        services.extend(self.running.iter().filter(|(_, u)| due(u)).map(|(id, _)| id.clone()));
        let mut again = BTreeSet::new();
        for id in services {
            let Some(mut update) = self.running.remove(&id) else { continue };
            let tables = plan.tables_for(&id);
            let Some(service) = tables.services().get(&id) else { continue };
            if version(service) != update.version {
                self.running.insert(id, update); // its service is looked at first
                continue;
            }
            match step(&mut update, ctx, &tables, service, restarter, plan) {
                Step::GoesOn => drop(self.running.insert(id, update)),
                Step::Over => (),
                Step::Halts => drop(again.insert(id)),
            }
        }
        again
    }

    /// When [`Updates::advance`] is due even without news.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.running.values().filter_map(Update::next).min()
    }
}

/// What a step of an update came to.
enum Step {
    GoesOn,
    Over,
    /// It is paused, or goes back.
    Halts,
}

/// One step of an update.
fn step(
    update: &mut Update,
    ctx: &mut Ctx<'_>,
    tables: &Tables,
    service: &Service,
    restarter: &mut Restarter,
    plan: &mut Plan<'_>,
) -> Step {
    let now = ctx.now.mono;
    let finished = update.work.finish(now, tables);
    for (place, task) in finished.stuck {
        update.failed.insert(place);
        update.culprit = task;
    }
    if !update.pace.delay.is_zero() {
        update.resting.extend(std::iter::repeat_n(now + update.pace.delay, finished.count));
    }
    update.resting.retain(|until| *until > now);
    if update.is_over_ratio() {
        let action = if is_rolling_back(service) { FailureAction::Pause } else { update.pace.action };
        tracing::warn!(service.id = service.id, task.id = update.culprit, ?action, "update failed");
        if action == FailureAction::Rollback {
            plan.push_service(&service.id, status::roll_back(service, &update.culprit));
            return Step::Halts;
        }
        plan.push_service(&service.id, status::pause(service, &update.culprit, update.pace.action));
        return Step::Halts;
    }
    while update.pace.has_room(update.work.len() + update.resting.len()) {
        let Some(place) = update.todo.pop_front() else { break };
        match begin_place(update, ctx, tables, service, &place, restarter, plan) {
            Some(task) => {
                update.started.insert(place.clone());
                if let Some(there) = tables.tasks().get(&task) {
                    update.watch_found(ctx.now, there);
                }
                update.work.insert(place, Work::new(now, task));
            }
            None if update.pace.delay.is_zero() => (),
            None => update.resting.push(now + update.pace.delay),
        }
    }
    if !update.todo.is_empty() || !update.work.is_empty() || !update.resting.is_empty() {
        return Step::GoesOn;
    }
    let finish = *update.finish.get_or_insert(now + update.pace.aftermath());
    if finish > now {
        return Step::GoesOn;
    }
    tracing::info!(service.id = service.id, "update is complete");
    plan.push_service(&service.id, status::complete(service, ctx.now.wall));
    Step::Over
}

/// Gives a place what the spec asks for. Returns the task to wait for, if there is one.
fn begin_place(
    update: &Update,
    ctx: &mut Ctx<'_>,
    tables: &Tables,
    service: &Service,
    place: &Place,
    restarter: &mut Restarter,
    plan: &mut Plan<'_>,
) -> Option<String> {
    let tasks = place.tasks(tables, &service.id);
    let live: Vec<&Shared<Task>> = tasks.iter().copied().filter(|t| is_live(t)).collect();
    let clean = |t: &&&Shared<Task>| !has_ended(t) && !is_dirty(tables, service, t);
    let wanted_on = |t: &&&Shared<Task>| t.desired_state == TaskState::Running as i32;
    let kept = live.iter().find(|t| clean(t) && wanted_on(t)).or_else(|| live.iter().find(clean));
    let start_first = update.pace.start_first();
    if let Some(kept) = kept {
        let others: Vec<_> = live.iter().filter(|t| t.id != kept.id).collect();
        if others.is_empty() && wanted_on(&kept) {
            return None;
        }
        if start_first && !kept.status.reached(TaskState::Running) {
            // The others go when this one runs; those that don't run are of no use till then.
            for other in others.iter().filter(|t| t.status.state() != TaskState::Running) {
                plan.push_task(place, other, shut_down(other));
            }
            if !wanted_on(&kept) {
                restarter.hold(ctx, tables, &[], kept, Duration::ZERO);
            }
            return Some(kept.id.to_string());
        }
        for other in others {
            plan.push_task(place, other, shut_down(other));
        }
        if !wanted_on(&kept) {
            restarter.hold(ctx, tables, &tasks, kept, Duration::ZERO);
            return Some(kept.id.to_string());
        }
        return None;
    }
    let (id, create) = if start_first && !live.is_empty() {
        Recipe::new(tables, service).create(ctx, place, TaskState::Running)
    } else {
        restarter.replacement(ctx, tables, service, place, Duration::ZERO, |_| true)
    };
    let mut patches = vec![create.guard(Guard::Exists(swarm_api::Kind::Service, service.id.clone()))];
    // Start-first keeps one old task until the new one runs: one that does run, if there is any.
    let serves = |t: &&&Shared<Task>| (t.status.state() != TaskState::Running, created_at(t), t.id.clone());
    let kept = live.iter().filter(|t| start_first && !has_ended(t)).min_by_key(serves);
    patches.extend(live.iter().filter(|t| kept.is_none_or(|k| k.id != t.id)).map(|t| shut_down(t)));
    tracing::info!(
        task.id = id,
        service.id = service.id,
        slot = place.slot(),
        node.id = place.node(),
        replaces = live.first().map_or("", |t| &t.id),
        "task is updated"
    );
    plan.push(&service.id, place, patches);
    Some(id)
}

/// Where a new task came to run beside older ones, the older ones are not needed any more: the end of a
/// start-first replacement, also if it took several attempts or a change of leaders (`orchestration.md` §20.18).
pub(crate) fn thin_out(tables: &Tables, service: &Service, place: &Place, plan: &mut Plan<'_>) {
    let tasks = place.tasks(tables, &service.id);
    let live: Vec<_> = tasks.into_iter().filter(|t| is_live(t)).collect();
    if live.len() < 2 {
        return;
    }
    let runs = |t: &&&Shared<Task>| t.status.state() == TaskState::Running && !is_dirty(tables, service, t);
    let Some(kept) = live.iter().filter(runs).min_by_key(|t| (created_at(t), t.id.clone())) else { return };
    for other in live.iter().filter(|t| t.id != kept.id) {
        tracing::info!(
            task.id = other.id.as_str(),
            service.id = service.id,
            successor = kept.id.as_str(),
            "task is superseded"
        );
        plan.push_task(place, other, shut_down(other));
    }
}

/// Raises a task to REMOVE: it is stopped, then forgotten.
pub(crate) fn remove(task: &Task) -> Patch {
    Patch::new(Write::RaiseDesired(task.id.to_string(), TaskState::Remove))
}
