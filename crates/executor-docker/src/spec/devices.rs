//! What a container is given beyond the contract: devices, privileges, GPUs.

use bollard::models::{DeviceMapping, DeviceRequest, HostConfig};
use swarm_agent::ControllerError;
use swarm_api::extensions::ContainerExtensions;
use swarm_api::v1::generic_resource::Resource;
use swarm_api::v1::{ContainerSpec, GenericResource, Task};

use super::{Surroundings, fatal};
use crate::facts::{Api, EngineFacts};

/// Which engine first had it, by the version notes of its interface.
const DEVICE_REQUESTS: (Api, &str) = ((1, 40), "19.03");

/// Whether an engine can be asked for GPUs.
pub(crate) fn knows_gpus(facts: &EngineFacts) -> bool {
    facts.api >= DEVICE_REQUESTS.0
}

/// Adds it to what the engine is asked for. The node checks for itself what managers should have seen to.
pub(super) fn apply(
    host: &mut HostConfig,
    task: &Task,
    spec: &ContainerSpec,
    around: &Surroundings<'_>,
) -> Result<(), ControllerError> {
    let extensions = ContainerExtensions::read(&spec.labels).map_err(fatal)?;
    if extensions.privileged {
        if !around.allow_privileged {
            return Err(fatal(
                "this node does not allow privileged containers: its daemon was not started with --allow-privileged",
            ));
        }
        host.privileged = Some(true);
    }
    if !extensions.devices.is_empty() {
        let one = |device: swarm_api::extensions::Device| DeviceMapping {
            path_on_host: Some(device.host),
            path_in_container: Some(device.container),
            cgroup_permissions: Some(device.permissions),
        };
        host.devices = Some(extensions.devices.into_iter().map(one).collect());
    }
    if let Some(kind) = &extensions.gpus {
        around.engine.needs("giving GPUs to containers", DEVICE_REQUESTS)?;
        let request = gpus(&task.assigned_generic_resources, kind).ok_or_else(|| {
            fatal(format!("the task wants GPUs, and no generic resource of kind {kind:?} was assigned to it"))
        })?;
        host.device_requests = Some(vec![request]);
    }
    Ok(())
}

/// The request for exactly the GPUs that were assigned to a task: by their names where they have names, else by their number.
fn gpus(assigned: &[GenericResource], kind: &str) -> Option<DeviceRequest> {
    let (mut names, mut count) = (Vec::new(), 0_i64);
    for resource in assigned.iter().filter_map(|resource| resource.resource.as_ref()) {
        match resource {
            Resource::NamedResourceSpec(named) if named.kind == kind => names.push(engine_name(&named.value)),
            Resource::DiscreteResourceSpec(discrete) if discrete.kind == kind => {
                count = count.saturating_add(discrete.value.max(0));
            }
            _ => {}
        }
    }
    if names.is_empty() && count == 0 {
        return None;
    }
    Some(DeviceRequest {
        // An engine takes either.
        count: names.is_empty().then_some(count),
        device_ids: (!names.is_empty()).then_some(names),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..Default::default()
    })
}

/// A GPU that is known by its device file has a number for the engine.
fn engine_name(name: &str) -> String {
    let number = name.strip_prefix("nvidia").filter(|rest| rest.parse::<u32>().is_ok());
    number.unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_api::v1::{DiscreteGenericResource, NamedGenericResource};

    #[test]
    fn gpus_are_asked_for_as_they_were_assigned() {
        let named = |kind: &str, value: &str| {
            let named = NamedGenericResource { kind: kind.into(), value: value.into() };
            GenericResource { resource: Some(Resource::NamedResourceSpec(named)) }
        };
        let counted = |kind: &str, value| {
            let counted = DiscreteGenericResource { kind: kind.into(), value };
            GenericResource { resource: Some(Resource::DiscreteResourceSpec(counted)) }
        };
        let all =
            [named("gpu", "GPU-1"), named("fpga", "x"), named("gpu", "nvidia3"), named("gpu", "nvidia")];
        let request = gpus(&all, "gpu").unwrap();
        assert_eq!(request.device_ids.unwrap(), ["GPU-1", "3", "nvidia"]);
        assert_eq!(request.count, None);
        let request = gpus(&[counted("a100", 2), counted("gpu", 9)], "a100").unwrap();
        assert_eq!((request.count, request.device_ids), (Some(2), None));
        assert_eq!(request.capabilities, Some(vec![vec!["gpu".to_owned()]]));
        assert_eq!(gpus(&[counted("gpu", -1), named("fpga", "x")], "gpu"), None);
    }
}
