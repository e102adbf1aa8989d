//! What the library wants done: entries to be written, messages to be sent, committed entries to be applied.

use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use prost::Message as _;
use raft::{Ready, StateRole};
use raft_proto::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot};
use swarm_api::raftpb;
use swarm_api::v1::StoreSnapshot;
use swarm_store::{StateMachine, Ticket};

use super::changes::for_library;
use super::turn::Turns;
use crate::counters::add;
use crate::points::{Point, reach};
use crate::snapshot::Meta;
use crate::storage::{Position, Write};
use crate::{Change, Error, Membership, MembershipError, Outgoing, Result, convert};

impl Turns {
    /// Does everything that the library has ready. It takes for granted that nothing is left to be written when it
    /// wins an election.
    pub(super) fn finish_writes(&mut self) -> Result<()> {
        while self.raw.has_ready() {
            self.ready()?;
        }
        Ok(())
    }

    fn ready(&mut self) -> Result<()> {
        let mut ready = self.raw.ready();
        let messages = ready.take_messages();
        let sent = !messages.is_empty();
        self.send(messages);
        if sent && !ready.entries().is_empty() {
            reach(Point::Sent);
        }
        for read in ready.take_read_states() {
            if let Some(round) = read.request_ctx.first_chunk::<8>() {
                self.reads.confirmed(u64::from_be_bytes(*round), read.index);
            }
        }
        self.shared.commit.store(self.raw.raft.raft_log.committed, Ordering::Release);
        let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone());
        let before = self.raw.store().hard_state();
        self.persist(&ready, snapshot.as_ref())?;
        let after = self.raw.store().hard_state();
        if (before.term, before.vote) != (after.term, after.vote) {
            reach(Point::Voted);
        }
        let answers = ready.take_persisted_messages();
        let answered = !answers.is_empty();
        self.send(answers);
        if answered {
            reach(Point::Answered);
        }
        self.notice_lost_leadership();
        if let Some(snapshot) = snapshot {
            self.install(&snapshot)?;
        }
        self.apply(ready.take_committed_entries());

