//! Dispatchers that say what a test wants them to say.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use swarm_api::v1::dispatcher_server::{Dispatcher, DispatcherServer};
use swarm_api::v1::{
    Assignment, AssignmentChange, AssignmentsMessage, AssignmentsRequest, HeartbeatRequest,
    HeartbeatResponse, SessionMessage, SessionRequest, Task, TaskState, TasksMessage, TasksRequest,
    UpdateTaskStatusRequest, UpdateTaskStatusResponse, UpdateVolumeStatusRequest, UpdateVolumeStatusResponse,
    WeightedPeer, assignment, assignment_change::AssignmentAction, assignments_message,
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
        let script = self.script.lock();
        if let Some(status) = &script.session_error {
            return Err(status.clone());
        }
        if script.mute {
            return Ok(Response::new(Box::pin(futures::stream::pending())));
        }
        let session_id = if resumed.is_empty() { "session".into() } else { resumed };
        let managers = vec![WeightedPeer { peer: Some(peer("m1")), weight: 10 }];
        let message = SessionMessage { session_id, managers, ..Default::default() };
        Ok(Response::new(then_silence(vec![message])))
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

#[tokio::test(start_paused = true)]
async fn a_session_that_fails_right_after_its_start_is_not_repeated_without_pause() {
    let s = setup(Script { assignments_error: true, ..Default::default() }).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let attempts = s.dispatcher.seen.lock().sessions.len();
    assert!((10..60).contains(&attempts), "{attempts}");
    s.agent.stop().await;
}
