//! Members talking to each other over gRPC: the contract's `Raft` service.
//!
//! - [`GrpcTransport`]: a queue and a connection per member, and who can be reached.
//! - `queue`: what waits for a member, and `peer`: what empties it. Snapshots go over a connection of their own, so that
//!   no message waits behind one.
//! - [`RaftService`]: what other members call.
//! - `attend`: a call to each member that stays open, and whose end shows that its process ended. `doubt`: asking the
//!   others then whether the leader is gone. [`PeersService`]: the other side of both. `offer`: the state for a manager
//!   that is about to join.

mod attend;
mod doubt;
mod offer;
mod peer;
mod peers;
mod queue;
mod service;
mod snapshot;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use swarm_api::raftpb::Message;
use swarm_api::v1::health_check_response::ServingStatus;
use swarm_api::v1::health_client::HealthClient;
use swarm_api::v1::raft_client::RaftClient;
use swarm_api::v1::{HealthCheckRequest, ResolveAddressRequest};
use swarm_pki::Dialer;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::Channel;

use crate::handle::Shared;
use crate::inbox::Request;
use crate::{Membership, Outgoing, RaftNode, Transport};

pub use peers::PeersService;
pub use service::RaftService;

/// Messages that wait for one member, as in the original.
const QUEUE: usize = 4096;
/// Longest time for one call with a small message; the original gives it 2 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a member that left has to take what is still queued for it.
const LAST_WORDS: Duration = Duration::from_secs(16);
/// Name of raft in the health service of the contract.
const HEALTH: &str = "Raft";

/// The way to other members over gRPC. Clones are the same transport.
#[derive(Clone)]
pub struct GrpcTransport(Arc<Inner>);

struct Inner {
    dialer: Dialer,
    runtime: Handle,
    /// Whom to report to; there once the node is.
    node: OnceLock<Arc<Shared>>,
    /// Time between two heartbeats of a leader.
    heartbeat: OnceLock<Duration>,
    peers: RwLock<Peers>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// One message at a time looks for a receiver that is no member here.
    resolving: Arc<Semaphore>,
}

#[derive(Default)]
struct Peers {
    membership: Arc<Membership>,
    by_id: BTreeMap<u64, Peer>,
}

/// Another member, as the raft thread sees it. Its tasks end when this is dropped and its queue is empty.
struct Peer {
    addr: watch::Sender<String>,
    messages: mpsc::Sender<Message>,
    snapshots: mpsc::Sender<snapshot::Transfer>,
    reach: Arc<Reach>,
    /// It is known to be of this make. What it once said of itself holds: a log has one make for ever.
    ours: Arc<AtomicBool>,
}

/// Whether a member can be reached.
#[derive(Debug)]
struct Reach {
    raft_id: u64,
    active: AtomicBool,
    since: Mutex<Instant>,
}

impl Reach {
    fn new(raft_id: u64) -> Arc<Reach> {
        Arc::new(Reach { raft_id, active: AtomicBool::new(false), since: Mutex::new(Instant::now()) })
    }

    fn set(&self, active: bool) {
        if self.active.swap(active, Ordering::AcqRel) != active {
            *self.since.lock() = Instant::now();
            let member = format!("{:x}", self.raft_id);
            if active {
                tracing::info!(member, "a manager can be reached");
            } else {
                tracing::warn!(member, "a manager can't be reached");
            }
        }
    }

    fn get(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for GrpcTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcTransport").field("dialer", &self.0.dialer).finish_non_exhaustive()
    }
}

impl GrpcTransport {
    /// A transport that dials as this node and takes only managers of its cluster for members. To be called in the
    /// runtime that its tasks are to run in.
    pub fn new(dialer: Dialer) -> GrpcTransport {
        GrpcTransport(Arc::new(Inner {
            dialer,
            runtime: Handle::current(),
            node: OnceLock::new(),
            heartbeat: OnceLock::new(),
            peers: RwLock::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            resolving: Arc::new(Semaphore::new(1)),
        }))
    }

    /// Says whose transport it is, before that node is started.
    pub fn attach(&self, node: &RaftNode) {
        let ticks = node.config.ticks;
        let _ = self.0.heartbeat.set(ticks.length() * ticks.heartbeat);
        let _ = self.0.node.set(node.shared.clone());
    }

    /// Ends all connections, after the raft node has ended. What is queued is still sent, for a moment.
    pub async fn stop(&self) {
        self.0.peers.write().by_id.clear();
        self.0.tasks.close();
        if timeout(CALL_TIMEOUT, self.0.tasks.wait()).await.is_err() {
            self.0.stop.cancel();
            self.0.tasks.wait().await;
        }
    }
}

impl Inner {
    fn tell(&self, request: Request) {
        if let Some(node) = self.node.get() {
            node.inbox.request(request);
        }
    }

    fn heartbeat(&self) -> Duration {
        self.heartbeat.get().copied().unwrap_or_default()
    }

    fn own_id(&self) -> u64 {
        self.node.get().map_or(0, |node| node.raft_id)
    }

