//! Into a container that runs: commands in it, and its own input and output.

use std::time::Duration;

use bollard::errors::Error as Api;
use bollard::exec::CreateExecOptions;
use bollard::query_parameters::{
    InspectContainerOptions, ResizeContainerTTYOptionsBuilder, ResizeExecOptionsBuilder,
};
use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::json;
use swarm_agent::{AttachOptions, ExecOptions, Gone, Input, Output, Size, TaskIo, TaskOutput};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::client::Engine;
use crate::demux::{Demux, Origin};
use crate::error;
use crate::leftover;

/// What failed, and how.
type Failure = (&'static str, Api);
type Connection = TokioIo<Upgraded>;

/// Engines look for keys that detach, by default Ctrl-P and Ctrl-Q, and hold them back meanwhile. Nobody types these.
const NO_DETACH_KEYS: &str = "ctrl-^,ctrl-_,ctrl-],ctrl-\\,ctrl-^,ctrl-_";
/// How often, and in what time, an engine is asked again for what it has in a moment.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Executes a command. Returns its exit code.
pub(crate) async fn exec(
    engine: &Engine,
    name: &str,
    options: ExecOptions,
    io: TaskIo,
) -> Result<i32, Failure> {
    let failed = |error| ("executing a command failed", error);
    let text = |text: String| (!text.is_empty()).then_some(text);
    let (stdin, tty, size) = (options.stdin, options.tty, options.size);
    let create = CreateExecOptions {
        attach_stdin: Some(stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(tty),
        detach_keys: Some(NO_DETACH_KEYS.to_owned()),
        env: (!options.env.is_empty()).then_some(options.env),
        cmd: Some(options.command),
        privileged: None,
        user: text(options.user),
        working_dir: text(options.dir),
    };
    let id = engine.docker.create_exec(name, create).await.map_err(failed)?.id;
    let start = json!({ "Detach": false, "Tty": tty });
    let connection = engine.hijack(&format!("/exec/{id}/start"), Some(start)).await.map_err(failed)?;
    let terminal = Terminal { engine, id: &id, exec: true };
    let carried = carry(connection, terminal, (tty, stdin), size, io).await;
    if carried.is_err() {
        leftover::end(&engine.docker, &id).await;
        return Ok(0); // nobody is there to hear it
    }
    for _ in 0..ATTEMPTS {
        let seen = engine.docker.inspect_exec(&id).await.map_err(failed)?;
        // The output ends a moment before the engine takes note of the exit code.
        if let (Some(false), Some(code)) = (seen.running, seen.exit_code) {
            return Ok(i32::try_from(code).unwrap_or(i32::MAX));
        }
        sleep(PAUSE).await;
    }
    // What it left behind in the background has closed its output: it is not waited for.
    leftover::end(&engine.docker, &id).await;
    let error = std::io::Error::other("its output has ended, but the engine does not say how it did itself");
    Err(("executing a command failed", Api::IOError { err: error }))
}

/// Joins the container's own process. Returns its exit code when it ends.
pub(crate) async fn attach(
    engine: &Engine,
    name: &str,
    (tty, stdin): (bool, bool),
    options: AttachOptions,
    io: TaskIo,
) -> Result<i32, Failure> {
    let failed = |error| ("attaching to the container failed", error);
    let stdin = stdin && options.stdin;
    // Percent-encoded, as a part of an address.
    let keys: String = NO_DETACH_KEYS.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let path = format!(
        "/containers/{name}/attach?stream=1&stdout=1&stderr=1&stdin={}&detachKeys={keys}",
        u8::from(stdin)
    );
    let connection = engine.hijack(&path, None).await.map_err(failed)?;
    let terminal = Terminal { engine, id: name, exec: false };
    if carry(connection, terminal, (tty, stdin), options.size, io).await.is_err() {
        return Ok(0); // nobody is there to hear it
    }
    for _ in 0..ATTEMPTS {
        let seen =
            engine.docker.inspect_container(name, None::<InspectContainerOptions>).await.map_err(failed)?;
        let state = seen.state.unwrap_or_default();
        if state.running == Some(false) {
            return Ok(state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(i32::MAX));
        }
        sleep(PAUSE).await;
    }
    let error = std::io::Error::other("the engine has ended the connection, and the container goes on");
    Err(("attaching to the container failed", Api::IOError { err: error }))
}

/// Whose terminal it is.
#[derive(Clone, Copy)]
struct Terminal<'a> {
    engine: &'a Engine,
    id: &'a str,
    exec: bool,
}

impl Terminal<'_> {
    async fn resize(&self, size: Size) -> Result<(), Api> {
        let (rows, columns) = (i32::from(size.rows), i32::from(size.columns));
        let docker = &self.engine.docker;
        if self.exec {
            let options = ResizeExecOptionsBuilder::new().h(rows).w(columns).build();
            docker.resize_exec(self.id, options).await
        } else {
            let options = ResizeContainerTTYOptionsBuilder::new().h(rows).w(columns).build();
            docker.resize_container_tty(self.id, options).await
        }
    }

    /// An engine may take a moment until the terminal is there.
    async fn first_size(&self, size: Size) {
        for _ in 0..ATTEMPTS {
            match self.resize(size).await {
                Ok(()) => return,
                Err(error) => tracing::trace!(reason = error::chain(&error), "the terminal has no size yet"),
            }
            sleep(PAUSE).await;
        }
    }
}

