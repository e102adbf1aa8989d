//! One node from its start to its end.

use std::collections::BTreeSet;
use std::sync::Arc;

use swarm_agent::{Agent, AgentHandle, Observed, Remotes};
use swarm_api::v1::{NodeRole, Peer};
use swarm_manager::Manager;
use swarm_pki::{Clock, RootCa, SecurityContext};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::connector::NodeConnector;
use crate::identity::{Identity, discard, establish, is_unfinished};
use crate::renewal::Renewer;
use crate::state::StateDir;
use crate::supervisor::{self, Supervisor};
use crate::{Config, Error, restore};

/// Weight that a manager has from the start.
const KNOWN: i64 = 10;

/// A running node.
pub struct Node {
    agent: AgentHandle,
    security: Arc<SecurityContext>,
    state: Arc<StateDir>,
    remotes: Arc<Remotes>,
    stop: CancellationToken,
    tasks: TaskTracker,
    ended: watch::Receiver<Option<Arc<Error>>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("security", &self.security).finish_non_exhaustive()
    }
}

impl Node {
    /// Starts the node: establishes its identity, then its manager if it is one, then its agent.
    ///
    /// # Errors
    /// Whatever keeps it from being what it should be; nothing is left running then.
    pub async fn start(config: Config) -> Result<Node, Error> {
        let clock = Clock::system();
        let (state, restored_key) = restore::run(&config, &clock)?;
        let state = Arc::new(state);
        let unlock_key = restored_key.or_else(|| config.unlock_key.as_ref().map(|key| key.kek().clone()));
        let managers = manager_addresses(&config, &state)?;
        let mut identity = establish(&config, unlock_key.as_ref(), &managers, &clock).await?;
        let mut manager = start_manager(&config, &identity, &managers).await;
        if let Err(Error::Manager(error)) = &manager
            && error.is_unfinished()
            && is_unfinished(&config.state_dir)
        {
            drop(identity);
            discard(&config.state_dir)?;
            identity = establish(&config, unlock_key.as_ref(), &managers, &clock).await?;
            manager = start_manager(&config, &identity, &managers).await;
        }
        let manager = manager?;

        let security = identity.security.clone();
        let node_id = security.current().credentials().node_id().to_owned();
        let connector = Arc::new(NodeConnector::new(security.clone()));
        if manager.is_some() {
            connector.set_local(Some(config.listen_control_api.clone()));
        }
        let remotes = Arc::new(known_managers(&config, &state)?);
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let (tls_info_out, tls_info) = watch::channel(Some(security.current().tls_info()));
        let agent = Agent::start(swarm_agent::Config {
            node_id: node_id.clone(),
            hostname: config.hostname.clone(),
            state_dir: config.state_dir.clone(),
            executors: config.executors.clone(),
            remotes: remotes.clone(),
            connector: connector.clone(),
            tls_info,
            fips: false,
            exec: config.exec,
            generic_resources: config.generic_resources.clone(),
            timings: swarm_agent::Timings::default(),
        })
        .await;
        let agent = match agent {
            Ok(agent) => agent,
            Err(error) => {
                if let Some(manager) = &manager {
                    manager.stop().await;
                }
                return Err(Error::Agent(error.to_string()));
            }
        };
        let observed = agent.observed();
        let (keys, reconnect) = (identity.keys.clone(), agent.reconnect());
        let supervisor = Supervisor {
            config,
            identity,
            connector: connector.clone(),
            remotes: remotes.clone(),
            observed: observed.clone(),
            reconnect,
            stop: stop.clone(),
        };
        let (ended_out, ended) = watch::channel(None);
        tasks.spawn(async move {
            if let Err(error) = supervisor.run(manager).await {
                ended_out.send_replace(Some(Arc::new(error)));
            }
        });
        let renewer =
            Renewer { security: security.clone(), keys: keys.clone(), connector, remotes: remotes.clone() };
        tasks.spawn({
            let (stop, observed) = (stop.clone(), observed.clone());
            async move {
                stop.run_until_cancelled(renewer.run(observed)).await;
            }
        });
        tasks.spawn(announce_ready(observed.clone(), node_id, stop.clone()));
        tasks.spawn(follow_root(observed, security.clone(), keys, stop.clone()));
        tasks.spawn(follow_tls(security.clone(), tls_info_out, stop.clone()));
        tasks.spawn(keep_managers(state.clone(), remotes.clone(), stop.clone()));
        tasks.close();
        Ok(Node { agent, security, state, remotes, stop, tasks, ended })
    }

