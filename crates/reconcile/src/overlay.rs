//! The tables as they will be: committed, plus what was decided and is not committed yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use smallvec::SmallVec;
use swarm_api::hash::{FastMap, FastSet};
use swarm_api::v1::Task;
use swarm_api::{Kind, Object, Shared, Text};
use swarm_store::{Event, Tables, View};

use crate::apply::apply_group;
use crate::journal::{Journal, difference, is_news};
use crate::{Group, Guard, Patch, Refused, Write, bulk};

/// An object.
type Key = (Kind, Text);

fn key((kind, id): (Kind, &str)) -> Key {
    (kind, id.into())
}

/// The key of an object; that of a task shares its id.
fn key_of(object: &Object) -> Key {
    match object {
        Object::Task(task) => (Kind::Task, task.id.clone()),
        object => key((object.kind(), object.id())),
    }
}

/// Objects, each once, in the order in which they came.
#[derive(Debug, Default)]
struct Keys {
    list: Vec<Key>,
    set: FastSet<Key>,
}

impl Keys {
    fn add(&mut self, key: Key) {
        if self.set.insert(key.clone()) {
            self.list.push(key);
        }
    }
}

/// The groups that have to do with an object.
#[derive(Debug, Default)]
struct Touched {
    /// Those that write it, with the place of the patch.
    writes: SmallVec<[(u64, u32); 1]>,
    /// Those that only read it; of a service they may be thousands.
    reads: BTreeSet<u64>,
}

/// A group that was decided and whose fate is not known yet.
#[derive(Debug)]
struct Planned {
    group: Arc<Group>,
    writes: Vec<Key>,
    reads: Vec<Key>,
}

/// Committed tables with planned groups on top.
///
/// Merging a commit costs as much as the commit and the planned groups that touch the same objects, however
/// many objects and groups there are.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    committed: View,
    tables: Tables,
    planned: BTreeMap<u64, Planned>,
    /// Which planned groups write an object, and which only read it. Looked up only.
    touching: FastMap<Key, Touched>,
    /// Objects whose committed state changed, or whose planned change is settled, since the last merge.
    stale: Keys,
}

