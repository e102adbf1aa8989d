//! What is run before a container starts, and before it is stopped.
//!
//! **Invariant.** The task's container is made when all its init tasks have succeeded, and their containers stay until then.
//! So what there is says how far it is, also after a restart of the daemon: no init task is left out, and none runs twice.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bollard::exec::{CreateExecOptions, StartExecOptions};
use bollard::models::NetworkConnectRequest;
use bollard::query_parameters::{
    InspectContainerOptions, RemoveContainerOptionsBuilder, StartContainerOptions,
    StopContainerOptionsBuilder,
};
use swarm_agent::{ControllerError, LogLine, LogOptions, LogSink, LogStream};
use tokio::time::{Instant, sleep, timeout_at};

use crate::controller::DockerController;
use crate::error;
use crate::events::Awaited;
use crate::labelled::{self, Labelled};
use crate::logs;
use crate::observed::Observed;
use crate::spec::PlannedInit;

/// Time between two looks at a command in a container, of whose end engines send no word.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Lines among which the last one that says something is looked for.
const LAST_LINES: u64 = 20;
/// Bytes of it that are kept.
const MOST_OF_LINE: usize = 1024;
/// A deadline for grace periods that no clock can count.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

impl DockerController {
    /// Lets whoever waits for the call know what it is at.
    pub(crate) fn say(&self, text: impl Into<String>) {
        let text = text.into();
        self.progress.send_if_modified(|said| {
            let news = *said != text;
            *said = text;
            news
        });
    }

    /// Runs the init tasks that have not run, one after the other.
    pub(crate) async fn run_init_tasks(&self) -> Result<(), ControllerError> {
        let count = self.plan.init.len();
        if count == 0 || self.look().await?.is_some() {
            return Ok(());
        }
        for (number, step) in (1..).zip(&self.plan.init) {
            let what = format!("init task {number} of {count}");
            self.say(format!("running {what}"));
            self.run_init_task(step, &what).await?;
        }
        self.say("preparing");
        Ok(())
    }

    async fn run_init_task(&self, step: &PlannedInit, what: &str) -> Result<(), ControllerError> {
        let mut there = false;
        let mut id: Option<String> = None;
        loop {
            let mut news = self.news.clone();
            news.mark_seen();
            let seen = match &id {
                Some(id) => self.inspect(id).await,
                None => self.find(&step.name, Some(&step.number)).await,
            };
            let seen = seen.map_err(|error| self.failed("inspecting container failed", &error))?;
            id = seen.as_ref().map(|seen| seen.id.clone());
            match seen {
                None if there => {
                    return Err(ControllerError::Fatal(format!("{what} failed: its container was removed")));
                }
                None => {
                    let then = format!("running {what}");
                    let platform = self.pull(&step.image, &step.registry_auth, &then).await?;
                    let mut body = step.body.clone();
                    self.add_credential(&mut body)?;
                    match self.create_container(&step.name, body, platform).await {
                        Err(error) if error::status(&error) == Some(409) => {
                            if let Some(error) = self.name_in_use(&step.name).await {
                                return Err(error);
                            }
                            // Our own, which the next look finds.
                        }
                        created => {
                            let failed = |error| self.failed(&format!("creating {what} failed"), &error);
                            id = Some(created.map_err(failed)?);
                        }
                    }
                    there = true;
                }
                Some(seen) if seen.is_created() => {
                    self.attach_init(&seen.id).await?;
                    let _permit = self.parts.engine.heavy.acquire().await;
                    let docker = &self.parts.engine.docker;
                    let started = docker.start_container(&seen.id, None::<StartContainerOptions>).await;
                    if let Err(error) = started
                        && error::status(&error) != Some(304)
                    {
                        return Err(self.failed(&format!("starting {what} failed"), &error));
                    }
                    tracing::debug!(task.id = self.task_id, container = step.name, "init task started");
                    there = true;
                }
                Some(seen) if seen.has_ended() => return self.init_result(what, &seen).await,
                Some(_) => {
                    there = true;
                    news.wait(Awaited::End).await;
                }
            }
        }
    }

