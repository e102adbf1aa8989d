//! Tasks that wait for a node, in groups that are placed together.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use swarm_api::hash::{FastHasher, FastMap};
use swarm_api::v1::{NetworkAttachment, PortConfig, Task};
use swarm_api::{Shared, Text};
use swarm_placement::{Demand, HostPort};
use swarm_store::Tables;

use crate::filter::Requirements;
use crate::nodes::Slot;
use crate::places::{Load, Loads, PlaceNo};
use crate::services::{ServiceNo, Services};
use crate::verdict::{Tally, Verdict};

/// Number of a group. It is given again when no task of the group waits any more.
pub(crate) type GroupNo = u32;

/// What the tasks of a group have in common: the service, the version of its spec, and ports of the node; where there
/// is no version, all that they ask of a node.
///
/// Tasks of one version may differ in their ports: each has the endpoint that the service had when it was allocated.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupKey {
    pub(crate) service: Text,
    version: Option<u64>,
    ports: Vec<HostPort>,
    alike: Option<Arc<Requirements>>,
}

/// Order of tasks in a group.
pub(crate) type Place = (u64, Text);

/// Tasks that were not looked at, in their order, as they are taken one by one.
pub(crate) type Fresh = std::iter::Peekable<std::vec::IntoIter<(Place, Seen)>>;

/// What is known of a task that is to be placed.
#[derive(Debug)]
pub(crate) enum Seen {
    /// It has not been looked at: only what is asked of every task that finds room is kept, so that the task itself need
    /// not be read again for it.
    Fresh {
        load: Arc<Load>,
        /// What it takes in a log entry at most.
        bytes: u32,
        /// Its place.
        at: PlaceNo,
    },
    /// It has been looked at, and waits.
    Known(Shared<Task>),
}

/// Tasks that ask the same of a node.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) key: GroupKey,
    pub(crate) requirements: Arc<Requirements>,
    pub(crate) service: ServiceNo,
    /// Tasks that have been looked at, and wait.
    pub(crate) tasks: BTreeMap<Place, Shared<Task>>,
    /// Tasks that have not been looked at, as they came. Some of them may not wait here any more.
    fresh: Vec<(Place, Seen)>,
    /// Tasks that may not say what they should.
    retell: BTreeSet<Place>,
    /// Number of tasks that wait.
    waiting: usize,
    /// It is among those to be looked at.
    noted: bool,
    /// When the oldest of its first tasks was created: older groups come first.
    pub(crate) since: SystemTime,
    /// What the filters said of each node when the group was last looked at; empty before.
    verdicts: Vec<Verdict>,
    /// The nodes that had room then.
    fitting: BTreeSet<Slot>,
    tally: Tally,
    /// It was looked at, and what the filters said of each node is known.
    known: bool,
    /// What the user was told last.
    pub(crate) told: String,
    /// Tasks from this place on say what the user was told before, little by little those before it don't.
    behind: Option<Place>,
    /// They may say something else than they did when they were seen last.
    retold: bool,
    /// Nodes from this one on are to be asked who may be displaced.
    pub(crate) asked_from: Slot,
    /// Something has changed since the first of them was asked.
    pub(crate) news: bool,
}

impl Group {
    /// Adds a task that waits, or takes note of its change.
    pub(crate) fn put(&mut self, place: Place, task: &Shared<Task>, fresh: Seen, is_new: bool) {
        self.waiting += usize::from(is_new);
        if let Some(known) = self.tasks.get_mut(&place) {
            *known = task.clone();
            if task.status.err != self.told {
                self.retell.insert(place);
            }
            return;
        }
        self.since = self.since.min(created(task));
        self.fresh.push((place, fresh));
    }

    /// A task does not wait any more.
    pub(crate) fn remove(&mut self, place: &Place) {
        self.tasks.remove(place);
        self.retell.remove(place);
        self.waiting -= 1;
    }

