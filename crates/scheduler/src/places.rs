//! Where each task is, and what it takes there.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::hash::FastMap;
use swarm_api::v1::{Endpoint, GenericResource, Task, TaskSpec};
use swarm_api::{Shared, Text};
use swarm_placement::{Holding, Reserved};

use crate::filter::Requirements;
use crate::nodes::{Nodes, Slot};
use crate::queue::GroupNo;
use crate::services::ServiceNo;

/// What tasks take on their nodes beside generic resources; many tasks share one.
#[derive(Debug, PartialEq)]
pub(crate) struct Load {
    spec: Shared<TaskSpec>,
    endpoint: Option<Shared<Endpoint>>,
    /// Of the spec, which need not be read again.
    reserved: Reserved,
}

impl Load {
    fn new(spec: &Shared<TaskSpec>, endpoint: Option<&Shared<Endpoint>>) -> Load {
        Load { spec: spec.clone(), endpoint: endpoint.cloned(), reserved: Reserved::of(spec) }
    }

    /// A task that takes this, and these generic resources.
    pub(crate) fn holding<'a>(&'a self, generic: &'a [GenericResource], active: bool) -> Holding<'a> {
        Holding { reserved: self.reserved, endpoint: self.endpoint.as_deref(), generic, active }
    }

    /// It is what a task takes.
    pub(crate) fn is_of(&self, task: &Task) -> bool {
        self.spec == task.spec && self.endpoint == task.endpoint
    }

    /// The same, seen without a look into the spec.
    pub(crate) fn is_plainly_of(&self, task: &Task) -> bool {
        let same_endpoint = match (&self.endpoint, &task.endpoint) {
            (None, None) => true,
            (Some(a), Some(b)) => Shared::ptr_eq(a, b),
            _ => false,
        };
        same_endpoint && Shared::ptr_eq(&self.spec, &task.spec)
    }

    /// The spec.
    pub(crate) fn spec(&self) -> &Shared<TaskSpec> {
        &self.spec
    }
}

/// A task in the account of a node. There may be millions of them.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) slot: u32,
    /// The node's; if the slot has another one now, the node is gone.
    pub(crate) epoch: u32,
    pub(crate) service: ServiceNo,
    /// The pass in which it was assigned; 0 if that is written already, or was done by others.
    pub(crate) pass: u32,
    pub(crate) load: Arc<Load>,
    pub(crate) generic: Box<[GenericResource]>,
    pub(crate) active: bool,
    /// It came with its node: its failures do not count against the node.
    pub(crate) bound: bool,
    /// It has ended by word of a manager, and may run for a while.
    pub(crate) held: bool,
}

impl Placed {
    /// A task that the scheduler puts on a node.
    pub(crate) fn new(
        nodes: &Nodes,
        slot: Slot,
        service: ServiceNo,
        load: Arc<Load>,
        generic: Vec<GenericResource>,
        pass: u32,
    ) -> Placed {
        let epoch = nodes.get(slot).epoch;
        Placed {
            slot: slot as u32,
            epoch,
            service,
            pass,
            load,
            generic: generic.into(),
            active: true,
            bound: false,
            held: false,
        }
    }

    pub(crate) fn slot(&self) -> Slot {
        self.slot as Slot
    }

    /// A manager declared it ended, and it may still run.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    pub(crate) fn holding(&self) -> Holding<'_> {
        self.load.holding(&self.generic, self.active)
    }

    /// The node is still there.
    pub(crate) fn is_on(&self, nodes: &Nodes) -> bool {
        nodes.get(self.slot()).epoch == self.epoch
    }
}

/// Where a task is.
#[derive(Debug)]
pub(crate) enum At {
    /// Waits for a node, in this group; its own slot.
    Waiting(GroupNo, u64),
    /// Waits for its own node.
    Bound(Text),
    /// Waits no more, and was never on a node; its service.
    Stopping(Text),
    /// In a node's account.
    Placed(Placed),
    /// In the account of a node where it will have room when others have stopped.
    Claimed(Box<(Placed, Shared<Task>, Claim)>),
}

/// A task's claim on room that is to become free.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) slot: Slot,
    /// When it is given up.
    pub(crate) until: Duration,
    pub(crate) requirements: Arc<Requirements>,
}

/// Loads that are in use.
#[derive(Debug, Default)]
pub(crate) struct Loads {
    known: FastMap<(usize, usize), Arc<Load>>,
    purge_at: usize,
}

