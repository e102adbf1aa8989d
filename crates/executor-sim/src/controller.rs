//! Runs one simulated task.

use std::convert::Infallible;

use async_trait::async_trait;
use rand::RngExt as _;
use rand::rngs::StdRng;
use swarm_agent::{
    AttachOptions, Controller, ControllerError, ExecOptions, LogOptions, LogSink, Stats, TaskIo,
};
use swarm_api::Shared;
use swarm_api::v1::{ContainerStatus, PortStatus, Task};

use crate::behaviour::Delay;
use crate::world::{State, World};

/// Exit codes of containers that were asked to stop, and of those that were killed.
const TERMINATED: i32 = 143;
const KILLED: i32 = 137;

/// What everything answers while the engine is away.
pub(crate) fn away() -> ControllerError {
    ControllerError::Temporary("the simulated engine is away".into())
}

/// There is no way into a task that is only simulated.
fn nothing_runs() -> ControllerError {
    ControllerError::Fatal("the task is simulated: nothing runs that could be entered or measured".into())
}

pub(crate) struct SimController {
    pub(crate) world: World,
    pub(crate) node_id: String,
    pub(crate) task: Shared<Task>,
}

impl SimController {
    /// Takes the time that an operation takes; fails as often as it is meant to.
    async fn take(&self, delay: Delay, fails: f64) -> Result<StdRng, ControllerError> {
        let behaviour = self.world.behaviour();
        if behaviour.away {
            return Err(away());
        }
        let mut rng = self.world.next_rng(&self.task.id);
        let time = delay.draw(&mut rng);
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        if rng.random_bool(behaviour.hiccups.clamp(0.0, 1.0)) {
            return Err(ControllerError::Temporary("the simulated engine hiccuped".into()));
        }
        if rng.random_bool(fails.clamp(0.0, 1.0)) {
            return Err(ControllerError::Fatal("simulated failure".into()));
        }
        Ok(rng)
    }

    fn state(&self) -> Option<State> {
        self.world.state(&self.node_id, &self.task.id).map(|(state, _)| state)
    }
}

#[async_trait]
impl Controller for SimController {
    async fn update(&self, _task: &Shared<Task>) -> Result<(), ControllerError> {
        Ok(())
    }

    async fn prepare(&self) -> Result<(), ControllerError> {
        if self.world.exists(&self.node_id, &self.task.id) {
            return Err(ControllerError::AlreadyPrepared);
        }
        let behaviour = self.world.behaviour();
        self.take(behaviour.prepare, behaviour.prepare_fails).await?;
        self.world.create(&self.node_id, &self.task);
        Ok(())
    }

    async fn start(&self) -> Result<(), ControllerError> {
        match self.state() {
            None => return Err(ControllerError::Fatal("no such container".into())),
            Some(State::Created) => {}
            Some(_) => return Err(ControllerError::AlreadyStarted),
        }
        let behaviour = self.world.behaviour();
        self.take(behaviour.start, behaviour.start_fails).await?;
        self.world.start(&self.node_id, &self.task);
        Ok(())
    }

    async fn wait(&self) -> Result<(), ControllerError> {
        loop {
            let Some((_, changed)) = self.world.state(&self.node_id, &self.task.id) else {
                return Err(ControllerError::Fatal("container destroyed".into()));
            };
            let changed = changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.world.behaviour().away {
                return Err(away());
            }
            // Once more, now that no change can be missed.
            let exit = match self.state() {
                None => continue,
                Some(State::Exited { code: 0 }) => return Ok(()),
                Some(State::Exited { code }) => return Err(ControllerError::Exit { code, cause: None }),
                Some(State::Created) => None,
                Some(State::Running { exit }) => exit,
            };
            match exit {
                Some((at, _)) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => changed.await,
            }
        }
    }

    async fn shutdown(&self) -> Result<(), ControllerError> {
        if matches!(self.state(), Some(State::Running { .. })) {
            let stop = self.world.behaviour().stop;
            self.take(stop, 0.0).await?;
            self.world.stop(&self.node_id, &self.task.id, TERMINATED);
        }
        Ok(())
    }

    async fn terminate(&self) -> Result<(), ControllerError> {
        self.world.stop(&self.node_id, &self.task.id, KILLED);
        Ok(())
    }

    async fn remove(&self) -> Result<(), ControllerError> {
        let remove = self.world.behaviour().remove;
        self.take(remove, 0.0).await?;
        self.world.remove(&self.node_id, &self.task.id);
        Ok(())
    }

    async fn keep_ended(&self) -> Infallible {
        loop {
            let Some((_, changed)) = self.world.state(&self.node_id, &self.task.id) else {
                // Nothing is left that could be started.
                return std::future::pending().await;
            };
            let changed = changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if matches!(self.state(), Some(State::Running { .. })) {
                self.world.stop(&self.node_id, &self.task.id, TERMINATED);
            } else {
                changed.await;
            }
        }
    }

    async fn container_status(&self) -> Option<ContainerStatus> {
        let (pid, exit_code) = match self.state()? {
            State::Created => (0, 0),
            State::Running { .. } => (1, 0),
            State::Exited { code } => (0, code),
        };
        Some(ContainerStatus { container_id: format!("sim-{}", self.task.id), pid, exit_code })
    }

    async fn port_status(&self) -> Option<PortStatus> {
        None
    }

    async fn logs(&self, _options: LogOptions, _sink: LogSink) -> Result<(), ControllerError> {
        Ok(())
    }

    async fn exec(&self, _: ExecOptions, _: TaskIo) -> Result<i32, ControllerError> {
        Err(nothing_runs())
    }

    async fn attach(&self, _: AttachOptions, _: TaskIo) -> Result<i32, ControllerError> {
        Err(nothing_runs())
    }

    async fn stats(&self) -> Result<Stats, ControllerError> {
        Err(nothing_runs())
    }
}
