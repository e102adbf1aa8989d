//! The brain and the agents in turns, until the service is at rest.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use swarm_api::extensions::DEPENDS_ON;
use swarm_api::swarmd::DryRunResponse;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{Service, Task, TaskState, node_status};
use swarm_api::{Shared, Text};
use swarm_reconcile::{IdSource, Stage};
use swarm_store::{Store, Tables, View};

use crate::answer;
use crate::cast::{Cast, Place};
use crate::standing::Standing;
use crate::with_enforcer;

/// How long (in simulated time) tasks may wait while nothing becomes of any: longer than an update waits for a node.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Turns in which nothing is written, at one time, after which it is given up.
const MOST_IDLE: usize = 10_000;

/// A change of a service that is made in a copy of the state.
#[derive(Debug)]
pub struct Change {
    /// The state without it.
    pub view: View,
    /// A copy of that state in which the change is made, and nothing else; [`Store::fork`] makes one.
    pub fork: Arc<Store>,
    /// The service as it is after it.
    pub service: Shared<Service>,
}

/// What a dry run may cost.
pub struct Limits<'a> {
    /// New tasks after which it is cut off.
    pub tasks: usize,
    /// Asked again and again; `false` cuts it off.
    pub go_on: &'a dyn Fn() -> bool,
}

impl std::fmt::Debug for Limits<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limits").field("tasks", &self.tasks).finish_non_exhaustive()
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing is left to do.
    Rest,
    /// Too many new tasks.
    Tasks,
    /// The limits said so.
    Stopped,
}

/// Says what would become of the tasks of a service if `change` were made at `now`. What it writes, it writes into the
/// fork. New tasks get their ids from `ids`.
pub fn dry_run(
    change: &Change,
    now: SystemTime,
    ids: Box<dyn IdSource>,
    limits: &Limits<'_>,
) -> DryRunResponse {
    let mut rehearsal = Rehearsal {
        waits: Vec::new(),
        stage: Stage::new(change.fork.clone(), now, ids),
        cast: Cast::new(&change.view, &change.service),
        service: &change.service.id,
        limits,
    };
    let end = rehearsal.run();
    answer::of(change, &rehearsal.stage.view(), &rehearsal.cast, &rehearsal.waits, end)
}

struct Rehearsal<'a> {
    stage: Stage,
    cast: Cast,
    service: &'a str,
    limits: &'a Limits<'a>,
    /// Tasks that waited for other services, and what they said.
    waits: Vec<(Place, String)>,
}

impl Rehearsal<'_> {
    fn run(&mut self) -> End {
        let mut commits = self.stage.watch();
        self.cast.enter(&self.stage.view());
        self.stage.lead(with_enforcer(Box::<Standing>::default()));
        loop {
            let mut idle = 0;
            loop {
                if self.cast.created() > self.limits.tasks {
                    return End::Tasks;
                }
                if !(self.limits.go_on)() || idle > MOST_IDLE {
                    return End::Stopped;
                }
                let mut acted = self.stage.turn();
                if !acted && !self.stage.is_due() {
                    acted = self.agents();
                    if !acted {
                        break;
                    }
                }
                idle = if acted { 0 } else { idle + 1 };
                self.cast.follow(&mut commits, self.stage.now().mono);
            }
            if self.waits.is_empty() && self.stop_waiting() {
                continue;
            }
            let updating = is_updating(&self.stage.view(), self.service);
            let patience = if self.cast.is_at_rest() { self.rebalances_within() } else { PATIENCE };
            match self.stage.wake_at() {
                Some(at) if updating || at <= self.cast.last_news() + patience => self.stage.pass_until(at),
                _ => return End::Rest,
            }
        }
    }

    /// A service at rest may be rebalanced yet.
    fn rebalances_within(&self) -> Duration {
        let view = self.stage.view();
        let service = view.services().get(self.service);
        service.map_or(Duration::ZERO, |service| swarm_orchestrator::rebalances_within(service))
    }

    /// Other services stand still, so what tasks wait for never comes. That is noted once, and then taken for true.
    fn stop_waiting(&mut self) -> bool {
        self.waits = self.cast.waiting();
        let waits = !self.waits.is_empty();
        waits
            && self
                .stage
                .write(|tx| {
                    let service = tx.services().get(self.service).cloned();
                    if let Some(mut service) = service {
                        service.spec.annotations.labels.remove(DEPENDS_ON);
                        tx.update(service)?;
                    }
                    Ok(())
                })
                .is_ok()
    }

    /// Agents report what they have done with tasks of the service. Returns whether there was anything.
    fn agents(&mut self) -> bool {
        let view = self.stage.view();
        let at = Some(self.stage.now().wall.into());
        let mut reports = Vec::new();
        for id in self.cast.take_news() {
            if let Some(task) = view.tasks().get(&id)
                && answers(&view, &task.node_id)
                && let Some(state) = next_state(task)
            {
                reports.push((id, state));
            }
        }
        if reports.is_empty() {
            return false;
        }
        let written = self.stage.write(|tx| {
            let ids: Vec<&str> = reports.iter().map(|(id, _)| id.as_str()).collect();
            tx.update_tasks(&ids, |place, task| {
                let mut task = Task::clone(task);
                task.status.state = reports[place].1 as i32;
                task.status.err = Text::default();
                (task.status.timestamp, task.status.applied_at) = (at, at);
                Some(task)
            });
            Ok(())
        });
        written.is_ok()
    }
}

pub(crate) fn is_updating(tables: &Tables, service: &str) -> bool {
    let status = tables.services().get(service).and_then(|s| s.update_status.as_ref());
    status.is_some_and(|s| matches!(s.state(), UpdateState::Updating | UpdateState::RollbackStarted))
}

fn answers(tables: &Tables, node: &str) -> bool {
    tables.nodes().get(node).is_some_and(|n| n.status.state() == node_status::State::Ready)
}

/// What an agent whose tasks never fail reports next.
fn next_state(task: &Task) -> Option<TaskState> {
    let state = task.status.state();
    if !task.status.reached(TaskState::Assigned) || state > TaskState::Running {
        return None;
    }
    let goal = match task.desired_state() {
        desired if desired > TaskState::Complete => TaskState::Shutdown,
        TaskState::Complete if state == TaskState::Running => TaskState::Complete,
        desired => desired.min(TaskState::Running),
    };
    (state < goal).then_some(goal)
}
