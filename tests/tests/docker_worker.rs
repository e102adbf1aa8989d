//! A daemon of ours is the manager, and Docker Engine its worker: what our commands tell of tasks that Docker's own agent runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use swarm_api::Shared;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::{
    ListClustersRequest, ListNodesRequest, ListTasksRequest, NetworkAttachmentSpec, Node, NodeStatus, Task,
    TaskState, node_status, task_spec,
};
use swarm_testkit::daemon::{Daemon, channel, running, tasks};
use swarm_testkit::private_engine::{Character, PrivateEngine};
use swarm_testkit::teardown;
use swarm_testkit::wait::until;
use swarm_tests::logs::ctl;
use swarm_tests::{REST, SOON, containers};
use tempfile::TempDir;
use tonic::transport::Channel;

/// Where our manager listens, in the engine's network.
const MANAGER: &str = "127.0.0.1:2377";

/// A swarm of ours with one node of Docker's, on which everything runs.
struct Swarm {
    manager: Daemon,
    control: ControlClient<Channel>,
    worker: PrivateEngine,
    /// The id of Docker's node, which it got from us.
    node: String,
    image: String,
    dir: TempDir,
}

impl Swarm {
    async fn start() -> Result<Swarm> {
        let worker = PrivateEngine::start(Character::Usual).await?;
        let image = swarm_testkit::image::busybox(&worker.client().await?).await?;
        let dir = tempfile::Builder::new().prefix("swarm").tempdir()?;
        let socket = dir.path().join("control.sock");
        let address = socket.to_string_lossy().into_owned();
        let flags =
            ["--engine-addr", "none", "--listen-remote-api", MANAGER, "--listen-control-api", &address];
        let mut manager = Daemon::alone(dir.path(), "ours", &flags);
        manager.within = worker.network()?;
        let control = ControlClient::new(channel(socket));
        let mut swarm = Swarm { manager, control, worker, node: String::new(), image, dir };
        swarm.manager.start().await?;
        let joined = swarm.join().await;
        swarm.with_logs(joined)?;
        Ok(swarm)
    }

    async fn join(&mut self) -> Result<()> {
        let clusters =
            self.control.list_clusters(ListClustersRequest::default()).await?.into_inner().clusters;
        let token = clusters[0].root_ca.join_tokens.worker.clone();
        let join = ["swarm", "join", "--advertise-addr", "127.0.0.1", "--token", &token, MANAGER];
        self.worker.docker_ok(&join)?;
        self.node = self.worker.docker_ok(&["info", "--format", "{{.Swarm.NodeID}}"])?;
        self.state(node_status::State::Ready).await.map(drop)
    }

    /// Waits until Docker's node is in this state, and returns it.
    async fn state(&self, state: node_status::State) -> Result<Shared<Node>> {
        until(&format!("Docker's node to be {state:?}"), SOON, || async {
            let nodes =
                self.control.clone().list_nodes(ListNodesRequest::default()).await?.into_inner().nodes;
            let node = nodes.into_iter().find(|node| node.id == self.node).context("it is not listed")?;
            let status: &NodeStatus = &node.status;
            ensure!(status.state() == state, "{status:?}");
            Ok(node)
        })
        .await
    }

    fn ctl(&self, args: &[&str]) -> Result<String> {
        let out = ctl(&self.dir.path().join("control.sock"), args)?;
        ensure!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8(out.stdout)?.trim().to_owned())
    }

    /// Creates a service of containers that run a script, and returns its id.
    fn create(&self, name: &str, flags: &[&str], script: &str) -> Result<String> {
        let head = ["service", "create", "--name", name, "--image", &self.image];
        self.ctl(&[&head, flags, &["--", "sh", "-c", script]].concat())
    }

    /// Waits until so many tasks of a service run on Docker's node, with one container each and no other, and returns the
    /// containers by task.
    async fn running(&self, service: &str, count: usize) -> Result<BTreeMap<String, String>> {
        let found = running(&self.control, service, count, SOON).await?;
        ensure!(found.iter().all(|task| task.node_id == self.node), "{found:?}");
        let wanted: BTreeSet<String> = found.iter().map(|task| task.id.to_string()).collect();
        until(&format!("{count} containers"), SOON, || async {
            let containers = self.containers(service, false)?;
            ensure!(
                containers.keys().cloned().collect::<BTreeSet<_>>() == wanted,
                "{containers:?}, {wanted:?}"
            );
            Ok(containers)
        })
        .await
    }

    /// Containers of a service by their tasks: those that run, or all.
    fn containers(&self, service: &str, all: bool) -> Result<BTreeMap<String, String>> {
        let words = containers::list(&format!("com.docker.swarm.service.id={service}"), all);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        containers::by_task(&self.worker.docker_ok(&words)?, &self.node)
    }

    async fn nothing_left(&self, service: &str) -> Result<()> {
        until("everything of the service to be gone", SOON, || async {
            let left = self.containers(service, true)?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await
    }

    /// Waits until a task of a service is in this state, with this in what it reports.
    async fn shows(&self, service: &str, state: TaskState, text: &str) -> Result<Shared<Task>> {
        until(&format!("a task that is {state:?}: {text}"), SOON, || async {
            let tasks = tasks(&mut self.control.clone(), service).await?;
            let shown = |task: &&Shared<Task>| {
                task.status.state() == state
                    && (task.status.err.contains(text) || task.status.message.contains(text))
            };
            let found = tasks.iter().find(shown).cloned();
            found.with_context(|| format!("{:?}", tasks.iter().map(|task| &task.status).collect::<Vec<_>>()))
        })
        .await
    }

    fn with_logs<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            error.context(format!("the manager:\n{}\nthe engine:\n{}", self.manager.log(), self.worker.log()))
        })
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if self.manager.pid().is_some() {
            let _ = self.manager.kill();
        }
        if let Err(error) = teardown::end_processes(self.dir.path()) {
            assert!(std::thread::panicking(), "{error:#}");
        }
    }
}

