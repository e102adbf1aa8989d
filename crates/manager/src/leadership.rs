//! What a manager does as leadership comes and goes, and as members do.

use std::sync::Arc;

use swarm_api::Kind;
use swarm_api::v1::Peer;
use swarm_raft::{RaftHandle, Role};
use swarm_store::{Kinds, Received, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::Error;
use crate::leader::Leader;

/// Starts and stops the leader's parts: those of one term have ended before those of the next begin.
pub(crate) async fn follow(
    raft: RaftHandle,
    leader: Leader,
    node_id: String,
    ended: watch::Sender<Option<Arc<Error>>>,
    stop: CancellationToken,
) {
    let mut status = raft.watch_status();
    let mut known = "no cluster leader".to_owned();
    loop {
        let led = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            result = status.wait_for(|s| s.role == Role::Leader) => match result {
                Ok(status) => status.term,
                Err(_) => return,
            },
        };
        info!("leadership changed from {known} to {node_id}");
        known.clone_from(&node_id);
        if leader.store.view().cluster().is_none() && leader.bootstrap.ca_key.is_empty() {
            ended.send_replace(Some(Arc::new(Error::Unfinished)));
            return;
        }
        let term = stop.child_token();
        let lead = leader.lead(term.clone());
        tokio::pin!(lead);
        // Leadership may be lost and won again before anybody looks.
        let lost = async {
            let _ = status.wait_for(|s| s.role != Role::Leader || s.term != led).await;
        };
        let mut over = false;
        tokio::select! {
            () = &mut lead => over = true,
            () = lost => {
                known = "no cluster leader".to_owned();
                info!("leadership changed from {node_id} to {known}");
            }
            () = stop.cancelled() => {}
        }
        term.cancel();
        if !over {
            lead.await;
        }
    }
}

/// Says that the manager is ready, once there is a leader and the cluster object is known.
pub(crate) async fn announce_ready(raft: RaftHandle, store: Arc<Store>, ready: watch::Sender<bool>) {
    if raft.wait_for(|status| status.leader != 0).await.is_err() {
        return;
    }
    let (view, mut commits) = store.view_and_follow(Kinds::of(&[Kind::Cluster]));
    let mut found = view.cluster().is_some();
    while !found {
        match commits.next().await {
            Received::Commit(commit) => found = commit.view.cluster().is_some(),
            Received::Lagged(view) => found = view.cluster().is_some(),
            Received::Closed => return,
        }
    }
    ready.send_replace(true);
}

/// Keeps the list of managers that agents are told.
pub(crate) async fn follow_members(raft: RaftHandle, managers: watch::Sender<Vec<Peer>>) {
    let mut membership = raft.watch_membership();
    loop {
        let members = membership.borrow_and_update().clone();
        let peers: Vec<Peer> =
            members.members().map(|m| Peer { node_id: m.node_id.clone(), addr: m.addr.clone() }).collect();
        // A member that waits for the log knows nobody yet.
        if !peers.is_empty() {
            managers.send_if_modified(|known| {
                let changed = *known != peers;
                *known = peers;
                changed
            });
        }
        if membership.changed().await.is_err() {
            return;
        }
    }
}
