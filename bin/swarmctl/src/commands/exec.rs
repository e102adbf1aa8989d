//! `task exec` and `task attach`.

use std::future::pending;

use bytes::Bytes;
use clap::Args;
use swarm_api::swarmd::open_task::What;
use swarm_api::swarmd::{
    AttachTask, ExecTask, OpenTask, StdinEnd, TaskInput, TaskOutput, TaskStarted, task_input, task_output,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{Answer, Context, leader};
use crate::error::{Error, Result};
use crate::resolve;
use crate::terminal::{self, Ending, Raw, Shown, Stream};
use crate::values::detach_keys::{self, DetachKeys};

/// Messages that wait for the manager.
const QUEUE: usize = 4;

/// How a command is executed.
#[derive(Debug, Args)]
pub(crate) struct ExecFlags {
    /// Pass the standard input on to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Name or number of another user, with or without a group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Another working directory: an absolute path in the task
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// A further environment variable; without a value it is the one of this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
}

/// How a task is attached to.
#[derive(Debug, Args)]
pub(crate) struct AttachFlags {
    /// Only show output
    #[arg(long)]
    no_stdin: bool,
    /// Keys that end this, where the task has a terminal
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = detach_keys::parse)]
    detach_keys: DetachKeys,
}

/// Executes a command in a task.
pub(crate) async fn exec(
    context: &mut Context,
    given: &str,
    command: Vec<String>,
    flags: &ExecFlags,
) -> Result<Answer> {
    if flags.interactive && flags.tty && !terminal::is_there() {
        return Err(Error::usage("the standard input is no terminal: leave -t away"));
    }
    let (task_id, unknown) = whose(context, given).await?;
    let exec = ExecTask {
        task_id,
        command,
        stdin: flags.interactive,
        tty: flags.tty,
        size: if flags.tty { terminal::size() } else { None },
        user: flags.user.clone().unwrap_or_default(),
        dir: flags.workdir.clone().unwrap_or_default(),
        env: flags.env.iter().filter_map(|entry| variable(entry)).collect(),
    };
    visit(context, What::Exec(exec), None).await.map_err(|error| unknown.unwrap_or(error))
}

/// The task's id. One that nobody knows is asked for all the same, so that the managers have it on record; what the user is
/// then told comes with it.
async fn whose(context: &mut Context, given: &str) -> Result<(String, Option<Error>)> {
    match resolve::task(&mut context.control, given).await {
        Ok(task) => Ok((task.id.to_string(), None)),
        Err(error @ Error::NotFound { .. }) => Ok((given.to_owned(), Some(error))),
        Err(error) => Err(error),
    }
}

/// `NAME=value`; of a name alone the value here, if there is one.
fn variable(entry: &str) -> Option<String> {
    match entry.contains('=') {
        true => Some(entry.to_owned()),
        false => std::env::var(entry).ok().map(|value| format!("{entry}={value}")),
    }
}

/// Attaches to a task.
pub(crate) async fn attach(context: &mut Context, given: &str, flags: &AttachFlags) -> Result<Answer> {
    let (task_id, unknown) = whose(context, given).await?;
    let attach = AttachTask { task_id, stdin: !flags.no_stdin, size: terminal::size() };
    let keys = Some(flags.detach_keys.clone());
    visit(context, What::Attach(attach), keys).await.map_err(|error| unknown.unwrap_or(error))
}

/// How a session ended.
enum End {
    /// With this exit code.
    Code(i32),
    /// Whoever is here has had enough.
    Detached,
    /// This signal ended it.
    Signal(i32),
    Failed(Box<Status>),
}

async fn visit(context: &mut Context, what: What, keys: Option<DetachKeys>) -> Result<Answer> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let open = task_input::Item::Open(OpenTask { what: Some(what) });
    // There is room for it.
    let _ = sender.send(TaskInput { item: Some(open) }).await;
    let mut outputs = match context.client.tasks().open(ReceiverStream::new(receiver)).await {
        Ok(outputs) => outputs.into_inner(),
        Err(status) => return Err(explain(context, status).await),
    };
    let started = match outputs.message().await {
        Ok(Some(TaskOutput { item: Some(task_output::Item::Started(started)) })) => started,
        Ok(_) => return Err(Error::Incomplete("beginning of a session")),
        Err(status) => return Err(explain(context, status).await),
    };
    let (end, written) = carry(started, sender, outputs, keys).await?;
    if let Err(error) = written
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(Error::plain(format!("can't write the output: {error}")));
    }
    let code = match end {
        End::Code(code) => u8::try_from(code).unwrap_or(u8::MAX),
        End::Signal(number) => u8::try_from(128 + number).unwrap_or(u8::MAX),
        End::Detached => 0,
        End::Failed(status) => return Err(explain(context, *status).await),
    };
    Ok(Answer { text: Vec::new(), code })
}

