//! The search for an order: the algorithm of Wing and Gong, with the memory of Lowe's ("Testing for linearizability",
//! 2017), as Porcupine does it.
//!
//! It takes effect after effect, as long as each gives the answer that was heard, and goes back where it can't go on. What
//! it has tried it remembers as the set of operations that have taken effect and the state that they led to.
//!
//! Operations with an unknown outcome are *optional*: they may take effect anywhere after their call, or never. They are
//! tried only where nothing else can go on, and only if they change something.
//!
//! Two rules keep the search short, and lose nothing. A read that can be taken is taken, with no way back to its
//! alternatives: in any order that goes on otherwise, it could as well stand here. And a model may refuse what it knows to
//! be wrong later: see [`Model::step`].

use std::collections::HashSet;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// What the operations work on.
pub(super) trait Model {
    type State: Clone + Eq + Hash;
    type Op;

    fn init(&self) -> Self::State;

    /// The operation never changes anything.
    fn reads(&self, op: &Self::Op) -> bool;

    /// The state after the operation took effect, if that can have led to its answer. Operations that begin after
    /// `frontier` have not taken effect yet: if the new state would make one of them impossible for ever, so is this.
    fn step(&self, state: &Self::State, op: &Self::Op, frontier: u64) -> Option<Self::State>;
}

/// One operation of the history.
#[derive(Debug, Clone)]
pub(super) struct Entry<O> {
    pub(super) op: O,
    /// Which one it is, for the caller.
    pub(super) number: usize,
    pub(super) called: u64,
    /// `None` if the outcome is unknown.
    pub(super) returned: Option<u64>,
}

/// What a search may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest time.
    pub time: Duration,
    /// Most configurations (what has taken effect, and the state) that are remembered. One takes 100 to 500 bytes.
    pub configurations: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { time: Duration::from_secs(120), configurations: 5_000_000 }
    }
}

/// How a search ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found<S> {
    /// This order of the numbers explains everything.
    Order(Vec<usize>),
    /// No order does.
    Nothing(Stuck<S>),
    /// It took too long, or too much memory.
    GaveUp,
}

/// The farthest point that a search came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stuck<S> {
    /// The last operations that had taken effect, oldest first.
    pub(super) last: Vec<usize>,
    /// The state that they led to.
    pub(super) state: S,
    /// Operations that should have come next; at most one of them has to.
    pub(super) next: Vec<usize>,
}

/// Operations of [`Stuck::last`] at most.
const LAST: usize = 12;
/// Steps between two looks at the clock.
const LOOK: u64 = 4096;

/// Looks for an order of the entries.
pub(super) fn search<M: Model>(model: &M, entries: &[Entry<M::Op>], limits: Limits) -> Found<M::State> {
    Search::new(model, entries).run(limits)
}

/// A set of numbers.
#[derive(Debug, Clone, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: usize) -> Bits {
        Bits(vec![0; len.div_ceil(64)])
    }

    fn set(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn clear(&mut self, at: usize) {
        self.0[at / 64] &= !(1 << (at % 64));
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] & 1 << (at % 64) != 0
    }
}

/// What has taken effect, and the state that it led to. Of the definite operations only the words between those that are
/// all ones and those that are all zeros are kept.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Configuration<S> {
    full: usize,
    definite: Box<[u64]>,
    optional: Box<[u64]>,
    state: S,
}

/// Begins and ends of the definite operations that have not taken effect, in their order: a doubly linked list in arrays.
/// Node `2i` is the begin of the definite operation `i`, node `2i + 1` its end; the last node is before the first.
struct Events {
    next: Vec<usize>,
    previous: Vec<usize>,
    head: usize,
}

