//! One service that is being rebalanced: what moves, what is to move yet, and how that goes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use swarm_api::v1::{Service, Task, TaskState};
use swarm_api::{Object, Shared, Text};
use swarm_reconcile::{Ctx, Guard, Now, Write};
use swarm_store::Tables;

use super::Looker;
use super::spread::{Found, Planned, runs, still_fits};
use crate::create::Recipe;
use crate::dirty::is_dirty;
use crate::place::{Place, by_place};
use crate::plan::Plan;
use crate::restart::{Restarter, shut_down};
use crate::spec::{created_at, has_ended, is_live, may_run};
use crate::update::{PLACEMENT_LIMIT, Pace, remove};

/// How long a task that comes with its node waits for it.
const BOUND_LIMIT: Duration = Duration::from_secs(30);

/// By when a new task must have a node.
fn limit_of(now: Duration, bound: bool) -> Option<Duration> {
    Some(now + if bound { BOUND_LIMIT } else { PLACEMENT_LIMIT })
}

/// Tasks are spread over branches, and not over nodes alone.
fn has_branches(service: &Service) -> bool {
    service.spec.task.placement.as_ref().is_some_and(|placement| !placement.preferences.is_empty())
}

/// A place whose task moves.
#[derive(Debug)]
pub(crate) struct Move {
    /// The task that goes when the new one runs, unless it has gone already.
    old: Option<String>,
    pub(super) new: String,
    /// Nobody knows whether it is a move: an earlier leader began it. It counts as one, and is nobody's failure.
    pub(super) found: bool,
    /// By when the new task must have a node, unless it has one.
    limit: Option<Duration>,
    /// It comes with its node: it can go nowhere else.
    bound: bool,
}

/// One service that is being rebalanced.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// What was found to be enough.
    total: usize,
    /// Moves that may still be begun. What was found to be enough must be enough: if tasks do not go where they were
    /// expected to, moving more of them will not help.
    budget: usize,
    /// The next moves; `None` if something has happened since they were worked out that they do not reckon with.
    planned: Option<VecDeque<Planned>>,
    /// At a look since it began more would have had to move that did not run yet.
    pub(super) waits: bool,
    /// So it was at the last look.
    still_waits: bool,
    failed: usize,
    pub(super) at_work: BTreeMap<Place, Move>,
    resting: Vec<Duration>,
    /// Until when new tasks are watched.
    watched: BTreeMap<String, Duration>,
    /// A move was given up.
    pub(super) gave_up: bool,
    /// Tasks that come and go by what was planned.
    expected: BTreeSet<Text>,
}

impl Balance {
    /// One that begins: places are moving already that have a task of which one would expect that it runs soon, since an
    /// earlier leader may have moved it.
    pub(super) fn new(now: Now, tables: &Tables, service: &Service) -> Balance {
        let mut balance = Balance::default();
        for (place, tasks) in by_place(tables, service) {
            let comes = |t: &&&Shared<Task>| {
                let is_new = !now.remaining(created_at(t), PLACEMENT_LIMIT).is_zero();
                is_live(t) && !t.status.reached(TaskState::Running) && (may_run(t) || is_new)
            };
            let Some(new) = tasks.iter().rfind(comes) else { continue };
            let old = tasks.iter().find(|t| is_live(t) && t.id != new.id).map(|t| t.id.to_string());
            let is_bound = !new.node_id.is_empty() && !new.status.reached(TaskState::Assigned);
            let new = new.id.to_string();
            let limit = limit_of(now.mono, is_bound);
            balance.at_work.insert(place, Move { old, new, found: true, limit, bound: is_bound });
        }
        balance
    }

    /// It begins, or begins again: as much is to be done as was found now. False if that is nothing.
    pub(super) fn begin(&mut self, found: Found) -> bool {
        (self.total, self.budget, self.failed) = (found.moves.len(), found.moves.len(), 0);
        (self.waits, self.still_waits) = (found.waits, found.waits);
        self.planned = Some(found.moves);
        self.budget > 0
    }

    /// Of a rebalance that ends and waited for tasks to run: there may be more to do, which no event will tell of.
    pub(super) fn may_go_on(&self) -> bool {
        !self.still_waits || self.planned.as_ref().is_none_or(|moves| !moves.is_empty())
    }

    fn is_idle(&self) -> bool {
        self.at_work.is_empty() && self.resting.is_empty() && self.watched.is_empty()
    }

    /// When something is due even without news.
    pub(super) fn next(&self) -> Option<Duration> {
        let limits = self.at_work.values().filter_map(|m| m.limit);
        limits.chain(self.resting.iter().copied()).chain(self.watched.values().copied()).min()
    }

