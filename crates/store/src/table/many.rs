//! Many objects of a table at once.

use std::hint::black_box;

use swarm_api::v1::Task;
use swarm_api::{Object, Shared};

use super::{IdEntry, KeyEntry, Keys, Prefix, Table, id_in, key_order};
use crate::index::{self, Moved};
use crate::parallel::{both, merged};
use crate::rows::Rows;
use crate::sorted::Change;
use crate::tables::{Indexed, id_of};
use crate::{Error, Event, Result};

/// So many objects are looked up before any of them is changed.
const AHEAD: usize = 16;

/// An object of which there is another version now.
#[derive(Debug)]
pub(crate) struct Replaced<T: Indexed> {
    /// Where its id was in the list.
    pub(crate) at: u32,
    slot: u32,
    /// Which keys moved was easily told.
    told: bool,
    pub(crate) old: Shared<T>,
    pub(crate) new: Shared<T>,
}

impl<T: Indexed> Table<T> {
    /// Puts other versions of many objects in the place of those with these ids, and copies what is shared with other
    /// versions of the table once for all of them. `change` is given the place in `ids` and the object of each that is
    /// there, in no particular order, on two threads if there are many; `None` leaves it as it is. Of an id that comes
    /// twice the first counts. Returns what was replaced, by what, in the order of `ids`, with the place there. For kinds
    /// without unique names.
    pub(crate) fn replace_many(
        &mut self,
        ids: &[&str],
        change: impl Fn(usize, &Shared<T>) -> Option<Shared<T>> + Sync,
    ) -> Vec<Replaced<T>> {
        debug_assert!(!T::UNIQUE_NAME);
        // In the order of slots, whose neighbours are neighbours in memory.
        let mut order: Vec<(u32, u32)> = ids.iter().zip(0..).map(|(id, at)| (index::home(id), at)).collect();
        order.sort_unstable_by(|(a, x), (b, y)| {
            a.cmp(b).then_with(|| (ids[*x as usize], x).cmp(&(ids[*y as usize], y)))
        });
        order.dedup_by(|(a, x), (b, y)| a == b && ids[*x as usize] == ids[*y as usize]);
        let look = |part: &[(u32, u32)]| -> (Vec<Replaced<T>>, Vec<Change<KeyEntry>>) {
            let mut replaced = Vec::with_capacity(part.len());
            let mut changes = Vec::with_capacity(part.len() * 3);
            let mut found = Vec::with_capacity(AHEAD);
            for ahead in part.chunks(AHEAD) {
                let find = |(_, at): &(u32, u32)| self.find(ids[*at as usize]).map(|found| (*at, found));
                found.extend(ahead.iter().filter_map(find));
                // Memory is waited for once for all of them: whoever counts references waits for each.
                black_box(found.iter().fold(0, |all, (_, (_, old))| all ^ old.look()));
                for (at, (slot, old)) in found.drain(..) {
                    let Some(new) = change(at as usize, old) else { continue };
                    let prefix = Prefix::of(new.id());
                    let entry = |key| KeyEntry::new(key, prefix, slot);
                    let told = new.moved_keys(old, &mut |moved| {
                        changes.push(match moved {
                            Moved::Away(key) => Change::Drop(entry(key)),
                            Moved::Here(key) => Change::Put(entry(key)),
                        });
                    });
                    replaced.push(Replaced { at, slot, told, old: old.clone(), new });
                }
            }
            sort(&self.rows, &mut changes);
            (replaced, changes)
        };
        let (first, second) = order.split_at(order.len() / 2);
        let ((mut replaced, first), (others, second)) = both(order.len(), || look(first), || look(second));
        replaced.extend(others);
        let mut rows: Vec<(u32, Shared<T>)> = replaced.iter().map(|r| (r.slot, r.new.clone())).collect();
        // Those whose slot is not their home are somewhere else.
        if !rows.is_sorted_by_key(|(slot, _)| *slot) {
            rows.sort_unstable_by_key(|(slot, _)| *slot);
        }
        debug_assert!(rows.windows(2).all(|pair| pair[0].0 != pair[1].0), "each once");
        // Ids stay where they are.
        let ids = self.rows.clone();
        let order = |a: &KeyEntry, b: &KeyEntry| key_order(&ids, a, b);
        let changes = merged(first, second, |a, b| order(a.entry(), b.entry()));
        self.keys.apply(&changes, order, || self.rows.insert_many(&mut rows));
        for replaced in replaced.iter().filter(|replaced| !replaced.told) {
            self.reindex(replaced.slot, &replaced.old, &replaced.new);
        }
        replaced.sort_unstable_by_key(|replaced| replaced.at);
        replaced
    }

