//! What nodes have in common: for each key that constraints are about, which of its values each node has. A constraint
//! is then asked once for each value, not for each node.

use std::collections::BTreeMap;

use swarm_api::hash::FastMap;
use swarm_placement::{Constraint, Key};

use crate::nodes::{Nodes, Slot};

/// Keys that are kept; more than this are in use only where somebody makes them up.
const KEPT: usize = 64;

/// The values of one key.
#[derive(Debug, Default)]
struct Facet {
    /// Numbers of the values, by text.
    numbers: FastMap<String, u32>,
    /// Each node's value; that of slots without a node means nothing.
    of_slot: Vec<u32>,
    /// What it knows of.
    objects: usize,
}

impl Facet {
    fn put(&mut self, key: &Key, nodes: &Nodes, slot: Slot) {
        let node = nodes.get(slot);
        if !node.used {
            return;
        }
        let text = key.text(node.info.node());
        self.of_slot[slot] = match self.numbers.get(text) {
            Some(number) => *number,
            None => {
                let number = self.numbers.len() as u32;
                self.numbers.insert(text.to_owned(), number);
                number
            }
        };
    }

    fn catch_up(&mut self, key: &Key, nodes: &Nodes) {
        let all = nodes.all().len();
        // Values that no node has any more are forgotten with the rest.
        let changed = nodes.objects.since(self.objects).filter(|_| self.numbers.len() <= 2 * all + 1024);
        self.of_slot.resize(all, 0);
        match changed {
            Some(changed) => {
                changed.iter().for_each(|slot| self.put(key, nodes, *slot as Slot));
            }
            None => {
                self.numbers.clear();
                (0..all).for_each(|slot| self.put(key, nodes, slot));
            }
        }
        self.objects = nodes.objects.end();
    }
}

/// All keys that constraints were about.
#[derive(Debug, Default)]
pub(crate) struct Facets(BTreeMap<Key, Facet>);

impl Facets {
    /// On which nodes all of these constraints hold, by slot; what is said of slots without a node means nothing.
    pub(crate) fn hold(&mut self, constraints: &[Constraint], nodes: &Nodes) -> Vec<bool> {
        let mut hold = vec![true; nodes.all().len()];
        for constraint in constraints {
            let key = constraint.key();
            if self.0.len() >= KEPT && !self.0.contains_key(key) {
                self.0.clear();
            }
            let facet = match self.0.get_mut(key) {
                Some(facet) => facet,
                // What happened before the beginning is read from all nodes.
                None => {
                    self.0.entry(key.clone()).or_insert(Facet { objects: usize::MAX, ..Facet::default() })
                }
            };
            facet.catch_up(key, nodes);
            let mut answers = vec![false; facet.numbers.len()];
            for (text, number) in &facet.numbers {
                answers[*number as usize] = constraint.holds_for(text);
            }
            for (hold, number) in hold.iter_mut().zip(&facet.of_slot) {
                *hold &= answers.get(*number as usize).copied().unwrap_or(false);
            }
        }
        hold
    }
}

#[cfg(test)]
mod tests {
    use swarm_api::v1::{Node, node_status};
    use swarm_placement::all_hold;

    use super::*;

    fn node(id: usize, zone: &str) -> Node {
        let mut node = Node { id: format!("n{id}"), ..Default::default() };
        node.status.state = node_status::State::Ready as i32;
        node.status.addr = format!("10.0.{}.7", id % 3);
        if !zone.is_empty() {
            node.spec.annotations.labels.insert("zone".to_owned(), zone.to_owned());
        }
        node
    }

    /// What is known by value is what each node says itself, whatever happened to nodes meanwhile.
    #[test]
    fn constraints_hold_by_value_where_they_hold_on_the_node() {
        let texts = [
            vec![],
            vec!["node.labels.zone==a"],
            vec!["node.labels.zone!=A", "node.id!=n3"],
            vec!["node.ip==10.0.1.0/24"],
            vec!["node.ip!=10.0.1.7", "node.labels.zone==b"],
            vec!["node.role==worker"],
            vec!["node.nothing==worker"],
        ];
        let all: Vec<Vec<Constraint>> = texts.iter().map(|t| Constraint::parse_all(t).unwrap()).collect();
        let (mut nodes, mut facets) = (Nodes::default(), Facets::default());
        for step in 0..200_usize {
            let id = step * 7 % 23;
            match step % 5 {
                4 => nodes.remove(&format!("n{id}")),
                n => _ = nodes.put(&node(id, ["", "a", "b", "A"][(n + step / 9) % 4]).into()),
            }
            // Not every step, so that some changes come together.
            if step % 3 == 0 {
                for constraints in &all {
                    let hold = facets.hold(constraints, &nodes);
                    for (slot, hold) in hold.iter().enumerate().filter(|(slot, _)| nodes.get(*slot).used) {
                        let node = nodes.get(slot).info.node();
                        assert_eq!(*hold, all_hold(constraints, node), "{constraints:?} {node:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn more_keys_than_are_kept_do_no_harm() {
        let (mut nodes, mut facets) = (Nodes::default(), Facets::default());
        nodes.put(&node(1, "a").into());
        for n in 0..3 * KEPT {
            let constraint = Constraint::parse(&format!("node.labels.l{n}!=x")).unwrap();
            assert_eq!(facets.hold(&[constraint], &nodes), [true]);
            assert!(facets.0.len() <= KEPT);
        }
    }
}
