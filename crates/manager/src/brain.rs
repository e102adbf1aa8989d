//! Runs the leader's reconcilers on a store: subscribe, turn, propose, settle.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::FuturesUnordered;
use swarm_reconcile::{Batch, Brain, Ctx, Discard, Fate, Now, RandomIds, Reconciler};
use swarm_store::{Error, Received, Store, Subscription};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Commits that are taken in at once.
const MOST_COMMITS_PER_TURN: usize = 10_000;

/// How long until reconcilers that failed begin anew, at first and after failures one upon the other.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Runs reconcilers until the token is cancelled or leadership is lost. If they panic, or there can be no thread for them,
/// that is logged, and others begin anew after a pause: all that they need to know is in the store, and what made them
/// fail may be gone. The original leads on and orchestrates nothing until the next election (`orchestration.md` §20.30).
pub async fn keep_thinking(
    store: Arc<Store>,
    reconcilers: impl Fn() -> Vec<Box<dyn Reconciler>>,
    cancel: CancellationToken,
) {
    let [shortest, longest] = PAUSES;
    let mut pause = shortest;
    loop {
        let began = Instant::now();
        let error = match brain_thread(store.clone(), reconcilers(), cancel.clone()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => return info!(%error, "the reconcilers ended"),
            Err(error) => error,
        };
        if began.elapsed() > longest {
            pause = shortest;
        }
        error!(%error, "the reconcilers failed: until they begin anew in {pause:?} nothing is scheduled, restarted or updated");
        let settled = async {
            tokio::time::sleep(pause).await;
            // What the last ones had proposed must be written, or never be, before others look.
            store.update(|_| Ok::<(), Error>(())).await
        };
        match cancel.run_until_cancelled(settled).await {
            None => return,
            Some(Err(error @ (Error::LostLeadership | Error::Stopped))) => {
                return info!(%error, "the reconcilers ended");
            }
            Some(_) => pause = (pause * 2).min(longest),
        }
    }
}

/// As [`run_brain`], on a thread of its own: a turn may compute for a while, which must hold up neither calls nor
/// heartbeats, and calls must not pay for handing their thread over each time.
///
/// # Errors
/// If there can be no thread, or it panicked.
async fn brain_thread(
    store: Arc<Store>,
    reconcilers: Vec<Box<dyn Reconciler>>,
    cancel: CancellationToken,
) -> Result<Result<(), Error>, Box<dyn std::error::Error + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("reconcilers".to_owned()).spawn(move || {
        let _ = ended.send(runtime.block_on(run_brain(store, reconcilers, cancel)));
    })?;
    end.await.map_err(|_| "their thread panicked".into())
}

/// Runs these reconcilers, in this order, until the token is cancelled or leadership is lost. Call it when
/// leadership has begun and everything up to the last log entry is applied.
///
/// Bounded: at most [`swarm_reconcile::MAX_IN_FLIGHT`] transactions are open; while they are, commits gather and
/// the next turn takes them all. When it returns nothing of it runs any more; a transaction under way may still
/// be committed.
///
/// # Errors
/// [`Error::LostLeadership`] or [`Error::Stopped`] when the store says so; the caller starts a new brain when
/// leadership begins again.
async fn run_brain(
    store: Arc<Store>,
    reconcilers: Vec<Box<dyn Reconciler>>,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let (view, commits) = store.view_and_subscribe();
    let mut ids = RandomIds;
    let mut shell = Shell {
        store,
        commits,
        discard: Discard::new(),
        writing: FuturesUnordered::new(),
        began: Instant::now(),
    };
    let mut brain = Brain::new(reconcilers);
    brain.start(&mut Ctx { now: shell.now(), ids: &mut ids }, view);
    let stop = cancel.cancelled().fuse();
    tokio::pin!(stop);
    loop {
        shell.drain(&mut brain)?;
        let now = shell.now();
        for batch in brain.turn(&mut Ctx { now, ids: &mut ids }) {
            if let Some((id, fate)) = shell.write(batch).await {
                settle(&mut brain, id, fate)?;
            }
        }
        // Written at once (a store without a log): its commits are here already.
        // Later than the clock can tell is never.
        let due = brain.wake_at().and_then(|at| shell.began.checked_add(at));
        tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            Some((id, fate)) = shell.writing.next() => settle(&mut brain, id, fate)?,
            received = shell.commits.next() => shell.feed(&mut brain, received)?,
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => (),
        }
    }
}

struct Shell {
    store: Arc<Store>,
    commits: Subscription,
    discard: Discard,
    writing: FuturesUnordered<BoxFuture<'static, (u64, Fate)>>,
    began: Instant,
}

