//! Updates keep to their pace, and mind their failures: the simulation's own count of both.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swarm_api::duration::to_std;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_config::FailureAction;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{Node, Service, Task, TaskState, UpdateConfig, node_spec, node_status};
use swarm_api::{Object, Shared};
use swarm_placement::{all_hold, constraints_of};
use swarm_reconcile::{Effect, Group, Write};
use swarm_store::Tables;

use crate::broken::{Held, broken};
use crate::checks::{is_live, of_place, place, summary};
use crate::room::held_until;
use crate::watched::Log;

/// A new task that takes longer to find a node is not waited for any more.
const PLACEMENT_LIMIT: Duration = Duration::from_secs(600);

const MONITOR: Duration = Duration::from_secs(5);

/// What is decided may be written so much later.
const SLACK: Duration = Duration::from_secs(30);

const PACE: &str = "updates keep to their pace";
const FAILURES: &str = "updates mind their failures";

/// What is known of a service's update from the decisions made for it.
#[derive(Debug, Default)]
pub(crate) struct Update {
    /// What tells it from the one before: the spec's version, and the begin of a rollback.
    identity: (u64, Option<prost_types::Timestamp>),
    /// Places whose new task does not run yet.
    work: BTreeMap<String, (String, Duration)>,
    /// Until when the workers of places that are done rest.
    resting: Vec<Duration>,
    /// Tasks of this update, each with its place; whether an earlier leader made it.
    made: BTreeMap<String, (String, bool)>,
}

impl Update {
    /// Another leader goes on with it: it can't know since when tasks run, nor who rests.
    pub(crate) fn inherit(&mut self) {
        self.made.values_mut().for_each(|(_, inherited)| *inherited = true);
        self.resting.clear();
    }

    /// How many had failed can't be told any more.
    pub(crate) fn forget_failures(&mut self) {
        self.made.clear();
    }
}

fn is_rolling_back(service: &Service) -> bool {
    state(service) == UpdateState::RollbackStarted
}

fn state(service: &Service) -> UpdateState {
    service.update_status.as_ref().map_or(UpdateState::Unknown, |s| s.state())
}

fn identity_of(service: &Service) -> (u64, Option<prost_types::Timestamp>) {
    let started = service.update_status.as_ref().and_then(|s| s.started_at);
    (service.spec_version.map_or(0, |v| v.index), started.filter(|_| is_rolling_back(service)))
}

fn config_of(service: &Service) -> UpdateConfig {
    let config = if is_rolling_back(service) { &service.spec.rollback } else { &service.spec.update };
    config.unwrap_or(UpdateConfig { parallelism: 1, ..Default::default() })
}

impl Log {
    /// Never more places are under way than the update allows, and none is begun after a failure that is one too
    /// many; and it ends as its failures say.
    pub(crate) fn update_pace(
        &mut self,
        now: Duration,
        tables: &Tables,
        groups: &[Group],
        came: &BTreeSet<String>,
    ) -> Held {
        // An update passes by nodes that are no place for its tasks, and forgets what was there.
        for (id, update) in &mut self.updates {
            if let Some(service) = tables.services().get(id).filter(|s| s.id.starts_with("global")) {
                update.made.retain(|_, (at, _)| tables.nodes().get(at).is_some_and(|n| serves(service, n)));
            }
        }
        // With what comes before it in the same decision.
        let mut staged = tables.clone();
        for group in groups {
            let restart = group.patches.iter().any(|p| match &p.write {
                Write::RaiseDesired(id, _) => staged.tasks().get(id).is_some_and(|t| !goes_on(&staged, t)),
                _ => false,
            });
            for patch in &group.patches {
                match &patch.write {
                    Write::Create(Object::Task(new)) => {
                        if let Some(service) = staged.services().get(&new.service_id)
                            && service.spec_version == new.spec_version
                            && !restart
                            // What a node lacks that came back is made at once.
                            && !came.contains(new.node_id.as_str())
                            && replaces_healthy(&staged, new)
                        {
                            self.begins(now, &staged, service, new)?;
                        }
                    }
                    Write::Edit { .. } => {
                        if let Ok(Effect::Update(Object::Service(new))) = patch.evaluate(&staged)
                            && let Some(old) = staged.services().get(&new.id)
                            && old.update_status != new.update_status
                        {
                            self.status_is_right(now, &staged, old, &new)?;
                        }
                    }
                    _ => (),
                }
            }
            for patch in &group.patches {
                let _ = patch.apply(&mut staged);
            }
        }
        Ok(())
    }

