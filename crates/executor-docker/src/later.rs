//! A task that is there before its engine has ever answered. What its container is to be depends on what the engine can, so that
//! is worked out when it answers; until then the task waits, as it would for an engine that has gone away.

use std::convert::Infallible;
use std::sync::Arc;

use async_trait::async_trait;
use swarm_agent::memory::MemoryDir;
use swarm_agent::template::Context;
use swarm_agent::{
    AttachOptions, Controller, ControllerError, Dependencies, ExecOptions, LogOptions, LogSink, Stats, TaskIo,
};
use swarm_api::Shared;
use swarm_api::v1::{ContainerStatus, Node, PortStatus, Task};
use tokio::sync::{OnceCell, watch};

use crate::contact::{Contact, Made};
use crate::controller::DockerController;
use crate::executor::Parts;
use crate::files;
use crate::spec::{self, Surroundings};

/// Makes controllers.
pub(crate) struct Maker {
    pub(crate) parts: Arc<Parts>,
    pub(crate) node: Option<Shared<Node>>,
    pub(crate) allow_privileged: bool,
}

impl Maker {
    /// Works out what the task's container is to be. If that fails the task has failed, and what an earlier daemon may have made for
    /// it is stopped.
    pub(crate) fn make(
        &self,
        task: &Shared<Task>,
        dependencies: Arc<dyn Dependencies>,
        made: &Made,
    ) -> Result<DockerController, ControllerError> {
        self.try_make(task, dependencies, made).inspect_err(|error| {
            if !matches!(error, ControllerError::Temporary(_)) {
                self.parts.events.disown(&task.id);
            }
        })
    }

    fn try_make(
        &self,
        task: &Shared<Task>,
        dependencies: Arc<dyn Dependencies>,
        made: &Made,
    ) -> Result<DockerController, ControllerError> {
        let dir = match &made.files {
            Ok(root) => Ok(root.of(&task.node_id, files::KIND).task(&task.id)?),
            Err(reason) => Err(reason.as_str()),
        };
        let facts = self.parts.engine.facts();
        let node = self.node.as_ref().and_then(|node| node.description.as_ref());
        let around = Surroundings {
            node,
            engine: &facts,
            files: dir.as_ref().map(MemoryDir::path).map_err(|reason| *reason),
            allow_privileged: self.allow_privileged,
        };
        let plan = spec::plan(task, &around)?;
        let context = Context::new(task, node);
        let place = (dir.ok(), facts.root);
        Ok(DockerController::new(self.parts.clone(), task, plan, context, place, dependencies))
    }
}

pub(crate) struct LaterController {
    maker: Maker,
    contact: Contact,
    task: Shared<Task>,
    dependencies: Arc<dyn Dependencies>,
    progress: watch::Sender<String>,
    made: OnceCell<DockerController>,
}

impl LaterController {
    pub(crate) fn new(
        maker: Maker,
        contact: Contact,
        task: Shared<Task>,
        dependencies: Arc<dyn Dependencies>,
    ) -> Self {
        let progress = watch::Sender::default();
        LaterController { maker, contact, task, dependencies, progress, made: OnceCell::new() }
    }

    /// The task's controller, as soon as the engine has answered.
    async fn wait_for_engine(&self) -> Result<&DockerController, ControllerError> {
        let make = || async {
            let made = self.contact.wait().await;
            let mut controller = self.maker.make(&self.task, self.dependencies.clone(), &made)?;
            controller.progress = self.progress.clone();
            Ok::<_, ControllerError>(controller)
        };
        self.made.get_or_try_init(make).await
    }

    /// The same for those who have somebody waiting: an error if the engine has not answered.
    async fn now(&self) -> Result<&DockerController, ControllerError> {
        if self.contact.made().is_some() {
            return self.wait_for_engine().await;
        }
        let reason =
            || format!("the Docker Engine at {} has not answered yet", self.maker.parts.engine.address);
        Err(ControllerError::Temporary(self.contact.trouble().unwrap_or_else(reason)))
    }
}

#[async_trait]
impl Controller for LaterController {
    async fn update(&self, task: &Shared<Task>) -> Result<(), ControllerError> {
        match self.made.get() {
            Some(made) => made.update(task).await,
            None => Ok(()),
        }
    }

    async fn prepare(&self) -> Result<(), ControllerError> {
        self.wait_for_engine().await?.prepare().await
    }

    async fn start(&self) -> Result<(), ControllerError> {
        self.wait_for_engine().await?.start().await
    }

    async fn wait(&self) -> Result<(), ControllerError> {
        self.wait_for_engine().await?.wait().await
    }

    async fn shutdown(&self) -> Result<(), ControllerError> {
        self.wait_for_engine().await?.shutdown().await
    }

    async fn terminate(&self) -> Result<(), ControllerError> {
        self.wait_for_engine().await?.terminate().await
    }

    async fn remove(&self) -> Result<(), ControllerError> {
        self.wait_for_engine().await?.remove().await
    }

    async fn keep_ended(&self) -> Infallible {
        match self.wait_for_engine().await {
            Ok(made) => made.keep_ended().await,
            // If an earlier daemon made something it is stopped with what belongs to nobody.
            Err(_) => std::future::pending().await,
        }
    }

    fn hindrance(&self) -> Option<String> {
        match self.made.get() {
            Some(made) => made.hindrance(),
            None => self.contact.trouble(),
        }
    }

    async fn container_status(&self) -> Option<ContainerStatus> {
        self.made.get()?.container_status().await
    }

    async fn port_status(&self) -> Option<PortStatus> {
        self.made.get()?.port_status().await
    }

    fn progress(&self) -> Option<watch::Receiver<String>> {
        Some(self.progress.subscribe())
    }

    async fn logs(&self, options: LogOptions, sink: LogSink) -> Result<(), ControllerError> {
        let made = if options.follow { self.wait_for_engine().await } else { self.now().await };
        made?.logs(options, sink).await
    }

    async fn exec(&self, options: ExecOptions, io: TaskIo) -> Result<i32, ControllerError> {
        self.now().await?.exec(options, io).await
    }

    async fn attach(&self, options: AttachOptions, io: TaskIo) -> Result<i32, ControllerError> {
        self.now().await?.attach(options, io).await
    }

    async fn stats(&self) -> Result<Stats, ControllerError> {
        self.now().await?.stats().await
    }
}
