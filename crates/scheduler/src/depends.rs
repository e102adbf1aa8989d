//! Services that wait for others before they start.
//!
//! A service waits until it has *started*: until one of its tasks with this spec (of a job: in this run) has been on a
//! node. So it waits once after it is made, and once after each change of what its tasks are. Restarts, scaling and lost nodes
//! never wait: a dependency that is degraded later takes nobody else down.
//!
//! Who waits is looked at again when something changes that it may wait for ([`Gates`]), and never otherwise.

use std::collections::{BTreeMap, BTreeSet};

use swarm_api::extensions::{Condition, DEPENDS_ON, Dependency, StartOrder};
use swarm_api::hash::FastMap;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{Service, ServiceSpec, Task, TaskState, task_status};
use swarm_api::{Object, Text};
use swarm_store::{Event, Tables};

use crate::ended::ended_by_manager;
use crate::queue::GroupNo;
use crate::scheduler::Pass;

/// How the text of a task begins that waits for another service.
pub const WAITING: &str = "waiting for service ";

/// The text of a task that waits for other services; `None` if it need not wait.
pub(crate) fn waits_for(tables: &Tables, service: &Service, task: &Task) -> Option<String> {
    let order = StartOrder::of(service);
    let unmet = order.0.iter().filter_map(|dependency| {
        let why = unmet(tables, dependency)?;
        // What leads back here would wait for ever: it came about past the control API, which refuses it.
        let circle = leads_to(tables, &dependency.service, name(service)).is_some();
        (!circle).then(|| format!("{} ({why})", dependency.service))
    });
    let unmet: Vec<String> = unmet.collect();
    (!unmet.is_empty() && !has_started(tables, task))
        .then(|| format!("{WAITING}{}", unmet.join("; service ")))
}

fn name(service: &Service) -> &str {
    &service.spec.annotations.name
}

/// A task of the same service, that is the same and of the same run, has been on a node.
fn has_started(tables: &Tables, task: &Task) -> bool {
    tables.tasks().by_service(&task.service_id).any(|other| shows_start_of(other, task))
}

/// That `other` was on a node says that tasks like this one, of the same service, have started.
pub fn shows_start_of(other: &Task, task: &Task) -> bool {
    was_on_node(other) && other.job_iteration == task.job_iteration && other.spec == task.spec
}

/// The task says that a service that waits for others has started, with the spec that it has or would go back to.
pub fn shows_start(service: &Service, task: &Task) -> bool {
    let is_of = |spec: &ServiceSpec| spec.task == task.spec;
    // Each run of a job is a start of its own.
    let run = service.job_status.as_ref().map(|status| status.job_iteration);
    !StartOrder::of(service).0.is_empty()
        && was_on_node(task)
        && (task.job_iteration.is_none() || task.job_iteration == run)
        && (is_of(&service.spec) || service.previous_spec.as_ref().is_some_and(is_of))
}

fn was_on_node(task: &Task) -> bool {
    match task.status.state() {
        state if state < TaskState::Assigned => false,
        // A task of a service per node has its node from the beginning, and may be ended before it is put there: then no
        // agent ever said anything of it.
        state if state >= TaskState::Shutdown && (ended_by_manager(task) || !is_of_agent(state)) => {
            task.status.applied_at.is_some() || (task.slot != 0 && !task.node_id.is_empty())
        }
        _ => true,
    }
}

/// Only agents say so, unless it is told otherwise.
fn is_of_agent(state: TaskState) -> bool {
    matches!(state, TaskState::Failed | TaskState::Rejected)
}

/// Why a service is not as it must be; `None` if it is.
fn unmet(tables: &Tables, dependency: &Dependency) -> Option<String> {
    let Some(service) = tables.services().by_name(&dependency.service).next() else {
        return Some("there is no such service".to_owned());
    };
    match &service.spec.mode {
        Some(Mode::ReplicatedJob(job)) => uncompleted(tables, service, Some(job.total_completions)),
        Some(Mode::GlobalJob(_)) => uncompleted(tables, service, None),
        _ if dependency.condition == Condition::Completed => Some("it is no job".to_owned()),
        Some(Mode::Replicated(replicated)) => {
            let healthy = dependency.condition == Condition::Healthy;
            not_up(tables, service, Some(replicated.replicas), healthy)
        }
        _ => not_up(tables, service, None, dependency.condition == Condition::Healthy),
    }
}

