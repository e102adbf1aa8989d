//! Docker Engine is the manager, and a daemon of ours its worker: what operators see by Docker's own commands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use swarm_testkit::daemon::Daemon;
use swarm_testkit::private_engine::{Character, PrivateEngine};
use swarm_testkit::teardown;
use swarm_testkit::wait::until;
use swarm_tests::{REST, SOON, containers};
use tempfile::TempDir;

/// Where Docker's manager listens, in a network of its own.
const MANAGER: &str = "127.0.0.1:2377";
const OURS: &str = "ours";

/// A swarm of Docker's with one node of ours, on which everything runs.
struct Swarm {
    worker: Daemon,
    manager: PrivateEngine,
    image: String,
    dir: TempDir,
}

/// A line of `docker service ps`.
#[derive(Debug)]
struct Row {
    id: String,
    node: String,
    desired: String,
    state: String,
    error: String,
    ports: String,
}

impl Swarm {
    async fn start() -> Result<Swarm> {
        let here = bollard::Docker::connect_with_unix_defaults()?.negotiate_version().await?;
        let image = swarm_testkit::image::busybox(&here).await?;
        let manager = PrivateEngine::start(Character::Usual).await?;
        manager.docker_ok(&["swarm", "init", "--advertise-addr", MANAGER, "--listen-addr", MANAGER])?;
        let own = manager.docker_ok(&["info", "--format", "{{.Swarm.NodeID}}"])?;
        manager.docker_ok(&["node", "update", "--availability", "drain", &own])?;
        let token = manager.docker_ok(&["swarm", "join-token", "--quiet", "worker"])?;
        let dir = tempfile::Builder::new().prefix("swarm").tempdir()?;
        let socket = dir.path().join("control.sock").to_string_lossy().into_owned();
        let join = ["--join-addr", MANAGER, "--join-token", &token, "--listen-control-api", &socket];
        let mut worker = Daemon::alone(dir.path(), OURS, &join);
        worker.within = manager.network()?;
        let mut swarm = Swarm { worker, manager, image, dir };
        swarm.worker.start().await?;
        swarm.ready().await?;
        Ok(swarm)
    }

    async fn ready(&self) -> Result<()> {
        until("the manager to see our node", SOON, || async {
            let state = self.docker(&["node", "inspect", OURS, "--format", "{{.Status.State}}"])?;
            ensure!(state == "ready", "{state}");
            Ok(())
        })
        .await
    }

    fn docker(&self, args: &[&str]) -> Result<String> {
        self.manager.docker_ok(args)
    }

    /// Creates a service and does not wait for it.
    fn create(&self, name: &str, flags: &[&str], script: &str) -> Result<()> {
        let head = ["service", "create", "--detach", "--no-resolve-image", "--name", name];
        let words = [&head, flags, &[&self.image, "sh", "-c", script]].concat();
        self.docker(&words).map(drop)
    }

    /// All tasks of a service, the newest of each slot first.
    fn tasks(&self, service: &str) -> Result<Vec<Row>> {
        // The last cells may be empty: something that is not stands behind them.
        let format = "{{.ID}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t{{.Error}}\t{{.Ports}}\t.";
        let text = self.docker(&["service", "ps", "--no-trunc", "--format", format, service])?;
        let row = |line: &str| {
            let cells: Vec<String> = line.split('\t').map(str::to_owned).collect();
            let Ok([id, node, desired, state, error, ports, _]) = <[String; 7]>::try_from(cells) else {
                bail!("{line:?}")
            };
            let state = state.split(' ').next().unwrap_or_default().to_owned();
            Ok(Row { id, node, desired, state, error, ports })
        };
        text.lines().filter(|line| !line.is_empty()).map(row).collect()
    }

    /// Waits until so many tasks of a service run on our node, with as many containers, and no other task is wanted.
    async fn running(&self, service: &str, count: usize) -> Result<BTreeMap<String, String>> {
        until(&format!("{count} running tasks of {service}"), SOON, || async {
            let tasks = self.tasks(service)?;
            let wanted: Vec<&Row> = tasks.iter().filter(|task| task.desired == "Running").collect();
            ensure!(
                wanted.len() == count
                    && wanted.iter().all(|task| task.state == "Running" && task.node == OURS),
                "{tasks:#?}"
            );
            let containers = self.containers(service, false)?;
            let ids: BTreeSet<&String> = wanted.iter().map(|task| &task.id).collect();
            ensure!(containers.keys().collect::<BTreeSet<_>>() == ids, "{containers:?} for {tasks:#?}");
            Ok(containers)
        })
        .await
    }

