//! What became of the tasks, summed up.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use swarm_api::duration;
use swarm_api::swarmd::DryRunResponse;
use swarm_api::swarmd::dry_run_response::{Ending, OnNode, Preemption, Range, Refusal, Replacement};
use swarm_api::v1::update_status::UpdateState;
use swarm_store::Tables;

use crate::cast::{Cast, Place, Role};
use crate::differences::differences;
use crate::rehearsal::{Change, End, is_updating};

/// Most entries of lists that name tasks.
const MOST: usize = 1000;

/// The answer to what was asked, from how it ended.
pub(crate) fn of(
    change: &Change,
    after: &Tables,
    cast: &Cast,
    waits: &[(Place, String)],
    end: End,
) -> DryRunResponse {
    let mut answer = DryRunResponse {
        index: change.view.index(),
        takes: Some(duration::from_std(cast.last_news())),
        ..Default::default()
    };
    let before = change.view.services().get(&change.service.id);
    if let Some(before) = before {
        answer.differences = differences(&change.view, before, &change.service);
    }
    let ending = ending(change, after, cast, end);
    (answer.ending, answer.message) = (ending.0 as i32, ending.1);
    tasks(&mut answer, cast, ending.0 == Ending::CutOff);
    let mut waiting = BTreeMap::<&str, Group>::new();
    waits.iter().for_each(|(place, reason)| waiting.entry(reason).or_default().add(place));
    (answer.waiting, answer.waits) = (waits.len() as u64, listed(waiting));
    let first = cast.victims().iter().take(MOST);
    answer.preempted = cast.victims().len() as u64;
    answer.preemptions = first
        .map(|victim| Preemption {
            task_id: victim.task.id.to_string(),
            service_id: victim.task.service_id.to_string(),
            slot: victim.task.slot,
            node_id: victim.task.node_id.to_string(),
            new_node_id: victim.new_node.clone(),
        })
        .collect();
    let status = after.services().get(&change.service.id).and_then(|s| s.update_status.as_ref());
    let has_pace = status.is_some() || !swarm_orchestrator::rebalances_within(&change.service).is_zero();
    if before.is_some() && has_pace && !answer.replacements.is_empty() {
        answer.pace = Some(swarm_orchestrator::pace(&change.service));
    }
    answer
}

fn ending(change: &Change, after: &Tables, cast: &Cast, end: End) -> (Ending, String) {
    let state =
        |s: &swarm_api::v1::Service| s.update_status.as_ref().map_or(UpdateState::Unknown, |u| u.state());
    let text = match (end, after.services().get(&change.service.id).map(|s| state(s))) {
        (End::Tasks, _) => "it has too many new tasks to be followed to the end",
        (End::Stopped, _) => "it would have taken too long to follow it to the end",
        _ if cast.has_lagged() => "not all of it was seen",
        _ if is_updating(after, &change.service.id) => {
            "the update would not come to its end: it waits for nodes that do not answer"
        }
        (_, Some(UpdateState::Paused)) => {
            return (Ending::Paused, "the update would be paused: new tasks find no node".to_owned());
        }
        (_, Some(UpdateState::RollbackPaused)) => {
            return (Ending::Paused, "the rollback would be paused: new tasks find no node".to_owned());
        }
        (_, Some(UpdateState::RollbackCompleted))
            if state(&change.service) != UpdateState::RollbackStarted =>
        {
            return (
                Ending::RolledBack,
                "the update would be rolled back: new tasks find no node".to_owned(),
            );
        }
        _ => return (Ending::Settled, String::new()),
    };
    (Ending::CutOff, text.to_owned())
}

/// Tasks of one reason, or on one node, by place.
#[derive(Default)]
struct Group {
    count: u64,
    slots: Vec<u64>,
    nodes: Vec<String>,
}

impl Group {
    fn add(&mut self, place: &Place) {
        self.count += 1;
        match place {
            Place::Slot(slot) => self.slots.push(*slot),
            Place::Node(node) => self.nodes.push(node.clone()),
        }
    }
}

