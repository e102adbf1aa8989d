//! Managers as real processes on this host, with their default settings: how long writes stand still when the leader of
//! three dies or stops, how fast they are otherwise, and what a store of many tasks costs a manager that joins or
//! restarts. Needs release builds of the programs: `cargo build --release --bins`, then
//! `cargo bench -p swarm-tests --bench quorum -- failover writes large`. `join` is the last part of `large`.
#![allow(missing_docs)]

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::{join_all, select_ok};
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::health_client::HealthClient;
use swarm_api::v1::raft_member_status::Reachability;
use swarm_api::v1::{
    ClusterSpec, ConfigSpec, CreateConfigRequest, HealthCheckRequest, ListClustersRequest, ListNodesRequest,
    ListTasksRequest, Placement, UpdateClusterRequest,
};
use swarm_testkit::daemon::{Cluster, Engine, channel};
use swarm_testkit::wait::until;
use swarm_tests::{create, process_service};

const NAMES: [&str; 3] = ["manager", "manager-2", "manager-3"];
const ROUNDS: usize = 20;
const LIMIT: Duration = Duration::from_secs(120);
const CONFIG: usize = 1024;
const TASKS: u64 = 100_000;

#[tokio::main]
async fn main() -> Result<()> {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |part: &str| chosen.is_empty() || chosen.iter().any(|arg| arg == part);
    if wanted("failover") || wanted("writes") {
        let mut cluster = Cluster::start(Engine::None, 0).await?;
        for _ in 0..2 {
            cluster.add_manager().await?;
        }
        if wanted("failover") {
            failover(&mut cluster).await?;
        }
        if wanted("writes") {
            writes(&cluster).await?;
        }
    }
    if wanted("large") {
        large(true).await?;
    } else if wanted("join") {
        large(false).await?;
    }
    Ok(())
}

fn spec(name: &str, size: usize) -> CreateConfigRequest {
    let mut spec = ConfigSpec { data: vec![b'x'; size], ..ConfigSpec::default() };
    spec.annotations.name = name.to_owned();
    CreateConfigRequest { spec: Some(spec) }
}

/// Every manager sees all three, and the same leader; its name.
async fn settled(cluster: &Cluster) -> Result<&'static str> {
    until("three managers that agree", LIMIT, || async {
        let mut leaders = Vec::new();
        for name in NAMES {
            let nodes = cluster.tls(name)?.list_nodes(ListNodesRequest::default()).await?.into_inner().nodes;
            let seen: Vec<_> =
                nodes.iter().filter_map(|n| Some((n.id.clone(), n.manager_status.as_ref()?))).collect();
            let reachable = seen.iter().filter(|(_, s)| s.reachability() == Reachability::Reachable).count();
            ensure!(reachable == NAMES.len(), "{name} reaches {reachable}");
            leaders.extend(seen.into_iter().filter(|(_, s)| s.leader).map(|(id, _)| id));
        }
        ensure!(leaders.len() == NAMES.len() && leaders.iter().all(|l| *l == leaders[0]), "{leaders:?}");
        let mut names = NAMES.into_iter();
        names.find(|name| cluster.node_id(name).is_ok_and(|id| id == leaders[0])).context("no such leader")
    })
    .await
}

