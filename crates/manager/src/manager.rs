//! The manager: listeners, raft, store and services put together.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::swarmd::services_server::ServicesServer;
use swarm_api::v1::control_server::ControlServer;
use swarm_api::v1::health_check_response::ServingStatus;
use swarm_api::v1::health_server::HealthServer;
use swarm_api::v1::watch_server::WatchServer;
use swarm_api::v1::{Peer, node_spec};
use swarm_control::{CONTROL_API, Control, Health, RAFT, Watch};
use swarm_dispatcher::Dispatcher;
use swarm_logs::Broker;
use swarm_pki::{
    Dialer, JoinToken, Kek, KeyStore, LocalIncoming, RootCa, SecurityContext, ServerRole, TlsIncoming,
};
use swarm_plugins::Plugins;
use swarm_raft::{GrpcTransport, Outcome, PeersService, RaftHandle, RaftService, Role};
use swarm_store::Store;
use swarm_task_sessions::Broker as SessionBroker;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::Error;
use crate::attachments::Attachments;

use crate::auth::{AuthorizeLayer, Authorizer, LocalCallerLayer};
use crate::backup::Recovery;
use crate::bootstrap::Bootstrap;
use crate::ca::CaServer;
use crate::control_socket::{ControlSocket, SocketFile};
use crate::disk_keys;
use crate::forward::{Door, ForwardLayer};
use crate::group::Group;
use crate::join;
use crate::leader::Leader;
use crate::leader_link::{LeaderLink, RaftSlot};
use crate::leadership;
use crate::lock::LockService;
use crate::membership::RaftMembership;
use crate::open::open_raft;
use crate::roles::RaftMembers;

/// What a peer may send of one call before it is read, in bytes, and of all calls on its connection. Sixteen calls that
/// nobody reads (logs for subscribers that stand still) leave room for the others: heartbeats above all.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;
/// Time that open calls have to end before their connections are closed.
const GRACE: Duration = Duration::from_secs(8);
/// Time that a leader that stops has to find a successor.
const HAND_OVER: Duration = Duration::from_secs(5);

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
    /// Addresses of other managers, through which a manager without a log joins their raft group.
    pub managers: Vec<String>,
    /// What the managers of the new cluster lock themselves with, if they shall.
    pub new_unlock_key: Option<Kek>,
    /// Every other manager is lost for ever: go on alone with what is in this one's log.
    pub force_new_cluster: bool,
}

/// A running manager.
pub struct Manager {
    store: Arc<Store>,
    raft: RaftHandle,
    transport: GrpcTransport,
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
        let slot = RaftSlot::default();
        let dialer = Dialer::new(config.security.clone(), ServerRole::Manager);
        let transport = GrpcTransport::new(dialer.clone());
        let link = LeaderLink::new(slot.clone(), config.security.clone());
        let group = Group::new(slot.clone(), link.clone(), dialer.clone());
        let link = Arc::new(link);
        let (managers_out, managers) =
            watch::channel(vec![Peer { node_id: node_id.clone(), addr: advertised.clone() }]);
        let membership = Arc::new(RaftMembership::new(slot.clone()));
        let plugins = Arc::new(Plugins::of_this_host());
        let dispatcher = Dispatcher::new(
            store.clone(),
            swarm_dispatcher::Config {
                node_id: node_id.clone(),
                managers: managers.clone(),
                plugins: Some(plugins.clone()),
                timings: swarm_dispatcher::Timings::default(),
            },
        );
        let logs = Broker::new(store.clone());
        let task_sessions = SessionBroker::new(store.clone());
        let pulls = swarm_pulls::Broker::new(store.clone());
        let ca = CaServer::new(store.clone(), config.security.clone());
        let (health, local_health) = (Health::new(), Health::new());
        let control = Control::new(store.clone(), membership).with_plugins(plugins);
        let watch = Watch::new(store.clone());
        let recovery = Recovery::new(store.clone(), slot.clone(), &node_id);

        let tasks = TaskTracker::new();
        let (leading, serving) = (CancellationToken::new(), CancellationToken::new());
        let (ended_out, ended) = watch::channel(None);
        let (ready_out, ready) = watch::channel(false);

