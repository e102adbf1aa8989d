//! The objects of a table by slot number: a persistent radix tree over 32-bit numbers that come of ids
//! (`table.rs` gives them out). A look-up touches one cache line a level and compares no texts on its way.

use std::sync::Arc;

/// Values in a bucket. Copying one touches the reference count of each, so it is small.
const BUCKET: usize = 8;
/// Children of an inner node.
const FAN: usize = 16;

#[derive(Clone, Debug)]
struct Bucket<V> {
    len: usize,
    /// In no order.
    slots: [u32; BUCKET],
    values: [V; BUCKET],
}

#[derive(Clone, Debug)]
enum Node<V> {
    Bucket(Arc<Bucket<V>>),
    Inner(Arc<[Option<Node<V>>; FAN]>),
}

/// See the module. Cloning takes O(1).
#[derive(Clone, Debug)]
pub(crate) struct Rows<V> {
    root: Option<Node<V>>,
}

impl<V> Default for Rows<V> {
    fn default() -> Self {
        Rows { root: None }
    }
}

/// The child of an inner node at this depth: four bits, from the top.
fn child(slot: u32, depth: u32) -> usize {
    (slot >> (28 - 4 * depth)) as usize & (FAN - 1)
}

impl<V: Clone + Default> Bucket<V> {
    fn new() -> Bucket<V> {
        Bucket { len: 0, slots: [0; BUCKET], values: std::array::from_fn(|_| V::default()) }
    }

    fn find(&self, slot: u32) -> Option<usize> {
        self.slots[..self.len].iter().position(|s| *s == slot)
    }

    fn push(&mut self, slot: u32, value: V) {
        self.slots[self.len] = slot;
        self.values[self.len] = value;
        self.len += 1;
    }

    fn entries(&self) -> impl Iterator<Item = (u32, &V)> {
        self.slots[..self.len].iter().copied().zip(&self.values)
    }
}

impl<V: Clone + Default> Node<V> {
    fn insert(&mut self, slot: u32, value: V, depth: u32) {
        match self {
            Node::Inner(inner) => match &mut Arc::make_mut(inner)[child(slot, depth)] {
                Some(node) => node.insert(slot, value, depth + 1),
                empty => {
                    let mut bucket = Bucket::new();
                    bucket.push(slot, value);
                    *empty = Some(Node::Bucket(Arc::new(bucket)));
                }
            },
            Node::Bucket(bucket) => {
                if let Some(at) = bucket.find(slot) {
                    Arc::make_mut(bucket).values[at] = value;
                } else if bucket.len < BUCKET {
                    Arc::make_mut(bucket).push(slot, value);
                } else {
                    // Nine different numbers differ in the bits that are left.
                    let full = bucket.clone();
                    *self = Node::Inner(Arc::new(std::array::from_fn(|_| None)));
                    for (slot, value) in full.entries() {
                        self.insert(slot, value.clone(), depth);
                    }
                    self.insert(slot, value, depth);
                }
            }
        }
    }

    /// Puts many values in, which are taken out of `entries`; those are in the order of their slots.
    fn insert_many(&mut self, entries: &mut [(u32, V)], depth: u32) {
        match self {
            Node::Inner(inner) => {
                let inner = Arc::make_mut(inner);
                let mut rest = entries;
                while let Some((slot, _)) = rest.first() {
                    let at = child(*slot, depth);
                    let (own, others) =
                        rest.split_at_mut(rest.partition_point(|(s, _)| child(*s, depth) == at));
                    inner[at]
                        .get_or_insert_with(|| Node::Bucket(Arc::new(Bucket::new())))
                        .insert_many(own, depth + 1);
                    rest = others;
                }
            }
            Node::Bucket(bucket) => {
                let bucket = Arc::make_mut(bucket);
                for at in 0..entries.len() {
                    let (slot, value) = std::mem::take(&mut entries[at]);
                    match bucket.find(slot) {
                        Some(there) => bucket.values[there] = value,
                        None if bucket.len < BUCKET => bucket.push(slot, value),
                        None => {
                            self.insert(slot, value, depth);
                            return self.insert_many(&mut entries[at + 1..], depth);
                        }
                    }
                }
            }
        }
    }

