//! Becoming a member of an existing raft group, and telling it a new address.

use std::time::Duration;

use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::raft_membership_client::RaftMembershipClient;
use swarm_api::v1::{
    GetNodeRequest, JoinRequest, JoinResponse, LeaveRequest, ListNodesRequest, NodeRole, RaftMember,
    list_nodes_request,
};
use swarm_pki::Dialer;
use swarm_raft::RaftHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tracing::{debug, info, warn};

use crate::Error;
use crate::group::CALL_BACK_FAILED;

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// Attempts in which this manager may turn out not to be reachable.
const REFUSALS: u32 = 3;

/// A manager that is about to join.
pub(crate) struct Joiner<'a> {
    /// How to reach managers.
    pub(crate) dialer: &'a Dialer,
    /// This node.
    pub(crate) node_id: &'a str,
    /// Where others reach it.
    pub(crate) addr: &'a str,
    /// Managers to ask.
    pub(crate) managers: &'a [String],
    /// Time that one call may take.
    pub(crate) limit: Duration,
}

/// Why an attempt came to nothing.
enum Failure {
    Call(Status),
    /// The member that this node was is still there.
    OldMember(u64, Status),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::Call(status)
    }
}

impl Failure {
    fn status(&self) -> &Status {
        match self {
            Failure::Call(status) | Failure::OldMember(_, status) => status,
        }
    }

    /// It does not get better by waiting.
    fn is_final(&self) -> bool {
        matches!(self.status().code(), Code::InvalidArgument | Code::PermissionDenied)
    }

    fn into_error(self, managers: &str) -> Error {
        let reason = swarm_pki::reason(self.status()).trim_end_matches('.').to_owned();
        match self {
            Failure::Call(_) => Error::Join { managers: managers.to_owned(), reason },
            Failure::OldMember(raft_id, _) => Error::OldMember { raft_id, reason },
        }
    }
}

impl Joiner<'_> {
    /// Joins as a member without a log.
    ///
    /// # Errors
    /// [`Error::Join`] when no manager has admitted this one in time, [`Error::OldMember`] if it is a member already
    /// and can't be removed.
    pub(crate) async fn join(&self) -> Result<JoinResponse, Error> {
        let end = Instant::now() + self.limit * 2;
        let mut refused = 0;
        loop {
            let mut last = None;
            for manager in self.managers {
                match self.join_through(manager).await {
                    Ok(joined) => return Ok(joined),
                    Err(failure) if failure.is_final() => return Err(failure.into_error(manager)),
                    Err(failure) => {
                        let status = failure.status();
                        // A slow host may not have answered in time, but a wrong address does not get better.
                        refused += u32::from(status.message().starts_with(CALL_BACK_FAILED));
                        warn!(
                            manager,
                            reason = swarm_pki::reason(status),
                            "joining the raft group did not succeed"
                        );
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

    async fn join_through(&self, manager: &str) -> Result<JoinResponse, Failure> {
        let channel = self.leader(manager).await?;
        if let Some(old) = self.old_member(&channel).await? {
            info!(
                raft.id = format!("{old:x}"),
                "this node is a member whose log is gone; it leaves and joins afresh"
            );
            let node = RaftMember { raft_id: old, ..RaftMember::default() };
            let mut members = RaftMembershipClient::new(channel.clone());
            let left = self.call(members.leave(LeaveRequest { node: Some(node) })).await;
            left.map_err(|status| Failure::OldMember(old, status))?;
        }
        let request = JoinRequest { addr: self.addr.to_owned() };
        Ok(self.call(RaftMembershipClient::new(channel).join(request)).await?)
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
