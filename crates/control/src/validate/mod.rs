//! Checks of specs that need nothing but the spec, in the order in which the contract reports them.

mod container;
pub(crate) mod duration;
mod endpoint;
mod image;
pub(crate) mod name;
mod process;
mod references;
mod resources;
pub(crate) mod subnet;
mod templates;

pub use image::is_reference as is_image_reference;

use swarm_api::defaults;
use swarm_api::extensions;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{RestartPolicy, ServiceSpec, TaskSpec, UpdateConfig, task_spec};

use crate::error::{Error, Result};

/// A spec is small enough for everything that contains it: the object before and after an update, and every task.
pub(crate) fn size(kind: &str, spec: &impl prost::Message) -> Result<()> {
    let size = spec.encoded_len();
    if size > defaults::MAX_SPEC_BYTES {
        return Err(Error::argument(format!(
            "the {kind} spec has {size} bytes, more than the {} that are allowed",
            defaults::MAX_SPEC_BYTES
        )));
    }
    Ok(())
}

/// Everything that can be said of a service's spec by itself.
pub(crate) fn service(spec: &ServiceSpec) -> Result<()> {
    extended(spec, None)?;
    contract(spec)
}

/// What is ours in a service's spec. What was let through before does no harm, and is in nobody's way who changes something
/// else.
pub(crate) fn extended(spec: &ServiceSpec, before: Option<&ServiceSpec>) -> Result<()> {
    let check = extensions::check_service_spec;
    check(spec).or_else(|text| match before.map(check) {
        Some(Err(known)) if known == text => Ok(()),
        _ => Err(Error::argument(text)),
    })
}

/// What the contract says of a service's spec.
pub(crate) fn contract(spec: &ServiceSpec) -> Result<()> {
    size("service", spec)?;
    name::dns(&spec.annotations.name)?;
    task(&spec.task)?;
    let job = mode(spec)?;
    if job {
        if spec.update.is_some() {
            return Err(Error::argument("job-mode services may not have update config"));
        }
    } else if let Some(config) = &spec.update {
        update(config)?;
    }
    // The contract lets everything pass here; but nothing can be said of what is no number, not even that it is the same.
    if spec.rollback.as_ref().is_some_and(|config| config.max_failure_ratio.is_nan()) {
        return Err(Error::argument("TaskSpec: rollback-maxfailureratio must be a number"));
    }
    spec.endpoint.as_ref().map_or(Ok(()), endpoint::check)
}

fn task(task: &TaskSpec) -> Result<()> {
    task.resources.as_ref().map_or(Ok(()), resources::check)?;
    task.restart.as_ref().map_or(Ok(()), restart)?;
    if let Some(placement) = &task.placement {
        constraints(&placement.constraints)?;
    }
    let container = match &task.runtime {
        Some(task_spec::Runtime::Container(container)) => Some(container),
        _ => None,
    };
    if let Some(container) = container {
        references::secrets(&container.secrets)?;
        references::configs(&container.configs)?;
        references::credential(container)?;
    }
    match &task.runtime {
        None => Err(Error::argument("TaskSpec: missing runtime")),
        Some(task_spec::Runtime::Attachment(_)) => {
            Err(Error::unimplemented("RuntimeSpec: unimplemented runtime in service spec"))
        }
        Some(task_spec::Runtime::Container(spec)) => {
            container::check(spec)?;
            container::gpus(spec, task.resources.as_ref())
        }
        Some(task_spec::Runtime::Generic(generic)) => {
            if generic.kind.len() < 3 {
                return Err(Error::argument(format!("Generic runtime: Invalid name {:?}", generic.kind)));
            }
            if ["container", "attachment"].iter().any(|reserved| generic.kind.eq_ignore_ascii_case(reserved))
            {
                return Err(Error::argument(format!(
                    "Generic runtime: {:?} is a reserved name",
                    generic.kind
                )));
            }
            match &generic.payload {
                None => return Err(Error::argument("Generic runtime is missing payload")),
                Some(payload) if payload.type_url.is_empty() => {
                    return Err(Error::argument("Generic runtime is missing payload type"));
                }
                Some(payload) if payload.value.is_empty() => {
                    return Err(Error::argument("Generic runtime has an empty payload"));
                }
                Some(_) => {}
            }
            if generic.kind == extensions::PROCESS_RUNTIME {
                process::check(generic)
            } else if generic.kind.eq_ignore_ascii_case(extensions::PROCESS_RUNTIME) {
                Err(Error::argument(format!(
                    "Generic runtime: write {:?} in lower case",
                    extensions::PROCESS_RUNTIME
                )))
            } else {
                Ok(())
            }
        }
    }
}

fn restart(policy: &RestartPolicy) -> Result<()> {
    duration::optional("TaskSpec: restart-delay", policy.delay.as_ref())?;
    duration::optional("TaskSpec: restart-window", policy.window.as_ref())
}

/// Each constraint of the list can be parsed.
fn constraints(constraints: &[String]) -> Result<()> {
    swarm_placement::Constraint::parse_all(constraints)
        .map(drop)
        .map_err(|error| Error::argument(error.to_string()))
}

/// The mode is there and its numbers fit. Returns whether it is a job.
fn mode(spec: &ServiceSpec) -> Result<bool> {
    let fits = |what: &str, number: u64| -> Result<()> {
        if number > i64::MAX as u64 {
            return Err(Error::argument(format!("{what} must be below 2^63, and is {number}")));
        }
        if number > defaults::MAX_TASKS {
            return Err(Error::argument(format!(
                "{what} is {number}, more than the {} tasks that a cluster can have",
                defaults::MAX_TASKS
            )));
        }
        Ok(())
    };
    match &spec.mode {
        None => Err(Error::argument("ServiceSpec: mode must be provided")),
        Some(Mode::Replicated(replicated)) => fits("number of replicas", replicated.replicas).map(|()| false),
        Some(Mode::Global(_)) => Ok(false),
        Some(Mode::ReplicatedJob(job)) => {
            fits("max concurrent", job.max_concurrent)?;
            fits("total completions", job.total_completions)?;
            Ok(true)
        }
        Some(Mode::GlobalJob(_)) => Ok(true),
    }
}

fn update(config: &UpdateConfig) -> Result<()> {
    duration::not_negative("TaskSpec: update-delay", &config.delay)?;
    duration::optional("TaskSpec: update-monitor", config.monitor.as_ref())?;
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return Err(Error::argument(
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
        ));
    }
    Ok(())
}

/// Adds what our extensions need: references to the secrets and configs that a process's payload names, for those who can't
/// read it; and the constraints that keep tasks that need more than the contract knows where they can run. An operator's
/// request is taken out: it is the service's, not the spec's, and a client that has read it would make it again and again.
pub(crate) fn complete(spec: &mut ServiceSpec) {
    extensions::take_request(spec);
    let process = matches!(&spec.task.runtime, Some(task_spec::Runtime::Generic(generic))
        if generic.kind == extensions::PROCESS_RUNTIME);
    if process {
        let wanted = process::references(spec.task.runtime.as_ref());
        let missing: Vec<_> =
            wanted.into_iter().filter(|r| !spec.task.resource_references.contains(r)).collect();
        // Not touched in vain: the task's spec is shared.
        if !missing.is_empty() {
            spec.task.resource_references.extend(missing);
        }
    }
    extensions::guard(&mut spec.task);
}

#[cfg(test)]
mod tests;
