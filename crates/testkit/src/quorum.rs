//! What tests ask of several managers, whatever these run in.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::raft_member_status::Reachability;
use swarm_api::v1::{ListNodesRequest, ManagerStatus};
use tonic::transport::Channel;

use crate::daemon::Contents;
use crate::wait::until;

/// Longest wait for anything: an election takes up to 19 s, and may have to be repeated.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Longest wait for one answer: whoever is frozen or cut off gives none.
const ANSWER: Duration = Duration::from_secs(10);

/// Managers that are known by a name.
pub trait Members {
    /// Names of all of them.
    fn names(&self) -> Vec<String>;

    /// The control API of a manager where it answers from its own store: on its remote address.
    ///
    /// # Errors
    /// If there is no such manager.
    fn own_store(&self, name: &str) -> Result<ControlClient<Channel>>;

    /// Id of a manager's node.
    ///
    /// # Errors
    /// If there is no such manager.
    fn node_id(&self, name: &str) -> Result<String>;
}

/// How a manager sees the managers, by their names.
///
/// # Errors
/// If it does not answer in time.
pub async fn seen_by(members: &impl Members, name: &str) -> Result<Vec<(String, ManagerStatus)>> {
    let mut control = members.own_store(name)?;
    let answer = tokio::time::timeout(ANSWER, control.list_nodes(ListNodesRequest::default()));
    let nodes = answer.await.with_context(|| format!("{name} does not answer"))??.into_inner().nodes;
    let mut seen = Vec::new();
    for member in members.names() {
        let id = members.node_id(&member)?;
        let node = nodes.iter().find(|node| node.id == id);
        seen.extend(node.and_then(|n| n.manager_status.clone()).map(|status| (member, status)));
    }
    Ok(seen)
}

/// Waits until the managers with these names agree who leads, and it is one of them.
///
/// # Errors
/// If they don't in time.
pub async fn leader(members: &impl Members, alive: &[&str]) -> Result<String> {
    until("the managers to agree on a leader", PATIENCE, || async {
        let mut found = None;
        for name in alive {
            let seen = seen_by(members, name).await?;
            let leader = seen.into_iter().find(|(_, status)| status.leader);
            let (leader, _) = leader.with_context(|| format!("{name} knows no leader"))?;
            ensure!(alive.contains(&leader.as_str()), "{name} still takes {leader} for the leader");
            ensure!(*found.get_or_insert(leader.clone()) == leader, "{name} takes {leader} for the leader");
        }
        found.context("no managers")
    })
    .await
}

/// Waits until a manager takes all for reachable.
///
/// # Errors
/// If it does not in time.
pub async fn reachable(members: &impl Members, by: &str) -> Result<()> {
    let all = members.names().len();
    until(&format!("all managers to be reachable for {by}"), PATIENCE, || async {
        let seen = seen_by(members, by).await?;
        ensure!(seen.len() == all, "{} managers", seen.len());
        ensure!(seen.iter().all(|(_, s)| s.reachability() == Reachability::Reachable), "{seen:?}");
        Ok(())
    })
    .await
}

/// What a manager has in its own store.
///
/// # Errors
/// If it does not answer in time.
pub async fn contents(members: &impl Members, name: &str) -> Result<Contents> {
    let read = Contents::read(members.own_store(name)?);
    tokio::time::timeout(ANSWER, read).await.with_context(|| format!("{name} does not answer"))?
}

/// Waits until these managers hold the same, and returns it.
///
/// # Errors
/// If they don't in time.
pub async fn same(members: &impl Members, managers: &[&str]) -> Result<Contents> {
    until("the managers to hold the same", PATIENCE, || async {
        let mut first = None;
        for name in managers {
            let own = contents(members, name).await?;
            match &first {
                None => first = Some(own),
                Some(first) if *first == own => {}
                Some(_) => bail!("{} and {name} differ", managers[0]),
            }
        }
        first.context("no managers")
    })
    .await
}
