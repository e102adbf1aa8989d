//! One task's process, seen from the daemon.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use swarm_agent::memory::MemoryDir;
use swarm_agent::{
    AttachOptions, Controller, ControllerError, ExecOptions, Gone, LogOptions, LogSink, Stats, TaskIo,
};
use swarm_api::Shared;
use swarm_api::v1::{ContainerStatus, PortStatus, Task};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::dir::{Exit, Running, State, TaskDir, Wellness};
use crate::executor::Parts;
use crate::files::TaskFiles;
use crate::launch::{Launch, MARKER};
use crate::outcome::{HOST_RESTARTED, SHIM_LOST, fatal, result, start_error};
use crate::shim::{Request, SHIM_ARG, Word};
use crate::{output, procfs, session, stats};

/// Time between two looks where there is nothing to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A shim says its first word within this time, or is stuck.
const FIRST_WORD: Duration = Duration::from_secs(30);
/// A shim ends within this time after its command had to.
const SHIM_GRACE: Duration = Duration::from_secs(15);
/// How long killed processes may take to vanish.
const KILL_LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct ProcessController {
    parts: Arc<Parts>,
    task_id: String,
    node_id: String,
    pub(crate) dir: TaskDir,
    /// Absent for a task that is known by its directory only.
    pub(crate) launch: Option<Launch>,
    /// Its secrets and configs, if it has any.
    files: Option<Arc<TaskFiles>>,
    /// What the call that runs is at.
    progress: watch::Sender<String>,
}

/// Something is wrong with the task's directory; that may pass (a full disk), and the task is not at fault.
pub(crate) fn disk(error: &io::Error) -> ControllerError {
    ControllerError::Temporary(format!("the task's directory: {error}"))
}

/// Work that waits for the disk, away from the threads that others wait for.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ControllerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| disk(&error)),
        Err(error) => Err(ControllerError::Temporary(format!("work on the task's directory: {error}"))),
    }
}

impl ProcessController {
    pub(crate) fn new(
        parts: Arc<Parts>,
        task: &Task,
        dir: TaskDir,
        launch: Launch,
        files: Option<TaskFiles>,
    ) -> Self {
        let (task_id, node_id) = (task.id.clone(), task.node_id.clone());
        let (launch, files, progress) = (Some(launch), files.map(Arc::new), watch::Sender::default());
        ProcessController {
            parts,
            task_id: task_id.to_string(),
            node_id: node_id.to_string(),
            dir,
            launch,
            files,
            progress,
        }
    }

    pub(crate) fn orphan(parts: Arc<Parts>, task_id: &str, dir: TaskDir) -> Self {
        ProcessController {
            parts,
            task_id: task_id.to_owned(),
            node_id: String::new(),
            dir,
            launch: None,
            files: None,
            progress: watch::Sender::default(),
        }
    }

    /// The controller of one of its init tasks, which has a directory and a supervisor of its own.
    pub(crate) fn of_init(&self, dir: TaskDir, launch: Option<Launch>) -> Self {
        ProcessController {
            parts: self.parts.clone(),
            task_id: self.task_id.clone(),
            node_id: self.node_id.clone(),
            dir,
            launch,
            files: None,
            progress: watch::Sender::default(),
        }
    }

    /// Lets whoever waits for the call know what it is at.
    pub(crate) fn say(&self, text: impl Into<String>) {
        let text = text.into();
        self.progress.send_if_modified(|said| {
            let news = *said != text;
            *said = text;
            news
        });
    }

