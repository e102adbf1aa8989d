//! What the tasks on a node take, and whether another one has a place there: the simulation's own reading of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use swarm_api::duration::to_system_time;
use swarm_api::v1::generic_resource::Resource;
use swarm_api::v1::port_config::PublishMode;
use swarm_api::v1::{GenericResource, Node, Platform, Resources, Task, TaskState, task_spec};
use swarm_placement::{all_hold, constraints_of};
use swarm_store::Tables;

use crate::checks::may_run;

/// How long after its grace period a task that a manager declared ended is reckoned with (ruling 43).
const NOTICE: Duration = Duration::from_secs(10);

/// Until when the room of a task is held that a manager, not its agent, declared ended.
pub(crate) fn held_until(task: &Task) -> Option<SystemTime> {
    let message = &*task.status.message;
    let by_manager = match task.status.state() {
        TaskState::Orphaned => true,
        TaskState::Rejected => message.contains("enforcer") || message.contains("preempted"),
        _ => false,
    };
    let since = task.status.timestamp.as_ref().map(to_system_time)?;
    by_manager.then(|| since + task.spec.stop_grace_period() + NOTICE)
}

/// What tasks take of a node.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    cpus: i128,
    memory: i128,
    counts: BTreeMap<String, i128>,
    /// With how many tasks have each.
    names: BTreeMap<(String, String), usize>,
    ports: BTreeMap<(i32, u32), usize>,
}

/// Whose ends were seen by a clock that is not today's: when their room is free nobody knows.
pub(crate) type Forgiven = BTreeSet<String>;

fn reserved(task: &Task) -> Option<&Resources> {
    task.spec.resources.as_ref()?.reservations.as_ref()
}

fn host_ports(task: &Task) -> impl Iterator<Item = (i32, u32)> + '_ {
    let ports = task.endpoint.iter().flat_map(|e| &e.ports);
    ports
        .filter(|p| p.publish_mode() == PublishMode::Host && p.published_port != 0)
        .map(|p| (p.protocol, p.published_port))
}

impl Taken {
    /// By all tasks that the tables put on the node, at this time.
    pub(crate) fn of(
        tables: &Tables,
        node: &str,
        now: SystemTime,
        forgiven: &Forgiven,
        counts: impl Fn(&Task) -> bool,
    ) -> Taken {
        let held = |t: &Task| held_until(t).is_some_and(|until| now < until) && !forgiven.contains(&*t.id);
        let mut taken = Taken::default();
        for task in tables.tasks().by_node(node).filter(|t| (may_run(t) || held(t)) && counts(t)) {
            taken.add(task);
        }
        taken
    }

    pub(crate) fn add(&mut self, task: &Task) {
        self.add_with(task, &task.assigned_generic_resources);
    }

    /// The task with what it is about to be given.
    pub(crate) fn add_with(&mut self, task: &Task, generic: &[GenericResource]) {
        if let Some(reserved) = reserved(task) {
            self.cpus += i128::from(reserved.nano_cpus.max(0));
            self.memory += i128::from(reserved.memory_bytes.max(0));
        }
        for resource in generic.iter().filter_map(|r| r.resource.as_ref()) {
            match resource {
                Resource::DiscreteResourceSpec(d) => {
                    *self.counts.entry(d.kind.clone()).or_default() += i128::from(d.value);
                }
                Resource::NamedResourceSpec(n) => {
                    *self.names.entry((n.kind.clone(), n.value.clone())).or_default() += 1;
                }
            }
        }
        for port in host_ports(task) {
            *self.ports.entry(port).or_default() += 1;
        }
    }

    /// What there is too little of on the node for all that is taken; none if it is enough.
    pub(crate) fn exceeds(&self, node: &Node) -> Option<String> {
        let none = Resources::default();
        let all = node.description.as_ref().and_then(|d| d.resources.as_ref()).unwrap_or(&none);
        if self.cpus > i128::from(all.nano_cpus) {
            return Some(format!("{} of {} CPUs are taken", self.cpus, all.nano_cpus));
        }
        if self.memory > i128::from(all.memory_bytes) {
            return Some(format!("{} of {} bytes are taken", self.memory, all.memory_bytes));
        }
        for (kind, count) in &self.counts {
            let described = counted(all, kind);
            if *count > described {
                return Some(format!("{count} of {described} {kind} are taken"));
            }
        }
        for ((kind, name), users) in &self.names {
            if *users > 1 || !names(all, kind).any(|there| there == name) {
                return Some(format!("{users} tasks have {kind} {name}"));
            }
        }
        let twice = self.ports.iter().find(|(_, users)| **users > 1);
        twice.map(|(port, users)| format!("port {port:?} is in use {users} times"))
    }

