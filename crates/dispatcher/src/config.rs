//! What a dispatcher is told.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use swarm_api::defaults;
use swarm_api::v1::{Cluster, Peer};
use swarm_plugins::Plugins;
use tokio::sync::watch;

/// What the manager gives to its dispatcher.
#[derive(Debug, Clone)]
pub struct Config {
    /// This manager's node id; goes into `TaskStatus.applied_by`.
    pub node_id: String,
    /// All managers of the cluster, this one included: agents forget managers that are not in the list, so it
    /// must never be empty.
    pub managers: watch::Receiver<Vec<Peer>>,
    /// Where the drivers of secrets are looked for; without it, secrets with a driver are not sent.
    pub plugins: Option<Arc<Plugins>>,
    /// Periods and limits; the cluster object overrides the heartbeat period.
    pub timings: Timings,
}

/// Periods and limits.
#[derive(Debug, Clone)]
pub struct Timings {
    /// Base period of heartbeats where the cluster object names none.
    pub heartbeat_period: Duration,
    /// Each period that is answered lies within base ± this.
    pub heartbeat_jitter: Duration,
    /// Periods without a heartbeat after which a node is down.
    pub grace_periods: u32,
    /// The same for nodes that have not come back after a change of leaders.
    pub unknown_grace_periods: u32,
    /// Registrations that a node may make within [`Timings::registration_window`].
    pub registrations: u32,
    /// See [`Timings::registrations`].
    pub registration_window: Duration,
    /// After this time a node that is down loses its tasks for good.
    pub orphan_after: Duration,
    /// Reports that come within this time of a write are gathered for the next one. A report that finds
    /// nothing before it is written at once.
    pub commit_gather: Duration,
    /// Reports that wait for a write before calls with more of them have to wait as well.
    pub commit_queue: usize,
    /// Changes that come within this time of an assignments message are gathered for the next one. A change
    /// that comes later is sent at once.
    pub assignment_gather: Duration,
    /// Changes that are sent even before that.
    pub assignment_limit: usize,
}

impl Default for Timings {
    fn default() -> Self {
        Timings {
            heartbeat_period: defaults::HEARTBEAT_PERIOD,
            heartbeat_jitter: Duration::from_millis(500),
            grace_periods: 3,
            unknown_grace_periods: 6,
            registrations: 3,
            registration_window: Duration::from_secs(8),
            orphan_after: Duration::from_secs(24 * 3600),
            commit_gather: Duration::from_millis(20),
            commit_queue: 10_000,
            assignment_gather: Duration::from_millis(100),
            assignment_limit: 100,
        }
    }
}

/// Shortest and longest base period that is taken from a cluster object.
const PERIODS: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(3600);

impl Timings {
    /// The base period that a cluster wants. The contract accepts zero there, which would make agents send
    /// heartbeats without a pause: that counts as no wish.
    pub(crate) fn period(&self, cluster: Option<&Cluster>) -> Duration {
        let wanted = cluster
            .and_then(|c| c.spec.dispatcher.heartbeat_period.as_ref())
            .map(swarm_api::duration::to_std)
            .filter(|period| !period.is_zero());
        wanted.map_or(self.heartbeat_period, |period| period.clamp(*PERIODS.start(), *PERIODS.end()))
    }

    /// A period for one heartbeat, drawn from base ± jitter.
    pub(crate) fn draw(&self, base: Duration) -> Duration {
        let jitter = self.heartbeat_jitter.min(base / 2);
        if jitter.is_zero() {
            return base;
        }
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let low = nanos(base - jitter);
        Duration::from_nanos(rand::rng().random_range(low..low + 2 * nanos(jitter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_periods_lie_within_the_jitter() {
        let timings = Timings::default();
        let base = Duration::from_secs(5);
        let drawn: Vec<Duration> = (0..10_000).map(|_| timings.draw(base)).collect();
        let (low, high) = (Duration::from_millis(4500), Duration::from_millis(5500));
        assert!(drawn.iter().all(|d| *d >= low && *d < high));
        assert!(drawn.iter().any(|d| *d < Duration::from_millis(4600)));
        assert!(drawn.iter().any(|d| *d > Duration::from_millis(5400)));
    }

    #[test]
    fn a_period_of_zero_is_no_wish() {
        let timings = Timings::default();
        let mut cluster = Cluster::default();
        assert_eq!(timings.period(Some(&cluster)), Duration::from_secs(5));
        cluster.spec.dispatcher.heartbeat_period = Some(prost_types::Duration { seconds: 0, nanos: 0 });
        assert_eq!(timings.period(Some(&cluster)), Duration::from_secs(5));
        cluster.spec.dispatcher.heartbeat_period = Some(prost_types::Duration { seconds: 2, nanos: 0 });
        assert_eq!(timings.period(Some(&cluster)), Duration::from_secs(2));
    }

    #[test]
    fn a_short_period_never_becomes_zero() {
        let timings = Timings::default();
        let base = Duration::from_millis(100);
        assert!((0..1000).all(|_| timings.draw(base) >= base / 2));
    }
}
