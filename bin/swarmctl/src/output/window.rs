//! Brings lines of several tasks into the order of their times, as far as they arrive near each other.
//!
//! Lines of one task keep their order whatever their times say. Between tasks a line waits until whatever arrives within
//! one or two ticks of it is there, or until too much waits. So what is written at the same time is shown in order, and
//! nothing waits long. Nobody can do better without holding all lines of all tasks.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Seconds and nanoseconds.
pub(crate) type Time = (i64, i32);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Window<T> {
    sources: Vec<Source<T>>,
    /// The first line of each source that has some: time, order of arrival, source.
    heads: BinaryHeap<Reverse<(Time, u64, usize)>>,
    size: usize,
    limit: usize,
    arrivals: u64,
    /// The latest time of a line that has arrived.
    latest: Time,
    /// Lines up to this time have waited long enough.
    ripe: Option<Time>,
    /// What becomes ripe with the next tick.
    ripening: Option<Time>,
}

#[derive(Debug)]
struct Source<T> {
    lines: VecDeque<(Time, u64, usize, T)>,
    /// Time of the last line that arrived.
    last: Time,
}

impl<T> Window<T> {
    /// One in which lines of so many bytes wait at most.
    pub(crate) fn new(limit: usize) -> Window<T> {
        Window {
            sources: Vec::new(),
            heads: BinaryHeap::new(),
            size: 0,
            limit,
            arrivals: 0,
            latest: (i64::MIN, 0),
            ripe: None,
            ripening: None,
        }
    }

    /// A new source; lines of one source stay in order.
    pub(crate) fn source(&mut self) -> usize {
        self.sources.push(Source { lines: VecDeque::new(), last: (i64::MIN, 0) });
        self.sources.len() - 1
    }

    /// A line has arrived.
    pub(crate) fn push(&mut self, source: usize, time: Time, size: usize, line: T) {
        let from = &mut self.sources[source];
        from.last = from.last.max(time);
        self.arrivals += 1;
        if from.lines.is_empty() {
            self.heads.push(Reverse((from.last, self.arrivals, source)));
        }
        from.lines.push_back((from.last, self.arrivals, size, line));
        self.latest = self.latest.max(from.last);
        self.size += size;
    }

    /// Some time has passed: what arrived before the last tick need not wait any longer.
    pub(crate) fn tick(&mut self) {
        self.ripe = self.ripening;
        self.ripening = Some(self.latest);
    }

    /// The next line, if one has waited long enough, or too much waits.
    pub(crate) fn next(&mut self) -> Option<(usize, T)> {
        let Reverse((time, _, _)) = self.heads.peek()?;
        if self.size > self.limit || self.ripe.is_some_and(|ripe| *time <= ripe) {
            return self.pop();
        }
        None
    }

    /// The next line, whether or not it has waited.
    pub(crate) fn pop(&mut self) -> Option<(usize, T)> {
        let mut head = self.heads.peek_mut()?;
        let Reverse((_, _, source)) = *head;
        let lines = &mut self.sources[source].lines;
        let (_, _, size, line) = lines.pop_front()?;
        match lines.front() {
            Some((time, arrival, ..)) => *head = Reverse((*time, *arrival, source)),
            None => _ = std::collections::binary_heap::PeekMut::pop(head),
        }
        self.size -= size;
        Some((source, line))
    }

    /// Nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(window: &mut Window<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| window.next().map(|(_, line)| line)).collect()
    }

    #[test]
    fn lines_that_arrive_together_are_ordered_and_wait_two_ticks_at_most() {
        let mut window = Window::new(1000);
        let (a, b) = (window.source(), window.source());
        window.push(a, (3, 0), 1, "a3");
        window.push(b, (1, 0), 1, "b1");
        window.tick();
        assert_eq!(all(&mut window), [""; 0]);
        window.push(b, (2, 0), 1, "b2");
        window.push(b, (9, 0), 1, "b9");
        window.tick();
        assert_eq!(all(&mut window), ["b1", "b2", "a3"]);
        window.tick();
        assert_eq!(all(&mut window), ["b9"]);
        assert!(window.is_empty());
    }

    #[test]
    fn a_task_keeps_its_order_whatever_its_clock_does() {
        let mut window = Window::new(1000);
        let (a, b) = (window.source(), window.source());
        for (time, line) in [(5, "a5"), (1, "a1"), (6, "a6")] {
            window.push(a, (time, 0), 1, line);
        }
        window.push(b, (5, 0), 1, "b5");
        window.tick();
        window.tick();
        assert_eq!(all(&mut window), ["a5", "a1", "b5", "a6"]);
    }

    #[test]
    fn not_more_than_so_much_waits() {
        let mut window = Window::new(10);
        let a = window.source();
        for time in 0..20 {
            window.push(a, (time, 0), 1, "x");
        }
        assert_eq!(all(&mut window).len(), 10);
        assert_eq!(std::iter::from_fn(|| window.pop()).count(), 10);
        assert!(window.is_empty());
    }
}
