//! A persistent sorted sequence of small `Copy` entries: a B+ tree whose nodes are shared between versions.
//!
//! Made for index entries of 16 to 24 bytes. A leaf is copied as plain memory, with no reference counts to
//! touch, which is where general persistent maps spend their time (`docs/decisions/0007-tables.md`). The order is
//! not the entries' own: each operation brings a function that says where an entry stands relative to what is
//! looked for, so ties may be broken by what an entry refers to.

use std::cmp::Ordering;
use std::hint::black_box;
use std::sync::Arc;

use crate::parallel::{MANY, both};

/// Entries in a leaf: less than 1 KiB of them, which is what allocators hand out and take back fastest.
const LEAF: usize = 40;
/// So few changes are made one after the other in a leaf.
const FEW: usize = 4;
/// Children of an inner node. Copying one touches the reference count of each, so it is small.
const FAN: usize = 8;
/// Many changes are shared out by parts of the tree, about so many.
const SHARES: usize = 64;

/// Its length comes first, beside the reference counts.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Leaf<E> {
    len: usize,
    items: [E; LEAF],
}

#[derive(Clone, Debug)]
struct Inner<E> {
    len: usize,
    /// The first entry beneath each child; always one that is still in the tree.
    firsts: [E; FAN],
    nodes: [Option<Node<E>>; FAN],
}

#[derive(Clone, Debug)]
enum Node<E> {
    Leaf(Arc<Leaf<E>>),
    Inner(Arc<Inner<E>>),
}

/// See the module. Cloning takes O(1).
#[derive(Clone, Debug)]
pub(crate) struct Sorted<E> {
    root: Option<Node<E>>,
    len: usize,
}

impl<E> Default for Sorted<E> {
    fn default() -> Self {
        Sorted { root: None, len: 0 }
    }
}

impl<E: Copy + Default> Leaf<E> {
    fn new(from: &[E]) -> Leaf<E> {
        let mut items = [E::default(); LEAF];
        items[..from.len()].copy_from_slice(from);
        Leaf { len: from.len(), items }
    }

    fn entries(&self) -> &[E] {
        &self.items[..self.len]
    }

    fn insert(&mut self, at: usize, entry: E) {
        self.items.copy_within(at..self.len, at + 1);
        self.items[at] = entry;
        self.len += 1;
    }

    /// Makes a change for which there is room. Returns how many entries more there are.
    fn change(&mut self, change: &Change<E>, order: &impl Fn(&E, &E) -> Ordering) -> isize {
        let entry = change.entry();
        let at = self.entries().partition_point(|e| order(e, entry).is_lt());
        let there = self.entries().get(at).is_some_and(|e| order(e, entry).is_eq());
        match (change, there) {
            (Change::Put(entry), true) => self.items[at] = *entry,
            (Change::Put(entry), false) => {
                self.insert(at, *entry);
                return 1;
            }
            (Change::Drop(_), true) => {
                self.items.copy_within(at + 1..self.len, at);
                self.len -= 1;
                return -1;
            }
            (Change::Drop(_), false) => {}
        }
        0
    }
}

impl<E: Copy + Default> Inner<E> {
    fn new(nodes: impl Iterator<Item = Node<E>>) -> Inner<E> {
        let mut inner = Inner { len: 0, firsts: [E::default(); FAN], nodes: std::array::from_fn(|_| None) };
        for node in nodes {
            inner.insert(inner.len, node);
        }
        inner
    }

    /// The child in which an entry at this position is, or belongs.
    fn child(&self, position: &impl Fn(&E) -> Ordering) -> usize {
        self.firsts[..self.len].partition_point(|first| position(first).is_le()).saturating_sub(1)
    }

    /// Tells of each child: its first entry, itself, and those of these changes that are its own.
    fn share_out<'a, 'c>(
        &'a self,
        changes: &'c [Change<E>],
        order: &impl Fn(&E, &E) -> Ordering,
        mut tell: impl FnMut(E, &'a Node<E>, &'c [Change<E>]),
    ) {
        let mut rest = changes;
        for (at, child) in self.nodes[..self.len].iter().enumerate() {
            let Some(child) = child else { continue };
            let own = match self.firsts[..self.len].get(at + 1) {
                Some(next) => rest.partition_point(|c| order(c.entry(), next).is_lt()),
                None => rest.len(),
            };
            tell(self.firsts[at], child, &rest[..own]);
            rest = &rest[own..];
        }
    }

