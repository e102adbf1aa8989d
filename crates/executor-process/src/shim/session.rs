//! Starts a command that somebody executes in a task, and ends it with all that it started: when the command itself has
//! ended, and when nobody is there any more. Its exit code is the command's.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getppid, setsid};

use super::{SESSION_ENV, SESSION_EXEC_ARG, Visit, isolate};
use crate::dir::TaskDir;
use crate::procfs;

/// Time between the signal that a lost terminal would send and the kill.
const GRACE: Duration = Duration::from_secs(2);
/// How often what is left is killed again, and for how long: processes stuck in the kernel can't be killed.
const KILL_AGAIN: Duration = Duration::from_millis(20);
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// What shells say of a command that can't be executed.
const NOT_EXECUTABLE: u8 = 126;

pub(super) fn run(directory: &Path) -> ExitCode {
    match supervise(directory) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("swarmd: {error}");
            ExitCode::from(NOT_EXECUTABLE)
        }
    }
}

fn supervise(directory: &Path) -> io::Result<u8> {
    let visit = std::env::var(SESSION_ENV).map_err(io::Error::other)?;
    let visit: Visit = serde_json::from_str(&visit)?;
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT]);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    // The daemon keeps the thread that started this one until it has ended.
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    if getppid().as_raw() != visit.daemon {
        return Err(io::Error::other("the daemon is gone"));
    }
    let _ = setsid();
    let _ = prctl::set_name(c"swarmd-session");
    prctl::set_child_subreaper(true)?;
    // A number there means what it means to the task.
    if TaskDir::new(directory).launch()?.isolation.is_some_and(|isolation| isolation.pid) {
        isolate::join_processes(visit.process).map_err(io::Error::other)?;
    }
    let child = Command::new("/proc/self/exe").arg(SESSION_EXEC_ARG).arg(directory).spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    // Only the command holds the ends of its pipes and its terminal from here on.
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Session { pid, code: None, all_gone: false, deadline: None }.until_the_end(&signals)
}

struct Session {
    pid: Pid,
    /// The command's exit code, once it has ended.
    code: Option<u8>,
    /// No child is left.
    all_gone: bool,
    /// When everything is killed.
    deadline: Option<Instant>,
}

impl Session {
    fn until_the_end(mut self, signals: &SignalFd) -> io::Result<u8> {
        let mut give_up = None;
        loop {
            self.reap()?;
            let now = Instant::now();
            if let Some(code) = self.code
                && (self.all_gone || now >= *give_up.get_or_insert(now + KILL_LIMIT))
            {
                return Ok(code);
            }
            let over = self.code.is_some() || self.deadline.is_some_and(|deadline| deadline <= now);
            let timeout = match self.deadline {
                _ if over => {
                    self.kill();
                    Some(KILL_AGAIN)
                }
                Some(deadline) => Some(deadline - now),
                None => None,
            };
            wait(signals, timeout)?;
            while let Ok(Some(signal)) = signals.read_signal() {
                if signal.ssi_signo != Signal::SIGCHLD as u32
                    && self.code.is_none()
                    && self.deadline.is_none()
                {
                    // It was not waited for: the number is still its own.
                    let _ = killpg(self.pid, Signal::SIGHUP);
                    self.deadline = Some(Instant::now() + GRACE);
                }
            }
        }
    }

    /// Takes note of every child that has ended.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            let (pid, code) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => {
                    self.all_gone = true;
                    return Ok(());
                }
                // A real-time signal, for which the library has no name.
                Err(Errno::EINVAL) => (self.pid, 255),
                Err(error) => return Err(error.into()),
            };
            if pid == self.pid {
                self.code.get_or_insert(u8::try_from(code).unwrap_or(u8::MAX));
            }
        }
    }

    /// Kills the command, and whatever became a child of this process.
    fn kill(&self) {
        if self.code.is_none() {
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
        for pid in procfs::own_children() {
            let _ = procfs::signal(pid, Signal::SIGKILL);
        }
    }
}

fn wait(signals: &SignalFd, timeout: Option<Duration>) -> io::Result<()> {
    let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    // Rounded up, so that a deadline has passed when it wakes.
    let timeout = timeout.map(|timeout| timeout.saturating_add(Duration::from_micros(999)));
    let timeout = timeout.and_then(|timeout| PollTimeout::try_from(timeout).ok());
    match poll(&mut fds, timeout.unwrap_or(PollTimeout::NONE)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
