//! When two versions of a task are the same to somebody. Every field is named, so that a new one is thought of.

use crate::Shared;
use crate::v1::Task;

impl Task {
    /// Equal in everything but status, version and times: what a node has to know of it.
    pub fn is_same_to_its_node(a: &Shared<Task>, b: &Shared<Task>) -> bool {
        let Task {
            id,
            meta: _,
            spec,
            service_id,
            slot,
            node_id,
            annotations,
            service_annotations,
            status: _,
            desired_state,
            networks,
            endpoint,
            log_driver,
            spec_version,
            assigned_generic_resources,
            job_iteration,
            volumes,
        } = &**a;
        Shared::ptr_eq(a, b)
            || (*desired_state == b.desired_state
                && *node_id == b.node_id
                && *id == b.id
                && *service_id == b.service_id
                && *slot == b.slot
                && *spec == b.spec
                && *annotations == b.annotations
                && *service_annotations == b.service_annotations
                && *networks == b.networks
                && *endpoint == b.endpoint
                && *log_driver == b.log_driver
                && *spec_version == b.spec_version
                && *assigned_generic_resources == b.assigned_generic_resources
                && *job_iteration == b.job_iteration
                && *volumes == b.volumes)
    }

    /// Equal in everything but version and times.
    pub fn is_same_but_stamps(a: &Shared<Task>, b: &Shared<Task>) -> bool {
        a.status == b.status && Task::is_same_to_its_node(a, b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Meta, TaskState, Version};

    #[test]
    fn a_task_is_the_same_whatever_its_status_and_version() {
        let task = |change: &dyn Fn(&mut Task)| -> Shared<Task> {
            let mut task = Task { id: "t".into(), node_id: "n1".into(), ..Default::default() };
            task.desired_state = TaskState::Running as i32;
            change(&mut task);
            task.into()
        };
        let first = task(&|_| {});
        let same = |change: &dyn Fn(&mut Task)| Task::is_same_to_its_node(&first, &task(change));
        assert!(same(&|_| {}));
        assert!(same(&|t| t.status.state = TaskState::Running as i32));
        assert!(same(&|t| t.status.err = "x".into()));
        assert!(same(&|t| t.meta = Meta { version: Version { index: 7 }, ..Default::default() }));
        assert!(!same(&|t| t.desired_state = TaskState::Shutdown as i32));
        assert!(!same(&|t| t.spec.force_update = 1));
        assert!(!same(&|t| t.spec_version = Some(Version { index: 7 })));
        assert!(!same(&|t| t.networks.push(Default::default())));
    }

    #[test]
    fn a_status_is_no_stamp() {
        let task = |change: &dyn Fn(&mut Task)| -> Shared<Task> {
            let mut task = Task::default();
            change(&mut task);
            task.into()
        };
        let same = |change: &dyn Fn(&mut Task)| Task::is_same_but_stamps(&task(&|_| {}), &task(change));
        assert!(same(&|t| t.meta = Meta { version: Version { index: 7 }, ..Default::default() }));
        assert!(!same(&|t| t.status.err = "x".into()));
        assert!(!same(&|t| t.slot = 1));
    }
}
