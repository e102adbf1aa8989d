//! Which of the nodes that fit takes the next task.
//!
//! Without preferences, the best node: one where the service does not keep failing, then the one with the fewest
//! tasks of the service, then with the fewest tasks, then the one that has been known longest. With preferences, the
//! values of the first label are branches, those of the second branches of these, and so on; the next task goes to the
//! branch that has the fewest tasks of the service among those that have room, and there to the best node. Tasks on
//! nodes that do not fit count for their branch: they stand and fall with it.
//!
//! A service may ask for the opposite (`binpack`): then the fullest node of those that fit comes first. Branches get
//! equal shares all the same.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use swarm_api::extensions::Strategy;
use swarm_api::hash::FastMap;
use swarm_placement::FAILURE_LIMIT;

use crate::filter::Requirements;
use crate::nodes::{Nodes, Slot};
use crate::pools::{Index, Needs, PoolKey, PoolNo, Rank, rank};
use crate::services::ServiceNo;
use crate::topology::{BranchNo, TopologyNo};
use crate::verdict::Verdict;

/// Failures of the service there, if there are too many; then as the strategy has it.
type FullRank = (u32, Rank);

type Listed = BinaryHeap<Reverse<(FullRank, u32)>>;

/// Branches by their tasks of the service, their tasks, and the order of their labels.
type Siblings = BinaryHeap<Reverse<(u64, u64, usize, BranchNo)>>;

/// Whom tasks of one group are given to, one after the other.
pub(crate) struct Chooser<'a> {
    needs: &'a mut Needs,
    requirements: &'a Requirements,
    /// The service, or the number of those without one.
    no: ServiceNo,
    /// Whose tasks count where nodes are compared; tasks without a service have no siblings.
    service: Option<ServiceNo>,
    topology: TopologyNo,
    strategy: Strategy,
    now: Duration,
    /// The pool in which this service does not count.
    common: Option<PoolNo>,
    /// The pool for this service.
    own: Option<PoolNo>,
    leaves: FastMap<BranchNo, Leaf>,
    /// By branch; set up when the branch is come to.
    siblings: FastMap<BranchNo, Siblings>,
    of_service: FastMap<BranchNo, u64>,
    starts_with: Source,
    /// How many tasks each leaf may get, about.
    for_each: usize,
}

/// Where the nodes of a branch come from. Each source ends with the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Those without tasks of the service, from the pool that is there for all services.
    Common,
    /// From the service's own pool.
    Own,
    /// From a list that was made for this group; last of all those where the service keeps failing.
    Listed,
}

#[derive(Debug)]
struct Leaf {
    source: Source,
    /// Taken out of the pool, and not to be taken again for now.
    aside: Vec<Slot>,
    accepted: usize,
    listed: Listed,
}