async fn services(swarm: &Swarm, scratch: &Path) -> Result<()> {
    let written = |name: &str, text: &str| -> Result<PathBuf> {
        let path = scratch.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    };
    let password = format!("pw{}", swarm_api::id::random());
    let secret = written("secret", &password)?;
    let config = written("config", "slot {{.Task.Slot}} with {{secret \"pw\"}}")?;
    swarm.ctl(&["secret", "create", "password", "--file", &secret.to_string_lossy()])?;
    let words =
        ["config", "create", "conf", "--template-driver", "golang", "--file", &config.to_string_lossy()];
    swarm.ctl(&words)?;
    // Until the gate opens nobody is healthy.
    let gate = format!("type=bind,source={},target=/gate", scratch.display());
    let flags = [
        ["--replicas", "2"],
        ["--secret", "source=password,target=pw,uid=1000,mode=0400"],
        ["--config", "source=conf,target=/etc/app.conf"],
        ["--mount", &gate],
        ["--health-cmd", "test -e /gate/open"],
        ["--health-interval", "200ms"],
        ["--health-retries", "1000"],
        ["--env", "NAME={{.Service.Name}}.{{.Task.Slot}},HOST={{.Node.Hostname}}"],
        ["--stop-grace-period", "2s"],
        ["--update-delay", "0s"],
        ["--update-monitor", "100ms"],
        ["--log-driver", "json-file"],
    ];
    let script = format!("echo $NAME; echo $NAME complains >&2; {REST}");
    let web = swarm.create("web", flags.as_flattened(), &script)?;
    swarm.shows(&web, TaskState::Starting, "").await?;
    written("open", "")?;
    let containers = swarm.running(&web, 2).await?;
    let host = swarm.worker.docker_ok(&["info", "--format", "{{.Name}}"])?;
    for task in running(&swarm.control, &web, 2, SOON).await? {
        let container = containers.get(&*task.id).context("it has a container")?;
        let look = "stat -c '%a %u' /run/secrets/pw; cat /etc/app.conf; echo; echo $NAME on $HOST";
        let seen = swarm.worker.docker_ok(&["exec", container, "sh", "-c", look])?;
        let slot = task.slot;
        ensure!(seen == format!("400 1000\nslot {slot} with {password}\nweb.{slot} on {host}"), "{seen}");
    }
    let expected: BTreeSet<&str> = ["web.1", "web.1 complains", "web.2", "web.2 complains"].into();
    until("the lines of its tasks", SOON, || async {
        let both = ctl(&swarm.dir.path().join("control.sock"), &["service", "logs", "--raw", "web"])?;
        ensure!(both.status.success(), "{both:?}");
        let texts = [&both.stdout, &both.stderr].map(|text| String::from_utf8_lossy(text)).concat();
        ensure!(texts.lines().collect::<BTreeSet<_>>() == expected, "{texts}");
        ensure!(texts.lines().count() == expected.len(), "{texts}");
        Ok(())
    })
    .await?;

    swarm.ctl(&["service", "update", "web", "--env-add", "MORE=1"])?;
    until("the update to end", SOON, || async {
        let updated = swarm.running(&web, 2).await?;
        ensure!(updated.keys().all(|task| !containers.contains_key(task)), "{updated:?}");
        Ok(())
    })
    .await?;
    swarm.ctl(&["service", "update", "web", "--replicas", "1"])?;
    swarm.running(&web, 1).await?;
    swarm.ctl(&["service", "rm", "web"])?;
    swarm.nothing_left(&web).await
}

