//! A brain on a store of its own, under a clock that only its owner moves.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use swarm_store::{Error, Received, Store, Subscription, Tx, View};

use crate::{Batch, Brain, Ctx, Fate, IdSource, Now, Reconciler};

/// Where a brain decides and nothing of it reaches the world: for looking ahead, and for tests.
///
/// The store must be one without a log ([`Store::local`], [`Store::fork`]), so that nothing ever waits.
pub struct Stage {
    store: Arc<Store>,
    commits: Subscription,
    brain: Option<Brain>,
    ids: Box<dyn IdSource>,
    mono: Duration,
    began: SystemTime,
    /// By how much the wall clock of who leads is ahead.
    ahead: Duration,
    /// Transactions that the brain wrote.
    pub decisions: usize,
    /// Groups in them that were refused.
    pub refused: usize,
    /// Milliseconds, for the store's own stamps.
    clock: Arc<AtomicU64>,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("mono", &self.mono).finish_non_exhaustive()
    }
}

impl Stage {
    /// A stage that begins at this time, without a leader yet.
    pub fn new(store: Arc<Store>, began: SystemTime, ids: Box<dyn IdSource>) -> Stage {
        let clock = Arc::new(AtomicU64::new(0));
        let millis = clock.clone();
        store.set_clock(move || began + Duration::from_millis(millis.load(Relaxed)));
        let (_, commits) = store.view_and_subscribe();
        Stage {
            store,
            commits,
            brain: None,
            ids,
            mono: Duration::ZERO,
            began,
            ahead: Duration::ZERO,
            decisions: 0,
            refused: 0,
            clock,
        }
    }

    /// Leadership begins, with these reconcilers; a leader before it is forgotten with all it knew.
    pub fn lead(&mut self, reconcilers: Vec<Box<dyn Reconciler>>) {
        let (view, commits) = self.store.view_and_subscribe();
        self.commits = commits;
        let mut brain = Brain::new(reconcilers);
        brain.start(&mut Ctx { now: self.now(), ids: &mut *self.ids }, view);
        self.brain = Some(brain);
    }

    /// The time on both clocks.
    pub fn now(&self) -> Now {
        Now { mono: self.mono, wall: self.began + self.ahead + self.mono }
    }

    /// The committed tables.
    pub fn view(&self) -> View {
        self.store.view()
    }

    /// Writes past the brain, as an API or an agent would.
    ///
    /// # Errors
    /// The closure's, and those of [`Store::update`].
    pub fn write<R: Send>(&self, change: impl FnMut(&mut Tx) -> Result<R, Error> + Send) -> Result<R, Error> {
        self.update(change).map(|(result, _)| result)
    }

    fn update<R: Send>(
        &self,
        change: impl FnMut(&mut Tx) -> Result<R, Error> + Send,
    ) -> Result<(R, u64), Error> {
        let done = self.store.update(change).now_or_never().expect("a store without a log never waits");
        done.map(|(result, committed)| (result, committed.index))
    }

    /// One turn of the brain; its batches are written at once, in order. Returns whether there were any.
    pub fn turn(&mut self) -> bool {
        let batches = self.decide();
        let wrote = !batches.is_empty();
        batches.into_iter().for_each(|batch| self.commit(batch));
        wrote
    }

    /// One turn of the brain. What it wants written is returned; somebody else may write before it is.
    pub fn decide(&mut self) -> Vec<Batch> {
        let now = self.now();
        let Some(brain) = &mut self.brain else { return Vec::new() };
        while let Some(received) = self.commits.try_next() {
            match received {
                Received::Commit(commit) => brain.committed(&commit.events, &commit.view),
                Received::Lagged(view) => brain.lagged(&view),
                Received::Closed => break,
            }
        }
        brain.turn(&mut Ctx { now, ids: &mut *self.ids })
    }

    /// Writes a batch of a leader that is forgotten.
    ///
    /// # Errors
    /// Those of [`Store::update`].
    pub fn commit_late(&mut self, batch: Batch) -> Result<(), Error> {
        let (results, _) = self.update(|tx| batch.apply(tx))?;
        self.refused += results.iter().filter(|r| r.is_err()).count();
        Ok(())
    }

    /// Writes a batch, and tells the brain what became of it.
    pub fn commit(&mut self, batch: Batch) {
        let written = self.update(|tx| batch.apply(tx));
        self.decisions += 1;
        let fate = match written {
            Ok((results, index)) => {
                self.refused += results.iter().filter(|r| r.is_err()).count();
                Fate::Written(index, results)
            }
            Err(error) => Fate::Failed(error),
        };
        self.settle_batch(batch.id, fate);
    }

    /// Tells the brain what became of a batch that was not committed here.
    pub fn settle_batch(&mut self, batch: u64, fate: Fate) {
        if let Some(brain) = &mut self.brain {
            brain.settle(batch, fate);
        }
    }

    /// The brain misses every commit that it has not taken in yet, and gets the view in their place.
    pub fn lag(&mut self) {
        while self.commits.try_next().is_some() {}
        let view = self.store.view();
        if let Some(brain) = &mut self.brain {
            brain.lagged(&view);
        }
    }

    /// Commits from here on, for whoever watches them.
    pub fn watch(&self) -> Subscription {
        self.store.view_and_subscribe().1
    }

    /// Lets the clock go on while nobody acts.
    pub fn pass(&mut self, time: Duration) {
        self.mono += time;
        self.clock.store((self.ahead + self.mono).as_millis() as u64, Relaxed);
    }

    /// Lets the wall clock be ahead by so much from now on, as that of another host may be.
    pub fn set_ahead(&mut self, ahead: Duration) {
        self.ahead = ahead;
        self.pass(Duration::ZERO);
    }

    /// Lets the clock go on to this time, unless it is past it.
    pub fn pass_until(&mut self, mono: Duration) {
        self.pass(mono.saturating_sub(self.mono));
    }

    /// Something was decided that is not settled yet.
    pub fn is_busy(&self) -> bool {
        self.brain.as_ref().is_some_and(Brain::is_busy)
    }

    /// When the brain wants to be woken; `None` if there is nothing to wait for.
    pub fn wake_at(&self) -> Option<Duration> {
        self.brain.as_ref().and_then(Brain::wake_at)
    }

    /// The brain has something to do now.
    pub fn is_due(&self) -> bool {
        self.is_busy() || self.wake_at().is_some_and(|at| at <= self.mono)
    }
}
