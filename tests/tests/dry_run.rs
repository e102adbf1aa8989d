//! Dry runs on real daemons: what is foreseen is what then happens, from whichever manager it is asked, and nothing of
//! it is written.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use swarm_api::swarmd::dry_run_request::Call;
use swarm_api::swarmd::services_client::ServicesClient;
use swarm_api::swarmd::{DryRunRequest, DryRunResponse};
use swarm_api::v1::{CreateServiceRequest, Placement, ServiceSpec};
use swarm_testkit::daemon::{Cluster, Engine, channel};
use swarm_tests::{SOON, create, process_service, spread, with_logs};

async fn foresee(cluster: &Cluster, manager: &str, spec: &ServiceSpec) -> Result<DryRunResponse> {
    let call = Call::Create(CreateServiceRequest { spec: Some(spec.clone()) });
    let mut services = ServicesClient::new(channel(cluster.socket_of(manager)));
    Ok(services.dry_run(DryRunRequest { call: Some(call) }).await?.into_inner())
}

fn placed(answer: &DryRunResponse) -> BTreeMap<String, usize> {
    answer.nodes.iter().map(|n| (n.node_id.clone(), n.placed as usize)).collect()
}

async fn foreseen_and_done(cluster: &mut Cluster) -> Result<()> {
    cluster.add_manager().await?;
    // With a task on each node but one, where the odd tasks of the next service go is no matter of taste.
    let mut base = process_service("base", 3);
    let elsewhere = cluster.node("worker-2").await?.id.clone();
    base.task.placement = Some(Placement {
        constraints: vec![format!("node.id!={elsewhere}")],
        max_replicas: 1,
        ..Default::default()
    });
    let service = create(cluster, base).await?;
    cluster.running(&service, 3, SOON).await?;

    let spec = process_service("web", 9);
    let before = cluster.service(&service).await?.meta.version.index;
    let answer = foresee(cluster, "manager", &spec).await?;
    let follower = foresee(cluster, "manager-2", &spec).await?;
    ensure!(placed(&answer) == placed(&follower), "{answer:?} and {follower:?}");
    ensure!(answer.index >= before && answer.placed == 9 && answer.refused == 0, "{answer:?}");
    ensure!(cluster.services().await?.len() == 1, "a dry run has made a service");
    let service = create(cluster, spec).await?;
    let tasks = cluster.running(&service, 9, SOON).await?;
    ensure!(spread(&tasks) == placed(&answer), "{:?} is not {:?}", spread(&tasks), placed(&answer));

    // On the command line, with an exit code for scripts.
    let page = cluster.ctl_ok(&["service", "update", "web", "--env", "NEW=1", "--dry-run"])?;
    ensure!(page.contains("Tasks: 0 placed, 9 replaced."), "{page}");
    ensure!(page.contains("\nenvironment  replaces 9 tasks\n"), "{page}");
    let nowhere = ["--constraint", "node.labels.zone==moon", "--dry-run"];
    let out = cluster.ctl(&[&["service", "update", "web", "--replicas", "10"], &nowhere[..]].concat())?;
    let page = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.code() == Some(3), "{out:?}");
    ensure!(page.contains("scheduling constraints not satisfied on 4 nodes"), "{page}");
    let after = cluster.running(&service, 9, SOON).await?;
    ensure!(after.iter().map(|t| &t.id).eq(tasks.iter().map(|t| &t.id)), "tasks were touched");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_foresees_what_happens_on_processes() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 2).await?;
    let result = foreseen_and_done(&mut cluster).await.context("dry run");
    with_logs(&cluster, result)
}
