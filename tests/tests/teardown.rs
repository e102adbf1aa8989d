//! A test cluster leaves nothing behind, even if its test fails while a daemon is dead.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use bollard::Docker;
use bollard::query_parameters::ListContainersOptionsBuilder;
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_tests::{SOON, container_service, create, process_service};

/// Processes whose command line or environment has this text.
fn processes_with(text: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let has = |file: std::path::PathBuf| {
        let bytes = std::fs::read(file).unwrap_or_default();
        bytes.windows(text.len()).any(|part| part == text.as_bytes())
    };
    entries
        .map(|e| e.path())
        .filter(|process| has(process.join("cmdline")) || has(process.join("environ")))
        .map(|process| process.display().to_string())
        .collect()
}

/// Runs a service, kills a worker, and fails; returns the state directories' parent and the ids of service and tasks.
async fn fail(engine: Engine, image: String) -> Result<(String, String, Vec<String>)> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let test = tokio::spawn(async move {
        let mut cluster = Cluster::start(engine, 1).await.expect("a cluster");
        let spec = match engine {
            Engine::Docker => container_service("left", &image, 4),
            Engine::None => process_service("left", 4),
        };
        let service = create(&mut cluster, spec).await.expect("a service");
        let tasks = cluster.running(&service, 4, SOON).await.expect("its tasks");
        let directory = cluster.socket().parent().expect("a directory").display().to_string();
        cluster.workers[0].kill().expect("it runs");
        let tasks = tasks.iter().map(|task| task.id.to_string()).collect();
        sender.send((directory, service, tasks)).expect("somebody listens");
        panic!("as a failing test does");
    });
    let seen = receiver.await.context("the cluster did not come so far")?;
    ensure!(test.await.is_err_and(|error| error.is_panic()));
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_is_left() -> Result<()> {
    let (directory, _, tasks) = fail(Engine::None, String::new()).await?;
    for text in std::iter::once(directory.clone()).chain(tasks) {
        let left = processes_with(&text);
        ensure!(left.is_empty(), "{text}: {left:?}");
    }
    ensure!(!std::fs::exists(&directory)?, "{directory} is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_docker_container_is_left() -> Result<()> {
    let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
    let image = swarm_testkit::image::busybox(&docker).await?;
    let (_, service, _) = fail(Engine::Docker, image).await?;
    let filters = HashMap::from([("label", vec![format!("com.docker.swarm.service.id={service}")])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let left = docker.list_containers(Some(options)).await?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
