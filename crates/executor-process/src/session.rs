//! Commands that somebody executes in a task, seen from the daemon.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use swarm_agent::{ControllerError, ExecOptions, Gone, Input, Output, TaskIo, TaskOutput};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::dir::TaskDir;
use crate::executor::Parts;
use crate::launch::{MARKER, home_env, identity};
use crate::outcome::fatal;
use crate::shim::{SESSION_ARG, SESSION_ENV, Visit};
use crate::terminal::{Terminal, resize};

/// Longest time for output that is still in a pipe when the command and all that it started have ended.
const REST: Duration = Duration::from_secs(2);

/// The daemon's ends of a command's input and output.
enum Ends {
    Terminal(Terminal),
    Pipes { stdin: Option<pipe::Sender>, stdout: pipe::Receiver, stderr: pipe::Receiver },
}

/// Executes a command in a task that runs, as this process. `task_ends` completes when it does not any more. Returns the exit code.
pub(crate) async fn exec(
    parts: &Parts,
    dir: &TaskDir,
    process: i32,
    options: ExecOptions,
    io: TaskIo,
    task_ends: impl Future<Output = ()>,
) -> Result<i32, ControllerError> {
    let visit = visit(process, &options)?;
    let trouble = |error: io::Error| fatal(format!("executing a command: {error}"));
    let (ends, theirs) = ends(&options).map_err(trouble)?;
    let (mut command, [stdin, stdout, stderr]) = (Command::new(&parts.program), theirs);
    command
        .arg(SESSION_ARG)
        .arg(dir.path())
        .env_clear()
        .env(SESSION_ENV, serde_json::to_string(&visit).map_err(|error| trouble(error.into()))?)
        .current_dir("/")
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    let (process, ended) = start(command).await.map_err(trouble)?;
    let (inputs, output) = io.split();
    let stdin = options.stdin;
    let _ = output.send(Output::Started { stdin, tty: options.tty }).await; // who has gone is noticed below
    let status = match ends {
        Ends::Terminal(Terminal { output: screen, input: keys }) => {
            let feed = feed_terminal(keys, inputs, stdin);
            let copy = copy(screen, &output, Output::Stdout);
            until_the_end(process, ended, feed, copy, &output, task_ends).await
        }
        Ends::Pipes { stdin, stdout, stderr } => {
            let both = async {
                let out = copy(stdout, &output, Output::Stdout);
                let err = copy(stderr, &output, Output::Stderr);
                tokio::try_join!(out, err).map(drop)
            };
            until_the_end(process, ended, feed_pipe(stdin, inputs), both, &output, task_ends).await
        }
    };
    let status = status.map_err(trouble)?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

/// What differs from the task's own command. Users are looked up here, so that mistakes show early.
fn visit(process: i32, options: &ExecOptions) -> Result<Visit, ControllerError> {
    if !options.dir.is_empty() && !options.dir.starts_with('/') {
        return Err(fatal(format!("the working directory must be an absolute path: {}", options.dir)));
    }
    let (identity, account) = identity(&options.user, &[])?;
    let mut env: Vec<(String, String)> = account.into_iter().flat_map(home_env).collect();
    for entry in &options.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        if name.is_empty() || name == MARKER {
            return Err(fatal(format!("{entry:?} can't be in the environment of a command")));
        }
        env.push((name.to_owned(), value.to_owned()));
    }
    if options.tty && !env.iter().any(|(name, _)| name == "TERM") {
        env.insert(0, ("TERM".to_owned(), "xterm".to_owned()));
    }
    Ok(Visit {
        daemon: i32::try_from(std::process::id()).unwrap_or_default(),
        process,
        argv: options.command.clone(),
        env,
        dir: (!options.dir.is_empty()).then(|| options.dir.clone()),
        identity,
        tty: options.tty,
    })
}

/// The daemon's ends, and those of the command.
fn ends(options: &ExecOptions) -> io::Result<(Ends, [Stdio; 3])> {
    if options.tty {
        let (terminal, slave) = Terminal::open(options.size)?;
        let copy = |file: &File| file.try_clone().map(Stdio::from);
        let theirs = [copy(&slave)?, copy(&slave)?, Stdio::from(slave)];
        return Ok((Ends::Terminal(terminal), theirs));
    }
    let receiver = |reader: io::PipeReader| pipe::Receiver::from_owned_fd(OwnedFd::from(reader));
    let ((stdout, out), (stderr, err)) = (io::pipe()?, io::pipe()?);
    let (stdin, theirs) = match options.stdin {
        true => {
            let (theirs, stdin) = io::pipe()?;
            (Some(pipe::Sender::from_owned_fd(OwnedFd::from(stdin))?), Stdio::from(theirs))
        }
        false => (None, Stdio::null()),
    };
    let ends = Ends::Pipes { stdin, stdout: receiver(stdout)?, stderr: receiver(stderr)? };
    Ok((ends, [theirs, Stdio::from(out), Stdio::from(err)]))
}

