//! When a leader counts as gone before an election timeout has passed, and who takes over then.
//!
//! Plain rules: what was seen comes in with its time. What they decide can cost an election, but never data: votes are
//! given as always.

use std::collections::BTreeMap;
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
/// How long a port that was found closed counts as closed.
const FRESH: Duration = Duration::from_secs(2);
/// Attempts after a call that was cut short that are given little time.
const URGENT: u32 = 8;
/// How much later than the one before each member in the order of succession asks for votes: longer than members differ in
/// when they come to take a leader for gone. Otherwise two may ask at once, and nobody is elected.
const STAGGER: Duration = Duration::from_secs(1);

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

/// Members whose ports this one takes for closed: as of so many messages of leaders, and when it last looked.
#[derive(Debug, Default)]
pub(crate) struct Closed(Mutex<BTreeMap<u64, (u64, Instant)>>);

impl Closed {
    /// A member's port is closed.
    pub(crate) fn note(&self, raft_id: u64, heard: u64, now: Instant) {
        self.0.lock().insert(raft_id, (heard, now));
    }

    /// It answers, or nobody knows.
    pub(crate) fn forget(&self, raft_id: u64) {
        self.0.lock().remove(&raft_id);
    }

    /// A member's port was closed a moment ago, and no leader was heard since.
    pub(crate) fn is(&self, raft_id: u64, heard: u64, now: Instant) -> bool {
        let known = self.0.lock().get(&raft_id).copied();
        known.is_some_and(|(then, at)| then == heard && now.saturating_duration_since(at) < FRESH)
    }
}

/// What came of an attempt to call a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The call was there, and has ended: as that of a process that ended, whose connections the kernel cuts short, or
    /// otherwise.
    Ended { cut_short: bool },
    /// The port refuses connections.
    Refused,
    /// Nobody answers at the address, or there is no way there.
    Silent,
    /// It was cut short before there was an answer.
    Unclear,
    /// Somebody answers.
    Answered,
}

/// The calls to one member, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    refusals: Refusals,
    failures: u32,
    /// The last call was cut short, in this term and at this address, and nobody has answered since.
    cut: Option<(u64, String)>,
}

impl Calls {
    /// What came of one, in this term and at this address, with the number of messages heard of leaders so far. If the member's
    /// port is closed, the number of those that were heard before it was.
    pub(crate) fn saw(&mut self, seen: Seen, now: Instant, heard: u64, term: u64, addr: &str) -> Option<u64> {
        match seen {
            Seen::Ended { cut_short } => {
                self.failures = 0;
                self.cut = cut_short.then(|| (term, addr.to_owned()));
            }
            _ => self.failures += 1,
        }
        // A process that has ended never leads its term again.
        self.cut.take_if(|cut| seen == Seen::Answered || (cut.0, &*cut.1) != (term, addr));
        match seen {
            Seen::Refused => self.refusals.refused(now, heard),
            // Where a whole host ends with its process, as a container does, there is nobody left to refuse.
            Seen::Silent if self.cut.is_some() => self.refusals.refused(now, heard),
            Seen::Unclear => {}
            _ => self.refusals.answered(),
        }
        self.refusals.closed(now)
    }

    /// Attempts in a row that failed.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// The member's process seems to have ended: whether it answers is to be known soon. One that is slow is given its time
    /// in the end.
    pub(crate) fn is_urgent(&self) -> bool {
        self.cut.is_some() && self.failures < URGENT
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

    #[test]
    fn silence_counts_after_a_call_that_was_cut_short_in_the_same_term_at_the_same_address() {
        use Seen::{Answered, Ended, Refused, Silent, Unclear};
        const CUT: Seen = Ended { cut_short: true };
        const OVER: Seen = Ended { cut_short: false };
        let cases: [(&[Seen], bool); 10] = [
            (&[CUT, Silent, Silent, Silent], true),
            (&[OVER, Silent, Silent, Silent], false),
            (&[Silent, Silent, Silent, Silent], false),
            (&[OVER, Refused, Refused, Refused], true),
            (&[CUT, Refused, Silent, Refused], true),
            (&[CUT, Silent, Unclear, Silent, Silent], true),
            (&[CUT, Unclear, Unclear, Unclear, Unclear], false),
            (&[CUT, Silent, Silent, Answered, Silent, Silent, Silent], false),
            (&[CUT, Silent, Silent, OVER, Silent, Silent, Silent], false),
            (&[CUT, Silent, Silent], false),
        ];
        for (seen, closed) in cases {
            let (mut calls, begin) = (Calls::default(), Instant::now());
            let ends =
                seen.iter().zip(0..).map(|(seen, n)| calls.saw(*seen, at(begin, 400 * n), 7, 3, "a:1"));
            assert_eq!(ends.last().flatten(), closed.then_some(7), "{seen:?}");
        }
        for (term, addr) in [(4, "a:1"), (3, "b:1")] {
            let (mut calls, begin) = (Calls::default(), Instant::now());
            assert_eq!(calls.saw(CUT, begin, 7, 3, "a:1"), None);
            assert!(calls.is_urgent());
            for n in 1..9 {
                assert_eq!(calls.saw(Silent, at(begin, 400 * n), 7, term, addr), None);
            }
            assert!(!calls.is_urgent());
        }
        let (mut calls, begin) = (Calls::default(), Instant::now());
        calls.saw(CUT, begin, 7, 3, "a:1");
        let urgent = (0..20).take_while(|n| {
            calls.saw(Silent, at(begin, 400 * n), 7, 3, "a:1");
            calls.is_urgent()
        });
        assert_eq!(urgent.count(), URGENT as usize - 1, "one that is slow gets its time");
    }

    #[test]
    fn what_is_known_of_a_port_gets_old() {
        let (closed, begin) = (Closed::default(), Instant::now());
        closed.note(1, 7, begin);
        let is = |raft_id, heard, ms| closed.is(raft_id, heard, at(begin, ms));
        assert!(is(1, 7, 0) && is(1, 7, 1999));
        assert!(!is(1, 7, 2000) && !is(1, 8, 0) && !is(2, 7, 0));
        closed.forget(1);
        assert!(!is(1, 7, 0));
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
        assert_eq!(wait(&[standing(4, 3, 10)]), Some(1000), "an equal log and a lower id");
        assert_eq!(wait(&[standing(6, 3, 11), standing(7, 4, 1)]), Some(2000), "longer, and of a later term");
        assert_eq!(wait(&[Standing { electable: false, ..standing(6, 3, 11) }]), Some(0));
        assert_eq!(delay(&Standing { electable: false, ..own }, &[]), None);
    }
}
