//! A new certificate for the node that it is: when its role has changed, the managers want it, or the node's key lay in
//! the clear until its file was locked.
//!
//! The node asks with the certificate that it has. What the new one says is the cluster's decision: it is the observed
//! role of the node object, which is raised and lowered by the role manager of the leader. The new pair is on disk
//! before it is used; connections that are open stay as they are.

use std::sync::Arc;
use std::time::Duration;

use swarm_agent::{Connector as _, Observed, Remotes};
use swarm_api::v1::issuance_status::State;
use swarm_api::v1::{Node, NodeRole};
use swarm_pki::{
    Credentials, Dialer, KekChange, KeyStore, PrivateKey, SecurityContext, ServerRole, create_csr,
};
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::connector::NodeConnector;
use crate::join::{Asking, Failure, JoinError};

/// First and longest pause between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Renews the certificate of a node.
pub(crate) struct Renewer {
    pub(crate) security: Arc<SecurityContext>,
    pub(crate) keys: Arc<KeyStore>,
    pub(crate) connector: Arc<NodeConnector>,
    pub(crate) remotes: Arc<Remotes>,
}

impl Renewer {
    /// Renews the certificate whenever the node object, as managers announce it, asks for another one than there is, or
    /// the key store for another key.
    pub(crate) async fn run(self, mut observed: watch::Receiver<Observed>) {
        let mut exposed = self.keys.exposed();
        let mut attempts = 0;
        loop {
            let node = observed.borrow_and_update().node.clone().filter(|node| self.is_wanted(node));
            let role = match (&node, *exposed.borrow_and_update()) {
                (Some(node), _) => Some(node.role()),
                (None, true) => Some(self.security.current().credentials().role()),
                (None, false) => None,
            };
            if let Some(role) = role {
                // The local manager first: it knows the leader. If it does not, one of the others may; and one that is
                // about to stop is no help. There may be no others, though.
                let locally = attempts % 2 == 0 && role == NodeRole::Manager;
                match self.renew(locally).await {
                    Ok(role) => info!(role = role.as_str_name(), "the node has a new certificate"),
                    Err(reason) => warn!(reason, "error renewing TLS certificate"),
                }
                attempts += 1;
            } else {
                attempts = 0;
            }
            // After a success too: the managers have not heard of it yet, or it is not the one that is wanted.
            let pause = PAUSE.0.saturating_mul(1 << attempts.min(10)).min(PAUSE.1);
            tokio::select! {
                changed = observed.changed() => if changed.is_err() { return },
                _ = exposed.changed() => {}
                () = sleep(pause), if role.is_some() => {}
            }
        }
    }

    /// Whether this is not the certificate that the node should have. A role counts when it is observed as it is
    /// desired: before, the cluster would not certify it.
    fn is_wanted(&self, node: &Node) -> bool {
        let role = node.role();
        let settled = node.spec.desired_role() == role;
        let own = self.security.current().credentials().role();
        (settled && role != own) || node.certificate.status.state() == State::Rotate
    }

    /// Asks once; returns the role of the new certificate.
    async fn renew(&self, locally: bool) -> Result<NodeRole, String> {
        let local = self.connector.local().filter(|_| locally);
        let (addr, channel) = match local.clone() {
            Some(channel) => ("the control socket".to_owned(), channel),
            None => {
                let peer = self.remotes.select().ok_or("no manager is known")?;
                let channel = self.connector.connect(&peer).await.map_err(|error| error.to_string())?;
                (peer.addr, channel)
            }
        };
        let clock = self.security.clock();
        // When an answer is lost, another manager is asked for another certificate.
        let asking = Asking { addr: &addr, token: "", clock, lost_polls: 1 };
        let key = PrivateKey::generate().map_err(text)?;
        let csr = create_csr(&key).map_err(text)?;
        let certificate = asking.certificate(&channel, &csr).await.map_err(reason)?;
        let root = self.security.current().root().clone();
        let new = Credentials::new(&certificate, key.clone(), &root, clock.now(), false).map_err(text)?;
        let kek = match new.role() {
            NodeRole::Manager => {
                let channel = match local {
                    Some(local) => local,
                    None => self.as_manager(&new, &addr).map_err(text)?,
                };
                asking.unlock_key(&channel).await.map_err(reason)?
            }
            // Workers' keys are never encrypted.
            NodeRole::Worker => KekChange::Set(None, self.keys.kek_version().1),
        };
        self.keys.save(&certificate, &key, kek).map_err(text)?;
        self.security.update_certificate(&certificate, key).map_err(text)?;
        Ok(new.role())
    }

    /// A connection with a certificate that is not in use yet.
    fn as_manager(&self, new: &Credentials, addr: &str) -> swarm_pki::Result<Channel> {
        let root = self.security.current().root().clone();
        let dialer = Dialer::with_credentials(&root, new, ServerRole::Manager, self.security.clock())?;
        dialer.channel(addr)
    }
}

fn text(error: impl std::error::Error) -> String {
    error.to_string()
}

fn reason(failure: Failure) -> String {
    match failure {
        Failure::Passing(reason) => reason,
        Failure::Lasting(JoinError::TokenRefused { .. }) => {
            "the cluster does not know this node any more: it was removed".to_owned()
        }
        Failure::Lasting(JoinError::Refused { reason, .. }) => format!("no certificate was issued: {reason}"),
        Failure::Lasting(JoinError::Tls { addr, failure }) => format!("connecting to {addr}: {failure}"),
        Failure::Lasting(error) => error.to_string(),
    }
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;
