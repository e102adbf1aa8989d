//! An engine that is slow, silent, refuses, or has a great deal to do at once: native tasks of the same node and its
//! session are unaffected, and the task says what is wrong.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bollard::query_parameters::ListContainersOptionsBuilder;
use swarm_api::v1::{TaskState, node_spec, node_status};
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::private_engine::{Character, PrivateEngine};
use swarm_testkit::proxy::{Proxy, Treatment};
use swarm_testkit::wait::until;
use swarm_tests::watch::Watcher;
use swarm_tests::{SOON, all_different, container_service, create, process_service, scale, set_availability};

/// Time within which a few native processes run or end where nothing is wrong, on a machine with other things to do.
/// Shorter than anything that the agent waits for an engine.
const PROMPT: Duration = Duration::from_secs(10);
/// Time within which a task says that its engine does not answer: that counts as such after 10 s, and is looked at every
/// two.
const TOLD: Duration = Duration::from_secs(20);

struct World {
    cluster: Cluster,
    proxy: Proxy,
    engine: PrivateEngine,
    image: String,
    watcher: Watcher,
    node: String,
}

impl World {
    async fn start() -> Result<World> {
        World::start_with(Character::Usual).await
    }

    async fn start_with(character: Character) -> Result<World> {
        let engine = PrivateEngine::start(character).await?;
        let image = swarm_testkit::image::busybox(&engine.client().await?).await?;
        let proxy = Proxy::new(&engine.socket())?;
        let mut cluster = Cluster::start(Engine::None, 0).await?;
        set_availability(&mut cluster, "manager", node_spec::Availability::Drain).await?;
        let watcher = Watcher::new(&cluster).await?;
        cluster.add_worker_of(&format!("unix://{}", proxy.path().display()), Vec::new()).await?;
        let node = cluster.node("worker-1").await?.id.clone();
        Ok(World { cluster, proxy, engine, image, watcher, node })
    }

    /// Native tasks come and go as if nothing were.
    async fn others_are_unaffected(&mut self) -> Result<()> {
        let service = create(&mut self.cluster, process_service("native", 3)).await?;
        self.cluster.running(&service, 3, PROMPT).await.context("the native tasks of the node")?;
        scale(&mut self.cluster, &service, 0).await?;
        let cluster = &self.cluster;
        until("native tasks to end", PROMPT, || async {
            let tasks =
                cluster.control.clone().list_tasks(swarm_api::v1::ListTasksRequest::default()).await?;
            let tasks = tasks.into_inner().tasks;
            ensure!(tasks.iter().all(|task| task.service_id != service), "{tasks:#?}");
            Ok(())
        })
        .await?;
        self.cluster.ctl_ok(&["service", "remove", "native"])?;
        Ok(())
    }

    /// Creates a service of containers, whose tasks are replaced after a second.
    async fn containers(&mut self, name: &str, count: u64) -> Result<String> {
        let mut spec = container_service(name, &self.image, count);
        let restart = swarm_api::v1::RestartPolicy {
            condition: swarm_api::v1::restart_policy::RestartCondition::Any as i32,
            delay: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            ..Default::default()
        };
        spec.task.restart = Some(restart);
        create(&mut self.cluster, spec).await
    }

    /// Waits until a task of a service says this, in the words of the command line.
    async fn says(&self, service: &str, state: TaskState, text: &str) -> Result<()> {
        until(&format!("a task to say {text:?}"), TOLD, || async {
            let filters = swarm_api::v1::list_tasks_request::Filters {
                service_ids: vec![service.to_owned()],
                ..Default::default()
            };
            let request = swarm_api::v1::ListTasksRequest { filters: Some(filters) };
            let tasks = self.cluster.control.clone().list_tasks(request).await?.into_inner().tasks;
            let found =
                tasks.iter().find(|task| task.status.state() == state && task.status.err.contains(text));
            let seen: Vec<_> = tasks.iter().map(|task| (task.status.state(), &task.status.err)).collect();
            let task = found.with_context(|| format!("{seen:?}"))?;
            let page = self.cluster.ctl_ok(&["task", "inspect", &task.id])?;
            ensure!(page.contains(text), "{page}");
            Ok(())
        })
        .await
    }

