//! Tasks that write, and what `swarmctl` shows of it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use prost_types::Any;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::{ServiceSpec, task_spec};
use swarm_testkit::daemon::program;

use crate::process_service;

/// A service of native processes that run a script of the shell; all it writes is kept.
pub fn writers(name: &str, replicas: u64, script: &str) -> ServiceSpec {
    let mut spec = process_service(name, replicas);
    let process = ProcessSpec {
        command: vec!["/bin/sh".into(), "-c".into()],
        args: vec![script.into()],
        stop_grace_period: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        log_max_size: 1 << 30,
        ..Default::default()
    };
    if let Some(task_spec::Runtime::Generic(generic)) = &mut spec.task.runtime {
        generic.payload = Some(Any::from_msg(&process).unwrap_or_default());
    }
    spec
}

/// A line of `writers` that writes the numbers from 1 to `count`, one a line of 100 bytes, and then does nothing.
pub fn numbers(count: u64) -> String {
    format!("seq -f %099.0f {count}; exec sleep 1000000")
}

/// Runs `swarmctl` to its end against a socket.
pub fn ctl(socket: &Path, args: &[&str]) -> Result<Output> {
    Ok(Command::new(program("swarmctl")?).arg("--socket").arg(socket).args(args).output()?)
}

/// The lines of an output, cut into what stands before and behind the mark.
pub fn lines(output: &[u8]) -> Result<Vec<(String, String)>> {
    let text = std::str::from_utf8(output)?;
    let cut = |line: &str| {
        let (source, text) = line.split_once("❯ ").with_context(|| format!("{line:?} has no prefix"))?;
        Ok((source.to_owned(), text.to_owned()))
    };
    text.lines().map(cut).collect()
}

/// What `numbers` writes has come from each of so many tasks: every line once, and in order.
pub fn check_numbers(output: &[u8], tasks: usize, count: u64) -> Result<()> {
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for (source, text) in lines(output)? {
        let expected = next.entry(source.clone()).or_insert(1);
        ensure!(text.len() == 99, "{source}: a line of {} bytes", text.len());
        ensure!(text.parse() == Ok(*expected), "{source}: {text:?} where {expected} was expected");
        *expected += 1;
    }
    ensure!(next.len() == tasks, "lines of {:?}", next.keys());
    ensure!(next.values().all(|next| *next == count + 1), "{next:?}");
    Ok(())
}

/// A `swarmctl` that runs, and what it has printed. It is ended with this.
pub struct Running {
    child: Child,
    lines: Arc<parking_lot::Mutex<Vec<String>>>,
}

impl Running {
    /// Starts it, and reads its standard output from now on.
    pub fn start(socket: &Path, args: &[&str]) -> Result<Running> {
        let mut child = spawn(socket, args)?;
        let output = child.stdout.take().context("it was asked for")?;
        let lines = Arc::<parking_lot::Mutex<Vec<String>>>::default();
        let into = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                into.lock().push(line);
            }
        });
        Ok(Running { child, lines })
    }

    /// Lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }

    /// How many there are so far.
    pub fn count(&self) -> usize {
        self.lines.lock().len()
    }

    /// It has not ended.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `swarmctl` whose standard output nobody reads until it is asked for.
pub struct Stalled(Child);

impl Stalled {
    /// Starts it.
    pub fn start(socket: &Path, args: &[&str]) -> Result<Stalled> {
        Ok(Stalled(spawn(socket, args)?))
    }

    /// Reads lines from now on, and counts them for as long as `go_on` says so.
    pub fn count_while(mut self, go_on: impl Fn(u64) -> bool) -> Result<u64> {
        let output = self.0.stdout.take().context("it was asked for")?;
        let count = AtomicU64::new(0);
        for line in BufReader::new(output).lines() {
            line?;
            if !go_on(count.fetch_add(1, Ordering::Relaxed) + 1) {
                break;
            }
        }
        Ok(count.into_inner())
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(socket: &Path, args: &[&str]) -> Result<Child> {
    let mut command = Command::new(program("swarmctl")?);
    command.arg("--socket").arg(socket).args(args);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?)
}

/// Memory of processes, and how much it has grown at most.
#[derive(Debug)]
pub struct Memory(Vec<(String, u32, u64)>);

impl Memory {
    /// From now on: what these processes had before does not count.
    pub fn watch(processes: impl IntoIterator<Item = (String, u32)>) -> Result<Memory> {
        let mut all = Vec::new();
        for (name, pid) in processes {
            // Makes the kernel forget the highest mark.
            std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
            all.push((name, pid, resident(pid, "VmRSS")?));
        }
        Ok(Memory(all))
    }

    /// Name and greatest growth, in bytes.
    pub fn growth(&self) -> Result<Vec<(String, u64)>> {
        let growth = |(name, pid, before): &(String, u32, u64)| {
            Ok((name.clone(), resident(*pid, "VmHWM")?.saturating_sub(*before)))
        };
        self.0.iter().map(growth).collect()
    }
}

fn resident(pid: u32, what: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(what)).context("no such line")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib * 1024)
}
