//! Start, run, stop.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, MutexGuard};
use swarm_store::Store;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::book::Book;
use crate::error::{Error, status};
use crate::service::{ImagesService, PullBrokerService};

/// The pull broker of one manager.
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
    book: Mutex<Book>,
    closed: CancellationToken,
}

impl Term {
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock()
    }

    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
}

impl Broker {
    /// A broker that is not running: every call of its services is refused.
    pub fn new(store: Arc<Store>) -> Arc<Broker> {
        Arc::new(Broker { store, term: ArcSwapOption::empty() })
    }

    /// The service for those who want images pulled. It may be registered once and for all, and answers while
    /// [`Broker::run`] runs.
    pub fn images(self: &Arc<Self>) -> ImagesService {
        ImagesService::new(self.clone())
    }

    /// The service for agents.
    pub fn pull_broker(self: &Arc<Self>) -> PullBrokerService {
        PullBrokerService::new(self.clone())
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn term(&self) -> Result<Arc<Term>, Status> {
        self.term.load_full().ok_or_else(status::not_running)
    }

    /// Serves until `cancel`, which is to be cancelled as soon as leadership is lost. When this returns, every call has
    /// been told to end.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`].
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), Error> {
        let term = Arc::new(Term { book: Mutex::default(), closed: CancellationToken::new() });
        if self.term.compare_and_swap(&None::<Arc<Term>>, Some(term.clone())).is_some() {
            return Err(Error::AlreadyRunning);
        }
        // Whatever ends this future, dropping it included, ends the term.
        let _running = Running { broker: self, term: &term };
        cancel.cancelled().await;
        Ok(())
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
        self.term.closed.cancel();
        self.term.book().wake_all();
    }
}
