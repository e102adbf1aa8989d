//! Whatever is killed, whatever a task was doing: afterwards the manager's states are what runs, no task ran twice, and
//! none is forgotten.
//!
//! Each test has tasks in every state that an agent takes them through (pulling, running their init task, made and waiting for
//! the time to start, asked to start, waiting for their health, running, running their pre-stop command, being stopped, being
//! removed), kills one thing, lets everything go on that was held up, and brings back what was killed. ACCEPTED is not among
//! them: an agent goes on from there at once, and nothing can hold it up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bollard::Docker;
use bollard::models::ContainerSummaryStateEnum;
use bollard::query_parameters::{KillContainerOptionsBuilder, ListContainersOptionsBuilder};
use swarm_api::v1::{ListTasksRequest, Task, TaskState, node_spec, task_status};
use swarm_api::{Shared, id};
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::private_engine::{Character, PrivateEngine};
use swarm_testkit::proxy::{Proxy, Treatment};
use swarm_testkit::registry::Registry;
use swarm_testkit::wait::until;
use swarm_tests::{REST, SOON, all_different, processes_with, scale, set_availability};
use tempfile::TempDir;

/// An assignment leaves the manager after so much quiet (sheet of the dispatcher and the agent, 2.1: assignment batching
/// quiet time).
const ASSIGNED: Duration = Duration::from_millis(100);
/// A status that was reported is stored after so long (2.1: commit interval).
const STORED: Duration = Duration::from_millis(100);
/// Longest pause between two attempts at a step of a task (4.2: retry delay of the task runner, 1 s; ours doubles it up to
/// the longest back-off of a session, 8 s: `agent::runner`).
const STEP_AGAIN: Duration = Duration::from_secs(8);
/// Longest pause before an engine that was away is asked for its events again, and until everything is compared then
/// (`executor_docker::events`; the original opens the stream again at once, and compares nothing: 8.8).
const EVENTS_AGAIN: Duration = Duration::from_millis(2250);
/// What these services set: time before a task that failed is replaced, and between the signal that asks it to stop and
/// the kill. (8.9 has 10 s for the latter, and the sheet of orchestration 5 s for the former.)
const RESTART_DELAY: Duration = Duration::ZERO;
const STOP_GRACE: Duration = Duration::from_secs(1);
/// The machine's own work: an engine that creates, starts and removes a handful of containers, and images that are pulled,
/// while other tests have both cores busy. No time of the sheet.
const WORK: Duration = Duration::from_secs(20);

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The agent's process. Containers and native tasks go on.
    Daemon,
    /// The engine, which ends its containers when it comes back.
    Engine,
    /// The engine, whose containers go on.
    EngineAlone,
    /// Every container that has been started.
    Containers,
    /// The host: daemon, engine, containers and native tasks at once.
    Host,
}

impl Victim {
    /// From the return of what was killed until the manager's states are what runs, at most.
    ///
    /// Where the daemon was killed its return ends with its session, so no pause between sessions counts (4.2: up to 8 s),
    /// and no grace for heartbeats either (2.1: 13.5 s at least): it is back before that, or its tasks are replaced, which
    /// the tests would notice.
    fn settles_within(self) -> Duration {
        // A task that failed is replaced: told, decided, assigned, told that it runs.
        let replaced = STORED + RESTART_DELAY + ASSIGNED + STORED;
        match self {
            // It asks for its assignments, and looks at what there is. Nothing is left to wait for but what is stopped.
            Victim::Daemon => ASSIGNED + STOP_GRACE + STORED + WORK,
            // Whatever waits for the engine asks it again, and hears of what has ended.
            Victim::Engine => EVENTS_AGAIN + STEP_AGAIN + replaced + STOP_GRACE + WORK,
            Victim::EngineAlone => EVENTS_AGAIN + STEP_AGAIN + STORED + STOP_GRACE + WORK,
            // The engine tells at once.
            Victim::Containers => replaced + STOP_GRACE + WORK,
            // All is new: the daemon compares, and what has ended is replaced.
            Victim::Host => ASSIGNED + replaced + STOP_GRACE + WORK,
        }
    }
}

