//! A cluster in one process: a store, our dispatcher, and connections in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use swarm_agent::{Agent, AgentHandle, Config, Connector, Executor, Remotes, Timings};
use swarm_api::Shared;
use swarm_api::v1::dispatcher_server::DispatcherServer;
use swarm_api::v1::{
    Cluster as ClusterObject, ContainerSpec, Node, NodeTlsInfo, Peer, Task, TaskState, TaskStatus, task_spec,
};
use swarm_dispatcher::{CallerNode, Dispatcher};
use swarm_executor_sim::{SimExecutor, World};
use swarm_store::{Error, Indexed, Received, Store, Tx};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Server};

pub(crate) struct Cluster {
    pub(crate) store: Arc<Store>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) world: World,
    _managers: watch::Sender<Vec<Peer>>,
    cancel: CancellationToken,
    run: Option<JoinHandle<()>>,
}

pub(crate) fn peer(id: &str) -> Peer {
    Peer { node_id: id.into(), addr: format!("{id}:4242") }
}

pub(crate) fn task(id: &str, node: &str) -> Task {
    let container = ContainerSpec { image: "image".into(), ..Default::default() };
    let mut task = Task {
        id: id.into(),
        node_id: node.into(),
        service_id: "service".into(),
        status: TaskStatus { state: TaskState::Assigned as i32, ..Default::default() },
        desired_state: TaskState::Running as i32,
        ..Default::default()
    };
    task.spec.runtime = Some(task_spec::Runtime::Container(container));
    task
}

pub(crate) fn with_env(mut task: Task, env: &[&str]) -> Task {
    if let Some(task_spec::Runtime::Container(container)) = &mut task.spec.runtime {
        container.env = env.iter().map(|entry| (*entry).to_owned()).collect();
    }
    task
}

impl Cluster {
    /// A cluster with the nodes n1 and n2, whose leader runs.
    pub(crate) async fn start() -> Cluster {
        let store = Store::local();
        let (managers, receiver) = watch::channel(vec![peer("m1")]);
        let config = swarm_dispatcher::Config {
            node_id: "m1".into(),
            managers: receiver,
            plugins: None,
            timings: Default::default(),
        };
        let dispatcher = Dispatcher::new(store.clone(), config);
        let mut cluster = Cluster {
            store,
            dispatcher,
            world: World::new(1),
            _managers: managers,
            cancel: CancellationToken::new(),
            run: None,
        };
        let mut object = ClusterObject { id: "c".into(), ..Default::default() };
        object.spec.annotations.name = "default".into();
        object.root_ca.ca_cert = b"root".to_vec();
        cluster.create(object).await;
        for id in ["n1", "n2"] {
            cluster.create(Node { id: id.into(), ..Default::default() }).await;
        }
        cluster.lead();
        cluster
    }

    pub(crate) fn lead(&mut self) {
        self.cancel = CancellationToken::new();
        let (dispatcher, cancel) = (self.dispatcher.clone(), self.cancel.clone());
        self.run = Some(tokio::spawn(async move { dispatcher.run(cancel).await.unwrap() }));
    }

    pub(crate) async fn lose_leadership(&mut self) {
        self.cancel.cancel();
        self.run.take().unwrap().await.unwrap();
    }

    pub(crate) async fn create<T: Indexed>(&self, object: T) {
        let object: Shared<T> = object.into();
        self.store.update(|tx| tx.create::<T>(object.clone()).map(|_| ())).await.unwrap();
    }

    pub(crate) async fn change<T: Indexed>(&self, id: &str, f: impl Fn(&mut T) + Send + Sync) {
        let change = |tx: &mut Tx| {
            let mut object = tx.get::<T>(id).cloned().unwrap();
            f(&mut object);
            tx.update(object).map(|_| ())
        };
        self.store.update::<_, Error, _>(change).await.unwrap();
    }

    pub(crate) async fn remove<T: Indexed>(&self, id: &str) {
        self.store.update(|tx| tx.remove::<T>(id).map(|_| ())).await.unwrap();
    }

    pub(crate) async fn want(&self, id: &str, state: TaskState) {
        self.change::<Task>(id, |task| task.desired_state = state as i32).await;
    }

    pub(crate) fn status(&self, id: &str) -> TaskStatus {
        self.store.view().tasks().get(id).unwrap().status.clone()
    }

