//! The staged writer. Transactions run one at a time on the *staged* tables: the committed ones with every
//! transaction in flight on top. Each becomes one proposal; none waits for the one before it.
//!
//! What is staged can fall through: a proposal may be refused, leadership may be lost, an entry of somebody
//! else may come in between. Each of these changes the `generation`; a closure that ran meanwhile is run
//! again before anything of it is proposed. Rules on stamps and epochs: `docs/decisions/0006-staged-writer.md`.

use std::collections::VecDeque;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use prost::Message as _;
use swarm_api::defaults::MAX_TRANSACTION_BYTES;
use swarm_api::v1::InternalRaftRequest;
use tokio::sync::{OwnedSemaphorePermit, broadcast, oneshot};

use crate::commit::{Followers, Kinds};
use crate::store::UNIT;
use crate::tx::actions;
use crate::{ApplyError, Commit, Error, Event, Proposer, Store, Subscription, Tables, Ticket, Tx, View};

/// What became of a transaction in flight.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    /// Applied as this entry.
    Committed(u64),
    /// Certainly not written; run the closure again.
    Refused,
    /// It failed, or may have.
    Failed(Error),
}

type Waiter = oneshot::Sender<Fate>;

/// What running a closure came to.
pub(crate) enum Step<R, E> {
    /// Its answer is final, as of this index.
    Done(Result<R, E>, u64),
    /// It changed nothing. Its answer holds if what it waits for is committed, and if this manager led when it ran.
    Read {
        /// The closure's own.
        result: Result<R, E>,
        /// The fate of what it may have read.
        after: Option<oneshot::Receiver<Fate>>,
        /// As of this index, if there is nothing to wait for.
        index: u64,
        /// Of what the closure was run on; see [`State::generation`].
        generation: u64,
    },
    /// Its answer holds if what it waits for is committed.
    Wait(Result<R, E>, oneshot::Receiver<Fate>),
    /// Nothing could be proposed; run it again after this.
    Again {
        /// Raft refused this very transaction, as against: others have to be decided first.
        refused: bool,
        /// When to run it again.
        after: oneshot::Receiver<Fate>,
    },
}

/// Waiters to be told once no lock is held.
#[derive(Default)]
#[must_use]
pub(crate) struct Wakes(Vec<(Waiter, Fate)>);

impl Wakes {
    fn add(&mut self, waiters: Vec<Waiter>, fate: &Fate) {
        self.0.extend(waiters.into_iter().map(|w| (w, fate.clone())));
    }

    /// In the order in which the transactions were staged. One that nobody waits for any more is skipped.
    pub(crate) fn send(self) {
        for (waiter, fate) in self.0 {
            let _ = waiter.send(fate);
        }
    }
}

/// A transaction in flight.
struct Pending {
    ticket: Ticket,
    /// The version on its objects.
    stamp: u64,
    events: Vec<Event>,
    /// Set if it does not fit on what was applied before it.
    unfit: Option<Error>,
    /// Its caller, and those whose answer rests on it.
    waiters: Vec<Waiter>,
    _room: OwnedSemaphorePermit,
}

/// Transactions in flight, one behind the other, that are committed together if all goes well. Only the tables after the
/// last of them are kept: so what several of them change is copied once.
struct Segment {
    number: u64,
    /// How many are left of it.
    pending: usize,
    /// Encoded bytes of them all.
    bytes: usize,
    /// The proposer's turn in which it began; none if no other transaction may join it.
    turn: Option<u64>,
    /// The tables after all of them. None while a closure runs on them, if one panicked, or if a large one took them.
    tables: Option<Tables>,
}

/// Bytes of transactions that share tables. With several managers raft commits about so many at once; and no more are
/// made again where it commits others than were staged together.
const MAX_SEGMENT_BYTES: usize = 64 * 1024;

/// How a transaction is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// Together with others, if there are some.
    Any,
    /// As a commit of its own.
    Alone,
}

/// What a closure starts from.
struct Base {
    generation: u64,
    tables: Tables,
    /// The segment that the tables were taken from, to be given back.
    segment: Option<u64>,
    turn: Option<u64>,
    last_stamp: u64,
    applied: u64,
    proposer: Option<Arc<dyn Proposer>>,
}