    /// So many tasks of it were placed.
    pub(crate) fn placed(&mut self, tasks: usize) {
        self.waiting -= tasks;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Number of tasks that wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    /// Takes the next task in their order, of these that were not looked at and of those that were. One of the former may
    /// not wait here any more.
    pub(crate) fn take_next(&mut self, fresh: &mut Fresh) -> Option<(Place, Seen)> {
        #[cfg(test)]
        crate::effort::count();
        let Some((known, _)) = self.tasks.first_key_value() else { return fresh.next() };
        if fresh.peek().is_some_and(|(fresh, _)| fresh < known) {
            return fresh.next();
        }
        self.tasks.pop_first().map(|(place, task)| (place, Seen::Known(task)))
    }

    /// Puts back the task that was taken last, and those that were not looked at.
    pub(crate) fn put_back(&mut self, last: Option<(Place, Seen)>, fresh: Fresh) {
        let last = match last {
            Some((place, Seen::Known(task))) => {
                self.tasks.insert(place, task);
                None
            }
            last => last,
        };
        self.fresh.extend(last.into_iter().chain(fresh));
    }

    /// Those who wait, in no particular order; some of them may not wait here any more.
    pub(crate) fn into_places(self) -> impl Iterator<Item = Place> {
        self.fresh.into_iter().map(|(place, _)| place).chain(self.tasks.into_keys())
    }

    /// Tasks that were not looked at, in their order, each as it was seen last.
    pub(crate) fn take_fresh(&mut self) -> Vec<(Place, Seen)> {
        let mut fresh = std::mem::take(&mut self.fresh);
        if fresh.is_sorted_by(|(a, _), (b, _)| a < b) {
            return fresh;
        }
        fresh.sort_by(|(a, _), (b, _)| a.cmp(b));
        fresh.reverse();
        fresh.dedup_by(|(a, _), (b, _)| a == b);
        fresh.reverse();
        fresh
    }

    /// The user is to be told something else of all its tasks.
    pub(crate) fn tell(&mut self, text: String) {
        self.retold = !self.told.is_empty();
        self.told = text;
        self.retell.clear();
        self.behind = Some((0, "".into()));
    }

    /// The task at this place may not say what it should.
    pub(crate) fn falls_behind(&mut self, place: Place) {
        // Those from there on have their turn yet.
        if self.behind.as_ref().is_none_or(|from| place < *from) {
            self.retell.insert(place);
        }
    }

    /// Up to so many tasks that say, or may say, what was told before, and are not among these. Some may be left: see
    /// [`Group::is_behind`].
    pub(crate) fn take_behind(&mut self, most: usize, but: &[Place]) -> Vec<Shared<Task>> {
        let mut behind = Vec::new();
        while behind.len() < most
            && let Some(place) = self.retell.pop_first()
        {
            let task = self.tasks.get(&place);
            behind.extend(task.filter(|task| task.status.err != self.told).cloned());
        }
        let Some(from) = self.behind.take() else { return behind };
        if but.len() == self.tasks.len() {
            return behind;
        }
        let but: BTreeSet<&Place> = but.iter().collect();
        for (place, task) in self.tasks.range(from..) {
            // Whoever explains is not told of that, so what is known of a task may be older.
            if but.contains(place) || (!self.retold && task.status.err == self.told) {
                continue;
            }
            if behind.len() >= most {
                self.behind = Some(place.clone());
                break;
            }
            behind.push(task.clone());
        }
        behind
    }

    /// Some tasks may say what was told before.
    pub(crate) fn is_behind(&self) -> bool {
        self.behind.is_some() || !self.retell.is_empty()
    }

    /// It was looked at, and what the filters said of each node is known.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// No node is asked for it until further notice.
    fn forget_nodes(&mut self) {
        self.known = false;
        self.set_verdicts_of(Vec::new());
    }

    /// One of its tasks; it may not wait here any more.
    pub(crate) fn any_task<'a>(&'a self, tables: &'a Tables) -> Option<&'a Shared<Task>> {
        let mut fresh = self.fresh.iter().rev();
        self.tasks.values().next().or_else(|| fresh.find_map(|((_, id), _)| tables.tasks().get(id)))
    }

    /// It was looked at, and no node has room.
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_known() && self.fitting.is_empty()
    }

    /// The nodes that had room when it was last looked at, if it was: others need not be asked.
    pub(crate) fn candidates(&self) -> Option<Vec<Slot>> {
        self.is_known().then(|| self.fitting.iter().copied().collect())
    }

    /// Takes note of what the filters say of all nodes.
    pub(crate) fn set_verdicts(&mut self, verdicts: Vec<Verdict>) {
        self.known = true;
        self.set_verdicts_of(verdicts);
    }

    fn set_verdicts_of(&mut self, verdicts: Vec<Verdict>) {
        self.tally = Tally::default();
        verdicts.iter().for_each(|verdict| self.tally.add(*verdict));
        let fitting = verdicts.iter().enumerate().filter(|(_, verdict)| **verdict == Verdict::Fits);
        self.fitting = fitting.map(|(slot, _)| slot).collect();
        self.verdicts = verdicts;
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
        if known != verdict && known == Verdict::Fits {
            self.fitting.remove(&slot);
        } else if known != verdict && verdict == Verdict::Fits {
            self.fitting.insert(slot);
        }
        known != verdict
    }