    async fn remove(&mut self, service: &str) -> Result<()> {
        self.cluster.ctl_ok(&["service", "remove", service])?;
        let docker = self.engine.client().await?;
        until("its containers to be gone", SOON, || async {
            let options = ListContainersOptionsBuilder::new().all(true).build();
            let left = docker.list_containers(Some(options)).await?.len();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
        .await
    }

    /// The node has had one session since its daemon was started, and was ready since.
    async fn session_held(&mut self) -> Result<()> {
        let sessions = self.cluster.workers[0].present_log().matches("agent: registered").count();
        ensure!(sessions == 1, "{sessions} sessions");
        let state = self.cluster.node("worker-1").await?.status.state();
        ensure!(state == node_status::State::Ready, "the node is {state:?}");
        Ok(())
    }

    fn with_logs<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| error.context(self.cluster.logs()))
    }
}

async fn bad(world: &mut World) -> Result<()> {
    // It does not answer at all.
    world.proxy.treat(&[("", "", Treatment::Hold)]);
    let silent = world.containers("silent", 2).await?;
    world.others_are_unaffected().await.context("while the engine is silent")?;
    world.says(&silent, TaskState::Preparing, "has not answered for more than 10 s").await?;
    world.session_held().await?;
    world.proxy.treat(&[]);
    let tasks = world.cluster.running(&silent, 2, SOON).await?;
    ensure!(tasks.iter().all(|task| task.status.err.is_empty()), "they say {:?}", tasks[0].status.err);
    // Nor when something is to be stopped.
    world.proxy.treat(&[("", "", Treatment::Hold)]);
    scale(&mut world.cluster, &silent, 1).await?;
    world.says(&silent, TaskState::Running, "has not answered for more than").await?;
    world.others_are_unaffected().await.context("while nothing can be stopped")?;
    world.proxy.treat(&[]);
    world.cluster.running(&silent, 1, SOON).await?;
    world.remove("silent").await?;

    // Every answer takes a second.
    world.proxy.treat(&[("", "", Treatment::Delay(Duration::from_secs(1)))]);
    let slow = world.containers("slow", 5).await?;
    world.others_are_unaffected().await.context("while the engine is slow")?;
    world.cluster.running(&slow, 5, SOON).await?;
    world.proxy.treat(&[]);
    world.remove("slow").await?;

    // It can't at the moment: the same tasks go on later. It says that something is wrong: the tasks end and say so.
    let create = "/containers/create";
    world.proxy.treat(&[("POST", create, Treatment::Refuse(503, "the engine is shutting down"))]);
    let away = world.containers("away", 2).await?;
    world.says(&away, TaskState::Preparing, "the engine is shutting down").await?;
    world.others_are_unaffected().await.context("while the engine has no time")?;
    let before = world.cluster.tasks(&away).await?;
    world.proxy.treat(&[]);
    let after = world.cluster.running(&away, 2, SOON).await?;
    ensure!(after.iter().all(|task| before.iter().any(|b| b.id == task.id)), "tasks were given up");
    world.remove("away").await?;
    world.proxy.treat(&[("POST", create, Treatment::Refuse(500, "no space left on device"))]);
    let full = world.containers("full", 2).await?;
    world.says(&full, TaskState::Rejected, "creating container failed: no space left on device").await?;
    world.others_are_unaffected().await.context("while the engine refuses")?;
    world.proxy.treat(&[]);
    world.cluster.running(&full, 2, SOON).await?;
    world.remove("full").await?;
    world.session_held().await?;

    // A daemon that starts does not wait for leftovers that can't be listed.
    world.cluster.workers[0].kill()?;
    world.proxy.treat(&[("GET", "/containers/json", Treatment::Hold)]);
    world.cluster.workers[0].start().await?;
    world.others_are_unaffected().await.context("while leftovers can't be listed")?;
    world.proxy.treat(&[]);
    Ok(())
}

