//! Becoming a member of an existing raft group, and telling it a new address.
//!
//! What the group knows is fetched first, where the leader gives it: a member that has it already keeps nobody waiting
//! (decision 0081).

use std::sync::Arc;
use std::time::Duration;

use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::raft_membership_client::RaftMembershipClient;
use swarm_api::v1::{
    GetNodeRequest, JoinRequest, JoinResponse, LeaveRequest, ListNodesRequest, NodeRole, RaftMember,
    StoreSnapshot, list_nodes_request,
};
use swarm_pki::Dialer;
use swarm_raft::{FetchError, Fetched, RaftHandle};
use swarm_store::Store;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tracing::{debug, info, warn};

use crate::Error;
use crate::group::CALL_BACK_FAILED;

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// What is logged when the state could not be fetched.
const NOT_FETCHED: &str =
    "the cluster's state was not fetched before joining the raft group; it will come as a snapshot";

/// Attempts in which this manager may turn out not to be reachable.
const REFUSALS: u32 = 3;

/// A manager that is about to join.
pub(crate) struct Joiner<'a> {
    /// How to reach managers.
    pub(crate) dialer: &'a Dialer,
    /// This node.
    pub(crate) node_id: &'a str,
    /// Its cluster, as its certificate says.
    pub(crate) cluster_id: &'a str,
    /// Where others reach it.
    pub(crate) addr: &'a str,
    /// Managers to ask.
    pub(crate) managers: &'a [String],
    /// Time that one call may take.
    pub(crate) limit: Duration,
    /// What the raft node will be opened with.
    pub(crate) raft: &'a swarm_raft::Config,
    /// Where state goes that is fetched before.
    pub(crate) store: &'a Arc<Store>,
}

/// What came of joining.
pub(crate) struct Joined {
    pub(crate) answer: JoinResponse,
    /// The group's state from before, which the store has.
    pub(crate) fetched: Option<Fetched>,
}

/// Why an attempt came to nothing.
enum Failure {
    Call(Status),
    /// The member that this node was is still there.
    OldMember(u64, Status),
    /// What was fetched could not be written. A member with such a disk would be of no use.
    Disk(swarm_raft::Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::Call(status)
    }
}

impl Failure {
    /// It does not get better by waiting.
    fn is_final(&self) -> bool {
        match self {
            Failure::Call(status) | Failure::OldMember(_, status) => {
                matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied)
            }
            Failure::Disk(_) => true,
        }
    }

    /// The member's address was found wrong.
    fn is_refusal(&self) -> bool {
        matches!(self, Failure::Call(status) if status.message().starts_with(CALL_BACK_FAILED))
    }

    fn reason(&self) -> String {
        match self {
            Failure::Call(status) | Failure::OldMember(_, status) => swarm_pki::reason(status).clone(),
            Failure::Disk(error) => error.to_string(),
        }
    }

    fn into_error(self, managers: &str) -> Error {
        let reason = self.reason().trim_end_matches('.').to_owned();
        match self {
            Failure::Call(_) => Error::Join { managers: managers.to_owned(), reason },
            Failure::OldMember(raft_id, _) => Error::OldMember { raft_id, reason },
            Failure::Disk(error) => Error::Raft(error),
        }
    }
}

