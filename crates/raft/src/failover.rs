//! When a leader counts as gone before an election timeout has passed, and who takes over then.
//!
//! Plain rules: what was seen comes in with its time. What they decide can cost an election, but never data: votes are
//! given as always.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::storage::Position;

/// Between two looks at a port that refuses.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A port is closed when it has refused so often in a row,
const REFUSALS: u32 = 3;
/// over so long a time.
const REFUSED_FOR: Duration = Duration::from_millis(300);
/// How much later than the one before each member in the order of succession asks for votes.
const STAGGER: Duration = Duration::from_millis(500);

/// What was heard of leaders: tells one that is gone from one to which a single way is cut.
#[derive(Debug)]
pub(crate) struct Heard {
    count: AtomicU64,
    last: Mutex<Instant>,
}

impl Default for Heard {
    fn default() -> Heard {
        Heard { count: AtomicU64::new(0), last: Mutex::new(Instant::now()) }
    }
}

impl Heard {
    /// A leader's message came.
    pub(crate) fn note(&self) {
        *self.last.lock() = Instant::now();
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// Messages so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// When the last one came, or when this member began to listen.
    pub(crate) fn last(&self) -> Instant {
        *self.last.lock()
    }
}

/// Refusals of a leader's port, in a row and without a message of it in between.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    count: u32,
    since: Option<Instant>,
    heard: u64,
}

impl Refusals {
    /// The port refused a connection. `heard` is the number of messages heard of the leader so far.
    pub(crate) fn refused(&mut self, now: Instant, heard: u64) {
        if self.heard != heard {
            *self = Refusals { heard, ..Refusals::default() };
        }
        self.since.get_or_insert(now);
        self.count += 1;
    }

    /// The port answered, or nobody knows.
    pub(crate) fn answered(&mut self) {
        *self = Refusals::default();
    }

    /// The port is closed; with the number of messages that were heard before it was.
    pub(crate) fn closed(&self, now: Instant) -> Option<u64> {
        let since = self.since?;
        let closed = self.count >= REFUSALS && now.duration_since(since) >= REFUSED_FOR;
        closed.then_some(self.heard)
    }
}

/// A doubt about a leader, as of which nothing may have changed when this member asks for votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Doubt {
    pub(crate) leader: u64,
    pub(crate) term: u64,
    /// Messages heard of leaders when it arose.
    pub(crate) heard: u64,
}

/// Where a member stands, as its raft thread says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) raft_id: u64,
    pub(crate) term: u64,
    pub(crate) leader: u64,
    pub(crate) leads: bool,
    /// Its last entry.
    pub(crate) last: Position,
    /// It may become leader.
    pub(crate) electable: bool,
}

/// How long a member waits before it asks for votes, given itself and the others that take the leader for gone; `None` if
/// it must not. The one with the best log begins, for it is the one that wins for certain; each further one begins only
/// when those before it have let their time pass.
pub(crate) fn delay(own: &Standing, others: &[Standing]) -> Option<Duration> {
    let order = |s: &Standing| (s.last.term, s.last.index, std::cmp::Reverse(s.raft_id));
    let before = others.iter().filter(|other| other.electable && order(other) > order(own)).count();
    own.electable.then(|| STAGGER * u32::try_from(before).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(begin: Instant, ms: u64) -> Instant {
        begin + Duration::from_millis(ms)
    }

    #[test]
    fn a_port_is_closed_after_several_refusals_over_some_time() {
        let begin = Instant::now();
        let cases: [(&[u64], u64, bool); 5] = [
            (&[], 1000, false),
            (&[0], 1000, false),
            (&[0, 400], 400, false),
            (&[0, 1, 2, 3], 3, false),
            (&[0, 150, 300], 300, true),
        ];
        for (refused, now, closed) in cases {
            let mut refusals = Refusals::default();
            refused.iter().for_each(|ms| refusals.refused(at(begin, *ms), 7));
            assert_eq!(refusals.closed(at(begin, now)), closed.then_some(7), "{refused:?}");
        }
    }

    #[test]
    fn an_answer_or_a_message_begins_the_count_anew() {
        let begin = Instant::now();
        let mut refusals = Refusals::default();
        [0, 150].iter().for_each(|ms| refusals.refused(at(begin, *ms), 7));
        refusals.answered();
        refusals.refused(at(begin, 300), 7);
        assert_eq!(refusals.closed(at(begin, 900)), None);
        [450, 600].iter().for_each(|ms| refusals.refused(at(begin, *ms), 7));
        assert_eq!(refusals.closed(at(begin, 600)), Some(7));
        refusals.refused(at(begin, 700), 8);
        assert_eq!(refusals.closed(at(begin, 2000)), None);
    }

    fn standing(raft_id: u64, term: u64, index: u64) -> Standing {
        let last = Position { term, index };
        Standing { raft_id, term: 9, leader: 1, leads: false, last, electable: true }
    }

    #[test]
    fn the_best_log_begins_and_equal_ones_by_raft_id() {
        let own = standing(5, 3, 10);
        let wait = |others: &[Standing]| delay(&own, others).map(|d| d.as_millis());
        assert_eq!(wait(&[]), Some(0));
        assert_eq!(wait(&[standing(6, 3, 10), standing(4, 3, 9), standing(3, 2, 99)]), Some(0));
        assert_eq!(wait(&[standing(4, 3, 10)]), Some(500), "an equal log and a lower id");
        assert_eq!(wait(&[standing(6, 3, 11), standing(7, 4, 1)]), Some(1000), "longer, and of a later term");
        assert_eq!(wait(&[Standing { electable: false, ..standing(6, 3, 11) }]), Some(0));
        assert_eq!(delay(&Standing { electable: false, ..own }, &[]), None);
    }
}
