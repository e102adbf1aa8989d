//! Real daemons on this host: managers and workers, each a process with its own state directory.

use std::ffi::OsString;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::{
    GetServiceRequest, ListClustersRequest, ListNodesRequest, ListServicesRequest, ListTasksRequest, Node,
    Service, Task, TaskState, list_tasks_request,
};
use swarm_api::{Shared, v1};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::teardown;
use crate::wait::until;

mod managers;

pub use managers::{Contents, free_address};

/// Longest wait for a daemon to become ready.
const READY: Duration = Duration::from_secs(120);

/// How the daemons of a cluster run tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Containers of the Docker Engine of this host, and native processes.
    Docker,
    /// Native processes only.
    None,
}

/// A loopback address that is no other test's, nor any connection's: a daemon that is restarted finds its port free.
pub fn loopback() -> Ipv4Addr {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    // Process ids have 22 bits, the network has 24 for its hosts, and its last address is of no use.
    let number = CALLS.fetch_add(1, Ordering::Relaxed) % 3;
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 0)) | number << 22 | (std::process::id() & 0x3f_ffff))
}

/// A program of this workspace, beside the running test in the target directory.
///
/// # Errors
/// If it was not built; `cargo xtask test` builds all of them first.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test.parent().and_then(Path::parent).context("a test runs from target/<profile>/deps")?;
    let program = profile.join(name);
    ensure!(
        program.exists(),
        "{} is missing: build it with `cargo build --workspace --bins --tests`",
        program.display()
    );
    Ok(program)
}

/// One running or stopped daemon.
#[derive(Debug)]
pub struct Daemon {
    /// Its hostname in the cluster.
    pub name: String,
    /// More flags, from the next start on.
    pub extra: Vec<String>,
    /// Words before its own, from the next start on: a program that becomes the daemon, somewhere else.
    pub within: Vec<String>,
    state: PathBuf,
    args: Vec<String>,
    child: Option<Child>,
    /// Where the log of the present run begins.
    run_begins: usize,
}

impl Daemon {
    /// One of no cluster of ours, with a state directory of its own in `dir`. Not started yet; what it leaves behind is
    /// the caller's to end (`teardown`).
    pub fn alone(dir: &Path, name: &str, args: &[&str]) -> Daemon {
        daemon(dir, Engine::Docker, name, args)
    }