    /// What the user is to be told.
    pub(crate) fn text(&self) -> String {
        self.tally.no_suitable_node(self.requirements.runtime())
    }
}

/// A task whose group was asked for.
#[derive(Debug)]
struct Last {
    task: Shared<Task>,
    group: GroupNo,
    load: Arc<Load>,
}

/// All groups.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    by_key: BTreeMap<GroupKey, GroupNo>,
    all: Vec<Option<Group>>,
    unused: Vec<GroupNo>,
    /// By service and version, the task whose group was asked for last: the next one is often of its kind.
    last: FastMap<u64, Last>,
    /// Groups to be looked at.
    noted: Vec<GroupNo>,
    /// Groups that have been looked at, and wait.
    pub(crate) known: BTreeSet<GroupNo>,
}

impl Groups {
    /// The group of a task, made if need be, and the task's load.
    pub(crate) fn of(
        &mut self,
        task: &Shared<Task>,
        loads: &mut Loads,
        services: &mut Services,
    ) -> (GroupNo, Arc<Load>) {
        let version = task.spec_version.filter(|_| !task.service_id.is_empty()).map(|v| v.index);
        let kind = kind(&task.service_id, version);
        if let Some(last) = self.last.get(&kind)
            && are_alike(&last.task, task)
        {
            // Without a version they are alike in all that they take.
            let same = version.is_none() || last.load.is_plainly_of(task);
            let load = if same { last.load.clone() } else { loads.of(&task.spec, task.endpoint.as_ref()) };
            return (last.group, load);
        }
        let requirements = version.is_none().then(|| Arc::new(Requirements::of(task)));
        let key = GroupKey {
            service: task.service_id.clone(),
            version,
            ports: Demand::ports_of(task),
            alike: requirements.clone(),
        };
        let no = match self.by_key.get(&key) {
            Some(no) => *no,
            None => {
                let group = Group {
                    requirements: requirements.unwrap_or_else(|| Arc::new(Requirements::of(task))),
                    service: services.enter(&task.service_id),
                    key: key.clone(),
                    tasks: BTreeMap::new(),
                    fresh: Vec::new(),
                    retell: BTreeSet::new(),
                    waiting: 0,
                    noted: false,
                    since: created(task),
                    verdicts: Vec::new(),
                    fitting: BTreeSet::new(),
                    tally: Tally::default(),
                    known: false,
                    told: String::new(),
                    behind: None,
                    retold: false,
                    asked_from: 0,
                    news: false,
                };
                let no = self.unused.pop().unwrap_or_else(|| {
                    self.all.push(None);
                    self.all.len() as GroupNo - 1
                });
                self.all[no as usize] = Some(group);
                self.by_key.insert(key, no);
                no
            }
        };
        let load = loads.of(&task.spec, task.endpoint.as_ref());
        self.last.insert(kind, Last { task: task.clone(), group: no, load: load.clone() });
        (no, load)
    }

    /// The group, unless it is taken out.
    pub(crate) fn get(&self, no: GroupNo) -> Option<&Group> {
        self.all.get(no as usize)?.as_ref()
    }

    /// The same, to be changed.
    pub(crate) fn get_mut(&mut self, no: GroupNo) -> Option<&mut Group> {
        self.all.get_mut(no as usize)?.as_mut()
    }

    /// Takes a group out, to be put back or ended.
    pub(crate) fn take(&mut self, no: GroupNo) -> Option<Group> {
        self.all.get_mut(no as usize)?.take()
    }

    /// Puts a group back, or ends it if none of its tasks waits.
    pub(crate) fn put_back(&mut self, no: GroupNo, group: Group, services: &mut Services) {
        if group.is_empty() {
            return self.end(no, &group, services);
        }
        if group.is_known() {
            self.known.insert(no);
        }
        self.all[no as usize] = Some(group);
    }

    /// Ends a group that is taken out.
    pub(crate) fn end(&mut self, no: GroupNo, group: &Group, services: &mut Services) {
        services.leave(group.service);
        self.by_key.remove(&group.key);
        self.known.remove(&no);
        let kind = kind(&group.key.service, group.key.version);
        if self.last.get(&kind).is_some_and(|last| last.group == no) {
            self.last.remove(&kind);
        }
        self.unused.push(no);
    }

    /// Puts a group back that no node is asked for.
    pub(crate) fn put_aside(&mut self, no: GroupNo, mut group: Group, services: &mut Services) {
        group.forget_nodes();
        self.known.remove(&no);
        self.put_back(no, group, services);
    }

