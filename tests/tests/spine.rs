//! A manager and two workers, as real processes, through the life of a service: with containers, and with
//! native processes where there is no engine.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use bollard::Docker;
use bollard::query_parameters::ListContainersOptionsBuilder;
use swarm_api::v1::{RemoveServiceRequest, ServiceSpec, TaskState, node_spec, node_status, task_spec};
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::wait::until;
use swarm_tests::{
    SOON, all_different, container_service, create, process_service, processes_with, scale, set_availability,
    spread, update, with_logs,
};

/// Heartbeat grace (three periods of 5 s) and restart delay (5 s), with room for a slow machine.
const REPLACED: Duration = Duration::from_secs(120);

/// Looks at what really runs, behind the cluster's back.
enum World {
    Containers { docker: Docker, image: String },
    Processes { mark: String },
}

impl World {
    async fn new(engine: Engine) -> Result<World> {
        Ok(match engine {
            Engine::Docker => {
                let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
                World::Containers { image: swarm_testkit::image::busybox(&docker).await?, docker }
            }
            Engine::None => World::Processes { mark: format!("SPINE={}", swarm_api::id::random()) },
        })
    }

    fn service(&self, name: &str, replicas: u64) -> ServiceSpec {
        match self {
            World::Containers { image, .. } => container_service(name, image, replicas),
            World::Processes { mark } => {
                let mut spec = process_service(name, replicas);
                if let Some(task_spec::Runtime::Generic(generic)) = &mut spec.task.runtime {
                    let payload = generic.payload.as_mut().expect("the spec has a payload");
                    let mut process: swarm_api::swarmd::ProcessSpec = payload.to_msg().expect("it decodes");
                    process.env = vec![mark.clone(), "TASK={{.Task.ID}}".into()];
                    *payload = prost_types::Any::from_msg(&process).expect("it encodes");
                }
                spec
            }
        }
    }

