//! A worker whose disk is full: what runs goes on, and the rest does when there is room again.

use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use swarm_api::v1::{node_spec, node_status};
use swarm_testkit::daemon::{Cluster, Engine};
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
