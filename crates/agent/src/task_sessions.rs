//! Task sessions: those whom managers let into this node's tasks.
//!
//! The agent listens on its session's connection, which carries nothing else of them. Each one that it is to serve gets a
//! connection of its own, so that whoever stands still holds up nothing but itself; it goes on when the agent's session is
//! replaced by another one, but not under another leader (decision 0089).

mod serve;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use swarm_api::swarmd::task_sessions_client::TaskSessionsClient;
use swarm_api::swarmd::{Invitation, ListenRequest};
use swarm_api::v1::Peer;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::logs::{Pauses, Tasks};
use crate::remotes::Connector;

/// Sessions at a time. A manager gives no more.
const MAX_SESSIONS: usize = 64;

/// The task sessions of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct TaskSessions(Arc<Inner>);

struct Inner {
    node_id: String,
    tasks: Tasks,
    connector: Arc<dyn Connector>,
    /// Commands may be executed, and tasks attached to.
    exec: bool,
    running: Mutex<Running>,
    /// Owns everything that is started here.
    tracker: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct Running {
    /// Of the leader that gave them.
    term: String,
    sessions: HashMap<String, CancellationToken>,
}

impl TaskSessions {
    /// Everything that is started ends with `stop`, and runs in `tracker`.
    pub(crate) fn new(
        node_id: String,
        tasks: Tasks,
        connector: Arc<dyn Connector>,
        exec: bool,
        tracker: TaskTracker,
        stop: CancellationToken,
    ) -> TaskSessions {
        TaskSessions(Arc::new(Inner {
            node_id,
            tasks,
            connector,
            exec,
            running: Mutex::default(),
            tracker,
            stop,
        }))
    }

    /// Listens to a manager for as long as the agent's session with it lasts. Trouble with this never ends that one.
    pub(crate) async fn listen(&self, channel: Channel, manager: Option<&Peer>) -> std::convert::Infallible {
        let mut client = TaskSessionsClient::new(channel);
        let mut pauses = Pauses::default();
        loop {
            let error = self.listen_once(&mut client, manager).await;
            if error.code() == Code::Unimplemented {
                tracing::info!("the managers know no task sessions (exec, attach, stats)");
                std::future::pending::<()>().await;
            }
            tracing::debug!(%error, "task sessions are listened to anew");
            pauses.pause().await;
        }
    }

    async fn listen_once(&self, client: &mut TaskSessionsClient<Channel>, manager: Option<&Peer>) -> Status {
        let mut stream = match client.listen(ListenRequest {}).await {
            Ok(stream) => stream.into_inner(),
            Err(error) => return error,
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    if !message.term.is_empty() {
                        self.begin_term(message.term);
                    }
                    if let Some(invitation) = message.invitation {
                        self.take(invitation, manager.cloned());
                    }
                }
                Ok(None) => return Status::unavailable("the manager closed the stream"),
                Err(error) => return error,
            }
        }
    }

    /// Ends what another leader gave: nobody is there any more.
    fn begin_term(&self, term: String) {
        let mut running = self.0.running.lock();
        if running.term != term {
            running.term = term;
            running.sessions.drain().for_each(|(_, cancel)| cancel.cancel());
        }
    }

    fn take(&self, invitation: Invitation, manager: Option<Peer>) {
        let mut running = self.0.running.lock();
        let id = invitation.session_id.clone();
        // One that is told twice is served once.
        if self.0.stop.is_cancelled() || running.sessions.contains_key(&id) {
            return;
        }
        if running.sessions.len() >= MAX_SESSIONS {
            tracing::warn!(
                session.id = id,
                "more than {MAX_SESSIONS} task sessions at a time: one is left alone"
            );
            return;
        }
        let cancel = self.0.stop.child_token();
        running.sessions.insert(id.clone(), cancel.clone());
        drop(running);
        let inner = self.0.clone();
        self.0.tracker.spawn(async move {
            Box::pin(serve::serve(&inner, invitation, manager, &cancel)).await;
            inner.running.lock().sessions.remove(&id);
        });
    }
}
