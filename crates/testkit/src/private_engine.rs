//! A Docker Engine of a test's own, which may be killed, frozen, restarted, and made a manager of a swarm: the engine of
//! this machine serves everybody and is left alone.
//!
//! It runs in namespaces of its own (process ids, mounts and network), as on a host: [`PrivateEngine::power_off`] ends the
//! engine, its containers and whatever runs beside them at once, and nothing is left behind when it is dropped.
//!
//! Never start a `dockerd` without that: one with `--bridge=none` removes the bridge `docker0` of its network, which is that of
//! the machine's own engine, and one in swarm mode makes bridges of its own there.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bollard::{API_DEFAULT_VERSION, Docker};
use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;

use crate::image;
use crate::wait::until;

/// Longest wait for an engine to answer, or to end.
const READY: Duration = Duration::from_secs(120);
/// Time limit of a request to it, in seconds.
const REQUEST: u64 = 120;

/// How an engine is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Character {
    /// When it starts after a crash it ends the containers that it finds running.
    Usual,
    /// Its containers go on while it is away. Such an engine can't be in swarm mode.
    LiveRestore,
}

/// An engine, running or not.
#[derive(Debug)]
pub struct PrivateEngine {
    dir: TempDir,
    name: String,
    character: Character,
    /// The namespaces' first process and the program that made them; none after the power was cut.
    namespaces: Option<Namespaces>,
    /// Enters the namespaces and waits for the engine there.
    engine: Option<Child>,
}

#[derive(Debug)]
struct Namespaces {
    holder: Child,
    init: u32,
}

impl PrivateEngine {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// If there is no `dockerd` on this machine, or it does not start; its log is in the text.
    pub async fn start(character: Character) -> Result<PrivateEngine> {
        let dir = tempfile::Builder::new().prefix("swarm-engine").tempdir()?;
        // Not what the machine's own engine is configured with.
        std::fs::write(dir.path().join("daemon.json"), "{}")?;
        let name = dir.path().file_name().context("it has a name")?.to_string_lossy().into_owned();
        let name = name.to_lowercase().replace('.', "-");
        let mut engine = PrivateEngine { dir, name, character, namespaces: None, engine: None };
        engine.restart().await?;
        Ok(engine)
    }