impl Overlay {
    pub(crate) fn new(view: View) -> Overlay {
        Overlay { tables: view.to_tables(), committed: view, ..Overlay::default() }
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    pub(crate) fn committed(&self) -> &View {
        &self.committed
    }

    /// Takes note of a commit. Where nothing is planned it is visible at once, and journaled as it is; else
    /// [`Overlay::merge`] makes it visible. One of the reconcilers may know of it.
    pub(crate) fn commit(
        &mut self,
        events: &[Event],
        view: &View,
        journal: &mut Journal,
        knows: Option<usize>,
    ) {
        if self.planned.is_empty() {
            self.merge(journal);
            let news = events.iter().filter(|event| is_news(event)).cloned();
            match knows {
                Some(reader) => journal.push_known(news, reader),
                None => news.for_each(|event| journal.push(event)),
            }
            self.tables = view.to_tables();
        } else {
            events.iter().for_each(|e| self.stale.add(key_of(e.object())));
        }
        self.committed = view.clone();
    }

    /// Takes note of a commit that changed nothing but what planned groups write, and that settles them: that is when it is
    /// made visible.
    pub(crate) fn commit_planned(&mut self, view: &View) {
        self.committed = view.clone();
    }

    /// Takes note of a view from which any number of commits are missing.
    pub(crate) fn jump(&mut self, view: &View) {
        let events = swarm_store::diff(&self.committed, view);
        events.iter().for_each(|e| self.stale.add(key_of(e.object())));
        self.committed = view.clone();
    }

    /// Number of objects that are to be brought up to date.
    pub(crate) fn stale(&self) -> usize {
        self.stale.list.len()
    }

    /// Puts a group on top. Returns what it changes.
    pub(crate) fn plan(&mut self, number: u64, group: Group) -> Result<Vec<Event>, (Group, Refused)> {
        let events = match apply_group(&mut self.tables, &group) {
            Ok(events) => events,
            Err(refused) => return Err((group, refused)),
        };
        if !events.is_empty() {
            self.note(number, group);
        }
        Ok(events)
    }

    /// Puts groups of new tasks on top, the first of which gets this number. All or none.
    pub(crate) fn plan_bulk(&mut self, first: u64, groups: Vec<Group>) -> Result<Vec<Event>, Vec<Group>> {
        let mut tables = self.tables.clone();
        if bulk::apply(&mut tables, &groups.iter().collect::<Vec<_>>()).iter().any(Result::is_err) {
            return Err(groups);
        }
        self.tables = tables;
        let tasks = groups.iter().filter_map(bulk::tasks).flat_map(|(_, tasks)| tasks);
        let events: Vec<Event> = tasks.map(|task| Event::Created(Object::Task(task.clone()))).collect();
        self.touching.reserve(events.len());
        (first..).zip(groups).for_each(|(number, group)| self.note(number, group));
        Ok(events)
    }

    /// Takes note of what a group that is on top has to do with.
    fn note(&mut self, number: u64, group: Group) {
        let written = |patch: &Patch| match &patch.write {
            Write::Create(object) => key_of(object),
            write => key(write.target()),
        };
        let writes: Vec<Key> = group.patches.iter().map(written).collect();
        let guards = group.patches.iter().flat_map(|p| &p.guards);
        let reads: Vec<Key> = guards.map(|g| key(g.subject())).filter(|k| !writes.contains(k)).collect();
        let planned = Planned { group: Arc::new(group), writes, reads };
        for (key, place) in planned.writes.iter().zip(0..) {
            self.touching.entry(key.clone()).or_default().writes.push((number, place));
        }
        for key in &planned.reads {
            self.touching.entry(key.clone()).or_default().reads.insert(number);
        }
        self.planned.insert(number, planned);
    }

    /// The group of new tasks that creates this one, and the place there, if no other group has to do with it.
    pub(crate) fn creator(&self, task: &str) -> Option<(u64, usize)> {
        let touched = self.touching.get(&key((Kind::Task, task)))?;
        let [(by, place)] = touched.writes[..] else { return None };
        let planned = self.planned.get(&by)?;
        let creates = planned.writes.len() > 1
            && touched.reads.is_empty()
            && matches!(&planned.group.patches.get(place as usize)?.write, Write::Create(o) if o.id() == task);
        creates.then_some((by, place as usize))
    }

    /// Makes the tasks that planned groups create, at these places in them, others. Returns what changes.
    pub(crate) fn amend(&mut self, amended: Vec<(u64, usize, Shared<Task>)>) -> Vec<Event> {
        let tasks: Vec<Shared<Task>> = amended.iter().map(|(_, _, task)| task.clone()).collect();
        for (number, place, task) in amended {
            if let Some(planned) = self.planned.get_mut(&number)
                && let Some(patch) = Arc::make_mut(&mut planned.group).patches.get_mut(place)
            {
                patch.write = Write::Create(task.into());
            }
        }
        self.tables.replace_tasks(&tasks)
    }

    /// The group as it was planned.
    pub(crate) fn group(&self, number: u64) -> Option<&Arc<Group>> {
        self.planned.get(&number).map(|p| &p.group)
    }

    /// The fate of a group is known: what is committed tells the rest.
    pub(crate) fn settle(&mut self, number: u64) -> Option<Arc<Group>> {
        let planned = self.planned.remove(&number)?;
        for key in planned.writes.iter().chain(&planned.reads) {
            if let Some(touched) = self.touching.get_mut(key) {
                touched.writes.retain(|(by, _)| *by != number);
                touched.reads.remove(&number);
                if touched.writes.is_empty() && touched.reads.is_empty() {
                    self.touching.remove(key);
                }
            }
        }
        planned.writes.into_iter().for_each(|key| self.stale.add(key));
        Some(planned.group)
    }

    /// Brings the tables up to date and journals every difference.
    pub(crate) fn merge(&mut self, journal: &mut Journal) {
        if self.stale.list.is_empty() {
            return;
        }
        let mut stale = std::mem::take(&mut self.stale);
        if self.planned.is_empty() {
            let old = std::mem::replace(&mut self.tables, self.committed.to_tables());
            for (kind, id) in &stale.list {
                let new = self.tables.object(*kind, id);
                difference(old.object(*kind, id), new).into_iter().for_each(|e| journal.push(e));
            }
            return;
        }
        let groups = self.affected(&mut stale);
        let stale = stale.list;
        let old: Vec<Option<Object>> = stale.iter().map(|(kind, id)| self.tables.object(*kind, id)).collect();
        if self.reset(&stale).is_err() {
            // Unique names that wandered between objects: start from the committed tables.
            self.tables = self.committed.to_tables();
            for planned in self.planned.values() {
                let _ = apply_group(&mut self.tables, &planned.group);
            }
        } else {
            for number in groups {
                // A refusal here is a forecast: the store will refuse it too, and settle it.
                let _ = apply_group(&mut self.tables, &self.planned[&number].group);
            }
        }
        for ((kind, id), old) in stale.iter().zip(old) {
            difference(old, self.tables.object(*kind, id)).into_iter().for_each(|e| journal.push(e));
        }
    }

    /// Adds to `stale` everything that must be computed again with it, and returns the groups to apply again.
    ///
    /// That is what these groups write, and what they look at if a later group writes it: they are to see it as it was
    /// before that.
    fn affected(&self, stale: &mut Keys) -> BTreeSet<u64> {
        let mut groups = BTreeSet::new();
        let mut done = 0;
        while let Some(key) = stale.list.get(done) {
            done += 1;
            let Some(touched) = self.touching.get(key) else { continue };
            for by in touched.writes.iter().map(|(by, _)| by).chain(&touched.reads) {
                if !groups.insert(*by) {
                    continue;
                }
                let planned = &self.planned[by];
                let seen = planned.reads.iter().filter(|key| self.is_written_after(key, *by));
                planned.writes.iter().chain(seen).for_each(|key| stale.add(key.clone()));
            }
        }
        groups
    }

    fn is_written_after(&self, key: &Key, number: u64) -> bool {
        self.touching.get(key).is_some_and(|touched| touched.writes.iter().any(|(by, _)| *by > number))
    }

    /// Puts these objects into their committed state: removals first, as they free names.
    fn reset(&mut self, keys: &[Key]) -> swarm_store::Result<()> {
        let mut there = Vec::new();
        for (kind, id) in keys {
            match (self.tables.object(*kind, id), self.committed.object(*kind, id)) {
                (Some(_), None) => drop(self.tables.remove(*kind, id)?),
                (old, Some(new)) if !old.as_ref().is_some_and(|o| Object::ptr_eq(o, &new)) => {
                    there.push((old.is_some(), new));
                }
                _ => (),
            }
        }
        for (replace, object) in there {
            if replace {
                self.tables.replace(object)?;
            } else {
                self.tables.insert(object)?;
            }
        }
        Ok(())
    }
}

impl Guard {
    /// The object it looks at.
    pub fn subject(&self) -> (Kind, &str) {
        match self {
            Guard::Exists(kind, id) | Guard::Version(kind, id, _) => (*kind, id),
            Guard::ServiceSpec(id, _) => (Kind::Service, id),
            Guard::NodeUsable(id) => (Kind::Node, id),
            Guard::VolumeUsable(id) => (Kind::Volume, id),
            Guard::TaskState(id, _)
            | Guard::TaskBelow(id, _)
            | Guard::TaskAbove(id, _)
            | Guard::DesiredAtMost(id, _)
            | Guard::DesiredAbove(id, _)
            | Guard::TaskOnNode(id, _) => (Kind::Task, id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Patch, Write};
    use swarm_api::v1::{Task, TaskState};

    /// A small generator of its own: the same numbers for the same seed, for ever.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % sides as u64) as usize
        }
    }

