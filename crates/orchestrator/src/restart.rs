//! The restart supervisor: whether and how a task that ended is replaced (`orchestration.md` §7).

use std::time::{Duration, SystemTime};

use swarm_api::Shared;
use swarm_api::v1::restart_policy::RestartCondition;
use swarm_api::v1::{Service, Task, TaskState};
use swarm_reconcile::{Ctx, Group, Guard, Patch, Write};
use swarm_store::{Event, Tables};

use crate::create::Recipe;
use crate::delay::Delays;
use crate::dirty::is_dirty;
use crate::place::{Place, last};
use crate::plan::Plan;
use crate::spec::{self, created_at, ended_at, has_ended, heard_at, is_drained, is_live, may_run};

/// Whether a task that ended, or can't stay where it is, is to be replaced, by the policy in its own spec. Attempts are
/// for tasks that ended by themselves: one that lost its node needs none, as it uses none up (decision 0115).
pub(crate) fn should_restart(tables: &Tables, service: &Service, task: &Task) -> bool {
    let policy = spec::restart(&task.spec);
    let completed = task.status.state() == TaskState::Complete;
    let wanted = match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => !completed,
        RestartCondition::Any => !(completed && task.job_iteration.is_some()),
    };
    if !wanted || policy.max_attempts == 0 || needs_no_attempt(task) {
        return wanted;
    }
    let restarts = restarts(tables, service, task);
    let counted = match (policy.window, ended_at(task)) {
        (Some(window), Some(end)) => {
            let begin = end.checked_sub(window).unwrap_or(SystemTime::UNIX_EPOCH);
            restarts.iter().filter(|at| begin < **at && **at < end).count()
        }
        _ => restarts.len(),
    };
    (counted as u64) < policy.max_attempts
}

/// When the place of a task was restarted since it has had the task's spec: the creation of each task that followed
/// one that had ended by itself. Tasks that updates, rollbacks, moves and emptied nodes brought are no restarts. The
/// reaper keeps as many tasks as the policy needs, so nothing is lost with a leader.
fn restarts(tables: &Tables, service: &Service, task: &Task) -> Vec<SystemTime> {
    let run = run_of(&Place::of(service, task).tasks(tables, &service.id), task);
    let restarted = run.windows(2).filter(|pair| is_restart(pair[0], pair[1]));
    restarted.map(|pair| created_at(pair[1])).collect()
}

/// A task was made since this one had ended by itself. It was not, if that went on: it was moved, or lost.
fn is_restart(ended: &Task, made: &Task) -> bool {
    ended_by_itself(ended) && ended_at(ended).is_none_or(|end| end <= created_at(made))
}

/// What must be kept of a place's tasks to know how many of its last one's attempts are used up: the last restarts, each
/// with the task that had ended before. Without that a place in which tasks fail and are moved in turns would be restarted
/// for ever.
pub(crate) fn attempts_made<'a>(
    tables: &Tables,
    service: &Service,
    place: &[&'a Shared<Task>],
) -> Vec<&'a Shared<Task>> {
    let Some(last) = last(tables, service, place) else { return Vec::new() };
    let most = usize::try_from(spec::restart(&last.spec).max_attempts).unwrap_or(usize::MAX);
    let run = run_of(place, last);
    let restarted = run.windows(2).rev().filter(|pair| is_restart(pair[0], pair[1]));
    restarted.take(most).flatten().copied().collect()
}

/// The tasks of a place around this one that have its spec and iteration, in the order of their creation.
fn run_of<'a>(place: &[&'a Shared<Task>], task: &Task) -> Vec<&'a Shared<Task>> {
    let mut tasks = place.to_vec();
    tasks.retain(|t| t.desired_state < TaskState::Remove as i32);
    tasks.sort_by_cached_key(|t| (created_at(t), t.id.clone()));
    let is_same = |a: &&Shared<Task>, b: &&Shared<Task>| {
        let unnumbered = a.spec_version.is_none() && b.spec_version.is_none();
        a.job_iteration == b.job_iteration
            && a.spec_version == b.spec_version
            && (!unnumbered || a.spec == b.spec)
    };
    let mut runs = tasks.chunk_by(is_same);
    runs.find(|run| run.iter().any(|t| t.id == task.id)).unwrap_or_default().to_vec()
}

/// The task can't stay, as its node is lost, gone or to be emptied; or it was asked to stop.
fn needs_no_attempt(task: &Task) -> bool {
    let state = task.status.state();
    !has_ended(task) || state == TaskState::Shutdown || (is_live(task) && state == TaskState::Orphaned)
}

