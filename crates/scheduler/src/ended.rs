//! What the end of a task means for its node.

use std::time::{Duration, SystemTime};

use swarm_api::duration::to_system_time;
use swarm_api::v1::{Task, TaskState};
use swarm_reconcile::Now;

/// Part of the message of tasks that an enforcer rejects, ours or a peer's.
const ENFORCER: &str = "enforcer";

/// Message of tasks that the constraint enforcer rejects.
pub(crate) const REJECTED_BY_CONSTRAINTS: &str = "task rejected by constraint enforcer";

/// Message of tasks that the volume enforcer rejects.
pub(crate) const REJECTED_BY_VOLUMES: &str = "task rejected by volume enforcer";

/// Message of tasks that made room for others.
pub(crate) const PREEMPTED: &str = "task preempted by scheduler";

/// How much longer than its stop grace period a task that a manager declared ended may still run: the agent must
/// hear of it first.
const NOTICE: Duration = Duration::from_secs(10);

/// A manager, not the agent, declared the task ended; so its container may still run.
pub fn ended_by_manager(task: &Task) -> bool {
    match task.status.state() {
        TaskState::Orphaned => true,
        TaskState::Rejected => task.status.message.contains(ENFORCER) || task.status.message == PREEMPTED,
        _ => false,
    }
}

/// When a manager declared the task ended: how long its node must still reckon with it.
pub(crate) fn held_for(task: &Task, now: &Now) -> Option<Duration> {
    if !ended_by_manager(task) {
        return None;
    }
    let since = task.status.timestamp.as_ref().map_or(SystemTime::UNIX_EPOCH, to_system_time);
    let left = now.remaining(since, task.spec.stop_grace_period() + NOTICE);
    (!left.is_zero()).then_some(left)
}

/// How long ago the task failed by itself: the node may be to blame.
pub(crate) fn failed_ago(task: &Task, now: &Now) -> Option<Duration> {
    let failed = matches!(task.status.state(), TaskState::Failed | TaskState::Rejected);
    if !failed || ended_by_manager(task) {
        return None;
    }
    let at = task.status.applied_at.as_ref().or(task.status.timestamp.as_ref());
    Some(
        at.map_or(Duration::ZERO, |at| now.wall.duration_since(to_system_time(at)).unwrap_or(Duration::ZERO)),
    )
}
