//! One task's container.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HealthStatusEnum as Health, NetworkConnectRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
};
use parking_lot::Mutex;
use swarm_agent::memory::MemoryDir;
use swarm_agent::payloads::Payloads;
use swarm_agent::template::Context;
use swarm_agent::{
    AttachOptions, Controller, ControllerError, Dependencies, ExecOptions, LogOptions, LogSink, Stats, TaskIo,
};
use swarm_api::v1::{ContainerStatus, PortStatus, Task, task_spec};
use swarm_api::{Shared, TaskState};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error;
use crate::events::{Awaited, News};
use crate::executor::Parts;
use crate::facts::Api;
use crate::files::{self, TaskFiles};
use crate::image::Wanted;
use crate::labelled;
use crate::logs;
use crate::observed::{Fault, Observed, Run};
use crate::session;
use crate::spec::{ContainerPlan, PlannedNetwork};
use crate::stats;
use crate::steps::whole_seconds;

/// From which version on an engine may be asked for a container of a platform.
const PLATFORM_OF_CONTAINERS: Api = (1, 41);

/// A look, and the news that were known before it.
#[derive(Clone)]
pub(crate) struct Look {
    news: News,
    seen: Observed,
}

pub(crate) struct DockerController {
    pub(crate) parts: Arc<Parts>,
    pub(crate) plan: ContainerPlan,
    /// Its secrets and configs, if it has any.
    files: Option<TaskFiles>,
    payloads: Arc<Payloads>,
    pub(crate) task_id: String,
    pub(crate) node_id: String,
    /// What the call that runs is at.
    pub(crate) progress: watch::Sender<String>,
    /// When a stop that was begun is to be over.
    pub(crate) stop_by: Mutex<Option<Instant>>,
    /// The pre-stop command was begun.
    pub(crate) pre_stopped: AtomicBool,
    /// This controller created the container and has not tried to start it: no look is needed before the start.
    fresh: AtomicBool,
    /// An earlier daemon may have made the container, and somebody may have changed its name since.
    adopted: bool,
    /// Why it was stopped although its task was to run.
    fault: OnceLock<Fault>,
    /// Its container's id, once it is known: a name may be changed by anybody.
    id: Mutex<Option<String>>,
    /// What was first seen to run in it.
    first_run: OnceLock<Run>,
    last: Mutex<Option<Look>>,
    pub(crate) news: News,
}

impl DockerController {
    /// `dir` is where the task's files are to be, and whom they are to belong to.
    pub(crate) fn new(
        parts: Arc<Parts>,
        task: &Shared<Task>,
        plan: ContainerPlan,
        context: Context,
        (dir, root): (Option<MemoryDir>, (u32, u32)),
        dependencies: Arc<dyn Dependencies>,
    ) -> Self {
        let news = parts.events.subscribe(&task.id);
        let references = match &task.spec.runtime {
            Some(task_spec::Runtime::Container(spec)) => (&spec.secrets[..], &spec.configs[..]),
            _ => Default::default(),
        };
        let env = plan.body.env.clone().unwrap_or_default();
        let payloads = Arc::new(Payloads::new(task, context, env, references, dependencies));
        let files = dir.filter(|_| !plan.files.is_empty()).map(|dir| TaskFiles {
            dir,
            files: plan.files.clone(),
            root,
            payloads: payloads.clone(),
        });
        DockerController {
            parts,
            plan,
            files,
            payloads,
            task_id: task.id.to_string(),
            node_id: task.node_id.to_string(),
            progress: watch::Sender::default(),
            stop_by: Mutex::default(),
            pre_stopped: AtomicBool::new(false),
            fresh: AtomicBool::new(false),
            adopted: task.status.reached(TaskState::Preparing),
            fault: OnceLock::new(),
            id: Mutex::default(),
            first_run: OnceLock::new(),
            last: Mutex::default(),
            news,
        }
    }

    /// Makes sure that the image is there, and says how far that is. Gives the platform to ask for a container of.
    async fn ensure_image(&self) -> Result<Option<&str>, ControllerError> {
        self.pull(&self.plan.image, &self.plan.registry_auth, "preparing").await
    }

    /// Makes sure that an image is there; what is said afterwards is `then`. Gives the platform to ask for a container of.
    pub(crate) async fn pull(
        &self,
        image: &str,
        auth: &str,
        then: &str,
    ) -> Result<Option<&str>, ControllerError> {
        let tell = |percent| self.say(format!("pulling {percent} %"));
        let platform = self.plan.platform.as_deref();
        let (image, auth) = (image.to_owned(), auth.to_owned());
        let wanted = Wanted { image, auth, platform: platform.map(str::to_owned) };
        let result = self.parts.images.ensure(&wanted, tell).await;
        self.say(then);
        let says = result?.says_platform;
        Ok(platform.filter(|_| says && self.parts.engine.facts().api >= PLATFORM_OF_CONTAINERS))
    }

