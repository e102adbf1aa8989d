//! What a node is started with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use swarm_agent::{Executor, GenericSources};
use swarm_manager::backup::{Backup, restore};
use swarm_pki::{SecretBytes, UnlockKey};

/// How to become a member of a cluster.
#[derive(Clone)]
pub struct Join {
    /// `host:port` of one of its managers.
    pub addr: String,
    /// The join token.
    pub token: String,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// Configuration of a node.
#[derive(Clone)]
pub struct Config {
    /// Everything that must survive a restart.
    pub state_dir: PathBuf,
    /// Join this cluster; `None` makes a new one, or goes on with what is in the state directory.
    pub join: Option<Join>,
    /// Where other nodes reach this one while it is a manager.
    pub listen_remote_api: String,
    /// The address that other nodes are told.
    pub advertise_remote_api: Option<String>,
    /// The socket for `swarmctl` and for the node's own agent while it is a manager.
    pub listen_control_api: PathBuf,
    /// Overrides the host name.
    pub hostname: Option<String>,
    /// Ways of running tasks.
    pub executors: Vec<Arc<dyn Executor>>,
    /// Commands may be executed in this node's tasks, and its tasks attached to, by whoever may control the cluster.
    pub exec: bool,
    /// What the node offers beside CPUs and memory.
    pub generic_resources: GenericSources,
    /// Raft ticks (seconds) between heartbeats.
    pub heartbeat_tick: u32,
    /// Raft ticks without a leader before an election.
    pub election_tick: u32,
    /// Opens the key file of a manager that locks itself. Without it a locked manager waits for the key on its socket.
    pub unlock_key: Option<UnlockKey>,
    /// The managers of a new cluster lock themselves.
    pub autolock: bool,
    /// Every other manager is lost for ever: go on alone with what is in this one's log.
    pub force_new_cluster: bool,
    /// Begin from this backup.
    pub restore: Option<Restore>,
}

/// A backup to begin from.
#[derive(Debug, Clone)]
pub struct Restore(pub(crate) Arc<Backup>);

impl Restore {
    /// Reads and checks a backup that is encrypted with this passphrase or unlock key. Writes nothing.
    ///
    /// # Errors
    /// What is wrong with the file or the secret.
    pub fn read(file: &Path, secret: &SecretBytes) -> Result<Restore, crate::Error> {
        let backup = Backup::read(file, secret)?;
        restore::check(&backup)?;
        Ok(Restore(Arc::new(backup)))
    }
}