    fn insert(&mut self, at: usize, node: Node<E>) {
        self.firsts.copy_within(at..self.len, at + 1);
        self.nodes[at..=self.len].rotate_right(1);
        self.firsts[at] = node.first();
        self.nodes[at] = Some(node);
        self.len += 1;
    }

    fn remove(&mut self, at: usize) -> Option<Node<E>> {
        let node = self.nodes[at].take();
        self.firsts.copy_within(at + 1..self.len, at);
        self.nodes[at..self.len].rotate_left(1);
        self.len -= 1;
        node
    }

    /// Joins a child that has become small with a neighbour, if both fit into one with room to spare.
    fn join(&mut self, at: usize) {
        let size = |at: usize| self.nodes.get(at).and_then(Option::as_ref).map(Node::fill);
        let Some(own) = size(at) else { return };
        if own.0 * 4 > own.1 {
            return;
        }
        let left = if at + 1 < self.len {
            at
        } else if at > 0 {
            at - 1
        } else {
            return;
        };
        let (Some(a), Some(b)) = (size(left), size(left + 1)) else { return };
        if (a.0 + b.0) * 4 > a.1 * 3 {
            return;
        }
        match (self.remove(left + 1), &mut self.nodes[left]) {
            (Some(Node::Leaf(right)), Some(Node::Leaf(leaf))) => {
                let leaf = Arc::make_mut(leaf);
                for entry in right.entries() {
                    leaf.insert(leaf.len, *entry);
                }
            }
            (Some(Node::Inner(right)), Some(Node::Inner(inner))) => {
                let inner = Arc::make_mut(inner);
                for node in right.nodes.iter().flatten() {
                    inner.insert(inner.len, node.clone());
                }
            }
            _ => unreachable!("all leaves have the same depth"),
        }
    }
}

impl<E: Copy + Default> Node<E> {
    fn first(&self) -> E {
        match self {
            Node::Leaf(leaf) => leaf.items[0],
            Node::Inner(inner) => inner.firsts[0],
        }
    }

    /// How many entries or children it has, and how many it can have.
    fn fill(&self) -> (usize, usize) {
        match self {
            Node::Leaf(leaf) => (leaf.len, LEAF),
            Node::Inner(inner) => (inner.len, FAN),
        }
    }

    /// Puts an entry in. If the node was full, its right half is returned. The flag says whether the entry is
    /// new rather than a replacement of an equal one.
    fn insert(&mut self, entry: E, position: &impl Fn(&E) -> Ordering) -> (bool, Option<Node<E>>) {
        match self {
            Node::Leaf(leaf) => {
                let at = leaf.entries().partition_point(|e| position(e).is_lt());
                let leaf = Arc::make_mut(leaf);
                if at < leaf.len && position(&leaf.items[at]).is_eq() {
                    leaf.items[at] = entry;
                    return (false, None);
                }
                if leaf.len < LEAF {
                    leaf.insert(at, entry);
                    return (true, None);
                }
                // Entries that come in order leave full leaves behind.
                let middle = if at == LEAF { LEAF } else { LEAF / 2 };
                let mut right = Leaf::new(&leaf.items[middle..]);
                leaf.len = middle;
                if at < middle {
                    leaf.insert(at, entry);
                } else {
                    right.insert(at - middle, entry);
                }
                (true, Some(Node::Leaf(Arc::new(right))))
            }
            Node::Inner(inner) => {
                let at = inner.child(position);
                let inner = Arc::make_mut(inner);
                let Some(child) = &mut inner.nodes[at] else { unreachable!("a child below its length") };
                let (new, split) = child.insert(entry, position);
                inner.firsts[at] = child.first();
                let Some(node) = split else { return (new, None) };
                if inner.len < FAN {
                    inner.insert(at + 1, node);
                    return (new, None);
                }
                let middle = if at + 1 == FAN { FAN } else { FAN / 2 };
                let mut right = Inner::new(inner.nodes[middle..].iter_mut().filter_map(Option::take));
                inner.len = middle;
                if at < middle && middle < FAN {
                    inner.insert(at + 1, node);
                } else {
                    right.insert(at + 1 - middle, node);
                }
                (new, Some(Node::Inner(Arc::new(right))))
            }
        }
    }