        let services = |health: &Health| {
            Routes::new(ControlServer::new(control.clone()))
                .add_service(ServicesServer::new(control.clone()))
                .add_service(Attachments::new(control.clone()).into_server())
                .add_service(HealthServer::new(health.clone()))
                .add_service(WatchServer::new(watch.clone()))
                .add_service(dispatcher.service().into_server())
                .add_service(logs.logs().into_server())
                .add_service(logs.log_broker().into_server())
                .add_service(task_sessions.tasks().into_server())
                .add_service(task_sessions.task_sessions().into_server())
                .add_service(pulls.images().into_server())
                .add_service(pulls.pull_broker().into_server())
                .add_service(ca.ca_service())
                .add_service(ca.node_ca_service())
        };
        let shared = Shared { tasks: tasks.clone(), ended: ended_out, serving: serving.clone() };
        let security = config.security.clone();
        let (socket, socket_file) = socket.into_parts();
        let local = LocalIncoming::new(socket, move || Some(security.current().server_config()));
        info!(proto = "unix", addr = %path.display(), "Listening for local connections");
        let server = || {
            Server::builder()
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
        };
        let local = server()
            .layer(LocalCallerLayer::new(config.security.clone(), advertised.parse().ok()))
            .layer(ForwardLayer::new(Door::Socket, link.clone(), serving.clone()))
            .add_routes(
                services(&local_health)
                    .add_service(LockService::unlocked())
                    .add_service(recovery.into_server()),
            )
            .serve_with_incoming_shutdown(local, serving.clone().cancelled_owned());
        // Whoever answers Join calls back before it does.
        health.set(RAFT, ServingStatus::Serving);
        local_health.set(CONTROL_API, ServingStatus::NotServing);
        shared.serve("the control socket", local);
        info!(proto = "tcp", addr = %addr, "Listening for connections");
        let remote = server()
            .layer(AuthorizeLayer::new(Authorizer::new(&cluster_id, store.clone())))
            .layer(ForwardLayer::new(Door::Remote, link, serving.clone()))
            .add_routes(
                services(&health)
                    .add_service(RaftService::new(slot.clone(), dialer.clone()).into_server())
                    .add_service(
                        PeersService::new(slot.clone(), dialer.clone(), serving.clone()).into_server(),
                    )
                    .add_service(group.service()),
            )
            .serve_with_incoming_shutdown(
                TlsIncoming::new(listener, config.security.clone()),
                serving.clone().cancelled_owned(),
            );
        shared.serve("the remote API", remote);
        let raft = match open_raft(&config, (&node_id, &cluster_id), &advertised, &store, &transport, &dialer)
            .await
        {
            Ok(raft) => raft,
            Err(error) => {
                serving.cancel();
                tasks.close();
                tasks.wait().await;
                return Err(error);
            }
        };
        let _ = slot.set(raft.clone());
        local_health.set(CONTROL_API, ServingStatus::Serving);

        let leader = Leader {
            store: store.clone(),
            bootstrap: bootstrap(&config, &node_id, &cluster_id),
            dispatcher,
            logs,
            task_sessions,
            pulls,
            ca,
            members: RaftMembers { raft: raft.clone(), group },
        };
        shared.watch_raft(raft.clone(), [health, local_health]);
        tasks.spawn(disk_keys::follow(store.clone(), config.keys.clone(), raft.clone(), leading.clone()));
        shared.until_stop(leadership::announce_ready(raft.clone(), store.clone(), ready_out));
        shared.until_stop(leadership::follow_members(raft.clone(), managers_out));
        shared.until_stop({
            let (raft, known) = (raft.clone(), config.managers.clone());
            async move { join::announce_address(&raft, &dialer, &advertised, &known).await }
        });
        tasks.spawn(leadership::follow(raft.clone(), leader, node_id, shared.ended, leading.clone()));
        tasks.close();
        Ok(Manager {
            store,
            raft,
            transport,
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
        let ready = async move { ready.wait_for(|ready| *ready).await.is_ok() };
        tokio::select! {
            true = ready => Ok(()),
            // Without it the sender went away with the manager.
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

    /// Hands leadership over, then ends the leader's parts, the listeners and raft; returns when nothing of it runs any
    /// more. Tasks are left alone.
    pub async fn stop(&self) {
        info!("Stopping manager");
        self.hand_over().await;
        self.leading.cancel();
        self.serving.cancel();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            warn!("some calls did not end in {GRACE:?}");
        }
        self.raft.stop().await;
        self.transport.stop().await;
        self.store.close();
        info!("Manager shut down");
    }

    /// Others need not wait until they notice that their leader is gone.
    async fn hand_over(&self) {
        if self.raft.status().role != Role::Leader || self.raft.membership().len() < 2 {
            return;
        }
        match tokio::time::timeout(HAND_OVER, self.raft.transfer_leadership(None)).await {
            Ok(Ok(())) => info!("handed leadership over"),
            Ok(Err(error)) => warn!(%error, "leadership could not be handed over"),
            Err(_) => warn!("leadership was not handed over within {HAND_OVER:?}"),
        }
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

    /// Runs something that ends with the manager.
    fn until_stop(&self, task: impl Future<Output = ()> + Send + 'static) {
        let serving = self.serving.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = serving.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// A raft node that dies ends the manager.
    fn watch_raft(&self, raft: RaftHandle, health: [Health; 2]) {
        let (ended, serving) = (self.ended.clone(), self.serving.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = serving.cancelled() => {}
                outcome = raft.ended() => {
                    let [remote, local] = health;
                    remote.set(RAFT, ServingStatus::NotServing);
                    local.set(CONTROL_API, ServingStatus::NotServing);
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
        unlock_key: config.new_unlock_key.clone(),
        heartbeat_tick: config.heartbeat_tick,
        election_tick: config.election_tick,
        predefined_networks: ["bridge", "host"].map(|name| (name.to_owned(), name.to_owned())).into(),
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
