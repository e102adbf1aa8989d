//! Serves one task session.

use std::time::{Duration, Instant};

use futures::future::join_all;
use swarm_api::duration::from_std;
use swarm_api::swarmd::open_task::What;
use swarm_api::swarmd::task_sessions_client::TaskSessionsClient;
use swarm_api::swarmd::{
    Invitation, ServeFailure, ServeRequest, StatsSample, TaskEnded, TaskInput, TaskOutput, TaskStarted,
    TaskStats, TerminalSize, task_input, task_output,
};
use swarm_api::v1::Peer;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::Inner;
use crate::ControllerError;
use crate::logs::Entry;
use crate::task_io::{AttachOptions, ExecOptions, Gone, Input, Output, Size, Stats, TaskIo, TaskIoPeer};

/// Messages that wait for the connection.
const QUEUE: usize = 2;
/// Longest time for a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest time for a manager to take the last word, and for an executor to clean up.
const LAST_WORD: Duration = Duration::from_secs(10);
/// Between two figures of a task, and the longest time for one.
const EVERY: Duration = Duration::from_secs(1);
const FIGURES: Duration = Duration::from_secs(5);

/// Serves until either side has had enough. Whoever opened it hears what is wrong.
pub(super) async fn serve(
    inner: &Inner,
    invitation: Invitation,
    manager: Option<Peer>,
    cancel: &CancellationToken,
) {
    let id = invitation.session_id.clone();
    if let Err(error) = try_serve(inner, invitation, manager, cancel).await {
        tracing::debug!(session.id = id, %error, "a task session could not be served");
    }
}

async fn try_serve(
    inner: &Inner,
    invitation: Invitation,
    manager: Option<Peer>,
    cancel: &CancellationToken,
) -> Result<(), Status> {
    let connected = timeout(PATIENCE, inner.connector.apart(manager.as_ref())).await;
    let channel = connected
        .map_err(|_| Status::unavailable("connecting timed out"))?
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let hello = ServeRequest { session_id: invitation.session_id.clone(), ..Default::default() };
    // There is room for it.
    let _ = sender.send(hello).await;
    let mut client = TaskSessionsClient::new(channel);
    let call = timeout(PATIENCE, client.serve(ReceiverStream::new(receiver))).await;
    let mut inputs = call.map_err(|_| Status::unavailable("the manager does not answer"))??.into_inner();
    let Some(last) = converse(inner, &invitation, &sender, &mut inputs, cancel).await else { return Ok(()) };
    let _ = sender.send(last).await; // nobody may be there
    drop(sender);
    // The manager ends the call once it has the last word.
    let ended = async { while let Ok(Some(_)) = inputs.message().await {} };
    let _ = timeout(LAST_WORD, ended).await;
    Ok(())
}

/// Everything between the first word and the last, which is given back unless nobody wants it.
async fn converse(
    inner: &Inner,
    invitation: &Invitation,
    sender: &mpsc::Sender<ServeRequest>,
    inputs: &mut Streaming<TaskInput>,
    cancel: &CancellationToken,
) -> Option<ServeRequest> {
    let result = match invitation.open.as_ref().and_then(|open| open.what.as_ref()) {
        Some(What::Stats(stats)) => {
            tokio::select! {
                () = figures(inner, &stats.task_ids, sender) => {}
                () = async { while let Ok(Some(_)) = inputs.message().await {} } => {}
                () = cancel.cancelled() => {}
            }
            return None;
        }
        Some(what) => visit(inner, invitation, what, sender, inputs, cancel).await?,
        None => {
            Err(Status::unimplemented("this node's daemon does not know this kind of session: update it"))
        }
    };
    Some(match result {
        Ok(code) => {
            let ended = task_output::Item::Ended(TaskEnded { code });
            ServeRequest { output: Some(TaskOutput { item: Some(ended) }), ..Default::default() }
        }
        Err(status) => {
            let failure = ServeFailure { code: status.code() as i32, message: status.message().to_owned() };
            ServeRequest { failure: Some(failure), ..Default::default() }
        }
    })
}

/// A command, or the task's own process. `None` if whoever wanted it has gone.
async fn visit(
    inner: &Inner,
    invitation: &Invitation,
    what: &What,
    sender: &mpsc::Sender<ServeRequest>,
    inputs: &mut Streaming<TaskInput>,
    cancel: &CancellationToken,
) -> Option<Result<i32, Status>> {
    let (task_id, kind, program) = match what {
        What::Exec(exec) => (&exec.task_id, "exec", exec.command.first().map_or("", String::as_str)),
        What::Attach(attach) => (&attach.task_id, "attach", ""),
        What::Stats(_) => return None,
    };
    let entry = match check(inner, task_id) {
        Ok(entry) => entry,
        Err(status) => {
            tracing::warn!(
                session.id = invitation.session_id,
                task.id = task_id,
                node.id = inner.node_id,
                caller = invitation.caller,
                what = kind,
                program,
                reason = status.message(),
                "task session refused"
            );
            return Some(Err(status));
        }
    };
    tracing::info!(
        session.id = invitation.session_id,
        task.id = task_id,
        node.id = inner.node_id,
        caller = invitation.caller,
        what = kind,
        program,
        "task session begins"
    );
    let (io, peer) = TaskIo::new();
    let work = async {
        match what {
            What::Exec(exec) => {
                let options = ExecOptions {
                    command: exec.command.clone(),
                    stdin: exec.stdin,
                    tty: exec.tty,
                    size: exec.size.as_ref().and_then(size),
                    user: exec.user.clone(),
                    dir: exec.dir.clone(),
                    env: exec.env.clone(),
                };
                entry.controller.exec(options, io).await
            }
            What::Attach(attach) => {
                let options =
                    AttachOptions { stdin: attach.stdin, size: attach.size.as_ref().and_then(size) };
                entry.controller.attach(options, io).await
            }
            What::Stats(_) => Err(ControllerError::UnsupportedRuntime),
        }
    };
    let result = carry(work, peer, sender, inputs, cancel).await;
    let outcome = match &result {
        Some(Ok(code)) => format!("exit code {code}"),
        Some(Err(error)) => error.to_string(),
        None => "interrupted".to_owned(),
    };
    tracing::info!(session.id = invitation.session_id, task.id = task_id, outcome, "task session ended");
    Some(result?.map_err(|error| refused(&error)))
}

