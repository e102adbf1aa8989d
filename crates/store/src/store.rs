//! The store as its users see it: views, subscriptions, transactions.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::writer::{Company, Fate, State, Step};
use crate::{ApplyError, Error, Kinds, Proposer, Subscription, Tx, View};

/// Room for transactions in flight, in units of [`UNIT`] bytes; a transaction takes at least one. When it is
/// used up, further updates wait before they run.
pub(crate) const IN_FLIGHT: usize = 4096;
/// Encoded bytes that one unit of [`IN_FLIGHT`] stands for: 64 MiB in flight altogether.
pub(crate) const UNIT: usize = 16 * 1024;
/// A transaction is run again after this many refusals of itself or of one that it built on; then the caller
/// is told.
const MAX_REFUSALS: u32 = 3;

/// What an update returns beside the closure's own result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Log index of the entry; if nothing was changed, an index at which all that was read is committed.
    pub index: u64,
}

/// The replicated object store of one manager.
///
/// Readers take a [`View`] and never wait. Writers give [`Store::update`] a closure. Locks are taken in the
/// order `writer`, `state`; the thread that applies entries only ever takes `state`, which nobody holds while
/// a closure runs.
pub struct Store {
    pub(crate) current: Arc<ArcSwap<View>>,
    /// Held while a closure runs, so that transactions are staged one after the other.
    pub(crate) writer: Mutex<()>,
    pub(crate) state: Mutex<State>,
    pub(crate) in_flight: Arc<Semaphore>,
    clock: OnceLock<Box<dyn Fn() -> SystemTime + Send + Sync>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("index", &self.view().index()).finish_non_exhaustive()
    }
}

impl Store {
    fn build(local: bool, view: View) -> Arc<Store> {
        let current = Arc::new(ArcSwap::from_pointee(view));
        Arc::new(Store {
            state: Mutex::new(State::new(local, current.clone())),
            current,
            writer: Mutex::new(()),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            clock: OnceLock::new(),
        })
    }

    /// A store of its own, without a log: updates are committed at once, without waiting. For tests and tools.
    pub fn local() -> Arc<Store> {
        Store::build(true, View::default())
    }

    /// A store of its own that begins with a view of another one, in O(1): what is written to either does not show in
    /// the other. Without a log, as [`Store::local`].
    pub fn fork(view: View) -> Arc<Store> {
        Store::build(true, view)
    }

    /// The store of a manager. It follows what [`StateMachine`](crate::StateMachine) is told; it can be written
    /// to once a proposer is [attached](Store::attach) and leadership has begun.
    pub fn new() -> Arc<Store> {
        Store::build(false, View::default())
    }

    /// Gives the store what it proposes to. Raft needs the store first, so this comes after both exist.
    ///
    /// The store keeps the proposer until [`Store::close`], so whatever stops the raft node closes the store.
    pub fn attach(&self, proposer: Arc<dyn Proposer>) {
        self.state.lock().attach(proposer);
    }

    /// Takes time from `clock` instead of the system; the first call counts. It stamps `created_at` and
    /// `updated_at`.
    pub fn set_clock(&self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) {
        let _ = self.clock.set(Box::new(clock));
    }

    /// Ends it: updates under way fail with [`Error::Stopped`] (their outcome is unknown), later ones at once;
    /// subscriptions end. Views can still be taken.
    pub fn close(&self) {
        let wakes = self.state.lock().close();
        self.in_flight.close();
        wakes.send();
    }

    /// The committed state as of now. Takes O(1) and never waits.
    pub fn view(&self) -> View {
        View::clone(&self.current.load())
    }

    /// The committed state, and every commit after it: none is lost and none comes twice.
    pub fn view_and_subscribe(&self) -> (View, Subscription) {
        self.view_and_follow(Kinds::ALL)
    }

    /// The same, but only commits that change an object of one of these kinds come. Each still has all its changes
    /// and the view after it; what other commits change between two of them shows in the later view only.
    pub fn view_and_follow(&self, kinds: Kinds) -> (View, Subscription) {
        self.state.lock().subscribe(kinds)
    }

    /// The first entry that could not be applied here, if there was one: from then on this manager may differ
    /// from the others. It must not campaign, and is repaired by leaving and joining again; a snapshot from
    /// the leader repairs it as well.
    pub fn divergence(&self) -> Option<ApplyError> {
        self.state.lock().divergence.clone()
    }

