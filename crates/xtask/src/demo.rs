//! `cargo xtask demo`: a cluster of three daemons on this host, and a service on it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, engine, output, packages, root, run};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Stop the cluster that an earlier demo left running, and remove what it made.
    #[arg(long)]
    stop: bool,
    /// Run native processes even if a Docker Engine is there.
    #[arg(long)]
    no_docker: bool,
}

/// Replicas of the demo's service.
const REPLICAS: usize = 3;
/// Longest wait for any step of the demo.
const PATIENCE: Duration = Duration::from_secs(60);

struct Demo {
    dir: PathBuf,
    bin: PathBuf,
}

impl Demo {
    fn new() -> Demo {
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        Demo { dir: target.join("demo"), bin: target.join("release") }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("manager.sock")
    }

    fn ctl(&self) -> Command {
        let mut command = Command::new(self.bin.join("swarmctl"));
        command.arg("--socket").arg(self.socket());
        command
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pid"))
    }

    /// Starts a daemon that outlives this command.
    fn daemon(&self, name: &str, args: &[&str]) -> Result<Child> {
        let log = File::create(self.dir.join(format!("{name}.log")))?;
        let mut command = Command::new(self.bin.join("swarmd"));
        command.arg("--state-dir").arg(self.dir.join(name)).args(["--hostname", name]).args(args);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().context("can't start swarmd")?;
        std::fs::write(self.pid_file(name), child.id().to_string())?;
        Ok(child)
    }

    /// Waits until a daemon's log says something.
    fn await_log(&self, name: &str, child: &mut Child, text: &str) -> Result<()> {
        let path = self.dir.join(format!("{name}.log"));
        wait(&format!("{name} to be ready"), || {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            if log.contains(text) {
                return Ok(Some(()));
            }
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended with {status}:\n{log}");
            }
            Ok(None)
        })
    }
}

/// Polls a condition until it holds, or fails after [`PATIENCE`].
fn wait<T>(what: &str, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn run_demo(args: &Args) -> Result<()> {
    let demo = Demo::new();
    if running(&demo).next().is_some() {
        bail!("a demo is running already; stop it with `cargo xtask demo --stop`");
    }
    step("building swarmd and swarmctl (release)");
    packages::install(packages::missing_for_build().as_slice())?;
    run(cargo().args(["build", "--release", "--package", "swarmd", "--package", "swarmctl"]))?;
    if demo.dir.exists() {
        std::fs::remove_dir_all(&demo.dir)?;
    }
    std::fs::create_dir_all(&demo.dir)?;

    let docker = !args.no_docker && engine::is_there();
    let engine_addr = format!("unix://{}", engine::SOCKET);
    let engine_flags = ["--engine-addr", if docker { engine_addr.as_str() } else { "none" }];
    let socket = demo.socket();
    let socket = socket.to_str().context("the target directory's name is not UTF-8")?;

    step("starting a manager");
    let mut flags = vec!["--listen-remote-api", "127.0.0.1:0", "--listen-control-api", socket];
    flags.extend(engine_flags);
    let mut manager = demo.daemon("manager", &flags)?;
    demo.await_log("manager", &mut manager, "node is ready")?;
    let cluster = output(demo.ctl().args(["cluster", "inspect", "default"]))?;
    let token = cluster
        .split_whitespace()
        .find(|word| word.starts_with("SWMTKN-"))
        .context("swarmctl shows no join token")?
        .to_owned();
    let address = listening(&demo)?;

    let mut workers = Vec::new();
    for name in ["worker-1", "worker-2"] {
        step(&format!("joining {name} through {address}"));
        let mut flags = vec!["--join-addr", address.as_str(), "--join-token", token.as_str()];
        flags.extend(["--listen-remote-api", "127.0.0.1:0"]);
        flags.extend(engine_flags);
        workers.push((name, demo.daemon(name, &flags)?));
    }
    for (name, child) in &mut workers {
        demo.await_log(name, child, "node is ready")?;
    }

    let replicas = REPLICAS.to_string();
    let mut create = demo.ctl();
    create.args(["service", "create", "--name", "hello", "--replicas", &replicas]);
    if docker {
        step("making sure that there is a tiny image");
        let (image, command) = engine::demo_image(&demo.dir)?;
        step(&format!("creating the service hello: {REPLICAS} containers of {image}"));
        create.args(["--image", &image]);
        for word in &command {
            create.arg("--command").arg(word);
        }
    } else {
        step(&format!("creating the service hello: {REPLICAS} native processes"));
        create.args(["--runtime", "process", "--command", "/bin/sh", "--args", "-c"]);
        create.args(["--args", "while :; do date; sleep 1; done"]);
    }
    output(&mut create)?;

    let mut shown = String::new();
    wait("the service to run", || {
        let services = output(demo.ctl().args(["service", "ls"]))?;
        let line = services.lines().find(|line| line.contains("hello")).unwrap_or_default();
        let replicas = line.split_whitespace().last().unwrap_or_default();
        if replicas != shown {
            println!("    {replicas} tasks are running");
            replicas.clone_into(&mut shown);
        }
        Ok((shown == format!("{REPLICAS}/{REPLICAS}")).then_some(()))
    })?;

    for words in [["node", "ls"], ["service", "ls"], ["task", "ls"]] {
        println!("\n$ swarmctl {}", words.join(" "));
        run(demo.ctl().args(words))?;
    }
    println!("\nThe cluster goes on running. Look at it:");
    println!("    export SWARM_SOCKET={socket}");
    println!("    {} service inspect hello", demo.bin.join("swarmctl").display());
    println!("    tail -f {}/*.log", demo.dir.display());
    println!("Stop it and remove what it made:");
    println!("    cargo xtask demo --stop");
    Ok(())
}

/// The address on which the manager listens, from its log.
fn listening(demo: &Demo) -> Result<String> {
    let log = std::fs::read_to_string(demo.dir.join("manager.log"))?;
    let line = log
        .lines()
        .find(|l| l.contains("Listening for connections"))
        .context("the manager does not listen")?;
    let address =
        line.split_whitespace().find_map(|w| w.strip_prefix("addr=")).context("no address in the log")?;
    Ok(address.trim_matches('"').to_owned())
}

fn step(text: &str) {
    println!("==> {text}");
}

/// Process ids of daemons that the demo started and that still run.
fn running(demo: &Demo) -> impl Iterator<Item = (String, u32)> + use<> {
    let dir = demo.dir.clone();
    let files = std::fs::read_dir(&dir).into_iter().flatten().flatten();
    files.filter_map(move |file| {
        let name = file.file_name().to_str()?.strip_suffix(".pid")?.to_owned();
        let pid: u32 = std::fs::read_to_string(file.path()).ok()?.trim().parse().ok()?;
        is_ours(&dir, pid).then_some((name, pid))
    })
}

/// The process is a daemon of this demo, and not another one that got its number.
fn is_ours(dir: &Path, pid: u32) -> bool {
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&cmdline).contains(&*dir.to_string_lossy())
}

