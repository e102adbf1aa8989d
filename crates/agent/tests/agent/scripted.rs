//! Dispatchers that say what a test wants them to say.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc;
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use swarm_api::v1::dispatcher_server::{Dispatcher, DispatcherServer};
use swarm_api::v1::{
    Assignment, AssignmentChange, AssignmentsMessage, AssignmentsRequest, HeartbeatRequest,
    HeartbeatResponse, Node, NodeRole, NodeTlsInfo, SessionMessage, SessionRequest, Task, TaskState,
    TasksMessage, TasksRequest, UpdateTaskStatusRequest, UpdateTaskStatusResponse, UpdateVolumeStatusRequest,
    UpdateVolumeStatusResponse, WeightedPeer, assignment, assignment_change::AssignmentAction,
    assignments_message, node_status,
};
use swarm_executor_sim::{SimExecutor, World};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::cluster::*;

/// One message of an Assignments stream: `(applies_to, results_in, changes)`.
type Link = (&'static str, &'static str, Vec<AssignmentChange>);

#[derive(Default)]
struct Script {
    /// What each Assignments stream sends before it falls silent; the last is repeated.
    assignments: Vec<Vec<Link>>,
    without_assignments: bool,
    assignments_error: bool,
    mute: bool,
    foreign: Option<&'static str>,
    session_error: Option<Status>,
    /// What the first session says after its first message.
    news: Option<mpsc::UnboundedReceiver<SessionMessage>>,
}

#[derive(Default)]
struct Seen {
    sessions: Vec<String>,
    assignments: usize,
    tasks: usize,
    reports: Vec<(String, TaskState)>,
    calls: usize,
}

#[derive(Clone)]
struct Scripted {
    script: Arc<Mutex<Script>>,
    seen: Arc<Mutex<Seen>>,
    changed: watch::Sender<()>,
}

impl Scripted {
    fn new(script: Script) -> Scripted {
        Scripted {
            script: Arc::new(Mutex::new(script)),
            seen: Arc::default(),
            changed: watch::Sender::new(()),
        }
    }

    fn wires(&self) -> Arc<Wires> {
        Wires::new(tonic::service::Routes::new(DispatcherServer::new(self.clone())))
    }

    async fn until(&self, what: &str, condition: impl Fn(&Seen) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !condition(&self.seen.lock()) {
                changed.changed().await.unwrap();
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(120), wait).await;
        result.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    async fn until_reported(&self, task: &str, state: TaskState) {
        let reported = |seen: &Seen| seen.reports.iter().any(|r| *r == (task.to_owned(), state));
        self.until(&format!("{task} in {state:?}"), reported).await;
    }
}

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn then_silence<T: Send + 'static>(items: Vec<T>) -> Streaming<T> {
    Box::pin(futures::stream::iter(items.into_iter().map(Ok)).chain(futures::stream::pending()))
}

#[tonic::async_trait]
impl Dispatcher for Scripted {
    type SessionStream = Streaming<SessionMessage>;

    async fn session(
        &self,
        request: Request<SessionRequest>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let resumed = request.into_inner().session_id;
        self.seen.lock().sessions.push(resumed.clone());
        self.changed.send_replace(());
        let mut script = self.script.lock();
        if let Some(status) = &script.session_error {
            return Err(status.clone());
        }
        if script.mute {
            return Ok(Response::new(Box::pin(futures::stream::pending())));
        }
        let session_id = if resumed.is_empty() { "session".into() } else { resumed };
        let managers = vec![WeightedPeer { peer: Some(peer("m1")), weight: 10 }];
        let message = SessionMessage { session_id, managers, ..Default::default() };
        let first = futures::stream::iter([Ok(message)]);
        let news = script.news.take().map(|news| news.map(Ok).boxed());
        let news = news.unwrap_or_else(|| futures::stream::empty().boxed());
        Ok(Response::new(Box::pin(first.chain(news).chain(futures::stream::pending()))))
    }

