//! Looks over the shoulder of every reconciler: what it decides must be right on the tables that it was shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use swarm_api::v1::{Task, TaskSpec, TaskState, Version, node_spec, node_status};
use swarm_api::{Object, Shared};
use swarm_reconcile::{Assignments, Ctx, Decision, Reconciler, Settled, Write};
use swarm_store::{Event, Tables};

use crate::authors::{keeps_to_its_own, nothing_done_twice};
use crate::broken::Broken;
use crate::checks::place;
use crate::pace::Update;
use crate::placing::placements;

/// What all watched reconcilers of a cluster share, from leader to leader.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Turns of one reconciler in which it was told of changes.
    pub(crate) steps: u64,
    /// Decisions that were asked for.
    pub(crate) turns: u64,
    /// What went wrong.
    pub(crate) faults: Vec<Broken>,
    pub(crate) updates: BTreeMap<String, Update>,
    /// What happened and what was decided, if somebody wants to read it.
    pub(crate) trace: Option<Vec<String>>,
    /// When orchestrators were told that tasks run, and that they have ended.
    pub(crate) ran: BTreeMap<String, Duration>,
    pub(crate) ended: BTreeMap<String, Duration>,
    /// Tasks that were asked to stop before they ended.
    pub(crate) unwanted: BTreeSet<String>,
    /// When tasks were made.
    pub(crate) made: BTreeMap<String, Duration>,
    /// What places of services were given: a task of each spec's version.
    pub(crate) tried: BTreeMap<(String, String), BTreeMap<u64, Task>>,
    /// When a clock was set.
    pub(crate) clock_set: Option<Duration>,
    /// When this leader began.
    pub(crate) leads_since: Duration,
    /// What was put on nodes: of which service, of which run, and as what.
    pub(crate) started: Vec<(String, Option<Version>, Shared<TaskSpec>)>,
    /// Services that wait for others and have started, and with which version of their spec, in which run.
    pub(crate) began: BTreeSet<Start>,
    /// Tasks that were ended by a manager whose clock was another.
    pub(crate) forgiven: BTreeSet<String>,
}

/// A start of a service: with a version of its spec, and of a job in a run.
pub(crate) type Start = (String, u64, u64);

/// The start to which a task belongs.
pub(crate) fn start_of(task: &Task) -> Start {
    let run = task.job_iteration.map_or(0, |run| run.index);
    (task.service_id.to_string(), task.spec_version.map_or(0, |version| version.index), run)
}

impl Log {
    /// What says that this service has started may be gone.
    pub(crate) fn forget_start(&mut self, service: &str) {
        self.began.retain(|(of, ..)| of != service);
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    /// A task was made.
    pub(crate) fn saw(&mut self, new: &Task, now: Duration) {
        self.made.insert(new.id.to_string(), now);
        let version = new.spec_version.map_or(0, |v| v.index);
        let tried = self.tried.entry((new.service_id.to_string(), place(new))).or_default();
        tried.entry(version).or_insert_with(|| new.clone());
    }

    /// An orchestrator was told of this.
    fn told(&mut self, event: &Event, now: Duration) {
        let Some(Object::Task(task)) = event.new() else { return };
        if task.status.state() == TaskState::Running {
            self.ran.entry(task.id.to_string()).or_insert(now);
        }
        if task.status.state().is_terminal() {
            self.ended.entry(task.id.to_string()).or_insert(now);
        } else if task.desired_state() > TaskState::Complete {
            self.unwanted.insert(task.id.to_string());
        }
    }

    /// What was measured by the wall clock before is not comparable any more.
    pub(crate) fn clock_changed(&mut self, at: Option<Duration>) {
        self.clock_set = at;
        self.updates.values_mut().for_each(Update::forget_failures);
    }
}

pub(crate) struct Watched {
    pub(crate) inner: Box<dyn Reconciler>,
    pub(crate) log: Arc<Mutex<Log>>,
    /// What the inner one assigned beside its last decision.
    assigned: Vec<Assignments>,
    /// It was told of something since its last decision.
    told: bool,
    /// Nodes that came back to use since then.
    came: BTreeSet<String>,
}

impl Watched {
    pub(crate) fn new(inner: Box<dyn Reconciler>, log: Arc<Mutex<Log>>) -> Watched {
        Watched { inner, log, assigned: Vec::new(), told: false, came: BTreeSet::new() }
    }

