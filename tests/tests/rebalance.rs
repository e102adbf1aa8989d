//! Rebalancing on real daemons: tasks move to a host that comes, and to one that returns, as few as make the spread even,
//! and what is started first is never missing.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use swarm_api::v1::UpdateConfig;
use swarm_api::v1::node_spec::Availability;
use swarm_api::v1::update_config::UpdateOrder;
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_tests::watch::{Picture, Watcher};
use swarm_tests::{create, process_service, set_availability, with_logs};

const REPLICAS: usize = 6;

/// Tasks by node, of those that run and are to go on.
fn spread(picture: &Picture, service: &str) -> Vec<usize> {
    let mut by_node: BTreeMap<&str, usize> = BTreeMap::new();
    picture.up(service).for_each(|task| *by_node.entry(&task.node_id).or_default() += 1);
    let mut counts: Vec<usize> = by_node.into_values().collect();
    counts.sort_unstable();
    counts
}

/// Waits until the tasks are spread like this, and so many were moved since then; until then each slot has a task that runs.
async fn comes_to(
    watcher: &mut Watcher,
    service: &str,
    expected: &[usize],
    (before, moved): (&BTreeSet<String>, usize),
) -> Result<()> {
    let look = |picture: &Picture| {
        let up = picture.slots_up(service).len();
        ensure!(up == REPLICAS, "{up} of {REPLICAS} slots are up");
        Ok(spread(picture, service) == expected && picture.up(service).count() == REPLICAS)
    };
    watcher.until("an even spread", look).await?;
    let new = watcher.picture.ever(service).filter(|task| !before.contains(&*task.id)).count();
    ensure!(new == moved, "{new} tasks were made where {moved} had to move");
    Ok(())
}

fn ever(watcher: &Watcher, service: &str) -> BTreeSet<String> {
    watcher.picture.ever(service).map(|task| task.id.to_string()).collect()
}

async fn follows_hosts(cluster: &mut Cluster) -> Result<()> {
    let mut watcher = Watcher::new(cluster).await?;
    let mut spec = process_service("web", REPLICAS as u64);
    let order = UpdateOrder::StartFirst as i32;
    spec.update = Some(UpdateConfig { parallelism: 2, order, ..Default::default() });
    let web = create(cluster, spec).await?;
    let all_up = |picture: &Picture| Ok(picture.slots_up(&web).len() == REPLICAS);
    watcher.until("all tasks to run", all_up).await?;
    ensure!(spread(&watcher.picture, &web) == [6], "there is one node");

    // Nobody asked for it: nothing moves to a host that comes, until somebody does.
    cluster.add_worker().await?;
    let before = ever(&watcher, &web);
    let said = cluster.ctl_ok(&["service", "rebalance", "web"])?;
    ensure!(said.contains("3 tasks"), "{said}");
    comes_to(&mut watcher, &web, &[3, 3], (&before, 3)).await?;
    let said = cluster.ctl_ok(&["service", "rebalance", "web"])?;
    ensure!(said.starts_with("no task has to move"), "{said}");

    // From now on it follows hosts: one that is emptied and used again gets its share back.
    cluster.ctl_ok(&["service", "update", "web", "--rebalance", "auto"])?;
    let worker = set_availability(cluster, "worker-1", Availability::Drain).await?;
    let emptied = |picture: &Picture| Ok(spread(picture, &web) == [6] && picture.is_drained(&worker));
    watcher.until("the drained host to be empty", emptied).await?;
    let before = ever(&watcher, &web);
    set_availability(cluster, "worker-1", Availability::Active).await?;
    comes_to(&mut watcher, &web, &[3, 3], (&before, 3)).await?;
    let back = watcher.picture.up(&web).filter(|task| *task.node_id == *worker).count();
    ensure!(back == 3, "{back} tasks are back on the host");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_move_to_hosts_that_come_and_return() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = follows_hosts(&mut cluster).await;
    with_logs(&cluster, result)
}
