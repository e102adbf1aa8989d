//! How fast an update goes, and how much of it may fail.

use std::time::Duration;

use swarm_api::duration;
use swarm_api::v1::update_config::{FailureAction, UpdateOrder};
use swarm_api::v1::{Service, UpdateConfig};

use crate::place::is_rolling_back;

const MONITOR: Duration = Duration::from_secs(5);

/// An update's pace, with the defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pace {
    /// `None`: everything at once.
    parallelism: Option<usize>,
    pub(crate) delay: Duration,
    pub(crate) monitor: Duration,
    pub(super) action: FailureAction,
    ratio: f32,
    order: UpdateOrder,
}

/// What says the pace of the service's update, or of its rollback if it goes back.
pub(crate) fn config_of(service: &Service) -> UpdateConfig {
    let spec = &service.spec;
    let config = if is_rolling_back(service) { spec.rollback } else { spec.update };
    config.unwrap_or(UpdateConfig { parallelism: 1, ..Default::default() })
}

impl Pace {
    pub(crate) fn of(service: &Service) -> Pace {
        let config = config_of(service);
        Pace {
            parallelism: usize::try_from(config.parallelism).ok().filter(|p| *p > 0),
            delay: duration::to_std(&config.delay),
            monitor: config.monitor.as_ref().map_or(MONITOR, duration::to_std),
            action: config.failure_action(),
            ratio: config.max_failure_ratio,
            order: config.order(),
        }
    }

    /// Another place may be begun beside so many.
    pub(crate) fn has_room(&self, at_work: usize) -> bool {
        self.parallelism.is_none_or(|most| at_work < most)
    }

    pub(crate) fn start_first(&self) -> bool {
        self.order == UpdateOrder::StartFirst
    }

    /// So many failures of so many places are too many.
    pub(crate) fn is_exceeded(&self, failed: usize, total: usize) -> bool {
        self.action != FailureAction::Continue
            && failed > 0
            && failed as f32 / total.max(1) as f32 > self.ratio
    }

    /// How long the last tasks are watched after everything is replaced.
    pub(super) fn aftermath(&self) -> Duration {
        if self.delay >= self.monitor { self.delay + Duration::from_secs(1) } else { self.monitor }
    }
}
