//! The simulation's own reading of the order in which services start.

use std::collections::BTreeSet;

use swarm_api::extensions::DEPENDS_ON;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{Service, TaskState};
use swarm_store::Tables;

use crate::checks::place;

/// Why a service that waits for others may not start yet, as the labels and the tasks say now.
pub(crate) fn not_yet(tables: &Tables, service: &Service) -> Option<String> {
    let order = service.spec.annotations.labels.get(DEPENDS_ON)?;
    order.split(',').find_map(|term| {
        let (name, condition) = term.split_once(':')?;
        // Those who wait for each other need not.
        let mut way = BTreeSet::from([name.to_owned()]);
        for _ in 0..tables.services().len() {
            let next = |of: &String| {
                let order = tables.services().get(of)?.spec.annotations.labels.get(DEPENDS_ON)?;
                Some(
                    order
                        .split(',')
                        .filter_map(|t| Some(t.split_once(':')?.0.to_owned()))
                        .collect::<Vec<_>>(),
                )
            };
            way = way.iter().flat_map(|of| next(of).unwrap_or_default()).chain(way.iter().cloned()).collect();
        }
        if way.contains(&service.id) {
            return None;
        }
        let other = tables
            .services()
            .get(name)
            .map(|s| (s.spec.mode, s.job_status.as_ref().map(|j| j.job_iteration)));
        let Some((mode, run)) = other else { return Some(format!("{name} is not there")) };
        let of_run: Vec<_> = tables.tasks().by_service(name).filter(|t| t.job_iteration == run).collect();
        let places = |state: TaskState| {
            let there = of_run.iter().filter(|t| t.status.state() == state);
            let wanted = there.filter(|t| state == TaskState::Complete || t.desired_state() == state);
            wanted.map(|t| place(t)).collect::<BTreeSet<_>>().len()
        };
        let open = of_run
            .iter()
            .any(|t| t.desired_state() == TaskState::Complete && t.status.state() != TaskState::Complete);
        let live = of_run.iter().filter(|t| t.desired_state() == TaskState::Running).count();
        let holds = match mode {
            Some(Mode::Replicated(mode)) => {
                mode.replicas > 0 && places(TaskState::Running) >= mode.replicas as usize
            }
            Some(Mode::ReplicatedJob(job)) => places(TaskState::Complete) >= job.total_completions as usize,
            Some(Mode::GlobalJob(_)) => !open && places(TaskState::Complete) > 0,
            _ => live > 0 && places(TaskState::Running) >= live,
        };
        (!holds).then(|| format!("{name} is not {condition}"))
    })
}
