//! Logs of tasks, by real daemons: from all nodes, through any manager, whole, and in bounded memory.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bollard::Docker;
use swarm_api::v1::{ServiceSpec, node_status, task_spec};
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::wait::until;
use swarm_tests::logs::{Memory, Running, Stalled, check_numbers, ctl, lines, numbers, writers};
use swarm_tests::{SOON, container_service, create, scale, with_logs};

/// What a manager with its agent may take at most, in bytes, whatever is written: for one that asks and reads, and for each
/// that stands still.
const MEMORY: u64 = 48 * 1024 * 1024;
const MEMORY_STALLED: u64 = 8 * 1024 * 1024;
/// How many stand still: more than the window of a connection would bear.
const STALLED: usize = 20;

/// Every daemon of a cluster with its process id.
fn processes(cluster: &Cluster) -> Result<Vec<(String, u32)>> {
    let all = std::iter::once(&cluster.manager).chain(&cluster.managers).chain(&cluster.workers);
    all.map(|daemon| Ok((daemon.name.clone(), daemon.pid().context("it runs")?))).collect()
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// Waits until a service's tasks have written so many lines.
async fn written(cluster: &Cluster, service: &str, count: usize) -> Result<()> {
    until(&format!("{count} lines of {service}"), SOON, || async {
        let output = ctl(&cluster.socket(), &["service", "logs", service])?;
        let found = lines(&output.stdout)?.len() + lines(&output.stderr)?.len();
        ensure!(found >= count, "{found}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_all_nodes_come_through_any_manager() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    cluster.add_manager().await?;
    let result = through_any_manager(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn through_any_manager(cluster: &mut Cluster) -> Result<()> {
    let script = "echo one; sleep 0.2; echo two >&2; sleep 0.2; echo three; exec sleep 1000000";
    let service = create(cluster, writers("web", 3, script)).await?;
    let tasks = cluster.running(&service, 3, SOON).await?;
    let nodes: BTreeSet<_> = tasks.iter().map(|task| task.node_id.clone()).collect();
    ensure!(nodes.len() == 3, "on each node one: {nodes:?}");
    written(cluster, "web", 9).await?;
    for manager in ["manager", "manager-2"] {
        let socket = cluster.socket_of(manager);
        let output = ctl(&socket, &["service", "logs", "web"])?;
        ensure!(output.status.success(), "{manager}: {}", text(&output.stderr));
        let (out, err) = (lines(&output.stdout)?, lines(&output.stderr)?);
        let sources: BTreeSet<&str> = out.iter().map(|(source, _)| source.as_str()).collect();
        ensure!(sources.len() == 3 && out.len() == 6 && err.len() == 3, "{manager}: {out:?} {err:?}");
        for name in ["manager", "manager-2", "worker-1"] {
            let own = |lines: &[(String, String)]| -> Vec<String> {
                let ending = format!("@{name}");
                lines.iter().filter(|(source, _)| source.ends_with(&ending)).map(|(_, t)| t.clone()).collect()
            };
            ensure!(own(&out) == ["one", "three"] && own(&err) == ["two"], "{name}: {out:?} {err:?}");
        }
        ensure!(sources.iter().all(|source| source.starts_with("web.")), "{sources:?}");

        let stderr = ctl(&socket, &["service", "logs", "web", "--stderr", "--raw"])?;
        ensure!((stderr.stdout.is_empty(), text(&stderr.stderr)) == (true, "two\n".repeat(3)), "{stderr:?}");
        let last = ctl(&socket, &["service", "logs", "web", "--tail", "1", "--raw"])?;
        ensure!(text(&last.stdout) == "three\n".repeat(3) && last.stderr.is_empty(), "{last:?}");
        let none = ctl(&socket, &["service", "logs", "web", "--tail=0"])?;
        ensure!(none.status.success() && none.stdout.is_empty(), "{none:?}");
        let later = ctl(&socket, &["service", "logs", "web", "--since", "0"])?;
        ensure!(later.status.success() && later.stdout.is_empty(), "{later:?}");
    }
    one_task(cluster, &tasks[0].id, &tasks[0].node_id, &service)
}

fn one_task(cluster: &Cluster, task: &str, node: &str, service: &str) -> Result<()> {
    let socket = cluster.socket_of("manager-2");
    let output = ctl(&socket, &["task", "logs", &task[..12], "--timestamps", "--details", "-n"])?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    let out = lines(&output.stdout)?;
    let ours = format!(" {task}@{node}");
    ensure!(out.len() == 2 && out.iter().all(|(source, _)| source.ends_with(&ours)), "{out:?}");
    // Processes have no log driver that attaches anything.
    let (time, _) = out[1].0.split_once(' ').context("a time")?;
    ensure!(out[1].1 == " three", "{out:?}");
    // Everything from that moment on is that line alone.
    let since = ctl(&socket, &["task", "logs", task, "--since", time, "--raw"])?;
    ensure!(text(&since.stdout) == "three\n", "{since:?}");
    let raw = ctl(&socket, &["task", "logs", task, "--tail", "1", "--raw", "-t", "--details"])?;
    let details = format!(
        "com.docker.swarm.node.id={node},com.docker.swarm.service.id={service},com.docker.swarm.task.id={task}"
    );
    ensure!(text(&raw.stdout) == format!("{time} {details} three\n"), "{raw:?}");
    let full = ctl(&socket, &["task", "logs", task, "--tail", "1", "--no-trunc"])?;
    let slot =
        text(&ctl(&socket, &["task", "logs", task, "--tail", "1", "--no-trunc", "--no-task-ids"])?.stdout);
    let (name, rest) = slot.split_once('@').context("a name")?;
    ensure!(text(&full.stdout) == format!("{name}.{task}@{rest}"), "{full:?} {slot}");
    for (args, code) in [
        (&["service", "logs", "nothing"][..], 1),
        (&["service", "logs"], 2),
        (&["task", "logs", "x", "--tail", "-1"], 2),
        (&["service", "logs", "web", "--since", "yesterday"], 2),
    ] {
        let output = ctl(&socket, args)?;
        ensure!(output.status.code() == Some(code) && output.stdout.is_empty(), "{args:?}: {output:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_lost_is_named_and_the_lines_of_others_are_shown() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    cluster.ctl_ok(&["cluster", "update", "--heartbeatperiod", "500ms"])?;
    let service = create(&mut cluster, writers("web", 2, "echo here; exec sleep 1000000")).await?;
    cluster.running(&service, 2, SOON).await?;
    written(&cluster, "web", 2).await?;
    cluster.workers[0].kill()?;
    let id = cluster.node_id("worker-1")?;
    let output = until("a note of what is missing", SOON, || async {
        let output = ctl(&cluster.socket(), &["service", "logs", "web"])?;
        ensure!(!output.status.success(), "{output:?}");
        Ok(output)
    })
    .await?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(lines(&output.stdout)?.iter().any(|(source, _)| source.ends_with("@manager")), "{output:?}");
    let expected = format!("Error: some lines are missing:\n  node worker-1 ({id}) is not available\n");
    ensure!(text(&output.stderr) == expected, "{output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_follows_sees_new_tasks_and_is_not_lost_with_the_leader() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    let result = followed(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn followed(cluster: &mut Cluster) -> Result<()> {
    let script = "i=1; while :; do echo $i; i=$((i+1)); sleep 0.02; done";
    let service = create(cluster, writers("clock", 2, script)).await?;
    cluster.running(&service, 2, SOON).await?;
    let leader = cluster.last_leader()?.name.clone();
    let asked =
        ["manager", "manager-2", "manager-3"].into_iter().find(|name| *name != leader).context("one")?;
    let mut running = Running::start(&cluster.socket_of(asked), &["service", "logs", "-f", "clock"])?;
    let sources = |running: &Running| -> BTreeSet<String> {
        let all = running.lines().into_iter();
        all.filter_map(|line| Some(line.split_once('@')?.0.to_owned())).collect()
    };
    until("lines of both", SOON, || async {
        ensure!(sources(&running).len() == 2);
        Ok(())
    })
    .await?;
    scale(cluster, &service, 3).await?;
    until("lines of the third", SOON, || async {
        ensure!(sources(&running).len() == 3);
        Ok(())
    })
    .await?;
    let before = running.lines().len();
    cluster.daemon_mut(&leader)?.kill()?;
    until("lines under another leader", SOON, || async {
        let lines = running.lines();
        ensure!(lines.len() > before + 500, "{} lines, {before} before", lines.len());
        Ok(())
    })
    .await?;
    ensure!(running.runs()?, "it goes on");
    // Of each task every number is there once and in order, whatever became of the leader.
    let mut next = std::collections::BTreeMap::<String, u64>::new();
    for line in running.lines() {
        let (source, number) = line.split_once("❯ ").context("a prefix")?;
        let expected = next.entry(source.to_owned()).or_insert(1);
        ensure!(number.parse() == Ok(*expected), "{source}: {number} where {expected} was expected");
        *expected += 1;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_come_whole_and_memory_stays_bounded() -> Result<()> {
    const TASKS: usize = 10;
    const LINES: u64 = 100_000;
    let mut cluster = Cluster::start(Engine::None, 2).await?;
    let service = create(&mut cluster, writers("chatty", TASKS as u64, &numbers(LINES))).await?;
    cluster.running(&service, TASKS, SOON).await?;
    // Once while it is written, and once when it is there.
    let followed = Running::start(&cluster.socket(), &["service", "logs", "-f", "chatty"])?;
    until("all lines", SOON, || async {
        let count = followed.count();
        ensure!(count == TASKS * usize::try_from(LINES)?, "{count}");
        Ok(())
    })
    .await?;
    check_numbers(followed.lines().join("\n").as_bytes(), TASKS, LINES)?;
    drop(followed);
    let memory = Memory::watch(processes(&cluster)?)?;
    let began = Instant::now();
    let output = ctl(&cluster.socket(), &["service", "logs", "chatty"])?;
    let time = began.elapsed();
    ensure!(output.status.success(), "{}", text(&output.stderr));
    check_numbers(&output.stdout, TASKS, LINES)?;
    let growth = memory.growth()?;
    println!("100 MB of {TASKS} tasks on 3 nodes in {time:.1?}; memory grew by at most {growth:?}");
    ensure!(growth.iter().all(|(_, bytes)| *bytes < MEMORY), "{growth:?}");
    Ok(())
}

/// Subscribers that stand still while tasks write as fast as they can: no heartbeat is late, nobody's memory grows, others
/// are served, and nothing is lost.
async fn stalled(time: Duration) -> Result<()> {
    const TASKS: usize = 4;
    const LINES: u64 = 200_000;
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    cluster.add_manager().await?;
    cluster.ctl_ok(&["cluster", "update", "--heartbeatperiod", "1s"])?;
    let service = create(&mut cluster, writers("chatty", TASKS as u64, &numbers(LINES))).await?;
    cluster.running(&service, TASKS, SOON).await?;
    let memory = Memory::watch(processes(&cluster)?)?;
    // Through the leader and through a follower.
    let sockets = [cluster.socket_of("manager"), cluster.socket_of("manager-2")];
    let start = |n: usize| Stalled::start(&sockets[n % 2], &["service", "logs", "-f", "chatty"]);
    let mut stalled: Vec<Stalled> = (0..STALLED).map(start).collect::<Result<_>>()?;
    let began = Instant::now();
    while began.elapsed() < time {
        let nodes = cluster.nodes().await?;
        let down = nodes.iter().find(|node| node.status.state() != node_status::State::Ready);
        ensure!(down.is_none(), "{down:?}");
        let output = ctl(&sockets[1], &["service", "logs", "chatty", "--tail", "3"])?;
        ensure!(output.status.success() && lines(&output.stdout)?.len() == 3 * TASKS, "{output:?}");
    }
    let late = cluster.logs().matches("heartbeat expiration").count();
    let failed = cluster.logs().matches("agent: session failed").count();
    ensure!((late, failed) == (0, 0), "{}", cluster.logs());
    let growth = memory.growth()?;
    println!("{STALLED} subscribers stood still for {time:?}; memory grew by at most {growth:?}");
    ensure!(growth.iter().all(|(_, bytes)| *bytes < STALLED as u64 * MEMORY_STALLED), "{growth:?}");
    let all = TASKS as u64 * LINES;
    let one = stalled.pop().context("some stand still")?;
    let count = tokio::task::spawn_blocking(move || one.count_while(|count| count < all)).await??;
    ensure!(count == all, "{count} of {all} lines came in the end");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_that_stand_still_delay_no_heartbeat() -> Result<()> {
    stalled(Duration::from_secs(12)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long suite"]
async fn long_subscribers_that_stand_still_for_a_minute_delay_no_heartbeat() -> Result<()> {
    stalled(Duration::from_secs(60)).await
}

fn containers(name: &str, image: &str, replicas: u64, script: &str) -> ServiceSpec {
    let mut spec = container_service(name, image, replicas);
    if let Some(task_spec::Runtime::Container(container)) = &mut spec.task.runtime {
        container.command = vec!["/bin/sh".into(), "-c".into()];
        container.args = vec![script.into()];
    }
    spec
}

/// What the log driver is asked to attach to lines is shown with them.
async fn attributes(cluster: &mut Cluster, image: &str) -> Result<()> {
    let head = ["service", "create", "--name", "told", "--image", image, "--stop-grace-period", "0s"];
    let given = ["--container-label", "team=a b", "--env", "REGION=eu,SECRET=hidden"];
    let log = [
        "--log-driver",
        "json-file",
        "--log-opt",
        "labels=team",
        "--log-opt",
        "env=REGION",
        "--log-opt",
        "tag=t",
    ];
    let rest = ["--command", "sh,-c", "--args", "echo out; exec sleep 1000"];
    let service = cluster.ctl_ok(&[&head[..], &given, &log, &rest].concat())?.trim().to_owned();
    let task = cluster.running(&service, 1, SOON).await?.remove(0);
    written(cluster, "told", 1).await?;
    let output = ctl(&cluster.socket(), &["service", "logs", "told", "--details"])?;
    let lines = lines(&output.stdout)?;
    ensure!(lines.len() == 1 && lines[0].1 == "REGION=eu,tag=t,team=a b out", "{lines:?}");
    let raw = ctl(&cluster.socket(), &["service", "logs", "told", "--details", "--raw"])?;
    let expected = format!(
        "REGION=eu,com.docker.swarm.node.id={},com.docker.swarm.service.id={service},com.docker.swarm.task.id={},\
         tag=t,team=a+b out\n",
        task.node_id, task.id
    );
    ensure!(text(&raw.stdout) == expected, "{raw:?}");
    cluster.ctl_ok(&["service", "remove", "told"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_lines_of_containers_come_as_those_of_processes_do() -> Result<()> {
    let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
    let image = swarm_testkit::image::busybox(&docker).await?;
    let mut cluster = Cluster::start(Engine::Docker, 1).await?;
    let script = "trap 'exit 0' TERM; echo one; sleep 0.2; echo two >&2; sleep 0.2; seq 1000; while :; do sleep 1; done";
    let service = create(&mut cluster, containers("web", &image, 2, script)).await?;
    cluster.running(&service, 2, SOON).await?;
    written(&cluster, "web", 2 * 1002).await?;
    let output = ctl(&cluster.socket(), &["service", "logs", "web"])?;
    let (out, err) = (lines(&output.stdout)?, lines(&output.stderr)?);
    ensure!(output.status.success() && out.len() == 2 * 1001 && err.len() == 2, "{err:?}");
    for name in ["manager", "worker-1"] {
        let own: Vec<&str> =
            out.iter().filter(|(s, _)| s.ends_with(name)).map(|(_, text)| text.as_str()).collect();
        let expected: Vec<String> =
            std::iter::once("one".to_owned()).chain((1..=1000).map(|n| n.to_string())).collect();
        ensure!(own == expected, "{name}: {} lines", own.len());
    }
    attributes(&mut cluster, &image).await?;
    let last = ctl(&cluster.socket(), &["service", "logs", "web", "--tail", "2", "--raw"])?;
    ensure!(text(&last.stdout).lines().filter(|line| *line == "1000").count() == 2, "{last:?}");
    let running = Running::start(&cluster.socket(), &["service", "logs", "--follow", "--tail", "1", "web"])?;
    scale(&mut cluster, &service, 3).await?;
    until("lines of the third", SOON, || async {
        let third = running.lines().iter().filter(|line| line.starts_with("web.3@")).count();
        ensure!(third == 1001, "{third}: all of them, since it began after it was asked for");
        Ok(())
    })
    .await
}
