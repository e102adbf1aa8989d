//! The groups of one turn, and the tables as they will be with them.

use std::collections::{BTreeMap, BTreeSet};

use swarm_api::v1::Task;
use swarm_reconcile::{Group, Patch};
use swarm_store::Tables;

use crate::place::Place;

/// Groups in one turn after which nothing further is begun.
pub(crate) const MOST: usize = 10_000;

/// Groups decided in this turn. What later steps of the same turn must see of them is staged only when they
/// look at the same service.
pub(crate) struct Plan<'a> {
    base: &'a Tables,
    groups: Vec<Group>,
    staged: Option<Tables>,
    /// How many groups `staged` has.
    done: usize,
    touched: BTreeMap<String, BTreeSet<Place>>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(base: &'a Tables) -> Plan<'a> {
        Plan { base, groups: Vec::new(), staged: None, done: 0, touched: BTreeMap::new() }
    }

    /// Adds a group that changes a place of a service.
    pub(crate) fn push(&mut self, service: &str, place: &Place, patches: Vec<Patch>) {
        self.note(service, place);
        self.groups.push(Group { tag: 0, patches });
    }

    /// Adds a group that changes a service and no task.
    pub(crate) fn push_service(&mut self, service: &str, patch: Patch) {
        self.touched.entry(service.to_owned()).or_default();
        self.groups.push(Group { tag: 0, patches: vec![patch] });
    }

    /// Adds a change of a task that belongs to this place.
    pub(crate) fn push_task(&mut self, place: &Place, task: &Task, patch: Patch) {
        self.push(&task.service_id, place, vec![patch]);
    }

    fn note(&mut self, service: &str, place: &Place) {
        match self.touched.get_mut(service) {
            Some(places) => drop(places.insert(place.clone())),
            None => drop(self.touched.insert(service.to_owned(), BTreeSet::from([place.clone()]))),
        }
    }

    /// The tables with everything that this turn has decided about the service.
    pub(crate) fn tables_for(&mut self, service: &str) -> Tables {
        if self.touched.contains_key(service) { self.stage() } else { self.base.clone() }
    }

    /// The tables with everything that this turn has decided about the place.
    pub(crate) fn tables_for_place(&mut self, service: &str, place: &Place) -> Tables {
        let touched = self.touched.get(service).is_some_and(|places| places.contains(place));
        if touched { self.stage() } else { self.base.clone() }
    }

    fn stage(&mut self) -> Tables {
        let tables = self.staged.get_or_insert_with(|| self.base.clone());
        for patch in self.groups[self.done..].iter().flat_map(|g| &g.patches) {
            // What does not fit will be refused when it is written; the next turn sees what is there then.
            let _ = patch.apply(tables);
        }
        self.done = self.groups.len();
        tables.clone()
    }

    /// Number of groups so far.
    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    pub(crate) fn into_groups(self) -> Vec<Group> {
        self.groups
    }
}
