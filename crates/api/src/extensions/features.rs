//! What a node must be able to do for a task, and the constraints that keep the task on nodes that can.
//!
//! A node announces each feature as an engine label with the value `1`. A container asks for one by a label of the same
//! name.

use prost::Message as _;

use super::container::{DEVICES, GPUS, PRIVILEGED};
use super::{INIT_TASKS, PRE_STOP, PROCESS_CONSTRAINT, PROCESS_RUNTIME};
use crate::Shared;
use crate::swarmd::ProcessSpec;
use crate::v1::{TaskSpec, task_spec};

/// Something that only some nodes can do for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Devices of the host in containers.
    Devices,
    /// GPUs are asked of the engine. That the node has any is another matter.
    Gpus,
    /// Containers that have all privileges, which the node's operator allows.
    Privileged,
    /// Commands before the start.
    InitTasks,
    /// A command before the stop signal.
    PreStop,
    /// Health checks of native processes.
    ProcessHealth,
    /// Namespaces and root directories of native processes.
    ProcessIsolation,
}

impl Feature {
    /// All of them.
    pub const ALL: [Feature; 7] = [
        Feature::Devices,
        Feature::Gpus,
        Feature::Privileged,
        Feature::InitTasks,
        Feature::PreStop,
        Feature::ProcessHealth,
        Feature::ProcessIsolation,
    ];

    /// Engine label of nodes: `1` on those that have it, `0` or absent on others.
    pub const fn label(self) -> &'static str {
        match self {
            Feature::Devices => DEVICES,
            Feature::Gpus => GPUS,
            Feature::Privileged => PRIVILEGED,
            Feature::InitTasks => INIT_TASKS,
            Feature::PreStop => PRE_STOP,
            Feature::ProcessHealth => "swarmd.process-health",
            Feature::ProcessIsolation => "swarmd.process-isolation",
        }
    }

    /// The constraint that keeps tasks on nodes that have it.
    pub const fn constraint(self) -> &'static str {
        match self {
            Feature::Devices => "engine.labels.swarmd.devices==1",
            Feature::Gpus => "engine.labels.swarmd.gpus==1",
            Feature::Privileged => "engine.labels.swarmd.privileged==1",
            Feature::InitTasks => "engine.labels.swarmd.init-tasks==1",
            Feature::PreStop => "engine.labels.swarmd.pre-stop==1",
            Feature::ProcessHealth => "engine.labels.swarmd.process-health==1",
            Feature::ProcessIsolation => "engine.labels.swarmd.process-isolation==1",
        }
    }

    /// The feature that a label speaks of.
    pub fn of_label(label: &str) -> Option<Feature> {
        Feature::ALL.into_iter().find(|feature| feature.label() == label)
    }

    fn is_needed(self, task: &TaskSpec, process: Option<&ProcessSpec>) -> bool {
        if let Some(task_spec::Runtime::Container(container)) = &task.runtime {
            return container.labels.contains_key(self.label());
        }
        let Some(process) = process else { return false };
        match self {
            // Processes can't have them.
            Feature::Devices | Feature::Gpus | Feature::Privileged => false,
            Feature::InitTasks => !process.init_tasks.is_empty(),
            Feature::PreStop => !process.pre_stop.is_empty(),
            Feature::ProcessHealth => process.healthcheck.is_some(),
            Feature::ProcessIsolation => {
                process.mount_namespace || process.pid_namespace || !process.root.is_empty()
            }
        }
    }
}

