//! Container specs.

use std::collections::BTreeSet;

use prost_types::Duration;
use swarm_api::extensions::{self, ContainerExtensions, Steps};
use swarm_api::v1::generic_resource::Resource;
use swarm_api::v1::{ContainerSpec, HealthConfig, ResourceRequirements};

use super::{duration, image, templates};
use crate::error::{Error, Result};

/// Shortest time that a health check can be told, in nanoseconds.
const MIN_HEALTH: i64 = 1_000_000;

/// Templates, image, mounts, health check, labels of ours.
pub(crate) fn check(container: &ContainerSpec) -> Result<()> {
    // Mount points are compared as the agent will see them.
    let expanded = templates::container(container)?;
    let container = expanded.as_ref().unwrap_or(container);
    if container.image.is_empty() {
        return Err(Error::argument("ContainerSpec: image reference must be provided"));
    }
    if !image::is_reference(&container.image) {
        return Err(Error::argument(format!(
            "ContainerSpec: {:?} is not a valid repository/tag",
            container.image
        )));
    }
    let mut targets = BTreeSet::new();
    for mount in &container.mounts {
        if !targets.insert(mount.target.as_str()) {
            return Err(Error::argument(format!("ContainerSpec: duplicate mount point: {}", mount.target)));
        }
    }
    container.healthcheck.as_ref().map_or(Ok(()), |check| health("ContainerSpec", check))?;
    if let Some(label) = extensions::unknown(container.labels.keys()) {
        return Err(Error::argument(format!(
            "ContainerSpec: label {label:?} is not known; labels that begin with {:?} are reserved",
            extensions::PREFIX
        )));
    }
    let unreadable = |error| Error::argument(format!("ContainerSpec: {error}"));
    ContainerExtensions::read(&container.labels).map_err(unreadable)?;
    Steps::read(&container.labels)
        .map_err(unreadable)?
        .init_tasks
        .iter()
        .filter(|task| !task.image.is_empty() && !image::is_reference(&task.image))
        .map(|task| format!("ContainerSpec: {:?} is not a valid repository/tag of an init task", task.image))
        .next()
        .map_or(Ok(()), |text| Err(Error::argument(text)))
}

/// GPUs are generic resources: what the container's label names must be reserved, or no node would set any aside.
pub(super) fn gpus(container: &ContainerSpec, resources: Option<&ResourceRequirements>) -> Result<()> {
    let Some(kind) = ContainerExtensions::read(&container.labels).map_err(Error::argument)?.gpus else {
        return Ok(());
    };
    let reserved = resources.and_then(|r| r.reservations.as_ref()).map_or(&[][..], |r| &r.generic);
    let of_kind = reserved.iter().any(|resource| match &resource.resource {
        Some(Resource::DiscreteResourceSpec(d)) => d.kind == kind && d.value > 0,
        Some(Resource::NamedResourceSpec(n)) => n.kind == kind,
        None => false,
    });
    if of_kind {
        return Ok(());
    }
    Err(Error::argument(format!(
        "ContainerSpec: label {:?} says that generic resources of kind {kind:?} are GPUs, and none of them are reserved",
        extensions::container::GPUS
    )))
}

