//! A transaction: changes on staged tables.

use std::ops::Deref;
use std::time::SystemTime;

use swarm_api::hash::FastMap;
use swarm_api::v1::{StoreAction, StoreActionKind, Task};
use swarm_api::{Object, Shared};

use crate::{Error, Event, Indexed, Result, Tables};

/// A transaction under way. It reads like [`Tables`], its own changes included.
#[derive(Debug)]
pub struct Tx {
    tables: Tables,
    events: Vec<Event>,
    version: u64,
    now: SystemTime,
    check_versions: bool,
}

impl Tx {
    pub(crate) fn new(tables: Tables, version: u64, now: SystemTime, check_versions: bool) -> Tx {
        Tx { tables, events: Vec::new(), version, now, check_versions }
    }

    /// The time that this transaction stamps on objects.
    pub fn now(&self) -> SystemTime {
        self.now
    }

    /// Adds an object. Its version and times are set; the stored object is returned.
    pub fn create<T: Indexed>(&mut self, object: impl Into<Shared<T>>) -> Result<Shared<T>> {
        let mut object = object.into();
        let (version, now) = (self.version, self.now.into());
        let meta = object.meta_mut();
        meta.version.index = version;
        meta.created_at.get_or_insert(now);
        meta.updated_at = Some(now);
        let event = self.tables.insert(T::into_object(object.clone()))?;
        self.events.push(event);
        Ok(object)
    }

    /// Replaces an object; its version must be the stored one, so read it, change it, and give it back.
    pub fn update<T: Indexed>(&mut self, object: impl Into<Shared<T>>) -> Result<Shared<T>> {
        let mut object = object.into();
        let table = T::table(&self.tables);
        let stored = table.get(object.id());
        if stored.is_none_or(|s| s.name_text() != object.name_text()) && table.name_taken(&object) {
            return Err(Error::NameConflict);
        }
        let stored = stored.ok_or(Error::NotExist)?;
        if self.check_versions && stored.meta().version != object.meta().version {
            return Err(Error::Sequence);
        }
        let (version, now) = (self.version, self.now.into());
        let meta = object.meta_mut();
        meta.version.index = version;
        meta.updated_at = Some(now);
        let event = self.tables.replace(T::into_object(object.clone()))?;
        self.events.push(event);
        Ok(object)
    }

    /// Replaces many tasks at once, which costs a fraction of as many updates. `change` is given the place in `ids` and
    /// the task of each that is there, in no particular order, and says what becomes of it; `None` leaves it as it is,
    /// as does a task that is gone. It does not see what it said of others. Of an id that comes twice, the first counts.
    /// Returns the places of those that were replaced, in order.
    pub fn update_tasks(
        &mut self,
        ids: &[&str],
        change: impl Fn(usize, &Shared<Task>) -> Option<Task> + Sync,
    ) -> Vec<usize> {
        let (version, now) = (self.version, Some(self.now.into()));
        let replaced = self.tables.tasks_mut().replace_many(ids, |at, old| {
            let mut new = change(at, old)?;
            new.meta.version.index = version;
            new.meta.updated_at = now;
            Some(Shared::from(new))
        });
        let places = replaced.iter().map(|replaced| replaced.at as usize).collect();
        self.events.extend(replaced.into_iter().map(Event::from));
        places
    }

    /// Adds many tasks at once, which costs a fraction of as many [`Tx::create`].
    ///
    /// # Errors
    /// [`Error::Exists`] if one of the ids is there, or comes twice: nothing is changed then.
    pub fn create_tasks(&mut self, tasks: impl IntoIterator<Item = Shared<Task>>) -> Result<()> {
        let (version, now) = (self.version, self.now.into());
        let stamped = |mut task: Shared<Task>| {
            let meta = &mut task.meta;
            meta.version.index = version;
            meta.created_at.get_or_insert(now);
            meta.updated_at = Some(now);
            task
        };
        let tasks: Vec<Shared<Task>> = tasks.into_iter().map(stamped).collect();
        self.tables.insert_tasks(&tasks)?;
        self.events.extend(tasks.into_iter().map(|task| Event::Created(Object::Task(task))));
        Ok(())
    }

