//! Rebalancing: moves tasks of replicated services to nodes that came or returned, as few as restore an even spread,
//! at the pace of the service's updates (decision 0071). A service asks for it by a label; an operator by a request,
//! which stands in the service until it is done.

mod spread;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swarm_api::extensions::{REBALANCE, REBALANCE_NOW};
use swarm_api::v1::{Node, Service, Task, TaskState};
use swarm_api::{Object, Shared};
use swarm_reconcile::{Ctx, Guard, Now};
use swarm_store::Tables;

use crate::create::Recipe;
use crate::place::{Place, by_place};
use crate::plan::Plan;
use crate::restart::{Restarter, shut_down};
use crate::spec::{created_at, has_ended, is_live, may_run};
use crate::status;
use crate::update::{PLACEMENT_LIMIT, Pace};

/// How long nodes must have neither come nor returned before services that ask for it by themselves are looked at: after
/// a change of leaders, or of switches, they come one by one, and a node that flaps is no place to move to.
const QUIET: Duration = Duration::from_secs(10);

/// Which tasks of a replicated service would be moved now, in order.
pub(crate) fn moves(tables: &Tables, service: &Service) -> Vec<Place> {
    spread::moves(tables, service, &BTreeSet::new())
}

/// A place whose task moves.
#[derive(Debug)]
struct Move {
    /// The task that goes when the new one runs, unless it has gone already.
    old: Option<String>,
    new: String,
    /// Nobody knows whether it is a move: an earlier leader began it. It counts as one, and is nobody's failure.
    found: bool,
    /// By when the new task must have a node, unless it has one.
    limit: Option<Duration>,
}

/// One service that is being rebalanced.
#[derive(Debug)]
struct Balance {
    /// What was found to be enough.
    total: usize,
    /// Moves that may still be begun. What was found to be enough must be enough: if tasks do not go where they were
    /// expected to, moving more of them will not help.
    budget: usize,
    failed: usize,
    at_work: BTreeMap<Place, Move>,
    resting: Vec<Duration>,
    /// Until when new tasks are watched.
    watched: BTreeMap<String, Duration>,
}

impl Balance {
    fn new(moves: usize) -> Balance {
        Balance {
            total: moves,
            budget: moves,
            failed: 0,
            at_work: BTreeMap::new(),
            resting: Vec::new(),
            watched: BTreeMap::new(),
        }
    }

    /// Takes places as moving that have a task of which one would expect that it runs soon: an earlier leader may have
    /// moved it.
    fn take_over(&mut self, now: Now, tables: &Tables, service: &Service) {
        for (place, tasks) in by_place(tables, service) {
            let comes = |t: &&&Shared<Task>| {
                let is_new = now.wall < created_at(t) + PLACEMENT_LIMIT;
                is_live(t) && !t.status.reached(TaskState::Running) && (may_run(t) || is_new)
            };
            let Some(new) = tasks.iter().rfind(comes) else { continue };
            let old = tasks.iter().find(|t| is_live(t) && t.id != new.id).map(|t| t.id.to_string());
            let limit = Some(now.mono + PLACEMENT_LIMIT);
            self.at_work.insert(place, Move { old, new: new.id.to_string(), found: true, limit });
        }
    }

    fn is_idle(&self) -> bool {
        self.at_work.is_empty() && self.resting.is_empty() && self.watched.is_empty()
    }

    fn next(&self) -> Option<Duration> {
        let limits = self.at_work.values().filter_map(|m| m.limit);
        limits.chain(self.resting.iter().copied()).chain(self.watched.values().copied()).min()
    }
}

/// The rebalancing of all replicated services.
#[derive(Debug, Default)]
pub(crate) struct Rebalancer {
    /// Services that are to be rebalanced whenever nodes come.
    automatic: BTreeSet<String>,
    /// When to look at services.
    due: BTreeMap<String, Duration>,
    running: BTreeMap<String, Balance>,
    /// Services whose tasks did something.
    touched: BTreeSet<String>,
}