/// It waits for a node, or was given up because it found none. Of what was cut off, only what says so itself.
fn is_refused(role: &Role, cut_off: bool) -> bool {
    let says_why = !role.err.is_empty();
    let waits = role.live && (says_why || !cut_off);
    !role.assigned && (waits || (says_why && !role.is_old))
}

fn tasks(answer: &mut DryRunResponse, cast: &Cast, cut_off: bool) {
    let mut nodes = BTreeMap::<&str, (OnNode, Vec<u64>)>::new();
    let mut refused = BTreeMap::<&str, Group>::new();
    // The last one seen of each place.
    let mut last = BTreeMap::<&Place, (&str, &Role)>::new();
    // Those of before whose place another one has taken.
    let mut succeeded = BTreeSet::new();
    for (id, role) in cast.roles() {
        let predecessor = last.insert(&role.place, (id, role)).filter(|(_, old)| !old.live && !role.is_old);
        let found = role.assigned && !role.ran_before;
        if found {
            let (node, slots) = nodes.entry(&role.node).or_default();
            match predecessor {
                Some(_) => node.replacing += 1,
                None => node.placed += 1,
            }
            if let Place::Slot(slot) = role.place {
                slots.push(slot);
            }
            match predecessor {
                Some((old, _)) => {
                    answer.replaced += 1;
                    succeeded.insert(old);
                }
                None => answer.placed += 1,
            }
        } else if is_refused(role, cut_off) {
            answer.refused += 1;
            let reason = if role.err.is_empty() { "it waits, and does not say why" } else { &role.err };
            refused.entry(reason).or_default().add(&role.place);
        }
        if let Some((old, from)) = predecessor
            && answer.replacements.len() < MOST
        {
            answer.replacements.push(Replacement {
                task_id: old.to_owned(),
                slot: if let Place::Slot(slot) = role.place { slot } else { 0 },
                node_id: if from.assigned { from.node.clone() } else { String::new() },
                new_node_id: if role.assigned { role.node.clone() } else { String::new() },
                at: Some(duration::from_std(role.at)),
            });
        }
    }
    for (id, role) in cast.roles().filter(|(_, role)| role.ran_before) {
        let (node, _) = nodes.entry(&role.node).or_default();
        if role.live {
            node.kept += 1;
            answer.kept += 1;
        } else {
            node.stopped += 1;
            answer.stopped += u64::from(!succeeded.contains(id));
        }
    }
    answer.nodes = nodes
        .into_iter()
        .map(|(id, (node, slots))| OnNode { node_id: id.to_owned(), slots: ranges(slots), ..node })
        .collect();
    answer.refusals = listed(refused);
}

/// Groups by their reasons, the largest first.
fn listed(groups: BTreeMap<&str, Group>) -> Vec<Refusal> {
    let list = groups.into_iter().map(|(reason, group)| Refusal {
        reason: reason.to_owned(),
        tasks: group.count,
        slots: ranges(group.slots),
        node_ids: group.nodes,
    });
    let mut list: Vec<Refusal> = list.collect();
    list.sort_by_key(|refusal| Reverse(refusal.tasks));
    list
}

/// Numbers as ranges, in order.
fn ranges(mut numbers: Vec<u64>) -> Vec<Range> {
    numbers.sort_unstable();
    numbers.dedup();
    let mut ranges: Vec<Range> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some(range) if range.last + 1 == number => range.last = number,
            _ => ranges.push(Range { first: number, last: number }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_slots_are_ranges() {
        let check = |numbers: &[u64], expected: &[(u64, u64)]| {
            let found: Vec<_> = ranges(numbers.to_vec()).iter().map(|r| (r.first, r.last)).collect();
            assert_eq!(found, expected);
        };
        check(&[], &[]);
        check(&[3, 1, 2, 2, 7], &[(1, 3), (7, 7)]);
        check(&[0, 1, 3, 5, 6], &[(0, 1), (3, 3), (5, 6)]);
    }
}