    async fn init_result(&self, what: &str, seen: &Observed) -> Result<(), ControllerError> {
        let (code, cause) = match seen.result(None) {
            Ok(()) => return Ok(()),
            Err(ControllerError::Exit { code, cause }) => (code, cause),
            Err(other) => return Err(other),
        };
        let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
        let said = match self.last_line(&seen.id).await {
            Some(line) => format!(": {line}"),
            None => String::new(),
        };
        Err(ControllerError::Fatal(format!("{what} failed with exit code {code}{cause}{said}")))
    }

    /// The last line that a container wrote and that is not empty: to its standard error, if it wrote there, since of lines in two
    /// streams that follow closely nobody knows which was the last. `None` too if its output can't be read.
    async fn last_line(&self, id: &str) -> Option<String> {
        let (sink, lines) = LogSink::new();
        let options = LogOptions { tail: Some(LAST_LINES), ..LogOptions::default() };
        let copied = async {
            // Init tasks have no terminal.
            let copied = logs::copy(&self.parts.engine, id, false, &options, &sink).await;
            drop(sink);
            copied
        };
        let (copied, lines) = tokio::join!(copied, lines.collect());
        if let Err(error) = copied {
            tracing::warn!(task.id = self.task_id, reason = error::chain(&error), "output can't be read");
        }
        let text = |line: &&LogLine| String::from_utf8_lossy(&line.data).trim().to_owned();
        let last_of = |stream: LogStream| {
            let of_stream = lines.iter().rev().filter(|line| line.stream == stream);
            of_stream.map(|line| text(&line)).find(|line| !line.is_empty())
        };
        let mut last = last_of(LogStream::Stderr).or_else(|| last_of(LogStream::Stdout))?;
        last.truncate(last.floor_char_boundary(MOST_OF_LINE));
        Some(last)
    }

    /// Attaches a container to the further networks, without the names that the service has there.
    async fn attach_init(&self, id: &str) -> Result<(), ControllerError> {
        for network in self.further_networks() {
            let mut endpoint = network.endpoint.clone();
            endpoint.aliases = None;
            let request = NetworkConnectRequest { container: id.to_owned(), endpoint_config: Some(endpoint) };
            match self.parts.engine.docker.connect_network(&network.request.name, request).await {
                Ok(()) => {}
                Err(error) if error::message(&error).contains("already exists in network") => {}
                Err(error) => {
                    let step = format!("attaching to network {} failed", network.request.name);
                    return Err(self.failed(&step, &error));
                }
            }
        }
        Ok(())
    }