/// Everything behind the store's second lock.
pub(crate) struct State {
    /// Without a log.
    pub(crate) local: bool,
    closed: bool,
    leader: bool,
    proposer: Option<Arc<dyn Proposer>>,
    /// Grows when what is staged changes otherwise than by a transaction staged on top, and when leadership begins or ends.
    pub(crate) generation: u64,
    epoch: u64,
    number: u64,
    /// The version that the last own entry stamped.
    committed_stamp: u64,
    /// Index of the last entry that changed something.
    published: u64,
    /// Oldest first.
    pending: VecDeque<Pending>,
    /// The same in parts, each of at least one.
    segments: VecDeque<Segment>,
    next_segment: u64,
    /// A proposal was not taken: nothing is proposed until every pending one is decided.
    draining: bool,
    pub(crate) divergence: Option<ApplyError>,
    current: Arc<ArcSwap<View>>,
    followers: Option<Followers>,
}

impl State {
    pub(crate) fn new(local: bool, current: Arc<ArcSwap<View>>) -> State {
        State {
            local,
            closed: false,
            leader: false,
            proposer: None,
            generation: 0,
            epoch: 1,
            number: 0,
            committed_stamp: 0,
            published: 0,
            pending: VecDeque::new(),
            segments: VecDeque::new(),
            next_segment: 0,
            draining: false,
            divergence: None,
            current,
            followers: Some(Followers::default()),
        }
    }

    pub(crate) fn attach(&mut self, proposer: Arc<dyn Proposer>) {
        if !self.closed {
            self.proposer = Some(proposer);
        }
    }

    pub(crate) fn proposer(&self) -> Result<Arc<dyn Proposer>, Error> {
        self.proposer.clone().ok_or(Error::Stopped)
    }

    pub(crate) fn view(&self) -> View {
        View::clone(&self.current.load())
    }

    pub(crate) fn subscribe(&mut self, kinds: Kinds) -> (View, Subscription) {
        let receiver = match &mut self.followers {
            Some(followers) => followers.subscribe(kinds),
            None => broadcast::channel(1).1,
        };
        let view = self.view();
        let seen = view.sequence();
        (view, Subscription { receiver, seen, current: self.current.clone() })
    }

    pub(crate) fn close(&mut self) -> Wakes {
        self.closed = true;
        self.leader = false;
        self.proposer = None;
        self.followers = None;
        self.discard(0, &Fate::Failed(Error::Stopped))
    }

    /// Makes tables the committed ones.
    pub(crate) fn publish(&mut self, index: u64, tables: Arc<Tables>, events: Vec<Event>) {
        let view = self.view().after(tables, index);
        self.published = index;
        self.current.store(Arc::new(view.clone()));
        if let Some(followers) = &self.followers {
            followers.send(Commit { index, events, view });
        }
    }

    /// The same tables at a later index.
    pub(crate) fn advance(&mut self, index: u64) {
        let view = self.view().at(index);
        self.current.store(Arc::new(view));
    }

    /// Discards everything in flight from position `from` on, and starts a new epoch.
    fn discard(&mut self, from: usize, fate: &Fate) -> Wakes {
        let mut wakes = Wakes::default();
        for pending in self.pending.drain(from..) {
            wakes.add(pending.waiters, fate);
        }
        self.restage();
        self.epoch += 1;
        self.end_draining();
        wakes
    }

    fn end_draining(&mut self) {
        if self.draining && self.pending.is_empty() {
            self.draining = false;
            self.epoch += 1;
        }
    }

    /// The proposals from `first` on may have come to nothing.
    pub(crate) fn lost(&mut self, first: Ticket, error: Error) -> Wakes {
        let from = self.pending.partition_point(|p| p.ticket < first);
        self.discard(from, &Fate::Failed(error))
    }

