//! The ports that a running container has on its host.

use bollard::models::PortMap;
use swarm_api::v1::PortConfig;
use swarm_api::v1::port_config::{Protocol, PublishMode};

/// Bindings of a running container as ports, with the names that the spec gave them. IPv4 and IPv6 are bound
/// separately, mostly to the same number, which is told once.
pub(crate) fn published(bindings: PortMap, wanted: &[PortConfig]) -> Vec<PortConfig> {
    let mut ports = Vec::new();
    for (key, bindings) in bindings {
        let Some((target, protocol)) = key.split_once('/') else { continue };
        let Ok(target_port) = target.parse() else { continue };
        let protocol = match protocol {
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        let same_target = |port: &&PortConfig| port.target_port == target_port && port.protocol() == protocol;
        for binding in bindings.into_iter().flatten() {
            let Some(published_port) = binding.host_port.and_then(|port| port.parse().ok()) else { continue };
            let exactly =
                wanted.iter().filter(same_target).find(|port| port.published_port == published_port);
            let any = || wanted.iter().filter(same_target).find(|port| port.published_port == 0);
            ports.push(PortConfig {
                name: exactly.or_else(any).map(|port| port.name.clone()).unwrap_or_default(),
                protocol: protocol.into(),
                target_port,
                published_port,
                publish_mode: PublishMode::Host.into(),
            });
        }
    }
    ports.sort_by_key(|port| (port.target_port, port.protocol, port.published_port));
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bollard::models::PortBinding;

    use super::*;

    #[test]
    fn a_port_is_told_once_and_by_its_name() {
        let bound = |address: &str, port: &str| PortBinding {
            host_ip: Some(address.into()),
            host_port: Some(port.into()),
        };
        let bindings = HashMap::from([
            (
                "80/tcp".to_owned(),
                Some(vec![bound("0.0.0.0", "8080"), bound("::", "8080"), bound("0.0.0.0", "32768")]),
            ),
            ("53/udp".to_owned(), Some(vec![bound("0.0.0.0", "53")])),
            ("9/sctp".to_owned(), None),
        ]);
        let wanted = |name: &str, target_port, published_port, protocol: Protocol| PortConfig {
            name: name.into(),
            target_port,
            published_port,
            protocol: protocol.into(),
            ..Default::default()
        };
        let wanted = [
            wanted("any", 80, 0, Protocol::Tcp),
            wanted("web", 80, 8080, Protocol::Tcp),
            wanted("dns", 53, 53, Protocol::Udp),
        ];
        let told = published(bindings, &wanted);
        let told: Vec<_> = told.iter().map(|p| (p.name.as_str(), p.target_port, p.published_port)).collect();
        assert_eq!(told, [("dns", 53, 53), ("web", 80, 8080), ("any", 80, 32768)]);
    }
}
