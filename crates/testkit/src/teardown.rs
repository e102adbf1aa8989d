//! What daemons leave behind when they are killed, by design: tasks, which a restarted daemon would adopt. After a test
//! nobody restarts it, so everything that a cluster's state directories know of is ended here.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bollard::Docker;
use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use swarm_pki::Certificate;

/// How long supervisors of processes may take to end their tasks in good order.
const POLITE: Duration = Duration::from_secs(5);
/// How long killed processes may take to go.
const LIMIT: Duration = Duration::from_secs(60);
/// Time between two looks.
const STEP: Duration = Duration::from_millis(20);

/// First argument of the supervisor of a native process; the second is the task's directory.
const SHIM: &[u8] = b"__swarmd-task-shim";

/// Ends all native processes of the daemons whose state directories are in `directory`. The daemons themselves must
/// have ended.
///
/// # Errors
/// If some can't be ended.
pub fn end_processes(directory: &Path) -> Result<()> {
    let mut tasks = BTreeSet::new();
    for state in state_directories(directory) {
        let entries = std::fs::read_dir(state.join("processes")).into_iter().flatten().flatten();
        tasks.extend(entries.map(|e| e.file_name().to_string_lossy().into_owned()));
    }
    let begin = Instant::now();
    loop {
        let found = processes(directory, &mut tasks);
        if found.is_empty() {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < LIMIT,
            "these processes of {} can't be ended: {found:?}",
            directory.display()
        );
        for (pid, is_shim) in found {
            // A supervisor that is asked ends its task and removes its control groups.
            let signal = match (begin.elapsed() < POLITE, is_shim) {
                (true, true) => Signal::SIGTERM,
                (true, false) => continue,
                (false, _) => Signal::SIGKILL,
            };
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), signal);
        }
        std::thread::park_timeout(STEP);
    }
}

fn state_directories(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|path| path.is_dir()).collect()
}

/// Supervisors with a task below the directory, which is added to the known ones, and processes of known tasks.
fn processes(directory: &Path, tasks: &mut BTreeSet<String>) -> Vec<(i32, bool)> {
    let all = || {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
    };
    let mut found = Vec::new();
    for pid in all() {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|b| *b == 0).skip_while(|word| *word != SHIM).skip(1);
        let Some(task) = words.next().map(|word| PathBuf::from(String::from_utf8_lossy(word).into_owned()))
        else {
            continue;
        };
        if task.starts_with(directory) {
            tasks.extend(task.file_name().map(|name| name.to_string_lossy().into_owned()));
            found.push((pid, true));
        }
    }
    let marked = |entry: &[u8]| {
        let task = entry.strip_prefix(b"SWARMD_TASK_ID=");
        task.is_some_and(|task| tasks.contains(&*String::from_utf8_lossy(task)))
    };
    for pid in all() {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment.split(|b| *b == 0).any(marked) {
            found.push((pid, false));
        }
    }
    found
}

/// Removes all containers of the nodes whose state directories are in `directory`, from the engine of this host.
///
/// # Errors
/// If the engine does not do it.
pub fn remove_containers(directory: &Path) -> Result<()> {
    let mut nodes = Vec::new();
    for state in state_directories(directory) {
        // A daemon that never got a certificate has run nothing.
        let Ok(pem) = std::fs::read(state.join("certificates/swarm-node.crt")) else { continue };
        let chain = Certificate::from_pem_bundle(&pem).with_context(|| state.display().to_string())?;
        nodes.extend(chain.first().and_then(|leaf| leaf.common_name()).map(str::to_owned));
    }
    // On a thread of its own: the caller is being dropped, perhaps by a runtime.
    let removal = move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(remove_all(&nodes))
    };
    std::thread::spawn(removal).join().unwrap_or_else(|_| anyhow::bail!("the removal of containers panicked"))
}

async fn remove_all(nodes: &[String]) -> Result<()> {
    let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
    for node in nodes {
        let filters = HashMap::from([("label", vec![format!("com.docker.swarm.node.id={node}")])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        for container in docker.list_containers(Some(options)).await? {
            let id = container.id.unwrap_or_default();
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            match docker.remove_container(&id, Some(options)).await {
                Ok(()) => {}
                // Gone, or going.
                Err(bollard::errors::Error::DockerResponseServerError { status_code: 404 | 409, .. }) => {}
                Err(error) => return Err(error).with_context(|| format!("removing the container {id}")),
            }
        }
    }
    Ok(())
}
