//! Nodes that come before and after the tasks that they are to run, and one that is removed while it runs some.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use swarm_api::v1::dispatcher_client::DispatcherClient;
use swarm_api::v1::{
    ListTasksRequest, Placement, RemoveServiceRequest, SessionRequest, TaskState, node_status,
};
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::wait::until;
use swarm_tests::roles::Marked;
use swarm_tests::{SOON, create, scale, spread, with_logs};

const REPLICAS: usize = 60;
/// Time within which all of them must run.
const LIMIT: Duration = Duration::from_secs(64);

async fn sixty_replicas(cluster: &mut Cluster) -> Result<()> {
    let early = Marked::new();
    let mut spec = early.service("early", REPLICAS as u64, None);
    let constraints = vec!["node.role==worker".to_owned()];
    spec.task.placement = Some(Placement { constraints, ..Default::default() });
    let service = create(cluster, spec).await?;
    let control = cluster.control.clone();
    until("the tasks to wait for a worker", SOON, || async {
        let tasks = control.clone().list_tasks(ListTasksRequest::default()).await?.into_inner().tasks;
        let waiting = tasks.iter().filter(|task| task.status.state() == TaskState::Pending).count();
        ensure!(waiting == REPLICAS, "{waiting} of {} wait", tasks.len());
        Ok(())
    })
    .await?;
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    for _ in 0..3 {
        cluster.add_worker().await?;
    }
    let managers = ["manager", "manager-2", "manager-3"].map(|name| cluster.node_id(name));
    let managers: BTreeSet<String> = managers.into_iter().collect::<Result<_>>()?;
    let tasks = cluster.running(&service, REPLICAS, LIMIT).await?;
    ensure!(tasks.iter().all(|task| !managers.contains(task.node_id.as_str())), "{:?}", spread(&tasks));
    ensure!(early.pids().len() == REPLICAS, "{} run", early.pids().len());
    cluster.control.remove_service(RemoveServiceRequest { service_id: service }).await?;
    until("them to end", SOON, || async {
        ensure!(early.pids().is_empty(), "{} run", early.pids().len());
        Ok(())
    })
    .await?;

    let late = Marked::new();
    let service = create(cluster, late.service("late", REPLICAS as u64, None)).await?;
    let tasks = cluster.running(&service, REPLICAS, LIMIT).await?;
    let spread = spread(&tasks);
    ensure!(spread.values().eq([10; 6].iter()), "{spread:?}");
    ensure!(late.pids().len() == REPLICAS, "{} run", late.pids().len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_replicas_run_soon_whether_their_nodes_were_there_before_or_not() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = sixty_replicas(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn removed_by_force(cluster: &mut Cluster) -> Result<()> {
    let anywhere = create(cluster, Marked::new().service("anywhere", 4, None)).await?;
    cluster.running(&anywhere, 4, SOON).await?;
    let mut others = Vec::new();
    for name in ["manager", "worker-2"] {
        let marked = Marked::new();
        let service = create(cluster, marked.service(&format!("on-{name}"), 2, Some(name))).await?;
        cluster.running(&service, 2, SOON).await?;
        others.push((marked, service));
    }
    let pids = |others: &[(Marked, String)]| -> Vec<_> { others.iter().map(|(m, _)| m.pids()).collect() };
    let before = pids(&others);

    let id = cluster.node_id("worker-1")?;
    let out = cluster.ctl(&["node", "rm", "worker-1"])?;
    ensure!(!out.status.success(), "a node that is not down was removed without force");
    cluster.ctl_ok(&["node", "rm", "--force", "worker-1"])?;
    let text = format!("Permission denied: node {id} was removed from swarm");
    for manager in ["manager", "manager-2"] {
        let channel = cluster.tls_channel_as("worker-1", manager)?;
        // One that does not lead hears of it a little later.
        until(&format!("{manager} to refuse it"), SOON, || async {
            let answer = DispatcherClient::new(channel.clone()).session(SessionRequest::default()).await;
            let refused = answer.err().context("it was taken")?;
            ensure!(refused.code() == tonic::Code::PermissionDenied, "{refused}");
            ensure!(refused.message().contains(&text), "{refused}");
            Ok(())
        })
        .await?;
    }
    until("it to know", SOON, || async {
        ensure!(cluster.daemon_named("worker-1")?.log().contains(&text), "it does not say so");
        Ok(())
    })
    .await?;

    // Its tasks are replaced; the other nodes keep theirs, and take more.
    let tasks = cluster.running(&anywhere, 4, SOON).await?;
    ensure!(tasks.iter().all(|task| task.node_id != id), "{:?}", spread(&tasks));
    let (_, service) = &others[1];
    scale(cluster, service, 3).await?;
    cluster.running(service, 3, SOON).await?;
    let after = pids(&others);
    ensure!(before[0] == after[0] && before[1].is_subset(&after[1]), "{before:?} became {after:?}");
    let nodes = cluster.nodes().await?;
    let ready = |state: node_status::State| state == node_status::State::Ready;
    ensure!(nodes.len() == 3 && nodes.iter().all(|node| ready(node.status.state())), "{nodes:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_removed_by_force_is_refused_and_the_others_go_on() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 2).await?;
    let result = match cluster.add_manager().await {
        Ok(()) => removed_by_force(&mut cluster).await,
        Err(error) => Err(error),
    };
    with_logs(&cluster, result)
}