/// Writes through one socket until it succeeds; how often it had to try.
async fn write(socket: PathBuf, name: String) -> Result<usize> {
    let mut control = ControlClient::new(channel(socket));
    for attempt in 1.. {
        match control.create_config(spec(&format!("{name}-{attempt}"), 10)).await {
            Ok(_) => return Ok(attempt),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    bail!("never")
}

async fn failover(cluster: &mut Cluster) -> Result<()> {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let leader = settled(cluster).await?;
        let others = NAMES.into_iter().filter(|name| *name != leader);
        let sockets: Vec<PathBuf> = others.map(|name| cluster.socket_of(name)).collect();
        let began = Instant::now();
        cluster.daemon_mut(leader)?.kill()?;
        let writing = sockets.into_iter().map(|socket| Box::pin(write(socket, format!("killed-{round}"))));
        let first = select_ok(writing).await?;
        times.push(began.elapsed());
        drop(first);
        cluster.daemon_mut(leader)?.start().await?;
    }
    report("kill -9 of the leader to the first write through another manager", times);

    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let leader = settled(cluster).await?;
        let other = NAMES.into_iter().find(|name| *name != leader).context("another one")?;
        let socket = cluster.socket_of(other);
        let stopped = tokio_util::sync::CancellationToken::new();
        let (ended, prefix) = (stopped.clone(), format!("stopped-{round}"));
        // Writes all the time; what counts is the longest time in which none succeeded.
        let writer = tokio::spawn(async move {
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            let mut control = ControlClient::new(channel(socket));
            for number in 0.. {
                if control.create_config(spec(&format!("{prefix}-{number}"), 10)).await.is_ok() {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                    if ended.is_cancelled() {
                        break;
                    }
                }
            }
            longest
        });
        let status = cluster.daemon_mut(leader)?.stop().await?;
        ensure!(status.success(), "{status}");
        stopped.cancel();
        times.push(writer.await?);
        cluster.daemon_mut(leader)?.start().await?;
    }
    report("longest pause of writes while the leader stops in good order", times);
    Ok(())
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let all: Vec<String> = times.iter().map(|time| format!("{:.2}", time.as_secs_f64())).collect();
    println!(
        "{what}: median {:.2?}, least {:.2?}, most {:.2?} of {} ({})",
        times[times.len() / 2],
        times[0],
        times[times.len() - 1],
        times.len(),
        all.join(" ")
    );
}

/// Writes configs of 1 KB through the leader's socket, with a connection for each client.
async fn load(socket: PathBuf, clients: usize, time: Duration) -> Result<Vec<Duration>> {
    let end = Instant::now() + time;
    let clients = (0..clients).map(|_| {
        let mut control = ControlClient::new(channel(socket.clone()));
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            while Instant::now() < end {
                let name = format!("load-{}", swarm_api::id::random());
                let began = Instant::now();
                control.create_config(spec(&name, CONFIG)).await?;
                latencies.push(began.elapsed());
            }
            Ok::<_, anyhow::Error>(latencies)
        })
    });
    let mut all = Vec::new();
    for client in join_all(clients).await {
        all.extend(client??);
    }
    all.sort();
    Ok(all)
}

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

async fn writes(cluster: &Cluster) -> Result<()> {
    let leader = settled(cluster).await?;
    let other = NAMES.into_iter().find(|name| *name != leader).context("another one")?;
    let socket = cluster.socket_of(leader);
    let time = Duration::from_secs(5);
    load(socket.clone(), 1, Duration::from_secs(1)).await?;
    for clients in [1, 64] {
        let (sync, round_trip) = (sync_time(cluster)?, round_trip(cluster, other).await?);
        let latencies = load(socket.clone(), clients, time).await?;
        let per_second = latencies.len() as f64 / time.as_secs_f64();
        let parts = 2 * sync + round_trip;
        println!(
            "{clients} clients: {per_second:.0}/s, median {:.2?}, p99 {:.2?}; sync {sync:.2?}, round trip {round_trip:.2?}, \
             median over sync + round trip + sync: {:.2}",
            percentile(&latencies, 0.5),
            percentile(&latencies, 0.99),
            percentile(&latencies, 0.5).as_secs_f64() / parts.as_secs_f64()
        );
    }
    Ok(())
}

/// A manager with many tasks that nobody can run: its restarts, if they are asked for, and managers that join it.
async fn large(restarts: bool) -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let mut many = process_service("many", TASKS);
    let mut task = (*many.task).clone();
    let constraints = vec!["node.labels.nowhere==true".to_owned()];
    task.placement = Some(Placement { constraints, ..Placement::default() });
    many.task = task.into();
    create(&mut cluster, many).await?;
    let began = Instant::now();
    until("all tasks", LIMIT * 5, || async {
        let tasks = tasks(&cluster, "manager").await?;
        ensure!(tasks == TASKS, "{tasks} tasks");
        Ok(())
    })
    .await?;
    println!("{TASKS} tasks were made in {:.1?}", began.elapsed());

    if restarts {
        restarted(&mut cluster).await?;
    }
    // The second is needed for the quorum as soon as it is a member; the third is not.
    for name in ["manager-2", "manager-3"] {
        let quiet = load(cluster.socket(), 1, Duration::from_secs(10)).await?;
        shares("writes, one client, nothing else", &quiet);
        let meanwhile = tokio::spawn(load(cluster.socket(), 1, Duration::from_secs(20)));
        let (joined, meanwhile) = tokio::join!(cluster_joined(&mut cluster, name), meanwhile);
        println!("{name} joins, to voter with all tasks: {:.2?}", joined?);
        let meanwhile = meanwhile??;
        shares("writes, one client, 20 s from when it joins", &meanwhile);
        let ratio = percentile(&meanwhile, 0.99).as_secs_f64() / percentile(&quiet, 0.99).as_secs_f64();
        println!("p99 over the quiet one: {ratio:.1}");
    }
    Ok(())
}

