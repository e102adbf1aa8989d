//! What an agent costs: the time that it adds to the engine's own for a task's start, and processor time, memory and calls
//! for a thousand tasks. Needs release builds of the programs: `cargo build --release --bins`, then
//! `cargo bench -p swarm-tests --bench agent [-- start|tasks]`.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use swarm_api::v1::node_spec;
use swarm_testkit::daemon::{Cluster, Daemon, Engine};
use swarm_testkit::private_engine::{Character, PrivateEngine};
use swarm_tests::{container_service, create, scale, set_availability};

/// Starts that are measured each way, one after the other, in turns.
const STARTS: u64 = 40;
/// Those before, which don't count.
const WARM: u64 = 5;
const TASKS: u64 = 1000;
/// How long a thousand running tasks are watched.
const IDLE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(300);
/// Unit of the kernel's processor times (`USER_HZ`, 100 on Linux).
const TICK: Duration = Duration::from_millis(10);

#[tokio::main]
async fn main() -> Result<()> {
    let only: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let wanted = |part: &str| only.is_empty() || only.iter().any(|name| name == part);
    if wanted("start") {
        start().await?;
    }
    if wanted("tasks") {
        tasks().await?;
    }
    Ok(())
}

/// The time between two steps of each task, as the daemon's log has it.
fn times(daemon: &Daemon, from: &str, to: &str) -> Result<BTreeMap<String, Duration>> {
    let mut begun = BTreeMap::new();
    let mut times = BTreeMap::new();
    for line in daemon.log().lines().filter(|line| line.contains("msg=\"state changed\"")) {
        let word = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
        let at = word("time=").context("no time")?.trim_matches('"');
        let at: SystemTime = humantime::parse_rfc3339(at)?;
        let (task, step) =
            (word("task.id=").context("no task")?, word("state.transition=").context("no step")?);
        let (left, reached) = step.trim_matches('"').split_once("->").context("no arrow")?;
        if left == from {
            begun.insert(task.to_owned(), at);
        }
        if reached == to
            && let Some(begin) = begun.get(task)
        {
            times.insert(task.to_owned(), at.duration_since(*begin)?);
        }
    }
    Ok(times)
}

/// Tasks one by one, and in turns with them containers made straight through the engine's interface.
async fn start() -> Result<()> {
    let engine = PrivateEngine::start(Character::Usual).await?;
    let docker = engine.client().await?;
    let image = swarm_testkit::image::busybox(&docker).await?;
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    set_availability(&mut cluster, "manager", node_spec::Availability::Drain).await?;
    cluster.add_worker_of(&engine.address(), Vec::new()).await?;
    let service = create(&mut cluster, container_service("bench", &image, 0)).await?;
    let mut direct = Vec::new();
    for number in 1..=WARM + STARTS {
        let time = directly(&docker, &image, number).await?;
        scale(&mut cluster, &service, number).await?;
        cluster.running(&service, usize::try_from(number)?, LIMIT).await?;
        if number > WARM {
            direct.push(time);
        }
    }
    // The first step of the agent that is seen is the last one before it asks the engine for anything.
    let all = times(&cluster.workers[0], "ASSIGNED", "RUNNING")?;
    ensure!(all.len() as u64 == WARM + STARTS, "{} starts in the log", all.len());
    let mut order: Vec<(SystemTime, Duration)> = Vec::new();
    for task in cluster.tasks(&service).await? {
        let created = task.meta.created_at.context("no time")?;
        order.push((SystemTime::try_from(created)?, all[task.id.as_str()]));
    }
    order.sort_unstable();
    let mut ours: Vec<Duration> =
        order.into_iter().skip(usize::try_from(WARM)?).map(|(_, time)| time).collect();
    let (ours, direct) = (quartiles(&mut ours), quartiles(&mut direct));
    println!("{STARTS} starts, one by one: quartiles");
    println!("the engine's create and start: {direct:.2?}");
    println!("a task from accepted to running, on disk: {ours:.2?}");
    println!("added at the median: {:.2?}", ours[1].saturating_sub(direct[1]));
    Ok(())
}

async fn directly(docker: &Docker, image: &str, number: u64) -> Result<Duration> {
    let name = format!("swarm-bench-{number}");
    let command = ["sleep", "1000000"].map(str::to_owned).to_vec();
    let body =
        ContainerCreateBody { image: Some(image.to_owned()), cmd: Some(command), ..Default::default() };
    let options = CreateContainerOptionsBuilder::new().name(&name).build();
    let begin = Instant::now();
    docker.create_container(Some(options), body).await?;
    docker.start_container(&name, None).await?;
    let time = begin.elapsed();
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    docker.remove_container(&name, Some(options)).await?;
    Ok(time)
}

/// First quartile, median, third quartile.
fn quartiles(times: &mut [Duration]) -> [Duration; 3] {
    times.sort_unstable();
    [1, 2, 3].map(|quarter| times[times.len() * quarter / 4])
}

/// What a process has used so far, and what it holds, in MiB.
struct Usage {
    cpu: Duration,
    resident: f64,
}

impl Usage {
    fn of(daemon: &Daemon) -> Result<Usage> {
        let pid = daemon.pid().context("it runs")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // Fields 14 and 15 of proc(5), counted from 1; the first two are cut off.
        let ticks = |index: usize| -> Result<u32> { Ok(fields.get(index).context("short")?.parse()?) };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = resident.trim().trim_end_matches(" kB").parse()?;
        Ok(Usage { cpu: TICK * (ticks(11)? + ticks(12)?), resident: kib / 1024.0 })
    }
}

/// Calls that told a manager of statuses, and how many statuses these were.
fn reports(daemon: &Daemon) -> (usize, u64) {
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains("\"statuses delivered\""));
    let counts = lines.filter_map(|line| {
        line.split_whitespace().find_map(|word| word.strip_prefix("statuses="))?.parse::<u64>().ok()
    });
    let counts: Vec<u64> = counts.collect();
    (counts.len(), counts.iter().sum())
}

/// A thousand simulated tasks on one agent, assigned at once.
async fn tasks() -> Result<()> {
    // Debug messages of the session alone tell of its calls.
    let mut cluster = Cluster::start_with(Engine::None, 0, &["--simulate", "--log-level", "debug"]).await?;
    set_availability(&mut cluster, "manager", node_spec::Availability::Drain).await?;
    cluster.add_worker().await?;
    let before = Usage::of(&cluster.workers[0])?;
    let (calls_before, _) = reports(&cluster.workers[0]);
    let begin = Instant::now();
    let service = create(&mut cluster, container_service("bench", "image", TASKS)).await?;
    cluster.running(&service, usize::try_from(TASKS)?, LIMIT).await?;
    let time = begin.elapsed();
    let running = Usage::of(&cluster.workers[0])?;
    let (calls, statuses) = reports(&cluster.workers[0]);
    tokio::time::sleep(IDLE).await;
    let after = Usage::of(&cluster.workers[0])?;
    println!("{TASKS} tasks run after {time:.2?}");
    println!("processor time of the agent: {:.2?} until then", running.cpu.saturating_sub(before.cpu));
    println!("and {:.2?} in the {IDLE:?} after it", after.cpu.saturating_sub(running.cpu));
    println!("memory: {:.1} MiB before, {:.1} MiB with them", before.resident, after.resident);
    println!("status updates: {statuses} in {} calls", calls - calls_before);
    ensure!(calls > calls_before, "the log does not tell of reports");
    Ok(())
}
