//! What must be so in the end: everything that was asked for, as far as there is room for it, and in the very end all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use swarm_api::Shared;
use swarm_api::duration::{to_std, to_system_time};
use swarm_api::v1::restart_policy::RestartCondition;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{Node, Service, Task, TaskSpec, TaskState, node_spec, task_spec};
use swarm_placement::{all_hold, constraints_of};
use swarm_store::Tables;

use crate::broken::{Broken, Held, broken};
use crate::checks::{image, is_current, is_live, place, summary};
use crate::order::not_yet;
use crate::room::{Taken, refuses};
use crate::specs::is_job;
use crate::watched::{Log, start_of};
use crate::world::World;

const SERVED: &str = "what can be done is done";
const EXPLAINED: &str = "who waits must wait";
const CLEAN: &str = "nothing of the past is left";

/// Every service has what it asks for, or its tasks wait for what there is not and say so.
pub(crate) fn satisfied(world: &World<'_>, log: &Log) -> Held {
    let view = world.sim.view();
    let end = End { world, log, tables: &view };
    for service in view.services().iter() {
        end.service(service)?;
    }
    for task in view.tasks().iter() {
        end.task(task)?;
    }
    Ok(())
}

struct End<'a> {
    world: &'a World<'a>,
    log: &'a Log,
    tables: &'a Tables,
}

fn state(service: &Service) -> UpdateState {
    service.update_status.as_ref().map_or(UpdateState::Unknown, |s| s.state())
}

fn is_paused(service: &Service) -> bool {
    matches!(state(service), UpdateState::Paused | UpdateState::RollbackPaused)
}

/// What the service's spec makes of the task, whatever its placement and how its image is pulled.
fn is_up_to_date(service: &Service, task: &Task) -> bool {
    let bare = |spec: &TaskSpec| TaskSpec { placement: None, ..spec.clone() };
    let endpoint = task.endpoint.as_ref().is_none_or(|e| e.spec == service.spec.endpoint);
    task.spec_version == service.spec_version || (endpoint && bare(&task.spec) == bare(&service.spec.task))
}

fn at(task: &Task) -> Option<SystemTime> {
    task.status.applied_at.as_ref().or(task.status.timestamp.as_ref()).map(to_system_time)
}

