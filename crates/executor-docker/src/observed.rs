//! What a look at a container shows, and what it means for its task.

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum as Status, HealthStatusEnum as Health,
};
use swarm_agent::ControllerError;
use swarm_api::v1::PortConfig;

use crate::ports::published;
use crate::spec::{NODE_ID_LABEL, TASK_ID_LABEL};

const UNHEALTHY: &str = "dockerexec: unhealthy container";

/// What a look at the container showed.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    pub(crate) id: String,
    status: Status,
    pub(crate) pid: i64,
    pub(crate) exit_code: i64,
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
            error,
            health: state.health.and_then(|health| health.status),
            ports: bound.map(|bound| published(bound, wanted)).unwrap_or_default(),
            own: is(TASK_ID_LABEL, task_id) && is(NODE_ID_LABEL, node_id),
        }
    }

    /// What a container that has ended means for its task; `unhealthy` if it was stopped for that.
    pub(crate) fn result(&self, unhealthy: bool) -> Result<(), ControllerError> {
        let cause = if unhealthy { Some(UNHEALTHY.to_owned()) } else { Some(self.error.clone()) };
        match self.exit_code {
            0 if unhealthy => Err(ControllerError::Fatal(UNHEALTHY.to_owned())),
            0 => Ok(()),
            code => Err(ControllerError::Exit {
                code: i32::try_from(code).unwrap_or(i32::MAX),
                cause: cause.filter(|text| !text.is_empty()),
            }),
        }
    }
}
