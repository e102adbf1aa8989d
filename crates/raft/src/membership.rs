//! Who is a member of the group: the rules of membership changes, without raft.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message as _;
use swarm_api::raftpb::{ConfChange, ConfChangeType};
use swarm_api::v1::{ClusterSnapshot, RaftMember};

/// Why a membership change is not valid. The texts are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The raft id was removed before; it never comes back.
    #[error("membership: node was removed during cluster lifetime")]
    Removed,
    /// The raft id is a member already.
    #[error("membership: can't add node to cluster, node id is a duplicate")]
    Duplicate,
    /// The raft id is no member.
    #[error("membership: member not found in cluster list")]
    Unknown,
    /// Another kind of change.
    #[error("membership: ConfChange type should be either AddNode, RemoveNode or UpdateNode")]
    Kind,
    /// What goes with the change can't be read.
    #[error("membership: cannot unmarshal configuration change")]
    Context,
    /// Too few reachable members would be left.
    #[error("raft: member cannot be removed, because removing it may result in loss of quorum")]
    Quorum,
}

/// A membership change that somebody asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A new member.
    Add(RaftMember),
    /// A member goes; its raft id is never used again.
    Remove(u64),
    /// A member has another address.
    Update(RaftMember),
}

impl Change {
    /// As it is written into the log.
    pub(crate) fn to_conf_change(&self, id: u64) -> ConfChange {
        let (kind, node_id, context) = match self {
            Change::Add(m) => (ConfChangeType::ConfChangeAddNode, m.raft_id, m.encode_to_vec()),
            Change::Remove(raft_id) => (ConfChangeType::ConfChangeRemoveNode, *raft_id, Vec::new()),
            Change::Update(m) => (ConfChangeType::ConfChangeUpdateNode, m.raft_id, m.encode_to_vec()),
        };
        ConfChange { id, r#type: kind as i32, node_id, context: Some(Bytes::from(context)) }
    }

    /// Reads what an entry of the log says.
    fn from_conf_change(change: &ConfChange) -> Result<Change, MembershipError> {
        let member = || {
            let context = change.context.as_deref().unwrap_or_default();
            let member = RaftMember::decode(context).map_err(|_| MembershipError::Context)?;
            if member.raft_id == change.node_id { Ok(member) } else { Err(MembershipError::Context) }
        };
        match ConfChangeType::try_from(change.r#type) {
            Ok(ConfChangeType::ConfChangeAddNode) => member().map(Change::Add),
            Ok(ConfChangeType::ConfChangeRemoveNode) => Ok(Change::Remove(change.node_id)),
            Ok(ConfChangeType::ConfChangeUpdateNode) => member().map(Change::Update),
            _ => Err(MembershipError::Kind),
        }
    }
}

/// The members of the group and those that were removed, as of the last applied entry.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Membership {
    members: BTreeMap<u64, RaftMember>,
    removed: BTreeSet<u64>,
}

impl Membership {
    pub(crate) fn from_snapshot(snapshot: &ClusterSnapshot) -> Membership {
        Membership {
            members: snapshot.members.iter().map(|m| (m.raft_id, m.clone())).collect(),
            removed: snapshot.removed.iter().copied().collect(),
        }
    }

    /// As a snapshot holds it.
    pub fn to_snapshot(&self) -> ClusterSnapshot {
        ClusterSnapshot {
            members: self.members.values().cloned().collect(),
            removed: self.removed.iter().copied().collect(),
        }
    }

    /// The members, by raft id.
    pub fn members(&self) -> impl Iterator<Item = &RaftMember> {
        self.members.values()
    }

    /// The member with this raft id.
    pub fn get(&self, raft_id: u64) -> Option<&RaftMember> {
        self.members.get(&raft_id)
    }