    /// Adds many objects, and copies what is shared with other versions of the table once for all of them; on two threads
    /// if they are many. For kinds without unique names.
    ///
    /// # Errors
    /// [`Error::Exists`] if one of the ids is there, or comes twice: nothing is changed then.
    pub(crate) fn insert_many(&mut self, objects: &[Shared<T>]) -> Result<()> {
        debug_assert!(!T::UNIQUE_NAME);
        if objects.is_empty() {
            return Ok(());
        }
        let mut order: Vec<(u32, &Shared<T>)> = objects.iter().map(|o| (index::home(o.id()), o)).collect();
        order.sort_unstable_by(|(a, x), (b, y)| a.cmp(b).then_with(|| id_of(x).cmp(id_of(y))));
        let twice = order.windows(2).any(|pair| id_of(pair[0].1) == id_of(pair[1].1));
        if twice || order.iter().any(|(_, object)| self.find(object.id()).is_some()) {
            return Err(Error::Exists);
        }
        // Those whose home is taken, by one that is there or by one of these, come alone.
        let mut last = None;
        let (own, strays): (Vec<_>, Vec<_>) = order.into_iter().partition(|(slot, _)| {
            let first = last.replace(*slot) != Some(*slot);
            first && self.rows.get(*slot).is_none()
        });
        let mut rows: Vec<(u32, Shared<T>)> = own.iter().map(|(slot, o)| (*slot, (*o).clone())).collect();
        self.rows.insert_many(&mut rows);
        // Ids that begin alike are told apart by the objects themselves.
        let rows = self.rows.clone();
        let look = |part: &[(u32, &Shared<T>)]| {
            let mut changes = Vec::with_capacity(part.len() * 8);
            let (mut keys, mut texts) = (Keys::default(), false);
            for (slot, object) in part {
                let prefix = Prefix::of(object.id());
                keys.collect(&***object);
                changes
                    .extend(keys.sorted().iter().map(|key| Change::Put(KeyEntry::new(*key, prefix, *slot))));
                texts |= keys.texts;
                keys.clear();
            }
            sort(&rows, &mut changes);
            (changes, texts)
        };
        let ids = &mut self.ids;
        let mut list = || {
            let order = |a: &IdEntry, b: &IdEntry| {
                a.prefix.cmp(&b.prefix).then_with(|| match a.slot == b.slot {
                    true => std::cmp::Ordering::Equal,
                    false => id_in(&rows, a.slot).cmp(id_in(&rows, b.slot)),
                })
            };
            let put = |(slot, o): &(u32, &Shared<T>)| {
                Change::Put(IdEntry { prefix: Prefix::of(o.id()), slot: *slot })
            };
            let mut changes: Vec<_> = own.iter().map(put).collect();
            changes.sort_unstable_by(|a, b| order(a.entry(), b.entry()));
            ids.apply(&changes, order, || ());
        };
        let (first, second) = own.split_at(own.len() / 2);
        let look_and_list = move || {
            let found = look(second);
            list();
            found
        };
        let ((first, some), (second, others)) = both(own.len(), || look(first), look_and_list);
        let order = |a: &KeyEntry, b: &KeyEntry| key_order(&rows, a, b);
        self.keys.apply(&merged(first, second, |a, b| order(a.entry(), b.entry())), order, || ());
        if some || others {
            own.iter().for_each(|(_, object)| self.insert_texts(&***object, |_| true));
        }
        strays.into_iter().try_for_each(|(_, object)| self.insert(object.clone()))
    }
}

/// Puts changes into their order. Where they come in the order of ids, each key's are in it already.
fn sort<T: Indexed>(rows: &Rows<Shared<T>>, changes: &mut [Change<KeyEntry>]) {
    changes.sort_by_key(|change| change.entry().key);
    let order = |a: &Change<KeyEntry>, b: &Change<KeyEntry>| key_order(rows, a.entry(), b.entry());
    if !changes.is_sorted_by(|a, b| order(a, b).is_le()) {
        changes.sort_unstable_by(order);
    }
}

impl From<Replaced<Task>> for Event {
    fn from(replaced: Replaced<Task>) -> Event {
        Event::Updated { old: Object::Task(replaced.old), new: Object::Task(replaced.new) }
    }
}
