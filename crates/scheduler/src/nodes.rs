//! The nodes, in slots with small numbers so that what is kept per node can be kept in plain arrays.

use swarm_api::hash::FastMap;
use swarm_api::v1::Node;
use swarm_api::{Shared, Text};
use swarm_placement::{Holding, NodeInfo};
use swarm_reconcile::same_for_placement;

use crate::filter::SpreadLabel;
use crate::services::{ServiceNo, Services};
use crate::topology::{Topologies, TopologyNo};
use crate::volumes::Volumes;

/// Number of a node. It is given again when the node is gone.
pub(crate) type Slot = usize;

/// A node with its account.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeSlot {
    pub(crate) id: Text,
    pub(crate) info: NodeInfo,
    /// Tells nodes apart that had this slot one after the other.
    pub(crate) epoch: u32,
    pub(crate) used: bool,
    changed: bool,
}

/// What happened to nodes, in order, for readers that catch up when they need it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    first: usize,
    slots: Vec<u32>,
}

impl Log {
    fn push(&mut self, slot: Slot, nodes: usize) {
        // Who is so far behind reads all nodes instead.
        if self.slots.len() > 2 * nodes + 1024 {
            self.first += self.slots.len();
            self.slots.clear();
        }
        self.slots.push(slot as u32);
    }

    /// Where a reader stands that knows everything.
    pub(crate) fn end(&self) -> usize {
        self.first + self.slots.len()
    }

    /// What happened since; none if that is too long ago.
    pub(crate) fn since(&self, position: usize) -> Option<&[u32]> {
        self.slots.get(position.checked_sub(self.first)?..)
    }
}

/// All nodes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nodes {
    slots: Vec<NodeSlot>,
    by_id: FastMap<Text, u32>,
    unused: Vec<Slot>,
    /// Nodes that may take tasks now which they did not take before, and nodes that came or went.
    changed: Vec<Slot>,
    /// Nodes that came, went or changed themselves.
    pub(crate) objects: Log,
    /// Nodes with a task less.
    pub(crate) freed: Log,
    pub(crate) services: Services,
    pub(crate) topologies: Topologies,
    pub(crate) volumes: Volumes,
}

impl Nodes {
    /// The slot of a node.
    pub(crate) fn slot(&self, id: &str) -> Option<Slot> {
        self.by_id.get(id).map(|slot| *slot as Slot)
    }

    /// The number of the topology of these labels.
    pub(crate) fn topology(&mut self, labels: &[SpreadLabel]) -> TopologyNo {
        self.topologies.of(labels, &self.slots)
    }

    /// Every slot, in use or not.
    pub(crate) fn all(&self) -> &[NodeSlot] {
        &self.slots
    }

    /// The node in a slot.
    pub(crate) fn get(&self, slot: Slot) -> &NodeSlot {
        &self.slots[slot]
    }

    /// The node in a slot, to be changed otherwise than by [`Nodes::enter`] and its like.
    pub(crate) fn get_mut(&mut self, slot: Slot) -> &mut NodeSlot {
        &mut self.slots[slot]
    }

    /// It may take tasks now which it did not take before.
    pub(crate) fn note_changed(&mut self, slot: Slot) {
        if !std::mem::replace(&mut self.slots[slot].changed, true) {
            self.changed.push(slot);
        }
    }

    /// The nodes that changed since this was asked last.
    pub(crate) fn take_changed(&mut self) -> Vec<Slot> {
        let mut changed = std::mem::take(&mut self.changed);
        for slot in &changed {
            self.slots[*slot].changed = false;
        }
        changed.sort_unstable();
        changed
    }

    fn note_object(&mut self, slot: Slot) {
        self.objects.push(slot, self.slots.len());
        self.note_changed(slot);
    }

    /// Adds a node, or takes note of its change; true if it is new.
    pub(crate) fn put(&mut self, node: &Shared<Node>) -> bool {
        if let Some(slot) = self.slot(&node.id) {
            let known = &mut self.slots[slot];
            let same = same_for_placement(known.info.node(), node);
            known.info.set_node(node.clone());
            if !same {
                self.topologies.put(slot, node, self.slots[slot].info.active());
                self.note_object(slot);
            }
            return false;
        }
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.slots.push(NodeSlot::default());
            self.slots.len() - 1
        });
        let id: Text = node.id.as_str().into();
        let known = &mut self.slots[slot];
        (known.id, known.info, known.used) = (id.clone(), NodeInfo::new(node.clone()), true);
        self.by_id.insert(id, slot as u32);
        self.topologies.put(slot, node, 0);
        self.note_object(slot);
        true
    }

    /// Removes a node with its account. What is said of its tasks afterwards, by the old epoch, comes to nothing.
    pub(crate) fn remove(&mut self, id: &str) {
        let Some(slot) = self.by_id.remove(id).map(|slot| slot as Slot) else { return };
        self.topologies.remove(slot);
        self.services.remove_node(slot);
        let known = &mut self.slots[slot];
        *known = NodeSlot { epoch: known.epoch + 1, changed: known.changed, ..NodeSlot::default() };
        self.unused.push(slot);
        self.note_object(slot);
    }

    /// Enters a task in the account of a node. Its generic resources may be held already.
    pub(crate) fn enter(&mut self, slot: Slot, service: ServiceNo, holding: Holding<'_>, claimed: bool) {
        let info = &mut self.slots[slot].info;
        match claimed {
            true => info.add_claimed(holding),
            false => info.add(holding),
        }
        if holding.active {
            self.services.set_active(service, slot, true);
            self.topologies.count(slot, true);
        }
    }

    /// Takes a task out of the account of a node, exactly as it was entered.
    pub(crate) fn leave(&mut self, slot: Slot, service: ServiceNo, holding: Holding<'_>) {
        self.slots[slot].info.remove(holding);
        if holding.active {
            self.services.set_active(service, slot, false);
            self.topologies.count(slot, false);
            self.freed.push(slot, self.slots.len());
        }
        self.note_changed(slot);
    }

    /// A task in the account of a node becomes wanted, or is not wanted any more.
    pub(crate) fn set_active(&mut self, slot: Slot, service: ServiceNo, active: bool) {
        self.slots[slot].info.set_active(active);
        self.services.set_active(service, slot, active);
        self.topologies.count(slot, active);
        if !active {
            self.freed.push(slot, self.slots.len());
            self.note_changed(slot);
        }
    }
}