/// Nobody had asked the task to end. It may have been lost with its node.
pub(crate) fn ended_by_itself(task: &Task) -> bool {
    has_ended(task) && task.status.state() != TaskState::Shutdown
}

/// What a task is to come to that may start.
fn goal(is_job: bool) -> TaskState {
    if is_job { TaskState::Complete } else { TaskState::Running }
}

/// Replaces tasks, and holds replacements back.
#[derive(Debug, Default)]
pub(crate) struct Restarter {
    delays: Delays,
}

impl Restarter {
    /// Takes note of what ends the wait for a task, and holds on to tasks of our services that nobody holds.
    pub(crate) fn observe<'a>(
        &mut self,
        ctx: &Ctx<'_>,
        event: &Event,
        tables: &'a Tables,
        ours: impl Fn(&str) -> Option<&'a Shared<Service>>,
    ) {
        use swarm_api::Object;
        match event {
            Event::Removed(Object::Task(task)) => {
                self.delays.cancel(&task.id);
                self.delays.stopped(&task.id);
            }
            Event::Created(Object::Task(task)) | Event::Updated { new: Object::Task(task), .. } => {
                if !is_live(task) {
                    self.delays.cancel(&task.id);
                }
                if has_ended(task) {
                    self.delays.stopped(&task.id);
                }
                if task.desired_state() == TaskState::Ready
                    && let Some(service) = ours(&task.service_id)
                {
                    self.adopt(ctx, tables, service, &task.id);
                }
            }
            Event::Removed(Object::Node(node)) => self.node_lost(&node.id, tables),
            Event::Created(Object::Node(node)) | Event::Updated { new: Object::Node(node), .. }
                if spec::is_down(node) =>
            {
                self.node_lost(&node.id, tables);
            }
            Event::Updated { old: Object::Node(old), .. } if spec::is_down(old) => {
                self.node_back(&old.id, tables, ours);
            }
            _ => (),
        }
    }

    /// Its tasks run on, perhaps: those that take their place wait until they have stopped.
    fn node_back<'a>(
        &mut self,
        node: &str,
        tables: &'a Tables,
        ours: impl Fn(&str) -> Option<&'a Shared<Service>>,
    ) {
        for old in tables.tasks().by_node(node).filter(|t| may_run(t) && !is_live(t)) {
            let Some(service) = ours(&old.service_id) else { continue };
            for task in Place::of(service, old).tasks(tables, &service.id) {
                if task.id != old.id && is_live(task) {
                    self.delays.wait_for(&task.id, &old.id);
                }
            }
        }
    }

    fn node_lost(&mut self, node: &str, tables: &Tables) {
        tables.tasks().by_node(node).for_each(|t| self.delays.stopped(&t.id));
    }

    /// Shuts a task down that ended or lost its node, and replaces it if its policy says so. Where the task was held
    /// itself, its replacement is held no shorter.
    pub(crate) fn restart(
        &mut self,
        ctx: &mut Ctx<'_>,
        tables: &Tables,
        service: &Service,
        task: &Task,
    ) -> Option<Group> {
        if has_ended(task) && self.delays.restart_when_due(&task.id) {
            return None;
        }
        if task.desired_state > TaskState::Complete as i32 {
            return None;
        }
        let place = Place::of(service, task);
        let mut patches = vec![shut_down(task)];
        if should_restart(tables, service, task) && !has_successor(tables, service, &place, task) {
            let node = tables.nodes().get(&task.node_id);
            let drained = node.is_some_and(|n| is_drained(n));
            let delay = if drained { Duration::ZERO } else { spec::restart(&task.spec).delay };
            let delay = delay.max(self.delays.left(&task.id, ctx.now.mono));
            let leaves = |t: &Task| !is_live(t) || t.id == task.id;
            let (id, create) = self.replacement(ctx, tables, service, &place, delay, leaves);
            tracing::info!(
                task.id = id, replaces = task.id.as_str(), service.id = service.id, slot = place.slot(),
                state = task.status.state().name(), err = task.status.err.as_str(), delay = ?delay, "task is replaced"
            );
            patches.push(create);
        } else {
            tracing::info!(
                task.id = task.id.as_str(),
                service.id = service.id,
                slot = place.slot(),
                state = task.status.state().name(),
                err = task.status.err.as_str(),
                "task has ended and stays so"
            );
        }
        Some(Group { tag: 0, patches })
    }

    /// A task for a place, held until `delay` is over and nothing may run any more of the tasks that leave it.
    pub(crate) fn replacement(
        &mut self,
        ctx: &mut Ctx<'_>,
        tables: &Tables,
        service: &Service,
        place: &Place,
        delay: Duration,
        leaves: impl Fn(&Task) -> bool,
    ) -> (String, Patch) {
        let mut leaving = place.tasks(tables, &service.id);
        leaving.retain(|t| leaves(t));
        let waits = stopping(tables, &leaving);
        let at_once = delay.is_zero() && waits.is_empty();
        let is_job = spec::iteration(service).is_some();
        let desired = if at_once { goal(is_job) } else { TaskState::Ready };
        let (id, create) = Recipe::new(tables, service).create(ctx, place, desired);
        if !at_once {
            self.delays.hold(&id, ctx.now.mono, delay, waits);
        }
        (id, create)
    }

    /// Holds a task that is there already, until the others in its place have stopped and `delay` is over.
    pub(crate) fn hold(
        &mut self,
        ctx: &Ctx<'_>,
        tables: &Tables,
        place: &[&Shared<Task>],
        task: &Task,
        delay: Duration,
    ) {
        let others: Vec<_> = place.iter().copied().filter(|t| t.id != task.id).collect();
        let waits = stopping(tables, &others);
        self.delays.hold(&task.id, ctx.now.mono, delay, waits);
    }

    /// Holds on to a task that a predecessor of this leader held back, for what is left of its delay
    /// (`orchestration.md` §10). Other tasks are left alone.
    pub(crate) fn resume(&mut self, ctx: &Ctx<'_>, tables: &Tables, place: &Place, task: &Task) {
        if task.desired_state() != TaskState::Ready || task.status.state > TaskState::Complete as i32 {
            return;
        }
        let delay = spec::restart(&task.spec).delay;
        let left = heard_at(task).map_or(Duration::ZERO, |since| ctx.now.remaining(since, delay));
        let mut leaving = place.tasks(tables, &task.service_id);
        leaving.retain(|t| !is_live(t)); // another may run until this one does
        self.hold(ctx, tables, &leaving, task, left);
    }

    /// Holds on to a task that is to wait and that nobody holds: what let it go came to nothing, or its creation, which
    /// was taken back, was written after all.
    fn adopt(&mut self, ctx: &Ctx<'_>, tables: &Tables, service: &Service, task: &str) {
        if let Some(task) = tables.tasks().get(task).filter(|task| !self.delays.holds(&task.id)) {
            self.resume(ctx, tables, &Place::of(service, task), task);
        }
    }

    /// Releases what is due. Tasks that ended while they were held are returned: they are to be restarted.
    pub(crate) fn release(&mut self, now: Duration, tables: &Tables, plan: &mut Plan<'_>) -> Vec<String> {
        let mut ended = Vec::new();
        for due in self.delays.due(now) {
            let Some(task) = tables.tasks().get(&due.task) else { continue };
            let Some(service) = tables.services().get(&task.service_id) else { continue };
            if due.restart {
                ended.push(due.task);
                continue;
            }
            tracing::debug!(
                task.id = due.task.as_str(),
                service.id = task.service_id.as_str(),
                "task may start"
            );
            let patch = Patch::new(Write::RaiseDesired(due.task.clone(), goal(task.job_iteration.is_some())));
            let patch = patch.guard(Guard::Exists(swarm_api::Kind::Task, due.task));
            plan.push_task(&Place::of(service, task), task, patch);
        }
        ended
    }

    /// When something is due next.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.delays.next()
    }
}

/// Tasks that may still run, on nodes that can still tell us of their end.
fn stopping(tables: &Tables, tasks: &[&Shared<Task>]) -> Vec<String> {
    let node_answers = |t: &Task| tables.nodes().get(&t.node_id).is_some_and(|n| !spec::is_down(n));
    tasks.iter().filter(|t| may_run(t) && node_answers(t)).map(|t| t.id.to_string()).collect()
}

/// Asks a task to stop, unless somebody did so before.
pub(crate) fn shut_down(task: &Task) -> Patch {
    Patch::new(Write::RaiseDesired(task.id.to_string(), TaskState::Shutdown))
        .guard(Guard::DesiredAtMost(task.id.to_string(), TaskState::Complete))
}

/// Another live task of the current spec fills the place already.
fn has_successor(tables: &Tables, service: &Service, place: &Place, task: &Task) -> bool {
    place
        .tasks(tables, &service.id)
        .into_iter()
        .filter(|t| t.id != task.id && is_live(t) && !has_ended(t))
        .any(|t| t.job_iteration == task.job_iteration && !is_dirty(tables, service, t))
}
