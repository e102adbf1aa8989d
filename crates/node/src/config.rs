//! What a node is started with.

use std::path::PathBuf;
use std::sync::Arc;

use swarm_agent::Executor;

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
    /// Raft ticks (seconds) between heartbeats.
    pub heartbeat_tick: u32,
    /// Raft ticks without a leader before an election.
    pub election_tick: u32,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("state_dir", &self.state_dir)
            .field("join", &self.join)
            .finish_non_exhaustive()
    }
}
