//! What changed since each reconciler looked last.

use std::hash::{Hash, Hasher};

use swarm_api::hash::{FastHasher, FastMap, FastSet};
use swarm_api::v1::Task;
use swarm_api::{Kind, Object};
use swarm_store::Event;

/// What a reader is told at once.
#[derive(Debug)]
pub(crate) enum Part<'a> {
    /// Events of objects that are in no other one.
    Plain(&'a [Event]),
    /// Several events of an object, made one.
    Merged(Vec<Event>),
}

impl std::ops::Deref for Part<'_> {
    type Target = [Event];
    fn deref(&self) -> &[Event] {
        match self {
            Part::Plain(events) => events,
            Part::Merged(events) => events,
        }
    }
}

/// Other events of the same object.
#[derive(Debug, Clone, Copy)]
struct Link {
    /// Position of the one before; 0 if there is none, which is never within what a reader has not seen.
    before: usize,
    /// There is one after it.
    superseded: bool,
}

/// Changes of the overlay in order, with one reading position per reconciler. Positions count from the first
/// entry ever written, which is number one, so trimming does not move them.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    events: Vec<Event>,
    /// Beside each event, which others are of the same object. Empty as long as all events are of new objects: then there
    /// are none.
    links: Vec<Link>,
    /// The position of the last event of an object, by its hash. None of them was trimmed.
    last: FastMap<u64, usize>,
    /// Positions of events that one reader need not be told of, with that reader; in order.
    known: Vec<(std::ops::Range<usize>, usize)>,
    first: usize,
    read: Vec<usize>,
}

impl Journal {
    pub(crate) fn new(readers: usize) -> Journal {
        Journal { first: 1, read: vec![1; readers], ..Journal::default() }
    }

    pub(crate) fn push(&mut self, event: Event) {
        let new = matches!(event, Event::Created(_));
        self.events.push(event);
        if !new || !self.links.is_empty() {
            (self.links.len()..self.events.len()).for_each(|at| self.link(at));
        }
    }

    /// Finds the event before this one that is of the same object.
    fn link(&mut self, at: usize) {
        let event = &self.events[at];
        let mut hasher = FastHasher::default();
        (event.kind(), event.id()).hash(&mut hasher);
        let last = self.last.insert(hasher.finish(), self.first + at);
        // Of another object with the same hash nothing is said: its events are told one by one.
        let before = last.filter(|position| {
            let last = &self.events[position - self.first];
            last.kind() == event.kind() && last.id() == event.id()
        });
        if let Some(position) = before {
            self.links[position - self.first].superseded = true;
        }
        self.links.push(Link { before: before.unwrap_or(0), superseded: false });
    }

