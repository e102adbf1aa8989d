//! Flags for what containers are given beyond the contract: devices, all privileges, GPUs.

use std::collections::BTreeMap;

use swarm_api::extensions::container::check_devices;
use swarm_api::extensions::{ContainerExtensions, Device, Feature};
use swarm_api::v1::generic_resource::Resource;
use swarm_api::v1::{GenericResource, ServiceSpec, task_spec};
use swarm_placement::generic;

use super::{Changes, ServiceFlags};
use crate::error::{Error, Result};
use crate::values::csv::join;
use crate::values::gpus::{self, Gpus};

/// What the service's container is given as it is, and the GPUs that are reserved for it. To be asked before reservations
/// change.
pub(super) struct Before {
    extensions: ContainerExtensions,
    reserved: Vec<GenericResource>,
}

impl Before {
    pub(super) fn of(spec: &ServiceSpec) -> Result<Before> {
        let extensions = match &spec.task.runtime {
            Some(task_spec::Runtime::Container(container)) => {
                ContainerExtensions::read(&container.labels).map_err(Error::Plain)?
            }
            _ => ContainerExtensions::default(),
        };
        let kind = extensions.gpus.as_deref();
        let reserved = spec.task.resources.as_ref().and_then(|r| r.reservations.as_ref());
        let reserved = reserved.map_or(&[][..], |r| &r.generic);
        let reserved = reserved.iter().filter(|resource| kind.is_some() && kind_of(resource) == kind);
        Ok(Before { reserved: reserved.cloned().collect(), extensions })
    }
}

pub(super) fn kind_of(resource: &GenericResource) -> Option<&str> {
    match resource.resource.as_ref()? {
        Resource::NamedResourceSpec(named) => Some(&named.kind),
        Resource::DiscreteResourceSpec(discrete) => Some(&discrete.kind),
    }
}

/// Applies what was given. What native processes can't have was refused before.
pub(super) fn apply(
    spec: &mut ServiceSpec,
    flags: &ServiceFlags,
    changes: &Changes,
    before: Before,
) -> Result<()> {
    let Some(task_spec::Runtime::Container(_)) = &spec.task.runtime else { return Ok(()) };
    let flags = &flags.container;
    let mut now = before.extensions.clone();
    if let Some(texts) = join(flags.device.as_ref()) {
        now.devices = devices(&texts)?;
    }
    now.devices.retain(|d| !changes.rm_devices.iter().any(|path| *path == d.host || *path == d.container));
    now.devices.extend(changes.add_devices.iter().cloned());
    check_devices(&now.devices).map_err(Error::Usage)?;
    now.privileged = flags.privileged.unwrap_or(now.privileged);
    let wanted = flags.gpus.as_ref().map(|list| gpus::parse(&list.0)).transpose().map_err(Error::Usage)?;
    if let Some(gpus) = &wanted {
        now.gpus = gpus.as_ref().map(|gpus| gpus.kind.clone());
    }
    reserve(spec, wanted, &now, &before);
    if now == before.extensions {
        return Ok(());
    }
    let Some(task_spec::Runtime::Container(container)) = &mut spec.task.runtime else { return Ok(()) };
    let mut former = BTreeMap::new();
    before.extensions.write(&mut former);
    now.write(&mut container.labels);
    // Our managers do that too; with others, the constraints of what is gone would keep tasks from nodes without a reason.
    let gone: Vec<&str> = former
        .keys()
        .filter(|label| !container.labels.contains_key(*label))
        .filter_map(|label| Feature::of_label(label))
        .map(Feature::constraint)
        .collect();
    if let Some(placement) = spec.task.placement.as_mut().filter(|_| !gone.is_empty()) {
        placement.constraints.retain(|constraint| !gone.contains(&constraint.as_str()));
    }
    Ok(())
}

/// Reads devices.
pub(super) fn devices(texts: &[String]) -> Result<Vec<Device>> {
    texts.iter().map(|text| Device::parse(text)).collect::<Result<_, _>>().map_err(Error::Usage)
}

/// Reserves the GPUs that are wanted, in place of those that were. Where nothing is said of GPUs they stay, also if all other
/// generic resources are replaced.
fn reserve(spec: &mut ServiceSpec, wanted: Option<Option<Gpus>>, now: &ContainerExtensions, before: &Before) {
    let reservations = |spec: &ServiceSpec| {
        spec.task.resources.as_ref().and_then(|r| r.reservations.clone()).unwrap_or_default()
    };
    let present = reservations(spec);
    let mut generic = present.generic.clone();
    let of = |kind: &Option<String>, resource: &GenericResource| {
        kind.is_some() && kind_of(resource) == kind.as_deref()
    };
    match wanted {
        Some(gpus) => {
            generic.retain(|r| !of(&before.extensions.gpus, r) && !of(&now.gpus, r));
            generic.extend(gpus.map(Gpus::reservations).unwrap_or_default());
        }
        None if generic.iter().any(|r| of(&now.gpus, r)) => {}
        None => generic.extend(before.reserved.iter().cloned()),
    }
    if generic != present.generic {
        let resources = spec.task.resources.get_or_insert_default();
        resources.reservations.get_or_insert_default().generic = generic;
    }
}

impl Gpus {
    fn reservations(self) -> Vec<GenericResource> {
        let Gpus { kind, count, devices } = self;
        let count = count.map(|count| generic::discrete(kind.clone(), count.unwrap_or(generic::ALL)));
        devices.into_iter().map(|device| generic::named(kind.clone(), device)).chain(count).collect()
    }
}
