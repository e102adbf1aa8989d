//! The executors of a node, and which of them runs a task.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{join_all, select_all};
use swarm_api::v1::{EncryptionKey, Node, Task, task_spec};
use swarm_api::{Shared, extensions, naming};
use tokio::sync::watch;

use crate::{Controller, ControllerError, Dependencies, Executor};

/// Longest time that an executor may take to take note of something.
const PATIENCE: Duration = Duration::from_secs(5);

/// Every executor of this node.
#[derive(Clone, Default)]
pub(crate) struct Executors {
    all: Arc<[Arc<dyn Executor>]>,
}

impl std::fmt::Debug for Executors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all.iter().flat_map(|e| e.runtimes())).finish()
    }
}

impl Executors {
    pub(crate) fn new(all: Vec<Arc<dyn Executor>>) -> Executors {
        Executors { all: all.into() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<dyn Executor>> {
        self.all.iter()
    }

    /// A controller from the executor of the task's runtime.
    pub(crate) fn controller(
        &self,
        task: &Shared<Task>,
        dependencies: Arc<dyn Dependencies>,
    ) -> Result<Arc<dyn Controller>, ControllerError> {
        if let Some(task_spec::Runtime::Container(container)) = &task.spec.runtime
            && let Some(label) = extensions::unknown(container.labels.keys())
        {
            let text = format!("this node does not know the extension {label}");
            return Err(ControllerError::Fatal(text));
        }
        let runtime =
            naming::runtime(task.spec.runtime.as_ref()).ok_or(ControllerError::UnsupportedRuntime)?;
        let executor = self.all.iter().find(|e| e.runtimes().contains(&runtime));
        executor.ok_or(ControllerError::UnsupportedRuntime)?.controller(task, dependencies)
    }

    /// Has an image pulled by the executor that runs containers.
    pub(crate) async fn pull_image(
        &self,
        image: &str,
        registry_auth: &str,
        progress: &watch::Sender<Option<u8>>,
    ) -> Result<(), ControllerError> {
        let container = extensions::CONTAINER_RUNTIME.to_owned();
        let executor = self.all.iter().find(|e| e.runtimes().contains(&container));
        executor
            .ok_or_else(|| ControllerError::Fatal("this node has no container engine".to_owned()))?
            .pull_image(image, registry_auth, progress)
            .await
    }

    /// Completes when one of them has something new to say of itself.
    pub(crate) async fn changed(&self) {
        if self.all.is_empty() {
            std::future::pending::<()>().await;
        }
        select_all(self.all.iter().map(|e| e.changed())).await;
    }

    /// Tells every executor of the node object. What one can't make of it is its own matter, and logged.
    pub(crate) async fn configure(&self, node: &Shared<Node>) {
        let calls = self.all.iter().map(|e| patiently("configuring the node", e.configure(node)));
        join_all(calls).await;
    }

    /// Hands the cluster's keys to every executor.
    pub(crate) async fn set_network_keys(&self, keys: &[EncryptionKey]) {
        let calls = self.all.iter().map(|e| patiently("configuring network key", e.set_network_keys(keys)));
        join_all(calls).await;
    }

    /// Removes what is left of tasks that nobody knows; `false` if an executor could not.
    pub(crate) async fn sweep(&self, known: &[String]) -> bool {
        const SWEEP: Duration = Duration::from_secs(30);
        let sweeps = self.all.iter().map(|e| async {
            match tokio::time::timeout(SWEEP, e.sweep(known)).await {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::warn!(%error, runtimes = ?e.runtimes(), "leftovers could not be removed");
                    false
                }
                Err(_) => {
                    tracing::warn!(runtimes = ?e.runtimes(), "leftovers could not be removed in time");
                    false
                }
            }
        });
        join_all(sweeps).await.into_iter().all(|swept| swept)
    }
}

async fn patiently(what: &str, call: impl Future<Output = Result<(), ControllerError>>) {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "{what} failed"),
        Err(_) => tracing::error!("{what} took too long"),
    }
}
