//! Start, run, stop.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use swarm_api::v1::{Node, Peer, TaskState, node_status};
use swarm_store::{Received, Store, Subscription, Tx};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::config::Config;
use crate::driver_secrets::Drivers;
use crate::error::{Error, status};
use crate::intake::{Chunk, in_chunks, orphan_task};
use crate::registry::Expired;
use crate::router;
use crate::service::DispatcherService;
use crate::term::{Common, Term, weighted};

/// The dispatcher of one manager.
pub struct Dispatcher {
    store: Arc<Store>,
    config: Config,
    term: ArcSwapOption<Term>,
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("running", &self.term.load().is_some()).finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// A dispatcher that is not running: every call of its service is refused.
    pub fn new(store: Arc<Store>, config: Config) -> Arc<Dispatcher> {
        Arc::new(Dispatcher { store, config, term: ArcSwapOption::empty() })
    }

    /// The gRPC service. It may be registered once and for all; it answers while [`Dispatcher::run`] runs.
    pub fn service(self: &Arc<Self>) -> DispatcherService {
        DispatcherService::new(self.clone())
    }

    /// Sets every node that is not down to UNKNOWN, committed when this returns. A new leader does this before
    /// the scheduler's first decision, and before [`Dispatcher::run`].
    ///
    /// # Errors
    /// The store's; mostly that leadership was lost again.
    pub async fn mark_unknown(&self) -> Result<(), Error> {
        const MESSAGE: &str = "Node moved to \"unknown\" state due to leadership change in cluster";
        let view = self.store.view();
        let concerned = |node: &Node| {
            !matches!(node.status.state(), node_status::State::Down)
                && (node.status.state() != node_status::State::Unknown || node.status.message != MESSAGE)
        };
        let nodes: Vec<String> =
            view.nodes().iter().filter(|node| concerned(node)).map(|node| node.id.clone()).collect();
        let change = |tx: &mut Tx, chunk: &mut Chunk, id: &String| {
            let Some(mut node) = tx.get::<Node>(id).cloned().filter(|node| concerned(node)) else {
                return Ok(());
            };
            node.status.state = node_status::State::Unknown as i32;
            MESSAGE.clone_into(&mut node.status.message);
            chunk.put(tx, node)
        };
        let mut outcome = Ok(());
        in_chunks(&self.store, "node states", &nodes, change, |_, result| {
            if let Err(error) = result {
                outcome = Err(error.into());
            }
        })
        .await;
        outcome
    }

