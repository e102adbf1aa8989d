//! Networks as far as they need no addresses from us (`network.md` A3, A10).
//!
//! The seam for overlay networks: [`allocate`] gives a network its state, [`attach`] a task its attachment.

use swarm_api::v1::{
    Driver, IpamOptions, Network, NetworkAttachment, NetworkAttachmentConfig, Service, Task,
};
use swarm_api::{Object, Shared};
use swarm_store::Tables;

/// Drivers whose networks each node makes for itself.
const NODE_LOCAL: [&str; 4] = ["bridge", "host", "ipvlan", "macvlan"];

/// Driver of a network that names none.
const DEFAULT_DRIVER: &str = "overlay";

pub(crate) fn driver(network: &Network) -> &str {
    let name = network.spec.driver_config.as_ref().map_or("", |d| d.name.as_str());
    if name.is_empty() { DEFAULT_DRIVER } else { name }
}

pub(crate) fn is_node_local(network: &Network) -> bool {
    NODE_LOCAL.contains(&driver(network))
}

pub(crate) fn is_allocated(network: &Network) -> bool {
    network.driver_state.is_some() && network.ipam.is_some()
}

/// The network with its state filled in; `None` if there is nothing to do, or nothing we can do.
pub(crate) fn allocate(object: &Object) -> Option<Object> {
    let Object::Network(network) = object else { return None };
    if !is_node_local(network) || is_allocated(network) {
        return None;
    }
    let mut network = network.clone();
    network.driver_state = Some(Driver { name: driver(&network).to_owned(), ..Default::default() });
    // Agents expect the driver to be there, even though nodes find the addresses themselves.
    network.ipam = Some(IpamOptions { driver: Some(Driver::default()), ..Default::default() });
    Some(network.into())
}

/// The networks that a service's tasks ask for: the template's, or where it has none the service's own.
pub(crate) fn of_service(service: &Service) -> &[NetworkAttachmentConfig] {
    let template = &service.spec.task.networks;
    #[allow(deprecated)] // still honoured where the template names none
    if template.is_empty() { &service.spec.networks } else { template }
}

/// Why a task can't have its networks yet.
pub(crate) struct Missing {
    /// The network to wait for.
    pub(crate) network: String,
    /// The text for the user.
    pub(crate) reason: String,
}

/// The attachments of a task. A network that does not exist is waited for; the original skips it silently.
pub(crate) fn attach(
    tables: &Tables,
    task: &Task,
    service: Option<&Service>,
) -> Result<Vec<NetworkAttachment>, Missing> {
    let own = &task.spec.networks;
    let wanted = if own.is_empty() { service.map_or(&own[..], of_service) } else { &own[..] };
    wanted.iter().map(|config| attachment(tables, task, config)).collect()
}

fn attachment(
    tables: &Tables,
    task: &Task,
    config: &NetworkAttachmentConfig,
) -> Result<NetworkAttachment, Missing> {
    let missing = |reason: String| Missing { network: config.target.clone(), reason };
    let Some(network) = tables.networks().get(&config.target) else {
        return Err(missing(format!("network {} does not exist", config.target)));
    };
    let name = &network.spec.annotations.name;
    if !is_node_local(network) {
        let driver = driver(network);
        return Err(missing(format!(
            "network {name} ({id}) has the driver {driver}, whose addresses can't be allocated yet",
            id = network.id
        )));
    }
    if !is_allocated(network) {
        return Err(missing(format!(
            "network {name} ({id}) attached to task {task} not allocated yet",
            id = network.id,
            task = task.id
        )));
    }
    Ok(NetworkAttachment {
        network: Some(Shared::clone(network)),
        // The node's engine gives them, or says why it can't: which addresses there are it knows alone.
        addresses: config.addresses.clone(),
        aliases: config.aliases.clone(),
        driver_attachment_opts: config.driver_attachment_opts.clone(),
    })
}
