//! Keys of what this manager has on disk.
//!
//! The cluster object says what managers' key files are encrypted with, if with anything: each manager follows it, also
//! when it was down meanwhile. A data encryption key that lay in the clear before is replaced.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::Kind;
use swarm_api::authorization::MANAGER_OU;
use swarm_api::v1::Cluster;
use swarm_pki::{Kek, KekUpdate, KeyStore, Sealer};
use swarm_raft::RaftHandle;
use swarm_store::{Kinds, Received, Store, View};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::Error;

/// Time until what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// What the raft log is sealed with. A new manager gets a key; one that has a log must have its key.
pub(crate) fn sealer(keys: &KeyStore, state_dir: &Path) -> Result<Sealer, Error> {
    let raft = state_dir.join("raft");
    let has_log = std::fs::read_dir(&raft).is_ok_and(|mut entries| entries.next().is_some());
    if keys.deks().current.is_none() && has_log {
        return Err(Error::DekMissing { raft, keys: keys.directory().to_owned() });
    }
    let dek = keys.ensure_dek()?;
    Ok(keys.deks().sealer().unwrap_or_else(|| Sealer::new(&dek)))
}

/// The key that managers lock themselves with, and its version.
pub(crate) fn unlock_key(cluster: &Cluster) -> (Option<Kek>, u64) {
    let locked = cluster.spec.encryption_config.auto_lock_managers;
    let key = cluster.unlock_keys.iter().find(|key| key.subsystem == MANAGER_OU);
    (key.filter(|_| locked).and_then(|key| Kek::from_bytes(&key.key)), cluster.meta.version.index)
}

/// Keeps the key file, and the keys in it, as the cluster object says; until cancelled.
pub(crate) async fn follow(
    store: Arc<Store>,
    keys: Arc<KeyStore>,
    raft: RaftHandle,
    stop: CancellationToken,
) {
    let (mut view, mut commits) = store.view_and_follow(Kinds::of(&[Kind::Cluster]));
    loop {
        let done = tokio::select! {
            () = stop.cancelled() => return,
            done = follow_once(&view, &keys, &raft) => done,
        };
        if let Err(error) = &done {
            error!(%error, "the keys of this manager's disk could not be changed; trying again in {RETRY:?}");
        }
        let version = view.cluster().map(|cluster| cluster.meta.version.index);
        loop {
            let received = tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY), if done.is_err() => break,
                received = commits.next() => received,
            };
            view = match received {
                Received::Commit(commit) => commit.view.clone(),
                Received::Lagged(view) => view,
                Received::Closed => return,
            };
            if view.cluster().map(|cluster| cluster.meta.version.index) != version {
                break;
            }
        }
    }
}

/// Brings everything in line with a view.
async fn follow_once(view: &View, keys: &Arc<KeyStore>, raft: &RaftHandle) -> Result<(), Error> {
    if let Some((kek, version)) = view.cluster().map(|cluster| unlock_key(cluster)) {
        let locks = kek.is_some();
        match blocking(keys, move |keys| keys.update_kek(kek, version)).await? {
            KekUpdate::Unchanged => {}
            KekUpdate::Changed if !locks => info!(version, "the key file is not encrypted any more"),
            KekUpdate::Changed => info!(version, "the key file is encrypted with another unlock key"),
            KekUpdate::Locked => {
                info!(version, "the key file is encrypted: a restart of this manager needs the unlock key");
            }
        }
    }
    // One that is due again meanwhile follows the first.
    while let Some(sealer) = blocking(keys, |keys| keys.begin_dek_change()).await? {
        raft.reseal(Arc::new(sealer)).await?;
        blocking(keys, |keys| keys.finish_dek_change()).await?;
        info!("the data encryption key was replaced");
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    keys: &Arc<KeyStore>,
    work: impl FnOnce(&KeyStore) -> swarm_pki::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let keys = keys.clone();
    let done = tokio::task::spawn_blocking(move || work(&keys)).await;
    Ok(done.map_err(|_| Error::Panicked("writing the key file"))??)
}
