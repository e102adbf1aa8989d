//! Nodes that change their role while they run, and managers that are asked for what only the leader can do: real
//! daemons, whose tasks must not notice anything of it.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::{ListTasksRequest, NodeRole, TaskState};
use swarm_testkit::daemon::{Cluster, Engine, channel};
use swarm_testkit::quorum::PATIENCE;
use swarm_testkit::wait::until;
use swarm_tests::roles::{Marked, ctl, ctl_ok, has_role, node, nodes};
use swarm_tests::{SOON, create, scale, with_logs};

/// Who leads, as the manager with this name sees it.
async fn leader(cluster: &Cluster, at: &str) -> Result<String> {
    let nodes = nodes(cluster, at).await?;
    let leader = nodes.iter().find(|n| n.manager_status.as_ref().is_some_and(|s| s.leader));
    let description = leader.context("no leader")?.description.as_ref().context("it is not described")?;
    Ok(description.hostname.clone())
}

/// Ids of the running tasks of a service, as the manager with this name knows them.
async fn running(cluster: &Cluster, at: &str, service: &str) -> Result<BTreeSet<String>> {
    let mut control = ControlClient::new(channel(cluster.socket_of(at)));
    let tasks = control.list_tasks(ListTasksRequest::default()).await?.into_inner().tasks;
    let running = tasks.iter().filter(|t| t.service_id == service && t.status.state() == TaskState::Running);
    Ok(running.map(|t| t.id.to_string()).collect())
}

async fn every_manager_answers(cluster: &mut Cluster) -> Result<()> {
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    for name in ["manager-2", "manager-3"] {
        has_role(cluster, "manager", name, NodeRole::Manager).await?;
    }
    // The same on each, whoever leads.
    until("all managers to show the same", PATIENCE, || async {
        let shown = ctl_ok(cluster, "manager", &["node", "ls"])?;
        for at in ["manager-2", "manager-3"] {
            ensure!(ctl_ok(cluster, at, &["node", "ls"])? == shown, "{at} shows something else than {shown}");
        }
        ensure!(shown.matches("REACHABLE").count() == 3 && !shown.contains("UNREACHABLE"), "{shown}");
        Ok(())
    })
    .await?;
    // What one accepts is there at once on all others.
    for at in ["manager", "manager-2", "manager-3"] {
        let name = format!("made-at-{at}");
        ctl_ok(cluster, at, &["service", "create", "--name", &name, "--image", "none", "--replicas", "0"])?;
        for other in ["manager", "manager-2", "manager-3"] {
            let listed = ctl_ok(cluster, other, &["service", "ls"])?;
            ensure!(listed.contains(&name), "{name} is not there at {other}:\n{listed}");
        }
    }
    // A worker that knows only a manager that does not lead.
    let follower = if leader(cluster, "manager").await? == "manager-2" { "manager-3" } else { "manager-2" };
    let address = cluster.daemon_named(follower)?.address()?;
    let token = cluster.worker_token().await?;
    let mut worker = cluster.daemon("worker", &["--join-addr", &address, "--join-token", &token]);
    worker.start().await?;
    has_role_of(cluster, follower, "worker", NodeRole::Worker).await?;
    until("the worker to know all managers", PATIENCE, || async {
        let managers = std::fs::read_to_string(worker.state_dir().join("state.json"))?;
        ensure!(managers.matches("node_id").count() == 3, "it knows {managers}");
        Ok(())
    })
    .await
}

async fn has_role_of(cluster: &Cluster, at: &str, name: &str, role: NodeRole) -> Result<()> {
    let node = node(cluster, at, name).await?;
    ensure!(node.role() == role, "{name} is a {}", node.role().as_str_name());
    Ok(())
}

