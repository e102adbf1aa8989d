use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use swarm_api::Shared;
use swarm_api::v1::log_broker_client::LogBrokerClient;
use swarm_api::v1::logs_client::LogsClient;
use swarm_api::v1::{
    ListenSubscriptionsRequest, LogContext, LogMessage, LogSelector, LogStream, LogSubscriptionOptions, Node,
    PublishLogsMessage, PublishLogsResponse, SubscribeLogsMessage, SubscribeLogsRequest, SubscriptionMessage,
    Task, TaskState, TaskStatus, node_status,
};
use swarm_dispatcher::CallerNode;
use swarm_logs::Broker;
use swarm_store::{Error, Indexed, Store, Tx};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
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
    run: Option<JoinHandle<Result<(), swarm_logs::Error>>>,
}

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

/// A running broker, and the nodes n1, n2 (ready) and down.
pub(crate) async fn start() -> Harness {
    let store = Store::local();
    let broker = Broker::new(store.clone());
    let mut harness = Harness { store, broker, cancel: CancellationToken::new(), run: None };
    for (id, state) in [
        ("n1", node_status::State::Ready),
        ("n2", node_status::State::Ready),
        ("down", node_status::State::Down),
    ] {
        let mut node = Node { id: id.into(), ..Default::default() };
        node.status.state = state as i32;
        harness.create(node).await;
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

    pub(crate) async fn change(&self, id: &str, f: impl Fn(&mut Task) + Send + Sync) {
        let change = |tx: &mut Tx| {
            let mut task = tx.get::<Task>(id).cloned().unwrap();
            f(&mut task);
            tx.update(task).map(|_| ())
        };
        self.store.update::<_, Error, _>(change).await.unwrap();
    }

    /// A task of a service that runs on a node, or waits for one.
    pub(crate) async fn task(&self, id: &str, service: &str, node: &str, state: TaskState) {
        self.create(Task {
            id: id.into(),
            service_id: service.into(),
            node_id: node.into(),
            status: TaskStatus { state: state as i32, ..Default::default() },
            ..Default::default()
        })
        .await;
    }

    /// A connection of its own.
    pub(crate) async fn channel(&self) -> Channel {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let broker = InterceptedService::new(self.broker.log_broker().into_server(), Identity);
        let routes = Routes::new(self.broker.logs().into_server()).add_service(broker);
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

    pub(crate) async fn subscribe(
        &self,
        selector: LogSelector,
        options: LogSubscriptionOptions,
    ) -> Result<Subscriber, Status> {
        let request = SubscribeLogsRequest { selector: Some(selector), options: Some(options) };
        self.request(request).await
    }

    pub(crate) async fn request(&self, request: SubscribeLogsRequest) -> Result<Subscriber, Status> {
        let stream = LogsClient::new(self.channel().await).subscribe_logs(request).await?.into_inner();
        Ok(Subscriber { stream })
    }

    pub(crate) async fn agent(&self, id: &str) -> Agent {
        let mut request = Request::new(ListenSubscriptionsRequest {});
        request.metadata_mut().insert("node", id.parse().unwrap());
        let mut client = LogBrokerClient::new(self.channel().await);
        let stream = client.listen_subscriptions(request).await.unwrap().into_inner();
        Agent { id: id.into(), stream }
    }

    /// Begins to publish as a node, over a connection of its own.
    pub(crate) async fn publisher(&self, node: &str, id: &str) -> Publisher {
        let (sender, receiver) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("node", node.parse().unwrap());
        let mut client = LogBrokerClient::new(self.channel().await);
        let call = tokio::spawn(async move { client.publish_logs(request).await.map(|r| r.into_inner()) });
        Publisher { node: node.into(), id: id.into(), sender: Some(sender), call }
    }
}

/// A subscriber.
pub(crate) struct Subscriber {
    stream: Streaming<SubscribeLogsMessage>,
}

impl Subscriber {
    /// `task:text` of each line of the next message.
    pub(crate) async fn next(&mut self) -> Vec<String> {
        let message = timeout(LONG, self.stream.message()).await.expect("a message in time");
        texts(&message.unwrap().expect("the stream has not ended"))
    }

    /// Everything until the end, and how that was.
    pub(crate) async fn rest(&mut self) -> (Vec<String>, Result<(), Status>) {
        let mut all = Vec::new();
        loop {
            match timeout(LONG, self.stream.message()).await.expect("an end in time") {
                Ok(Some(message)) => all.extend(texts(&message)),
                Ok(None) => return (all, Ok(())),
                Err(status) => return (all, Err(status)),
            }
        }
    }

    /// The reasons for which lines are missing at the end.
    pub(crate) async fn missing(&mut self) -> (Vec<String>, String) {
        let (lines, end) = self.rest().await;
        let status = end.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unknown);
        let begin =
            "warning: incomplete log stream. some logs could not be retrieved for the following reasons: ";
        let reasons = status.message().strip_prefix(begin);
        (lines, reasons.unwrap_or_else(|| panic!("{status}")).to_owned())
    }

    pub(crate) async fn nothing(&mut self) {
        let message = timeout(Duration::from_secs(1), self.stream.message()).await;
        assert!(message.is_err(), "{message:?}");
    }
}

fn texts(message: &SubscribeLogsMessage) -> Vec<String> {
    let text = |raw: &swarm_api::log_lines::RawLogMessage| {
        let line = raw.read().unwrap();
        format!("{}:{}", line.task_id, std::str::from_utf8(line.data).unwrap())
    };
    message.messages.iter().map(text).collect()
}

/// A node that listens.
pub(crate) struct Agent {
    pub(crate) id: String,
    stream: Streaming<SubscriptionMessage>,
}

impl Agent {
    pub(crate) async fn next(&mut self) -> SubscriptionMessage {
        let message = timeout(LONG, self.stream.message()).await.expect("a message in time");
        message.unwrap().expect("the stream has not ended")
    }

    pub(crate) async fn nothing(&mut self) {
        let message = timeout(Duration::from_secs(1), self.stream.message()).await;
        assert!(message.is_err(), "{}: {message:?}", self.id);
    }

    pub(crate) async fn ended(mut self) -> Result<(), Status> {
        let message = timeout(LONG, self.stream.message()).await.expect("an end in time");
        message.map(|message| assert!(message.is_none(), "{message:?}"))
    }
}

/// A node that publishes.
pub(crate) struct Publisher {
    node: String,
    id: String,
    sender: Option<mpsc::Sender<PublishLogsMessage>>,
    call: JoinHandle<Result<PublishLogsResponse, Status>>,
}

impl Publisher {
    pub(crate) async fn send(&self, message: PublishLogsMessage) {
        // What it is for may be over.
        let _ = self.sender.as_ref().unwrap().send(message).await;
    }

    pub(crate) async fn line(&self, task: &str, seconds: i64, text: &str) {
        self.send(message(&self.id, &[line(&self.node, task, seconds, text)])).await;
    }

    /// Says that this is all.
    pub(crate) async fn close(self) -> Result<PublishLogsResponse, Status> {
        self.send(PublishLogsMessage { subscription_id: self.id.clone(), close: true, ..Default::default() })
            .await;
        self.end().await
    }

    /// Ends the stream.
    pub(crate) async fn end(mut self) -> Result<PublishLogsResponse, Status> {
        self.sender = None;
        timeout(LONG, &mut self.call).await.expect("an answer in time").unwrap()
    }

    /// Loses the connection.
    pub(crate) async fn lose(self) {
        self.call.abort();
        let _ = self.call.await;
        // Or the stream would end in good order.
        tokio::time::sleep(Duration::from_millis(10)).await;
        drop(self.sender);
    }
}

pub(crate) fn line(node: &str, task: &str, seconds: i64, text: &str) -> LogMessage {
    LogMessage {
        context: LogContext { service_id: "s".into(), node_id: node.into(), task_id: task.into() },
        timestamp: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        stream: LogStream::Stdout as i32,
        data: text.into(),
        attrs: vec![],
    }
}

pub(crate) fn message(id: &str, lines: &[LogMessage]) -> PublishLogsMessage {
    let messages = lines.iter().map(Into::into).collect();
    PublishLogsMessage { subscription_id: id.into(), messages, close: false }
}

pub(crate) fn services(ids: &[&str]) -> LogSelector {
    LogSelector { service_ids: owned(ids), ..Default::default() }
}

pub(crate) fn tasks(ids: &[&str]) -> LogSelector {
    LogSelector { task_ids: owned(ids), ..Default::default() }
}

pub(crate) fn nodes(ids: &[&str]) -> LogSelector {
    LogSelector { node_ids: owned(ids), ..Default::default() }
}

fn owned(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

pub(crate) fn once() -> LogSubscriptionOptions {
    LogSubscriptionOptions::default()
}

pub(crate) fn follow() -> LogSubscriptionOptions {
    LogSubscriptionOptions { follow: true, ..Default::default() }
}