    /// Makes changes, which are in order, and puts what becomes of the node into `out`: nodes of the same depth, none
    /// of them empty. The node itself stays as it is: as a rule another version shares it.
    fn apply(&self, changes: &[Change<E>], order: &impl Fn(&E, &E) -> Ordering, work: &mut Work<E>) {
        match self {
            Node::Leaf(leaf) => {
                if changes.len() <= FEW && leaf.len + changes.len() <= LEAF {
                    let mut leaf = leaf.clone();
                    let own = Arc::make_mut(&mut leaf);
                    changes.iter().for_each(|change| work.len += own.change(change, order));
                    if own.len > 0 {
                        let first = own.items[0];
                        work.out.push(Child { first, node: Node::Leaf(leaf), new: true });
                    }
                    return;
                }
                let entries = &mut work.entries;
                entries.clear();
                let mut old = leaf.entries();
                for change in changes {
                    let entry = change.entry();
                    let before = old.partition_point(|e| order(e, entry).is_lt());
                    entries.extend_from_slice(&old[..before]);
                    old = &old[before..];
                    let there = old.first().is_some_and(|e| order(e, entry).is_eq());
                    old = &old[usize::from(there)..];
                    work.len -= isize::from(there);
                    if let Change::Put(entry) = change {
                        entries.push(*entry);
                        work.len += 1;
                    }
                }
                entries.extend_from_slice(old);
                work.out.extend(parts(entries.len(), LEAF).map(|part| {
                    let node = Node::Leaf(Arc::new(Leaf::new(&entries[part.clone()])));
                    Child { first: entries[part.start], node, new: true }
                }));
            }
            Node::Inner(inner) => {
                // Counting references takes one cache line at a time, looking at them all at once.
                black_box(inner.nodes[..inner.len].iter().flatten().map(|node| node.fill().0).sum::<usize>());
                let above_here = std::mem::take(&mut work.out);
                inner.share_out(changes, order, |first, child, own| match own {
                    [] => work.out.push(Child { first, node: child.clone(), new: false }),
                    own => child.apply(own, order, work),
                });
                let beneath = std::mem::replace(&mut work.out, above_here);
                above(beneath, &mut work.out);
            }
        }
    }

    /// The tree in parts of the same depth, each with its changes, and about how many leaves each has.
    fn shares<'a>(
        &'a self,
        changes: &'a [Change<E>],
        order: &impl Fn(&E, &E) -> Ordering,
    ) -> (Vec<Share<'a, E>>, usize) {
        let mut leaves = 1;
        let mut node = self;
        while let Node::Inner(inner) = node {
            leaves *= FAN;
            let Some(child) = &inner.nodes[0] else { break };
            node = child;
        }
        let mut shares = vec![Share { first: E::default(), node: self, changes }];
        let most = if changes.len() < MANY { 1 } else { SHARES };
        while shares.len() < most && leaves > 1 {
            let mut beneath = Vec::with_capacity(shares.len() * FAN);
            for share in shares {
                if let Node::Inner(inner) = share.node {
                    inner.share_out(share.changes, order, |first, node, changes| {
                        beneath.push(Share { first, node, changes });
                    });
                }
            }
            (shares, leaves) = (beneath, leaves / FAN);
        }
        (shares, leaves)
    }

    /// Takes an entry out. Afterwards the node may be empty.
    fn remove(&mut self, position: &impl Fn(&E) -> Ordering) -> bool {
        match self {
            Node::Leaf(leaf) => {
                let at = leaf.entries().partition_point(|e| position(e).is_lt());
                if at >= leaf.len || position(&leaf.items[at]).is_ne() {
                    return false;
                }
                let leaf = Arc::make_mut(leaf);
                leaf.items.copy_within(at + 1..leaf.len, at);
                leaf.len -= 1;
                true
            }
            Node::Inner(inner) => {
                let at = inner.child(position);
                let inner = Arc::make_mut(inner);
                let Some(child) = &mut inner.nodes[at] else { return false };
                if !child.remove(position) {
                    return false;
                }
                if child.fill().0 == 0 {
                    inner.remove(at);
                } else {
                    inner.firsts[at] = child.first();
                    inner.join(at);
                }
                true
            }
        }
    }
}

