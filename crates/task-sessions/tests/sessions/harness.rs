use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use swarm_api::Shared;
use swarm_api::extensions::{CONTAINER_ABILITY, EXEC_ABILITY};
use swarm_api::swarmd::open_task::What;
use swarm_api::swarmd::task_sessions_client::TaskSessionsClient;
use swarm_api::swarmd::tasks_client::TasksClient;
use swarm_api::swarmd::{
    ExecTask, Invitation, ListenRequest, ListenResponse, OpenTask, ServeFailure, ServeRequest, StatsOfTasks,
    TaskEnded, TaskInput, TaskOutput, task_input, task_output,
};
use swarm_api::v1::{EngineDescription, Node, NodeDescription, Task, TaskState, TaskStatus, node_status};
use swarm_dispatcher::CallerNode;
use swarm_store::{Error, Indexed, Store, Tx};
use swarm_task_sessions::Broker;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status, Streaming};

/// Longer than any pause that the broker makes.
const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Harness {
    pub(crate) store: Arc<Store>,
    pub(crate) broker: Arc<Broker>,
    cancel: CancellationToken,
    run: Option<JoinHandle<Result<(), swarm_task_sessions::Error>>>,
}

/// Who is calling, as the TLS layer of a manager says.
#[derive(Clone)]
struct Identity;

impl tonic::service::Interceptor for Identity {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(node) = request.metadata().get("node") {
            let id = node.to_str().unwrap().to_owned();
            request.extensions_mut().insert(CallerNode { id, addr: None });
        }
        Ok(request)
    }
}

/// A running broker, with the nodes n1, n2 (ready), down, and those that don't serve: locked, old and engine. On each runs
/// a task with the node's name behind `t-`.
pub(crate) async fn start() -> Harness {
    let store = Store::local();
    let broker = Broker::new(store.clone());
    let mut harness = Harness { store, broker, cancel: CancellationToken::new(), run: None };
    let ours = [(EXEC_ABILITY, "1"), (CONTAINER_ABILITY, "1")];
    for (id, state, labels) in [
        ("n1", node_status::State::Ready, &ours[..]),
        ("n2", node_status::State::Ready, &ours),
        ("down", node_status::State::Down, &ours),
        ("locked", node_status::State::Ready, &[(EXEC_ABILITY, "0")]),
        ("old", node_status::State::Ready, &[(CONTAINER_ABILITY, "1")]),
        ("engine", node_status::State::Ready, &[("disk", "ssd")]),
    ] {
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let engine = EngineDescription { engine_version: "20.10.24".into(), labels, ..Default::default() };
        let description =
            NodeDescription { hostname: format!("host-{id}"), engine: Some(engine), ..Default::default() };
        let mut node = Node { id: id.into(), description: Some(description), ..Default::default() };
        node.status.state = state as i32;
        harness.create(node).await;
        harness.task(&format!("t-{id}"), id, TaskState::Running).await;
    }
    harness.lead().await;
    harness
}

impl Harness {
    pub(crate) async fn lead(&mut self) {
        self.cancel = CancellationToken::new();
        let (broker, cancel) = (self.broker.clone(), self.cancel.clone());
        self.run = Some(tokio::spawn(async move { broker.run(cancel).await }));
        tokio::task::yield_now().await;
    }

    pub(crate) async fn stop(&mut self) {
        self.cancel.cancel();
        self.run.take().unwrap().await.unwrap().unwrap();
    }

    pub(crate) async fn create<T: Indexed>(&self, object: T) {
        let object: Shared<T> = object.into();
        self.store.update(|tx| tx.create::<T>(object.clone()).map(|_| ())).await.unwrap();
    }

    pub(crate) async fn remove<T: Indexed>(&self, id: &str) {
        self.store.update(|tx| tx.remove::<T>(id).map(|_| ())).await.unwrap();
    }

    pub(crate) async fn node_state(&self, id: &str, state: node_status::State) {
        let change = |tx: &mut Tx| {
            let mut node = tx.get::<Node>(id).cloned().unwrap();
            node.status.state = state as i32;
            tx.update(node).map(|_| ())
        };
        self.store.update::<_, Error, _>(change).await.unwrap();
    }

    pub(crate) async fn task(&self, id: &str, node: &str, state: TaskState) {
        self.create(Task {
            id: id.into(),
            node_id: node.into(),
            status: TaskStatus { state: state as i32, ..Default::default() },
            ..Default::default()
        })
        .await;
    }

    /// A connection of its own.
    pub(crate) async fn channel(&self) -> Channel {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let tasks = InterceptedService::new(self.broker.tasks().into_server(), Identity);
        let sessions = InterceptedService::new(self.broker.task_sessions().into_server(), Identity);
        let routes = Routes::new(tasks).add_service(sessions);
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(server));
        tokio::spawn(
            Server::builder()
                .initial_stream_window_size(64 * 1024)
                .add_routes(routes)
                .serve_with_incoming(incoming),
        );
        let mut client = Some(TokioIo::new(client));
        let connector = tower::service_fn(move |_| {
            let client = client.take().ok_or_else(|| std::io::Error::other("it is used up"));
            std::future::ready(client)
        });
        Endpoint::from_static("http://test").connect_with_connector(connector).await.unwrap()
    }

    /// Opens a session, and does not wait for the answer.
    pub(crate) async fn open(&self, what: What) -> Opening {
        let (sender, receiver) = mpsc::channel(4);
        let item = task_input::Item::Open(OpenTask { what: Some(what) });
        sender.send(TaskInput { item: Some(item) }).await.unwrap();
        let mut client = TasksClient::new(self.channel().await);
        let call = AbortOnDropHandle::new(tokio::spawn(async move {
            Ok(client.open(ReceiverStream::new(receiver)).await?.into_inner())
        }));
        Opening { sender, call }
    }

    /// What a session is refused with.
    pub(crate) async fn refused(&self, what: What) -> Status {
        self.open(what).await.opened().await.err().unwrap()
    }

    pub(crate) async fn agent(&self, id: &str) -> Agent {
        Agent { id: id.into(), client: TaskSessionsClient::new(self.channel().await) }
    }
}

