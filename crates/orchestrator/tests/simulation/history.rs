//! How much of the past is kept.

use std::collections::BTreeMap;

use swarm_api::Shared;
use swarm_api::extensions::StartOrder;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{Service, Task, TaskSpec, TaskState};
use swarm_store::Tables;

use crate::broken::{Held, broken};
use crate::checks::{is_live, of_place, place};
use crate::world::World;

pub(crate) const RULE: &str = "history is kept as asked";

/// A place may have too long a history for so many transactions of the brain, and for so many steps.
const PATIENCE: (usize, usize) = (8, 25);

fn attempts(spec: &TaskSpec) -> usize {
    spec.restart.as_ref().map_or(0, |r| r.max_attempts) as usize
}

/// How many tasks of a place are kept at least; none: all.
pub(crate) fn kept(tables: &Tables, service: &Service) -> Option<usize> {
    let limit = tables.cluster()?.spec.orchestration.task_history_retention_limit;
    let attempts = attempts(&service.spec.task);
    if attempts > 0 { Some(attempts + 1) } else { usize::try_from(limit).ok() }
}

fn is_dead(task: &Task) -> bool {
    task.status.state().is_terminal() || (!task.status.reached(TaskState::Assigned) && !is_live(task))
}

/// Of these tasks some more must go. Of a job, two may tell how far it is; of others one.
fn is_too_long(tables: &Tables, service: &Service, tasks: &[&Shared<Task>]) -> bool {
    let Some(most) = kept(tables, service) else { return false };
    let state = service.update_status.as_ref().map(|s| s.state());
    let is_updated = matches!(state, Some(UpdateState::Updating | UpdateState::RollbackStarted));
    let alive = tasks.iter().filter(|t| !is_dead(t)).count();
    let records = if service.id.contains("job") { 2 } else { 1 };
    // And each that was restarted, with what took its place; mostly one is both.
    let attempts = if attempts(&service.spec.task) > 0 {
        tasks.iter().map(|t| attempts(&t.spec)).max().unwrap_or_default()
    } else {
        0
    };
    // Those that tell that it has started may be in any place.
    let starts = if StartOrder::of(service).0.is_empty() { 0 } else { 2 };
    let records = records + 2 * attempts + starts;
    !is_updated && tasks.len() > most.max(alive + records)
}

/// Places whose history is too long.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Since which transaction of the brain, and for how many looks.
    over: BTreeMap<(String, String), (usize, usize)>,
}

impl History {
    /// A place may have changed.
    pub(crate) fn look(&mut self, tables: &Tables, service: &str, at: &str, world: &World<'_>) {
        let known = tables.services().get(service);
        if known.is_some_and(|s| is_too_long(tables, s, &of_place(tables, service, at))) {
            self.over.entry((service.into(), at.into())).or_insert((world.sim.decisions, 0));
        }
    }

    /// None is too long for long.
    pub(crate) fn is_pruned(&mut self, world: &World<'_>) -> Held {
        let view = world.sim.view();
        self.over.retain(|(service, at), (_, looks)| {
            *looks += 1;
            let known = view.services().get(service);
            known.is_some_and(|s| is_too_long(&view, s, &of_place(&view, service, at)))
        });
        let late =
            |(since, looks): &(usize, usize)| world.sim.decisions > since + PATIENCE.0 && *looks > PATIENCE.1;
        match self.over.iter().find(|(_, since)| late(since)) {
            None => Ok(()),
            Some(((service, at), _)) => {
                let count = of_place(&view, service, at).len();
                broken(RULE, format!("{count} tasks are kept of {service}.{at}"))
            }
        }
    }

    /// At rest, none is.
    pub(crate) fn is_short(world: &World<'_>) -> Held {
        let view = world.sim.view();
        let mut places = BTreeMap::<_, Vec<&Shared<Task>>>::new();
        for task in view.tasks().iter() {
            places.entry((&task.service_id, place(task))).or_default().push(task);
        }
        for ((service, at), tasks) in places {
            if let Some(service) = view.services().get(service)
                && is_too_long(&view, service, &tasks)
            {
                let what = format!("{} tasks are kept of {}.{at}", tasks.len(), service.id);
                return broken(RULE, what);
            }
        }
        Ok(())
    }
}
