use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use swarm_api::Shared;
use swarm_api::v1::dispatcher_server::Dispatcher as _;
use swarm_api::v1::update_task_status_request::TaskStatusUpdate;
use swarm_api::v1::{
    AssignmentsMessage, AssignmentsRequest, Cluster, EncryptionKey, HeartbeatRequest, Node, NodeDescription,
    Peer, SessionMessage, SessionRequest, Task, TaskState, TaskStatus, UpdateTaskStatusRequest, assignment,
    assignment_change::AssignmentAction, node_status,
};
use swarm_dispatcher::{CallerNode, Config, Dispatcher, DispatcherService, Timings};
use swarm_plugins::Plugins;
use swarm_store::{Error, Indexed, Store, Tx};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

pub(crate) struct Harness {
    pub(crate) store: Arc<Store>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) service: DispatcherService,
    pub(crate) managers: watch::Sender<Vec<Peer>>,
    cancel: CancellationToken,
    run: Option<JoinHandle<Result<(), swarm_dispatcher::Error>>>,
}

pub(crate) fn timings() -> Timings {
    Timings { heartbeat_jitter: Duration::ZERO, ..Timings::default() }
}

pub(crate) fn peer(id: &str) -> Peer {
    Peer { node_id: id.into(), addr: format!("{id}:4242") }
}

pub(crate) async fn start() -> Harness {
    start_with(timings()).await
}

pub(crate) async fn start_with(timings: Timings) -> Harness {
    let mut h = stopped(timings).await;
    h.start();
    h.settle().await;
    h
}

/// A store with a cluster and the nodes n1 and n2, and a dispatcher that does not run.
pub(crate) async fn stopped(timings: Timings) -> Harness {
    stopped_on(Store::local(), timings).await
}

/// The same on another store.
pub(crate) async fn stopped_on(store: Arc<Store>, timings: Timings) -> Harness {
    stopped_with(store, timings, None).await
}

/// The same with plug-ins.
pub(crate) async fn stopped_with(
    store: Arc<Store>,
    timings: Timings,
    plugins: Option<Arc<Plugins>>,
) -> Harness {
    let mut cluster = Cluster { id: "cluster".into(), ..Default::default() };
    cluster.spec.annotations.name = "default".into();
    cluster.root_ca.ca_cert = b"root".to_vec();
    cluster.network_bootstrap_keys = vec![EncryptionKey { lamport_time: 1, ..Default::default() }];
    let (managers, receiver) = watch::channel(vec![peer("m1")]);
    let config = Config { node_id: "m1".into(), managers: receiver, plugins, timings };
    let dispatcher = Dispatcher::new(store.clone(), config);
    let service = dispatcher.service();
    let h = Harness { store, dispatcher, service, managers, cancel: CancellationToken::new(), run: None };
    h.create(cluster).await;
    for id in ["n1", "n2"] {
        h.create(Node { id: id.into(), ..Default::default() }).await;
    }
    h
}

impl Harness {
    pub(crate) fn start(&mut self) {
        self.cancel = CancellationToken::new();
        let (dispatcher, cancel) = (self.dispatcher.clone(), self.cancel.clone());
        self.run = Some(tokio::spawn(async move { dispatcher.run(cancel).await }));
    }

    pub(crate) async fn stop(&mut self) {
        self.cancel.cancel();
        self.run.take().unwrap().await.unwrap().unwrap();
    }

