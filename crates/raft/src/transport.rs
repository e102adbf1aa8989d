//! The way to other members.

use std::sync::Arc;

use swarm_api::raftpb::Message;

use crate::Membership;
use crate::snapshot::Snapshots;
use crate::storage::Position;

/// A message that is to be sent.
#[derive(Debug)]
pub enum Outgoing {
    /// As it is.
    Message(Message),
    /// A snapshot message without its data, which is to be read from the snapshot's file while it is sent.
    /// However that ends is to be told by [`RaftHandle::report_snapshot`](crate::RaftHandle::report_snapshot).
    Snapshot {
        /// Everything but the data.
        message: Message,
        /// Which snapshot.
        at: Position,
        /// Where it is.
        snapshots: Snapshots,
    },
}

impl Outgoing {
    /// Raft id of the receiver.
    pub fn to(&self) -> u64 {
        match self {
            Outgoing::Message(message) | Outgoing::Snapshot { message, .. } => message.to,
        }
    }
}

/// Carries messages to other members. Every call comes from the raft thread and must not block: there is a
/// bounded queue per member, and what does not fit is dropped and reported by
/// [`RaftHandle::report_unreachable`](crate::RaftHandle::report_unreachable).
pub trait Transport: Send + Sync + 'static {
    /// Queues messages, in order.
    fn send(&self, messages: Vec<Outgoing>);

    /// Members came, went or have another address. Also called once at the start.
    fn members(&self, membership: &Arc<Membership>);

    /// The member can be reached as of now.
    fn is_active(&self, raft_id: u64) -> bool;

    /// The member is known to be of this make. Where all are, a member asks whether it would be elected before it asks
    /// for votes.
    fn is_ours(&self, _raft_id: u64) -> bool {
        false
    }
}

/// For a group of one.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTransport;

impl Transport for NoTransport {
    fn send(&self, _messages: Vec<Outgoing>) {}

    fn members(&self, _membership: &Arc<Membership>) {}

    fn is_active(&self, _raft_id: u64) -> bool {
        false
    }
}