impl End<'_> {
    fn told<T>(&self, rule: &'static str, service: &Service, what: &str) -> Result<T, Broken> {
        let tasks: Vec<String> = self.world.sim.tasks(&service.id).iter().map(|t| summary(t)).collect();
        let nodes: Vec<String> = self
            .tables
            .nodes()
            .iter()
            .map(|n| {
                let labels = &n.spec.annotations.labels;
                format!(
                    "{} {} {} {labels:?}",
                    n.id,
                    n.status.state().as_str_name(),
                    n.spec.availability().as_str_name()
                )
            })
            .collect();
        let (spec, status) = (&service.spec, &service.update_status);
        broken(
            rule,
            format!(
                "{} ({:?}): {what}\n  {:?}, {status:?}\n  {:?}\n  {}\n  {}",
                service.id,
                service.spec_version,
                spec.mode,
                spec.task,
                tasks.join("\n  "),
                nodes.join("\n  ")
            ),
        )
    }

    /// Every task is where and what it should be.
    fn task(&self, task: &Shared<Task>) -> Held {
        let told = |rule, what: &str| broken(rule, format!("{what}: {}", summary(task)));
        if !is_live(task) {
            let stopped = task.status.state().is_terminal() || !task.status.reached(TaskState::Assigned);
            if task.desired_state() == TaskState::Remove || !stopped {
                return told(CLEAN, "it is not gone");
            }
            return Ok(());
        }
        let service = self.tables.services().get(&task.service_id);
        if service.is_none() && !task.service_id.is_empty() {
            return told(CLEAN, "its service is gone");
        }
        if let Some(service) = service
            && task.status.state().is_terminal()
        {
            let told_of =
                is_job(service) && (task.status.state() == TaskState::Complete || !is_current(service, task));
            if told_of || self.world.pruned.contains(&service.id) {
                return Ok(());
            }
        }
        let Some(node) = self.tables.nodes().get(&task.node_id) else {
            return match task.node_id.is_empty() || task.service_id.is_empty() {
                true => Ok(()),
                false => told(SERVED, "its node is gone"),
            };
        };
        if let Some(service) = service {
            let availability = node.spec.availability();
            if availability == node_spec::Availability::Drain {
                return told(SERVED, "it is wanted on a drained node");
            }
            let holds = |spec: &TaskSpec| all_hold(&constraints_of(spec.placement.as_ref()), node);
            // What was put there for an earlier spec stays until something can take its place.
            let may_differ = task.spec_version != service.spec_version && holds(&task.spec);
            let is_there = task.status.reached(TaskState::Assigned);
            let active = availability == node_spec::Availability::Active;
            if active && is_there && !holds(&service.spec.task) && !may_differ {
                return told(SERVED, "it is on a node that does not satisfy the constraints");
            }
        } else if node.is_usable() && !task.status.state().is_terminal() {
            return self.runs_or_waits(None, task).or_else(|b| told(b.rule, &b.text));
        }
        Ok(())
    }

    fn service(&self, service: &Shared<Service>) -> Held {
        if matches!(state(service), UpdateState::Updating | UpdateState::RollbackStarted) {
            return self.told(SERVED, service, "its update hangs");
        }
        let mut places = BTreeMap::<String, Vec<&Shared<Task>>>::new();
        for task in self.tables.tasks().by_service(&service.id) {
            places.entry(place(task)).or_default().push(task);
        }
        match &service.spec.mode {
            Some(Mode::Replicated(mode)) => self.replicated(service, mode.replicas as usize, &places),
            Some(Mode::ReplicatedJob(job)) => {
                self.replicated_job(service, job.max_concurrent, job.total_completions, &places)
            }
            Some(Mode::GlobalJob(_)) => self.per_node(service, &places, true),
            _ => self.per_node(service, &places, false),
        }
    }

    fn replicated(
        &self,
        service: &Shared<Service>,
        replicas: usize,
        places: &BTreeMap<String, Vec<&Shared<Task>>>,
    ) -> Held {
        let mut filled = 0;
        for tasks in places.values() {
            filled += usize::from(self.is_filled(service, tasks)?);
        }
        if filled != replicas && !self.world.pruned.contains(&service.id) {
            return self.told(SERVED, service, &format!("{filled} of {replicas} tasks are there"));
        }
        Ok(())
    }

    /// The place has a task that does what it should, or cannot, or that ended for good.
    fn is_filled(&self, service: &Shared<Service>, tasks: &[&Shared<Task>]) -> Result<bool, Broken> {
        let live: Vec<_> = tasks.iter().filter(|t| is_live(t)).collect();
        if live.is_empty() {
            return Ok(self.ended_for_good(service, tasks));
        }
        // A start-first update that is paused, or whose new task finds no room, leaves both.
        if live.len() > 1
            && !(is_paused(service) || live.iter().any(|t| !t.status.reached(TaskState::Assigned)))
        {
            return self.told(SERVED, service, &format!("{} tasks are in one place", live.len()));
        }
        for task in live {
            let what = self.runs_or_waits(Some(service), task);
            what.or_else(|b| self.told(b.rule, service, &format!("{}: {}", b.text, summary(task))))?;
            // An old one stays where the new one found no room, or ended, and perhaps nothing is left of it.
            let mut tried = self.log.tried.get(&(service.id.clone(), place(task))).into_iter().flatten();
            let tried = tried.any(|(_, t)| is_up_to_date(service, t));
            if !is_paused(service) && !is_up_to_date(service, task) && !tried {
                return self.told(SERVED, service, &format!("it is of another version: {}", summary(task)));
            }
        }
        Ok(true)
    }

    /// By the policy of the newest of these tasks, nobody takes its place.
    fn ended_for_good(&self, service: &Service, tasks: &[&Shared<Task>]) -> bool {
        let kept = tasks.iter().filter(|t| t.desired_state() < TaskState::Remove);
        let kept = kept.filter(|t| !is_job(service) || is_current(service, t));
        let kept: Vec<_> = kept.copied().collect();
        // The last one made, the one made last by the clock, or the last one heard of: where they differ all are as good.
        let made = |t: &Task| t.meta.created_at.as_ref().map(to_system_time);
        let last = [
            kept.iter().max_by_key(|t| &t.id),
            kept.iter().max_by_key(|t| (made(t), &t.id)),
            kept.iter().max_by_key(|t| (at(t), &t.id)),
        ];
        // Beside one of the present spec that ended by itself, one of another spec says nothing, nor one that stopped late.
        let by_itself =
            |t: &&&Shared<Task>| t.status.state() != TaskState::Shutdown && is_up_to_date(service, t);
        let own = kept.iter().filter(by_itself).max_by_key(|t| (at(t), &t.id));
        let stopped = |t: &&&Shared<Task>| t.status.state() == TaskState::Shutdown;
        let others = last.iter().flatten().all(|t| stopped(t) || !is_up_to_date(service, t));
        // Unless it had ended before they were made.
        let beside = |own: &&&Shared<Task>| {
            self.log.clock_set.is_some()
                || last.iter().flatten().all(|t| t.id == own.id || at(own) >= made(t))
        };
        let own = own.filter(|own| others && beside(own));
        let last = last.into_iter().chain([own]);
        // Where a clock was set, nobody can count.
        let unsure = |t: &Task| {
            self.log.clock_set.is_some() && t.spec.restart.is_some_and(|policy| policy.max_attempts > 0)
        };
        last.flatten().any(|newest| unsure(newest) || stays_ended(newest, tasks))
    }

    /// A wanted task runs; or there is no place for it, and it says so.
    fn runs_or_waits(&self, service: Option<&Shared<Service>>, task: &Task) -> Held {
        let goal = if task.job_iteration.is_some() { TaskState::Complete } else { TaskState::Running };
        if task.desired_state() != goal {
            return broken(SERVED, "it is held back");
        }
        if task.status.state() == goal {
            return Ok(());
        }
        if task.status.state() != TaskState::Pending {
            return broken(SERVED, "it does not run");
        }
        if task.status.err.is_empty() {
            return broken(EXPLAINED, "it does not say why it waits");
        }
        if let Some(service) = service
            && task.status.err.starts_with("waiting for service")
        {
            // Of what came before the spec to which it would go back nobody keeps count.
            if task.spec_version == service.spec_version && self.log.began.contains(&start_of(task)) {
                return broken(EXPLAINED, format!("its service has started ({})", task.status.err));
            }
            return match not_yet(self.tables, service) {
                Some(_) => Ok(()),
                None => broken(EXPLAINED, "it waits for nobody"),
            };
        }
        let fits = self.tables.nodes().iter().find(|node| self.fits(service, node, task));
        match fits {
            Some(node) => broken(EXPLAINED, format!("it would fit on {} ({})", node.id, task.status.err)),
            None => Ok(()),
        }
    }

    fn fits(&self, service: Option<&Shared<Service>>, node: &Node, task: &Task) -> bool {
        let here = task.node_id.is_empty() || task.node_id == node.id;
        let most = task.spec.placement.as_ref().map_or(0, |p| p.max_replicas) as usize;
        let there = self.tables.tasks().by_node(&node.id);
        let same = there
            .filter(|t| t.service_id == task.service_id && is_live(t) && crate::checks::may_run(t))
            .count();
        let full = service.is_some() && most > 0 && same >= most;
        let now = self.world.sim.now().wall;
        let taken = Taken::of(self.tables, &node.id, now, &self.log.forgiven, |_| true);
        here && !full && refuses(node, task, &taken).is_none()
    }

    fn replicated_job(
        &self,
        service: &Shared<Service>,
        at_once: u64,
        total: u64,
        places: &BTreeMap<String, Vec<&Shared<Task>>>,
    ) -> Held {
        let (mut done, mut open) = (0, 0);
        for slot in 0..total {
            let tasks = places.get(&slot.to_string()).map_or(&[][..], Vec::as_slice);
            match self.job_place(service, tasks)? {
                Some(true) => done += 1,
                Some(false) => open += 1,
                None => (),
            }
        }
        if open != at_once.min(total - done) && !self.world.pruned.contains(&service.id) {
            let what = format!("{done} of {total} are done, and {open} go on, not {at_once}");
            return self.told(SERVED, service, &what);
        }
        Ok(())
    }

    /// Whether a place of a job is done with; none if nothing is there.
    fn job_place(&self, service: &Shared<Service>, tasks: &[&Shared<Task>]) -> Result<Option<bool>, Broken> {
        let current: Vec<_> = tasks.iter().copied().filter(|t| is_current(service, t)).collect();
        if current.iter().any(|t| t.status.state() == TaskState::Complete) {
            return Ok(Some(true));
        }
        let live: Vec<_> = current.iter().filter(|t| is_live(t)).collect();
        for task in &live {
            let what = self.runs_or_waits(Some(service), task);
            what.or_else(|b| self.told(b.rule, service, &format!("{}: {}", b.text, summary(task))))?;
        }
        Ok(match live.len() {
            0 => self.ended_for_good(service, &current).then_some(true),
            1 => Some(false),
            n => return self.told(SERVED, service, &format!("{n} tasks are in one place")),
        })
    }

    /// Every node that may have a task has it.
    fn per_node(
        &self,
        service: &Shared<Service>,
        places: &BTreeMap<String, Vec<&Shared<Task>>>,
        job: bool,
    ) -> Held {
        for node in self.tables.nodes().iter() {
            let tasks = places.get(&node.id).map_or(&[][..], Vec::as_slice);
            let serves =
                node.is_usable() && all_hold(&constraints_of(service.spec.task.placement.as_ref()), node);
            let served = match job {
                true => self.job_place(service, tasks)?.is_some(),
                false if serves => self.is_filled(service, tasks)?,
                false => true,
            };
            if serves && !served && !self.world.pruned.contains(&service.id) {
                return self.told(SERVED, service, &format!("{} has no task", node.id));
            }
        }
        Ok(())
    }
}

