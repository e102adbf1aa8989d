//! What changed since each reconciler looked last.

use swarm_api::Object;
use swarm_api::v1::Task;
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

    /// What happened since the reader looked last, in order and in parts: what it knows is left out.
    pub(crate) fn news(&self, reader: usize) -> impl Iterator<Item = &[Event]> {
        let from = self.read[reader];
        let known = self.known.iter().filter(move |(range, by)| *by == reader && range.end > from);
        let begins = std::iter::once(from).chain(known.clone().map(|(range, _)| range.end));
        let ends = known.map(|(range, _)| range.start).chain([self.end()]);
        begins
            .zip(ends)
            .filter(|(begin, end)| begin < end)
            .map(|(begin, end)| &self.events[begin - self.first..end - self.first])
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

#[cfg(test)]
mod tests {
    use super::*;

    fn task(slot: u64) -> Object {
        Task { id: "t".into(), slot, ..Default::default() }.into()
    }

    fn news(journal: &Journal, reader: usize) -> Vec<Event> {
        journal.news(reader).flatten().cloned().collect()
    }

    #[test]
    fn who_knows_of_something_is_not_told() {
        let mut journal = Journal::new(2);
        let events: Vec<Event> = (1..5).map(|slot| Event::Created(task(slot))).collect();
        journal.push(events[0].clone());
        journal.push_known(events[1..3].to_vec(), 1);
        journal.push(events[3].clone());
        assert_eq!(news(&journal, 0), events);
        assert_eq!(news(&journal, 1), [events[0].clone(), events[3].clone()]);
        journal.caught_up(1);
        journal.push_known([events[0].clone()], 1);
        assert!(news(&journal, 1).is_empty());
        journal.caught_up(0);
        journal.caught_up(1);
        journal.trim();
        assert!(journal.events.is_empty() && journal.known.is_empty());
    }

    #[test]
    fn every_reader_has_its_own_place() {
        let mut journal = Journal::new(2);
        journal.push(Event::Created(task(1)));
        journal.caught_up(0);
        journal.trim();
        assert!(news(&journal, 0).is_empty() && !news(&journal, 1).is_empty());
        journal.push(Event::Updated { old: task(1), new: task(2) });
        let updated = Event::Updated { old: task(1), new: task(2) };
        assert_eq!(news(&journal, 0), [updated.clone()]);
        assert_eq!(news(&journal, 1), [Event::Created(task(1)), updated]);
        journal.caught_up(0);
        journal.caught_up(1);
        journal.trim();
        assert!(journal.events.is_empty());
    }
}
