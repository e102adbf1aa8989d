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
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};
use swarm_agent::LogStream;

use super::{EXEC_ARG, Request, Word};
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
    let exit = task.until_the_end(dir, &signals, control)?;
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
    launch: &'a Launch,
    identity: Identity,
    output: [(LogStream, Option<PipeReader>); 2],
    log: Option<Writer>,
    /// Why the command could not be executed.
    error: Option<String>,
    /// When it is killed.
    deadline: Option<Instant>,
    /// How the command itself ended.
    ended: Option<Exit>,
    /// No child is left.
    all_gone: bool,
}

/// Starts the command; the word says whether it came to be executed.
fn start<'a>(dir: &TaskDir, launch: &'a Launch) -> io::Result<(Task<'a>, Word)> {
    let (stdout, out) = io::pipe()?;
    let (stderr, err) = io::pipe()?;
    let (mut report, reporter) = io::pipe()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(EXEC_ARG)
        .arg(dir.path())
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
        launch,
        identity,
        output: [(LogStream::Stdout, Some(stdout)), (LogStream::Stderr, Some(stderr))],
        log: None,
        error: (!error.is_empty()).then_some(error),
        deadline: None,
        ended: None,
        all_gone: false,
    };
    Ok((task, word))
}

impl Task<'_> {
    /// Keeps the output and follows requests until command, leftovers and output have ended.
    fn until_the_end(mut self, dir: &TaskDir, signals: &SignalFd, mut control: File) -> io::Result<Exit> {
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
        exit.ended_at = now();
        Ok(exit)
    }

    fn wait(&self, signals: &SignalFd, control: &File, timeout: Duration) -> io::Result<()> {
        let mut fds: Vec<BorrowedFd<'_>> = vec![signals.as_fd(), control.as_fd()];
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
            }
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

    /// Asks the group to end; an earlier deadline stays.
    fn stop(&mut self, signal: i32, grace_ms: u64) {
        if self.ended.is_some() {
            return;
        }
        if let Ok(signal) = Signal::try_from(signal) {
            // The command is a child that has not been waited for: the number is still its own.
            let _ = killpg(Pid::from_raw(self.identity.pid), signal);
        }
        let deadline = Instant::now().checked_add(Duration::from_millis(grace_ms));
        self.deadline = match (self.deadline, deadline) {
            (Some(earlier), Some(deadline)) => Some(earlier.min(deadline)),
            (earlier, deadline) => earlier.or(deadline),
        };
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
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }
}
