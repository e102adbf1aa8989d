//! What certificates are signed with, as the cluster object says at the moment.

use std::time::{Duration, SystemTime};

use swarm_api::duration;
use swarm_api::v1::{Cluster, JoinTokens, RootCa as RootCaObject};
use swarm_pki::{DEFAULT_NODE_EXPIRY, Error, NodeSubject, RootCa};
use tracing::{info, warn};

/// The signer. Follows the cluster object; an unusable one leaves it as it was.
#[derive(Default)]
pub(super) struct Issuer {
    /// What it was made of; the join tokens in there play no part.
    made_of: RootCaObject,
    organization: String,
    expiry: Duration,
    root: Option<RootCa>,
}

/// Why a request was not signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It never will be.
    #[error("{0}")]
    Final(Error),
    /// It may be later.
    #[error("{0}")]
    Later(Error),
}

impl Issuer {
    /// Takes over what the cluster object says; tells whether anything that signing depends on has changed.
    pub(super) fn refresh(&mut self, cluster: &Cluster, now: SystemTime) -> bool {
        let expiry = match &cluster.spec.ca_config.node_cert_expiry {
            Some(expiry) => duration::to_std(expiry),
            None => DEFAULT_NODE_EXPIRY,
        };
        let mut object = cluster.root_ca.clone();
        object.join_tokens = JoinTokens::default();
        let same_root = object == self.made_of || object.ca_cert.is_empty();
        if same_root && expiry == self.expiry && cluster.id == self.organization {
            return false;
        }
        self.expiry = expiry;
        self.organization.clone_from(&cluster.id);
        if !same_root {
            match load(&object, now) {
                Ok(root) => {
                    info!(digest = %root.digest(), signs = root.signer().is_some(), "the CA was loaded");
                    (self.root, self.made_of) = (Some(root), object);
                }
                Err(error) => {
                    warn!(%error, "the cluster's root CA can't be used; the one before stays in use");
                }
            }
        }
        true
    }

    /// The organization in issued certificates.
    pub(super) fn organization(&self) -> &str {
        &self.organization
    }

    /// A copy for another thread.
    pub(super) fn signer(&self) -> Signer {
        Signer { root: self.root.clone(), expiry: self.expiry }
    }
}

/// Signs with one state of the [`Issuer`].
pub(super) struct Signer {
    root: Option<RootCa>,
    expiry: Duration,
}

impl Signer {
    /// The certificate for a request.
    pub(super) fn sign(
        &self,
        csr: &[u8],
        subject: &NodeSubject,
        now: SystemTime,
    ) -> Result<Vec<u8>, Refusal> {
        let root = self.root.as_ref().ok_or(Refusal::Later(Error::NoSigner))?;
        root.sign_csr(csr, subject, self.expiry, now).map_err(|error| match error {
            Error::NoSigner => Refusal::Later(error),
            _ => Refusal::Final(error),
        })
    }
}

/// During a root rotation the new root's key signs, under the certificate that the old root gave it; that one goes out
/// with every certificate, so that nodes which know only the old root believe it.
fn load(object: &RootCaObject, now: SystemTime) -> Result<RootCa, Error> {
    match &object.root_rotation {
        Some(rotation) if !rotation.ca_key.is_empty() => RootCa::load(
            &object.ca_cert,
            Some((&rotation.cross_signed_ca_cert, &rotation.ca_key)),
            &rotation.cross_signed_ca_cert,
            now,
        ),
        // An external CA signs for the new root.
        Some(rotation) => RootCa::load(&object.ca_cert, None, &rotation.cross_signed_ca_cert, now),
        None if object.ca_key.is_empty() => RootCa::trust_only(&object.ca_cert, now),
        None => RootCa::load(&object.ca_cert, Some((&object.ca_cert, &object.ca_key)), &[], now),
    }
}