    const STATES: [TaskState; 4] =
        [TaskState::New, TaskState::Pending, TaskState::Assigned, TaskState::Running];

    fn id(dice: &mut Dice) -> String {
        format!("t{}", dice.roll(6))
    }

    fn patch(dice: &mut Dice) -> Patch {
        let target = id(dice);
        let write = match dice.roll(6) {
            0 => Write::Create(Task { id: target.into(), ..Default::default() }.into()),
            1 => Write::Remove(Kind::Task, target),
            2 => Write::RaiseDesired(target, STATES[dice.roll(4)]),
            _ => Write::Explain { task: target, err: dice.roll(9).to_string(), at: std::time::UNIX_EPOCH },
        };
        let patch = Patch::new(write);
        match dice.roll(3) {
            0 => patch.guard(Guard::DesiredAtMost(id(dice), STATES[dice.roll(4)])),
            1 => patch.guard(Guard::Exists(Kind::Task, id(dice))),
            _ => patch,
        }
    }

    fn group(dice: &mut Dice) -> Group {
        Group { tag: 0, patches: (0..=dice.roll(2)).map(|_| patch(dice)).collect() }
    }

    fn new_tasks(dice: &mut Dice) -> Group {
        let from = dice.roll(5);
        let task = |n: usize| Task { id: format!("t{n}").into(), ..Default::default() };
        let patches = (from..from + 2).map(|n| Patch::new(Write::Create(task(n).into())));
        Group { tag: 0, patches: patches.collect() }
    }

