//! The nodes, in slots with small numbers so that what is kept per node can be kept in plain arrays.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use swarm_api::Shared;
use swarm_api::v1::Node;
use swarm_placement::NodeInfo;

use crate::filter::{Fixed, Requirements};
use crate::verdict::Verdict;

/// Sets of needs whose answers are kept; more than this are in use only where every service has its own.
const KEPT_NEEDS: usize = 1024;

/// Number of a node. It is given again when the node is gone.
pub(crate) type Slot = usize;

/// A node with its account, and what the scheduler must remember of it.
#[derive(Debug, Default)]
pub(crate) struct NodeSlot {
    pub(crate) id: Arc<str>,
    pub(crate) info: NodeInfo,
    /// Tasks in the account.
    pub(crate) tasks: HashSet<Arc<str>>,
    /// Grows when the node itself changes.
    generation: u64,
    used: bool,
}

/// Number of a set of needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table(usize);

/// All nodes.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    slots: Vec<NodeSlot>,
    by_id: BTreeMap<Arc<str>, Slot>,
    /// The slots in the order of their nodes' ids; none while it must be made anew.
    order: Option<Arc<[Slot]>>,
    unused: Vec<Slot>,
    generation: u64,
    /// Nodes that may take tasks now which they did not take before, and nodes that came or went.
    pub(crate) changed: BTreeSet<Slot>,
    tables: BTreeMap<Fixed, usize>,
    /// Per set of needs and slot: the node's generation when its fixed filters were asked, and what they said.
    answers: Vec<Vec<(u64, Verdict)>>,
}

impl Nodes {
    /// The slot of a node.
    pub(crate) fn slot(&self, id: &str) -> Option<Slot> {
        self.by_id.get(id).copied()
    }

    /// The slots of all nodes, in the order of the nodes' ids.
    pub(crate) fn order(&mut self) -> Arc<[Slot]> {
        self.order.get_or_insert_with(|| self.by_id.values().copied().collect()).clone()
    }

    /// The node in a slot that is in use.
    pub(crate) fn get(&self, slot: Slot) -> &NodeSlot {
        &self.slots[slot]
    }

    /// The node in a slot that is in use, to be changed.
    pub(crate) fn get_mut(&mut self, slot: Slot) -> &mut NodeSlot {
        &mut self.slots[slot]
    }

    /// Adds a node, or takes note of its change; true if it is new.
    pub(crate) fn put(&mut self, node: &Shared<Node>) -> bool {
        if let Some(slot) = self.slot(&node.id) {
            let known = &mut self.slots[slot];
            let same = same_for_placement(known.info.node(), node);
            known.info.set_node(node.clone());
            if !same {
                self.generation += 1;
                known.generation = self.generation;
                self.changed.insert(slot);
            }
            return false;
        }
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.slots.push(NodeSlot::default());
            self.slots.len() - 1
        });
        self.generation += 1;
        let id: Arc<str> = node.id.as_str().into();
        self.slots[slot] = NodeSlot {
            id: id.clone(),
            info: NodeInfo::new(node.clone()),
            generation: self.generation,
            used: true,
            tasks: HashSet::new(),
        };
        self.by_id.insert(id, slot);
        self.order = None;
        self.changed.insert(slot);
        true
    }

    /// Removes a node and gives back the tasks that were in its account.
    pub(crate) fn remove(&mut self, id: &str) -> HashSet<Arc<str>> {
        let Some(slot) = self.by_id.remove(id) else { return HashSet::new() };
        self.order = None;
        self.unused.push(slot);
        self.changed.insert(slot);
        std::mem::take(&mut self.slots[slot]).tasks
    }

    /// Where the answers of fixed filters are kept, valid until the next call of this.
    pub(crate) fn table(&mut self, fixed: &Fixed) -> Table {
        if let Some(table) = self.tables.get(fixed) {
            return Table(*table);
        }
        if self.answers.len() >= KEPT_NEEDS {
            self.tables.clear();
            self.answers.clear();
        }
        self.answers.push(Vec::new());
        self.tables.insert(fixed.clone(), self.answers.len() - 1);
        Table(self.answers.len() - 1)
    }

    /// What the filters say of the node in a slot; `Absent` if the slot is not in use.
    pub(crate) fn verdict(&mut self, table: Table, requirements: &Requirements, slot: Slot) -> Verdict {
        let node = &self.slots[slot];
        if !node.used {
            return Verdict::Absent;
        }
        let answers = &mut self.answers[table.0];
        if answers.len() <= slot {
            answers.resize(self.slots.len(), (0, Verdict::Absent));
        }
        let (generation, fixed) = &mut answers[slot];
        if *generation != node.generation {
            *generation = node.generation;
            *fixed = requirements.fixed.verdict(node.info.node());
        }
        requirements.verdict(*fixed, &node.info)
    }
}

/// Nothing that placement looks at differs.
pub(crate) fn same_for_placement(a: &Node, b: &Node) -> bool {
    a.role == b.role
        && a.status.state == b.status.state
        && a.status.addr == b.status.addr
        && a.spec.availability == b.spec.availability
        && a.spec.annotations.labels == b.spec.annotations.labels
        && a.description == b.description
}
