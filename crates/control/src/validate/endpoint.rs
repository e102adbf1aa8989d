//! Published ports within one spec.

use std::collections::BTreeSet;

use swarm_api::v1::{EndpointSpec, endpoint_spec::ResolutionMode, port_config::PublishMode};

use crate::error::{Error, Result};

/// Ports go with the resolution mode, and none is published twice.
pub(crate) fn check(endpoint: &EndpointSpec) -> Result<()> {
    let ingress = endpoint.ports.iter().any(|p| p.publish_mode() == PublishMode::Ingress);
    if endpoint.mode() == ResolutionMode::Dnsrr && ingress {
        return Err(Error::argument(
            "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
        ));
    }
    let mut taken = BTreeSet::new();
    for port in endpoint.ports.iter().filter(|p| p.published_port != 0) {
        if !taken.insert((port.published_port, port.protocol)) {
            return Err(Error::argument("EndpointSpec: duplicate published ports provided"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_api::v1::{PortConfig, port_config::Protocol};

    #[test]
    fn ports_within_a_spec() {
        let port = |published_port, protocol, mode| PortConfig {
            published_port,
            protocol: protocol as i32,
            publish_mode: mode as i32,
            ..Default::default()
        };
        use {Protocol::*, PublishMode::*};
        let check = |mode, ports: Vec<PortConfig>, text: Option<&str>| {
            let spec = EndpointSpec { mode: mode as i32, ports };
            assert_eq!(super::check(&spec), text.map_or(Ok(()), |t| Err(Error::argument(t))));
        };
        let (vip, dnsrr) = (ResolutionMode::Vip, ResolutionMode::Dnsrr);
        check(
            vip,
            vec![port(80, Tcp, Ingress), port(80, Udp, Ingress), port(0, Tcp, Host), port(0, Tcp, Host)],
            None,
        );
        check(dnsrr, vec![port(80, Tcp, Host)], None);
        let duplicate = Some("EndpointSpec: duplicate published ports provided");
        check(vip, vec![port(80, Tcp, Ingress), port(80, Tcp, Host)], duplicate);
        check(
            dnsrr,
            vec![port(0, Tcp, Ingress)],
            Some("EndpointSpec: port published with ingress mode can't be used with dnsrr mode"),
        );
    }
}
