//! Every session, and which nodes listen. Plain state: nothing waits here.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use swarm_api::Object;
use swarm_api::swarmd::{Invitation, OpenTask, ServeRequest, TaskInput};
use swarm_api::v1::node_status;
use swarm_store::{Event, View};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::error::status;
use crate::target::Target;

/// Sessions that may be open at a time.
pub const MAX_SESSIONS: usize = 512;
/// Sessions that may be open with one node.
pub const MAX_OF_NODE: usize = 64;

/// Why a session ends, once it does.
#[derive(Debug, Default)]
pub(crate) struct End {
    token: CancellationToken,
    reason: Mutex<Option<Status>>,
}

impl End {
    /// Ends it; the first reason counts.
    pub(crate) fn because(&self, reason: Status) {
        self.reason.lock().get_or_insert(reason);
        self.token.cancel();
    }

    /// Completes when it ends, with the reason.
    pub(crate) async fn reached(&self) -> Status {
        self.token.cancelled().await;
        self.reason.lock().clone().unwrap_or_else(status::caller_gone)
    }
}

/// A session that waits for its node: what whoever opened it sends, and where the node's own call goes.
pub(crate) struct Waiting {
    pub(crate) input: Streaming<TaskInput>,
    pub(crate) served: oneshot::Sender<Streaming<ServeRequest>>,
    pub(crate) end: Arc<End>,
}

struct Session {
    target: Target,
    invitation: Invitation,
    /// Gone once the node serves it.
    waiting: Option<Waiting>,
    /// The node's newest call was told of it.
    told: bool,
    end: Arc<End>,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Book {
    sessions: HashMap<String, Session>,
    /// Open Listen calls by node, oldest first. A node that reconnects has two for a while.
    listeners: HashMap<String, Vec<(u64, Arc<Notify>)>>,
    numbers: u64,
}

impl Book {
    /// Takes note of a session, and has its node told.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED.
    pub(crate) fn open(
        &mut self,
        target: Target,
        open: OpenTask,
        caller: String,
        waiting: Waiting,
    ) -> Result<String, Status> {
        if self.sessions.len() >= MAX_SESSIONS {
            return Err(status::too_many(MAX_SESSIONS, "in the cluster"));
        }
        let of_node = self.sessions.values().filter(|session| session.target.node_id == target.node_id);
        if of_node.count() >= MAX_OF_NODE {
            return Err(status::too_many(MAX_OF_NODE, &format!("with node {}", target.node_name)));
        }
        let id = swarm_api::id::random();
        let invitation = Invitation { session_id: id.clone(), open: Some(open), caller };
        self.notify(&target.node_id);
        let end = waiting.end.clone();
        let session = Session { target, invitation, waiting: Some(waiting), told: false, end };
        self.sessions.insert(id.clone(), session);
        Ok(id)
    }

    /// Forgets a session.
    pub(crate) fn close(&mut self, id: &str) {
        self.sessions.remove(id);
    }

    /// A node listens. What it was told in an older call may be lost.
    pub(crate) fn listen(&mut self, node_id: &str) -> (u64, Arc<Notify>) {
        self.numbers += 1;
        let notify = Arc::new(Notify::new());
        self.listeners.entry(node_id.to_owned()).or_default().push((self.numbers, notify.clone()));
        for session in self.sessions.values_mut().filter(|session| session.target.node_id == node_id) {
            session.told = false;
        }
        (self.numbers, notify)
    }

    /// The end of a Listen call.
    pub(crate) fn unlisten(&mut self, node_id: &str, number: u64) {
        if let Some(calls) = self.listeners.get_mut(node_id) {
            calls.retain(|(known, _)| *known != number);
            if calls.is_empty() {
                self.listeners.remove(node_id);
            }
        }
    }

    /// What this call of a node is to be told next. Only the newest one is told anything.
    pub(crate) fn next(&mut self, node_id: &str, number: u64) -> Option<Invitation> {
        let newest = self.listeners.get(node_id).and_then(|calls| calls.last());
        newest.filter(|(newest, _)| *newest == number)?;
        let mut of_node = self.sessions.values_mut().filter(|session| session.target.node_id == node_id);
        let session = of_node.find(|session| !session.told && session.waiting.is_some())?;
        session.told = true;
        Some(session.invitation.clone())
    }

    /// A node serves a session.
    ///
    /// # Errors
    /// NOT_FOUND unless this session waits for this node.
    pub(crate) fn serve(&mut self, node_id: &str, id: &str) -> Result<Waiting, Status> {
        let session = self.sessions.get_mut(id).filter(|session| session.target.node_id == node_id);
        session.and_then(|session| session.waiting.take()).ok_or_else(status::unknown_session)
    }

    /// Ends what a commit has made pointless.
    pub(crate) fn route(&mut self, events: &[Event], view: &View) {
        if self.sessions.is_empty() {
            return;
        }
        let matters = events.iter().any(|event| match event {
            Event::Created(_) => false,
            Event::Updated { new, .. } => matches!(new, Object::Node(_)),
            Event::Removed(object) => matches!(object, Object::Node(_) | Object::Task(_)),
        });
        if matters {
            self.catch_up(view);
        }
    }

    /// As [`Book::route`], when commits were missed.
    pub(crate) fn catch_up(&self, view: &View) {
        for session in self.sessions.values() {
            let target = &session.target;
            let node = view.nodes().get(&target.node_id);
            if node.is_none_or(|node| node.status.state() == node_status::State::Down) {
                session.end.because(status::node_down(&target.node_name));
            }
            let gone = target.task_ids.iter().find(|id| view.tasks().get(id).is_none());
            // Figures of other tasks go on.
            if let (Some(task), 1) = (gone, target.task_ids.len()) {
                session.end.because(status::task_removed(task));
            }
        }
    }

    /// Ends everything.
    pub(crate) fn end_all(&mut self) {
        for (_, session) in self.sessions.drain() {
            session.end.because(status::leader_changed());
        }
        self.listeners.clear();
    }

    fn notify(&self, node_id: &str) {
        for (_, notify) in self.listeners.get(node_id).into_iter().flatten() {
            notify.notify_one();
        }
    }
}
