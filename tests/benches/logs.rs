//! Logs of native processes, from their files to what `swarmctl` prints into a pipe that is read as fast as it comes: one
//! manager that runs all tasks, then one beside two workers, asked at the leader. Lines have 100 bytes. Needs release
//! builds of the programs: `cargo build --release --bins`, then `cargo bench -p swarm-tests --bench logs`.
#![allow(missing_docs)]

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use swarm_testkit::daemon::{Cluster, Engine, program};
use swarm_testkit::wait::until;
use swarm_tests::create;
use swarm_tests::logs::{Memory, ctl, lines, numbers, writers};

const LIMIT: Duration = Duration::from_secs(300);
const TOTAL: u64 = 4_000_000;
const LINE: u64 = 100;

#[tokio::main]
async fn main() -> Result<()> {
    for (workers, tasks) in [(0, 1), (0, 100), (2, 100)] {
        measure(workers, tasks).await?;
    }
    Ok(())
}

async fn measure(workers: usize, tasks: u64) -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, workers).await?;
    if workers > 0 {
        // The manager's figures are then those of the broker alone.
        cluster.ctl_ok(&["node", "drain", "manager"])?;
    }
    let each = TOTAL / tasks;
    let service = create(&mut cluster, writers("bench", tasks, &numbers(each))).await?;
    let count = usize::try_from(tasks)?;
    cluster.running(&service, count, LIMIT).await?;
    until("everything to be written", LIMIT, || async {
        let output = ctl(&cluster.socket(), &["service", "logs", "bench", "--tail", "1"])?;
        let last = lines(&output.stdout)?;
        let done = last.iter().filter(|(_, text)| text.parse() == Ok(each)).count();
        ensure!(done == count, "{done}");
        Ok(())
    })
    .await?;
    let daemons: Vec<(String, u32)> = std::iter::once(&cluster.manager)
        .chain(&cluster.workers)
        .map(|daemon| Ok((daemon.name.clone(), daemon.pid().context("it runs")?)))
        .collect::<Result<_>>()?;
    for round in 1..=3 {
        let memory = Memory::watch(daemons.clone())?;
        let before: Vec<f64> = daemons.iter().map(|(_, pid)| cpu(*pid)).collect::<Result<_>>()?;
        let began = Instant::now();
        let client = read(&cluster.socket(), &["service", "logs", "bench"])?;
        let time = began.elapsed().as_secs_f64();
        let mut figures = String::new();
        for ((name, pid), before) in daemons.iter().zip(before) {
            figures += &format!(", {name} {:.2} cores", (cpu(*pid)? - before) / time);
        }
        println!(
            "{tasks} tasks, {workers} workers, round {round}: {:.1} MB/s{figures}, swarmctl {:.2} cores; memory grew \
             by {:?}",
            (TOTAL * LINE) as f64 / 1e6 / time,
            client / time,
            memory.growth()?
        );
    }
    Ok(())
}

/// Runs `swarmctl`, reads what it prints, and returns the seconds of CPU that it took.
fn read(socket: &Path, args: &[&str]) -> Result<f64> {
    let mut command = Command::new(program("swarmctl")?);
    let mut child = command.arg("--socket").arg(socket).args(args).stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().context("it was asked for")?;
    let (mut buffer, mut bytes, mut used) = (vec![0; 1 << 20], 0u64, 0.0);
    loop {
        let count = output.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        bytes += count as u64;
        used = cpu(child.id()).unwrap_or(used);
    }
    let status = child.wait()?;
    ensure!(status.success() && bytes > TOTAL * LINE, "{status}, {bytes} bytes");
    Ok(used)
}

/// Seconds of CPU that a process has taken.
fn cpu(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("no name")?.split_whitespace().collect();
    let ticks = |index: usize| -> Result<f64> { Ok(fields.get(index).context("too short")?.parse::<f64>()?) };
    // In hundredths of a second, on every Linux.
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}
