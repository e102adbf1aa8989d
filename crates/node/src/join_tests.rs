use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use swarm_api::v1::{Cluster, EncryptionKey, JoinTokens, Node};
use swarm_manager::auth::{AuthorizeLayer, Authorizer};
use swarm_manager::ca::CaServer;
use swarm_pki::{DEFAULT_NODE_EXPIRY, NodeSubject, SecurityContext, TlsIncoming};
use swarm_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use super::*;

const ORGANIZATION: &str = "cluster";

/// A manager's remote API with its CA, on loopback.
pub(crate) struct Manager {
    pub(crate) addr: String,
    root: RootCa,
    pub(crate) worker_token: String,
    manager_token: String,
    pub(crate) store: Arc<Store>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Manager {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Cluster)) -> Self {
        let root = RootCa::create(SystemTime::now()).unwrap();
        let token = || JoinToken::generate(root.digest(), false).expose().to_owned();
        let (worker_token, manager_token) = (token(), token());
        let mut cluster = Cluster { id: ORGANIZATION.into(), ..Cluster::default() };
        cluster.spec.annotations.name = "default".into();
        cluster.root_ca.ca_cert = root.pem().to_vec();
        cluster.root_ca.ca_key = root.signer().unwrap().key_pem().expose().to_vec();
        cluster.root_ca.join_tokens =
            JoinTokens { worker: worker_token.clone(), manager: manager_token.clone() };
        change(&mut cluster);
        let store = Store::local();
        store.update(|tx| tx.create(cluster.clone())).await.unwrap();
        let subject = NodeSubject {
            node_id: "leader".into(),
            role: NodeRole::Manager,
            organization: ORGANIZATION.into(),
        };
        let own = Credentials::issue(&root, &subject, DEFAULT_NODE_EXPIRY, SystemTime::now()).unwrap();
        let context = SecurityContext::new(root.without_signer(), own, Clock::system()).unwrap();

        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let ca = CaServer::new(store.clone(), context.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let server = Server::builder()
            .layer(AuthorizeLayer::new(Authorizer::new(ORGANIZATION, store.clone())))
            .add_service(ca.ca_service())
            .add_service(ca.node_ca_service());
        let incoming = TlsIncoming::new(listener, context);
        tasks.spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
        let cancel = stop.clone();
        tasks.spawn(async move { ca.run(cancel).await });
        Self { addr, root, worker_token, manager_token, store, stop, tasks }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn keys(directory: &tempfile::TempDir) -> KeyStore {
    KeyStore::open(directory.path().join("certificates")).unwrap()
}

fn is_empty(directory: &tempfile::TempDir) -> bool {
    std::fs::read_dir(directory.path()).unwrap().next().is_none()
}

async fn refusal(addr: &str, token: &str) -> JoinError {
    let directory = tempfile::tempdir().unwrap();
    let error = join(&keys(&directory), addr, token, &Clock::system()).await.unwrap_err();
    assert!(is_empty(&directory), "nothing is written by a join that fails");
    error
}

#[tokio::test]
async fn a_node_joins_in_the_role_of_its_token() {
    let manager = Manager::start().await;
    for (token, role) in
        [(&manager.worker_token, NodeRole::Worker), (&manager.manager_token, NodeRole::Manager)]
    {
        let directory = tempfile::tempdir().unwrap();
        let (root, own) = join(&keys(&directory), &manager.addr, token, &Clock::system()).await.unwrap();
        assert!(root.same_bundle(&manager.root));
        assert_eq!((own.role(), own.organization()), (role, ORGANIZATION));
        let view = manager.store.view();
        let node = view.nodes().get(own.node_id()).unwrap();
        assert_eq!(node.certificate.certificate, own.certificate_pem());

        let again = keys(&directory);
        assert_eq!(again.load_root(SystemTime::now()).unwrap().pem(), manager.root.pem());
        let pair = again.load(None).unwrap();
        assert_eq!((&pair.certificate[..], &pair.key), (own.certificate_pem(), own.key()));
    }
    manager.stop().await;
}

#[tokio::test]
async fn in_a_locked_cluster_a_managers_key_is_never_written_in_the_clear() {
    let manager = Manager::with(|cluster| {
        cluster.spec.encryption_config.auto_lock_managers = true;
        let subsystem = "swarm-manager".to_owned();
        cluster.unlock_keys = vec![EncryptionKey { subsystem, key: vec![7; 32], ..EncryptionKey::default() }];
    })
    .await;
    let kek = Kek::from_bytes(&[7; 32]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (_, own) =
        join(&keys(&directory), &manager.addr, &manager.manager_token, &Clock::system()).await.unwrap();
    assert!(matches!(keys(&directory).load(None), Err(PkiError::Locked)));
    let unlocked = keys(&directory);
    assert_eq!(unlocked.load(Some(&kek)).unwrap().key, *own.key());
    let version = manager.store.view().cluster().unwrap().meta.version.index;
    assert_eq!(unlocked.kek_version(), (true, version));

    let directory = tempfile::tempdir().unwrap();
    join(&keys(&directory), &manager.addr, &manager.worker_token, &Clock::system()).await.unwrap();
    assert!(keys(&directory).load(None).is_ok(), "workers are not locked");
    manager.stop().await;
}

#[tokio::test]
async fn wrong_tokens_are_refused_at_once_with_the_reason() {
    let (manager, other) = (Manager::start().await, Manager::start().await);
    let error = refusal(&manager.addr, "SWMTKN-1-abc").await;
    assert!(error.to_string().starts_with("invalid join token: "), "{error}");
    let error = refusal(&manager.addr, &other.worker_token).await;
    let text = error.to_string();
    assert!(text.contains("remote CA does not match fingerprint. Expected: "), "{text}");
    assert!(text.contains(&manager.root.digest().to_hex()) && text.contains(&other.root.digest().to_hex()));
    let stale = JoinToken::generate(manager.root.digest(), false);
    let error = refusal(&manager.addr, stale.expose()).await;
    assert!(error.to_string().contains("A valid join token is necessary to join this cluster"), "{error}");
    let fips = JoinToken::generate(manager.root.digest(), true);
    assert!(matches!(refusal(&manager.addr, fips.expose()).await, JoinError::Fips));
    assert!(!error.to_string().contains(stale.expose()), "a token is never printed");
    assert_eq!(manager.store.view().nodes().len(), 0);
    manager.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_root_on_disk_is_trusted_as_it_is_and_no_other() {
    let (manager, other) = (Manager::start().await, Manager::start().await);
    let directory = tempfile::tempdir().unwrap();
    keys(&directory).save_root(&manager.root).unwrap();
    let error =
        join(&keys(&directory), &other.addr, &other.worker_token, &Clock::system()).await.unwrap_err();
    assert!(matches!(error, JoinError::Tls { failure: TlsFailure::UnknownAuthority, .. }), "{error}");
    let joined = join(&keys(&directory), &manager.addr, &manager.worker_token, &Clock::system()).await;
    assert!(joined.is_ok());
    manager.stop().await;
    other.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_where_nobody_answers_is_tried_five_times_and_named() {
    // Bound, so that nobody else takes it, but nobody listens.
    let reserved = tokio::net::TcpSocket::new_v4().unwrap();
    reserved.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let addr = reserved.local_addr().unwrap().to_string();
    let token = JoinToken::generate(RootDigest::of(b"root"), false);
    let begin = tokio::time::Instant::now();
    let error = refusal(&addr, token.expose()).await;
    assert!(matches!(&error, JoinError::Unreachable { addr: a, .. } if *a == addr), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert_eq!(begin.elapsed().as_secs(), 4 * PAUSE.as_secs());
    let error = refusal("nowhere", token.expose()).await;
    assert!(error.to_string().contains("expected host:port"), "{error}");
}

#[tokio::test]
async fn a_node_waits_until_the_cluster_can_sign() {
    let manager = Manager::with(|cluster| cluster.root_ca.ca_key.clear()).await;
    let key = manager.root.signer().unwrap().key_pem().expose().to_vec();
    let directory = tempfile::tempdir().unwrap();
    let keys = keys(&directory);
    let clock = Clock::system();
    let joining = join(&keys, &manager.addr, &manager.worker_token, &clock);
    let repair = async {
        while manager.store.view().nodes().is_empty() {
            tokio::task::yield_now().await;
        }
        let update = |tx: &mut swarm_store::Tx| {
            let mut cluster = Cluster::clone(tx.cluster().unwrap());
            cluster.root_ca.ca_key.clone_from(&key);
            tx.update::<Cluster>(cluster)
        };
        manager.store.update(update).await.unwrap();
    };
    let (joined, ()) = tokio::join!(joining, repair);
    assert!(joined.is_ok());
    let view = manager.store.view();
    let nodes: Vec<&Node> = view.nodes().iter().map(|node| &**node).collect();
    assert_eq!(nodes.len(), 1, "one node for all its attempts");
    drop(view);
    manager.stop().await;
}

#[test]
fn pauses_between_polls_grow_to_half_a_minute() {
    for (waits, bound) in [(1, 2), (2, 3), (3, 5), (4, 9), (5, 17), (6, 30), (7, 30), (1000, 30)] {
        assert!((0..100).all(|_| backoff(waits) <= Duration::from_secs(bound)), "{waits}");
    }
}