impl<'a> Chooser<'a> {
    /// For a group with so many tasks. Of the candidates alone, if they are given.
    pub(crate) fn new(
        index: &'a mut Index,
        nodes: &mut Nodes,
        requirements: &'a Requirements,
        no: ServiceNo,
        (strategy, now): (Strategy, Duration),
        tasks: usize,
        candidates: Option<&[Slot]>,
    ) -> Chooser<'a> {
        // A new topology may give numbers anew, which pools must be asked after.
        let topology = nodes.topology(&requirements.spread);
        let needs = index.needs(&requirements.fixed, nodes);
        let id = &requirements.service;
        let service = (!id.is_empty()).then_some(no);
        let mut chooser = Chooser {
            needs,
            requirements,
            no,
            service,
            topology,
            strategy,
            now,
            common: None,
            own: None,
            leaves: FastMap::default(),
            siblings: FastMap::default(),
            of_service: FastMap::default(),
            starts_with: Source::Listed,
            for_each: 0,
        };
        match candidates {
            Some(candidates) => {
                for slot in candidates {
                    chooser.list(nodes, *slot);
                }
            }
            // The fullest node gets even fuller, which a pool is not made for.
            None if strategy == Strategy::Binpack => {
                for slot in 0..nodes.all().len() {
                    chooser.list(nodes, slot);
                }
            }
            None => {
                chooser.for_each = tasks / nodes.topologies.get(topology).branches.len().max(1);
                let own = PoolKey { topology, service: service.map(|no| (no, id.clone())) };
                let many = chooser.needs.members / 2;
                let covers = |no| tasks >= many || nodes.services.node_count(no) >= many;
                // Where the service is, or will be, on most nodes anyway, its own pool is worth its while.
                if service.is_none_or(|no| chooser.needs.has_pool(&own) || covers(no)) {
                    chooser.own = Some(chooser.needs.pool(&own, nodes));
                    chooser.starts_with = Source::Own;
                } else {
                    let common = PoolKey { topology, service: None };
                    chooser.common = Some(chooser.needs.pool(&common, nodes));
                    chooser.starts_with = Source::Common;
                }
            }
        }
        // A single node has nothing to be compared with.
        if nodes.topologies.get(topology).has_labels()
            && candidates.is_none_or(|candidates| candidates.len() > 1)
            && let Some(no) = service
        {
            let tree = nodes.topologies.get(topology);
            for (slot, count) in nodes.services.nodes(no) {
                for branch in tree.path(tree.leaf(slot)) {
                    *chooser.of_service.entry(branch).or_default() += u64::from(count);
                }
            }
        }
        chooser
    }

    /// What the filters say of a node.
    pub(crate) fn verdict(&self, nodes: &Nodes, slot: Slot) -> Verdict {
        let fixed = self.needs.verdicts.get(slot).copied().unwrap_or(Verdict::Absent);
        self.requirements.verdict(fixed, nodes, self.no, slot)
    }

    fn failures(&self, nodes: &Nodes, slot: Slot) -> u32 {
        let failures = &nodes.get(slot).info.failures;
        let count = failures.count(&self.requirements.service, self.requirements.version, self.now);
        if count >= FAILURE_LIMIT { count as u32 } else { 0 }
    }

    fn full_rank(&self, nodes: &Nodes, slot: Slot) -> FullRank {
        let rank = match self.strategy {
            Strategy::Spread => rank(nodes, self.service, slot),
            Strategy::Binpack => {
                let info = &nodes.get(slot).info;
                !(u64::from(info.fullness()) << 32 | u64::from(info.active()))
            }
        };
        (self.failures(nodes, slot), rank)
    }

    fn list(&mut self, nodes: &Nodes, slot: Slot) {
        if self.verdict(nodes, slot) == Verdict::Fits {
            let rank = self.full_rank(nodes, slot);
            let leaf = nodes.topologies.get(self.topology).leaf(slot);
            self.leaf(leaf).listed.push(Reverse((rank, slot as u32)));
        }
    }

    fn leaf(&mut self, leaf: BranchNo) -> &mut Leaf {
        let (source, for_each) = (self.starts_with, self.for_each);
        self.leaves.entry(leaf).or_insert_with(|| Leaf {
            source,
            aside: Vec::with_capacity(for_each),
            accepted: 0,
            listed: Listed::new(),
        })
    }

    /// The node that gets the next task: `place` enters it in the node's account. False if there is none.
    pub(crate) fn place(&mut self, nodes: &mut Nodes, place: &mut dyn FnMut(&mut Nodes, Slot)) -> bool {
        self.place_on(0, nodes, place)
    }

    fn place_on(
        &mut self,
        branch: BranchNo,
        nodes: &mut Nodes,
        place: &mut dyn FnMut(&mut Nodes, Slot),
    ) -> bool {
        if nodes.topologies.get(self.topology).branches[branch].children.is_empty() {
            return self.place_on_leaf(branch, nodes, place);
        }
        if !self.siblings.contains_key(&branch) {
            let tree = nodes.topologies.get(self.topology);
            let of = |child: &BranchNo| self.of_service.get(child).copied().unwrap_or(0);
            let siblings = tree.branches[branch].children.values().enumerate();
            let siblings = siblings
                .map(|(order, child)| Reverse((of(child), tree.branches[*child].active, order, *child)));
            let siblings = siblings.collect();
            self.siblings.insert(branch, siblings);
        }
        loop {
            let Some(Reverse((of_service, active, order, child))) =
                self.siblings.get_mut(&branch).and_then(BinaryHeap::pop)
            else {
                return false;
            };
            if self.place_on(child, nodes, place) {
                if let Some(siblings) = self.siblings.get_mut(&branch) {
                    siblings.push(Reverse((of_service + 1, active + 1, order, child)));
                }
                return true;
            }
        }
    }

    fn place_on_leaf(
        &mut self,
        at: BranchNo,
        nodes: &mut Nodes,
        place: &mut dyn FnMut(&mut Nodes, Slot),
    ) -> bool {
        let mut leaf = match self.leaves.remove(&at) {
            Some(leaf) => leaf,
            None => {
                self.leaf(at);
                return self.place_on_leaf(at, nodes, place);
            }
        };
        let chosen = self.choose(at, &mut leaf, nodes);
        if let Some(slot) = chosen {
            leaf.accepted += 1;
            place(nodes, slot);
            match (leaf.source, self.own) {
                (Source::Common, _) => leaf.aside.push(slot),
                (Source::Own, Some(own)) => self.needs.give_back(own, slot, nodes),
                _ => {
                    if self.verdict(nodes, slot) == Verdict::Fits {
                        let rank = self.full_rank(nodes, slot);
                        leaf.listed.push(Reverse((rank, slot as u32)));
                    }
                }
            }
        }
        self.leaves.insert(at, leaf);
        chosen.is_some()
    }

    /// Takes the best node of a branch from where it stands.
    fn choose(&mut self, at: BranchNo, leaf: &mut Leaf, nodes: &Nodes) -> Option<Slot> {
        loop {
            let pool = match leaf.source {
                Source::Common => self.common?,
                Source::Own => self.own?,
                Source::Listed => return self.take_listed(leaf, nodes),
            };
            // Too many in vain: the service's own order is worth its while.
            let too_many = leaf.source == Source::Common && leaf.aside.len() > 8 * leaf.accepted + 1024;
            let next = if too_many { None } else { self.needs.take(pool, at, nodes) };
            let Some(slot) = next else {
                self.next_source(leaf, pool, nodes);
                continue;
            };
            let alone =
                leaf.source == Source::Own || self.service.is_none_or(|no| nodes.services.on(no, slot) == 0);
            if alone && self.verdict(nodes, slot) == Verdict::Fits && self.failures(nodes, slot) == 0 {
                return Some(slot);
            }
            leaf.aside.push(slot);
        }
    }

    fn take_listed(&self, leaf: &mut Leaf, nodes: &Nodes) -> Option<Slot> {
        while let Some(Reverse((_, slot))) = leaf.listed.pop() {
            // A volume that was taken on one node may be missing on all others. All else is each node's own.
            if self.requirements.volumes.is_empty() || self.verdict(nodes, slot as Slot) == Verdict::Fits {
                return Some(slot as Slot);
            }
        }
        None
    }

    fn next_source(&mut self, leaf: &mut Leaf, pool: PoolNo, nodes: &Nodes) {
        let aside = std::mem::take(&mut leaf.aside);
        for slot in &aside {
            self.needs.give_back(pool, *slot, nodes);
        }
        match (leaf.source, self.service) {
            (Source::Common, Some(no)) => {
                leaf.source = Source::Own;
                let service = Some((no, self.requirements.service.clone()));
                let key = PoolKey { topology: self.topology, service };
                if self.own.is_none() {
                    // Numbers of pools may change with a new one.
                    self.own = Some(self.needs.pool(&key, nodes));
                    if self.common.is_some() {
                        let common = PoolKey { topology: self.topology, service: None };
                        self.common = Some(self.needs.pool(&common, nodes));
                        self.own = Some(self.needs.pool(&key, nodes));
                    }
                }
            }
            _ => {
                leaf.source = Source::Listed;
                for slot in aside {
                    if self.verdict(nodes, slot) == Verdict::Fits {
                        let rank = self.full_rank(nodes, slot);
                        leaf.listed.push(Reverse((rank, slot as u32)));
                    }
                }
            }
        }
    }

    /// Gives back what was taken. To be called at the end.
    pub(crate) fn finish(mut self, nodes: &Nodes) {
        for leaf in std::mem::take(&mut self.leaves).into_values() {
            let pool = match leaf.source {
                Source::Common => self.common,
                Source::Own => self.own,
                Source::Listed => None,
            };
            if let Some(pool) = pool {
                leaf.aside.iter().for_each(|slot| self.needs.give_back(pool, *slot, nodes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_api::v1::{
        Node, NodeDescription, Placement, PlacementPreference, ResourceRequirements, Resources, SpreadOver,
        Task, node_status, placement_preference,
    };
    use swarm_placement::Holding;

    /// A node: labels, tasks of the service, room for more.
    type Given = (&'static [(&'static str, &'static str)], u32, u32);

    /// How many of `n` tasks each node gets.
    #[track_caller]
    fn check(labels: &[&str], given: &[Given], n: u32, expected: &[u32]) {
        let mut task = Task { service_id: "s".into(), ..Default::default() };
        let mut placement = Placement::default();
        for label in labels {
            let over = SpreadOver { spread_descriptor: format!("node.labels.{label}") };
            let preference = Some(placement_preference::Preference::Spread(over));
            placement.preferences.push(PlacementPreference { preference });
        }
        task.spec.placement = Some(placement);
        let idle = task.clone();
        let reservations = Some(Resources { memory_bytes: 1, ..Default::default() });
        task.spec.resources = Some(ResourceRequirements { reservations, ..Default::default() });
        let requirements = Requirements::of(&task);

        let mut nodes = Nodes::default();
        let no = nodes.services.enter("s");
        for (at, (labels, tasks, room)) in given.iter().enumerate() {
            let mut node = Node { id: at.to_string(), ..Default::default() };
            node.status.state = node_status::State::Ready as i32;
            node.spec.annotations.labels =
                labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let resources = Resources { memory_bytes: i64::from(*room), ..Default::default() };
            node.description = Some(NodeDescription { resources: Some(resources), ..Default::default() });
            nodes.put(&node.into());
            for _ in 0..*tasks {
                nodes.enter(at, no, Holding::of(&idle, &[]), false);
            }
        }
        // From the common pool, from the service's own, and from a list.
        let all: Vec<Slot> = (0..given.len()).collect();
        for (tasks, candidates) in [(0, None), (n as usize, None), (0, Some(&all[..]))] {
            let now = (Strategy::Spread, Duration::ZERO);
            let mut nodes = nodes.clone();
            let mut index = Index::default();
            let mut got = vec![0; given.len()];
            // Twice, as what was taken must be back.
            for part in [n / 2, n - n / 2] {
                let mut chooser =
                    Chooser::new(&mut index, &mut nodes, &requirements, no, now, tasks, candidates);
                for _ in 0..part {
                    chooser.place(&mut nodes, &mut |nodes, slot| {
                        got[slot] += 1;
                        nodes.enter(slot, no, Holding::of(&task, &[]), false);
                    });
                }
                chooser.finish(&nodes);
            }
            assert_eq!(got, expected, "{tasks} {candidates:?}");
        }
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
