//! Fifty replicas: `swarmctl service create` until every task reports RUNNING, against as many containers created and
//! started straight through the engine's API with the same parallelism. Needs release builds of the programs:
//! `cargo build --release --bins`, then `cargo bench -p swarm-tests --bench replicas`.
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use swarm_testkit::daemon::{Cluster, Engine};

const COUNT: usize = 50;
const ROUNDS: usize = 3;
const LIMIT: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() -> Result<()> {
    let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
    let image = swarm_testkit::image::busybox(&docker).await?;
    let width = swarm_executor_docker::default_parallelism();
    println!("{COUNT} containers, {width} at a time");
    let mut ratios = Vec::new();
    for round in 1..=ROUNDS {
        let direct = directly(&docker, &image, width).await?;
        let service = through_a_service(&image).await?;
        let ratio = service.as_secs_f64() / direct.as_secs_f64();
        println!("round {round}: direct {direct:.2?}, service {service:.2?}, ratio {ratio:.2}");
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.2}", ratios[ROUNDS / 2]);
    Ok(())
}

/// Creates and starts, and removes afterwards.
async fn directly(docker: &Docker, image: &str, width: usize) -> Result<Duration> {
    let prefix = format!("swarm-bench-{}", std::process::id());
    let names: Vec<String> = (0..COUNT).map(|n| format!("{prefix}-{n}")).collect();
    let began = Instant::now();
    let started = stream::iter(&names).map(Ok).try_for_each_concurrent(width, async |name| {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let command = ["sleep", "1000"].map(str::to_owned).to_vec();
        let body =
            ContainerCreateBody { image: Some(image.to_owned()), cmd: Some(command), ..Default::default() };
        docker.create_container(Some(options), body).await?;
        docker.start_container(name, None).await
    });
    let started = started.await;
    let time = began.elapsed();
    stream::iter(&names)
        .for_each_concurrent(width, async |name| {
            let options = RemoveContainerOptionsBuilder::new().force(true).build();
            let _ = docker.remove_container(name, Some(options)).await;
        })
        .await;
    started?;
    Ok(time)
}

async fn through_a_service(image: &str) -> Result<Duration> {
    let mut cluster = Cluster::start(Engine::Docker, 0).await?;
    let replicas = COUNT.to_string();
    let began = Instant::now();
    let create = ["service", "create", "--name", "bench", "--image", image, "--replicas", &replicas];
    let id = cluster.ctl_ok(&[&create[..], &["--args", "sleep,1000"]].concat())?;
    cluster.running(id.trim(), COUNT, LIMIT).await?;
    let time = began.elapsed();
    cluster.ctl_ok(&["service", "remove", "bench"])?;
    let node = cluster.node("manager").await?.id.clone();
    let docker = Docker::connect_with_unix_defaults()?;
    swarm_testkit::wait::until("the containers to be gone", LIMIT, || {
        let (docker, filter) = (docker.clone(), format!("com.docker.swarm.node.id={node}"));
        async move {
            let options = bollard::query_parameters::ListContainersOptionsBuilder::new()
                .all(true)
                .filters(&[("label", vec![filter])].into())
                .build();
            let left = docker.list_containers(Some(options)).await?.len();
            anyhow::ensure!(left == 0, "{left} are left");
            Ok(())
        }
    })
    .await
    .context("after the measurement")?;
    Ok(time)
}
