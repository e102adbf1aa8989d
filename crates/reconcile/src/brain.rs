//! The turn: all reconcilers in their fixed order on one picture of the cluster.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use swarm_api::defaults::MAX_BATCH_BYTES;
use swarm_api::hash::FastSet;
use swarm_api::v1::{StoreAction, StoreActionKind, Task};
use swarm_api::{Kind, Object, Shared};
use swarm_store::{Event, Tables, View};

use crate::assign::is_outcome;
use crate::journal::{Journal, difference};
use crate::overlay::Overlay;
use crate::{
    Assignments, Ctx, Effect, Group, Outcome, Patch, Reconciler, Refused, Settled, Sizer, Write, bulk,
};

/// Most batches whose fate is open. While so many are in flight events gather, and the next turn takes them all.
pub const MAX_IN_FLIGHT: usize = 4;

/// How long a turn waits after one whose decisions the store refused for a reason that no commit will change.
const BACK_OFF: Duration = Duration::from_millis(100);

/// With more changes than these unread, reconcilers are told of them even while they may not decide.
const MANY_EVENTS: usize = 50_000;

/// What is to be written in one transaction, with [`Batch::apply`].
#[derive(Debug, Clone)]
pub struct Batch {
    /// To be given back in [`Brain::settle`].
    pub id: u64,
    /// The groups, in order.
    pub groups: Vec<Arc<Group>>,
    /// The assignments, which come after the groups.
    pub assignments: Vec<Assignments>,
}

/// What became of a batch.
#[derive(Debug)]
pub enum Fate {
    /// The transaction was committed at this log index; what [`Batch::apply`] said of each part of it.
    Written(u64, Vec<Result<(), Refused>>),
    /// The transaction failed.
    Failed(swarm_store::Error),
}

struct Seat {
    reconciler: Box<dyn Reconciler>,
    wake_at: Option<Duration>,
    settled: Vec<Settled>,
    /// Stand-ins for differences that never showed: of groups that were refused before they changed anything.
    corrections: Vec<Event>,
    fresh: bool,
}

struct Ready {
    number: u64,
    bytes: usize,
}

struct Flying {
    numbers: Vec<u64>,
    /// Its commit was seen, and is known to be its own.
    seen: bool,
    fate: Option<(u64, Vec<Result<(), Refused>>)>,
}

/// The leader's mind: every reconciler, what they know, and what they decided that is not settled yet.
///
/// Pure and synchronous. The shell around it feeds [`Brain::committed`] and [`Brain::settle`], calls
/// [`Brain::turn`] when either brought something or [`Brain::wake_at`] has come, and writes the batches that a
/// turn returns, in order.
///
/// Every reconciler sees the committed tables plus all that was decided and is not settled. A change in
/// flight may meet its own commit before the brain is told of it, so edits must be idempotent: done twice they
/// are as good as done once.
pub struct Brain {
    seats: Vec<Seat>,
    overlay: Overlay,
    journal: Journal,
    /// Who decided a group: the seat, by the group's number.
    owners: BTreeMap<u64, usize>,
    /// Assignments whose fate is open, by their number; numbers are those of groups.
    assigning: BTreeMap<u64, Assignments>,
    /// Who is to be told of a group's fate beside its owner, and with which mark: what they decided became a part of it.
    joined: BTreeMap<u64, Vec<(usize, u64)>>,
    ready: VecDeque<Ready>,
    flying: BTreeMap<u64, Flying>,
    next_group: u64,
    next_batch: u64,
    /// No decisions before this time.
    hold: Option<Duration>,
    backing_off: bool,
}

impl std::fmt::Debug for Brain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.seats.iter().map(|s| s.reconciler.name()).collect();
        f.debug_struct("Brain").field("reconcilers", &names).field("in_flight", &self.flying.len()).finish()
    }
}

impl Brain {
    /// A brain with these reconcilers, which run in this order in every turn.
    pub fn new(reconcilers: Vec<Box<dyn Reconciler>>) -> Brain {
        let seats: Vec<Seat> = reconcilers
            .into_iter()
            .map(|reconciler| Seat {
                reconciler,
                wake_at: None,
                settled: Vec::new(),
                corrections: Vec::new(),
                fresh: true,
            })
            .collect();
        Brain {
            journal: Journal::new(seats.len()),
            seats,
            overlay: Overlay::default(),
            owners: BTreeMap::new(),
            assigning: BTreeMap::new(),
            joined: BTreeMap::new(),
            ready: VecDeque::new(),
            flying: BTreeMap::new(),
            next_group: 0,
            next_batch: 0,
            hold: None,
            backing_off: false,
        }
    }

