//! One table: objects in slots that are found by their id alone, the order of the ids, and index keys.

use std::cmp::Ordering;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use swarm_api::Shared;

use crate::index::{self, Moved, custom, ix, lower};
use crate::rows::Rows;
use crate::sorted::Sorted;
use crate::tables::{Indexed, id_of};
use crate::{Error, Result};

mod many;

/// The beginning of an id, as a number that sorts alike: 12 bytes hold 62 bits of a random one. Where two ids
/// begin alike, the objects themselves are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix(u64, u32);

impl Prefix {
    fn of(id: &str) -> Prefix {
        let mut bytes = [0; 12];
        let len = id.len().min(12);
        bytes[..len].copy_from_slice(&id.as_bytes()[..len]);
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Prefix(u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes([i, j, k, l]))
    }
}

/// An object in the order of ids.
#[derive(Clone, Copy, Debug, Default)]
struct IdEntry {
    prefix: Prefix,
    slot: u32,
}

/// An object under one of its keys.
#[derive(Clone, Copy, Debug, Default)]
struct KeyEntry {
    key: u64,
    prefix_high: u64,
    prefix_low: u32,
    slot: u32,
}

impl KeyEntry {
    fn new(key: u64, prefix: Prefix, slot: u32) -> KeyEntry {
        KeyEntry { key, prefix_high: prefix.0, prefix_low: prefix.1, slot }
    }

    fn prefix(&self) -> Prefix {
        Prefix(self.prefix_high, self.prefix_low)
    }
}

/// One kind's objects. Cloning takes O(1). Queries yield objects in the order of their ids, prefix queries on
/// an index in the order of the index key, then id.
#[derive(Clone, Debug)]
pub struct Table<T: Indexed> {
    rows: Rows<Shared<T>>,
    /// Objects whose slot is not the one that their id asks for, because another had it: a handful in a million.
    strays: OrdMap<Arc<str>, u32>,
    ids: Sorted<IdEntry>,
    keys: Sorted<KeyEntry>,
    /// Distinct texts of the indexes that are searched by prefix.
    texts: OrdSet<(u8, Arc<str>)>,
}

impl<T: Indexed> Default for Table<T> {
    fn default() -> Self {
        Table {
            rows: Rows::default(),
            strays: OrdMap::new(),
            ids: Sorted::default(),
            keys: Sorted::default(),
            texts: OrdSet::new(),
        }
    }
}

impl<T: Indexed> Table<T> {
    /// The object with this id.
    pub fn get(&self, id: &str) -> Option<&Shared<T>> {
        self.find(id).map(|(_, row)| row)
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// No object at all.
    pub fn is_empty(&self) -> bool {
        self.ids.len() == 0
    }

    /// Every object, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Shared<T>> + use<'_, T> {
        self.ids.iter().filter_map(|e| self.rows.get(e.slot))
    }

    /// Objects whose id begins so.
    pub fn by_id_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Shared<T>> {
        self.ids
            .range_from(self.id_position(prefix))
            .filter_map(|e| self.rows.get(e.slot))
            .take_while(move |o| id_of(o).starts_with(prefix))
    }