struct World {
    cluster: Cluster,
    proxy: Proxy,
    registry: Registry,
    engine: PrivateEngine,
    docker: Docker,
    /// Seen by containers as `/gate`: they wait for files in it and note their starts.
    gate: TempDir,
    /// In the environment of native tasks.
    mark: String,
    services: BTreeMap<&'static str, String>,
}

/// A task's start, noted by itself.
const NOTE: &str = "echo $TASK >> /gate/started";

impl World {
    async fn start(victim: Victim) -> Result<World> {
        let character = if victim == Victim::EngineAlone { Character::LiveRestore } else { Character::Usual };
        let engine = PrivateEngine::start(character).await?;
        let docker = engine.client().await?;
        let proxy = Proxy::new(&engine.socket())?;
        let registry = Registry::start_on(engine.listen("127.0.0.1:0")?, None)?;
        let mut cluster = Cluster::start(Engine::None, 0).await?;
        set_availability(&mut cluster, "manager", node_spec::Availability::Drain).await?;
        let address = format!("unix://{}", proxy.path().display());
        let within = if victim == Victim::Host { engine.host()? } else { Vec::new() };
        cluster.add_worker_of(&address, within).await?;
        let gate = tempfile::tempdir()?;
        let mark = format!("MARK={}", id::random());
        Ok(World { cluster, proxy, registry, engine, docker, gate, mark, services: BTreeMap::new() })
    }

    /// Flags may have another restart delay.
    fn create(&mut self, name: &'static str, image: &str, flags: &[&str], script: &str) -> Result<()> {
        let gate = format!("type=bind,source={},target=/gate", self.gate.path().display());
        let script = format!("{NOTE}; {script}");
        let head = ["service", "create", "--name", name, "--image", image, "--mount", &gate];
        let delay = format!("{}s", RESTART_DELAY.as_secs());
        let env = ["--env", "TASK={{.Task.ID}}"];
        let delay = if flags.contains(&"--restart-delay") { &[][..] } else { &["--restart-delay", &delay] };
        let words = [&head[..], &env, delay, flags, &["--command", "sh,-c", "--args", &script]].concat();
        let id = self.cluster.ctl_ok(&words)?.trim().to_owned();
        self.services.insert(name, id);
        Ok(())
    }

