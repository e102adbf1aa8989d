//! A node's own certificate with its key.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use swarm_api::v1::NodeRole;

use crate::{
    Certificate, Error, IssuerInfo, NodeSubject, PeerIdentity, PrivateKey, Result, RootCa, VerifiedChain,
    create_csr,
};

/// A certificate that leads to the root, and its key. Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    pem: Vec<u8>,
    chain: VerifiedChain,
    key: PrivateKey,
    identity: PeerIdentity,
}

impl Credentials {
    /// Checks a certificate (PEM, leaf first) and its key for use under a root. `allow_expired` is for recovery only:
    /// a certificate past its end lets its node start and renew it.
    ///
    /// # Errors
    /// When the chain does not lead to the root, the key is another one's, or a name is missing.
    pub fn new(
        certificate: &[u8],
        key: PrivateKey,
        root: &RootCa,
        now: SystemTime,
        allow_expired: bool,
    ) -> Result<Self> {
        let chain = root.verify(certificate, now, allow_expired)?;
        if !key.belongs_to(chain.leaf()) {
            return Err(Error::KeyMismatch);
        }
        let identity = PeerIdentity::complete(chain.leaf())?;
        Ok(Self(Arc::new(Inner { pem: certificate.to_vec(), chain, key, identity })))
    }

    /// Issues credentials to this node itself: what the first manager of a cluster does.
    ///
    /// # Errors
    /// [`Error::NoSigner`] when the root has no key at hand.
    pub fn issue(root: &RootCa, subject: &NodeSubject, expiry: Duration, now: SystemTime) -> Result<Self> {
        let key = PrivateKey::generate()?;
        let certificate = root.sign_csr(&create_csr(&key)?, subject, expiry, now)?;
        Self::new(&certificate, key, root, now, false)
    }

    /// PEM, leaf first.
    pub fn certificate_pem(&self) -> &[u8] {
        &self.0.pem
    }

    /// The leaf.
    pub fn certificate(&self) -> &Certificate {
        self.0.chain.leaf()
    }

    /// The leaf and what was stored with it.
    pub fn chain(&self) -> &[Certificate] {
        &self.0.chain.certificates
    }

    /// The key.
    pub fn key(&self) -> &PrivateKey {
        &self.0.key
    }

    /// Whom the certificate names.
    pub fn identity(&self) -> &PeerIdentity {
        &self.0.identity
    }

    /// CN.
    pub fn node_id(&self) -> &str {
        &self.0.identity.node_id
    }

    /// O: the cluster.
    pub fn organization(&self) -> &str {
        &self.0.identity.organization
    }

    /// The role in OU; whatever is no manager is a worker.
    pub fn role(&self) -> NodeRole {
        self.0.identity.role().unwrap_or(NodeRole::Worker)
    }

    /// Who issued the certificate.
    pub fn issuer(&self) -> &IssuerInfo {
        &self.0.chain.issuer
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("certificate", self.certificate()).finish_non_exhaustive()
    }
}