    /// Leadership begins with this view.
    pub fn start(&mut self, ctx: &mut Ctx<'_>, view: View) {
        self.overlay = Overlay::new(view);
        for seat in &mut self.seats {
            seat.reconciler.init(ctx, self.overlay.tables());
            seat.fresh = true;
        }
    }

    /// A commit, in log order.
    pub fn committed(&mut self, events: &[Event], view: &View) {
        if self.creates_only(events.len(), view.index()) {
            return self.overlay.commit_planned(view);
        }
        let knows = self.author(events, view.index());
        self.overlay.commit(events, view, &mut self.journal, knows);
    }

    /// The commit with this index is known to be that of a batch of nothing but new tasks, so many as there are changes. The
    /// index alone does not say so: that of a batch that changed nothing is the one of the commit before it.
    fn creates_only(&self, changes: usize, index: u64) -> bool {
        let creates = |number: &u64| {
            let (_, tasks) = bulk::tasks(self.overlay.group(*number)?)?;
            Some(tasks.count())
        };
        self.flying.values().any(|flying| {
            let Some((_, results)) = flying.fate.as_ref().filter(|(at, _)| *at == index) else {
                return false;
            };
            let created: Option<Vec<usize>> = flying.numbers.iter().map(creates).collect();
            let written = |created: Vec<usize>| -> usize {
                created.iter().zip(results).filter(|(_, result)| result.is_ok()).map(|(tasks, _)| tasks).sum()
            };
            created.map(written).is_some_and(|written| written > 0 && written == changes)
        })
    }

    /// Who decided these changes, if they are those of a batch in flight, and it holds only assignments.
    fn author(&mut self, events: &[Event], index: u64) -> Option<usize> {
        let may_be = |f: &&mut Flying| !f.seen && f.fate.as_ref().is_none_or(|(at, _)| *at == index);
        let oldest = self.flying.values_mut().find(may_be)?;
        let owner = self.owners.get(oldest.numbers.first()?)?;
        let lists: Option<Vec<&Assignments>> =
            oldest.numbers.iter().map(|number| self.assigning.get(number)).collect();
        let lists = lists?;
        let written = |(result, list): (&Result<(), Refused>, &&Assignments)| match result {
            Ok(()) => !list.list.is_empty(),
            Err(Refused::Assignments(refused)) => refused.len() < list.list.len(),
            Err(_) => false,
        };
        // Where something is known to be written at this index, that is it.
        let known = |(_, results): &(u64, Vec<_>)| results.iter().zip(&lists).any(written);
        oldest.seen = oldest.fate.as_ref().is_some_and(known) || is_outcome(events, lists.into_iter());
        oldest.seen.then_some(*owner)
    }

    /// Commits were missed; this view contains them all.
    pub fn lagged(&mut self, view: &View) {
        self.overlay.jump(view);
    }

    /// What became of a batch. May be said before or after the commit itself is fed: it takes effect with it.
    pub fn settle(&mut self, batch: u64, fate: Fate) {
        let Some(flying) = self.flying.get_mut(&batch) else { return };
        match fate {
            Fate::Written(index, groups) => {
                debug_assert_eq!(groups.len(), flying.numbers.len(), "one result for each part");
                flying.fate = Some((index, groups));
            }
            Fate::Failed(error) => {
                let numbers = self.flying.remove(&batch).map(|f| f.numbers).unwrap_or_default();
                self.failed(numbers, error);
            }
        }
    }

    fn failed(&mut self, numbers: Vec<u64>, error: swarm_store::Error) {
        use swarm_store::Error;
        if error == Error::TooLarge && numbers.len() > 1 {
            // The estimate was too low: go on with halves, before everything that was decided later.
            let bytes = (2 * MAX_BATCH_BYTES).div_ceil(numbers.len());
            self.ready.extend(numbers.into_iter().map(|number| Ready { number, bytes }));
            self.ready.make_contiguous().sort_by_key(|ready| ready.number);
            return;
        }
        let lost = matches!(error, Error::LostLeadership | Error::Stopped);
        if !lost {
            tracing::error!(%error, groups = numbers.len(), "decisions were refused by the store");
            self.backing_off = true;
        }
        for number in numbers {
            let outcome = if lost { Outcome::Lost } else { Outcome::Refused(Refused::Store(error.clone())) };
            self.finish(number, outcome);
        }
    }

