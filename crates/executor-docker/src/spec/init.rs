//! Init tasks: containers like the task's own, with other commands.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, HealthConfig, NetworkingConfig};
use swarm_api::extensions::InitTask;

/// A container that must end with exit code 0 before the task's own is made.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedInit {
    /// Its name: that of the task's container, and its number.
    pub name: String,
    /// Its number, as a label of the container has it.
    pub number: String,
    /// Its image, as the spec has it.
    pub image: String,
    /// Base64url JSON for the registry; empty for none.
    pub registry_auth: String,
    /// Body of the request that creates it.
    pub body: ContainerCreateBody,
}

/// Label of such a container; its value is the number.
pub(crate) const NUMBER_LABEL: &str = "swarmd.init-task";

/// The same mounts, networks, files, user and environment; no ports, no health check, no names of the service. `own` is the body of
/// the task's container.
pub(super) fn plan(
    name: &str,
    own: &ContainerCreateBody,
    tasks: &[InitTask],
    registry_auth: &str,
) -> Vec<PlannedInit> {
    let own_image = own.image.as_deref().unwrap_or_default();
    let one = |(number, task): (usize, &InitTask)| {
        let image = if task.image.is_empty() { own_image } else { &task.image };
        // Credentials go to the registry that they are of, and to no other.
        let registry_auth = if registry(image) == registry(own_image) { registry_auth } else { "" };
        let mut labels = own.labels.clone().unwrap_or_default();
        labels.insert(NUMBER_LABEL.to_owned(), number.to_string());
        let mut host = own.host_config.clone();
        if let Some(host) = &mut host {
            host.port_bindings = None;
        }
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(task.command.clone()),
            cmd: None,
            tty: Some(false),
            open_stdin: Some(false),
            healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
            labels: Some(labels),
            exposed_ports: None,
            host_config: host,
            networking_config: own.networking_config.as_ref().map(without_aliases),
            ..own.clone()
        };
        PlannedInit {
            name: format!("{name}.init{number}"),
            number: number.to_string(),
            image: image.to_owned(),
            registry_auth: registry_auth.to_owned(),
            body,
        }
    };
    (1..).zip(tasks).map(one).collect()
}

/// Others are not to find it under the service's names.
fn without_aliases(networking: &NetworkingConfig) -> NetworkingConfig {
    let mut networking = networking.clone();
    for endpoint in networking.endpoints_config.iter_mut().flat_map(HashMap::values_mut) {
        endpoint.aliases = None;
    }
    networking
}

/// Where an image comes from; empty for the usual place.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::{EndpointSettings, HostConfig};

    #[test]
    fn an_init_task_is_the_container_with_another_command() {
        let endpoint = EndpointSettings { aliases: Some(vec!["web".into()]), ..Default::default() };
        let endpoints = HashMap::from([("net".to_owned(), endpoint)]);
        let own = ContainerCreateBody {
            image: Some("reg.example:5000/web".into()),
            cmd: Some(vec!["serve".into()]),
            env: Some(vec!["A=1".into()]),
            tty: Some(true),
            exposed_ports: Some(vec!["80/tcp".into()]),
            networking_config: Some(NetworkingConfig { endpoints_config: Some(endpoints) }),
            host_config: Some(HostConfig {
                port_bindings: Some(HashMap::new()),
                memory: Some(7),
                ..Default::default()
            }),
            ..Default::default()
        };
        let tasks = [
            InitTask { image: String::new(), command: vec!["./migrate".into()] },
            InitTask { image: "busybox".into(), command: vec!["true".into()] },
        ];
        let plans = plan("web.1.t", &own, &tasks, "secret");
        assert_eq!(
            plans.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(),
            ["web.1.t.init1", "web.1.t.init2"]
        );
        assert_eq!(
            (plans[0].image.as_str(), plans[0].registry_auth.as_str()),
            ("reg.example:5000/web", "secret")
        );
        assert_eq!((plans[1].image.as_str(), plans[1].registry_auth.as_str()), ("busybox", ""));
        let body = &plans[0].body;
        assert_eq!((&body.entrypoint, &body.cmd), (&Some(vec!["./migrate".to_owned()]), &None));
        assert_eq!((body.tty, &body.exposed_ports, &body.env), (Some(false), &None, &own.env));
        let host = body.host_config.as_ref().unwrap();
        assert_eq!((&host.port_bindings, host.memory), (&None, Some(7)));
        let networking = body.networking_config.as_ref().unwrap().endpoints_config.as_ref().unwrap();
        assert_eq!(networking["net"].aliases, None);
        assert_eq!(body.labels.as_ref().unwrap()["swarmd.init-task"], "1");
    }
}
