//! Start, run, stop.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, MutexGuard};
use swarm_api::Kind;
use swarm_store::{Kinds, Received, Store, Subscription};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::book::Book;
use crate::error::{Error, status};
use crate::service::{LogBrokerService, LogsService};

/// The log broker of one manager.
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
    store: Arc<Store>,
    book: Mutex<Book>,
    closed: CancellationToken,
}

impl Term {
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock()
    }

    /// Runs `f` on the book; refused once the term has ended.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Book) -> Result<R, Status>) -> Result<R, Status> {
        let mut book = self.book.lock();
        // Under the lock: whoever closes the term takes it too, so nothing is opened after that.
        if self.is_closed() {
            return Err(status::cancelled());
        }
        f(&mut book)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
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

    /// The service for those who want lines. It may be registered once and for all, and answers while
    /// [`Broker::run`] runs.
    pub fn logs(self: &Arc<Self>) -> LogsService {
        LogsService::new(self.clone())
    }

    /// The service for agents.
    pub fn log_broker(self: &Arc<Self>) -> LogBrokerService {
        LogBrokerService::new(self.clone())
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
        let (_, commits) = self.store.view_and_follow(Kinds::of(&[Kind::Task]));
        let term = Arc::new(Term {
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
        let mut book = self.term.book();
        self.term.closed.cancel();
        book.close();
    }
}

async fn follow(term: &Term, mut commits: Subscription) -> Result<(), Error> {
    loop {
        match commits.next().await {
            Received::Commit(commit) => term.book().route(&commit.events, &commit.view, Instant::now()),
            Received::Lagged(view) => term.book().catch_up(&view, Instant::now()),
            Received::Closed => return Err(Error::StoreClosed),
        }
    }
}