    fn finish(&mut self, number: u64, outcome: Outcome) {
        let tag = match self.assigning.remove(&number) {
            Some(assignments) => Some(assignments.tag),
            None => self.overlay.settle(number).map(|group| group.tag),
        };
        for (seat, tag) in self.joined.remove(&number).unwrap_or_default() {
            self.seats[seat].settled.push(Settled { tag, outcome: outcome.clone() });
        }
        if let (Some(tag), Some(owner)) = (tag, self.owners.remove(&number)) {
            self.seats[owner].settled.push(Settled { tag, outcome });
        }
    }

    /// Takes in what was committed and settled, lets every reconciler that has news or is due decide, and
    /// returns what is to be written now. Cheap if there is nothing to do.
    pub fn turn(&mut self, ctx: &mut Ctx<'_>) -> Vec<Batch> {
        self.take_in();
        if std::mem::take(&mut self.backing_off) {
            self.hold = Some(ctx.now.mono + BACK_OFF);
        }
        if self.hold.is_some_and(|until| until <= ctx.now.mono) {
            self.hold = None;
        }
        let decide = self.has_room() && self.hold.is_none();
        if decide || self.journal.len() + self.overlay.stale() > MANY_EVENTS {
            self.overlay.merge(&mut self.journal);
            for seat in 0..self.seats.len() {
                self.run(ctx, seat, decide);
            }
            self.journal.trim();
        }
        self.pack()
    }

    /// When [`Brain::turn`] is to be called even if nothing happens, on the monotonic clock.
    pub fn wake_at(&self) -> Option<Duration> {
        if !self.has_room() {
            return None; // a batch that is settled wakes us
        }
        if self.hold.is_some() {
            return self.hold;
        }
        let due = |seat: &Seat| match seat.fresh || !seat.corrections.is_empty() {
            true => Some(Duration::ZERO),
            false => seat.wake_at,
        };
        self.seats.iter().filter_map(due).min()
    }

    /// Something was decided that is not settled yet.
    pub fn is_busy(&self) -> bool {
        !self.flying.is_empty() || !self.ready.is_empty()
    }

    /// The tables as they will be, as reconcilers saw them last.
    pub fn tables(&self) -> &Tables {
        self.overlay.tables()
    }

    fn has_room(&self) -> bool {
        self.ready.is_empty() && self.flying.len() < MAX_IN_FLIGHT
    }

    fn take_in(&mut self) {
        let index = self.overlay.committed().index();
        let visible = |f: &Flying| f.fate.as_ref().is_some_and(|(at, _)| *at <= index);
        let batches: Vec<u64> = self.flying.iter().filter(|(_, f)| visible(f)).map(|(id, _)| *id).collect();
        for batch in batches {
            let Some(Flying { numbers, fate: Some((at, results)), .. }) = self.flying.remove(&batch) else {
                continue;
            };
            for (number, result) in numbers.into_iter().zip(results) {
                self.finish(number, result.map_or_else(Outcome::Refused, |()| Outcome::Committed(at)));
            }
        }
    }

    fn run(&mut self, ctx: &mut Ctx<'_>, index: usize, decide: bool) {
        let tables = self.overlay.tables();
        let seat = &mut self.seats[index];
        let mut called = std::mem::take(&mut seat.fresh);
        for settled in seat.settled.drain(..) {
            seat.reconciler.settled(ctx, &settled, tables);
            called = true;
        }
        let corrections = std::mem::take(&mut seat.corrections);
        let news = self.journal.news(index);
        for events in news.iter().map(|part| &part[..]).chain([&corrections[..]]) {
            if !events.is_empty() {
                seat.reconciler.observe(ctx, events, tables);
                called = true;
            }
        }
        if !decide {
            seat.fresh |= called;
        } else if called || seat.wake_at.is_some_and(|at| at <= ctx.now.mono) {
            let decision = seat.reconciler.decide(ctx, tables);
            seat.wake_at = decision.wake_at;
            let assignments = seat.reconciler.assignments();
            let mut groups = decision.groups;
            self.prepare(ctx, index, &mut groups);
            // Before the groups, which may say of very many tasks why they wait.
            for assignments in assignments {
                self.plan_assignments(index, assignments);
            }
            self.plan_all(index, groups);
        }
        self.journal.caught_up(index);
    }

