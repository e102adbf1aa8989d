//! Start, run, stop.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use swarm_api::Kind;
use swarm_store::{Kinds, Received, Store, Subscription};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::book::Book;
use crate::error::{Error, status};
use crate::service::{TaskSessionsService, TasksService};

/// The broker of task sessions of one manager.
pub struct Broker {
    store: Arc<Store>,
    term: ArcSwapOption<Term>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("running", &self.term.load().is_some()).finish_non_exhaustive()
    }
}

/// What lives from becoming leader to ceasing to be.
pub(crate) struct Term {
    /// Tells agents apart which leader gave them a session.
    pub(crate) id: String,
    store: Arc<Store>,
    book: Mutex<Book>,
    closed: CancellationToken,
}

impl Term {
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Runs `f` on the book.
    ///
    /// # Errors
    /// Those of `f`; ABORTED once the term has ended.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Book) -> Result<R, Status>) -> Result<R, Status> {
        let mut book = self.book.lock();
        // Under the lock: whoever closes the term takes it too, so nothing is opened after that.
        if self.closed.is_cancelled() {
            return Err(status::leader_changed());
        }
        f(&mut book)
    }

    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Broker {
    /// A broker that is not running: every call of its services is refused.
    pub fn new(store: Arc<Store>) -> Arc<Broker> {
        Arc::new(Broker { store, term: ArcSwapOption::empty() })
    }

    /// The service for those who want into tasks. It may be registered once and for all, and answers while
    /// [`Broker::run`] runs.
    pub fn tasks(self: &Arc<Self>) -> TasksService {
        TasksService::new(self.clone())
    }

    /// The service for agents.
    pub fn task_sessions(self: &Arc<Self>) -> TaskSessionsService {
        TaskSessionsService::new(self.clone())
    }

    pub(crate) fn term(&self) -> Result<Arc<Term>, Status> {
        self.term.load_full().ok_or_else(status::not_running)
    }

    /// Serves until `cancel`, which is to be cancelled as soon as leadership is lost. When this returns, every call has
    /// been told to end.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`], and [`Error::StoreClosed`].
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), Error> {
        let (_, commits) = self.store.view_and_follow(Kinds::of(&[Kind::Task, Kind::Node]));
        let term = Arc::new(Term {
            id: swarm_api::id::random(),
            store: self.store.clone(),
            book: Mutex::default(),
            closed: CancellationToken::new(),
        });
        let idle = self.term.compare_and_swap(&None::<Arc<Term>>, Some(term.clone()));
        if idle.is_some() {
            return Err(Error::AlreadyRunning);
        }
        // Whatever ends this future, dropping it included, ends the term.
        let _running = Running { broker: self, term: &term };
        tokio::select! {
            () = cancel.cancelled() => Ok(()),
            result = follow(&term, commits) => result,
        }
    }
}

/// Ends the term when it goes out of scope.
struct Running<'a> {
    broker: &'a Broker,
    term: &'a Term,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.broker.term.store(None);
        let mut book = self.term.book.lock();
        self.term.closed.cancel();
        book.end_all();
    }
}

async fn follow(term: &Term, mut commits: Subscription) -> Result<(), Error> {
    loop {
        match commits.next().await {
            Received::Commit(commit) => term.book.lock().route(&commit.events, &commit.view),
            Received::Lagged(view) => term.book.lock().catch_up(&view),
            Received::Closed => return Err(Error::StoreClosed),
        }
    }
}
