//! The branches that nodes stand on, for each list of labels that services spread over.

use std::collections::BTreeMap;

use swarm_api::v1::Node;

use crate::filter::SpreadLabel;
use crate::nodes::{NodeSlot, Slot};

/// Lists of labels that are kept in mind.
const KEPT: usize = 32;

/// Number of a list of labels, until [`Topologies::generation`] changes.
pub(crate) type TopologyNo = usize;

/// Number of a branch of one topology. The root is 0.
pub(crate) type BranchNo = usize;

#[derive(Debug, Clone, Default)]
pub(crate) struct Branch {
    parent: BranchNo,
    /// The value of the label by which it is one of its parent's.
    label: String,
    /// Nodes that are on it, if it is of the last level.
    nodes: u32,
    /// The branches on it by the value of the next label; none on the last level.
    pub(crate) children: BTreeMap<String, BranchNo>,
    /// Tasks that are wanted on its nodes.
    pub(crate) active: u64,
}

/// A tree of branches, as deep as there are labels. Without labels there is only the root.
#[derive(Debug, Clone, Default)]
pub(crate) struct Topology {
    labels: Vec<SpreadLabel>,
    pub(crate) branches: Vec<Branch>,
    /// Numbers of branches that no node is on any more: they are given again.
    unused: Vec<BranchNo>,
    /// The branch of the last level that the node of a slot is on, and the tasks counted there for it.
    leaves: Vec<Option<(BranchNo, u32)>>,
}

impl Topology {
    fn new(labels: &[SpreadLabel], nodes: &[NodeSlot]) -> Topology {
        let branches = vec![Branch::default()];
        let mut topology = Topology { labels: labels.to_vec(), branches, ..Topology::default() };
        for (slot, node) in nodes.iter().enumerate().filter(|(_, node)| node.used) {
            topology.put(slot, node.info.node(), node.info.active());
        }
        topology
    }

    /// Labels lead to other branches.
    pub(crate) fn has_labels(&self) -> bool {
        !self.labels.is_empty()
    }

    /// The branch of the last level that a node is on.
    pub(crate) fn leaf(&self, slot: Slot) -> BranchNo {
        if self.labels.is_empty() {
            return 0;
        }
        self.leaves.get(slot).copied().flatten().map_or(0, |(leaf, _)| leaf)
    }

    /// A branch and those that it is on, up to the root.
    pub(crate) fn path(&self, mut branch: BranchNo) -> impl Iterator<Item = BranchNo> + '_ {
        std::iter::once(branch).chain(std::iter::from_fn(move || {
            (branch != 0).then(|| {
                branch = self.branches[branch].parent;
                branch
            })
        }))
    }

    fn put(&mut self, slot: Slot, node: &Node, active: u32) {
        if self.labels.is_empty() {
            return;
        }
        let leaf = self.leaf_of(node);
        // Before it leaves its old one, which may be the same.
        self.branches[leaf].nodes += 1;
        self.remove(slot);
        if self.leaves.len() <= slot {
            self.leaves.resize(slot + 1, None);
        }
        self.leaves[slot] = Some((leaf, active));
        self.add(leaf, i64::from(active));
    }

    /// The branch of the last level that a node belongs on, made if need be.
    fn leaf_of(&mut self, node: &Node) -> BranchNo {
        let mut at = 0;
        for depth in 0..self.labels.len() {
            let value = self.labels[depth].branch(node);
            at = match self.branches[at].children.get(value) {
                Some(child) => *child,
                None => self.grow(at, value),
            };
        }
        at
    }

    fn grow(&mut self, parent: BranchNo, label: &str) -> BranchNo {
        let branch = Branch { parent, label: label.to_owned(), ..Branch::default() };
        let no = match self.unused.pop() {
            Some(no) => {
                self.branches[no] = branch;
                no
            }
            None => {
                self.branches.push(branch);
                self.branches.len() - 1
            }
        };
        self.branches[parent].children.insert(label.to_owned(), no);
        no
    }

    fn remove(&mut self, slot: Slot) {
        if let Some((leaf, active)) = self.leaves.get_mut(slot).and_then(Option::take) {
            self.add(leaf, -i64::from(active));
            self.branches[leaf].nodes -= 1;
            self.prune(leaf);
        }
    }

    /// A branch without nodes goes, and so do those that it was the last one of: it would be asked first, having no tasks.
    fn prune(&mut self, mut branch: BranchNo) {
        while branch != 0 && self.branches[branch].nodes == 0 && self.branches[branch].children.is_empty() {
            let Branch { parent, label, .. } = std::mem::take(&mut self.branches[branch]);
            self.branches[parent].children.remove(&label);
            self.unused.push(branch);
            branch = parent;
        }
    }

    fn count(&mut self, slot: Slot, more: bool) {
        if let Some((leaf, active)) = self.leaves.get_mut(slot).and_then(Option::as_mut) {
            let leaf = *leaf;
            *active = if more { *active + 1 } else { *active - 1 };
            self.add(leaf, if more { 1 } else { -1 });
        }
    }

    fn add(&mut self, leaf: BranchNo, active: i64) {
        let mut branch = leaf;
        loop {
            let at = &mut self.branches[branch];
            at.active = at.active.wrapping_add_signed(active);
            if branch == 0 {
                return;
            }
            branch = at.parent;
        }
    }
}