    fn begins(&mut self, now: Duration, tables: &Tables, service: &Service, new: &Task) -> Held {
        let config = config_of(service);
        let update = self.updates.entry(service.id.clone()).or_default();
        if update.identity != identity_of(service) {
            *update = Update { identity: identity_of(service), ..Update::default() };
        }
        // Moves of a rebalance are watched too, but each rebalance begins without failures.
        let updating = matches!(state(service), UpdateState::Updating | UpdateState::RollbackStarted);
        if updating && let Some(why) = self.too_many_failed(tables, service) {
            let what = format!("{}: {} is updated although {why}", service.id, place(new));
            return broken(FAILURES, what);
        }
        let update = self.updates.get_mut(&service.id).expect("it was entered");
        let (ran, delay) = (&self.ran, to_std(&config.delay));
        let (resting, made) = (&mut update.resting, &update.made);
        update.work.retain(|_, (id, since)| {
            // A node that gets no tasks now, or not this one, is not waited for.
            let suits = |n: &Node| n.is_usable() && serves(service, n);
            let waits =
                |t: &Task| t.node_id.is_empty() || tables.nodes().get(&t.node_id).is_some_and(|n| suits(n));
            let open = |t: &Shared<Task>| !t.status.reached(TaskState::Running) && is_live(t) && waits(t);
            // By a clock that was set since then it may have been waited for long enough.
            let late = now >= *since + PLACEMENT_LIMIT || self.clock_set.is_some_and(|at| *since <= at);
            let goes_on = tables.tasks().get(id).is_some_and(open) && !late;
            // Who rests is not handed over.
            let known = tables.tasks().get(id).is_some_and(|t| waits(t));
            if !goes_on
                && known
                && let (Some(at), Some((_, false))) = (ran.get(id), made.get(id))
            {
                resting.push(*at + delay);
            }
            goes_on
        });
        resting.retain(|until| *until > now);
        update.work.insert(place(new), (new.id.to_string(), now));
        update.made.insert(new.id.to_string(), (place(new), false));
        let most = config.parallelism as usize;
        let resting = if updating { update.resting.len() } else { 0 };
        if most > 0 && update.work.len() + resting > most {
            let what = format!(
                "{}: more than {most} are updated at once: {:?}, and {resting} rest",
                service.id, update.work
            );
            return broken(PACE, what);
        }
        Ok(())
    }

    /// More places have failed for certain than the update bears.
    fn too_many_failed(&self, tables: &Tables, service: &Service) -> Option<String> {
        let config = config_of(service);
        let update = self.updates.get(&service.id).filter(|u| u.identity == identity_of(service))?;
        if config.failure_action() == FailureAction::Continue {
            return None;
        }
        let monitor = config.monitor.as_ref().map_or(MONITOR, to_std);
        let failed = |(id, (_, inherited)): &(&String, &(String, bool))| {
            let Some(task) = tables.tasks().get(id) else { return false };
            let by_itself = matches!(task.status.state(), TaskState::Failed | TaskState::Rejected);
            // A manager's word is another matter: it does not say since when.
            let Some(ended) = self.ended.get(*id) else { return false };
            let early = match self.ran.get(*id) {
                None => true,
                Some(since) => !inherited && *ended <= *since + monitor,
            };
            // The next leader can't tell whether it had come to run.
            let early =
                early && (!inherited || self.made.get(*id).is_some_and(|made| *ended <= *made + monitor));
            let early = early && !self.unwanted.contains(*id);
            by_itself && held_until(task).is_none() && early
        };
        let failed: BTreeMap<_, _> =
            update.made.iter().filter(failed).map(|(id, (at, _))| (at, id)).collect();
        let mut places: BTreeSet<String> = tables.tasks().by_service(&service.id).map(|t| place(t)).collect();
        places.extend(update.made.values().map(|(at, _)| at.clone()));
        let wanted = match &service.spec.mode {
            Some(Mode::Replicated(mode)) => mode.replicas as usize,
            _ => tables.nodes().len(),
        };
        let total = places.len().max(wanted).max(1);
        (failed.len() as f32 / total as f32 > config.max_failure_ratio)
            .then(|| format!("{failed:?} of {total} failed"))
    }