    /// Takes a value out; says whether nothing is left.
    fn remove(&mut self, slot: u32, depth: u32) -> bool {
        match self {
            Node::Inner(inner) => {
                let inner = Arc::make_mut(inner);
                let node = &mut inner[child(slot, depth)];
                if node.as_mut().is_some_and(|node| node.remove(slot, depth + 1)) {
                    *node = None;
                    return inner.iter().all(Option::is_none);
                }
                false
            }
            Node::Bucket(bucket) => {
                if let Some(at) = bucket.find(slot) {
                    let bucket = Arc::make_mut(bucket);
                    bucket.len -= 1;
                    bucket.slots.swap(at, bucket.len);
                    bucket.values.swap(at, bucket.len);
                    bucket.values[bucket.len] = V::default();
                }
                bucket.len == 0
            }
        }
    }

    fn collect<'a>(&'a self, entries: &mut Vec<(u32, &'a V)>) {
        match self {
            Node::Bucket(bucket) => entries.extend(bucket.entries()),
            Node::Inner(inner) => inner.iter().flatten().for_each(|node| node.collect(entries)),
        }
    }
}

impl<V: Clone + Default> Rows<V> {
    pub(crate) fn get(&self, slot: u32) -> Option<&V> {
        let mut node = self.root.as_ref()?;
        let mut depth = 0;
        loop {
            match node {
                Node::Inner(inner) => node = inner[child(slot, depth)].as_ref()?,
                Node::Bucket(bucket) => return bucket.find(slot).map(|at| &bucket.values[at]),
            }
            depth += 1;
        }
    }

    /// Puts a value into a slot, whatever is there.
    pub(crate) fn insert(&mut self, slot: u32, value: V) {
        self.root.get_or_insert_with(|| Node::Bucket(Arc::new(Bucket::new()))).insert(slot, value, 0);
    }

    /// Puts many values into their slots, whatever is there, and copies what is shared with other versions once for
    /// all of them. The entries are in the order of their slots, and are left without their values.
    pub(crate) fn insert_many(&mut self, entries: &mut [(u32, V)]) {
        debug_assert!(entries.is_sorted_by_key(|(slot, _)| *slot));
        if !entries.is_empty() {
            self.root.get_or_insert_with(|| Node::Bucket(Arc::new(Bucket::new()))).insert_many(entries, 0);
        }
    }

    /// Empties a slot.
    pub(crate) fn remove(&mut self, slot: u32) {
        if self.root.as_mut().is_some_and(|root| root.remove(slot, 0)) {
            self.root = None;
        }
    }

    /// Calls `found` with the values that only the one or only the other has in a slot. What both share is
    /// skipped in whole subtrees.
    pub(crate) fn differences<'a>(
        &'a self,
        other: &'a Rows<V>,
        same: impl Fn(&V, &V) -> bool,
        mut found: impl FnMut(Option<&'a V>, Option<&'a V>),
    ) {
        differences(self.root.as_ref(), other.root.as_ref(), &same, &mut found);
    }
}