    fn note(&self, log: &mut Log, decision: &Decision) {
        if let Some(trace) = &mut log.trace {
            let patches = decision.groups.iter().flat_map(|g| &g.patches);
            trace.extend(patches.map(|p| format!("    {}: {:?}", self.inner.name(), p.write)));
            let assigned = self.assigned.iter().flat_map(|a| &*a.list);
            trace.extend(
                assigned.map(|a| format!("    {}: assign task {} to {}", self.inner.name(), a.task, a.node)),
            );
        }
    }
}

/// A node that keeps no tasks, or gets none.
fn is_idle(object: &Object) -> bool {
    let Object::Node(node) = object else { return false };
    node.status.state() == node_status::State::Down
        || node.spec.availability() != node_spec::Availability::Active
}

impl Reconciler for Watched {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn init(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) {
        if matches!(self.inner.name(), "replicated" | "global") {
            let kind = self.inner.name();
            let mut log = self.log.lock().unwrap();
            log.leads_since = ctx.now.mono;
            let ours = log.updates.iter_mut().filter(|(id, _)| id.starts_with(kind));
            ours.for_each(|(_, update)| update.inherit());
        }
        self.inner.init(ctx, tables);
    }

    fn observe(&mut self, ctx: &mut Ctx<'_>, events: &[Event], tables: &Tables) {
        self.told = true;
        let back = |e: &&Event| matches!((e.old(), e.new()), (Some(o), Some(n)) if is_idle(o) && !is_idle(n));
        self.came.extend(events.iter().filter(back).map(|e| e.id().to_owned()));
        if matches!(self.inner.name(), "replicated" | "global") {
            let mut log = self.log.lock().unwrap();
            events.iter().for_each(|event| log.told(event, ctx.now.mono));
        }
        self.inner.observe(ctx, events, tables);
    }

    fn prepare(&mut self, ctx: &mut Ctx<'_>, tasks: &mut [&mut Shared<Task>], tables: &Tables) {
        self.inner.prepare(ctx, tasks, tables);
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let decision = self.inner.decide(ctx, tables);
        self.assigned = self.inner.assignments();
        let came = std::mem::take(&mut self.came);
        let mut log = self.log.lock().unwrap();
        log.steps += u64::from(std::mem::take(&mut self.told));
        log.turns += 1;
        self.note(&mut log, &decision);
        let name = self.inner.name();
        let groups = &decision.groups;
        let checked = keeps_to_its_own(name, tables, groups).and_then(|()| match name {
            "scheduler" => placements(ctx.now.wall, &log.forgiven, tables, groups, &self.assigned)
                .and_then(|()| log.start_order(tables, groups, &self.assigned)),
            "replicated" | "global" => log.update_pace(ctx.now.mono, tables, groups, &came),
            "jobs" => nothing_done_twice(tables, groups),
            _ => Ok(()),
        });
        log.faults.extend(checked.err());
        decision
    }

    fn assignments(&mut self) -> Vec<Assignments> {
        std::mem::take(&mut self.assigned)
    }

    fn settled(&mut self, ctx: &mut Ctx<'_>, settled: &Settled, tables: &Tables) {
        self.inner.settled(ctx, settled, tables);
    }
}

/// The tasks that are put on nodes, each with its node: one by one, or in lists.
pub(crate) fn assigned_in<'a>(
    groups: &'a [swarm_reconcile::Group],
    assigned: &'a [Assignments],
) -> Vec<(&'a str, &'a str, &'a [swarm_api::v1::GenericResource])> {
    let singly = groups.iter().flat_map(|g| &g.patches).filter_map(|patch| match &patch.write {
        Write::Assign { task, node, generic, .. } => Some((&**task, &**node, &generic[..])),
        _ => None,
    });
    // Ids grow, and of one version who has waited longest is placed first.
    let listed = assigned.iter().flat_map(|a| &*a.list);
    let mut listed: Vec<_> = listed.map(|a| (&*a.task, &*a.node, &a.generic[..])).collect();
    listed.sort_unstable_by_key(|(task, node, _)| (*task, *node));
    singly.chain(listed).collect()
}
