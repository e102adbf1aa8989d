//! Whether a task still is what its service asks for (`orchestration.md` §9).

use swarm_api::v1::{Service, Task, TaskSpec, TaskState, task_spec};
use swarm_placement::{all_hold, constraints_of};
use swarm_store::Tables;

/// The task must be replaced for the service's spec to be met.
pub(crate) fn is_dirty(tables: &Tables, service: &Service, task: &Task) -> bool {
    if let (Some(wanted), Some(made)) = (service.spec_version, task.spec_version)
        && wanted == made
    {
        return false;
    }
    let (wanted, made) = (&*service.spec.task, &*task.spec);
    if endpoint_changed(service, task) {
        return true;
    }
    if wanted == made {
        return false;
    }
    if wanted.placement != made.placement {
        // A task that stands where the new placement would allow it may stay.
        let moved = TaskSpec { placement: wanted.placement.clone(), ..made.clone() } == *wanted;
        return !(moved && stands_well(tables, wanted, task));
    }
    !(is_made(task) && without_pull_options(wanted) == without_pull_options(made))
}

fn endpoint_changed(service: &Service, task: &Task) -> bool {
    task.endpoint.as_ref().is_some_and(|endpoint| endpoint.spec != service.spec.endpoint)
}

fn stands_well(tables: &Tables, wanted: &TaskSpec, task: &Task) -> bool {
    tables
        .nodes()
        .get(&task.node_id)
        .is_some_and(|node| all_hold(&constraints_of(wanted.placement.as_ref()), node))
}

/// Its image is pulled already.
fn is_made(task: &Task) -> bool {
    let state = task.status.state;
    task.desired_state <= TaskState::Running as i32
        && (TaskState::Ready as i32..=TaskState::Running as i32).contains(&state)
}

/// The spec without what only matters for pulling the image.
fn without_pull_options(spec: &TaskSpec) -> TaskSpec {
    let mut spec = spec.clone();
    if let Some(task_spec::Runtime::Container(container)) = &mut spec.runtime {
        container.pull_options = None;
    }
    spec
}
