//! Commands in tasks, as controllers execute them, and what they write.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use swarm_agent::{
    AttachOptions, Controller, ControllerError, ExecOptions, Input, Output, TaskIo, TaskIoPeer,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What was written so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// It has begun: with a standard input, with a terminal.
    pub started: Option<(bool, bool)>,
    /// From the standard output, or the terminal.
    pub out: Vec<u8>,
    /// From the standard error.
    pub err: Vec<u8>,
}

impl Written {
    /// The output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// What was written to the standard error, as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.err).into_owned()
    }
}

/// A command in a task, or an attached task.
pub struct Visit {
    input: mpsc::Sender<Input>,
    gone: CancellationToken,
    written: watch::Receiver<Written>,
    work: JoinHandle<Result<i32, ControllerError>>,
}

/// A command of a shell, with nothing else.
pub fn shell(script: &str) -> ExecOptions {
    ExecOptions {
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        stdin: false,
        tty: false,
        size: None,
        user: String::new(),
        dir: String::new(),
        env: Vec::new(),
    }
}

impl Visit {
    /// Executes a command.
    pub fn exec(task: &Arc<dyn Controller>, options: ExecOptions) -> Visit {
        let task = task.clone();
        Visit::start(|io| tokio::spawn(async move { task.exec(options, io).await }))
    }

    /// Attaches to a task.
    pub fn attach(task: &Arc<dyn Controller>, options: AttachOptions) -> Visit {
        let task = task.clone();
        Visit::start(|io| tokio::spawn(async move { task.attach(options, io).await }))
    }

    fn start(begin: impl FnOnce(TaskIo) -> JoinHandle<Result<i32, ControllerError>>) -> Visit {
        let (io, TaskIoPeer { input, mut output, gone }) = TaskIo::new();
        let (sender, written) = watch::channel(Written::default());
        tokio::spawn(async move {
            while let Some(item) = output.recv().await {
                sender.send_modify(|written| match item {
                    Output::Started { stdin, tty } => written.started = Some((stdin, tty)),
                    Output::Stdout(data) => written.out.extend(data),
                    Output::Stderr(data) => written.err.extend(data),
                });
            }
        });
        Visit { input, gone, written, work: begin(io) }
    }

    /// Sends something. What nobody wants any more is lost.
    pub async fn send(&self, input: Input) {
        let _ = self.input.send(input).await;
    }

    /// Types something.
    pub async fn say(&self, text: &str) {
        self.send(Input::Stdin(Bytes::copy_from_slice(text.as_bytes()))).await;
    }

    /// Waits until it has begun.
    ///
    /// # Errors
    /// If it ends before.
    pub async fn started(&mut self) -> Result<()> {
        let seen = self.written.wait_for(|written| written.started.is_some()).await.is_ok();
        ensure!(seen, "it never began");
        Ok(())
    }

    /// Waits until its output has this in it.
    ///
    /// # Errors
    /// If it ends before.
    pub async fn until(&mut self, text: &str) -> Result<()> {
        let seen = self.written.wait_for(|written| written.text().contains(text)).await.is_ok();
        ensure!(seen, "it ended without {text:?}: {:?}", self.written.borrow());
        Ok(())
    }

    /// Waits for its end: how, and with which output.
    ///
    /// # Errors
    /// If it panics.
    pub async fn end(mut self) -> Result<(Result<i32, ControllerError>, Written)> {
        let result = self.work.await.context("it panicked")?;
        // The sender is gone when all of it is there.
        while self.written.changed().await.is_ok() {}
        let written = self.written.borrow().clone();
        Ok((result, written))
    }

    /// Goes away, and waits until that has been noticed.
    ///
    /// # Errors
    /// If it panics.
    pub async fn leave(self) -> Result<Result<i32, ControllerError>> {
        self.gone.cancel();
        self.work.await.context("it panicked")
    }
}
