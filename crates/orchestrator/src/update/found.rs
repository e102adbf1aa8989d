//! What a new leader learns of an update that it finds (ruling 42), and what the reaper must keep for that.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{Service, Task, TaskState};
use swarm_api::{Shared, duration};
use swarm_reconcile::Now;
use swarm_scheduler::ended_by_manager;
use swarm_store::Tables;

use super::{Pace, Update, Work};
use crate::dirty::is_dirty;
use crate::place::{Place, is_rolling_back, newest};
use crate::restart::ended_by_itself;
use crate::spec::{self, created_at, ended_at, has_ended, heard_at, is_live, iteration};

impl Update {
    /// Takes over what a predecessor's update had achieved: the places it had finished, those where it had failed, and
    /// those where its new task does not run yet.
    pub(super) fn inherit(
        &mut self,
        now: Now,
        tables: &Tables,
        service: &Service,
        places: &BTreeMap<Place, Vec<&Shared<Task>>>,
    ) {
        for place in places.keys() {
            let all = place.tasks(tables, &service.id);
            let mut ours = all.clone();
            ours.retain(|t| is_of_update(tables, service, t, self.began));
            if ours.is_empty() {
                continue;
            }
            self.needed.insert(place.clone());
            self.started.insert(place.clone());
            let goes_on = |t: &&&Shared<Task>| is_live(t) && !has_ended(t) && !is_dirty(tables, service, t);
            for task in all.iter().filter(goes_on) {
                self.watch_found(now, task);
            }
            // The first attempt. Those after it may be restarts, which no update waits for.
            if let [task] = ours[..]
                && goes_on(&&task)
                && !task.status.reached(TaskState::Running)
            {
                self.todo.retain(|p| p != place);
                self.work.insert(place.clone(), Work::new(now.mono, task.id.to_string()));
            }
            if let Some(task) = ours.iter().find(|t| failed_early(t, &all, self.pace.monitor)) {
                self.failed.insert(place.clone());
                self.culprit = task.id.to_string();
            }
        }
    }

    /// Replacements under way that no update of this leader began: moves of a rebalancing that an earlier leader saw to,
    /// and what an earlier update made for the second time. What is only restarted can't always be told from them.
    pub(super) fn find_under_way(
        &mut self,
        now: Now,
        tables: &Tables,
        service: &Service,
        places: &BTreeMap<Place, Vec<&Shared<Task>>>,
    ) {
        if self.todo.is_empty() && self.started.is_empty() {
            return; // there is no update
        }
        let clean = |t: &Shared<Task>| is_live(t) && !has_ended(t) && !is_dirty(tables, service, t);
        // Held for no other reason than the delay of restarts.
        let is_restart = |place: &Place, task: &Task| {
            let ended_before = |t: &Task| has_ended(t) && ended_at(t) <= Some(created_at(task));
            let mut others = place.tasks(tables, &service.id).into_iter().filter(|t| t.id != task.id);
            task.desired_state() == TaskState::Ready && others.all(|t| ended_before(t))
        };
        for (place, tasks) in places {
            if let [task] = tasks[..]
                && clean(task)
                && !task.status.reached(TaskState::Running)
                && !is_restart(place, task)
                && let Some(work) = Work::found(now, task)
            {
                self.work.insert_new(place.clone(), work);
            }
        }
        // Where a new task is there already, nothing has to be made: these places are seen to before others are begun.
        let has_new = |place: &Place| places.get(place).is_some_and(|tasks| tasks.iter().any(|t| clean(t)));
        self.todo.make_contiguous().sort_by_key(|place| !has_new(place));
    }

    /// Watches a task that runs already, for what is left of its time.
    pub(super) fn watch_found(&mut self, now: Now, task: &Task) {
        if task.status.state() == TaskState::Running {
            let left = heard_at(task).map(|since| now.remaining(since, self.pace.monitor));
            let until = left.filter(|left| !left.is_zero()).map(|left| now.mono + left);
            self.watched.entry(task.id.to_string()).or_insert(until);
        }
    }

    /// Whether something is left of it: something to do, failures that end it, or new tasks that must be watched.
    pub(super) fn is_to_go_on(&mut self, now: Duration) -> bool {
        if !self.todo.is_empty() || self.work.places().any(|place| self.started.contains(place)) {
            return true;
        }
        self.work.clear(); // that of others
        self.finish = self.watched.values().flatten().copied().max().filter(|until| *until > now);
        self.finish.is_some() || self.is_over_ratio()
    }
}

