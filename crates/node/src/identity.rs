//! Who a node is: from its state directory, from a new cluster that it makes, or from one that it joins.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use swarm_api::id;
use swarm_api::v1::NodeRole;
use swarm_pki::{
    Clock, Credentials, DEFAULT_NODE_EXPIRY, Kek, KekChange, KeyStore, NodeSubject, RootCa, SecurityContext,
    atomic,
};
use tracing::{info, warn};

use crate::{Config, Error, supervisor};

/// Written before a new cluster's certificates and removed when its first entry is in the log. While it is there, the
/// only copy of the CA key was in the memory of a process that is gone.
const UNFINISHED: &str = "new-cluster";

/// A node's identity, ready for use.
pub(crate) struct Identity {
    pub(crate) keys: Arc<KeyStore>,
    pub(crate) security: Arc<SecurityContext>,
    /// The root with its key, if this node makes a new cluster.
    pub(crate) new_root: Option<RootCa>,
    /// What the managers of the new cluster lock themselves with, if they shall.
    pub(crate) new_unlock_key: Option<Kek>,
    marker: PathBuf,
}

impl Identity {
    /// Waits until the certificate in use is one of this role.
    pub(crate) async fn has_role(&self, role: NodeRole) {
        let mut active = self.security.subscribe();
        // The context, which is ours, has the sender.
        let _ = active.wait_for(|active| active.credentials().role() == role).await;
    }

    /// The CA key is in the log: a crash can't lose it any more.
    pub(crate) fn finished(&self) -> Result<(), Error> {
        atomic::remove(&self.marker).map_err(Error::state(&self.marker))
    }
}

/// A new cluster was begun in this directory, and perhaps never finished.
pub(crate) fn is_unfinished(state_dir: &Path) -> bool {
    state_dir.join(UNFINISHED).exists()
}

