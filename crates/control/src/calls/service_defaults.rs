//! What a service's spec means where it says nothing; inserted into answers on demand, never stored.

use prost_types::Duration;
use swarm_api::v1::restart_policy::RestartCondition;
use swarm_api::v1::{RestartPolicy, ServiceSpec, UpdateConfig, task_spec};
use swarm_api::{defaults, duration};

fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

/// Time for which the tasks of an update are watched after they run.
const MONITOR: i64 = 5;

/// Writes the effective values into the spec.
pub(super) fn insert(spec: &mut ServiceSpec) {
    let task = &mut *spec.task;
    if let Some(task_spec::Runtime::Container(container)) = &mut task.runtime {
        container.stop_grace_period.get_or_insert_with(|| duration::from_std(defaults::STOP_GRACE_PERIOD));
        container.pull_options.get_or_insert_default();
        container.dns_config.get_or_insert_default();
    }
    task.resources.get_or_insert_default();
    let delay = duration::from_std(defaults::RESTART_DELAY);
    match &mut task.restart {
        Some(policy) => _ = policy.delay.get_or_insert(delay),
        None => {
            task.restart = Some(RestartPolicy {
                condition: RestartCondition::Any as i32,
                delay: Some(delay),
                ..Default::default()
            });
        }
    }
    task.placement.get_or_insert_default();
    update(&mut spec.update);
    update(&mut spec.rollback);
}

fn update(config: &mut Option<UpdateConfig>) {
    match config {
        Some(config) => _ = config.monitor.get_or_insert(seconds(MONITOR)),
        // Pause on failure and stop-first are the zero values.
        None => {
            *config =
                Some(UpdateConfig { parallelism: 1, monitor: Some(seconds(MONITOR)), ..Default::default() });
        }
    }
}
