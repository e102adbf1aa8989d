//! Many nodes. The limits are loose: they tell a scan of all nodes from a look-up, not a fast machine from a slow.

use std::time::Instant;

use futures::FutureExt as _;
use futures::StreamExt as _;
use swarm_api::v1::{Node, TaskState};
use swarm_store::Error;

use crate::harness::*;

const NODES: usize = 5_000;

fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

#[tokio::test(start_paused = true)]
async fn a_change_costs_what_it_concerns_and_an_idle_session_little() {
    let mut timings = timings();
    timings.heartbeat_period = std::time::Duration::from_secs(3600);
    let mut h = stopped(timings).await;
    let ids: Vec<String> = (0..NODES).map(|i| format!("node{i:05}")).collect();
    let nodes = || ids.iter().map(|id| Node { id: id.clone(), ..Default::default() });
    let create = |tx: &mut swarm_store::Tx| nodes().try_for_each(|node| tx.create::<Node>(node).map(|_| ()));
    h.store.update::<_, Error, _>(create).await.unwrap();
    h.start();
    h.settle().await;
    let before = memory();
    let mut sessions = Vec::new();
    for id in &ids {
        let opening = h.session(id);
        sessions.push(opening.await);
    }
    let mut streams = Vec::new();
    for (id, session) in ids.iter().zip(&sessions) {
        let mut stream = h.assignments(id, &session.id).await.unwrap();
        stream.next().await;
        assert!(stream.stream.next().now_or_never().is_none());
        streams.push(stream);
    }
    let each = (memory() - before) / NODES as u64;
    eprintln!("{each} bytes for each session");
    assert!(each < 16 * 1024, "{each} bytes for each session");

    let begin = Instant::now();
    for (i, id) in ids.iter().enumerate().take(1000) {
        h.create(task(&format!("t{i}"), id, TaskState::Assigned)).await;
    }
    for (i, stream) in streams.iter_mut().enumerate().take(1000) {
        assert_eq!(summary(&stream.next().await), format!("+task:t{i}"));
    }
    eprintln!("{:?} for a change in one of {NODES} streams", begin.elapsed() / 1000);
    let begin = Instant::now();
    for (id, session) in ids.iter().zip(&sessions) {
        h.heartbeat(id, &session.id).await.unwrap();
    }
    eprintln!("{:?} for a heartbeat", begin.elapsed() / NODES as u32);
}