    /// `first` and all later ones of its epoch were refused. Later epochs do not build on them: a new one
    /// begins only when everything before it is out of reach of a refusal.
    pub(crate) fn refused(&mut self, first: Ticket) -> Wakes {
        let from = self.pending.partition_point(|p| p.ticket < first);
        let to = self.pending.partition_point(|p| p.ticket.epoch <= first.epoch);
        let mut wakes = Wakes::default();
        for pending in self.pending.drain(from..to) {
            wakes.add(pending.waiters, &Fate::Refused);
        }
        if self.epoch <= first.epoch {
            self.epoch = first.epoch + 1;
        }
        self.restage();
        self.end_draining();
        wakes
    }

    pub(crate) fn leadership(&mut self, leader: bool) -> Wakes {
        self.leader = leader && !self.closed;
        self.discard(0, &Fate::Failed(Error::LostLeadership))
    }

    /// Everything in flight is undone by a snapshot.
    pub(crate) fn restored(&mut self) -> Wakes {
        self.discard(0, &Fate::Failed(Error::LostLeadership))
    }

    /// Commits the oldest transactions in flight as these entries, as long as the tickets are their own and they still
    /// fit. Returns how many.
    pub(crate) fn commit_all(&mut self, entries: impl Iterator<Item = (u64, Ticket)>) -> (usize, Wakes) {
        let mut wakes = Wakes::default();
        let (mut committed, mut last, mut events) = (0, 0, Vec::new());
        for (index, ticket) in entries {
            let own = |pending: &mut Pending| pending.ticket == ticket && pending.unfit.is_none();
            let Some(mut pending) = self.pending.pop_front_if(own) else { break };
            committed += 1;
            last = index;
            self.committed_stamp = pending.stamp;
            events.append(&mut pending.events);
            wakes.add(pending.waiters, &Fate::Committed(index));
            self.end_draining();
            let Some(segment) = self.segments.front_mut() else { continue };
            segment.pending -= 1;
            if segment.pending == 0 {
                let tables = segment.tables.take();
                self.segments.pop_front();
                self.commit(last, tables, std::mem::take(&mut events));
            }
        }
        if !events.is_empty() {
            let tables = self.without_the_rest(events.len());
            self.commit(last, tables, events);
        }
        (committed, wakes)
    }

    /// The tables of the oldest segment without those of its transactions that are still in flight, if they changed less
    /// than so much.
    fn without_the_rest(&self, changes: usize) -> Option<Tables> {
        let segment = self.segments.front()?;
        let rest = || self.pending.iter().take(segment.pending).flat_map(|pending| &pending.events);
        if rest().count() >= changes {
            return None;
        }
        let mut tables = segment.tables.clone()?;
        tables.take_back(rest().cloned().collect::<Vec<_>>());
        Some(tables)
    }

    /// Publishes what transactions in flight changed. Where there are no tables with that and no more, they are made again.
    fn commit(&mut self, index: u64, tables: Option<Tables>, events: Vec<Event>) {
        let tables = tables.unwrap_or_else(|| {
            let mut tables = self.view().to_tables();
            tables.replay(&events);
            tables
        });
        self.publish(index, Arc::new(tables), events);
    }

    /// Takes a transaction out of those in flight because its entry was applied from its bytes, or could not be. The others
    /// are to be [staged again](State::restage).
    pub(crate) fn settle(&mut self, ticket: Ticket, fate: &Fate) -> Wakes {
        let mut wakes = Wakes::default();
        if let Some(at) = self.pending.iter().position(|p| p.ticket == ticket)
            && let Some(pending) = self.pending.remove(at)
        {
            wakes.add(pending.waiters, fate);
            self.end_draining();
        }
        wakes
    }

    /// The committed tables changed beneath the transactions in flight, or some of these are gone: puts those that are
    /// left on top again, each by itself. One that does not fit will be skipped when its entry is applied, as on every other
    /// manager.
    pub(crate) fn restage(&mut self) {
        self.generation += 1;
        self.segments.clear();
        if self.pending.is_empty() {
            return;
        }
        let mut base = self.view().to_tables();
        for pending in &mut self.pending {
            let mut tables = base.clone();
            match tables.apply(std::mem::take(&mut pending.events)) {
                Ok(events) => {
                    base = tables;
                    (pending.events, pending.unfit) = (events, None);
                }
                Err((events, error)) => (pending.events, pending.unfit) = (events, Some(error)),
            }
            let (number, tables) = (self.next_segment, Some(base.clone()));
            self.next_segment += 1;
            self.segments.push_back(Segment { number, pending: 1, bytes: 0, turn: None, tables });
        }
    }

