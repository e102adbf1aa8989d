//! Preparations that take long, and images that are ordered: an executor that a test steps through a pull.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use swarm_agent::{
    AttachOptions, Controller, ControllerError, Dependencies, ExecOptions, Executor, ExecutorDescription,
    LogOptions, LogSink, Stats, TaskIo,
};
use swarm_api::swarmd::pull_broker_server::{PullBroker, PullBrokerServer};
use swarm_api::swarmd::pull_state::Phase;
use swarm_api::swarmd::{PullListenRequest, PullOrder, PullReport, PullReportResponse};
use swarm_api::v1::dispatcher_server::DispatcherServer;
use swarm_api::v1::{ContainerStatus, EncryptionKey, Node, PortStatus, Task, TaskState};
use swarm_api::{Shared, extensions};
use tokio::sync::{mpsc, watch};
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use crate::cluster::*;

/// How a pull stands: percent, or its end.
type Step = Result<Option<u8>, ControllerError>;

const DONE: Step = Ok(Some(100));

/// Pulls as far as it is told, again and again.
#[derive(Clone)]
struct Stepped {
    step: watch::Receiver<Step>,
    words: watch::Sender<String>,
    ordered: Arc<Mutex<Vec<(String, String)>>>,
    /// It answers.
    up: watch::Sender<bool>,
}

impl Stepped {
    fn new() -> (watch::Sender<Step>, Stepped) {
        let (sender, step) = watch::channel(Ok(None));
        let (words, up) = (watch::Sender::default(), watch::Sender::new(true));
        (sender, Stepped { step, words, ordered: Arc::default(), up })
    }

    async fn pull(&self, mut tell: impl FnMut(u8)) -> Result<(), ControllerError> {
        let mut step = self.step.clone();
        loop {
            let now = step.borrow_and_update().clone();
            match now? {
                Some(100) => return Ok(()),
                Some(percent) => tell(percent),
                None => {}
            }
            step.changed().await.unwrap();
        }
    }
}

#[async_trait]
impl Controller for Stepped {
    async fn update(&self, _: &Shared<Task>) -> Result<(), ControllerError> {
        Ok(())
    }
    async fn prepare(&self) -> Result<(), ControllerError> {
        let tell = |percent| drop(self.words.send_replace(format!("pulling {percent} %")));
        self.pull(tell).await
    }
    async fn start(&self) -> Result<(), ControllerError> {
        Ok(())
    }
    async fn wait(&self) -> Result<(), ControllerError> {
        std::future::pending().await
    }
    async fn shutdown(&self) -> Result<(), ControllerError> {
        Ok(())
    }
    async fn terminate(&self) -> Result<(), ControllerError> {
        Ok(())
    }
    async fn remove(&self) -> Result<(), ControllerError> {
        Ok(())
    }
    async fn container_status(&self) -> Option<ContainerStatus> {
        None
    }
    async fn port_status(&self) -> Option<PortStatus> {
        None
    }
    fn progress(&self) -> Option<watch::Receiver<String>> {
        Some(self.words.subscribe())
    }
    async fn exec(&self, _: ExecOptions, _: TaskIo) -> Result<i32, ControllerError> {
        Err(ControllerError::Fatal("nothing runs".into()))
    }
    async fn attach(&self, _: AttachOptions, _: TaskIo) -> Result<i32, ControllerError> {
        Err(ControllerError::Fatal("nothing runs".into()))
    }
    async fn stats(&self) -> Result<Stats, ControllerError> {
        Err(ControllerError::Fatal("nothing runs".into()))
    }
    async fn logs(&self, _: LogOptions, _: LogSink) -> Result<(), ControllerError> {
        Ok(())
    }
}