    /// Serves until `cancel`, which is to be cancelled as soon as leadership is lost. When this returns, every
    /// stream has been told to end and no write is begun any more; one that was under way may still be committed.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`], and [`Error::StoreClosed`].
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), Error> {
        let (view, commits) = self.store.view_and_follow(router::FOLLOWED);
        let mut managers = self.config.managers.clone();
        let peers = managers.borrow_and_update().clone();
        let term = Arc::new(Term::new(
            self.store.clone(),
            self.config.timings.clone(),
            self.config.plugins.clone().map(Drivers::new),
            view,
            &peers,
        ));
        let idle = self.term.compare_and_swap(&None::<Arc<Term>>, Some(term.clone()));
        if idle.is_some() {
            return Err(Error::AlreadyRunning);
        }
        // Whatever ends this future, dropping it included, ends the term.
        let _running = Running { dispatcher: self, term: &term };
        tracing::info!(node.id = self.config.node_id, "dispatcher starting");
        let timings = &self.config.timings;
        let result = tokio::select! {
            () = cancel.cancelled() => Ok(()),
            result = follow(&term, commits) => result,
            () = self.expire(&term) => Ok(()),
            () = follow_managers(&term, managers) => Ok(()),
            () = term.intake.run(
                &self.store,
                &self.config.node_id,
                timings.commit_gather,
                timings.commit_queue,
            ) => Ok(()),
        };
        tracing::info!(node.id = self.config.node_id, "dispatcher stopping");
        result
    }

    pub(crate) fn term(&self) -> Result<Arc<Term>, Status> {
        self.term.load_full().ok_or_else(status::stopped)
    }

    /// Waits for timers and does what they are for.
    async fn expire(&self, term: &Arc<Term>) {
        let mut passes = JoinSet::new();
        loop {
            let next = term.lock().registry.next_timer();
            let woken = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = woken => {}
                () = term.timer_set.notified() => continue,
                Some(_) = passes.join_next() => continue,
            }
            let now = Instant::now();
            let mut state = term.lock();
            if next.is_some_and(|at| now - at > state.period) {
                state.registry.forgive(now);
            }
            let expired = state.registry.expire(now);
            for expired in expired {
                match expired {
                    Expired::Silent { node_id, unknown } => {
                        if self.store.view().nodes().get(&node_id).is_none() {
                            tracing::info!(
                                node.id = &*node_id,
                                "could not find node {node_id} while trying to add to down nodes store"
                            );
                            continue;
                        }
                        let message = if unknown {
                            "heartbeat failure for node in \"unknown\" state"
                        } else {
                            "heartbeat failure"
                        };
                        tracing::warn!(
                            node.id = &*node_id,
                            "heartbeat expiration for worker {node_id}, setting worker status to NodeStatus_DOWN"
                        );
                        let after = term.timings.orphan_after;
                        state.registry.expect_orphans(node_id.clone(), after, now);
                        // Nobody waits for this write; a failure is logged where it happens.
                        drop(term.intake.node(node_id, node_status::State::Down, message, None, None));
                    }
                    Expired::Orphan { node_id } => {
                        let (store, by) = (self.store.clone(), self.config.node_id.clone());
                        passes.spawn(async move { orphan(&store, &node_id, &by).await });
                    }
                }
            }
        }
    }
}

/// Ends the term when it goes out of scope.
struct Running<'a> {
    dispatcher: &'a Dispatcher,
    term: &'a Arc<Term>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.dispatcher.term.store(None);
        self.term.close();
    }
}

async fn follow(term: &Term, mut commits: Subscription) -> Result<(), Error> {
    loop {
        match commits.next().await {
            Received::Commit(commit) => {
                router::route(&mut term.lock(), &term.timings, &commit.events, &commit.view);
            }
            Received::Lagged(view) => {
                tracing::warn!("the dispatcher fell behind the store and catches up");
                router::catch_up(&mut term.lock(), &term.timings, &view);
            }
            Received::Closed => return Err(Error::StoreClosed),
        }
    }
}

async fn follow_managers(term: &Term, mut managers: tokio::sync::watch::Receiver<Vec<Peer>>) {
    while managers.changed().await.is_ok() {
        let managers = weighted(&managers.borrow_and_update());
        let mut state = term.lock();
        let common =
            Common { managers, keys: state.common.keys.clone(), root_ca: state.common.root_ca.clone() };
        Term::set_common(&mut state, common);
    }
    // Whoever knew the managers is gone; the list as it is stays true until the dispatcher is stopped too.
    std::future::pending::<()>().await;
}

async fn orphan(store: &Store, node_id: &str, applied_by: &str) {
    let view = store.view();
    let live = |task: &swarm_api::v1::Task| {
        task.status.reached(TaskState::Assigned) && !task.status.state().is_terminal()
    };
    let tasks: Vec<String> =
        view.tasks().by_node(node_id).filter(|task| live(task)).map(|task| task.id.to_string()).collect();
    tracing::warn!(
        node.id = node_id,
        tasks = tasks.len(),
        "node has been down for too long: its tasks are given up"
    );
    let change =
        |tx: &mut Tx, chunk: &mut Chunk, id: &String| orphan_task(tx, chunk, id, node_id, applied_by);
    in_chunks(store, "orphaned tasks", &tasks, change, |_, _| {}).await;
}