async fn a_worker_becomes_a_manager_and_a_worker_again(cluster: &mut Cluster) -> Result<()> {
    let marked = Marked::new();
    let service = create(cluster, marked.service("web", 2, Some("worker-1"))).await?;
    cluster.running(&service, 2, SOON).await?;
    let (pids, tasks) = (marked.pids(), running(cluster, "manager", &service).await?);
    ensure!(pids.len() == 2, "{pids:?}");
    let daemon = cluster.workers[0].pid();

    ctl_ok(cluster, "manager", &["node", "promote", "worker-1"])?;
    has_role(cluster, "manager", "worker-1", NodeRole::Manager).await?;
    // It answers on its own socket now.
    until("the new manager to answer", PATIENCE, || async {
        let (here, there) =
            (ctl_ok(cluster, "worker-1", &["node", "ls"])?, ctl_ok(cluster, "manager", &["node", "ls"])?);
        ensure!(here == there, "{here} is not {there}");
        Ok(())
    })
    .await?;
    ctl_ok(
        cluster,
        "worker-1",
        &["service", "create", "--name", "more", "--image", "none", "--replicas", "0"],
    )?;
    let out = ctl(cluster, "manager", &["node", "promote", "worker-1"])?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(!out.status.success() && text.contains("already a manager"), "{text}");
    ensure!(marked.pids() == pids, "{:?} run instead of {pids:?}", marked.pids());

    ctl_ok(cluster, "worker-1", &["node", "demote", "worker-1"])?;
    has_role(cluster, "manager", "worker-1", NodeRole::Worker).await?;
    let raft = cluster.workers[0].state_dir().join("raft");
    until("the raft log to be removed", PATIENCE, || async {
        ensure!(!raft.exists(), "{} is there", raft.display());
        Ok(())
    })
    .await?;
    let key = std::fs::read_to_string(cluster.workers[0].state_dir().join("certificates/swarm-node.key"))?;
    ensure!(!key.contains("raft-dek"), "the log's key is still there");
    ensure!(cluster.workers[0].pid() == daemon, "the daemon was restarted");

    // It takes orders as before, and nothing that ran was touched.
    scale(cluster, &service, 3).await?;
    cluster.running(&service, 3, SOON).await?;
    let now = running(cluster, "manager", &service).await?;
    ensure!(tasks.is_subset(&now), "{tasks:?} became {now:?}");
    ensure!(pids.is_subset(&marked.pids()), "{pids:?} became {:?}", marked.pids());

    // Once more: a node that was a manager before gets a new place in the group.
    ctl_ok(cluster, "manager", &["node", "promote", "worker-1"])?;
    has_role(cluster, "manager", "worker-1", NodeRole::Manager).await?;
    ensure!(pids.is_subset(&marked.pids()), "{pids:?} became {:?}", marked.pids());
    scale(cluster, &service, 0).await?;
    cluster.running(&service, 0, SOON).await?;
    Ok(())
}

async fn the_leader_itself_is_demoted(cluster: &mut Cluster) -> Result<()> {
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    for name in ["manager-2", "manager-3"] {
        has_role(cluster, "manager", name, NodeRole::Manager).await?;
    }
    ensure!(leader(cluster, "manager").await? == "manager", "the first one leads");
    let marked = Marked::new();
    let service = create(cluster, marked.service("web", 3, None)).await?;
    cluster.running(&service, 3, SOON).await?;
    let (pids, tasks) = (marked.pids(), running(cluster, "manager", &service).await?);
    ensure!(pids.len() == 3, "{pids:?}");
    let daemon = cluster.manager.pid();

    ctl_ok(cluster, "manager", &["node", "demote", "manager"])?;
    has_role(cluster, "manager-2", "manager", NodeRole::Worker).await?;
    let successor = leader(cluster, "manager-2").await?;
    ensure!(successor != "manager", "it still leads");
    ensure!(cluster.manager.pid() == daemon, "the daemon was restarted");
    ctl_ok(
        cluster,
        "manager-3",
        &["service", "create", "--name", "after", "--image", "none", "--replicas", "0"],
    )?;
    until("all nodes to be ready", PATIENCE, || async {
        let shown = ctl_ok(cluster, "manager-3", &["node", "ls"])?;
        ensure!(shown.matches("READY").count() == 3, "{shown}");
        Ok(())
    })
    .await?;
    ensure!(running(cluster, "manager-2", &service).await? == tasks, "tasks were replaced");
    ensure!(marked.pids() == pids, "{pids:?} became {:?}", marked.pids());
    ctl_ok(cluster, "manager-2", &["service", "rm", "web"])?;
    until("the tasks to end", PATIENCE, || async {
        ensure!(marked.pids().is_empty(), "{:?} are left", marked.pids());
        Ok(())
    })
    .await
}

