//! Native processes as an executor.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use swarm_agent::memory::{MemoryDir, MemoryRoot};
use swarm_agent::template::Context;
use swarm_agent::{Controller, ControllerError, Dependencies, Executor, ExecutorDescription};
use swarm_api::Shared;
use swarm_api::extensions::Feature;
use swarm_api::v1::{EncryptionKey, Node, Task};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cgroup::Cgroups;
use crate::controller::ProcessController;
use crate::dir::{self, TaskDir};
use crate::files::{self, TaskFiles};
use crate::launch;

/// Tasks that a sweep ends at the same time.
const SWEEP_WIDTH: usize = 16;
/// Longest time that a task nobody knows is given to end by itself.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// Why there is no executor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory for processes can't be made.
    #[error("directory for processes {}: {source}", path.display())]
    Directory {
        /// Where it should be.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
}

/// What all controllers share.
pub(crate) struct Parts {
    /// Program that is its own shim.
    pub(crate) program: PathBuf,
    /// Shims that were started here are waited for here.
    pub(crate) shims: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// Runs tasks of the generic runtime [`RUNTIME`](crate::RUNTIME) as processes of this host.
pub struct ProcessExecutor {
    root: PathBuf,
    parts: Arc<Parts>,
    cgroups: Option<Cgroups>,
    /// Where files of secrets and configs are, or why there can't be any.
    files: Result<MemoryRoot, String>,
    node: Mutex<Option<Shared<Node>>>,
}

impl ProcessExecutor {
    /// Keeps its tasks in `<state directory>/processes`. The program that calls this must call
    /// [`maybe_run_shim`](crate::maybe_run_shim) first in its `main`. Blocks for a moment (it looks at control
    /// groups).
    ///
    /// # Errors
    /// If that directory can't be made.
    pub fn new(state_dir: &Path) -> Result<Self, Error> {
        // What runs now, even if its file was replaced by a newer version.
        Self::with_shim(state_dir, "/proc/self/exe".into())
    }

    /// As [`ProcessExecutor::new`], with another program as the shim.
    ///
    /// # Errors
    /// As [`ProcessExecutor::new`].
    pub fn with_shim(state_dir: &Path, program: PathBuf) -> Result<Self, Error> {
        let root = state_dir.join("processes");
        let failed = |source| Error::Directory { path: root.clone(), source };
        fs::create_dir_all(&root).map_err(failed)?;
        let root = root.canonicalize().map_err(failed)?;
        let cgroups = Cgroups::detect();
        match &cgroups {
            Some(cgroups) => tracing::debug!(?cgroups, "limits of processes are kept by control groups"),
            None => {
                tracing::warn!("no control groups for processes: only resource limits (setrlimit) are kept");
            }
        }
        let parts = Parts { program, shims: TaskTracker::new(), stop: CancellationToken::new() };
        let files = MemoryRoot::find();
        if let Err(reason) = &files {
            tracing::warn!(reason, "tasks with secrets or configs can't run as processes here");
        }
        Ok(ProcessExecutor { root, parts: Arc::new(parts), cgroups, files, node: Mutex::default() })
    }

    /// Lets go of the processes; they go on.
    pub async fn close(&self) {
        self.parts.stop.cancel();
        self.parts.shims.close();
        self.parts.shims.wait().await;
    }

    /// Ends and removes one task that nobody knows.
    async fn remove_orphan(&self, name: String) -> Result<(), ControllerError> {
        let dir = TaskDir::new(self.root.join(&name));
        tracing::info!(task.id = name, "ending a process left behind");
        let orphan = ProcessController::orphan(self.parts.clone(), &name, dir);
        // The node's new tasks wait for a sweep: not for ever.
        match tokio::time::timeout(ORPHAN_GRACE, orphan.shutdown()).await {
            Ok(ended) => ended?,
            Err(_) => orphan.terminate().await?,
        }
        orphan.remove().await
    }
}

impl Drop for ProcessExecutor {
    fn drop(&mut self) {
        self.parts.stop.cancel();
    }
}

#[async_trait]
impl Executor for ProcessExecutor {
    fn runtimes(&self) -> Vec<String> {
        vec![launch::RUNTIME.to_owned()]
    }

    async fn describe(&self) -> Result<ExecutorDescription, ControllerError> {
        let mut features = BTreeSet::from([Feature::InitTasks, Feature::PreStop, Feature::ProcessHealth]);
        if nix::unistd::Uid::effective().is_root() {
            features.insert(Feature::ProcessIsolation);
        }
        // The host itself is described by the daemon.
        Ok(ExecutorDescription { features, ..Default::default() })
    }

    async fn configure(&self, node: &Shared<Node>) -> Result<(), ControllerError> {
        *self.node.lock() = Some(node.clone());
        Ok(())
    }

    async fn set_network_keys(&self, _: &[EncryptionKey]) -> Result<(), ControllerError> {
        // Processes are on the host's network.
        Ok(())
    }

    fn controller(
        &self,
        task: &Shared<Task>,
        dependencies: Arc<dyn Dependencies>,
    ) -> Result<Arc<dyn Controller>, ControllerError> {
        let node = self.node.lock().clone();
        let description = node.as_ref().and_then(|node| node.description.as_ref());
        launch::check_id(&task.id)?;
        let files = match &self.files {
            Ok(root) => Ok(root.of(&task.node_id, files::KIND).task(&task.id)?),
            Err(reason) => Err(reason.as_str()),
        };
        let directory = files.as_ref().map(MemoryDir::path).map_err(|reason| *reason);
        let launch = launch::launch(task, description, self.cgroups.as_ref(), directory)?;
        let context = Context::new(task, description);
        let files =
            TaskFiles::new(task, &launch::process_spec(task)?, files.ok(), &launch, context, dependencies)?;
        let dir = TaskDir::new(self.root.join(task.id.as_str()));
        Ok(Arc::new(ProcessController::new(self.parts.clone(), task, dir, launch, files)))
    }

    /// Everything in the state directory is this daemon's own, also what it ran under an earlier node id.
    async fn sweep(&self, known_tasks: &[String]) -> Result<(), ControllerError> {
        let failed = |error: io::Error| ControllerError::Fatal(format!("removing old processes: {error}"));
        let known: HashSet<&str> = known_tasks.iter().map(String::as_str).collect();
        let mut orphans = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(dir::REMOVED) {
                dir::remove_tree(&entry.path()).map_err(failed)?;
            } else if !known.contains(name.as_str()) {
                orphans.push(name);
            }
        }
        let results: Vec<_> = stream::iter(orphans)
            .map(|name| self.remove_orphan(name))
            .buffer_unordered(SWEEP_WIDTH)
            .collect()
            .await;
        results.into_iter().collect::<Result<(), _>>()?;
        // What was never written down anywhere else.
        let node_id = self.node.lock().as_ref().map(|node| node.id.clone()).filter(|id| !id.is_empty());
        if let (Ok(root), Some(node_id)) = (&self.files, node_id) {
            root.of(&node_id, files::KIND).sweep(&known).map_err(failed)?;
        }
        Ok(())
    }
}
