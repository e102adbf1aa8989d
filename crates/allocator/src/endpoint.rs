//! What a service publishes (`network.md` A8).

use swarm_api::Shared;
use swarm_api::v1::endpoint::VirtualIp;
use swarm_api::v1::endpoint_spec::ResolutionMode;
use swarm_api::v1::{Endpoint, EndpointSpec, Service};
use swarm_store::Tables;

use crate::network::{is_node_local, of_service};
use crate::ports::{PortError, Ports};

/// The endpoint that the service is to have; `None`: it needs none. On error nothing of the service's
/// allocation changes.
pub(crate) fn wanted(
    tables: &Tables,
    ports: &mut Ports,
    service: &Service,
) -> Result<Option<Shared<Endpoint>>, PortError> {
    let none = EndpointSpec::default();
    let spec = service.spec.endpoint.as_ref();
    let present = service.endpoint.as_deref();
    let virtual_ips = virtual_ips(tables, service, spec.unwrap_or(&none));
    let ports = ports.allocate(&service.id, spec.unwrap_or(&none), present.map_or(&[], |e| &e.ports))?;
    if spec.is_none() && virtual_ips.is_empty() {
        return Ok(None);
    }
    let endpoint = Endpoint { spec: spec.cloned(), ports, virtual_ips };
    Ok(Some(match &service.endpoint {
        Some(present) if **present == endpoint => present.clone(),
        _ => endpoint.into(),
    }))
}

/// The service has the endpoint that it is to have, as far as it is told without its numbers: they were given when the endpoint
/// was made for this spec.
pub(crate) fn is_settled(tables: &Tables, service: &Service) -> bool {
    let none = EndpointSpec::default();
    let spec = service.spec.endpoint.as_ref();
    let virtual_ips = virtual_ips(tables, service, spec.unwrap_or(&none));
    let needed = spec.is_some() || !virtual_ips.is_empty();
    match &service.endpoint {
        None => !needed,
        Some(endpoint) => needed && endpoint.spec.as_ref() == spec && endpoint.virtual_ips == virtual_ips,
    }
}

/// An entry per network in VIP mode. On networks that the nodes make for themselves it has no address; the
/// others are the overlay allocator's.
fn virtual_ips(tables: &Tables, service: &Service, spec: &EndpointSpec) -> Vec<VirtualIp> {
    if spec.mode() == ResolutionMode::Dnsrr {
        return Vec::new();
    }
    let networks = of_service(service).iter().filter_map(|config| tables.networks().get(&config.target));
    let local = networks.filter(|network| is_node_local(network));
    local.map(|network| VirtualIp { network_id: network.id.clone(), addr: String::new() }).collect()
}
