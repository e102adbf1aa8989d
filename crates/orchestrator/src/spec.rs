//! What specs and tasks say, with the contract's defaults filled in.

use std::time::{Duration, SystemTime};

use swarm_api::v1::{
    Node, RestartPolicy, Service, ServiceSpec, Task, TaskSpec, TaskState, node_spec, node_status,
    restart_policy, service_spec,
};
use swarm_api::{Shared, defaults, duration};
use swarm_scheduler::ended_by_manager;
use swarm_store::Tables;

/// What kind of service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Replicated(u64),
    Global,
    ReplicatedJob {
        /// Tasks at the same time.
        at_once: u64,
        /// Tasks that are to complete.
        total: u64,
    },
    GlobalJob,
}

pub(crate) fn mode(spec: &ServiceSpec) -> Option<Mode> {
    Some(match spec.mode.as_ref()? {
        service_spec::Mode::Replicated(m) => Mode::Replicated(m.replicas),
        service_spec::Mode::Global(_) => Mode::Global,
        service_spec::Mode::ReplicatedJob(m) => {
            Mode::ReplicatedJob { at_once: m.max_concurrent, total: m.total_completions }
        }
        service_spec::Mode::GlobalJob(_) => Mode::GlobalJob,
    })
}

/// Number of the service's spec; 0 if it has none.
pub(crate) fn version(service: &Service) -> u64 {
    service.spec_version.map_or(0, |v| v.index)
}

/// Number of the job's run; `None` for services that are no jobs (`orchestration.md` §11).
pub(crate) fn iteration(service: &Service) -> Option<u64> {
    let is_job = matches!(mode(&service.spec)?, Mode::ReplicatedJob { .. } | Mode::GlobalJob);
    is_job.then(|| service.job_status.as_ref().map_or(0, |status| status.job_iteration.index))
}

/// The orchestrator wants the task on, now or after a delay: to run, or, in a job, to complete.
pub(crate) fn is_live(task: &Task) -> bool {
    task.desired_state <= TaskState::Complete as i32
}

pub(crate) fn has_ended(task: &Task) -> bool {
    task.status.state > TaskState::Running as i32
}

/// On a node, and not seen to have ended: something may run.
pub(crate) fn may_run(task: &Task) -> bool {
    task.status.reached(TaskState::Assigned) && !has_ended(task)
}

/// When the task was last heard of: the manager's time of the report if there is one.
pub(crate) fn heard_at(task: &Task) -> Option<SystemTime> {
    let at = task.status.applied_at.as_ref().or(task.status.timestamp.as_ref())?;
    Some(duration::to_system_time(at))
}

/// When the task ended. What a manager says of one that its agent has not ended is newer than what the agent said last.
pub(crate) fn ended_at(task: &Task) -> Option<SystemTime> {
    if !ended_by_manager(task) {
        return heard_at(task);
    }
    task.status.timestamp.as_ref().map(duration::to_system_time)
}

pub(crate) fn created_at(task: &Task) -> SystemTime {
    task.meta.created_at.as_ref().map_or(SystemTime::UNIX_EPOCH, duration::to_system_time)
}

/// Restart policy, with an absent one spelled out.
pub(crate) struct Restart {
    pub(crate) condition: restart_policy::RestartCondition,
    pub(crate) delay: Duration,
    pub(crate) max_attempts: u64,
    /// No window: attempts count for ever.
    pub(crate) window: Option<Duration>,
}

pub(crate) fn restart(spec: &TaskSpec) -> Restart {
    let absent =
        RestartPolicy { condition: restart_policy::RestartCondition::Any as i32, ..Default::default() };
    let policy = spec.restart.as_ref().unwrap_or(&absent);
    Restart {
        condition: policy.condition(),
        delay: policy.delay.as_ref().map_or(defaults::RESTART_DELAY, duration::to_std),
        max_attempts: policy.max_attempts,
        window: policy.window.as_ref().map(duration::to_std).filter(|w| !w.is_zero()),
    }
}

pub(crate) fn is_down(node: &Node) -> bool {
    node.status.state() == node_status::State::Down
}

pub(crate) fn is_drained(node: &Node) -> bool {
    node.spec.availability() == node_spec::Availability::Drain
}

pub(crate) fn is_paused(node: &Node) -> bool {
    node.spec.availability() == node_spec::Availability::Pause
}

/// Tasks can't stay on such a node: it is gone, DOWN, or drained. UNKNOWN, DISCONNECTED and paused ones keep theirs.
pub(crate) fn loses_tasks(node: Option<&Shared<Node>>) -> bool {
    node.is_none_or(|n| is_down(n) || is_drained(n))
}

/// Something that decides where tasks belong on a node.
pub(crate) fn node_matters(old: &Node, new: &Node) -> bool {
    old.spec != new.spec
        || old.status.state != new.status.state
        || old.role != new.role
        || old.status.addr != new.status.addr
        || old.description != new.description
}

/// Something that decides which tasks a service has.
pub(crate) fn service_matters(old: &Service, new: &Service) -> bool {
    old.spec != new.spec
        || old.spec_version != new.spec_version
        || old.update_status != new.update_status
        || old.job_status != new.job_status
        || old.pending_delete != new.pending_delete
}

/// The task is on a node that can't keep it.
pub(crate) fn is_stranded(tables: &Tables, task: &Task) -> bool {
    !task.node_id.is_empty() && loses_tasks(tables.nodes().get(&task.node_id))
}
