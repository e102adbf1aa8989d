//! Updates that outlive the leader they began under, on real daemons.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use swarm_api::Shared;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{Task, UpdateConfig, node_spec};
use swarm_testkit::daemon::{Cluster, Engine, channel};
use swarm_testkit::quorum::{leader, reachable, same};
use swarm_tests::roles::Marked;
use swarm_tests::watch::Watcher;
use swarm_tests::{create, edit_process, set_availability, update, with_logs};

const ALL: [&str; 3] = ["manager", "manager-2", "manager-3"];
const REPLICAS: usize = 8;
const AT_ONCE: usize = 2;

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// Begins an update and kills its leader. Sees by another manager's store that never more
/// slots are down than the update may take, and that each slot gets one new task, whoever leads.
async fn update_and_lose(cluster: &mut Cluster, watcher: &mut Watcher, service: &str) -> Result<()> {
    let old: BTreeSet<String> = watcher.picture.ever(service).map(|task| task.id.to_string()).collect();
    let is_new = |task: &Shared<Task>| !old.contains(task.id.as_str());
    update(cluster, service, |spec| edit_process(spec, |process| process.env[1] = "ROUND=1".into())).await?;
    let down = |up: BTreeSet<u64>| {
        let down: Vec<u64> = (1..=REPLICAS as u64).filter(|slot| !up.contains(slot)).collect();
        ensure!(down.len() <= AT_ONCE, "slots {down:?} are down");
        Ok(())
    };
    watcher
        .until("some tasks to be new", |picture| {
            down(picture.slots_up(service))?;
            Ok(picture.up(service).any(is_new))
        })
        .await?;
    let first = leader(cluster, &ALL).await?;
    let led = cluster.daemon_named(&first)?.led_terms().into_iter().max();
    cluster.daemon_mut(&first)?.kill()?;
    let going = watcher.picture.update(service).0 == UpdateState::Updating;
    ensure!(going, "the update was over before its leader was: {:?}", watcher.picture.update(service));
    watcher
        .until("the update to complete under the next leader", |picture| {
            let up = picture.slots_up(service);
            let done = up.len() == REPLICAS;
            down(up)?;
            Ok(done && picture.update(service).0 == UpdateState::Completed)
        })
        .await?;
    ensure!(cluster.last_leader()?.led_terms().into_iter().max() > led, "the leader did not change");
    let new: Vec<&Shared<Task>> = watcher.picture.ever(service).filter(|task| is_new(task)).collect();
    ensure!(new.len() == REPLICAS, "{} new tasks: {new:#?}", new.len());
    cluster.daemon_mut(&first)?.spawn()?;
    same(cluster, &ALL).await.map(drop)
}

async fn updates_outlive_leaders(cluster: &mut Cluster) -> Result<()> {
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    for name in ALL {
        reachable(cluster, name).await?;
        set_availability(cluster, name, node_spec::Availability::Drain).await?;
    }
    // The first manager leads; another one stays.
    let marked = Marked::new();
    let mut watcher = Watcher::on(channel(cluster.socket_of("manager-3"))).await?;
    let mut spec = marked.service("web", REPLICAS as u64, None);
    edit_process(&mut spec, |process| process.env.push("ROUND=0".into()));
    let (parallelism, delay, monitor) = (AT_ONCE as u64, seconds(3), Some(seconds(1)));
    spec.update = Some(UpdateConfig { parallelism, delay, monitor, ..Default::default() });
    let service = create(cluster, spec).await?;
    watcher.until("all tasks to run", |picture| Ok(picture.slots_up(&service).len() == REPLICAS)).await?;
    update_and_lose(cluster, &mut watcher, &service).await?;
    ensure!(marked.pids().len() == REPLICAS, "{:?}", marked.pids());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_goes_on_under_the_next_leader_within_its_bounds() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 2).await?;
    let result = updates_outlive_leaders(&mut cluster).await;
    with_logs(&cluster, result)
}