    /// Containers of a service on the engine that our node uses, by their tasks: those that run, or all.
    fn containers(&self, service: &str, all: bool) -> Result<BTreeMap<String, String>> {
        let words = containers::list(&format!("com.docker.swarm.service.name={service}"), all);
        let out = Command::new("docker").args(words).output()?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let node = self.docker(&["node", "inspect", OURS, "--format", "{{.ID}}"])?;
        containers::by_task(&String::from_utf8_lossy(&out.stdout), &node)
    }

    async fn nothing_left(&self, service: &str) -> Result<()> {
        until(&format!("everything of {service} to be gone"), SOON, || async {
            let left = self.containers(service, true)?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await
    }

    /// Everything that a service's tasks wrote: lines with the task's name before them, in any order.
    async fn logs(&self, service: &str, expected: &BTreeSet<String>) -> Result<()> {
        until(&format!("the lines of {service}"), SOON, || async {
            let out = self.manager.docker(&["service", "logs", "--raw", service])?;
            ensure!(out.status.success(), "{out:?}");
            let both =
                [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
            let lines: Vec<String> = both.lines().map(str::to_owned).collect();
            ensure!(
                lines.len() == expected.len() && lines.iter().cloned().collect::<BTreeSet<_>>() == *expected,
                "{lines:?}"
            );
            Ok(())
        })
        .await
    }

    fn with_logs<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            error.context(format!("the worker:\n{}\nthe manager:\n{}", self.worker.log(), self.manager.log()))
        })
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if self.worker.pid().is_some() {
            let _ = self.worker.kill();
        }
        let ended = teardown::remove_containers(self.dir.path());
        if let Err(error) = ended.and_then(|()| teardown::end_processes(self.dir.path())) {
            assert!(std::thread::panicking(), "{error:#}");
        }
    }
}

