//! The gRPC face of the dispatcher.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use prost::Message as _;
use swarm_api::v1::dispatcher_server::{Dispatcher as Service, DispatcherServer};
use swarm_api::v1::{
    AssignmentsMessage, AssignmentsRequest, HeartbeatRequest, HeartbeatResponse, SessionMessage,
    SessionRequest, TaskState, TasksMessage, TasksRequest, UpdateTaskStatusRequest, UpdateTaskStatusResponse,
    UpdateVolumeStatusRequest, UpdateVolumeStatusResponse, node_status,
};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::assignments::{AssignmentSet, concerns};
use crate::caller::CallerNode;
use crate::dispatcher::Dispatcher;
use crate::driver_secrets::Gate;
use crate::error::status;
use crate::intake::Written;
use crate::registry::Session;
use crate::streams::{AssignmentBox, AssignmentStream, SessionBox, SessionStream, TasksStream};
use crate::term::Term;

/// `docker.swarmkit.v1.Dispatcher` on a [`Dispatcher`]. Requests must carry a [`CallerNode`].
#[derive(Clone, Debug)]
pub struct DispatcherService {
    dispatcher: Arc<Dispatcher>,
}

type Answer<T> = Result<Response<T>, Status>;
type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl DispatcherService {
    pub(crate) fn new(dispatcher: Arc<Dispatcher>) -> Self {
        DispatcherService { dispatcher }
    }

    /// The service for a tonic router.
    pub fn into_server(self) -> DispatcherServer<Self> {
        DispatcherServer::new(self)
    }

    /// Finds the session to go on with, or makes one, and has the node written as READY. All of it in one step:
    /// an expiry of the session, before or after, is so written before or after, too.
    fn open(&self, term: &Term, caller: &CallerNode, request: SessionRequest) -> Result<Opened, Status> {
        let now = Instant::now();
        let node_id: Arc<str> = caller.id.as_str().into();
        let news = Arc::new(SessionBox::default());
        term.with(|state| {
            let (id, resumed) = match state.registry.session(&node_id, &request.session_id) {
                Ok(session) => {
                    let old = std::mem::replace(&mut session.session, news.clone());
                    old.close(status::session_invalid(), false);
                    (session.id.clone(), true)
                }
                Err(_) => {
                    state.registry.admit(&node_id, &term.timings, now)?;
                    if term.store.view().nodes().get(&node_id).is_none() {
                        return Err(status::node_not_found());
                    }
                    let id: Arc<str> = swarm_api::id::random().into();
                    let session = Session { id: id.clone(), session: news.clone(), assignments: None };
                    let grace = term.timings.draw(state.period) * term.timings.grace_periods;
                    if state.registry.register(&node_id, session, grace, now) {
                        term.timer_set.notify_one();
                    }
                    (id, false)
                }
            };
            let ready = node_status::State::Ready;
            let written = term.intake.node(node_id, ready, "", caller.addr, request.description);
            Ok(Opened { id, news, resumed, written })
        })
    }
}

/// Longest that a node waits for its first assignments because a secret's driver does not answer.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Largest description of a node that is stored, in encoded bytes.
const MAX_DESCRIPTION: usize = 256 * 1024;

struct Opened {
    id: Arc<str>,
    news: Arc<SessionBox>,
    resumed: bool,
    written: oneshot::Receiver<Written>,
}

#[tonic::async_trait]
impl Service for DispatcherService {
    type SessionStream = Streaming<SessionMessage>;

    async fn session(&self, request: Request<SessionRequest>) -> Answer<Self::SessionStream> {
        let term = self.dispatcher.term()?;
        let caller = CallerNode::of(&request)?;
        let request = request.into_inner();
        if request.description.as_ref().is_some_and(|d| d.encoded_len() > MAX_DESCRIPTION) {
            return Err(Status::invalid_argument(format!(
                "the node's description is larger than {MAX_DESCRIPTION} bytes"
            )));
        }
        let Opened { id, news, resumed, written } = self.open(&term, &caller, request)?;
        // If this fails, the session that nobody got to know expires like any other, and its node goes down.
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(status::not_written(&error)),
            Err(_) => return Err(status::stopped()),
        }
        let node_id = caller.id;
        let node = term.store.view().nodes().get(&node_id).cloned().ok_or_else(status::node_not_found)?;
        tracing::info!(node.id = node_id, resumed, "worker {node_id} was successfully registered");
        let stream = SessionStream::new(term, news, id, node);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Answer<HeartbeatResponse> {
        let term = self.dispatcher.term()?;
        let caller = CallerNode::of(&request)?;
        let period = term.with(|state| {
            let period = term.timings.draw(state.period);
            let grace = period * term.timings.grace_periods;
            let session_id = &request.get_ref().session_id;
            if state.registry.heartbeat(&caller.id, session_id, grace, Instant::now())? {
                term.timer_set.notify_one();
            }
            Ok(period)
        })?;
        Ok(Response::new(HeartbeatResponse { period: swarm_api::duration::from_std(period) }))
    }