    fn add(self: &Arc<Self>, raft_id: u64, addr: &str) -> Peer {
        let (addr_out, addr) = watch::channel(addr.to_owned());
        let (messages, queue) = mpsc::channel(QUEUE);
        let (snapshots, transfers) = mpsc::channel(1);
        let reach = Reach::new(raft_id);
        let ours = Arc::new(AtomicBool::new(false));
        self.spawn(peer::Sender::new(self, reach.clone(), ours.clone(), addr.clone(), queue).run());
        self.spawn(attend::Attendant::new(self, raft_id, ours.clone(), addr.clone()).run());
        self.spawn(snapshot::run(self.clone(), raft_id, addr, transfers));
        Peer { addr: addr_out, messages, snapshots, reach, ours }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn_on(
            async move {
                tokio::select! {
                    () = task => {}
                    () = stop.cancelled() => {}
                }
            },
            &self.runtime,
        );
    }

    /// Sends one message to a member that is none here yet, at the address that another member knows.
    fn send_unknown(self: &Arc<Self>, message: Message) {
        let to = message.to;
        let oldest = {
            let peers = self.peers.read();
            let active = peers.by_id.values().filter(|peer| peer.reach.get());
            active.min_by_key(|peer| *peer.reach.since.lock()).map(|peer| peer.addr.borrow().clone())
        };
        let (Some(asked), Ok(turn)) = (oldest, self.resolving.clone().try_acquire_owned()) else {
            tracing::debug!(to = format!("{to:x}"), "dropped a message to an unknown member");
            return;
        };
        let inner = self.clone();
        self.spawn(async move {
            let _turn = turn;
            let answer = async {
                let mut client = RaftClient::new(inner.dialer.channel(&asked).map_err(address)?);
                let addr =
                    client.resolve_address(ResolveAddressRequest { raft_id: to }).await?.into_inner().addr;
                peer::deliver(&inner.dialer.channel(&addr).map_err(address)?, message).await
            };
            match timeout(CALL_TIMEOUT, answer).await {
                Ok(Err(status)) if is_removal(&status) => inner.tell(Request::Removed),
                Ok(Err(status)) => {
                    tracing::debug!(to = format!("{to:x}"), %status, "an unknown member was not reached");
                }
                _ => {}
            }
        });
    }
}

impl Transport for GrpcTransport {
    fn send(&self, messages: Vec<Outgoing>) {
        let peers = self.0.peers.read();
        for outgoing in messages {
            let to = outgoing.to();
            match (peers.by_id.get(&to), outgoing) {
                (Some(peer), Outgoing::Message(message)) => {
                    if peer.messages.try_send(message).is_err() {
                        peer.reach.set(false);
                        self.0.tell(Request::Unreachable(to));
                    }
                }
                (Some(peer), Outgoing::Snapshot { message, at, snapshots }) => {
                    let transfer = snapshot::Transfer { message, at, snapshots };
                    if peer.snapshots.try_send(transfer).is_err() {
                        self.0.tell(Request::SnapshotSent(to, false));
                    }
                }
                (None, Outgoing::Snapshot { .. }) => self.0.tell(Request::SnapshotSent(to, false)),
                (None, Outgoing::Message(_)) if peers.membership.is_removed(to) => {}
                (None, Outgoing::Message(message)) => self.0.send_unknown(message),
            }
        }
    }

    fn members(&self, membership: &Arc<Membership>) {
        let own = self.0.own_id();
        let mut peers = self.0.peers.write();
        let Peers { by_id, membership: known } = &mut *peers;
        known.clone_from(membership);
        by_id.retain(|raft_id, _| membership.get(*raft_id).is_some());
        for member in membership.members().filter(|m| m.raft_id != own) {
            match by_id.get(&member.raft_id) {
                Some(peer) => {
                    peer.addr.send_if_modified(|addr| {
                        let changed = *addr != member.addr;
                        addr.clone_from(&member.addr);
                        changed
                    });
                }
                None => {
                    by_id.insert(member.raft_id, self.0.add(member.raft_id, &member.addr));
                }
            }
        }
    }

    fn is_active(&self, raft_id: u64) -> bool {
        self.0.peers.read().by_id.get(&raft_id).is_some_and(|peer| peer.reach.get())
    }

    fn is_ours(&self, raft_id: u64) -> bool {
        self.0.peers.read().by_id.get(&raft_id).is_some_and(|peer| peer.ours.load(Ordering::Acquire))
    }
}

fn address(error: swarm_pki::Error) -> Status {
    Status::unavailable(error.to_string())
}

/// The answer of a member that knows this one to be removed: from its raft group, or as a node.
fn is_removal(status: &Status) -> bool {
    let text = status.message();
    match status.code() {
        tonic::Code::NotFound => text == crate::Error::MemberRemoved.to_string(),
        tonic::Code::PermissionDenied => text.ends_with("was removed from swarm"),
        _ => false,
    }
}

/// Asks a manager whether its raft is being served.
///
/// # Errors
/// If it can't be reached, or says otherwise.
pub async fn check_health(channel: Channel) -> Result<(), Status> {
    let request = HealthCheckRequest { service: HEALTH.to_owned() };
    let answer = HealthClient::new(channel).check(request).await?.into_inner();
    match answer.status() {
        ServingStatus::Serving => Ok(()),
        status => Err(Status::unavailable(format!("health check returned status {}", status.as_str_name()))),
    }
}