/// A command in a task.
pub(crate) fn exec(task: &str) -> What {
    What::Exec(ExecTask { task_id: task.into(), command: vec!["sh".into()], ..Default::default() })
}

pub(crate) fn stats(tasks: &[&str]) -> What {
    What::Stats(StatsOfTasks { task_ids: tasks.iter().map(|id| id.to_string()).collect() })
}

pub(crate) struct Opening {
    sender: mpsc::Sender<TaskInput>,
    call: AbortOnDropHandle<Result<Streaming<TaskOutput>, Status>>,
}

impl Opening {
    pub(crate) async fn opened(self) -> Result<Session, Status> {
        let outputs = timeout(LONG, self.call).await.expect("it is answered").unwrap()?;
        Ok(Session { sender: Some(self.sender), outputs })
    }
}

pub(crate) struct Session {
    pub(crate) sender: Option<mpsc::Sender<TaskInput>>,
    pub(crate) outputs: Streaming<TaskOutput>,
}

impl Session {
    pub(crate) async fn send(&self, text: &'static str) {
        let item = task_input::Item::Stdin(text.as_bytes().into());
        self.sender.as_ref().unwrap().send(TaskInput { item: Some(item) }).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Result<Option<task_output::Item>, Status> {
        let message = timeout(LONG, self.outputs.message()).await.expect("something comes")?;
        Ok(message.and_then(|message| message.item))
    }
}

#[derive(Clone)]
pub(crate) struct Agent {
    id: String,
    client: TaskSessionsClient<Channel>,
}

impl Agent {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("node", self.id.parse().unwrap());
        request
    }

    pub(crate) async fn listen(&mut self) -> Result<Listening, Status> {
        let request = self.request(ListenRequest {});
        let mut stream = self.client.listen(request).await?.into_inner();
        let first = timeout(LONG, stream.message()).await.expect("a greeting")?.unwrap();
        assert!(first.invitation.is_none());
        Ok(Listening { term: first.term, stream })
    }

    pub(crate) async fn serve(&mut self, session_id: &str) -> Result<Serving, Status> {
        let (sender, receiver) = mpsc::channel(4);
        let hello = ServeRequest { session_id: session_id.into(), ..Default::default() };
        sender.send(hello).await.unwrap();
        let request = self.request(ReceiverStream::new(receiver));
        let inputs = timeout(LONG, self.client.serve(request)).await.expect("an answer")?.into_inner();
        Ok(Serving { sender: Some(sender), inputs })
    }
}

pub(crate) struct Listening {
    pub(crate) term: String,
    stream: Streaming<ListenResponse>,
}

impl Listening {
    pub(crate) async fn next(&mut self) -> Invitation {
        let message = timeout(LONG, self.stream.message()).await.expect("an invitation").unwrap();
        message.unwrap().invitation.unwrap()
    }

    /// Nothing comes although there is time for it.
    pub(crate) async fn is_silent(&mut self) -> bool {
        timeout(LONG, self.stream.message()).await.is_err()
    }
}

pub(crate) struct Serving {
    sender: Option<mpsc::Sender<ServeRequest>>,
    inputs: Streaming<TaskInput>,
}

impl Serving {
    async fn put(&self, request: ServeRequest) {
        self.sender.as_ref().unwrap().send(request).await.unwrap();
    }

    pub(crate) async fn output(&self, item: task_output::Item) {
        let output = Some(TaskOutput { item: Some(item) });
        self.put(ServeRequest { output, ..Default::default() }).await;
    }

    pub(crate) async fn end(&self, code: i32) {
        self.output(task_output::Item::Ended(TaskEnded { code })).await;
    }

    pub(crate) async fn fail(&self, code: tonic::Code, message: &str) {
        let failure = Some(ServeFailure { code: code as i32, message: message.into() });
        self.put(ServeRequest { failure, ..Default::default() }).await;
    }

    /// Says nothing more.
    pub(crate) fn close(&mut self) {
        self.sender = None;
    }

    /// Whether there is room for one message more.
    pub(crate) fn try_output(&self, item: task_output::Item) -> bool {
        let output = Some(TaskOutput { item: Some(item) });
        self.sender.as_ref().unwrap().try_send(ServeRequest { output, ..Default::default() }).is_ok()
    }

    pub(crate) async fn next(&mut self) -> Result<Option<task_input::Item>, Status> {
        let message = timeout(LONG, self.inputs.message()).await.expect("something comes")?;
        Ok(message.and_then(|message| message.item))
    }
}
