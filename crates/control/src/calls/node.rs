//! Nodes.

use std::time::{Duration, SystemTime};

use swarm_api::v1::list_nodes_request::Filters;
use swarm_api::v1::node_spec::{Availability, Membership as Admission};
use swarm_api::v1::node_status::State;
use swarm_api::v1::{
    BlacklistedCertificate, Cluster, Node, NodeRole, NodeSpec, Task, TaskState, TaskStatus, UpdateNodeRequest,
};
use swarm_api::{Shared, StoreObject as _, duration};
use swarm_store::Tx;

use super::{Control, get, version};
use crate::error::{Error, Result};
use crate::filter::{Common, Found, any, labels, pick};

/// How long a certificate stays on the list of refused ones after it has expired.
pub(super) const KEEP_EXPIRED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Tasks that one transaction orphans, so that no node is too large to be removed.
const ORPHANS_PER_ENTRY: usize = 200;

impl Control {
    pub(crate) async fn get_node(&self, id: &str) -> Result<Shared<Node>> {
        let mut node = get::<Node>(&*self.view().await?, "node", id)?.clone();
        if let Some(status) = self.membership.member(id) {
            node.manager_status = Some(status);
        }
        Ok(node)
    }

    pub(crate) async fn list_nodes(&self, filters: Option<Filters>) -> Result<Vec<Shared<Node>>> {
        let view = self.view().await?;
        let table = view.nodes();
        let mut nodes = match filters {
            None => table.iter().cloned().collect(),
            Some(filters) => {
                let common = Common {
                    names: &filters.names,
                    name_prefixes: &filters.name_prefixes,
                    id_prefixes: &filters.id_prefixes,
                };
                let no_labels = Default::default();
                let pass = |node: &Node| {
                    let engine = node.description.as_ref().and_then(|d| d.engine.as_ref());
                    common.matches(node)
                        && labels(&filters.labels, engine.map_or(&no_labels, |e| &e.labels))
                        && labels(&filters.node_labels, &node.annotations().labels)
                        && any(&filters.roles, |role| node.role == *role)
                        && any(&filters.memberships, |membership| node.spec.membership == *membership)
                };
                let mut found = Found::default();
                if let Some(common) = common.candidates(table) {
                    found = common;
                } else if !filters.roles.is_empty() {
                    let roles = filters.roles.iter().filter_map(|role| NodeRole::try_from(*role).ok());
                    roles.for_each(|role| found.extend(table.by_role(role)));
                } else if !filters.memberships.is_empty() {
                    let memberships = filters.memberships.iter().filter_map(|m| Admission::try_from(*m).ok());
                    memberships.for_each(|membership| found.extend(table.by_membership(membership)));
                } else {
                    found.extend(table.iter());
                }
                pick(found.into_vec(), pass)
            }
        };
        let mut members = self.membership.members();
        for node in &mut nodes {
            if let Some(status) = members.remove(node.id.as_str()) {
                node.manager_status = Some(status);
            }
        }
        Ok(nodes)
    }

    pub(crate) async fn update_node(&self, request: UpdateNodeRequest) -> Result<Shared<Node>> {
        let UpdateNodeRequest { node_id, node_version, spec } = request;
        let base = version(&node_id, node_version)?;
        let spec: NodeSpec = spec.ok_or_else(Error::invalid)?;
        let member = self.membership.member(&node_id).is_some();
        let removable = member && self.membership.can_remove(&node_id);
        let (node, _) = self
            .update(|tx| {
                let mut node = get::<Node>(tx, "node", &node_id)?.clone();
                let demoted =
                    node.spec.desired_role() == NodeRole::Manager && spec.desired_role() == NodeRole::Worker;
                if demoted {
                    // Those that are on their way to being workers don't count.
                    let stays = |manager: &&Shared<Node>| {
                        manager.id != node_id && manager.spec.desired_role() == NodeRole::Manager
                    };
                    if !tx.nodes().by_role(NodeRole::Manager).any(|manager| stays(&manager)) {
                        return Err(Error::precondition(
                            "attempting to demote the last manager of the swarm",
                        ));
                    }
                    if !member {
                        return Err(Error::Missing("can't find manager in raft memberlist".into()));
                    }
                    if !removable {
                        return Err(Error::precondition(
                            "can't remove member from the raft: this would result in a loss of quorum",
                        ));
                    }
                }
                node.meta.version = base;
                node.spec = spec.clone();
                Ok(tx.update(node)?)
            })
            .await?;
        tracing::info!(
            node.id = node.id,
            availability = node.spec.availability().as_str_name(),
            role = node.spec.desired_role().as_str_name(),
            "node updated"
        );
        let mut node = node;
        if let Some(status) = self.membership.member(&node_id) {
            node.manager_status = Some(status);
        }
        Ok(node)
    }

