//! Looks over the shoulder of every reconciler: what it decides must be right on the tables that it was shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use swarm_api::extensions::DEPENDS_ON;
use swarm_api::v1::port_config::PublishMode;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_config::FailureAction;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{Service, Task, TaskSpec, TaskState, UpdateConfig, Version, node_spec, node_status};
use swarm_api::{Kind, Object, Shared};
use swarm_placement::{all_hold, constraints_of};
use swarm_reconcile::{Assignments, Ctx, Decision, Group, Guard, Reconciler, Settled, Write};
use swarm_store::{Event, Tables};

use crate::checks::{is_current, is_live, may_run, place};

/// A new task that takes longer to find a node is not waited for any more.
const PLACEMENT_LIMIT: Duration = Duration::from_secs(600);

/// What all watched reconcilers of a cluster share, from leader to leader.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Commits delivered to reconcilers.
    pub(crate) steps: u64,
    /// What went wrong.
    pub(crate) faults: Vec<String>,
    pub(crate) updates: BTreeMap<String, Update>,
    /// What happened and what was decided, if somebody wants to read it.
    pub(crate) trace: Option<Vec<String>>,
    /// Tasks that were seen RUNNING.
    pub(crate) ran: BTreeSet<String>,
    /// What was put on nodes: of which service, of which run, and as what.
    pub(crate) started: Vec<(String, Option<Version>, Shared<TaskSpec>)>,
}

/// What is known of a service's update from the decisions made for it.
#[derive(Debug, Default)]
pub(crate) struct Update {
    /// What tells it from the one before: the spec's version, and the begin of a rollback.
    identity: (u64, Option<prost_types::Timestamp>),
    /// Places whose new task does not run yet.
    work: BTreeMap<String, (String, Duration)>,
    /// Tasks of this update that this leader made.
    made: BTreeSet<String>,
}

pub(crate) struct Watched {
    pub(crate) inner: Box<dyn Reconciler>,
    pub(crate) log: Arc<Mutex<Log>>,
    /// What the inner one assigned beside its last decision.
    assigned: Vec<Assignments>,
}

impl Watched {
    pub(crate) fn new(inner: Box<dyn Reconciler>, log: Arc<Mutex<Log>>) -> Watched {
        Watched { inner, log, assigned: Vec::new() }
    }
}

impl Reconciler for Watched {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn init(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) {
        // How many had failed is not always to be seen from the tables.
        self.log.lock().unwrap().updates.values_mut().for_each(|u| u.made.clear());
        self.inner.init(ctx, tables);
    }

    fn observe(&mut self, ctx: &mut Ctx<'_>, events: &[Event], tables: &Tables) {
        self.log.lock().unwrap().steps += 1;
        self.inner.observe(ctx, events, tables);
    }

