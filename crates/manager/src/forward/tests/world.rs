//! Managers in this process, whose services tell who they think is calling.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use futures::{Stream, StreamExt as _, stream};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use swarm_api::swarmd::tasks_server::{Tasks, TasksServer};
use swarm_api::swarmd::{TaskInput, TaskOutput, task_output};
use swarm_api::v1::control_server::ControlServer;
use swarm_api::v1::log_broker_server::{LogBroker, LogBrokerServer};
use swarm_api::v1::node_ca_server::{NodeCa, NodeCaServer};
use swarm_api::v1::resource_allocator_server::{ResourceAllocator, ResourceAllocatorServer};
use swarm_api::v1::*;
use swarm_control::{Alone, Control};
use swarm_pki::{
    Clock, Credentials, DEFAULT_NODE_EXPIRY, Dialer, LocalIncoming, NodeSubject, RootCa, SecurityContext,
    ServerRole, TlsIncoming,
};
use swarm_store::Store;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status, Streaming};

use crate::Route;
use crate::auth::{AuthorizeLayer, Authorizer, Caller, LocalCallerLayer};
use crate::forward::{Door, ForwardLayer, LeaderChannel};

pub(super) const ORGANIZATION: &str = "cluster";

/// A root, and what is issued by it.
pub(super) struct World {
    root: RootCa,
    pub(super) clock: Clock,
}

impl World {
    pub(super) fn new() -> World {
        World { root: RootCa::create(SystemTime::now()).unwrap(), clock: Clock::system() }
    }

    fn credentials(&self, id: &str, role: NodeRole) -> Credentials {
        let subject = NodeSubject { node_id: id.into(), role, organization: ORGANIZATION.into() };
        Credentials::issue(&self.root, &subject, DEFAULT_NODE_EXPIRY, SystemTime::now()).unwrap()
    }

    fn context(&self, id: &str, role: NodeRole) -> Arc<SecurityContext> {
        let own = self.credentials(id, role);
        SecurityContext::new(self.root.without_signer(), own, self.clock.clone()).unwrap()
    }

    /// A channel to a manager as this node.
    pub(super) fn channel(&self, id: &str, role: NodeRole, addr: &str) -> Channel {
        Dialer::new(self.context(id, role), ServerRole::Manager).channel(addr).unwrap()
    }

    /// A channel to a manager as nobody.
    pub(super) fn stranger(&self, addr: &str) -> Channel {
        Dialer::joining(&self.root, &self.clock).unwrap().channel(addr).unwrap()
    }

    pub(super) async fn manager(&self, id: &str) -> Manager {
        Manager::start(self, id).await
    }
}

/// What a manager is told of the leader: the answers in their order, and the last one again and again.
#[derive(Default)]
pub(super) struct Told {
    answers: Mutex<VecDeque<Result<Route, Status>>>,
    pub(super) leading: Mutex<Option<u64>>,
    pub(super) stalled: Notify,
}

impl Told {
    pub(super) fn set(&self, answers: impl IntoIterator<Item = Result<Route, Status>>) {
        *self.answers.lock() = answers.into_iter().collect();
    }

    pub(super) fn lead(&self, term: u64) {
        *self.leading.lock() = Some(term);
        self.set([Ok(Route::Here { term })]);
    }
}

#[tonic::async_trait]
impl LeaderChannel for Told {
    async fn leader(&self) -> Result<Route, Status> {
        let mut answers = self.answers.lock();
        match answers.len() {
            0 => Err(Status::unknown("The swarm does not have a leader.")),
            1 => answers[0].clone(),
            _ => answers.pop_front().unwrap(),
        }
    }

    fn leading(&self) -> Option<u64> {
        *self.leading.lock()
    }

    async fn stalled(&self) {
        self.stalled.notified().await;
    }
}

