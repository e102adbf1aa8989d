//! What others want of the raft thread: messages from peers, proposals, and everything else.

use std::time::Instant;

use bytes::Bytes;
use prost::Message as _;
use raft::{GetEntriesContext, SnapshotStatus, StateRole, Storage as _};
use raft_proto::eraftpb::{Entry, EntryType, Message, MessageType};
use swarm_api::raftpb;
use swarm_store::{Lost, Ticket};

use super::turn::Turns;
use crate::check::{self, State, Verdict};
use crate::counters::add;
use crate::fetch::Offer;
use crate::inbox::{Reply, Request};
use crate::points::{Point, reach};
use crate::snapshot::Meta;
use crate::storage::Position;
use crate::{Change, Error, MembershipError, Result, convert};

impl Turns {
    pub(super) fn step(&mut self, mut message: raftpb::Message) -> Result<()> {
        let raft = &self.raw.raft;
        let matched = |id| raft.prs().get(id).map_or(0, |progress| progress.matched);
        let state = State {
            term: raft.term,
            leader: raft.leader_id,
            base: raft.store().base(),
            last: raft.raft_log.last_index(),
            diverged: self.diverged,
            matched: &matched,
        };
        match check::check(&message, &state) {
            Verdict::Take => {}
            Verdict::LogLost => {
                return Err(Error::LogLost {
                    from: message.from,
                    acknowledged: message.commit,
                    last: state.last,
                });
            }
            Verdict::Ignore(reason) => {
                add(&self.shared.counters.ignored, 1);
                tracing::warn!(from = format!("{:x}", message.from), reason, "ignored a raft message");
                return Ok(());
            }
            Verdict::RemovedSender => return Ok(()),
        }
        if matches!(message.r#type(), raftpb::MessageType::MsgVoteResp | raftpb::MessageType::MsgTimeoutNow) {
            self.finish_writes()?;
        }
        if let Some(snapshot) = &mut message.snapshot {
            // Older leaders send the voters as of the snapshot, when we were none yet.
            let voters = &mut snapshot.metadata.conf_state.voters;
            if !voters.is_empty() && !voters.contains(&self.shared.raft_id) {
                voters.push(self.shared.raft_id);
            }
        }
        if let Err(error) = self.raw.step(convert::from_wire(message)) {
            tracing::debug!(%error, "raft refused a message");
        }
        Ok(())
    }

    pub(super) fn request(&mut self, request: Request) -> Result<()> {
        match request {
            Request::Read(reply) if self.leads => self.reads.add(reply),
            Request::Read(reply) => {
                let _ = reply.send(Err(swarm_store::Error::LostLeadership));
            }
            Request::Change(change, reply) if self.leads => self.changes.add(change, Some(reply)),
            Request::Change(_, reply) => {
                let _ = reply.send(Err(Error::LostLeadership));
            }
            Request::Transfer(to, reply) => self.transfer(to, reply),
            Request::Campaign if self.diverged => {}
            Request::Campaign => {
                self.finish_writes()?;
                self.set_pre_vote();
                self.campaign();
            }
            Request::TakeOver(doubt) => self.take_over(doubt)?,
            Request::Standing(reply) => {
                let _ = reply.send(self.standing());
            }
            Request::Tick => self.tick()?,
            Request::Unreachable(raft_id) => self.raw.report_unreachable(raft_id),
            Request::Removed => self.removed = true,
            Request::SnapshotSent(raft_id, delivered) => {
                let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                self.raw.report_snapshot(raft_id, status);
            }
            Request::SnapshotTaken(at, written) => self.snapshot_taken(at, written)?,
            Request::Entries { from, to, max_bytes, reply } => {
                let _ = reply.send(self.entries(from, to, max_bytes));
            }
            Request::Offer(reply) => {
                let _ = reply.send(self.offer());
            }
            Request::Reseal(sealer, reply) => self.begin_reseal(sealer, reply)?,
            Request::Stop => self.stopping = true,
        }
        Ok(())
    }

    /// The library would pass proposals on to another leader; no other member takes them.
    fn may_propose(&self) -> bool {
        self.leads && !self.stopping && self.raw.raft.state == StateRole::Leader
    }