    fn prepare(&mut self, ctx: &mut Ctx<'_>, tasks: &mut [&mut Shared<Task>], tables: &Tables) {
        self.inner.prepare(ctx, tasks, tables);
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let decision = self.inner.decide(ctx, tables);
        self.assigned = self.inner.assignments();
        let mut log = self.log.lock().unwrap();
        if let Some(trace) = &mut log.trace {
            let patches = decision.groups.iter().flat_map(|g| &g.patches);
            trace.extend(patches.map(|p| format!("    {}: {:?}", self.inner.name(), p.write)));
            let assigned = self.assigned.iter().flat_map(|a| &*a.list);
            trace.extend(assigned.map(|a| format!("    {}: {:?}", self.inner.name(), a)));
        }
        let checked = match self.inner.name() {
            "scheduler" => placements(tables, &decision.groups, &self.assigned)
                .and_then(|()| log.start_order(tables, &decision.groups, &self.assigned)),
            "replicated" => log.update_pace(ctx.now.mono, tables, &decision.groups),
            "jobs" => nothing_done_twice(tables, &decision.groups),
            "reaper" => nothing_running_forgotten(tables, &decision.groups),
            _ => Ok(()),
        };
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

fn cpus(task: &Task) -> i64 {
    let resources = task.spec.resources.as_ref().and_then(|r| r.reservations.as_ref());
    resources.map_or(0, |r| r.nano_cpus)
}

fn host_ports(task: &Task) -> impl Iterator<Item = u32> + '_ {
    let ports = task.endpoint.iter().flat_map(|e| &e.ports);
    ports.filter(|p| p.publish_mode() == PublishMode::Host && p.published_port != 0).map(|p| p.published_port)
}

/// Every task goes to a node that takes tasks, satisfies its constraints, and has room and ports for it.
fn placements(tables: &Tables, groups: &[Group], assigned: &[Assignments]) -> Result<(), String> {
    let mut placed: BTreeMap<&str, Vec<&Shared<Task>>> = BTreeMap::new();
    let singly = groups.iter().flat_map(|g| &g.patches).filter_map(|patch| match &patch.write {
        Write::Assign { task, node, .. } => Some((&**task, &**node)),
        _ => None,
    });
    // Ids grow, and of one version who has waited longest is placed first.
    let mut listed: Vec<_> = assigned.iter().flat_map(|a| &*a.list).map(|a| (&*a.task, &*a.node)).collect();
    listed.sort_unstable();
    for (id, to) in singly.chain(listed) {
        let task = tables.tasks().get(id).ok_or("a task that is gone is placed")?;
        let fault = |what: &str| Err(format!("{id} of {} goes to {to}: {what}", task.service_id));
        let Some(node) = tables.nodes().get(to) else { return fault("there is no such node") };
        if !Guard::NodeUsable(to.to_owned()).holds(tables) {
            return fault("it takes no tasks");
        }
        if !all_hold(&constraints_of(task.spec.placement.as_ref()), node) {
            return fault("it does not satisfy the constraints");
        }
        let new = placed.entry(to).or_default();
        let there = || tables.tasks().by_node(to).filter(|t| may_run(t)).chain(new.iter().copied());
        let free = node.description.as_ref().and_then(|d| d.resources.as_ref()).map_or(0, |r| r.nano_cpus);
        if cpus(task) > 0 && there().map(|t| cpus(t)).sum::<i64>() + cpus(task) > free {
            return fault("it has no room");
        }
        let mut ports = there().filter(|t| host_ports(t).any(|there| host_ports(task).any(|p| p == there)));
        if let Some(other) = ports.next() {
            return fault(&format!("a port is in use there by {} ({:?})", other.id, other.status.state()));
        }
        let most = task.spec.placement.as_ref().map_or(0, |p| p.max_replicas) as usize;
        // Each version has its own limit. Which one of several versions was asked about first is not to be seen here: a service
        // that was rolled back has its earlier version, of which tasks may have waited all the time.
        let counts = |t: &Shared<Task>| t.service_id == task.service_id && is_live(t);
        let known = tables.tasks().by_node(to).filter(|t| may_run(t) && counts(t)).count();
        let same = known + new.iter().filter(|t| t.spec_version == task.spec_version && counts(t)).count();
        if most > 0 && same >= most {
            return fault("it has enough tasks of the service");
        }
        new.push(task);
    }
    Ok(())
}

/// No job does again what is done.
fn nothing_done_twice(tables: &Tables, groups: &[Group]) -> Result<(), String> {
    for patch in groups.iter().flat_map(|g| &g.patches) {
        let Write::Create(Object::Task(new)) = &patch.write else { continue };
        let Some(service) = tables.services().get(&new.service_id) else { continue };
        let complete = |t: &&Shared<Task>| {
            place(t) == place(new) && is_current(service, t) && t.status.state() == TaskState::Complete
        };
        if let Some(done) = tables.tasks().by_service(&service.id).find(complete) {
            return Err(format!("{} is made, but {} has completed", new.id, done.id));
        }
    }
    Ok(())
}

/// What may still run is not deleted.
fn nothing_running_forgotten(tables: &Tables, groups: &[Group]) -> Result<(), String> {
    for patch in groups.iter().flat_map(|g| &g.patches) {
        if let Write::Remove(Kind::Task, id) = &patch.write
            && let Some(task) = tables.tasks().get(id).filter(|t| may_run(t))
        {
            return Err(format!("{id} is deleted in state {}", task.status.state().name()));
        }
    }
    Ok(())
}

fn is_rolling_back(service: &Service) -> bool {
    service.update_status.as_ref().is_some_and(|s| s.state() == UpdateState::RollbackStarted)
}

/// Why a service that waits for others may not start yet, as the labels and the tasks say now.
fn not_yet(tables: &Tables, service: &Service) -> Option<String> {
    let order = service.spec.annotations.labels.get(DEPENDS_ON)?;
    order.split(',').find_map(|term| {
        let (name, condition) = term.split_once(':')?;
        // Those who wait for each other need not.
        let mut way = BTreeSet::from([name.to_owned()]);
        for _ in 0..tables.services().len() {
            let next = |of: &String| {
                let order = tables.services().get(of)?.spec.annotations.labels.get(DEPENDS_ON)?;
                Some(
                    order
                        .split(',')
                        .filter_map(|t| Some(t.split_once(':')?.0.to_owned()))
                        .collect::<Vec<_>>(),
                )
            };
            way = way.iter().flat_map(|of| next(of).unwrap_or_default()).chain(way.iter().cloned()).collect();
        }
        if way.contains(&service.id) {
            return None;
        }
        let other = tables
            .services()
            .get(name)
            .map(|s| (s.spec.mode, s.job_status.as_ref().map(|j| j.job_iteration)));
        let Some((mode, run)) = other else { return Some(format!("{name} is not there")) };
        let of_run: Vec<_> = tables.tasks().by_service(name).filter(|t| t.job_iteration == run).collect();
        let places = |state: TaskState| {
            let there = of_run.iter().filter(|t| t.status.state() == state);
            let wanted = there.filter(|t| state == TaskState::Complete || t.desired_state() == state);
            wanted.map(|t| place(t)).collect::<BTreeSet<_>>().len()
        };
        let open = of_run
            .iter()
            .any(|t| t.desired_state() == TaskState::Complete && t.status.state() != TaskState::Complete);
        let live = of_run.iter().filter(|t| t.desired_state() == TaskState::Running).count();
        let holds = match mode {
            Some(Mode::Replicated(mode)) => {
                mode.replicas > 0 && places(TaskState::Running) >= mode.replicas as usize
            }
            Some(Mode::ReplicatedJob(job)) => places(TaskState::Complete) >= job.total_completions as usize,
            Some(Mode::GlobalJob(_)) => !open && places(TaskState::Complete) > 0,
            _ => live > 0 && places(TaskState::Running) >= live,
        };
        (!holds).then(|| format!("{name} is not {condition}"))
    })
}

impl Log {
    /// Nothing starts before what it waits for was so. What has started once may start again.
    fn start_order(
        &mut self,
        tables: &Tables,
        groups: &[Group],
        assigned: &[Assignments],
    ) -> Result<(), String> {
        let singly = groups.iter().flat_map(|g| &g.patches).filter_map(|patch| match &patch.write {
            Write::Assign { task, .. } => Some(&**task),
            _ => None,
        });
        let ids = singly.chain(assigned.iter().flat_map(|a| &*a.list).map(|a| &*a.task));
        let tasks = ids.filter_map(|id| tables.tasks().get(id));
        let mut fresh = Vec::new();
        for task in tasks {
            let what = (task.service_id.to_string(), task.job_iteration, task.spec.clone());
            let Some(service) = tables.services().get(&task.service_id) else { continue };
            if !self.started.contains(&what)
                && let Some(why) = not_yet(tables, service)
            {
                return Err(format!("{} of {} starts before its time: {why}", task.id, service.id));
            }
            fresh.push(what);
        }
        for what in fresh {
            if !self.started.contains(&what) {
                self.started.push(what);
            }
        }
        Ok(())
    }