    /// See [`Proposer::read_barrier`]; a store without a log needs none.
    pub async fn read_barrier(&self) -> Result<(), Error> {
        let proposer = {
            let state = self.state.lock();
            if state.local {
                return Ok(());
            }
            state.proposer()?
        };
        proposer.read_barrier().await
    }

    /// Runs a transaction and waits until it is committed and visible in [`Store::view`].
    ///
    /// The closure sees everything that was committed or proposed before it. It runs again, on the committed
    /// state, if a proposal that it built on was refused; so it must do nothing but change the transaction.
    /// Its error ends the transaction with nothing changed. A transaction without changes is not proposed. The
    /// closure's error, like its answer, is returned only once everything it had read is committed; if nothing was
    /// changed, only once a quorum has confirmed, after the closure ran, that this manager leads: a refusal is a read,
    /// and as linearizable as one.
    ///
    /// Any number of updates may be under way: each is an entry of its own, and raft writes many entries in
    /// one sync. If more than 4096 (or 64 MiB) are in flight, further ones wait.
    ///
    /// Dropping the future before it was first polled means that nothing happens; later, the transaction may
    /// be committed or not, as a whole. A closure that panics changes nothing.
    ///
    /// # Errors
    /// The closure's own, and [`Error::TooLarge`]; [`Error::LostLeadership`] and [`Error::Stopped`] (the outcome
    /// is unknown if leadership ended meanwhile); [`Error::Dropped`] if raft keeps refusing (nothing written).
    pub async fn update<R, E, F>(&self, f: F) -> Result<(R, Committed), E>
    where
        F: FnMut(&mut Tx) -> Result<R, E> + Send,
        R: Send,
        E: From<Error> + Send,
    {
        self.update_in(Company::Any, f).await
    }

    /// The same, and the [`Commit`](crate::Commit) that subscribers get holds this transaction and no other.
    ///
    /// # Errors
    /// Those of [`Store::update`].
    pub async fn update_alone<R, E, F>(&self, f: F) -> Result<(R, Committed), E>
    where
        F: FnMut(&mut Tx) -> Result<R, E> + Send,
        R: Send,
        E: From<Error> + Send,
    {
        self.update_in(Company::Alone, f).await
    }

    async fn update_in<R, E, F>(&self, company: Company, mut f: F) -> Result<(R, Committed), E>
    where
        F: FnMut(&mut Tx) -> Result<R, E> + Send,
        R: Send,
        E: From<Error> + Send,
    {
        let mut refusals = 0;
        loop {
            let permit = self.in_flight.clone().acquire_owned().await.map_err(|_| E::from(Error::Stopped))?;
            let (result, refused, fate) = match self.stage(&mut f, company, permit) {
                Step::Done(result, index) => return result.map(|r| (r, Committed { index })),
                Step::Read { result, after, index, generation } => {
                    let fate = match after {
                        Some(fate) => fate.await.unwrap_or(Fate::Failed(Error::Stopped)),
                        None => Fate::Committed(index),
                    };
                    match fate {
                        Fate::Committed(index) => {
                            self.read_barrier().await.map_err(E::from)?;
                            // Else it ran on what is gone, and runs again on what is there.
                            if self.state.lock().generation == generation {
                                return result.map(|r| (r, Committed { index }));
                            }
                        }
                        Fate::Failed(error) => return Err(E::from(error)),
                        Fate::Refused => {
                            refusals += 1;
                            if refusals > MAX_REFUSALS {
                                return Err(E::from(Error::Dropped));
                            }
                        }
                    }
                    continue;
                }
                Step::Wait(result, fate) => (Some(result), false, fate),
                Step::Again { refused, after } => (None, refused, after),
            };
            let fate = fate.await.unwrap_or(Fate::Failed(Error::Stopped));
            match (fate, result) {
                (Fate::Committed(index), Some(result)) => return result.map(|r| (r, Committed { index })),
                (Fate::Failed(error), _) => return Err(E::from(error)),
                (Fate::Committed(_), None) if !refused => {}
                (Fate::Refused | Fate::Committed(_), _) => {
                    refusals += 1;
                    if refusals > MAX_REFUSALS {
                        return Err(E::from(Error::Dropped));
                    }
                }
            }
        }
    }

    pub(crate) fn now(&self) -> SystemTime {
        match self.clock.get() {
            Some(clock) => clock(),
            None => SystemTime::now(),
        }
    }
}
