//! The manager: listeners, raft, store and services put together.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::v1::control_server::ControlServer;
use swarm_api::v1::health_check_response::ServingStatus;
use swarm_api::v1::health_server::HealthServer;
use swarm_api::v1::watch_server::WatchServer;
use swarm_api::v1::{Peer, RaftMember, node_spec};
use swarm_control::{CONTROL_API, Control, Health, RAFT, Watch};
use swarm_dispatcher::Dispatcher;
use swarm_pki::{JoinToken, KeyStore, LocalIncoming, RootCa, SecurityContext, TlsIncoming};
use swarm_raft::{Outcome, RaftHandle, RaftNode, Role, Ticks};
use swarm_store::{Received, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::Error;
use crate::auth::{AuthorizeLayer, Authorizer, LocalCallerLayer};
use crate::bootstrap::Bootstrap;
use crate::ca::CaServer;
use crate::control_socket::{ControlSocket, SocketFile};
use crate::forward::{Door, ForwardLayer};
use crate::leader::Leader;
use crate::leader_link::{LeaderLink, RaftSlot};
use crate::membership::RaftMembership;

/// Time that open calls have to end before their connections are closed.
const GRACE: Duration = Duration::from_secs(8);

/// What a manager is started with.
pub struct Config {
    /// The node's certificate, its cluster's root, and their TLS configurations.
    pub security: Arc<SecurityContext>,
    /// The node's key file, which holds the log's encryption key too.
    pub keys: Arc<KeyStore>,
    /// The node's state directory; the log goes to `raft` in it.
    pub state_dir: PathBuf,
    /// Where other nodes reach this manager.
    pub listen_remote_api: String,
    /// The address that others are told; a guess if absent.
    pub advertise_remote_api: Option<String>,
    /// Path of the control socket.
    pub listen_control_api: PathBuf,
    /// Raft's clock.
    pub heartbeat_tick: u32,
    /// See `heartbeat_tick`.
    pub election_tick: u32,
    /// The new cluster's root with its key, if this manager makes one.
    pub new_cluster: Option<RootCa>,
}

/// A running manager.
pub struct Manager {
    store: Arc<Store>,
    raft: RaftHandle,
    ready: watch::Receiver<bool>,
    ended: watch::Receiver<Option<Arc<Error>>>,
    managers: watch::Receiver<Vec<Peer>>,
    tasks: TaskTracker,
    /// Ends the leader's parts, then the listeners.
    leading: CancellationToken,
    serving: CancellationToken,
    addr: SocketAddr,
    /// Removed with the manager.
    _socket_file: SocketFile,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl Manager {
    /// Binds the listeners and starts everything; returns when calls are served, which may be before there is a leader.
    ///
    /// # Errors
    /// A listener that can't be bound, a log that can't be opened.
    pub async fn start(config: Config) -> Result<Manager, Error> {
        let credentials = config.security.current().credentials().clone();
        let (node_id, cluster_id) = (credentials.node_id().to_owned(), credentials.organization().to_owned());

        let path = config.listen_control_api.clone();
        let socket = ControlSocket::bind(&path)
            .map_err(|source| Error::ControlSocket { path: path.clone(), source })?;
        let remote = |source| Error::RemoteApi { addr: config.listen_remote_api.clone(), source };
        let listener = TcpListener::bind(&config.listen_remote_api).await.map_err(remote)?;
        let addr = listener.local_addr().map_err(remote)?;
        let advertised = config.advertise_remote_api.clone().unwrap_or_else(|| advertised(addr).to_string());

        let store = Store::new();
        let sealer = Arc::new(swarm_pki::Sealer::new(&config.keys.ensure_dek()?));
        let mut raft_config = swarm_raft::Config::new(&node_id, &advertised, &config.state_dir, sealer);
        raft_config.ticks =
            Ticks { heartbeat: config.heartbeat_tick, election: config.election_tick, ..Ticks::default() };
        // Opening a long log takes a while, and blocks.
        let node = tokio::task::spawn_blocking(move || RaftNode::open(raft_config)).await;
        let node = node.map_err(|_| Error::Panicked("opening the raft log"))??;
        store.attach(node.proposer());
        let raft = node.start(store.clone())?;

        let (managers_out, managers) =
            watch::channel(vec![Peer { node_id: node_id.clone(), addr: advertised.clone() }]);
        let slot = RaftSlot::default();
        let _ = slot.set(raft.clone());
        let membership = Arc::new(RaftMembership::new(slot.clone()));
        let dispatcher = Dispatcher::new(
            store.clone(),
            swarm_dispatcher::Config {
                node_id: node_id.clone(),
                managers: managers.clone(),
                timings: swarm_dispatcher::Timings::default(),
            },
        );
        let ca = CaServer::new(store.clone(), config.security.clone());
        let health = Health::new();
        let control = Control::new(store.clone(), membership);
        let watch = Watch::new(store.clone());

        let link = Arc::new(LeaderLink::new(slot, config.security.clone()));
        let tasks = TaskTracker::new();
        let (leading, serving) = (CancellationToken::new(), CancellationToken::new());
        let (ended_out, ended) = watch::channel(None);
        let (ready_out, ready) = watch::channel(false);

        let services = || {
            Routes::new(ControlServer::new(control.clone()))
                .add_service(HealthServer::new(health.clone()))
                .add_service(WatchServer::new(watch.clone()))
                .add_service(dispatcher.service().into_server())
                .add_service(ca.ca_service())
                .add_service(ca.node_ca_service())
        };
        let shared = Shared { tasks: tasks.clone(), ended: ended_out, serving: serving.clone() };
        let security = config.security.clone();
        let (socket, socket_file) = socket.into_parts();
        let local = LocalIncoming::new(socket, move || Some(security.current().server_config()));
        info!(proto = "unix", addr = %path.display(), "Listening for local connections");
        let local = Server::builder()
            .layer(LocalCallerLayer::new(config.security.clone(), advertised.parse().ok()))
            .layer(ForwardLayer::new(Door::Socket, link.clone(), serving.clone()))
            .add_routes(services())
            .serve_with_incoming_shutdown(local, serving.clone().cancelled_owned());
        shared.serve("the control socket", local);
        info!(proto = "tcp", addr = %addr, "Listening for connections");
        let remote = Server::builder()
            .layer(AuthorizeLayer::new(Authorizer::new(&cluster_id, store.clone())))
            .layer(ForwardLayer::new(Door::Remote, link, serving.clone()))
            .add_routes(services())
            .serve_with_incoming_shutdown(
                TlsIncoming::new(listener, config.security.clone()),
                serving.clone().cancelled_owned(),
            );
        shared.serve("the remote API", remote);
        health.set(RAFT, ServingStatus::Serving);
        health.set(CONTROL_API, ServingStatus::Serving);

        let leader = Leader {
            store: store.clone(),
            bootstrap: bootstrap(&config, &node_id, &cluster_id),
            dispatcher,
            ca,
            raft: raft.clone(),
        };
        shared.watch_raft(raft.clone());
        let follow = follow_leadership(
            raft.clone(),
            leader,
            node_id,
            managers_out,
            ready_out,
            shared.ended,
            leading.clone(),
        );
        tasks.spawn(follow);
        tasks.close();
        Ok(Manager {
            store,
            raft,
            ready,
            ended,
            managers,
            tasks,
            leading,
            serving,
            addr,
            _socket_file: socket_file,
        })
    }

    /// Completes when there is a leader and the cluster object is known.
    ///
    /// # Errors
    /// If the manager ended before that.
    pub async fn ready(&self) -> Result<(), Arc<Error>> {
        let mut ready = self.ready.clone();
        tokio::select! {
            result = ready.wait_for(|ready| *ready) => match result {
                Ok(_) => Ok(()),
                // The sender went away with the manager.
                Err(_) => Err(self.ended().await),
            },
            error = self.ended() => Err(error),
        }
    }

    /// Completes when the manager can't go on, with the reason.
    pub async fn ended(&self) -> Arc<Error> {
        let mut ended = self.ended.clone();
        loop {
            if let Some(error) = ended.borrow_and_update().clone() {
                return error;
            }
            if ended.changed().await.is_err() {
                // Stopped in good order: that is not an end by itself.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The managers of the cluster, for the agent of this node.
    pub fn managers(&self) -> watch::Receiver<Vec<Peer>> {
        self.managers.clone()
    }

    /// The address that the remote API is bound to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The store of this manager.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Ends leadership, then the listeners, then raft; returns when nothing of it runs any more. Tasks are left alone.
    pub async fn stop(&self) {
        info!("Stopping manager");
        self.leading.cancel();
        self.serving.cancel();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            warn!("some calls did not end in {GRACE:?}");
        }
        self.raft.stop().await;
        self.store.close();
        info!("Manager shut down");
    }
}

/// What the background tasks of a manager have in common.
struct Shared {
    tasks: TaskTracker,
    ended: watch::Sender<Option<Arc<Error>>>,
    serving: CancellationToken,
}

impl Shared {
    /// Runs a server; its end is the manager's end unless that was asked for.
    fn serve(
        &self,
        what: &'static str,
        server: impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
    ) {
        let (ended, serving) = (self.ended.clone(), self.serving.clone());
        self.tasks.spawn(async move {
            let result = tokio::select! {
                result = server => result,
                () = async { serving.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
            };
            if let Err(source) = result {
                ended.send_replace(Some(Arc::new(Error::Serve { what, source })));
            }
        });
    }

    /// A raft node that dies ends the manager.
    fn watch_raft(&self, raft: RaftHandle) {
        let (ended, serving) = (self.ended.clone(), self.serving.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = serving.cancelled() => {}
                outcome = raft.ended() => {
                    let error = match outcome {
                        Outcome::Stopped => return,
                        Outcome::Removed => Error::Removed,
                        Outcome::Failed(error) => Error::RaftEnded(error),
                    };
                    ended.send_replace(Some(Arc::new(error)));
                }
            }
        });
    }
}

fn bootstrap(config: &Config, node_id: &str, cluster_id: &str) -> Bootstrap {
    let current = config.security.current();
    let root = config.new_cluster.as_ref().unwrap_or(current.root());
    let token = || JoinToken::generate(root.digest(), false).expose().to_owned();
    Bootstrap {
        cluster_id: cluster_id.to_owned(),
        node_id: node_id.to_owned(),
        availability: node_spec::Availability::Active,
        ca_cert: root.pem().to_vec(),
        ca_key: root.signer().map(|signer| signer.key_pem().expose().to_vec()).unwrap_or_default(),
        ca_cert_hash: format!("sha256:{}", root.digest().to_hex()),
        worker_token: token(),
        manager_token: token(),
        heartbeat_tick: config.heartbeat_tick,
        election_tick: config.election_tick,
        predefined_networks: ["bridge", "host"].map(|name| (name.to_owned(), name.to_owned())).into(),
    }
}

/// Starts and stops the leader's parts as leadership comes and goes.
async fn follow_leadership(
    raft: RaftHandle,
    leader: Leader,
    node_id: String,
    managers: watch::Sender<Vec<Peer>>,
    ready: watch::Sender<bool>,
    ended: watch::Sender<Option<Arc<Error>>>,
    stop: CancellationToken,
) {
    let mut status = raft.watch_status();
    let mut known = "no cluster leader".to_owned();
    loop {
        let leading = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            result = status.wait_for(|s| s.role == Role::Leader) => result.is_ok(),
        };
        if !leading {
            return;
        }
        info!("leadership changed from {known} to {node_id}");
        known.clone_from(&node_id);
        if leader.store.view().cluster().is_none() && leader.bootstrap.ca_key.is_empty() {
            ended.send_replace(Some(Arc::new(Error::Unfinished)));
            return;
        }
        let members = raft.membership();
        let peer = |member: &RaftMember| Peer { node_id: member.node_id.clone(), addr: member.addr.clone() };
        managers.send_replace(members.members().map(peer).collect());
        let term = stop.child_token();
        let lead = leader.lead(term.clone());
        tokio::pin!(lead);
        let announce = async {
            if !cluster_exists(&leader.store).await {
                return;
            }
            ready.send_replace(true);
            std::future::pending::<()>().await;
        };
        let lost = async {
            let _ = status.wait_for(|s| s.role != Role::Leader).await;
        };
        tokio::select! {
            () = &mut lead => {}
            () = announce => {}
            () = lost => {
                known = "no cluster leader".to_owned();
                info!("leadership changed from {node_id} to {known}");
            }
            () = stop.cancelled() => {}
        }
        term.cancel();
        lead.await;
    }
}

/// The address to tell others when none was given: the one that is bound, or, where that is every address of
/// this host, the one that the host would use to reach others.
fn advertised(bound: SocketAddr) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    // Connecting a datagram socket sends nothing; it only picks the source address. The target is reserved for
    // documentation (RFC 5737).
    let pick = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    match pick() {
        Ok(ip) if !ip.is_unspecified() => SocketAddr::new(ip, bound.port()),
        _ => bound,
    }
}

/// Waits until there is a cluster object; `false` if the store is closed first.
async fn cluster_exists(store: &Store) -> bool {
    // Dropped on return: a subscription that nobody reads keeps thousands of versions of the tables alive.
    let (mut view, mut commits) = store.view_and_subscribe();
    while view.cluster().is_none() {
        view = match commits.next().await {
            Received::Commit(commit) => commit.view.clone(),
            Received::Lagged(view) => view,
            Received::Closed => return false,
        };
    }
    true
}
