//! The role manager: brings the observed role of nodes in line with the desired one, while this manager leads.
//!
//! A role is raised at once: the CA certifies the observed role at the node's next renewal, and the node joins the raft
//! group by itself. It is lowered only when the node is no member of the group any more, so that no member ever holds a
//! worker's certificate. A member is taken out of the group only if the others keep a quorum, and never by itself: a
//! leader that is demoted hands leadership over, and its successor finishes the work. Otherwise the group could lose
//! its leader before anybody else has heard of the removal.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::Kind;
use swarm_api::v1::{Node, NodeRole};
use swarm_raft::RaftHandle;
use swarm_store::{Error, Kinds, Received, Store, Tx, View};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::group::Group;

/// Between two attempts at what could not be done.
const RETRY: Duration = Duration::from_secs(5);
/// Limit of the removal of one member.
const REMOVAL: Duration = Duration::from_secs(5);

/// Why a change of the group did not come about.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// The raft group, as far as roles depend on it.
#[tonic::async_trait]
pub trait Members: Send + Sync {
    /// Node ids of all members.
    fn members(&self) -> Vec<String>;

    /// Whether this node is a member.
    fn is_member(&self, node_id: &str) -> bool;

    /// Whether it is this manager itself.
    fn is_self(&self, node_id: &str) -> bool;

    /// Whether the others would keep a quorum of members that can be reached.
    fn can_remove(&self, node_id: &str) -> bool;

    /// Takes a member out.
    async fn remove(&self, node_id: &str) -> Result<(), Failed>;

    /// Has another member lead; returns when one does.
    async fn hand_over(&self) -> Result<(), Failed>;
}

/// The members of the raft group that this manager leads.
#[derive(Debug, Clone)]
pub struct RaftMembers {
    /// This member.
    pub raft: RaftHandle,
    /// Changes the membership.
    pub group: Group,
}

impl RaftMembers {
    fn raft_id(&self, node_id: &str) -> Option<u64> {
        self.raft.membership().by_node_id(node_id).map(|member| member.raft_id)
    }
}

#[tonic::async_trait]
impl Members for RaftMembers {
    fn members(&self) -> Vec<String> {
        self.raft.membership().members().map(|member| member.node_id.clone()).collect()
    }

    fn is_member(&self, node_id: &str) -> bool {
        self.raft_id(node_id).is_some()
    }

    fn is_self(&self, node_id: &str) -> bool {
        self.raft_id(node_id) == Some(self.raft.raft_id())
    }

    fn can_remove(&self, node_id: &str) -> bool {
        self.raft_id(node_id).is_some_and(|raft_id| self.raft.can_remove(raft_id))
    }

    async fn remove(&self, node_id: &str) -> Result<(), Failed> {
        match self.raft_id(node_id) {
            Some(raft_id) => self.group.remove(raft_id).await.map_err(|status| status.message().into()),
            None => Ok(()),
        }
    }

    async fn hand_over(&self) -> Result<(), Failed> {
        Ok(self.raft.transfer_leadership(None).await?)
    }
}

/// Runs until leadership is lost or the store is closed.
pub async fn run(store: Arc<Store>, group: impl Members) {
    let (view, mut commits) = store.view_and_follow(Kinds::of(&[Kind::Node]));
    let mut roles = RoleManager { store: store.clone(), group };
    let mut due = roles.everything(&view);
    let mut later = BTreeSet::new();
    let mut retry = Instant::now();
    loop {
        for id in std::mem::take(&mut due) {
            match roles.settle(&id).await {
                Ok(Settled::Done) => {
                    later.remove(&id);
                }
                Ok(Settled::NotYet) => {
                    if later.is_empty() {
                        retry = Instant::now() + RETRY;
                    }
                    later.insert(id);
                }
                Err(Error::LostLeadership | Error::Stopped) => return,
                Err(error) => {
                    warn!(node.id = id, %error, "a role could not be written");
                    if later.is_empty() {
                        retry = Instant::now() + RETRY;
                    }
                    later.insert(id);
                }
            }
        }
        tokio::select! {
            received = commits.next() => match received {
                Received::Commit(commit) => {
                    let nodes = commit.events.iter().filter(|event| event.kind() == Kind::Node);
                    due.extend(nodes.map(|event| event.id().to_owned()));
                }
                Received::Lagged(view) => due = roles.everything(&view),
                Received::Closed => return,
            },
            () = sleep_until(retry), if !later.is_empty() => due = std::mem::take(&mut later),
        }
    }
}

struct RoleManager<G> {
    store: Arc<Store>,
    group: G,
}

enum Settled {
    Done,
    NotYet,
}

impl<G: Members> RoleManager<G> {
    /// Every node, and every member without a node.
    fn everything(&self, view: &View) -> BTreeSet<String> {
        let nodes = view.nodes().iter().map(|node| node.id.clone());
        nodes.chain(self.group.members()).collect()
    }

    async fn settle(&mut self, id: &str) -> Result<Settled, Error> {
        let roles = self.store.view().nodes().get(id).map(|node| (node.spec.desired_role(), node.role()));
        match roles {
            Some((NodeRole::Manager, NodeRole::Worker)) => {
                self.write(id, NodeRole::Manager).await?;
                info!(node.id = id, "the node is to become a manager");
            }
            Some((NodeRole::Worker, NodeRole::Manager)) => {
                if self.group.is_member(id) && !self.take_out(id).await {
                    return Ok(Settled::NotYet);
                }
                self.write(id, NodeRole::Worker).await?;
                info!(node.id = id, "the node is no manager any more");
            }
            Some(_) => {}
            None => {
                let stays = self.group.is_member(id) && !self.take_out(id).await;
                return Ok(if stays { Settled::NotYet } else { Settled::Done });
            }
        }
        Ok(Settled::Done)
    }

    /// Takes a member out of the group; says whether it is out.
    async fn take_out(&self, id: &str) -> bool {
        if !self.group.can_remove(id) {
            debug!(node.id = id, "the manager stays for now: without it there would be no quorum");
            return false;
        }
        if self.group.is_self(id) {
            info!(node.id = id, "demoted; transferring leadership");
            if let Err(error) = self.group.hand_over().await {
                warn!(node.id = id, %error, "leadership could not be handed over; trying again");
            }
            // Whoever leads now finishes it.
            return false;
        }
        match timeout(REMOVAL, self.group.remove(id)).await {
            Ok(Ok(())) => {
                info!(node.id = id, "the manager was taken out of the raft group");
                true
            }
            Ok(Err(error)) => {
                warn!(node.id = id, %error, "the manager could not be taken out of the raft group; trying again");
                false
            }
            Err(_) => {
                warn!(node.id = id, "taking the manager out of the raft group takes long; trying again");
                false
            }
        }
    }

    /// Writes the observed role, if it is still the one that is wanted.
    async fn write(&self, id: &str, role: NodeRole) -> Result<(), Error> {
        let write = |tx: &mut Tx| {
            let Some(node) = tx.nodes().get(id) else { return Ok(()) };
            if node.spec.desired_role() != role || node.role() == role {
                return Ok(());
            }
            let mut node = Node::clone(node);
            node.role = role as i32;
            tx.update::<Node>(node).map(drop)
        };
        self.store.update(write).await.map(drop)
    }
}

#[cfg(test)]
#[path = "roles_tests.rs"]
mod tests;