impl Shell {
    fn now(&self) -> Now {
        Now { mono: self.began.elapsed(), wall: SystemTime::now() }
    }

    /// Takes in what is there already, up to a limit, so that a flood of commits can't keep a turn from coming.
    fn drain(&mut self, brain: &mut Brain) -> Result<(), Error> {
        while let Some(Some((id, fate))) = self.writing.next().now_or_never() {
            settle(brain, id, fate)?;
        }
        for _ in 0..MOST_COMMITS_PER_TURN {
            match self.commits.try_next() {
                Some(received) => self.feed(brain, received)?,
                None => break,
            }
        }
        Ok(())
    }

    fn feed(&mut self, brain: &mut Brain, received: Received) -> Result<(), Error> {
        match received {
            Received::Commit(commit) => {
                brain.committed(&commit.events, &commit.view);
                self.discard.seen(commit);
            }
            Received::Lagged(view) => {
                tracing::warn!(index = view.index(), "reconcilers missed commits; comparing tables");
                brain.lagged(&view);
            }
            Received::Closed => return Err(Error::Stopped),
        }
        Ok(())
    }

    /// Hands a batch to the store. The future is polled once right away, so that batches enter the store in
    /// the order in which they were decided.
    async fn write(&mut self, batch: Batch) -> Option<(u64, Fate)> {
        let store = self.store.clone();
        let mut write = async move {
            match store.update_alone(|tx| batch.apply(tx)).await {
                Ok((results, committed)) => (batch.id, Fate::Written(committed.index, results)),
                Err(error) => (batch.id, Fate::Failed(error)),
            }
        }
        .boxed();
        match futures::poll!(&mut write) {
            std::task::Poll::Ready(done) => Some(done),
            std::task::Poll::Pending => {
                self.writing.push(write);
                None
            }
        }
    }
}

