//! Who belongs to the raft group: the contract's `RaftMembership` service, and removing members.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use swarm_api::v1::raft_membership_client::RaftMembershipClient;
use swarm_api::v1::raft_membership_server::{RaftMembership, RaftMembershipServer};
use swarm_api::v1::{JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, RaftMember};
use swarm_pki::{Certificate, Dialer, PeerIdentity};
use swarm_raft::{Change, Error, MembershipError, RaftHandle, Role};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use tracing::info;

use crate::auth::Caller;
use crate::leader_link::{LeaderLink, RaftSlot, Route};

/// Time that a new member has to answer when it is called back.
const CALL_BACK: Duration = Duration::from_secs(5);
/// The contract's text for a new member that can't be reached.
pub(crate) const CALL_BACK_FAILED: &str =
    "could not connect to prospective new cluster member using its advertised address";
/// The largest raft id.
const LARGEST_ID: u64 = (1 << 63) - 1;

/// Admits members and removes them, one at a time. Clones are the same.
#[derive(Clone)]
pub struct Group {
    raft: RaftSlot,
    link: LeaderLink,
    dialer: Dialer,
    changing: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("raft", &self.raft.get()).finish_non_exhaustive()
    }
}

impl Group {
    /// The group of this raft node. The dialer calls new members back.
    pub fn new(raft: RaftSlot, link: LeaderLink, dialer: Dialer) -> Group {
        Group { raft, link, dialer, changing: Arc::default() }
    }

    pub(crate) fn service(&self) -> RaftMembershipServer<Group> {
        RaftMembershipServer::new(self.clone())
    }

    fn leader(&self) -> Result<&RaftHandle, Status> {
        let Some(raft) = self.raft.get() else {
            return Err(Status::failed_precondition("raft: node is not yet part of a raft cluster"));
        };
        if raft.status().role != Role::Leader {
            return Err(Status::failed_precondition(Error::LostLeadership.to_string()));
        }
        Ok(raft)
    }

    /// Removes a member, if a quorum that can be reached is left. Leader only; a leader that is to go itself hands
    /// over first and leaves the removal to its successor.
    ///
    /// # Errors
    /// The contract's texts for a member that can't be removed or is none, and for a manager that does not lead.
    pub async fn remove(&self, raft_id: u64) -> Result<(), Status> {
        let raft = self.leader()?;
        let turn = self.changing.lock().await;
        if raft.membership().get(raft_id).is_none() {
            return Err(plain(&MembershipError::Unknown));
        }
        if raft_id != raft.raft_id() {
            raft.change_membership(Change::Remove(raft_id)).await.map_err(|e| plain(&e))?;
            info!(raft.id = format!("{raft_id:x}"), "removed a manager from the raft group");
            return Ok(());
        }
        if !raft.can_remove(raft_id) {
            return Err(plain(&MembershipError::Quorum));
        }
        raft.transfer_leadership(None).await.map_err(|e| plain(&e))?;
        drop(turn);
        match self.link.find().await? {
            Route::There { channel, .. } => {
                let member = RaftMember { raft_id, ..RaftMember::default() };
                let request = LeaveRequest { node: Some(member) };
                RaftMembershipClient::new(channel).leave(request).await.map(|_| ())
            }
            Route::Here { .. } => Err(Status::unavailable("leadership came back; try again")),
        }
    }

    /// Admits a node at an address, or takes note of the new address of a member.
    async fn admit(&self, node_id: &str, addr: &str) -> Result<JoinResponse, Status> {
        self.call_back(node_id, addr)
            .await
            .map_err(|reason| Status::unknown(format!("{CALL_BACK_FAILED}: {reason}")))?;
        let _turn = self.changing.lock().await;
        let raft = self.leader()?;
        let membership = raft.membership();
        let member = |raft_id| RaftMember {
            raft_id,
            node_id: node_id.into(),
            addr: addr.into(),
            ..RaftMember::default()
        };
        let known = membership.by_node_id(node_id);
        let raft_id = match known {
            Some(known) => known.raft_id,
            None => fresh_id(|id| membership.get(id).is_some() || membership.is_removed(id)),
        };
        let change = match known {
            None => Some(Change::Add(member(raft_id))),
            Some(known) if known.addr != addr => Some(Change::Update(member(raft_id))),
            Some(_) => None,
        };
        if let Some(change) = change {
            info!(
                node.id = node_id,
                addr,
                raft.id = format!("{raft_id:x}"),
                new = known.is_none(),
                "manager joins"
            );
            raft.change_membership(change).await.map_err(|e| plain(&e))?;
        }
        let members = raft.membership().members().cloned().collect();
        Ok(JoinResponse { raft_id, members, removed_members: Vec::new() })
    }