        let mut light = self.raw.advance_append(ready);
        self.shared.commit.store(self.raw.raft.raft_log.committed, Ordering::Release);
        self.send(light.take_messages());
        self.apply(light.take_committed_entries());
        self.raw.advance_apply();
        Ok(())
    }

    pub(super) fn send(&mut self, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        let appends = messages.iter().filter(|message| message.msg_type() == MessageType::MsgAppend);
        self.commit_told = appends.map(|append| append.commit).fold(self.commit_told, u64::max);
        let outgoing = messages.into_iter().map(|message| {
            let message = convert::to_wire(message);
            match &message.snapshot {
                Some(snapshot) => {
                    let at = Position { index: snapshot.metadata.index, term: snapshot.metadata.term };
                    Outgoing::Snapshot { message, at, snapshots: self.snapshots.clone() }
                }
                None => Outgoing::Message(message),
            }
        });
        self.config.transport.send(outgoing.collect());
    }

    /// Writes entries, hard state and a received snapshot. A commit index alone is not worth a write: it is found
    /// again.
    pub(super) fn persist(&mut self, ready: &Ready, snapshot: Option<&Snapshot>) -> Result<()> {
        if !ready.must_sync() {
            return Ok(());
        }
        *self.shared.writing.lock() = Some(Instant::now());
        let written = self.write(ready, snapshot);
        *self.shared.writing.lock() = None;
        written
    }

    fn write(&mut self, ready: &Ready, snapshot: Option<&Snapshot>) -> Result<()> {
        let mut install = None;
        if let Some(snapshot) = snapshot {
            let metadata = snapshot.get_metadata();
            let at = Position { index: metadata.index, term: metadata.term };
            let meta = Meta { at, conf_state: metadata.get_conf_state().clone() };
            self.snapshots.save_bytes(&meta, &snapshot.data)?;
            reach(Point::ReceivedSaved);
            install = Some(at);
        }
        let hard_state = self.raw.raft.hard_state();
        let write = Write {
            entries: ready.entries(),
            hard_state: Some(&hard_state),
            install,
            snapshot: install,
            ..Write::default()
        };
        reach(Point::Writing);
        self.raw.mut_store().write(&write, true)?;
        reach(Point::Persisted);
        if ready.entries().iter().any(|entry| entry.entry_type() == EntryType::EntryConfChange) {
            reach(Point::ChangePersisted);
        }
        let counters = &self.shared.counters;
        add(&counters.turns, 1);
        add(&counters.syncs, 1);
        add(&counters.entries, ready.entries().len() as u64);
        Ok(())
    }

    /// Takes over a snapshot that a leader sent, which is on disk now.
    pub(super) fn install(&mut self, snapshot: &Snapshot) -> Result<()> {
        reach(Point::ReceivedSynced);
        let metadata = snapshot.get_metadata();
        let index = metadata.index;
        let restore = |reason: String| Error::Restore { index, reason };
        let content = crate::snapshot::decode(&*snapshot.data).map_err(|e| restore(e.to_string()))?;
        restore_store(&*self.machine, index, content.store)?;
        self.membership = Membership::from_snapshot(&content.membership);
        self.raw.mut_store().conf_state = metadata.get_conf_state().clone();
        self.compaction.received(index, snapshot.data.len());
        add(&self.shared.counters.received, 1);
        self.shared.applied.store(index, Ordering::Release);
        self.removed |= self.membership.is_removed(self.shared.raft_id);
        self.publish_membership();
        tracing::info!(index, term = metadata.term, "took over a snapshot from the leader");
        let at = Position { index, term: metadata.term };
        reach(Point::ReceivedRestored);
        self.collect(at);
        Ok(())
    }

    pub(super) fn apply(&mut self, entries: Vec<Entry>) {
        let Some(last) = entries.last().map(|e| e.index) else { return };
        let mut writers = 0;
        let waiting = self.shared.inbox.proposals();
        let (mut own, mut foreign) = (Vec::new(), Vec::new());
        reach(Point::Applying);
        for entry in entries {
            let index = entry.index;
            self.compaction.applied(entry.data.len());
            if entry.entry_type() == EntryType::EntryNormal && !entry.data.is_empty() {
                if let Some(ticket) = self.proposals.applied(index, entry.term) {
                    self.apply_foreign(&mut foreign);
                    writers += 1;
                    own.push((index, entry.data, ticket));
                } else {
                    self.apply_own(&mut own);
                    foreign.push((index, entry.data));
                }
                continue;
            }
            self.apply_own(&mut own);
            self.apply_foreign(&mut foreign);
            match entry.entry_type() {
                EntryType::EntryNormal => self.machine.advance(index),
                EntryType::EntryConfChange => {
                    self.apply_change(&entry);
                    self.machine.advance(index);
                }
                EntryType::EntryConfChangeV2 => {
                    tracing::warn!(index, "ignored a membership change of a kind that is not used");
                    self.machine.advance(index);
                }
            }
        }
        self.apply_own(&mut own);
        self.apply_foreign(&mut foreign);
        if writers > 0 {
            self.writers.rotate_right(1);
            self.writers[0] = writers;
            self.at_work.rotate_right(1);
            self.at_work[0] = writers + waiting;
        }
        self.shared.applied.store(last, Ordering::Release);
    }

    fn apply_own(&mut self, entries: &mut Vec<(u64, Bytes, Ticket)>) {
        if entries.is_empty() {
            return;
        }
        add(&self.shared.counters.proposals, entries.len() as u64);
        for error in self.machine.apply_own(std::mem::take(entries)) {
            self.diverge(&error);
        }
        reach(Point::Applied);
    }

    fn apply_foreign(&mut self, entries: &mut Vec<(u64, Bytes)>) {
        if entries.is_empty() {
            return;
        }
        for error in self.machine.apply_all(std::mem::take(entries)) {
            self.diverge(&error);
        }
        reach(Point::Applied);
    }

    /// This manager's state is not the others' any more.
    pub(super) fn diverge(&mut self, error: &swarm_store::ApplyError) {
        add(&self.shared.counters.failed, 1);
        tracing::error!(
            %error,
            "an entry of the raft log was skipped: this manager's state may differ from the others' and it will \
             not lead any more. To repair it, demote this node and promote it again"
        );
        self.diverged = true;
    }

    /// A leader lets a member hear that its removal is committed while it still knows the way there; and everybody
    /// else, if the member is itself, for it will be gone in the next turn.
    fn send_last_words(&mut self, raft_id: u64) {
        let raft = &mut self.raw.raft;
        if raft.state != StateRole::Leader {
            return;
        }
        if raft_id == self.shared.raft_id {
            raft.bcast_append();
        } else if raft.prs().get(raft_id).is_some() {
            raft.send_append(raft_id);
        }
        let messages = std::mem::take(&mut raft.msgs);
        self.send(messages);
    }

    pub(super) fn apply_change(&mut self, entry: &Entry) {
        let own = self.shared.raft_id;
        let Ok(change) = raftpb::ConfChange::decode(&*entry.data) else {
            tracing::error!(index = entry.index, "ignored a membership change that can't be read");
            self.changes.applied(entry.index, entry.term, Err(MembershipError::Context));
            return;
        };
        reach(Point::ChangeApplying);
        let verdict = self.membership.validate(&change);
        if let Ok(Change::Remove(raft_id)) = &verdict {
            self.send_last_words(*raft_id);
        }
        let changed = self.membership.apply(&change);
        // The library is told even of what is not valid: its voters must be the same everywhere.
        if let Some(library) = for_library(&change) {
            match self.raw.apply_conf_change(&library) {
                Ok(conf_state) => self.raw.mut_store().conf_state = conf_state,
                Err(error) => {
                    tracing::error!(index = entry.index, %error, "a membership change has no effect");
                }
            }
        }
        if changed {
            self.publish_membership();
        }
        if let Ok(Change::Remove(raft_id)) = &verdict {
            if *raft_id == own {
                self.removed = true;
            } else if *raft_id == self.raw.raft.leader_id && !self.diverged {
                // Not now: the library is in the middle of something.
                self.campaign_next = true;
            }
        }
        reach(Point::ChangeApplied);
        self.changes.applied(entry.index, entry.term, verdict.map(|_| ()));
    }
}

/// Gives a snapshot's content to the state machine.
pub(super) fn restore_store(machine: &dyn StateMachine, index: u64, store: StoreSnapshot) -> Result<()> {
    machine.restore(index, store).map_err(|e| Error::Restore { index, reason: e.to_string() })
}
