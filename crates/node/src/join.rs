//! Becoming a member of a cluster: the root by the token's digest, a certificate for a new key, both onto disk.
//!
//! Nothing is written before everything is there, so a join that fails leaves the directory as it was. What can't get
//! better by waiting (a wrong token, another swarm's root, a refused request) ends at once, with what would be right.

use std::time::Duration;

use rand::RngExt as _;
use swarm_api::v1::ca_client::CaClient;
use swarm_api::v1::issuance_status::State;
use swarm_api::v1::node_ca_client::NodeCaClient;
use swarm_api::v1::{
    GetRootCaCertificateRequest, GetUnlockKeyRequest, IssueNodeCertificateRequest,
    NodeCertificateStatusRequest, NodeRole, node_spec,
};
use swarm_pki::{
    Clock, Credentials, Dialer, Error as PkiError, JoinToken, Kek, KekChange, KeyStore, PrivateKey, RootCa,
    RootDigest, ServerRole, TlsFailure, TokenError, create_csr,
};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tracing::{debug, info, warn};

/// Time that one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the root and the certificate are asked for, and the time between.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);
/// A joining node knows one manager only, and is patient with it.
const LOST_POLLS: u32 = 10;

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The token is none.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The cluster demands what this program does not do.
    #[error("node is not FIPS-enabled but cluster requires FIPS")]
    Fips,
    /// Nobody answers there, or nobody who can help.
    #[error("can't join the cluster through {addr}: {reason}")]
    Unreachable {
        /// The address given.
        addr: String,
        /// What happened last.
        reason: String,
    },
    /// Whoever answers there is no manager of the token's cluster.
    #[error("can't join the cluster through {addr}: {failure}")]
    Tls {
        /// The address given.
        addr: String,
        /// Why.
        failure: TlsFailure,
    },
    /// The cluster does not know the token.
    #[error(
        "can't join the cluster through {addr}: {text}: the token was replaced or is incomplete; a manager shows the \
         current ones with `swarmctl cluster inspect default`"
    )]
    TokenRefused {
        /// The address given.
        addr: String,
        /// The cluster's words.
        text: String,
    },
    /// The cluster refused to sign.
    #[error("can't join the cluster through {addr}: no certificate was issued: {reason}")]
    Refused {
        /// The address given.
        addr: String,
        /// The cluster's words.
        reason: String,
    },
    /// What came does not fit together, or can't be written.
    #[error("can't join the cluster: {0}")]
    Pki(#[from] PkiError),
}

/// Joins the cluster whose manager answers at `addr` (`host:port`), and writes root, certificate and key into `keys`. A
/// root that is there already is trusted as it is. The role is the token's.
///
/// # Errors
/// [`JoinError`]; nothing was written then.
pub(crate) async fn join(
    keys: &KeyStore,
    addr: &str,
    token: &str,
    clock: &Clock,
) -> Result<(RootCa, Credentials), JoinError> {
    let token: JoinToken = token.parse()?;
    if token.fips() {
        return Err(JoinError::Fips);
    }
    let asking = Asking { addr, token: token.expose(), clock, lost_polls: LOST_POLLS };
    let root = match keys.load_root(clock.now()) {
        Ok(root) => root,
        Err(error) if error.is_missing() => {
            asking.attempts(async || asking.download_root(token.root_digest()).await).await?
        }
        Err(error) => return Err(error.into()),
    };
    let key = PrivateKey::generate()?;
    let csr = create_csr(&key)?;
    let channel = Dialer::joining(&root, clock)?.channel(addr)?;
    let certificate = asking.attempts(async || asking.certificate(&channel, &csr).await).await?;
    let credentials = Credentials::new(&certificate, key, &root, clock.now(), false)?;
    // A locked cluster's manager never has its key on disk in the clear.
    let kek = match credentials.role() {
        NodeRole::Manager => {
            let dialer = Dialer::with_credentials(&root, &credentials, ServerRole::Ca, clock)?;
            let channel = dialer.channel(addr)?;
            asking.attempts(async || asking.unlock_key(&channel).await).await?
        }
        NodeRole::Worker => KekChange::Set(None, 0),
    };
    keys.save_root(&root)?;
    keys.save(credentials.certificate_pem(), credentials.key(), kek)?;
    Ok((root, credentials))
}

/// Asks the manager at an address for what a node needs of it.
pub(crate) struct Asking<'a> {
    pub(crate) addr: &'a str,
    /// A join token; empty for a node that shows its certificate.
    pub(crate) token: &'a str,
    pub(crate) clock: &'a Clock,
    /// Failed status polls in a row after which the certificate must be asked for again.
    pub(crate) lost_polls: u32,
}

/// Whether another attempt may help.
pub(crate) enum Failure {
    Passing(String),
    Lasting(JoinError),
}

impl From<PkiError> for Failure {
    fn from(error: PkiError) -> Self {
        Self::Lasting(error.into())
    }
}