    /// The node must answer at its address, and serve raft.
    async fn call_back(&self, node_id: &str, addr: &str) -> Result<(), String> {
        let check = async {
            let stream = self.dialer.dial(addr).await.map_err(|e| e.to_string())?;
            let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let leaf = leaf.and_then(|leaf| Certificate::from_der(leaf).ok());
            let found = leaf.map(|leaf| PeerIdentity::of(&leaf).node_id).unwrap_or_default();
            if found != node_id {
                return Err(format!("node {found} answers at {addr}, not {node_id}"));
            }
            drop(stream);
            let channel = self.dialer.channel(addr).map_err(|e| e.to_string())?;
            swarm_raft::check_health(channel).await.map_err(|status| status.message().to_owned())
        };
        let late = || format!("no answer from {addr} within {} s", CALL_BACK.as_secs());
        timeout(CALL_BACK, check).await.unwrap_or_else(|_| Err(late()))
    }
}

/// As the original answers: an error without a code.
fn plain(error: &dyn std::error::Error) -> Status {
    Status::unknown(error.to_string())
}

fn fresh_id(taken: impl Fn(u64) -> bool) -> u64 {
    loop {
        let id = rand::rng().random_range(1..=LARGEST_ID);
        if !taken(id) {
            return id;
        }
    }
}

/// The address that others are to use: what the caller says, with its own IP address where it says none.
fn address(given: &str, caller: Option<SocketAddr>) -> Result<String, Status> {
    let invalid = || Status::invalid_argument(format!("invalid address {given} in raft join request"));
    let (host, port) = given.rsplit_once(':').ok_or_else(invalid)?;
    let port: u16 = port.parse().map_err(|_| invalid())?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if host.is_empty() || (bare.is_none() && host.contains(':')) {
        return Err(invalid());
    }
    match (bare.unwrap_or(host).parse::<IpAddr>(), caller) {
        (Ok(ip), Some(caller)) if ip.is_unspecified() => {
            Ok(SocketAddr::new(caller.ip().to_canonical(), port).to_string())
        }
        (Ok(ip), None) if ip.is_unspecified() => Err(invalid()),
        _ => Ok(given.to_owned()),
    }
}

#[tonic::async_trait]
impl RaftMembership for Group {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.leader()?;
        let caller = Caller::of(&request);
        let Some(node_id) = caller.node_id() else {
            return Err(Status::permission_denied("only a manager of this swarm can join its raft group"));
        };
        let addr = address(&request.get_ref().addr, caller.remote_addr)?;
        self.admit(node_id, &addr).await.map(Response::new)
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let Some(node) = request.into_inner().node else {
            return Err(Status::invalid_argument("no node information provided"));
        };
        self.remove(node.raft_id).await?;
        Ok(Response::new(LeaveResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_host_is_that_of_the_caller() {
        let caller = Some(SocketAddr::from(([10, 0, 0, 7], 50_000)));
        let mapped = Some("[::ffff:10.0.0.7]:50000".parse().unwrap());
        let six = Some("[fd00::7]:50000".parse().unwrap());
        for (given, caller, expected) in [
            ("10.1.2.3:4242", caller, Some("10.1.2.3:4242")),
            ("manager.example:4242", None, Some("manager.example:4242")),
            ("[fd00::1]:4242", caller, Some("[fd00::1]:4242")),
            ("0.0.0.0:4242", caller, Some("10.0.0.7:4242")),
            ("[::]:4242", caller, Some("10.0.0.7:4242")),
            ("0.0.0.0:4242", mapped, Some("10.0.0.7:4242")),
            ("0.0.0.0:4242", six, Some("[fd00::7]:4242")),
            ("0.0.0.0:4242", None, None),
            ("10.1.2.3", caller, None),
            (":4242", caller, None),
            ("10.1.2.3:raft", caller, None),
            ("fd00::1:4242", caller, None),
            ("", caller, None),
        ] {
            match (address(given, caller), expected) {
                (Ok(found), Some(expected)) => assert_eq!(found, expected),
                (Err(status), None) => {
                    assert_eq!(status.code(), tonic::Code::InvalidArgument);
                    assert_eq!(status.message(), format!("invalid address {given} in raft join request"));
                }
                (found, expected) => panic!("{given}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn ids_that_were_used_are_not_used_again() {
        let mut asked = 0;
        let taken = std::cell::RefCell::new(&mut asked);
        let id = fresh_id(|_| {
            **taken.borrow_mut() += 1;
            **taken.borrow() < 3
        });
        assert!((1..=LARGEST_ID).contains(&id));
        assert_eq!(asked, 3);
    }
}
