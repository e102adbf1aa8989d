//! Who is on the other side, by its verified certificate.

use swarm_api::authorization::{MANAGER_OU, WORKER_OU};
use swarm_api::v1::NodeRole;

use crate::{Certificate, Error, Result};

/// A node as its certificate names it. Everything that authorizes rests on these three.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerIdentity {
    /// CN of the certificate.
    pub node_id: String,
    /// Every OU: `swarm-manager`, `swarm-worker`.
    pub units: Vec<String>,
    /// First O: the cluster.
    pub organization: String,
}

impl PeerIdentity {
    /// The names in a certificate. What is missing stays empty, and so fits no rule.
    pub fn of(certificate: &Certificate) -> Self {
        Self {
            node_id: certificate.common_name().unwrap_or_default().to_owned(),
            units: certificate.units().to_vec(),
            organization: certificate.organization().unwrap_or_default().to_owned(),
        }
    }

    /// The names in a certificate that a node wants to use itself: all three must be there.
    ///
    /// # Errors
    /// [`Error::NoUnit`], [`Error::NoOrganization`], [`Error::NoCommonName`].
    pub fn complete(certificate: &Certificate) -> Result<Self> {
        let identity = Self::of(certificate);
        match &identity {
            Self { units, .. } if units.iter().all(String::is_empty) => Err(Error::NoUnit),
            Self { organization, .. } if organization.is_empty() => Err(Error::NoOrganization),
            Self { node_id, .. } if node_id.is_empty() => Err(Error::NoCommonName),
            _ => Ok(identity),
        }
    }

    /// Whether one of the units is this one.
    pub fn has_unit(&self, unit: &str) -> bool {
        self.units.iter().any(|own| own == unit)
    }

    /// Whether the node is a manager.
    pub fn is_manager(&self) -> bool {
        self.has_unit(MANAGER_OU)
    }

    /// The role that the certificate gives; `None` for units that are no role of a node.
    pub fn role(&self) -> Option<NodeRole> {
        match () {
            () if self.is_manager() => Some(NodeRole::Manager),
            () if self.has_unit(WORKER_OU) => Some(NodeRole::Worker),
            () => None,
        }
    }

    /// Refuses a node of another cluster.
    ///
    /// # Errors
    /// [`Error::WrongOrganization`].
    pub fn check_organization(&self, expected: &str) -> Result<()> {
        match self.organization == expected {
            true => Ok(()),
            false => Err(Error::WrongOrganization {
                expected: expected.to_owned(),
                found: self.organization.clone(),
            }),
        }
    }
}
