//! The raft group as the control API wants to see it.

use std::collections::BTreeMap;

use swarm_api::v1::{ManagerStatus, raft_member_status::Reachability};
use swarm_control::Membership;
use swarm_raft::Role;

use crate::leader_link::RaftSlot;

/// Reads the group from the raft node; before there is one, there are no members.
pub(crate) struct RaftMembership {
    raft: RaftSlot,
}

impl RaftMembership {
    pub(crate) fn new(raft: RaftSlot) -> RaftMembership {
        RaftMembership { raft }
    }
}

impl Membership for RaftMembership {
    fn is_leader(&self) -> bool {
        self.raft.get().is_some_and(|raft| raft.status().role == Role::Leader)
    }

    fn members(&self) -> BTreeMap<String, ManagerStatus> {
        let Some(raft) = self.raft.get() else { return BTreeMap::new() };
        let leader = raft.status().leader;
        let membership = raft.membership();
        let members = membership.members().map(|member| {
            let reachable = raft.is_reachable(member.raft_id);
            let reachability = if reachable { Reachability::Reachable } else { Reachability::Unreachable };
            let status = ManagerStatus {
                raft_id: member.raft_id,
                addr: member.addr.clone(),
                leader: leader == member.raft_id,
                reachability: reachability as i32,
            };
            (member.node_id.clone(), status)
        });
        members.collect()
    }

    fn can_remove(&self, node_id: &str) -> bool {
        self.raft.get().is_some_and(|raft| {
            let membership = raft.membership();
            membership.by_node_id(node_id).is_some_and(|member| raft.can_remove(member.raft_id))
        })
    }
}
