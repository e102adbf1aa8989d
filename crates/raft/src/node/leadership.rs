//! Leadership: when it is announced, what is told when it ends, and what others see of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use raft::StateRole;
use raft_proto::eraftpb::{Message, MessageType};
use swarm_store::Lost;

use super::turn::Turns;
use crate::counters::add;
use crate::failover::{Doubt, Standing};
use crate::handle::{Role, Status};
use crate::storage::Position;
use crate::{Change, Error, Result};

impl Turns {
    /// The only member need not wait for an election timeout.
    pub(super) fn may_lead_alone(&self) -> bool {
        let own = self.shared.raft_id;
        self.raw.raft.state != StateRole::Leader
            && self.raw.raft.promotable()
            && self.raw.raft.prs().is_singleton()
            && self.membership.len() == 1
            && self.membership.get(own).is_some()
            && !self.removed
    }

    /// Asks whether it would be elected before it asks for votes, where every other member does so too: one that was cut
    /// off comes back with the term that it left with, and so deposes nobody. The library looks at this only when
    /// it campaigns.
    pub(super) fn set_pre_vote(&mut self) {
        let own = self.shared.raft_id;
        let mut others = self.membership.members().map(|m| m.raft_id).filter(|id| *id != own);
        self.raw.raft.pre_vote = others.all(|id| self.config.transport.is_ours(id));
    }

    pub(super) fn standing(&self) -> Standing {
        let raft = &self.raw.raft;
        Standing {
            raft_id: self.shared.raft_id,
            term: raft.term,
            leader: raft.leader_id,
            leads: raft.state == StateRole::Leader,
            last: Position { index: raft.raft_log.last_index(), term: raft.raft_log.last_term() },
            electable: raft.promotable() && !self.diverged && !self.removed && !self.stopping,
        }
    }

    /// A quorum takes the leader for gone. If it has said nothing since that began, this member asks for votes as after a
    /// transfer of leadership: others then need not let its lease run out, and the way of asking first is left out.
    pub(super) fn take_over(&mut self, doubt: Doubt) -> Result<()> {
        self.finish_writes()?;
        let Standing { term, leader, electable, .. } = self.standing();
        let now = Doubt { leader, term, heard: self.shared.heard.count() };
        if now != doubt || !electable || self.raw.raft.state != StateRole::Follower {
            tracing::debug!(
                ?doubt,
                ?now,
                "a leader that was taken for gone is not, or another one is on its way"
            );
            return Ok(());
        }
        add(&self.shared.counters.takeovers, 1);
        tracing::warn!(
            leader = format!("{leader:x}"),
            term,
            "the leader is gone; this manager asks for votes"
        );
        let mut message = Message { from: leader, to: self.shared.raft_id, ..Message::default() };
        message.set_msg_type(MessageType::MsgTimeoutNow);
        let _ = self.raw.step(message);
        Ok(())
    }

    pub(super) fn announce_leadership(&mut self) {
        let raft = &self.raw.raft;
        if self.leads || raft.state != StateRole::Leader || raft.raft_log.applied < raft.raft_log.last_index()
        {
            return;
        }
        tracing::info!(term = raft.term, "this manager leads the cluster");
        self.leads = true;
        self.machine.leadership(true);
        let own = self.membership.get(self.shared.raft_id);
        if let Some(member) = own.filter(|m| m.addr != self.config.addr && is_specific(&self.config.addr)) {
            let mut member = member.clone();
            member.addr.clone_from(&self.config.addr);
            self.changes.add(Change::Update(member), None);
        }
    }

    /// Order matters: first nobody gets in any more, then it is announced, then those inside are told.
    pub(super) fn notice_lost_leadership(&mut self) {
        if self.leads && self.raw.raft.state != StateRole::Leader {
            tracing::info!(term = self.raw.raft.term, "this manager leads the cluster no more");
            self.give_up_leadership(Lost::LostLeadership);
        }
    }

    pub(super) fn give_up_leadership(&mut self, why: Lost) {
        self.shared.alone.store(false, Ordering::Release);
        if std::mem::take(&mut self.leads) {
            self.machine.leadership(false);
        }
        self.publish_status();
        for first in self.proposals.lose() {
            self.machine.lost(first, why);
        }
        let (read, change): (_, fn() -> Error) = match why {
            Lost::Stopped => (swarm_store::Error::Stopped, || Error::Stopped),
            _ => (swarm_store::Error::LostLeadership, || Error::LostLeadership),
        };
        self.reads.fail(&read);
        self.changes.fail(change);
    }

    pub(super) fn publish_status(&self) {
        let raft = &self.raw.raft;
        let role = match raft.state {
            StateRole::Leader if self.leads => Role::Leader,
            StateRole::Leader => Role::Elected,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        };
        let status = Status {
            raft_id: self.shared.raft_id,
            role,
            leader: raft.leader_id,
            term: raft.term,
            diverged: self.diverged,
        };
        if status.leader != 0 {
            self.shared.leaderless.store(0, Ordering::Release);
        }
        let alone = self.leads && role == Role::Leader && raft.prs().is_singleton();
        self.shared.alone.store(alone, Ordering::Release);
        self.shared.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }

    pub(super) fn publish_membership(&mut self) {
        let membership = Arc::new(self.membership.clone());
        self.config.transport.members(&membership);
        self.shared.membership.send_replace(membership);
    }
}

/// Others can use the address as it is.
fn is_specific(addr: &str) -> bool {
    !addr.is_empty() && addr.parse::<std::net::SocketAddr>().map_or(true, |addr| !addr.ip().is_unspecified())
}