/// Puts the constraints that the spec needs behind its others, where they are not there, and takes away those of
/// features that it does not need. A spec that is right is not touched: it is shared.
pub fn guard(task: &mut Shared<TaskSpec>) {
    let process = match &task.runtime {
        Some(task_spec::Runtime::Generic(generic)) if generic.kind == PROCESS_RUNTIME => {
            let payload = generic.payload.as_ref().map_or(&[][..], |payload| &payload.value);
            Some(ProcessSpec::decode(payload).unwrap_or_default())
        }
        _ => None,
    };
    let (needed, idle): (Vec<Feature>, Vec<Feature>) =
        Feature::ALL.into_iter().partition(|feature| feature.is_needed(task, process.as_ref()));
    let present = task.placement.as_ref().map_or(&[][..], |placement| &placement.constraints);
    let is_there = |constraint: &str| present.iter().any(|there| there == constraint);
    let runtime = process.is_some().then_some(PROCESS_CONSTRAINT);
    let wanted = runtime.into_iter().chain(needed.into_iter().map(Feature::constraint));
    let missing: Vec<String> = wanted.filter(|constraint| !is_there(constraint)).map(str::to_owned).collect();
    let unwanted: Vec<&str> =
        idle.into_iter().map(Feature::constraint).filter(|constraint| is_there(constraint)).collect();
    if !unwanted.is_empty()
        && let Some(placement) = &mut task.placement
    {
        placement.constraints.retain(|constraint| !unwanted.contains(&constraint.as_str()));
    }
    if !missing.is_empty() {
        task.placement.get_or_insert_default().constraints.extend(missing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extensions::{PREFIX, PROCESS_ABILITY};
    use crate::v1::{ContainerSpec, GenericRuntimeSpec, Placement};

    fn guarded(runtime: task_spec::Runtime, constraints: &[&str]) -> Vec<String> {
        let constraints: Vec<String> = constraints.iter().map(|text| text.to_string()).collect();
        let placement = (!constraints.is_empty()).then(|| Placement { constraints, ..Default::default() });
        let mut task = Shared::new(TaskSpec { runtime: Some(runtime), placement, ..Default::default() });
        guard(&mut task);
        let once = task.clone();
        guard(&mut task);
        assert!(Shared::ptr_eq(&once, &task), "a second time changes nothing");
        task.placement.clone().map(|placement| placement.constraints).unwrap_or_default()
    }

    fn process(process: ProcessSpec) -> task_spec::Runtime {
        let payload = prost_types::Any { type_url: String::new(), value: process.encode_to_vec() };
        task_spec::Runtime::Generic(GenericRuntimeSpec { kind: "process".into(), payload: Some(payload) })
    }

    #[test]
    fn what_a_task_needs_of_its_node_is_guarded_by_constraints() {
        let plain = || task_spec::Runtime::Container(ContainerSpec::default());
        assert_eq!(guarded(plain(), &[]), [""; 0]);
        let mut container = ContainerSpec::default();
        container.labels.insert(PRE_STOP.to_owned(), "[\"true\"]".to_owned());
        let with = task_spec::Runtime::Container(container);
        let constraint = "engine.labels.swarmd.pre-stop==1";
        assert_eq!(guarded(with.clone(), &["a==b"]), ["a==b", constraint]);
        assert_eq!(guarded(with, &[constraint, "a==b"]), [constraint, "a==b"]);
        assert_eq!(guarded(plain(), &["a==b", constraint]), ["a==b"], "it is not needed any more");

        assert_eq!(guarded(process(ProcessSpec::default()), &[]), [PROCESS_CONSTRAINT]);
        let isolated = ProcessSpec { pid_namespace: true, ..Default::default() };
        let expected = [PROCESS_CONSTRAINT, "engine.labels.swarmd.process-isolation==1"];
        assert_eq!(guarded(process(isolated), &[PROCESS_CONSTRAINT]), expected);
    }

    #[test]
    fn what_a_container_is_given_is_guarded_for_as_long_as_it_is() {
        let given = |labels: &[&str]| {
            let labels = labels.iter().map(|label| (label.to_string(), "1".to_owned())).collect();
            task_spec::Runtime::Container(ContainerSpec { labels, ..Default::default() })
        };
        let (devices, privileged) = (Feature::Devices.constraint(), Feature::Privileged.constraint());
        assert_eq!(guarded(given(&[PRIVILEGED, DEVICES, "mine"]), &["a==b"]), ["a==b", devices, privileged]);
        assert_eq!(guarded(given(&[PRIVILEGED]), &[devices, "a==b", privileged]), ["a==b", privileged]);
    }

    #[test]
    fn each_feature_has_its_label_and_constraint() {
        assert!(Feature::ALL.is_sorted());
        for feature in Feature::ALL {
            assert!(feature.label().starts_with(PREFIX));
            assert_eq!(feature.constraint(), format!("engine.labels.{}==1", feature.label()));
            assert_eq!(Feature::of_label(feature.label()), Some(feature));
        }
        assert_eq!(Feature::of_label(PROCESS_ABILITY), None);
    }
}