    /// Waits until the health check has an opinion, or the process has ended. Without a health check there is nothing to
    /// wait for.
    async fn healthy(&self) -> Result<(), ControllerError> {
        // As it was started, not as the spec may be by now.
        let Ok(Launch { health: Some(_), .. }) = self.dir.launch() else { return Ok(()) };
        // One that is not well is about to end.
        while self.dir.health().map_err(|error| disk(&error))? != Some(Wellness::Healthy) {
            match self.state()? {
                State::Ended(exit) => return start_error(&exit).map_or(Ok(()), Err),
                State::Running => {}
                // How it ended is told by those who wait for it.
                _ => return Ok(()),
            }
            self.say("started, waiting for the health check");
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Writes the files of its secrets and configs, unless they are there.
    async fn ensure_files(&self) -> Result<(), ControllerError> {
        let Some(files) = self.files.clone() else { return Ok(()) };
        match tokio::task::spawn_blocking(move || files.ensure()).await {
            Ok(done) => done,
            Err(error) => Err(ControllerError::Temporary(format!("writing files: {error}"))),
        }
    }

    /// Removes those files: nothing will read them any more.
    async fn remove_files(&self) -> Result<(), ControllerError> {
        // As it was prepared: the daemon may have another id by now.
        let written = self.dir.launch().ok().or_else(|| self.launch.clone()).and_then(|launch| launch.files);
        let Some(path) = written else { return Ok(()) };
        on_disk(move || MemoryDir::known(path).remove()).await
    }

    async fn delete(&self) -> Result<(), ControllerError> {
        let dir = self.dir.clone();
        on_disk(move || dir.delete()).await
    }

    fn state(&self) -> Result<State, ControllerError> {
        self.dir.state().map_err(|error| disk(&error))
    }

    /// Starts a shim; its first word, or `None` if it said nothing.
    async fn start_shim(&self) -> io::Result<Option<Word>> {
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(self.dir.shim_log())?;
        let mut child = Command::new(&self.parts.program)
            .arg(SHIM_ARG)
            .arg(self.dir.path())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let stdout = child.stdout.take();
        let stop = self.parts.stop.clone();
        // Only so that it is no zombie: what it has to say is in the directory.
        self.parts.shims.spawn(async move {
            let _ = stop.run_until_cancelled(child.wait()).await;
        });
        let mut line = String::new();
        if let Some(stdout) = stdout {
            let read = timeout(FIRST_WORD, BufReader::new(stdout).read_line(&mut line)).await;
            read.map_err(|_| io::Error::other("the supervisor does not answer"))??;
        }
        Ok(Word::parse(&line))
    }

    /// The last line that a shim wrote about its own trouble.
    fn shim_trouble(&self) -> String {
        let text = std::fs::read_to_string(self.dir.shim_log()).unwrap_or_default();
        text.lines().last().unwrap_or("it ended without a word").to_owned()
    }

    /// What runs.
    fn runs(&self) -> Result<Running, ControllerError> {
        let running = self.dir.running().map_err(|error| disk(&error))?;
        match (self.state()?, running) {
            (State::Running, Some(running)) => Ok(running),
            _ => Err(fatal("the task does not run")),
        }
    }

    /// Waits until a shim that runs has ended, or is gone already.
    async fn shim_end(&self) -> Result<(), ControllerError> {
        let opened = pipe::OpenOptions::new().open_receiver(self.dir.alive());
        let mut alive = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| disk(&error))?,
        };
        // Opened first, so that a shim that runs now holds the other end.
        if self.state()? == State::Running {
            let mut nothing = [0; 1];
            alive.read(&mut nothing).await.map_err(|error| disk(&error))?;
            // The pipe is closed a moment before the lock is free.
            while self.state()? == State::Running && !self.has_writer().await? {
                sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// Whether anybody holds the writing end of the shim's pipe.
    async fn has_writer(&self) -> Result<bool, ControllerError> {
        let mut alive =
            pipe::OpenOptions::new().open_receiver(self.dir.alive()).map_err(|error| disk(&error))?;
        let mut nothing = [0; 1];
        Ok(timeout(Duration::from_millis(1), alive.read(&mut nothing)).await.is_err())
    }

    /// Hands a request to the shim; `false` if there is none.
    fn request(&self, request: &Request) -> Result<bool, ControllerError> {
        use std::io::Write as _;
        let opened =
            OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(self.dir.control());
        let written = opened.and_then(|mut pipe| pipe.write_all(request.line().as_bytes()));
        match written {
            Ok(()) => Ok(true),
            // Nobody reads, or everything is gone.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(disk(&error)),
        }
    }

    /// Ends the process, with the request and within the time; then by force.
    async fn end(&self, request: &Request, time: Duration) -> Result<(), ControllerError> {
        let deadline = Instant::now() + time + SHIM_GRACE;
        loop {
            match self.state()? {
                State::Absent | State::Ended(_) => return Ok(()),
                State::Lost => self.bury().await?,
                State::Prepared => self.never_start()?,
                State::Running => {
                    let asked = self.request(request)?;
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        tracing::warn!(task.id = self.task_id, "the supervisor does not end: killing it");
                        self.kill_shim()?;
                    }
                    if asked {
                        // A timeout is found by the next round.
                        if let Ok(ended) = timeout(left, self.shim_end()).await {
                            ended?;
                        }
                    }
                    sleep(LOOK_AGAIN).await;
                }
            }
        }
    }

    /// Makes sure that nothing starts any more, not even by a shim that is on its way.
    fn never_start(&self) -> Result<(), ControllerError> {
        // Else a shim has just begun: the caller looks again.
        if let Some(_lock) = self.dir.lock().map_err(|error| disk(&error))?
            && self.dir.mark_started().map_err(|error| disk(&error))?
        {
            let exit = Exit { never_started: true, ..Exit::default() };
            self.dir.set_exit(&exit).map_err(|error| disk(&error))?;
        }
        Ok(())
    }

    /// Kills a shim that is stuck; the command dies with it.
    fn kill_shim(&self) -> Result<(), ControllerError> {
        let Some(running) = self.dir.running().map_err(|error| disk(&error))? else { return Ok(()) };
        let shim = procfs::Stat::read(running.process.pid).filter(|_| running.process.lives());
        if let Some(shim) = shim.filter(|stat| stat.parent > 1) {
            procfs::signal(shim.parent, Signal::SIGKILL)
                .map_err(|error| fatal(format!("killing: {error}")))?;
        }
        Ok(())
    }

    /// Kills what is left of a task whose shim is gone, and writes down that nobody knows how it ended.
    async fn bury(&self) -> Result<(), ControllerError> {
        let Some(_lock) = self.dir.lock().map_err(|error| disk(&error))? else { return Ok(()) };
        if self.state_within_lock()? {
            return Ok(());
        }
        let launch = self.dir.launch().ok().or_else(|| self.launch.clone());
        let running = self.dir.running().map_err(|error| disk(&error))?;
        let group = launch.as_ref().and_then(|launch| launch.group.as_ref());
        let deadline = Instant::now() + KILL_LIMIT;
        loop {
            let mut rest =
                procfs::of_task(MARKER, &self.task_id, running.as_ref().map(|running| &running.process));
            if let Some(group) = group {
                group.kill();
                rest.extend(group.members());
            }
            if rest.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                return Err(ControllerError::Temporary(format!(
                    "processes of the task can't be killed: {rest:?}"
                )));
            }
            for pid in rest {
                if let Err(error) = procfs::signal(pid, Signal::SIGKILL) {
                    tracing::warn!(task.id = self.task_id, pid, %error, "can't kill a process");
                }
            }
            sleep(LOOK_AGAIN).await;
        }
        if let Some(group) = group {
            group.remove();
        }
        let restarted = running.is_some_and(|running| running.process.boot != procfs::boot_id());
        let error = if restarted { HOST_RESTARTED } else { SHIM_LOST };
        tracing::warn!(task.id = self.task_id, node.id = self.node_id, reason = error, "process lost");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let exit = Exit {
            code: 137,
            signal: Some(9),
            error: Some(error.to_owned()),
            ended_at: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            ..Exit::default()
        };
        self.dir.set_exit(&exit).map_err(|error| disk(&error))
    }

    /// With the lock in our own hand: whether the end is written down by now.
    fn state_within_lock(&self) -> Result<bool, ControllerError> {
        Ok(self.dir.exit().map_err(|error| disk(&error))?.is_some())
    }
}

#[async_trait]
impl Controller for ProcessController {
    async fn update(&self, _: &Shared<Task>) -> Result<(), ControllerError> {
        // A process can't become another one: what matters of a task does not change.
        Ok(())
    }

