//! What others want of the raft thread: one lock, one condition, everything taken at once.
//!
//! Bounds: proposals by number and bytes, messages by number. What does not fit is refused at once, so that the
//! sender knows; nobody waits for room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use swarm_api::raftpb::Message;
use swarm_store::Ticket;
use tokio::sync::oneshot;

use crate::failover::{Doubt, Standing};
use crate::fetch::Offer;
use crate::membership::Change;
use crate::storage::Position;
use crate::{Error, Result, Sealer};

const MAX_PROPOSALS: usize = 16 * 1024;
const MAX_PROPOSED_BYTES: usize = 64 * 1024 * 1024;
const MAX_MESSAGES: usize = 4096;

/// Answers a request; the receiver may be gone.
pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// A wish that is neither a proposal nor a message.
#[derive(Debug)]
pub(crate) enum Request {
    Read(oneshot::Sender<Result<(), swarm_store::Error>>),
    Change(Change, Reply<()>),
    Transfer(Option<u64>, Reply<u64>),
    Campaign,
    TakeOver(Doubt),
    Standing(oneshot::Sender<Standing>),
    Tick,
    Unreachable(u64),
    Removed,
    SnapshotSent(u64, bool),
    SnapshotTaken(Position, Result<()>),
    Entries { from: u64, to: u64, max_bytes: u64, reply: Reply<Vec<(u64, Bytes)>> },
    Offer(Reply<Offer>),
    Reseal(Arc<dyn Sealer>, Reply<()>),
    Stop,
}

/// Everything that came since the last turn.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) messages: Vec<Message>,
    pub(crate) requests: Vec<Request>,
    pub(crate) proposals: Vec<(Ticket, Bytes)>,
}

#[derive(Debug, Default)]
struct State {
    batch: Batch,
    bytes: usize,
    closed: bool,
    /// The raft thread sleeps, and this many proposals wake it.
    wake_at: Option<usize>,
}

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    filled: Condvar,
    /// How often proposals were taken. Changes under the lock.
    turn: AtomicU64,
}

/// How long the raft thread waits for more proposals once it has the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gather {
    /// So many are expected.
    pub(crate) expected: usize,
    /// Enough to go on at once.
    pub(crate) enough: usize,
    /// Longest wait.
    pub(crate) at_most: Duration,
    /// Longest wait in which no proposal comes, as long as expected ones are missing.
    pub(crate) patience: Duration,
    /// The same once all that are expected are there.
    pub(crate) gap: Duration,
}