    /// A group is to be looked at.
    pub(crate) fn note(&mut self, no: GroupNo) {
        self.note_again(no);
        if let Some(Some(group)) = self.all.get_mut(no as usize) {
            group.news = true;
        }
    }

    /// A group has its turn again, although nothing has changed.
    pub(crate) fn note_again(&mut self, no: GroupNo) {
        if let Some(Some(group)) = self.all.get_mut(no as usize)
            && !std::mem::replace(&mut group.noted, true)
        {
            self.noted.push(no);
        }
    }

    /// All groups that wait are to be looked at.
    pub(crate) fn note_known(&mut self) {
        for no in self.known.clone() {
            self.note(no);
        }
    }

    /// The groups to be looked at.
    pub(crate) fn take_noted(&mut self) -> Vec<GroupNo> {
        let mut noted = std::mem::take(&mut self.noted);
        noted.retain(|no| {
            let group = self.all.get_mut(*no as usize).and_then(Option::as_mut);
            group.is_some_and(|group| std::mem::take(&mut group.noted))
        });
        noted
    }

    /// The groups of a service.
    pub(crate) fn of_service(&self, service: &str) -> Vec<GroupNo> {
        let first = GroupKey { service: service.into(), version: None, ports: Vec::new(), alike: None };
        self.by_key
            .range(first..)
            .take_while(|(key, _)| *key.service == *service)
            .map(|(_, no)| *no)
            .collect()
    }
}

/// How fast the user is told something else of tasks that wait. Each is a write of its own; where many wait, all of them change
/// what they say whenever a node comes or goes, and others would have to wait for that.
#[derive(Debug, Default)]
pub(crate) struct Telling {
    until: Duration,
    left: usize,
    /// Groups with tasks that say what was told before.
    later: BTreeSet<GroupNo>,
}

impl Telling {
    /// Tasks that may be told in [`Telling::PACE`].
    pub(crate) const MOST: usize = 1000;
    /// New tasks that are told in a pass. What is decided after it waits until that is about to be written.
    pub(crate) const MOST_NEW: usize = 4096;
    /// See [`Telling::MOST`].
    pub(crate) const PACE: Duration = Duration::from_millis(500);

    /// How many may be told now.
    pub(crate) fn left(&mut self, now: Duration) -> usize {
        if now >= self.until {
            (self.until, self.left) = (now + Telling::PACE, Telling::MOST);
        }
        self.left
    }

    /// So many were told of this group; there are more.
    pub(crate) fn told(&mut self, no: GroupNo, tasks: usize, more: bool) {
        self.left -= tasks.min(self.left);
        if more {
            self.later.insert(no);
        }
    }

    /// The groups whose turn has come.
    pub(crate) fn due(&mut self, now: Duration) -> BTreeSet<GroupNo> {
        if now < self.until { BTreeSet::new() } else { std::mem::take(&mut self.later) }
    }

    /// When the next turn comes.
    pub(crate) fn next(&self) -> Option<Duration> {
        (!self.later.is_empty()).then_some(self.until)
    }
}

/// A number for tasks of a service and version.
fn kind(service: &str, version: Option<u64>) -> u64 {
    let mut hasher = FastHasher::default();
    (service, version).hash(&mut hasher);
    hasher.finish()
}

/// Both tasks are of one group, which is seen without a look at what they ask for.
fn are_alike(a: &Task, b: &Task) -> bool {
    if a.service_id != b.service_id || a.spec_version != b.spec_version {
        return false;
    }
    let same_endpoint = match (&a.endpoint, &b.endpoint) {
        (None, None) => true,
        (Some(a), Some(b)) => Shared::ptr_eq(a, b),
        _ => false,
    };
    if a.spec_version.is_some() && !a.service_id.is_empty() {
        return same_endpoint || ports(a) == ports(b);
    }
    let same_network = |a: &NetworkAttachment, b: &NetworkAttachment| match (&a.network, &b.network) {
        (Some(a), Some(b)) => Shared::ptr_eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    };
    same_endpoint
        && a.spec == b.spec
        && a.networks.len() == b.networks.len()
        && a.networks.iter().zip(&b.networks).all(|(a, b)| same_network(a, b))
}

fn ports(task: &Task) -> &[PortConfig] {
    task.endpoint.as_ref().map_or(&[][..], |endpoint| &endpoint.ports)
}

fn created(task: &Task) -> SystemTime {
    task.meta.created_at.as_ref().map_or(SystemTime::UNIX_EPOCH, swarm_api::duration::to_system_time)
}