    /// Task ids of everything that runs for a service, one each time it runs.
    async fn alive(&self, service: &str) -> Result<Vec<String>> {
        match self {
            World::Containers { docker, .. } => {
                let filter = format!("com.docker.swarm.service.id={service}");
                let filters = std::collections::HashMap::from([("label".to_owned(), vec![filter])]);
                let options = ListContainersOptionsBuilder::new().filters(&filters).build();
                let containers = docker.list_containers(Some(options)).await?;
                Ok(containers
                    .into_iter()
                    .map(|c| {
                        c.labels.unwrap_or_default().remove("com.docker.swarm.task.id").unwrap_or_default()
                    })
                    .collect())
            }
            World::Processes { mark } => Ok(processes_with(mark)
                .into_iter()
                .filter(|pid| {
                    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "sleep")
                })
                .filter_map(|pid| {
                    let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
                    let task = environ.split(|b| *b == 0).find_map(|v| v.strip_prefix(b"TASK="))?;
                    Some(String::from_utf8_lossy(task).into_owned())
                })
                .collect()),
        }
    }

    /// Waits until nothing at all is left of a service, ended containers included.
    async fn nothing_left(&self, service: &str) -> Result<()> {
        self.exactly(service, 0).await?;
        let World::Containers { docker, .. } = self else { return Ok(()) };
        let filter = format!("com.docker.swarm.service.id={service}");
        let filters = std::collections::HashMap::from([("label".to_owned(), vec![filter])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        until("ended containers to be removed", REPLACED, || async {
            let left = docker.list_containers(Some(options.clone())).await?.len();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
        .await
    }

    async fn exactly(&self, service: &str, count: usize) -> Result<BTreeSet<String>> {
        until(&format!("exactly {count} tasks to be alive"), REPLACED, || async {
            let alive = self.alive(service).await?;
            ensure!(alive.len() == count, "{} are alive", alive.len());
            all_different(&alive)?;
            Ok(alive.into_iter().collect())
        })
        .await
    }
}

async fn life_of_a_service(cluster: &mut Cluster, world: &World) -> Result<()> {
    let service = create(cluster, world.service("web", 6)).await?;
    let tasks = cluster.running(&service, 6, SOON).await?;
    let counts: Vec<_> = spread(&tasks).into_values().collect();
    ensure!(counts == [2, 2, 2], "spread {counts:?}");
    let before = world.exactly(&service, 6).await?;

    // A worker dies: its tasks are replaced elsewhere, and the others are left alone.
    let lost = cluster.node("worker-1").await?.id.clone();
    cluster.workers[0].kill()?;
    let tasks = until("the lost tasks to be replaced", REPLACED, || {
        let mut cluster = cluster.control.clone();
        let (service, lost) = (service.clone(), lost.clone());
        async move {
            let request = swarm_api::v1::ListTasksRequest::default();
            let all = cluster.list_tasks(request).await?.into_inner().tasks;
            let good: Vec<_> = all
                .into_iter()
                .filter(|t| t.service_id == service && t.node_id != lost)
                .filter(|t| t.status.state() == TaskState::Running && t.desired_state() == TaskState::Running)
                .collect();
            ensure!(good.len() == 6, "{} run elsewhere", good.len());
            Ok(good)
        }
    })
    .await?;
    let kept = tasks.iter().filter(|t| before.contains(t.id.as_str())).count();
    ensure!(kept == 4, "{kept} of the 4 tasks on living nodes were kept");

    // It comes back, is READY again, and what it still ran is ended.
    cluster.workers[0].start().await?;
    let control = cluster.control.clone();
    until("the worker to be ready again", SOON, || {
        let (mut control, lost) = (control.clone(), lost.clone());
        async move {
            let nodes =
                control.list_nodes(swarm_api::v1::ListNodesRequest::default()).await?.into_inner().nodes;
            let state = nodes.iter().find(|n| n.id == lost).map(|n| n.status.state());
            ensure!(state == Some(node_status::State::Ready), "{state:?}");
            Ok(())
        }
    })
    .await?;
    world.exactly(&service, 6).await?;

    // Drain empties a node.
    let drained = set_availability(cluster, "worker-2", node_spec::Availability::Drain).await?;
    until("the drained node to be empty", REPLACED, || {
        let (mut control, drained, service) = (control.clone(), drained.clone(), service.clone());
        async move {
            let tasks =
                control.list_tasks(swarm_api::v1::ListTasksRequest::default()).await?.into_inner().tasks;
            let tasks: Vec<_> = tasks.iter().filter(|t| t.service_id == service).collect();
            let there =
                tasks.iter().filter(|t| t.node_id == drained && !t.status.state().is_terminal()).count();
            let elsewhere = tasks
                .iter()
                .filter(|t| t.node_id != drained && t.status.state() == TaskState::Running)
                .filter(|t| t.desired_state() == TaskState::Running)
                .count();
            ensure!(there == 0 && elsewhere == 6, "{there} there, {elsewhere} elsewhere");
            Ok(())
        }
    })
    .await?;
    world.exactly(&service, 6).await?;

    // Up to 50 and down to none.
    scale(cluster, &service, 50).await?;
    cluster.running(&service, 50, REPLACED * 2).await?;
    world.exactly(&service, 50).await?;
    scale(cluster, &service, 0).await?;
    world.exactly(&service, 0).await?;

    // Removal leaves none, and no task in the store.
    scale(cluster, &service, 3).await?;
    cluster.running(&service, 3, SOON).await?;
    cluster.control.remove_service(RemoveServiceRequest { service_id: service.clone() }).await?;
    world.nothing_left(&service).await?;
    until("the tasks to be forgotten", SOON, || {
        let (mut control, service) = (control.clone(), service.clone());
        async move {
            let tasks =
                control.list_tasks(swarm_api::v1::ListTasksRequest::default()).await?.into_inner().tasks;
            let left = tasks.iter().filter(|t| t.service_id == service).count();
            ensure!(left == 0, "{left} are left");
            Ok(())
        }
    })
    .await
}

async fn manager_dies_while_scaling(cluster: &mut Cluster, world: &World) -> Result<()> {
    let service = create(cluster, world.service("web", 4)).await?;
    cluster.running(&service, 4, SOON).await?;
    let before = world.exactly(&service, 4).await?;

    scale(cluster, &service, 24).await?;
    // Somewhere in the middle of it.
    until("some of the new tasks to exist", SOON, || async {
        let alive = world.alive(&service).await?.len();
        ensure!(alive > 4, "{alive} are alive");
        Ok(())
    })
    .await?;
    cluster.manager.kill()?;
    let orphans = world.alive(&service).await?;
    all_different(&orphans)?;
    ensure!(before.iter().all(|id| orphans.contains(id)), "the manager's death touched running tasks");

    cluster.manager.start().await?;
    let tasks = cluster.running(&service, 24, REPLACED * 2).await?;
    let alive = world.exactly(&service, 24).await?;
    let wanted: BTreeSet<_> = tasks.iter().map(|t| t.id.to_string()).collect();
    ensure!(alive == wanted, "what runs is not what the store says");
    ensure!(before.is_subset(&alive), "tasks that ran before were replaced");
    cluster.control.remove_service(RemoveServiceRequest { service_id: service.clone() }).await?;
    world.nothing_left(&service).await?;
    Ok(())
}

async fn update_replaces_tasks(cluster: &mut Cluster, world: &World) -> Result<()> {
    let service = create(cluster, world.service("web", 3)).await?;
    let before: BTreeSet<_> =
        cluster.running(&service, 3, SOON).await?.iter().map(|t| t.id.clone()).collect();
    update(cluster, &service, |spec| match &mut spec.task.runtime {
        Some(task_spec::Runtime::Container(container)) => container.env.push("NEW=1".into()),
        Some(task_spec::Runtime::Generic(generic)) => {
            let payload = generic.payload.as_mut().expect("the spec has a payload");
            let mut process: swarm_api::swarmd::ProcessSpec = payload.to_msg().expect("it decodes");
            process.env.push("NEW=1".into());
            *payload = prost_types::Any::from_msg(&process).expect("it encodes");
        }
        _ => {}
    })
    .await?;
    let control = cluster.control.clone();
    until("every task to be replaced", REPLACED * 2, || {
        let (mut control, service, before) = (control.clone(), service.clone(), before.clone());
        async move {
            let tasks =
                control.list_tasks(swarm_api::v1::ListTasksRequest::default()).await?.into_inner().tasks;
            let new = tasks
                .iter()
                .filter(|t| t.service_id == service && !before.contains(t.id.as_str()))
                .filter(|t| t.status.state() == TaskState::Running && t.desired_state() == TaskState::Running)
                .count();
            if new != 3 {
                bail!("{new} new ones run");
            }
            Ok(())
        }
    })
    .await?;
    world.exactly(&service, 3).await?;
    cluster.control.remove_service(RemoveServiceRequest { service_id: service.clone() }).await?;
    world.nothing_left(&service).await?;
    Ok(())
}

macro_rules! spine {
    ($($name:ident: $scenario:ident on $engine:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<()> {
            let world = World::new($engine).await?;
            let mut cluster = Cluster::start($engine, 2).await?;
            let result = $scenario(&mut cluster, &world).await;
            with_logs(&cluster, result)
        }
    )*};
}

spine! {
    processes_follow_the_life_of_their_service: life_of_a_service on Engine::None;
    processes_survive_the_death_of_the_manager: manager_dies_while_scaling on Engine::None;
    processes_are_replaced_by_an_update: update_replaces_tasks on Engine::None;
    docker_containers_follow_the_life_of_their_service: life_of_a_service on Engine::Docker;
    docker_containers_survive_the_death_of_the_manager: manager_dies_while_scaling on Engine::Docker;
    docker_containers_are_replaced_by_an_update: update_replaces_tasks on Engine::Docker;
}
