//! Checks whether the command is well, as container engines do.

use std::io::{self, PipeReader, Read};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{Role, steps};
use crate::dir::{TaskDir, Wellness};
use crate::launch::{Health, Launch};

/// Bytes of a check's output that are kept: the last ones.
const MOST_OUTPUT: usize = 4096;
/// How often a result that could not be written down is tried again.
const WRITE_AGAIN: Duration = Duration::from_millis(500);

/// What the checks said so far.
pub(super) struct Checks<'a> {
    health: &'a Health,
    /// When failures begin to count.
    counts_from: Option<Instant>,
    next: Option<Instant>,
    running: Option<Running>,
    failures: u32,
    said: Option<Wellness>,
    /// What was said is in the directory.
    written: bool,
}

/// A check that runs.
struct Running {
    pid: i32,
    output: Option<PipeReader>,
    text: Vec<u8>,
    deadline: Option<Instant>,
    timed_out: bool,
}

/// What a check came to.
pub(super) enum Result {
    /// Nothing that matters.
    Fine,
    /// It has failed too often: what it said last.
    Unhealthy(String),
}

fn after(millis: u64) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_millis(millis))
}

impl<'a> Checks<'a> {
    /// From the start of the command on.
    pub(super) fn new(health: &'a Health) -> Self {
        let mut checks = Checks {
            health,
            counts_from: after(health.start_period),
            next: None,
            running: None,
            failures: 0,
            said: None,
            written: true,
        };
        checks.plan_next();
        checks
    }

    /// It was never well, and may take its time.
    fn is_starting(&self) -> bool {
        self.said.is_none() && self.counts_from.is_none_or(|from| Instant::now() < from)
    }

    fn plan_next(&mut self) {
        let interval = if self.is_starting() && self.health.start_period > 0 {
            self.health.start_interval
        } else {
            self.health.interval
        };
        self.next = after(interval);
    }

    /// When [`Checks::tick`] is wanted; none if there is nothing to wait for but output or an end.
    pub(super) fn due(&self) -> Option<Instant> {
        let again = (!self.written).then(|| Instant::now() + WRITE_AGAIN);
        let check = match &self.running {
            Some(running) => running.deadline.filter(|_| !running.timed_out),
            None => self.next,
        };
        [again, check].into_iter().flatten().min()
    }

    /// Where the output of the check that runs can be read.
    pub(super) fn output(&self) -> Option<&PipeReader> {
        self.running.as_ref()?.output.as_ref()
    }

    /// Does what is due. The number is that of the command's process.
    pub(super) fn tick(&mut self, dir: &TaskDir, launch: &Launch, command: i32) -> Result {
        self.write(dir);
        self.read();
        let now = Instant::now();
        if let Some(running) = &mut self.running {
            if !running.timed_out && running.deadline.is_some_and(|deadline| deadline <= now) {
                running.timed_out = true;
                running.kill();
            }
            return Result::Fine;
        }
        if self.next.is_some_and(|next| next <= now) {
            match steps::start(dir, launch, Role::Health(command)) {
                Ok((pid, output)) => {
                    let deadline = after(self.health.timeout);
                    let text = Vec::new();
                    self.running =
                        Some(Running { pid, output: Some(output), text, deadline, timed_out: false });
                }
                Err(error) => return self.failed(dir, format!("the check could not be started: {error}")),
            }
        }
        Result::Fine
    }

    /// A child has ended; `None` if it is not the check.
    pub(super) fn ended(&mut self, dir: &TaskDir, pid: i32, code: i32) -> Option<Result> {
        self.running.as_ref().filter(|running| running.pid == pid)?;
        self.read();
        let running = self.running.take()?;
        // What it left behind is of no use to anybody. Its own number may be another's by now; its group's is not as long as
        // somebody is in it.
        let _ = killpg(Pid::from_raw(running.pid), Signal::SIGKILL);
        let text = running.text();
        Some(match (running.timed_out, code) {
            (false, 0) => {
                self.failures = 0;
                self.say(dir, Wellness::Healthy);
                self.plan_next();
                Result::Fine
            }
            (true, _) => {
                let limit = Duration::from_millis(self.health.timeout);
                self.failed(dir, format!("the check took longer than {limit:?}"))
            }
            (false, code) if text.is_empty() => {
                self.failed(dir, format!("the check ended with exit code {code}"))
            }
            (false, code) => self.failed(dir, format!("the check ended with exit code {code}: {text}")),
        })
    }

    fn failed(&mut self, dir: &TaskDir, why: String) -> Result {
        if !self.is_starting() {
            self.failures += 1;
        }
        self.plan_next();
        if self.failures < self.health.retries {
            return Result::Fine;
        }
        self.say(dir, Wellness::Unhealthy);
        self.next = None;
        Result::Unhealthy(why)
    }

    fn say(&mut self, dir: &TaskDir, wellness: Wellness) {
        if self.said != Some(wellness) {
            self.said = Some(wellness);
            self.written = false;
            self.write(dir);
        }
    }

    fn write(&mut self, dir: &TaskDir) {
        if let (false, Some(wellness)) = (self.written, self.said) {
            match dir.set_health(wellness) {
                Ok(()) => self.written = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.written = true,
                Err(error) => eprintln!("writing down the health: {error}"),
            }
        }
    }

    fn read(&mut self) {
        let Some(running) = &mut self.running else { return };
        let Some(output) = &mut running.output else { return };
        let mut buffer = [0; 4096];
        loop {
            match output.read(&mut buffer) {
                Ok(0) => {
                    running.output = None;
                    return;
                }
                Ok(count) => {
                    running.text.extend_from_slice(&buffer[..count]);
                    let surplus = running.text.len().saturating_sub(MOST_OUTPUT);
                    running.text.drain(..surplus);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

impl Running {
    /// Its whole group, and itself if it has not come so far as to lead one. It has not been waited for.
    fn kill(&self) {
        let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = nix::sys::signal::kill(Pid::from_raw(self.pid), Signal::SIGKILL);
    }

    /// The last line that says something.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.text);
        text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
    }
}
