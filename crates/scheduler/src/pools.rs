//! Nodes in the order in which they are chosen, for each set of needs that only nodes themselves fulfil.
//!
//! A pool is a heap whose entries may be out of date: one that says less than is true is put right when it comes to
//! the top, and whoever gets better is entered again. So what a task costs does not depend on how many nodes or
//! how many pools there are.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BinaryHeap};
use swarm_api::Text;

use crate::facets::Facets;
use crate::filter::Fixed;
use crate::nodes::{NodeSlot, Nodes, Slot};
use crate::services::ServiceNo;
use crate::topology::{BranchNo, TopologyNo};
use crate::verdict::Verdict;

/// Sets of needs whose answers are kept; more than this are in use only where every service has its own.
const KEPT_NEEDS: usize = 1024;
/// Pools of single services that are kept for a set of needs.
const KEPT_OWN: usize = 8;
/// Entries that all pools together may have.
const KEPT_ENTRIES: usize = 8 << 20;

/// Tasks of a service, and tasks: fewer are better.
pub(crate) type Rank = u64;

/// The rank of a node that is in no heap.
const OUT: Rank = Rank::MAX;

/// The rank of a node for a service, or for a task to whom all that run there are alike.
pub(crate) fn rank(nodes: &Nodes, service: Option<ServiceNo>, slot: Slot) -> Rank {
    let of_service = service.map_or(0, |no| nodes.services.on(no, slot));
    u64::from(of_service) << 32 | u64::from(nodes.get(slot).info.active())
}

/// What a pool is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolKey {
    pub(crate) topology: TopologyNo,
    /// Ranks are those for this service. The id is there as numbers are given again.
    pub(crate) service: Option<(ServiceNo, Text)>,
}

/// See the module. One heap for each branch of the last level.
#[derive(Debug)]
struct Pool {
    key: PoolKey,
    heaps: Vec<BinaryHeap<Reverse<(Rank, u32)>>>,
    /// The rank of each node's one entry that counts.
    queued: Vec<Rank>,
    /// What it knows of.
    freed: usize,
}

/// A set of needs, and which nodes fulfil it.
#[derive(Debug)]
pub(crate) struct Needs {
    fixed: Fixed,
    /// What the fixed filters say of each node.
    pub(crate) verdicts: Vec<Verdict>,
    /// Number of READY nodes that fulfil them.
    pub(crate) members: usize,
    /// Which these are.
    is_member: Vec<bool>,
    objects: usize,
    topologies: u64,
    pools: Vec<Pool>,
}

/// Number of a pool among those of a set of needs, until another one is asked for.
pub(crate) type PoolNo = usize;

impl Pool {
    fn service(&self) -> Option<ServiceNo> {
        self.key.service.as_ref().map(|(no, _)| *no)
    }

    fn fill(&mut self, nodes: &Nodes, verdicts: &[Verdict]) {
        let topology = nodes.topologies.get(self.key.topology);
        let mut entries: Vec<Vec<Reverse<(Rank, u32)>>> = vec![Vec::new(); topology.branches.len()];
        self.queued.clear();
        self.queued.resize(verdicts.len(), OUT);
        for (slot, verdict) in verdicts.iter().enumerate() {
            if *verdict == Verdict::Fits && nodes.get(slot).info.is_ready() {
                let rank = rank(nodes, self.service(), slot);
                self.queued[slot] = rank;
                entries[topology.leaf(slot)].push(Reverse((rank, slot as u32)));
            }
        }
        self.heaps = entries.into_iter().map(BinaryHeap::from).collect();
        self.freed = nodes.freed.end();
    }

    fn push(&mut self, nodes: &Nodes, slot: Slot, rank: Rank) {
        let leaf = nodes.topologies.get(self.key.topology).leaf(slot);
        if self.heaps.len() <= leaf {
            self.heaps.resize_with(leaf + 1, BinaryHeap::new);
        }
        if self.queued.len() <= slot {
            self.queued.resize(slot + 1, OUT);
        }
        self.queued[slot] = rank;
        self.heaps[leaf].push(Reverse((rank, slot as u32)));
    }

    /// A node came, went or changed.
    fn renew(&mut self, nodes: &Nodes, slot: Slot, member: bool) {
        if let Some(queued) = self.queued.get_mut(slot) {
            *queued = OUT;
        }
        if member {
            self.push(nodes, slot, rank(nodes, self.service(), slot));
        }
    }

    fn catch_up(&mut self, nodes: &Nodes, verdicts: &[Verdict], members: usize) {
        let entries: usize = self.heaps.iter().map(BinaryHeap::len).sum();
        match nodes.freed.since(self.freed) {
            Some(freed) if entries <= 4 * members + 1024 => {
                for slot in freed.iter().map(|slot| *slot as Slot) {
                    let rank = rank(nodes, self.service(), slot);
                    // One that is out is no member, or has not been entered yet.
                    if self.queued.get(slot).is_some_and(|queued| *queued != OUT && rank < *queued) {
                        self.push(nodes, slot, rank);
                    }
                }
                self.freed = nodes.freed.end();
            }
            _ => self.fill(nodes, verdicts),
        }
    }
}

impl Needs {
    fn new(fixed: Fixed, nodes: &Nodes, facets: &mut Facets) -> Needs {
        let mut needs = Needs {
            fixed,
            verdicts: Vec::new(),
            members: 0,
            is_member: Vec::new(),
            objects: 0,
            topologies: nodes.topologies.generation,
            pools: Vec::new(),
        };
        needs.judge_all(nodes, facets);
        needs
    }