/// Restarts, and snapshots beside a writer.
async fn restarted(cluster: &mut Cluster) -> Result<()> {
    // With a snapshot, and with what came after it.
    for round in 0..3 {
        cluster.manager.stop().await?;
        let began = Instant::now();
        cluster.manager.spawn()?;
        write(cluster.socket(), format!("restart-{round}")).await?;
        println!("restart to the first write: {:.2?}", began.elapsed());
    }
    cluster.manager.ready().await?;
    cluster.reconnect();

    let quiet = load(cluster.socket(), 1, Duration::from_secs(10)).await?;
    shares("writes, one client, nothing else", &quiet);
    let object = cluster.cluster_object().await?;
    let mut spec = object.spec.clone();
    let usual = std::mem::replace(&mut spec.raft.snapshot_interval, 500);
    let update = |cluster: &Cluster, spec: ClusterSpec| {
        let mut control = cluster.control.clone();
        async move {
            let clusters = control.list_clusters(ListClustersRequest::default()).await?.into_inner().clusters;
            let object = clusters.first().context("no cluster object")?;
            let request = UpdateClusterRequest {
                cluster_id: object.id.clone(),
                cluster_version: Some(object.meta.version),
                spec: Some(spec),
                ..UpdateClusterRequest::default()
            };
            control.update_cluster(request).await?;
            Ok::<_, anyhow::Error>(())
        }
    };
    update(cluster, spec.clone()).await?;
    let snapshots = load(cluster.socket(), 1, Duration::from_secs(20)).await?;
    shares("writes, one client, a snapshot every 500", &snapshots);
    spec.raft.snapshot_interval = usual;
    update(cluster, spec).await?;
    Ok(())
}

/// Adds a manager; how long it took until it had applied that it is a member, and all before.
async fn cluster_joined(cluster: &mut Cluster, name: &str) -> Result<Duration> {
    let began = Instant::now();
    cluster.add_manager().await?;
    let took = began.elapsed();
    let tasks = tasks(cluster, name).await?;
    ensure!(tasks == TASKS, "it has {tasks} tasks");
    Ok(took)
}

/// Number of tasks in a manager's own store.
async fn tasks(cluster: &Cluster, name: &str) -> Result<u64> {
    let control = ControlClient::new(cluster.tls_channel(name)?);
    let mut control = control.max_decoding_message_size(usize::MAX);
    Ok(control.list_tasks(ListTasksRequest::default()).await?.into_inner().tasks.len() as u64)
}

fn shares(what: &str, sorted: &[Duration]) {
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| percentile(sorted, share));
    println!("{what}: {} in all, median {p50:.2?}, p99 {p99:.2?}, p99.9 {p999:.2?}", sorted.len());
}

/// Writing 1 KB into a file that is long enough, and syncing it, on the file system that the logs are on.
fn sync_time(cluster: &Cluster) -> Result<Duration> {
    let mut file = tempfile::tempfile_in(cluster.manager.state_dir())?;
    file.write_all(&vec![0; 1 << 20])?;
    file.sync_all()?;
    let mut times = Vec::new();
    for at in 0..300 {
        let began = Instant::now();
        file.write_all_at(&[1; CONFIG], at * CONFIG as u64)?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    times.sort();
    Ok(percentile(&times, 0.5))
}

/// A small call to another manager over TLS.
async fn round_trip(cluster: &Cluster, name: &str) -> Result<Duration> {
    let mut health = HealthClient::new(cluster.tls_channel(name)?);
    let mut times = Vec::new();
    for _ in 0..300 {
        let began = Instant::now();
        health.check(HealthCheckRequest { service: "Raft".into() }).await?;
        times.push(began.elapsed());
    }
    times.sort();
    Ok(percentile(&times, 0.5))
}
