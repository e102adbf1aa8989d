//! How a brain runs its reconcilers.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use swarm_api::v1::{Service, Task, TaskState};
use swarm_api::{Kind, Object, Shared};
use swarm_reconcile::{
    Batch, Brain, Ctx, Decision, Fate, Group, Guard, MAX_IN_FLIGHT, Now, Outcome, Patch, Reconciler, Refused,
    SequentialIds, Settled, Write,
};
use swarm_store::{Error, Event, Store, Tables, View};

/// What a reconciler of these tests was told, in order.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    Settled(u64, &'static str),
    Event(&'static str, String),
    Decide,
}

#[derive(Default)]
struct Script {
    told: Vec<Told>,
    next: Vec<Group>,
    wake_at: Option<Duration>,
}

/// Decides what the test says and notes what it is told.
#[derive(Clone, Default)]
struct Puppet(Arc<Mutex<Script>>);

impl Puppet {
    fn will(&self, groups: impl IntoIterator<Item = Group>) {
        self.0.lock().unwrap().next.extend(groups);
    }
    fn told(&self) -> Vec<Told> {
        std::mem::take(&mut self.0.lock().unwrap().told)
    }
    /// What it was told beside being asked to decide.
    fn news(&self) -> Vec<Told> {
        self.told().into_iter().filter(|t| *t != Told::Decide).collect()
    }
}

impl Reconciler for Puppet {
    fn name(&self) -> &'static str {
        "puppet"
    }
    fn init(&mut self, _: &mut Ctx<'_>, _: &Tables) {}
    fn observe(&mut self, _: &mut Ctx<'_>, events: &[Event], _: &Tables) {
        let told = events.iter().map(|e| {
            let what = match e {
                Event::Created(_) => "created",
                Event::Updated { .. } => "updated",
                Event::Removed(_) => "removed",
            };
            Told::Event(what, e.id().to_owned())
        });
        self.0.lock().unwrap().told.extend(told);
    }
    fn decide(&mut self, _: &mut Ctx<'_>, _: &Tables) -> Decision {
        let mut script = self.0.lock().unwrap();
        script.told.push(Told::Decide);
        Decision { groups: std::mem::take(&mut script.next), wake_at: script.wake_at }
    }
    fn settled(&mut self, _: &mut Ctx<'_>, settled: &Settled, _: &Tables) {
        let outcome = match settled.outcome {
            Outcome::Committed(_) => "committed",
            Outcome::Refused(_) => "refused",
            Outcome::Lost => "lost",
        };
        self.0.lock().unwrap().told.push(Told::Settled(settled.tag, outcome));
    }
}

struct Bench {
    brain: Brain,
    puppets: Vec<Puppet>,
    ids: SequentialIds,
    tables: Tables,
    index: u64,
    mono: Duration,
}

