//! The loop. One thread owns the raft library's node, its log and the order in which things become visible.
//!
//! A turn: take what came in; step messages, then requests, then proposals, then the clock; then, as long as the
//! library has something ready: send what may leave before the disk has it (a leader's messages), write entries and
//! hard state at once, sync them if a promise rests on them, send what rests on that, and apply what is committed.
//!
//! Nothing is acknowledged to anyone before what it rests on is synced.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use raft::{RawNode, StateRole};
use swarm_api::raftpb::{Message, MessageType};
use swarm_store::{Lost, StateMachine};

use super::changes::Changes;
use super::compaction::Compaction;
use super::proposals::Proposals;
use super::reads::Reads;
use super::ready::restore_store;
use super::reseal::Reseal;
use super::{RaftNode, Shared};
use crate::handle::Outcome;
use crate::inbox::{Batch, Gather, Request};
use crate::log::Log;
use crate::snapshot::Snapshots;
use crate::storage::Write;
use crate::{Config, Error, Membership, Outgoing, Result};

/// Bytes of entries in one append message, as in the original; a larger entry goes alone.
const MAX_APPEND_BYTES: u64 = 65_535;
/// Append messages to one member that are not answered yet, as in the original.
const MAX_IN_FLIGHT: usize = 256;
/// Bytes of entries that are applied before the library is asked for more.
const MAX_APPLY_BYTES: u64 = 8 * 1024 * 1024;
/// Longest wait for further proposals when several writers are at work; see [`Turns::gather`].
const GATHER: Duration = Duration::from_millis(3);
/// Longest wait for the next of them, as long as fewer are there than were just answered.
const GATHER_PATIENCE: Duration = Duration::from_micros(1500);
/// Longest wait for the next beyond those.
const GATHER_GAP: Duration = Duration::from_micros(150);
/// From so many on it is the processor that writers wait for, and a wait for one of them takes nothing from the others.
const MANY: usize = 12;
/// Turns that are looked back on.
const REMEMBERED: usize = 8;

/// How long others may not know how far the log is committed. Most often the next entry tells them in that time, and spares
/// them a message each, and the leader their answers (decision 0083).
const COMMIT_DELAY: Duration = Duration::from_millis(3);

