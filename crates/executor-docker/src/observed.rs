//! What a look at a container shows, and what it means for its task.

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum as Status, HealthStatusEnum as Health,
};
use swarm_agent::ControllerError;
use swarm_api::v1::PortConfig;

use crate::events::Awaited;
use crate::ports::published;
use crate::spec::{NODE_ID_LABEL, TASK_ID_LABEL};

/// Why a container was stopped that its task would have let run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Its health check says so.
    Unhealthy,
    /// Its process is not the one that was started for the task.
    Restarted,
}

impl Fault {
    fn text(self) -> &'static str {
        match self {
            Fault::Unhealthy => "dockerexec: unhealthy container",
            Fault::Restarted => "dockerexec: container was restarted by somebody else",
        }
    }
}

/// What tells one run of a container from the next: when it was started, and its process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    started_at: String,
    pid: i64,
}

impl Run {
    /// Another run of the same container. An engine that finds a running container again may have another opinion of when it was
    /// started.
    pub(crate) fn is_other_than(&self, first: &Run) -> bool {
        self.pid != first.pid && self.started_at != first.started_at
    }
}

/// What a look at the container showed.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    pub(crate) id: String,
    status: Status,
    pub(crate) pid: i64,
    pub(crate) exit_code: i64,
    started_at: String,
    /// Why it ended, in the engine's words.
    error: String,
    pub(crate) health: Option<Health>,
    pub(crate) ports: Vec<PortConfig>,
    /// Made for this task by this node.
    pub(crate) own: bool,
}

impl Observed {
    /// A container that was just created by this controller.
    pub(crate) fn created(id: String) -> Self {
        Observed {
            id,
            status: Status::CREATED,
            pid: 0,
            exit_code: 0,
            started_at: String::new(),
            error: String::new(),
            health: None,
            ports: Vec::new(),
            own: true,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.status, Status::EXITED | Status::DEAD | Status::REMOVING)
    }

    pub(crate) fn is_created(&self) -> bool {
        matches!(self.status, Status::CREATED)
    }

    /// What runs in it, if anything does.
    pub(crate) fn run(&self) -> Option<Run> {
        let runs = matches!(self.status, Status::RUNNING | Status::PAUSED) && self.pid > 0;
        runs.then(|| Run { started_at: self.started_at.clone(), pid: self.pid })
    }

    /// What is news after this look.
    pub(crate) fn awaited(&self) -> Awaited {
        // A health check has something to say at any time, and says it once.
        let health = !matches!(self.health, None | Some(Health::EMPTY | Health::NONE));
        if self.is_created() || health { Awaited::Change } else { Awaited::End }
    }

    /// What a look at the container of this task and node showed; `wanted` are the ports that it is to have.
    pub(crate) fn new(
        answer: ContainerInspectResponse,
        (task_id, node_id): (&str, &str),
        wanted: &[PortConfig],
    ) -> Self {
        let state = answer.state.unwrap_or_default();
        let labels = answer.config.and_then(|config| config.labels).unwrap_or_default();
        let mut error = state.error.unwrap_or_default();
        if error.is_empty() && state.oom_killed == Some(true) {
            error = "out of memory".to_owned();
        }
        let bound = answer.network_settings.and_then(|net| net.ports);
        let is = |label: &str, value: &str| labels.get(label).map(String::as_str) == Some(value);
        Observed {
            id: answer.id.unwrap_or_default(),
            status: state.status.unwrap_or(Status::EMPTY),
            pid: state.pid.unwrap_or_default(),
            exit_code: state.exit_code.unwrap_or_default(),
            started_at: state.started_at.unwrap_or_default(),
            error,
            health: state.health.and_then(|health| health.status),
            ports: bound.map(|bound| published(bound, wanted)).unwrap_or_default(),
            own: is(TASK_ID_LABEL, task_id) && is(NODE_ID_LABEL, node_id),
        }
    }

    /// What a container that has ended means for its task; with the fault that it was stopped for.
    pub(crate) fn result(&self, fault: Option<Fault>) -> Result<(), ControllerError> {
        let cause = fault.map_or_else(|| self.error.clone(), |fault| fault.text().to_owned());
        match (self.exit_code, fault) {
            (0, Some(_)) => Err(ControllerError::Fatal(cause)),
            (0, None) => Ok(()),
            (code, _) => Err(ControllerError::Exit {
                code: i32::try_from(code).unwrap_or(i32::MAX),
                cause: Some(cause).filter(|text| !text.is_empty()),
            }),
        }
    }
}
