//! One engine as an executor.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder};
use parking_lot::Mutex;
use swarm_agent::{Controller, ControllerError, Dependencies, Executor, ExecutorDescription};
use swarm_api::Shared;
use swarm_api::extensions::Feature;
use swarm_api::v1::{EncryptionKey, Node, Task};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::Engine;
use crate::contact::Contact;
use crate::describe::describe;
use crate::error::{self, Error};
use crate::events::{CHECK_EVERY, Events};
use crate::files;
use crate::image::Images;
use crate::later::{LaterController, Maker};
use crate::networks::Networks;
use crate::spec::{self, NODE_ID_LABEL, TASK_ID_LABEL};

/// What all controllers of one engine share.
pub(crate) struct Parts {
    pub(crate) engine: Arc<Engine>,
    pub(crate) images: Images,
    pub(crate) networks: Networks,
    pub(crate) events: Events,
}

/// Runs tasks as containers of one engine.
pub struct DockerExecutor {
    parts: Arc<Parts>,
    contact: Contact,
    allow_privileged: bool,
    check_every: Duration,
    node: Mutex<Option<Shared<Node>>>,
    /// Stops the listener of the node id that is in force.
    listener: Mutex<Option<CancellationToken>>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// Creations and starts at the same time, unless set otherwise.
pub fn default_parallelism() -> usize {
    // A start is mostly the engine's own processor time; a few more than cores hide its waits for the disk.
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    (cores * 4).clamp(4, 32)
}

impl DockerExecutor {
    /// For the engine at `unix:///path`, an absolute path, `tcp://host:port`, or (empty) the usual socket. It need not be
    /// there yet: until it answers, tasks wait. To be called within a runtime.
    ///
    /// # Errors
    /// [`Error::BadAddress`].
    pub fn new(address: &str) -> Result<Self, Error> {
        let executor = Self::of(Engine::new(address, default_parallelism())?);
        let (contact, engine) = (executor.contact.clone(), executor.parts.engine.clone());
        let stop = executor.stop.child_token();
        executor.tracker.spawn(async move {
            stop.run_until_cancelled(contact.keep_trying(&engine)).await;
        });
        Ok(executor)
    }

    /// As [`DockerExecutor::new`], for an engine that is there.
    ///
    /// # Errors
    /// [`Error`], naming the address, if it is malformed or no engine answers there.
    pub async fn connect(address: &str) -> Result<Self, Error> {
        Self::connect_with(address, default_parallelism()).await
    }

    /// As [`DockerExecutor::connect`], with at most so many creations and starts at the same time.
    ///
    /// # Errors
    /// As [`DockerExecutor::connect`].
    pub async fn connect_with(address: &str, parallelism: usize) -> Result<Self, Error> {
        let executor = Self::of(Engine::new(address, parallelism)?);
        executor.contact.attempt(&executor.parts.engine).await?;
        Ok(executor)
    }

    fn of(engine: Arc<Engine>) -> Self {
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let images = Images::new(engine.clone(), tracker.clone(), stop.clone());
        DockerExecutor {
            parts: Arc::new(Parts {
                networks: Networks::new(engine.clone()),
                engine,
                images,
                events: Events::default(),
            }),
            contact: Contact::new(),
            allow_privileged: false,
            check_every: CHECK_EVERY,
            node: Mutex::default(),
            listener: Mutex::default(),
            tracker,
            stop,
        }
    }

    /// Whether containers may have all privileges on this node. Without a word on it they may not.
    pub fn with_privileged(mut self, allowed: bool) -> Self {
        self.allow_privileged = allowed;
        self
    }

    /// How often what runs is compared with what is known, in case that the engine's word of it was lost: every 30 s, unless
    /// set otherwise.
    pub fn with_checks_every(mut self, time: Duration) -> Self {
        self.check_every = time;
        self
    }

    /// What it can do for tasks beyond the contract.
    fn features(&self) -> BTreeSet<Feature> {
        let gpus = spec::knows_gpus(&self.parts.engine.facts()).then_some(Feature::Gpus);
        let privileged = self.allow_privileged.then_some(Feature::Privileged);
        let always = [Feature::Devices, Feature::InitTasks, Feature::PreStop];
        always.into_iter().chain(gpus).chain(privileged).collect()
    }