    /// Starts the process (again), with the same state directory and flags, and waits until it is ready.
    pub async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Starts the process without waiting.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "{} is running already", self.name);
        self.run_begins = self.log().len();
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut words: Vec<OsString> = self.within.iter().map(OsString::from).collect();
        words.push(program("swarmd")?.into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("--state-dir").arg(&self.state).args(["--hostname", &self.name]);
        command.args(&self.args).args(&self.extra);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Waits until the log of the present run says that the node is ready.
    pub async fn ready(&mut self) -> Result<()> {
        self.says("node is ready").await
    }

    /// Waits until the log of the present run holds a text.
    pub async fn says(&mut self, text: &str) -> Result<()> {
        let path = self.log_path();
        let name = self.name.clone();
        let child = self.child.as_mut().context("not started")?;
        let end = tokio::time::Instant::now() + READY;
        loop {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            if log.get(self.run_begins..).is_some_and(|present| present.contains(text)) {
                return Ok(());
            }
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended with {status}; its log:\n{log}");
            }
            if tokio::time::Instant::now() > end {
                bail!("{name} did not say {text:?} within {READY:?}; its log:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the process as a crash would: SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks the process to end and waits for it.
    pub async fn stop(&mut self) -> Result<std::process::ExitStatus> {
        self.signal("TERM")?;
        let mut child = self.child.take().context("not running")?;
        until(&format!("{} to end", self.name), READY, || {
            let ended = child.try_wait();
            async move { ended?.context("it still runs") }
        })
        .await
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(&mut self, deadline: Duration) -> Result<std::process::ExitStatus> {
        let mut child = self.child.take().context("not running")?;
        let ended = until(&format!("{} to end", self.name), deadline, || {
            let ended = child.try_wait();
            async move { ended?.context("it still runs") }
        })
        .await;
        if ended.is_err() {
            self.child = Some(child);
        }
        ended
    }

    /// Gives a flag of the next start another value.
    pub fn set_flag(&mut self, flag: &str, value: &str) -> Result<()> {
        let at = self.args.iter().position(|arg| arg == flag).with_context(|| format!("no {flag}"))?;
        self.args[at + 1] = value.to_owned();
        Ok(())
    }

    /// Address of its remote API, as of its last start.
    pub fn address(&self) -> Result<String> {
        listening(&self.log())
    }

    /// Freezes the process, as a host does that hangs.
    pub fn pause(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// Lets a frozen process go on.
    pub fn resume(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid().context("not running")?.to_string();
        ensure!(Command::new("kill").args(["-s", name, &pid]).status()?.success(), "kill failed");
        Ok(())
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Everything that it wrote to its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// What it wrote to its log since its last start.
    pub fn present_log(&self) -> String {
        self.log().split_off(self.run_begins)
    }

    /// The raft terms in which it has led, as of its log.
    pub fn led_terms(&self) -> Vec<u64> {
        let log = self.log();
        let lines = log.lines().filter(|line| line.contains("\"this manager leads the cluster\""));
        lines.filter_map(|line| line.split("term=").nth(1)?.split_whitespace().next()?.parse().ok()).collect()
    }

    /// Its state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    fn log_path(&self) -> PathBuf {
        self.state.with_extension("log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Managers and workers.
#[derive(Debug)]
pub struct Cluster {
    engine: Engine,
    flags: Vec<String>,
    dir: TempDir,
    /// The first manager; its node runs tasks too unless drained.
    pub manager: Daemon,
    /// Further managers, in the order in which they were added.
    pub managers: Vec<Daemon>,
    /// The workers, in the order in which they were added.
    pub workers: Vec<Daemon>,
    /// Typed access to the control API over the manager's socket.
    pub control: ControlClient<Channel>,
    /// What the managers' key files are encrypted with, to be set by a test that locks them: their certificates are
    /// borrowed to ask them.
    pub unlock_key: Option<String>,
}

impl Cluster {
    /// Starts a manager and `workers` workers, and waits until all are ready.
    pub async fn start(engine: Engine, workers: usize) -> Result<Cluster> {
        Cluster::start_with(engine, workers, &[]).await
    }

    /// The same, with more flags for every daemon.
    pub async fn start_with(engine: Engine, workers: usize, flags: &[&str]) -> Result<Cluster> {
        let dir = tempfile::Builder::new().prefix("swarm").tempdir()?;
        let socket = dir.path().join("control.sock");
        let socket_text = socket.to_str().context("the temporary directory's name is UTF-8")?;
        let mut manager = daemon(
            dir.path(),
            engine,
            "manager",
            // After a restart the manager must be found where its workers know it.
            &["--listen-remote-api", &free_address(), "--listen-control-api", socket_text],
        );
        let flags: Vec<String> = flags.iter().map(|f| (*f).to_owned()).collect();
        manager.args.extend(flags.iter().cloned());
        let control = ControlClient::new(channel(socket));
        let mut cluster = Cluster {
            engine,
            dir,
            manager,
            managers: Vec::new(),
            workers: Vec::new(),
            control,
            flags,
            unlock_key: None,
        };
        cluster.manager.start().await?;
        for _ in 0..workers {
            cluster.add_worker().await?;
        }
        Ok(cluster)
    }

    /// A daemon that is to join through the first manager. Also a worker gets a control socket: it may be promoted.
    fn joining(&self, name: &str, token: &str) -> Result<Daemon> {
        let (address, listen, socket) = (self.address()?, free_address(), self.socket_of(name));
        let socket = socket.to_str().context("the temporary directory's name is UTF-8")?;
        let join = ["--join-addr", &address, "--join-token", token];
        let listen = ["--listen-remote-api", &listen, "--listen-control-api", socket];
        let mut joining = daemon(self.dir.path(), self.engine, name, &[join, listen].concat());
        joining.args.extend(self.flags.iter().cloned());
        Ok(joining)
    }

    /// Adds a worker and waits until it is ready.
    pub async fn add_worker(&mut self) -> Result<()> {
        let worker = self.new_worker().await?;
        // Among the workers even if it does not start: what it left behind is ended with the rest.
        self.workers.push(worker);
        self.workers.last_mut().context("it was just added")?.start().await
    }

    /// Adds a worker that runs containers in this engine, and waits until it is ready. What it leaves in an engine that
    /// is not this host's own ends with that.
    /// `within` is as in [`Daemon::within`].
    pub async fn add_worker_of(&mut self, engine: &str, within: Vec<String>) -> Result<()> {
        let mut worker = self.new_worker().await?;
        worker.args.retain(|word| !matches!(word.as_str(), "--engine-addr" | "none"));
        worker.args.extend(["--engine-addr".to_owned(), engine.to_owned()]);
        worker.within = within;
        self.workers.push(worker);
        self.workers.last_mut().context("it was just added")?.start().await
    }

    async fn new_worker(&mut self) -> Result<Daemon> {
        let name = format!("worker-{}", self.workers.len() + 1);
        let token = self.worker_token().await?;
        self.joining(&name, &token)
    }

    /// A daemon of this cluster's directory that was not started yet.
    pub fn daemon(&self, name: &str, args: &[&str]) -> Daemon {
        daemon(self.dir.path(), self.engine, name, args)
    }

    /// Address of the manager's remote API.
    pub fn address(&self) -> Result<String> {
        listening(&self.manager.log())
    }

    /// Path of the manager's control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    /// Path of the control socket of the daemon with this name, if it is a manager.
    pub fn socket_of(&self, name: &str) -> PathBuf {
        if name == self.manager.name { self.socket() } else { self.dir.path().join(format!("{name}.sock")) }
    }

    /// Starts the stopped manager again, and connects to it anew: a connection that was there before may still have to
    /// notice that it is gone.
    pub async fn start_manager(&mut self) -> Result<()> {
        self.manager.start().await?;
        self.reconnect();
        Ok(())
    }

    /// Connects anew.
    pub fn reconnect(&mut self) {
        self.control = ControlClient::new(self.channel());
    }

    /// A channel to the manager's control socket.
    pub fn channel(&self) -> Channel {
        channel(self.socket())
    }

    /// The cluster object.
    pub async fn cluster_object(&mut self) -> Result<Shared<v1::Cluster>> {
        let answer = self.control.list_clusters(ListClustersRequest::default()).await?.into_inner();
        answer.clusters.into_iter().next().context("no cluster object")
    }

    /// The join token for workers.
    pub async fn worker_token(&mut self) -> Result<String> {
        Ok(self.cluster_object().await?.root_ca.join_tokens.worker.clone())
    }

    /// The join token for managers.
    pub async fn manager_token(&mut self) -> Result<String> {
        Ok(self.cluster_object().await?.root_ca.join_tokens.manager.clone())
    }

    /// Runs `swarmctl` against the manager's socket.
    pub fn ctl(&self, args: &[&str]) -> Result<Output> {
        Ok(Command::new(program("swarmctl")?).arg("--socket").arg(self.socket()).args(args).output()?)
    }

    /// Runs `swarmctl` and returns what it printed; fails if it does.
    pub fn ctl_ok(&self, args: &[&str]) -> Result<String> {
        let out = self.ctl(args)?;
        ensure!(out.status.success(), "swarmctl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// All nodes.
    pub async fn nodes(&mut self) -> Result<Vec<Shared<Node>>> {
        Ok(self.control.list_nodes(ListNodesRequest::default()).await?.into_inner().nodes)
    }

    /// The node with this hostname.
    pub async fn node(&mut self, name: &str) -> Result<Shared<Node>> {
        let nodes = self.nodes().await?;
        let found = nodes.into_iter().find(|n| n.description.as_ref().is_some_and(|d| d.hostname == name));
        found.with_context(|| format!("no node {name}"))
    }

    /// All services.
    pub async fn services(&mut self) -> Result<Vec<Shared<Service>>> {
        Ok(self.control.list_services(ListServicesRequest::default()).await?.into_inner().services)
    }

    /// A service by its id.
    pub async fn service(&mut self, id: &str) -> Result<Shared<Service>> {
        let request = GetServiceRequest { service_id: id.to_owned(), insert_defaults: false };
        self.control.get_service(request).await?.into_inner().service.context("an answer without a service")
    }

    /// Every task of a service.
    pub async fn tasks(&mut self, service: &str) -> Result<Vec<Shared<Task>>> {
        tasks(&mut self.control, service).await
    }

    /// Waits until exactly `count` tasks of a service run and are wanted, and returns them.
    pub async fn running(
        &mut self,
        service: &str,
        count: usize,
        deadline: Duration,
    ) -> Result<Vec<Shared<Task>>> {
        running(&self.control, service, count, deadline).await
    }

    /// What every daemon wrote to its log: for the text of a failing test.
    pub fn logs(&self) -> String {
        let all = std::iter::once(&self.manager).chain(&self.managers).chain(&self.workers);
        all.map(|d| format!("---- {}\n{}", d.name, d.log())).collect()
    }
}

impl Drop for Cluster {
    /// Leaves no process and no container behind, whatever became of the test.
    fn drop(&mut self) {
        for daemon in std::iter::once(&mut self.manager).chain(&mut self.managers).chain(&mut self.workers) {
            if daemon.child.is_some() {
                let _ = daemon.kill();
            }
        }
        let mut results = vec![teardown::end_processes(self.dir.path())];
        if self.engine == Engine::Docker {
            results.push(teardown::remove_containers(self.dir.path()));
        }
        for error in results.into_iter().filter_map(Result::err) {
            // A test that fails has its own reason to tell.
            if std::thread::panicking() {
                eprintln!("{error:#}");
            } else {
                panic!("{error:#}");
            }
        }
    }
}

fn daemon(dir: &Path, engine: Engine, name: &str, args: &[&str]) -> Daemon {
    let mut args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    if engine == Engine::None {
        args.extend(["--engine-addr".to_owned(), "none".to_owned()]);
    }
    Daemon {
        name: name.to_owned(),
        extra: Vec::new(),
        within: Vec::new(),
        state: dir.join(name),
        args,
        child: None,
        run_begins: 0,
    }
}

/// The address that the last run of a manager listens on.
fn listening(log: &str) -> Result<String> {
    let line =
        log.lines().rev().find(|l| l.contains("Listening for connections")).context("it does not listen")?;
    let address =
        line.split_whitespace().find_map(|w| w.strip_prefix("addr=")).context("no address in the log")?;
    Ok(address.trim_matches('"').to_owned())
}

/// Waits until exactly `count` tasks of a service run and are wanted, and returns them.
///
/// # Errors
/// If it takes longer than `deadline`; the text tells of all its tasks.
pub async fn running(
    control: &ControlClient<Channel>,
    service: &str,
    count: usize,
    deadline: Duration,
) -> Result<Vec<Shared<Task>>> {
    until(&format!("{count} running tasks"), deadline, || {
        let (mut control, service) = (control.clone(), service.to_owned());
        async move {
            let tasks = tasks(&mut control, &service).await?;
            let wanted: Vec<_> =
                tasks.iter().filter(|t| t.desired_state() == TaskState::Running).cloned().collect();
            let running: Vec<_> =
                wanted.iter().filter(|t| t.status.state() == TaskState::Running).cloned().collect();
            if running.len() == count && wanted.len() == count {
                return Ok(running);
            }
            let states: Vec<_> = tasks
                .iter()
                .map(|t| format!("{}→{} {}", t.status.state().name(), t.desired_state().name(), t.status.err))
                .collect();
            bail!("{} of {} run: {states:#?}", running.len(), wanted.len())
        }
    })
    .await
}

/// Every task of a service.
///
/// # Errors
/// If the manager does not answer.
pub async fn tasks(control: &mut ControlClient<Channel>, service: &str) -> Result<Vec<Shared<Task>>> {
    let filters = list_tasks_request::Filters { service_ids: vec![service.to_owned()], ..Default::default() };
    let request = ListTasksRequest { filters: Some(filters) };
    Ok(control.list_tasks(request).await?.into_inner().tasks)
}

/// A plaintext gRPC channel over a UNIX socket, dialled when first used and again after a failure.
pub fn channel(socket: PathBuf) -> Channel {
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}