    /// The member with this node id.
    pub fn by_node_id(&self, node_id: &str) -> Option<&RaftMember> {
        self.members.values().find(|m| m.node_id == node_id)
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// No member at all: the node waits for the leader's log.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// This raft id was a member and may never be again.
    pub fn is_removed(&self, raft_id: u64) -> bool {
        self.removed.contains(&raft_id)
    }

    /// Removing `raft_id` leaves a quorum of reachable members. `active` says which others can be reached.
    pub fn can_remove(&self, raft_id: u64, own: u64, active: impl Fn(u64) -> bool) -> bool {
        let others = self.members.keys().filter(|id| **id != raft_id);
        let reachable = others.filter(|id| **id == own || active(**id)).count();
        let quorum = self.members.len().saturating_sub(1) / 2 + 1;
        reachable >= quorum
    }

    /// Checks a change in the order that the contract gives.
    pub fn validate(&self, change: &ConfChange) -> Result<Change, MembershipError> {
        if self.is_removed(change.node_id) {
            return Err(MembershipError::Removed);
        }
        let known = self.members.contains_key(&change.node_id);
        match ConfChangeType::try_from(change.r#type) {
            Ok(ConfChangeType::ConfChangeAddNode) if known => return Err(MembershipError::Duplicate),
            Ok(ConfChangeType::ConfChangeRemoveNode | ConfChangeType::ConfChangeUpdateNode) if !known => {
                return Err(MembershipError::Unknown);
            }
            _ => {}
        }
        Change::from_conf_change(change)
    }

    /// Applies a change of the log to the list; says whether the list is another one now. What is not valid still
    /// has the effect that keeps all managers equal: a removed id stays removed, a known one is updated.
    pub fn apply(&mut self, change: &ConfChange) -> bool {
        let before = self.clone();
        match Change::from_conf_change(change) {
            Ok(Change::Add(member) | Change::Update(member)) => {
                let update = change.r#type == ConfChangeType::ConfChangeUpdateNode as i32;
                let allowed = member.raft_id != 0 && !self.is_removed(member.raft_id);
                let node_id_fits = self.get(member.raft_id).map_or(!update, |m| m.node_id == member.node_id);
                if allowed && node_id_fits {
                    self.members.insert(member.raft_id, member);
                }
            }
            Ok(Change::Remove(raft_id)) => {
                self.removed.insert(raft_id);
                self.members.remove(&raft_id);
            }
            Err(_) => {}
        }
        *self != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(raft_id: u64) -> RaftMember {
        RaftMember {
            raft_id,
            node_id: format!("node-{raft_id}"),
            addr: "10.0.0.1:4242".into(),
            ..RaftMember::default()
        }
    }

    fn group(ids: &[u64]) -> Membership {
        let members = ids.iter().map(|id| member(*id)).collect();
        Membership::from_snapshot(&ClusterSnapshot { members, removed: vec![66] })
    }

    #[test]
    fn changes_are_validated_in_the_contract_s_order() {
        use MembershipError as E;
        let broken =
            ConfChange { node_id: 9, context: Some(Bytes::from_static(&[0xff])), ..ConfChange::default() };
        let learner = ConfChange { node_id: 9, r#type: 3, ..ConfChange::default() };
        let unknown = ConfChange { node_id: 9, r#type: 17, ..ConfChange::default() };
        let cases = [
            (Change::Add(member(66)).to_conf_change(1), Err(E::Removed)),
            (Change::Remove(66).to_conf_change(1), Err(E::Removed)),
            (Change::Add(member(1)).to_conf_change(1), Err(E::Duplicate)),
            (Change::Remove(9).to_conf_change(1), Err(E::Unknown)),
            (Change::Update(member(9)).to_conf_change(1), Err(E::Unknown)),
            (broken, Err(E::Context)),
            (learner, Err(E::Kind)),
            (unknown, Err(E::Kind)),
            (Change::Add(member(9)).to_conf_change(1), Ok(Change::Add(member(9)))),
            (Change::Remove(2).to_conf_change(1), Ok(Change::Remove(2))),
            (Change::Update(member(2)).to_conf_change(1), Ok(Change::Update(member(2)))),
        ];
        for (change, expected) in cases {
            assert_eq!(group(&[1, 2, 3]).validate(&change), expected, "{change:?}");
        }
    }

    #[test]
    fn a_removed_id_never_comes_back() {
        let mut group = group(&[1, 2, 3]);
        assert!(group.apply(&Change::Remove(2).to_conf_change(1)));
        assert!(group.is_removed(2) && group.len() == 2);
        assert!(!group.apply(&Change::Add(member(2)).to_conf_change(2)));
        assert!(!group.apply(&Change::Update(member(2)).to_conf_change(3)));
        assert_eq!(group.len(), 2);
        assert_eq!(Membership::from_snapshot(&group.to_snapshot()), group);
    }

    #[test]
    fn an_update_changes_the_address_but_not_whose_it_is() {
        let mut group = group(&[1, 2]);
        let moved = RaftMember { addr: "10.0.0.9:1".into(), ..member(2) };
        assert!(group.apply(&Change::Update(moved).to_conf_change(1)));
        assert_eq!(group.get(2).unwrap().addr, "10.0.0.9:1");
        let other = RaftMember { node_id: "somebody".into(), ..member(2) };
        assert!(!group.apply(&Change::Update(other).to_conf_change(2)));
        assert!(!group.apply(&Change::Update(member(7)).to_conf_change(3)));
    }

    #[test]
    fn removal_must_leave_a_quorum() {
        let three = group(&[1, 2, 3]);
        let active = |ids: &'static [u64]| move |id| ids.contains(&id);
        // Two of three are down: nobody can go.
        assert!((1..=3).all(|id| !three.can_remove(id, 1, active(&[]))));
        // One is down: it can go, a live one can't.
        assert!(three.can_remove(3, 1, active(&[2])));
        assert!(!three.can_remove(2, 1, active(&[2])));
        // All are up.
        assert!(three.can_remove(2, 1, active(&[2, 3])));
        assert!(group(&[1, 2]).can_remove(2, 1, active(&[2])));
        assert!(!group(&[1]).can_remove(1, 1, active(&[])), "the last one stays");
    }
}
