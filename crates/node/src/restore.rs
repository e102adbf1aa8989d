//! Beginning from a backup.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use swarm_manager::backup::restore;
use swarm_pki::{Clock, Kek, KeyStore, atomic};
use tracing::{info, warn};

use crate::state::StateDir;
use crate::{Config, Error, Restore};

/// Written before anything of a restore, and removed when all of it is there.
const UNFINISHED: &str = "restoring";

/// What a node leaves in its state directory.
const LEFT: [&str; 4] = ["certificates", "raft", "worker", "state.json"];

fn marker(state_dir: &Path) -> PathBuf {
    state_dir.join(UNFINISHED)
}

/// Fails if a restore was interrupted here.
fn check_finished(state_dir: &Path) -> Result<(), Error> {
    if marker(state_dir).exists() { Err(Error::RestoreUnfinished(state_dir.to_owned())) } else { Ok(()) }
}

/// Locks the state directory, and writes a manager's identity and log into it if it is to begin from a backup. Returns
/// what the key file is encrypted with then.
pub(crate) fn run(config: &Config, clock: &Clock) -> Result<(StateDir, Option<Kek>), Error> {
    let Some(Restore(backup)) = &config.restore else {
        check_finished(&config.state_dir)?;
        return Ok((StateDir::open(&config.state_dir)?, None));
    };
    let interrupted = marker(&config.state_dir).exists();
    if !interrupted && let Some(used) = used(&config.state_dir) {
        return Err(Error::NotFresh(used));
    }
    let state = StateDir::open(&config.state_dir)?;
    if interrupted {
        warn!("a restore was begun here but never finished; beginning again");
        for stale in ["raft", "certificates"].map(|name| config.state_dir.join(name)) {
            match std::fs::remove_dir_all(&stale) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::state(stale)(error));
                }
                _ => {}
            }
        }
    }
    let marker = marker(&config.state_dir);
    atomic::write(&marker, b"", 0o600).map_err(Error::state(&marker))?;
    let keys = Arc::new(KeyStore::open(config.state_dir.join("certificates"))?);
    let addr = config.advertise_remote_api.as_ref().unwrap_or(&config.listen_remote_api);
    let restored = restore::restore(backup, &config.state_dir, &keys, addr, clock.now())?;
    atomic::remove(&marker).map_err(Error::state(&marker))?;
    let info = &backup.info;
    info!(
        cluster.id = info.cluster_id,
        index = info.index,
        "restored a backup; join tokens and network keys are new"
    );
    Ok((state, restored.unlock_key))
}

/// Something of an earlier node.
fn used(state_dir: &Path) -> Option<PathBuf> {
    LEFT.iter().map(|name| state_dir.join(name)).find(|path| path.exists())
}
