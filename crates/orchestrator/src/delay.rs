//! Tasks held in READY until a delay is over and the tasks they replace have stopped (`orchestration.md` §7.4).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a replacement waits for its predecessor to stop.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Start {
    /// End of the delay.
    at: Duration,
    /// Predecessors that may still run, waited for until this time.
    waits: BTreeSet<String>,
    until: Duration,
    /// The held task has ended already: replace it instead of letting it go.
    restart: bool,
}

impl Start {
    fn due(&self) -> Duration {
        if self.waits.is_empty() { self.at } else { self.at.max(self.until) }
    }
}

/// Tasks held back, with timers on the monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct Delays {
    starts: BTreeMap<String, Start>,
    timers: BTreeSet<(Duration, String)>,
    /// Who waits for a predecessor.
    waiting: BTreeMap<String, BTreeSet<String>>,
}

/// A task whose delay is over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) task: String,
    /// It ended while it was held.
    pub(crate) restart: bool,
}

impl Delays {
    /// Holds a task for `delay`, and until these predecessors have stopped: for a minute at most, which begins
    /// now, or with the end of a delay that is longer.
    pub(crate) fn hold(
        &mut self,
        task: &str,
        now: Duration,
        delay: Duration,
        waits: impl IntoIterator<Item = String>,
    ) {
        self.cancel(task);
        let at = now + delay;
        let until = if delay < STOP_TIMEOUT { now + STOP_TIMEOUT } else { at + STOP_TIMEOUT };
        let start = Start { at, waits: waits.into_iter().collect(), until, restart: false };
        for old in &start.waits {
            self.waiting.entry(old.clone()).or_default().insert(task.to_owned());
        }
        self.timers.insert((start.due(), task.to_owned()));
        self.starts.insert(task.to_owned(), start);
    }

    /// A held task must wait for one more predecessor, which may run after all.
    pub(crate) fn wait_for(&mut self, task: &str, old: &str) {
        let Some(start) = self.starts.get_mut(task) else { return };
        self.timers.remove(&(start.due(), task.to_owned()));
        start.waits.insert(old.to_owned());
        self.timers.insert((start.due(), task.to_owned()));
        self.waiting.entry(old.to_owned()).or_default().insert(task.to_owned());
    }

    /// The task is held.
    pub(crate) fn holds(&self, task: &str) -> bool {
        self.starts.contains_key(task)
    }

    /// How long the delay of a task still is; zero if the task is not held.
    pub(crate) fn left(&self, task: &str, now: Duration) -> Duration {
        self.starts.get(task).map_or(Duration::ZERO, |start| start.at.saturating_sub(now))
    }

    pub(crate) fn cancel(&mut self, task: &str) {
        let Some(start) = self.starts.remove(task) else { return };
        self.timers.remove(&(start.due(), task.to_owned()));
        for old in &start.waits {
            if let Some(waiting) = self.waiting.get_mut(old) {
                waiting.remove(task);
                if waiting.is_empty() {
                    self.waiting.remove(old);
                }
            }
        }
    }

    /// Remembers that a held task has ended. False if the task is not held.
    pub(crate) fn restart_when_due(&mut self, task: &str) -> bool {
        match self.starts.get_mut(task) {
            Some(start) => {
                start.restart = true;
                true
            }
            None => false,
        }
    }

    /// A predecessor has stopped, is gone, or its node is: nobody need wait for it.
    pub(crate) fn stopped(&mut self, old: &str) {
        for task in self.waiting.remove(old).unwrap_or_default() {
            if let Some(start) = self.starts.get_mut(&task) {
                self.timers.remove(&(start.due(), task.clone()));
                start.waits.remove(old);
                self.timers.insert((start.due(), task));
            }
        }
    }

    /// Takes out everything that is due.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<Due> {
        let mut due = Vec::new();
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, task)) = self.timers.pop_first() else { break };
            let restart = self.starts.get(&task).is_some_and(|s| s.restart);
            self.cancel(&task);
            due.push(Due { task, restart });
        }
        due
    }

    pub(crate) fn next(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn due(delays: &mut Delays, at: u64) -> Vec<String> {
        delays.due(secs(at)).into_iter().map(|d| d.task).collect()
    }

    #[test]
    fn a_task_is_held_for_its_delay() {
        let mut delays = Delays::default();
        delays.hold("new", secs(10), secs(5), []);
        assert_eq!(delays.next(), Some(secs(15)));
        assert!(due(&mut delays, 14).is_empty());
        assert_eq!(due(&mut delays, 15), ["new"]);
        assert_eq!(delays.next(), None);
    }

    #[test]
    fn a_predecessor_that_stops_early_does_not_shorten_the_delay() {
        let mut delays = Delays::default();
        delays.hold("new", secs(0), secs(5), ["old".into()]);
        delays.stopped("old");
        assert_eq!(delays.next(), Some(secs(5)));
    }

    #[test]
    fn a_predecessor_that_is_back_is_waited_for_no_longer_than_any_other() {
        let mut delays = Delays::default();
        delays.hold("new", secs(0), secs(5), []);
        delays.wait_for("new", "old");
        delays.wait_for("other", "old");
        assert!(due(&mut delays, 59).is_empty());
        assert_eq!(due(&mut delays, 60), ["new"]);
        assert!(delays.waiting.is_empty() && delays.next().is_none());
    }

    #[test]
    fn a_predecessor_that_stops_late_lets_go_at_once() {
        let mut delays = Delays::default();
        delays.hold("new", secs(0), secs(5), ["old".into(), "older".into()]);
        delays.stopped("old");
        assert!(due(&mut delays, 30).is_empty());
        delays.stopped("older");
        assert_eq!(due(&mut delays, 30), ["new"]);
    }

    #[test]
    fn a_predecessor_that_never_stops_is_waited_for_one_minute() {
        let mut delays = Delays::default();
        delays.hold("new", secs(0), secs(5), ["old".into()]);
        assert_eq!(delays.next(), Some(secs(60)));
    }

    /// `orchestration.md` §20.10: both clocks began together, so that a long delay skipped the wait.
    #[test]
    fn a_delay_beyond_a_minute_does_not_skip_the_wait() {
        let mut delays = Delays::default();
        delays.hold("new", secs(0), secs(100), ["old".into()]);
        assert_eq!(delays.next(), Some(secs(160)));
        delays.stopped("old");
        assert_eq!(delays.next(), Some(secs(100)));
    }

    #[test]
    fn a_task_that_ends_while_held_is_replaced_when_its_delay_is_over() {
        let mut delays = Delays::default();
        delays.hold("new", secs(0), secs(5), []);
        assert!(delays.restart_when_due("new"));
        assert!(!delays.restart_when_due("other"));
        assert_eq!(delays.due(secs(5)), [Due { task: "new".into(), restart: true }]);
    }

    #[test]
    fn a_cancelled_hold_leaves_nothing_behind() {
        let mut delays = Delays::default();
        delays.hold("new", secs(0), secs(5), ["old".into()]);
        delays.cancel("new");
        assert!(delays.timers.is_empty() && delays.waiting.is_empty() && delays.starts.is_empty());
    }
}
