//! Published ports as Docker's command line writes them: `[published:]target[/protocol]`, with ranges, or
//! `published=…,target=…,protocol=…,mode=…`.

use swarm_api::v1::PortConfig;
use swarm_api::v1::port_config::{Protocol, PublishMode};

/// Reads the ports of one occurrence of a flag: several in the short form, or one in the long form. They are published on the
/// nodes that run a task, unless the mode is another one.
pub(crate) fn parse_all(fields: &[String]) -> Result<Vec<PortConfig>, String> {
    let long = fields.iter().any(|field| field.contains('='));
    if long {
        return Ok(vec![parse_fields(fields)?]);
    }
    let ports = fields.iter().map(|field| parse(field)).collect::<Result<Vec<_>, _>>()?;
    Ok(ports.concat())
}

/// Reads which ports are not to be published any more: `target[/protocol]`.
pub(crate) fn target(text: &str) -> Result<(u32, Protocol), String> {
    let (target, protocol) = with_protocol(text);
    let wrong = |why| format!("port {text:?}: {why}");
    Ok((number(target).map_err(wrong)?, protocol_of(protocol).map_err(wrong)?))
}

fn parse(text: &str) -> Result<Vec<PortConfig>, String> {
    let wrong = |why: String| format!("port {text:?}: {why}");
    let (ports, protocol) = with_protocol(text);
    let protocol = protocol_of(protocol).map_err(wrong)?;
    let (published, target) = match ports.split_once(':') {
        Some((published, target)) => (Some(published), target),
        None => (None, ports),
    };
    let (first, last) = range(target).map_err(wrong)?;
    let published = published.map(range).transpose().map_err(wrong)?;
    if published.is_some_and(|(from, to)| to - from != last - first) {
        return Err(wrong("both ranges must have the same number of ports".to_owned()));
    }
    let port = |target_port: u32| PortConfig {
        protocol: protocol as i32,
        target_port,
        published_port: published.map_or(0, |(from, _)| from + target_port - first),
        publish_mode: PublishMode::Host as i32,
        ..Default::default()
    };
    Ok((first..=last).map(port).collect())
}

fn parse_fields(fields: &[String]) -> Result<PortConfig, String> {
    let wrong = |why: String| format!("port {:?}: {why}", fields.join(","));
    let mut port = PortConfig { publish_mode: PublishMode::Host as i32, ..Default::default() };
    for field in fields {
        let (key, value) =
            field.split_once('=').ok_or_else(|| wrong(format!("{field:?} is no key=value")))?;
        match key.trim() {
            "published" => port.published_port = number(value).map_err(wrong)?,
            "target" => port.target_port = number(value).map_err(wrong)?,
            "protocol" => port.protocol = protocol_of(value).map_err(wrong)? as i32,
            "name" => value.clone_into(&mut port.name),
            "mode" => {
                port.publish_mode = match value {
                    "host" => PublishMode::Host,
                    "ingress" => PublishMode::Ingress,
                    _ => return Err(wrong(format!("mode {value:?} is not one of host, ingress"))),
                } as i32;
            }
            _ => {
                return Err(wrong(format!("{key:?} is not one of published, target, protocol, mode, name")));
            }
        }
    }
    if port.target_port == 0 {
        return Err(wrong("target=PORT is missing".to_owned()));
    }
    Ok(port)
}

fn with_protocol(text: &str) -> (&str, &str) {
    text.rsplit_once('/').unwrap_or((text, "tcp"))
}

fn protocol_of(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => Err(format!("{text:?} is not one of tcp, udp, sctp")),
    }
}

fn number(text: &str) -> Result<u32, String> {
    match text.parse::<u16>() {
        Ok(port @ 1..) => Ok(port.into()),
        _ => Err(format!("{text:?} is no number from 1 to 65535")),
    }
}

/// `80`, or `8000-8010`.
fn range(text: &str) -> Result<(u32, u32), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if first > last { Err(format!("the range {text:?} ends before it begins")) } else { Ok((first, last)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<PortConfig>, String> {
        let fields: Vec<String> = text.split(',').map(str::to_owned).collect();
        parse_all(&fields)
    }

    #[test]
    fn ports() {
        let check = |text: &str, expected: &[(u32, u32, Protocol, PublishMode)]| {
            let ports = read(text).unwrap();
            let brief: Vec<_> = ports
                .iter()
                .map(|port| (port.published_port, port.target_port, port.protocol(), port.publish_mode()))
                .collect();
            assert_eq!(brief, expected, "{text}");
        };
        use Protocol::{Tcp, Udp};
        use PublishMode::{Host, Ingress};
        check("80", &[(0, 80, Tcp, Host)]);
        check("8080:80", &[(8080, 80, Tcp, Host)]);
        check("53:53/UDP,443", &[(53, 53, Udp, Host), (0, 443, Tcp, Host)]);
        check("8000-8001:80-81/udp", &[(8000, 80, Udp, Host), (8001, 81, Udp, Host)]);
        check("target=80", &[(0, 80, Tcp, Host)]);
        check("published=8080,target=80,protocol=udp,mode=ingress", &[(8080, 80, Udp, Ingress)]);
        assert_eq!(read("name=web,target=80").unwrap()[0].name, "web");
        for (bad, why) in [
            ("", "is no number"),
            ("0", "is no number from 1 to 65535"),
            ("80:x", "\"x\" is no number"),
            ("1:2:3", "is no number"),
            ("80/ip", "\"ip\" is not one of tcp, udp, sctp"),
            ("8001-8000:80-81", "ends before it begins"),
            ("8000-8002:80-81", "both ranges must have the same number of ports"),
            ("published=8080", "target=PORT is missing"),
            ("target=80,mode=mesh", "mode \"mesh\" is not one of host, ingress"),
            ("target=80,host", "\"host\" is no key=value"),
            ("target=80,address=x", "\"address\" is not one of"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.starts_with("port ") && error.contains(why), "{bad}: {error}");
        }
        assert_eq!(target("53/udp"), Ok((53, Udp)));
        assert!(target("8080:80").is_err());
    }
}
