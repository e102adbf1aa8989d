//! The raft node as the rest of the manager sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use swarm_api::raftpb::Message;
use swarm_store::{Proposer, Ticket};
use tokio::sync::{oneshot, watch};

use crate::check::{self, Verdict};
use crate::counters::Counters;
use crate::failover::{Closed, Doubt, Heard, Standing};
use crate::fetch::Offer;
use crate::inbox::{Inbox, Reply, Request};
use crate::{Change, Counts, Error, Membership, Result, Sealer, Ticks, Transport};

/// What this member is in its term.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks for votes.
    Candidate,
    /// Was elected, and applies what its predecessors left.
    Elected,
    /// Leads: everything in its log when it was elected is applied, and proposals are taken.
    Leader,
}

/// State of a raft node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Own raft id.
    pub raft_id: u64,
    /// What this member is.
    pub role: Role,
    /// Raft id of the leader as this member knows it, or 0.
    pub leader: u64,
    /// Current term.
    pub term: u64,
    /// An entry could not be applied: this manager's state differs from the others', and it will not lead.
    pub diverged: bool,
}

/// How a raft node ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It was told to stop.
    Stopped,
    /// It was removed from the group.
    Removed,
    /// It could not go on.
    Failed(Arc<Error>),
}

/// What the raft thread and everybody else share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) raft_id: u64,
    pub(crate) inbox: Inbox,
    pub(crate) commit: AtomicU64,
    pub(crate) applied: AtomicU64,
    /// This member leads and is the only one, so that its own word is a quorum's.
    pub(crate) alone: AtomicBool,
    /// Consecutive ticks without a known leader.
    pub(crate) leaderless: AtomicU64,
    pub(crate) heard: Heard,
    pub(crate) closed: Closed,
    /// Since when the log is being written and synced.
    pub(crate) writing: Mutex<Option<Instant>>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) membership: watch::Sender<Arc<Membership>>,
    pub(crate) outcome: watch::Sender<Option<Outcome>>,
    pub(crate) counters: Counters,
}

impl Shared {
    pub(crate) fn new(raft_id: u64) -> Arc<Shared> {
        Arc::new(Shared {
            raft_id,
            inbox: Inbox::default(),
            commit: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            alone: AtomicBool::new(false),
            leaderless: AtomicU64::new(0),
            heard: Heard::default(),
            closed: Closed::default(),
            writing: Mutex::default(),
            status: watch::Sender::new(Status { raft_id, ..Status::default() }),
            membership: watch::Sender::new(Arc::new(Membership::default())),
            outcome: watch::Sender::new(None),
            counters: Counters::default(),
        })
    }

    /// Where this member stands, by the raft thread itself: what it has sent before it says so.
    pub(crate) async fn standing(&self) -> Result<Standing> {
        let (reply, answer) = oneshot::channel();
        if !self.inbox.request(Request::Standing(reply)) {
            return Err(Error::Stopped);
        }
        answer.await.map_err(|_| Error::Stopped)
    }

    /// Has this member ask for votes at once, unless anything has changed since the doubt arose.
    pub(crate) fn take_over(&self, doubt: Doubt) {
        self.inbox.request(Request::TakeOver(doubt));
    }

    /// The state for a manager that is about to join.
    pub(crate) async fn offer(&self) -> Result<Offer> {
        self.ask(Request::Offer).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        if !self.inbox.request(request(reply)) {
            return Err(Error::Stopped);
        }
        answer.await.unwrap_or(Err(Error::Stopped))
    }
}

/// The [`Proposer`] of a raft node; may be made before the node is started.
#[derive(Debug)]
pub(crate) struct RaftProposer(pub(crate) Arc<Shared>);

impl Proposer for RaftProposer {
    fn propose(&self, ticket: Ticket, data: Bytes) -> Result<(), swarm_store::Error> {
        self.0.inbox.propose(ticket, data)
    }

    fn turn(&self) -> u64 {
        self.0.inbox.turn()
    }

    fn commit_index(&self) -> u64 {
        self.0.commit.load(Ordering::Acquire)
    }