    pub(crate) async fn remove_node(&self, id: &str, force: bool) -> Result<()> {
        let member = self.membership.member(id).is_some();
        // Everything but the last group of tasks is orphaned in transactions of its own. The first of them drains
        // the node, so that it gets no new tasks while it is going; repeating any of them is harmless.
        loop {
            let (removed, _) = self
                .update(|tx| {
                    check_removal(tx, id, force, member)?;
                    if orphan(tx, id)? {
                        drain(tx, id)?;
                        return Ok(false);
                    }
                    refuse_certificate(tx, id)?;
                    tx.remove::<Node>(id)?;
                    Ok::<_, Error>(true)
                })
                .await?;
            if removed {
                break;
            }
        }
        tracing::info!(node.id = id, force, "node removed");
        Ok(())
    }
}

fn check_removal(tx: &Tx, id: &str, force: bool, member: bool) -> Result<()> {
    let node = get::<Node>(tx, "node", id)?;
    if node.spec.desired_role() == NodeRole::Manager && member {
        return Err(Error::precondition(format!(
            "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
        )));
    }
    if !force && node.status.state() == State::Ready {
        return Err(Error::precondition(format!("node {id} is not down and can't be removed")));
    }
    Ok(())
}

/// Marks tasks of the node as orphaned, as many as go into one entry. Returns whether there are more.
fn orphan(tx: &mut Tx, node_id: &str) -> Result<bool> {
    let live = |task: &&Shared<Task>| !task.status.reached(TaskState::Complete);
    let mut tasks: Vec<Shared<Task>> =
        tx.tasks().by_node(node_id).filter(live).take(ORPHANS_PER_ENTRY + 1).cloned().collect();
    let more = tasks.len() > ORPHANS_PER_ENTRY;
    tasks.truncate(ORPHANS_PER_ENTRY);
    let now = tx.now().into();
    for mut task in tasks {
        task.status = TaskStatus {
            timestamp: Some(now),
            state: TaskState::Orphaned as i32,
            message: "Task belonged to a node that has been deleted".into(),
            // That its agent ever said something of it is to be seen.
            applied_by: task.status.applied_by.clone(),
            applied_at: task.status.applied_at,
            ..Default::default()
        };
        tx.update(task)?;
    }
    Ok(more)
}

fn drain(tx: &mut Tx, node_id: &str) -> Result<()> {
    let mut node = get::<Node>(tx, "node", node_id)?.clone();
    if node.spec.availability() != Availability::Drain {
        node.spec.availability = Availability::Drain as i32;
        tx.update(node)?;
    }
    Ok(())
}

/// Puts the node's certificate on the list of refused ones, for as long as it is valid.
fn refuse_certificate(tx: &mut Tx, node_id: &str) -> Result<()> {
    let certificate = &get::<Node>(tx, "node", node_id)?.certificate;
    let expiry = expiry(&certificate.certificate);
    let mut cluster: Shared<Cluster> = match tx.clusters().iter().collect::<Vec<_>>()[..] {
        [cluster] => cluster.clone(),
        _ => return Err(Error::Internal("could not fetch cluster object".into())),
    };
    cluster.blacklisted_certificates.insert(node_id.to_owned(), BlacklistedCertificate { expiry });
    prune(&mut cluster, tx.now(), KEEP_EXPIRED);
    tx.update(cluster)?;
    Ok(())
}

/// When the first certificate of a chain expires.
fn expiry(chain: &[u8]) -> Option<prost_types::Timestamp> {
    let chain = swarm_pki::Certificate::from_pem_bundle(chain).ok()?;
    Some(duration::timestamp(chain.first()?.not_after()))
}

/// Drops refused certificates that have been expired for longer than `keep`.
pub(super) fn prune(cluster: &mut Cluster, now: SystemTime, keep: Duration) {
    cluster.blacklisted_certificates.retain(|_, refused| match &refused.expiry {
        None => true,
        Some(expiry) => duration::to_system_time(expiry) + keep > now,
    });
}