    /// Objects with this name; case does not matter. Nodes are named by their hostname, tasks by
    /// `service.slot.id`.
    pub fn by_name(&self, name: &str) -> impl Iterator<Item = &Shared<T>> + use<'_, T> {
        let name = lower(name);
        let has_name = |o: &T| o.name_text().is_some_and(|n| *lower(&n) == *name);
        let mut found: Vec<&Shared<T>> = self.by(index::text(ix::NAME, &name), has_name).collect();
        let named_by_id = T::id_in_name(&name).and_then(|id| self.get(id));
        if let Some(object) = named_by_id.filter(|o| o.is_named_by_id() && has_name(o)) {
            found.push(object);
            found.sort_by(|a, b| id_of(a).cmp(id_of(b)));
        }
        found.into_iter()
    }

    /// Objects whose name begins so; case does not matter.
    pub fn by_name_prefix(&self, prefix: &str) -> impl Iterator<Item = &Shared<T>> + use<'_, T> {
        let prefix = lower(prefix).into_owned();
        let mut found = Vec::new();
        if T::STEMS {
            // Stems that go on after the prefix, and stems that end within it.
            let within = prefix.match_indices('.').map(|(at, _)| &prefix[..at]);
            let stems: Vec<&str> = within.chain(self.texts_from(ix::NAME, &prefix)).collect();
            for stem in stems {
                for object in self.by(index::text(ix::STEM, stem), |o| has_stem(o, stem)) {
                    let name = object.name_text().map(|n| lower(&n).into_owned()).unwrap_or_default();
                    if name.starts_with(&prefix) {
                        found.push((name, object));
                    }
                }
            }
            found.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| id_of(x).cmp(id_of(y))));
            found.dedup_by(|(_, x), (_, y)| id_of(x) == id_of(y));
        } else {
            for name in self.texts_from(ix::NAME, &prefix) {
                found.extend(self.by_name(name).map(|o| (String::new(), o)));
            }
        }
        found.into_iter().map(|(_, object)| object)
    }

    /// Objects with this entry in `annotations.indices`.
    pub fn by_custom(&self, key: &str, value: &str) -> impl Iterator<Item = &Shared<T>> + use<'_, T> {
        self.by_custom_text(custom(key, value))
    }

    /// Objects with an entry in `annotations.indices` whose value begins so.
    pub fn by_custom_prefix(&self, key: &str, prefix: &str) -> impl Iterator<Item = &Shared<T>> + use<'_, T> {
        let texts: Vec<&str> = self.texts_from(ix::CUSTOM, &custom(key, prefix)).collect();
        texts.into_iter().flat_map(|text| self.by_custom_text(text.to_owned()))
    }

    fn by_custom_text(&self, text: String) -> impl Iterator<Item = &Shared<T>> + use<'_, T> {
        self.by(index::text(ix::CUSTOM, &text), move |o| {
            o.annotations().indices.iter().any(|entry| {
                text.strip_prefix(&*entry.key).and_then(|t| t.strip_prefix('|')) == Some(&*entry.val)
            })
        })
    }

    /// Objects under a key, those that really have it.
    pub(crate) fn by<F: Fn(&T) -> bool>(
        &self,
        key: u64,
        has: F,
    ) -> impl Iterator<Item = &Shared<T>> + use<'_, T, F> {
        self.keys
            .range_from(|e| e.key.cmp(&key).then(Ordering::Greater))
            .take_while(move |e| e.key == key)
            .filter_map(|e| self.rows.get(e.slot))
            .filter(move |o| has(o))
    }

    fn texts_from<'a>(&'a self, index: u8, prefix: &str) -> impl Iterator<Item = &'a str> + use<'a, T> {
        let prefix: Arc<str> = prefix.into();
        self.texts
            .range((index, prefix.clone())..)
            .take_while(move |(ix, text)| *ix == index && text.starts_with(&*prefix))
            .map(|(_, text)| &**text)
    }

    /// Where an entry stands relative to an id.
    fn id_position<'a>(&'a self, id: &'a str) -> impl Fn(&IdEntry) -> Ordering + 'a {
        let prefix = Prefix::of(id);
        move |e| e.prefix.cmp(&prefix).then_with(|| self.id_at(e.slot).cmp(id))
    }

    fn id_at(&self, slot: u32) -> &str {
        id_in(&self.rows, slot)
    }

    fn find(&self, id: &str) -> Option<(u32, &Shared<T>)> {
        let slot = index::home(id);
        match self.rows.get(slot) {
            Some(row) if id_of(row) == id => Some((slot, row)),
            _ if self.strays.is_empty() => None,
            _ => {
                let slot = *self.strays.get(id)?;
                Some((slot, self.rows.get(slot)?))
            }
        }
    }

    /// Puts an object that is new into a slot.
    fn place(&mut self, object: Shared<T>) -> u32 {
        let home = index::home(object.id());
        let mut slot = home;
        if self.rows.get(slot).is_some() {
            slot = index::scattered(object.id());
        }
        while self.rows.get(slot).is_some() {
            slot = slot.wrapping_add(1);
        }
        if slot != home {
            self.strays.insert(object.id().into(), slot);
        }
        self.rows.insert(slot, object);
        slot
    }

    /// Whether another object has this name.
    pub(crate) fn name_taken(&self, object: &T) -> bool {
        T::UNIQUE_NAME
            && object.name_text().is_some_and(|name| self.by_name(&name).any(|o| id_of(o) != object.id()))
    }

    pub(crate) fn insert(&mut self, object: Shared<T>) -> Result<()> {
        if self.name_taken(&object) {
            return Err(Error::NameConflict);
        }
        if self.find(object.id()).is_some() {
            return Err(Error::Exists);
        }
        let mut keys = Keys::default();
        keys.collect(&*object);
        let prefix = Prefix::of(object.id());
        let slot = self.place(object.clone());
        let rows = &self.rows;
        self.ids.insert(IdEntry { prefix, slot }, position(rows, prefix, object.id()));
        for key in keys.sorted() {
            self.insert_key(*key, prefix, slot, object.id());
        }
        if keys.texts {
            self.insert_texts(&*object, |_| true);
        }
        Ok(())
    }

    /// Puts another version of an object in the place of the one with its id, and returns that one. Index
    /// entries whose key stays are not touched.
    pub(crate) fn replace(&mut self, object: Shared<T>) -> Result<Shared<T>> {
        let Some((slot, old)) = self.find(object.id()).map(|(slot, row)| (slot, row.clone())) else {
            let taken = self.name_taken(&object);
            return Err(if taken { Error::NameConflict } else { Error::NotExist });
        };
        if T::RENAME_CHECKED && old.name_text() != object.name_text() && self.name_taken(&object) {
            return Err(Error::NameConflict);
        }
        self.rows.insert(slot, object.clone());
        self.reindex(slot, &old, &object);
        Ok(old)
    }

    fn reindex(&mut self, slot: u32, old: &T, new: &T) {
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        let told = new.moved_keys(old, &mut |moved| match moved {
            Moved::Away(key) => gone.push(key),
            Moved::Here(key) => come.push(key),
        });
        if told {
            let prefix = Prefix::of(new.id());
            gone.iter().for_each(|key| self.remove_key(*key, prefix, new.id()));
            come.iter().for_each(|key| self.insert_key(*key, prefix, slot, new.id()));
            return;
        }
        let (mut before, mut after) = (Keys::default(), Keys::default());
        before.collect(old);
        after.collect(new);
        let (before_keys, after_keys) = (before.sorted(), after.sorted());
        if before_keys == after_keys {
            return;
        }
        let prefix = Prefix::of(new.id());
        let mut texts_gone = false;
        for key in before_keys.iter().filter(|key| after_keys.binary_search(key).is_err()) {
            self.remove_key(*key, prefix, new.id());
            texts_gone = before.texts;
        }
        for key in after_keys.iter().filter(|key| before_keys.binary_search(key).is_err()) {
            self.insert_key(*key, prefix, slot, new.id());
        }
        if texts_gone {
            self.remove_texts(old, |key| after_keys.binary_search(&key).is_err());
        }
        if after.texts {
            self.insert_texts(new, |key| before_keys.binary_search(&key).is_err());
        }
    }

    pub(crate) fn delete(&mut self, id: &str) -> Result<Shared<T>> {
        let Some((slot, old)) = self.find(id).map(|(slot, row)| (slot, row.clone())) else {
            return Err(Error::NotExist);
        };
        let mut keys = Keys::default();
        keys.collect(&*old);
        let prefix = Prefix::of(id);
        for key in keys.sorted() {
            self.remove_key(*key, prefix, id);
        }
        self.ids.remove(position(&self.rows, prefix, id));
        if keys.texts {
            self.remove_texts(&*old, |_| true);
        }
        self.rows.remove(slot);
        if !self.strays.is_empty() {
            self.strays.remove(id);
        }
        Ok(old)
    }

    /// Puts an object in, whatever is there under its id.
    pub(crate) fn put(&mut self, object: Shared<T>) {
        match self.find(object.id()).map(|(slot, row)| (slot, row.clone())) {
            Some((slot, old)) => {
                self.rows.insert(slot, object.clone());
                self.reindex(slot, &old, &object);
            }
            None => {
                let mut keys = Keys::default();
                keys.collect(&*object);
                let prefix = Prefix::of(object.id());
                let slot = self.place(object.clone());
                self.ids.insert(IdEntry { prefix, slot }, position(&self.rows, prefix, object.id()));
                for key in keys.sorted() {
                    self.insert_key(*key, prefix, slot, object.id());
                }
                self.insert_texts(&*object, |_| true);
            }
        }
    }

    fn insert_key(&mut self, key: u64, prefix: Prefix, slot: u32, id: &str) {
        let rows = &self.rows;
        self.keys.insert(KeyEntry::new(key, prefix, slot), key_position(rows, key, prefix, id));
    }

    fn remove_key(&mut self, key: u64, prefix: Prefix, id: &str) {
        self.keys.remove(key_position(&self.rows, key, prefix, id));
    }

    fn insert_texts(&mut self, object: &T, wanted: impl Fn(u64) -> bool) {
        let texts = &mut self.texts;
        index::keys(object, &mut |key| {
            if let Some((index, text)) = key.text.filter(|_| wanted(key.hash)) {
                let entry = (index, Arc::from(text));
                if !texts.contains(&entry) {
                    texts.insert(entry);
                }
            }
        });
    }

    /// Forgets texts whose last object is gone from the keys.
    fn remove_texts(&mut self, object: &T, wanted: impl Fn(u64) -> bool) {
        let (texts, keys) = (&mut self.texts, &self.keys);
        index::keys(object, &mut |key| {
            if let Some((index, text)) = key.text.filter(|_| wanted(key.hash))
                && keys.range_from(|e| e.key.cmp(&key.hash).then(Ordering::Greater)).next().map(|e| e.key)
                    != Some(key.hash)
            {
                texts.remove(&(index, Arc::from(text)));
            }
        });
    }

    /// A table of these objects, all at once.
    ///
    /// # Errors
    /// Two have one id, or a name that must be unique.
    pub(crate) fn load(mut objects: Vec<Shared<T>>) -> Result<Table<T>> {
        let mut table = Table::<T>::default();
        objects.sort_by(|a, b| id_of(a).cmp(id_of(b)));
        if objects.windows(2).any(|pair| id_of(&pair[0]) == id_of(&pair[1])) {
            return Err(Error::Exists);
        }
        let mut ids = Vec::with_capacity(objects.len());
        let mut entries = Vec::with_capacity(objects.len() * 8);
        let mut keys = Keys::default();
        for object in objects {
            if T::RENAME_CHECKED && table.name_listed(&object) {
                return Err(Error::NameConflict);
            }
            let prefix = Prefix::of(object.id());
            keys.collect(&*object);
            if keys.texts {
                table.insert_texts(&*object, |_| true);
            }
            // The position stands for the slot until the entries are sorted: it goes by the id.
            let position = ids.len() as u32;
            ids.push(IdEntry { prefix, slot: table.place(object) });
            entries.extend(keys.sorted().iter().map(|key| KeyEntry::new(*key, prefix, position)));
            keys.clear();
        }
        entries.sort_unstable_by_key(|e| (e.key, e.slot));
        entries.iter_mut().for_each(|e| e.slot = ids[e.slot as usize].slot);
        table.ids = Sorted::from_sorted(&ids);
        table.keys = Sorted::from_sorted(&entries);
        Ok(table)
    }

    fn name_listed(&self, object: &T) -> bool {
        T::UNIQUE_NAME
            && object.name_text().is_some_and(|n| self.texts.contains(&(ix::NAME, Arc::from(&*lower(&n)))))
    }

    /// Calls `found` for each id whose objects differ, in the order of ids, with the old and the new one.
    pub(crate) fn differences<'a>(
        &'a self,
        new: &'a Table<T>,
        mut found: impl FnMut(Option<&'a Shared<T>>, Option<&'a Shared<T>>),
    ) {
        let (mut olds, mut news) = (Vec::new(), Vec::new());
        self.rows.differences(&new.rows, Shared::ptr_eq, |old, new| {
            olds.extend(old);
            news.extend(new);
        });
        olds.sort_by(|a, b| id_of(a).cmp(id_of(b)));
        news.sort_by(|a, b| id_of(a).cmp(id_of(b)));
        let (mut olds, mut news) = (olds.into_iter().peekable(), news.into_iter().peekable());
        loop {
            let order = match (olds.peek(), news.peek()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => id_of(a).cmp(id_of(b)),
            };
            let old = if order.is_le() { olds.next() } else { None };
            let new = if order.is_ge() { news.next() } else { None };
            if let (Some(a), Some(b)) = (old, new)
                && a == b
            {
                continue;
            }
            found(old, new);
        }
    }
}

