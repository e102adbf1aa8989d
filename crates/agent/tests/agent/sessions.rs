use std::time::Duration;

use swarm_api::v1::{
    Cluster as ClusterObject, EncryptionKey, Node, NodeRole, NodeTlsInfo, TaskState, node_status,
};
use swarm_executor_sim::SimExecutor;

use crate::cluster::*;

#[tokio::test(start_paused = true)]
async fn a_beating_agent_stays_ready_and_an_unplugged_one_goes_down() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let wires = cluster.connector("n1");
    let agent = cluster.agent_on("n1", dir.path(), wires.clone()).await;
    agent.handle.ready().await;
    let state = |view: &swarm_store::View| view.nodes().get("n1").unwrap().status.state();
    cluster.until("ready", |v| state(v) == node_status::State::Ready).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(state(&cluster.store.view()), node_status::State::Ready);
    assert_eq!(wires.dialled(), 1);
    assert_eq!(agent.handle.observed().borrow().sessions, 1);
    wires.plug(false);
    cluster.until("down", |v| state(v) == node_status::State::Down).await;
    assert!(agent.handle.observed().borrow().manager.is_none());
    assert!(agent.handle.observed().borrow().failures > 0);
    wires.plug(true);
    cluster.until("back", |v| state(v) == node_status::State::Ready).await;
    agent.stop().await;
}

// 89, 90: without a new connection, and without the assignments sent anew.
#[tokio::test(start_paused = true)]
async fn a_new_description_is_told_within_the_session() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let wires = cluster.connector("n1");
    let agent = cluster.agent_on("n1", dir.path(), wires.clone()).await;
    agent.handle.ready().await;
    let info = NodeTlsInfo { trust_root: b"pem".to_vec(), ..Default::default() };
    agent.tls_info.send(Some(info.clone())).unwrap();
    let told = |view: &swarm_store::View| {
        let node = view.nodes().get("n1").unwrap();
        node.description.as_ref().is_some_and(|d| d.tls_info.as_ref() == Some(&info))
    };
    cluster.until("the new description", told).await;
    cluster.create(task("t", "n1")).await;
    cluster.until_state("t", TaskState::Running).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(wires.dialled(), 1);
    assert_eq!(agent.handle.observed().borrow().sessions, 1);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_identity_gets_a_new_connection() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let wires = cluster.connector("n1");
    let agent = cluster.agent_on("n1", dir.path(), wires.clone()).await;
    agent.handle.ready().await;
    let mut observed = agent.handle.observed();
    agent.handle.reconnect().now();
    observed.wait_for(|observed| observed.sessions == 2).await.unwrap();
    assert_eq!(wires.dialled(), 2);
    agent.stop().await;
}

// 96
#[tokio::test(start_paused = true)]
async fn the_manager_in_the_same_process_is_used_instead_of_others() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let wires = cluster.connector("n1");
    wires.set_local(true).await;
    let agent = cluster.agent_on("n1", dir.path(), wires.clone()).await;
    agent.handle.ready().await;
    let mut observed = agent.handle.observed();
    assert_eq!(observed.borrow().manager.as_deref(), Some(swarm_agent::LOCAL));
    cluster.create(task("t", "n1")).await;
    cluster.until_state("t", TaskState::Running).await;
    let known: Vec<_> = agent.remotes.peers().into_iter().map(|p| p.peer.unwrap()).collect();
    assert_eq!((known, wires.dialled()), (vec![peer("m1")], 0), "it knows of others, and calls none");
    // Once it is gone, the others are there.
    wires.set_local(false).await;
    agent.handle.reconnect().now();
    observed.wait_for(|observed| observed.manager.as_deref() == Some("m1:4242")).await.unwrap();
    assert_eq!(wires.dialled(), 1);
    agent.stop().await;
}

// 84, 85
#[tokio::test(start_paused = true)]
async fn a_leader_that_changes_is_followed() {
    let mut cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.create(task("t", "n1")).await;
    cluster.until_state("t", TaskState::Running).await;
    let mut observed = agent.handle.observed();
    for session in 2..5 {
        cluster.lose_leadership().await;
        cluster.dispatcher.mark_unknown().await.unwrap();
        cluster.lead();
        observed.wait_for(|observed| observed.sessions == session).await.unwrap();
        let ready =
            |v: &swarm_store::View| v.nodes().get("n1").unwrap().status.state() == node_status::State::Ready;
        cluster.until("ready again", ready).await;
    }
    assert_eq!(cluster.world.starts("t"), 1);
    agent.stop().await;
}

// 92 to 95
#[tokio::test(start_paused = true)]
async fn what_managers_say_comes_up() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let executor = std::sync::Arc::new(SimExecutor::new(&cluster.world, "n1"));
    let agent = start_agent("n1", dir.path(), cluster.connector("n1"), vec![executor.clone()]).await;
    agent.handle.ready().await;
    let mut observed = agent.handle.observed();
    assert_eq!(observed.borrow_and_update().root_ca, b"root");
    cluster.change::<ClusterObject>("c", |c| c.root_ca.ca_cert = b"next".to_vec()).await;
    observed.wait_for(|observed| observed.root_ca == b"next").await.unwrap();
    let promote = |node: &mut Node| node.spec.desired_role = NodeRole::Manager as i32;
    cluster.change::<Node>("n1", promote).await;
    let wanted = |observed: &swarm_agent::Observed| {
        observed.node.as_ref().is_some_and(|node| node.spec.desired_role() == NodeRole::Manager)
    };
    observed.wait_for(wanted).await.unwrap();
    let keys = |times: &[u64]| -> Vec<EncryptionKey> {
        times.iter().map(|t| EncryptionKey { lamport_time: *t, ..Default::default() }).collect()
    };
    for times in [vec![1, 2], vec![2], vec![2, 3]] {
        let keys = keys(&times);
        cluster.change::<ClusterObject>("c", |c| c.network_bootstrap_keys = keys.clone()).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(executor.keys(), [vec![1, 2], vec![2, 3]], "a list without a new key is not passed on");
    let known: Vec<_> = agent.remotes.peers().into_iter().map(|p| p.peer.unwrap()).collect();
    assert_eq!(known, [peer("m1")]);
    agent.stop().await;
}