#[async_trait]
impl Executor for Stepped {
    fn runtimes(&self) -> Vec<String> {
        vec![extensions::CONTAINER_RUNTIME.to_owned()]
    }
    async fn describe(&self) -> Result<ExecutorDescription, ControllerError> {
        if !*self.up.borrow() {
            return Err(ControllerError::Temporary("nobody answers".into()));
        }
        let features = [extensions::Feature::Devices].into();
        Ok(ExecutorDescription { features, ..Default::default() })
    }
    async fn changed(&self) {
        let mut up = self.up.subscribe();
        // Only one that was away comes.
        let _ = up.wait_for(|up| !up).await;
        let _ = up.wait_for(|up| *up).await;
    }
    async fn configure(&self, _: &Shared<Node>) -> Result<(), ControllerError> {
        Ok(())
    }
    async fn set_network_keys(&self, _: &[EncryptionKey]) -> Result<(), ControllerError> {
        Ok(())
    }
    fn controller(
        &self,
        _: &Shared<Task>,
        _: Arc<dyn Dependencies>,
    ) -> Result<Arc<dyn Controller>, ControllerError> {
        Ok(Arc::new(self.clone()))
    }
    async fn pull_image(
        &self,
        image: &str,
        registry_auth: &str,
        progress: &watch::Sender<Option<u8>>,
    ) -> Result<(), ControllerError> {
        self.ordered.lock().push((image.to_owned(), registry_auth.to_owned()));
        self.pull(|percent| _ = progress.send_replace(Some(percent))).await
    }
    async fn sweep(&self, _: &[String]) -> Result<(), ControllerError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn how_far_a_preparation_is_stands_in_the_status_now_and_then() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (step, executor) = Stepped::new();
    let agent = start_agent("n1", dir.path(), cluster.connector("n1"), vec![Arc::new(executor)]).await;
    agent.handle.ready().await;
    let labels =
        cluster.store.view().nodes().get("n1").unwrap().description.clone().unwrap().engine.unwrap().labels;
    assert_eq!((labels["swarmd.devices"].as_str(), labels["swarmd.privileged"].as_str()), ("1", "0"));
    cluster.create(task("t", "n1")).await;
    cluster.until_state("t", TaskState::Preparing).await;
    let mut told = Vec::new();
    let mut version = cluster.store.view().tasks().get("t").unwrap().meta.version;
    // A word every tenth of a second, for twelve seconds: three of them are enough.
    for tenth in 0..120_u8 {
        let _ = step.send_replace(Ok(Some(tenth / 2)));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let task = cluster.store.view().tasks().get("t").unwrap().clone();
        if task.meta.version != version {
            version = task.meta.version;
            assert_eq!(task.status.state(), TaskState::Preparing);
            told.push(task.status.message.clone());
        }
    }
    assert!(told.len() <= 3 && told.len() >= 2, "{told:?}");
    assert!(told.iter().all(|text| text.starts_with("pulling ") && text.ends_with(" %")), "{told:?}");
    let _ = step.send_replace(Err(ControllerError::Temporary("registry away".into())));
    let says = |err: &'static str| {
        move |v: &swarm_store::View| v.tasks().get("t").is_some_and(|t| t.status.err == err)
    };
    cluster.until("the error", says("registry away")).await;
    assert_eq!(cluster.status("t").message, "preparing");
    let _ = step.send_replace(DONE);
    cluster.until_state("t", TaskState::Running).await;
    assert_eq!((cluster.status("t").message, cluster.status("t").err), ("started".into(), "".into()));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_answers_late_is_announced_when_it_does() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (_step, executor) = Stepped::new();
    let _ = executor.up.send_replace(false);
    let up = executor.up.clone();
    let agent = start_agent("n1", dir.path(), cluster.connector("n1"), vec![Arc::new(executor)]).await;
    agent.handle.ready().await;
    let runtime = |view: &swarm_store::View| {
        let description = view.nodes().get("n1").unwrap().description.clone().unwrap();
        description.engine.unwrap().labels["swarmd.runtime.container"].clone()
    };
    assert_eq!(runtime(&cluster.store.view()), "0");
    // Regular looks say nothing new.
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(runtime(&cluster.store.view()), "0");
    let came = tokio::time::Instant::now();
    let _ = up.send_replace(true);
    cluster.until("the runtime", |view| runtime(view) == "1").await;
    assert!(
        came.elapsed() < Duration::from_secs(5),
        "it had to wait for the next look: {:?}",
        came.elapsed()
    );
    assert_eq!(agent.handle.observed().borrow().sessions, 1);
    agent.stop().await;
}

/// A manager that has something pulled.
#[derive(Clone)]
struct Orders {
    order: PullOrder,
    reports: mpsc::Sender<PullReport>,
    /// Reports are refused with it.
    refused: Arc<Mutex<Option<Status>>>,
}

type Streaming<T> = std::pin::Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PullBroker for Orders {
    type ListenStream = Streaming<PullOrder>;

    async fn listen(&self, _: Request<PullListenRequest>) -> Result<Response<Self::ListenStream>, Status> {
        use futures::StreamExt as _;
        let orders = futures::stream::iter([Ok(self.order.clone()), Ok(self.order.clone())]);
        Ok(Response::new(Box::pin(orders.chain(futures::stream::pending()))))
    }

    async fn report(&self, request: Request<PullReport>) -> Result<Response<PullReportResponse>, Status> {
        self.reports.send(request.into_inner()).await.unwrap();
        let refused = self.refused.lock().take();
        refused.map_or(Ok(Response::new(PullReportResponse {})), Err)
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_ordered_is_pulled_and_told_of() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let order =
        PullOrder { id: "o".into(), image: "web:1".into(), registry_auth: "auth".into(), close: false };
    let (sender, mut reports) = mpsc::channel(16);
    let orders = Orders { order, reports: sender, refused: Arc::default() };
    let dispatcher = DispatcherServer::new(cluster.dispatcher.service());
    let routes = tonic::service::Routes::new(InterceptedService::new(dispatcher, Identity::new("n1")))
        .add_service(PullBrokerServer::new(orders.clone()));
    let wires = Wires::new(routes);
    let (step, executor) = Stepped::new();
    let ordered = executor.ordered.clone();
    let agent = start_agent("n1", dir.path(), wires.clone(), vec![Arc::new(executor)]).await;
    let mut next = async || {
        let report = tokio::time::timeout(Duration::from_secs(60), reports.recv()).await.unwrap().unwrap();
        assert_eq!(report.id, "o");
        let state = report.state.unwrap();
        (state.phase(), state.percent, state.message)
    };
    assert_eq!(next().await, (Phase::Pulling, None, String::new()));
    let _ = step.send_replace(Ok(Some(40)));
    assert_eq!(next().await, (Phase::Pulling, Some(40), String::new()));
    // Nothing changes, and still there is a word of it.
    assert_eq!(next().await, (Phase::Pulling, Some(40), String::new()));
    assert_eq!(*ordered.lock(), [("web:1".to_owned(), "auth".to_owned())], "told twice, done once");
    // The connection is lost: the manager tells it again, and hears how far it is.
    wires.cut();
    assert_eq!(next().await.0, Phase::Pulling);
    *orders.refused.lock() = Some(Status::unavailable("try again"));
    let _ = step.send_replace(Err(ControllerError::Fatal("no such image".into())));
    for _ in 0..2 {
        // Whichever of them was refused is told again.
        let (phase, percent, message) = next().await;
        if phase == Phase::Failed {
            assert_eq!((percent, message.as_str()), (None, "no such image"));
        }
    }
    agent.stop().await;
}