    /// Nodes are not what they were.
    pub(super) fn nodes_changed(&mut self) {
        self.planned = None;
    }

    /// A task of the service is not what it was.
    pub(super) fn task_changed(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let counts = |task: Option<&Task>| {
            task.filter(|t| is_live(t)).map(|t| (t.node_id.clone(), t.status.state() == TaskState::Running))
        };
        let known = new.or(old).is_some_and(|t| self.expected.contains(&t.id));
        if !known && counts(old) != counts(new) {
            self.planned = None;
        }
    }

    /// False when it is over.
    pub(super) fn step(
        &mut self,
        ctx: &mut Ctx<'_>,
        service: &Service,
        (restarter, looker): (&mut Restarter, &mut Looker),
        plan: &mut Plan<'_>,
    ) -> bool {
        let (now, pace) = (ctx.now.mono, Pace::of(service));
        let tables = plan.tables_for(&service.id);
        self.finish_moves(now, &pace, &tables, plan);
        let tables = &plan.tables_for(&service.id);
        self.resting.retain(|until| *until > now);
        let failed = |id: &String| {
            let task = tables.tasks().get(id);
            task.is_some_and(|t| has_ended(t) && t.status.state() != TaskState::Shutdown)
        };
        let failures = self.watched.extract_if(.., |id, _| failed(id)).count();
        self.failed += failures;
        self.watched.retain(|_, until| *until > now);
        if pace.is_exceeded(self.failed, self.total) {
            if self.budget > 0 {
                tracing::warn!(service.id = service.id, "moved tasks fail: no more of them are moved");
            }
            (self.budget, self.waits) = (0, false);
        }
        while self.budget > 0 && pace.has_room(self.at_work.len() + self.resting.len()) {
            if self.planned.is_none() {
                let tables = &plan.tables_for(&service.id);
                let found = looker.look(&ctx.now, tables, service, &self.at_work);
                (self.waits, self.still_waits) = (self.waits || found.waits, found.waits);
                self.planned = Some(found.moves);
            }
            let Some(next) = self.planned.as_mut().and_then(VecDeque::pop_front) else { break };
            self.begin_move(ctx, tables, service, next, restarter, plan);
        }
        if self.at_work.is_empty() && self.resting.is_empty() {
            self.budget = 0; // nothing is left to do
        }
        self.budget > 0 || !self.is_idle()
    }

    /// Takes out moves that are over: the new task runs, or will not.
    fn finish_moves(&mut self, now: Duration, pace: &Pace, tables: &Tables, plan: &mut Plan<'_>) {
        let before = self.at_work.len();
        let (watched, failed, gave_up) = (&mut self.watched, &mut self.failed, &mut self.gave_up);
        self.at_work.retain(|place, Move { old, new, found, limit, bound }| {
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
            } else if *bound && limit.is_some_and(|limit| limit <= now) {
                // That is nobody's failure: others came first.
                plan.push_task(place, task, remove(task));
                *gave_up = true;
                return false;
            } else if limit.is_some_and(|limit| limit <= now) {
                if *found {
                    return false;
                }
                *failed += 1;
                if pace.start_first() {
                    plan.push_task(place, task, shut_down(task));
                    *gave_up = true;
                }
                return false;
            }
            true
        });
        if self.gave_up {
            self.planned = None;
        }
        if !pace.delay.is_zero() {
            self.resting.extend(std::iter::repeat_n(now + pace.delay, before - self.at_work.len()));
        }
    }

    /// Begins a move if the task is as it was when that was planned; else what was planned does not hold any more.
    fn begin_move(
        &mut self,
        ctx: &mut Ctx<'_>,
        tables: &Tables,
        service: &Service,
        Planned { place, task, to }: Planned,
        restarter: &mut Restarter,
        plan: &mut Plan<'_>,
    ) {
        let as_planned = |t: &&Shared<Task>| runs(t) && !is_dirty(tables, service, t);
        let Some(old) = tables.tasks().get(&task).filter(as_planned) else {
            self.planned = None;
            return;
        };
        let start_first = Pace::of(service).start_first();
        // As long as the old one counts, its branch has as many as those that it is to be even with.
        let bound = start_first && has_branches(service) && still_fits(tables, old, &to);
        let (new, create) = if start_first {
            let (new, mut create) = Recipe::new(tables, service).create(ctx, &place, TaskState::Running);
            if bound && let Write::Create(Object::Task(task)) = &mut create.write {
                task.node_id = to;
            }
            (new, create)
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
        self.expected.extend([old.id.clone(), new.as_str().into()]);
        let (old, limit) = (Some(old.id.to_string()), limit_of(ctx.now.mono, bound));
        self.at_work.insert(place, Move { old, new, found: false, limit, bound });
    }
}
