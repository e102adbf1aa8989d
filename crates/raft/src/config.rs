//! What a raft node is started with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::defaults;
use swarm_api::v1::RaftMember;

use crate::{Fetched, NoTransport, Points, Sealer, Transport};

/// The clock of elections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticks {
    /// Time between two ticks; `None`: only [`RaftHandle::tick`](crate::RaftHandle::tick) ticks, as simulations
    /// want it.
    pub interval: Option<Duration>,
    /// Ticks between heartbeats.
    pub heartbeat: u32,
    /// Ticks without a leader before an election; more than `heartbeat`.
    pub election: u32,
}

impl Ticks {
    /// How long requests that wait for the group (joining, a transfer of leadership) may take: 25 s by default.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + self.length() * self.election * 2
    }

    /// Length of a tick; a second if it is ticked by hand.
    pub fn length(&self) -> Duration {
        self.interval.unwrap_or(Duration::from_secs(1))
    }
}

impl Default for Ticks {
    fn default() -> Ticks {
        Ticks {
            interval: Some(Duration::from_secs(1)),
            heartbeat: defaults::HEARTBEAT_TICK,
            election: defaults::ELECTION_TICK,
        }
    }
}

/// How a node without a log begins. A node with one goes on from it.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Origin {
    /// As the first member of a new group.
    #[default]
    NewGroup,
    /// Not at all: there must be one.
    Existing,
    /// As a new member of an existing group, with what its leader answered to Join.
    Joined {
        /// The raft id that the leader chose.
        raft_id: u64,
        /// Members as of the answer, to reach them before the log has come.
        members: Vec<RaftMember>,
    },
}

/// Configuration of a raft node.
#[derive(Clone)]
pub struct Config {
    /// This node's id, from its certificate.
    pub node_id: String,
    /// Where other managers reach this one, as `host:port`.
    pub addr: String,
    /// The node's state directory; the log is in `raft` below it.
    pub state_dir: PathBuf,
    /// The clock of elections.
    pub ticks: Ticks,
    /// Encrypts what goes to disk.
    pub sealer: Arc<dyn Sealer>,
    /// The way to other members.
    pub transport: Arc<dyn Transport>,
    /// How to begin without a log.
    pub origin: Origin,
    /// With [`Origin::Joined`]: state of the group that was fetched before, and that the state machine has got already.
    pub fetched: Option<Fetched>,
    /// Every other member is lost for ever: go on alone with what is in this log. Without a log it has no effect.
    pub force_new_group: bool,
    /// Seed of election timeouts, and of the raft id of a new group. `None`: a random one.
    pub seed: Option<u64>,
    /// For tests: what is told of the points that the node passes.
    pub points: Points,
}

impl Config {
    /// A group of one with the usual clock.
    pub fn new(
        node_id: impl Into<String>,
        addr: impl Into<String>,
        state_dir: impl Into<PathBuf>,
        sealer: Arc<dyn Sealer>,
    ) -> Config {
        Config {
            node_id: node_id.into(),
            addr: addr.into(),
            state_dir: state_dir.into(),
            ticks: Ticks::default(),
            sealer,
            transport: Arc::new(NoTransport),
            origin: Origin::NewGroup,
            fetched: None,
            force_new_group: false,
            seed: None,
            points: Points::default(),
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("node_id", &self.node_id)
            .field("addr", &self.addr)
            .field("state_dir", &self.state_dir)
            .field("ticks", &self.ticks)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}