fn differences<'a, V: Clone + Default>(
    a: Option<&'a Node<V>>,
    b: Option<&'a Node<V>>,
    same: &impl Fn(&V, &V) -> bool,
    found: &mut impl FnMut(Option<&'a V>, Option<&'a V>),
) {
    match (a, b) {
        (Some(Node::Inner(a)), Some(Node::Inner(b))) => {
            if !Arc::ptr_eq(a, b) {
                for (a, b) in a.iter().zip(&**b) {
                    differences(a.as_ref(), b.as_ref(), same, found);
                }
            }
        }
        (Some(Node::Bucket(a)), Some(Node::Bucket(b))) if Arc::ptr_eq(a, b) => {}
        _ => {
            let (mut olds, mut news) = (Vec::new(), Vec::new());
            a.into_iter().for_each(|node| node.collect(&mut olds));
            b.into_iter().for_each(|node| node.collect(&mut news));
            news.sort_unstable_by_key(|(slot, _)| *slot);
            let mut in_both = vec![false; news.len()];
            for (slot, old) in olds {
                match news.binary_search_by_key(&slot, |(slot, _)| *slot) {
                    Ok(at) => {
                        in_both[at] = true;
                        if !same(old, news[at].1) {
                            found(Some(old), Some(news[at].1));
                        }
                    }
                    Err(_) => found(Some(old), None),
                }
            }
            for ((_, new), _) in news.iter().zip(in_both).filter(|(_, in_both)| !in_both) {
                found(None, Some(*new));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entries(rows: &Rows<u32>) -> BTreeMap<u32, u32> {
        let mut entries = Vec::new();
        rows.root.iter().for_each(|root| root.collect(&mut entries));
        entries.into_iter().map(|(slot, value)| (slot, *value)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

        #[test]
        fn rows_are_a_map_and_older_versions_stay(
            ops in prop::collection::vec((0u8..3, any::<u32>(), any::<u32>()), 1..400),
            start in 0u32..600,
            crowded in any::<bool>(),
        ) {
            let spread = |n: u32| if crowded { n % 300 } else { n.wrapping_mul(0x9e37_79b9) };
            let mut model: BTreeMap<u32, u32> = (0..start).map(|n| (spread(n), n)).collect();
            let mut rows = Rows::default();
            for (slot, value) in &model {
                rows.insert(*slot, *value);
            }
            let (old, old_model) = (rows.clone(), model.clone());
            for (op, n, value) in ops {
                let some = model.keys().nth(n as usize % model.len().max(1)).copied();
                match (op, some) {
                    (0, Some(slot)) => {
                        rows.remove(slot);
                        model.remove(&slot);
                    }
                    (1, Some(slot)) => {
                        rows.insert(slot, value);
                        model.insert(slot, value);
                    }
                    _ => {
                        rows.insert(spread(n), value);
                        model.insert(spread(n), value);
                    }
                }
                rows.remove(spread(n).wrapping_add(1_000_000_007));
                model.remove(&spread(n).wrapping_add(1_000_000_007));
            }
            prop_assert_eq!(&entries(&rows), &model);
            prop_assert_eq!(&entries(&old), &old_model);
            for slot in model.keys().chain(old_model.keys()) {
                prop_assert_eq!(rows.get(*slot), model.get(slot));
                prop_assert_eq!(old.get(*slot), old_model.get(slot));
            }
            let slots: std::collections::BTreeSet<u32> = model.keys().chain(old_model.keys()).copied().collect();
            let mut expected: Vec<_> = slots
                .iter()
                .map(|slot| (old_model.get(slot), model.get(slot)))
                .filter(|(a, b)| a != b)
                .collect();
            let mut found = Vec::new();
            old.differences(&rows, |a, b| a == b, |a, b| found.push((a, b)));
            expected.sort();
            found.sort();
            prop_assert_eq!(found, expected);
            let mut many: Vec<(u32, u32)> =
                model.iter().step_by(2).map(|(s, v)| (*s, v ^ 1)).chain((0..start / 2).map(|n| (n << 22, n))).collect();
            many.sort_by_key(|(slot, _)| *slot);
            let (before, before_model) = (rows.clone(), model.clone());
            model.extend(many.iter().copied());
            rows.insert_many(&mut many);
            prop_assert_eq!(&entries(&rows), &model);
            prop_assert_eq!(&entries(&before), &before_model);
            for slot in model.keys() {
                rows.remove(*slot);
            }
            prop_assert!(rows.root.is_none());
        }
    }
}
