//! Claims of tasks on room that is to become free.

use std::collections::BTreeSet;
use std::time::Duration;

use swarm_api::v1::generic_resource::Resource;
use swarm_api::v1::{GenericResource, Task};
use swarm_api::{Shared, Text};
use swarm_placement::NodeInfo;
use swarm_reconcile::{Now, Outcome, Refused, Settled};
use swarm_store::Tables;

use crate::nodes::Slot;
use crate::places::{At, Claim, Placed};
use crate::preempt::PATIENCE;
use crate::track::State;

impl State {
    /// A task that waits claims room on a node, with its volumes.
    pub(crate) fn claim(&mut self, id: Text, task: &Shared<Task>, claim: Claim) {
        self.forget(&id);
        let load = self.loads.of(&task.spec, task.endpoint.as_ref());
        let service = self.nodes.services.enter(&task.service_id);
        let generic = self.nodes.get_mut(claim.slot).info.set_aside(&claim.requirements.demand);
        let placed = Placed::new(&self.nodes, claim.slot, service, load, generic, 0);
        self.nodes.enter(claim.slot, service, placed.holding(), true);
        if !claim.requirements.volumes.is_empty() {
            let node = self.nodes.get(claim.slot);
            let volumes = self.nodes.volumes.choose(&claim.requirements.volumes, node.info.node());
            let node = node.id.clone();
            self.nodes.volumes.enter(&id, &node, &task.spec, &volumes.unwrap_or_default());
        }
        self.claimed.insert((claim.slot, id.clone()));
        self.claims_end.insert((claim.until, id.clone()));
        self.places.insert(id, At::Claimed(Box::new((placed, task.clone(), claim))));
    }

    /// The mark of the change that displaces others for this task.
    pub(crate) fn displaces(&mut self, id: &Text) -> u64 {
        // Never that of a list of assignments, nor 0.
        self.displacements = self.displacements.wrapping_add(1).max(1);
        let tag = u64::from(self.displacements);
        self.displacing.insert(tag, id.clone());
        tag
    }

    /// What displaces others for a task is settled. If it came to nothing, so does the claim; and if that is for no change of
    /// theirs, it is not tried again at once.
    pub(crate) fn displacement_settled(&mut self, now: &Now, settled: &Settled, tables: &Tables) {
        let Some(id) = self.displacing.remove(&settled.tag) else { return };
        if matches!(settled.outcome, Outcome::Committed(_)) || self.take_claim(&id).is_none() {
            return;
        }
        if !matches!(settled.outcome, Outcome::Refused(Refused::Guard(_) | Refused::Gone(..))) {
            self.gave_up.insert(id.clone(), now.mono + PATIENCE);
        }
        self.sync_task(now, &id, tables);
    }

    /// Sets aside for a claim what has come to be free of the generic resources that it lacks.
    pub(crate) fn set_aside_more(&mut self, id: &str) {
        let Some(At::Claimed(claimed)) = self.places.get_mut(id) else { return };
        let (placed, _, claim) = &mut **claimed;
        if placed.is_on(&self.nodes) {
            let info = &mut self.nodes.get_mut(claim.slot).info;
            info.release(&placed.generic);
            placed.generic = info.set_aside(&claim.requirements.demand).into();
        }
    }

    /// The account of a node as a claim on it sees it: without what this one and others have set aside there, but for the
    /// names that others have. All of them were given what they lack when they were made, so whoever has it first takes it
    /// from nobody.
    pub(crate) fn seen_by_claim(&self, id: &str, slot: Slot) -> NodeInfo {
        let mut info = self.nodes.get(slot).info.clone();
        for (other, placed, _) in self.claims_on(slot).filter(|(_, placed, _)| placed.is_on(&self.nodes)) {
            let mut holding = placed.holding();
            let counted =
                |r: &&GenericResource| matches!(r.resource, Some(Resource::DiscreteResourceSpec(_)));
            let counts: Vec<GenericResource> = holding.generic.iter().filter(counted).cloned().collect();
            if *other != *id {
                holding.generic = &counts;
            }
            info.remove(holding);
        }
        info
    }

    /// Tasks with claims on these nodes, and those whose claims are to be given up by now; by nodes.
    pub(crate) fn claims_to_look_at(&self, slots: &[Slot], now: Duration) -> Vec<Text> {
        let on_them =
            slots.iter().flat_map(|slot| self.claims_on(*slot)).map(|(id, _, claim)| (claim.slot, id));
        let over = self.claims_end.iter().take_while(|(until, _)| *until <= now);
        let over = over.filter_map(|(_, id)| self.claim_of(id)).map(|(id, _, claim)| (claim.slot, id));
        let look: BTreeSet<(Slot, &Text)> = on_them.chain(over).collect();
        look.into_iter().map(|(_, id)| id.clone()).collect()
    }

    /// All claims.
    #[cfg(test)]
    pub(crate) fn claims(&self) -> impl Iterator<Item = (&Text, &Placed, &Claim)> {
        self.claimed.iter().filter_map(|(_, id)| self.claim_of(id))
    }

    /// The claims on one node, with their tasks.
    pub(crate) fn claims_on(&self, slot: Slot) -> impl Iterator<Item = (&Text, &Placed, &Claim)> {
        let of_slot = self.claimed.range((slot, Text::default())..);
        of_slot.take_while(move |(other, _)| *other == slot).filter_map(|(_, id)| self.claim_of(id))
    }

    fn claim_of<'a>(&'a self, id: &'a Text) -> Option<(&'a Text, &'a Placed, &'a Claim)> {
        match self.places.get(id) {
            Some(At::Claimed(claimed)) => Some((id, &claimed.0, &claimed.2)),
            _ => None,
        }
    }

    /// When the next claim is given up.
    pub(crate) fn next_claim(&self) -> Option<Duration> {
        self.claims_end.first().map(|(until, _)| *until)
    }

    /// Ends a claim, and gives back the task, which is nowhere now.
    pub(crate) fn take_claim(&mut self, id: &str) -> Option<(Shared<Task>, Claim)> {
        if !matches!(self.places.get(id), Some(At::Claimed(_))) {
            return None;
        }
        let (id, At::Claimed(claimed)) = self.places.remove(id)? else { return None };
        let (placed, task, claim) = *claimed;
        self.nodes.volumes.leave(&id);
        self.claims_end.remove(&(claim.until, id.clone()));
        self.claimed.remove(&(claim.slot, id));
        if placed.is_on(&self.nodes) {
            self.nodes.leave(placed.slot(), placed.service, placed.holding());
        }
        self.nodes.services.leave(placed.service);
        Some((task, claim))
    }

    /// A task that waits has a claim, and keeps it.
    pub(crate) fn renew_claim(&mut self, task: &Shared<Task>) -> bool {
        if !self.claimed.is_empty()
            && let Some(At::Claimed(claimed)) = self.places.get_mut(&task.id)
        {
            claimed.1 = task.clone();
            return true;
        }
        false
    }
}
