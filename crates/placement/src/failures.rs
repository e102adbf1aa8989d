//! How often services failed on a node lately.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How long a failure counts against a node.
pub const FAILURE_WINDOW: Duration = Duration::from_secs(5 * 60);
/// Number of failures within the window from which on a node is avoided.
pub const FAILURE_LIMIT: usize = 5;
/// More failures than this of one service on one node are not told apart.
const KEPT: usize = 64;

/// Failures of the services on one node. A new version of a service's spec starts with a clean record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failures {
    /// When each failure stops counting, oldest first, on the monotonic clock.
    expiries: BTreeMap<(Arc<str>, u64), VecDeque<Duration>>,
}

impl Failures {
    /// Takes note of a failure that happened `ago`, and says how many count now.
    pub fn record(&mut self, service: &str, version: u64, now: Duration, ago: Duration) -> usize {
        self.expiries.retain(|_, expiries| {
            expiries.retain(|expiry| *expiry > now);
            !expiries.is_empty()
        });
        let Some(left) = FAILURE_WINDOW.checked_sub(ago).filter(|left| !left.is_zero()) else {
            return self.count(service, version, now);
        };
        let expiries = self.expiries.entry((service.into(), version)).or_default();
        let expiry = now + left;
        let at = expiries.partition_point(|e| *e <= expiry);
        expiries.insert(at, expiry);
        if expiries.len() > KEPT {
            expiries.pop_front();
        }
        expiries.len()
    }

    /// How many failures of this version of the service count now.
    pub fn count(&self, service: &str, version: u64, now: Duration) -> usize {
        if self.expiries.is_empty() {
            return 0;
        }
        let expiries = self.expiries.get(&(Arc::from(service), version));
        expiries.map_or(0, |expiries| expiries.len() - expiries.partition_point(|e| *e <= now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn minutes(n: u64) -> Duration {
        Duration::from_secs(60 * n)
    }

    #[test]
    fn a_failure_counts_for_five_minutes() {
        let mut failures = Failures::default();
        assert_eq!(failures.record("s", 1, minutes(10), Duration::ZERO), 1);
        assert_eq!(failures.record("s", 1, minutes(12), Duration::ZERO), 2);
        assert_eq!(failures.count("s", 1, minutes(14)), 2);
        assert_eq!(failures.count("s", 1, minutes(15)), 1);
        assert_eq!(failures.count("s", 1, minutes(17)), 0);
    }

    #[test]
    fn a_failure_seen_late_counts_from_when_it_happened() {
        let mut failures = Failures::default();
        failures.record("s", 1, minutes(1), minutes(3));
        assert_eq!(failures.count("s", 1, minutes(2)), 1);
        assert_eq!(failures.count("s", 1, minutes(3)), 0);
        assert_eq!(failures.record("s", 1, minutes(4), minutes(6)), 0);
    }

    #[test]
    fn versions_and_services_have_their_own_records() {
        let mut failures = Failures::default();
        failures.record("s", 1, minutes(1), Duration::ZERO);
        assert_eq!(failures.count("s", 2, minutes(1)), 0);
        assert_eq!(failures.count("t", 1, minutes(1)), 0);
    }

    #[test]
    fn records_that_are_over_are_dropped() {
        let mut failures = Failures::default();
        for _ in 0..1000 {
            failures.record("s", 1, minutes(1), Duration::ZERO);
        }
        assert_eq!(failures.count("s", 1, minutes(1)), KEPT);
        failures.record("t", 1, minutes(10), Duration::ZERO);
        assert_eq!(failures.expiries.len(), 1);
    }
}