    fn id_prefix(&self) -> u16 {
        id_prefix(self.0.raft_id)
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<(), swarm_store::Error>> {
        // Alone, whatever was acknowledged to anybody is applied here, and nobody else can lead.
        if self.0.alone.load(Ordering::Acquire) {
            return futures::future::ready(Ok(())).boxed();
        }
        let (reply, answer) = oneshot::channel();
        let sent = self.0.inbox.request(Request::Read(reply));
        async move {
            if !sent {
                return Err(swarm_store::Error::Stopped);
            }
            answer.await.unwrap_or(Err(swarm_store::Error::Stopped))
        }
        .boxed()
    }
}

/// High bits of request ids: from the raft id, and never zero, which is what Go peers use.
pub(crate) fn id_prefix(raft_id: u64) -> u16 {
    let mixed = raft_id ^ (raft_id >> 16) ^ (raft_id >> 32) ^ (raft_id >> 48);
    (mixed as u16).max(1)
}

/// Stops the raft thread when the last handle is gone.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.inbox.request(Request::Stop);
    }
}

/// A running raft node. Clones are the same node; it stops when the last one is dropped.
#[derive(Debug, Clone)]
pub struct RaftHandle {
    shared: Arc<Shared>,
    owner: Arc<Owner>,
    transport: Transporter,
    ticks: Ticks,
}

/// Only so that a handle can be printed.
#[derive(Clone)]
struct Transporter(Arc<dyn Transport>);

impl std::fmt::Debug for Transporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