/// A manager with its two listeners.
pub(super) struct Manager {
    pub(super) id: String,
    pub(super) context: Arc<SecurityContext>,
    pub(super) addr: String,
    pub(super) told: Arc<Told>,
    pub(super) store: Arc<Store>,
    pub(super) probe: Probe,
    pub(super) stop: CancellationToken,
    socket: std::path::PathBuf,
    _directory: tempfile::TempDir,
    _servers: JoinSet<()>,
}

impl Manager {
    async fn start(world: &World, id: &str) -> Manager {
        let context = world.context(id, NodeRole::Manager);
        let told = Arc::new(Told::default());
        let store = Store::local();
        let cluster = Cluster { id: ORGANIZATION.into(), ..Default::default() };
        store.update(|tx| tx.create(cluster.clone())).await.unwrap();
        let probe = Probe::default();
        let stop = CancellationToken::new();
        let routes = || {
            Routes::new(ControlServer::new(Control::new(store.clone(), Arc::new(Alone))))
                .add_service(LogBrokerServer::new(probe.clone()))
                .add_service(NodeCaServer::new(probe.clone()))
                .add_service(TasksServer::new(probe.clone()))
                .add_service(ResourceAllocatorServer::new(probe.clone()))
        };
        let mut servers = JoinSet::new();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Server::builder()
            .layer(AuthorizeLayer::new(Authorizer::new(ORGANIZATION, store.clone())))
            .layer(ForwardLayer::new(Door::Remote, told.clone(), stop.clone()))
            .add_routes(routes())
            .serve_with_incoming(TlsIncoming::new(listener, context.clone()));
        servers.spawn(async move { server.await.unwrap() });

        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let incoming = LocalIncoming::new(UnixListener::bind(&socket).unwrap(), || None);
        let server = Server::builder()
            .layer(LocalCallerLayer::new(context.clone(), Some(addr)))
            .layer(ForwardLayer::new(Door::Socket, told.clone(), stop.clone()))
            .add_routes(routes())
            .serve_with_incoming(incoming);
        servers.spawn(async move { server.await.unwrap() });

        Manager {
            id: id.to_owned(),
            context,
            addr: addr.to_string(),
            told,
            store,
            probe,
            stop,
            socket,
            _directory: directory,
            _servers: servers,
        }
    }

    /// Another manager, as this one reaches it.
    pub(super) fn reach(&self, other: &Manager) -> Route {
        self.reach_at(&other.id, &other.addr)
    }

    pub(super) fn reach_at(&self, id: &str, addr: &str) -> Route {
        let dialer = Dialer::new(self.context.clone(), ServerRole::Manager);
        let channel = dialer.channel(addr).unwrap();
        Route::There { name: format!("{id} at {addr}"), addr: addr.to_owned(), channel }
    }

    /// A channel to the control socket.
    pub(super) fn local(&self) -> Channel {
        let socket = self.socket.clone();
        let connect = move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        };
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(connect))
    }
}

/// Services that answer with what they know of the caller, or that never answer.
#[derive(Clone, Default)]
pub(super) struct Probe(Arc<ProbeState>);

#[derive(Default)]
struct ProbeState {
    calls: AtomicUsize,
    hang: std::sync::atomic::AtomicBool,
    hanging: Notify,
}

impl Probe {
    /// Calls that arrived here.
    pub(super) fn calls(&self) -> usize {
        self.0.calls.load(Ordering::SeqCst)
    }

    /// From now on calls are taken and never answered.
    pub(super) fn hang(&self) {
        self.0.hang.store(true, Ordering::SeqCst);
    }

    /// Waits until a call hangs.
    pub(super) async fn hanging(&self) {
        self.0.hanging.notified().await;
    }

