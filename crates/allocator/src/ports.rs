//! Numbers of ports published through the ingress network (`network.md` A8).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use swarm_api::v1::port_config::{Protocol, PublishMode};
use swarm_api::v1::{EndpointSpec, PortConfig};

/// Numbers given to ports that ask for none.
pub(crate) const DYNAMIC: RangeInclusive<u32> = 30_000..=32_767;

/// Why a service's ports can't be allocated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortError {
    #[error("port {port}/{protocol} is already in use by service {service}")]
    Taken { port: u32, protocol: &'static str, service: String },
    #[error("port {port}/{protocol} is published twice")]
    Twice { port: u32, protocol: &'static str },
    #[error("port {0} is not between 1 and 65535")]
    OutOfRange(u32),
    #[error("no free port between {first} and {last}", first = DYNAMIC.start(), last = DYNAMIC.end())]
    Exhausted,
}

/// One number space per protocol.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    owners: BTreeMap<(i32, u32), String>,
    by_service: BTreeMap<String, Vec<(i32, u32)>>,
    /// Where the search for the next dynamic number begins, so that a number is not reused at once.
    next: BTreeMap<i32, u32>,
}

fn is_ingress(port: &PortConfig) -> bool {
    port.publish_mode() == PublishMode::Ingress
}

/// What makes a port the same one after an update.
fn identity(port: &PortConfig) -> (&str, i32, u32) {
    (&port.name, port.protocol, port.target_port)
}

fn protocol(number: i32) -> &'static str {
    match Protocol::try_from(number) {
        Ok(Protocol::Udp) => "udp",
        Ok(Protocol::Sctp) => "sctp",
        _ => "tcp",
    }
}

impl Ports {
    /// Takes note of numbers that a service was given by an earlier leader. One that another service has as well
    /// stays with that.
    pub(crate) fn restore(&mut self, service: &str, ports: &[PortConfig]) {
        for port in ports.iter().filter(|p| is_ingress(p) && p.published_port != 0) {
            let key = (port.protocol, port.published_port);
            if !self.owners.contains_key(&key) {
                self.take(service, key);
            }
        }
    }

    fn take(&mut self, service: &str, key: (i32, u32)) {
        self.owners.insert(key, service.to_owned());
        self.by_service.entry(service.to_owned()).or_default().push(key);
    }

    /// Gives back all numbers of a service. True if there were any.
    pub(crate) fn release(&mut self, service: &str) -> bool {
        let keys = self.by_service.remove(service).unwrap_or_default();
        for key in &keys {
            self.owners.remove(key);
        }
        !keys.is_empty()
    }

    /// The ports of an endpoint with all numbers filled in. The service's numbers are exactly those afterwards;
    /// on error they are what they were before.
    pub(crate) fn allocate(
        &mut self,
        service: &str,
        spec: &EndpointSpec,
        present: &[PortConfig],
    ) -> Result<Vec<PortConfig>, PortError> {
        let before = self.by_service.get(service).cloned().unwrap_or_default();
        self.release(service);
        let allocated = self.fill(service, wanted(spec, present));
        if allocated.is_err() {
            self.release(service);
            before.into_iter().for_each(|key| self.take(service, key));
        }
        allocated
    }

    fn fill(&mut self, service: &str, mut ports: Vec<PortConfig>) -> Result<Vec<PortConfig>, PortError> {
        for port in ports.iter_mut().filter(|p| is_ingress(p)) {
            let proto = port.protocol;
            let given = port.published_port;
            if given == 0 {
                port.published_port = self.free(proto).ok_or(PortError::Exhausted)?;
            } else if given > 65_535 {
                return Err(PortError::OutOfRange(given));
            } else if let Some(owner) = self.owners.get(&(proto, given)) {
                let protocol = protocol(proto);
                return Err(match owner == service {
                    true => PortError::Twice { port: given, protocol },
                    false => PortError::Taken { port: given, protocol, service: owner.clone() },
                });
            }
            self.take(service, (proto, port.published_port));
        }
        Ok(ports)
    }

    fn free(&mut self, proto: i32) -> Option<u32> {
        let next = self.next.get(&proto).copied().unwrap_or(*DYNAMIC.start());
        let around = (next..=*DYNAMIC.end()).chain(*DYNAMIC.start()..next);
        let port = around.into_iter().find(|port| !self.owners.contains_key(&(proto, *port)))?;
        self.next.insert(proto, if port == *DYNAMIC.end() { *DYNAMIC.start() } else { port + 1 });
        Some(port)
    }
}