    pub(super) fn propose(&mut self, queued: &mut Vec<(Ticket, Bytes)>) {
        if queued.is_empty() {
            return;
        }
        for first in self.proposals.admit(queued, self.may_propose()) {
            self.machine.lost(first, Lost::Dropped);
        }
        if queued.is_empty() {
            return;
        }
        let entries = queued.iter().map(|(_, data)| Entry { data: data.clone(), ..Entry::default() });
        let mut message = Message { entries: entries.collect(), ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.shared.raft_id;
        let first = self.raw.raft.raft_log.last_index() + 1;
        match self.raw.raft.step(message) {
            Ok(()) => {
                let term = self.raw.raft.term;
                self.proposals.appended(first, term, queued.drain(..).map(|(ticket, _)| ticket));
            }
            Err(error) => {
                tracing::debug!(%error, proposals = queued.len(), "raft dropped proposals");
                for first in self.proposals.admit(queued, false) {
                    self.machine.lost(first, Lost::Dropped);
                }
            }
        }
    }

    /// Proposes the next membership change, if there is one and none is pending.
    pub(super) fn propose_change(&mut self) -> bool {
        if !self.may_propose() || self.raw.raft.has_pending_conf() {
            return false;
        }
        while let Some((number, change)) = self.changes.next() {
            let id = (u64::from(crate::handle::id_prefix(self.shared.raft_id)) << 48) | number;
            let change = change.to_conf_change(id);
            if let Err(error) = self.admissible(&change) {
                self.changes.refused(error.into());
                continue;
            }
            let mut entry = Entry { data: change.encode_to_vec().into(), ..Entry::default() };
            entry.set_entry_type(EntryType::EntryConfChange);
            let mut message = Message { entries: vec![entry], ..Message::default() };
            message.set_msg_type(MessageType::MsgPropose);
            message.from = self.shared.raft_id;
            return match self.raw.raft.step(message) {
                Ok(()) => {
                    self.changes.appended(self.raw.raft.raft_log.last_index(), self.raw.raft.term);
                    reach(Point::ChangeAppended);
                    true
                }
                // While leadership is being handed over; tried again in the next turn.
                Err(_) => false,
            };
        }
        false
    }

    /// What is valid and leaves a quorum that can be reached. Asked right before a change is proposed, one at a time, so
    /// that no two are let through that are harmful only together.
    fn admissible(&self, change: &raftpb::ConfChange) -> Result<(), MembershipError> {
        let Change::Remove(raft_id) = self.membership.validate(change)? else { return Ok(()) };
        let active = |id| self.config.transport.is_active(id);
        if !self.membership.can_remove(raft_id, self.shared.raft_id, active) {
            return Err(MembershipError::Quorum);
        }
        Ok(())
    }

    pub(super) fn start_reads(&mut self) -> bool {
        match self.reads.start_round() {
            Some(round) => {
                self.raw.read_index(round.to_be_bytes().to_vec());
                true
            }
            None => false,
        }
    }

    pub(super) fn transfer(&mut self, to: Option<u64>, reply: Reply<u64>) {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            let _ = reply.send(Err(Error::LostLeadership));
            return;
        }
        let own = self.shared.raft_id;
        let others = raft.prs().iter().filter(|(id, _)| **id != own);
        let reachable = others.filter(|(id, _)| self.config.transport.is_active(**id));
        let chosen = to.or_else(|| reachable.max_by_key(|(_, p)| p.matched).map(|(id, _)| *id));
        match chosen.filter(|id| *id != own && raft.prs().get(*id).is_some()) {
            Some(id) => {
                tracing::info!(to = format!("{id:x}"), "handing over raft leadership");
                self.raw.transfer_leader(id);
                let _ = reply.send(Ok(id));
            }
            None => {
                let _ = reply.send(Err(Error::NoTransferee));
            }
        }
    }

    /// What is applied here, which is committed: a manager that joins may begin its log with it.
    fn offer(&mut self) -> Result<Offer> {
        let raft = &self.raw.raft;
        if !self.leads || raft.state != StateRole::Leader {
            return Err(Error::LostLeadership);
        }
        let (index, term) = (raft.raft_log.applied, raft.term);
        let at =
            Position { index, term: raft.raft_log.term(index).map_err(|e| Error::Write(e.to_string()))? };
        self.compaction.keep_after(index, Instant::now());
        Ok(Offer {
            raft_id: self.shared.raft_id,
            term,
            meta: Meta { at, conf_state: self.raw.store().conf_state.clone() },
            membership: self.membership.to_snapshot(),
            view: self.machine.view(),
        })
    }

    pub(super) fn entries(&self, from: u64, to: u64, max_bytes: u64) -> Result<Vec<(u64, Bytes)>> {
        let log = self.raw.store();
        let from = from.max(log.base().index + 1);
        let to = to.min(self.raw.raft.raft_log.applied);
        if from > to {
            return Ok(Vec::new());
        }
        let context = GetEntriesContext::empty(false);
        let entries = log.entries(from, to + 1, Some(max_bytes), context);
        let entries = entries.map_err(|e| Error::Write(e.to_string()))?;
        let normal = entries.into_iter().filter(|e| e.entry_type() == EntryType::EntryNormal);
        Ok(normal.filter(|e| !e.data.is_empty()).map(|e| (e.index, e.data)).collect())
    }
}