    /// Lets everything that is ready run, without letting time pass that matters.
    pub(crate) async fn settle(&self) {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
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

    pub(crate) fn node(&self, id: &str) -> Shared<Node> {
        self.store.view().nodes().get(id).cloned().unwrap()
    }

    pub(crate) fn node_state(&self, id: &str) -> node_status::State {
        self.node(id).status.state()
    }

    pub(crate) fn task_state(&self, id: &str) -> TaskState {
        self.store.view().tasks().get(id).unwrap().status.state()
    }

    pub(crate) async fn open(
        &self,
        node: &str,
        session: &str,
        description: Option<NodeDescription>,
    ) -> Result<Session, Status> {
        let request = SessionRequest { description, session_id: session.into() };
        let mut stream = self.service.session(caller(node, request)).await?.into_inner();
        let first = stream.next().await.unwrap()?;
        Ok(Session { id: first.session_id.clone(), first, stream })
    }

    pub(crate) async fn session(&self, node: &str) -> Session {
        self.open(node, "", None).await.unwrap()
    }

    pub(crate) async fn heartbeat(&self, node: &str, session: &str) -> Result<Duration, Status> {
        let request = HeartbeatRequest { session_id: session.into() };
        let answer = self.service.heartbeat(caller(node, request)).await?;
        Ok(swarm_api::duration::to_std(&answer.into_inner().period))
    }

    pub(crate) async fn report(
        &self,
        node: &str,
        session: &str,
        updates: Vec<(&str, Option<TaskStatus>)>,
    ) -> Result<(), Status> {
        let updates =
            updates.into_iter().map(|(id, status)| TaskStatusUpdate { task_id: id.into(), status }).collect();
        let request = UpdateTaskStatusRequest { session_id: session.into(), updates };
        self.service.update_task_status(caller(node, request)).await?;
        self.settle().await;
        tokio::time::sleep(Duration::from_millis(25)).await;
        self.settle().await;
        Ok(())
    }

    pub(crate) async fn assignments(&self, node: &str, session: &str) -> Result<Assignments, Status> {
        let request = AssignmentsRequest { session_id: session.into() };
        let stream = self.service.assignments(caller(node, request)).await?.into_inner();
        Ok(Assignments { stream })
    }
}

pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) first: SessionMessage,
    pub(crate) stream: BoxStream<SessionMessage>,
}

type BoxStream<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Session {
    pub(crate) async fn next(&mut self) -> Result<SessionMessage, Status> {
        soon(self.stream.next()).await.expect("a message in time").expect("the stream has not ended")
    }

    pub(crate) async fn nothing(&mut self) {
        assert!(soon(self.stream.next()).await.is_none(), "no message was expected");
    }
}

pub(crate) struct Assignments {
    pub(crate) stream: BoxStream<AssignmentsMessage>,
}

impl Assignments {
    pub(crate) async fn next(&mut self) -> AssignmentsMessage {
        self.result().await.unwrap()
    }

    pub(crate) async fn result(&mut self) -> Result<AssignmentsMessage, Status> {
        soon(self.stream.next()).await.expect("a message in time").expect("the stream has not ended")
    }

    pub(crate) async fn nothing(&mut self) {
        let message = soon(self.stream.next()).await;
        assert!(message.is_none(), "no message was expected, but {message:?} came");
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(300), future).await.ok()
}

/// `+task:a -secret:b …` in the order of the message.
pub(crate) fn summary(message: &AssignmentsMessage) -> String {
    let changes = message.changes.iter().map(|change| {
        let sign = if change.action() == AssignmentAction::Update { '+' } else { '-' };
        let item = match change.assignment.as_ref().unwrap().item.as_ref().unwrap() {
            assignment::Item::Task(o) => format!("task:{}", o.id),
            assignment::Item::Secret(o) => format!("secret:{}", o.id),
            assignment::Item::Config(o) => format!("config:{}", o.id),
            assignment::Item::Volume(o) => format!("volume:{}", o.id),
        };
        format!("{sign}{item}")
    });
    changes.collect::<Vec<_>>().join(" ")
}

pub(crate) fn caller<T>(node: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let addr = Some("192.0.2.1".parse().unwrap());
    request.extensions_mut().insert(CallerNode { id: node.into(), addr });
    request
}

pub(crate) fn task(id: &str, node: &str, state: TaskState) -> Task {
    Task {
        id: id.into(),
        node_id: node.into(),
        status: status(state),
        desired_state: TaskState::Running as i32,
        ..Default::default()
    }
}

pub(crate) fn status(state: TaskState) -> TaskStatus {
    TaskStatus { state: state as i32, ..Default::default() }
}

pub(crate) fn hostname(name: &str) -> NodeDescription {
    NodeDescription { hostname: name.into(), ..Default::default() }
}