fn is_requested(service: &Service) -> bool {
    service.spec.annotations.labels.contains_key(REBALANCE_NOW)
}

impl Rebalancer {
    /// A service is new or has changed; or leadership begins.
    pub(crate) fn service_changed(&mut self, now: Duration, service: &Service) {
        let automatic = service.spec.annotations.labels.contains_key(REBALANCE);
        if automatic {
            self.automatic.insert(service.id.clone());
        } else {
            self.automatic.remove(&service.id);
        }
        if is_requested(service) {
            self.due.insert(service.id.clone(), now);
        } else if automatic {
            self.due.insert(service.id.clone(), now + QUIET);
        }
    }

    /// A node takes tasks that did not before.
    pub(crate) fn node_came(&mut self, now: Duration) {
        self.due.extend(self.automatic.iter().map(|id| (id.clone(), now + QUIET)));
    }

    pub(crate) fn task_changed(&mut self, service: &str) {
        if self.running.contains_key(service) {
            self.touched.insert(service.to_owned());
        }
    }

    pub(crate) fn forget(&mut self, service: &str) {
        self.automatic.remove(service);
        self.due.remove(service);
        self.running.remove(service);
    }

    /// An update puts right what is under way, from now on: places and their new tasks. When it is over, the service
    /// changes.
    pub(crate) fn stop(&mut self, service: &str) -> Vec<(Place, String)> {
        let moves = self.running.remove(service).map(|balance| balance.at_work).unwrap_or_default();
        moves.into_iter().map(|(place, at_work)| (place, at_work.new)).collect()
    }

    /// The task of the place is on its way: that there are two of them is as it should be.
    pub(crate) fn is_moving(&self, service: &str, place: &Place) -> bool {
        self.running.get(service).is_some_and(|b| b.at_work.contains_key(place))
    }

    /// When [`Rebalancer::advance`] is due even without news.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.due.values().copied().chain(self.running.values().filter_map(Balance::next)).min()
    }

    /// Moves on what is due or has news. `is_busy` tells of services that must wait, since they are being updated.
    pub(crate) fn advance(
        &mut self,
        ctx: &mut Ctx<'_>,
        restarter: &mut Restarter,
        is_busy: impl Fn(&Service) -> bool,
        plan: &mut Plan<'_>,
    ) {
        let now = ctx.now.mono;
        let mut services = std::mem::take(&mut self.touched);
        services.extend(self.due.extract_if(.., |_, at| *at <= now).map(|(id, _)| id));
        let due = |b: &Balance| b.next().is_some_and(|at| at <= now);
        services.extend(self.running.iter().filter(|(_, b)| due(b)).map(|(id, _)| id.clone()));
        for id in services {
            let tables = plan.tables_for(&id);
            let Some((service, _)) = crate::replicated::service(&tables, &id) else {
                self.running.remove(&id);
                continue;
            };
            if is_busy(service) {
                self.running.remove(&id);
                continue;
            }
            let balance = self.running.remove(&id);
            let mut balance = balance.unwrap_or_else(|| {
                let mut balance = Balance::new(moves(&tables, service).len());
                if balance.budget > 0 {
                    balance.take_over(ctx.now, &tables, service);
                }
                balance
            });
            if balance.step(ctx, &tables, service, restarter, plan) {
                self.running.insert(id, balance);
            } else if is_requested(service) {
                plan.push_service(&service.id, status::label_removed(service, REBALANCE_NOW));
            }
        }
    }
}

