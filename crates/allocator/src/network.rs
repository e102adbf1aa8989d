//! Networks as far as they need no addresses from us (`network.md` A3, A10).
//!
//! The seam for overlay networks: [`allocate`] gives a network its state, [`attach`] a task its attachment.

use prost::Message as _;
use swarm_api::v1::{
    Driver, Endpoint, IpamOptions, Network, NetworkAttachment, NetworkAttachmentConfig, Service, Task,
};
use swarm_api::{Object, Shared};
use swarm_reconcile::Sizer;
use swarm_store::Tables;

use crate::MOST_BYTES;

pub(crate) fn is_allocated(network: &Network) -> bool {
    network.driver_state.is_some() && network.ipam.is_some()
}

/// The network with its state filled in; `None` if there is nothing to do, or nothing we can do.
pub(crate) fn allocate(object: &Object) -> Option<Object> {
    let Object::Network(network) = object else { return None };
    if !network.spec.is_node_local() || is_allocated(network) {
        return None;
    }
    let mut network = network.clone();
    network.driver_state = Some(Driver { name: network.spec.driver_name().to_owned(), ..Default::default() });
    // Agents expect the driver to be there, even though nodes find the addresses themselves.
    network.ipam = Some(IpamOptions { driver: Some(Driver::default()), ..Default::default() });
    Some(network.into())
}

/// The networks that a service's tasks are to have by its present spec: the template's, or where it has none the service's own.
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

/// The attachments of a task: to the networks that it asks for itself, not to those of its service's present template,
/// which may be a later one. A network that does not exist is waited for; the original skips it silently.
pub(crate) fn attach(
    tables: &Tables,
    task: &Task,
    service: Option<&Service>,
) -> Result<Vec<NetworkAttachment>, Missing> {
    let own = &task.spec.networks;
    #[allow(deprecated)] // still honoured where the task names none
    let wanted = if own.is_empty() { service.map_or(&own[..], |s| &s.spec.networks) } else { &own[..] };
    let mut attachments: Vec<NetworkAttachment> = Vec::new();
    for config in wanted {
        let is_it = |a: &&mut NetworkAttachment| a.network.as_ref().is_some_and(|n| n.id == config.target);
        match attachments.iter_mut().find(is_it) {
            Some(there) => add_names(&mut there.aliases, &config.aliases),
            None => attachments.push(attachment(tables, task, config)?),
        }
    }
    Ok(attachments)
}

/// A task has a copy of each of its networks, and of its service's endpoint. One that no entry of the log can hold would be
/// tried for ever.
pub(crate) fn fit(
    sizer: &mut Sizer,
    task: &Task,
    networks: &[NetworkAttachment],
    endpoint: Option<&Endpoint>,
) -> Result<(), Missing> {
    // What it has already is counted with it.
    let more = if task.networks.is_empty() { networks } else { &[] };
    let own = task.endpoint.as_ref().map_or(0, |endpoint| endpoint.encoded_len());
    let ports = endpoint.map_or(0, Endpoint::encoded_len).saturating_sub(own);
    if more.is_empty() && ports == 0 {
        return Ok(());
    }
    let bytes = sizer.bytes_of(task) + ports + more.iter().map(NetworkAttachment::encoded_len).sum::<usize>();
    if bytes <= MOST_BYTES {
        return Ok(());
    }
    let reason = format!(
        "with its networks and ports the task would have {bytes} bytes, more than the {MOST_BYTES} that can be stored"
    );
    let network = networks.first().and_then(|attachment| attachment.network.as_ref());
    Err(Missing { network: network.map(|network| network.id.clone()).unwrap_or_default(), reason })
}

/// A network that is listed twice is attached once, under the names of both.
fn add_names(names: &mut Vec<String>, more: &[String]) {
    for name in more {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
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
    if !network.spec.is_node_local() {
        let driver = network.spec.driver_name();
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