/// Cuts so many things into equal parts, as few as possible if none may have more than `most`.
fn parts(count: usize, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let parts = count.div_ceil(most);
    (0..parts).map(move |part| part * count / parts..(part + 1) * count / parts)
}

/// A part of a tree, and what is to change there.
struct Share<'a, E> {
    first: E,
    node: &'a Node<E>,
    changes: &'a [Change<E>],
}

/// Many changes under way.
struct Work<E> {
    /// How many entries more there are.
    len: isize,
    out: Vec<Child<E>>,
    /// For one leaf at a time.
    entries: Vec<E>,
}

/// A node, with its first entry so that nobody has to look it up.
struct Child<E> {
    first: E,
    node: Node<E>,
    /// It was made just now, and may be small.
    new: bool,
}

/// Puts inner nodes above these nodes of one depth into `out`.
fn above<E: Copy + Default>(nodes: Vec<Child<E>>, out: &mut Vec<Child<E>>) {
    let parts = parts(nodes.len(), FAN).map(|part| part.len());
    let mut nodes = nodes.into_iter();
    for part in parts {
        let mut inner = Inner { len: 0, firsts: [E::default(); FAN], nodes: std::array::from_fn(|_| None) };
        let mut small = false;
        for (at, child) in nodes.by_ref().take(part).enumerate() {
            small |= child.new && child.node.fill().0 * 4 <= child.node.fill().1;
            inner.firsts[at] = child.first;
            inner.nodes[at] = Some(child.node);
            inner.len = at + 1;
        }
        let mut at = 0;
        while small && at < inner.len {
            inner.join(at);
            at += 1;
        }
        out.push(Child { first: inner.firsts[0], node: Node::Inner(Arc::new(inner)), new: true });
    }
}

/// One of many changes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change<E> {
    /// Takes the entry out.
    Drop(E),
    /// Puts the entry in, instead of an equal one if there is one.
    Put(E),
}

impl<E> Change<E> {
    pub(crate) fn entry(&self) -> &E {
        match self {
            Change::Drop(entry) | Change::Put(entry) => entry,
        }
    }
}