    /// A task in every state.
    async fn populate(&mut self) -> Result<()> {
        let image = swarm_testkit::image::busybox(&self.docker).await?;
        self.registry.push("slow", "1", swarm_testkit::image::busybox_layer()?, &["sh"])?;
        self.registry.hold(true);
        let slow = format!("{}/slow:1", self.registry.address());
        let grace = format!("{}s", STOP_GRACE.as_secs());
        let soon = ["--stop-grace-period", &grace];
        self.create("pulled", &slow, &soon, REST)?;
        let health = ["--health-cmd", "test -e /gate/healthy", "--health-interval", "200ms"];
        let health = [&health[..], &["--health-retries", "1000"], &soon].concat();
        self.create("healthy", &image, &health, REST)?;
        self.create("runs", &image, &[&["--replicas", "2"], &soon[..]].concat(), REST)?;
        let stubborn = "trap 'touch /gate/asked; until test -e /gate/stop; do sleep 0.05; done; exit 0' TERM; \
                        while :; do sleep 1000 & wait $!; done";
        self.create("stopped", &image, &["--stop-grace-period", "300s"], stubborn)?;
        self.create("removed", &image, &soon, REST)?;
        let init = "sh -c 'echo $TASK.init >> /gate/started; until test -e /gate/init; do sleep 0.05; done'";
        self.create("inits", &image, &[&["--init-task", init], &soon[..]].concat(), REST)?;
        // The first task fails; the one that replaces it is made, and waits for its time to start.
        let later = [&["--restart-delay", "1h"], &soon[..]].concat();
        self.create("ready", &image, &later, &format!("mkdir /gate/once && exit 1; {REST}"))?;
        let pre_stop = "sh -c 'touch /gate/leaving; until test -e /gate/stop; do sleep 0.05; done'";
        let leaving = ["--pre-stop", pre_stop, "--stop-grace-period", "300s"];
        self.create("leaving", &image, &leaving, REST)?;
        let script = format!("echo $TASK >> {}/started; exec sleep 1000000", self.gate.path().display());
        let delay = format!("{}s", RESTART_DELAY.as_secs());
        let native =
            ["service", "create", "--name", "native", "--runtime", "process", "--restart-delay", &delay];
        let env = ["--env", &self.mark, "--env", "TASK={{.Task.ID}}", "--", "/bin/sh", "-c", &script];
        let native = self.cluster.ctl_ok(&[&native[..], &env].concat())?.trim().to_owned();
        self.services.insert("native", native);

        for (name, state, count) in [
            ("pulled", TaskState::Preparing, 1),
            ("healthy", TaskState::Starting, 1),
            ("runs", TaskState::Running, 2),
            ("stopped", TaskState::Running, 1),
            ("removed", TaskState::Running, 1),
            ("inits", TaskState::Preparing, 1),
            ("ready", TaskState::Ready, 1),
            ("leaving", TaskState::Running, 1),
            ("native", TaskState::Running, 1),
        ] {
            self.in_state(name, state, count).await?;
        }
        for service in ["stopped", "leaving"] {
            let id = self.services[service].clone();
            scale(&mut self.cluster, &id, 0).await?;
        }
        until("a pull, an init task and a pre-stop command to have begun", SOON, || async {
            ensure!(self.registry.resolved() > 0, "nothing is pulled");
            ensure!(self.starts()?.iter().any(|line| line.ends_with(".init")), "no init task runs");
            ensure!(self.gate.path().join("leaving").exists(), "no pre-stop command runs");
            // It takes its time to stop.
            ensure!(self.gate.path().join("asked").exists(), "nobody was asked to stop");
            Ok(())
        })
        .await?;
        // Of one the container is being removed, and of another one it is about to be started.
        let removed = self.container_of("removed").await?;
        let held = [("DELETE", "/containers/", Treatment::Hold), ("POST", "/start ", Treatment::Hold)];
        self.proxy.treat(&held);
        self.cluster.ctl_ok(&["service", "remove", "removed"])?;
        self.create("begun", &image, &soon, REST)?;
        self.in_state("begun", TaskState::Starting, 1).await?;
        let begun = self.tasks("begun").await?[0].id.clone();
        let begun = self.containers().await?.into_iter().find(|(_, task, _)| *task == begun);
        let (begun, ..) = begun.context("a task in STARTING has a container")?;
        until("a container to be removed, and another one to be started", SOON, || async {
            let requests = self.proxy.requests();
            let asked = |method: &str, path: String| {
                ensure!(
                    requests.iter().any(|line| line.starts_with(method) && line.contains(&path)),
                    "no {method} {path}"
                );
                Ok(())
            };
            asked("DELETE", format!("/containers/{removed}"))?;
            asked("POST", format!("/containers/{begun}/start "))
        })
        .await
    }

    /// Of a service with one task whose container has been started.
    async fn container_of(&self, service: &str) -> Result<String> {
        let tasks = self.tasks(service).await?;
        match tasks.first().and_then(|task| task.status.runtime_status.as_ref()) {
            Some(task_status::RuntimeStatus::Container(container)) => Ok(container.container_id.clone()),
            _ => anyhow::bail!("{service} has no container"),
        }
    }

    async fn in_state(&self, service: &str, state: TaskState, count: usize) -> Result<()> {
        until(&format!("{service} to be {}", state.name()), SOON, || async {
            let tasks = self.tasks(service).await?;
            let there = tasks.iter().filter(|task| task.status.state() == state).count();
            ensure!(there == count, "{:?}", tasks.iter().map(|task| brief(task)).collect::<Vec<_>>());
            Ok(())
        })
        .await
    }

