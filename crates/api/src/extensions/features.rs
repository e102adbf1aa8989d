//! What a node must be able to do for a task, and the constraints that keep the task on nodes that can.
//!
//! A node announces each feature as the engine label `swarmd.<feature>` with the value `1`.

use prost::Message as _;

use super::{INIT_TASKS, PRE_STOP, PREFIX, PROCESS_CONSTRAINT, PROCESS_RUNTIME};
use crate::Shared;
use crate::swarmd::ProcessSpec;
use crate::v1::{TaskSpec, task_spec};

/// Something that only some nodes can do for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
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
    pub const ALL: [Feature; 4] =
        [Feature::InitTasks, Feature::PreStop, Feature::ProcessHealth, Feature::ProcessIsolation];

    fn name(self) -> &'static str {
        match self {
            Feature::InitTasks => "init-tasks",
            Feature::PreStop => "pre-stop",
            Feature::ProcessHealth => "process-health",
            Feature::ProcessIsolation => "process-isolation",
        }
    }

    /// The engine label of nodes that have it.
    pub fn ability(self) -> String {
        format!("{PREFIX}{}", self.name())
    }

    /// The constraint that keeps tasks on those nodes.
    pub fn constraint(self) -> String {
        format!("engine.labels.{}==1", self.ability())
    }

    fn is_needed(self, task: &TaskSpec, process: Option<&ProcessSpec>) -> bool {
        let label = |label| match &task.runtime {
            Some(task_spec::Runtime::Container(container)) => container.labels.contains_key(label),
            _ => false,
        };
        match self {
            Feature::InitTasks => label(INIT_TASKS) || process.is_some_and(|p| !p.init_tasks.is_empty()),
            Feature::PreStop => label(PRE_STOP) || process.is_some_and(|p| !p.pre_stop.is_empty()),
            Feature::ProcessHealth => process.is_some_and(|p| p.healthcheck.is_some()),
            Feature::ProcessIsolation => {
                process.is_some_and(|p| p.mount_namespace || p.pid_namespace || !p.root.is_empty())
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
    let runtime = process.is_some().then(|| PROCESS_CONSTRAINT.to_owned());
    let present = task.placement.as_ref().map_or(&[][..], |placement| &placement.constraints);
    let wanted = runtime.into_iter().chain(needed.into_iter().map(Feature::constraint));
    let missing: Vec<String> = wanted.filter(|constraint| !present.contains(constraint)).collect();
    let unwanted: Vec<String> = idle.into_iter().map(Feature::constraint).collect();
    if present.iter().any(|constraint| unwanted.contains(constraint))
        && let Some(placement) = &mut task.placement
    {
        placement.constraints.retain(|constraint| !unwanted.contains(constraint));
    }
    if !missing.is_empty() {
        task.placement.get_or_insert_default().constraints.extend(missing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
