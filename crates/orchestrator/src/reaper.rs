//! Forgets tasks that nobody needs any more (`orchestration.md` §13.1).

use std::collections::{BTreeMap, BTreeSet};

use swarm_api::hash::FastSet;
use swarm_api::v1::{Service, Task, TaskState};
use swarm_api::{Kind, Object, Shared, defaults};
use swarm_reconcile::{Ctx, Decision, Group, Guard, Patch, Reconciler, Write};
use swarm_scheduler::{shows_start, shows_start_of};
use swarm_store::{Event, Tables};

use crate::jobs;
use crate::place::{Place, ended_for_good};
use crate::restart::attempts_made;
use crate::spec::{has_ended, heard_at, is_live, iteration};
use crate::update::{evidence, has_evidence};

/// Most tasks deleted, and most places looked at, in one turn.
const MOST: usize = 10_000;

/// Deletes tasks that were to be removed and have stopped, and the history of places beyond the retention limit; of
/// jobs as well, but for what tells how far they are (`orchestration.md` §20.5).
#[derive(Debug, Default)]
pub struct Reaper {
    limit: Option<i64>,
    /// Places that may have too long a history.
    places: BTreeSet<(String, Place)>,
    /// Services that have, or had, tasks of which nothing runs: new tasks of others lengthen no history.
    aged: FastSet<String>,
    /// Places whose history an update still needs, or who asks whether the service has started, by service.
    kept: BTreeMap<String, BTreeSet<Place>>,
    /// Tasks that may be ready to go.
    tasks: BTreeSet<String>,
    /// Tasks that go in this turn.
    going: FastSet<String>,
    /// One that stays, and said of another one what it says too.
    witness: String,
}

/// The task is to be deleted as soon as nothing of it runs.
fn is_finished(task: &Task) -> bool {
    if task.service_id.is_empty() && task.status.reached(TaskState::Orphaned) {
        return true;
    }
    let state = task.status.state;
    task.desired_state() == TaskState::Remove
        && (state < TaskState::Assigned as i32 || state >= TaskState::Complete as i32)
}

fn never_assigned(task: &Task) -> bool {
    !task.status.reached(TaskState::Assigned)
}

/// Nothing of the task runs, or will.
fn is_dead(task: &Task) -> bool {
    has_ended(task) || (never_assigned(task) && !is_live(task))
}

fn limit(tables: &Tables) -> i64 {
    tables
        .cluster()
        .map_or(defaults::TASK_HISTORY_RETENTION_LIMIT, |c| c.spec.orchestration.task_history_retention_limit)
}

/// How often a task of the service is restarted at most; 0: always.
fn attempts(service: &Service) -> u64 {
    service.spec.task.restart.as_ref().map_or(0, |r| r.max_attempts)
}

fn delete(task: &Task) -> Group {
    let mut patch = Patch::new(Write::Remove(Kind::Task, task.id.to_string()));
    // What makes it a task to be deleted may have been decided just now, and come to nothing.
    if has_ended(task) {
        patch = patch.guard(Guard::TaskAbove(task.id.to_string(), TaskState::Running));
    } else if never_assigned(task) {
        patch = patch.guard(Guard::TaskBelow(task.id.to_string(), TaskState::Assigned));
        patch = patch.guard(Guard::DesiredAbove(task.id.to_string(), TaskState::Complete));
    }
    Group { tag: 0, patches: vec![patch] }
}

impl Reaper {
    fn mark(&mut self, tables: &Tables, task: &Task) {
        if let Some(service) = tables.services().get(&task.service_id) {
            self.places.insert((service.id.clone(), Place::of(service, task)));
        }
    }

    fn note_age(&mut self, tables: &Tables, task: &Task) {
        // A service that is gone would be forgotten by nobody.
        let has_service = || tables.services().get(&task.service_id).is_some();
        if is_dead(task) && !self.aged.contains(task.service_id.as_str()) && has_service() {
            self.aged.insert(task.service_id.to_string());
        }
    }

    fn task_changed(&mut self, tables: &Tables, old: Option<&Task>, task: &Task) {
        if is_finished(task) {
            self.tasks.insert(task.id.to_string());
        }
        self.note_age(tables, task);
        // A new task lengthens the history; one that has ended, or never began, and is not wanted may shorten it.
        let ends = has_ended(task) && !old.is_some_and(has_ended);
        let lengthens = old.is_none() && self.aged.contains(task.service_id.as_str());
        if lengthens || ends || (is_dead(task) && !is_live(task) && old.is_some_and(is_live)) {
            self.mark(tables, task);
        }
    }

    /// That the service of this task has started is to be seen of another one too, which stays.
    fn is_shown_by_another(&mut self, tables: &Tables, task: &Task) -> bool {
        let is_one = |other: &Shared<Task>| {
            let stays = other.id != task.id && !self.going.contains(other.id.as_str());
            stays && other.service_id == task.service_id && shows_start_of(other, task)
        };
        if tables.tasks().get(&self.witness).is_some_and(is_one) {
            return true;
        }
        let found = tables.tasks().by_service(&task.service_id).find(|other| is_one(other));
        self.witness = found.map(|other| other.id.to_string()).unwrap_or_default();
        found.is_some()
    }