    /// Completes when the node can't go on, with the reason.
    ///
    /// # Errors
    /// Always; a node does not end by itself for a good reason.
    pub async fn ended(&self) -> Result<(), Arc<Error>> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(error) => Err(error.clone().expect("it was just seen to be there")),
            // Stopping is no end.
            Err(_) => std::future::pending().await,
        }
    }

    /// Ends the session and the manager; tasks go on running.
    pub async fn stop(self) {
        self.agent.stop().await;
        self.stop.cancel();
        self.tasks.wait().await;
        if let Err(error) = self.state.save_managers(&self.remotes.peers()) {
            warn!(%error, "the known managers could not be saved");
        }
    }
}

/// The manager, if the node's certificate makes it one. That of a new cluster has begun it when this returns.
async fn start_manager(
    config: &Config,
    identity: &Identity,
    managers: &[String],
) -> Result<Option<Manager>, Error> {
    if identity.security.current().credentials().role() != NodeRole::Manager {
        return Ok(None);
    }
    let manager = supervisor::start(config, identity, identity.new_root.clone(), managers.to_vec()).await?;
    if is_unfinished(&config.state_dir) {
        if let Err(error) = manager.ready().await {
            manager.stop().await;
            return Err(match Arc::try_unwrap(error) {
                Ok(error) => Error::Manager(error),
                Err(error) => Error::ManagerEnded(error),
            });
        }
        identity.finished()?;
    }
    Ok(Some(manager))
}

/// Addresses of managers to join through: the one that was given, then those that were known before.
fn manager_addresses(config: &Config, state: &StateDir) -> Result<Vec<String>, Error> {
    if config.force_new_cluster {
        // They are lost.
        return Ok(Vec::new());
    }
    let known = state.managers()?.into_iter().map(|manager| manager.addr);
    let own = config.advertise_remote_api.as_ref().unwrap_or(&config.listen_remote_api);
    let mut all: Vec<String> = config.join.iter().map(|join| join.addr.clone()).chain(known).collect();
    all.retain(|addr| !addr.is_empty() && addr != own);
    let mut seen = BTreeSet::new();
    all.retain(|addr| seen.insert(addr.clone()));
    Ok(all)
}

fn known_managers(config: &Config, state: &StateDir) -> Result<Remotes, Error> {
    Ok(match &config.join {
        // The address that was given stands for all that was known before.
        Some(join) => {
            let remotes = Remotes::new([]);
            remotes.observe(&Peer { node_id: String::new(), addr: join.addr.clone() }, KNOWN);
            remotes
        }
        // Those that were known are lost.
        None if config.force_new_cluster => Remotes::new([]),
        None => Remotes::new(state.managers()?),
    })
}

/// Says that the node is ready, once it has a session; scripts wait for this line.
async fn announce_ready(mut observed: watch::Receiver<Observed>, node_id: String, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        result = observed.wait_for(|o| o.sessions > 0) => if result.is_ok() {
            info!(node.id = node_id, "node is ready");
        },
    }
}

/// Takes over a root that managers announce, if the node's own certificate leads to it.
async fn follow_root(
    mut observed: watch::Receiver<Observed>,
    security: Arc<SecurityContext>,
    keys: Arc<swarm_pki::KeyStore>,
    stop: CancellationToken,
) {
    loop {
        let bundle = observed.borrow_and_update().root_ca.clone();
        let now = security.clock().now();
        if !bundle.is_empty() && bundle != security.current().root().pem() {
            let taken = RootCa::trust_only(&bundle, now).and_then(|root| {
                security.update_root(root.clone())?;
                keys.save_root(&root)
            });
            match taken {
                Ok(()) => info!("took over a new root certificate"),
                Err(error) => warn!(%error, "the managers announced a root certificate that can't be used"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = observed.changed() => if changed.is_err() { return },
        }
    }
}

/// Keeps what the node says of its TLS identity true.
async fn follow_tls(
    security: Arc<SecurityContext>,
    out: watch::Sender<Option<swarm_api::v1::NodeTlsInfo>>,
    stop: CancellationToken,
) {
    let mut changes = security.subscribe();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        out.send_replace(Some(changes.borrow_and_update().tls_info()));
    }
}

/// Writes the list of managers whenever one comes or goes.
async fn keep_managers(state: Arc<StateDir>, remotes: Arc<Remotes>, stop: CancellationToken) {
    let mut changes = remotes.changes();
    loop {
        if let Err(error) = state.save_managers(&remotes.peers()) {
            warn!(%error, "the known managers could not be saved");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}
