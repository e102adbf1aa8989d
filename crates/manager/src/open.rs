//! How a manager comes to its raft node.

use std::sync::Arc;

use swarm_pki::Dialer;
use swarm_raft::{GrpcTransport, Origin, RaftHandle, RaftNode, Ticks};
use swarm_store::Store;

use crate::join::{Joined, Joiner};
use crate::{Config, Error, disk_keys};

/// Goes on with the log in the state directory, begins a new group, or joins one.
pub(crate) async fn open_raft(
    config: &Config,
    (node_id, cluster_id): (&str, &str),
    advertised: &str,
    store: &Arc<Store>,
    transport: &GrpcTransport,
    dialer: &Dialer,
) -> Result<RaftHandle, Error> {
    let sealer = Arc::new(disk_keys::sealer(&config.keys, &config.state_dir)?);
    let ticks =
        Ticks { heartbeat: config.heartbeat_tick, election: config.election_tick, ..Ticks::default() };
    let mut raft = swarm_raft::Config {
        ticks,
        transport: Arc::new(transport.clone()),
        force_new_group: config.force_new_cluster,
        origin: if config.new_cluster.is_some() { Origin::NewGroup } else { Origin::Existing },
        ..swarm_raft::Config::new(node_id, advertised, &config.state_dir, sealer)
    };
    let node = match open(raft.clone()).await {
        Err(Error::Raft(swarm_raft::Error::NoLog { .. })) if !config.managers.is_empty() => {
            let managers = &config.managers;
            let limit = ticks.request_timeout();
            let joiner =
                Joiner { dialer, node_id, cluster_id, addr: advertised, managers, limit, raft: &raft, store };
            let Joined { answer, fetched } = joiner.join().await?;
            raft.origin = Origin::Joined { raft_id: answer.raft_id, members: answer.members };
            raft.fetched = fetched;
            open(raft).await?
        }
        result => result?,
    };
    store.attach(node.proposer());
    transport.attach(&node);
    Ok(node.start(store.clone())?)
}

/// Opening a long log takes a while, and blocks.
async fn open(config: swarm_raft::Config) -> Result<RaftNode, Error> {
    let node = tokio::task::spawn_blocking(move || RaftNode::open(config)).await;
    Ok(node.map_err(|_| Error::Panicked("opening the raft log"))??)
}
