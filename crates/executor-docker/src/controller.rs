//! One task's container.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum as Status, HealthStatusEnum as Health, PortMap,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
};
use parking_lot::Mutex;
use swarm_agent::{Controller, ControllerError, LogOptions, LogSink};
use swarm_api::Shared;
use swarm_api::v1::port_config::{Protocol, PublishMode};
use swarm_api::v1::{ContainerStatus, PortConfig, PortStatus, Task};

use crate::error;
use crate::events::News;
use crate::executor::Parts;
use crate::logs;
use crate::spec::{ContainerPlan, NODE_ID_LABEL, TASK_ID_LABEL};

const UNHEALTHY: &str = "dockerexec: unhealthy container";

/// What a look at the container showed.
#[derive(Debug, Clone)]
struct Observed {
    id: String,
    status: Status,
    pid: i64,
    exit_code: i64,
    /// Why it ended, in the engine's words.
    error: String,
    health: Option<Health>,
    ports: Vec<PortConfig>,
    /// Made for this task by this node.
    own: bool,
}

impl Observed {
    /// A container that was just created by this controller.
    fn created(id: String) -> Self {
        Observed {
            id,
            status: Status::CREATED,
            pid: 0,
            exit_code: 0,
            error: String::new(),
            health: None,
            ports: Vec::new(),
            own: true,
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.status, Status::EXITED | Status::DEAD | Status::REMOVING)
    }

    fn is_created(&self) -> bool {
        matches!(self.status, Status::CREATED)
    }
}

/// A look, and the news that were known before it.
#[derive(Clone)]
struct Look {
    news: News,
    seen: Observed,
}

pub(crate) struct DockerController {
    parts: Arc<Parts>,
    plan: ContainerPlan,
    task_id: String,
    node_id: String,
    /// This controller created the container and has not tried to start it: no look is needed before the start.
    fresh: AtomicBool,
    /// It was stopped for its bad health.
    unhealthy: AtomicBool,
    last: Mutex<Option<Look>>,
    news: News,
}

impl DockerController {
    pub(crate) fn new(parts: Arc<Parts>, task: &Task, plan: ContainerPlan) -> Self {
        let news = parts.events.subscribe(&task.id);
        DockerController {
            parts,
            plan,
            task_id: task.id.clone(),
            node_id: task.node_id.clone(),
            fresh: AtomicBool::new(false),
            unhealthy: AtomicBool::new(false),
            last: Mutex::default(),
            news,
        }
    }

    fn failed(&self, step: &str, error: &bollard::errors::Error) -> ControllerError {
        error::of_step(step, &self.parts.engine.address, error)
    }

    /// Looks at the container; `None` if there is none.
    async fn look(&self) -> Result<Option<Look>, ControllerError> {
        let mut news = self.news.clone();
        news.mark_seen();
        let docker = &self.parts.engine.docker;
        match docker.inspect_container(&self.plan.name, None::<InspectContainerOptions>).await {
            Ok(answer) => {
                let look = Look { news, seen: self.observed(answer) };
                *self.last.lock() = Some(look.clone());
                Ok(Some(look))
            }
            Err(error) if error::is_not_found(&error) => {
                *self.last.lock() = None;
                Ok(None)
            }
            Err(error) => Err(self.failed("inspecting container failed", &error)),
        }
    }

    fn observed(&self, answer: ContainerInspectResponse) -> Observed {
        let state = answer.state.unwrap_or_default();
        let labels = answer.config.and_then(|config| config.labels).unwrap_or_default();
        let mut error = state.error.unwrap_or_default();
        if error.is_empty() && state.oom_killed == Some(true) {
            error = "out of memory".to_owned();
        }
        Observed {
            id: answer.id.unwrap_or_default(),
            status: state.status.unwrap_or(Status::EMPTY),
            pid: state.pid.unwrap_or_default(),
            exit_code: state.exit_code.unwrap_or_default(),
            error,
            health: state.health.and_then(|health| health.status),
            ports: answer.network_settings.and_then(|net| net.ports).map(published).unwrap_or_default(),
            own: labels.get(TASK_ID_LABEL) == Some(&self.task_id)
                && labels.get(NODE_ID_LABEL) == Some(&self.node_id),
        }
    }

    /// The last look if nothing happened since, else a new one.
    async fn current(&self) -> Result<Option<Look>, ControllerError> {
        let last = self.last.lock().clone();
        match last {
            Some(look) if look.seen.has_ended() || !look.news.is_there() => Ok(Some(look)),
            _ => self.look().await,
        }
    }

    async fn create(&self) -> Result<(), bollard::errors::Error> {
        let engine = &self.parts.engine;
        // Closed only with the process.
        let _permit = engine.heavy.acquire().await;
        let mut news = self.news.clone();
        news.mark_seen();
        let options = CreateContainerOptionsBuilder::new().name(&self.plan.name).build();
        let created = engine.docker.create_container(Some(options), self.plan.body.clone()).await?;
        for warning in created.warnings {
            tracing::warn!(task.id = self.task_id, warning, "the engine warns of a container");
        }
        // As good as a look.
        *self.last.lock() = Some(Look { news, seen: Observed::created(created.id) });
        Ok(())
    }

