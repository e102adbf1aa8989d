//! What the whole brain takes: `cargo bench -p swarm-orchestrator`. Numbers are CPU time of this process (Linux), the
//! store (without a log) included.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Duration;

use swarm_api::v1::{NodeDescription, Resources, TaskState, node_status};

use swarm_reconcile::IdSource;

use common::{Sim, leader, node, service};

/// The daemon's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// CPU time of the only thread.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

fn timed(what: &str, per: usize, f: impl FnOnce()) {
    let begin = cpu();
    f();
    let took = cpu() - begin;
    let each = took / u32::try_from(per).unwrap();
    println!("{what:<60} {took:>12.3?}   {each:>10.2?} each");
}

/// Ids as they are: random, of 25 characters, and the same in every run.
struct Ids(u64);

impl IdSource for Ids {
    fn next(&mut self) -> String {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut digit = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            char::from(DIGITS[(self.0 >> 32) as usize % 36])
        };
        (0..25).map(|_| digit()).collect()
    }
}

fn main() {
    let nodes = 1_000;
    let tasks = std::env::var("TASKS").ok().and_then(|t| t.parse().ok()).unwrap_or(100_000u64);
    let mut sim = Sim::with_ids(Box::new(Ids(1)), |tx| {
        for n in 0..nodes {
            let mut node = node(&format!("node-{n:05}"));
            node.description = Some(NodeDescription {
                resources: Some(Resources {
                    nano_cpus: 1 << 40,
                    memory_bytes: 1 << 40,
                    ..Default::default()
                }),
                ..Default::default()
            });
            tx.create(node).unwrap();
        }
        tx.create(service("web", 0)).unwrap();
    });
    sim.lead(leader());
    sim.think();
    let count = usize::try_from(tasks).unwrap();
    println!("{nodes} nodes, one service scaled to {tasks} tasks");
    timed("created, allocated, assigned and written", count, || {
        sim.scale("web", tasks);
        sim.think();
    });
    let assigned = sim.view().tasks().by_observed_state(TaskState::Assigned).count();
    assert_eq!(assigned, count);
    println!("{} transactions", sim.decisions);
    timed("reported RUNNING by agents, one transaction per node", count, || {
        let ids: Vec<String> = sim.view().nodes().iter().map(|n| n.id.clone()).collect();
        for node in &ids {
            sim.write(|tx| {
                let tasks: Vec<_> = tx.tasks().by_node(node).cloned().collect();
                for mut task in tasks {
                    task.status.state = TaskState::Running as i32;
                    tx.update(task).unwrap();
                }
            });
        }
    });
    timed("taken in by the brain", count, || sim.think());
    let ids: Vec<String> = sim.view().tasks().iter().take(1000).map(|t| t.id.to_string()).collect();
    timed("1,000 tasks fail one by one and are replaced", ids.len(), || {
        for id in &ids {
            sim.report(id, TaskState::Failed, "");
            sim.think();
        }
    });
    timed("a turn with nothing to do", 100_000, || {
        for _ in 0..100_000 {
            sim.turn();
        }
    });
    sim.pass(Duration::from_secs(10));
    sim.think();
    timed("a node goes down", tasks as usize / nodes, || {
        sim.edit_node("node-00007", |n| n.status.state = node_status::State::Down as i32);
        sim.think();
    });
    timed("a new leader learns everything", count, || {
        sim.lead(leader());
        sim.think();
    });
}
