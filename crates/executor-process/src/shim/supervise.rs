//! Starts the command, keeps its output, ends it on request, and writes down how it ended.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};
use swarm_agent::LogStream;

use super::health::{self, Checks};
use super::{EXEC_ARG, Request, Role, Word, steps};
use crate::dir::{Exit, Running, TaskDir};
use crate::launch::{Launch, MARKER};
use crate::log::Writer;
use crate::procfs::{self, Identity};

/// How often leftovers are killed again until none is left.
const KILL_AGAIN: Duration = Duration::from_millis(20);
/// After so long the rest is given up: processes stuck in the kernel can't be killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How often a shim looks whether its directory is still there, and how often it must be missing to be believed.
const CHECK_EVERY: Duration = Duration::from_secs(5);
const MISSING: u32 = 2;
/// How often, in milliseconds, and how long a full disk is tried again.
const WRITE_AGAIN: u16 = 500;
const WRITE_LIMIT: Duration = Duration::from_secs(600);

pub(super) fn run(directory: &Path) -> ExitCode {
    // Not of the daemon's terminal any more. It fails only for the leader of a group, which is as good.
    let _ = setsid();
    let _ = prctl::set_name(c"swarmd-task");
    match supervise(&TaskDir::new(directory)) {
        Ok(word) => {
            tell(&word);
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Into the shim's log.
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Says a word to the daemon, which may be gone.
fn tell(word: &Word) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{}", word.text());
    let _ = out.flush();
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn supervise(dir: &TaskDir) -> io::Result<Word> {
    let signals = SigSet::from_iter([
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ]);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let launch = dir.launch()?;
    // Open for both, so that opening does not wait and reading does not end. Before the lock: who sees the lock
    // may rely on it.
    let pipe = |path: &Path| {
        OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
    };
    let _alive = pipe(&dir.alive())?;
    let control = pipe(&dir.control())?;
    let Some(_lock) = dir.lock()? else { return Ok(Word::Taken) };
    let log = Writer::open(&dir.log(), launch.log_max_size, launch.log_max_files)?;
    if let Some(group) = &launch.group {
        group.create()?;
    }
    // Whatever the command leaves behind becomes a child of this process.
    prctl::set_child_subreaper(true)?;
    if !dir.mark_started()? {
        return Ok(Word::Taken);
    }
    let (mut task, word) = match start(dir, &launch) {
        Ok(started) => started,
        Err(error) => {
            let error = Some(format!("the supervisor could not start it: {error}"));
            dir.set_exit(&Exit { code: 126, error, ended_at: now(), ..Exit::default() })?;
            return Ok(Word::Failed);
        }
    };
    task.log = Some(log);
    if word == Word::Started {
        // Only the status shows it: a full disk is no reason to end the task.
        if let Err(error) = dir.set_running(&Running { process: task.identity.clone(), started_at: now() }) {
            eprintln!("writing down the process: {error}");
        }
        tell(&word);
    }
    let exit = task.until_the_end(&signals, control)?;
    write_down(dir, &exit)?;
    Ok(word)
}

/// Writes down how the task ended; waits for room on the disk if need be.
fn write_down(dir: &TaskDir, exit: &Exit) -> io::Result<()> {
    let limit = Instant::now() + WRITE_LIMIT;
    loop {
        match dir.set_exit(exit) {
            // Nobody will ever ask.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() < limit => {
                eprintln!("writing down the exit: {error}");
                poll(&mut [], WRITE_AGAIN)?;
            }
            other => return other,
        }
    }
}

struct Task<'a> {
    dir: &'a TaskDir,
    launch: &'a Launch,
    identity: Identity,
    output: Vec<(LogStream, Option<PipeReader>)>,
    log: Option<Writer>,
    /// Why the command could not be executed.
    error: Option<String>,
    checks: Option<Checks<'a>>,
    /// Its health check failed too often.
    unhealthy: bool,
    /// The pre-stop command was begun; while it runs, its number and the signal that follows.
    pre_stopped: bool,
    pre_stop: Option<(i32, i32)>,
    /// When it is killed.
    deadline: Option<Instant>,
    /// How the command itself ended.
    ended: Option<Exit>,
    /// No child is left.
    all_gone: bool,
}

/// Starts the command; the word says whether it came to be executed.
fn start<'a>(dir: &'a TaskDir, launch: &'a Launch) -> io::Result<(Task<'a>, Word)> {
    let (stdout, out) = io::pipe()?;
    let (stderr, err) = io::pipe()?;
    let (mut report, reporter) = io::pipe()?;
    if launch.isolation.as_ref().is_some_and(|isolation| isolation.pid) {
        // The next child is the first one of it; what is started beside it later is in there too.
        unshare(CloneFlags::CLONE_NEWPID)
            .map_err(|error| io::Error::other(format!("making a namespace of processes: {error}")))?;
    }
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(EXEC_ARG)
        .arg(dir.path())
        .arg(Role::Command.word())
        .env_clear()
        .env(MARKER, &launch.task_id)
        .stdin(Stdio::from(reporter))
        .stdout(out)
        .stderr(err);
    let child = command.spawn()?;
    // Its copies of the pipes' ends.
    drop(command);
    for reader in [&stdout, &stderr] {
        fcntl(reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    // It is a child that nobody has waited for: it is still there, if only as a zombie.
    let identity = Identity::of(pid).ok_or_else(|| io::Error::other("the command's process has vanished"))?;
    let mut error = String::new();
    report.read_to_string(&mut error)?;
    let word = if error.is_empty() { Word::Started } else { Word::Failed };
    let task = Task {
        dir,
        launch,
        identity,
        output: vec![(LogStream::Stdout, Some(stdout)), (LogStream::Stderr, Some(stderr))],
        log: None,
        error: (!error.is_empty()).then_some(error),
        checks: launch.health.as_ref().filter(|_| word == Word::Started).map(Checks::new),
        unhealthy: false,
        pre_stopped: false,
        pre_stop: None,
        deadline: None,
        ended: None,
        all_gone: false,
    };
    Ok((task, word))
}

impl Task<'_> {
    /// Keeps the output and follows requests until command, leftovers and output have ended.
    fn until_the_end(mut self, signals: &SignalFd, mut control: File) -> io::Result<Exit> {
        let dir = self.dir;
        let mut requests = Vec::new();
        let mut give_up = None;
        let (mut next_check, mut missing) = (Instant::now() + CHECK_EVERY, 0);
        loop {
            self.reap()?;
            let timeout = if self.ended.is_some() {
                let limit = *give_up.get_or_insert_with(|| Instant::now() + KILL_LIMIT);
                if self.all_gone || Instant::now() >= limit {
                    break;
                }
                self.kill();
                KILL_AGAIN
            } else {
                match self.deadline {
                    Some(deadline) if deadline <= Instant::now() => {
                        self.kill();
                        KILL_AGAIN
                    }
                    Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                    None => {
                        if Instant::now() >= next_check {
                            next_check = Instant::now() + CHECK_EVERY;
                            missing = if dir.is_missing() { missing + 1 } else { 0 };
                            if missing >= MISSING {
                                // No daemon can ever find this task again: it must not go on for ever.
                                self.stop(self.launch.stop_signal, self.launch.stop_grace_ms);
                            }
                        }
                        CHECK_EVERY
                    }
                }
            };
            let timeout = match self.check() {
                Some(due) => timeout.min(due.saturating_duration_since(Instant::now())),
                None => timeout,
            };
            self.wait(signals, &control, timeout)?;
            while let Ok(Some(signal)) = signals.read_signal() {
                if signal.ssi_signo == Signal::SIGTERM as u32 {
                    // The host stops, or somebody ends everything of the daemon.
                    self.stop(self.launch.stop_signal, self.launch.stop_grace_ms);
                }
            }
            self.requests(&mut control, &mut requests);
            self.read_output();
        }
        self.read_output();
        if let Some(log) = self.log.take() {
            log.finish();
        }
        let mut exit = self.ended.unwrap_or_default();
        if let Some(group) = &self.launch.group {
            exit.out_of_memory = group.ran_out_of_memory();
            group.remove();
        }
        exit.error = self.error;
        exit.unhealthy = self.unhealthy;
        exit.ended_at = now();
        Ok(exit)
    }

    fn wait(&self, signals: &SignalFd, control: &File, timeout: Duration) -> io::Result<()> {
        let mut fds: Vec<BorrowedFd<'_>> = vec![signals.as_fd(), control.as_fd()];
        fds.extend(self.checks.iter().filter_map(|checks| checks.output().map(AsFd::as_fd)));
        fds.extend(self.output.iter().filter_map(|(_, pipe)| pipe.as_ref().map(AsFd::as_fd)));
        let mut fds: Vec<_> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // Rounded up, so that a deadline has passed when it wakes.
        let timeout = timeout.saturating_add(Duration::from_micros(999));
        match poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::NONE)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes note of every child that has ended.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            let (pid, exit) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit { code, ..Exit::default() }),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    let number = signal as i32;
                    (pid, Exit { code: 128 + number, signal: Some(number), ..Exit::default() })
                }
                Ok(WaitStatus::StillAlive) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => {
                    self.all_gone = true;
                    return Ok(());
                }
                // A real-time signal, for which the library has no name.
                Err(Errno::EINVAL) => {
                    (Pid::from_raw(self.identity.pid), Exit { code: 255, ..Exit::default() })
                }
                Err(error) => return Err(error.into()),
            };
            if pid.as_raw() == self.identity.pid && self.ended.is_none() {
                self.ended = Some(exit);
                continue;
            }
            let (pid, code) = (pid.as_raw(), exit.code);
            if let Some(result) = self.checks.as_mut().and_then(|checks| checks.ended(self.dir, pid, code)) {
                self.checked(result);
            }
            if let Some((_, signal)) = self.pre_stop.take_if(|(running, _)| *running == pid) {
                if code != 0 {
                    self.note(&format!("the pre-stop command ended with exit code {code}"));
                }
                self.signal(signal);
            }
        }
    }

    /// Checks the command's health if it is time; when it is the next time.
    fn check(&mut self) -> Option<Instant> {
        // Of what is to end, nobody wants to know.
        if self.ended.is_some() || self.deadline.is_some() {
            return None;
        }
        let result = self.checks.as_mut()?.tick(self.dir, self.launch, self.identity.pid);
        self.checked(result);
        self.checks.as_ref()?.due()
    }

    fn checked(&mut self, result: health::Result) {
        if let health::Result::Unhealthy(why) = result
            && self.ended.is_none()
            && self.deadline.is_none()
        {
            self.unhealthy = true;
            self.error = Some(format!("unhealthy: {why}"));
            self.stop(self.launch.stop_signal, self.launch.stop_grace_ms);
        }
    }

    /// Writes a line of its own into the task's log.
    fn note(&mut self, text: &str) {
        self.read_output();
        if let Some(log) = &mut self.log {
            log.push(LogStream::Stderr, format!("{text}\n").as_bytes(), SystemTime::now());
        }
    }

    fn requests(&mut self, control: &mut File, pending: &mut Vec<u8>) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = control.read(&mut buffer) {
            pending.extend_from_slice(&buffer[..count]);
        }
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            match Request::parse(&String::from_utf8_lossy(&line)) {
                Some(Request::Stop { signal, grace_ms }) => self.stop(signal, grace_ms),
                Some(Request::Kill) => self.deadline = Some(Instant::now()),
                None => eprintln!("unknown request: {}", String::from_utf8_lossy(&line).trim_end()),
            }
        }
    }

    /// Asks the group to end, after the pre-stop command if there is one; an earlier deadline stays.
    fn stop(&mut self, signal: i32, grace_ms: u64) {
        if self.ended.is_some() {
            return;
        }
        if !std::mem::replace(&mut self.pre_stopped, true) && !self.launch.pre_stop.is_empty() {
            match steps::start(self.dir, self.launch, Role::PreStop(self.identity.pid)) {
                Ok((pid, output)) => {
                    self.output.push((LogStream::Stderr, Some(output)));
                    self.pre_stop = Some((pid, signal));
                }
                Err(error) => self.note(&format!("the pre-stop command could not be started: {error}")),
            }
        }
        match &mut self.pre_stop {
            Some((_, later)) => *later = signal,
            None => self.signal(signal),
        }
        let deadline = Instant::now().checked_add(Duration::from_millis(grace_ms));
        self.deadline = match (self.deadline, deadline) {
            (Some(earlier), Some(deadline)) => Some(earlier.min(deadline)),
            (earlier, deadline) => earlier.or(deadline),
        };
    }

    fn signal(&self, signal: i32) {
        if let (Ok(signal), None) = (Signal::try_from(signal), &self.ended) {
            // The command is a child that has not been waited for: the number is still its own.
            let _ = killpg(Pid::from_raw(self.identity.pid), signal);
        }
    }

    /// Kills everything of the task: its group, its control group, and whatever became a child of this process.
    fn kill(&self) {
        if self.ended.is_none() {
            let _ = killpg(Pid::from_raw(self.identity.pid), Signal::SIGKILL);
        }
        let mut rest = procfs::own_children();
        if let Some(group) = &self.launch.group {
            group.kill();
            rest.extend(group.members());
        }
        let own = std::process::id() as i32;
        for pid in rest {
            if pid != own {
                let _ = procfs::signal(pid, Signal::SIGKILL);
            }
        }
    }

    fn read_output(&mut self) {
        let mut buffer = [0; 64 * 1024];
        for (stream, slot) in &mut self.output {
            let Some(pipe) = slot else { continue };
            // Not for ever, though: requests and the other stream have their turn too.
            for _ in 0..16 {
                match pipe.read(&mut buffer) {
                    Ok(0) => {
                        *slot = None;
                        break;
                    }
                    Ok(count) => {
                        if let Some(log) = &mut self.log {
                            log.push(*stream, &buffer[..count], SystemTime::now());
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
        self.output.retain(|(_, pipe)| pipe.is_some());
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }
}
