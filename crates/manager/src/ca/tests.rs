use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use swarm_api::v1::ca_server::Ca as _;
use swarm_api::v1::issuance_status::State;
use swarm_api::v1::node_ca_server::NodeCa as _;
use swarm_api::v1::{
    CaConfig, Cluster, EncryptionKey, GetRootCaCertificateRequest, GetUnlockKeyRequest,
    IssueNodeCertificateRequest, JoinTokens, Node, NodeCertificateStatusRequest,
    NodeCertificateStatusResponse, NodeRole, node_spec,
};
use swarm_pki::{
    Certificate, Clock, Credentials, DEFAULT_NODE_EXPIRY, JoinToken, NodeSubject, PeerIdentity, PrivateKey,
    RootCa, create_csr,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use super::*;
use crate::auth::Caller;

const ORGANIZATION: &str = "cluster";

struct Fixture {
    store: Arc<Store>,
    server: Arc<CaServer>,
    service: CaService,
    root: RootCa,
    worker_token: String,
    manager_token: String,
}

impl Fixture {
    /// A cluster whose CA key is in the store, and a CA server that is not running.
    async fn new() -> Self {
        let root = RootCa::create(SystemTime::now()).unwrap();
        let store = Store::local();
        let token = || JoinToken::generate(root.digest(), false).expose().to_owned();
        let (worker_token, manager_token) = (token(), token());
        let mut cluster = Cluster { id: ORGANIZATION.into(), ..Cluster::default() };
        cluster.spec.annotations.name = "default".into();
        cluster.root_ca.ca_cert = root.pem().to_vec();
        cluster.root_ca.ca_key = root.signer().unwrap().key_pem().expose().to_vec();
        cluster.root_ca.join_tokens =
            JoinTokens { worker: worker_token.clone(), manager: manager_token.clone() };
        cluster.vxlanudp_port = 4789;
        store.update(|tx| tx.create(cluster.clone())).await.unwrap();
        let subject = NodeSubject {
            node_id: "leader".into(),
            role: NodeRole::Manager,
            organization: ORGANIZATION.into(),
        };
        let own = Credentials::issue(&root, &subject, DEFAULT_NODE_EXPIRY, SystemTime::now()).unwrap();
        let context = SecurityContext::new(root.without_signer(), own, Clock::system()).unwrap();
        let server = CaServer::new(store.clone(), context);
        Self { service: CaService(server.clone()), store, server, root, worker_token, manager_token }
    }

    async fn run(&self) -> Running {
        let cancel = CancellationToken::new();
        let (server, token) = (self.server.clone(), cancel.clone());
        let task = tokio::spawn(async move { server.run(token).await });
        until(|| self.server.is_running()).await;
        Running { cancel, task }
    }

    async fn change_cluster(&self, change: impl Fn(&mut Cluster) + Send + Sync) {
        let update = |tx: &mut swarm_store::Tx| {
            let mut cluster = Cluster::clone(tx.cluster().unwrap());
            change(&mut cluster);
            tx.update::<Cluster>(cluster)
        };
        self.store.update(update).await.unwrap();
    }

    async fn change_node(&self, id: &str, change: impl Fn(&mut Node) + Send + Sync) {
        let update = |tx: &mut swarm_store::Tx| {
            let mut node = Node::clone(tx.nodes().get(id).unwrap());
            change(&mut node);
            tx.update::<Node>(node)
        };
        self.store.update(update).await.unwrap();
    }

    #[allow(deprecated)] // the role, which must not count
    async fn issue(&self, csr: &[u8], token: &str, caller: Option<&str>) -> Result<String, Status> {
        let mut request = Request::new(IssueNodeCertificateRequest {
            csr: csr.to_vec(),
            token: token.into(),
            // Ignored: the token decides.
            role: NodeRole::Manager as i32,
            availability: node_spec::Availability::Drain as i32,
        });
        request.extensions_mut().insert(caller_of(caller));
        Ok(self.service.issue_node_certificate(request).await?.into_inner().node_id)
    }

    async fn status(&self, node_id: &str) -> Result<NodeCertificateStatusResponse, Status> {
        let request = Request::new(NodeCertificateStatusRequest { node_id: node_id.into() });
        Ok(self.service.node_certificate_status(request).await?.into_inner())
    }

    fn node(&self, id: &str) -> Node {
        Node::clone(self.store.view().nodes().get(id).unwrap())
    }
}

struct Running {
    cancel: CancellationToken,
    task: JoinHandle<Result<(), swarm_store::Error>>,
}

impl Running {
    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn caller_of(node_id: Option<&str>) -> Caller {
    let identity = node_id.map(|id| PeerIdentity {
        node_id: id.into(),
        units: vec!["swarm-worker".into()],
        organization: ORGANIZATION.into(),
    });
    Caller { identity, remote_addr: Some(SocketAddr::from(([10, 0, 0, 1], 1))), ..Caller::default() }
}

fn csr() -> Vec<u8> {
    create_csr(&PrivateKey::generate().unwrap()).unwrap()
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("within a minute");
}

fn state(response: &NodeCertificateStatusResponse) -> State {
    response.status.as_ref().unwrap().state()
}

#[tokio::test]
async fn the_token_makes_the_role() {
    let fixture = Fixture::new().await;
    let running = fixture.run().await;
    for (token, role, unit) in [
        (&fixture.worker_token, NodeRole::Worker, "swarm-worker"),
        (&fixture.manager_token, NodeRole::Manager, "swarm-manager"),
    ] {
        let csr = csr();
        let id = fixture.issue(&csr, token, None).await.unwrap();
        let response = fixture.status(&id).await.unwrap();
        assert_eq!(state(&response) as i32, State::Issued as i32);
        let record = response.certificate.unwrap();
        assert_eq!((&record.csr, &record.cn), (&csr, &id));
        let chain = fixture.root.verify(&record.certificate, SystemTime::now(), false).unwrap();
        assert_eq!((chain.leaf().units(), chain.leaf().common_name()), (&[unit.to_owned()][..], Some(&*id)));
        assert_eq!(chain.leaf().organization(), Some(ORGANIZATION));
        let node = fixture.node(&id);
        assert_eq!((node.role, node.spec.desired_role), (role as i32, role as i32));
        assert_eq!(node.spec.membership, node_spec::Membership::Accepted as i32);
        assert_eq!(node.spec.availability, node_spec::Availability::Drain as i32);
        assert_eq!(node.vxlanudp_port, 4789);
    }
    running.stop().await;
}

#[tokio::test]
async fn without_the_right_token_nobody_joins() {
    let fixture = Fixture::new().await;
    let running = fixture.run().await;
    let stale = fixture.worker_token.clone();
    let fresh = JoinToken::generate(fixture.root.digest(), false).expose().to_owned();
    fixture.change_cluster(|cluster| cluster.root_ca.join_tokens.worker.clone_from(&fresh)).await;
    for token in ["", "SWMTKN-1-x", &stale] {
        let status = fixture.issue(&csr(), token, None).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "A valid join token is necessary to join this cluster");
    }
    assert!(fixture.issue(&csr(), &fresh, None).await.is_ok());
    assert!(fixture.issue(&csr(), &fixture.manager_token, None).await.is_ok(), "the other one stays");
    fixture.change_cluster(|cluster| cluster.root_ca.join_tokens = JoinTokens::default()).await;
    assert!(fixture.issue(&csr(), "", None).await.is_err(), "no token is not the empty token");
    running.stop().await;
}

#[tokio::test]
async fn a_joining_node_that_repeats_itself_is_one_node() {
    let fixture = Fixture::new().await;
    let running = fixture.run().await;
    let (workers, managers) = (csr(), csr());
    let worker = fixture.issue(&workers, &fixture.worker_token, None).await.unwrap();
    assert_eq!(fixture.issue(&workers, &fixture.worker_token, None).await.unwrap(), worker);
    let manager = fixture.issue(&managers, &fixture.manager_token, None).await.unwrap();
    running.stop().await;
    let running = fixture.run().await;
    for (csr, token, id) in
        [(&workers, &fixture.worker_token, &worker), (&managers, &fixture.manager_token, &manager)]
    {
        assert_eq!(fixture.issue(csr, token, None).await.unwrap(), *id, "under the next leader too");
    }
    let promoted = fixture.issue(&workers, &fixture.manager_token, None).await.unwrap();
    assert_ne!(promoted, worker, "another role is another node");
    running.stop().await;
    assert_eq!(fixture.store.view().nodes().len(), 3);
}

#[tokio::test]
async fn a_known_node_renews_without_a_token_and_gets_its_observed_role() {
    let fixture = Fixture::new().await;
    let running = fixture.run().await;
    let id = fixture.issue(&csr(), &fixture.worker_token, None).await.unwrap();
    let first = fixture.status(&id).await.unwrap().certificate.unwrap().certificate;
    fixture.change_node(&id, |node| node.role = NodeRole::Manager as i32).await;
    let csr = csr();
    assert_eq!(fixture.issue(&csr, "ignored", Some(&id)).await.unwrap(), id);
    let second = fixture.status(&id).await.unwrap().certificate.unwrap();
    assert_eq!((second.csr, second.certificate == first), (csr, false));
    let leaf = Certificate::from_pem_bundle(&second.certificate).unwrap().remove(0);
    assert_eq!((leaf.units(), leaf.common_name()), (&["swarm-manager".to_owned()][..], Some(&*id)));

    let status = fixture.issue(&self::csr(), "", Some("unknown")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.message(), "node unknown not found when attempting to renew certificate");
    running.stop().await;
}

#[tokio::test]
async fn garbage_is_accepted_and_fails_for_good() {
    let fixture = Fixture::new().await;
    let running = fixture.run().await;
    let id = fixture.issue(b"garbage", &fixture.worker_token, None).await.unwrap();
    let response = fixture.status(&id).await.unwrap();
    let status = response.status.unwrap();
    assert_eq!(status.state, State::Failed as i32);
    assert!(status.err.contains("CSR Decode failed"), "{}", status.err);
    assert!(response.certificate.unwrap().certificate.is_empty());
    for csr in [&b""[..], &vec![b'x'; 20_000]] {
        let status = fixture.issue(csr, &fixture.worker_token, None).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    running.stop().await;
}

#[tokio::test]
async fn only_states_that_ask_for_it_are_signed() {
    let fixture = Fixture::new().await;
    let running = fixture.run().await;
    let id = fixture.issue(&csr(), &fixture.worker_token, None).await.unwrap();
    let issued = fixture.status(&id).await.unwrap().certificate.unwrap().certificate;
    let set = |state: State, membership: node_spec::Membership| {
        move |node: &mut Node| {
            node.certificate.status.state = state as i32;
            node.spec.membership = membership as i32;
        }
    };
    fixture.change_node(&id, set(State::Rotate, node_spec::Membership::Accepted)).await;
    assert_eq!(fixture.status(&id).await.unwrap().certificate.unwrap().certificate, issued);
    fixture.change_node(&id, set(State::Pending, node_spec::Membership::Pending)).await;
    // Another node's certificate shows that the loop has been past this one.
    let other = fixture.issue(&csr(), &fixture.worker_token, None).await.unwrap();
    fixture.status(&other).await.unwrap();
    assert_eq!(fixture.node(&id).certificate.status.state, State::Pending as i32);
    fixture.change_node(&id, set(State::Renew, node_spec::Membership::Pending)).await;
    assert_eq!(state(&fixture.status(&id).await.unwrap()) as i32, State::Issued as i32);
    running.stop().await;
}

#[tokio::test]
async fn a_new_leader_signs_what_the_old_one_left() {
    let fixture = Fixture::new().await;
    let mut ids = Vec::new();
    for (state, number) in [(State::Pending, 0), (State::Renew, 1)] {
        let mut node = Node { id: format!("left{number}"), ..Node::default() };
        node.spec.membership = node_spec::Membership::Accepted as i32;
        node.certificate.csr = csr();
        node.certificate.status.state = state as i32;
        ids.push(node.id.clone());
        fixture.store.update(|tx| tx.create(node.clone())).await.unwrap();
    }
    let running = fixture.run().await;
    for id in ids {
        assert_eq!(state(&fixture.status(&id).await.unwrap()) as i32, State::Issued as i32);
    }
    running.stop().await;
}

#[tokio::test]
async fn a_hundred_joining_nodes_all_get_their_certificates() {
    let fixture = Fixture::new().await;
    let running = fixture.run().await;
    let csrs: Vec<_> = (0..100).map(|_| csr()).collect();
    let fixture = &fixture;
    let joins = csrs.iter().map(|csr| async move {
        let id = fixture.issue(csr, &fixture.worker_token, None).await.unwrap();
        let record = fixture.status(&id).await.unwrap().certificate.unwrap();
        assert_eq!((&record.csr, record.status.state), (csr, State::Issued as i32));
    });
    futures::future::join_all(joins).await;
    assert_eq!(fixture.server.waiters.len(), 0);
    running.stop().await;
}

#[tokio::test]
async fn without_a_key_requests_wait_until_one_is_there() {
    let fixture = Fixture::new().await;
    let key = fixture.store.view().cluster().unwrap().root_ca.ca_key.clone();
    fixture.change_cluster(|cluster| cluster.root_ca.ca_key.clear()).await;
    let running = fixture.run().await;
    let id = fixture.issue(&csr(), &fixture.worker_token, None).await.unwrap();
    let poll = fixture.status(&id);
    tokio::pin!(poll);
    assert!(futures::poll!(&mut poll).is_pending());
    fixture.change_cluster(|cluster| cluster.root_ca.ca_key = b"garbage".to_vec()).await;
    assert!(futures::poll!(&mut poll).is_pending());
    fixture.change_cluster(|cluster| cluster.root_ca.ca_key.clone_from(&key)).await;
    assert_eq!(state(&poll.await.unwrap()) as i32, State::Issued as i32);
    running.stop().await;
}

#[tokio::test]
async fn a_change_of_expiry_counts_at_once() {
    let fixture = Fixture::new().await;
    let running = fixture.run().await;
    let hours = |hours: i64| {
        move |cluster: &mut Cluster| {
            let expiry = prost_types::Duration { seconds: hours * 3600, nanos: 0 };
            cluster.spec.ca_config = CaConfig { node_cert_expiry: Some(expiry), ..CaConfig::default() };
        }
    };
    for lifetime in [24, 48] {
        fixture.change_cluster(hours(lifetime)).await;
        let id = fixture.issue(&csr(), &fixture.worker_token, None).await.unwrap();
        let pem = fixture.status(&id).await.unwrap().certificate.unwrap().certificate;
        let leaf = Certificate::from_pem_bundle(&pem).unwrap().remove(0);
        let life = leaf.not_after().duration_since(leaf.not_before()).unwrap();
        assert_eq!(life, Duration::from_secs((lifetime as u64 + 1) * 3600));
    }
    running.stop().await;
}

#[tokio::test]
async fn during_a_rotation_certificates_come_with_the_intermediate() {
    let fixture = Fixture::new().await;
    let new = RootCa::create(SystemTime::now()).unwrap();
    let cross = fixture.root.cross_sign(new.pem()).unwrap();
    let running = fixture.run().await;
    fixture
        .change_cluster(|cluster| {
            cluster.root_ca.root_rotation = Some(swarm_api::v1::RootRotation {
                ca_cert: new.pem().to_vec(),
                ca_key: new.signer().unwrap().key_pem().expose().to_vec(),
                cross_signed_ca_cert: cross.clone(),
            });
        })
        .await;
    let id = fixture.issue(&csr(), &fixture.worker_token, None).await.unwrap();
    let pem = fixture.status(&id).await.unwrap().certificate.unwrap().certificate;
    assert_eq!(Certificate::from_pem_bundle(&pem).unwrap().len(), 2);
    for root in [&fixture.root, &new] {
        let chain = root.verify(&pem, SystemTime::now(), false).unwrap();
        assert_eq!(chain.issuer, new.certificates()[0].issuer_info());
    }
    let reply = fixture.service.get_root_ca_certificate(Request::new(GetRootCaCertificateRequest {})).await;
    assert_eq!(reply.unwrap().into_inner().certificate, fixture.root.pem(), "still the old root");
    running.stop().await;
}

#[tokio::test]
async fn polls_end_with_their_node_and_with_the_server() {
    let fixture = Fixture::new().await;
    fixture.change_cluster(|cluster| cluster.root_ca.ca_key.clear()).await;
    let running = fixture.run().await;
    for (id, code) in [("", Code::InvalidArgument), ("unknown", Code::NotFound)] {
        assert_eq!(fixture.status(id).await.unwrap_err().code(), code);
    }
    let removed = fixture.issue(&csr(), &fixture.worker_token, None).await.unwrap();
    let kept = fixture.issue(&csr(), &fixture.worker_token, None).await.unwrap();
    let (first, second) = (fixture.status(&removed), fixture.status(&kept));
    tokio::pin!(first, second);
    assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
    fixture.store.update(|tx| tx.remove::<Node>(&removed).map(drop)).await.unwrap();
    assert_eq!(first.await.unwrap_err().code(), Code::NotFound);
    running.stop().await;
    let status = second.await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Aborted, "CA signer is stopped"));
    assert_eq!(fixture.server.waiters.len(), 0);
    let status = fixture.issue(&csr(), &fixture.worker_token, None).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Aborted, "CA signer is stopped"));
}

