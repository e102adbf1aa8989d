//! Start, run, stop.

use std::sync::Arc;

use swarm_api::Kind;
use swarm_brokers::{Error, Terms};
use swarm_store::{Commit, Store, View};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::book::Book;
use crate::error::status;
use crate::service::{ImagesService, PullBrokerService};

/// The pull broker of one manager.
#[derive(Debug)]
pub struct Broker {
    terms: Terms<Book>,
}

pub(crate) type Term = swarm_brokers::Term<Book>;

/// An order is for the nodes that matched when it was opened: commits don't matter.
impl swarm_brokers::Book for Book {
    const KINDS: &'static [Kind] = &[];

    fn not_running() -> Status {
        status::not_running()
    }

    fn ended() -> Status {
        status::leader_lost()
    }

    fn route(&mut self, _: &Commit) {}

    fn catch_up(&mut self, _: &View) {}

    fn close_all(&mut self) {
        self.wake_all();
    }
}

impl Broker {
    /// A broker that is not running: every call of its services is refused.
    pub fn new(store: Arc<Store>) -> Arc<Broker> {
        Arc::new(Broker { terms: Terms::new(store) })
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

    pub(crate) fn term(&self) -> Result<Arc<Term>, Status> {
        self.terms.current()
    }

    /// Serves until `cancel`, which is to be cancelled as soon as leadership is lost. When this returns, every call has
    /// been told to end.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`].
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), Error> {
        self.terms.run(cancel).await
    }
}
