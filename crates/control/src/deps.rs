//! What the calls need beside the store; the manager provides it.

use std::collections::BTreeMap;

use swarm_api::v1::ManagerStatus;

/// The raft group as this manager sees it.
pub trait Membership: Send + Sync + 'static {
    /// This manager is the leader; only then are reads held back for the read barrier.
    fn is_leader(&self) -> bool;

    /// Every member by node id: raft id, address, leader flag, reachability.
    fn members(&self) -> BTreeMap<String, ManagerStatus>;

    /// The member with this node id.
    fn member(&self, node_id: &str) -> Option<ManagerStatus> {
        self.members().remove(node_id)
    }

    /// The group would still have a quorum of reachable members without this one.
    fn can_remove(&self, node_id: &str) -> bool;
}

/// A manager without raft: always the leader, with no members. For tests and tools.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Membership for Alone {
    fn is_leader(&self) -> bool {
        true
    }
    fn members(&self) -> BTreeMap<String, ManagerStatus> {
        BTreeMap::new()
    }
    fn can_remove(&self, _node_id: &str) -> bool {
        false
    }
}