    /// Removes an object and returns it as it was.
    pub fn remove<T: Indexed>(&mut self, id: &str) -> Result<Shared<T>> {
        let event = self.tables.remove(T::KIND, id)?;
        let old = T::from_object(event.object()).cloned().unwrap_or_default();
        self.events.push(event);
        Ok(old)
    }

    /// Runs a part of the transaction that is undone as a whole if it fails, while the rest goes on.
    pub fn group<R, E>(&mut self, f: impl FnOnce(&mut Tx) -> Result<R, E>) -> Result<R, E> {
        let changes = self.events.len();
        let result = f(self);
        if result.is_err() {
            self.undo(changes);
        }
        result
    }

    /// Takes back all but so many changes. (Keeping the tables as they were would make every change after that
    /// copy its nodes again.)
    pub(crate) fn undo(&mut self, changes: usize) {
        self.tables.take_back(self.events.drain(changes..));
    }

    /// Makes several changes of one task one change, in the place of the first. For transactions that take tasks
    /// through several steps at once; to be called last, and not within a group. Tasks have no unique names, so
    /// their changes may move.
    pub fn merge_task_changes(&mut self) {
        // Looked up only: the order is that of the changes.
        let mut first =
            FastMap::<&str, usize>::with_capacity_and_hasher(self.events.len(), Default::default());
        let mut places = Vec::with_capacity(self.events.len());
        for (at, event) in self.events.iter().enumerate() {
            places.push(match event.object() {
                Object::Task(task) => *first.entry(&task.id).or_insert(at),
                _ => at,
            });
        }
        if places.iter().enumerate().all(|(at, place)| at == *place) {
            return;
        }
        let mut merged: Vec<Option<Event>> = Vec::with_capacity(self.events.len());
        for (event, at) in self.events.drain(..).zip(places) {
            if at == merged.len() {
                merged.push(Some(event));
                continue;
            }
            merged.push(None);
            merged[at] = match (merged[at].take(), event) {
                (Some(Event::Created(_)), Event::Updated { new, .. }) => Some(Event::Created(new)),
                (Some(Event::Created(_)), Event::Removed(_)) => None,
                (Some(Event::Updated { old, .. }), Event::Updated { new, .. }) => {
                    Some(Event::Updated { old, new })
                }
                (Some(Event::Updated { old, .. }), Event::Removed(_)) => Some(Event::Removed(old)),
                (Some(Event::Removed(old)), Event::Created(new)) => Some(Event::Updated { old, new }),
                (_, event) => Some(event),
            };
        }
        self.events = merged.into_iter().flatten().collect();
    }

    /// The changes so far, in order.
    pub fn changes(&self) -> &[Event] {
        &self.events
    }

    /// Nothing was changed so far.
    pub fn is_unchanged(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) fn into_parts(self) -> (Tables, Vec<Event>) {
        (self.tables, self.events)
    }
}

impl Deref for Tx {
    type Target = Tables;
    fn deref(&self) -> &Tables {
        &self.tables
    }
}

/// The action of a log entry that makes this change.
pub(crate) fn action(event: &Event) -> StoreAction {
    fn action(kind: StoreActionKind, object: &Object) -> StoreAction {
        StoreAction { action: kind as i32, target: Some(object.to_target()) }
    }
    match event {
        Event::Created(o) => action(StoreActionKind::StoreActionCreate, o),
        Event::Updated { new, .. } => action(StoreActionKind::StoreActionUpdate, new),
        Event::Removed(o) => action(StoreActionKind::StoreActionRemove, o),
    }
}

/// The actions of a log entry that make these changes.
pub(crate) fn actions(events: &[Event]) -> Vec<StoreAction> {
    events.iter().map(action).collect()
}