    async fn prepare(&self) -> Result<(), ControllerError> {
        let launch = self.launch.as_ref().ok_or(ControllerError::UnsupportedRuntime)?;
        match self.state()? {
            State::Absent => {}
            _ => return Err(ControllerError::AlreadyPrepared),
        }
        self.ensure_files().await?;
        self.run_init_tasks(launch).await?;
        let (dir, launch) = (self.dir.clone(), launch.clone());
        match on_disk(move || dir.prepare(&launch)).await? {
            true => Ok(()),
            false => Err(ControllerError::AlreadyPrepared),
        }
    }

    async fn start(&self) -> Result<(), ControllerError> {
        let deadline = Instant::now() + FIRST_WORD;
        loop {
            match self.state()? {
                State::Absent => return Err(fatal("starting process failed: it is not prepared")),
                State::Ended(exit) => {
                    return Err(start_error(&exit).unwrap_or(ControllerError::AlreadyStarted));
                }
                State::Lost => return Err(ControllerError::AlreadyStarted),
                // Somebody's shim is at it: until it has written down the process, or an end.
                State::Running => match self.dir.running().map_err(|error| disk(&error))? {
                    Some(_) => {
                        self.healthy().await?;
                        return Err(ControllerError::AlreadyStarted);
                    }
                    None if Instant::now() > deadline => {
                        return Err(ControllerError::Temporary(
                            "the supervisor does not start the process".to_owned(),
                        ));
                    }
                    None => sleep(LOOK_AGAIN).await,
                },
                State::Prepared => {
                    // A restart of the host takes them away.
                    self.ensure_files().await?;
                    let word = self.start_shim().await;
                    match word.map_err(|error| {
                        ControllerError::Temporary(format!("starting the supervisor: {error}"))
                    })? {
                        Some(Word::Started) => {
                            tracing::debug!(
                                task.id = self.task_id,
                                node.id = self.node_id,
                                "process started"
                            );
                            return self.healthy().await;
                        }
                        Some(Word::Failed | Word::Taken) => sleep(LOOK_AGAIN).await,
                        None if self.state()? == State::Prepared => {
                            let trouble = self.shim_trouble();
                            return Err(fatal(format!("starting process failed: the supervisor: {trouble}")));
                        }
                        None => {}
                    }
                }
            }
        }
    }