#[tokio::test]
async fn the_unlock_key_is_for_managers_of_locked_clusters() {
    let fixture = Fixture::new().await;
    let ask = |caller: Caller| {
        let mut request = Request::new(GetUnlockKeyRequest {});
        request.extensions_mut().insert(caller);
        fixture.service.get_unlock_key(request)
    };
    let manager = || {
        let mut caller = caller_of(Some("manager"));
        caller.identity.as_mut().unwrap().units = vec!["swarm-manager".into()];
        caller
    };
    for stranger in [caller_of(None), caller_of(Some("worker"))] {
        assert_eq!(ask(stranger).await.unwrap_err().code(), Code::PermissionDenied);
    }
    let version = |fixture: &Fixture| fixture.store.view().cluster().unwrap().meta.version;
    let reply = ask(manager()).await.unwrap().into_inner();
    assert_eq!((reply.unlock_key, reply.version), (Vec::new(), version(&fixture)));
    fixture
        .change_cluster(|cluster| {
            cluster.spec.encryption_config.auto_lock_managers = true;
            let subsystem = "swarm-manager".to_owned();
            cluster.unlock_keys =
                vec![EncryptionKey { subsystem, key: vec![7; 32], ..EncryptionKey::default() }];
        })
        .await;
    let reply = ask(manager()).await.unwrap().into_inner();
    assert_eq!((reply.unlock_key, reply.version), (vec![7; 32], version(&fixture)));
}
