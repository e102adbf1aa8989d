//! The gRPC faces of the broker.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use swarm_api::swarmd::task_sessions_server::{TaskSessions, TaskSessionsServer};
use swarm_api::swarmd::tasks_server::{Tasks, TasksServer};
use swarm_api::swarmd::{
    ListenRequest, ListenResponse, OpenTask, ServeRequest, TaskInput, TaskOutput, open_task::What, task_input,
};
use swarm_dispatcher::CallerNode;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::book::{End, Waiting};
use crate::broker::{Broker, Term};
use crate::caller::caller;
use crate::error::status;
use crate::joint::{self, Opened};
use crate::target::{self, Target};

/// Time for the first message of a call.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Time that a node has to take a session. After a change of leaders nodes are away for a moment.
const PICK_UP: Duration = Duration::from_secs(10);
/// What is written down, in characters, of a text that may be anything.
const LONGEST_TEXT: usize = 128;
/// Largest message, in bytes.
const MAX_MESSAGE: usize = 256 * 1024;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `swarmd.v1.Tasks` on a [`Broker`].
#[derive(Clone, Debug)]
pub struct TasksService {
    broker: Arc<Broker>,
}

impl TasksService {
    pub(crate) fn new(broker: Arc<Broker>) -> TasksService {
        TasksService { broker }
    }

    /// The service for a tonic router.
    pub fn into_server(self) -> TasksServer<Self> {
        TasksServer::new(self).max_decoding_message_size(MAX_MESSAGE)
    }
}

#[tonic::async_trait]
impl Tasks for TasksService {
    type OpenStream = Answers<TaskOutput>;

    async fn open(
        &self,
        request: Request<Streaming<TaskInput>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let term = self.broker.term()?;
        let caller = caller(&request);
        let mut input = request.into_inner();
        let open = match first(&mut input).await {
            Ok(Some(TaskInput { item: Some(task_input::Item::Open(open)) })) => open,
            Ok(_) => return Err(refused(&caller, &OpenTask::default(), status::no_open())),
            Err(status) => return Err(refused(&caller, &OpenTask::default(), status)),
        };
        let target = target::find(&term.store().view(), &open);
        let target = target.map_err(|status| refused(&caller, &open, status))?;
        let (mut opened, served) = begin(term.clone(), target, open, caller, input)?;
        let result = tokio::select! {
            served = served => served.map_err(|_| status::leader_changed()),
            reason = opened.end.reached() => Err(reason),
            () = sleep(PICK_UP) => Err(status::not_served(&opened.node_name, PICK_UP)),
        };
        match result {
            Ok(messages) => Ok(Response::new(Box::pin(joint::output(opened, messages)))),
            Err(status) => {
                opened.outcome = Some(status.message().to_owned());
                Err(status)
            }
        }
    }
}

/// Opens a session, and puts it on record.
fn begin(
    term: Arc<Term>,
    target: Target,
    open: OpenTask,
    caller: String,
    input: Streaming<TaskInput>,
) -> Result<(Opened, oneshot::Receiver<Streaming<ServeRequest>>), Status> {
    let (sender, served) = oneshot::channel();
    let end = Arc::new(End::default());
    let waiting = Waiting { input, served: sender, end: end.clone() };
    let figures = matches!(open.what, Some(What::Stats(_)));
    let (record, by, asked) = (target.clone(), caller.clone(), open.clone());
    let (what, program) = target::describe(&asked);
    let id = term.with(|book| book.open(target, open, caller, waiting));
    let id = id.map_err(|status| refused(&by, &asked, status))?;
    if figures {
        tracing::debug!(
            session.id = id,
            node.id = record.node_id,
            caller = by,
            "figures of tasks are asked for"
        );
    } else {
        let task = record.task_ids.first().map_or("", String::as_str);
        tracing::info!(
            session.id = id,
            task.id = task,
            node.id = record.node_id,
            caller = by,
            what,
            program,
            "task session begins"
        );
    }
    let node_name = record.node_name;
    // A task or a node may have gone between the look and now.
    let opened = Opened { term, id, node_name, end, figures, outcome: None };
    opened.term.with(|book| {
        book.catch_up(&opened.term.store().view());
        Ok(())
    })?;
    Ok((opened, served))
}