    pub(crate) fn failed(&self, step: &str, error: &bollard::errors::Error) -> ControllerError {
        error::of_step(step, &self.parts.engine.address, error)
    }

    pub(crate) fn observed(&self, answer: ContainerInspectResponse) -> Observed {
        Observed::new(answer, (&self.task_id, &self.node_id), &self.plan.ports)
    }

    /// What a container that has ended means for its task.
    fn result(&self, seen: &Observed) -> Result<(), ControllerError> {
        seen.result(self.fault.get().copied())
    }

    /// Looks at the container; `None` if there is none.
    pub(crate) async fn look(&self) -> Result<Option<Look>, ControllerError> {
        self.try_look().await.map_err(|error| self.failed("inspecting container failed", &error))
    }

    async fn try_look(&self) -> Result<Option<Look>, bollard::errors::Error> {
        let mut news = self.news.clone();
        news.mark_seen();
        let known = self.id.lock().clone();
        let seen = match &known {
            Some(id) => self.inspect(id).await?,
            None => self.find(&self.plan.name, None).await?,
        };
        let look = seen.map(|seen| Look { news, seen });
        if let Some(run) = look.as_ref().and_then(|look| look.seen.run()) {
            self.first_run.get_or_init(|| run);
        }
        {
            let mut id = self.id.lock();
            // What was made meanwhile stays known.
            if look.is_some() || *id == known {
                *id = look.as_ref().map(|look| look.seen.id.clone());
            }
        }
        *self.last.lock() = look.clone();
        Ok(look)
    }

    /// Finds a container of the task's by its name, or else, since that may have been changed, by its labels; `init` is the
    /// number of an init task.
    pub(crate) async fn find(
        &self,
        name: &str,
        init: Option<&str>,
    ) -> Result<Option<Observed>, bollard::errors::Error> {
        if let Some(seen) = self.inspect(name).await? {
            return Ok(Some(seen));
        }
        let docker = &self.parts.engine.docker;
        let mut found = labelled::of_task(docker, (&self.task_id, &self.node_id)).await?;
        found.retain(|container| container.init.as_deref() == init);
        match found.into_iter().max_by_key(|container| (container.runs, container.created)) {
            Some(container) => self.inspect(&container.id).await,
            None => Ok(None),
        }
    }