    /// Notes events of which one reader knows.
    pub(crate) fn push_known(&mut self, events: impl IntoIterator<Item = Event>, reader: usize) {
        if self.read.len() > 1 {
            let begin = self.end();
            events.into_iter().for_each(|event| self.push(event));
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

    /// The difference between what the reader saw last and what is there now, in parts: one event per object at most.
    pub(crate) fn news(&self, reader: usize) -> Vec<Part<'_>> {
        let from = self.read[reader];
        if self.known.iter().any(|(range, by)| *by == reader && range.end > from) {
            let known = |at: &usize| self.known.iter().any(|(range, by)| *by == reader && range.contains(at));
            let events = || (from..self.end()).map(|at| (at, &self.events[at - self.first]));
            let unknown: Vec<(usize, &Event)> = events().filter(|(at, _)| !known(at)).collect();
            let superseded = |at: usize| self.links.get(at - self.first).is_some_and(|link| link.superseded);
            if !unknown.iter().any(|(at, _)| superseded(*at)) {
                return vec![Part::Merged(merge(unknown.into_iter().map(|(_, event)| event)))];
            }
            // What it knows may have come after what it does not: then that is where it leads to.
            let objects: FastSet<(Kind, &str)> = unknown.iter().map(|(_, e)| (e.kind(), e.id())).collect();
            let all = events().map(|(_, event)| event).filter(|e| objects.contains(&(e.kind(), e.id())));
            return vec![Part::Merged(merge(all))];
        }
        let (mut parts, mut merged) = (Vec::new(), Vec::new());
        let mut plain = from - self.first;
        for (at, link) in self.links.iter().enumerate().skip(plain) {
            if !link.superseded && link.before < from {
                if !merged.is_empty() {
                    parts.push(Part::Merged(std::mem::take(&mut merged)));
                }
                continue;
            }
            if plain < at {
                parts.push(Part::Plain(&self.events[plain..at]));
            }
            plain = at + 1;
            if !link.superseded {
                let mut first = at;
                while self.links[first].before >= from {
                    first = self.links[first].before - self.first;
                }
                let (old, new) = (self.events[first].old(), self.events[at].new());
                merged.extend(difference(old.cloned(), new.cloned()));
            }
        }
        if !merged.is_empty() {
            parts.push(Part::Merged(merged));
        }
        if plain < self.events.len() {
            parts.push(Part::Plain(&self.events[plain..]));
        }
        parts
    }

    /// The reader knows everything written so far.
    pub(crate) fn caught_up(&mut self, reader: usize) {
        self.read[reader] = self.end();
    }

    /// Forgets what everybody has read.
    pub(crate) fn trim(&mut self) {
        let done = self.read.iter().copied().min().unwrap_or_else(|| self.end());
        let read = done - self.first;
        self.events.drain(..read);
        self.links.drain(..read.min(self.links.len()));
        self.first = done;
        self.last.retain(|_, last| *last >= done);
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

/// Something is different after this event; see [`difference`].
pub(crate) fn is_news(event: &Event) -> bool {
    match event {
        Event::Updated { old, new } => !Object::ptr_eq(old, new) && !is_same(old, new),
        _ => true,
    }
}

fn is_same(a: &Object, b: &Object) -> bool {
    match (a, b) {
        (Object::Task(a), Object::Task(b)) => Task::is_same_but_stamps(a, b),
        _ => a == b,
    }
}

/// One event per object, in the order in which objects were first touched.
fn merge<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<Event> {
    // Looked up only, never iterated: the order of the result is that of `merged`.
    let mut place: FastMap<(Kind, &str), usize> = FastMap::default();
    let mut merged: Vec<(Option<&Object>, Option<&Object>)> = Vec::new();
    for event in events {
        let at = *place.entry((event.kind(), event.id())).or_insert(merged.len());
        match merged.get_mut(at) {
            Some(pair) => pair.1 = event.new(),
            None => merged.push((event.old(), event.new())),
        }
    }
    merged.into_iter().filter_map(|(old, new)| difference(old.cloned(), new.cloned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(slot: u64) -> Object {
        Task { id: "t".into(), slot, ..Default::default() }.into()
    }

    fn news(journal: &Journal, reader: usize) -> Vec<Event> {
        journal.news(reader).iter().flat_map(|part| part.to_vec()).collect()
    }

    fn other(id: &str) -> Event {
        Event::Created(Task { id: id.into(), ..Default::default() }.into())
    }

    /// What a reader is told of these, as a whole and from each place on.
    fn told(events: &[Event]) -> Vec<Event> {
        let mut journal = Journal::new(1);
        // There was something before.
        (0..3).for_each(|n| journal.push(other(&n.to_string())));
        journal.caught_up(0);
        events.iter().for_each(|event| journal.push(event.clone()));
        for from in 4..journal.end() {
            journal.read[0] = from;
            assert_eq!(sorted(news(&journal, 0)), sorted(merge(events[from - 4..].iter())));
        }
        journal.read[0] = 4;
        news(&journal, 0)
    }

    fn sorted(mut events: Vec<Event>) -> Vec<Event> {
        events.sort_by(|a, b| a.id().cmp(b.id()));
        events
    }

    #[test]
    fn changes_of_one_object_become_one() {
        let updated = |a, b| Event::Updated { old: task(a), new: task(b) };
        assert_eq!(told(&[updated(1, 2), updated(2, 3)]), [updated(1, 3)]);
        assert_eq!(told(&[Event::Created(task(1)), updated(1, 2)]), [Event::Created(task(2))]);
        assert_eq!(told(&[updated(1, 2), Event::Removed(task(2))]), [Event::Removed(task(1))]);
        assert_eq!(told(&[Event::Removed(task(1)), Event::Created(task(2))]), [updated(1, 2)]);
        let between =
            [other("a"), updated(1, 2), other("b"), updated(2, 3), other("c"), updated(3, 4), other("d")];
        assert_eq!(told(&between), [other("a"), other("b"), other("c"), updated(1, 4), other("d")]);
    }

    #[test]
    fn changes_that_cancel_each_other_are_no_news() {
        assert_eq!(told(&[Event::Created(task(1)), Event::Removed(task(1))]), []);
        let there = Event::Updated { old: task(1), new: task(2) };
        let back = Event::Updated { old: task(2), new: task(1) };
        assert_eq!(told(&[there, other("a"), back]), [other("a")]);
    }

    #[test]
    fn who_knows_of_something_is_not_told() {
        let mut journal = Journal::new(2);
        let events: Vec<Event> = ["a", "b", "c", "d"].map(other).to_vec();
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

    /// Otherwise it would take an object for what it was before what it knows of.
    #[test]
    fn what_somebody_knows_and_came_after_something_else_is_where_that_leads_to() {
        let updated = |a, b| Event::Updated { old: task(a), new: task(b) };
        let mut journal = Journal::new(2);
        journal.push(updated(1, 2));
        journal.push_known([updated(2, 3), other("a")], 1);
        assert_eq!(news(&journal, 1), [updated(1, 3)]);
        journal.push(updated(3, 4));
        journal.push(other("b"));
        assert_eq!(news(&journal, 1), [updated(1, 4), other("b")]);
        journal.caught_up(1);
        journal.push_known([updated(4, 5)], 1);
        journal.push(updated(5, 6));
        assert_eq!(news(&journal, 1), [updated(5, 6)]);
        assert_eq!(sorted(news(&journal, 0)), [other("a"), other("b"), updated(1, 6)]);
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
        assert_eq!(news(&journal, 0), [updated]);
        assert_eq!(news(&journal, 1), [Event::Created(task(2))]);
        journal.caught_up(0);
        journal.caught_up(1);
        journal.trim();
        assert!(journal.events.is_empty());
    }
}