impl Balance {
    /// False when it is over.
    fn step(
        &mut self,
        ctx: &mut Ctx<'_>,
        tables: &Tables,
        service: &Service,
        restarter: &mut Restarter,
        plan: &mut Plan<'_>,
    ) -> bool {
        let (now, pace) = (ctx.now.mono, Pace::of(service));
        self.finish_moves(now, &pace, tables, plan);
        let tables = &plan.tables_for(&service.id);
        self.resting.retain(|until| *until > now);
        let failed = |id: &String| {
            let task = tables.tasks().get(id);
            task.is_some_and(|t| has_ended(t) && t.status.state() != TaskState::Shutdown)
        };
        let failures = self.watched.extract_if(.., |id, _| failed(id)).count();
        self.failed += failures;
        self.watched.retain(|_, until| *until > now);
        if self.budget > 0 && pace.is_exceeded(self.failed, self.total) {
            tracing::warn!(service.id = service.id, "moved tasks fail: no more of them are moved");
            self.budget = 0;
        }
        if self.budget > 0 && pace.has_room(self.at_work.len() + self.resting.len()) {
            let moving = self.at_work.keys().cloned().collect();
            for place in spread::moves(tables, service, &moving) {
                if self.budget == 0 || !pace.has_room(self.at_work.len() + self.resting.len()) {
                    break;
                }
                self.begin(ctx, tables, service, place, restarter, plan);
            }
            if self.at_work.is_empty() && self.resting.is_empty() {
                self.budget = 0; // nothing is left to do
            }
        }
        self.budget > 0 || !self.is_idle()
    }

    /// Takes out moves that are over: the new task runs, or will not.
    fn finish_moves(&mut self, now: Duration, pace: &Pace, tables: &Tables, plan: &mut Plan<'_>) {
        let before = self.at_work.len();
        let (watched, failed) = (&mut self.watched, &mut self.failed);
        self.at_work.retain(|place, Move { old, new, found, limit }| {
            let Some(task) = tables.tasks().get(new) else { return false };
            if has_ended(task) {
                *failed += usize::from(!*found && task.status.state() != TaskState::Shutdown);
                return false;
            }
            if !is_live(task) {
                return false;
            }
            if task.status.reached(TaskState::Running) {
                let old = old.as_ref().and_then(|old| tables.tasks().get(old));
                if let Some(old) = old.filter(|t| is_live(t)) {
                    plan.push_task(place, old, shut_down(old));
                }
                if !*found {
                    watched.insert(new.clone(), now + pace.monitor);
                }
                return false;
            }
            if task.status.reached(TaskState::Assigned) {
                *limit = None;
            } else if limit.is_some_and(|limit| limit <= now) {
                if *found {
                    return false;
                }
                *failed += 1;
                if pace.start_first() {
                    plan.push_task(place, task, shut_down(task));
                }
                return false;
            }
            true
        });
        if !pace.delay.is_zero() {
            self.resting.extend(std::iter::repeat_n(now + pace.delay, before - self.at_work.len()));
        }
    }

    fn begin(
        &mut self,
        ctx: &mut Ctx<'_>,
        tables: &Tables,
        service: &Service,
        place: Place,
        restarter: &mut Restarter,
        plan: &mut Plan<'_>,
    ) {
        let tasks = place.tasks(tables, &service.id);
        let Some(old) = tasks.into_iter().find(|t| is_live(t)) else { return };
        let start_first = Pace::of(service).start_first();
        let (new, create) = if start_first {
            Recipe::new(tables, service).create(ctx, &place, TaskState::Running)
        } else {
            restarter.replacement(ctx, tables, service, &place, Duration::ZERO, |_| true)
        };
        let guard = Guard::DesiredAtMost(old.id.to_string(), TaskState::Running);
        let mut patches = vec![create.guard(guard)];
        if !start_first {
            patches.push(shut_down(old));
        }
        tracing::info!(
            task.id = new,
            replaces = old.id.as_str(),
            service.id = service.id,
            slot = place.slot(),
            from = old.node_id.as_str(),
            "task is moved"
        );
        plan.push(&service.id, &place, patches);
        self.budget -= 1;
        let limit = Some(ctx.now.mono + PLACEMENT_LIMIT);
        self.at_work.insert(place, Move { old: Some(old.id.to_string()), new, found: false, limit });
    }
}

/// A change of a node after which it may take tasks that it did not take before.
pub(crate) fn comes(old: Option<&Object>, new: &Node) -> bool {
    new.is_usable() && !matches!(old, Some(Object::Node(old)) if old.is_usable())
}
