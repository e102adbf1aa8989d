//! The places at which an update is at work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swarm_api::v1::{Task, TaskState};
use swarm_reconcile::Now;
use swarm_store::Tables;

use super::PLACEMENT_LIMIT;
use crate::place::Place;
use crate::spec::created_at;

/// One place at work.
#[derive(Debug)]
pub(super) struct Work {
    /// The task that is to run there.
    task: String,
    /// By when it must have a node, unless it has one.
    limit: Option<Duration>,
    /// The update did not make it: a rebalancing did, an earlier leader, or a restart. It is nobody's failure, and
    /// the limit holds even if it has a node.
    found: bool,
}

impl Work {
    pub(super) fn new(now: Duration, task: String) -> Work {
        Work { task, limit: Some(now + PLACEMENT_LIMIT), found: false }
    }

    /// `None` if the task was made so long ago that nobody need wait for it.
    pub(super) fn found(now: Now, task: &Task) -> Option<Work> {
        let left = now.remaining(created_at(task), PLACEMENT_LIMIT);
        (!left.is_zero()).then(|| Work {
            task: task.id.to_string(),
            limit: Some(now.mono + left),
            found: true,
        })
    }
}

/// What became of the places that are over.
#[derive(Debug, Default)]
pub(super) struct Finished {
    /// How many they are.
    pub(super) count: usize,
    /// Those whose new task found no node, with that task.
    pub(super) stuck: Vec<(Place, String)>,
}

/// All of them. What a look costs grows with what has happened, not with how many there are.
#[derive(Debug, Default)]
pub(super) struct Works {
    by_place: BTreeMap<Place, Work>,
    /// Where a limit ends next.
    limits: BTreeSet<(Duration, Place)>,
    /// Where something has happened.
    news: BTreeSet<Place>,
}

impl Works {
    pub(super) fn insert(&mut self, place: Place, work: Work) {
        self.remove(&place);
        self.limits.extend(work.limit.map(|limit| (limit, place.clone())));
        self.news.insert(place.clone());
        self.by_place.insert(place, work);
    }

    /// Puts it there, unless the place is at work already.
    pub(super) fn insert_new(&mut self, place: Place, work: Work) {
        if !self.contains(&place) {
            self.insert(place, work);
        }
    }

    /// The place is at work no more; true if it was.
    pub(super) fn remove(&mut self, place: &Place) -> bool {
        let Some(work) = self.by_place.remove(place) else { return false };
        self.news.remove(place);
        if let Some(limit) = work.limit {
            self.limits.remove(&(limit, place.clone()));
        }
        true
    }

    fn remove_all(&mut self, but: impl Fn(&Place, &Work) -> bool) {
        let gone = self.by_place.iter().filter(|(place, work)| !but(place, work));
        for place in gone.map(|(place, _)| place.clone()).collect::<Vec<_>>() {
            self.remove(&place);
        }
    }

    /// Only these places go on.
    pub(super) fn keep(&mut self, is_kept: impl Fn(&Place) -> bool) {
        self.remove_all(|place, _| is_kept(place));
    }

    /// Only those go on whose new task is there.
    pub(super) fn keep_existing(&mut self, tables: &Tables) {
        self.remove_all(|_, work| tables.tasks().get(&work.task).is_some());
    }

    pub(super) fn clear(&mut self) {
        *self = Works::default();
    }

    pub(super) fn contains(&self, place: &Place) -> bool {
        self.by_place.contains_key(place)
    }

    pub(super) fn places(&self) -> impl Iterator<Item = &Place> {
        self.by_place.keys()
    }

    pub(super) fn len(&self) -> usize {
        self.by_place.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_place.is_empty()
    }

    /// Something became of a task of the place.
    pub(super) fn note(&mut self, place: &Place) {
        if self.contains(place) && !self.news.contains(place) {
            self.news.insert(place.clone());
        }
    }

