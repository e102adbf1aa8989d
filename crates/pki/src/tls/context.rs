//! The credentials and the root in use, and what follows from them, replaced while connections come and go.

use std::fmt;
use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};
use swarm_api::v1::NodeTlsInfo;
use tokio::sync::watch;

use super::config;
use crate::{Clock, Credentials, Error, PrivateKey, Result, RootCa};

/// What a node identifies itself with, and believes, at one moment. Never changes; [`SecurityContext`] replaces it.
pub struct Active {
    root: RootCa,
    credentials: Credentials,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Active {
    fn new(root: RootCa, credentials: Credentials, clock: &Clock) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            server: config::server(&root, &credentials, clock)?,
            client: config::client(&root, Some(&credentials), clock)?,
            root,
            credentials,
        }))
    }

    /// The root that peers are checked against.
    pub fn root(&self) -> &RootCa {
        &self.root
    }

    /// The node's own certificate and key.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// For accepting a connection.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For dialing, with any [`super::ServerRole`].
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    /// What a node reports of its trust and its issuer, so that the cluster sees how far a root rotation has come.
    pub fn tls_info(&self) -> NodeTlsInfo {
        let issuer = self.credentials.issuer();
        NodeTlsInfo {
            trust_root: self.root.pem().to_vec(),
            cert_issuer_subject: issuer.subject.clone(),
            cert_issuer_public_key: issuer.public_key.clone(),
        }
    }
}

impl fmt::Debug for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Active")
            .field("root", &self.root)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// The node's TLS identity, live: a replaced certificate or root is used by every later handshake, and open
/// connections stay as they are.
pub struct SecurityContext {
    active: watch::Sender<Arc<Active>>,
    clock: Clock,
}

impl SecurityContext {
    /// Starts with these.
    ///
    /// # Errors
    /// When no TLS configuration can be made of them.
    pub fn new(root: RootCa, credentials: Credentials, clock: Clock) -> Result<Arc<Self>> {
        let active = watch::Sender::new(Active::new(root, credentials, &clock)?);
        Ok(Arc::new(Self { active, clock }))
    }

    /// What is in use now. Ask again for every connection.
    pub fn current(&self) -> Arc<Active> {
        self.active.borrow().clone()
    }

    /// Tells of every replacement, of a certificate or a root.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Active>> {
        self.active.subscribe()
    }

    /// The time that certificates are judged by.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Puts a new certificate and key into use, checked against the root in use at this moment.
    ///
    /// # Errors
    /// As of [`Credentials::new`]; the old ones are then still in use.
    pub fn update_certificate(&self, certificate: &[u8], key: PrivateKey) -> Result<()> {
        self.replace(|active| {
            let credentials = Credentials::new(certificate, key, &active.root, self.clock.now(), false)?;
            Ok((active.root.clone(), credentials))
        })
    }

    /// Puts a new root into use, if the node's own certificate leads to it. The one in use is no news to anybody.
    ///
    /// # Errors
    /// [`Error::RootMismatch`]; the old one is then still in use.
    pub fn update_root(&self, root: RootCa) -> Result<()> {
        if self.current().root.same_bundle(&root) {
            return Ok(());
        }
        self.replace(|active| {
            let own = &active.credentials;
            let credentials =
                Credentials::new(own.certificate_pem(), own.key().clone(), &root, self.clock.now(), false)
                    .map_err(|e| Error::RootMismatch(Box::new(e)))?;
            Ok((root, credentials))
        })
    }

    /// One replacement at a time, each on top of the one before.
    fn replace(&self, change: impl FnOnce(&Active) -> Result<(RootCa, Credentials)>) -> Result<()> {
        let mut result = Ok(());
        self.active.send_if_modified(|active| {
            match change(active).and_then(|(root, own)| Active::new(root, own, &self.clock)) {
                Ok(new) => *active = new,
                Err(error) => result = Err(error),
            }
            result.is_ok()
        });
        result
    }
}

impl fmt::Debug for SecurityContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecurityContext").field(&self.current()).finish()
    }
}
