//! Fifty containers, created and started: straight through the client library, and through controllers, with the
//! same parallelism. What controllers add is the look at each container that its status needs.
//!
//! `cargo bench -p swarm-executor-docker --bench start [-- parallelism…]`
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use bollard::query_parameters::{CreateContainerOptionsBuilder, StartContainerOptions};
use common::Lab;
use futures::StreamExt;
use futures::stream;
use swarm_agent::Executor;

const COUNT: usize = 50;
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() {
    let mut widths: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    if widths.is_empty() {
        widths = vec![4, 8, 16];
    }
    println!("{COUNT} containers, best of {ROUNDS}");
    for width in widths {
        let (mut direct, mut controlled) = (Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            direct = direct.min(directly(width).await);
            controlled = controlled.min(through_controllers(width).await);
        }
        let ratio = controlled.as_secs_f64() / direct.as_secs_f64();
        println!(
            "parallelism {width:2}: direct {direct:.2?}, controllers {controlled:.2?}, ratio {ratio:.2}"
        );
    }
}

async fn directly(width: usize) -> Duration {
    let lab = Lab::with_parallelism(width).await;
    let tasks: Vec<_> = (0..COUNT).map(|_| lab.task(lab.spec("sleep 1000"))).collect();
    let began = Instant::now();
    stream::iter(&tasks)
        .for_each_concurrent(width, async |task| {
            let plan = swarm_executor_docker::plan(task, &Default::default()).unwrap();
            let options = CreateContainerOptionsBuilder::new().name(&plan.name).build();
            lab.docker.create_container(Some(options), plan.body).await.unwrap();
            lab.docker.start_container(&plan.name, None::<StartContainerOptions>).await.unwrap();
        })
        .await;
    let time = began.elapsed();
    lab.done().await;
    time
}

async fn through_controllers(width: usize) -> Duration {
    let lab = Lab::with_parallelism(width).await;
    let tasks: Vec<_> = (0..COUNT).map(|_| lab.task(lab.spec("sleep 1000"))).collect();
    let began = Instant::now();
    // All at once, as an agent does; the executor bounds what reaches the engine.
    stream::iter(&tasks)
        .for_each_concurrent(None, async |task| {
            let controller = lab.controller(task);
            controller.prepare().await.unwrap();
            controller.start().await.unwrap();
            assert!(controller.container_status().await.unwrap().pid > 0);
        })
        .await;
    let time = began.elapsed();
    assert_eq!(lab.containers().await, COUNT);
    lab.executor.sweep(&[]).await.unwrap();
    lab.done().await;
    time
}