fn inside(container: &str, script: &str) -> Result<String> {
    let out = Command::new("docker").args(["exec", container, "sh", "-c", script]).output()?;
    ensure!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

async fn services(swarm: &Swarm, scratch: &Path) -> Result<()> {
    // Until the gate opens nobody is healthy.
    let gate = format!("type=bind,source={},target=/gate", scratch.display());
    let (secret, config) = (scratch.join("secret"), scratch.join("config"));
    let password = format!("pw{}", swarm_api::id::random());
    std::fs::write(&secret, &password)?;
    std::fs::write(&config, "slot {{.Task.Slot}} on {{.Node.Hostname}} with {{secret \"pw\"}}")?;
    swarm.docker(&["secret", "create", "password", &secret.to_string_lossy()])?;
    swarm.docker(&["config", "create", "--template-driver", "golang", "conf", &config.to_string_lossy()])?;
    let flags = [
        ["--replicas", "2"],
        ["--secret", "source=password,target=pw,uid=1000,mode=0400"],
        ["--config", "source=conf,target=/etc/app.conf"],
        ["--mount", &gate],
        ["--health-cmd", "test -e /gate/open"],
        ["--health-interval", "200ms"],
        ["--health-retries", "1000"],
        ["--env", "NAME={{.Service.Name}}.{{.Task.Slot}}"],
        ["--publish", "mode=host,target=8080"],
        ["--stop-grace-period", "2s"],
        ["--update-delay", "0s"],
        ["--update-monitor", "100ms"],
        ["--log-driver", "json-file"],
        ["--log-opt", "env=NAME"],
    ];
    let script = format!("echo $NAME; echo $NAME complains >&2; {REST}");
    swarm.create("web", flags.as_flattened(), &script)?;
    until("tasks that wait for their health", SOON, || async {
        let tasks = swarm.tasks("web")?;
        ensure!(tasks.len() == 2 && tasks.iter().all(|task| task.state == "Starting"), "{tasks:?}");
        Ok(())
    })
    .await?;
    std::fs::write(scratch.join("open"), "")?;
    let containers = swarm.running("web", 2).await?;
    for task in swarm.tasks("web")? {
        let container = containers.get(&task.id).context("it has a container")?;
        let seen = inside(container, "stat -c '%a %u' /run/secrets/pw; cat /etc/app.conf; echo; echo $NAME")?;
        let slot = seen.trim().rsplit('.').next().unwrap_or_default();
        let expected = format!("400 1000\nslot {slot} on {OURS} with {password}\nweb.{slot}\n");
        ensure!(seen == expected, "{seen}");
        // An engine whose numbers for IPv4 and IPv6 went apart publishes two.
        for one in task.ports.split(',') {
            let (published, target) = one.split_once("->").with_context(|| task.ports.clone())?;
            let port = published.rsplit(':').next().unwrap_or_default();
            ensure!(target == "8080/tcp" && port.parse::<u16>().is_ok_and(|port| port > 0), "{task:?}");
        }
    }
    let lines = ["web.1", "web.1 complains", "web.2", "web.2 complains"].map(str::to_owned).into();
    swarm.logs("web", &lines).await?;
    // With what the log driver attaches to lines, as Docker's own agents send it.
    let details = swarm.docker(&["service", "logs", "--details", "--raw", "web"])?;
    for slot in [1, 2] {
        let (attached, written) = (format!("NAME=web.{slot}"), format!(" web.{slot}"));
        let shown = |line: &str| line.contains(&attached) && line.ends_with(&written);
        ensure!(details.lines().any(shown), "{details}");
    }

    // An update replaces all tasks, in Docker's pace, and scaling down removes what is too many.
    swarm.docker(&["service", "update", "--detach", "--env-add", "MORE=1", "web"])?;
    until("the update to end", SOON, || async {
        let state = swarm.docker(&["service", "inspect", "--format", "{{.UpdateStatus.State}}", "web"])?;
        ensure!(state == "completed", "{state}");
        Ok(())
    })
    .await?;
    let updated = swarm.running("web", 2).await?;
    ensure!(updated.keys().all(|task| !containers.contains_key(task)), "{updated:?} {containers:?}");
    swarm.docker(&["service", "scale", "--detach", "web=1"])?;
    swarm.running("web", 1).await?;
    swarm.docker(&["service", "rm", "web"])?;
    swarm.nothing_left("web").await
}

async fn trouble(swarm: &Swarm) -> Result<()> {
    let shown = |service: &'static str, state: &'static str, text: &'static str| {
        until(text, SOON, move || async move {
            let tasks = swarm.tasks(service)?;
            ensure!(tasks.iter().any(|task| task.state == state && task.error.contains(text)), "{tasks:#?}");
            Ok(())
        })
    };
    swarm.create("ends", &["--restart-condition", "none"], "exit 3")?;
    shown("ends", "Failed", "task: non-zero exit (3)").await?;
    swarm.docker(&["network", "create", "--driver", "overlay", "lan"])?;
    // Its scheduler does not try what we would have to reject, nor what would not be reached through its routing mesh.
    swarm.create("far", &["--network", "lan", "--restart-condition", "none"], REST)?;
    swarm.create("mesh", &["--publish", "8080:80", "--restart-condition", "none"], REST)?;
    for service in ["far", "mesh"] {
        shown(service, "Pending", "missing plugin on 1 node").await?;
    }
    swarm.create("job", &["--mode", "replicated-job"], "echo done")?;
    shown("job", "Complete", "").await?;
    swarm.logs("job", &["done".to_owned()].into()).await?;
    swarm.docker(&["service", "rm", "ends", "far", "mesh", "job"])?;
    // The manager of version 20.10 never has a job's completed task removed, not from nodes of its own make either.
    for service in ["ends", "far", "mesh"] {
        swarm.nothing_left(service).await?;
    }
    Ok(())
}