    /// Why the task has no room there, if it has none.
    fn lacks(&self, node: &Node, task: &Task) -> Option<&'static str> {
        let none = Resources::default();
        let all = node.description.as_ref().and_then(|d| d.resources.as_ref()).unwrap_or(&none);
        if let Some(wanted) = reserved(task) {
            let cpus =
                wanted.nano_cpus > 0 && self.cpus + i128::from(wanted.nano_cpus) > i128::from(all.nano_cpus);
            let memory = wanted.memory_bytes > 0
                && self.memory + i128::from(wanted.memory_bytes) > i128::from(all.memory_bytes);
            let generic = wanted.generic.iter().filter_map(|r| r.resource.as_ref()).any(|r| match r {
                Resource::DiscreteResourceSpec(d) => i128::from(d.value) > self.free(all, &d.kind),
                Resource::NamedResourceSpec(_) => true,
            });
            if cpus || memory || generic {
                return Some("it has no room");
            }
        }
        host_ports(task).any(|port| self.ports.contains_key(&port)).then_some("a port is in use there")
    }

    fn free(&self, all: &Resources, kind: &str) -> i128 {
        let free = |name: &&String| !self.names.contains_key(&(kind.to_owned(), (*name).clone()));
        let names = names(all, kind).filter(free).count() as i128;
        names + counted(all, kind) - self.counts.get(kind).copied().unwrap_or(0)
    }
}

fn counted(all: &Resources, kind: &str) -> i128 {
    let counts = all.generic.iter().filter_map(|r| match r.resource.as_ref()? {
        Resource::DiscreteResourceSpec(d) if d.kind == kind => Some(i128::from(d.value)),
        _ => None,
    });
    counts.sum()
}

fn names<'a>(all: &'a Resources, kind: &'a str) -> impl Iterator<Item = &'a String> {
    all.generic.iter().filter_map(move |r| match r.resource.as_ref()? {
        Resource::NamedResourceSpec(n) if n.kind == kind => Some(&n.value),
        _ => None,
    })
}

fn serves(there: &Platform, wanted: &Platform) -> bool {
    let same = |there: &str, wanted: &str| wanted.is_empty() || there == wanted;
    let arch = |text: &str| text.replace("x86_64", "amd64").replace("aarch64", "arm64");
    same(&there.os, &wanted.os) && same(&arch(&there.architecture), &arch(&wanted.architecture))
}

/// Why a task may not be on a node, whatever else is there.
pub(crate) fn excluded(node: &Node, task: &Task) -> Option<&'static str> {
    let placement = task.spec.placement.as_ref();
    if !node.is_usable() {
        return Some("it takes no tasks");
    }
    if !all_hold(&constraints_of(placement), node) {
        return Some("it does not satisfy the constraints");
    }
    let platforms = placement.map_or(&[][..], |p| &p.platforms);
    let there = node.description.as_ref().and_then(|d| d.platform.as_ref());
    if !platforms.is_empty() && !there.is_some_and(|there| platforms.iter().any(|p| serves(there, p))) {
        return Some("it has another platform");
    }
    let engine = node.description.as_ref().and_then(|d| d.engine.as_ref());
    let has = |kind: &str, name: &str| {
        engine.is_none_or(|e| {
            let mut plugins = e.plugins.iter().filter(|p| p.r#type == kind).peekable();
            (kind == "Log" && plugins.peek().is_none()) || plugins.any(|p| p.name == name)
        })
    };
    let is_attachment = matches!(task.spec.runtime, Some(task_spec::Runtime::Attachment(_)));
    let driver = |a: &swarm_api::v1::NetworkAttachment| {
        a.network.as_ref().and_then(|n| n.driver_state.as_ref()).map(|d| d.name.clone())
    };
    let networks = task.networks.iter().filter_map(driver).all(|name| has("Network", &name));
    let log = task.spec.log_driver.as_ref().is_none_or(|d| has("Log", &d.name));
    (!networks || !(log || is_attachment)).then_some("it has no plugin for it")
}

/// Why a task can't be put on a node of which others take so much.
pub(crate) fn refuses(node: &Node, task: &Task, taken: &Taken) -> Option<&'static str> {
    excluded(node, task).or_else(|| taken.lacks(node, task))
}
