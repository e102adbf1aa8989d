//! What a service publishes (`network.md` A8).

use prost::Message as _;
use swarm_api::Shared;
use swarm_api::v1::endpoint::VirtualIp;
use swarm_api::v1::endpoint_spec::ResolutionMode;
use swarm_api::v1::port_config::PublishMode;
use swarm_api::v1::{Endpoint, EndpointSpec, Network, PortConfig, Service};
use swarm_store::Tables;

use crate::MOST_BYTES;
use crate::network::of_service;
use crate::ports::{PortError, Ports};

/// Why a service can't have its endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndpointError {
    #[error(transparent)]
    Ports(#[from] PortError),
    #[error("the service would have {0} bytes, more than the {MOST_BYTES} that can be stored")]
    TooLarge(usize),
}

/// The endpoint that the service is to have; `None`: it needs none. On error nothing of the service's
/// allocation changes.
pub(crate) fn wanted(
    tables: &Tables,
    ports: &mut Ports,
    service: &Service,
) -> Result<Option<Shared<Endpoint>>, EndpointError> {
    let virtual_ips = virtual_ips(tables, service);
    fits(service, &virtual_ips)?;
    let elsewhere = |protocol, number| is_published(tables, service, protocol, number);
    let ports = ports.allocate(service, &elsewhere)?;
    let spec = service.spec.endpoint.as_ref();
    if spec.is_none() && virtual_ips.is_empty() {
        return Ok(None);
    }
    Ok(Some(match &service.endpoint {
        Some(present)
            if present.spec.as_ref() == spec
                && present.virtual_ips == virtual_ips
                && are_the_same(&present.ports, &ports) =>
        {
            present.clone()
        }
        _ => Endpoint { spec: spec.cloned(), ports, virtual_ips }.into(),
    }))
}

/// Another service asks for this number, or was given it: in whatever way, since one that is published on nodes and one
/// that is published on all of them exclude each other.
fn is_published(tables: &Tables, service: &Service, protocol: i32, number: u32) -> bool {
    let others = tables.services().by_published_port(number).filter(|other| other.id != service.id);
    let mut ports = others.flat_map(|other| other.published_ports());
    ports.any(|port| port.published_port == number && port.protocol == protocol)
}

/// The same ports, in whatever order: leaders of another make have an order of their own.
fn are_the_same(a: &[PortConfig], b: &[PortConfig]) -> bool {
    let sorted = |ports: &[PortConfig]| {
        let mut ports: Vec<_> = ports.iter().map(|p| (key(p), p.clone())).collect();
        ports.sort_by(|a, b| a.0.cmp(&b.0));
        ports
    };
    a == b || (a.len() == b.len() && sorted(a) == sorted(b))
}

fn key(port: &PortConfig) -> (i32, u32, i32, u32, String) {
    (port.publish_mode, port.published_port, port.protocol, port.target_port, port.name.clone())
}

/// An entry of the log has a limit, and a service that exceeds it would be tried for ever.
fn fits(service: &Service, virtual_ips: &[VirtualIp]) -> Result<(), EndpointError> {
    // What a number takes that is filled in, with its key; what a list adds to each of its messages.
    const NUMBER: usize = 4;
    const EACH: usize = 6;
    let spec = service.spec.endpoint.as_ref();
    let asked = spec.map_or(0, |spec| 2 * spec.encoded_len() + spec.ports.len() * NUMBER);
    let previous = service.previous_spec.as_ref().map_or(0, |spec| spec.encoded_len());
    let addresses: usize = virtual_ips.iter().map(|address| address.encoded_len() + EACH).sum();
    let bytes = service.spec.encoded_len() + previous + asked + addresses;
    if bytes > MOST_BYTES { Err(EndpointError::TooLarge(bytes)) } else { Ok(()) }
}

/// The service has the endpoint that it is to have, as far as it is told without its numbers: they were given when the endpoint
/// was made for this spec.
pub(crate) fn is_settled(tables: &Tables, service: &Service) -> bool {
    let spec = service.spec.endpoint.as_ref();
    let virtual_ips = virtual_ips(tables, service);
    let needed = spec.is_some() || !virtual_ips.is_empty();
    match &service.endpoint {
        None => !needed,
        Some(endpoint) => needed && endpoint.spec.as_ref() == spec && endpoint.virtual_ips == virtual_ips,
    }
}

/// The endpoint has numbers that its spec does not name: it can't be told from the spec alone.
pub(crate) fn has_dynamic_numbers(endpoint: &Endpoint) -> bool {
    let mut asked = endpoint.spec.iter().flat_map(|spec| &spec.ports);
    asked.any(|port| port.publish_mode() == PublishMode::Ingress && port.published_port == 0)
}

/// An entry per network in VIP mode. Those that are there stay as long as they are needed: addresses are the overlay
/// allocator's, ours or that of a manager of another make. What is missing is added where it has no address: on
/// networks that the nodes make for themselves.
fn virtual_ips(tables: &Tables, service: &Service) -> Vec<VirtualIp> {
    let spec = service.spec.endpoint.as_ref();
    if spec.is_some_and(|spec| spec.mode() == ResolutionMode::Dnsrr) {
        return Vec::new();
    }
    let named: Vec<&Shared<Network>> =
        of_service(service).iter().filter_map(|config| tables.networks().get(&config.target)).collect();
    let present = service.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips);
    let mut all: Vec<VirtualIp> = Vec::new();
    for entry in present {
        let needed = named.iter().any(|network| network.id == entry.network_id)
            || (publishes(spec) && is_ingress(tables, &entry.network_id));
        if needed && !all.iter().any(|other| other.network_id == entry.network_id) {
            all.push(entry.clone());
        }
    }
    for network in named.iter().filter(|network| network.spec.is_node_local()) {
        if !all.iter().any(|other| other.network_id == network.id) {
            all.push(VirtualIp { network_id: network.id.clone(), addr: String::new() });
        }
    }
    all
}

fn publishes(spec: Option<&EndpointSpec>) -> bool {
    let mut ports = spec.iter().flat_map(|spec| &spec.ports);
    ports.any(|port| port.publish_mode() == PublishMode::Ingress)
}

fn is_ingress(tables: &Tables, network: &str) -> bool {
    tables.networks().get(network).is_some_and(|network| network.spec.is_ingress())
}