/// What goes beyond the contract is in labels of containers, which Docker's manager passes on as it passes on any; the constraints
/// that our managers add to it by themselves are the operator's to give.
async fn extensions(swarm: &Swarm, scratch: &Path) -> Result<()> {
    let offered =
        swarm.docker(&["node", "inspect", OURS, "--format", "{{json .Description.Engine.Labels}}"])?;
    ensure!(
        offered.contains("\"swarmd.init-tasks\":\"1\"") && offered.contains("\"swarmd.pre-stop\":\"1\""),
        "{offered}"
    );
    let mount = format!("type=bind,source={},target=/shared", scratch.display());
    let init = r#"swarmd.init-tasks=[{"command":["sh","-c","echo $NAME prepared >>/shared/steps"]}]"#;
    let stop = r#"swarmd.pre-stop=["sh","-c","echo $NAME stops >>/shared/steps"]"#;
    let flags = [
        ["--container-label", init],
        ["--container-label", stop],
        ["--constraint", "engine.labels.swarmd.init-tasks==1"],
        ["--constraint", "engine.labels.swarmd.pre-stop==1"],
        ["--mount", &mount],
        ["--env", "NAME={{.Service.Name}}.{{.Task.Slot}}"],
    ];
    let steps = || std::fs::read_to_string(scratch.join("steps")).unwrap_or_default();
    swarm.create("steps", flags.as_flattened(), &format!("echo began >>/shared/steps; {REST}"))?;
    swarm.running("steps", 1).await?;
    until("the command to begin behind its init task", SOON, || async {
        ensure!(steps() == "steps.1 prepared\nbegan\n", "{}", steps());
        Ok(())
    })
    .await?;
    swarm.docker(&["service", "rm", "steps"])?;
    swarm.nothing_left("steps").await?;
    ensure!(steps() == "steps.1 prepared\nbegan\nsteps.1 stops\n", "{}", steps());

    for (service, label, text) in [
        ("bad", r#"swarmd.init-tasks=[{"command":["sh","-c","echo no database; exit 4"]}]"#, "no database"),
        ("unreadable", "swarmd.pre-stop=quit", "label \"swarmd.pre-stop\" can't be read"),
        ("unknown", "swarmd.nonsense=1", "swarmd.nonsense"),
    ] {
        swarm.create(service, &["--container-label", label, "--restart-condition", "none"], REST)?;
        until(text, SOON, || async {
            let tasks = swarm.tasks(service)?;
            ensure!(tasks.iter().any(|t| t.state == "Rejected" && t.error.contains(text)), "{tasks:#?}");
            Ok(())
        })
        .await?;
        swarm.docker(&["service", "rm", service])?;
        swarm.nothing_left(service).await?;
    }
    Ok(())
}

async fn faults(swarm: &mut Swarm) -> Result<()> {
    swarm.create("web", &["--replicas", "3", "--stop-grace-period", "2s"], REST)?;
    let before = swarm.running("web", 3).await?;

    // The manager dies and comes back: no container is restarted, and it hears of what happens from then on.
    swarm.manager.kill().await?;
    swarm.manager.restart().await?;
    swarm.ready().await?;
    ensure!(swarm.running("web", 3).await? == before, "the manager's restart has changed what runs");

    // While the worker is away one task ends; the others are adopted.
    swarm.worker.kill()?;
    let (lost, container) = before.first_key_value().context("there are three")?;
    ensure!(Command::new("docker").args(["kill", container]).output()?.status.success(), "docker kill");
    swarm.worker.start().await?;
    swarm.ready().await?;
    until("the lost task to be replaced", SOON, || async {
        let tasks = swarm.tasks("web")?;
        let task = tasks.iter().find(|task| task.id == *lost).context("it is not listed")?;
        ensure!(task.state == "Failed" && task.error.contains("non-zero exit (137)"), "{task:?}");
        Ok(())
    })
    .await?;
    let after = swarm.running("web", 3).await?;
    ensure!(
        before.iter().filter(|(task, container)| after.get(*task) == Some(*container)).count() == 2,
        "{after:?}"
    );

    // The root of the swarm's certificates is replaced: it ends only when our node has a new certificate too.
    swarm.docker(&["swarm", "ca", "--rotate", "--quiet"])?;
    ensure!(swarm.running("web", 3).await? == after, "the rotation of the root has changed what runs");

    swarm.docker(&["node", "update", "--availability", "drain", OURS])?;
    until("the drained node to be empty", SOON, || async {
        ensure!(swarm.containers("web", false)?.is_empty());
        let tasks = swarm.tasks("web")?;
        ensure!(tasks.iter().all(|task| task.node != OURS || task.desired == "Shutdown"), "{tasks:#?}");
        ensure!(tasks.iter().all(|task| task.state != "Running"), "{tasks:#?}");
        Ok(())
    })
    .await?;
    swarm.docker(&["node", "update", "--availability", "active", OURS])?;
    swarm.running("web", 3).await?;
    swarm.docker(&["service", "rm", "web"])?;
    swarm.nothing_left("web").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_as_manager_runs_services_on_a_node_of_ours() -> Result<()> {
    let swarm = Swarm::start().await?;
    let scratch = tempfile::tempdir()?;
    let result = services(&swarm, scratch.path()).await;
    swarm.with_logs(result)?;
    let result = trouble(&swarm).await;
    swarm.with_logs(result)?;
    let result = extensions(&swarm, scratch.path()).await;
    swarm.with_logs(result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_as_manager_finds_its_tasks_again_after_faults_and_a_new_root() -> Result<()> {
    let mut swarm = Swarm::start().await?;
    let result = faults(&mut swarm).await;
    swarm.with_logs(result)
}