    /// The name is taken: by our own container, which is then adopted, or by somebody else's.
    async fn adopt(&self) -> Result<(), ControllerError> {
        match self.look().await? {
            Some(look) if look.seen.own => Err(ControllerError::AlreadyPrepared),
            Some(look) => Err(ControllerError::Fatal(format!(
                "the container name {} is in use by the container {}, which is not of this task",
                self.plan.name, look.seen.id
            ))),
            None => {
                Err(ControllerError::Temporary(format!("the container {} has just vanished", self.plan.name)))
            }
        }
    }

    /// Waits until the health check has an opinion, or the container has ended. Without a health check there is
    /// nothing to wait for: how a short-lived container ended is told by `wait`.
    async fn healthy(&self, mut look: Look) -> Result<(), ControllerError> {
        loop {
            match look.seen.health {
                Some(Health::STARTING | Health::UNHEALTHY) if look.seen.has_ended() => {
                    return self.result(&look.seen);
                }
                Some(Health::STARTING) => look.news.wait().await,
                Some(Health::UNHEALTHY) => {
                    self.stop_unhealthy().await?;
                    look.news.wait().await;
                }
                _ => return Ok(()),
            }
            look = self.look().await?.ok_or_else(destroyed)?;
        }
    }

    /// Waits until the container runs or has run.
    async fn once_started(&self, mut look: Option<Look>) -> Result<Option<Look>, ControllerError> {
        loop {
            match &mut look {
                Some(look) if look.seen.is_created() => look.news.wait().await,
                Some(_) => return Ok(look),
                None => self.news.clone().wait().await,
            }
            look = self.look().await?;
        }
    }

    async fn stop_unhealthy(&self) -> Result<(), ControllerError> {
        if !self.unhealthy.swap(true, Ordering::Relaxed) {
            tracing::info!(
                task.id = self.task_id,
                node.id = self.node_id,
                "container is unhealthy: stopping it"
            );
        }
        self.stop().await
    }

    /// Stop signal, grace period, kill; returns once the container does not run.
    async fn stop(&self) -> Result<(), ControllerError> {
        let grace = self.plan.stop_grace;
        // Whole seconds, rounded up: a short grace is not none.
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let options =
            StopContainerOptionsBuilder::new().t(i32::try_from(seconds).unwrap_or(i32::MAX)).build();
        let docker = self.parts.engine.patient(grace);
        match docker.stop_container(&self.plan.name, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if matches!(error::status(&error), Some(304 | 404)) => Ok(()),
            Err(error) => Err(self.still_there("stopping container failed", &error)),
        }
    }

    /// A container that could not be ended or removed is tried again: giving up would leave it running.
    fn still_there(&self, step: &str, error: &bollard::errors::Error) -> ControllerError {
        match self.failed(step, error) {
            ControllerError::Fatal(text) if error::status(error).is_some_and(|status| status >= 500) => {
                ControllerError::Temporary(text)
            }
            other => other,
        }
    }

    /// What a container that has ended means for its task.
    fn result(&self, seen: &Observed) -> Result<(), ControllerError> {
        let unhealthy = self.unhealthy.load(Ordering::Relaxed);
        let cause = if unhealthy { Some(UNHEALTHY.to_owned()) } else { Some(seen.error.clone()) };
        match seen.exit_code {
            0 if unhealthy => Err(ControllerError::Fatal(UNHEALTHY.to_owned())),
            0 => Ok(()),
            code => Err(ControllerError::Exit {
                code: i32::try_from(code).unwrap_or(i32::MAX),
                cause: cause.filter(|text| !text.is_empty()),
            }),
        }
    }
}

fn destroyed() -> ControllerError {
    ControllerError::Fatal("dockerexec: container destroyed".to_owned())
}