    /// What the next closure runs on. Nobody else may ask before it is [given back](State::give_back) or
    /// [pushed](State::push).
    fn base(&mut self, company: Company) -> Result<Base, Error> {
        if self.closed {
            return Err(Error::Stopped);
        }
        if !self.local {
            self.proposer()?;
            if !self.leader {
                return Err(Error::LostLeadership);
            }
        }
        if self.segments.back().is_some_and(|segment| segment.tables.is_none()) {
            self.restage(); // a closure panicked on them
        }
        let proposer = self.proposer.clone();
        let turn = proposer.as_ref().filter(|_| company == Company::Any).map(|proposer| proposer.turn());
        let (tables, segment) = match self.segments.back_mut() {
            Some(segment) if turn.is_some() && segment.turn == turn && segment.bytes < MAX_SEGMENT_BYTES => {
                (segment.tables.take().unwrap_or_default(), Some(segment.number))
            }
            Some(segment) => (segment.tables.clone().unwrap_or_default(), None),
            None => (self.view().to_tables(), None),
        };
        let last_stamp = self.pending.back().map_or(self.committed_stamp, |pending| pending.stamp);
        let (generation, applied) = (self.generation, self.view().index());
        Ok(Base { generation, tables, segment, turn, last_stamp, applied, proposer })
    }

    /// The segment with this number, if it is still the newest one.
    fn newest(&mut self, number: Option<u64>) -> Option<&mut Segment> {
        self.segments.back_mut().filter(|segment| Some(segment.number) == number)
    }

    /// Puts back what a closure ran on.
    fn give_back(&mut self, from: Option<u64>, tables: Tables) {
        // Otherwise all of it was committed meanwhile, or it was a copy.
        if let Some(segment) = self.newest(from) {
            segment.tables = Some(tables);
        }
    }

    /// Puts a transaction behind the others in flight.
    fn push(&mut self, from: Option<u64>, turn: Option<u64>, bytes: usize, tables: Tables, pending: Pending) {
        self.pending.push_back(pending);
        if let Some(segment) = self.newest(from)
            && segment.bytes + bytes <= MAX_SEGMENT_BYTES
        {
            segment.pending += 1;
            segment.bytes += bytes;
            segment.tables = Some(tables);
            return;
        }
        let (number, tables) = (self.next_segment, Some(tables));
        self.next_segment += 1;
        self.segments.push_back(Segment { number, pending: 1, bytes, turn, tables });
    }

    /// Resolves once the newest transaction in flight is decided.
    fn wait_for_newest(&mut self) -> Option<oneshot::Receiver<Fate>> {
        let newest = self.pending.back_mut()?;
        let (waiter, fate) = oneshot::channel();
        newest.waiters.push(waiter);
        Some(fate)
    }

    /// Proposes a transaction that was run on this state. If that succeeds, it is to be [pushed](State::push).
    fn propose(&mut self, proposer: &dyn Proposer, data: Bytes) -> Result<Ticket, Refused> {
        if self.draining
            && let Some(fate) = self.wait_for_newest()
        {
            return Err(Refused::Wait { refused: false, after: fate });
        }
        self.number += 1;
        let ticket = Ticket { epoch: self.epoch, number: self.number };
        match proposer.propose(ticket, data) {
            Ok(()) => Ok(ticket),
            Err(Error::Dropped) => {
                // Raft might still refuse what this one built on. Only once that is decided is it safe to
                // go on in a new epoch.
                if let Some(after) = self.wait_for_newest() {
                    self.draining = true;
                    return Err(Refused::Wait { refused: true, after });
                }
                self.epoch += 1;
                let (waiter, after) = oneshot::channel();
                let _ = waiter.send(Fate::Refused);
                Err(Refused::Wait { refused: true, after })
            }
            Err(error) => Err(Refused::Failed(error)),
        }
    }
}

