//! What a service's spec must fit in the cluster: networks, ports, secrets, configs, the number of tasks.
//! Checked inside the transaction that writes the service, so nothing can slip in between.

use swarm_api::v1::port_config::PublishMode;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{
    ContainerSpec, EndpointSpec, PortConfig, ResourceType, Service, ServiceSpec, TaskSpec, task_spec,
};
use swarm_api::{StoreObject as _, defaults, extensions};
use swarm_store::Tables;

use super::ingress;
use crate::error::{Error, Result};

/// Replicas up to which a spec is not added up with those of all other services.
const SMALL: u64 = 1_000;

/// The ingress network is for published ports only; networks that are not there are accepted.
pub(super) fn networks(tables: &Tables, task: &TaskSpec) -> Result<()> {
    for attachment in &task.networks {
        if let Some(network) = tables.networks().get(&attachment.target)
            && network.spec.is_ingress()
        {
            return Err(Error::argument(format!(
                "Service cannot be explicitly attached to the ingress network {:?}",
                network.annotations().name
            )));
        }
    }
    Ok(())
}

/// No other service publishes one of these ports in a way that excludes this one. `own` is the service that is
/// being updated.
pub(super) fn ports(tables: &Tables, endpoint: Option<&EndpointSpec>, own: &str) -> Result<()> {
    let Some(endpoint) = endpoint else { return Ok(()) };
    for port in endpoint.ports.iter().filter(|port| port.published_port != 0) {
        let others = tables.services().by_published_port(port.published_port);
        for other in others.filter(|other| other.id != own) {
            other.published_ports().try_for_each(|taken| conflict(port, taken, other))?;
        }
    }
    Ok(())
}

/// A service can go back from this spec to the one before: what that needs was checked when it was new, and may be taken
/// or gone by now.
pub(super) fn way_back(tables: &Tables, from: &ServiceSpec, to: &ServiceSpec, own: &str) -> Result<()> {
    networks(tables, &to.task)?;
    if to.endpoint != from.endpoint {
        ports(tables, to.endpoint.as_ref(), own)?;
    }
    #[allow(deprecated)] // still honoured where the template names none
    let on = if to.task.networks.is_empty() { &to.networks } else { &to.task.networks };
    if let Some(gone) = on.iter().find(|config| tables.networks().get(&config.target).is_none()) {
        return Err(Error::precondition(format!(
            "service {own} can't be rolled back: network {}, which it was on, does not exist any more",
            gone.target
        )));
    }
    references(tables, &to.task)
}

fn conflict(port: &PortConfig, taken: &PortConfig, other: &Service) -> Result<()> {
    if port.published_port != taken.published_port || port.protocol != taken.protocol {
        return Ok(());
    }
    let how = match (port.publish_mode(), taken.publish_mode()) {
        (PublishMode::Host, PublishMode::Host) => return Ok(()),
        (_, PublishMode::Ingress) => "as an ingress port",
        (PublishMode::Ingress, PublishMode::Host) => "as a host-published port",
    };
    Err(Error::argument(format!(
        "port '{}' is already in use by service '{}' ({}) {how}",
        port.published_port, other.spec.annotations.name, other.id
    )))
}

/// Ports published through the ingress network need one.
pub(super) fn needs_ingress(tables: &Tables, spec: &ServiceSpec) -> Result<()> {
    let wanted =
        spec.endpoint.iter().flat_map(|e| &e.ports).any(|p| p.publish_mode() == PublishMode::Ingress);
    if wanted && ingress(tables).is_none() {
        return Err(Error::precondition("service needs ingress network, but no ingress network is present"));
    }
    Ok(())
}

/// Every referenced secret and config is there under the name that the reference gives it.
pub(super) fn references(tables: &Tables, task: &TaskSpec) -> Result<()> {
    let missing = |what: &str, names: Vec<&str>| match names.len() {
        0 => Ok(()),
        1 => Err(Error::argument(format!("{what} not found: {}", names[0]))),
        _ => Err(Error::argument(format!("{what}s not found: {}", names.join(", ")))),
    };
    match &task.runtime {
        Some(task_spec::Runtime::Container(container)) => {
            missing("secret", missing_secrets(tables, container))?;
            missing("config", missing_configs(tables, container))
        }
        Some(task_spec::Runtime::Generic(generic)) if generic.kind == extensions::PROCESS_RUNTIME => {
            let gone = |kind: ResourceType, has: &dyn Fn(&str) -> bool| -> Vec<&str> {
                let of_kind = task.resource_references.iter().filter(|r| r.resource_type() == kind);
                of_kind.map(|r| r.resource_id.as_str()).filter(|id| !has(id)).collect()
            };
            missing("secret", gone(ResourceType::Secret, &|id| tables.secrets().get(id).is_some()))?;
            missing("config", gone(ResourceType::Config, &|id| tables.configs().get(id).is_some()))
        }
        _ => Ok(()),
    }
}

fn missing_secrets<'a>(tables: &Tables, container: &'a ContainerSpec) -> Vec<&'a str> {
    let found = |id: &str, name: &str| tables.secrets().get(id).is_some_and(|s| s.annotations().name == name);
    let references = container.secrets.iter().filter(|r| !found(&r.secret_id, &r.secret_name));
    references.map(|r| r.secret_name.as_str()).collect()
}

fn missing_configs<'a>(tables: &Tables, container: &'a ContainerSpec) -> Vec<&'a str> {
    let found = |id: &str, name: &str| tables.configs().get(id).is_some_and(|c| c.annotations().name == name);
    let references = container.configs.iter().filter(|r| !found(&r.config_id, &r.config_name));
    references.map(|r| r.config_name.as_str()).collect()
}

/// The cluster can hold the service's tasks beside all others, if it wants more than it did before. Adding up what every
/// service wants takes a look at each, so it is done only where it can matter: for a large service, or in a cluster that is
/// half full.
pub(super) fn room(
    tables: &Tables,
    before: Option<&ServiceSpec>,
    spec: &ServiceSpec,
    own: &str,
) -> Result<()> {
    let wanted = replicas(spec);
    if before.is_some_and(|before| wanted <= replicas(before)) {
        return Ok(());
    }
    if wanted <= SMALL && (tables.tasks().len() as u64) < defaults::MAX_TASKS / 2 {
        return Ok(());
    }
    let others = tables.services().iter().filter(|s| s.id != own);
    let total = others.fold(wanted, |sum, service| sum.saturating_add(replicas(&service.spec)));
    if total > defaults::MAX_TASKS {
        return Err(Error::argument(format!(
            "the services of this cluster would have {total} tasks, more than the {} that it can have",
            defaults::MAX_TASKS
        )));
    }
    Ok(())
}

fn replicas(spec: &ServiceSpec) -> u64 {
    match &spec.mode {
        Some(Mode::Replicated(mode)) => mode.replicas,
        Some(Mode::ReplicatedJob(mode)) => mode.max_concurrent,
        _ => 0,
    }
}