/// Too few tasks are up: of so many, or of those that are wanted.
fn not_up(tables: &Tables, service: &Service, wanted: Option<u64>, healthy: bool) -> Option<String> {
    let (mut up, mut live) = (Vec::new(), 0);
    for task in tables.tasks().by_service(&service.id) {
        if task.desired_state() == TaskState::Running {
            live += 1;
            if task.status.state() == TaskState::Running || (!healthy && is_started(task)) {
                up.push((task.slot, if task.slot == 0 { task.node_id.as_str() } else { "" }));
            }
        }
    }
    // While one is about to take the place of another, both may be up.
    up.sort_unstable();
    up.dedup();
    let (up, wanted) = (up.len() as u64, wanted.unwrap_or(live));
    if wanted == 0 {
        return Some("it has no tasks".to_owned());
    }
    let word = if healthy { "healthy" } else { "running" };
    (up < wanted).then(|| format!("{up} of {} {word}", tasks(wanted)))
}

/// It is executed, and its health is not known yet. Agents that say so give its process.
fn is_started(task: &Task) -> bool {
    task.status.state() == TaskState::Starting
        && matches!(&task.status.runtime_status, Some(task_status::RuntimeStatus::Container(c)) if c.pid != 0)
}

/// Too few tasks of the present run are done: of so many, or of those that there are. Where a place had several tasks, as when
/// one completed that was to stop and so did the one that took its place, it counts once.
fn uncompleted(tables: &Tables, service: &Service, wanted: Option<u64>) -> Option<String> {
    let run = service.job_status.as_ref().map_or(0, |status| status.job_iteration.index);
    let (mut completed, mut open, mut failed) = (BTreeSet::new(), 0, 0);
    for task in tables.tasks().by_service(&service.id) {
        if task.job_iteration.map_or(0, |iteration| iteration.index) != run {
            continue;
        }
        match task.status.state() {
            TaskState::Complete => {
                let node = if wanted.is_some() { "" } else { task.node_id.as_str() };
                completed.insert((task.slot, node));
            }
            TaskState::Failed | TaskState::Rejected => failed += 1,
            _ => {}
        }
        let is_open =
            task.desired_state() == TaskState::Complete && task.status.state() != TaskState::Complete;
        open += u64::from(is_open);
    }
    let completed = completed.len() as u64;
    let Some(wanted) = wanted.or((completed + open > 0).then_some(completed + open)) else {
        return Some("it has no tasks".to_owned());
    };
    let failures = if failed > 0 { format!(", {failed} failed") } else { String::new() };
    (completed < wanted).then(|| format!("{completed} of {} completed{failures}", tasks(wanted)))
}

fn tasks(n: u64) -> String {
    if n == 1 { "1 task".to_owned() } else { format!("{n} tasks") }
}

/// How a service that waits for these would come to wait for itself: the names on the way, from the first one to
/// `service`. `None` if it would not.
pub fn circle(tables: &Tables, service: &str, order: &StartOrder) -> Option<Vec<String>> {
    order.0.iter().find_map(|dependency| leads_to(tables, &dependency.service, service))
}

/// The way from one service to another along whom they wait for.
fn leads_to(tables: &Tables, from: &str, to: &str) -> Option<Vec<String>> {
    let mut seen = BTreeMap::from([(from.to_ascii_lowercase(), None::<String>)]);
    let mut open = vec![from.to_ascii_lowercase()];
    let to = to.to_ascii_lowercase();
    while let Some(at) = open.pop() {
        if at == to {
            let before = |name: &String| seen.get(name).cloned().flatten();
            let mut way: Vec<String> = std::iter::successors(Some(at), before).collect();
            way.reverse();
            return Some(way);
        }
        for service in tables.services().by_name(&at) {
            for next in StartOrder::of(service).0 {
                let next = next.service.to_ascii_lowercase();
                if !seen.contains_key(&next) {
                    seen.insert(next.clone(), Some(at.clone()));
                    open.push(next);
                }
            }
        }
    }
    None
}