fn has_stem<T: Indexed>(object: &T, stem: &str) -> bool {
    object.stem().is_some_and(|own| *lower(own) == *stem)
}

fn key_order<T: Indexed>(rows: &Rows<Shared<T>>, a: &KeyEntry, b: &KeyEntry) -> Ordering {
    (a.key, a.prefix()).cmp(&(b.key, b.prefix())).then_with(|| match a.slot == b.slot {
        true => Ordering::Equal,
        false => id_in(rows, a.slot).cmp(id_in(rows, b.slot)),
    })
}

fn id_in<T: Indexed>(rows: &Rows<Shared<T>>, slot: u32) -> &str {
    rows.get(slot).map_or("", |row| id_of(row))
}

fn position<'a, T: Indexed>(
    rows: &'a Rows<Shared<T>>,
    prefix: Prefix,
    id: &'a str,
) -> impl Fn(&IdEntry) -> Ordering + 'a {
    move |e| e.prefix.cmp(&prefix).then_with(|| id_in(rows, e.slot).cmp(id))
}

fn key_position<'a, T: Indexed>(
    rows: &'a Rows<Shared<T>>,
    key: u64,
    prefix: Prefix,
    id: &'a str,
) -> impl Fn(&KeyEntry) -> Ordering + 'a {
    move |e| (e.key, e.prefix()).cmp(&(key, prefix)).then_with(|| id_in(rows, e.slot).cmp(id))
}

