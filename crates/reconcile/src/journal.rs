//! What changed since each reconciler looked last.

use std::sync::Arc;

use swarm_api::hash::FastMap;
use swarm_api::v1::Task;
use swarm_api::{Kind, Object};
use swarm_store::Event;

/// Changes of the overlay in order, with one reading position per reconciler. Positions count from the first
/// entry ever written, so trimming does not move them.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    events: Vec<Event>,
    /// Positions of events that one reader need not be told of, with that reader; in order.
    known: Vec<(std::ops::Range<usize>, usize)>,
    first: usize,
    read: Vec<usize>,
    /// What the last reader was given, and from which part: most readers ask for the same.
    last: Option<(usize, usize, Arc<[Event]>)>,
}

impl Journal {
    pub(crate) fn new(readers: usize) -> Journal {
        Journal { read: vec![0; readers], ..Journal::default() }
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Notes events of which one reader knows.
    pub(crate) fn push_known(&mut self, events: impl IntoIterator<Item = Event>, reader: usize) {
        if self.read.len() > 1 {
            let begin = self.end();
            self.events.extend(events);
            self.known.push((begin..self.end(), reader));
        }
    }

    /// Number of events that are kept for somebody.
    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    fn end(&self) -> usize {
        self.first + self.events.len()
    }

    /// Whether the reader has not seen everything.
    pub(crate) fn has_news(&self, reader: usize) -> bool {
        self.read[reader] < self.end()
    }

    /// The difference between what the reader saw last and what is there now, one event per object at most.
    pub(crate) fn news(&mut self, reader: usize) -> Arc<[Event]> {
        let (from, to) = (self.read[reader], self.end());
        let known = |at: usize| self.known.iter().any(|(range, by)| *by == reader && range.contains(&at));
        if self.known.iter().any(|(range, by)| *by == reader && range.end > from) {
            let events = (from..to).filter(|at| !known(*at)).map(|at| &self.events[at - self.first]);
            return merge(events).into();
        }
        match &self.last {
            Some((begin, end, news)) if (*begin, *end) == (from, to) => news.clone(),
            _ => {
                let news: Arc<[Event]> = merge(self.events[from - self.first..].iter()).into();
                self.last = Some((from, to, news.clone()));
                news
            }
        }
    }

    /// The reader knows everything written so far.
    pub(crate) fn caught_up(&mut self, reader: usize) {
        self.read[reader] = self.end();
    }

    /// Forgets what everybody has read.
    pub(crate) fn trim(&mut self) {
        let done = self.read.iter().copied().min().unwrap_or_else(|| self.end());
        self.events.drain(..done - self.first);
        self.first = done;
        self.known.retain(|(range, _)| range.end > done);
        self.last = None;
    }
}

/// The event that leads from one state of an object to another; `None` if they are the same. A task that only got
/// its stamps is the same: nothing is decided by them, and every task gets them with its commit.
pub(crate) fn difference(old: Option<Object>, new: Option<Object>) -> Option<Event> {
    match (old, new) {
        (None, None) => None,
        (None, Some(new)) => Some(Event::Created(new)),
        (Some(old), None) => Some(Event::Removed(old)),
        (Some(old), Some(new)) if Object::ptr_eq(&old, &new) || is_same(&old, &new) => None,
        (Some(old), Some(new)) => Some(Event::Updated { old, new }),
    }
}

fn is_same(a: &Object, b: &Object) -> bool {
    match (a, b) {
        (Object::Task(a), Object::Task(b)) => Task::is_same_but_stamps(a, b),
        _ => a == b,
    }
}

/// One event per object, in the order in which objects were first touched.
fn merge<'a>(events: impl Iterator<Item = &'a Event> + Clone) -> Vec<Event> {
    let (count, _) = events.size_hint();
    // What was only made cannot have been touched twice.
    if events.clone().all(|event| matches!(event, Event::Created(_))) {
        return events.cloned().collect();
    }
    // Looked up only, never iterated: the order of the result is that of `merged`.
    let mut place: FastMap<(Kind, &str), usize> = FastMap::default();
    place.reserve(count);
    let mut merged: Vec<(Option<&Object>, Option<&Object>)> = Vec::with_capacity(count);
    for event in events {
        let at = *place.entry((event.kind(), event.id())).or_insert(merged.len());
        match merged.get_mut(at) {
            Some(pair) => pair.1 = event.new(),
            None => merged.push((event.old(), event.new())),
        }
    }
    let mut news = Vec::with_capacity(merged.len());
    news.extend(merged.into_iter().filter_map(|(old, new)| difference(old.cloned(), new.cloned())));
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(slot: u64) -> Object {
        Task { id: "t".into(), slot, ..Default::default() }.into()
    }

    #[test]
    fn changes_of_one_object_become_one() {
        let updated = |a, b| Event::Updated { old: task(a), new: task(b) };
        assert_eq!(merge([updated(1, 2), updated(2, 3)].iter()), [updated(1, 3)]);
        assert_eq!(merge([Event::Created(task(1)), updated(1, 2)].iter()), [Event::Created(task(2))]);
        assert_eq!(merge([updated(1, 2), Event::Removed(task(2))].iter()), [Event::Removed(task(1))]);
        assert_eq!(merge([Event::Removed(task(1)), Event::Created(task(2))].iter()), [updated(1, 2)]);
    }

    #[test]
    fn changes_that_cancel_each_other_are_no_news() {
        assert_eq!(merge([Event::Created(task(1)), Event::Removed(task(1))].iter()), []);
        let there = Event::Updated { old: task(1), new: task(2) };
        let back = Event::Updated { old: task(2), new: task(1) };
        assert_eq!(merge([there, back].iter()), []);
    }

    #[test]
    fn every_reader_has_its_own_place() {
        let mut journal = Journal::new(2);
        journal.push(Event::Created(task(1)));
        journal.caught_up(0);
        journal.trim();
        assert!(!journal.has_news(0) && journal.has_news(1));
        journal.push(Event::Updated { old: task(1), new: task(2) });
        assert_eq!(*journal.news(0), [Event::Updated { old: task(1), new: task(2) }]);
        assert_eq!(*journal.news(1), [Event::Created(task(2))]);
        journal.caught_up(0);
        journal.caught_up(1);
        journal.trim();
        assert!(journal.events.is_empty() && !journal.has_news(1));
    }
}
