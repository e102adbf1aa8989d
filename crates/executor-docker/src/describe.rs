//! What an engine says of itself and its host.

use std::collections::{BTreeMap, BTreeSet};

use bollard::models::{Plugin, SystemInfo};
use swarm_agent::ExecutorDescription;
use swarm_api::network::OVERLAY;
use swarm_api::v1::{
    DiscreteGenericResource, GenericResource, NamedGenericResource, PluginDescription, Resources,
    generic_resource,
};

/// The description of a node from its engine's answers. Plug-ins are sorted by type, then name.
pub(crate) fn describe(info: SystemInfo, managed_plugins: Vec<Plugin>) -> ExecutorDescription {
    let mut plugins = BTreeSet::new();
    if let Some(known) = info.plugins {
        for (kind, names) in [
            ("Volume", known.volume),
            ("Network", known.network),
            ("Authorization", known.authorization),
            ("Log", known.log),
        ] {
            plugins.extend(names.into_iter().flatten().map(|name| (kind.to_owned(), name)));
        }
    }
    for plugin in managed_plugins.into_iter().filter(|plugin| plugin.enabled) {
        for kind in &plugin.config.interface.types {
            let Some(capability) = kind.strip_prefix("docker.") else { continue };
            let capability = capability.split('/').next().unwrap_or(capability);
            let kind = match capability {
                "volumedriver" => "Volume",
                "networkdriver" => "Network",
                "logdriver" => "Log",
                "authz" => "Authorization",
                other => other,
            };
            plugins.insert((kind.to_owned(), plugin.name.clone()));
        }
    }
    // The engine has it, but lets nobody else use it: schedulers are not to place here what would be rejected.
    plugins.remove(&("Network".to_owned(), OVERLAY.to_owned()));
    let labels = info.labels.unwrap_or_default();
    let labels: BTreeMap<_, _> = labels
        .iter()
        .filter_map(|label| label.split_once('='))
        .filter(|(key, _)| !key.starts_with("swarmd."))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let generic = info.generic_resources.unwrap_or_default().into_iter().filter_map(|resource| {
        let resource = match (resource.named_resource_spec, resource.discrete_resource_spec) {
            (Some(named), _) => generic_resource::Resource::NamedResourceSpec(NamedGenericResource {
                kind: named.kind?,
                value: named.value?,
            }),
            (None, Some(discrete)) => {
                generic_resource::Resource::DiscreteResourceSpec(DiscreteGenericResource {
                    kind: discrete.kind?,
                    value: discrete.value?,
                })
            }
            (None, None) => return None,
        };
        Some(GenericResource { resource: Some(resource) })
    });
    ExecutorDescription {
        features: Default::default(),
        engine_version: info.server_version.unwrap_or_default(),
        engine_labels: labels,
        plugins: plugins.into_iter().map(|(r#type, name)| PluginDescription { r#type, name }).collect(),
        resources: Some(Resources {
            nano_cpus: info.ncpu.unwrap_or_default().saturating_mul(1_000_000_000),
            memory_bytes: info.mem_total.unwrap_or_default(),
            generic: generic.collect(),
        }),
        architecture: info.architecture,
        os: info.os_type,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::PluginsInfo;

    #[test]
    fn engine_information_becomes_a_description() {
        let info = SystemInfo {
            ncpu: Some(2),
            mem_total: Some(1 << 30),
            architecture: Some("x86_64".into()),
            os_type: Some("linux".into()),
            server_version: Some("20.10.24".into()),
            labels: Some(vec!["a=1=2".into(), "none".into(), "a=3".into(), "swarmd.gpu=1".into()]),
            plugins: Some(PluginsInfo {
                volume: Some(vec!["local".into()]),
                network: Some(vec!["overlay".into(), "host".into(), "bridge".into()]),
                log: Some(vec!["json-file".into()]),
                authorization: None,
            }),
            ..Default::default()
        };
        let description = describe(info, Vec::new());
        let resources = description.resources.unwrap();
        assert_eq!((resources.nano_cpus, resources.memory_bytes), (2_000_000_000, 1 << 30));
        assert_eq!(description.engine_labels, BTreeMap::from([("a".into(), "3".into())]));
        let plugins: Vec<_> =
            description.plugins.iter().map(|p| format!("{}/{}", p.r#type, p.name)).collect();
        assert_eq!(plugins, ["Log/json-file", "Network/bridge", "Network/host", "Volume/local"]);
    }
}
