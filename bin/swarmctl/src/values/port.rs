//! Published ports: `[name]:target[/protocol][:published[/protocol]]`.

use swarm_api::v1::PortConfig;
use swarm_api::v1::port_config::{Protocol, PublishMode};

/// Reads a port. It is published on the nodes that run a task, in host mode.
pub(crate) fn parse(text: &str) -> Result<PortConfig, String> {
    let bad = |why: &str| format!("port {text:?}: {why}");
    let parts: Vec<&str> = text.split(':').collect();
    let (name, target, published) = match parts[..] {
        [name, target] => (name, target, None),
        [name, target, published] => (name, target, Some(published)),
        _ => return Err(bad("expected [name]:target[/protocol][:published[/protocol]]")),
    };
    let (target_port, protocol) = one(target).map_err(|why| bad(&why))?;
    let published_port = match published.map(one).transpose().map_err(|why| bad(&why))? {
        None => 0,
        Some((port, same)) if same == protocol => port,
        Some(_) => return Err(bad("both protocols must be the same (tcp where none is given)")),
    };
    Ok(PortConfig {
        name: name.to_owned(),
        protocol: protocol as i32,
        target_port,
        published_port,
        publish_mode: PublishMode::Host as i32,
    })
}

fn one(part: &str) -> Result<(u32, Protocol), String> {
    let (number, protocol) = part.split_once('/').unwrap_or((part, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return Err(format!("{protocol:?} is not one of tcp, udp, sctp")),
    };
    match number.parse::<u16>() {
        Ok(port) => Ok((port.into(), protocol)),
        Err(_) => Err(format!("{number:?} is no number from 0 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let check = |text: &str, name: &str, target, published, protocol| {
            let port = parse(text).unwrap();
            assert_eq!(
                (port.name.as_str(), port.target_port, port.published_port),
                (name, target, published)
            );
            assert_eq!((port.protocol(), port.publish_mode()), (protocol, PublishMode::Host), "{text}");
        };
        check("web:80:8080", "web", 80, 8080, Protocol::Tcp);
        check(":80", "", 80, 0, Protocol::Tcp);
        check("dns:53/udp:53/UDP", "dns", 53, 53, Protocol::Udp);
        for bad in ["80", "dns:53/udp:53", "x:abc", "x:1/foo", "x:70000", "a:1:2:3", ":"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
