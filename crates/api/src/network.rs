//! What kind of network one is.

use crate::v1::NetworkSpec;

/// Label of networks that every engine has and nobody made.
pub const PREDEFINED: &str = "com.docker.swarm.predefined";

/// Label by which old clusters tell the network of published ports, beside its name.
const INTERNAL: &str = "com.docker.swarm.internal";

/// Driver of networks that span nodes, and of those that name none.
pub const OVERLAY: &str = "overlay";

/// Drivers whose networks each node makes for itself.
pub const NODE_LOCAL: [&str; 4] = ["bridge", "host", "ipvlan", "macvlan"];

/// The driver of addresses that managers and engines have themselves.
pub const DEFAULT_IPAM: &str = "default";

impl NetworkSpec {
    /// The network that published ports are reached through.
    pub fn is_ingress(&self) -> bool {
        self.ingress || (self.annotations.name == "ingress" && self.annotations.labels.contains_key(INTERNAL))
    }

    /// Its driver.
    pub fn driver_name(&self) -> &str {
        match self.driver_config.as_ref().map_or("", |driver| &driver.name) {
            "" => OVERLAY,
            name => name,
        }
    }

    /// Each node makes it for itself: managers give no addresses in it.
    pub fn is_node_local(&self) -> bool {
        NODE_LOCAL.contains(&self.driver_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Driver;

    #[test]
    fn the_network_of_published_ports_says_so_in_either_way() {
        let named = |name: &str, label: &str| {
            let mut spec = NetworkSpec::default();
            spec.annotations.name = name.to_owned();
            spec.annotations.labels.insert(label.to_owned(), String::new());
            spec
        };
        assert!(NetworkSpec { ingress: true, ..named("any", "a") }.is_ingress());
        assert!(named("ingress", INTERNAL).is_ingress());
        assert!(!named("ingress", "a").is_ingress() && !named("other", INTERNAL).is_ingress());
    }

    #[test]
    fn a_network_without_a_driver_is_an_overlay() {
        let driven = |name: &str| NetworkSpec {
            driver_config: Some(Driver { name: name.into(), ..Driver::default() }),
            ..NetworkSpec::default()
        };
        for spec in [NetworkSpec::default(), driven(""), driven(OVERLAY)] {
            assert_eq!((spec.driver_name(), spec.is_node_local()), (OVERLAY, false));
        }
        assert!(driven("macvlan").is_node_local());
    }
}
