//! Start, run, stop.

use std::sync::Arc;

use swarm_api::Kind;
use swarm_brokers::{Error, Terms};
use swarm_store::{Commit, Store, View};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::book::Book;
use crate::error::status;
use crate::service::{LogBrokerService, LogsService};

/// The log broker of one manager.
#[derive(Debug)]
pub struct Broker {
    terms: Terms<Book>,
}

pub(crate) type Term = swarm_brokers::Term<Book>;

impl swarm_brokers::Book for Book {
    const KINDS: &'static [Kind] = &[Kind::Task];

    fn not_running() -> Status {
        status::not_running()
    }

    fn ended() -> Status {
        status::cancelled()
    }

    fn route(&mut self, commit: &Commit) {
        self.route(&commit.events, &commit.view, Instant::now());
    }

    fn catch_up(&mut self, view: &View) {
        self.catch_up(view, Instant::now());
    }

    fn close_all(&mut self) {
        self.close();
    }
}

impl Broker {
    /// A broker that is not running: every call of its services is refused.
    pub fn new(store: Arc<Store>) -> Arc<Broker> {
        Arc::new(Broker { terms: Terms::new(store) })
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
        self.terms.current()
    }

    /// Serves until `cancel`, which is to be cancelled as soon as leadership is lost. When this returns, every call has
    /// been told to end.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`], and [`Error::StoreClosed`].
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), Error> {
        self.terms.run(cancel).await
    }
}