    /// Stops listening and pulling. Containers go on.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Listens to the events of the node's containers from now on.
    fn listen(&self, node_id: &str) {
        let stop = self.stop.child_token();
        if let Some(former) = self.listener.lock().replace(stop.clone()) {
            former.cancel();
        }
        let (parts, contact, node_id) = (self.parts.clone(), self.contact.clone(), node_id.to_owned());
        let every = self.check_every;
        self.tracker.spawn(async move {
            if stop.run_until_cancelled(contact.wait()).await.is_some() {
                parts.events.listen(&parts.engine, &node_id, every, &stop).await;
            }
        });
    }
}

impl Drop for DockerExecutor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[async_trait]
impl Executor for DockerExecutor {
    fn runtimes(&self) -> Vec<String> {
        vec!["container".to_owned()]
    }

    async fn describe(&self) -> Result<ExecutorDescription, ControllerError> {
        self.contact.outcome().await?;
        self.contact.seen();
        let engine = &self.parts.engine;
        let failed = |error| error::of_step("asking the engine for its description", &engine.address, &error);
        let info = engine.info().await.map_err(failed)?;
        let plugins = engine.docker.list_plugins(None).await.unwrap_or_else(|error| {
            tracing::warn!(reason = error::chain(&error), "can't list the engine's plug-ins");
            Vec::new()
        });
        Ok(ExecutorDescription { features: self.features(), ..describe(info, plugins) })
    }

    async fn changed(&self) {
        self.contact.news().await;
    }

    async fn pull_image(
        &self,
        image: &str,
        registry_auth: &str,
        progress: &watch::Sender<Option<u8>>,
    ) -> Result<(), ControllerError> {
        self.contact.outcome().await?;
        let tell = |percent| _ = progress.send_replace(Some(percent));
        self.parts.images.pull(image, registry_auth, tell).await
    }

    async fn configure(&self, node: &Shared<Node>) -> Result<(), ControllerError> {
        let former = self.node.lock().replace(node.clone());
        if former.is_none_or(|former| former.id != node.id) {
            self.listen(&node.id);
        }
        Ok(())
    }

    async fn set_network_keys(&self, _: &[EncryptionKey]) -> Result<(), ControllerError> {
        // The engine's own networks between hosts are not used.
        Ok(())
    }

    fn controller(
        &self,
        task: &Shared<Task>,
        dependencies: Arc<dyn Dependencies>,
    ) -> Result<Arc<dyn Controller>, ControllerError> {
        let (parts, node) = (self.parts.clone(), self.node.lock().clone());
        let maker = Maker { parts, node, allow_privileged: self.allow_privileged };
        if let Some(made) = self.contact.made() {
            return Ok(Arc::new(maker.make(task, dependencies, &made)?));
        }
        Ok(Arc::new(LaterController::new(maker, self.contact.clone(), task.clone(), dependencies)))
    }

    async fn sweep(&self, known_tasks: &[String]) -> Result<(), ControllerError> {
        let Some(node_id) = self.node.lock().as_ref().map(|node| node.id.clone()).filter(|id| !id.is_empty())
        else {
            return Err(ControllerError::Fatal("can't sweep before the node's id is known".to_owned()));
        };
        let made = self.contact.wait().await;
        let engine = &self.parts.engine;
        let failed = |error| error::of_step("removing old containers", &engine.address, &error);
        let own = format!("{NODE_ID_LABEL}={node_id}");
        let filters = HashMap::from([("label", vec![own.as_str()])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let containers = engine.docker.list_containers(Some(options)).await.map_err(failed)?;
        let known: HashSet<&str> = known_tasks.iter().map(String::as_str).collect();
        for container in containers {
            let labels = container.labels.unwrap_or_default();
            // The engine's filter is believed, and checked: what follows can't be undone.
            if labels.get(NODE_ID_LABEL) != Some(&node_id) {
                continue;
            }
            let (Some(id), Some(task_id)) = (container.id, labels.get(TASK_ID_LABEL)) else { continue };
            if known.contains(task_id.as_str()) {
                continue;
            }
            tracing::info!(
                task.id = task_id,
                node.id = node_id,
                container = id,
                "removing a container left behind"
            );
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            match engine.docker.remove_container(&id, Some(options)).await {
                Err(error) if !matches!(error::status(&error), Some(404 | 409)) => return Err(failed(error)),
                _ => {}
            }
        }
        if let Ok(root) = &made.files {
            let store = root.of(&node_id, files::KIND);
            store
                .sweep(&known)
                .map_err(|error| ControllerError::Fatal(format!("removing old files: {error}")))?;
        }
        self.parts.events.swept(known_tasks);
        self.parts.networks.sweep(&node_id).await
    }
}
