//! What the tests of orchestrators share.
#![allow(clippy::unwrap_used)]
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::time::{Duration, SystemTime};

use swarm_api::Shared;
use swarm_api::v1::restart_policy::RestartCondition;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{RestartPolicy, Service, Task, TaskSpec, TaskState, TaskStatus, UpdateStatus};
use swarm_orchestrator::Reaper;
use swarm_reconcile::Reconciler;
use swarm_reconcile::sim::{AnyAllocator, AnyScheduler};
pub use swarm_reconcile::sim::{Sim, node, service};

pub const fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

pub const fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Everything that a leader runs, with a simple allocator and scheduler.
pub fn everything() -> Vec<Box<dyn Reconciler>> {
    let mut all = alone();
    all.push(Box::<AnyAllocator>::default());
    all.push(Box::<AnyScheduler>::default());
    all.push(Box::<Reaper>::default());
    all
}

/// What a manager runs.
pub fn leader() -> Vec<Box<dyn Reconciler>> {
    swarm_dry_run::reconcilers()
}

/// What `UpdateService` makes of a service when it is asked to roll it back. It must have a spec to go back to.
pub fn rolled_back(service: &mut Service, now: SystemTime) {
    let previous = service.previous_spec.take().unwrap();
    service.previous_spec = Some(std::mem::replace(&mut service.spec, previous));
    std::mem::swap(&mut service.spec_version, &mut service.previous_spec_version);
    // Jobs have no updates.
    service.update_status = service.job_status.is_none().then(|| UpdateStatus {
        state: UpdateState::RollbackStarted as i32,
        message: "manually requested rollback".into(),
        started_at: Some(now.into()),
        completed_at: None,
    });
}

/// The orchestrators alone: nobody allocates, schedules, runs or forgets their tasks.
pub fn alone() -> Vec<Box<dyn Reconciler>> {
    swarm_orchestrator::reconcilers()
}

/// A cluster of three nodes with a leader and one service.
pub fn cluster(service: Service) -> Sim {
    let mut sim = Sim::new(|tx| {
        for id in ["n1", "n2", "n3"] {
            tx.create(node(id)).unwrap();
        }
    });
    sim.lead(everything());
    sim.write(|tx| drop(tx.create(service.clone()).unwrap()));
    sim.settle();
    sim
}

pub fn policy(condition: RestartCondition) -> RestartPolicy {
    RestartPolicy { condition: condition as i32, ..Default::default() }
}

pub fn wire(duration: Duration) -> Option<prost_types::Duration> {
    Some(swarm_api::duration::from_std(duration))
}

/// A service with a restart policy.
pub fn with_restart(mut service: Service, restart: RestartPolicy) -> Service {
    service.spec.task = TaskSpec { restart: Some(restart), ..Default::default() }.into();
    service
}

/// A task as an earlier leader may have left it.
pub fn task(
    service: &Service,
    id: &str,
    slot: u64,
    node: &str,
    state: TaskState,
    desired: TaskState,
) -> Task {
    Task {
        id: id.into(),
        service_id: service.id.as_str().into(),
        slot,
        node_id: node.into(),
        spec: service.spec.task.clone(),
        spec_version: service.spec_version,
        status: TaskStatus { state: state as i32, ..Default::default() },
        desired_state: desired as i32,
        ..Default::default()
    }
}

pub fn states(tasks: &[Shared<Task>]) -> Vec<(u64, TaskState, TaskState)> {
    tasks.iter().map(|t| (t.slot, t.status.state(), t.desired_state())).collect()
}

pub fn slots(tasks: &[Shared<Task>]) -> Vec<u64> {
    tasks.iter().map(|t| t.slot).collect()
}