/// Carries input and output until the output ends.
async fn carry(
    connection: Connection,
    terminal: Terminal<'_>,
    (tty, stdin): (bool, bool),
    size: Option<Size>,
    io: TaskIo,
) -> Result<(), Gone> {
    let (reader, writer) = split(connection);
    let (inputs, output) = io.split();
    output.send(Output::Started { stdin, tty }).await?;
    let input = async {
        if let (true, Some(size)) = (tty, size) {
            terminal.first_size(size).await;
        }
        feed(writer, inputs, terminal, (tty, stdin)).await;
        // Its end is not the session's.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = read(reader, &output, tty) => result,
        () = input => Ok(()),
        () = output.gone() => Err(Gone),
    }
}

/// Writes what comes in. A process that takes no more of it may go on.
async fn feed(
    mut writer: WriteHalf<Connection>,
    mut inputs: mpsc::Receiver<Input>,
    terminal: Terminal<'_>,
    (tty, stdin): (bool, bool),
) {
    let mut open = stdin;
    while let Some(input) = inputs.recv().await {
        match input {
            Input::Stdin(data) if open => {
                open = writer.write_all(&data).await.is_ok() && writer.flush().await.is_ok();
            }
            // Engines take the end of the connection's input for the end of the process's.
            Input::End if open => {
                open = false;
                let _ = writer.shutdown().await;
            }
            Input::Size(size) if tty => {
                if let Err(error) = terminal.resize(size).await {
                    tracing::debug!(reason = error::chain(&error), "a terminal could not be resized");
                }
            }
            _ => {}
        }
    }
}

async fn read(mut reader: ReadHalf<Connection>, output: &TaskOutput, tty: bool) -> Result<(), Gone> {
    let mut buffer = vec![0; swarm_agent::MAX_OUTPUT];
    let mut demux = Demux::default();
    loop {
        let count = match reader.read(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => {
                tracing::debug!(%error, "the connection with a container was lost");
                return Ok(());
            }
        };
        let data = Bytes::copy_from_slice(&buffer[..count]);
        if tty {
            output.send(Output::Stdout(data)).await?;
            continue;
        }
        for piece in demux.push(data) {
            let output_of = match piece.origin {
                Origin::Stdout => Output::Stdout,
                Origin::Stderr | Origin::Engine => Output::Stderr,
            };
            output.send(output_of(piece.data)).await?;
        }
    }
}