    /// The task's container of this id or name.
    pub(crate) async fn inspect(&self, handle: &str) -> Result<Option<Observed>, bollard::errors::Error> {
        let docker = &self.parts.engine.docker;
        match docker.inspect_container(handle, None::<InspectContainerOptions>).await {
            Ok(answer) => Ok(Some(self.observed(answer)).filter(|seen| seen.own)),
            Err(error) if error::is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The container's id, whatever it is called now; `None` if there is none. For who is to end or remove it.
    async fn still_here(&self, step: &str) -> Result<Option<String>, ControllerError> {
        let known = self.id.lock().clone();
        if known.is_some() {
            return Ok(known);
        }
        let look = self.try_look().await.map_err(|error| self.still_there(step, &error))?;
        Ok(look.map(|look| look.seen.id))
    }

    /// The container's id. Its name is no handle: a container of somebody else's may have it.
    async fn handle(&self) -> Result<String, ControllerError> {
        let known = self.id.lock().clone();
        if let Some(id) = known {
            return Ok(id);
        }
        let none = || ControllerError::Fatal(format!("No such container: {}", self.plan.name));
        Ok(self.look().await?.ok_or_else(none)?.seen.id)
    }

    /// What is told from the last look on.
    pub(crate) fn since_last_look(&self) -> News {
        let last = self.last.lock();
        last.as_ref().map_or_else(|| self.news.clone(), |look| look.news.clone())
    }

    /// The last look if nothing happened since, else a new one.
    async fn current(&self) -> Result<Option<Look>, ControllerError> {
        let last = self.last.lock().clone();
        match last {
            Some(look) if look.seen.has_ended() || !look.news.is_there(look.seen.awaited()) => Ok(Some(look)),
            _ => self.look().await,
        }
    }

    /// The body of the request that creates the container.
    fn body(&self) -> Result<ContainerCreateBody, ControllerError> {
        let mut body = self.plan.body.clone();
        self.add_credential(&mut body)?;
        Ok(body)
    }

    /// Adds the credential spec that is a config.
    pub(crate) fn add_credential(&self, body: &mut ContainerCreateBody) -> Result<(), ControllerError> {
        if let Some(config) = &self.plan.credential_config {
            let option = files::credential(&self.payloads, config)?;
            // It comes first, as in the contract's order.
            let host = body.host_config.get_or_insert_default();
            host.security_opt.get_or_insert_default().insert(0, option);
        }
        Ok(())
    }

    /// The networks of which the body that creates the container does not tell.
    pub(crate) fn further_networks(&self) -> &[PlannedNetwork] {
        let told = usize::from(self.plan.body.networking_config.is_some());
        self.plan.networks.get(told..).unwrap_or_default()
    }

    /// Makes the networks that are missing.
    async fn ensure_networks(&self) -> Result<(), ControllerError> {
        for network in &self.plan.networks {
            self.parts.networks.ensure(network, &self.task_id).await?;
        }
        Ok(())
    }

    /// Attaches the container to its further networks. Those that it is attached to already stay as they are.
    async fn attach(&self) -> Result<(), ControllerError> {
        let container = self.handle().await?;
        for network in self.further_networks() {
            let name = &network.request.name;
            let request = NetworkConnectRequest {
                container: container.clone(),
                endpoint_config: Some(network.endpoint.clone()),
            };
            match self.parts.engine.docker.connect_network(name, request).await {
                Ok(()) => {}
                Err(error) if error::message(&error).contains("already exists in network") => {}
                Err(error) => return Err(self.failed(&format!("attaching to network {name} failed"), &error)),
            }
        }
        Ok(())
    }

    /// What a container that does not run needs, and what a restart of the host took away.
    async fn make_ready(&self) -> Result<(), ControllerError> {
        self.ensure_networks().await?;
        match &self.files {
            Some(files) => files.ensure().await,
            None => Ok(()),
        }
    }

    /// Removes the files of a container that has ended: it never starts again.
    async fn remove_files(&self) {
        if let Some(files) = &self.files
            && let Err(error) = files.remove().await
        {
            // They are removed with the task, if not now.
            tracing::warn!(task.id = self.task_id, node.id = self.node_id, %error, "files of a task are left behind");
        }
    }

    async fn create(
        &self,
        body: ContainerCreateBody,
        platform: Option<&str>,
    ) -> Result<(), bollard::errors::Error> {
        let mut news = self.news.clone();
        news.mark_seen();
        let id = self.create_container(&self.plan.name, body, platform).await?;
        *self.id.lock() = Some(id.clone());
        // As good as a look.
        *self.last.lock() = Some(Look { news, seen: Observed::created(id) });
        Ok(())
    }

    /// Makes a container of this name; its id.
    pub(crate) async fn create_container(
        &self,
        name: &str,
        body: ContainerCreateBody,
        platform: Option<&str>,
    ) -> Result<String, bollard::errors::Error> {
        let engine = &self.parts.engine;
        // Closed only with the process.
        let _permit = engine.heavy.acquire().await;
        let platform = platform.unwrap_or_default();
        let options = CreateContainerOptionsBuilder::new().name(name).platform(platform).build();
        let created = engine.docker.create_container(Some(options), body).await?;
        for warning in created.warnings {
            tracing::warn!(task.id = self.task_id, warning, "the engine warns of a container");
        }
        Ok(created.id)
    }

    async fn start_container(&self) -> Result<(), bollard::errors::Error> {
        let engine = &self.parts.engine;
        let known = self.id.lock().clone();
        let handle = known.as_ref().unwrap_or(&self.plan.name);
        // Closed only with the process.
        let _permit = engine.heavy.acquire().await;
        let started = engine.docker.start_container(handle, None::<StartContainerOptions>).await;
        started.or_else(|error| if error::status(&error) == Some(304) { Ok(()) } else { Err(error) })
    }

    /// The name is taken: by our own container, which is then adopted, or by somebody else's.
    async fn adopt(&self) -> Result<(), ControllerError> {
        if self.look().await?.is_some() {
            return Err(ControllerError::AlreadyPrepared);
        }
        let name = &self.plan.name;
        Err(self.name_in_use(name).await.unwrap_or_else(|| {
            ControllerError::Temporary(format!("the container {name} has just come or gone"))
        }))
    }

    /// Why a name can't be had, if it still can't: another container has it that is not of this task.
    pub(crate) async fn name_in_use(&self, name: &str) -> Option<ControllerError> {
        let docker = &self.parts.engine.docker;
        match docker.inspect_container(name, None::<InspectContainerOptions>).await {
            Ok(answer) => {
                let seen = self.observed(answer);
                (!seen.own).then(|| {
                    ControllerError::Fatal(format!(
                        "the container name {name} is in use by the container {}, which is not of this task",
                        seen.id
                    ))
                })
            }
            Err(error) if error::is_not_found(&error) => None,
            Err(error) => Some(self.failed("inspecting container failed", &error)),
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
                Some(Health::STARTING) => {
                    self.say("started, waiting for the health check");
                    look.news.wait(Awaited::Change).await;
                }
                Some(Health::UNHEALTHY) => {
                    self.stop_for(Fault::Unhealthy).await?;
                    look.news.wait(Awaited::Change).await;
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
                Some(look) if look.seen.is_created() => look.news.wait(Awaited::Change).await,
                Some(_) => return Ok(look),
                None => self.news.clone().wait(Awaited::Change).await,
            }
            look = self.look().await?;
        }
    }

    async fn stop_for(&self, fault: Fault) -> Result<(), ControllerError> {
        if self.fault.set(fault).is_ok() {
            let (task_id, node_id) = (&self.task_id, &self.node_id);
            match fault {
                Fault::Unhealthy => {
                    tracing::info!(
                        task.id = task_id,
                        node.id = node_id,
                        "container is unhealthy: stopping it"
                    );
                }
                Fault::Restarted => tracing::warn!(
                    task.id = task_id,
                    node.id = node_id,
                    "container was restarted by somebody else: its task has failed, and it is stopped"
                ),
            }
        }
        self.stop().await
    }

    /// Stop signal, grace period, kill; returns once the container does not run.
    async fn stop(&self) -> Result<(), ControllerError> {
        let step = "stopping container failed";
        let Some(id) = self.still_here(step).await? else { return Ok(()) };
        let grace = self.before_stop(&id).await;
        let options = StopContainerOptionsBuilder::new().t(whole_seconds(grace)).build();
        let docker = self.parts.engine.patient(grace);
        match docker.stop_container(&id, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if matches!(error::status(&error), Some(304 | 404)) => Ok(()),
            Err(error) => Err(self.still_there(step, &error)),
        }
    }

    /// What runs in the container is not what was started for the task.
    fn is_restarted(&self, seen: &Observed) -> bool {
        let first = self.first_run.get();
        seen.run().zip(first).is_some_and(|(run, first)| run.is_other_than(first))
    }

    /// A container that could not be ended or removed is tried again: giving up would leave it running.
    pub(crate) fn still_there(&self, step: &str, error: &bollard::errors::Error) -> ControllerError {
        match self.failed(step, error) {
            ControllerError::Fatal(text) if error::status(error).is_some_and(|status| status >= 500) => {
                ControllerError::Temporary(text)
            }
            other => other,
        }
    }
}

fn destroyed() -> ControllerError {
    ControllerError::Fatal("dockerexec: container destroyed".to_owned())
}

#[async_trait]
impl Controller for DockerController {
    async fn update(&self, _: &Shared<Task>) -> Result<(), ControllerError> {
        // A container can't become another one: what matters of a task does not change.
        Ok(())
    }

    async fn prepare(&self) -> Result<(), ControllerError> {
        let parts = &self.parts;
        let mut platform = self.ensure_image().await?;
        for volume in &self.plan.volumes {
            let created = parts.engine.docker.create_volume(volume.clone()).await;
            created.map_err(|error| self.failed("creating volume failed", &error))?;
        }
        self.make_ready().await?;
        if self.adopted && self.look().await?.is_some() {
            return Err(ControllerError::AlreadyPrepared);
        }
        self.run_init_tasks().await?;
        let body = self.body()?;
        let mut created = self.create(body.clone(), platform).await;
        if matches!(&created, Err(error) if error::is_not_found(error) && no_such_image(error)) {
            // Removed by somebody since it was looked for, or replaced by that of another platform.
            parts.images.forget(&self.plan.image);
            platform = self.ensure_image().await?;
            created = self.create(body, platform).await;
        }
        match created {
            Ok(()) => {
                self.attach().await?;
                self.fresh.store(true, Ordering::Relaxed);
                if let Err(error) = self.remove_init_tasks().await {
                    // They are removed with the task, if not now.
                    tracing::warn!(task.id = self.task_id, %error, "containers of init tasks are left behind");
                }
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
            self.make_ready().await?;
            self.attach().await?;
        }
        let mut started = self.start_container().await;
        if matches!(&started, Err(error) if error::is_not_found(error) && !self.plan.networks.is_empty()) {
            // A network may have gone with the last container that was attached to it.
            self.ensure_networks().await?;
            started = self.start_container().await;
        }
        started.map_err(|error| self.failed("starting container failed", &error))?;
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
                self.remove_files().await;
                return self.result(&look.seen);
            }
            if look.seen.is_created() {
                return Err(ControllerError::Fatal("dockerexec: container was never started".to_owned()));
            }
            if self.is_restarted(&look.seen) {
                self.stop_for(Fault::Restarted).await?;
            } else if look.seen.health == Some(Health::UNHEALTHY) {
                self.stop_for(Fault::Unhealthy).await?;
            }
            look.news.wait(look.seen.awaited()).await;
            look = self.look().await?.ok_or_else(destroyed)?;
        }
    }

    async fn shutdown(&self) -> Result<(), ControllerError> {
        self.stop_init_tasks().await?;
        self.stop().await?;
        // How it ended is wanted in the status.
        let look = self.look().await?;
        if look.is_none_or(|look| look.seen.has_ended() || look.seen.is_created()) {
            self.remove_files().await;
        }
        Ok(())
    }

    async fn terminate(&self) -> Result<(), ControllerError> {
        self.remove_init_tasks().await?;
        let step = "killing container failed";
        let Some(id) = self.still_here(step).await? else { return Ok(()) };
        let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
        match self.parts.engine.docker.kill_container(&id, Some(options)).await {
            Ok(()) => Ok(()),
            // Not there, or not running.
            Err(error) if matches!(error::status(&error), Some(404 | 409)) => Ok(()),
            Err(error) => Err(self.still_there(step, &error)),
        }
    }

    async fn remove(&self) -> Result<(), ControllerError> {
        let ended = self.last.lock().as_ref().is_some_and(|look| look.seen.has_ended());
        if !ended && let Err(error @ ControllerError::Temporary(_)) = self.stop().await {
            return Err(error);
        }
        self.remove_init_tasks().await?;
        let step = "removing container failed";
        if let Some(id) = self.still_here(step).await? {
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            match self.parts.engine.docker.remove_container(&id, Some(options)).await {
                Ok(()) => {}
                // Gone, or going.
                Err(error) if matches!(error::status(&error), Some(404 | 409)) => {}
                Err(error) => return Err(self.still_there(step, &error)),
            }
        }
        *self.id.lock() = None;
        *self.last.lock() = None;
        if let Some(files) = &self.files {
            files.remove().await?;
        }
        for network in &self.plan.networks {
            self.parts.networks.release(network, &self.task_id).await?;
        }
        self.parts.events.removed(&self.task_id);
        Ok(())
    }

    async fn keep_ended(&self) -> Infallible {
        self.end_whatever_starts().await
    }

    fn hindrance(&self) -> Option<String> {
        let id = self.id.lock().clone().unwrap_or_default();
        self.parts.engine.hindrance(&[&id, &self.task_id, &self.plan.name, &self.plan.image])
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

    fn progress(&self) -> Option<watch::Receiver<String>> {
        Some(self.progress.subscribe())
    }

    async fn logs(&self, options: LogOptions, sink: LogSink) -> Result<(), ControllerError> {
        let mut look = self.look().await?;
        if options.follow {
            look = self.once_started(look).await?;
        }
        if look.is_none() {
            return Ok(());
        }
        let id = self.handle().await?;
        logs::copy(&self.parts.engine, &id, self.plan.tty, &options, &sink)
            .await
            .map_err(|error| self.failed("reading logs failed", &error))
    }

    async fn exec(&self, options: ExecOptions, io: TaskIo) -> Result<i32, ControllerError> {
        let id = self.handle().await?;
        session::exec(&self.parts.engine, &id, options, io)
            .await
            .map_err(|(step, error)| self.failed(step, &error))
    }

    async fn attach(&self, options: AttachOptions, io: TaskIo) -> Result<i32, ControllerError> {
        let (tty, stdin) = (self.plan.tty, self.plan.body.open_stdin == Some(true));
        let id = self.handle().await?;
        session::attach(&self.parts.engine, &id, (tty, stdin), options, io)
            .await
            .map_err(|(step, error)| self.failed(step, &error))
    }

    async fn stats(&self) -> Result<Stats, ControllerError> {
        let limit = self.plan.body.host_config.as_ref().and_then(|host| host.memory);
        let id = self.handle().await?;
        stats::of(&self.parts.engine.docker, &id, limit)
            .await
            .map_err(|error| self.failed("asking the engine for figures", &error))
    }
}

fn no_such_image(error: &bollard::errors::Error) -> bool {
    let text = error::message(error).to_lowercase();
    text.contains("no such image") || text.contains("does not match the specified platform")
}