    async fn heartbeat(&self, _: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        let period = swarm_api::duration::from_std(Duration::from_secs(5));
        Ok(Response::new(HeartbeatResponse { period }))
    }

    async fn update_task_status(
        &self,
        request: Request<UpdateTaskStatusRequest>,
    ) -> Result<Response<UpdateTaskStatusResponse>, Status> {
        let updates = request.into_inner().updates;
        let foreign = self.script.lock().foreign;
        let mut seen = self.seen.lock();
        seen.calls += 1;
        if updates.iter().any(|u| Some(u.task_id.as_str()) == foreign) {
            return Err(Status::permission_denied("cannot update a task not assigned this node"));
        }
        let reports = updates.into_iter().map(|u| (u.task_id, u.status.unwrap().state()));
        seen.reports.extend(reports);
        self.changed.send_replace(());
        Ok(Response::new(UpdateTaskStatusResponse {}))
    }

    async fn update_volume_status(
        &self,
        _: Request<UpdateVolumeStatusRequest>,
    ) -> Result<Response<UpdateVolumeStatusResponse>, Status> {
        Ok(Response::new(UpdateVolumeStatusResponse {}))
    }

    type TasksStream = Streaming<TasksMessage>;

    async fn tasks(&self, _: Request<TasksRequest>) -> Result<Response<Self::TasksStream>, Status> {
        self.seen.lock().tasks += 1;
        self.changed.send_replace(());
        let list =
            |tasks: &[&str]| TasksMessage { tasks: tasks.iter().map(|id| task(id, "n1").into()).collect() };
        Ok(Response::new(then_silence(vec![list(&["a", "b"]), list(&["b"])])))
    }

    type AssignmentsStream = Streaming<AssignmentsMessage>;

    async fn assignments(
        &self,
        _: Request<AssignmentsRequest>,
    ) -> Result<Response<Self::AssignmentsStream>, Status> {
        let number = {
            let mut seen = self.seen.lock();
            seen.assignments += 1;
            seen.assignments - 1
        };
        self.changed.send_replace(());
        let script = self.script.lock();
        if script.assignments_error {
            return Err(Status::internal("out of order"));
        }
        if script.without_assignments {
            return Err(Status::unimplemented("unknown method Assignments"));
        }
        let links = script.assignments.get(number).or(script.assignments.last()).cloned().unwrap_or_default();
        let messages = links.into_iter().map(|(applies_to, results_in, changes)| {
            let kind = if applies_to.is_empty() {
                assignments_message::Type::Complete
            } else {
                assignments_message::Type::Incremental
            };
            AssignmentsMessage {
                r#type: kind as i32,
                applies_to: applies_to.into(),
                results_in: results_in.into(),
                changes,
            }
        });
        Ok(Response::new(then_silence(messages.collect())))
    }
}

fn change(task: Task, action: AssignmentAction) -> AssignmentChange {
    let item = Some(assignment::Item::Task(task.into()));
    AssignmentChange { assignment: Some(Assignment { item }), action: action as i32 }
}

fn put(id: &str) -> AssignmentChange {
    change(task(id, "n1"), AssignmentAction::Update)
}

fn drop_task(id: &str) -> AssignmentChange {
    change(Task { id: id.into(), ..Default::default() }, AssignmentAction::Remove)
}

struct Setup {
    dispatcher: Scripted,
    world: World,
    agent: TestAgent,
    _dir: tempfile::TempDir,
}

async fn setup(script: Script) -> Setup {
    let dispatcher = Scripted::new(script);
    let world = World::new(1);
    let dir = tempfile::tempdir().unwrap();
    let executor = Arc::new(SimExecutor::new(&world, "n1"));
    let agent = start_agent("n1", dir.path(), dispatcher.wires(), vec![executor]).await;
    Setup { dispatcher, world, agent, _dir: dir }
}

