//! The way to the leader of the raft group, for calls that only it can answer.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use swarm_pki::{Dialer, SecurityContext, ServerRole};
use swarm_raft::{RaftHandle, Role};
use tokio::sync::SetOnce;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A manager's raft node, which is there only once the manager has joined its group.
pub type RaftSlot = Arc<SetOnce<RaftHandle>>;

/// Ticks without a leader after which a call is not kept waiting any longer.
const PATIENCE: u64 = 10;

/// What the leader may send before it is read over a connection that one call has to itself, in bytes.
const APART_WINDOW: u32 = 256 * 1024;

/// Who leads.
#[derive(Debug, Clone)]
pub enum Route {
    /// This manager: serve the call here.
    Here {
        /// The term in which it does. A leader that is replaced never leads in that term again.
        term: u64,
    },
    /// Another one: send the call there.
    There {
        /// Its node id and address, for people.
        name: String,
        /// Its address.
        addr: String,
        /// A connection to it, made with this node's certificate.
        channel: Channel,
    },
}

/// Nobody leads, as far as this manager knows. Becomes code UNKNOWN, with a text that begins as the contract says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoLeader {
    /// Addresses of the managers that can be reached from this one; it is one of them.
    pub reachable: Vec<String>,
    /// Addresses of those that can't.
    pub unreachable: Vec<String>,
}

impl fmt::Display for NoLeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than \
             half of the managers are online.",
        )?;
        let (here, gone) = (&self.reachable, &self.unreachable);
        let known = here.len() + gone.len();
        if known == 0 {
            return f.write_str(" This manager has not joined the others yet.");
        }
        write!(f, " Of {known} known managers, {} must be online", known / 2 + 1)?;
        write!(f, "; this one reaches {} ({})", here.len(), here.join(", "))?;
        if gone.is_empty() {
            f.write_str(": they should elect a leader soon; if not, their logs say why.")
        } else {
            write!(f, ", but not {}: start them, or repair the way there.", gone.join(", "))
        }
    }
}

impl std::error::Error for NoLeader {}

impl From<NoLeader> for Status {
    fn from(error: NoLeader) -> Status {
        Status::new(Code::Unknown, error.to_string())
    }
}

/// Finds the leader and keeps one connection to it. Cheap to clone.
#[derive(Clone)]
pub struct LeaderLink {
    raft: RaftSlot,
    security: Arc<SecurityContext>,
    connection: Arc<Mutex<Option<Connection>>>,
}

struct Connection {
    addr: String,
    /// The identity that it was made with.
    identity: Arc<swarm_pki::tls::Active>,
    channel: Channel,
}

impl fmt::Debug for LeaderLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaderLink").field("raft", &self.raft.get()).finish_non_exhaustive()
    }
}

impl LeaderLink {
    /// A link of the manager with this raft node, which dials with this identity.
    pub fn new(raft: RaftSlot, security: Arc<SecurityContext>) -> LeaderLink {
        LeaderLink { raft, security, connection: Arc::default() }
    }

    /// Who leads as of now. A leader that is still applying what its predecessor left does not count yet.
    ///
    /// # Errors
    /// [`NoLeader`].
    pub fn route(&self) -> Result<Route, NoLeader> {
        let raft = self.raft.get().ok_or_else(NoLeader::default)?;
        let status = raft.status();
        if status.role == Role::Leader {
            return Ok(Route::Here { term: status.term });
        }
        let membership = raft.membership();
        let leader = membership.get(status.leader).filter(|leader| leader.raft_id != raft.raft_id());
        let route = leader.and_then(|leader| {
            let name = format!("{} ({})", leader.node_id, leader.addr);
            Some(Route::There { name, addr: leader.addr.clone(), channel: self.channel(&leader.addr)? })
        });
        route.ok_or_else(|| no_leader(raft))
    }

    /// As [`LeaderLink::route`], but waits for a leader, until there has been none for more than ten ticks. A manager
    /// that has not joined its group waits for ever: the caller's deadline counts.
    ///
    /// # Errors
    /// [`NoLeader`].
    pub async fn find(&self) -> Result<Route, NoLeader> {
        let raft = self.raft.wait().await;
        let mut status = raft.watch_status();
        loop {
            status.mark_unchanged();
            match self.route() {
                Err(error) if raft.ticks_without_leader() > PATIENCE => return Err(error),
                Err(_) => {}
                Ok(route) => return Ok(route),
            }
            // Ticks and members change unannounced.
            if let Ok(Err(_)) = timeout(raft.ticks().length(), status.changed()).await {
                return Err(no_leader(raft));
            }
        }
    }

    /// As [`LeaderLink::find`], but another manager is reached over a connection that nothing else uses: what stands
    /// still on it holds up nothing else.
    ///
    /// # Errors
    /// [`NoLeader`].
    pub async fn find_apart(&self) -> Result<Route, NoLeader> {
        Ok(match self.find().await? {
            Route::There { name, addr, channel } => {
                let dialer = Dialer::new(self.security.clone(), ServerRole::Manager);
                // The address was good for the other channel.
                let own = swarm_pki::endpoint(&addr)
                    .ok()
                    .map(|endpoint| dialer.channel_of(&endpoint.initial_stream_window_size(APART_WINDOW)));
                Route::There { name, addr, channel: own.unwrap_or(channel) }
            }
            here => here,
        })
    }

    /// Completes when this manager's disk has not answered for an election timeout.
    pub(crate) async fn stalled(&self) {
        let raft = self.raft.wait().await;
        let ticks = raft.ticks();
        while raft.writing_for() < ticks.length() * ticks.election {
            sleep(ticks.length()).await;
        }
    }

    fn channel(&self, addr: &str) -> Option<Channel> {
        let identity = self.security.current();
        let mut connection = self.connection.lock();
        if let Some(open) = &*connection
            && open.addr == addr
            && Arc::ptr_eq(&open.identity, &identity)
        {
            return Some(open.channel.clone());
        }
        let channel = match Dialer::new(self.security.clone(), ServerRole::Manager).channel(addr) {
            Ok(channel) => channel,
            Err(error) => {
                tracing::warn!(%error, "the leader announced an address that can't be used");
                return None;
            }
        };
        *connection = Some(Connection { addr: addr.to_owned(), identity, channel: channel.clone() });
        Some(channel)
    }
}

fn no_leader(raft: &RaftHandle) -> NoLeader {
    let membership = raft.membership();
    let (reachable, unreachable): (Vec<_>, Vec<_>) =
        membership.members().partition(|member| raft.is_reachable(member.raft_id));
    let addresses =
        |members: Vec<&swarm_api::v1::RaftMember>| members.iter().map(|m| m.addr.clone()).collect();
    NoLeader { reachable: addresses(reachable), unreachable: addresses(unreachable) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_says_who_is_missing() {
        let error = NoLeader {
            reachable: vec!["10.0.0.1:4242".into()],
            unreachable: vec!["10.0.0.2:4242".into(), "10.0.0.3:4242".into()],
        };
        let status = Status::from(error);
        assert_eq!(status.code(), Code::Unknown);
        assert_eq!(
            status.message(),
            "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half \
             of the managers are online. Of 3 known managers, 2 must be online; this one reaches 1 (10.0.0.1:4242), but \
             not 10.0.0.2:4242, 10.0.0.3:4242: start them, or repair the way there."
        );
    }
}