    fn content(tables: &Tables) -> Vec<Object> {
        tables.tasks().iter().map(|t| Object::Task(t.clone())).collect()
    }

    /// Committed tables with all planned groups on top, computed from nothing.
    fn naive(overlay: &Overlay) -> Vec<Object> {
        let mut tables = overlay.committed.to_tables();
        for planned in overlay.planned.values() {
            let _ = apply_group(&mut tables, &planned.group);
        }
        content(&tables)
    }

    /// Whatever is planned, committed and settled in whatever order: what is computed from the changes alone is
    /// what a computation from nothing comes to, and the journal leads from each picture to the next.
    #[test]
    fn merging_changes_comes_to_the_same_as_starting_over() {
        for seed in 1..300u64 {
            let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut committed = Tables::default();
            let mut overlay = Overlay::new(View::new(committed.clone(), 0));
            let mut journal = Journal::new(1);
            for step in 1..60 {
                let before = content(overlay.tables());
                match dice.roll(6) {
                    0 | 1 => {
                        if let Ok(events) = overlay.plan(step * 10, group(&mut dice)) {
                            events.into_iter().for_each(|e| journal.push(e));
                        }
                    }
                    3 => {
                        let groups: Vec<Group> = (0..=dice.roll(2)).map(|_| new_tasks(&mut dice)).collect();
                        let planned = groups.len() as u64;
                        if let Ok(events) = overlay.plan_bulk(step * 10, groups) {
                            assert!(overlay.planned.len() as u64 >= planned);
                            events.into_iter().for_each(|e| journal.push(e));
                        }
                    }
                    4 => {
                        let id = id(&mut dice);
                        // It may be refused by now.
                        if let Some((number, place)) = overlay.creator(&id)
                            && let Some(mut task) = overlay.tables().tasks().get(&id).cloned()
                        {
                            task.slot += 1;
                            overlay
                                .amend(vec![(number, place, task)])
                                .into_iter()
                                .for_each(|e| journal.push(e));
                        }
                    }
                    2 => {
                        // Somebody's commit, or one of the planned groups themselves.
                        let planned = overlay.planned.keys().next().copied();
                        let own = planned.filter(|_| dice.roll(2) == 0);
                        let group = match own {
                            Some(number) => Group::clone(&overlay.planned[&number].group),
                            None => group(&mut dice),
                        };
                        let events = apply_group(&mut committed, &group).unwrap_or_default();
                        overlay.commit(&events, &View::new(committed.clone(), step), &mut journal, None);
                        if let Some(number) = own {
                            overlay.settle(number);
                        }
                    }
                    _ => {
                        // Refused, or lost.
                        if let Some(number) = overlay.planned.keys().next_back().copied() {
                            overlay.settle(number);
                        }
                    }
                }
                overlay.merge(&mut journal);
                assert_eq!(content(overlay.tables()), naive(&overlay), "seed {seed} step {step}");
                let mut replayed: BTreeMap<String, Object> =
                    before.into_iter().map(|o| (o.id().to_owned(), o)).collect();
                for event in journal.news(0).iter().flat_map(|part| part.to_vec()) {
                    match event.new() {
                        Some(new) => replayed.insert(new.id().to_owned(), new.clone()),
                        None => replayed.remove(event.id()),
                    };
                }
                let replayed: Vec<Object> = replayed.into_values().collect();
                assert_eq!(replayed, content(overlay.tables()), "seed {seed} step {step}");
                journal.caught_up(0);
                journal.trim();
            }
            assert!(overlay.planned.is_empty() || !overlay.touching.is_empty());
            for number in overlay.planned.keys().copied().collect::<Vec<_>>() {
                overlay.settle(number);
            }
            assert!(overlay.touching.is_empty(), "nothing is left of settled groups");
        }
    }