impl<E: Copy + Default> Sorted<E> {
    /// Makes many changes at once. They are in order, and no two are about equal entries. What is to be done `beside` is done
    /// meanwhile: both on two threads if the changes are many.
    pub(crate) fn apply(
        &mut self,
        changes: &[Change<E>],
        order: impl Fn(&E, &E) -> Ordering + Sync,
        beside: impl FnOnce(),
    ) where
        E: Send + Sync,
    {
        debug_assert!(changes.is_sorted_by(|a, b| order(a.entry(), b.entry()).is_lt()));
        if changes.is_empty() {
            return beside();
        }
        let root = self.root.take().unwrap_or_else(|| Node::Leaf(Arc::new(Leaf::new(&[]))));
        let (shares, leaves) = root.shares(changes, &order);
        // A change of a leaf that no other one touches costs as much as many of one leaf. What comes beside counts too.
        let costs = |share: &Share<'_, E>| share.changes.len().min(leaves);
        let whole: usize = shares.iter().map(costs).sum();
        let (mut cost, mut middle) = (whole / 8, 0);
        while middle < shares.len() && cost < whole / 2 {
            cost += costs(&shares[middle]);
            middle += 1;
        }
        let (first, second) = shares.split_at(middle);
        let work = |shares: &[Share<'_, E>]| {
            let mut work = Work { len: 0, out: Vec::new(), entries: Vec::new() };
            for share in shares {
                match share.changes {
                    [] => work.out.push(Child { first: share.first, node: share.node.clone(), new: false }),
                    changes => share.node.apply(changes, &order, &mut work),
                }
            }
            work
        };
        let first = || {
            beside();
            work(first)
        };
        let (first, second) = both(changes.len(), first, || work(second));
        self.len = self.len.saturating_add_signed(first.len + second.len);
        let mut nodes = first.out;
        nodes.extend(second.out);
        while nodes.len() > 1 {
            let beneath = std::mem::take(&mut nodes);
            above(beneath, &mut nodes);
        }
        self.root = nodes.pop().map(|child| child.node);
        self.lower();
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A tree of entries that are in order already.
    pub(crate) fn from_sorted(entries: &[E]) -> Sorted<E> {
        // Some room is left, so that the first changes do not split every leaf.
        let mut nodes: Vec<Node<E>> =
            entries.chunks(LEAF * 7 / 8).map(|chunk| Node::Leaf(Arc::new(Leaf::new(chunk)))).collect();
        while nodes.len() > 1 {
            let mut upper = Vec::with_capacity(nodes.len() / FAN + 1);
            let mut nodes_left = nodes.into_iter().peekable();
            while nodes_left.peek().is_some() {
                upper.push(Node::Inner(Arc::new(Inner::new(nodes_left.by_ref().take(FAN * 7 / 8)))));
            }
            nodes = upper;
        }
        Sorted { root: nodes.pop(), len: entries.len() }
    }

    /// Puts an entry in at its position, instead of an equal one if there is one.
    pub(crate) fn insert(&mut self, entry: E, position: impl Fn(&E) -> Ordering) {
        let Some(root) = &mut self.root else {
            *self = Sorted::from_sorted(&[entry]);
            return;
        };
        let (new, split) = root.insert(entry, &position);
        self.len += usize::from(new);
        if let Some(right) = split
            && let Some(left) = self.root.take()
        {
            self.root = Some(Node::Inner(Arc::new(Inner::new([left, right].into_iter()))));
        }
    }

    /// Takes out the entry at this position.
    pub(crate) fn remove(&mut self, position: impl Fn(&E) -> Ordering) -> bool {
        let Some(root) = &mut self.root else { return false };
        if !root.remove(&position) {
            return false;
        }
        self.len -= 1;
        self.lower();
        true
    }

    /// Takes away roots that have only one child, or nothing.
    fn lower(&mut self) {
        loop {
            self.root = match self.root.take() {
                Some(Node::Inner(inner)) if inner.len == 1 => inner.nodes[0].clone(),
                Some(node) if node.fill().0 == 0 => None,
                root => {
                    self.root = root;
                    return;
                }
            };
        }
    }

    /// Entries from the first one that does not stand before the position.
    pub(crate) fn range_from(&self, position: impl Fn(&E) -> Ordering) -> Iter<'_, E> {
        let mut iter = Iter { above: Vec::new(), leaf: [].iter() };
        let mut node = self.root.as_ref();
        while let Some(at) = node {
            match at {
                Node::Leaf(leaf) => {
                    let entries = leaf.entries();
                    let from = entries.partition_point(|e| position(e).is_lt());
                    iter.leaf = entries[from..].iter();
                    break;
                }
                Node::Inner(inner) => {
                    // Unlike for an entry that is there, equal ones may begin in the child before.
                    let child = inner.firsts[..inner.len]
                        .partition_point(|first| position(first).is_lt())
                        .saturating_sub(1);
                    iter.above.push(inner.nodes[child + 1..inner.len].iter());
                    node = inner.nodes[child].as_ref();
                }
            }
        }
        iter
    }

    /// All entries.
    pub(crate) fn iter(&self) -> Iter<'_, E> {
        self.range_from(|_| Ordering::Greater)
    }
}

/// Entries in order.
pub(crate) struct Iter<'a, E> {
    /// The children still to come, of each level.
    above: Vec<std::slice::Iter<'a, Option<Node<E>>>>,
    leaf: std::slice::Iter<'a, E>,
}