// 100: one gap, one new stream, and the state is right afterwards.
#[tokio::test(start_paused = true)]
async fn a_gap_in_the_chain_is_healed_once() {
    let broken = vec![("", "1", vec![put("a")]), ("5", "6", vec![drop_task("a"), put("x")])];
    let whole = vec![("", "1", vec![put("a")]), ("1", "2", vec![put("b")])];
    let s = setup(Script { assignments: vec![broken, whole], ..Default::default() }).await;
    s.dispatcher.until_reported("b", TaskState::Running).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(s.dispatcher.seen.lock().assignments, 2);
    assert_eq!(s.dispatcher.seen.lock().sessions.len(), 1, "the session goes on");
    assert_eq!(s.world.containers_on("n1"), ["a", "b"]);
    assert_eq!(s.world.starts("x"), 0, "the odd message was not applied");
    s.agent.stop().await;
    s.world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_fits_is_not_asked_for_without_pause() {
    let broken = vec![("3", "4", vec![put("x")])];
    let s = setup(Script { assignments: vec![broken], ..Default::default() }).await;
    s.dispatcher.until("asked again", |seen| seen.assignments > 1).await;
    let before = s.dispatcher.seen.lock().assignments;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let asked = s.dispatcher.seen.lock().assignments - before;
    assert!(asked <= 100, "{asked} times in ten seconds");
    assert_eq!(s.world.starts("x"), 0);
    s.agent.stop().await;
}

// 102, 105, 106, and everything delivered twice.
#[tokio::test(start_paused = true)]
async fn repeated_and_useless_changes_do_no_harm() {
    let stream = vec![
        ("", "1", vec![put("a"), put("b"), drop_task("a")]),
        ("1", "2", vec![put("a"), put("a")]),
        ("2", "3", vec![drop_task("b"), drop_task("unknown")]),
        ("3", "4", vec![drop_task("b"), change(task("foreign", "n2"), AssignmentAction::Update)]),
        ("4", "5", vec![AssignmentChange::default(), put("c")]),
    ];
    let s = setup(Script { assignments: vec![stream], ..Default::default() }).await;
    s.dispatcher.until_reported("a", TaskState::Running).await;
    s.dispatcher.until_reported("c", TaskState::Running).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(s.world.containers_on("n1"), ["a", "c"]);
    assert_eq!(s.world.starts("a"), 1);
    s.agent.stop().await;
    s.world.assert_sound();
}

// 98, 99: it knows no log subscriptions either
#[tokio::test(start_paused = true)]
async fn a_manager_without_assignments_is_asked_for_tasks() {
    let s = setup(Script { without_assignments: true, ..Default::default() }).await;
    s.dispatcher.until_reported("b", TaskState::Running).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(s.world.containers_on("n1"), ["b"]);
    assert_eq!(s.dispatcher.seen.lock().tasks, 1);
    assert_eq!(s.dispatcher.seen.lock().sessions.len(), 1);
    s.agent.stop().await;
}

// 86
#[tokio::test(start_paused = true)]
async fn a_silent_manager_is_given_up_and_tried_again() {
    let s = setup(Script { mute: true, ..Default::default() }).await;
    s.dispatcher.until("three attempts", |seen| seen.sessions.len() == 3).await;
    let error = s.agent.handle.observed().borrow().last_error.clone().unwrap();
    assert_eq!(error.to_string(), "session initiation timed out");
    s.dispatcher.script.lock().mute = false;
    s.agent.handle.ready().await;
    assert!(s.agent.handle.observed().borrow().last_error.is_none());
    s.agent.stop().await;
}

// 85: no more than three registrations within eight seconds would be best; the pauses grow.
#[tokio::test(start_paused = true)]
async fn refused_sessions_are_tried_ever_more_rarely() {
    let error = Status::unavailable("go away");
    let s = setup(Script { session_error: Some(error), ..Default::default() }).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let attempts = s.dispatcher.seen.lock().sessions.len();
    assert!((15..60).contains(&attempts), "{attempts}");
    s.dispatcher.script.lock().session_error =
        Some(Status::permission_denied("Permission denied: node n1 was removed from swarm"));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(s.agent.handle.observed().borrow().removed);
    s.agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_foreign_task_does_not_hold_back_the_others() {
    let stream = vec![("", "1", vec![put("a"), put("foreign"), put("z")])];
    let script = Script { assignments: vec![stream], foreign: Some("foreign"), ..Default::default() };
    let s = setup(script).await;
    s.dispatcher.until_reported("a", TaskState::Running).await;
    s.dispatcher.until_reported("z", TaskState::Running).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(s.dispatcher.seen.lock().sessions.len(), 1);
    assert!(s.dispatcher.seen.lock().calls < 50);
    s.agent.stop().await;
}

// 84
#[tokio::test(start_paused = true)]
async fn a_broken_session_is_resumed() {
    let dispatcher = Scripted::new(Script::default());
    let world = World::new(1);
    let dir = tempfile::tempdir().unwrap();
    let wires = dispatcher.wires();
    let executor = Arc::new(SimExecutor::new(&world, "n1"));
    let agent = start_agent("n1", dir.path(), wires.clone(), vec![executor]).await;
    dispatcher.until("a stream", |seen| seen.assignments == 1).await;
    wires.cut();
    dispatcher.until("another", |seen| seen.assignments == 2).await;
    assert_eq!(dispatcher.seen.lock().sessions, ["", "session"]);
    agent.stop().await;
}

// 110
#[tokio::test(start_paused = true)]
async fn every_session_is_told_all_stored_statuses() {
    let ends = with_env(task("ends", "n1"), &["SIM_RUN=1000", "SIM_EXIT=3"]);
    let stream = vec![("", "1", vec![put("runs"), change(ends, AssignmentAction::Update)])];
    let dispatcher = Scripted::new(Script { assignments: vec![stream], ..Default::default() });
    let world = World::new(1);
    let dir = tempfile::tempdir().unwrap();
    let wires = dispatcher.wires();
    let executor = Arc::new(SimExecutor::new(&world, "n1"));
    let agent = start_agent("n1", dir.path(), wires.clone(), vec![executor]).await;
    dispatcher.until_reported("runs", TaskState::Running).await;
    dispatcher.until_reported("ends", TaskState::Failed).await;
    for sessions in 2..4 {
        dispatcher.seen.lock().reports.clear();
        wires.cut();
        dispatcher.until("another session", |seen| seen.sessions.len() == sessions).await;
        dispatcher.until_reported("runs", TaskState::Running).await;
        dispatcher.until_reported("ends", TaskState::Failed).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(dispatcher.seen.lock().reports.len(), 2, "each once");
    }
    agent.stop().await;
}

// 90
#[tokio::test(start_paused = true)]
async fn an_identity_that_is_the_same_is_not_told_again() {
    let s = setup(Script::default()).await;
    s.agent.handle.ready().await;
    let identity = |root: &[u8]| Some(NodeTlsInfo { trust_root: root.to_vec(), ..Default::default() });
    for (root, told) in [(b"one", 2), (b"one", 2), (b"two", 3)] {
        s.agent.tls_info.send(identity(root)).unwrap();
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(s.dispatcher.seen.lock().sessions.len(), told, "{root:?}");
    }
    s.agent.stop().await;
}

/// A session whose messages a test chooses.
struct Said {
    setup: Setup,
    say: mpsc::UnboundedSender<SessionMessage>,
    observed: watch::Receiver<swarm_agent::Observed>,
    managers: Vec<WeightedPeer>,
}

fn manager(id: &str, addr: &str, weight: i64) -> WeightedPeer {
    let peer = swarm_api::v1::Peer { node_id: id.into(), addr: addr.into() };
    WeightedPeer { peer: Some(peer), weight }
}

impl Said {
    async fn new() -> Said {
        let (say, news) = mpsc::unbounded();
        let setup = setup(Script { news: Some(news), ..Default::default() }).await;
        setup.agent.handle.ready().await;
        let mut observed = setup.agent.handle.observed();
        observed.mark_unchanged();
        Said { setup, say, observed, managers: Vec::new() }
    }

    fn send(&self, message: SessionMessage) {
        let managers = self.managers.clone();
        self.say
            .unbounded_send(SessionMessage { session_id: "session".into(), managers, ..message })
            .unwrap();
    }

    /// Says it, and waits until the agent has taken it in: whether that was news for the node.
    async fn is_news(&mut self, message: SessionMessage) -> bool {
        self.send(message);
        // Messages are taken one after the other, and the next one names one manager more.
        let number = self.managers.len();
        self.managers.push(manager(&format!("next{number}"), &format!("next{number}:4242"), 10));
        self.send(SessionMessage::default());
        let remotes = self.setup.agent.remotes.clone();
        let mut changes = remotes.changes();
        let known = |id: &str| remotes.peers().iter().any(|p| p.peer.as_ref().unwrap().node_id == id);
        let wait = async {
            while !known(&format!("next{number}")) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(120), wait).await.unwrap();
        let news = self.observed.has_changed().unwrap();
        self.observed.mark_unchanged();
        news
    }
}

// 92
#[tokio::test(start_paused = true)]
async fn odd_managers_are_no_news_of_the_node_and_do_no_harm() {
    let mut s = Said::new().await;
    s.managers = vec![
        manager("m1", "m1:4242", 10),
        manager("homeless", "", 10),
        manager("", "nameless:4242", 10),
        manager("weightless", "weightless:4242", 0),
        WeightedPeer { peer: None, weight: 10 },
    ];
    assert!(!s.is_news(SessionMessage::default()).await);
    let known: Vec<String> =
        s.setup.agent.remotes.peers().into_iter().map(|p| p.peer.unwrap().addr).collect();
    assert_eq!(known, ["nameless:4242", "m1:4242", "next5:4242", "weightless:4242"]);
    assert_eq!(s.setup.dispatcher.seen.lock().sessions.len(), 1);
    s.setup.agent.stop().await;
}

// 93
#[tokio::test(start_paused = true)]
async fn only_another_node_or_root_is_news() {
    let mut s = Said::new().await;
    let node = |role: NodeRole, state: node_status::State| {
        let mut node = Node { id: "n1".into(), ..Default::default() };
        node.spec.desired_role = role as i32;
        node.status.state = state as i32;
        node.meta.version.index = 7 + u64::from(state as u32);
        Some(node.into())
    };
    let (worker, manager) = (NodeRole::Worker, NodeRole::Manager);
    let (ready, down) = (node_status::State::Ready, node_status::State::Down);
    let roots = |root: &[u8]| root.to_vec();
    for (node, root_ca, expected) in [
        (node(worker, ready), roots(b"one"), true),
        (node(worker, ready), roots(b"one"), false),
        (node(worker, down), roots(b"one"), false),
        (None, roots(b""), false),
        (node(manager, ready), roots(b"one"), true),
        (node(manager, ready), roots(b"two"), true),
        (node(worker, ready), roots(b"three"), true),
        (None, roots(b"three"), false),
    ] {
        let text = format!("{node:?} {root_ca:?}");
        let news = s.is_news(SessionMessage { node, root_ca, ..Default::default() }).await;
        assert_eq!(news, expected, "{text}");
    }
    let last = s.observed.borrow().clone();
    assert_eq!(last.node.unwrap().spec.desired_role(), worker);
    assert_eq!(last.root_ca, b"three");
    s.setup.agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_fails_right_after_its_start_is_not_repeated_without_pause() {
    let s = setup(Script { assignments_error: true, ..Default::default() }).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let attempts = s.dispatcher.seen.lock().sessions.len();
    assert!((10..60).contains(&attempts), "{attempts}");
    s.agent.stop().await;
}
