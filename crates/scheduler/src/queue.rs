//! Tasks that wait for a node, in groups that are placed together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use swarm_api::Shared;
use swarm_api::v1::Task;

use crate::filter::Requirements;
use crate::nodes::Slot;
use crate::verdict::{Tally, Verdict};

/// What the tasks of a group have in common: the service and the version of its spec. A task without either is a
/// group of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupKey {
    pub(crate) service: Arc<str>,
    version: Option<u64>,
    task: Option<Arc<str>>,
}

impl GroupKey {
    pub(crate) fn of(task: &Task) -> GroupKey {
        let version = task.spec_version.filter(|_| !task.service_id.is_empty()).map(|v| v.index);
        GroupKey {
            service: task.service_id.as_str().into(),
            version,
            task: version.is_none().then(|| task.id.as_str().into()),
        }
    }

    /// The smallest key of a service's groups.
    pub(crate) fn first_of(service: &str) -> GroupKey {
        GroupKey { service: service.into(), version: None, task: None }
    }
}

/// Order of tasks in a group.
pub(crate) type Place = (u64, Arc<str>);

/// Tasks that ask the same of a node.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) requirements: Requirements,
    pub(crate) tasks: BTreeMap<Place, Shared<Task>>,
    /// Tasks that have not been looked at.
    pub(crate) fresh: BTreeSet<Place>,
    /// When the oldest of its first tasks was created: older groups come first.
    pub(crate) since: SystemTime,
    /// What the filters said of each node when the group was last looked at; empty before.
    verdicts: Vec<Verdict>,
    tally: Tally,
    /// What the user was told last.
    pub(crate) told: String,
}

impl Group {
    pub(crate) fn new(task: &Task) -> Group {
        Group {
            requirements: Requirements::of(task),
            tasks: BTreeMap::new(),
            fresh: BTreeSet::new(),
            since: created(task),
            verdicts: Vec::new(),
            tally: Tally::default(),
            told: String::new(),
        }
    }

    /// Adds a task, or takes note of its change. It is to be looked at if it is new, or if what it tells the user
    /// is not what the group would say.
    pub(crate) fn put(&mut self, task: &Shared<Task>) -> bool {
        let place = place(task);
        let told = task.status.err == self.told;
        let known = self.tasks.insert(place.clone(), task.clone()).is_some();
        let look = !known || (!told && !self.told.is_empty());
        if look {
            self.since = self.since.min(created(task));
            self.fresh.insert(place);
        }
        look
    }

    pub(crate) fn remove(&mut self, place: &Place) {
        self.tasks.remove(place);
        self.fresh.remove(place);
    }

    /// Forgets what the filters said.
    pub(crate) fn forget_verdicts(&mut self) {
        self.verdicts.clear();
        self.tally = Tally::default();
    }

    /// It was looked at, and what the filters said of each node is known.
    pub(crate) fn is_known(&self) -> bool {
        !self.told.is_empty()
    }

    /// It was looked at, and no node has room.
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_known() && !self.tally.any_fits()
    }

    /// Takes note of what the filters say of a node now; true if that is news.
    pub(crate) fn set_verdict(&mut self, slot: Slot, verdict: Verdict) -> bool {
        if self.verdicts.len() <= slot {
            for _ in self.verdicts.len()..=slot {
                self.tally.add(Verdict::Absent);
            }
            self.verdicts.resize(slot + 1, Verdict::Absent);
        }
        let known = std::mem::replace(&mut self.verdicts[slot], verdict);
        self.tally.remove(known);
        self.tally.add(verdict);
        known != verdict
    }

    /// What the user is to be told.
    pub(crate) fn text(&self) -> String {
        self.tally.no_suitable_node(self.requirements.runtime())
    }
}

pub(crate) fn place(task: &Task) -> Place {
    (task.slot, task.id.as_str().into())
}

fn created(task: &Task) -> SystemTime {
    task.meta.created_at.as_ref().map_or(SystemTime::UNIX_EPOCH, swarm_api::duration::to_system_time)
}