    /// Waits until the store fulfils a condition.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&swarm_store::View) -> bool) {
        let (view, mut commits) = self.store.view_and_subscribe();
        if condition(&view) {
            return;
        }
        let wait = async {
            loop {
                match commits.next().await {
                    Received::Commit(commit) if condition(&commit.view) => return,
                    Received::Lagged(view) if condition(&view) => return,
                    Received::Closed => panic!("the store is closed"),
                    _ => {}
                }
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(600), wait).await;
        result.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    pub(crate) async fn until_state(&self, id: &str, state: TaskState) {
        let reached =
            |view: &swarm_store::View| view.tasks().get(id).is_some_and(|task| task.status.state() == state);
        self.until(&format!("task {id} in {state:?}"), reached).await;
    }

    pub(crate) fn connector(&self, node: &str) -> Arc<Wires> {
        let service = DispatcherServer::new(self.dispatcher.service());
        Wires::new(Routes::new(InterceptedService::new(service, Identity::new(node))))
    }

    pub(crate) async fn agent(&self, node: &str, dir: &Path) -> TestAgent {
        self.agent_on(node, dir, self.connector(node)).await
    }

    pub(crate) async fn agent_on(&self, node: &str, dir: &Path, wires: Arc<Wires>) -> TestAgent {
        let executor = Arc::new(SimExecutor::new(&self.world, node));
        start_agent(node, dir, wires, vec![executor]).await
    }
}

pub(crate) struct TestAgent {
    pub(crate) handle: AgentHandle,
    pub(crate) remotes: Arc<Remotes>,
    pub(crate) tls_info: watch::Sender<Option<NodeTlsInfo>>,
}

pub(crate) async fn start_agent<C: Connector>(
    node: &str,
    dir: &Path,
    connector: Arc<C>,
    executors: Vec<Arc<dyn Executor>>,
) -> TestAgent {
    let (tls_info, receiver) = watch::channel(None);
    let remotes = Arc::new(Remotes::new([peer("m1")]));
    let handle = Agent::start(Config {
        node_id: node.into(),
        hostname: Some(format!("host-{node}")),
        state_dir: dir.to_owned(),
        executors,
        remotes: remotes.clone(),
        connector,
        tls_info: receiver,
        fips: false,
        exec: true,
        generic_resources: swarm_agent::GenericSources::default(),
        timings: Timings::default(),
    })
    .await
    .unwrap();
    TestAgent { handle, remotes, tls_info }
}

impl TestAgent {
    pub(crate) async fn stop(self) {
        self.handle.stop().await;
    }
}

/// Puts the node's identity into requests, as the TLS layer of a manager does.
#[derive(Clone)]
pub(crate) struct Identity(String);

impl Identity {
    pub(crate) fn new(node: &str) -> Identity {
        Identity(node.to_owned())
    }
}

impl tonic::service::Interceptor for Identity {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.extensions_mut().insert(CallerNode { id: self.0.clone(), addr: None });
        Ok(request)
    }
}

/// Connections in memory to a service, which can be cut.
pub(crate) struct Wires {
    routes: Routes,
    inner: Mutex<Inner>,
}

struct Inner {
    open: JoinSet<()>,
    plugged: bool,
    dialled: usize,
    /// The way to a manager in the same process.
    local: Option<Channel>,
}

impl Wires {
    pub(crate) fn new(routes: Routes) -> Arc<Wires> {
        let inner = Inner { open: JoinSet::new(), plugged: true, dialled: 0, local: None };
        Arc::new(Wires { routes, inner: Mutex::new(inner) })
    }

    /// Breaks every connection; new ones can be made.
    pub(crate) fn cut(&self) {
        self.inner.lock().open.abort_all();
    }

    /// Breaks every connection; with `false` new ones are refused until it is plugged in again.
    pub(crate) fn plug(&self, plugged: bool) {
        self.inner.lock().plugged = plugged;
        self.cut();
    }

    /// How often a manager elsewhere was called.
    pub(crate) fn dialled(&self) -> usize {
        self.inner.lock().dialled
    }

    /// Whether a manager runs in the same process.
    pub(crate) async fn set_local(&self, local: bool) {
        let channel = if local { Some(self.open().await.unwrap()) } else { None };
        self.inner.lock().local = channel;
    }

    async fn open(&self) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        let (ours, mut near) = tokio::io::duplex(64 * 1024);
        let (mut far, theirs) = tokio::io::duplex(64 * 1024);
        // The wire itself, which can be cut.
        self.inner.lock().open.spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
        let incoming = futures::stream::iter([Ok::<_, std::io::Error>(theirs)]);
        Server::builder().add_routes(self.routes.clone()).serve_with_incoming(incoming).await?;
        let mut ours = Some(ours);
        let dial = tower::service_fn(move |_| {
            let ours = ours.take().map(TokioIo::new);
            async move { ours.ok_or_else(|| std::io::Error::other("connected before")) }
        });
        Ok(Endpoint::from_static("http://manager").connect_with_connector(dial).await?)
    }
}

#[async_trait]
impl Connector for Wires {
    fn local(&self) -> Option<Channel> {
        self.inner.lock().local.clone()
    }

    async fn connect(&self, _: &Peer) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        {
            let mut inner = self.inner.lock();
            inner.dialled += 1;
            if !inner.plugged {
                return Err("connection refused".into());
            }
        }
        self.open().await
    }
}