impl RaftHandle {
    pub(crate) fn new(
        shared: Arc<Shared>,
        thread: JoinHandle<()>,
        transport: Arc<dyn Transport>,
        ticks: Ticks,
    ) -> RaftHandle {
        let owner = Arc::new(Owner { shared: shared.clone(), thread: Mutex::new(Some(thread)) });
        RaftHandle { shared, owner, transport: Transporter(transport), ticks }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Own raft id.
    pub fn raft_id(&self) -> u64 {
        self.shared.raft_id
    }

    /// State as of now.
    pub fn status(&self) -> Status {
        *self.shared.status.borrow()
    }

    /// State, and every change of it.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Waits until a state holds.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the node stops before.
    pub async fn wait_for(&self, holds: impl FnMut(&Status) -> bool) -> Result<Status> {
        let mut status = self.watch_status();
        let mut outcome = self.shared.outcome.subscribe();
        tokio::select! {
            found = status.wait_for(holds) => found.map(|s| *s).map_err(|_| Error::Stopped),
            _ = outcome.wait_for(Option::is_some) => Err(Error::Stopped),
        }
    }

    /// The clock of elections that this member was started with.
    pub fn ticks(&self) -> Ticks {
        self.ticks
    }

    /// Consecutive ticks in which this member has known no leader.
    pub fn ticks_without_leader(&self) -> u64 {
        self.shared.leaderless.load(Ordering::Acquire)
    }

    /// How long the disk has not answered a write of the log by now. As long as it does not, this member does nothing at
    /// all, whatever [`RaftHandle::status`] says of it, and the others elect another leader.
    pub fn writing_for(&self) -> Duration {
        self.shared.writing.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The member can be reached from here as of now; this one always can.
    pub fn is_reachable(&self, raft_id: u64) -> bool {
        raft_id == self.raft_id() || self.transport.0.is_active(raft_id)
    }

    /// Without this member the group would still have a quorum that can be reached. Never true of the last one.
    pub fn can_remove(&self, raft_id: u64) -> bool {
        self.membership().can_remove(raft_id, self.raft_id(), |id| self.is_reachable(id))
    }

    /// Index of the last committed entry that this member knows of.
    pub fn commit_index(&self) -> u64 {
        self.shared.commit.load(Ordering::Acquire)
    }

    /// Index of the last applied entry.
    pub fn applied_index(&self) -> u64 {
        self.shared.applied.load(Ordering::Acquire)
    }

    /// Members as of the last applied entry.
    pub fn membership(&self) -> Arc<Membership> {
        self.shared.membership.borrow().clone()
    }

    /// Members, and every change of them.
    pub fn watch_membership(&self) -> watch::Receiver<Arc<Membership>> {
        self.shared.membership.subscribe()
    }

    /// Counters since the start.
    pub fn counts(&self) -> Counts {
        self.shared.counters.read()
    }

    /// What the store proposes through.
    pub fn proposer(&self) -> Arc<dyn Proposer> {
        Arc::new(RaftProposer(self.shared.clone()))
    }

    /// Takes a message from a peer. `Ok` does not mean that it had an effect: what makes no sense is ignored.
    ///
    /// Vote requests are to be passed on only if their sender can be reached, which is the caller's to find out.
    ///
    /// # Errors
    /// [`Error::MemberRemoved`] if the sender was removed, [`Error::Overloaded`], [`Error::Stopped`].
    pub fn step(&self, message: Message) -> Result<()> {
        let membership = self.membership();
        match check::admit(&message, self.shared.raft_id, &membership) {
            Verdict::Take => {
                if check::is_leaders(&message) && message.term >= self.status().term {
                    self.shared.heard.note();
                }
                self.shared.inbox.message(message)
            }
            Verdict::RemovedSender => Err(Error::MemberRemoved),
            Verdict::Ignore(reason) => {
                crate::counters::add(&self.shared.counters.ignored, 1);
                tracing::debug!(from = format!("{:x}", message.from), reason, "ignored a raft message");
                Ok(())
            }
            Verdict::LogLost => Ok(()),
        }
    }

    /// A message to this member could not be delivered.
    pub fn report_unreachable(&self, raft_id: u64) {
        self.shared.inbox.request(Request::Unreachable(raft_id));
    }

    /// A member answered that this one was removed. The node ends with [`Outcome::Removed`].
    pub fn report_removed(&self) {
        self.shared.inbox.request(Request::Removed);
    }

    /// How sending a snapshot to this member ended.
    pub fn report_snapshot(&self, raft_id: u64, delivered: bool) {
        self.shared.inbox.request(Request::SnapshotSent(raft_id, delivered));
    }

    /// Changes the membership; returns when the change is applied here. A member is removed only if a quorum that can be
    /// reached is left.
    ///
    /// # Errors
    /// [`Error::Membership`] if it is not valid or not safe, [`Error::LostLeadership`] if this member does not lead (the
    /// outcome is unknown if it did), [`Error::Stopped`].
    pub async fn change_membership(&self, change: Change) -> Result<()> {
        self.shared.ask(|reply| Request::Change(change, reply)).await
    }

    /// Hands leadership to a member, or to the one with the longest log, and waits until another one leads.
    ///
    /// # Errors
    /// [`Error::NoTransferee`], [`Error::LostLeadership`] if this member does not lead,
    /// [`Error::TransferTimeout`].
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<()> {
        self.shared.ask(|reply| Request::Transfer(to, reply)).await?;
        let own = self.raft_id();
        let other = self.wait_for(|status| status.leader != 0 && status.leader != own);
        let limit = self.ticks.request_timeout();
        match tokio::time::timeout(limit, other).await {
            Ok(result) => result.map(|_| ()),
            Err(_) => Err(Error::TransferTimeout(limit)),
        }
    }

    /// Asks for votes at once, whatever the clock says.
    pub fn campaign(&self) {
        self.shared.inbox.request(Request::Campaign);
    }

    /// One tick of the clock of elections, for nodes without a clock of their own.
    pub fn tick(&self) {
        self.shared.inbox.request(Request::Tick);
    }

    /// Seals the log and its snapshots with another key; returns when nothing else is left on disk. Until then, and
    /// after an error, some of it is sealed with the new key and some with the old one, so the sealer must open both.
    ///
    /// # Errors
    /// What writing gives, after which the node goes on and the call may be repeated; [`Error::Overloaded`] while
    /// another such change is under way; [`Error::Stopped`].
    pub async fn reseal(&self, sealer: Arc<dyn Sealer>) -> Result<()> {
        self.shared.ask(|reply| Request::Reseal(sealer, reply)).await
    }

    /// Index and data of normal entries from `from` to `to` inclusive, as far as `max_bytes` allows, at least one.
    /// Those that are compacted or not applied yet are not among them: the caller sees where the answer begins.
    ///
    /// # Errors
    /// [`Error::Stopped`], and what reading the log gives.
    pub async fn entries(&self, from: u64, to: u64, max_bytes: u64) -> Result<Vec<(u64, Bytes)>> {
        self.shared.ask(|reply| Request::Entries { from, to, max_bytes, reply }).await
    }

    /// Waits until the node has ended, for whatever reason.
    pub async fn ended(&self) -> Outcome {
        let mut outcome = self.shared.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Outcome::Stopped),
            Err(_) => Outcome::Stopped,
        }
    }

    /// Stops the node and waits for its end; everything it has written is safe then. Harmless if it has ended.
    pub async fn stop(&self) -> Outcome {
        self.shared.inbox.request(Request::Stop);
        let outcome = self.ended().await;
        let thread = self.owner.thread.lock().take();
        if let Some(thread) = thread {
            // It has announced its end already, so this takes no time worth a thread of its own.
            let _ = thread.join();
        }
        outcome
    }
}