    async fn wait(&self) -> Result<(), ControllerError> {
        loop {
            match self.state()? {
                State::Absent => return Err(fatal("the process's directory is gone")),
                State::Prepared => return Err(fatal("the process was never started")),
                State::Ended(exit) => {
                    self.remove_files().await?;
                    return result(&exit);
                }
                State::Lost => self.bury().await?,
                State::Running => self.shim_end().await?,
            }
        }
    }

    async fn shutdown(&self) -> Result<(), ControllerError> {
        // As it was prepared, not as the spec may be by now.
        let launch = self.dir.launch().ok().or_else(|| self.launch.clone());
        self.end_init_tasks(false).await?;
        let Some(launch) = launch else { return Ok(()) };
        if !launch.pre_stop.is_empty() && self.state()? == State::Running {
            self.say("stopping, with the pre-stop command first");
        }
        let grace = Duration::from_millis(launch.stop_grace_ms);
        let request = Request::Stop { signal: launch.stop_signal, grace_ms: launch.stop_grace_ms };
        self.end(&request, grace).await?;
        self.remove_files().await
    }

    async fn terminate(&self) -> Result<(), ControllerError> {
        self.end_init_tasks(true).await?;
        self.end(&Request::Kill, Duration::ZERO).await
    }

    async fn remove(&self) -> Result<(), ControllerError> {
        self.shutdown().await?;
        self.remove_files().await?;
        loop {
            // With the lock no shim can begin while the directory goes.
            let lock = match self.dir.lock() {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(disk(&error)),
            };
            if lock.is_none() {
                self.terminate().await?;
                sleep(LOOK_AGAIN).await;
                continue;
            }
            if let Ok(Launch { group: Some(group), .. }) = self.dir.launch() {
                group.remove();
            }
            return self.delete().await;
        }
        // What never became a task.
        self.delete().await
    }

    async fn container_status(&self) -> Option<ContainerStatus> {
        let (pid, exit_code) = match self.state().ok()? {
            State::Absent | State::Prepared | State::Lost => return None,
            State::Running => (self.dir.running().ok()??.process.pid, 0),
            State::Ended(exit) => (0, exit.code),
        };
        Some(ContainerStatus { container_id: self.task_id.clone(), pid, exit_code })
    }

    async fn port_status(&self) -> Option<PortStatus> {
        // A process takes its ports by itself.
        None
    }

    fn progress(&self) -> Option<watch::Receiver<String>> {
        Some(self.progress.subscribe())
    }

    async fn exec(&self, options: ExecOptions, io: TaskIo) -> Result<i32, ControllerError> {
        let running = self.runs()?;
        let task_ends = async {
            if let Err(error) = self.shim_end().await {
                tracing::warn!(task.id = self.task_id, %error, "the end of a task can't be seen");
                std::future::pending::<()>().await;
            }
        };
        session::exec(&self.parts, &self.dir, running.process.pid, options, io, task_ends).await
    }

    /// A process has no standard input; its output is in its log.
    async fn attach(&self, _: AttachOptions, io: TaskIo) -> Result<i32, ControllerError> {
        self.runs()?;
        let (_inputs, output) = io.split();
        match output::show(&self.dir, &output).await? {
            Ok(exit) => Ok(exit.code),
            Err(Gone) => Ok(0), // nobody is there to hear it
        }
    }

    async fn stats(&self) -> Result<Stats, ControllerError> {
        let running = self.runs()?;
        let dir = self.dir.clone();
        on_disk(move || Ok(stats::of(&dir.launch()?, &running))).await
    }

    async fn logs(&self, options: LogOptions, sink: LogSink) -> Result<(), ControllerError> {
        output::copy(&self.dir, &options, &sink).await
    }
}
