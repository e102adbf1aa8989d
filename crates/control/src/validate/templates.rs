//! Templates in specs, tried on a made-up task: those that an agent could not expand are refused.

use std::sync::LazyLock;

use swarm_api::v1::{Annotations, ContainerSpec, NodeDescription, Platform, Task};
use swarm_template::{Context, TemplateError, expand_container_spec};

use crate::error::{Error, Result};

/// A task like any other, on a node like any other. Its service has no labels.
static CONTEXT: LazyLock<Context> = LazyLock::new(|| {
    let task = Task {
        id: "taskID".into(),
        node_id: "nodeID".into(),
        service_id: "serviceID".into(),
        slot: 10,
        service_annotations: Annotations { name: "serviceName".into(), ..Default::default() }.into(),
        ..Default::default()
    };
    let node = NodeDescription {
        hostname: "hostname".into(),
        platform: Some(Platform { os: "os".into(), architecture: "architecture".into() }),
        ..Default::default()
    };
    Context::new(&task, Some(&node))
});

fn refuse(error: TemplateError) -> Error {
    Error::argument(error.to_string())
}

/// The container with its templates expanded; `None` if it has none.
pub(super) fn container(container: &ContainerSpec) -> Result<Option<ContainerSpec>> {
    if !has_templates(container) {
        return Ok(None);
    }
    expand_container_spec(container, &CONTEXT).map(Some).map_err(refuse)
}

/// The values of these variables can be expanded.
pub(super) fn env(env: &[String]) -> Result<()> {
    CONTEXT.expand_env(env).map(drop).map_err(refuse)
}

fn has_templates(container: &ContainerSpec) -> bool {
    let template = |text: &String| text.contains("{{");
    container.env.iter().any(template)
        || template(&container.hostname)
        || container.mounts.iter().any(|mount| {
            let options = mount.volume_options.as_ref();
            let driver = options.and_then(|o| o.driver_config.as_ref());
            template(&mount.source)
                || template(&mount.target)
                || options.is_some_and(|o| o.labels.values().any(template))
                || driver.is_some_and(|d| d.options.values().any(template))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_looked_up_with_index_only() {
        let env = |value: &str| super::env(&[format!("A={value}")]);
        assert_eq!(env("{{index .Service.Labels \"x\"}}-{{.Task.Slot}}"), Ok(()));
        let error = env("{{.Service.Labels.x}}").unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(error.to_string().contains("map has no entry for key"), "{error}");
    }

    #[test]
    fn containers_without_templates_are_not_copied() {
        let plain = ContainerSpec { env: vec!["A=1".into()], ..Default::default() };
        assert_eq!(container(&plain), Ok(None));
    }
}