    async fn seen<T>(&self, request: &Request<T>) -> String {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        if self.0.hang.load(Ordering::SeqCst) {
            self.0.hanging.notify_one();
            std::future::pending::<()>().await;
        }
        let caller = Caller::of(request);
        let by = caller.forwarded_by.as_ref().map(|by| by.node_id.as_str());
        let metadata =
            |name| request.metadata().get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
        format!(
            "caller={} by={} local={} addr={} redirect={} peer={}",
            caller.node_id().unwrap_or("-"),
            by.unwrap_or("-"),
            caller.local,
            caller.remote_addr.map(|addr| addr.ip().to_string()).unwrap_or_default(),
            metadata("redirect"),
            metadata("swarmd_peer"),
        )
    }
}

type Subscriptions = Pin<Box<dyn Stream<Item = Result<SubscriptionMessage, Status>> + Send>>;

#[tonic::async_trait]
impl LogBroker for Probe {
    type ListenSubscriptionsStream = Subscriptions;

    /// One message at once, and then nothing more for ever.
    async fn listen_subscriptions(
        &self,
        request: Request<ListenSubscriptionsRequest>,
    ) -> Result<Response<Subscriptions>, Status> {
        let first = SubscriptionMessage { id: self.seen(&request).await, ..Default::default() };
        Ok(Response::new(stream::iter([Ok(first)]).chain(stream::pending()).boxed()))
    }

    /// Takes everything, and answers with an error that tells of it.
    async fn publish_logs(
        &self,
        request: Request<Streaming<PublishLogsMessage>>,
    ) -> Result<Response<PublishLogsResponse>, Status> {
        let seen = self.seen(&request).await;
        let ids: Vec<_> = request.into_inner().map(|m| m.map(|m| m.subscription_id)).collect().await;
        let ids: Result<Vec<_>, Status> = ids.into_iter().collect();
        Err(Status::data_loss(format!("{} {seen}", ids?.join(","))))
    }
}

#[tonic::async_trait]
impl Tasks for Probe {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<TaskOutput, Status>> + Send>>;

    /// One message at once, and then nothing more for ever.
    async fn open(
        &self,
        request: Request<Streaming<TaskInput>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let item = Some(task_output::Item::Stdout(self.seen(&request).await.into()));
        Ok(Response::new(stream::iter([Ok(TaskOutput { item })]).chain(stream::pending()).boxed()))
    }
}

#[tonic::async_trait]
impl NodeCa for Probe {
    async fn issue_node_certificate(
        &self,
        request: Request<IssueNodeCertificateRequest>,
    ) -> Result<Response<IssueNodeCertificateResponse>, Status> {
        let node_id = self.seen(&request).await;
        Ok(Response::new(IssueNodeCertificateResponse { node_id, ..Default::default() }))
    }

    async fn node_certificate_status(
        &self,
        request: Request<NodeCertificateStatusRequest>,
    ) -> Result<Response<NodeCertificateStatusResponse>, Status> {
        let cn = self.seen(&request).await;
        let certificate = Some(Certificate { cn, ..Default::default() });
        Ok(Response::new(NodeCertificateStatusResponse { certificate, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl ResourceAllocator for Probe {
    async fn attach_network(
        &self,
        request: Request<AttachNetworkRequest>,
    ) -> Result<Response<AttachNetworkResponse>, Status> {
        Ok(Response::new(AttachNetworkResponse { attachment_id: self.seen(&request).await }))
    }

    async fn detach_network(
        &self,
        request: Request<DetachNetworkRequest>,
    ) -> Result<Response<DetachNetworkResponse>, Status> {
        Err(Status::failed_precondition(self.seen(&request).await))
    }
}

/// A wire to an address, which can be cut.
pub(super) struct Wire {
    pub(super) addr: String,
    cut: watch::Sender<bool>,
    _task: JoinSet<()>,
}

impl Wire {
    pub(super) async fn to(target: &str) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (cut, cutting) = watch::channel(false);
        let target = target.to_owned();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let (target, mut cutting) = (target.clone(), cutting.clone());
                connections.spawn(async move {
                    let mut server = TcpStream::connect(target).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = cutting.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        Wire { addr, cut, _task: task }
    }

    pub(super) fn cut(&self) {
        self.cut.send_replace(true);
    }
}
