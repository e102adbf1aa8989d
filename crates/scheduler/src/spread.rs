//! Which of the nodes that fit takes the next task.
//!
//! Without preferences, the best node: one where the service does not keep failing, then the one with the fewest
//! tasks of the service, then with the fewest tasks, then the first by id. With preferences, the values of the
//! first label are branches, those of the second branches of these, and so on; the next task goes to the branch
//! that has the fewest tasks of the service among those that have room, and there to the best node. Tasks on
//! nodes that do not fit count for their branch: they stand and fall with it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use swarm_api::v1::Node;

use crate::filter::SpreadLabel;
use crate::nodes::Slot;

/// How good a node is for a task; less is better. The last part is the node's place in the order of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Failures of the service there, if there are too many.
    pub(crate) failures: u32,
    /// Tasks of the service.
    pub(crate) of_service: u32,
    /// Tasks.
    pub(crate) active: u32,
    /// Place in the order of ids.
    pub(crate) order: u32,
}

type Candidate = Reverse<(Rank, Slot)>;

/// Nodes and branches to choose from.
#[derive(Debug)]
pub(crate) enum Tree {
    /// Nodes.
    Leaf(BinaryHeap<Candidate>),
    /// Branches.
    Inner(Vec<Branch>),
}

#[derive(Debug)]
pub(crate) struct Branch {
    /// Tasks of the service on the branch.
    of_service: u64,
    /// Tasks on the branch.
    active: u64,
    /// Nothing fits there any more.
    exhausted: bool,
    tree: Tree,
}

/// A node as the tree sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf<'a> {
    pub(crate) node: &'a Node,
    pub(crate) slot: Slot,
    pub(crate) rank: Rank,
    pub(crate) fits: bool,
}

