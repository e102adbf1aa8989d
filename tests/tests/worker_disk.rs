//! A worker whose disk is full, or turns read-only: what runs goes on, and the rest does when the disk is as it was.

use std::io::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use swarm_api::Shared;
use swarm_api::v1::list_tasks_request::Filters;
use swarm_api::v1::task_status::RuntimeStatus;
use swarm_api::v1::{ListTasksRequest, Task, TaskState, node_spec, node_status};
use swarm_testkit::daemon::{Cluster, Daemon, Engine};
use swarm_testkit::wait::until;
use swarm_tests::{SOON, create, process_service, scale, set_availability, with_logs};

/// Fills the disk to the last byte.
fn fill(path: &std::path::Path) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    for size in [1 << 16, 1 << 12, 1] {
        let block = vec![1; size];
        while file.write_all(&block).is_ok() {}
    }
    Ok(())
}

async fn full(cluster: &mut Cluster) -> Result<()> {
    let service = create(cluster, process_service("web", 2)).await?;
    let before = cluster.running(&service, 2, SOON).await?;
    let worker = &cluster.workers[0];
    // As the daemon sees it.
    let filler =
        format!("/proc/{}/root{}/filler", worker.pid().context("it runs")?, worker.state_dir().display());
    let filler = std::path::PathBuf::from(filler);
    fill(&filler)?;
    scale(cluster, &service, 4).await?;
    cluster.workers[0].says("tasks could not be stored").await?;
    let node = cluster.node("worker-1").await?;
    ensure!(node.status.state() == node_status::State::Ready, "{:?}", node.status);
    let tasks = cluster.tasks(&service).await?;
    let still =
        before.iter().filter(|task| tasks.iter().any(|now| now.id == task.id && now.status == task.status));
    ensure!(still.count() == 2, "what ran does not any more: {tasks:#?}");

    std::fs::remove_file(&filler)?;
    let after = cluster.running(&service, 4, SOON).await.context("with room again")?;
    ensure!(before.iter().all(|task| after.iter().any(|now| now.id == task.id)), "{after:#?}");
    // The same daemon, and all of it is on disk: another one takes it up.
    scale(cluster, &service, 3).await?;
    cluster.running(&service, 3, SOON).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workers_full_disk_is_survived() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    set_availability(&mut cluster, "manager", node_spec::Availability::Drain).await?;
    let state = cluster.socket().with_file_name("worker-1");
    std::fs::create_dir(&state)?;
    let mount = format!("mount -t tmpfs -o size=16m none {}; exec \"$@\"", state.display());
    let within = ["unshare", "--mount", "--map-root-user", "sh", "-ec", &mount, "sh"].map(str::to_owned);
    cluster.add_worker_of("none", within.into()).await?;
    let result = full(&mut cluster).await;
    with_logs(&cluster, result)
}

/// Runs a script where the daemon has its mounts.
fn beside(daemon: &Daemon, script: &str) -> Result<()> {
    let pid = daemon.pid().context("it runs")?.to_string();
    let head = ["--target", &pid, "--mount", "--user", "--preserve-credentials", "sh", "-ec", script];
    let out = Command::new("nsenter").args(head).output()?;
    ensure!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

async fn read_only(cluster: &mut Cluster) -> Result<()> {
    let service = create(cluster, process_service("web", 2)).await?;
    let before = cluster.running(&service, 2, SOON).await?;
    let worker = &cluster.workers[0];
    let state = worker.state_dir().to_owned();
    let dir = state.display();
    // A mount with files that are open for writing stays writable: the read-only one goes over it. So what is open goes on,
    // and nothing can be made, opened for writing, renamed or removed.
    beside(worker, &format!("mount --bind {dir} {dir}; mount -o remount,bind,ro {dir}"))?;
    let seen = format!("/proc/{}/root{dir}/probe", worker.pid().context("it runs")?);
    let refused = std::fs::write(&seen, "").err().map(|error| error.kind());
    ensure!(refused == Some(std::io::ErrorKind::ReadOnlyFilesystem), "{seen}: {refused:?}");

    scale(cluster, &service, 4).await?;
    let tasks = told(cluster, &service, "new tasks to say what is wrong", |tasks| {
        let waiting = tasks.iter().filter(|task| {
            let status = &task.status;
            status.state() < TaskState::Running && status.err.contains("Read-only file system")
        });
        waiting.count() == 2
    })
    .await?;
    let still =
        before.iter().filter(|task| tasks.iter().any(|now| now.id == task.id && now.status == task.status));
    ensure!(still.count() == 2, "what ran does not any more: {tasks:#?}");
    let node = cluster.node("worker-1").await?;
    ensure!(node.status.state() == node_status::State::Ready, "{:?}", node.status);

    // What ends meanwhile is told when it can be written down: a daemon that was restarted in between would not know.
    let killed = &before[0];
    let Some(RuntimeStatus::Container(process)) = &killed.status.runtime_status else {
        bail!("a process has a number: {killed:#?}")
    };
    let killer = format!("kill -9 {}", process.pid);
    ensure!(Command::new("sh").args(["-c", &killer]).status()?.success(), "{killer}");
    until("the process to be gone", SOON, || async {
        ensure!(!std::fs::exists(format!("/proc/{}", process.pid))?);
        Ok(())
    })
    .await?;
    beside(&cluster.workers[0], &format!("umount {dir}"))?;
    told(cluster, &service, "the end of the task to be told", |tasks| {
        let task = tasks.iter().find(|task| task.id == killed.id).map(|task| &task.status);
        task.is_some_and(|status| status.state() == TaskState::Failed && status.err.contains("exit (137)"))
    })
    .await?;
    let after = cluster.running(&service, 4, SOON).await.context("when it can be written to again")?;
    ensure!(after.iter().any(|now| now.id == before[1].id), "{after:#?}");
    // All of it is on disk: another daemon takes it up.
    let worker = &mut cluster.workers[0];
    worker.kill()?;
    worker.start().await?;
    scale(cluster, &service, 3).await?;
    let adopted = cluster.running(&service, 3, SOON).await?;
    ensure!(adopted.iter().all(|now| after.iter().any(|task| task.id == now.id)), "{adopted:#?}");
    Ok(())
}

/// Waits until the tasks of a service are as they should be.
async fn told(
    cluster: &Cluster,
    service: &str,
    what: &str,
    good: impl Fn(&[Shared<Task>]) -> bool,
) -> Result<Vec<Shared<Task>>> {
    until(what, SOON, || {
        let mut control = cluster.control.clone();
        let good = &good;
        async move {
            let filters = Filters { service_ids: vec![service.to_owned()], ..Default::default() };
            let request = ListTasksRequest { filters: Some(filters) };
            let tasks = control.list_tasks(request).await?.into_inner().tasks;
            ensure!(good(&tasks), "{tasks:#?}");
            Ok(tasks)
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workers_disk_that_turns_read_only_is_survived() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    set_availability(&mut cluster, "manager", node_spec::Availability::Drain).await?;
    let within = ["unshare", "--mount", "--map-root-user"].map(str::to_owned);
    cluster.add_worker_of("none", within.into()).await?;
    let result = read_only(&mut cluster).await;
    with_logs(&cluster, result)
}