    /// What a group looks at is what it was before a later group changed it, whatever else is committed meanwhile.
    #[test]
    fn a_group_is_not_refused_for_what_was_decided_after_it() {
        let task = |id: &str| Object::from(Task { id: id.into(), ..Default::default() });
        let explain = |id: &str, err: &str| {
            let (task, err) = (id.to_owned(), err.to_owned());
            Patch::new(Write::Explain { task, err, at: std::time::UNIX_EPOCH })
        };
        let group = |patch| Group { tag: 0, patches: vec![patch] };
        let mut committed = Tables::default();
        for id in ["a", "b"] {
            committed.insert(task(id)).unwrap();
        }
        let mut overlay = Overlay::new(View::new(committed.clone(), 1));
        let mut journal = Journal::new(1);
        let guard = Guard::DesiredAtMost("b".into(), TaskState::Running);
        overlay.plan(1, group(explain("a", "decided").guard(guard))).unwrap();
        overlay.plan(2, group(Patch::new(Write::RaiseDesired("b".into(), TaskState::Shutdown)))).unwrap();

        let raised = group(Patch::new(Write::RaiseDesired("a".into(), TaskState::Running)));
        let events = apply_group(&mut committed, &raised).unwrap();
        overlay.commit(&events, &View::new(committed, 2), &mut journal, None);
        overlay.merge(&mut journal);
        assert_eq!(content(overlay.tables()), naive(&overlay));
        let a = overlay.tables().tasks().get("a").unwrap();
        assert_eq!((a.desired_state(), &*a.status.err), (TaskState::Running, "decided"));
    }

    #[test]
    fn a_view_with_gaps_shows_what_differs() {
        let task = |id: &str, slot| Object::from(Task { id: id.into(), slot, ..Default::default() });
        let mut old = Tables::default();
        for (id, slot) in [("a", 1), ("b", 1), ("d", 1)] {
            old.insert(task(id, slot)).unwrap();
        }
        let mut new = old.clone();
        new.remove(Kind::Task, "a").unwrap();
        new.replace(task("b", 2)).unwrap();
        new.insert(task("c", 1)).unwrap();
        new.insert(task("e", 1)).unwrap();
        let mut overlay = Overlay::new(View::new(old, 1));
        let mut journal = Journal::new(1);
        overlay.jump(&View::new(new, 9));
        overlay.merge(&mut journal);
        let news = journal.news(0);
        let ids: Vec<_> = news.iter().flat_map(|part| part.iter()).map(|e| e.id().to_owned()).collect();
        assert_eq!(ids, ["a", "b", "c", "e"]);
    }
}
