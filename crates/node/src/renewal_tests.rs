use swarm_api::v1::{IssuanceStatus, Peer};
use swarm_pki::Clock;

use super::*;
use crate::join::join;
use crate::join::tests::Manager;

/// A worker that has joined, and the manager that it knows.
struct Fixture {
    manager: Manager,
    security: Arc<SecurityContext>,
    keys: Arc<KeyStore>,
    _directory: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Fixture {
        let manager = Manager::start().await;
        let directory = tempfile::tempdir().unwrap();
        let keys = Arc::new(KeyStore::open(directory.path().join("certificates")).unwrap());
        let (root, own) = join(&keys, &manager.addr, &manager.worker_token, &Clock::system()).await.unwrap();
        let security = SecurityContext::new(root, own, Clock::system()).unwrap();
        Fixture { manager, security, keys, _directory: directory }
    }

    fn renewer(&self) -> Renewer {
        let peer = Peer { node_id: "leader".into(), addr: self.manager.addr.clone() };
        Renewer {
            security: self.security.clone(),
            keys: self.keys.clone(),
            connector: Arc::new(NodeConnector::new(self.security.clone())),
            remotes: Arc::new(Remotes::new([peer])),
        }
    }

    /// Changes the node object, and gives it as a session message would.
    async fn change(&self, change: impl Fn(&mut Node) + Sync) -> Observed {
        let id = self.security.current().credentials().node_id().to_owned();
        let write = |tx: &mut swarm_store::Tx| {
            let mut node = Node::clone(tx.nodes().get(&id).unwrap());
            change(&mut node);
            tx.update::<Node>(node)
        };
        let (node, _) = self.manager.store.update(write).await.unwrap();
        Observed { node: Some(node), ..Observed::default() }
    }

    async fn has_role(&self, role: NodeRole) {
        let mut active = self.security.subscribe();
        active.wait_for(|active| active.credentials().role() == role).await.unwrap();
    }
}

fn roles(desired: NodeRole, role: NodeRole) -> impl Fn(&mut Node) {
    move |node| {
        node.spec.desired_role = desired as i32;
        node.role = role as i32;
    }
}

use NodeRole::{Manager as M, Worker as W};

#[tokio::test]
async fn the_certificate_follows_the_role() {
    let fixture = Fixture::new().await;
    let (out, observed) = watch::channel(Observed::default());
    let running = tokio::spawn(fixture.renewer().run(observed));
    let first = fixture.security.current().credentials().node_id().to_owned();
    out.send_replace(fixture.change(roles(M, M)).await);
    fixture.has_role(M).await;
    out.send_replace(fixture.change(roles(W, W)).await);
    fixture.has_role(W).await;
    let current = fixture.security.current();
    assert_eq!(current.credentials().node_id(), first, "it is the same node");
    // What is in use is on disk.
    let again = KeyStore::open(fixture.keys.directory()).unwrap().load(None).unwrap();
    assert_eq!(&again.key, current.credentials().key());
    running.abort();
    fixture.manager.stop().await;
}

#[tokio::test]
async fn a_role_that_the_cluster_would_not_certify_is_not_asked_for() {
    let fixture = Fixture::new().await;
    let renewer = fixture.renewer();
    for (desired, role, wanted) in [(W, W, false), (M, W, false), (W, M, false), (M, M, true)] {
        let node = fixture.change(roles(desired, role)).await.node.unwrap();
        assert_eq!(renewer.is_wanted(&node), wanted, "{desired:?} {role:?}");
    }
    let rotate = |node: &mut Node| {
        roles(W, W)(node);
        node.certificate.status = IssuanceStatus { state: State::Rotate as i32, ..Default::default() };
    };
    assert!(renewer.is_wanted(&fixture.change(rotate).await.node.unwrap()));
    fixture.manager.stop().await;
}

/// Managers are to lock themselves with this key.
const UNLOCK_KEY: [u8; 32] = [7; 32];

fn lock(tx: &mut swarm_store::Tx) -> swarm_store::Result<()> {
    let mut cluster = swarm_api::v1::Cluster::clone(tx.cluster().unwrap());
    cluster.spec.encryption_config.auto_lock_managers = true;
    let subsystem = "swarm-manager".to_owned();
    let key = swarm_api::v1::EncryptionKey { subsystem, key: UNLOCK_KEY.to_vec(), ..Default::default() };
    cluster.unlock_keys = vec![key];
    tx.update::<swarm_api::v1::Cluster>(cluster).map(drop)
}

#[tokio::test]
async fn a_key_that_lay_in_the_clear_is_replaced_once_the_file_is_locked() {
    let fixture = Fixture::new().await;
    fixture.change(roles(M, M)).await;
    assert_eq!(fixture.renewer().renew(true).await, Ok(M));
    let exposed = fixture.security.current().credentials().key().clone();
    let (_out, observed) = watch::channel(Observed::default());
    let running = tokio::spawn(fixture.renewer().run(observed));
    // What a manager does when it sees the change of the cluster object.
    fixture.manager.store.update(lock).await.unwrap();
    let version = fixture.manager.store.view().cluster().unwrap().meta.version.index;
    let kek = swarm_pki::Kek::from_bytes(&UNLOCK_KEY).unwrap();
    fixture.keys.update_kek(Some(kek.clone()), version).unwrap();
    let mut active = fixture.security.subscribe();
    active.wait_for(|active| *active.credentials().key() != exposed).await.unwrap();
    assert!(!*fixture.keys.exposed().borrow(), "it would be replaced again");
    let stored = KeyStore::open(fixture.keys.directory()).unwrap();
    assert!(matches!(stored.load(None), Err(swarm_pki::Error::Locked)));
    assert_eq!(&stored.load(Some(&kek)).unwrap().key, fixture.security.current().credentials().key());
    running.abort();
    fixture.manager.stop().await;
}

#[tokio::test]
async fn a_promoted_node_of_a_locked_cluster_locks_its_key() {
    let fixture = Fixture::new().await;
    fixture.manager.store.update(lock).await.unwrap();
    fixture.change(roles(M, M)).await;
    assert_eq!(fixture.renewer().renew(true).await, Ok(M));
    let stored = KeyStore::open(fixture.keys.directory()).unwrap();
    assert!(matches!(stored.load(None), Err(swarm_pki::Error::Locked)));
    // As a worker it needs no key to start.
    fixture.change(roles(W, W)).await;
    assert_eq!(fixture.renewer().renew(true).await, Ok(W));
    assert!(stored.load(None).is_ok());
    fixture.manager.stop().await;
}

#[tokio::test]
async fn a_node_that_was_removed_is_told_so() {
    let fixture = Fixture::new().await;
    let id = fixture.security.current().credentials().node_id().to_owned();
    fixture.manager.store.update(|tx| tx.remove::<Node>(&id).map(drop)).await.unwrap();
    let error = fixture.renewer().renew(true).await.unwrap_err();
    assert!(error.contains("not found when attempting to renew certificate"), "{error}");
    fixture.manager.stop().await;
}