    fn judge(&self, nodes: &Nodes, slot: Slot) -> Verdict {
        let node = nodes.get(slot);
        if node.used { self.fixed.verdict(node.info.node()) } else { Verdict::Absent }
    }

    fn judge_all(&mut self, nodes: &Nodes, facets: &mut Facets) {
        let hold = facets.hold(&self.fixed.constraints, nodes);
        let verdict = |(node, hold): (&NodeSlot, bool)| match node.used {
            true => self.fixed.verdict_if(node.info.node(), || hold),
            false => Verdict::Absent,
        };
        self.verdicts = nodes.all().iter().zip(hold).map(verdict).collect();
        self.objects = nodes.objects.end();
        self.pools.clear();
        let ready = nodes.all().iter().map(|node| node.info.is_ready());
        let fits = self.verdicts.iter().map(|verdict| *verdict == Verdict::Fits);
        self.is_member = fits.zip(ready).map(|(fits, ready)| fits && ready).collect();
        self.members = self.is_member.iter().filter(|member| **member).count();
    }

    fn catch_up(&mut self, nodes: &Nodes, facets: &mut Facets) {
        if self.topologies != nodes.topologies.generation {
            self.topologies = nodes.topologies.generation;
            self.pools.clear();
        }
        let Some(changed) = nodes.objects.since(self.objects) else { return self.judge_all(nodes, facets) };
        if changed.is_empty() {
            return;
        }
        self.verdicts.resize(nodes.all().len(), Verdict::Absent);
        self.is_member.resize(nodes.all().len(), false);
        for slot in changed.iter().map(|slot| *slot as Slot) {
            let verdict = self.judge(nodes, slot);
            self.verdicts[slot] = verdict;
            let member = verdict == Verdict::Fits && nodes.get(slot).info.is_ready();
            let was = std::mem::replace(&mut self.is_member[slot], member);
            self.members = self.members + usize::from(member) - usize::from(was);
            self.pools.iter_mut().for_each(|pool| pool.renew(nodes, slot, member));
        }
        self.objects = nodes.objects.end();
    }

    fn entries(&self) -> usize {
        self.pools.iter().map(|pool| pool.queued.len()).sum()
    }

    /// Whether there is a pool for this.
    pub(crate) fn has_pool(&self, key: &PoolKey) -> bool {
        self.pools.iter().any(|pool| pool.key == *key)
    }

    /// The pool for this, up to date.
    pub(crate) fn pool(&mut self, key: &PoolKey, nodes: &Nodes) -> PoolNo {
        if let Some(no) = self.pools.iter().position(|pool| pool.key == *key) {
            self.pools[no].catch_up(nodes, &self.verdicts, self.members);
            return no;
        }
        let own = |pool: &Pool| pool.key.service.is_some();
        if key.service.is_some()
            && self.pools.iter().filter(|pool| own(pool)).count() >= KEPT_OWN
            && let Some(oldest) = self.pools.iter().position(own)
        {
            self.pools.remove(oldest);
        }
        let mut pool = Pool { key: key.clone(), heaps: Vec::new(), queued: Vec::new(), freed: 0 };
        pool.fill(nodes, &self.verdicts);
        self.pools.push(pool);
        self.pools.len() - 1
    }

    /// Takes the best node of a branch out; it is to be given back.
    pub(crate) fn take(&mut self, pool: PoolNo, leaf: BranchNo, nodes: &Nodes) -> Option<Slot> {
        let pool = &mut self.pools[pool];
        let service = pool.service();
        let topology = nodes.topologies.get(pool.key.topology);
        let heap = pool.heaps.get_mut(leaf)?;
        loop {
            let mut top = heap.peek_mut()?;
            let Reverse((said, slot)) = *top;
            let queued = &mut pool.queued[slot as Slot];
            // A node that moved to another branch may have the rank that it had here.
            if *queued != said || topology.leaf(slot as Slot) != leaf {
                PeekMut::pop(top);
                continue;
            }
            let true_rank = rank(nodes, service, slot as Slot);
            if true_rank == said {
                *queued = OUT;
                PeekMut::pop(top);
                return Some(slot as Slot);
            }
            *queued = true_rank;
            *top = Reverse((true_rank, slot));
        }
    }

    /// Gives a node back that was taken.
    pub(crate) fn give_back(&mut self, pool: PoolNo, slot: Slot, nodes: &Nodes) {
        let pool = &mut self.pools[pool];
        let rank = rank(nodes, pool.service(), slot);
        pool.push(nodes, slot, rank);
    }
}

/// All sets of needs.
#[derive(Debug, Default)]
pub(crate) struct Index {
    by_fixed: BTreeMap<Fixed, usize>,
    all: Vec<Needs>,
    facets: Facets,
}

impl Index {
    /// This set of needs, up to date.
    pub(crate) fn needs(&mut self, fixed: &Fixed, nodes: &Nodes) -> &mut Needs {
        let no = match self.by_fixed.get(fixed) {
            Some(no) => *no,
            None => {
                let entries: usize = self.all.iter().map(Needs::entries).sum();
                if self.all.len() >= KEPT_NEEDS || entries > KEPT_ENTRIES {
                    self.by_fixed.clear();
                    self.all.clear();
                }
                self.all.push(Needs::new(fixed.clone(), nodes, &mut self.facets));
                self.by_fixed.insert(fixed.clone(), self.all.len() - 1);
                self.all.len() - 1
            }
        };
        let needs = &mut self.all[no];
        needs.catch_up(nodes, &mut self.facets);
        needs
    }
}
