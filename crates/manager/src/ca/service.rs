//! The calls of nodes: for the root, for a certificate, for its status, for the unlock key.

use std::pin::pin;
use std::sync::atomic::Ordering;

use swarm_api::v1::ca_server::Ca;
use swarm_api::v1::issuance_status::State;
use swarm_api::v1::node_ca_server::NodeCa;
use swarm_api::v1::{
    Certificate, Cluster, GetRootCaCertificateRequest, GetRootCaCertificateResponse, GetUnlockKeyRequest,
    GetUnlockKeyResponse, IssuanceStatus, IssueNodeCertificateRequest, IssueNodeCertificateResponse, Node,
    NodeCertificateStatusRequest, NodeCertificateStatusResponse, NodeRole, NodeSpec, node_spec,
};
use swarm_api::{authorization, id};
use swarm_pki::{tokens_equal, unit_of};
use swarm_store::{Error as StoreError, Tx};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::{CaServer, CaService};
use crate::auth::Caller;

/// New identifiers that are tried when one is taken.
const ID_ATTEMPTS: usize = 4;
/// A request for a P-256 key has some 300 bytes, for the largest RSA key some 2,000.
const MAX_CSR: usize = 16 * 1024;

#[tonic::async_trait]
impl Ca for CaService {
    async fn get_root_ca_certificate(
        &self,
        _request: Request<GetRootCaCertificateRequest>,
    ) -> Result<Response<GetRootCaCertificateResponse>, Status> {
        let view = self.0.store.view();
        let certificate = match view.cluster() {
            Some(cluster) if !cluster.root_ca.ca_cert.is_empty() => cluster.root_ca.ca_cert.clone(),
            _ => self.0.context.current().root().pem().to_vec(),
        };
        Ok(Response::new(GetRootCaCertificateResponse { certificate }))
    }

    async fn get_unlock_key(
        &self,
        request: Request<GetUnlockKeyRequest>,
    ) -> Result<Response<GetUnlockKeyResponse>, Status> {
        // The port's authorization has seen to it already; but this answer would open every manager's disk.
        if !Caller::of(&request).is_manager() {
            return Err(Status::permission_denied("Permission denied: the unlock key is for managers"));
        }
        let view = self.0.store.view();
        let cluster = view.cluster().ok_or_else(starting)?;
        let locked = cluster.spec.encryption_config.auto_lock_managers;
        let key = cluster.unlock_keys.iter().find(|key| key.subsystem == authorization::MANAGER_OU);
        Ok(Response::new(GetUnlockKeyResponse {
            unlock_key: key.filter(|_| locked).map(|key| key.key.clone()).unwrap_or_default(),
            version: cluster.meta.version,
        }))
    }
}

#[tonic::async_trait]
impl NodeCa for CaService {
    async fn issue_node_certificate(
        &self,
        request: Request<IssueNodeCertificateRequest>,
    ) -> Result<Response<IssueNodeCertificateResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        if request.csr.is_empty() || request.csr.len() > MAX_CSR {
            return Err(Status::invalid_argument(format!(
                "invalid argument: a certificate request (CSR) of 1 to {MAX_CSR} bytes is needed, this one has {}",
                request.csr.len()
            )));
        }
        self.0.check_running()?;
        let answer = match caller.node_id() {
            Some(node_id) => self.0.renew(node_id, request.csr).await?,
            None => self.0.admit(&caller, request).await?,
        };
        Ok(Response::new(answer))
    }

    async fn node_certificate_status(
        &self,
        request: Request<NodeCertificateStatusRequest>,
    ) -> Result<Response<NodeCertificateStatusResponse>, Status> {
        let node_id = request.into_inner().node_id;
        if node_id.is_empty() {
            return Err(Status::invalid_argument("invalid argument: a node id is needed"));
        }
        let waiter = self.0.waiters.register(&node_id);
        loop {
            let mut changed = pin!(waiter.changed.notified());
            changed.as_mut().enable();
            if !self.0.running.load(Ordering::Acquire) {
                return Err(stopped());
            }
            let view = self.0.store.view();
            let node = view.nodes().get(&node_id);
            let node = node.ok_or_else(|| Status::not_found(format!("node {node_id} not found")))?;
            let certificate = &node.certificate;
            if matches!(certificate.status.state(), State::Issued | State::Failed | State::Rotate) {
                return Ok(Response::new(NodeCertificateStatusResponse {
                    status: Some(certificate.status.clone()),
                    certificate: Some(certificate.clone()),
                }));
            }
            drop(view);
            changed.await;
        }
    }
}

impl CaServer {
    fn check_running(&self) -> Result<(), Status> {
        match self.is_running() {
            false => Err(stopped()),
            true if self.store.view().cluster().is_none() => Err(starting()),
            true => Ok(()),
        }
    }

