//! The manager of a node: started when its certificate says so, stopped when it does not any more or when the raft
//! group has let the member go. The agent and its tasks notice nothing but another way to the managers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use swarm_agent::{Observed, Reconnect, Remotes};
use swarm_api::v1::{Node, NodeRole};
use swarm_manager::Manager;
use swarm_pki::{DekState, KeyStore, RootCa};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::connector::NodeConnector;
use crate::identity::Identity;
use crate::{Config, Error};

/// Between two attempts to start a manager.
const PAUSE: Duration = Duration::from_secs(5);

/// What a supervisor works with.
pub(crate) struct Supervisor {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) connector: Arc<NodeConnector>,
    pub(crate) remotes: Arc<Remotes>,
    pub(crate) observed: watch::Receiver<Observed>,
    pub(crate) reconnect: Reconnect,
    pub(crate) stop: CancellationToken,
}

/// Why a manager does not go on.
enum End {
    /// The node stops.
    Stopped,
    /// It is a worker from now on, or is to be a new member.
    Demoted,
    /// It can't go on.
    Failed(Arc<swarm_manager::Error>),
}

impl Supervisor {
    /// Runs until the node stops, and stops the manager with it. `manager` is one that runs already.
    ///
    /// # Errors
    /// A manager that can't go on ends the node.
    pub(crate) async fn run(mut self, mut manager: Option<Manager>) -> Result<(), Error> {
        loop {
            let running = match manager.take() {
                Some(running) => running,
                None => match self.next().await {
                    Some(running) => running,
                    None => return Ok(()),
                },
            };
            let end = self.attend(&running).await;
            let sessions = self.observed.borrow().sessions;
            if matches!(end, End::Demoted) {
                self.connector.set_local(None);
                self.reconnect.now();
            }
            running.stop().await;
            drop(running);
            match end {
                End::Stopped => return Ok(()),
                End::Failed(error) => return Err(Error::ManagerEnded(error)),
                End::Demoted => {}
            }
            wipe(&self.config.state_dir, &self.identity.keys)?;
            info!("this node is no manager any more; its tasks go on running");
            self.decided(sessions).await;
        }
    }

    /// Waits until the manager does not go on.
    async fn attend(&self, manager: &Manager) -> End {
        let ready = async {
            if manager.ready().await.is_ok() {
                self.connector.set_local(Some(self.config.listen_control_api.clone()));
                if self.observed.borrow().manager.as_deref() != Some(swarm_agent::LOCAL) {
                    self.reconnect.now();
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.stop.cancelled() => End::Stopped,
            error = manager.ended() => match *error {
                swarm_manager::Error::Removed => End::Demoted,
                _ => {
                    error!(%error, "the manager ended");
                    End::Failed(error)
                }
            },
            () = self.identity.has_role(NodeRole::Worker) => End::Demoted,
            () = ready => End::Stopped,
        }
    }

    /// A member that was removed still has a manager's certificate. Waits until it has a worker's, or until the managers
    /// say, in a session that began after the removal, that the node is to be a manager.
    async fn decided(&mut self, sessions: u64) {
        let manager =
            |node: &Node| node.role() == NodeRole::Manager && node.spec.desired_role() == NodeRole::Manager;
        let again = |observed: &Observed| {
            observed.sessions > sessions && observed.node.as_ref().is_some_and(|node| manager(node))
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.identity.has_role(NodeRole::Worker) => {}
            _ = self.observed.wait_for(again) => {}
        }
    }

    /// Addresses of the managers to join.
    fn managers(&self) -> Vec<String> {
        let own = self.identity.security.current().credentials().node_id().to_owned();
        let peers = self.remotes.peers().into_iter().filter_map(|known| known.peer);
        peers.filter(|peer| peer.node_id != own).map(|peer| peer.addr).collect()
    }

    /// Starts a manager once the node's certificate is one's; `None` when the node stops first.
    async fn next(&self) -> Option<Manager> {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = self.identity.has_role(NodeRole::Manager) => {}
            }
            info!("this node becomes a manager");
            let started = tokio::select! {
                () = self.stop.cancelled() => return None,
                started = start(&self.config, &self.identity, None, self.managers()) => started,
            };
            match started {
                Ok(manager) => return Some(manager),
                Err(error) => error!(%error, "the manager could not be started; trying again in {PAUSE:?}"),
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = sleep(PAUSE) => {}
            }
        }
    }
}

/// Starts the node's manager. `new_cluster` is the root of one that it makes, `managers` are those of the one that it
/// joins.
pub(crate) async fn start(
    config: &Config,
    identity: &Identity,
    new_cluster: Option<RootCa>,
    managers: Vec<String>,
) -> Result<Manager, Error> {
    let manager = Manager::start(swarm_manager::Config {
        security: identity.security.clone(),
        keys: identity.keys.clone(),
        state_dir: config.state_dir.clone(),
        listen_remote_api: config.listen_remote_api.clone(),
        advertise_remote_api: config.advertise_remote_api.clone(),
        listen_control_api: config.listen_control_api.clone(),
        heartbeat_tick: config.heartbeat_tick,
        election_tick: config.election_tick,
        new_cluster,
        new_unlock_key: identity.new_unlock_key.clone(),
        // Whoever has others to join is not the last one.
        force_new_cluster: config.force_new_cluster && managers.is_empty(),
        managers,
    });
    Ok(manager.await?)
}

/// Removes what only a manager needs: the raft log, and the key that it is encrypted with.
///
/// # Errors
/// What can't be removed.
pub(crate) fn wipe(state_dir: &Path, keys: &KeyStore) -> Result<(), Error> {
    let raft = state_dir.join("raft");
    match std::fs::remove_dir_all(&raft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::state(raft)(error)),
        _ => {}
    }
    // The log goes first: without its key nobody could read it, and the node would not start.
    keys.set_deks(DekState::default())?;
    Ok(())
}
