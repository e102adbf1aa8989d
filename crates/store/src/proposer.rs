//! The border between the store and raft: the store proposes, raft applies.
//!
//! Both sides move in one order. The store hands transactions to [`Proposer::propose`] in the order in which
//! they were run, without waiting for one before it runs the next. Raft appends them in that order and, as
//! entries are committed, calls [`StateMachine::apply`] in log order: with the ticket for those it proposed
//! itself in the current term, so that the store need not decode what it has in memory already.
//!
//! A transaction may build on one that is not committed yet. So when raft refuses one, everything after it in
//! the same epoch must be refused too: raft remembers the epoch of the first refusal and refuses all
//! proposals of that epoch from there on, until the store proposes with a higher one.

use bytes::Bytes;
use futures::future::BoxFuture;
use swarm_api::v1::StoreSnapshot;

use crate::{Error, View};

/// Identifies a proposal of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// Grows by one each time the store discards its staged transactions.
    pub epoch: u64,
    /// Grows by one with each proposal.
    pub number: u64,
}

/// Why proposals came to nothing, or may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Refused before it reached the log; certainly not written.
    Dropped,
    /// Leadership was lost with the proposal in the log; it may still be committed by the next leader.
    LostLeadership,
    /// The raft node is stopping; as with lost leadership, the outcome is unknown.
    Stopped,
}

/// What the store needs of the raft node.
pub trait Proposer: Send + Sync + 'static {
    /// Queues an encoded `InternalRaftRequest` for the log. Never blocks. An error means that the proposal
    /// was not queued: nothing of it will ever be applied, and the same is true of later ones of this epoch.
    /// On [`Error::Dropped`] the transaction is run again, a few times; any other error goes to its caller.
    ///
    /// The store holds its lock meanwhile, so this must neither call the [`StateMachine`] nor wait for a thread
    /// that does.
    ///
    /// A proposal may still be queued when leadership ends, and be found there when it begins again: raft
    /// refuses whatever has an epoch that was in use when it last lost leadership.
    fn propose(&self, ticket: Ticket, data: Bytes) -> Result<(), Error>;

    /// Grows each time that what was proposed is taken out of the queue, to be appended and committed together. It only
    /// says what is likely: the store is right whatever it is, and fast if it is right.
    fn turn(&self) -> u64;

    /// The commit index as of now; the base of new versions.
    fn commit_index(&self) -> u64;

    /// High 16 bits of request ids, never zero (Go peers use zero there).
    fn id_prefix(&self) -> u16;

    /// Completes once everything committed before the call is applied here and this manager is confirmed as
    /// leader by a quorum: a read after it is linearizable.
    fn read_barrier(&self) -> BoxFuture<'_, Result<(), Error>>;
}

/// An entry that could not be applied. It is skipped as a whole, as Go does, and the manager says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {index} can't be applied: {source}")]
pub struct ApplyError {
    /// Log index of the entry.
    pub index: u64,
    /// Why.
    pub source: Error,
}

/// What raft needs of the store. Every call comes from the one thread that owns the raft node.
pub trait StateMachine: Send + Sync + 'static {
    /// Applies a committed entry with data. `own` is the ticket if this process proposed it in the current
    /// term.
    fn apply(&self, index: u64, data: Bytes, own: Option<Ticket>) -> Result<(), ApplyError>;

    /// Applies committed entries with data that this process proposed in the current term, in log order, and returns what
    /// could not be applied. Their callers hear of it together: those that write again at once come back together too.
    fn apply_own(&self, entries: Vec<(u64, Bytes, Ticket)>) -> Vec<ApplyError> {
        let applied = entries.into_iter().map(|(index, data, own)| self.apply(index, data, Some(own)));
        applied.filter_map(Result::err).collect()
    }

    /// Applies committed entries with data that this process did not propose in the current term, in log order, and
    /// returns what could not be applied. Between them nobody need see the state, which is what makes this the
    /// faster way to apply many.
    fn apply_all(&self, entries: Vec<(u64, Bytes)>) -> Vec<ApplyError> {
        entries.into_iter().filter_map(|(index, data)| self.apply(index, data, None).err()).collect()
    }

    /// An entry that changes nothing in the store (empty, or a membership change) was applied.
    fn advance(&self, index: u64);

    /// The proposal `first` and all later ones of its epoch came to nothing, or may have. Those before it are
    /// not affected: of a refused proposal's predecessors raft knows that they are in the log.
    fn lost(&self, first: Ticket, why: Lost);

    /// Leadership began (`true`) or ended. While this manager is no leader, updates fail at once. It begins
    /// when everything in the log is applied, so that no foreign entry follows.
    fn leadership(&self, leader: bool);

    /// The tables as of the last applied entry, to be written into a snapshot.
    fn view(&self) -> View;

    /// Replaces everything by a snapshot's content, taken at `index`.
    fn restore(&self, index: u64, snapshot: StoreSnapshot) -> Result<(), Error>;
}