/// Runs a node until it stops; the thread's whole life.
pub(super) fn run(node: RaftNode, state_machine: Arc<dyn StateMachine>) {
    let shared = node.shared.clone();
    let _entered = node.config.points.enter();
    let started = catch_unwind(AssertUnwindSafe(|| Turns::new(node, state_machine.clone())));
    let outcome = match started {
        Ok(Ok(mut turns)) => {
            let ended = catch_unwind(AssertUnwindSafe(|| turns.run()));
            let ended = ended.unwrap_or_else(|panic| Err(Error::Panicked(panic_text(&*panic))));
            turns.end(ended)
        }
        Ok(Err(error)) => Outcome::Failed(Arc::new(error)),
        Err(panic) => Outcome::Failed(Arc::new(Error::Panicked(panic_text(&*panic)))),
    };
    match &outcome {
        Outcome::Stopped => tracing::debug!("the raft node stopped"),
        Outcome::Removed => tracing::info!("this manager was removed from the cluster"),
        Outcome::Failed(error) => tracing::error!(%error, "the raft node ended"),
    }
    // For those that came in before the inbox was closed, or when the start failed.
    drop(shared.inbox.close());
    shared.outcome.send_replace(Some(outcome));
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

/// Why the loop ends without an error.
enum End {
    Stopped,
    Removed,
}

pub(super) struct Turns {
    pub(super) raw: RawNode<Log>,
    pub(super) machine: Arc<dyn StateMachine>,
    pub(super) shared: Arc<Shared>,
    pub(super) config: Config,
    pub(super) snapshots: Snapshots,
    pub(super) membership: Membership,
    pub(super) proposals: Proposals,
    pub(super) reads: Reads,
    pub(super) changes: Changes,
    pub(super) compaction: Compaction,
    pub(super) reseal: Option<Reseal>,
    /// Leadership was announced.
    pub(super) leads: bool,
    pub(super) diverged: bool,
    pub(super) removed: bool,
    pub(super) stopping: bool,
    /// The leader was removed: somebody else must take over.
    pub(super) campaign_next: bool,
    pub(super) seed: u64,
    pub(super) next_tick: Option<Instant>,
    /// How far the others were told that the log is committed, and when they will be told more.
    pub(super) commit_told: u64,
    tell_commit_at: Option<Instant>,
    /// Proposals that were committed in the last turns that had any, the newest first.
    pub(super) writers: [usize; REMEMBERED],
    /// The same with those that waited for the next turn by then: all that are at work.
    pub(super) at_work: [usize; REMEMBERED],
}

impl Turns {
    pub(super) fn new(node: RaftNode, machine: Arc<dyn StateMachine>) -> Result<Turns> {
        let RaftNode { config, log, snapshots, shared, membership, restore } = node;
        let mut applied = 0;
        if let Some((meta, store)) = restore {
            applied = meta.at.index;
            if let Some(store) = store {
                restore_store(&*machine, applied, store)?;
            }
        }
        let ticks = config.ticks;
        let library = raft::Config {
            id: shared.raft_id,
            election_tick: ticks.election as usize,
            heartbeat_tick: ticks.heartbeat as usize,
            applied,
            max_size_per_msg: MAX_APPEND_BYTES,
            max_inflight_msgs: MAX_IN_FLIGHT,
            check_quorum: true,
            // Until all others are known to be ours.
            pre_vote: false,
            // Told by `tell_commit`.
            skip_bcast_commit: true,
            max_committed_size_per_ready: MAX_APPLY_BYTES,
            ..raft::Config::default()
        };
        let raw = RawNode::new(&library, log, &crate::logger::logger()).map_err(Error::Start)?;
        let seed = config.seed.unwrap_or_else(rand::random);
        let mut turns = Turns {
            raw,
            machine,
            shared,
            config,
            snapshots,
            membership,
            proposals: Proposals::default(),
            reads: Reads::default(),
            changes: Changes::default(),
            compaction: Compaction::after(applied),
            reseal: None,
            leads: false,
            diverged: false,
            removed: false,
            stopping: false,
            campaign_next: false,
            seed,
            next_tick: ticks.interval.map(|interval| Instant::now() + interval),
            commit_told: 0,
            tell_commit_at: None,
            writers: [0; REMEMBERED],
            at_work: [0; REMEMBERED],
        };
        turns.shared.applied.store(applied, Ordering::Release);
        turns.publish_membership();
        Ok(turns)
    }

    fn run(&mut self) -> Result<End> {
        let mut batch = Batch::default();
        self.settle()?;
        if !self.raw.raft.promotable() {
            // What the leader sent before this member ran it has not taken.
            self.knock();
        }
        loop {
            if self.removed {
                return Ok(End::Removed);
            }
            if self.stopping {
                return Ok(End::Stopped);
            }
            let compact = self.compaction.is_behind().then(Instant::now);
            let due = [self.next_tick, self.tell_commit_at, compact].into_iter().flatten().min();
            self.shared.inbox.take(due, self.gather(), &mut batch);
            for message in batch.messages.drain(..) {
                self.step(message)?;
            }
            for request in batch.requests.drain(..) {
                self.request(request)?;
            }
            self.propose(&mut batch.proposals);
            self.tick_if_due()?;
            self.settle()?;
            self.tell_commit()?;
            self.compact_some()?;
        }
    }

    /// How long to wait for further proposals. While several writers are at work, those that were just answered
    /// will be back in a moment; as long as one after the other comes, waiting for the next costs them little, and
    /// saves a turn with its sync. A lone writer never waits. Where they are many, some are left for the next turn: what they
    /// want is staged while the others' is synced.
    fn gather(&self) -> Option<Gather> {
        let most = |turns: &[usize]| turns.iter().copied().max().unwrap_or_default();
        // Where they are many, a turn that had few was short of processor time, not of writers.
        let (expected, enough, patience) = if most(&self.writers) >= MANY {
            let share = most(&self.at_work) * 2 / 3;
            (share, share, GATHER_PATIENCE)
        } else {
            let expected = most(&self.writers[..2]);
            (expected, expected + expected / 2, GATHER_GAP)
        };
        let gather = Gather { expected, enough, at_most: GATHER, patience, gap: GATHER_GAP };
        (self.leads && expected >= 4).then_some(gather)
    }

    /// Does everything that follows from what was stepped.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.pin_election_timeout();
        loop {
            self.finish_writes()?;
            if std::mem::take(&mut self.campaign_next) || self.may_lead_alone() {
                self.campaign();
                continue;
            }
            self.announce_leadership();
            if !self.propose_change() && !self.start_reads() {
                break;
            }
        }
        self.reads.applied(self.raw.raft.raft_log.applied);
        self.maybe_snapshot();
        self.publish_status();
        Ok(())
    }

    /// Tells the others how far the log is committed, if no entry has for a while.
    fn tell_commit(&mut self) -> Result<()> {
        let raft = &mut self.raw.raft;
        let untold = raft.raft_log.committed > self.commit_told;
        if !untold || raft.state != StateRole::Leader || self.membership.members().count() < 2 {
            self.tell_commit_at = None;
            return Ok(());
        }
        let now = Instant::now();
        if now < *self.tell_commit_at.get_or_insert(now + COMMIT_DELAY) {
            return Ok(());
        }
        self.tell_commit_at = None;
        self.commit_told = raft.raft_log.committed;
        raft.bcast_append();
        self.settle()
    }

    /// Asks for votes, if the log makes this node a member. The library would make a leader of one that knows of no
    /// member at all, and panic.
    pub(super) fn campaign(&mut self) {
        if self.raw.raft.promotable() {
            let _ = self.raw.campaign();
        }
    }

    /// Ticks if it is time. Ticks that were missed, because the host slept or a turn took long, are dropped: a
    /// manager that wakes up must not campaign before it has read what others sent.
    fn tick_if_due(&mut self) -> Result<()> {
        let (Some(due), Some(interval)) = (self.next_tick, self.config.ticks.interval) else { return Ok(()) };
        let now = Instant::now();
        if now >= due {
            self.next_tick = Some((due + interval).max(now + interval / 2));
            self.tick()?;
        }
        Ok(())
    }

    pub(super) fn tick(&mut self) -> Result<()> {
        self.finish_writes()?;
        if self.diverged && self.raw.raft.state != StateRole::Leader {
            self.raw.raft.election_elapsed = 0;
        }
        self.set_pre_vote();
        self.raw.tick();
        if self.raw.raft.leader_id == 0 {
            let ticks = self.shared.leaderless.fetch_add(1, Ordering::AcqRel) + 1;
            if !self.raw.raft.promotable() && ticks.is_multiple_of(u64::from(self.config.ticks.election)) {
                self.knock();
            }
        }
        Ok(())
    }

    /// A member whose log does not make it one yet can't campaign, so it would never be told that it was removed
    /// before it heard anything. Those that know answer any message; the leader sends it what it lacks, and to others this
    /// one says nothing.
    fn knock(&self) {
        let (own, term) = (self.shared.raft_id, self.raw.raft.term.max(1));
        let knock = |to| {
            let r#type = MessageType::MsgHeartbeatResp as i32;
            Outgoing::Message(Message { r#type, to, from: own, term, ..Message::default() })
        };
        let others = self.membership.members().map(|m| m.raft_id).filter(|id| *id != own);
        self.config.transport.send(others.map(knock).collect());
    }

    /// The library draws election timeouts at random; ours depend on the seed, the member and the term, so that
    /// a simulation can be repeated.
    fn pin_election_timeout(&mut self) {
        let election = u64::from(self.config.ticks.election);
        let mixed = (self.seed ^ self.shared.raft_id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ self.raw.raft.term).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let timeout = (election + (mixed >> 32) % election) as usize;
        if self.raw.raft.randomized_election_timeout() != timeout {
            self.raw.raft.set_randomized_election_timeout(timeout);
        }
    }

    fn end(mut self, ended: Result<End>) -> Outcome {
        let mut left = self.shared.inbox.close();
        self.give_up_leadership(Lost::Stopped);
        for first in self.proposals.admit(&mut left.proposals, false) {
            self.machine.lost(first, Lost::Stopped);
        }
        for request in left.requests {
            if let Request::Read(reply) = request {
                let _ = reply.send(Err(swarm_store::Error::Stopped));
            }
        }
        self.compaction.wait();
        self.compaction.wait_for_collected();
        let end = match ended {
            Ok(end) => end,
            Err(error) => return Outcome::Failed(Arc::new(error)),
        };
        // The commit index was left behind; with it the next start applies everything before there is a leader.
        let hard_state = self.raw.raft.hard_state();
        let write = Write { hard_state: Some(&hard_state), ..Write::default() };
        match (self.raw.mut_store().write(&write, true), end) {
            (Err(error), _) => Outcome::Failed(Arc::new(error)),
            (Ok(()), End::Stopped) => Outcome::Stopped,
            (Ok(()), End::Removed) => Outcome::Removed,
        }
    }
}
