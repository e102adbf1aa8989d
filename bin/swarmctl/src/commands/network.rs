//! Networks.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use swarm_api::Shared;
use swarm_api::v1::ipam_config::AddressFamily;
use swarm_api::v1::network_spec::ConfigFrom;
use swarm_api::v1::{
    CreateNetworkRequest, Driver, IpamConfig, IpamOptions, ListNetworksRequest, Network, NetworkSpec,
    RemoveNetworkRequest,
};

use super::{Context, ids};
use crate::error::{Error, Result};
use crate::output::Table;
use crate::resolve;
use crate::values::csv::join;
use crate::values::{List, pair};

/// Commands on networks.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a network
    Create(Flags),
    /// Show a network
    Inspect(One),
    /// List networks
    Ls {
        /// IDs only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove a network
    #[command(visible_alias = "rm")]
    Remove(One),
}

/// A network.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// ID of the network, its name, or how its ID begins
    network: String,
}

/// Flags of create.
#[derive(Debug, Default, Args)]
pub(crate) struct Flags {
    /// Name of the network
    #[arg(long, value_name = "NAME", required = true)]
    name: String,
    /// Driver of the network
    #[arg(long, value_name = "DRIVER")]
    driver: Option<String>,
    /// Options of the driver, key=value; with --driver
    #[arg(long, value_name = "LIST", requires = "driver")]
    opts: Option<Vec<List>>,
    /// Driver that manages the addresses
    #[arg(long, value_name = "DRIVER")]
    ipam_driver: Option<String>,
    /// Subnets, address/bits
    #[arg(long, value_name = "LIST")]
    subnet: Option<Vec<List>>,
    /// Gateways of the subnets; with --subnet
    #[arg(long, value_name = "LIST", requires = "subnet")]
    gateway: Option<Vec<List>>,
    /// Ranges within the subnets that addresses are taken from; with --subnet
    #[arg(long, value_name = "LIST", requires = "subnet")]
    ip_range: Option<Vec<List>>,
    /// Take options and addresses from this network, which each node's engine must have as one for configuration only
    #[arg(long, value_name = "NAME", conflicts_with_all = ["opts", "ipam_driver", "subnet"])]
    config_from: Option<String>,
    /// No way out of the network
    #[arg(long)]
    internal: bool,
    /// Containers that belong to no service may be attached, with `docker run --network` on a node of Docker Engine
    #[arg(long)]
    attachable: bool,
    /// IPv6 addresses too
    #[arg(long)]
    ipv6: bool,
}

pub(crate) async fn run(context: &mut Context, command: Command) -> Result<String> {
    match command {
        Command::Create(flags) => {
            let request = CreateNetworkRequest { spec: Some(spec(&flags)?) };
            let network = context.control.create_network(request).await?.into_inner().network;
            Ok(format!("{}\n", network.ok_or(Error::Incomplete("network"))?.id))
        }
        Command::Ls { quiet } => {
            let request = ListNetworksRequest::default();
            let networks = context.control.list_networks(request).await?.into_inner().networks;
            if quiet {
                return Ok(ids(networks.iter().map(|network| network.id.as_str())));
            }
            Ok(list(&networks))
        }
        Command::Inspect(One { network }) => {
            Ok(summary(&*resolve::network(&mut context.control, &network).await?))
        }
        Command::Remove(One { network: given }) => {
            let network = resolve::network(&mut context.control, &given).await?;
            let request = RemoveNetworkRequest { network_id: network.id.clone(), ..Default::default() };
            context.control.remove_network(request).await?;
            Ok(format!("{given}\n"))
        }
    }
}