    fn mark_history(&mut self, tables: &Tables) {
        let history = tables.tasks().by_desired_state(TaskState::Shutdown);
        let history = history.chain(tables.tasks().by_desired_state(TaskState::Complete));
        history.for_each(|t| self.mark(tables, t));
    }

    fn prune(&mut self, tables: &Tables, id: &str, place: Place, groups: &mut Vec<Group>) {
        let Some(service) = tables.services().get(id) else { return };
        let attempts = attempts(service);
        // Restarts are counted in what is kept, so keep as many as the policy needs.
        let limit = if attempts > 0 { attempts.saturating_add(1) } else { self.limit.unwrap_or(0) as u64 };
        if attempts == 0 && self.limit.is_some_and(|l| l < 0) {
            return;
        }
        let mut all = place.tasks(tables, id);
        // These go by themselves.
        all.retain(|t| !is_finished(t));
        let surplus = (all.len() as u64).saturating_sub(limit);
        if surplus == 0 {
            return;
        }
        let needed = evidence(tables, service, &all);
        let mut records = jobs::records(service, &all);
        if iteration(service).is_none() {
            records.extend(all.iter().copied().filter(|t| is_live(t)));
            if records.is_empty() {
                // A task that ended for good keeps its place from being filled again, also after a rollback.
                records.extend(ended_for_good(tables, service, &all));
            }
        }
        if attempts > 0 {
            records.append(&mut attempts_made(tables, service, &all));
        }
        let mut tasks = all;
        tasks.retain(|t| is_dead(t) && !records.iter().any(|r| r.id == t.id));
        let dead = tasks.len();
        tasks.retain(|t| !needed.iter().any(|n| n.id == t.id));
        if tasks.len() < dead {
            self.kept.entry(id.to_owned()).or_default().insert(place.clone());
        }
        tasks.sort_by_cached_key(|t: &&Shared<Task>| (heard_at(t), t.id.clone()));
        let mut left = surplus;
        for task in tasks {
            if left == 0 {
                break;
            }
            // Without it the service would wait for others again (decision 0094).
            if shows_start(service, task) && !self.is_shown_by_another(tables, task) {
                self.kept.entry(id.to_owned()).or_default().insert(place.clone());
                continue;
            }
            left -= 1;
            self.going.insert(task.id.to_string());
            groups.push(delete(task));
        }
    }
}

impl Reconciler for Reaper {
    fn name(&self) -> &'static str {
        "reaper"
    }

    fn init(&mut self, _: &mut Ctx<'_>, tables: &Tables) {
        self.limit = Some(limit(tables));
        let finished = tables.tasks().by_desired_state(TaskState::Remove);
        let finished = finished.chain(tables.tasks().by_observed_state(TaskState::Orphaned));
        self.tasks = finished.filter(|t| is_finished(t)).map(|t| t.id.to_string()).collect();
        self.mark_history(tables);
        self.aged.clear();
        for state in TaskState::Complete as i32..=TaskState::Orphaned as i32 {
            let Ok(state) = TaskState::try_from(state) else { continue };
            tables.tasks().by_observed_state(state).for_each(|t| self.note_age(tables, t));
            tables.tasks().by_desired_state(state).for_each(|t| self.note_age(tables, t));
        }
    }

    fn observe(&mut self, _: &mut Ctx<'_>, events: &[Event], tables: &Tables) {
        for event in events {
            match (event.old(), event.new()) {
                (Some(Object::Task(old)), Some(Object::Task(new))) => {
                    self.task_changed(tables, Some(old), new);
                }
                (None, Some(Object::Task(task))) => self.task_changed(tables, None, task),
                (Some(Object::Service(service)), None) => {
                    self.aged.remove(&service.id);
                    self.kept.remove(&service.id);
                }
                (old, Some(Object::Service(service))) => {
                    if !has_evidence(service) {
                        let kept = self.kept.remove(&service.id).unwrap_or_default();
                        self.places.extend(kept.into_iter().map(|p| (service.id.clone(), p)));
                    }
                    if matches!(old, Some(Object::Service(old)) if attempts(old) != attempts(service)) {
                        let history = tables.tasks().by_service(&service.id).filter(|t| is_dead(t));
                        history.for_each(|t| self.mark(tables, t));
                    }
                }
                (_, Some(Object::Cluster(_))) => {
                    let limit = Some(limit(tables));
                    if self.limit != limit {
                        self.limit = limit;
                        self.mark_history(tables);
                    }
                }
                _ => (),
            }
        }
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let mut groups = Vec::new();
        self.going.clear();
        while groups.len() < MOST
            && let Some(id) = self.tasks.pop_first()
        {
            if let Some(task) = tables.tasks().get(&id).filter(|t| is_finished(t)) {
                groups.push(delete(task));
                self.going.insert(id);
            }
        }
        let mut looked = 0;
        while groups.len() < MOST
            && looked < MOST
            && let Some((service, place)) = self.places.pop_first()
        {
            looked += 1;
            self.prune(tables, &service, place, &mut groups);
        }
        let more = !self.tasks.is_empty() || !self.places.is_empty();
        Decision { groups, wake_at: more.then_some(ctx.now.mono) }
    }
}