impl Loads {
    /// The load of tasks with this spec and endpoint.
    pub(crate) fn of(&mut self, spec: &Shared<TaskSpec>, endpoint: Option<&Shared<Endpoint>>) -> Arc<Load> {
        // The load keeps both alive, so that their addresses are theirs.
        let key = (
            std::ptr::from_ref::<TaskSpec>(spec) as usize,
            endpoint.map_or(0, |endpoint| std::ptr::from_ref::<Endpoint>(endpoint) as usize),
        );
        if let Some(load) = self.known.get(&key) {
            return load.clone();
        }
        if self.known.len() >= self.purge_at {
            self.known.retain(|_, load| Arc::strong_count(load) > 1);
            self.purge_at = 2 * self.known.len() + 1024;
        }
        let load = Arc::new(Load::new(spec, endpoint));
        self.known.insert(key, load.clone());
        load
    }
}

/// Number of a task's place. It is given again when the task is nowhere any more.
pub(crate) type PlaceNo = u32;

/// Where each task is, by its id. Of millions the map from ids to numbers is small, and tasks that come one after the other are
/// neighbours.
#[derive(Debug, Default)]
pub(crate) struct Places {
    by_id: FastMap<Text, PlaceNo>,
    /// With the ids, to tell tasks apart that had a number one after the other.
    all: Vec<Option<(Text, At)>>,
    unused: Vec<PlaceNo>,
}

impl Places {
    /// So many tasks more are to come.
    pub(crate) fn reserve(&mut self, tasks: usize) {
        self.by_id.reserve(tasks);
        self.all.reserve(tasks.saturating_sub(self.unused.len()));
    }

    /// Number of the task's place.
    pub(crate) fn find(&self, id: &str) -> Option<PlaceNo> {
        self.by_id.get(id).copied()
    }

    /// The place with a number, if it is this task's.
    pub(crate) fn at(&mut self, no: PlaceNo, id: &Text) -> Option<&mut At> {
        let (own, at) = self.all.get_mut(no as usize)?.as_mut()?;
        (own == id).then_some(at)
    }

    /// Where a task is.
    pub(crate) fn get(&self, id: &str) -> Option<&At> {
        self.entry(id).map(|(_, at)| at)
    }

    /// The same with the id, to be shared.
    pub(crate) fn entry(&self, id: &str) -> Option<(&Text, &At)> {
        self.all[self.find(id)? as usize].as_ref().map(|(id, at)| (id, at))
    }

    /// Where a task is, to be changed.
    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut At> {
        let no = self.find(id)?;
        self.all[no as usize].as_mut().map(|(_, at)| at)
    }

    /// Says where a task is, wherever it was.
    pub(crate) fn insert(&mut self, id: Text, at: At) -> PlaceNo {
        match self.enter(&id, || at) {
            (no, None) => no,
            (no, Some(at)) => {
                self.all[no as usize] = Some((id, at()));
                no
            }
        }
    }

    /// Says where a task is that was nowhere; otherwise what would have said so is given back.
    pub(crate) fn enter<F: FnOnce() -> At>(&mut self, id: &Text, at: F) -> (PlaceNo, Option<F>) {
        match self.by_id.entry(id.clone()) {
            Entry::Occupied(known) => (*known.get(), Some(at)),
            Entry::Vacant(vacant) => {
                let place = Some((id.clone(), at()));
                let no = match self.unused.pop() {
                    Some(no) => {
                        self.all[no as usize] = place;
                        no
                    }
                    None => {
                        self.all.push(place);
                        self.all.len() as PlaceNo - 1
                    }
                };
                (*vacant.insert(no), None)
            }
        }
    }

    /// The task is nowhere any more; where it was.
    pub(crate) fn remove(&mut self, id: &str) -> Option<(Text, At)> {
        let no = self.by_id.remove(id)?;
        self.unused.push(no);
        self.all[no as usize].take()
    }

    /// All tasks, in no particular order.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Text, &At)> {
        self.all.iter().flatten().map(|(id, at)| (id, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_given_again_is_not_taken_for_the_task_that_had_it() {
        let mut places = Places::default();
        let (a, b): (Text, Text) = ("a".into(), "b".into());
        let no = places.insert(a.clone(), At::Waiting(1, 0));
        assert!(places.enter(&a, || At::Waiting(2, 0)).1.is_some());
        assert!(matches!(places.at(no, &a), Some(At::Waiting(1, 0))));
        assert_eq!(places.insert(a.clone(), At::Waiting(3, 0)), no);
        assert!(matches!(places.remove("a"), Some((id, At::Waiting(3, 0))) if id == a));
        assert!(places.get("a").is_none() && places.at(no, &a).is_none());
        assert_eq!(places.insert(b.clone(), At::Waiting(1, 0)), no);
        assert!(places.at(no, &a).is_none() && places.at(no, &b).is_some());
        assert_eq!(places.iter().count(), 1);
    }
}