impl Inbox {
    /// Queues a proposal.
    pub(crate) fn propose(&self, ticket: Ticket, data: Bytes) -> Result<(), swarm_store::Error> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(swarm_store::Error::Stopped);
        }
        if state.batch.proposals.len() >= MAX_PROPOSALS || state.bytes >= MAX_PROPOSED_BYTES {
            return Err(swarm_store::Error::Dropped);
        }
        state.bytes += data.len();
        state.batch.proposals.push((ticket, data));
        if state.wake_at.is_some_and(|n| state.batch.proposals.len() >= n) {
            state.wake_at = None;
            self.filled.notify_one();
        }
        Ok(())
    }

    /// See [`swarm_store::Proposer::turn`].
    pub(crate) fn turn(&self) -> u64 {
        self.turn.load(Ordering::Relaxed)
    }

    /// Number of proposals that wait.
    pub(crate) fn proposals(&self) -> usize {
        self.state.lock().batch.proposals.len()
    }

    /// Queues a message from a peer.
    pub(crate) fn message(&self, message: Message) -> Result<()> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::Stopped);
        }
        if state.batch.messages.len() >= MAX_MESSAGES {
            return Err(Error::Overloaded);
        }
        state.batch.messages.push(message);
        self.wake(&mut state);
        Ok(())
    }

    /// Queues a request; `false` if the node is stopped, and with it the request is dropped.
    pub(crate) fn request(&self, request: Request) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        state.batch.requests.push(request);
        self.wake(&mut state);
        true
    }

    fn wake(&self, state: &mut State) {
        if state.wake_at.take().is_some() {
            self.filled.notify_one();
        }
    }

    /// Waits until there is something or the deadline has passed, and takes all of it. With `gather`, lone
    /// proposals wait a little for others.
    pub(crate) fn take(&self, deadline: Option<Instant>, gather: Option<Gather>, into: &mut Batch) {
        let mut state = self.state.lock();
        while state.batch.is_empty() {
            state.wake_at = Some(1);
            let timed_out = match deadline {
                Some(deadline) => self.filled.wait_until(&mut state, deadline).timed_out(),
                None => {
                    self.filled.wait(&mut state);
                    false
                }
            };
            if timed_out {
                break;
            }
        }
        if let Some(Gather { expected, enough, at_most, patience, gap }) = gather {
            let until = Instant::now() + at_most;
            while state.batch.only_proposals() && state.batch.proposals.len() < enough {
                let before = state.batch.proposals.len();
                let (next, gap) = if before < expected { (expected, patience) } else { (enough, gap) };
                state.wake_at = Some(next);
                let now = Instant::now();
                if now >= until {
                    break;
                }
                let timed_out = self.filled.wait_until(&mut state, until.min(now + gap)).timed_out();
                if timed_out && state.batch.proposals.len() == before {
                    break;
                }
            }
        }
        state.wake_at = None;
        state.bytes = 0;
        if !state.batch.proposals.is_empty() {
            self.turn.fetch_add(1, Ordering::Relaxed);
        }
        std::mem::swap(&mut state.batch, into);
    }

    /// Refuses everything from now on and takes what is left.
    pub(crate) fn close(&self) -> Batch {
        let mut state = self.state.lock();
        state.closed = true;
        std::mem::take(&mut state.batch)
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.requests.is_empty() && self.proposals.is_empty()
    }

    fn only_proposals(&self) -> bool {
        self.messages.is_empty() && self.requests.is_empty() && !self.proposals.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKET: Ticket = Ticket { epoch: 1, number: 1 };
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn everything_is_taken_at_once() {
        let inbox = Inbox::default();
        inbox.propose(TICKET, Bytes::new()).unwrap();
        inbox.message(Message::default()).unwrap();
        assert!(inbox.request(Request::Tick));
        let mut batch = Batch::default();
        inbox.take(None, None, &mut batch);
        assert_eq!((batch.proposals.len(), batch.messages.len(), batch.requests.len()), (1, 1, 1));
        let mut batch = Batch::default();
        inbox.take(Some(Instant::now()), None, &mut batch);
        assert!(batch.is_empty());
    }

    #[test]
    fn gathering_ends_when_nobody_comes_or_time_is_up() {
        let inbox = Inbox::default();
        let short = Duration::from_millis(1);
        // Nobody more is expected; somebody is; nobody counts who comes that late.
        for (expected, at_most, patience, gap) in
            [(1, HOUR, HOUR, short), (2, HOUR, short, HOUR), (2, short, HOUR, HOUR), (1, short, HOUR, HOUR)]
        {
            inbox.propose(TICKET, Bytes::new()).unwrap();
            let mut batch = Batch::default();
            inbox.take(None, Some(Gather { expected, enough: 3, at_most, patience, gap }), &mut batch);
            assert_eq!(batch.proposals.len(), 1);
        }
    }

    #[test]
    fn full_queues_refuse() {
        let inbox = Inbox::default();
        let half = Bytes::from(vec![0; MAX_PROPOSED_BYTES / 2]);
        inbox.propose(TICKET, half.clone()).unwrap();
        inbox.propose(TICKET, half).unwrap();
        assert_eq!(inbox.propose(TICKET, Bytes::new()), Err(swarm_store::Error::Dropped));
        for _ in 0..MAX_MESSAGES {
            inbox.message(Message::default()).unwrap();
        }
        assert!(matches!(inbox.message(Message::default()), Err(Error::Overloaded)));
        assert_eq!(inbox.close().proposals.len(), 2);
        assert_eq!(inbox.propose(TICKET, Bytes::new()), Err(swarm_store::Error::Stopped));
        assert!(!inbox.request(Request::Tick));
    }

    #[test]
    fn gathering_ends_when_there_is_enough_or_something_else_to_do() {
        let inbox = Inbox::default();
        let gather = Some(Gather { expected: 1, enough: 2, at_most: HOUR, patience: HOUR, gap: HOUR });
        let mut batch = Batch::default();
        inbox.propose(TICKET, Bytes::new()).unwrap();
        inbox.propose(TICKET, Bytes::new()).unwrap();
        inbox.take(None, gather, &mut batch);
        assert_eq!(batch.proposals.len(), 2);
        let mut batch = Batch::default();
        inbox.propose(TICKET, Bytes::new()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| inbox.request(Request::Tick));
            inbox.take(None, gather, &mut batch);
        });
        assert_eq!(batch.proposals.len(), 1);
    }
}
