//! An executor on the real engine, and tasks for it.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{InspectContainerOptions, StartContainerOptions};
use swarm_agent::{
    Controller, ControllerError, Dependencies, DependencyError, Executor, LogOptions, LogSink,
};
use swarm_api::v1::{Annotations, Config, ContainerSpec, Driver, Node, Secret, Task, TaskSpec, task_spec};
use swarm_api::{Shared, id};
use swarm_executor_docker::DockerExecutor;

pub(crate) const LONG: Duration = Duration::from_secs(120);

/// The secrets and configs that managers gave to the node.
#[derive(Clone, Default)]
pub(crate) struct Given {
    secrets: HashMap<String, Shared<Secret>>,
    configs: HashMap<String, Shared<Config>>,
}

fn language(name: &str) -> Option<Driver> {
    (!name.is_empty()).then(|| Driver { name: name.to_owned(), ..Default::default() })
}

impl Given {
    /// With a secret; `templating` may be empty.
    pub(crate) fn secret(mut self, id: &str, data: &str, templating: &str) -> Given {
        let mut secret = Secret { id: id.into(), ..Default::default() };
        secret.spec.data = data.into();
        secret.spec.templating = language(templating);
        self.secrets.insert(id.to_owned(), secret.into());
        self
    }

    /// With a config; `templating` may be empty.
    pub(crate) fn config(mut self, id: &str, data: &str, templating: &str) -> Given {
        let mut config = Config { id: id.into(), ..Default::default() };
        config.spec.data = data.into();
        config.spec.templating = language(templating);
        self.configs.insert(id.to_owned(), config.into());
        self
    }
}

impl Dependencies for Given {
    fn secret(&self, _: &Task, id: &str) -> Result<Shared<Secret>, DependencyError> {
        let missing = || DependencyError { kind: "secret", id: id.to_owned(), refused: false };
        self.secrets.get(id).cloned().ok_or_else(missing)
    }
    fn config(&self, _: &Task, id: &str) -> Result<Shared<Config>, DependencyError> {
        let missing = || DependencyError { kind: "config", id: id.to_owned(), refused: false };
        self.configs.get(id).cloned().ok_or_else(missing)
    }
}

/// One node of a cluster that nobody else knows; what it leaves behind is removed when it is dropped.
pub(crate) struct Lab {
    pub(crate) executor: DockerExecutor,
    pub(crate) node_id: String,
    pub(crate) image: String,
    pub(crate) docker: Docker,
}

impl Lab {
    pub(crate) async fn new() -> Lab {
        Self::with_parallelism(8).await
    }

    pub(crate) async fn with_parallelism(parallelism: usize) -> Lab {
        let docker = Docker::connect_with_unix_defaults().expect("these tests need a Docker Engine");
        let docker = docker.negotiate_version().await.expect("these tests need a Docker Engine");
        let image = swarm_testkit::image::busybox(&docker).await.expect("a test image");
        let executor =
            DockerExecutor::connect_with("", parallelism).await.expect("these tests need a Docker Engine");
        let lab = Lab { executor, node_id: id::random(), image, docker };
        lab.executor.configure(&lab.node()).await.unwrap();
        lab
    }

    pub(crate) fn node(&self) -> Shared<Node> {
        Node { id: self.node_id.clone(), ..Default::default() }.into()
    }

    /// A restarted daemon.
    pub(crate) async fn restarted(&self) -> DockerExecutor {
        let executor = DockerExecutor::connect("").await.unwrap();
        executor.configure(&self.node()).await.unwrap();
        executor
    }

    pub(crate) fn spec(&self, command: &str) -> ContainerSpec {
        ContainerSpec {
            image: self.image.clone(),
            command: vec!["/bin/sh".into(), "-c".into(), command.into()],
            stop_grace_period: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            ..Default::default()
        }
    }

    pub(crate) fn task(&self, spec: ContainerSpec) -> Task {
        Task {
            id: id::random().into(),
            service_id: "s".into(),
            node_id: self.node_id.as_str().into(),
            slot: 1,
            service_annotations: Annotations { name: "exectest".into(), ..Default::default() }.into(),
            spec: TaskSpec { runtime: Some(task_spec::Runtime::Container(spec)), ..Default::default() }
                .into(),
            ..Default::default()
        }
    }