/// Times and numbers of a health check; `owner` is the message that it stands in.
pub(super) fn health(owner: &str, config: &HealthConfig) -> Result<()> {
    let at_least = |what: &str, duration: Option<&Duration>| -> Result<()> {
        let nanos = duration.map_or(Ok(0), duration::nanos)?;
        if nanos != 0 && nanos < MIN_HEALTH {
            return Err(Error::argument(format!("{owner}: {what} in HealthConfig cannot be less than 1ms")));
        }
        Ok(())
    };
    at_least("Interval", config.interval.as_ref())?;
    at_least("Timeout", config.timeout.as_ref())?;
    if config.retries < 0 {
        return Err(Error::argument(format!("{owner}: Retries in HealthConfig cannot be negative")));
    }
    at_least("StartPeriod", config.start_period.as_ref())?;
    at_least("StartInterval", config.start_interval.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_api::v1::Mount;

    fn check_with(change: impl FnOnce(&mut ContainerSpec), text: &str) {
        let mut container = ContainerSpec { image: "redis".into(), ..Default::default() };
        assert_eq!(check(&container), Ok(()));
        change(&mut container);
        let error = check(&container).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(error.to_string().contains(text), "{error}");
    }

    #[test]
    fn bad_containers_are_refused() {
        let ms = |n| Some(Duration { seconds: 0, nanos: n });
        check_with(|c| c.image.clear(), "image reference must be provided");
        check_with(|c| c.image = "UPPER".into(), "\"UPPER\" is not a valid repository/tag");
        check_with(
            |c| c.mounts = vec![Mount { target: "/x".into(), ..Default::default() }; 2],
            "duplicate mount point: /x",
        );
        check_with(|c| c.env = vec!["{{bad}}".into(), "A={{.Nope}}".into()], "no field Nope");
        check_with(|c| c.hostname = "{{.Nope}}".into(), "no field Nope");
        let health = |h: HealthConfig| move |c: &mut ContainerSpec| c.healthcheck = Some(h);
        check_with(
            health(HealthConfig { interval: ms(999_999), ..Default::default() }),
            "Interval in HealthConfig",
        );
        check_with(health(HealthConfig { timeout: ms(1), ..Default::default() }), "Timeout in HealthConfig");
        check_with(health(HealthConfig { retries: -1, ..Default::default() }), "Retries");
        check_with(health(HealthConfig { start_period: ms(-1), ..Default::default() }), "StartPeriod");
        check_with(health(HealthConfig { start_interval: ms(1), ..Default::default() }), "StartInterval");
        check_with(
            |c| _ = c.labels.insert("swarmd.nonsense".into(), "1".into()),
            "\"swarmd.nonsense\" is not known",
        );
        let label = |value: &'static str| {
            move |c: &mut ContainerSpec| drop(c.labels.insert(extensions::INIT_TASKS.into(), value.into()))
        };
        check_with(label("x"), "label \"swarmd.init-tasks\" can't be read");
        check_with(
            label("[{\"image\":\"UP\",\"command\":[\"a\"]}]"),
            "\"UP\" is not a valid repository/tag of an init task",
        );
    }

    #[test]
    fn what_is_given_beyond_the_contract_is_checked() {
        let label = |label: &'static str, value: &'static str| {
            move |c: &mut ContainerSpec| _ = c.labels.insert(label.into(), value.into())
        };
        check_with(label("swarmd.devices", "fuse"), "device \"fuse\": the path on the host must be absolute");
        check_with(label("swarmd.devices", "/dev/a:/dev/b:x"), "permissions are some of r, w and m");
        check_with(label("swarmd.privileged", "yes"), "must be \"1\", not \"yes\"");
        check_with(label("swarmd.gpus", ""), "must be a kind of generic resources");
    }

    #[test]
    fn gpus_must_be_reserved() {
        let mut container = ContainerSpec { image: "redis".into(), ..Default::default() };
        assert_eq!(gpus(&container, None), Ok(()));
        container.labels.insert("swarmd.gpus".into(), "gpu".into());
        let reserve = |text: &str| {
            let generic = swarm_placement::generic::parse(text).unwrap();
            let reservations = Some(swarm_api::v1::Resources { generic, ..Default::default() });
            ResourceRequirements { reservations, ..Default::default() }
        };
        for (reserved, good) in
            [("gpu=1", true), ("gpu=GPU-1", true), ("gpu=0", false), ("fpga=1", false), ("fpga=gpu", false)]
        {
            assert_eq!(gpus(&container, Some(&reserve(reserved))).is_ok(), good, "{reserved}");
        }
        let error = gpus(&container, None).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(
            error.to_string().contains("kind \"gpu\" are GPUs, and none of them are reserved"),
            "{error}"
        );
    }

    #[test]
    fn templates_that_an_agent_can_expand_are_accepted() {
        let hostname = "{{.Service.Name}}-{{.Task.Slot}}".to_owned();
        let target = "/data/{{.Task.Slot}}".to_owned();
        let container = ContainerSpec {
            image: "redis".into(),
            hostname: hostname.clone(),
            env: vec![format!("WHO={hostname}")],
            mounts: vec![Mount { source: "v-{{.Node.Hostname}}".into(), target, ..Default::default() }],
            ..Default::default()
        };
        assert_eq!(check(&container), Ok(()));
    }

    #[test]
    fn mount_points_are_compared_as_the_agent_will_see_them() {
        let mount = |target: &str| Mount { target: target.into(), ..Default::default() };
        let mounts = vec![mount("/{{.Service.Name}}"), mount("/{{print .Service.Name}}")];
        check_with(|c| c.mounts = mounts, "duplicate mount point: /serviceName");
    }

    #[test]
    fn names_of_variables_are_no_templates() {
        let container =
            ContainerSpec { image: "redis".into(), env: vec!["{{bad}}".into()], ..Default::default() };
        assert_eq!(check(&container), Ok(()));
    }
}
