//! What only the leader runs, from the moment at which leadership begins to its end.

use std::sync::Arc;

use swarm_dispatcher::Dispatcher;
use swarm_logs::Broker;
use swarm_store::Store;
use swarm_task_sessions::Broker as SessionBroker;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, info_span};

use crate::bootstrap::Bootstrap;
use crate::brain::keep_thinking;
use crate::ca::CaServer;
use crate::dead_managers;
use crate::keys;
use crate::roles::{self, RaftMembers};

/// Everything that starts and stops with leadership.
pub(crate) struct Leader {
    pub(crate) store: Arc<Store>,
    pub(crate) bootstrap: Bootstrap,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) logs: Arc<Broker>,
    pub(crate) task_sessions: Arc<SessionBroker>,
    pub(crate) pulls: Arc<swarm_pulls::Broker>,
    pub(crate) ca: Arc<CaServer>,
    pub(crate) members: RaftMembers,
}

impl Leader {
    /// Leads until cancelled, and returns when everything has ended. Errors of a part are logged and end that part
    /// only: the others are still worth having.
    pub(crate) async fn lead(&self, cancel: CancellationToken) {
        if let Err(error) = self.bootstrap.run(&self.store).await {
            error!(%error, "the cluster's objects could not be written");
            return;
        }
        // Nodes must show themselves to this leader before anything is placed on them.
        if let Err(error) = self.dispatcher.mark_unknown().await {
            error!(%error, "the nodes' states could not be written");
            return;
        }
        let mut parts = JoinSet::new();
        {
            let (store, cancel) = (self.store.clone(), cancel.clone());
            parts.spawn(async move { keys::run(&store, cancel).await }.instrument(info_span!("keys")));
        }
        {
            let (dispatcher, cancel) = (self.dispatcher.clone(), cancel.clone());
            parts.spawn(async move {
                if let Err(error) = dispatcher.run(cancel).await {
                    error!(%error, "the dispatcher ended");
                }
            });
        }
        {
            let (logs, cancel) = (self.logs.clone(), cancel.clone());
            parts.spawn(async move {
                if let Err(error) = logs.run(cancel).await {
                    error!(%error, "the log broker ended");
                }
            });
        }
        {
            let (sessions, cancel) = (self.task_sessions.clone(), cancel.clone());
            parts.spawn(async move {
                if let Err(error) = sessions.run(cancel).await {
                    error!(%error, "the broker of task sessions ended");
                }
            });
        }
        {
            let (pulls, cancel) = (self.pulls.clone(), cancel.clone());
            parts.spawn(async move {
                if let Err(error) = pulls.run(cancel).await {
                    error!(%error, "the pull broker ended");
                }
            });
        }
        {
            let (ca, cancel) = (self.ca.clone(), cancel.clone());
            parts.spawn(async move {
                if let Err(error) = ca.run(cancel).await {
                    error!(%error, "the CA server ended");
                }
            });
        }
        {
            let (store, cancel) = (self.store.clone(), cancel.clone());
            parts.spawn(keep_thinking(store, swarm_dry_run::reconcilers, cancel));
        }
        {
            let (store, members, cancel) = (self.store.clone(), self.members.clone(), cancel.clone());
            let run = async move {
                cancel.run_until_cancelled(roles::run(store, members)).await;
            };
            parts.spawn(run.instrument(info_span!("roles")));
        }
        {
            let (store, raft, cancel) = (self.store.clone(), self.members.raft.clone(), cancel.clone());
            parts.spawn(async move {
                cancel.run_until_cancelled(dead_managers::run(store, raft)).await;
            });
        }
        while let Some(ended) = parts.join_next().await {
            if let Err(error) = ended {
                error!(%error, "a part of the leader failed");
            }
        }
    }
}