/// The network that the flags describe. Every gateway and range goes to the subnet that contains it.
fn spec(flags: &Flags) -> Result<NetworkSpec> {
    let mut spec = NetworkSpec::default();
    spec.annotations.name.clone_from(&flags.name);
    if let Some(name) = &flags.driver {
        let terms = join(flags.opts.as_ref()).unwrap_or_default();
        if let Some(bad) = terms.iter().find(|term| term.matches('=').count() != 1) {
            return Err(Error::usage(format!("option {bad:?} is no key=value")));
        }
        spec.driver_config = Some(Driver { name: name.clone(), options: pair::options(&terms) });
    }
    spec.config_from = flags.config_from.clone().map(ConfigFrom::Network);
    spec.internal = flags.internal;
    spec.attachable = flags.attachable;
    spec.ipv6_enabled = flags.ipv6;
    let mut gateways = join(flags.gateway.as_ref()).unwrap_or_default();
    let mut ranges = join(flags.ip_range.as_ref()).unwrap_or_default();
    let mut configs = Vec::new();
    for subnet in join(flags.subnet.as_ref()).unwrap_or_default() {
        let (address, _) = cidr(&subnet)?;
        let family = if address.is_ipv4() { AddressFamily::Ipv4 } else { AddressFamily::Ipv6 };
        let gateway = take_contained(&mut gateways, &subnet, |text| {
            text.parse().map_err(|_| Error::usage(format!("gateway {text:?} is no address")))
        })?;
        let range = take_contained(&mut ranges, &subnet, |text| Ok(cidr(text)?.0))?;
        configs.push(IpamConfig { family: family as i32, subnet, gateway, range, ..Default::default() });
    }
    if let Some(left) = gateways.first().or(ranges.first()) {
        return Err(Error::usage(format!("no subnet contains {left}, or another one is there already")));
    }
    if flags.ipam_driver.is_some() || !configs.is_empty() {
        let driver =
            flags.ipam_driver.as_ref().map(|name| Driver { name: name.clone(), ..Default::default() });
        spec.ipam = Some(IpamOptions { driver, configs });
    }
    Ok(spec)
}

/// Takes the first text out of the list whose address the subnet contains; empty if there is none.
fn take_contained(
    texts: &mut Vec<String>,
    subnet: &str,
    address: impl Fn(&str) -> Result<IpAddr>,
) -> Result<String> {
    for at in 0..texts.len() {
        if contains(cidr(subnet)?, address(&texts[at])?) {
            return Ok(texts.remove(at));
        }
    }
    Ok(String::new())
}

fn cidr(text: &str) -> Result<(IpAddr, u32)> {
    let bad = || Error::usage(format!("{text:?} is no subnet: expected address/bits, such as 10.1.0.0/24"));
    let (address, bits) = text.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let bits: u32 = bits.parse().map_err(|_| bad())?;
    if bits > if address.is_ipv4() { 32 } else { 128 } {
        return Err(bad());
    }
    Ok((address, bits))
}