fn refused(error: &ControllerError) -> Status {
    match error {
        ControllerError::Temporary(text) => Status::unavailable(text.clone()),
        ControllerError::UnsupportedRuntime => {
            Status::failed_precondition("tasks of this kind can't be entered on this node")
        }
        other => Status::failed_precondition(other.to_string()),
    }
}

fn check(inner: &Inner, task_id: &str) -> Result<Entry, Status> {
    if !inner.exec {
        return Err(Status::permission_denied("this node's daemon was started with --no-exec"));
    }
    let entry = inner.tasks.find(task_id);
    entry.ok_or_else(|| Status::not_found(format!("task {task_id} is not on this node any more")))
}

/// Runs the work, and carries what goes in and out of it. `None` if the other side has gone; the work was then given the
/// time to clean up.
async fn carry(
    work: impl Future<Output = Result<i32, ControllerError>>,
    peer: TaskIoPeer,
    sender: &mpsc::Sender<ServeRequest>,
    inputs: &mut Streaming<TaskInput>,
    cancel: &CancellationToken,
) -> Option<Result<i32, ControllerError>> {
    let TaskIoPeer { input, mut output, gone } = peer;
    let out = async move {
        while let Some(output) = output.recv().await {
            let request = ServeRequest { output: Some(wire(output)), ..Default::default() };
            if sender.send(request).await.is_err() {
                return Err(Gone);
            }
        }
        Ok(())
    };
    let mut work = std::pin::pin!(async { tokio::join!(work, out) });
    tokio::select! {
        (result, sent) = &mut work => return sent.is_ok().then_some(result),
        () = feed(inputs, &input) => {}
        // Also while input waits for a command that does not read.
        () = sender.closed() => {}
        () = cancel.cancelled() => {}
    }
    gone.cancel();
    let _ = timeout(LAST_WORD, work).await;
    None
}

/// Ends when the other side has gone.
async fn feed(inputs: &mut Streaming<TaskInput>, input: &mpsc::Sender<Input>) {
    while let Ok(Some(message)) = inputs.message().await {
        let item = match message.item {
            Some(task_input::Item::Stdin(data)) => Input::Stdin(data),
            Some(task_input::Item::StdinEnd(_)) => Input::End,
            Some(task_input::Item::Size(to)) => match size(&to) {
                Some(size) => Input::Size(size),
                None => continue,
            },
            // Nothing that this version knows.
            Some(task_input::Item::Open(_)) | None => continue,
        };
        // Whoever does not want it may go on without.
        let _ = input.send(item).await;
    }
}

fn size(size: &TerminalSize) -> Option<Size> {
    let number = |number: u32| u16::try_from(number).ok().filter(|number| *number > 0);
    Some(Size { rows: number(size.rows)?, columns: number(size.columns)? })
}

fn wire(output: Output) -> TaskOutput {
    let item = match output {
        Output::Started { stdin, tty } => task_output::Item::Started(TaskStarted { stdin, tty }),
        Output::Stdout(data) => task_output::Item::Stdout(data),
        Output::Stderr(data) => task_output::Item::Stderr(data),
    };
    TaskOutput { item: Some(item) }
}

/// Sends figures once a second until nobody takes them.
async fn figures(inner: &Inner, tasks: &[String], sender: &mpsc::Sender<ServeRequest>) {
    let began = Instant::now();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let tasks = join_all(tasks.iter().map(|id| async {
            let entry = inner.tasks.find(id);
            let figures = match &entry {
                Some(entry) => timeout(FIGURES, entry.controller.stats()).await.unwrap_or_else(|_| {
                    Err(ControllerError::Temporary(format!("no figures within {} s", FIGURES.as_secs())))
                }),
                None => Err(ControllerError::Fatal("the task is not on this node any more".to_owned())),
            };
            of_task(id, began.elapsed(), figures)
        }))
        .await;
        let sample = task_output::Item::Stats(StatsSample { tasks });
        let output = Some(TaskOutput { item: Some(sample) });
        if sender.send(ServeRequest { output, ..Default::default() }).await.is_err() {
            return;
        }
    }
}

fn of_task(id: &str, at: Duration, figures: Result<Stats, ControllerError>) -> TaskStats {
    let (stats, error) = match figures {
        Ok(stats) => (stats, String::new()),
        Err(error) => (Stats::default(), error.to_string()),
    };
    TaskStats {
        task_id: id.to_owned(),
        at: Some(from_std(at)),
        cpu_nanos: stats.cpu_nanos,
        memory_bytes: stats.memory_bytes,
        memory_limit: stats.memory_limit,
        received_bytes: stats.received_bytes,
        sent_bytes: stats.sent_bytes,
        read_bytes: stats.read_bytes,
        written_bytes: stats.written_bytes,
        pids: stats.pids,
        error,
    }
}