/// By its policy, nobody takes the place of this one among the tasks of its place.
fn stays_ended(newest: &Shared<Task>, tasks: &[&Shared<Task>]) -> bool {
    let policy = newest.spec.restart.unwrap_or_default();
    let condition = newest.spec.restart.map_or(RestartCondition::Any, |p| p.condition());
    let completed = newest.status.state() == TaskState::Complete;
    match condition {
        RestartCondition::None => return true,
        RestartCondition::OnFailure if completed => return true,
        _ if policy.max_attempts == 0 => return false,
        _ => (),
    }
    let same = |t: &&&Shared<Task>| {
        t.spec_version == newest.spec_version
            && t.job_iteration == newest.job_iteration
            && t.desired_state() < TaskState::Remove
    };
    let mut made: Vec<_> =
        tasks.iter().filter(same).filter_map(|t| t.meta.created_at.as_ref().map(to_system_time)).collect();
    made.sort();
    let window = policy.window.as_ref().map(to_std).filter(|w| !w.is_zero());
    let counted = made.iter().skip(1).filter(|made| match (window, at(newest)) {
        (Some(window), Some(end)) => end < **made + window && **made < end,
        _ => true,
    });
    counted.count() as u64 >= policy.max_attempts
}

/// Everything is as it was asked for, and nothing of the past is left that should not be.
pub(crate) fn converged(world: &World<'_>) -> Held {
    let view = world.sim.view();
    for service in view.services().iter() {
        let tasks: Vec<_> = world.sim.tasks(&service.id);
        let all = |what: &str| {
            let tasks = tasks.iter().map(|t| summary(t)).collect::<Vec<_>>().join("\n  ");
            broken(
                "it converges",
                format!(
                    "{} has not {what}: {:?}, {:?}\n  {tasks}",
                    service.id, service.spec.mode, service.update_status
                ),
            )
        };
        let nodes = view.nodes().len();
        let (wanted, job) = match &service.spec.mode {
            Some(Mode::Replicated(mode)) => (mode.replicas as usize, false),
            Some(Mode::ReplicatedJob(mode)) => (mode.total_completions as usize, true),
            Some(Mode::GlobalJob(_)) => (nodes, true),
            _ => (nodes, false),
        };
        let current = tasks.iter().filter(|t| is_live(t) && (!job || is_current(service, t)));
        let goal = if job { TaskState::Complete } else { TaskState::Running };
        let mut places = BTreeSet::new();
        let mut count = 0;
        for task in current {
            if (task.status.state(), image(task)) != (goal, "good") {
                return all("come to what was asked for");
            }
            count += 1;
            places.insert(place(task));
        }
        if (places.len(), count) != (wanted, wanted) {
            return all("as many tasks as were asked for");
        }
    }
    let is_attachment = |t: &Task| matches!(t.spec.runtime, Some(task_spec::Runtime::Attachment(_)));
    for task in view.tasks().iter().filter(|t| !is_attachment(t)) {
        if view.services().get(&task.service_id).is_none() || task.desired_state() == TaskState::Remove {
            return broken(CLEAN, summary(task));
        }
    }
    Ok(())
}
