//! What a task's controller is called with, and in which order.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use swarm_agent::{
    AttachOptions, Controller, ControllerError, Dependencies, ExecOptions, Executor, ExecutorDescription,
    LogOptions, LogSink, Stats, TaskIo,
};
use swarm_api::v1::{ContainerStatus, EncryptionKey, Node, PortStatus, Task, TaskState};
use swarm_api::{Shared, extensions};

use crate::cluster::*;

/// Does everything at once, and takes note of each call.
#[derive(Clone, Default)]
struct Noted {
    calls: Arc<Mutex<Vec<String>>>,
}

impl Noted {
    fn note(&self, call: impl Into<String>) -> Result<(), ControllerError> {
        self.calls.lock().push(call.into());
        Ok(())
    }
}

fn nothing_runs<T>() -> Result<T, ControllerError> {
    Err(ControllerError::Fatal("nothing runs".into()))
}

#[async_trait]
impl Controller for Noted {
    async fn update(&self, task: &Shared<Task>) -> Result<(), ControllerError> {
        self.note(format!("update to {}", task.desired_state().name()))
    }
    async fn prepare(&self) -> Result<(), ControllerError> {
        self.note("prepare")
    }
    async fn start(&self) -> Result<(), ControllerError> {
        self.note("start")
    }
    async fn wait(&self) -> Result<(), ControllerError> {
        self.note("wait")?;
        std::future::pending().await
    }
    async fn shutdown(&self) -> Result<(), ControllerError> {
        self.note("shutdown")
    }
    async fn terminate(&self) -> Result<(), ControllerError> {
        self.note("terminate")
    }
    async fn remove(&self) -> Result<(), ControllerError> {
        self.note("remove")
    }
    async fn container_status(&self) -> Option<ContainerStatus> {
        None
    }
    async fn port_status(&self) -> Option<PortStatus> {
        None
    }
    async fn exec(&self, _: ExecOptions, _: TaskIo) -> Result<i32, ControllerError> {
        nothing_runs()
    }
    async fn attach(&self, _: AttachOptions, _: TaskIo) -> Result<i32, ControllerError> {
        nothing_runs()
    }
    async fn stats(&self) -> Result<Stats, ControllerError> {
        nothing_runs()
    }
    async fn logs(&self, _: LogOptions, _: LogSink) -> Result<(), ControllerError> {
        Ok(())
    }
}

#[async_trait]
impl Executor for Noted {
    fn runtimes(&self) -> Vec<String> {
        vec![extensions::CONTAINER_RUNTIME.to_owned()]
    }
    async fn describe(&self) -> Result<ExecutorDescription, ControllerError> {
        Ok(ExecutorDescription::default())
    }
    async fn configure(&self, _: &Shared<Node>) -> Result<(), ControllerError> {
        Ok(())
    }
    async fn set_network_keys(&self, _: &[EncryptionKey]) -> Result<(), ControllerError> {
        Ok(())
    }
    fn controller(
        &self,
        _: &Shared<Task>,
        _: Arc<dyn Dependencies>,
    ) -> Result<Arc<dyn Controller>, ControllerError> {
        Ok(Arc::new(self.clone()))
    }
    async fn sweep(&self, _: &[String]) -> Result<(), ControllerError> {
        Ok(())
    }
}

// 115, 123
#[tokio::test(start_paused = true)]
async fn each_step_is_one_call_and_each_change_is_told_before_the_next_step() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let noted = Noted::default();
    let calls = noted.calls.clone();
    let agent = start_agent("n1", dir.path(), cluster.connector("n1"), vec![Arc::new(noted)]).await;
    cluster.create(Task { desired_state: TaskState::Ready as i32, ..task("t", "n1") }).await;
    cluster.until_state("t", TaskState::Ready).await;
    assert_eq!(*calls.lock(), ["prepare"]);
    cluster.want("t", TaskState::Running).await;
    cluster.until_state("t", TaskState::Running).await;
    cluster.want("t", TaskState::Shutdown).await;
    cluster.until_state("t", TaskState::Shutdown).await;
    let all = ["prepare", "update to RUNNING", "start", "wait", "update to SHUTDOWN", "shutdown"];
    assert_eq!(*calls.lock(), all);
    agent.stop().await;
}
