//! Start, run, stop.

use std::sync::Arc;

use swarm_api::Kind;
use swarm_brokers::{Error, Terms};
use swarm_store::{Commit, Store, View};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::book::Book;
use crate::error::status;
use crate::service::{TaskSessionsService, TasksService};

/// The broker of task sessions of one manager.
#[derive(Debug)]
pub struct Broker {
    terms: Terms<Book>,
}

/// Its id tells agents apart which leader gave them a session.
pub(crate) type Term = swarm_brokers::Term<Book>;

impl swarm_brokers::Book for Book {
    const KINDS: &'static [Kind] = &[Kind::Task, Kind::Node];

    fn not_running() -> Status {
        status::not_running()
    }

    fn ended() -> Status {
        status::leader_changed()
    }

    fn route(&mut self, commit: &Commit) {
        self.route(&commit.events, &commit.view);
    }

    fn catch_up(&mut self, view: &View) {
        Book::catch_up(self, view);
    }

    fn close_all(&mut self) {
        self.end_all();
    }
}

impl Broker {
    /// A broker that is not running: every call of its services is refused.
    pub fn new(store: Arc<Store>) -> Arc<Broker> {
        Arc::new(Broker { terms: Terms::new(store) })
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