    /// Stops the init task that runs, if one does.
    pub(crate) async fn stop_init_tasks(&self) -> Result<(), ControllerError> {
        let step = "stopping init task failed";
        for container in self.init_tasks(step).await?.into_iter().filter(|container| container.runs) {
            let grace = whole_seconds(self.plan.stop_grace);
            let options = StopContainerOptionsBuilder::new().t(grace).build();
            let docker = self.parts.engine.patient(self.plan.stop_grace);
            match docker.stop_container(&container.id, Some(options)).await {
                Err(error) if !matches!(error::status(&error), Some(304 | 404)) => {
                    return Err(self.still_there(step, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The containers of init tasks, whatever they are called; for who is to end or remove them.
    async fn init_tasks(&self, step: &str) -> Result<Vec<Labelled>, ControllerError> {
        if self.plan.init.is_empty() {
            return Ok(Vec::new());
        }
        let found = labelled::of_task(&self.parts.engine.docker, (&self.task_id, &self.node_id)).await;
        let mut found = found.map_err(|error| self.still_there(step, &error))?;
        found.retain(|container| container.init.is_some());
        Ok(found)
    }

    /// Removes the containers of init tasks, running or not.
    pub(crate) async fn remove_init_tasks(&self) -> Result<(), ControllerError> {
        let step = "removing init task failed";
        for container in self.init_tasks(step).await? {
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            match self.parts.engine.docker.remove_container(&container.id, Some(options)).await {
                Err(error) if !matches!(error::status(&error), Some(404 | 409)) => {
                    return Err(self.still_there(step, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Runs the pre-stop command, if there is one, and gives what is left of the grace period. A stop that is tried again
    /// neither runs it twice nor begins a new grace period.
    pub(crate) async fn before_stop(&self, id: &str) -> Duration {
        if self.plan.pre_stop.is_empty() {
            return self.plan.stop_grace;
        }
        let now = Instant::now();
        let deadline = now.checked_add(self.plan.stop_grace).unwrap_or(now + FAR);
        let deadline = *self.stop_by.lock().get_or_insert(deadline);
        match timeout_at(deadline, self.pre_stop(id)).await {
            Ok(Ok(())) => {}
            Ok(Err(text)) => {
                tracing::warn!(
                    task.id = self.task_id,
                    node.id = self.node_id,
                    reason = text,
                    "pre-stop command failed"
                );
                self.say(format!("stopping; the pre-stop command failed: {text}"));
            }
            Err(_) => {
                let text = "the pre-stop command took the whole stop grace period";
                tracing::warn!(task.id = self.task_id, node.id = self.node_id, "{text}");
                self.say(format!("stopping; {text}"));
            }
        }
        deadline.saturating_duration_since(Instant::now())
    }

    async fn pre_stop(&self, container: &str) -> Result<(), String> {
        let docker = &self.parts.engine.docker;
        let failed = |error: bollard::errors::Error| error::chain(&error);
        let seen = match docker.inspect_container(container, None::<InspectContainerOptions>).await {
            Err(error) if error::is_not_found(&error) => return Ok(()),
            other => other.map_err(failed)?,
        };
        if seen.state.and_then(|state| state.running) != Some(true) {
            return Ok(());
        }
        // One that was begun before a restart of the daemon, or by a call that was given up, is waited for.
        let mut under_way = None;
        for id in seen.exec_ids.unwrap_or_default() {
            let exec = docker.inspect_exec(&id).await.map_err(failed)?;
            let words = exec.process_config.map(|process| {
                process
                    .entrypoint
                    .into_iter()
                    .chain(process.arguments.unwrap_or_default())
                    .collect::<Vec<_>>()
            });
            if exec.running == Some(true) && words.as_ref() == Some(&self.plan.pre_stop) {
                under_way = Some(id);
            }
        }
        let id = match under_way {
            Some(id) => {
                self.say("running pre-stop command");
                id
            }
            None if self.pre_stopped.swap(true, Ordering::Relaxed) => return Ok(()),
            None => {
                self.say("running pre-stop command");
                let options = CreateExecOptions {
                    cmd: Some(self.plan.pre_stop.clone()),
                    ..CreateExecOptions::default()
                };
                let id = docker.create_exec(container, options).await.map_err(failed)?.id;
                let options = StartExecOptions { detach: true, ..StartExecOptions::default() };
                docker.start_exec(&id, Some(options)).await.map_err(failed)?;
                id
            }
        };
        loop {
            let exec = match docker.inspect_exec(&id).await {
                // It goes with its container.
                Err(error) if error::is_not_found(&error) => return Ok(()),
                other => other.map_err(failed)?,
            };
            match (exec.running, exec.exit_code) {
                (Some(true), _) => sleep(LOOK_AGAIN).await,
                (_, Some(0)) => return Ok(()),
                (_, Some(code)) => return Err(format!("exit code {code}")),
                (_, None) => return Err("nobody knows how it ended".to_owned()),
            }
        }
    }
}

/// Rounded up: a short grace is not none.
pub(crate) fn whole_seconds(time: Duration) -> i32 {
    i32::try_from(time.as_secs() + u64::from(time.subsec_nanos() > 0)).unwrap_or(i32::MAX)
}