/// Bindings of a running container as ports.
fn published(bindings: PortMap) -> Vec<PortConfig> {
    let mut ports = Vec::new();
    for (key, bindings) in bindings {
        let Some((target, protocol)) = key.split_once('/') else { continue };
        let Ok(target_port) = target.parse() else { continue };
        let protocol = match protocol {
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        for binding in bindings.into_iter().flatten() {
            let Some(published_port) = binding.host_port.and_then(|port| port.parse().ok()) else { continue };
            ports.push(PortConfig {
                protocol: protocol.into(),
                target_port,
                published_port,
                publish_mode: PublishMode::Host.into(),
                ..Default::default()
            });
        }
    }
    ports.sort_by_key(|port| (port.target_port, port.protocol, port.published_port));
    ports
}

#[async_trait]
impl Controller for DockerController {
    async fn update(&self, _: &Shared<Task>) -> Result<(), ControllerError> {
        // A container can't become another one: what matters of a task does not change.
        Ok(())
    }

    async fn prepare(&self) -> Result<(), ControllerError> {
        let parts = &self.parts;
        parts.images.ensure(&self.plan.image, &self.plan.registry_auth).await?;
        for volume in &self.plan.volumes {
            let created = parts.engine.docker.create_volume(volume.clone()).await;
            created.map_err(|error| self.failed("creating volume failed", &error))?;
        }
        let mut created = self.create().await;
        if matches!(&created, Err(error) if error::is_not_found(error) && no_such_image(error)) {
            // Removed by somebody since it was looked for.
            parts.images.forget(&self.plan.image);
            parts.images.ensure(&self.plan.image, &self.plan.registry_auth).await?;
            created = self.create().await;
        }
        match created {
            Ok(()) => {
                self.fresh.store(true, Ordering::Relaxed);
                tracing::debug!(task.id = self.task_id, container = self.plan.name, "container created");
                Ok(())
            }
            Err(error) if error::status(&error) == Some(409) => self.adopt().await,
            Err(error) => Err(self.failed("creating container failed", &error)),
        }
    }

    async fn start(&self) -> Result<(), ControllerError> {
        if !self.fresh.swap(false, Ordering::Relaxed) {
            // It may have been started before, and even have ended: it must not run twice.
            let look = self.look().await?.ok_or_else(|| {
                ControllerError::Fatal(format!(
                    "starting container failed: No such container: {}",
                    self.plan.name
                ))
            })?;
            if !look.seen.is_created() {
                self.healthy(look).await?;
                return Err(ControllerError::AlreadyStarted);
            }
        }
        {
            let engine = &self.parts.engine;
            // Closed only with the process.
            let _permit = engine.heavy.acquire().await;
            let started = engine.docker.start_container(&self.plan.name, None::<StartContainerOptions>).await;
            if let Err(error) =
                started.or_else(|error| if error::status(&error) == Some(304) { Ok(()) } else { Err(error) })
            {
                return Err(self.failed("starting container failed", &error));
            }
        }
        tracing::debug!(task.id = self.task_id, container = self.plan.name, "container started");
        // For those who wait for its output; the look below has taken note of it.
        self.parts.events.wake(&self.task_id);
        let look = self.look().await?.ok_or_else(destroyed)?;
        self.healthy(look).await
    }

    async fn wait(&self) -> Result<(), ControllerError> {
        let mut look = self.current().await?.ok_or_else(destroyed)?;
        loop {
            if look.seen.has_ended() {
                return self.result(&look.seen);
            }
            if look.seen.is_created() {
                return Err(ControllerError::Fatal("dockerexec: container was never started".to_owned()));
            }
            if look.seen.health == Some(Health::UNHEALTHY) {
                self.stop_unhealthy().await?;
            }
            look.news.wait().await;
            look = self.look().await?.ok_or_else(destroyed)?;
        }
    }

    async fn shutdown(&self) -> Result<(), ControllerError> {
        self.stop().await?;
        // How it ended is wanted in the status.
        self.look().await.map(|_| ())
    }

    async fn terminate(&self) -> Result<(), ControllerError> {
        let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
        match self.parts.engine.docker.kill_container(&self.plan.name, Some(options)).await {
            Ok(()) => Ok(()),
            // Not there, or not running.
            Err(error) if matches!(error::status(&error), Some(404 | 409)) => Ok(()),
            Err(error) => Err(self.still_there("killing container failed", &error)),
        }
    }

    async fn remove(&self) -> Result<(), ControllerError> {
        let ended = self.last.lock().as_ref().is_some_and(|look| look.seen.has_ended());
        if !ended && let Err(error @ ControllerError::Temporary(_)) = self.stop().await {
            return Err(error);
        }
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.parts.engine.docker.remove_container(&self.plan.name, Some(options)).await {
            Ok(()) => {}
            // Gone, or going.
            Err(error) if matches!(error::status(&error), Some(404 | 409)) => {}
            Err(error) => return Err(self.still_there("removing container failed", &error)),
        }
        *self.last.lock() = None;
        Ok(())
    }

    async fn container_status(&self) -> Option<ContainerStatus> {
        let seen = self.current().await.ok()??.seen;
        Some(ContainerStatus {
            container_id: seen.id,
            pid: i32::try_from(seen.pid).unwrap_or_default(),
            exit_code: i32::try_from(seen.exit_code).unwrap_or(i32::MAX),
        })
    }

    async fn port_status(&self) -> Option<PortStatus> {
        let ports = self.current().await.ok()??.seen.ports;
        (!ports.is_empty()).then_some(PortStatus { ports })
    }

    async fn logs(&self, options: LogOptions, sink: LogSink) -> Result<(), ControllerError> {
        let mut look = self.look().await?;
        if options.follow {
            look = self.once_started(look).await?;
        }
        if look.is_none() {
            return Ok(());
        }
        logs::copy(&self.parts.engine.docker, &self.plan.name, &options, &sink)
            .await
            .map_err(|error| self.failed("reading logs failed", &error))
    }
}

fn no_such_image(error: &bollard::errors::Error) -> bool {
    error::message(error).to_lowercase().contains("no such image")
}