impl Joiner<'_> {
    /// Joins as a member without a log.
    ///
    /// # Errors
    /// [`Error::Join`] when no manager has admitted this one in time, [`Error::OldMember`] if it is a member already
    /// and can't be removed.
    pub(crate) async fn join(&self) -> Result<Joined, Error> {
        let mut end = Instant::now() + self.limit * 2;
        let (mut refused, mut fetched) = (0, None);
        loop {
            let mut last = None;
            for manager in self.managers {
                let attempt = async {
                    let leader = self.prepare(manager).await?;
                    if fetched.is_none() {
                        let began = Instant::now();
                        fetched = self.fetch(&leader).await?;
                        // It takes as long as there is much of it.
                        end += began.elapsed();
                    }
                    let request = JoinRequest { addr: self.addr.to_owned() };
                    Ok::<_, Failure>(self.call(RaftMembershipClient::new(leader).join(request)).await?)
                };
                match attempt.await {
                    Ok(answer) => return Ok(Joined { answer, fetched }),
                    Err(failure) if failure.is_final() => return Err(failure.into_error(manager)),
                    Err(failure) => {
                        // A slow host may not have answered in time, but a wrong address does not get better.
                        refused += u32::from(failure.is_refusal());
                        warn!(manager, reason = failure.reason(), "joining the raft group did not succeed");
                        last = Some(failure);
                    }
                }
            }
            if refused >= REFUSALS || Instant::now() + PAUSE >= end {
                let last =
                    last.unwrap_or_else(|| Status::unavailable("no manager's address is known").into());
                return Err(last.into_error(&self.managers.join(", ")));
            }
            sleep(PAUSE).await;
        }
    }

    /// Finds the leader, and has the member removed that this node was.
    async fn prepare(&self, manager: &str) -> Result<Channel, Failure> {
        let leader = self.leader(manager).await?;
        if let Some(old) = self.old_member(&leader).await? {
            info!(
                raft.id = format!("{old:x}"),
                "this node is a member whose log is gone; it leaves and joins afresh"
            );
            let node = RaftMember { raft_id: old, ..RaftMember::default() };
            let mut members = RaftMembershipClient::new(leader.clone());
            let left = self.call(members.leave(LeaveRequest { node: Some(node) })).await;
            left.map_err(|status| Failure::OldMember(old, status))?;
        }
        Ok(leader)
    }

    /// Fetches the group's state. `None`: it will come as a snapshot when this manager is a member, as it does from leaders
    /// that don't know this.
    async fn fetch(&self, leader: &Channel) -> Result<Option<Fetched>, Failure> {
        let cluster_id = self.cluster_id.to_owned();
        let accept = move |state: &StoreSnapshot| match state.clusters.first() {
            Some(cluster) if cluster.id == cluster_id => Ok(()),
            Some(cluster) => Err(format!("it holds cluster {}, not this node's {cluster_id}", cluster.id)),
            None => Err("it holds no cluster".to_owned()),
        };
        match Fetched::fetch(leader.clone(), self.raft, self.store.clone(), accept).await {
            Ok(fetched) => {
                let (index, bytes) = (fetched.at().index, fetched.bytes());
                info!(index, bytes, "fetched the cluster's state before joining the raft group");
                Ok(Some(fetched))
            }
            Err(FetchError::Call(status)) => match status.code() {
                Code::Unimplemented => {
                    debug!("the leader gives the cluster's state to members only");
                    Ok(None)
                }
                // Join would fail, too.
                Code::FailedPrecondition | Code::Unavailable | Code::PermissionDenied => Err(status.into()),
                _ => {
                    warn!(reason = swarm_pki::reason(&status), "{NOT_FETCHED}");
                    Ok(None)
                }
            },
            Err(FetchError::Refused(reason)) => Err(Status::invalid_argument(format!(
                "the state that the leader gives can't be this manager's: {reason}"
            ))
            .into()),
            Err(FetchError::Disk(error)) => Err(Failure::Disk(error)),
            Err(error @ FetchError::Senseless(_)) => {
                warn!(reason = %error, "{NOT_FETCHED}");
                Ok(None)
            }
        }
    }

    /// A way to the leader, as far as the manager that is asked knows it; to that one otherwise.
    async fn leader(&self, manager: &str) -> Result<Channel, Status> {
        let channel = self.channel(manager)?;
        let filters =
            list_nodes_request::Filters { roles: vec![NodeRole::Manager as i32], ..Default::default() };
        let request = ListNodesRequest { filters: Some(filters) };
        let nodes = self.call(ControlClient::new(channel.clone()).list_nodes(request)).await?.nodes;
        let leader =
            nodes.iter().filter_map(|node| node.manager_status.as_ref()).find(|status| status.leader);
        match leader {
            Some(leader) if leader.addr != manager => self.channel(&leader.addr),
            _ => Ok(channel),
        }
    }

    /// The raft id under which the group knows this node already.
    async fn old_member(&self, leader: &Channel) -> Result<Option<u64>, Status> {
        let request = GetNodeRequest { node_id: self.node_id.to_owned() };
        match self.call(ControlClient::new(leader.clone()).get_node(request)).await {
            Ok(answer) => Ok(answer.node.and_then(|n| n.manager_status.as_ref().map(|s| s.raft_id))),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    fn channel(&self, addr: &str) -> Result<Channel, Status> {
        self.dialer.channel(addr).map_err(|error| Status::unavailable(error.to_string()))
    }

    async fn call<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        match timeout(self.limit, call).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("no answer within {:?}", self.limit))),
        }
    }
}

/// Tells the group this member's address until it knows it. A leader that does not know where a member is can't tell it
/// that it leads, so every member that the log names is asked, and those that the node knows otherwise.
pub(crate) async fn announce_address(raft: &RaftHandle, dialer: &Dialer, addr: &str, known: &[String]) {
    let own = raft.raft_id();
    let mut addr = addr.to_owned();
    let mut changes = raft.watch_membership();
    loop {
        // As long as the log is being read back, the address in it may be an old one.
        let there = changes.wait_for(|members| members.get(own).is_some_and(|member| member.addr == addr));
        if timeout(PAUSE, there).await.is_ok() {
            return;
        }
        let membership = raft.membership();
        // A leader changes its own entry.
        if membership.get(own).is_none() || raft.status().leader == own {
            continue;
        }
        let members = membership.members().filter(|m| m.raft_id != own).map(|m| m.addr.clone());
        for manager in members.chain(known.iter().cloned()) {
            let Ok(channel) = dialer.channel(&manager) else { continue };
            let request = JoinRequest { addr: addr.clone() };
            match timeout(raft.ticks().request_timeout(), RaftMembershipClient::new(channel).join(request))
                .await
            {
                Ok(Ok(joined)) => {
                    // An unspecified host is the leader's to fill in.
                    let members = joined.into_inner().members;
                    if let Some(member) = members.into_iter().find(|m| m.raft_id == own) {
                        addr = member.addr;
                    }
                    info!(addr, "the managers know this one's address");
                    break;
                }
                Ok(Err(status)) => {
                    debug!(manager, reason = swarm_pki::reason(&status), "the address was not taken");
                }
                Err(_) => debug!(manager, "no answer to the new address"),
            }
        }
    }
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
