//! Sessions whose node, leader or manager goes, and readers that stand still.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use swarm_api::v1::node_status;
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::wait::until;
use swarm_tests::logs::{Memory, Stalled, ctl};
use swarm_tests::{SOON, create, process_service, processes_with, with_logs};

use crate::support::{InTerminal, on_node, text};

/// A command that can be found on this host by this variable.
const MARK: &str = "MARK_OF_THIS_TEST";

/// Starts a command that does nothing for ever.
async fn sleeping(cluster: &Cluster, manager: &str, task: &str) -> Result<(InTerminal, String)> {
    let mark = format!("{MARK}={task}");
    let args = ["task", "exec", "-t", "-e", &mark, task, "sh", "-c", "echo started; sleep 1000000; :"];
    let terminal = InTerminal::start(&cluster.socket_of(manager), &args, (24, 80))?;
    terminal.until("started").await?;
    ensure!(!processes_with(&mark).is_empty(), "it runs");
    Ok((terminal, mark))
}

async fn gone(mark: &str) -> Result<()> {
    until("the command to be gone", SOON, || async {
        let left = processes_with(mark);
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_node_and_with_its_leader_and_says_so() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    let result = lost(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn lost(cluster: &mut Cluster) -> Result<()> {
    let service = create(cluster, process_service("web", 4)).await?;
    let tasks = cluster.running(&service, 4, SOON).await?;
    let task = on_node(cluster, &tasks, "worker-1")?;
    let managers = ["manager", "manager-2", "manager-3"];

    // The caller goes.
    let (terminal, mark) = sleeping(cluster, "manager-2", &task.id).await?;
    drop(terminal);
    gone(&mark).await?;

    // The leader hands over.
    let leader = cluster.last_leader()?.name.clone();
    let asked = managers.into_iter().find(|name| *name != leader).context("one")?;
    let (terminal, mark) = sleeping(cluster, asked, &task.id).await?;
    cluster.daemon_mut(&leader)?.stop().await?;
    let (status, shown) = terminal.end().await?;
    ensure!(status.code() == Some(1) && shown.contains("Error: "), "{status}: {shown}");
    ensure!(shown.contains("the leader") && !shown.contains("Hint"), "{shown}");
    gone(&mark).await?;
    cluster.daemon_mut(&leader)?.start().await?;

    // The leader is killed. Its own socket's callers hear of it too.
    let again = until("another leader that serves", SOON, || async {
        let leader = cluster.last_leader()?.name.clone();
        let output = ctl(&cluster.socket_of(&leader), &["task", "exec", &task.id, "true"])?;
        ensure!(output.status.success(), "{}", text(&output.stderr));
        Ok(leader)
    })
    .await?;
    let asked = managers.into_iter().find(|name| *name != again).context("one")?;
    let (far, mark) = sleeping(cluster, asked, &task.id).await?;
    let (near, _) = sleeping(cluster, &again, &task.id).await?;
    cluster.daemon_mut(&again)?.kill()?;
    let (status, shown) = far.end().await?;
    ensure!(
        status.code() == Some(1) && shown.contains("Error: the connection to the leader "),
        "{status}: {shown}"
    );
    let (status, shown) = near.end().await?;
    ensure!(
        status.code() == Some(1) && shown.contains("Error: the connection to the manager was lost"),
        "{shown}"
    );
    gone(&mark).await?;
    cluster.daemon_mut(&again)?.start().await?;

    // The node's daemon is killed: the command goes with it, the task stays.
    until("the new leader serves", SOON, || async {
        let output = ctl(&cluster.socket_of(asked), &["task", "exec", &task.id, "true"])?;
        ensure!(output.status.success(), "{}", text(&output.stderr));
        Ok(())
    })
    .await?;
    let (terminal, mark) = sleeping(cluster, asked, &task.id).await?;
    cluster.workers[0].kill()?;
    let (status, shown) = terminal.end().await?;
    ensure!(
        status.code() == Some(1) && shown.contains("the connection to node worker-1 was lost"),
        "{shown}"
    );
    gone(&mark).await?;
    ensure!(!processes_with(&format!("SWARMD_TASK_ID={}", task.id)).is_empty(), "the task goes on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_when_its_leader_freezes() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    let result = frozen(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn frozen(cluster: &mut Cluster) -> Result<()> {
    let service = create(cluster, process_service("web", 4)).await?;
    let tasks = cluster.running(&service, 4, SOON).await?;
    let task = on_node(cluster, &tasks, "worker-1")?;
    let leader = cluster.last_leader()?.name.clone();
    let asked = if leader == "manager" { "manager-2" } else { "manager" };
    let (terminal, mark) = sleeping(cluster, asked, &task.id).await?;
    cluster.daemon_named(&leader)?.pause()?;
    let (status, shown) = terminal.end().await?;
    ensure!(
        status.code() == Some(1) && shown.contains("Error: the connection to the leader "),
        "{status}: {shown}"
    );
    // The node hears of it from the one that leads now.
    gone(&mark).await?;
    let output = ctl(&cluster.socket_of(asked), &["task", "exec", &task.id, "true"])?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    cluster.daemon_named(&leader)?.resume()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stand_still_delay_no_heartbeat() -> Result<()> {
    const STALLED: usize = 12;
    const TIME: Duration = Duration::from_secs(12);
    /// What a daemon may take for each of them, in bytes.
    const MEMORY: u64 = 6 * 1024 * 1024;
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    cluster.add_manager().await?;
    cluster.ctl_ok(&["cluster", "update", "--heartbeatperiod", "1s"])?;
    let service = create(&mut cluster, process_service("web", 3)).await?;
    let tasks = cluster.running(&service, 3, SOON).await?;
    let task = on_node(&cluster, &tasks, "worker-1")?;
    let daemons = std::iter::once(&cluster.manager).chain(&cluster.managers).chain(&cluster.workers);
    let pids: Vec<_> = daemons.filter_map(|daemon| Some((daemon.name.clone(), daemon.pid()?))).collect();
    let memory = Memory::watch(pids)?;
    let sockets = [cluster.socket_of("manager"), cluster.socket_of("manager-2")];
    let stalled: Vec<Stalled> = (0..STALLED)
        .map(|n| Stalled::start(&sockets[n % 2], &["task", "exec", &task.id, "yes", "it goes on"]))
        .collect::<Result<_>>()?;
    let began = Instant::now();
    while began.elapsed() < TIME {
        let nodes = cluster.nodes().await?;
        let down = nodes.iter().find(|node| node.status.state() != node_status::State::Ready);
        ensure!(down.is_none(), "{down:?}");
        let output = ctl(&sockets[1], &["task", "exec", &task.id, "echo", "here"])?;
        ensure!(text(&output.stdout) == "here\n", "{output:?}");
    }
    let logs = cluster.logs();
    let late = logs.matches("heartbeat expiration").count() + logs.matches("agent: session failed").count();
    ensure!(late == 0, "{logs}");
    let growth = memory.growth()?;
    println!("{STALLED} readers stood still for {TIME:?}; memory grew by at most {growth:?}");
    ensure!(growth.iter().all(|(_, bytes)| *bytes < STALLED as u64 * MEMORY), "{growth:?}");
    // Nothing was lost meanwhile.
    let one = stalled.into_iter().next().context("some stand still")?;
    let count = tokio::task::spawn_blocking(move || one.count_while(|count| count < 200_000)).await??;
    ensure!(count == 200_000, "{count}");
    Ok(())
}