    async fn update_task_status(
        &self,
        request: Request<UpdateTaskStatusRequest>,
    ) -> Answer<UpdateTaskStatusResponse> {
        let term = self.dispatcher.term()?;
        let caller = CallerNode::of(&request)?;
        let request = request.into_inner();
        term.with(|state| state.registry.session(&caller.id, &request.session_id).map(|_| ()))?;
        let node_id: Arc<str> = caller.id.into();
        let view = term.store.view();
        let mut updates = Vec::with_capacity(request.updates.len());
        for update in request.updates {
            let Some(status) = update.status.filter(|s| TaskState::try_from(s.state).is_ok()) else {
                tracing::warn!(task.id = update.task_id, node.id = &*node_id, "report without a known state");
                continue;
            };
            let Some(task) = view.tasks().get(&update.task_id) else {
                tracing::debug!(task.id = update.task_id, "cannot find target task in store");
                continue;
            };
            if *task.node_id != *node_id {
                tracing::warn!(
                    task.id = update.task_id,
                    node.id = &*node_id,
                    "status of a foreign task refused"
                );
                return Err(status::foreign_task());
            }
            updates.push((update.task_id, status));
        }
        tokio::select! {
            () = term.intake.room(term.timings.commit_queue) => {}
            () = term.closed.cancelled() => return Err(status::stopped()),
        }
        term.intake.tasks(&node_id, updates);
        Ok(Response::new(UpdateTaskStatusResponse {}))
    }

    async fn update_volume_status(
        &self,
        request: Request<UpdateVolumeStatusRequest>,
    ) -> Answer<UpdateVolumeStatusResponse> {
        let term = self.dispatcher.term()?;
        let caller = CallerNode::of(&request)?;
        let request = request.into_inner();
        term.with(|state| state.registry.session(&caller.id, &request.session_id).map(|_| ()))?;
        let view = term.store.view();
        let known = |id: &String| view.volumes().get(id).is_some();
        let unpublished = request.updates.into_iter().filter(|u| u.unpublished).map(|u| u.id).filter(known);
        term.intake.unpublished(&caller.id.into(), unpublished);
        Ok(Response::new(UpdateVolumeStatusResponse {}))
    }

    type TasksStream = Streaming<TasksMessage>;

    async fn tasks(&self, request: Request<TasksRequest>) -> Answer<Self::TasksStream> {
        let term = self.dispatcher.term()?;
        let caller = CallerNode::of(&request)?;
        let news = Arc::new(AssignmentBox::default());
        term.with(|state| {
            let session = state.registry.session(&caller.id, &request.get_ref().session_id)?;
            if let Some(old) = session.assignments.replace(news.clone()) {
                old.close(status::session_invalid());
            }
            Ok(())
        })?;
        let stream = TasksStream::new(term, news, caller.id.into());
        Ok(Response::new(Box::pin(stream)))
    }

    type AssignmentsStream = Streaming<AssignmentsMessage>;

    async fn assignments(&self, request: Request<AssignmentsRequest>) -> Answer<Self::AssignmentsStream> {
        let term = self.dispatcher.term()?;
        let caller = CallerNode::of(&request)?;
        let news = Arc::new(AssignmentBox::default());
        let (view, volumes) = term.with(|state| {
            let session = state.registry.session(&caller.id, &request.get_ref().session_id)?;
            if let Some(old) = session.assignments.replace(news.clone()) {
                old.close(status::session_invalid());
            }
            // In one step: all that comes after this view goes into the box.
            let volumes = state.volumes.get(&caller.id).cloned().unwrap_or_default();
            Ok((state.routed.clone(), volumes))
        })?;
        let node_id: Arc<str> = caller.id.into();
        let mut set = AssignmentSet::new(node_id.clone());
        let mut gate = Gate::new(term.drivers.clone(), node_id.clone());
        let tasks = view.tasks().by_node(&node_id).filter(|task| concerns(task, &node_id));
        gate.ask_for_all(tasks, &mut set.made, &view, LONGEST_WAIT).await;
        let first = set.complete(&view, volumes);
        let stream = AssignmentStream::new(term, news, set, gate, first);
        Ok(Response::new(Box::pin(stream)))
    }
}