    /// Never more places are under way than the update allows, and none is begun after a failure that is one too
    /// many.
    fn update_pace(&mut self, now: Duration, tables: &Tables, groups: &[Group]) -> Result<(), String> {
        // With what comes before it in the same decision.
        let mut staged = tables.clone();
        for group in groups {
            let restart = group.patches.iter().any(|p| match &p.write {
                Write::RaiseDesired(id, _) => staged.tasks().get(id).is_some_and(|t| !goes_on(&staged, t)),
                _ => false,
            });
            for patch in &group.patches {
                if let Write::Create(Object::Task(new)) = &patch.write
                    && let Some(service) = staged.services().get(&new.service_id)
                    && service.spec_version == new.spec_version
                    && !restart
                    && replaces_healthy(&staged, new)
                {
                    self.begins(now, &staged, service, new)?;
                }
            }
            for patch in &group.patches {
                let _ = patch.apply(&mut staged);
            }
        }
        Ok(())
    }

    fn begins(
        &mut self,
        now: Duration,
        tables: &Tables,
        service: &Service,
        new: &Task,
    ) -> Result<(), String> {
        let rollback = is_rolling_back(service);
        let started = service.update_status.as_ref().and_then(|s| s.started_at);
        let identity = (service.spec_version.map_or(0, |v| v.index), started.filter(|_| rollback));
        let update = self.updates.entry(service.id.clone()).or_default();
        if update.identity != identity {
            *update = Update { identity, ..Update::default() };
        }
        let config = if rollback { &service.spec.rollback } else { &service.spec.update };
        let absent = UpdateConfig { parallelism: 1, ..Default::default() };
        let config = config.as_ref().unwrap_or(&absent);
        let failed = |id: &&String| {
            tables.tasks().get(id).is_some_and(|t| {
                t.status.state().is_terminal()
                    && t.status.state() != TaskState::Shutdown
                    && !self.ran.contains(t.id.as_str())
            })
        };
        // Moves of a rebalance are watched too, but each rebalance begins without failures.
        let updating = service
            .update_status
            .as_ref()
            .is_some_and(|s| matches!(s.state(), UpdateState::Updating | UpdateState::RollbackStarted));
        if updating
            && config.max_failure_ratio == 0.0
            && config.failure_action() != FailureAction::Continue
            && let Some(culprit) = update.made.iter().find(failed)
        {
            return Err(format!("{}: {} is updated although {culprit} failed", service.id, place(new)));
        }
        update.work.retain(|_, (id, since)| {
            let open = |t: &Shared<Task>| !t.status.reached(TaskState::Running) && is_live(t);
            tables.tasks().get(id).is_some_and(open) && now < *since + PLACEMENT_LIMIT
        });
        update.work.insert(place(new), (new.id.to_string(), now));
        update.made.insert(new.id.to_string());
        let most = config.parallelism as usize;
        if most > 0 && update.work.len() > most {
            return Err(format!("{}: more than {most} are updated at once: {:?}", service.id, update.work));
        }
        Ok(())
    }
}

/// The place has a task that would go on but for an update.
fn replaces_healthy(tables: &Tables, new: &Task) -> bool {
    let mut tasks = tables.tasks().by_service(&new.service_id).filter(|t| t.slot == new.slot);
    tasks.any(|t| is_live(t) && goes_on(tables, t))
}

/// The task has not ended, and its node can keep it.
fn goes_on(tables: &Tables, task: &Task) -> bool {
    let node = tables.nodes().get(&task.node_id);
    let keeps = node.is_some_and(|n| {
        n.status.state() != node_status::State::Down
            && n.spec.availability() != node_spec::Availability::Drain
    });
    !task.status.state().is_terminal() && (task.node_id.is_empty() || keeps)
}