impl Events {
    fn new(times: &[(u64, u64)]) -> Events {
        let head = times.len() * 2;
        let mut order: Vec<usize> = (0..head).collect();
        order.sort_by_key(|node| {
            let (called, returned) = times[node / 2];
            // Nothing begins and ends at the same place; if it did, it would overlap with what touches it.
            if node % 2 == 0 { (called, 0) } else { (returned, 1) }
        });
        let mut events = Events { next: vec![head; head + 1], previous: vec![head; head + 1], head };
        let mut last = head;
        for node in order {
            events.next[last] = node;
            events.previous[node] = last;
            last = node;
        }
        events.next[last] = head;
        events.previous[head] = last;
        events
    }

    fn first(&self) -> usize {
        self.next[self.head]
    }

    fn unlink(&mut self, node: usize) {
        let (previous, next) = (self.previous[node], self.next[node]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn relink(&mut self, node: usize) {
        let (previous, next) = (self.previous[node], self.next[node]);
        self.next[previous] = node;
        self.previous[next] = node;
    }

    /// Takes an operation out.
    fn lift(&mut self, op: usize) {
        self.unlink(2 * op);
        self.unlink(2 * op + 1);
    }

    /// Undoes the last [`Events::lift`] that was not undone.
    fn unlift(&mut self, op: usize) {
        self.relink(2 * op + 1);
        self.relink(2 * op);
    }
}

enum Step {
    /// A definite operation that is no read.
    Definite(usize),
    Optional(usize),
    Read(usize),
}

struct Search<'a, M: Model> {
    model: &'a M,
    definite: Vec<&'a Entry<M::Op>>,
    optional: Vec<&'a Entry<M::Op>>,
    events: Events,
    done: Bits,
    /// Words of `done` that are full, from the first on.
    full: usize,
    applied: Bits,
    state: M::State,
    stack: Vec<(Step, M::State)>,
    tried: HashSet<Configuration<M::State>>,
    farthest: usize,
    stuck: Stuck<M::State>,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, entries: &'a [Entry<M::Op>]) -> Self {
        let (mut definite, mut optional): (Vec<_>, Vec<_>) =
            entries.iter().partition(|e| e.returned.is_some());
        definite.sort_by_key(|entry| entry.called);
        optional.sort_by_key(|entry| entry.called);
        let times: Vec<_> =
            definite.iter().map(|entry| (entry.called, entry.returned.unwrap_or(u64::MAX))).collect();
        let state = model.init();
        Search {
            model,
            events: Events::new(&times),
            done: Bits::new(definite.len()),
            full: 0,
            applied: Bits::new(optional.len()),
            stack: Vec::new(),
            tried: HashSet::new(),
            farthest: 0,
            stuck: Stuck { last: Vec::new(), state: state.clone(), next: Vec::new() },
            definite,
            optional,
            state,
        }
    }

    fn run(mut self, limits: Limits) -> Found<M::State> {
        let end = Instant::now() + limits.time;
        let mut steps = 0_u64;
        self.take_reads();
        let mut node = self.events.first();
        while self.events.first() != self.events.head {
            steps += 1;
            if self.tried.len() >= limits.configurations
                || (steps.is_multiple_of(LOOK) && Instant::now() >= end)
            {
                return Found::GaveUp;
            }
            if node.is_multiple_of(2) {
                node =
                    if self.take_definite(node / 2) { self.events.first() } else { self.events.next[node] };
                continue;
            }
            // This one has returned, so it must have taken effect before anything else that is left.
            self.note_stuck(node / 2);
            let mut from = 0;
            loop {
                if self.take_optional(from, self.frontier()) {
                    node = self.events.first();
                    break;
                }
                match self.back() {
                    None => return Found::Nothing(self.stuck),
                    Some(Step::Definite(op)) => {
                        node = self.events.next[2 * op];
                        break;
                    }
                    Some(Step::Optional(op)) => from = op + 1,
                    // It was to be taken in any case.
                    Some(Step::Read(_)) => from = self.optional.len(),
                }
            }
        }
        let order = self.stack.iter().map(|(step, _)| self.number(step)).collect();
        Found::Order(order)
    }