    async fn all_tasks(&self) -> Result<Vec<Shared<Task>>> {
        let mut control = self.cluster.control.clone();
        Ok(control.list_tasks(ListTasksRequest::default()).await?.into_inner().tasks)
    }

    async fn tasks(&self, service: &str) -> Result<Vec<Shared<Task>>> {
        let id = &self.services[service];
        let mut all = self.all_tasks().await?;
        all.retain(|task| task.service_id == *id);
        Ok(all)
    }

    async fn kill(&mut self, victim: Victim) -> Result<()> {
        match victim {
            Victim::Daemon => self.cluster.workers[0].kill(),
            Victim::Engine | Victim::EngineAlone => self.engine.kill().await,
            Victim::Host => {
                self.engine.power_off().await?;
                self.cluster.workers[0].ended(SOON).await.map(drop)
            }
            Victim::Containers => {
                for (container, ..) in self.containers().await?.into_iter().filter(|(.., runs)| *runs) {
                    let kill = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
                    self.docker.kill_container(&container, Some(kill)).await?;
                }
                Ok(())
            }
        }
    }

    /// Lets everything go on that is held up.
    fn open(&self) -> Result<()> {
        self.registry.hold(false);
        self.proxy.treat(&[]);
        for file in ["healthy", "stop", "init"] {
            std::fs::write(self.gate.path().join(file), "")?;
        }
        Ok(())
    }

    async fn bring_back(&mut self, victim: Victim) -> Result<()> {
        match victim {
            Victim::Daemon => self.cluster.workers[0].start().await,
            Victim::Engine | Victim::EngineAlone => self.engine.restart().await,
            Victim::Host => {
                self.engine.restart().await?;
                // A host that starts has a new network, and the registry is still in it.
                self.registry.serve(self.engine.listen(&self.registry.address())?)?;
                self.cluster.workers[0].within = self.engine.host()?;
                self.cluster.workers[0].start().await
            }
            Victim::Containers => Ok(()),
        }
    }

    /// Every container: its id, its task's id, and whether it runs.
    async fn containers(&self) -> Result<Vec<(String, String, bool)>> {
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let all = self.docker.list_containers(Some(options)).await?;
        let container = |summary: bollard::models::ContainerSummary| {
            let task = summary.labels.unwrap_or_default().remove("com.docker.swarm.task.id")?;
            Some((summary.id?, task, summary.state == Some(ContainerSummaryStateEnum::RUNNING)))
        };
        Ok(all.into_iter().filter_map(container).collect())
    }

    /// The starts that tasks have noted.
    fn starts(&self) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(self.gate.path().join("started"))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// What the manager says is what is there.
    async fn agrees(&self, victim: Victim) -> Result<()> {
        let mut expected = BTreeSet::new();
        for service in UP {
            let count = if service == "runs" { 2 } else { 1 };
            let tasks = self.tasks(service).await?;
            let live = tasks.iter().filter(|task| task.status.state() <= TaskState::Running).count();
            let up: Vec<&str> =
                tasks.iter().filter(|task| runs(service, task, victim)).map(|t| &*t.id).collect();
            ensure!(
                up.len() == count && live == count,
                "{service}: {:?}",
                tasks.iter().map(|task| brief(task)).collect::<Vec<_>>()
            );
            if !matches!(service, "native" | "ready") {
                expected.extend(up.into_iter().map(str::to_owned));
            }
        }
        for service in ["stopped", "leaving", "removed"] {
            let tasks = self.tasks(service).await?;
            ensure!(
                tasks.is_empty(),
                "{service}: {:?}",
                tasks.iter().map(|task| brief(task)).collect::<Vec<_>>()
            );
        }
        let all = self.all_tasks().await?;
        let known: BTreeMap<&str, &Task> = all.iter().map(|task| (task.id.as_str(), &**task)).collect();
        let containers = self.containers().await?;
        let mut running = BTreeSet::new();
        for (container, task, runs) in &containers {
            let task = known.get(task.as_str()).with_context(|| {
                format!("the container {container} of the task {task}, which nobody knows, was forgotten")
            })?;
            let up = expected.contains(task.id.as_str());
            ensure!(up == *runs, "its container runs: {runs}, and the manager says {}", brief(task));
            if *runs {
                ensure!(running.insert(task.id.as_str()), "{} runs twice", task.id);
            }
        }
        ensure!(
            running == expected.iter().map(String::as_str).collect(),
            "{running:?} run, the manager says {expected:?}"
        );
        let native = processes_with(&self.mark).len();
        ensure!(native == 1, "{native} native tasks run");
        Ok(())
    }
}

