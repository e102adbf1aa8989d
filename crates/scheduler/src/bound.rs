//! Tasks that come with a node: of services and jobs that have one on each.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use swarm_api::hash::FastMap;
use swarm_api::v1::Task;
use swarm_api::{Shared, Text};

use crate::filter::Requirements;
use crate::nodes::Slot;
use crate::preempt::{MOST_NODES, policy_of};
use crate::scheduler::Pass;
use crate::verdict::{Tally, Verdict};

/// The task comes with its node, and belongs to a slot of its service, not to the node: a rebalancing moves it there.
pub(crate) fn was_moved(task: &Task) -> bool {
    task.slot != 0 && !task.node_id.is_empty()
}

impl Pass<'_> {
    /// Looks at the tasks that wait for nodes of their own: new ones, and those of nodes that changed. Those with a higher
    /// priority come first.
    pub(crate) fn confirm_bound(&mut self, changed: &[Slot]) {
        let mut priorities: FastMap<Text, i32> = FastMap::default();
        let mut look = Vec::new();
        for (node, id) in self.bound_to_look_at(changed) {
            let task = self.state.bound.get(&node).and_then(|tasks| tasks.get(&id));
            let Some(task) = task.cloned() else { continue };
            let priority = match priorities.get(&task.service_id) {
                Some(priority) => *priority,
                None => {
                    let priority = policy_of(self.tables, &task.service_id).priority;
                    priorities.insert(task.service_id.clone(), priority);
                    priority
                }
            };
            look.push((Reverse(priority), node, id, task));
        }
        look.sort_by_key(|(priority, ..)| *priority);
        for (_, node, id, task) in look {
            if let Some((service, text)) = self.waits(&task) {
                self.state.gates.hold(self.tables, service, Some((node, id)));
                self.explain(&task, &text);
            } else if let Some(slot) = self.state.nodes.slot(&node) {
                self.confirm(&id, &task, slot);
            }
        }
    }

    fn bound_to_look_at(&mut self, changed: &[Slot]) -> BTreeSet<(Text, Text)> {
        let state = &mut *self.state;
        let mut look = std::mem::take(&mut state.fresh_bound);
        let later = MOST_NODES.saturating_sub(look.len());
        look.extend(std::iter::from_fn(|| state.later_bound.pop_first()).take(later));
        self.again |= !state.later_bound.is_empty();
        let all = |(node, tasks): (&Text, _)| {
            let tasks: &std::collections::BTreeMap<Text, Shared<Task>> = tasks;
            let of_node = tasks.keys().map(|task| (node.clone(), task.clone()));
            of_node.collect::<Vec<_>>()
        };
        if state.nodes.volumes.changed {
            look.extend(state.bound.iter().flat_map(all));
        }
        if !state.bound.is_empty() {
            let nodes = changed.iter().map(|slot| &state.nodes.get(*slot).id);
            look.extend(nodes.filter_map(|node| state.bound.get_key_value(node)).flat_map(all));
        }
        look
    }

    /// Puts a task on its node if that fits; otherwise it makes room for itself, or says why it waits.
    fn confirm(&mut self, id: &Text, task: &Shared<Task>, slot: Slot) {
        let requirements = Requirements::of(task);
        let nodes = &mut self.state.nodes;
        let service = nodes.services.enter(&task.service_id);
        let fixed = self.state.index.needs(&requirements.fixed, nodes).verdicts[slot];
        let verdict = requirements.verdict(fixed, nodes, service, slot);
        if verdict == Verdict::Fits {
            self.state.forget(id);
            self.put(id, task, &requirements, slot);
        } else if was_moved(task) || !self.preempt_on(id, task, &requirements, service, slot) {
            // That it moves is worth nobody's place.
            let mut tally = Tally::default();
            tally.add(verdict);
            self.explain(task, &tally.explanation(requirements.runtime()));
        }
        self.state.nodes.services.leave(service);
    }
}