/// So many containers at once on one engine.
async fn at_once(world: &mut World, count: u32) -> Result<()> {
    let service = world.containers("many", count.into()).await?;
    let begin = Instant::now();
    let native = create(&mut world.cluster, process_service("native", 3)).await?;
    // Everything else goes on while they start, and so does the session.
    let (node, mut last, mut ready) = (world.node.clone(), None, false);
    world
        .watcher
        .until("all tasks to run", |picture| {
            if let Some(state) = picture.node(&node).map(|node| node.status.state()) {
                ready |= state == node_status::State::Ready;
                ensure!(!ready || state == node_status::State::Ready, "the node is {state:?}");
            }
            if picture.up(&native).count() == 3 && last.is_none() {
                last = Some(begin.elapsed());
            }
            Ok(picture.up(&service).count() == count as usize && last.is_some())
        })
        .await?;
    let native_after = last.context("it was set")?;
    println!("{count} containers after {:.1?}, native tasks after {native_after:.1?}", begin.elapsed());
    ensure!(native_after < PROMPT, "native tasks ran after {native_after:?}");
    let tasks = world.cluster.tasks(&service).await?;
    ensure!(tasks.len() == count as usize, "{} tasks: some failed", tasks.len());
    let docker = world.engine.client().await?;
    let containers = docker.list_containers(Some(ListContainersOptionsBuilder::new().build())).await?;
    ensure!(containers.len() == count as usize, "{} containers run", containers.len());
    all_different(
        containers.into_iter().map(|c| c.labels.unwrap_or_default().remove("com.docker.swarm.task.id")),
    )?;
    world.session_held().await?;
    world.remove("many").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_bad_engine_troubles_only_its_own_tasks_and_they_say_so() -> Result<()> {
    let mut world = World::start().await?;
    let result = bad(&mut world).await;
    world.with_logs(result)
}

/// A daemon that starts without its engine, twice: without anything to run, and with containers that run.
async fn late(world: &mut World) -> Result<()> {
    let runs_containers = async |world: &mut World| -> Result<bool> {
        let node = world.cluster.node("worker-1").await?;
        let engine = node.description.as_ref().and_then(|d| d.engine.as_ref()).context("a description")?;
        Ok(engine.labels.get("swarmd.runtime.container").map(String::as_str) == Some("1"))
    };
    ensure!(runs_containers(world).await?, "it announces its engine");
    let stays = world.containers("stays", 2).await?;
    let before = world.cluster.running(&stays, 2, SOON).await?;

    // The host comes up, and its engine does not: it is away, and then it is there but silent.
    for silent in [false, true] {
        world.engine.kill().await?;
        if silent {
            world.engine.restart().await?;
            world.engine.pause()?;
        }
        world.cluster.workers[0].kill()?;
        world.cluster.workers[0].start().await?;
        world.cluster.workers[0].says("no containers run on this node until its engine answers").await?;
        ensure!(!runs_containers(world).await?, "it announces what it does not have");
        world.others_are_unaffected().await.context("while there is no engine")?;
        let name = if silent { "later" } else { "late" };
        let service = world.containers(name, 1).await?;
        if silent {
            world.engine.resume()?;
        } else {
            world.engine.restart().await?;
        }
        world.cluster.running(&service, 1, SOON).await.context("a task that waited for the engine")?;
        let after = world.cluster.running(&stays, 2, SOON).await?;
        ensure!(
            after.iter().all(|task| before.iter().any(|b| b.id == task.id)),
            "containers that went on were not found again"
        );
        ensure!(runs_containers(world).await?, "it does not announce its engine");
        world.session_held().await?;
    }
    let docker = world.engine.client().await?;
    let containers = docker.list_containers(Some(ListContainersOptionsBuilder::new().build())).await?;
    ensure!(containers.len() == 4, "{} containers run", containers.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_daemon_may_be_there_before_its_engine() -> Result<()> {
    let mut world = World::start_with(Character::LiveRestore).await?;
    let result = late(&mut world).await;
    world.with_logs(result)
}

async fn many(count: u32) -> Result<()> {
    let mut world = World::start().await?;
    let result = at_once(&mut world, count).await;
    world.with_logs(result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_forty_tasks_that_start_at_once_hold_up_nobody_else() -> Result<()> {
    many(40).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long suite"]
async fn long_docker_two_hundred_tasks_that_start_at_once_hold_up_nobody_else() -> Result<()> {
    many(200).await
}