fn contains((subnet, bits): (IpAddr, u32), address: IpAddr) -> bool {
    let prefix = |number: u128, width: u32| number.checked_shr(width - bits).unwrap_or(0);
    match (subnet, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => prefix(u32::from(a).into(), 32) == prefix(u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => prefix(a.into(), 128) == prefix(b.into(), 128),
        _ => false,
    }
}

/// The driver in use, else the one asked for.
fn driver(network: &Network) -> &str {
    let driver = network.driver_state.as_ref().or(network.spec.driver_config.as_ref());
    driver.map_or("", |driver| &driver.name)
}

/// `network ls`
fn list(networks: &[Shared<Network>]) -> String {
    let mut table = Table::list();
    table.header(&["ID", "Name", "Driver"]);
    for network in networks {
        table.line(format!("{}\t{}\t{}", network.id, network.spec.annotations.name, driver(network)));
    }
    table.finish()
}

/// The page of `network inspect`. What managers have not allocated, or leave to the nodes, is shown as it was asked for.
fn summary(network: &Network) -> String {
    let mut page = Table::summary();
    let spec = &network.spec;
    page.pair("ID", &network.id);
    page.pair("Name", &spec.annotations.name);
    page.line("Spec:\t");
    if !spec.annotations.labels.is_empty() {
        page.line("  Labels:\t");
        options(&mut page, "    ", &spec.annotations.labels);
    }
    page.pair("  IPv6Enabled", spec.ipv6_enabled);
    page.pair("  Internal", spec.internal);
    if spec.attachable {
        page.pair("  Attachable", true);
    }
    if let Some(ConfigFrom::Network(name)) = &spec.config_from {
        page.pair("  Config From", name);
    }
    let (state, asked) = (network.driver_state.as_ref(), spec.driver_config.as_ref());
    if state.is_some() || asked.is_some() {
        page.line("Driver:\t");
        page.pair("  Name", driver(network));
        page.line("  Options:\t");
        let mut drivers = [state, asked].into_iter().flatten();
        if let Some(driver) = drivers.find(|driver| !driver.options.is_empty()) {
            options(&mut page, "    ", &driver.options);
        }
    }
    let ipams = || network.ipam.iter().chain(&spec.ipam);
    let driver = ipams().filter_map(|ipam| ipam.driver.as_ref()).find(|driver| **driver != Driver::default());
    let configs = ipams().map(|ipam| &ipam.configs[..]).find(|configs| !configs.is_empty());
    if driver.is_some() || configs.is_some() {
        page.line("IPAM:\t");
    }
    if let Some(driver) = driver {
        page.line("  Driver:\t");
        page.pair("    Name", &driver.name);
        page.line("    Options:\t");
        options(&mut page, "      ", &driver.options);
    }
    for config in configs.unwrap_or_default() {
        page.line("  IPAM Config:\t");
        let family = match config.family() {
            AddressFamily::Unknown => "UNKNOWN",
            AddressFamily::Ipv4 => "IPV4",
            AddressFamily::Ipv6 => "IPV6",
        };
        page.pair("    Family", family);
        page.pair("    Subnet", &config.subnet);
        if !config.range.is_empty() {
            page.pair("    Range", &config.range);
        }
        if !config.gateway.is_empty() {
            page.pair("    Gateway", &config.gateway);
        }
        page.line("    Reserved:\t");
        options(&mut page, "      ", &config.reserved);
    }
    page.finish()
}

fn options(page: &mut Table, indent: &str, options: &std::collections::BTreeMap<String, String>) {
    for (key, value) in options {
        page.line(format!("{indent}{key} = {value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(subnet: &str, gateway: &str, range: &str) -> Flags {
        let list = |text: &str| (!text.is_empty()).then(|| vec![text.parse::<List>().unwrap()]);
        Flags {
            name: "net".into(),
            subnet: list(subnet),
            gateway: list(gateway),
            ip_range: list(range),
            ..Default::default()
        }
    }

    #[test]
    fn gateways_and_ranges_land_in_their_subnets() {
        let flags = flags("10.1.0.0/24,fd00::/64", "fd00::1,10.1.0.1", "10.1.0.128/25");
        let configs = spec(&flags).unwrap().ipam.unwrap().configs;
        assert_eq!((configs[0].family(), configs[0].gateway.as_str()), (AddressFamily::Ipv4, "10.1.0.1"));
        assert_eq!((configs[1].family(), configs[1].gateway.as_str()), (AddressFamily::Ipv6, "fd00::1"));
        assert_eq!((configs[0].range.as_str(), configs[1].range.as_str()), ("10.1.0.128/25", ""));
    }

    #[test]
    fn what_fits_nowhere_is_an_error() {
        for (subnet, gateway, range) in [
            ("10.1.0.0", "", ""),
            ("10.1.0.0/33", "", ""),
            ("10.1.0.0/24", "10.2.0.1", ""),
            ("10.1.0.0/24", "x", ""),
            ("10.1.0.0/24", "", "10.2.0.0/25"),
            ("10.1.0.0/24", "10.1.0.1,10.1.0.2", ""),
        ] {
            assert!(spec(&flags(subnet, gateway, range)).is_err(), "{subnet} {gateway} {range}");
        }
    }

    #[test]
    fn a_network_without_a_driver_is_listed() {
        let mut network = Network { id: "n1".into(), ..Default::default() };
        network.spec.annotations.name = "ingress".into();
        assert_eq!(list(&[network.into()]), "ID  Name     Driver\n--  ----     ------\nn1  ingress  \n");
    }

    /// The page without its padding.
    fn page(network: &Network) -> Vec<String> {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        summary(network).lines().skip(2).map(words).collect()
    }

    /// As the manager has it once the network is allocated: it leaves everything to the nodes.
    fn node_local(spec: NetworkSpec) -> Network {
        let name = spec.driver_name().to_owned();
        Network {
            driver_state: Some(Driver { name, ..Default::default() }),
            ipam: Some(IpamOptions { driver: Some(Driver::default()), ..Default::default() }),
            spec,
            ..Default::default()
        }
    }

    #[test]
    fn what_was_asked_of_a_network_of_the_nodes_is_shown() {
        let list = |text: &str| Some(vec![text.parse::<List>().unwrap()]);
        let flags = Flags {
            driver: Some("macvlan".into()),
            opts: list("parent=eth0"),
            ..flags("10.1.0.0/24", "10.1.0.1", "10.1.0.128/25")
        };
        let network = node_local(spec(&flags).unwrap());
        let expected = [
            "Spec:",
            "IPv6Enabled : false",
            "Internal : false",
            "Driver:",
            "Name : macvlan",
            "Options:",
            "parent = eth0",
            "IPAM:",
            "IPAM Config:",
            "Family : IPV4",
            "Subnet : 10.1.0.0/24",
            "Range : 10.1.0.128/25",
            "Gateway : 10.1.0.1",
            "Reserved:",
        ];
        assert_eq!(page(&network), expected);

        let flags =
            Flags { driver: Some("bridge".into()), config_from: Some("setup".into()), ..Flags::default() };
        let bare = page(&node_local(spec(&flags).unwrap()));
        assert_eq!(bare[3..], ["Config From : setup", "Driver:", "Name : bridge", "Options:"]);
    }

    #[test]
    fn what_is_allocated_is_shown_before_what_was_asked_for() {
        let mut network = node_local(spec(&flags("10.1.0.0/24", "", "")).unwrap());
        let driver = |name: &str, value: &str| Driver {
            name: name.into(),
            options: [("id".to_owned(), value.to_owned())].into(),
        };
        network.spec.driver_config = Some(driver("overlay", "asked"));
        network.driver_state = Some(driver("overlay", "given"));
        let config = IpamConfig { subnet: "10.9.0.0/24".into(), ..Default::default() };
        let name = "default".to_owned();
        network.ipam =
            Some(IpamOptions { driver: Some(Driver { name, ..Default::default() }), configs: vec![config] });
        let page = page(&network);
        assert!(
            page.contains(&"id = given".to_owned()) && !page.contains(&"id = asked".to_owned()),
            "{page:?}"
        );
        let at = page.iter().position(|line| line == "IPAM:").unwrap();
        assert_eq!(page[at + 1..at + 3], ["Driver:", "Name : default"]);
        let subnets: Vec<&String> = page.iter().filter(|line| line.starts_with("Subnet")).collect();
        assert_eq!(subnets, ["Subnet : 10.9.0.0/24"]);
    }

    #[test]
    fn the_set_up_of_a_network_may_be_the_nodes_matter() {
        let flags = Flags {
            name: "lan".into(),
            driver: Some("macvlan".into()),
            config_from: Some("setup".into()),
            internal: true,
            attachable: true,
            ipv6: true,
            ..Default::default()
        };
        let spec = spec(&flags).unwrap();
        assert_eq!(spec.config_from, Some(ConfigFrom::Network("setup".into())));
        assert!(spec.internal && spec.ipv6_enabled && spec.attachable);
    }
}