    /// Lets those who come later make of new tasks what they would make of them at once.
    fn prepare(&mut self, ctx: &mut Ctx<'_>, index: usize, groups: &mut [Group]) {
        let mut changed = FastSet::default();
        for (kind, id) in groups.iter().flat_map(|group| &group.patches).map(|patch| patch.write.target()) {
            if kind == Kind::Service {
                changed.insert(id.to_owned());
            }
        }
        let created = groups.iter_mut().flat_map(|group| &mut group.patches).filter_map(created_mut);
        let mut tasks: Vec<_> = created.filter(|task| !changed.contains(task.service_id.as_str())).collect();
        if !tasks.is_empty() {
            for seat in &mut self.seats[index + 1..] {
                seat.reconciler.prepare(ctx, &mut tasks, self.overlay.tables());
            }
        }
    }

    /// Puts groups on top. What only changes tasks whose creation is not handed out yet becomes a part of that.
    fn plan_all(&mut self, index: usize, groups: Vec<Group>) {
        let (mut amended, mut ids) = (Vec::new(), FastSet::default());
        let mut sizers = <[Sizer; 2]>::default();
        let (mut new, mut apart) = (Vec::new(), false);
        for group in bulk::join(groups) {
            if bulk::tasks(&group).is_some() {
                self.amend(std::mem::take(&mut amended));
                ids.clear();
                new.push(group);
                continue;
            }
            self.plan_bulk(index, std::mem::take(&mut new));
            // What comes after a change that stays by itself, stays behind it.
            let unborn = if apart { None } else { self.unborn(&group) };
            if unborn.is_none() || ids.contains(group.patches[0].write.target().1) {
                // It may look at what is amended.
                self.amend(std::mem::take(&mut amended));
                ids.clear();
            }
            match unborn.and_then(|(number, place, at)| {
                Some((number, place, self.amendment(at, &group.patches[0], &mut sizers)?))
            }) {
                Some(amendment) => {
                    let joined = self.joined.entry(amendment.0).or_default();
                    if joined.last() != Some(&(index, group.tag)) {
                        joined.push((index, group.tag));
                    }
                    ids.insert(amendment.2.id.clone());
                    amended.push(amendment);
                }
                None => {
                    apart = true;
                    self.plan(index, group);
                }
            }
        }
        self.amend(amended);
        self.plan_bulk(index, new);
    }

    /// Puts groups of new tasks on top.
    fn plan_bulk(&mut self, index: usize, groups: Vec<Group>) {
        if groups.is_empty() {
            return;
        }
        let first = self.next_group;
        let bytes: Vec<usize> = groups.iter().map(|group| bulk::bytes(group).unwrap_or_default()).collect();
        match self.overlay.plan_bulk(first, groups) {
            Ok(events) => {
                for (number, bytes) in (first..).zip(bytes) {
                    self.ready.push_back(Ready { number, bytes });
                    self.owners.insert(number, index);
                    self.next_group = number + 1;
                }
                events.into_iter().for_each(|event| self.journal.push(event));
            }
            Err(groups) => groups.into_iter().for_each(|group| self.plan(index, group)),
        }
    }

    /// The group that creates the one task that this group changes, the place there, and the group's place among those that
    /// are not handed out: if this one changes no more, on no conditions, and nobody else has to do with the task.
    fn unborn(&self, group: &Group) -> Option<(u64, usize, usize)> {
        let [patch] = &group.patches[..] else { return None };
        if !patch.guards.is_empty() || matches!(patch.write, Write::Create(_) | Write::Remove(..)) {
            return None;
        }
        let (Kind::Task, id) = patch.write.target() else { return None };
        let (number, place) = self.overlay.creator(id)?;
        let at = self.ready.binary_search_by_key(&number, |ready| ready.number).ok()?;
        Some((number, place, at))
    }

