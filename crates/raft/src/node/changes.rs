//! Membership changes under way. Raft allows one at a time; the others wait here instead of being turned into
//! empty entries.

use std::collections::VecDeque;

use raft_proto::eraftpb::{ConfChange, ConfChangeType};
use swarm_api::raftpb;

use crate::inbox::Reply;
use crate::{Change, Error, MembershipError};

#[derive(Debug)]
struct Waiting {
    change: Change,
    reply: Option<Reply<()>>,
}

#[derive(Debug)]
struct InFlight {
    index: u64,
    term: u64,
    reply: Option<Reply<()>>,
}

#[derive(Debug, Default)]
pub(super) struct Changes {
    waiting: VecDeque<Waiting>,
    in_flight: Option<InFlight>,
    next: u64,
}

impl Changes {
    pub(super) fn add(&mut self, change: Change, reply: Option<Reply<()>>) {
        self.waiting.push_back(Waiting { change, reply });
    }

    /// The next change to propose, with its number, if none is under way.
    pub(super) fn next(&mut self) -> Option<(u64, &Change)> {
        if self.in_flight.is_some() {
            return None;
        }
        self.next += 1;
        self.waiting.front().map(|w| (self.next, &w.change))
    }

    /// The next change was appended.
    pub(super) fn appended(&mut self, index: u64, term: u64) {
        if let Some(Waiting { reply, .. }) = self.waiting.pop_front() {
            self.in_flight = Some(InFlight { index, term, reply });
        }
    }

    /// The next change is not valid.
    pub(super) fn refused(&mut self, error: Error) {
        answer(self.waiting.pop_front().and_then(|w| w.reply), Err(error));
    }

    /// A change was applied, with this verdict.
    pub(super) fn applied(&mut self, index: u64, term: u64, verdict: Result<(), MembershipError>) {
        if let Some(own) = self.in_flight.take_if(|own| own.index <= index) {
            let same = own.index == index && own.term == term;
            answer(own.reply, if same { verdict.map_err(Error::from) } else { Err(Error::LostLeadership) });
        }
    }

    /// Nobody can be answered any more.
    pub(super) fn fail(&mut self, error: impl Fn() -> Error) {
        answer(self.in_flight.take().and_then(|own| own.reply), Err(error()));
        for waiting in self.waiting.drain(..) {
            answer(waiting.reply, Err(error()));
        }
    }
}

fn answer(reply: Option<Reply<()>>, result: Result<(), Error>) {
    if let Some(reply) = reply {
        let _ = reply.send(result);
    }
}

/// What the raft library is to be told of a change in the log; nothing of an address change, whose number means
/// something else there.
pub(super) fn for_library(change: &raftpb::ConfChange) -> Option<ConfChange> {
    let kind = match raftpb::ConfChangeType::try_from(change.r#type) {
        Ok(raftpb::ConfChangeType::ConfChangeAddNode) => ConfChangeType::AddNode,
        Ok(raftpb::ConfChangeType::ConfChangeRemoveNode) => ConfChangeType::RemoveNode,
        _ => return None,
    };
    Some(ConfChange {
        id: change.id,
        change_type: kind as i32,
        node_id: change.node_id,
        ..ConfChange::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn an_address_change_never_reaches_the_library() {
        let change =
            |kind: i32| raftpb::ConfChange { r#type: kind, node_id: 7, ..raftpb::ConfChange::default() };
        assert_eq!(for_library(&change(0)).unwrap().change_type(), ConfChangeType::AddNode);
        assert_eq!(for_library(&change(1)).unwrap().change_type(), ConfChangeType::RemoveNode);
        assert_eq!(for_library(&change(2)), None);
        assert_eq!(for_library(&change(3)), None);
    }

    #[test]
    fn changes_go_one_after_the_other() {
        let mut changes = Changes::default();
        let (reply, mut first) = oneshot::channel();
        changes.add(Change::Remove(1), Some(reply));
        let (reply, mut second) = oneshot::channel();
        changes.add(Change::Remove(2), Some(reply));
        assert!(matches!(changes.next(), Some((_, Change::Remove(1)))));
        changes.appended(5, 1);
        assert!(changes.next().is_none());
        changes.applied(5, 1, Ok(()));
        assert!(first.try_recv().unwrap().is_ok());
        assert!(matches!(changes.next(), Some((_, Change::Remove(2)))));
        changes.appended(6, 1);
        changes.applied(6, 2, Ok(()));
        assert!(matches!(second.try_recv().unwrap(), Err(Error::LostLeadership)));
    }
}