/// What ends badly, what ends well, and what Docker's agent can't know.
async fn ends(swarm: &Swarm) -> Result<()> {
    let fails = swarm.create("fails", &["--restart-condition", "none"], "exit 3")?;
    swarm.shows(&fails, TaskState::Failed, "non-zero exit (3)").await?;
    let job = swarm.create("job", &["--mode", "replicated-job"], "echo done")?;
    swarm.shows(&job, TaskState::Complete, "").await?;
    // Our processes are nothing for Docker's node: they are never placed there.
    let native =
        ["service", "create", "--name", "native", "--runtime", "process", "--", "/bin/sleep", "1000"];
    let native = swarm.ctl(&native)?;
    let placed = running(&swarm.control, &native, 1, SOON).await?;
    ensure!(placed[0].node_id != swarm.node, "{placed:?}");
    for service in ["fails", "job", "native"] {
        swarm.ctl(&["service", "rm", service])?;
    }
    swarm.nothing_left(&fails).await
}

/// A container that belongs to no service joins a network of the cluster (`docker-interop.md` §9, scenarios 19 and 20).
async fn attachments(swarm: &Swarm) -> Result<()> {
    let network = swarm.ctl(&["network", "create", "--name", "lan", "--driver", "bridge", "--attachable"])?;
    swarm.ctl(&["network", "create", "--name", "closed", "--driver", "bridge"])?;
    let run = ["run", "-d", "--name", "plain", "--network", "lan", "--init", &swarm.image, "sleep", "1000"];
    let container = swarm.worker.docker_ok(&run)?;
    let attached = || async {
        let all = swarm.control.clone().list_tasks(ListTasksRequest::default()).await?.into_inner().tasks;
        Ok::<_, anyhow::Error>(all.into_iter().filter(|task| task.service_id.is_empty()).collect::<Vec<_>>())
    };
    let found = until("the attachment to run", SOON, || async {
        let found = attached().await?;
        ensure!(found.len() == 1 && found[0].status.state() == TaskState::Running, "{found:?}");
        Ok(found)
    })
    .await?;
    let task = &found[0];
    let runtime = NetworkAttachmentSpec { container_id: container };
    ensure!(task.spec.runtime == Some(task_spec::Runtime::Attachment(runtime)), "{task:?}");
    ensure!(*task.node_id == *swarm.node, "{task:?}");
    let networks: Vec<_> = task.networks.iter().filter_map(|n| n.network.as_ref()).collect();
    ensure!(networks.len() == 1 && networks[0].id == network, "{task:?}");
    let address = "{{range $name, $it := .NetworkSettings.Networks}}{{$name}} {{$it.IPAddress}}{{end}}";
    let shown = swarm.worker.docker_ok(&["inspect", "--format", address, "plain"])?;
    let address = shown.strip_prefix("lan ").and_then(|address| address.parse::<std::net::Ipv4Addr>().ok());
    ensure!(address.is_some(), "{shown:?}");

    let refused = swarm.worker.docker(&["run", "--rm", "--network", "closed", &swarm.image, "true"])?;
    let text = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && text.contains("not manually attachable"), "{text}");

    swarm.worker.docker_ok(&["rm", "-f", "plain"])?;
    until("the attachment to be gone", SOON, || async {
        let left = attached().await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    for network in ["lan", "closed"] {
        swarm.ctl(&["network", "remove", network])?;
    }
    Ok(())
}

async fn faults(swarm: &mut Swarm) -> Result<()> {
    let web = swarm.create("web", &["--replicas", "3", "--stop-grace-period", "2s"], REST)?;
    let before = swarm.running(&web, 3).await?;

    // The manager dies and comes back: no container is restarted.
    swarm.manager.kill()?;
    swarm.manager.start().await?;
    swarm.state(node_status::State::Ready).await?;
    ensure!(swarm.running(&web, 3).await? == before, "the manager's restart has changed what runs");

    // The engine dies, its containers with it.
    swarm.worker.kill().await?;
    swarm.state(node_status::State::Down).await?;
    swarm.worker.restart().await?;
    swarm.state(node_status::State::Ready).await?;
    let after = swarm.running(&web, 3).await?;
    ensure!(after.keys().all(|task| !before.contains_key(task)), "{after:?}");

    swarm.ctl(&["node", "drain", &swarm.node])?;
    until("the drained node to be empty", SOON, || async {
        let left = swarm.containers(&web, false)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    swarm.ctl(&["node", "activate", &swarm.node])?;
    swarm.running(&web, 3).await?;
    swarm.ctl(&["service", "rm", "web"])?;
    swarm.nothing_left(&web).await?;

    swarm.worker.docker_ok(&["swarm", "leave"])?;
    swarm.state(node_status::State::Down).await?;
    swarm.ctl(&["node", "rm", &swarm.node])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_as_worker_runs_what_we_assign() -> Result<()> {
    let swarm = Swarm::start().await?;
    let scratch = tempfile::tempdir()?;
    let result = services(&swarm, scratch.path()).await;
    swarm.with_logs(result)?;
    let result = ends(&swarm).await;
    swarm.with_logs(result)?;
    let result = attachments(&swarm).await;
    swarm.with_logs(result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_as_worker_goes_on_after_faults() -> Result<()> {
    let mut swarm = Swarm::start().await?;
    let result = faults(&mut swarm).await;
    swarm.with_logs(result)
}