/// The ids of all services that must be up before this one starts, and of those before them.
pub(crate) fn before(tables: &Tables, service: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut open: Vec<&Service> = tables.services().get(service).map(|s| &**s).into_iter().collect();
    while let Some(service) = open.pop() {
        for dependency in StartOrder::of(service).0 {
            let next = tables.services().by_name(&dependency.service);
            open.extend(next.map(|s| &**s).filter(|s| all.insert(s.id.clone())));
        }
    }
    all
}

impl<'a> Pass<'a> {
    /// The text of a task that waits for other services, and its own service; of most services a look at their labels
    /// tells that none does.
    pub(crate) fn waits(&mut self, task: &Task) -> Option<(&'a Service, String)> {
        let tables = self.tables;
        let service = tables.services().get(&task.service_id)?;
        if !service.spec.annotations.labels.contains_key(DEPENDS_ON) {
            return None;
        }
        let version = task.spec_version.map(|version| version.index);
        let known = self.waits.entry((task.service_id.to_string(), version));
        let text = known.or_insert_with(|| waits_for(tables, service, task)).clone()?;
        Some((service, text))
    }

    /// The tasks of a group wait for other services.
    pub(crate) fn hold(&mut self, no: GroupNo, service: &Service, text: String) {
        let Some(mut group) = self.state.groups.take(no) else { return };
        let more = self.tell_group(no, &mut group, text);
        self.state.gates.hold(self.tables, service, None);
        self.state.groups.put_aside(no, group, &mut self.state.nodes.services);
        if more {
            self.put_off(no);
        }
    }
}

/// A task of its own node: node and task.
type Bound = (Text, Text);

/// Services whose tasks wait for others, and what wakes them.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    waiting: BTreeMap<Text, Waiting>,
    /// Ids and names of services, and who is to be looked at again when something of them changes.
    watched: FastMap<Text, BTreeSet<Text>>,
    woken: BTreeSet<Text>,
}

#[derive(Debug, Default)]
struct Waiting {
    watches: BTreeSet<Text>,
    bound: BTreeSet<Bound>,
}

impl Gates {
    /// Takes note of changes.
    pub(crate) fn observe(&mut self, event: &Event) {
        if self.waiting.is_empty() {
            return;
        }
        match event.object() {
            Object::Task(task) => self.wake(&task.service_id),
            Object::Service(service) => {
                let label = |object: Option<&Object>| match object {
                    Some(Object::Service(service)) => {
                        service.spec.annotations.labels.get(DEPENDS_ON).cloned()
                    }
                    _ => None,
                };
                if label(event.old()) != label(event.new()) {
                    // Whether somebody waits for itself may be decided far away.
                    self.woken.extend(self.waiting.keys().cloned());
                }
                self.wake(&service.id);
                self.wake(&name(service).to_ascii_lowercase());
            }
            _ => {}
        }
    }

    fn wake(&mut self, key: &str) {
        if let Some(waiting) = self.watched.get(key) {
            self.woken.extend(waiting.iter().cloned());
        }
    }

    /// Tasks of a service wait, one of them for its own node.
    pub(crate) fn hold(&mut self, tables: &Tables, service: &Service, bound: Option<Bound>) {
        let own: Text = service.id.as_str().into();
        let mut watches = BTreeSet::from([own.clone()]);
        for dependency in StartOrder::of(service).0 {
            let known = tables.services().by_name(&dependency.service);
            watches.extend(known.map(|service| Text::from(service.id.as_str())));
            watches.insert(dependency.service.to_ascii_lowercase().into());
        }
        for key in &watches {
            self.watched.entry(key.clone()).or_default().insert(own.clone());
        }
        let waiting = self.waiting.entry(own).or_default();
        waiting.watches.append(&mut watches);
        waiting.bound.extend(bound);
    }

    /// Services to be looked at again, with tasks of theirs that have nodes of their own. They wait no more, unless they
    /// are held again.
    pub(crate) fn take_woken(&mut self) -> Vec<(Text, BTreeSet<Bound>)> {
        let mut all = Vec::new();
        for service in std::mem::take(&mut self.woken) {
            let Some(Waiting { watches, bound }) = self.waiting.remove(&service) else { continue };
            for key in watches {
                if let Some(who) = self.watched.get_mut(&key) {
                    who.remove(&service);
                    if who.is_empty() {
                        self.watched.remove(&key);
                    }
                }
            }
            all.push((service, bound));
        }
        all
    }
}