    fn number(&self, step: &Step) -> usize {
        match step {
            Step::Definite(op) | Step::Read(op) => self.definite[*op].number,
            Step::Optional(op) => self.optional[*op].number,
        }
    }

    /// The first end of those that are left: nothing that begins later can be next.
    fn frontier(&self) -> u64 {
        let mut node = self.events.first();
        while node.is_multiple_of(2) && node != self.events.head {
            node = self.events.next[node];
        }
        if node == self.events.head { u64::MAX } else { self.definite[node / 2].returned.unwrap_or(u64::MAX) }
    }

    fn take_definite(&mut self, op: usize) -> bool {
        let entry = self.definite[op];
        if self.model.reads(&entry.op) {
            return false; // it would have been taken
        }
        let Some(next) = self.model.step(&self.state, &entry.op, self.frontier()) else { return false };
        self.done.set(op);
        if !self.remember(&next) {
            self.done.clear(op);
            return false;
        }
        self.lift(op);
        self.stack.push((Step::Definite(op), std::mem::replace(&mut self.state, next)));
        self.take_reads();
        true
    }

    fn lift(&mut self, op: usize) {
        self.done.set(op);
        while self.done.0.get(self.full) == Some(&u64::MAX) {
            self.full += 1;
        }
        self.events.lift(op);
    }

    /// Takes every read that can be next.
    fn take_reads(&mut self) {
        let (mut node, mut frontier) = (self.events.first(), self.frontier());
        while node.is_multiple_of(2) && node != self.events.head {
            let op = node / 2;
            let entry = self.definite[op];
            if !self.model.reads(&entry.op) || self.model.step(&self.state, &entry.op, frontier).is_none() {
                node = self.events.next[node];
                continue;
            }
            self.lift(op);
            self.stack.push((Step::Read(op), self.state.clone()));
            (node, frontier) = (self.events.first(), self.frontier());
        }
    }

    /// Takes the first optional operation from `from` on that is of use, was called before the frontier, and leads to
    /// something new.
    fn take_optional(&mut self, from: usize, frontier: u64) -> bool {
        for op in from..self.optional.len() {
            if self.optional[op].called > frontier {
                return false;
            }
            if self.applied.has(op) {
                continue;
            }
            let Some(next) = self.model.step(&self.state, &self.optional[op].op, frontier) else { continue };
            if next == self.state {
                continue;
            }
            self.applied.set(op);
            if self.remember(&next) {
                self.stack.push((Step::Optional(op), std::mem::replace(&mut self.state, next)));
                self.take_reads();
                return true;
            }
            self.applied.clear(op);
        }
        false
    }

    /// This configuration was not there before.
    fn remember(&mut self, state: &M::State) -> bool {
        let words = &self.done.0[self.full..];
        let used = words.iter().rposition(|word| *word != 0).map_or(0, |at| at + 1);
        let mut full = self.full;
        // The one that is about to be taken may have filled some.
        let filled = words[..used].iter().take_while(|word| **word == u64::MAX).count();
        full += filled;
        self.tried.insert(Configuration {
            full,
            definite: words[filled..used].into(),
            optional: self.applied.0.as_slice().into(),
            state: state.clone(),
        })
    }

    fn back(&mut self) -> Option<Step> {
        let (step, state) = self.stack.pop()?;
        self.state = state;
        match step {
            Step::Definite(op) | Step::Read(op) => {
                self.done.clear(op);
                self.full = self.full.min(op / 64);
                self.events.unlift(op);
            }
            Step::Optional(op) => self.applied.clear(op),
        }
        Some(step)
    }