    /// A known node asks for a certificate for a new key. What it will be is the observed role's business.
    async fn renew(&self, node_id: &str, csr: Vec<u8>) -> Result<IssueNodeCertificateResponse, Status> {
        let renew = |tx: &mut Tx| {
            let node = tx.nodes().get(node_id).ok_or(StoreError::NotExist)?;
            let mut node = Node::clone(node);
            node.certificate = certificate(csr.clone(), node_id, node.role(), State::Renew);
            let membership = node.spec.membership;
            tx.update::<Node>(node)?;
            Ok(membership)
        };
        let (node_membership, _) = self.store.update(renew).await.map_err(|error| match error {
            StoreError::NotExist => {
                Status::not_found(format!("node {node_id} not found when attempting to renew certificate"))
            }
            error => status_of(&error),
        })?;
        info!(node.id = node_id, "a node asks for a new certificate");
        Ok(IssueNodeCertificateResponse { node_id: node_id.to_owned(), node_membership })
    }

    /// A stranger with a token becomes a node.
    async fn admit(
        &self,
        caller: &Caller,
        request: IssueNodeCertificateRequest,
    ) -> Result<IssueNodeCertificateResponse, Status> {
        let availability = node_spec::Availability::try_from(request.availability).map_err(|_| {
            Status::invalid_argument(format!(
                "invalid argument: availability {} is unknown; 0 (active), 1 (pause) and 2 (drain) are known",
                request.availability
            ))
        })?;
        let known = self.requests.node_of(&request.csr);
        let ids: [String; ID_ATTEMPTS] = std::array::from_fn(|_| id::random());
        let admit = |tx: &mut Tx| -> Result<(String, NodeRole, bool), Refused> {
            let cluster = tx.cluster().ok_or_else(|| Refused::Status(starting()))?;
            let role = role_of(cluster, &request.token).ok_or_else(|| {
                Refused::Status(Status::invalid_argument(
                    "A valid join token is necessary to join this cluster",
                ))
            })?;
            let vxlan_port = cluster.vxlanudp_port;
            // A node that got no answer asks again with the same key: it is the same node.
            let same = known.as_ref().and_then(|id| tx.nodes().get(id));
            if let Some(node) = same
                && node.certificate.csr == request.csr
                && node.certificate.role() == role
            {
                return Ok((node.id.clone(), role, false));
            }
            let free = ids.iter().find(|id| tx.nodes().get(id).is_none()).ok_or(StoreError::Exists)?;
            let node = Node {
                id: free.clone(),
                role: role as i32,
                certificate: certificate(request.csr.clone(), free, role, State::Pending),
                spec: NodeSpec {
                    desired_role: role as i32,
                    membership: node_spec::Membership::Accepted as i32,
                    availability: availability as i32,
                    ..NodeSpec::default()
                },
                vxlanudp_port: vxlan_port,
                ..Node::default()
            };
            tx.create(node)?;
            Ok((free.clone(), role, true))
        };
        let admitted = self.store.update(admit).await.map_err(|refused| match refused {
            Refused::Status(status) => status,
            Refused::Store(error) => status_of(&error),
        });
        let remote_addr = caller.remote_addr.map(tracing::field::display);
        let ((node_id, role, new), _) = admitted.inspect_err(|status| {
            warn!(remote_addr, reason = status.message(), "refused a node that wants to join");
        })?;
        self.requests.insert(&request.csr, &node_id);
        if new {
            let role = unit_of(role);
            info!(node.id = node_id, role, remote_addr, "a new node joins the cluster");
        }
        let node_membership = node_spec::Membership::Accepted as i32;
        Ok(IssueNodeCertificateResponse { node_id, node_membership })
    }
}

enum Refused {
    Status(Status),
    Store(StoreError),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The whole token decides, compared in constant time; managers' first.
fn role_of(cluster: &Cluster, token: &str) -> Option<NodeRole> {
    let tokens = &cluster.root_ca.join_tokens;
    if tokens_equal(&tokens.manager, token) {
        Some(NodeRole::Manager)
    } else if tokens_equal(&tokens.worker, token) {
        Some(NodeRole::Worker)
    } else {
        None
    }
}

fn certificate(csr: Vec<u8>, node_id: &str, role: NodeRole, state: State) -> Certificate {
    Certificate {
        csr,
        cn: node_id.to_owned(),
        role: role as i32,
        status: IssuanceStatus { state: state as i32, err: String::new() },
        certificate: Vec::new(),
    }
}

fn stopped() -> Status {
    Status::aborted("CA signer is stopped")
}

fn starting() -> Status {
    Status::aborted("CA signer is still starting")
}

/// The store's texts are the contract's; their code is UNKNOWN there.
fn status_of(error: &StoreError) -> Status {
    Status::unknown(error.to_string())
}