/// What is to be there in the end.
const UP: [&str; 7] = ["pulled", "inits", "ready", "begun", "healthy", "runs", "native"];

/// The manager says that it runs and is to, or that it is made and to wait. An engine of version 20.10 that comes back to running containers does not
/// look after their health any more: there a task that waits for it may wait on.
fn runs(service: &str, task: &Task, victim: Victim) -> bool {
    let waits = victim == Victim::EngineAlone && service == "healthy";
    let state = task.status.state();
    if service == "ready" {
        return state == TaskState::Ready && task.desired_state() == TaskState::Ready;
    }
    let runs = state == TaskState::Running || waits && state == TaskState::Starting;
    runs && task.desired_state() == TaskState::Running
}

fn brief(task: &Task) -> String {
    let (is, desired) = (task.status.state().name(), task.desired_state().name());
    format!("{} {is}→{desired} {} {}", task.id, task.status.message, task.status.err)
}

async fn kill(world: &mut World, victim: Victim) -> Result<()> {
    world.populate().await?;
    let mut before = BTreeMap::new();
    for service in UP {
        let tasks = world.tasks(service).await?;
        let live = tasks.iter().filter(|task| task.status.state() <= TaskState::Running);
        before.insert(service, live.map(|task| task.id.clone()).collect::<BTreeSet<_>>());
    }
    world.kill(victim).await?;
    world.open()?;
    world.bring_back(victim).await?;
    let begin = Instant::now();
    let limit = victim.settles_within();
    until("states and what runs to agree", limit, || world.agrees(victim)).await?;
    println!("{victim:?}: settled after {:.1?}, the limit is {limit:.1?}", begin.elapsed());
    all_different(world.starts()?).context("a task ran twice")?;
    // What was not hurt is what it was before.
    let unhurt: &[&str] = match victim {
        Victim::Daemon | Victim::EngineAlone => &UP,
        Victim::Engine | Victim::Containers => &["pulled", "ready", "begun", "native"],
        Victim::Host => &["pulled", "ready", "begun"],
    };
    for service in unhurt {
        let tasks = world.tasks(service).await?;
        let now: BTreeSet<_> =
            tasks.iter().filter(|task| runs(service, task, victim)).map(|task| task.id.clone()).collect();
        ensure!(now == before[service], "{service}: {now:?} were {:?}", before[service]);
    }
    Ok(())
}

async fn survives(victim: Victim) -> Result<()> {
    let mut world = World::start(victim).await?;
    let result = kill(&mut world, victim).await;
    result.with_context(|| format!("{}\nthe engine:\n{}", world.cluster.logs(), world.engine.log()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_tasks_in_every_state_survive_their_daemon() -> Result<()> {
    survives(Victim::Daemon).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_tasks_in_every_state_are_replaced_or_go_on_after_their_engine_died() -> Result<()> {
    survives(Victim::Engine).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_containers_that_outlive_their_engine_are_found_again() -> Result<()> {
    survives(Victim::EngineAlone).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_containers_that_are_killed_in_any_state_are_replaced() -> Result<()> {
    survives(Victim::Containers).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_tasks_in_every_state_are_replaced_or_go_on_after_their_host_died() -> Result<()> {
    survives(Victim::Host).await
}
