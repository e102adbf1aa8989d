//! The executor of one simulated node.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use swarm_agent::{Controller, ControllerError, Dependencies, Executor, ExecutorDescription};
use swarm_api::Shared;
use swarm_api::v1::{EncryptionKey, Node, Resources, Task};

use crate::controller::{SimController, away};
use crate::world::World;

/// Runs tasks in a [`World`].
#[derive(Debug)]
pub struct SimExecutor {
    world: World,
    node_id: String,
    runtimes: Vec<String>,
    description: Mutex<ExecutorDescription>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    node: Option<Shared<Node>>,
    keys: Vec<Vec<u64>>,
}

impl SimExecutor {
    /// An executor for containers on a node, with 8 CPUs and 16 GiB of memory.
    pub fn new(world: &World, node_id: impl Into<String>) -> SimExecutor {
        let resources =
            Resources { nano_cpus: 8_000_000_000, memory_bytes: 16 << 30, ..Resources::default() };
        let description = ExecutorDescription {
            engine_version: "sim".into(),
            resources: Some(resources),
            ..ExecutorDescription::default()
        };
        SimExecutor {
            world: world.clone(),
            node_id: node_id.into(),
            runtimes: vec!["container".into()],
            description: Mutex::new(description),
            seen: Mutex::default(),
        }
    }

    /// The same for other runtimes.
    pub fn with_runtimes(mut self, runtimes: &[&str]) -> SimExecutor {
        self.runtimes = runtimes.iter().map(|runtime| (*runtime).to_owned()).collect();
        self
    }

    /// What the executor says of itself from now on.
    pub fn set_description(&self, description: ExecutorDescription) {
        *self.description.lock() = description;
    }

    /// The node object that it was configured with last.
    pub fn node(&self) -> Option<Shared<Node>> {
        self.seen.lock().node.clone()
    }

    /// Lamport times of each list of keys that it was given.
    pub fn keys(&self) -> Vec<Vec<u64>> {
        self.seen.lock().keys.clone()
    }
}

#[async_trait]
impl Executor for SimExecutor {
    fn runtimes(&self) -> Vec<String> {
        self.runtimes.clone()
    }

    async fn describe(&self) -> Result<ExecutorDescription, ControllerError> {
        if self.world.behaviour().away {
            return Err(away());
        }
        Ok(self.description.lock().clone())
    }

    async fn configure(&self, node: &Shared<Node>) -> Result<(), ControllerError> {
        self.seen.lock().node = Some(node.clone());
        Ok(())
    }

    async fn set_network_keys(&self, keys: &[EncryptionKey]) -> Result<(), ControllerError> {
        self.seen.lock().keys.push(keys.iter().map(|key| key.lamport_time).collect());
        Ok(())
    }

    fn controller(
        &self,
        task: &Shared<Task>,
        _dependencies: Arc<dyn Dependencies>,
    ) -> Result<Arc<dyn Controller>, ControllerError> {
        Ok(Arc::new(SimController {
            world: self.world.clone(),
            node_id: self.node_id.clone(),
            task: task.clone(),
        }))
    }

    async fn sweep(&self, known_tasks: &[String]) -> Result<(), ControllerError> {
        if self.world.behaviour().away {
            return Err(away());
        }
        let known: HashSet<&String> = known_tasks.iter().collect();
        for task_id in self.world.containers_on(&self.node_id) {
            if !known.contains(&task_id) {
                self.world.remove(&self.node_id, &task_id);
            }
        }
        Ok(())
    }
}