/// The ports to have. Those without a number keep the one that the same port has now; they come last, so that
/// they can't take what another port of the service asks for.
fn wanted(spec: &EndpointSpec, present: &[PortConfig]) -> Vec<PortConfig> {
    let fixed = |p: &&PortConfig| !is_ingress(p) || p.published_port != 0;
    let mut ports: Vec<PortConfig> = spec.ports.iter().filter(fixed).cloned().collect();
    let chosen: Vec<(i32, u32)> =
        ports.iter().filter(|p| is_ingress(p)).map(|p| (p.protocol, p.published_port)).collect();
    let dynamic = |p: &&PortConfig| {
        is_ingress(p) && p.published_port != 0 && !chosen.contains(&(p.protocol, p.published_port))
    };
    let mut given: Vec<&PortConfig> = present.iter().filter(dynamic).collect();
    for port in spec.ports.iter().filter(|p| !fixed(p)) {
        let mut port = port.clone();
        if let Some(at) = given.iter().position(|g| identity(g) == identity(&port)) {
            port.published_port = given.remove(at).published_port;
        }
        ports.push(port);
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(target: u32, published: u32) -> PortConfig {
        PortConfig { target_port: target, published_port: published, ..Default::default() }
    }

    fn spec(ports: &[PortConfig]) -> EndpointSpec {
        EndpointSpec { ports: ports.to_vec(), ..Default::default() }
    }

    fn numbers(ports: &[PortConfig]) -> Vec<u32> {
        ports.iter().map(|p| p.published_port).collect()
    }

    #[test]
    fn ports_without_a_number_get_one_from_the_dynamic_range() {
        let mut ports = Ports::default();
        let udp = PortConfig { protocol: Protocol::Udp as i32, ..port(8001, 8001) };
        let asked = spec(&[port(1, 0), port(8001, 8001), udp, port(2, 0)]);
        assert_eq!(numbers(&ports.allocate("s", &asked, &[]).unwrap()), [8001, 8001, 30_000, 30_001]);
    }

    #[test]
    fn a_number_given_once_stays_through_updates() {
        let mut ports = Ports::default();
        let first = ports.allocate("s", &spec(&[port(1, 0), port(2, 0)]), &[]).unwrap();
        let swapped = ports.allocate("s", &spec(&[port(2, 0), port(1, 0)]), &first).unwrap();
        assert_eq!(numbers(&swapped), [30_001, 30_000]);
        let more = ports.allocate("s", &spec(&[port(3, 0), port(2, 0)]), &swapped).unwrap();
        assert_eq!(numbers(&more), [30_002, 30_001]);
    }

    #[test]
    fn a_fixed_and_a_dynamic_port_of_one_target_keep_theirs() {
        let mut ports = Ports::default();
        let asked = spec(&[port(1, 0), port(1, 80)]);
        let first = ports.allocate("s", &asked, &[]).unwrap();
        assert_eq!(numbers(&first), [80, 30_000]);
        assert_eq!(ports.allocate("s", &asked, &first).unwrap(), first);
    }

    #[test]
    fn a_taken_number_is_refused_until_it_is_given_back() {
        let mut ports = Ports::default();
        let asked = spec(&[port(1, 80)]);
        ports.allocate("a", &asked, &[]).unwrap();
        let refused = ports.allocate("b", &asked, &[]).unwrap_err();
        assert_eq!(refused.to_string(), "port 80/tcp is already in use by service a");
        assert!(ports.release("a"));
        assert_eq!(numbers(&ports.allocate("b", &asked, &[]).unwrap()), [80]);
    }

    #[test]
    fn a_refusal_leaves_the_numbers_as_they_were() {
        let mut ports = Ports::default();
        ports.allocate("a", &spec(&[port(1, 80)]), &[]).unwrap();
        ports.allocate("b", &spec(&[port(1, 81)]), &[]).unwrap();
        ports.allocate("b", &spec(&[port(1, 82), port(2, 80)]), &[]).unwrap_err();
        ports.allocate("c", &spec(&[port(1, 81)]), &[]).unwrap_err();
        ports.allocate("c", &spec(&[port(1, 82)]), &[]).unwrap();
    }

    #[test]
    fn one_number_twice_in_a_service_is_refused() {
        let refused = Ports::default().allocate("a", &spec(&[port(1, 80), port(2, 80)]), &[]).unwrap_err();
        assert_eq!(refused, PortError::Twice { port: 80, protocol: "tcp" });
    }

    #[test]
    fn a_chosen_number_of_the_dynamic_range_is_not_given_to_others() {
        let mut ports = Ports::default();
        ports.allocate("a", &spec(&[port(1, 30_000)]), &[]).unwrap();
        assert_eq!(numbers(&ports.allocate("b", &spec(&[port(1, 0)]), &[]).unwrap()), [30_001]);
    }

    #[test]
    fn a_number_given_back_is_not_reused_at_once() {
        let mut ports = Ports::default();
        ports.allocate("a", &spec(&[port(1, 0)]), &[]).unwrap();
        ports.release("a");
        assert_eq!(numbers(&ports.allocate("b", &spec(&[port(1, 0)]), &[]).unwrap()), [30_001]);
    }

    #[test]
    fn the_dynamic_range_has_an_end() {
        let mut ports = Ports::default();
        let many: Vec<PortConfig> = DYNAMIC.map(|n| port(n, 0)).collect();
        ports.allocate("a", &spec(&many), &[]).unwrap();
        assert_eq!(ports.allocate("b", &spec(&[port(1, 0)]), &[]), Err(PortError::Exhausted));
        ports.release("a");
        ports.allocate("b", &spec(&[port(1, 0)]), &[]).unwrap();
    }

    #[test]
    fn host_ports_are_left_as_they_are() {
        let mut ports = Ports::default();
        let host = PortConfig { publish_mode: PublishMode::Host as i32, ..port(1, 80) };
        ports.allocate("a", &spec(&[port(1, 80)]), &[]).unwrap();
        assert_eq!(ports.allocate("b", &spec(std::slice::from_ref(&host)), &[]).unwrap(), [host]);
    }
}