/// Carries what is typed and what is shown, until either side has had enough. The terminal is as it was before when this
/// returns.
async fn carry(
    started: TaskStarted,
    sender: mpsc::Sender<TaskInput>,
    mut outputs: Streaming<TaskOutput>,
    keys: Option<DetachKeys>,
) -> Result<(End, std::io::Result<()>)> {
    let terminal = |error| Error::plain(format!("can't use the terminal: {error}"));
    let raw = match started.tty && started.stdin && terminal::is_there() {
        true => Some((Raw::enter().map_err(terminal)?, Ending::watch().map_err(terminal)?)),
        false => None,
    };
    let (_raw, mut ending) = raw.unzip();
    let shown = Shown::start();
    let end = {
        let signals = async {
            match &mut ending {
                Some(ending) => ending.next().await,
                None => pending().await,
            }
        };
        tokio::select! {
            end = show(&mut outputs, &shown) => end,
            () = input(&started, &sender, keys.filter(|_| started.tty)) => End::Detached,
            number = signals => End::Signal(number),
        }
    };
    let written = match (&end, &mut ending) {
        (End::Signal(_) | End::Detached, _) => Ok(()),
        (_, None) => shown.finish().await,
        (_, Some(ending)) => tokio::select! {
            written = shown.finish() => written,
            _ = ending.next() => Ok(()),
        },
    };
    Ok((end, written))
}

/// Shows what comes until it ends.
async fn show(outputs: &mut Streaming<TaskOutput>, shown: &Shown) -> End {
    loop {
        let item = match outputs.message().await {
            Ok(Some(output)) => output.item,
            Ok(None) => {
                return End::Failed(Box::new(Status::unavailable("the manager has ended the session")));
            }
            Err(status) => return End::Failed(Box::new(status)),
        };
        let (stream, data) = match item {
            Some(task_output::Item::Stdout(data)) => (Stream::Stdout, data),
            Some(task_output::Item::Stderr(data)) => (Stream::Stderr, data),
            Some(task_output::Item::Ended(ended)) => return End::Code(ended.code),
            _ => continue,
        };
        if !shown.show(stream, data).await {
            return End::Detached;
        }
    }
}

/// Sends what is typed, and the terminal's size as it changes. Returns when the keys are typed that detach.
async fn input(started: &TaskStarted, sender: &mpsc::Sender<TaskInput>, mut keys: Option<DetachKeys>) {
    let send = async |item| {
        // A session that is over has its own end to tell.
        if sender.send(TaskInput { item: Some(item) }).await.is_err() {
            pending::<()>().await;
        }
    };
    let mut typed = started.stdin.then(terminal::typed);
    let mut resized = started.tty.then(|| signal(SignalKind::window_change()).ok()).flatten();
    if let (true, Some(size)) = (started.tty, terminal::size()) {
        // It may have changed since it was told.
        send(task_input::Item::Size(size)).await;
    }
    loop {
        let next = async {
            match &mut typed {
                Some(typed) => typed.recv().await,
                None => pending().await,
            }
        };
        let changed = async {
            match &mut resized {
                Some(resized) => resized.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            data = next => match (data, &mut keys) {
                (Some(data), None) => send(task_input::Item::Stdin(data)).await,
                (Some(data), Some(keys)) => {
                    let (passed, detach) = keys.filter(&data);
                    if !passed.is_empty() {
                        send(task_input::Item::Stdin(Bytes::from(passed))).await;
                    }
                    if detach {
                        return;
                    }
                }
                (None, _) => {
                    typed = None;
                    send(task_input::Item::StdinEnd(StdinEnd {})).await;
                }
            },
            _ = changed => {
                if let Some(size) = terminal::size() {
                    send(task_input::Item::Size(size)).await;
                }
            }
        }
    }
}

/// What a refusal, or the end of a session, means here.
pub(super) async fn explain(context: &mut Context, status: Status) -> Error {
    if std::error::Error::source(&status).is_some() {
        return Error::plain("the connection to the manager was lost, and the session has ended with it");
    }
    match status.code() {
        Code::Unimplemented if status.message().is_empty() => {
            let leader = leader::named(context).await;
            Error::plain(format!(
                "the manager that leads{leader} knows no exec, attach and stats: it is no swarmd, or too old"
            ))
        }
        // It says what to do, if anything is to be done.
        Code::Unavailable | Code::Aborted => Error::plain(status.message()),
        _ => status.into(),
    }
}