/// The key hashes of an object.
#[derive(Default)]
struct Keys {
    hashes: Vec<u64>,
    /// Some of them have texts.
    texts: bool,
}

impl Keys {
    fn collect<T: Indexed>(&mut self, object: &T) {
        self.hashes.reserve(16);
        let (hashes, texts) = (&mut self.hashes, &mut self.texts);
        index::keys(object, &mut |key| {
            hashes.push(key.hash);
            *texts |= key.text.is_some();
        });
        hashes.sort_unstable();
        hashes.dedup();
    }

    fn sorted(&self) -> &[u64] {
        &self.hashes
    }

    fn clear(&mut self) {
        self.hashes.clear();
        self.texts = false;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use swarm_api::v1::Node;

    use super::*;

    fn node(id: &str, role: i32) -> Shared<Node> {
        Node { id: id.to_owned(), role, ..Default::default() }.into()
    }

    /// Two ids that ask for one slot.
    fn colliding() -> (String, String) {
        let mut homes = HashMap::new();
        let mut ids = (0..).map(|n| format!("id{n}"));
        loop {
            let id = ids.next().unwrap();
            if let Some(other) = homes.insert(index::home(&id), id.clone()) {
                return (other, id);
            }
        }
    }

    #[test]
    fn objects_whose_ids_ask_for_one_slot_are_all_found() {
        let (a, b) = colliding();
        let mut table = Table::default();
        table.insert(node(&a, 0)).unwrap();
        table.insert(node(&b, 0)).unwrap();
        assert_eq!(table.insert(node(&b, 0)).unwrap_err(), Error::Exists);
        assert_eq!(table.strays.len(), 1);
        assert_eq!((&table.get(&a).unwrap().id, &table.get(&b).unwrap().id), (&a, &b));
        table.replace(node(&b, 1)).unwrap();
        assert_eq!(table.get(&b).unwrap().role, 1);

        let loaded = Table::load(table.iter().cloned().collect()).unwrap();
        assert_eq!(loaded.get(&b), table.get(&b));
        assert_eq!(loaded.by_role(swarm_api::v1::NodeRole::Manager).count(), 1);
        let mut differences = 0;
        table.differences(&loaded, |_, _| differences += 1);
        assert_eq!(differences, 0);

        table.delete(&a).unwrap();
        assert_eq!(table.get(&a), None);
        assert_eq!(table.get(&b).unwrap().role, 1);
        table.put(node(&a, 0));
        assert_eq!(table.iter().count(), 2);
        table.delete(&b).unwrap();
        assert!(table.strays.is_empty() && table.get(&b).is_none());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn many_objects_whose_ids_ask_for_one_slot_are_all_found() {
        let (a, b) = colliding();
        for there in [false, true] {
            let mut table = Table::default();
            if there {
                table.insert(node(&a, 0)).unwrap();
            }
            let new: Vec<_> = [&a, &b]
                .into_iter()
                .skip(usize::from(there))
                .chain([&"c".to_owned()])
                .map(|id| node(id, 1))
                .collect();
            table.insert_many(&new).unwrap();
            assert_eq!((table.len(), table.strays.len()), (3, 1));
            assert_eq!(
                [&a, &b, "c"].map(|id| table.get(id).unwrap().id.clone()),
                [&a, &b, "c"].map(str::to_owned)
            );
            assert_eq!(table.by_role(swarm_api::v1::NodeRole::Manager).count(), new.len());
            assert_eq!(table.insert_many(&new).unwrap_err(), Error::Exists);
        }
    }

    #[test]
    fn an_object_under_a_key_that_it_only_collides_with_is_not_found() {
        let mut table = Table::default();
        table.insert(node("n1", 1)).unwrap();
        let key = index::number(ix::ROLE, 1);
        assert_eq!(table.by(key, |n| n.role == 1).count(), 1);
        assert_eq!(table.by(key, |n| n.role == 2).count(), 0);
    }
}
