//! The broker through its gRPC faces: operators on one side, agents on the other.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use swarm_api::swarmd::images_client::ImagesClient;
use swarm_api::swarmd::pull_broker_client::PullBrokerClient;
use swarm_api::swarmd::pull_state::Phase;
use swarm_api::swarmd::{PullListenRequest, PullOrder, PullReport, PullRequest, PullState, PullUpdate};
use swarm_api::v1::{EngineDescription, Node, NodeDescription, node_spec, node_status};
use swarm_dispatcher::CallerNode;
use swarm_pulls::Broker;
use swarm_store::Store;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Status, Streaming};

/// Longer than any pause that the broker makes.
const LONG: Duration = Duration::from_secs(300);

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

struct Harness {
    broker: Arc<Broker>,
    channel: Channel,
    cancel: CancellationToken,
    run: JoinHandle<Result<(), swarm_pulls::Error>>,
}

fn node(id: &str, state: node_status::State, labels: &[(&str, &str)]) -> Node {
    let mut node = Node { id: id.into(), ..Default::default() };
    node.spec.membership = node_spec::Membership::Accepted as i32;
    node.status.state = state as i32;
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let engine = Some(EngineDescription { labels, ..Default::default() });
    node.description = Some(NodeDescription { engine, ..Default::default() });
    node
}

/// A running broker; n1 and n2 are nodes of ours, others are not, or are down, or run no containers.
async fn start() -> Harness {
    let store = Store::local();
    let ours = [("swarmd.runtime.container", "1")];
    let (ready, down) = (node_status::State::Ready, node_status::State::Down);
    let mut nodes = vec![
        node("n1", ready, &ours),
        node("n2", ready, &ours),
        node("down", down, &ours),
        node("bare", ready, &[("swarmd.runtime.container", "0"), ("swarmd.runtime.process", "1")]),
        node("docker", ready, &[("disk", "ssd")]),
    ];
    nodes[0].spec.annotations.labels.insert("zone".into(), "a".into());
    store
        .update::<_, swarm_store::Error, _>(|tx: &mut swarm_store::Tx| {
            for node in &nodes {
                tx.create(node.clone())?;
            }
            Ok(())
        })
        .await
        .unwrap();
    let broker = Broker::new(store);
    let services = Routes::new(InterceptedService::new(broker.images().into_server(), Identity))
        .add_service(InterceptedService::new(broker.pull_broker().into_server(), Identity));
    let (client, server) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let incoming = futures::stream::iter([Ok::<_, std::io::Error>(server)]);
        Server::builder().add_routes(services).serve_with_incoming(incoming).await
    });
    let mut client = Some(client);
    let connect = tower::service_fn(move |_| {
        let client = client.take().map(TokioIo::new);
        async move { client.ok_or_else(|| std::io::Error::other("one connection only")) }
    });
    let channel = Endpoint::from_static("http://memory").connect_with_connector(connect).await.unwrap();
    let cancel = CancellationToken::new();
    let (running, token) = (broker.clone(), cancel.clone());
    let run = tokio::spawn(async move { running.run(token).await });
    tokio::task::yield_now().await;
    Harness { broker, channel, cancel, run }
}

fn of<T>(node: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("node", node.parse().unwrap());
    request
}

impl Harness {
    async fn pull(&self, image: &str, constraints: &[&str]) -> Result<Streaming<PullUpdate>, Status> {
        let request = PullRequest {
            image: image.into(),
            registry_auth: "eyJ9".into(),
            constraints: constraints.iter().map(|c| (*c).to_owned()).collect(),
        };
        ImagesClient::new(self.channel.clone()).pull(request).await.map(tonic::Response::into_inner)
    }

    async fn listen(&self, node: &str) -> Streaming<PullOrder> {
        let mut client = PullBrokerClient::new(self.channel.clone());
        client.listen(of(node, PullListenRequest {})).await.unwrap().into_inner()
    }

    async fn report(&self, node: &str, id: &str, phase: Phase, percent: Option<u32>) -> Result<(), Status> {
        let state = Some(PullState { phase: phase.into(), percent, message: format!("from {node}") });
        let report = PullReport { id: id.into(), state };
        PullBrokerClient::new(self.channel.clone()).report(of(node, report)).await.map(drop)
    }
}

async fn next<T>(stream: &mut Streaming<T>) -> Option<T> {
    tokio::time::timeout(LONG, stream.message()).await.expect("a message in time").unwrap()
}