/// Starts the supervisor from a thread that waits for it: the kernel tells it when that thread, or the daemon, ends.
async fn start(mut command: Command) -> io::Result<(OwnedFd, JoinHandle<io::Result<ExitStatus>>)> {
    let (started, handle) = oneshot::channel();
    let ended = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn()?;
        // With it go the copies of the command's ends.
        drop(command);
        // It was not waited for: the number is its own.
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        if handle.is_err() {
            let _ = child.kill();
        }
        let _ = started.send(handle); // nobody may be there any more
        child.wait()
    });
    match handle.await {
        Ok(handle) => Ok((handle?, ended)),
        // It could not be started.
        Err(_) => match ended.await.map_err(io::Error::other)? {
            Err(error) => Err(error),
            Ok(status) => Err(io::Error::other(format!("the supervisor ended: {status}"))),
        },
    }
}

/// Carries input and output until the command has ended, which it is told to when nobody is there any more.
async fn until_the_end(
    process: OwnedFd,
    mut ended: JoinHandle<io::Result<ExitStatus>>,
    feed: impl Future<Output = ()>,
    copy: impl Future<Output = Result<(), Gone>>,
    output: &TaskOutput,
    task_ends: impl Future<Output = ()>,
) -> io::Result<ExitStatus> {
    // However this ends, the command does: its supervisor sees to it.
    let process = Ask(process);
    let mut copy = std::pin::pin!(copy);
    let mut over = std::pin::pin!(futures::future::select(Box::pin(output.gone()), Box::pin(task_ends)));
    let mut feed = std::pin::pin!(feed);
    let (mut copying, mut asked, mut feeding) = (true, false, true);
    let status = loop {
        tokio::select! {
            status = &mut ended => break status.map_err(io::Error::other)??,
            result = &mut copy, if copying => {
                copying = false;
                if result.is_err() {
                    process.end();
                }
            }
            _ = &mut over, if !asked => {
                asked = true;
                process.end();
            }
            () = &mut feed, if feeding => feeding = false,
        }
    };
    if copying {
        let _ = timeout(REST, copy).await;
    }
    Ok(status)
}

/// Asks a supervisor to end what it supervises, at the latest when this is dropped.
struct Ask(OwnedFd);

impl Ask {
    fn end(&self) {
        // One that has ended needs no asking.
        let _ = pidfd_send_signal(&self.0, Signal::TERM);
    }
}

impl Drop for Ask {
    fn drop(&mut self) {
        self.end();
    }
}

async fn feed_pipe(mut stdin: Option<pipe::Sender>, mut inputs: mpsc::Receiver<Input>) {
    while let Some(input) = inputs.recv().await {
        let failed = match (input, &mut stdin) {
            (Input::Stdin(data), Some(stdin)) => write(stdin, &data).await.is_err(),
            (Input::End, _) => true,
            _ => false,
        };
        if failed {
            // The command finds the end, or has closed its end already.
            stdin = None;
        }
    }
}

async fn feed_terminal(terminal: pipe::Sender, mut inputs: mpsc::Receiver<Input>, stdin: bool) {
    while let Some(input) = inputs.recv().await {
        let result = match input {
            Input::Stdin(data) if stdin => write(&terminal, &data).await,
            Input::Size(size) => resize(&terminal, size),
            Input::Stdin(_) | Input::End => Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a terminal took no more input");
        }
    }
}

/// Reads until there is nothing for now. A short read says nothing of a terminal: more may be there, of which nobody would
/// be told again.
async fn read(from: &pipe::Receiver, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

/// Writes everything, as it is read on the other side.
async fn write(to: &pipe::Sender, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        to.writable().await?;
        match to.try_write(data) {
            Ok(count) => data = &data[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Passes output on until there is no more: the end of a pipe, an error of a terminal.
async fn copy(from: pipe::Receiver, output: &TaskOutput, wrap: impl Fn(Bytes) -> Output) -> Result<(), Gone> {
    let mut buffer = vec![0; swarm_agent::MAX_OUTPUT];
    while let Ok(count @ 1..) = read(&from, &mut buffer).await {
        output.send(wrap(Bytes::copy_from_slice(&buffer[..count]))).await?;
    }
    Ok(())
}