    pub(crate) fn controller(&self, task: &Task) -> Arc<dyn Controller> {
        controller(&self.executor, task)
    }

    pub(crate) fn run(&self, command: &str) -> Arc<dyn Controller> {
        self.controller(&self.task(self.spec(command)))
    }

    /// Sends SIGUSR1 to a task's first process.
    pub(crate) async fn signal(&self, task: &dyn Controller) {
        let id = task.container_status().await.unwrap().container_id;
        let options = bollard::query_parameters::KillContainerOptionsBuilder::new().signal("SIGUSR1").build();
        self.docker.kill_container(&id, Some(options)).await.unwrap();
    }

    /// Whether a container runs.
    pub(crate) async fn runs(&self, id: &str) -> bool {
        let seen = self.docker.inspect_container(id, None::<InspectContainerOptions>).await.unwrap();
        seen.state.unwrap().running == Some(true)
    }

    /// Waits until a container does not run.
    pub(crate) async fn until_ended(&self, id: &str) {
        let looked = || async {
            anyhow::ensure!(!self.runs(id).await, "it runs");
            Ok(())
        };
        swarm_testkit::wait::until("a container to end", LONG, looked).await.unwrap();
    }

    /// Starts a container as somebody else would.
    pub(crate) async fn start_by_hand(&self, id: &str) {
        self.docker.start_container(id, None::<StartContainerOptions>).await.unwrap();
    }

    /// Ends the test: removes everything of this node, which `sweep` must be able to.
    pub(crate) async fn done(self) {
        self.executor.sweep(&[]).await.unwrap();
        assert_eq!(self.containers().await, 0, "sweep leaves nothing");
        self.executor.close().await;
    }

    /// Removes all containers, so that their image can go.
    pub(crate) async fn executor_sweep(&self) {
        self.executor.sweep(&[]).await.unwrap();
    }

    /// Containers of this node, running or not.
    pub(crate) async fn containers(&self) -> usize {
        let label = format!("com.docker.swarm.node.id={}", self.node_id);
        let filters = std::collections::HashMap::from([("label", vec![label])]);
        let options = bollard::query_parameters::ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        self.docker.list_containers(Some(options)).await.unwrap().len()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A failed test leaves nothing either; the engine is asked by its own client, since this is no
            // place to wait for a future.
            let filter = format!("label=com.docker.swarm.node.id={}", self.node_id);
            let script = format!("docker rm -fv $(docker ps -aq --filter {filter}) >/dev/null 2>&1");
            let _ = std::process::Command::new("sh").args(["-c", &script]).status();
        }
    }
}

pub(crate) fn controller(executor: &DockerExecutor, task: &Task) -> Arc<dyn Controller> {
    executor.controller(&task.clone().into(), Arc::new(Given::default())).expect("a controller")
}

/// Waits for a task's end in the background.
pub(crate) fn waited(task: &Arc<dyn Controller>) -> tokio::task::JoinHandle<Result<(), ControllerError>> {
    let task = task.clone();
    tokio::spawn(async move { task.wait().await })
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("an answer in time")
}

/// Runs a task to its successful end, and gives what it wrote.
pub(crate) async fn output(task: &dyn Controller) -> Vec<String> {
    within(task.prepare()).await.unwrap();
    within(task.start()).await.unwrap();
    let ended = within(task.wait()).await;
    let (sink, lines) = LogSink::new();
    let (done, lines) =
        within(async { tokio::join!(task.logs(LogOptions::default(), sink), lines.collect()) }).await;
    done.unwrap();
    let all: Vec<String> = lines.into_iter().map(|l| String::from_utf8(l.data.to_vec()).unwrap()).collect();
    assert_eq!(ended, Ok(()), "{all:#?}");
    all
}

/// What the engine says of a task's container.
pub(crate) async fn inspect(lab: &Lab, task: &dyn Controller) -> ContainerInspectResponse {
    let id = task.container_status().await.unwrap().container_id;
    lab.docker.inspect_container(&id, None::<InspectContainerOptions>).await.unwrap()
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