    /// An update ends, is paused, or goes back, for a reason.
    fn status_is_right(&self, now: Duration, tables: &Tables, old: &Service, new: &Service) -> Held {
        use UpdateState::{Completed, Paused, RollbackCompleted, RollbackPaused, RollbackStarted};
        let fault = |what: String| {
            broken(FAILURES, format!("{} becomes {}: {what}", old.id, state(new).as_str_name()))
        };
        let (config, action) = (config_of(old), config_of(old).failure_action());
        match state(new) {
            Completed | RollbackCompleted => self.too_many_failed(tables, old).map_or(Ok(()), fault),
            to @ (Paused | RollbackPaused | RollbackStarted) => {
                if action == FailureAction::Continue || config.max_failure_ratio >= 1.0 {
                    return fault("it was to go on whatever fails".into());
                }
                let back = action == FailureAction::Rollback && old.previous_spec.is_some();
                if (to == RollbackStarted) != (back && !is_rolling_back(old)) {
                    return fault("that is not what it was to do".into());
                }
                let status = new.update_status.as_ref().map_or("", |s| &s.message);
                let culprit = status.split("of task ").nth(1).unwrap_or_default();
                let culprit = culprit.split(';').next().unwrap_or_default();
                self.is_to_blame(now, tables, old, culprit).or_else(|b| fault(b.text))
            }
            _ => Ok(()),
        }
    }

    /// The task failed: it ended early, or found no node.
    fn is_to_blame(&self, now: Duration, tables: &Tables, service: &Service, id: &str) -> Held {
        let config = config_of(service);
        let monitor = config.monitor.as_ref().map_or(MONITOR, to_std);
        let text = || tables.tasks().get(id).map_or(id.to_owned(), |t| summary(t));
        let has_ended = || tables.tasks().get(id).is_some_and(|t| t.status.state().is_terminal());
        match (self.made.get(id), self.ran.get(id), self.ended.get(id)) {
            // Of what happened during a turn nobody knows the time.
            (None, ..) | (Some(_), None, Some(_)) => Ok(()),
            // Nor of what happened while nobody led.
            (Some(made), _, None) if *made <= self.leads_since && has_ended() => Ok(()),
            // Times that another clock had set can't be compared.
            (Some(made), ..) if self.clock_set.is_some_and(|at| *made <= at) => Ok(()),
            // A new leader does not know for how long it has been running.
            (Some(_), Some(ran), Some(ended)) if *ended <= (*ran).max(self.leads_since) + monitor => Ok(()),
            // It was made a little before it was written.
            (Some(made), None, None) if now + SLACK >= *made + PLACEMENT_LIMIT => Ok(()),
            (made, ran, ended) => broken(
                FAILURES,
                format!("made {made:?}, ran {ran:?}, ended {ended:?}, now {now:?}, {config:?}: {}", text()),
            ),
        }
    }
}

/// The node is to have tasks of the service.
fn serves(service: &Service, node: &Node) -> bool {
    node.status.state() != node_status::State::Down
        && node.spec.availability() == node_spec::Availability::Active
        && all_hold(&constraints_of(service.spec.task.placement.as_ref()), node)
}

/// The place has a task that would go on but for an update.
fn replaces_healthy(tables: &Tables, new: &Task) -> bool {
    of_place(tables, &new.service_id, &place(new)).iter().any(|t| is_live(t) && goes_on(tables, t))
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