async fn a_manager_is_demoted_while_it_is_down(cluster: &mut Cluster) -> Result<()> {
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    has_role(cluster, "manager", "manager-3", NodeRole::Manager).await?;
    cluster.daemon_mut("manager-3")?.kill()?;
    ctl_ok(cluster, "manager", &["node", "demote", "manager-3"])?;
    until("it to be no member", PATIENCE, || async {
        let node = node(cluster, "manager", "manager-3").await?;
        ensure!(node.role() == NodeRole::Worker && node.manager_status.is_none(), "it still is");
        Ok(())
    })
    .await?;
    cluster.daemon_mut("manager-3")?.spawn()?;
    has_role(cluster, "manager", "manager-3", NodeRole::Worker).await?;
    let raft = cluster.daemon_named("manager-3")?.state_dir().join("raft");
    until("the raft log to be removed", PATIENCE, || async {
        ensure!(!raft.exists(), "{} is there", raft.display());
        Ok(())
    })
    .await?;
    cluster.daemon_mut("manager-3")?.ready().await
}

async fn a_dead_manager_is_demoted_where_the_cluster_wants_it(cluster: &mut Cluster) -> Result<()> {
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    has_role(cluster, "manager", "manager-3", NodeRole::Manager).await?;
    let out = ctl(cluster, "manager-2", &["cluster", "update", "--dead-manager-timeout", "9s"])?;
    ensure!(out.status.code() == Some(2), "{out:?}");
    ctl_ok(cluster, "manager-2", &["cluster", "update", "--dead-manager-timeout", "10s"])?;
    let shown = ctl_ok(cluster, "manager-2", &["cluster", "inspect"])?;
    ensure!(shown.contains("Dead manager timeout: 10s"), "{shown}");
    cluster.daemon_mut("manager-3")?.kill()?;
    until("it to be no member", PATIENCE, || async {
        let node = node(cluster, "manager", "manager-3").await?;
        ensure!(node.role() == NodeRole::Worker && node.manager_status.is_none(), "it still is");
        Ok(())
    })
    .await?;
    let logs = cluster.logs();
    ensure!(logs.contains("it is demoted, as the cluster's settings want it"), "nobody says why");
    // Two are left, and none of them can be spared.
    cluster.daemon_mut("manager-3")?.spawn()?;
    has_role(cluster, "manager", "manager-3", NodeRole::Worker).await?;
    for name in ["manager", "manager-2"] {
        has_role(cluster, "manager", name, NodeRole::Manager).await?;
    }
    Ok(())
}

async fn the_last_manager_stays(cluster: &mut Cluster) -> Result<()> {
    let out = ctl(cluster, "manager", &["node", "demote", "manager"])?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.code() == Some(1), "{:?}", out.status);
    ensure!(text == "Error: attempting to demote the last manager of the swarm\n", "{text}");
    has_role(cluster, "manager", "manager", NodeRole::Manager).await
}

async fn without_a_quorum_the_error_says_what_to_do(cluster: &mut Cluster) -> Result<()> {
    cluster.add_manager().await?;
    has_role(cluster, "manager", "manager-2", NodeRole::Manager).await?;
    let gone = cluster.address()?;
    cluster.manager.kill()?;
    until("the error that there is no leader", PATIENCE, || async {
        let out = ctl(cluster, "manager-2", &["node", "ls"])?;
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(!out.status.success(), "there is a leader");
        let contract = "Error: The swarm does not have a leader. It's possible that too few managers are online. Make \
                        sure more than half of the managers are online. ";
        let rest = text.strip_prefix(contract).with_context(|| text.clone())?;
        ensure!(rest.contains("Of 2 known managers, 2 must be online") && rest.contains(&gone), "{rest}");
        Ok(())
    })
    .await?;
    // Nothing was changed meanwhile, and everything works when it is back.
    cluster.manager.start().await?;
    until("a leader", PATIENCE, || async { leader(cluster, "manager-2").await.map(drop) }).await
}

macro_rules! roles {
    ($($name:ident with $workers:expr;)*) => {
        mod with_real_daemons {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() -> Result<()> {
                    let mut cluster = Cluster::start(Engine::None, $workers).await?;
                    let result = super::$name(&mut cluster).await;
                    with_logs(&cluster, result)
                }
            )*
        }
    };
}

roles! {
    every_manager_answers with 0;
    a_worker_becomes_a_manager_and_a_worker_again with 1;
    the_leader_itself_is_demoted with 0;
    a_manager_is_demoted_while_it_is_down with 0;
    a_dead_manager_is_demoted_where_the_cluster_wants_it with 0;
    the_last_manager_stays with 0;
    without_a_quorum_the_error_says_what_to_do with 0;
}
