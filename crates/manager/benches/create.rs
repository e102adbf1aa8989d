//! The whole path: from `CreateService` with 100,000 replicas to the moment at which a watcher has seen them all assigned, by
//! the clock. The control API, and all that thinks in a leader on its own thread, on a store without a log:
//! `cargo bench -p swarm-manager --bench create -- [REPLICAS] [NODES] [RUNS]`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_api::v1::control_server::Control as _;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{
    Annotations, Cluster, ContainerSpec, CreateServiceRequest, Node, NodeDescription, ReplicatedService,
    Resources, ServiceSpec, TaskSpec, TaskState, node_spec, node_status, task_spec,
};
use swarm_api::{Object, id};
use swarm_control::{Alone, Control};
use swarm_manager::brain::keep_thinking;
use swarm_store::{Error, Event, Received, Store};
use tokio_util::sync::CancellationToken;
use tonic::Request;

/// The daemon's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn node(n: u64) -> Node {
    let mut node = Node { id: id::random(), ..Default::default() };
    node.status.state = node_status::State::Ready as i32;
    node.spec.availability = node_spec::Availability::Active as i32;
    let resources = Resources { nano_cpus: 64_000_000_000, memory_bytes: 256 << 30, ..Default::default() };
    node.description = Some(NodeDescription {
        hostname: format!("host-{n}"),
        resources: Some(resources),
        ..Default::default()
    });
    node
}

fn spec(replicas: u64) -> ServiceSpec {
    let container = ContainerSpec { image: "redis".into(), ..Default::default() };
    let task = TaskSpec { runtime: Some(task_spec::Runtime::Container(container)), ..Default::default() };
    ServiceSpec {
        annotations: Annotations { name: "web".into(), ..Default::default() }.into(),
        task: task.into(),
        mode: Some(Mode::Replicated(ReplicatedService { replicas })),
        ..Default::default()
    }
}

fn is_assignment(event: &Event) -> bool {
    match event {
        Event::Updated { new: Object::Task(task), .. } => task.status.state() == TaskState::Assigned,
        _ => false,
    }
}

async fn run(replicas: u64, nodes: u64) -> Duration {
    let store = Store::local();
    let written = store.update::<_, Error, _>(|tx| {
        let mut cluster = Cluster { id: id::random(), ..Default::default() };
        cluster.spec.annotations.name = "default".into();
        tx.create(cluster)?;
        (0..nodes).try_for_each(|n| tx.create(node(n)).map(drop))
    });
    written.await.unwrap();
    let cancel = CancellationToken::new();
    let brain = tokio::spawn(keep_thinking(store.clone(), swarm_dry_run::reconcilers, cancel.clone()));
    let control = Control::new(store.clone(), Arc::new(Alone));
    let (_, mut commits) = store.view_and_subscribe();
    let begin = Instant::now();
    let request = Request::new(CreateServiceRequest { spec: Some(spec(replicas)) });
    control.create_service(request).await.unwrap();
    let mut seen = 0;
    while seen < replicas {
        let Received::Commit(commit) = commits.next().await else { panic!("the watcher lagged") };
        seen += commit.events.iter().filter(|event| is_assignment(event)).count() as u64;
    }
    let took = begin.elapsed();
    cancel.cancel();
    brain.await.unwrap();
    took
}

#[tokio::main]
async fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let of = |at: usize, default: u64| numbers.get(at).copied().unwrap_or(default);
    let (replicas, nodes, runs) = (of(0, 100_000), of(1, 1_000), of(2, 7));
    let mut took = Vec::new();
    for _ in 0..runs {
        took.push(run(replicas, nodes).await);
    }
    took.sort_unstable();
    println!(
        "{replicas} replicas on {nodes} nodes, from CreateService to ASSIGNED: median {:.2?} ({:.2?} to {:.2?})",
        took[took.len() / 2],
        took[0],
        took[took.len() - 1]
    );
}