/// Puts on record that somebody was not let in.
fn refused(caller: &str, open: &OpenTask, status: Status) -> Status {
    let brief = |text: &str| text.chars().take(LONGEST_TEXT).collect::<String>();
    let (what, program) = target::describe(open);
    let (program, task) = (brief(program), brief(target::task_of(open)));
    let reason = status.message();
    match (&open.what, status.code()) {
        (Some(What::Stats(_)), _) => {
            tracing::debug!(task.id = task, caller, reason, "figures of tasks are refused");
        }
        (_, Code::PermissionDenied) => {
            tracing::warn!(task.id = task, caller, what, program, reason, "task session refused");
        }
        _ => tracing::info!(task.id = task, caller, what, program, reason, "task session refused"),
    }
    status
}

/// The first message of a call.
async fn first<T>(messages: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let first = timeout(FIRST_MESSAGE, messages.message()).await;
    first.map_err(|_| status::no_first_message(FIRST_MESSAGE))?
}

/// `swarmd.v1.TaskSessions` on a [`Broker`]. Requests must carry a [`CallerNode`].
#[derive(Clone, Debug)]
pub struct TaskSessionsService {
    broker: Arc<Broker>,
}

impl TaskSessionsService {
    pub(crate) fn new(broker: Arc<Broker>) -> TaskSessionsService {
        TaskSessionsService { broker }
    }

    /// The service for a tonic router.
    pub fn into_server(self) -> TaskSessionsServer<Self> {
        TaskSessionsServer::new(self).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// A call in which a node listens.
struct Listening {
    term: Arc<Term>,
    node_id: String,
    number: u64,
    notify: Arc<Notify>,
    greeted: bool,
}

impl Listening {
    async fn next(&mut self) -> Option<ListenResponse> {
        if !std::mem::replace(&mut self.greeted, true) {
            return Some(ListenResponse { term: self.term.id.clone(), invitation: None });
        }
        loop {
            let invitation = self.term.with(|book| Ok(book.next(&self.node_id, self.number))).ok()?;
            if invitation.is_some() {
                return Some(ListenResponse { term: String::new(), invitation });
            }
            tokio::select! {
                () = self.notify.notified() => {}
                () = self.term.closed() => return None,
            }
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // A term that has ended has forgotten it already.
        let _ = self.term.with(|book| {
            book.unlisten(&self.node_id, self.number);
            Ok(())
        });
    }
}

#[tonic::async_trait]
impl TaskSessions for TaskSessionsService {
    type ListenStream = Answers<ListenResponse>;
    type ServeStream = Answers<TaskInput>;

    async fn listen(&self, request: Request<ListenRequest>) -> Result<Response<Self::ListenStream>, Status> {
        let (term, node_id) = (self.broker.term()?, CallerNode::of(&request)?.id);
        let (number, notify) = term.with(|book| Ok(book.listen(&node_id)))?;
        let listening = Listening { term, node_id, number, notify, greeted: false };
        let messages = stream::unfold(listening, |mut listening| async move {
            let message = listening.next().await?;
            Some((Ok(message), listening))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn serve(
        &self,
        request: Request<Streaming<ServeRequest>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let (term, node_id) = (self.broker.term()?, CallerNode::of(&request)?.id);
        let mut output = request.into_inner();
        let id = first(&mut output).await?.map(|message| message.session_id).unwrap_or_default();
        if id.is_empty() {
            return Err(status::no_session_id());
        }
        let waiting = term.with(|book| book.serve(&node_id, &id))?;
        waiting.served.send(output).map_err(|_| status::caller_gone())?;
        Ok(Response::new(Box::pin(joint::input(waiting.end, waiting.input))))
    }
}
