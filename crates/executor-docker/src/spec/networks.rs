//! The networks of a container: those that the engine has, and those that it is to make for the cluster.

use std::collections::HashMap;

use bollard::models::{
    ConfigReference, EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, NetworkCreateRequest,
};
use swarm_agent::ControllerError;
use swarm_api::network::{OVERLAY, PREDEFINED};
use swarm_api::v1::network_spec::ConfigFrom;
use swarm_api::v1::{IpamOptions, Network, NetworkAttachment, Task};

use super::{NODE_ID_LABEL, fatal, list, text};

/// Label whose value is the id of the cluster's network that a network of the engine was made for.
pub(crate) const NETWORK_ID_LABEL: &str = "com.docker.swarm.network.id";

/// A network of this node that the container is to be attached to; made if it is not there.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedNetwork {
    /// Id of the cluster's network.
    pub id: String,
    /// Body of the request that makes it; its name is the handle for all requests.
    pub request: NetworkCreateRequest,
    /// How the container is attached.
    pub endpoint: EndpointSettings,
}

/// The mode that the container's network has, if it has one of the engine's own, and the networks to attach it to.
/// The routing mesh is left out: it is not the engine's.
pub(super) fn networks(task: &Task) -> Result<(Option<String>, Vec<PlannedNetwork>), ControllerError> {
    let mut mode = None;
    let mut planned = Vec::new();
    for attachment in &task.networks {
        let Some(network) = attachment.network.as_deref() else { continue };
        let annotations = &network.spec.annotations;
        if network.spec.is_ingress() {
            continue;
        }
        if annotations.labels.get(PREDEFINED).is_some_and(|value| value == "true") {
            mode = mode.or_else(|| Some(annotations.name.clone()));
            continue;
        }
        let driver = network.driver_state.as_ref().map_or("", |driver| driver.name.as_str());
        if matches!(driver, "" | OVERLAY) {
            let driver = if driver.is_empty() { "unknown" } else { driver };
            return Err(fatal(format!(
                "network {:?}: this node can't attach containers to networks of the driver {driver:?}",
                annotations.name
            )));
        }
        planned.push(PlannedNetwork {
            id: network.id.clone(),
            request: request(network, driver, &task.node_id)?,
            endpoint: endpoint(attachment, &task.service_annotations.name),
        });
    }
    Ok((mode, planned))
}

fn request(network: &Network, driver: &str, node_id: &str) -> Result<NetworkCreateRequest, ControllerError> {
    let name = &network.spec.annotations.name;
    // It is part of a request's path.
    let good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(good) {
        return Err(fatal(format!("invalid network name {name:?}")));
    }
    let spec = &network.spec;
    let mut options =
        spec.driver_config.iter().flat_map(|driver| driver.options.clone()).collect::<HashMap<_, _>>();
    options.extend(network.driver_state.iter().flat_map(|driver| driver.options.clone()));
    let mut labels: HashMap<_, _> = spec.annotations.labels.clone().into_iter().collect();
    labels.insert(NETWORK_ID_LABEL.to_owned(), network.id.clone());
    labels.insert(NODE_ID_LABEL.to_owned(), node_id.to_owned());
    let config_from = spec
        .config_from
        .as_ref()
        .map(|ConfigFrom::Network(name)| ConfigReference { network: Some(name.clone()) });
    // Everything else comes from there: the engine takes nothing beside it, not even labels.
    let own = config_from.is_none();
    let addresses = network.ipam.iter().chain(&spec.ipam).find(|ipam| !ipam.configs.is_empty());
    Ok(NetworkCreateRequest {
        name: name.clone(),
        driver: Some(driver.to_owned()),
        internal: spec.internal.then_some(true),
        attachable: spec.attachable.then_some(true),
        enable_ipv6: (own && spec.ipv6_enabled).then_some(true),
        ipam: addresses.filter(|_| own).map(ipam),
        options: (own && !options.is_empty()).then_some(options),
        labels: own.then_some(labels),
        config_from,
        ..Default::default()
    })
}

fn ipam(options: &IpamOptions) -> Ipam {
    let driver = options.driver.as_ref();
    let name = driver.map_or("", |driver| driver.name.as_str());
    let configs = options.configs.iter().map(|config| IpamConfig {
        subnet: text(&config.subnet),
        ip_range: text(&config.range),
        gateway: text(&config.gateway),
        auxiliary_addresses: (!config.reserved.is_empty())
            .then(|| config.reserved.clone().into_iter().collect()),
    });
    Ipam {
        driver: Some(if name.is_empty() { "default" } else { name }.to_owned()),
        config: Some(configs.collect()),
        options: driver
            .map(|driver| driver.options.clone().into_iter().collect::<HashMap<_, _>>())
            .filter(|options| !options.is_empty()),
    }
}

/// Names (that of the service is one of them), options, and the addresses that managers gave: without the length of their
/// prefix.
fn endpoint(attachment: &NetworkAttachment, service: &str) -> EndpointSettings {
    let mut ipam = EndpointIpamConfig::default();
    for address in &attachment.addresses {
        let address = address.split('/').next().unwrap_or(address).to_owned();
        match address.contains(':') {
            true => ipam.ipv6_address = Some(address),
            false => ipam.ipv4_address = Some(address),
        }
    }
    let mut aliases = attachment.aliases.clone();
    if !service.is_empty() && !aliases.iter().any(|alias| alias == service) {
        aliases.push(service.to_owned());
    }
    let options: HashMap<_, _> = attachment.driver_attachment_opts.clone().into_iter().collect();
    EndpointSettings {
        aliases: list(&aliases),
        driver_opts: (!options.is_empty()).then_some(options),
        ipam_config: (ipam != EndpointIpamConfig::default()).then_some(ipam),
        ..Default::default()
    }
}