/// Removes what an unfinished new cluster left behind. Nothing that anybody was told of is in it.
pub(crate) fn discard(state_dir: &Path) -> Result<(), Error> {
    warn!("a new cluster was begun here but never finished; beginning again");
    for stale in ["raft", "worker", "certificates"] {
        let stale = state_dir.join(stale);
        match std::fs::remove_dir_all(&stale) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::state(stale)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Loads, makes or asks for an identity; waits for the unlock key if it needs one that was not given.
/// A manager whose log is gone goes on only if there are `managers` that it can join again.
pub(crate) async fn establish(
    config: &Config,
    unlock_key: Option<&Kek>,
    managers: &[String],
    clock: &Clock,
) -> Result<Identity, Error> {
    let directory = config.state_dir.join("certificates");
    let raft = config.state_dir.join("raft");
    let marker = config.state_dir.join(UNFINISHED);
    if is_unfinished(&config.state_dir) && !has_log(&raft) {
        discard(&config.state_dir)?;
    }
    let keys = Arc::new(KeyStore::open(&directory)?);
    if let Some(security) = unlock(config, unlock_key, &keys, clock).await? {
        let current = security.current();
        if current.credentials().role() == NodeRole::Manager && !has_log(&raft) && managers.is_empty() {
            return Err(Error::LogMissing(raft));
        }
        if current.credentials().role() == NodeRole::Worker && raft.exists() {
            info!("this node is no manager any more: what it had as one is removed");
            supervisor::wipe(&config.state_dir, &keys)?;
        }
        if let Some(join) = &config.join {
            check_cluster(&security, &join.addr, &directory).await?;
        }
        info!(node.id = current.credentials().node_id(), "going on as a known node");
        return Ok(Identity { keys, security, new_root: None, new_unlock_key: None, marker });
    }
    match &config.join {
        None => create(keys, marker, config.autolock, clock),
        Some(join) => {
            let (root, credentials) = crate::join::join(&keys, &join.addr, &join.token, clock).await?;
            info!(node.id = credentials.node_id(), role = %credentials.role().as_str_name().to_lowercase(), "joined the cluster");
            let security = SecurityContext::new(root, credentials, clock.clone())?;
            Ok(Identity { keys, security, new_root: None, new_unlock_key: None, marker })
        }
    }
}

/// The identity on disk, if there is one, opened with the key that was given or comes over the control socket.
async fn unlock(
    config: &Config,
    unlock_key: Option<&Kek>,
    keys: &KeyStore,
    clock: &Clock,
) -> Result<Option<Arc<SecurityContext>>, Error> {
    let expired = config.force_new_cluster;
    let loaded = match load(keys, &config.state_dir, unlock_key, expired, clock) {
        Err(Error::Locked(_)) if unlock_key.is_none() => {
            swarm_manager::lock::wait_for_key(&config.listen_control_api, |kek| {
                match load(keys, &config.state_dir, Some(kek), expired, clock) {
                    Err(Error::Locked(_)) => Ok(None),
                    loaded => loaded.map(Some),
                }
            })
            .await?
        }
        loaded => loaded?,
    };
    if unlock_key.is_some() && !keys.kek_version().0 && loaded.is_some() {
        warn!("an unlock key was given, but this node is not locked");
    }
    Ok(loaded)
}

/// The identity on disk, if there is one.
fn load(
    keys: &KeyStore,
    state_dir: &Path,
    kek: Option<&Kek>,
    expired: bool,
    clock: &Clock,
) -> Result<Option<Arc<SecurityContext>>, Error> {
    let now = clock.now();
    let (directory, raft) = (keys.directory(), state_dir.join("raft"));
    // A log is somebody's: whoever has lost his key must not begin anew as another one beside it.
    let missing = |error: swarm_pki::Error| match has_log(&raft) {
        false => Ok(None),
        true => {
            let (raft, certificates) = (raft.clone(), directory.to_owned());
            Err(Error::IdentityMissing { raft, certificates, reason: error.to_string() })
        }
    };
    let root = match keys.load_root(now) {
        Ok(root) => root,
        Err(error) if error.is_missing() && keys.has_key() => {
            return Err(Error::RootMissing(directory.to_owned()));
        }
        Err(error) if error.is_missing() => return missing(error),
        Err(source) => return Err(Error::Certificate { path: directory.to_owned(), source }),
    };
    let certificate = |source| Error::Certificate { path: directory.to_owned(), source };
    let pair = match keys.load(kek) {
        Ok(pair) => pair,
        Err(swarm_pki::Error::Locked) => return Err(Error::Locked(directory.join("swarm-node.key"))),
        Err(error) if error.is_missing() => return missing(error),
        Err(error) => return Err(certificate(error)),
    };
    let credentials =
        Credentials::new(&pair.certificate, pair.key, &root, now, expired).map_err(certificate)?;
    Ok(Some(SecurityContext::new(root, credentials, clock.clone())?))
}

/// A new root, and a manager's certificate of it for this node. The cluster's id is random too.
fn create(keys: Arc<KeyStore>, marker: PathBuf, lock: bool, clock: &Clock) -> Result<Identity, Error> {
    let now = clock.now();
    let root = RootCa::create(now)?;
    let subject = NodeSubject { node_id: id::random(), role: NodeRole::Manager, organization: id::random() };
    let credentials = Credentials::issue(&root, &subject, DEFAULT_NODE_EXPIRY, now)?;
    atomic::write(&marker, b"", 0o600).map_err(Error::state(&marker))?;
    keys.save_root(&root)?;
    let kek = lock.then(Kek::generate);
    keys.save(credentials.certificate_pem(), credentials.key(), KekChange::Set(kek.clone(), 0))?;
    info!(cluster.id = subject.organization, node.id = subject.node_id, "making a new cluster");
    let security = SecurityContext::new(root.without_signer(), credentials, clock.clone())?;
    Ok(Identity { keys, security, new_root: Some(root), new_unlock_key: kek, marker })
}

/// Refuses to go on when the manager at the join address does not take this node's certificate.
async fn check_cluster(security: &Arc<SecurityContext>, addr: &str, directory: &Path) -> Result<(), Error> {
    let dialer = swarm_pki::Dialer::new(security.clone(), swarm_pki::ServerRole::Manager);
    match dialer.dial(addr).await {
        Err(swarm_pki::DialError::Tls { failure, .. }) => Err(Error::OtherCluster {
            path: directory.to_owned(),
            cluster: security.current().credentials().organization().to_owned(),
            addr: addr.to_owned(),
            reason: failure.to_string(),
        }),
        // It may come up later: the agent goes on trying.
        Err(error) => {
            warn!(%error, "the manager to join through can't be reached now");
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}

fn has_log(raft: &Path) -> bool {
    std::fs::read_dir(raft).is_ok_and(|mut entries| entries.next().is_some())
}