/// When the service's update or rollback began that is under way; the epoch if nobody knows. An update that went back by
/// itself says when it began; the rollback began when the task had ended because of which it did, unless that one had only
/// found no node, and was stopped later.
pub(super) fn began(tables: &Tables, service: &Service) -> Option<SystemTime> {
    let status = service.update_status.as_ref().filter(|_| is_under_way(service))?;
    let began = status.started_at.as_ref().map_or(SystemTime::UNIX_EPOCH, duration::to_system_time);
    let culprit = status.culprit().and_then(|id| tables.tasks().get(id));
    let ended = culprit.filter(|t| ended_by_itself(t)).and_then(|t| ended_at(t));
    Some(ended.map_or(began, |ended| began.max(ended)))
}

pub(super) fn is_under_way(service: &Service) -> bool {
    use UpdateState::{RollbackStarted, Updating};
    let state = service.update_status.as_ref().map(|s| s.state());
    matches!(state, Some(Updating | RollbackStarted))
}

/// The service's update made the task. Where the specs have numbers, the new one's tells that; not that of a rollback,
/// which tasks from before the update have as well.
fn is_of_update(tables: &Tables, service: &Service, task: &Task, began: SystemTime) -> bool {
    let numbered = service.spec_version.is_some() && !is_rolling_back(service);
    (numbered && task.spec_version == service.spec_version)
        || (created_at(task) >= began && !is_dirty(tables, service, task))
}

/// The task ended before it can have run for longer than the monitor period. When it came to run its record does not
/// tell any more; so what is in doubt has failed.
fn failed_early(task: &Task, place: &[&Shared<Task>], monitor: Duration) -> bool {
    // It goes on, or was asked to end.
    if !has_ended(task) || task.status.state() == TaskState::Shutdown {
        return false;
    }
    let by_manager = ended_by_manager(task);
    let Some(end) = ended_at(task) else { return true };
    // Another one was made while it went on: it was to stop, however it ended.
    if place.iter().any(|t| created_at(t) > created_at(task) && created_at(t) < end) {
        return false;
    }
    // One that its agent rejected never ran.
    let never_ran = task.status.state() == TaskState::Rejected && !by_manager;
    never_ran || end.duration_since(may_begin(task, place)).map_or(true, |ran| ran <= monitor)
}

/// From when on the task may have run: not before those in its place had ended, nor before the delay of a restart.
fn may_begin(task: &Task, place: &[&Shared<Task>]) -> SystemTime {
    let made = created_at(task);
    let Some((end, old)) = predecessor(task, place) else { return made };
    let is_restart =
        end <= made && old.status.state() != TaskState::Shutdown && old.spec_version == task.spec_version;
    let delay = if is_restart { spec::restart(&old.spec).delay } else { Duration::ZERO };
    made.max(end).checked_add(delay).unwrap_or(made)
}

/// Of the tasks that were in the place before this one, and ended before it, the one that ended last.
fn predecessor<'a>(task: &Task, place: &[&'a Shared<Task>]) -> Option<(SystemTime, &'a Shared<Task>)> {
    let before = |t: &&&'a Shared<Task>| t.id != task.id && created_at(t) <= created_at(task) && has_ended(t);
    let ended = place.iter().filter(before).filter_map(|t| Some((ended_at(t)?, *t)));
    ended
        .filter(|(at, _)| ended_at(task).is_none_or(|end| *at <= end))
        .max_by_key(|(at, t)| (*at, t.id.clone()))
}

/// An update runs, and the tasks of the service that ended tell how it goes. Jobs have no updates, whatever their status
/// says.
pub(crate) fn has_evidence(service: &Service) -> bool {
    is_under_way(service) && iteration(service).is_none()
}

/// What the next leader must find of a place's ended tasks to know how the update went there: one that failed early, with
/// the one before it, and the last.
pub(crate) fn evidence<'a>(
    tables: &Tables,
    service: &Service,
    place: &[&'a Shared<Task>],
) -> Vec<&'a Shared<Task>> {
    let Some(began) = began(tables, service).filter(|_| has_evidence(service)) else { return Vec::new() };
    let monitor = Pace::of(service).monitor;
    let mut ended = place.to_vec();
    ended.retain(|t| has_ended(t) && is_of_update(tables, service, t, began));
    ended.sort_by_cached_key(|t| (created_at(t), t.id.clone()));
    let failed = ended.iter().copied().find(|t| failed_early(t, place, monitor));
    let before = failed.and_then(|t| predecessor(t, place)).map(|(_, t)| t);
    // When a rollback began, the end of this one tells.
    let culprit = service.update_status.as_ref().and_then(|status| status.culprit());
    let culprit = place.iter().copied().filter(|t| culprit == Some(t.id.as_str()));
    failed.into_iter().chain(before).chain(newest(&ended)).chain(culprit).collect()
}
