//! Places in a tree: what each branch has, which of them would take one more, and which has something to give.

use std::cmp::Reverse;
use std::collections::BTreeSet;

/// A branch, or a leaf.
#[derive(Debug, Default)]
struct Vertex {
    parent: Option<usize>,
    children: Vec<usize>,
    /// How much is in it.
    count: usize,
    /// Of a leaf: it would take one more; comes last of equals the larger this is.
    takes: Option<u32>,
    /// Of a leaf: so much of it can go.
    gives: usize,
    /// Children that would take one more: the one with the least first.
    takers: BTreeSet<(usize, u32, usize)>,
    /// Children that have something to give: the one with the most last.
    givers: BTreeSet<(usize, Reverse<usize>)>,
}

/// A tree whose leaves have something of a kind.
#[derive(Debug)]
pub(super) struct Branches(Vec<Vertex>);

/// Its root.
pub(super) const ROOT: usize = 0;

impl Branches {
    pub(super) fn new() -> Branches {
        Branches(vec![Vertex::default()])
    }

    /// Adds a branch, or a leaf that has nothing yet, to a branch.
    pub(super) fn add(&mut self, parent: usize) -> usize {
        let at = self.0.len();
        self.0.push(Vertex { parent: Some(parent), ..Vertex::default() });
        self.0[parent].children.push(at);
        at
    }

    /// Says of a leaf how much it has, how much of that can go, and whether it would take one more.
    pub(super) fn set(&mut self, leaf: usize, count: usize, gives: usize, takes: Option<u32>) {
        let before = self.0[leaf].count;
        self.unfile(leaf);
        (self.0[leaf].gives, self.0[leaf].takes) = (gives, takes);
        let mut next = Some(leaf);
        while let Some(at) = next {
            let vertex = &mut self.0[at];
            vertex.count = vertex.count + count - before;
            next = vertex.parent;
        }
        self.file(leaf);
    }

    /// Takes it and the branches above it out of the order of their siblings, as long as what they have is known to it.
    fn unfile(&mut self, leaf: usize) {
        let mut at = leaf;
        while let Some(parent) = self.0[at].parent {
            let (taker, giver) = self.keys(at);
            let above = &mut self.0[parent];
            above.takers.remove(&taker);
            above.givers.remove(&giver);
            at = parent;
        }
    }

    fn file(&mut self, leaf: usize) {
        let mut at = leaf;
        while let Some(parent) = self.0[at].parent {
            let (taker, giver) = self.keys(at);
            let (takes, gives) = (self.takes(at), self.gives(at));
            let above = &mut self.0[parent];
            if takes {
                above.takers.insert(taker);
            }
            if gives {
                above.givers.insert(giver);
            }
            at = parent;
        }
    }

    fn keys(&self, at: usize) -> ((usize, u32, usize), (usize, Reverse<usize>)) {
        let vertex = &self.0[at];
        ((vertex.count, vertex.takes.unwrap_or_default(), at), (vertex.count, Reverse(at)))
    }

    fn takes(&self, at: usize) -> bool {
        self.0[at].takes.is_some() || !self.0[at].takers.is_empty()
    }

    fn gives(&self, at: usize) -> bool {
        self.0[at].gives > 0 || !self.0[at].givers.is_empty()
    }

    /// The branches of a branch.
    pub(super) fn children(&self, at: usize) -> &[usize] {
        &self.0[at].children
    }

    /// The leaf that gets the next one: in the branch that has the least of those that would take it.
    pub(super) fn taker(&self, mut at: usize) -> Option<usize> {
        loop {
            match self.0[at].takers.first() {
                Some((_, _, child)) => at = *child,
                None => return self.0[at].takes.map(|_| at),
            }
        }
    }

    /// The leaf that gives the next one: in the branch that has the most of those that can.
    fn giver(&self, mut at: usize) -> Option<usize> {
        loop {
            match self.0[at].givers.last() {
                Some((_, Reverse(child))) => at = *child,
                None => return (self.0[at].gives > 0).then_some(at),
            }
        }
    }

    /// From which leaf to which one must go so that the children of this branch come to have the same.
    pub(super) fn uneven(&self, at: usize) -> Option<(usize, usize)> {
        let (most, Reverse(from)) = *self.0[at].givers.last()?;
        let (least, _, to) = *self.0[at].takers.first()?;
        if most < least + 2 { None } else { Some((self.giver(from)?, self.taker(to)?)) }
    }

    /// Some branch of this one is uneven, or it is itself.
    pub(super) fn is_uneven(&self, at: usize) -> bool {
        self.uneven(at).is_some() || self.0[at].children.iter().any(|child| self.is_uneven(*child))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two branches with two leaves each.
    fn tree() -> (Branches, [usize; 4]) {
        let mut tree = Branches::new();
        let (a, b) = (tree.add(ROOT), tree.add(ROOT));
        let leaves = [tree.add(a), tree.add(a), tree.add(b), tree.add(b)];
        (tree, leaves)
    }

    #[test]
    fn the_largest_branch_gives_to_the_smallest_whatever_is_in_their_leaves() {
        let (mut tree, [a1, a2, b1, b2]) = tree();
        tree.set(a1, 3, 3, Some(0));
        tree.set(a2, 3, 3, Some(0));
        tree.set(b1, 4, 4, Some(0));
        tree.set(b2, 0, 0, Some(0));
        assert_eq!(tree.uneven(ROOT), Some((a1, b2)));
        tree.set(a1, 2, 2, Some(0));
        tree.set(b2, 1, 1, Some(0));
        assert_eq!(tree.uneven(ROOT), None);
        let [a, b] = [tree.children(ROOT)[0], tree.children(ROOT)[1]];
        assert_eq!((tree.uneven(a), tree.uneven(b)), (None, Some((b1, b2))));
        assert!(tree.is_uneven(ROOT));
    }

    #[test]
    fn whoever_has_nothing_to_give_or_takes_nothing_is_left_out() {
        let (mut tree, [a1, a2, b1, b2]) = tree();
        tree.set(a1, 9, 0, Some(0));
        tree.set(a2, 5, 1, Some(0));
        tree.set(b1, 0, 0, None);
        assert_eq!(tree.uneven(ROOT), None, "nobody takes it");
        tree.set(b2, 3, 3, Some(0));
        assert_eq!(tree.uneven(ROOT), Some((a2, b2)));
        tree.set(a2, 5, 0, Some(0));
        assert_eq!(tree.uneven(ROOT), None, "nobody gives it");
        assert!(!tree.is_uneven(ROOT));
    }

    #[test]
    fn of_equals_the_least_busy_takes_it() {
        let (mut tree, [a1, a2, _, _]) = tree();
        tree.set(a1, 1, 1, Some(7));
        tree.set(a2, 1, 1, Some(3));
        assert_eq!(tree.taker(ROOT), Some(a2));
        tree.set(a2, 2, 2, Some(4));
        assert_eq!(tree.taker(ROOT), Some(a1));
        assert_eq!(Branches::new().taker(ROOT), None);
    }
}