impl Tree {
    /// Puts nodes on their branches.
    pub(crate) fn new(labels: &[SpreadLabel], leaves: &[Leaf<'_>]) -> Tree {
        let Some((label, labels)) = labels.split_first() else {
            let fitting = leaves.iter().filter(|leaf| leaf.fits);
            return Tree::Leaf(fitting.map(|leaf| Reverse((leaf.rank, leaf.slot))).collect());
        };
        let mut branches: BTreeMap<&str, Vec<Leaf<'_>>> = BTreeMap::new();
        for leaf in leaves {
            branches.entry(label.branch(leaf.node)).or_default().push(*leaf);
        }
        let branches = branches.into_values().map(|leaves| Branch {
            of_service: leaves.iter().map(|l| u64::from(l.rank.of_service)).sum(),
            active: leaves.iter().map(|l| u64::from(l.rank.active)).sum(),
            exhausted: false,
            tree: Tree::new(labels, &leaves),
        });
        Tree::Inner(branches.collect())
    }

    /// Gives one task to the best node. `place` enters it in the node's account and says how good the node is for
    /// one more, or that it has no room for it. False if no node is left.
    pub(crate) fn place(&mut self, place: &mut dyn FnMut(Slot, Rank) -> Option<Rank>) -> bool {
        match self {
            Tree::Leaf(candidates) => {
                let Some(mut best) = candidates.peek_mut() else { return false };
                let Reverse((rank, slot)) = *best;
                match place(slot, rank) {
                    Some(rank) => *best = Reverse((rank, slot)),
                    None => _ = std::collections::binary_heap::PeekMut::pop(best),
                }
                true
            }
            Tree::Inner(branches) => loop {
                let usable = branches.iter_mut().filter(|branch| !branch.exhausted);
                // Of equal branches the one with the smallest label comes first.
                let Some(branch) = usable.min_by_key(|b| (b.of_service, b.active)) else { return false };
                if branch.tree.place(place) {
                    branch.of_service += 1;
                    branch.active += 1;
                    return true;
                }
                branch.exhausted = true;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node: labels, tasks of the service, room for more.
    type Given = (&'static [(&'static str, &'static str)], u32, u32);

    /// How many of `n` tasks each node gets.
    #[track_caller]
    fn check(labels: &[&str], nodes: &[Given], n: u32, expected: &[u32]) {
        let labels: Vec<SpreadLabel> = labels.iter().map(|l| SpreadLabel::Node((*l).to_owned())).collect();
        let objects: Vec<Node> = nodes
            .iter()
            .map(|(labels, ..)| {
                let mut node = Node::default();
                node.spec.annotations.labels =
                    labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
                node
            })
            .collect();
        let leaves: Vec<Leaf<'_>> = nodes
            .iter()
            .zip(&objects)
            .enumerate()
            .map(|(slot, ((_, tasks, room), node))| {
                let rank = Rank { failures: 0, of_service: *tasks, active: *tasks, order: slot as u32 };
                Leaf { node, slot, rank, fits: *room > 0 }
            })
            .collect();
        let mut tree = Tree::new(&labels, &leaves);
        let mut got = vec![0; nodes.len()];
        for _ in 0..n {
            tree.place(&mut |slot, rank| {
                got[slot] += 1;
                let more = Rank { of_service: rank.of_service + 1, active: rank.active + 1, ..rank };
                (got[slot] < nodes[slot].2).then_some(more)
            });
        }
        assert_eq!(got, expected);
    }

    const ANY: u32 = u32::MAX;
    const NONE: &[(&str, &str)] = &[];

    #[test]
    fn equal_nodes_get_equal_shares() {
        check(&[], &[(NONE, 0, ANY); 5], 18, &[4, 4, 4, 3, 3]);
    }

    #[test]
    fn the_emptier_nodes_are_filled_first() {
        check(&[], &[(NONE, 3, ANY), (NONE, 0, ANY), (NONE, 1, ANY)], 5, &[0, 3, 2]);
    }

    #[test]
    fn full_nodes_leave_the_rest_to_others() {
        check(&[], &[(NONE, 0, 1), (NONE, 0, ANY), (NONE, 0, 2), (NONE, 0, 0)], 8, &[1, 5, 2, 0]);
        check(&[], &[(NONE, 0, 1), (NONE, 0, 2)], 8, &[1, 2]);
        check(&[], &[], 8, &[]);
    }

    #[test]
    fn branches_get_equal_shares_whatever_their_size() {
        let (az1, az2) = (&[("az", "1")][..], &[("az", "2")][..]);
        let nodes = [(az1, 0, ANY), (az2, 0, ANY), (az2, 0, ANY), (az2, 0, ANY), (az2, 0, ANY)];
        check(&["az"], &nodes, 8, &[4, 1, 1, 1, 1]);
    }

    #[test]
    fn nodes_without_the_label_are_a_branch() {
        check(&["az"], &[(NONE, 0, ANY), (NONE, 0, ANY), (&[("az", "1")], 0, ANY)], 4, &[1, 1, 2]);
    }

    #[test]
    fn a_full_branch_leaves_the_rest_to_others_in_equal_shares() {
        let (a, b, c) = (&[("az", "a")][..], &[("az", "b")][..], &[("az", "c")][..]);
        check(&["az"], &[(a, 0, 2), (b, 0, ANY), (c, 0, ANY), (c, 0, ANY)], 12, &[2, 5, 3, 2]);
    }

    #[test]
    fn tasks_on_nodes_that_do_not_fit_count_for_their_branch() {
        let (a, b) = (&[("az", "a")][..], &[("az", "b")][..]);
        check(&["az"], &[(a, 3, 0), (a, 0, ANY), (b, 0, ANY)], 3, &[0, 0, 3]);
    }

    #[test]
    fn branches_have_branches() {
        let node = |az, rack| -> &'static [(&'static str, &'static str)] {
            match (az, rack) {
                (1, 1) => &[("az", "1"), ("rack", "1")],
                (1, 2) => &[("az", "1"), ("rack", "2")],
                (2, 1) => &[("az", "2"), ("rack", "1")],
                _ => &[("az", "2"), ("rack", "2")],
            }
        };
        // One node of the first zone has no room and the other takes three; the second zone takes the rest.
        let nodes = [
            (node(1, 1), 0, 0),
            (node(1, 2), 0, 3),
            (node(2, 1), 0, ANY),
            (node(2, 2), 0, ANY),
            (node(2, 2), 0, ANY),
        ];
        check(&["az", "rack"], &nodes, 11, &[0, 3, 4, 2, 2]);
        let uneven = [(node(1, 1), 4, ANY), (node(1, 2), 2, ANY), (node(2, 1), 1, ANY), (node(2, 2), 0, ANY)];
        check(&["az", "rack"], &uneven, 2, &[0, 0, 1, 1]);
    }
}