    /// Something may have become of any of them.
    pub(super) fn note_all(&mut self) {
        self.news.extend(self.by_place.keys().cloned());
    }

    /// When the next limit ends.
    pub(super) fn next(&self) -> Option<Duration> {
        self.limits.first().map(|(at, _)| *at)
    }

    /// Takes out places whose new task runs, has ended, is not wanted any more, or finds no node.
    pub(super) fn finish(&mut self, now: Duration, tables: &Tables) -> Finished {
        let mut look = std::mem::take(&mut self.news);
        let due = self.limits.iter().take_while(|(at, _)| *at <= now);
        look.extend(due.map(|(_, place)| place.clone()));
        let mut finished = Finished::default();
        for place in look {
            let Some(work) = self.by_place.get_mut(&place) else { continue };
            let going = |task: &Task| {
                !task.status.reached(TaskState::Running) && task.desired_state <= TaskState::Complete as i32
            };
            let task = tables.tasks().get(&work.task).filter(|task| going(task));
            if let Some(task) = task {
                if task.status.reached(TaskState::Assigned) && !work.found {
                    if let Some(limit) = work.limit.take() {
                        self.limits.remove(&(limit, place));
                    }
                    continue;
                }
                if work.limit.is_none_or(|limit| limit > now) {
                    continue;
                }
                if !work.found {
                    finished.stuck.push((place.clone(), work.task.clone()));
                }
            }
            finished.count += usize::from(self.remove(&place));
        }
        finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn task(id: &str, state: TaskState) -> Task {
        let mut task = Task { id: id.into(), desired_state: TaskState::Running as i32, ..Default::default() };
        task.status.state = state as i32;
        task
    }

    fn at_work(tables: &mut Tables, works: &mut Works, slot: u64, state: TaskState) {
        let id = format!("t{slot}");
        tables.insert(task(&id, state).into()).unwrap();
        works.insert(Place::Slot(slot), Work::new(secs(0), id));
    }

    #[test]
    fn places_end_when_something_became_of_them_or_their_time_is_over() {
        let (mut tables, mut works) = (Tables::default(), Works::default());
        for (slot, state) in [(1, TaskState::Pending), (2, TaskState::Assigned), (3, TaskState::Running)] {
            at_work(&mut tables, &mut works, slot, state);
        }
        let finished = works.finish(secs(1), &tables);
        assert_eq!((finished.count, finished.stuck.len(), works.len()), (1, 0, 2));
        // Nobody looks where nothing has happened.
        tables.replace(task("t2", TaskState::Failed).into()).unwrap();
        assert_eq!(works.finish(secs(2), &tables).count, 0);
        works.note(&Place::Slot(2));
        assert_eq!(works.finish(secs(2), &tables).count, 1);
        assert_eq!(works.next(), Some(PLACEMENT_LIMIT));
        let finished = works.finish(PLACEMENT_LIMIT, &tables);
        assert_eq!(finished.stuck, [(Place::Slot(1), "t1".to_owned())]);
        assert!(works.is_empty() && works.limits.is_empty() && works.news.is_empty());
    }

    #[test]
    fn what_leaves_leaves_nothing_behind() {
        let (mut tables, mut works) = (Tables::default(), Works::default());
        for slot in 1..=4 {
            at_work(&mut tables, &mut works, slot, TaskState::Pending);
        }
        assert!(works.remove(&Place::Slot(1)) && !works.remove(&Place::Slot(1)));
        works.keep(|place| *place != Place::Slot(2));
        tables.remove(swarm_api::Kind::Task, "t3").unwrap();
        works.keep_existing(&tables);
        works.insert_new(Place::Slot(4), Work::new(secs(9), "other".into()));
        works.note(&Place::Slot(1));
        assert_eq!(works.places().collect::<Vec<_>>(), [&Place::Slot(4)]);
        assert_eq!((works.limits.len(), works.news.len()), (1, 1));
        assert_eq!(works.next(), Some(PLACEMENT_LIMIT), "who was there stays");
    }
}