    /// Starts it again after it was killed, stopped, or lost its power.
    ///
    /// # Errors
    /// If it runs, or does not start.
    pub async fn restart(&mut self) -> Result<()> {
        ensure!(self.engine.is_none(), "the engine is running");
        if self.namespaces.is_none() {
            self.namespaces = Some(Namespaces::new().await?);
            // What an engine that lost its power left here says nothing about the processes of today.
            match std::fs::remove_file(self.pid_file()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        self.has_its_own_network()?;
        let dir = self.dir.path();
        let log = File::options().create(true).append(true).open(dir.join("log"))?;
        let mut command = self.inside("dockerd")?;
        command.arg("--config-file").arg(dir.join("daemon.json"));
        command.arg("--data-root").arg(dir.join("data")).arg("--exec-root").arg(dir.join("exec"));
        command.arg("--pidfile").arg(self.pid_file()).arg("--host").arg(self.address());
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--cgroup-parent"]);
        command.arg(format!("/{}", self.name));
        // If there is a containerd on this machine it may be the one that is used.
        command.args(["--containerd-namespace", &self.name]);
        command.args(["--containerd-plugins-namespace", &format!("{}-plugins", self.name)]);
        if self.character == Character::LiveRestore {
            command.arg("--live-restore");
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.engine =
            Some(command.spawn().context("starting nsenter: is the package util-linux installed?")?);
        let answers = until("the private engine to answer", READY, || async {
            self.client().await?.ping().await?;
            Ok(())
        });
        answers.await.with_context(|| self.log())
    }

    /// A program on the engine's host and in its network, not started yet.
    fn inside(&self, program: &str) -> Result<Command> {
        let words = self.enter(&["--mount", "--pid", "--net"])?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program);
        Ok(command)
    }

    /// What an engine does to its network it does to no other.
    fn has_its_own_network(&self) -> Result<()> {
        let init = self.namespaces.as_ref().context("the engine has no power")?.init;
        let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net"));
        ensure!(
            network("self")? != network(&init.to_string())?,
            "the private engine would be in this machine's network"
        );
        Ok(())
    }

    /// A socket that listens in the engine's network: at a free port of an address, or at this one. It is used from here.
    ///
    /// # Errors
    /// If the engine has no power, or the port is taken.
    pub fn listen(&self, address: &str) -> Result<TcpListener> {
        let init = self.namespaces.as_ref().context("the engine has no power")?.init;
        let network = File::open(format!("/proc/{init}/ns/net"))?;
        let address = address.to_owned();
        // A thread that enters a network stays in it, so it is one that ends.
        let bound = std::thread::spawn(move || -> Result<TcpListener> {
            setns(network, CloneFlags::CLONE_NEWNET)?;
            Ok(TcpListener::bind(address)?)
        });
        bound.join().unwrap_or_else(|_| bail!("the thread that listens panicked"))
    }

    /// What to put before a program's words so that it runs on the engine's host, with this machine's network: it ends with
    /// [`Self::power_off`]. The process that is started then only waits for it.
    ///
    /// # Errors
    /// If the engine has no power.
    pub fn host(&self) -> Result<Vec<String>> {
        self.enter(&["--mount", "--pid"])
    }

    fn enter(&self, namespaces: &[&str]) -> Result<Vec<String>> {
        let init = self.namespaces.as_ref().context("the engine has no power")?.init.to_string();
        let words = [&["nsenter", "--target", &init], namespaces, &["--"]].concat();
        Ok(words.into_iter().map(str::to_owned).collect())
    }

    /// What to put before a program's words so that it runs in the engine's network, and nothing else of its.
    ///
    /// # Errors
    /// If the engine has no power.
    pub fn network(&self) -> Result<Vec<String>> {
        self.enter(&["--net"])
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// The address for clients.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// A client of it.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn client(&self) -> Result<Docker> {
        let docker =
            Docker::connect_with_unix(&self.socket().to_string_lossy(), REQUEST, API_DEFAULT_VERSION)?;
        Ok(docker.negotiate_version().await?)
    }

    /// Runs the engine's own command line against it.
    ///
    /// # Errors
    /// If there is none; that it fails is told by what it returns.
    pub fn docker(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new("docker");
        command.env_remove("DOCKER_CONTEXT").arg("--host").arg(self.address()).args(args);
        command.output().context("running docker")
    }

    /// The same, and what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub fn docker_ok(&self, args: &[&str]) -> Result<String> {
        let out = self.docker(args)?;
        ensure!(out.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// Everything that the engine logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends the engine as a crash does. Its containers are left to themselves.
    ///
    /// # Errors
    /// If it is not running.
    pub async fn kill(&mut self) -> Result<()> {
        let status = self.end("KILL").await?;
        ensure!(status.signal() == Some(9) || status.code() == Some(137), "the engine ended with {status}");
        Ok(())
    }

    /// Ends it in good order, its containers too unless they are to go on.
    ///
    /// # Errors
    /// If it is not running, or does not end.
    pub async fn stop(&mut self) -> Result<()> {
        self.end("TERM").await.map(drop)
    }

    async fn end(&mut self, signal: &str) -> Result<ExitStatus> {
        self.signal(signal)?;
        let mut child = self.engine.take().context("the engine is not running")?;
        until("the engine to end", READY, || {
            let ended = child.try_wait();
            async move { ended?.context("it still runs") }
        })
        .await
    }

    /// Freezes the engine: it accepts connections, and never answers.
    ///
    /// # Errors
    /// If it is not running.
    pub fn pause(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// Lets a frozen engine go on.
    ///
    /// # Errors
    /// If it is not running.
    pub fn resume(&self) -> Result<()> {
        self.signal("CONT")?;
        self.resume_entrance()
    }

    /// Whoever entered the namespaces for the engine stops with it, but does not go on with it; and as long as it stands still,
    /// an engine that has ended is not gone.
    fn resume_entrance(&self) -> Result<()> {
        let Some(entrance) = &self.engine else { return Ok(()) };
        let sent = Command::new("kill").args(["-s", "CONT", &entrance.id().to_string()]).output()?;
        ensure!(sent.status.success(), "kill: {}", String::from_utf8_lossy(&sent.stderr));
        Ok(())
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let pid = std::fs::read_to_string(self.pid_file()).context("the engine's process id")?;
        let sent = self.inside("kill")?.args(["-s", signal, pid.trim()]).output()?;
        ensure!(sent.status.success(), "kill: {}", String::from_utf8_lossy(&sent.stderr));
        Ok(())
    }

    /// Ends everything in the namespaces at once, as a host does that loses its power. Its disk stays.
    ///
    /// # Errors
    /// If something does not end.
    pub async fn power_off(&mut self) -> Result<()> {
        self.resume_entrance()?;
        let mut namespaces = self.namespaces.take().context("the engine has no power")?;
        namespaces.end()?;
        if let Some(mut child) = self.engine.take() {
            until("the engine to be gone", READY, || {
                let ended = child.try_wait();
                async move { ended?.context("it still runs").map(drop) }
            })
            .await?;
        }
        // It lies in memory, as /run does: what is left of it may name processes that have other owners after the start, and an
        // engine then waits for a containerd that is none.
        match std::fs::remove_dir_all(self.dir.path().join("exec")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("removing what a host has in memory")
            }
            _ => Ok(()),
        }
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.path().join("pid")
    }

    /// The empty control groups of its containers, which outlive them.
    fn remove_control_groups(&self) {
        let roots = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let mut roots: Vec<PathBuf> = roots.map(|entry| entry.path().join(&self.name)).collect();
        roots.push(Path::new("/sys/fs/cgroup").join(&self.name));
        for root in roots.into_iter().filter(|root| root.is_dir()) {
            for group in std::fs::read_dir(&root).into_iter().flatten().flatten() {
                // Files of the group can't be removed, nor do they need to be.
                let _ = std::fs::remove_dir(group.path());
            }
            let _ = std::fs::remove_dir(root);
        }
    }
}

impl Drop for PrivateEngine {
    fn drop(&mut self) {
        // It may be frozen.
        let _ = self.resume_entrance();
        let ended = self.namespaces.take().map_or(Ok(()), |mut namespaces| namespaces.end());
        if let Some(mut child) = self.engine.take() {
            let _ = child.wait();
        }
        self.remove_control_groups();
        match ended {
            Err(error) if std::thread::panicking() => eprintln!("{error:#}"),
            Err(error) => panic!("{error:#}"),
            Ok(()) => {}
        }
    }
}

impl Namespaces {
    async fn new() -> Result<Namespaces> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--net", "--fork", "--mount-proc", "--kill-child"]);
        // The first process of its namespace also reaps what others leave.
        let busybox = image::busybox_path()?;
        let script = format!(
            "{} ip link set lo up || exit 1; while :; do sleep 1000000 & wait $!; done",
            busybox.display()
        );
        command.args(["sh", "-c", &script]).stdin(Stdio::null());
        let mut holder = command.spawn().context("starting unshare: is the package util-linux installed?")?;
        let parent = holder.id();
        let init = until("the namespaces", READY, || {
            let found = ended(&mut holder).and_then(|()| child_of(parent));
            async move { found }
        })
        .await?;
        let namespaces = Namespaces { holder, init };
        // It is in its new namespaces from its beginning, but what it has to set up first takes a moment.
        until("the namespaces to be set up", READY, || async { child_of(init).map(drop) }).await?;
        Ok(namespaces)
    }

    /// The kernel ends all processes of a namespace with its first one, and lets that end last.
    fn end(&mut self) -> Result<()> {
        let _ = self.holder.kill();
        self.holder.wait()?;
        let limit = std::time::Instant::now() + READY;
        let init = PathBuf::from(format!("/proc/{}", self.init));
        while init.exists() {
            ensure!(std::time::Instant::now() < limit, "processes of a private engine do not end");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Ok(())
    }
}

fn ended(child: &mut Child) -> Result<()> {
    match child.try_wait()? {
        Some(status) => bail!("unshare ended with {status}: these tests need root"),
        None => Ok(()),
    }
}

/// A process whose parent is this one.
fn child_of(parent: u32) -> Result<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = std::fs::read_to_string(&path).with_context(|| path)?;
    let first = children.split_whitespace().next().with_context(|| format!("{parent} has no child"))?;
    Ok(first.parse()?)
}