/// Updates until the end, or until as many as wanted.
async fn updates(stream: &mut Streaming<PullUpdate>, most: usize) -> Vec<(String, Phase, String)> {
    let mut all = Vec::new();
    while all.len() < most {
        let Some(PullUpdate { node_id, state }) = next(stream).await else { break };
        let state = state.unwrap();
        all.push((node_id, state.phase(), state.message));
    }
    all
}

#[tokio::test(start_paused = true)]
async fn an_order_reaches_the_agents_and_their_words_the_operator() {
    let harness = start().await;
    let mut first = harness.listen("n1").await;
    let mut operator = harness.pull("web:1", &["engine.labels.swarmd.runtime.container==1"]).await.unwrap();
    let waiting = |id: &str| (id.to_owned(), Phase::Waiting, String::new());
    let down = ("down".to_owned(), Phase::Unavailable, "the node is down".to_owned());
    assert_eq!(updates(&mut operator, 3).await, [down, waiting("n1"), waiting("n2")]);
    let order = next(&mut first).await.unwrap();
    assert_eq!((order.image.as_str(), order.registry_auth.as_str()), ("web:1", "eyJ9"));
    assert!(!format!("{order:?}").contains("eyJ9"), "credentials are in no log");
    // One that comes later is told too.
    let mut second = harness.listen("n2").await;
    assert_eq!(next(&mut second).await.unwrap().id, order.id);
    for (node, phase) in [("n1", Phase::Pulling), ("n2", Phase::Failed), ("n1", Phase::Done)] {
        harness.report(node, &order.id, phase, Some(40)).await.unwrap();
        let word = (node.to_owned(), phase, format!("from {node}"));
        assert_eq!(updates(&mut operator, 1).await, [word]);
    }
    assert!(next(&mut operator).await.is_none(), "all of them have ended");
    let error = harness.report("n1", &order.id, Phase::Done, None).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "the order is closed");
}

#[tokio::test(start_paused = true)]
async fn nodes_that_cannot_answer_are_named_with_the_reason() {
    let harness = start().await;
    let mut operator = harness.pull("web:1", &[]).await.unwrap();
    let mut all = updates(&mut operator, usize::MAX).await;
    all.retain(|(_, phase, _)| *phase != Phase::Waiting);
    all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let reasons: Vec<_> = all.iter().map(|(id, _, reason)| (id.as_str(), reason.as_str())).collect();
    let absent = "the node's agent is not connected, or too old for this request";
    assert_eq!(
        reasons,
        [
            ("bare", "the node runs no containers"),
            ("docker", "the node's agent is of another make, and knows no such request"),
            ("down", "the node is down"),
            ("n1", absent),
            ("n2", absent),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_is_refused_with_its_code() {
    let harness = start().await;
    for (image, constraints, code, text) in [
        ("", &[][..], Code::InvalidArgument, "image must be provided"),
        ("UPPER", &[], Code::InvalidArgument, "\"UPPER\" is not a valid repository/tag"),
        (&"x".repeat(2000), &[], Code::InvalidArgument, "the image's name has 2000 bytes"),
        ("web:1", &["zone"], Code::InvalidArgument, "expected one of the operators"),
        ("web:1", &["node.labels.zone==b"], Code::FailedPrecondition, "no node matches node.labels.zone==b"),
    ] {
        let error = harness.pull(image, constraints).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(text), "{error}");
    }
    let mut agent = harness.listen("n1").await;
    let operator = harness.pull("web:1", &["node.labels.zone==a"]).await.unwrap();
    let order = next(&mut agent).await.unwrap();
    let error = harness.report("n2", &order.id, Phase::Done, None).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "it is not that node's");
    let error = harness.report("n1", &order.id, Phase::Unavailable, None).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    // The operator goes away, and the agent hears of it.
    drop(operator);
    let close = next(&mut agent).await.unwrap();
    assert!(close.close && close.id == order.id);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_replaced_says_so_to_everybody() {
    let harness = start().await;
    let mut agent = harness.listen("n1").await;
    let mut operator = harness.pull("web:1", &["node.labels.zone==a"]).await.unwrap();
    next(&mut agent).await.unwrap();
    updates(&mut operator, 1).await;
    harness.cancel.cancel();
    harness.run.await.unwrap().unwrap();
    let error = tokio::time::timeout(LONG, operator.message()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Aborted);
    assert!(error.message().contains("ask again"), "{error}");
    assert!(next(&mut agent).await.is_none());
    let harness = Harness { run: tokio::spawn(async { Ok(()) }), ..harness };
    let error = harness.pull("web:1", &[]).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(format!("{:?}", harness.broker).contains("running: false"));
}