impl<'a, E: Copy + Default> Iterator for Iter<'a, E> {
    type Item = &'a E;

    fn next(&mut self) -> Option<&'a E> {
        loop {
            if let Some(entry) = self.leaf.next() {
                return Some(entry);
            }
            match self.above.last_mut()?.next() {
                None => drop(self.above.pop()),
                Some(None) => {}
                Some(Some(Node::Leaf(leaf))) => self.leaf = leaf.entries().iter(),
                Some(Some(Node::Inner(inner))) => self.above.push(inner.nodes[..inner.len].iter()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn at(entry: u32) -> impl Fn(&u32) -> Ordering {
        move |e| e.cmp(&entry)
    }

    fn depth_is_even(node: &Node<u32>) -> usize {
        match node {
            Node::Leaf(leaf) => {
                assert!(leaf.len > 0 && leaf.entries().is_sorted());
                0
            }
            Node::Inner(inner) => {
                assert!(inner.len > 0);
                assert!(inner.nodes[inner.len..].iter().all(Option::is_none));
                let children = inner.nodes[..inner.len].iter().map(|n| n.as_ref().unwrap());
                for (first, child) in inner.firsts.iter().zip(children.clone()) {
                    assert_eq!(*first, child.first());
                }
                let depths: BTreeSet<usize> = children.map(depth_is_even).collect();
                assert_eq!(depths.len(), 1);
                depths.first().unwrap() + 1
            }
        }
    }

    fn check(tree: &Sorted<u32>, model: &BTreeSet<u32>) {
        assert_eq!(tree.len(), model.len());
        assert!(tree.iter().eq(model.iter()));
        if let Some(root) = &tree.root {
            depth_is_even(root);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

        #[test]
        fn it_is_a_sorted_set_and_its_older_versions_stay(
            start in 0u32..5000,
            ops in prop::collection::vec((any::<bool>(), 0u32..6000, 1u32..300), 1..60),
        ) {
            let mut model: BTreeSet<u32> = (0..start).collect();
            let mut tree = Sorted::from_sorted(&model.iter().copied().collect::<Vec<_>>());
            check(&tree, &model);
            for (add, from, count) in ops {
                let before = (tree.clone(), model.clone());
                for entry in from..from + count {
                    if add {
                        tree.insert(entry, at(entry));
                        model.insert(entry);
                    } else {
                        prop_assert_eq!(tree.remove(at(entry)), model.remove(&entry));
                    }
                }
                check(&tree, &model);
                check(&before.0, &before.1);
                prop_assert!(tree.range_from(at(from)).take(9).eq(model.range(from..).take(9)));
            }
            for entry in model {
                prop_assert!(tree.remove(at(entry)));
            }
            prop_assert!(tree.root.is_none());
        }

        #[test]
        fn many_changes_at_once_are_as_good_as_one_by_one(
            start in 0u32..5000,
            batches in prop::collection::vec((any::<u32>(), 1u32..9, 0u32..6000, 1u32..4000), 1..12),
        ) {
            let mut model: BTreeSet<u32> = (0..start).collect();
            let mut tree = Sorted::from_sorted(&model.iter().copied().collect::<Vec<_>>());
            for (mask, step, from, count) in batches {
                let before = (tree.clone(), model.clone());
                let changes: Vec<Change<u32>> = (from..from + count)
                    .step_by(step as usize)
                    .map(|n| if mask >> (n / 97 % 32) & 1 == 0 { Change::Put(n) } else { Change::Drop(n) })
                    .collect();
                for change in &changes {
                    match change {
                        Change::Put(n) => _ = model.insert(*n),
                        Change::Drop(n) => _ = model.remove(n),
                    }
                }
                tree.apply(&changes, u32::cmp, || ());
                check(&tree, &model);
                check(&before.0, &before.1);
            }
            let all: Vec<Change<u32>> = model.iter().map(|n| Change::Drop(*n)).collect();
            tree.apply(&all, u32::cmp, || ());
            prop_assert!(tree.root.is_none() && tree.len() == 0);
        }
    }
}