fn settle(brain: &mut Brain, id: u64, fate: Fate) -> Result<(), Error> {
    if let Fate::Failed(error @ (Error::LostLeadership | Error::Stopped)) = &fate {
        return Err(error.clone());
    }
    brain.settle(id, fate);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_api::v1::{Service, Task, TaskState};
    use swarm_reconcile::sim::{AnyAllocator, AnyScheduler, node, service};
    use tokio::task::JoinHandle;

    fn reconcilers() -> Vec<Box<dyn Reconciler>> {
        let mut all = swarm_orchestrator::reconcilers();
        all.push(Box::<AnyAllocator>::default());
        all.push(Box::<AnyScheduler>::default());
        all
    }

    struct Leader {
        store: Arc<Store>,
        cancel: CancellationToken,
        brain: JoinHandle<Result<(), Error>>,
    }

    async fn lead() -> Leader {
        let store = Store::local();
        let cancel = CancellationToken::new();
        let brain = tokio::spawn(run_brain(store.clone(), reconcilers(), cancel.clone()));
        store.update(|tx| tx.create(node("n1")).map(drop)).await.unwrap();
        Leader { store, cancel, brain }
    }

    impl Leader {
        async fn create(&self, service: Service) {
            self.store.update(|tx| tx.create(service.clone()).map(drop)).await.unwrap();
        }

        /// Waits until so many tasks are in this state and wanted.
        async fn reach(&self, state: TaskState, count: usize) {
            let (mut view, mut commits) = self.store.view_and_subscribe();
            let wanted = |t: &&swarm_api::Shared<Task>| t.desired_state() <= TaskState::Running;
            while view.tasks().by_observed_state(state).filter(wanted).count() < count {
                let received = tokio::time::timeout(Duration::from_secs(60), commits.next()).await;
                view = match received.expect("something is decided in time") {
                    Received::Commit(commit) => commit.view.clone(),
                    Received::Lagged(view) => view,
                    Received::Closed => panic!("the store is closed"),
                };
            }
        }

        async fn stop(self) {
            self.cancel.cancel();
            self.brain.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_asked_for_is_decided_and_written() {
        let leader = lead().await;
        leader.create(service("web", 5)).await;
        leader.reach(TaskState::Assigned, 5).await;
        leader.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn more_than_fits_in_one_transaction_is_written_in_several() {
        let leader = lead().await;
        leader.create(service("web", 12_000)).await;
        leader.reach(TaskState::Assigned, 12_000).await;
        assert_eq!(leader.store.view().tasks().len(), 12_000);
        leader.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_ends_without_anything_happening() {
        let leader = lead().await;
        leader.create(service("web", 1)).await;
        leader.reach(TaskState::Assigned, 1).await;
        let fail = leader.store.update(|tx| {
            let mut task = tx.tasks().iter().next().unwrap().clone();
            task.status.state = TaskState::Failed as i32;
            tx.update(task).map(drop)
        });
        fail.await.unwrap();
        let begin = Instant::now();
        let held = |store: &Store| store.view().tasks().by_desired_state(TaskState::Ready).count();
        let (_, mut commits) = leader.store.view_and_subscribe();
        while held(&leader.store) == 0 {
            commits.next().await;
        }
        while held(&leader.store) == 1 {
            commits.next().await;
        }
        assert_eq!(begin.elapsed().as_secs(), 5);
        leader.stop().await;
    }

    /// `orchestration.md` §20.1: in the original jobs go on.
    #[tokio::test]
    async fn nothing_is_decided_after_the_end() {
        let leader = lead().await;
        leader.create(service("web", 1)).await;
        leader.reach(TaskState::Assigned, 1).await;
        let store = leader.store.clone();
        leader.stop().await;
        let (_, committed) = store.update(|tx| tx.create(service("late", 1)).map(drop)).await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(store.view().index(), committed.index);
    }

    #[tokio::test]
    async fn a_store_that_does_not_lead_ends_the_brain() {
        struct Eager;
        impl Reconciler for Eager {
            fn name(&self) -> &'static str {
                "eager"
            }
            fn init(&mut self, _: &mut Ctx<'_>, _: &swarm_store::Tables) {}
            fn observe(&mut self, _: &mut Ctx<'_>, _: &[swarm_store::Event], _: &swarm_store::Tables) {}
            fn decide(&mut self, ctx: &mut Ctx<'_>, _: &swarm_store::Tables) -> swarm_reconcile::Decision {
                let task = Task { id: ctx.ids.next().into(), ..Default::default() };
                let patch = swarm_reconcile::Patch::new(swarm_reconcile::Write::Create(task.into()));
                let groups = vec![swarm_reconcile::Group { tag: 0, patches: vec![patch] }];
                swarm_reconcile::Decision { groups, wake_at: None }
            }
        }
        let ended = run_brain(Store::new(), vec![Box::new(Eager)], CancellationToken::new()).await;
        assert!(matches!(ended, Err(Error::LostLeadership | Error::Stopped)), "{ended:?}");
    }

    /// Panics when it is first asked, and counts how often.
    struct Fragile(Arc<std::sync::atomic::AtomicUsize>);

    impl Reconciler for Fragile {
        fn name(&self) -> &'static str {
            "fragile"
        }
        fn init(&mut self, _: &mut Ctx<'_>, _: &swarm_store::Tables) {}
        fn observe(&mut self, _: &mut Ctx<'_>, _: &[swarm_store::Event], _: &swarm_store::Tables) {}
        fn decide(&mut self, _: &mut Ctx<'_>, _: &swarm_store::Tables) -> swarm_reconcile::Decision {
            let asked = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            assert!(asked > 0, "as the test wants");
            swarm_reconcile::Decision::default()
        }
    }

    #[tokio::test]
    async fn reconcilers_that_panic_begin_anew() {
        let (store, cancel, asked) = (Store::local(), CancellationToken::new(), Arc::default());
        let all = move || {
            let mut all = reconcilers();
            all.push(Box::new(Fragile(Arc::clone(&asked))));
            all
        };
        let brain = tokio::spawn(keep_thinking(store.clone(), all, cancel.clone()));
        store.update(|tx| tx.create(node("n1")).map(drop)).await.unwrap();
        let leader =
            Leader { store, cancel, brain: tokio::spawn(async { brain.await.map_err(|_| Error::Stopped) }) };
        leader.create(service("web", 5)).await;
        leader.reach(TaskState::Assigned, 5).await;
        leader.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_beyond_all_clocks_never_comes() {
        struct Patient;
        impl Reconciler for Patient {
            fn name(&self) -> &'static str {
                "patient"
            }
            fn init(&mut self, _: &mut Ctx<'_>, _: &swarm_store::Tables) {}
            fn observe(&mut self, _: &mut Ctx<'_>, _: &[swarm_store::Event], _: &swarm_store::Tables) {}
            fn decide(&mut self, _: &mut Ctx<'_>, _: &swarm_store::Tables) -> swarm_reconcile::Decision {
                swarm_reconcile::Decision { groups: Vec::new(), wake_at: Some(Duration::MAX) }
            }
        }
        let cancel = CancellationToken::new();
        let all: Vec<Box<dyn Reconciler>> = vec![Box::new(Patient)];
        let brain = tokio::spawn(run_brain(Store::local(), all, cancel.clone()));
        tokio::time::sleep(Duration::from_secs(60)).await;
        cancel.cancel();
        assert_eq!(brain.await.unwrap(), Ok(()));
    }
}