/// The names and node ids of all daemons that ever were ready.
fn nodes(demo: &Demo) -> Vec<(String, String)> {
    let files = std::fs::read_dir(&demo.dir).into_iter().flatten().flatten();
    let ids = files.filter_map(|file| {
        let name = file.file_name().to_str()?.strip_suffix(".log")?.to_owned();
        let log = std::fs::read_to_string(file.path()).ok()?;
        let ready = log.lines().find(|line| line.contains("node is ready"))?;
        Some((name, ready.split_whitespace().find_map(|w| w.strip_prefix("node.id="))?.to_owned()))
    });
    ids.collect()
}

fn stop(demo: &Demo) -> Result<()> {
    let nodes = if engine::is_there() { nodes(demo) } else { Vec::new() };
    let mut daemons: Vec<_> = running(demo).collect();
    if daemons.is_empty() {
        println!("no demo is running");
    } else {
        step("removing the service");
        if let Err(error) = output(demo.ctl().args(["service", "remove", "hello"])) {
            println!("    {error:#}");
        } else {
            wait("the tasks to end", || {
                let tasks = output(demo.ctl().args(["task", "ls"]))?;
                Ok((tasks.lines().count() <= 2).then_some(()))
            })?;
            // Those of a daemon that was killed are left to the end.
            let alive = |name: &String| daemons.iter().any(|(other, _)| other == name);
            for (_, node) in nodes.iter().filter(|(name, _)| alive(name)) {
                wait("the containers to be removed", || {
                    Ok(engine::containers_of(node)?.is_empty().then_some(()))
                })?;
            }
        }
        // Workers first, so that they can still say goodbye.
        daemons.sort_by(|a, b| b.0.cmp(&a.0));
        for (name, pid) in daemons {
            step(&format!("stopping {name}"));
            run(Command::new("kill").arg(pid.to_string()))?;
            wait(&format!("{name} to end"), || Ok((!is_ours(&demo.dir, pid)).then_some(())))?;
        }
    }
    for (name, node) in &nodes {
        for container in engine::containers_of(node)? {
            step(&format!("removing what {name} left behind: {}", container.get(..12).unwrap_or(&container)));
            engine::remove_container(&container)?;
        }
    }
    if demo.dir.exists() {
        std::fs::remove_dir_all(&demo.dir)?;
    }
    Ok(())
}

pub(crate) fn run_args(args: &Args) -> Result<()> {
    if args.stop { stop(&Demo::new()) } else { run_demo(args) }
}