/// Why nothing was proposed.
enum Refused {
    Wait { refused: bool, after: oneshot::Receiver<Fate> },
    Failed(Error),
}

impl Store {
    /// Takes room for a large transaction, or all there is, so that the next update waits.
    fn take_room(&self, bytes: usize, room: &mut OwnedSemaphorePermit) {
        let take = |units: usize| {
            let units = u32::try_from(units).unwrap_or(u32::MAX);
            self.in_flight.clone().try_acquire_many_owned(units).ok()
        };
        let units = bytes / UNIT;
        if units > 0
            && let Some(more) = take(units).or_else(|| take(self.in_flight.available_permits()))
        {
            room.merge(more);
        }
    }

    /// Runs a closure on the staged state and proposes its changes.
    pub(crate) fn stage<R, E: From<Error>>(
        &self,
        f: &mut impl FnMut(&mut Tx) -> Result<R, E>,
        company: Company,
        mut room: OwnedSemaphorePermit,
    ) -> Step<R, E> {
        let _writer = self.writer.lock();
        loop {
            let base = match self.state.lock().base(company) {
                Ok(base) => base,
                Err(error) => return Step::Done(Err(E::from(error)), 0),
            };
            let Base { generation, segment, turn, .. } = base;
            let stamp = match &base.proposer {
                Some(proposer) => proposer.commit_index().max(base.applied).max(base.last_stamp + 1),
                None => base.applied + 1,
            };
            let mut tx = Tx::new(base.tables, stamp, self.now(), true);
            let result = f(&mut tx);
            let (mut tables, events) = tx.into_parts();
            let (result, data) = match result {
                Ok(result) if !events.is_empty() => match encode(&events, base.proposer.as_deref(), stamp) {
                    Ok(data) => (Ok(result), Some(data)),
                    Err(error) => (Err(E::from(error)), None),
                },
                other => (other, None),
            };
            // The tables of others go back as they were.
            let events = match (&data, segment) {
                (None, Some(_)) => {
                    tables.take_back(events);
                    Vec::new()
                }
                _ => events,
            };

            let mut state = self.state.lock();
            if state.generation != generation {
                continue; // what it was run on is gone
            }
            let Some(data) = data else {
                state.give_back(segment, tables);
                let (index, generation) = (state.published, state.generation);
                return Step::Read { result, after: state.wait_for_newest(), index, generation };
            };
            let Some(proposer) = base.proposer else {
                let index = state.view().index() + 1;
                state.publish(index, Arc::new(tables), events);
                return Step::Done(result, index);
            };
            let bytes = data.len();
            self.take_room(bytes, &mut room);
            return match state.propose(&*proposer, data) {
                Ok(ticket) => {
                    let (waiter, fate) = oneshot::channel();
                    let pending =
                        Pending { ticket, stamp, events, unfit: None, waiters: vec![waiter], _room: room };
                    state.push(segment, turn, bytes, tables, pending);
                    Step::Wait(result, fate)
                }
                Err(refused) => {
                    if segment.is_some() {
                        tables.take_back(events);
                        state.give_back(segment, tables);
                    }
                    match refused {
                        Refused::Wait { refused, after } => Step::Again { refused, after },
                        Refused::Failed(error) => Step::Done(Err(E::from(error)), 0),
                    }
                }
            };
        }
    }
}

/// The log entry that makes these changes. Only the proposer's own prefix and the stamp go into its id:
/// the stamp is unique among what this manager has in flight.
fn encode(events: &[Event], proposer: Option<&dyn Proposer>, stamp: u64) -> Result<Bytes, Error> {
    let Some(proposer) = proposer else { return Ok(Bytes::new()) };
    let id = u64::from(proposer.id_prefix()) << 48 | (stamp & 0xffff_ffff_ffff);
    let request = InternalRaftRequest { id, action: actions(events) };
    let size = request.encoded_len();
    if size > MAX_TRANSACTION_BYTES {
        return Err(Error::TooLarge);
    }
    let mut data = Vec::with_capacity(size);
    request.encode_raw(&mut data);
    Ok(data.into())
}
