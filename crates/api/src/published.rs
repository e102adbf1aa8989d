//! The ports of a service.

use crate::v1::{PortConfig, Service};

impl Service {
    /// The ports that it asks for and those that it was given, as far as they have numbers.
    pub fn published_ports(&self) -> impl Iterator<Item = &PortConfig> {
        let wanted = self.spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        let given = self.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        wanted.chain(given).filter(|port| port.published_port != 0)
    }
}