    /// The task as the patch makes it, if there is room for it in the group in this place.
    fn amendment(&mut self, at: usize, patch: &Patch, sizers: &mut [Sizer; 2]) -> Option<Shared<Task>> {
        let tables = self.overlay.tables();
        let Ok(Effect::Update(Object::Task(new))) = patch.evaluate(tables) else { return None };
        let old = tables.tasks().get(&new.id)?;
        let growth = sizers[1].bytes_of(&new).saturating_sub(sizers[0].bytes_of(old));
        if self.ready[at].bytes + growth > MAX_BATCH_BYTES {
            return None;
        }
        self.ready[at].bytes += growth;
        Some(new)
    }

    fn amend(&mut self, amended: Vec<(u64, usize, Shared<Task>)>) {
        if !amended.is_empty() {
            self.overlay.amend(amended).into_iter().for_each(|event| self.journal.push(event));
        }
    }

    fn plan(&mut self, index: usize, group: Group) {
        let seat = &mut self.seats[index];
        let tag = group.tag;
        match self.overlay.plan(self.next_group, group) {
            Ok(events) if events.is_empty() => {
                let outcome = Outcome::Committed(self.overlay.committed().index());
                seat.settled.push(Settled { tag, outcome });
            }
            Ok(events) => {
                tracing::trace!(
                    reconciler = seat.reconciler.name(),
                    patches = ?self.overlay.group(self.next_group).map(|g| &g.patches),
                    "decided"
                );
                let number = self.next_group;
                self.ready.push_back(Ready { number, bytes: events.iter().map(encoded_bytes).sum() });
                self.owners.insert(number, index);
                self.next_group += 1;
                events.into_iter().for_each(|e| self.journal.push(e));
            }
            Err((group, refused)) => {
                tracing::warn!(reconciler = seat.reconciler.name(), %refused, ?group, "decided the impossible");
                let tables = self.overlay.tables();
                for patch in &group.patches {
                    let (kind, id) = patch.write.target();
                    seat.corrections.extend(match (tables.object(kind, id), &patch.write) {
                        (Some(o), _) => Some(Event::Updated { old: o.clone(), new: o }),
                        (None, crate::Write::Create(o)) => difference(Some(o.clone()), None),
                        (None, _) => None,
                    });
                }
                seat.settled.push(Settled { tag, outcome: Outcome::Refused(refused) });
                self.backing_off = true;
            }
        }
    }

    fn plan_assignments(&mut self, index: usize, assignments: Assignments) {
        let number = self.next_group;
        self.next_group += 1;
        self.ready.push_back(Ready { number, bytes: assignments.bytes });
        self.owners.insert(number, index);
        self.assigning.insert(number, assignments);
    }

    fn pack(&mut self) -> Vec<Batch> {
        let mut batches = Vec::new();
        while self.flying.len() < MAX_IN_FLIGHT && !self.ready.is_empty() {
            let (mut numbers, mut bytes) = (Vec::new(), 0);
            while let Some(next) = self.ready.front() {
                if !numbers.is_empty() && bytes + next.bytes > MAX_BATCH_BYTES {
                    break;
                }
                bytes += next.bytes;
                numbers.push(next.number);
                self.ready.pop_front();
            }
            // Results come in this order.
            numbers.sort_by_key(|number| self.assigning.contains_key(number));
            let groups = numbers.iter().filter_map(|n| self.overlay.group(*n).cloned()).collect();
            let assignments = numbers.iter().filter_map(|n| self.assigning.get(n).cloned()).collect();
            batches.push(Batch { id: self.next_batch, groups, assignments });
            self.flying.insert(self.next_batch, Flying { numbers, seen: false, fate: None });
            self.next_batch += 1;
        }
        batches
    }
}

/// The task that a patch creates.
fn created_mut(patch: &mut Patch) -> Option<&mut Shared<Task>> {
    match &mut patch.write {
        Write::Create(Object::Task(task)) => Some(task),
        _ => None,
    }
}

/// What a change takes in a log entry.
fn encoded_bytes(event: &Event) -> usize {
    let (action, object) = match event {
        Event::Created(o) => (StoreActionKind::StoreActionCreate, o),
        Event::Updated { new, .. } => (StoreActionKind::StoreActionUpdate, new),
        Event::Removed(o) => (StoreActionKind::StoreActionRemove, o),
    };
    // The version that the store will stamp, and the field's own key and length.
    const OVERHEAD: usize = 64;
    StoreAction { action: action as i32, target: Some(object.to_target()) }.encoded_len() + OVERHEAD
}
