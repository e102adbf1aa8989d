//! The raft group as the control API wants to see it.

use std::collections::BTreeMap;

use swarm_api::v1::{ManagerStatus, raft_member_status};
use swarm_control::Membership;
use swarm_raft::{RaftHandle, Role};

/// Reads the group from the raft node.
pub(crate) struct RaftMembership {
    raft: RaftHandle,
}

impl RaftMembership {
    pub(crate) fn new(raft: RaftHandle) -> RaftMembership {
        RaftMembership { raft }
    }
}

impl Membership for RaftMembership {
    fn is_leader(&self) -> bool {
        self.raft.status().role == Role::Leader
    }

    fn members(&self) -> BTreeMap<String, ManagerStatus> {
        let leader = self.raft.status().leader;
        let membership = self.raft.membership();
        let members = membership.members().map(|member| {
            // Without other members nobody else can be unreachable.
            let status = ManagerStatus {
                raft_id: member.raft_id,
                addr: member.addr.clone(),
                leader: leader == member.raft_id,
                reachability: raft_member_status::Reachability::Reachable as i32,
            };
            (member.node_id.clone(), status)
        });
        members.collect()
    }

    fn can_remove(&self, node_id: &str) -> bool {
        let membership = self.raft.membership();
        // The last member can't leave itself behind; others can't be reached as long as there is no transport.
        membership.by_node_id(node_id).is_some_and(|m| {
            membership.len() > 1 && membership.can_remove(m.raft_id, self.raft.raft_id(), |_| false)
        })
    }
}