impl Bench {
    /// A brain with this many puppets on tables with these tasks.
    fn new(puppets: usize, tasks: &[&str]) -> Bench {
        let puppets: Vec<Puppet> = (0..puppets).map(|_| Puppet::default()).collect();
        let boxed = puppets.iter().map(|p| Box::new(p.clone()) as Box<dyn Reconciler>).collect();
        let mut tables = Tables::default();
        for id in tasks {
            tables.insert(task(id)).unwrap();
        }
        let mut bench = Bench {
            brain: Brain::new(boxed),
            puppets,
            ids: SequentialIds::default(),
            tables,
            index: 1,
            mono: Duration::ZERO,
        };
        let view = bench.view();
        bench.with(|brain, ctx| brain.start(ctx, view));
        bench.turn();
        bench.puppets.iter().for_each(|p| drop(p.told()));
        bench
    }
    fn view(&self) -> View {
        View::new(self.tables.clone(), self.index)
    }
    fn with<R>(&mut self, f: impl FnOnce(&mut Brain, &mut Ctx<'_>) -> R) -> R {
        let now = Now { mono: self.mono, wall: SystemTime::UNIX_EPOCH + self.mono };
        f(&mut self.brain, &mut Ctx { now, ids: &mut self.ids })
    }
    fn turn(&mut self) -> Vec<Batch> {
        self.with(|brain, ctx| brain.turn(ctx))
    }
    /// Commits these patches; the brain is told.
    fn commit(&mut self, patches: &[Patch]) -> u64 {
        let events: Vec<Event> = patches.iter().filter_map(|p| p.apply(&mut self.tables).unwrap()).collect();
        self.index += 1;
        let view = self.view();
        self.brain.committed(&events, &view);
        self.index
    }
    /// Commits a whole batch.
    fn commit_batch(&mut self, batch: &Batch) -> u64 {
        let patches: Vec<Patch> = batch.groups.iter().flat_map(|g| g.patches.clone()).collect();
        self.commit(&patches)
    }
    fn written(&mut self, batch: &Batch, index: u64) {
        self.brain.settle(batch.id, Fate::Written(index, batch.groups.iter().map(|_| Ok(())).collect()));
    }
    fn explained(&self, id: &str) -> String {
        self.brain.tables().tasks().get(id).map_or("gone".into(), |t| t.status.err.to_string())
    }
}

fn task(id: &str) -> Object {
    Task { id: id.into(), ..Default::default() }.into()
}

fn explain(id: &str, err: &str) -> Patch {
    Patch::new(Write::Explain { task: id.into(), err: err.into(), at: SystemTime::UNIX_EPOCH })
}

fn create(id: &str) -> Patch {
    Patch::new(Write::Create(task(id)))
}

fn group(tag: u64, patches: impl IntoIterator<Item = Patch>) -> Group {
    Group { tag, patches: patches.into_iter().collect() }
}

fn event(what: &'static str, id: &str) -> Told {
    Told::Event(what, id.into())
}

/// Wakes the first puppet by a commit that touches the task `knock`, so that it decides.
fn knock(bench: &mut Bench, text: &str) {
    bench.commit(&[explain("knock", text)]);
}

#[test]
fn later_reconcilers_see_what_earlier_ones_decided_in_the_same_turn() {
    let mut bench = Bench::new(2, &["knock"]);
    bench.puppets[0].will([group(1, [create("new")])]);
    bench.puppets[1].will([group(2, [explain("new", "seen")])]);
    knock(&mut bench, "now");
    let batches = bench.turn();
    assert_eq!(batches.len(), 1, "one transaction for the whole turn");
    assert_eq!(batches[0].groups.len(), 2);
    assert_eq!(bench.puppets[0].news(), [event("updated", "knock")]);
    assert_eq!(bench.puppets[1].news(), [event("updated", "knock"), event("created", "new")]);
    assert_eq!(bench.explained("new"), "seen");
    let index = bench.commit_batch(&batches[0]);
    bench.written(&batches[0], index);
    bench.turn();
    let settled = Told::Settled(1, "committed");
    assert_eq!(bench.puppets[0].news(), [settled, event("updated", "new")], "by the one after it");
    assert_eq!(bench.puppets[1].news(), [Told::Settled(2, "committed")]);
    assert!(!bench.brain.is_busy());
}

#[test]
fn a_fate_takes_effect_with_its_commit_whichever_comes_first() {
    for fate_first in [true, false] {
        let mut bench = Bench::new(1, &["knock", "a"]);
        bench.puppets[0].will([group(7, [explain("a", "x")])]);
        knock(&mut bench, "now");
        let batch = bench.turn().remove(0);
        bench.puppets[0].told();
        if fate_first {
            bench.written(&batch, bench.index + 1);
            bench.turn();
            assert_eq!(bench.puppets[0].told(), [], "not before the commit is here");
            bench.commit_batch(&batch);
        } else {
            let index = bench.commit_batch(&batch);
            bench.turn();
            assert_eq!(bench.puppets[0].news(), []);
            bench.written(&batch, index);
        }
        bench.turn();
        assert_eq!(bench.puppets[0].news(), [Told::Settled(7, "committed")]);
        assert_eq!(bench.explained("a"), "x");
    }
}

#[test]
fn a_refused_group_is_settled_and_its_absence_observed() {
    let mut bench = Bench::new(2, &["knock", "a"]);
    bench.puppets[0].will([group(1, [create("new"), explain("a", "x")]), group(2, [explain("a", "y")])]);
    knock(&mut bench, "now");
    let batch = bench.turn().remove(0);
    bench.puppets.iter().for_each(|p| drop(p.told()));
    assert_eq!(bench.explained("a"), "y");
    let refused = Refused::Guard(Guard::Exists(Kind::Task, "other".into()));
    let index = bench.commit(&[explain("a", "y")]);
    bench.brain.settle(batch.id, Fate::Written(index, vec![Err(refused), Ok(())]));
    bench.turn();
    let told = bench.puppets[0].news();
    assert_eq!(told, [Told::Settled(1, "refused"), Told::Settled(2, "committed"), event("removed", "new")]);
    assert_eq!(bench.puppets[1].news(), [event("removed", "new")]);
    assert_eq!(bench.explained("new"), "gone");
}

#[test]
fn a_commit_that_contradicts_a_group_in_flight_shows_at_once() {
    let mut bench = Bench::new(1, &["knock", "a", "b"]);
    let guard = Guard::Exists(Kind::Task, "b".into());
    bench.puppets[0].will([group(1, [explain("a", "x").guard(guard)])]);
    knock(&mut bench, "now");
    bench.turn();
    assert_eq!(bench.explained("a"), "x");
    bench.puppets[0].told();
    bench.commit(&[Patch::new(Write::Remove(Kind::Task, "b".into()))]);
    bench.turn();
    assert_eq!(bench.explained("a"), "");
    assert_eq!(bench.puppets[0].news(), [event("removed", "b"), event("updated", "a")]);
}

#[test]
fn what_others_write_in_between_survives_with_what_is_in_flight() {
    let mut bench = Bench::new(1, &["knock", "a"]);
    bench.puppets[0].will([group(1, [Patch::new(Write::RaiseDesired("a".into(), TaskState::Shutdown))])]);
    knock(&mut bench, "now");
    bench.turn();
    bench.commit(&[explain("a", "by an agent")]);
    bench.turn();
    let task = bench.brain.tables().tasks().get("a").unwrap().clone();
    assert_eq!((task.desired_state(), &task.status.err[..]), (TaskState::Shutdown, "by an agent"));
}

#[test]
fn batches_are_cut_by_size_and_few_are_in_flight() {
    let mut bench = Bench::new(1, &["knock"]);
    let big = "x".repeat(400_000);
    for n in 0..12 {
        bench.tables.insert(task(&format!("t{n:02}"))).unwrap();
    }
    let view = bench.view();
    bench.brain.lagged(&view);
    bench.turn();
    let groups = (0..12).map(|n| group(n, [explain(&format!("t{n:02}"), &big)]));
    bench.puppets[0].will(groups);
    knock(&mut bench, "now");
    let batches = bench.turn();
    assert_eq!(batches.iter().map(|b| b.groups.len()).collect::<Vec<_>>(), [2; MAX_IN_FLIGHT]);
    // No more decisions while decided groups wait.
    bench.puppets[0].told();
    bench.puppets[0].will([group(99, [explain("knock", "later")])]);
    knock(&mut bench, "again");
    assert!(bench.turn().is_empty());
    assert_eq!(bench.puppets[0].told(), []);
    assert_eq!(bench.brain.wake_at(), None, "a settled batch wakes, not the clock");
    let index = bench.commit_batch(&batches[0]);
    bench.written(&batches[0], index);
    let more = bench.turn();
    assert_eq!(more.iter().map(|b| b.groups.len()).collect::<Vec<_>>(), [2]);
    assert_eq!(more[0].groups[0].tag, 8, "in the order of decision");
}

#[test]
fn a_group_is_never_split_and_a_batch_too_large_is_halved() {
    let mut bench = Bench::new(1, &["knock", "a", "b", "c", "d", "e"]);
    let all = ["a", "b", "c", "d", "e"].map(|id| group(1, [explain(id, &"x".repeat(100))]));
    bench.puppets[0].will(all);
    knock(&mut bench, "now");
    let [batch] = &bench.turn()[..] else { panic!("one batch") };
    assert_eq!(batch.groups.len(), 5);
    bench.brain.settle(batch.id, Fate::Failed(Error::TooLarge));
    let halves = bench.turn();
    assert_eq!(halves.iter().map(|b| b.groups.len()).collect::<Vec<_>>(), [2, 2, 1]);
    bench.brain.settle(halves[0].id, Fate::Failed(Error::TooLarge));
    assert_eq!(bench.turn().iter().map(|b| b.groups.len()).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn decisions_that_a_store_refuses_are_settled_and_taken_back_without_a_busy_loop() {
    let mut bench = Bench::new(1, &["knock", "a"]);
    bench.puppets[0].will([group(5, [explain("a", "x")])]);
    knock(&mut bench, "now");
    let batch = bench.turn().remove(0);
    bench.puppets[0].told();
    bench.brain.settle(batch.id, Fate::Failed(Error::TooLarge));
    bench.turn();
    assert_eq!(bench.puppets[0].told(), [], "not at once");
    let at = bench.brain.wake_at().unwrap();
    assert!(at > bench.mono);
    bench.mono = at;
    bench.turn();
    assert_eq!(bench.puppets[0].news(), [Told::Settled(5, "refused"), event("updated", "a")]);
}

#[test]
fn a_decision_that_does_not_hold_on_its_own_tables_never_reaches_the_store() {
    let mut bench = Bench::new(1, &["knock", "a"]);
    let guard = Guard::Exists(Kind::Task, "nobody".into());
    bench.puppets[0].will([group(5, [explain("a", "x").guard(guard), create("new")])]);
    knock(&mut bench, "now");
    assert!(bench.turn().is_empty());
    bench.puppets[0].told();
    bench.turn();
    bench.mono = bench.brain.wake_at().unwrap();
    bench.turn();
    let told = bench.puppets[0].news();
    assert_eq!(told, [Told::Settled(5, "refused"), event("updated", "a"), event("removed", "new")]);
}

#[test]
fn a_reconciler_that_has_no_news_is_not_asked_until_it_is_due() {
    let mut bench = Bench::new(1, &["knock"]);
    bench.puppets[0].0.lock().unwrap().wake_at = Some(Duration::from_secs(9));
    knock(&mut bench, "now");
    bench.turn();
    bench.puppets[0].told();
    assert_eq!(bench.brain.wake_at(), Some(Duration::from_secs(9)));
    bench.mono = Duration::from_secs(8);
    bench.turn();
    assert_eq!(bench.puppets[0].told(), []);
    bench.mono = Duration::from_secs(9);
    bench.turn();
    assert_eq!(bench.puppets[0].told(), [Told::Decide]);
}

#[test]
fn a_change_that_changes_nothing_is_settled_without_a_transaction() {
    let mut bench = Bench::new(1, &["knock", "a"]);
    bench.puppets[0].will([group(3, [explain("a", "")])]);
    knock(&mut bench, "now");
    assert!(bench.turn().is_empty());
    knock(&mut bench, "again");
    bench.turn();
    let told = bench.puppets[0].news();
    assert_eq!(told, [event("updated", "knock"), Told::Settled(3, "committed"), event("updated", "knock")]);
}

#[test]
fn groups_are_written_whole_or_not_at_all() {
    let store = Store::local();
    let groups = vec![
        group(0, [create("a"), create("b")]),
        group(1, [create("c"), create("a")]),
        group(2, [explain("b", "x"), explain("nobody", "x")]),
        group(3, [create("d"), explain("d", "in the same group")]),
        group(4, [Patch::new(Write::Remove(Kind::Task, "b".into())), explain("a", "y")]),
    ];
    let batch = Batch { id: 0, groups: groups.into_iter().map(Arc::new).collect(), assignments: Vec::new() };
    let write = store.update(|tx| batch.apply(tx));
    let (results, _) = futures::executor::block_on(write).unwrap();
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false, true, true]);
    let view = store.view();
    let left: Vec<_> = view.tasks().iter().map(|t| (&t.id[..], &t.status.err[..])).collect();
    assert_eq!(left, [("a", "y"), ("d", "in the same group")]);
}

#[test]
fn new_tasks_are_one_group_with_what_is_decided_of_them_in_the_same_turn() {
    let mut bench = Bench::new(2, &["knock"]);
    bench.puppets[0].will(["a", "b", "c"].map(|id| group(1, [create(id)])));
    let guarded = explain("c", "guarded").guard(Guard::Exists(Kind::Task, "a".into()));
    bench.puppets[1].will([
        group(2, [explain("a", "once")]),
        group(2, [explain("b", "once")]),
        group(2, [explain("a", "twice")]),
        group(3, [guarded]),
        group(4, [explain("c", "after it")]),
    ]);
    knock(&mut bench, "now");
    let [batch] = &bench.turn()[..] else { panic!("one batch") };
    let tags: Vec<_> = batch.groups.iter().map(|g| (g.tag, g.patches.len())).collect();
    assert_eq!(tags, [(1, 3), (3, 1), (4, 1)], "conditions, and what comes after them, stay by themselves");
    let errors: Vec<String> = batch.groups[0]
        .patches
        .iter()
        .map(|patch| match &patch.write {
            Write::Create(Object::Task(task)) => task.status.err.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(errors, ["twice", "once", ""]);
    assert_eq!(["a", "b", "c"].map(|id| bench.explained(id)), ["twice", "once", "after it"]);
    let created = ["a", "b", "c"].map(|id| event("created", id));
    assert_eq!(bench.puppets[1].news()[1..], created);
    let index = bench.commit_batch(batch);
    bench.written(batch, index);
    bench.turn();
    let settled = |tag| Told::Settled(tag, "committed");
    let told = bench.puppets[0].news();
    assert_eq!(told[..2], [event("updated", "knock"), settled(1)]);
    assert!(told[2..].iter().all(|told| matches!(told, Told::Event("updated", _))), "by the other: {told:?}");
    assert_eq!(bench.puppets[1].news(), [settled(2), settled(3), settled(4)]);
    assert!(!bench.brain.is_busy());
}

/// Gives new tasks a slot.
struct Numbering;

impl Reconciler for Numbering {
    fn name(&self) -> &'static str {
        "numbering"
    }
    fn init(&mut self, _: &mut Ctx<'_>, _: &Tables) {}
    fn observe(&mut self, _: &mut Ctx<'_>, _: &[Event], _: &Tables) {}
    fn prepare(&mut self, _: &mut Ctx<'_>, tasks: &mut [&mut Shared<Task>], _: &Tables) {
        tasks.iter_mut().for_each(|task| task.slot += 7);
    }
    fn decide(&mut self, _: &mut Ctx<'_>, _: &Tables) -> Decision {
        Decision::default()
    }
}

#[test]
fn who_comes_later_prepares_new_tasks_unless_their_service_changes_with_them() {
    let slots = |puppet_first: bool, changes: bool| {
        let puppet = Puppet::default();
        let mut all: Vec<Box<dyn Reconciler>> = vec![Box::new(puppet.clone()), Box::new(Numbering)];
        if !puppet_first {
            all.reverse();
        }
        let of = |id: &str, service: &str| {
            let task = Task { id: id.into(), service_id: service.into(), ..Default::default() };
            group(1, [Patch::new(Write::Create(task.into()))])
        };
        puppet.will([of("a", "s1"), of("b", "s2")]);
        if changes {
            let service = Service { id: "s2".into(), ..Default::default() };
            puppet.will([group(1, [Patch::new(Write::Create(service.into()))])]);
        }
        let mut brain = Brain::new(all);
        let mut ids = SequentialIds::default();
        let mut ctx = Ctx { now: Now { mono: Duration::ZERO, wall: SystemTime::UNIX_EPOCH }, ids: &mut ids };
        brain.start(&mut ctx, View::new(Tables::default(), 1));
        brain.turn(&mut ctx);
        ["a", "b"].map(|id| brain.tables().tasks().get(id).unwrap().slot)
    };
    assert_eq!(slots(true, false), [7, 7]);
    assert_eq!(slots(true, true), [7, 0]);
    assert_eq!(slots(false, false), [0, 0]);
}

#[test]
fn new_tasks_that_are_refused_are_gone_for_all_who_had_to_do_with_them() {
    let mut bench = Bench::new(2, &["knock"]);
    bench.puppets[0].will(["a", "b"].map(|id| group(1, [create(id)])));
    bench.puppets[1].will([group(2, [explain("b", "x")])]);
    knock(&mut bench, "now");
    let batch = bench.turn().remove(0);
    bench.puppets.iter().for_each(|p| drop(p.told()));
    let index = bench.commit(&[]);
    let refused = Refused::Guard(Guard::Exists(Kind::Service, "s".into()));
    bench.brain.settle(batch.id, Fate::Written(index, vec![Err(refused)]));
    bench.turn();
    let gone = ["a", "b"].map(|id| event("removed", id));
    assert_eq!(bench.puppets[1].news(), [&[Told::Settled(2, "refused")], &gone[..]].concat());
    assert_eq!(bench.explained("b"), "gone");
}

#[test]
fn new_tasks_on_different_conditions_stay_apart_and_fail_apart() {
    let store = Store::local();
    let node = |id: &str| swarm_api::v1::Node { id: id.into(), ..Default::default() };
    futures::executor::block_on(store.update(|tx| tx.create(node("n")).map(drop))).unwrap();
    let on = |id: &str, node: &str| create(id).guard(Guard::Exists(Kind::Node, node.into()));
    let plain = |id: &str| create(id);
    let groups = vec![
        group(0, [on("a", "n"), plain("b")]),
        group(0, [on("c", "other"), plain("d")]),
        group(0, [on("e", "n"), plain("f")]),
        group(0, [on("g", "n"), plain("a")]),
    ];
    let batch = Batch { id: 0, groups: groups.into_iter().map(Arc::new).collect(), assignments: Vec::new() };
    let (results, _) = futures::executor::block_on(store.update(|tx| batch.apply(tx))).unwrap();
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, false]);
    assert_eq!(results[3], Err(Refused::Store(Error::Exists)));
    let view = store.view();
    assert_eq!(view.tasks().iter().map(|t| &t.id[..]).collect::<Vec<_>>(), ["a", "b", "e", "f"]);

    let mut bench = Bench::new(1, &["knock"]);
    bench.tables.insert(node("n").into()).unwrap();
    let view = bench.view();
    bench.brain.lagged(&view);
    bench.puppets[0].will([group(1, [on("a", "n")]), group(1, [on("b", "n")]), group(1, [plain("c")])]);
    knock(&mut bench, "now");
    let [batch] = &bench.turn()[..] else { panic!("one batch") };
    assert_eq!(batch.groups.iter().map(|g| g.patches.len()).collect::<Vec<_>>(), [2, 1]);
    let guards: Vec<usize> = batch.groups[0].patches.iter().map(|patch| patch.guards.len()).collect();
    assert_eq!(guards, [1, 0], "once for both");
}