/// The topologies of the lists of labels in use.
#[derive(Debug, Clone)]
pub(crate) struct Topologies {
    all: Vec<Topology>,
    /// Grows when numbers are given anew.
    pub(crate) generation: u64,
}

impl Default for Topologies {
    fn default() -> Self {
        Topologies {
            all: vec![Topology { branches: vec![Branch::default()], ..Topology::default() }],
            generation: 0,
        }
    }
}

impl Topologies {
    /// The number of the topology of these labels.
    pub(crate) fn of(&mut self, labels: &[SpreadLabel], nodes: &[NodeSlot]) -> TopologyNo {
        if let Some(known) = self.all.iter().position(|topology| topology.labels == labels) {
            return known;
        }
        if self.all.len() >= KEPT {
            self.all.truncate(1);
            self.generation += 1;
        }
        self.all.push(Topology::new(labels, nodes));
        self.all.len() - 1
    }

    pub(crate) fn get(&self, no: TopologyNo) -> &Topology {
        &self.all[no]
    }

    pub(crate) fn put(&mut self, slot: Slot, node: &Node, active: u32) {
        self.all.iter_mut().for_each(|topology| topology.put(slot, node, active));
    }

    pub(crate) fn remove(&mut self, slot: Slot) {
        self.all.iter_mut().for_each(|topology| topology.remove(slot));
    }

    /// One task more, or less, is wanted on a node.
    pub(crate) fn count(&mut self, slot: Slot, more: bool) {
        if self.all.len() > 1 {
            self.all.iter_mut().for_each(|topology| topology.count(slot, more));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::Nodes;
    use swarm_api::v1::Task;
    use swarm_placement::Holding;

    fn node(id: &str, labels: &[(&str, &str)]) -> Node {
        let mut node = Node { id: id.to_owned(), ..Default::default() };
        node.spec.annotations.labels =
            labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        node
    }

    /// Tasks by path of labels; what is under a branch adds up to what is on it.
    fn counts(topology: &Topology) -> Vec<(String, u64)> {
        fn walk(topology: &Topology, at: BranchNo, path: &str, found: &mut Vec<(String, u64)>) {
            let branch = &topology.branches[at];
            if branch.children.is_empty() {
                found.push((path.to_owned(), branch.active));
                return;
            }
            let below: u64 = branch.children.values().map(|child| topology.branches[*child].active).sum();
            assert_eq!(below, branch.active, "{path}");
            for (value, child) in &branch.children {
                walk(topology, *child, &format!("{path}/{value}"), found);
            }
        }
        let mut found = Vec::new();
        walk(topology, 0, "", &mut found);
        found.retain(|(_, active)| *active > 0);
        found
    }

    #[test]
    fn a_branch_counts_what_its_branches_count() {
        let labels = ["zone", "rack"].map(|label| SpreadLabel::Node(label.to_owned()));
        let mut nodes = Nodes::default();
        nodes.put(&node("1", &[("zone", "a"), ("rack", "x")]).into());
        nodes.put(&node("2", &[("zone", "a")]).into());
        nodes.put(&node("3", &[]).into());
        let (task, no) = (Task::default(), nodes.services.enter("s"));
        let enter = |nodes: &mut Nodes, slot| nodes.enter(slot, no, Holding::of(&task, &[]), false);
        enter(&mut nodes, 0);
        let topology = nodes.topology(&labels);
        for slot in [0, 1, 2, 2, 2] {
            enter(&mut nodes, slot);
        }
        let path = |path: &str, active| (path.to_owned(), active);
        let now = |nodes: &Nodes| counts(nodes.topologies.get(topology));
        assert_eq!(now(&nodes), [path("//", 3), path("/a/", 1), path("/a/x", 2)]);
        nodes.leave(2, no, Holding::of(&task, &[]));
        nodes.set_active(0, no, false);
        assert_eq!(now(&nodes), [path("//", 2), path("/a/", 1), path("/a/x", 1)]);
        // A node that moves takes its tasks along; one that goes takes them away.
        nodes.put(&node("3", &[("zone", "b"), ("rack", "x")]).into());
        nodes.remove("2");
        assert_eq!(now(&nodes), [path("/a/x", 1), path("/b/x", 2)]);
    }

    #[test]
    fn a_branch_that_the_last_node_left_goes() {
        let labels = ["zone", "rack"].map(|label| SpreadLabel::Node(label.to_owned()));
        let mut nodes = Nodes::default();
        let topology = nodes.topology(&labels);
        for n in 0..100 {
            let (zone, rack) = (format!("z{}", n % 7), format!("r{n}"));
            nodes.put(&node("1", &[("zone", &zone), ("rack", &rack)]).into());
            nodes.put(&node("2", &[("zone", "z1"), ("rack", "r1")]).into());
        }
        let tree = nodes.topologies.get(topology);
        assert_eq!(tree.branches[0].children.keys().collect::<Vec<_>>(), ["z1"]);
        assert!(tree.branches.len() <= 7, "{} branches for two nodes", tree.branches.len());
        nodes.remove("1");
        nodes.remove("2");
        assert!(nodes.topologies.get(topology).branches[0].children.is_empty());
    }
}