impl Asking<'_> {
    async fn attempts<T>(&self, attempt: impl AsyncFn() -> Result<T, Failure>) -> Result<T, JoinError> {
        let mut left = ATTEMPTS;
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(reason)) if left > 1 => {
                    warn!(addr = self.addr, reason, "joining did not succeed; trying again");
                    left -= 1;
                    sleep(PAUSE).await;
                }
                Err(Failure::Passing(reason)) => {
                    return Err(JoinError::Unreachable { addr: self.addr.to_owned(), reason });
                }
            }
        }
    }

    /// The root, from a server that is not trusted: its digest must be the token's.
    async fn download_root(&self, expected: RootDigest) -> Result<RootCa, Failure> {
        let channel = Dialer::unverified(self.clock)?.channel(self.addr)?;
        let mut client = CaClient::new(channel);
        let reply = call(client.get_root_ca_certificate(GetRootCaCertificateRequest {})).await;
        let bundle = reply.map_err(|status| self.failure(&status))?.certificate;
        let found = RootDigest::of(&bundle);
        if found != expected {
            let (expected, found) = (expected.to_hex(), found.to_hex());
            return Err(PkiError::Fingerprint { expected, found }.into());
        }
        info!(addr = self.addr, digest = %found, "downloaded the cluster's root CA");
        Ok(RootCa::trust_only(&bundle, self.clock.now())?)
    }

    /// A certificate for a request, asked for and waited for.
    pub(crate) async fn certificate(&self, channel: &Channel, csr: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut client = NodeCaClient::new(channel.clone());
        #[allow(deprecated)] // the role: the token says it
        let request = IssueNodeCertificateRequest {
            role: NodeRole::Worker as i32,
            csr: csr.to_vec(),
            token: self.token.to_owned(),
            availability: node_spec::Availability::Active as i32,
        };
        let reply = call(client.issue_node_certificate(request)).await;
        let node_id = reply.map_err(|status| self.failure(&status))?.node_id;
        debug!(node.id = node_id, "waiting for a certificate");
        let (mut waits, mut lost) = (0, 0);
        loop {
            let request = NodeCertificateStatusRequest { node_id: node_id.clone() };
            match call(client.node_certificate_status(request)).await {
                Ok(reply) => {
                    lost = 0;
                    let status = reply.status.unwrap_or_default();
                    // One with another request is an older certificate of this node.
                    let ours = reply.certificate.filter(|record| record.csr == csr);
                    match (status.state(), ours) {
                        (State::Issued | State::Rotate, Some(record)) if record.certificate.is_empty() => {
                            return Err(self.refused("the cluster says it was issued, but sent none"));
                        }
                        (State::Issued | State::Rotate, Some(record)) => return Ok(record.certificate),
                        (State::Failed, Some(_)) => return Err(self.refused(&status.err)),
                        _ => {}
                    }
                }
                Err(status) if status.code() == Code::DeadlineExceeded => lost = 0,
                Err(status) if status.code() == Code::NotFound => {
                    return Err(Failure::Passing(format!("node {node_id} is gone: {}", status.message())));
                }
                Err(status) => {
                    lost += 1;
                    match self.failure(&status) {
                        Failure::Passing(_) if lost < self.lost_polls => {}
                        failure => return Err(failure),
                    }
                }
            }
            waits += 1;
            sleep(backoff(waits)).await;
        }
    }

    /// The key that a manager encrypts its key file with, if the cluster is locked.
    pub(crate) async fn unlock_key(&self, channel: &Channel) -> Result<KekChange, Failure> {
        match call(CaClient::new(channel.clone()).get_unlock_key(GetUnlockKeyRequest {})).await {
            Ok(reply) => Ok(KekChange::Set(Kek::from_bytes(&reply.unlock_key), reply.version.index)),
            // Older than locking: there is nothing to unlock.
            Err(status) if status.code() == Code::Unimplemented => Ok(KekChange::Set(None, 0)),
            Err(status) => Err(self.failure(&status)),
        }
    }

    fn refused(&self, reason: &str) -> Failure {
        let (addr, reason) = (self.addr.to_owned(), reason.to_owned());
        Failure::Lasting(JoinError::Refused { addr, reason })
    }

    fn failure(&self, status: &Status) -> Failure {
        let addr = self.addr.to_owned();
        if let Some(failure) = TlsFailure::find(status) {
            return Failure::Lasting(JoinError::Tls { addr, failure });
        }
        match status.code() {
            Code::InvalidArgument => {
                Failure::Lasting(JoinError::TokenRefused { addr, text: status.message().to_owned() })
            }
            _ => Failure::Passing(swarm_pki::reason(status)),
        }
    }
}

/// One call, within its time.
async fn call<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(reply) => reply.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))),
    }
}

/// Pauses between polls: at random below 2 s, 3 s, 5 s, 9 s, 17 s, then 30 s.
fn backoff(waits: u32) -> Duration {
    let bound = 2u64.saturating_pow(waits.saturating_sub(1)).saturating_add(1);
    let bound = Duration::from_secs(bound.min(30));
    bound.mul_f64(rand::rng().random())
}

#[cfg(test)]
#[path = "join_tests.rs"]
pub(crate) mod tests;
