//! What of a spec changes, and what of that replaces tasks.
//!
//! Which change does is asked of the orchestrator: a spec in which only that is changed, and each task.

use prost_types::Any;
use swarm_api::extensions::PROCESS_RUNTIME;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::swarmd::dry_run_response::Difference;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{
    ContainerSpec, GenericRuntimeSpec, Service, ServiceSpec, Task, TaskState, Version, task_spec,
};
use swarm_store::Tables;

/// A part of a spec: what it is called, and how it is taken over from another one.
type Part = (&'static str, fn(&mut ServiceSpec, &ServiceSpec));

const PARTS: &[Part] = &[
    ("labels", |to, from| to.annotations.labels.clone_from(&from.annotations.labels)),
    ("number of tasks", |to, from| to.mode = from.mode),
    ("runtime", |to, from| {
        if !are_alike(to, from) {
            to.task.runtime.clone_from(&from.task.runtime);
        }
    }),
    ("image", |to, from| both(to, from, |to, from| to.image.clone_from(&from.image))),
    ("command", |to, from| {
        both(to, from, |to, from| to.command.clone_from(&from.command));
        both_processes(to, from, |to, from| to.command.clone_from(&from.command));
    }),
    ("arguments", |to, from| {
        both(to, from, |to, from| to.args.clone_from(&from.args));
        both_processes(to, from, |to, from| to.args.clone_from(&from.args));
    }),
    ("environment", |to, from| {
        both(to, from, |to, from| to.env.clone_from(&from.env));
        both_processes(to, from, |to, from| to.env.clone_from(&from.env));
    }),
    ("mounts", |to, from| both(to, from, |to, from| to.mounts.clone_from(&from.mounts))),
    ("secrets", |to, from| both(to, from, |to, from| to.secrets.clone_from(&from.secrets))),
    ("configs", |to, from| both(to, from, |to, from| to.configs.clone_from(&from.configs))),
    ("how the image is pulled", |to, from| {
        both(to, from, |to, from| to.pull_options.clone_from(&from.pull_options));
    }),
    ("other settings of the container", |to, from| both(to, from, others)),
    ("other settings of the process", |to, from| both_processes(to, from, others_of_process)),
    ("resources", |to, from| to.task.resources.clone_from(&from.task.resources)),
    ("restart policy", |to, from| to.task.restart.clone_from(&from.task.restart)),
    ("placement", |to, from| to.task.placement.clone_from(&from.task.placement)),
    ("log driver", |to, from| to.task.log_driver.clone_from(&from.task.log_driver)),
    ("networks", |to, from| to.task.networks.clone_from(&from.task.networks)),
    ("references", |to, from| to.task.resource_references.clone_from(&from.task.resource_references)),
    ("forced update", |to, from| to.task.force_update = from.task.force_update),
    ("published ports", |to, from| to.endpoint.clone_from(&from.endpoint)),
    ("pace of updates", |to, from| to.update.clone_from(&from.update)),
    ("pace of rollbacks", |to, from| to.rollback.clone_from(&from.rollback)),
];

fn container(spec: &ServiceSpec) -> Option<&ContainerSpec> {
    match &spec.task.runtime {
        Some(task_spec::Runtime::Container(container)) => Some(container),
        _ => None,
    }
}

fn container_of(spec: &mut ServiceSpec) -> Option<&mut ContainerSpec> {
    match &mut spec.task.runtime {
        Some(task_spec::Runtime::Container(container)) => Some(container),
        _ => None,
    }
}

fn both(to: &mut ServiceSpec, from: &ServiceSpec, copy: impl Fn(&mut ContainerSpec, &ContainerSpec)) {
    if let (Some(to), Some(from)) = (container_of(to), container(from)) {
        copy(to, from);
    }
}

/// The native process that the tasks are, where what it is written as can be taken apart and put together again.
fn process(spec: &ServiceSpec) -> Option<(&GenericRuntimeSpec, ProcessSpec)> {
    let Some(task_spec::Runtime::Generic(generic)) = &spec.task.runtime else { return None };
    let payload = generic.payload.as_ref().filter(|_| generic.kind.eq_ignore_ascii_case(PROCESS_RUNTIME))?;
    let process: ProcessSpec = payload.to_msg().ok()?;
    let same = Any::from_msg(&process).is_ok_and(|again| again.value == payload.value);
    same.then_some((generic, process))
}

/// Both are containers, or both are processes: then what differs has a name.
fn are_alike(a: &ServiceSpec, b: &ServiceSpec) -> bool {
    let named = |generic: &GenericRuntimeSpec| {
        (generic.kind.clone(), generic.payload.as_ref().map(|payload| payload.type_url.clone()))
    };
    match (process(a), process(b)) {
        (Some((a, _)), Some((b, _))) => named(a) == named(b),
        _ => container(a).is_some() && container(b).is_some(),
    }
}

fn both_processes(to: &mut ServiceSpec, from: &ServiceSpec, copy: impl Fn(&mut ProcessSpec, &ProcessSpec)) {
    let (Some((_, mut process)), Some((_, other))) = (process(to), process(from)) else { return };
    copy(&mut process, &other);
    if let Some(task_spec::Runtime::Generic(generic)) = &mut to.task.runtime
        && let (Some(payload), Ok(changed)) = (&mut generic.payload, Any::from_msg(&process))
    {
        payload.value = changed.value;
    }
}

/// Everything of a process that has no name of its own above.
fn others_of_process(to: &mut ProcessSpec, from: &ProcessSpec) {
    let old = std::mem::replace(to, from.clone());
    let ProcessSpec { command, args, env, .. } = old;
    *to = ProcessSpec { command, args, env, ..std::mem::take(to) };
}

/// Everything of a container that has no name of its own above.
fn others(to: &mut ContainerSpec, from: &ContainerSpec) {
    let old = std::mem::replace(to, from.clone());
    let ContainerSpec { image, command, args, env, mounts, secrets, configs, pull_options, .. } = old;
    *to = ContainerSpec {
        image,
        command,
        args,
        env,
        mounts,
        secrets,
        configs,
        pull_options,
        ..std::mem::take(to)
    };
}

/// What leads from one spec of a service to another, with the number of tasks that each alone replaces.
pub(crate) fn differences(tables: &Tables, before: &Service, after: &Service) -> Vec<Difference> {
    let live = |t: &&swarm_api::Shared<Task>| {
        t.desired_state <= TaskState::Complete as i32 && t.status.state <= TaskState::Running as i32
    };
    let is_job = matches!(after.spec.mode, Some(Mode::ReplicatedJob(_) | Mode::GlobalJob(_)));
    let up_to_date =
        |service: &Service, task: &Task| !is_job && swarm_orchestrator::is_up_to_date(tables, service, task);
    let mut found = Vec::new();
    for (name, copy) in PARTS {
        let mut spec = before.spec.clone();
        copy(&mut spec, &after.spec);
        if spec == before.spec {
            continue;
        }
        // No task was made of this version.
        let only = Service { spec, spec_version: Some(Version { index: u64::MAX }), ..before.clone() };
        let tasks = tables.tasks().by_service(&before.id).filter(live);
        let replaced = tasks.filter(|t| (is_job || up_to_date(before, t)) && !up_to_date(&only, t)).count();
        found.push(Difference { what: describe(name, &before.spec, &after.spec), replaces: replaced as u64 });
    }
    found
}

/// The part's name, and what it was and will be where that is short.
fn describe(name: &str, before: &ServiceSpec, after: &ServiceSpec) -> String {
    let image = |spec| container(spec).map(|c| c.image.clone());
    let (old, new) = match name {
        "number of tasks" => (number(before), number(after)),
        "image" => (image(before), image(after)),
        _ => (None, None),
    };
    match (old, new) {
        (Some(old), Some(new)) => format!("{name}: {old} → {new}"),
        _ => name.to_owned(),
    }
}

fn number(spec: &ServiceSpec) -> Option<String> {
    match &spec.mode {
        Some(Mode::Replicated(mode)) => Some(mode.replicas.to_string()),
        Some(Mode::ReplicatedJob(mode)) => {
            Some(format!("{} (at once {})", mode.total_completions, mode.max_concurrent))
        }
        _ => None,
    }
}