    fn note_stuck(&mut self, blocked: usize) {
        let depth = self.stack.len() + 1;
        if depth <= self.farthest {
            return;
        }
        self.farthest = depth;
        let from = self.stack.len().saturating_sub(LAST);
        let last = self.stack[from..].iter().map(|(step, _)| self.number(step)).collect();
        let mut next = vec![self.definite[blocked].number];
        let mut node = self.events.first();
        while node.is_multiple_of(2) {
            if node / 2 != blocked {
                next.push(self.definite[node / 2].number);
            }
            node = self.events.next[node];
        }
        self.stuck = Stuck { last, state: self.state.clone(), next };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register: writes, and reads of what it holds.
    struct Register;

    #[derive(Clone, Copy)]
    enum Op {
        Write(u8),
        Read(u8),
    }

    impl Model for Register {
        type State = u8;
        type Op = Op;

        fn init(&self) -> u8 {
            0
        }

        fn reads(&self, op: &Op) -> bool {
            matches!(op, Op::Read(_))
        }

        fn step(&self, state: &u8, op: &Op, _frontier: u64) -> Option<u8> {
            match op {
                Op::Write(value) => Some(*value),
                Op::Read(value) => (state == value).then_some(*state),
            }
        }
    }

    fn entries(ops: &[(Op, u64, Option<u64>)]) -> Vec<Entry<Op>> {
        let entry = |(number, (op, called, returned)): (usize, &(Op, u64, Option<u64>))| Entry {
            op: *op,
            number,
            called: *called,
            returned: *returned,
        };
        ops.iter().enumerate().map(entry).collect()
    }

    fn check(ops: &[(Op, u64, Option<u64>)]) -> Found<u8> {
        search(&Register, &entries(ops), Limits::default())
    }

    #[test]
    fn concurrent_operations_may_take_effect_in_any_order() {
        let found = check(&[
            (Op::Write(1), 0, Some(10)),
            (Op::Read(0), 1, Some(2)),
            (Op::Read(1), 3, Some(4)),
            (Op::Write(2), 11, Some(12)),
            (Op::Read(2), 13, Some(14)),
        ]);
        assert_eq!(found, Found::Order(vec![1, 0, 2, 3, 4]));
    }

    #[test]
    fn what_has_returned_has_taken_effect() {
        let found = check(&[(Op::Write(1), 0, Some(1)), (Op::Read(0), 2, Some(3))]);
        assert_eq!(found, Found::Nothing(Stuck { last: vec![0], state: 1, next: vec![1] }));
    }

    #[test]
    fn an_unknown_outcome_explains_what_was_seen_later_but_not_earlier() {
        let late = [(Op::Write(1), 0, None), (Op::Read(0), 2, Some(3)), (Op::Read(1), 4, Some(5))];
        assert_eq!(check(&late), Found::Order(vec![1, 0, 2]));
        let never = [(Op::Write(1), 0, None), (Op::Read(0), 2, Some(3))];
        assert_eq!(check(&never), Found::Order(vec![1]));
        let early = [(Op::Read(1), 2, Some(3)), (Op::Write(1), 4, None)];
        assert!(matches!(check(&early), Found::Nothing(_)));
        // It takes effect once.
        let twice = [
            (Op::Write(1), 0, None),
            (Op::Read(1), 1, Some(2)),
            (Op::Write(2), 3, Some(4)),
            (Op::Read(2), 5, Some(6)),
            (Op::Read(1), 7, Some(8)),
        ];
        assert!(matches!(check(&twice), Found::Nothing(_)));
    }

    #[test]
    fn a_search_that_takes_too_much_gives_up() {
        let writes = (0..12).map(|value| (Op::Write(value), u64::from(value), Some(100)));
        let ops: Vec<_> = writes.chain([(Op::Read(99), 101, Some(102))]).collect();
        let entries = entries(&ops);
        let limits = Limits { configurations: 100, ..Limits::default() };
        assert_eq!(search(&Register, &entries, limits), Found::GaveUp);
        assert!(matches!(search(&Register, &entries, Limits::default()), Found::Nothing(_)));
    }
}
