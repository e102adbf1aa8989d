//! Faults put into reconcilers on purpose: the invariants must catch each of them.

use std::sync::Arc;
use std::time::Duration;

use swarm_api::extensions::DEPENDS_ON;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_config::FailureAction;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{ServiceSpec, Task, TaskState, UpdateConfig, node_spec};
use swarm_api::{Kind, Object, Shared};
use swarm_reconcile::{Assignments, Ctx, Decision, Group, Patch, Reconciler, Settled, Write};
use swarm_store::{Event, Tables};

use crate::acts::{Plan, plan};
use crate::broken::Broken;
use crate::run::{Fault, run};
use crate::shrink::shrink;

/// Changes what one reconciler decides.
struct Faulty {
    inner: Box<dyn Reconciler>,
    change: fn(&mut Decision, &mut Ctx<'_>, &Tables),
    /// Changes what it sees.
    view: fn(&Tables) -> Option<Tables>,
    /// Changes what it assigns beside its decisions.
    assign: fn(&mut Vec<Assignments>, &Tables),
    assigned: Vec<Assignments>,
    /// What it hears of.
    hear: fn(&Event) -> bool,
}

impl Faulty {
    fn new(inner: Box<dyn Reconciler>) -> Faulty {
        Faulty {
            inner,
            change: |_, _, _| {},
            view: |_| None,
            assign: |_, _| {},
            assigned: Vec::new(),
            hear: |_| true,
        }
    }
}

impl Reconciler for Faulty {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn init(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) {
        self.inner.init(ctx, tables);
    }
    fn observe(&mut self, ctx: &mut Ctx<'_>, events: &[Event], tables: &Tables) {
        let heard: Vec<Event> = events.iter().filter(|event| (self.hear)(event)).cloned().collect();
        self.inner.observe(ctx, &heard, tables);
    }
    fn prepare(&mut self, ctx: &mut Ctx<'_>, tasks: &mut [&mut Shared<Task>], tables: &Tables) {
        self.inner.prepare(ctx, tasks, tables);
    }
    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let seen = (self.view)(tables);
        let mut decision = self.inner.decide(ctx, seen.as_ref().unwrap_or(tables));
        (self.change)(&mut decision, ctx, tables);
        self.assigned = self.inner.assignments();
        (self.assign)(&mut self.assigned, tables);
        decision
    }
    fn assignments(&mut self) -> Vec<Assignments> {
        std::mem::take(&mut self.assigned)
    }
    fn settled(&mut self, ctx: &mut Ctx<'_>, settled: &Settled, tables: &Tables) {
        self.inner.settled(ctx, settled, tables);
    }
}

fn faulty(
    reconciler: Box<dyn Reconciler>,
    name: &str,
    change: fn(&mut Decision, &mut Ctx<'_>, &Tables),
) -> Box<dyn Reconciler> {
    if reconciler.name() != name {
        return reconciler;
    }
    Box::new(Faulty { change, ..Faulty::new(reconciler) })
}

/// Every replicated task is made twice.
fn twins(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "replicated", |decision, ctx, _| {
        let twin = |group: &Group, ctx: &mut Ctx<'_>| {
            let patch = group.patches.iter().find(|p| matches!(p.write, Write::Create(_)))?;
            let Write::Create(Object::Task(task)) = &patch.write else { return None };
            let mut task = task.clone();
            task.id = ctx.ids.next().into();
            Some(Group { tag: 0, patches: vec![Patch::new(Write::Create(task.into()))] })
        };
        let twins: Vec<Group> = decision.groups.iter().filter_map(|g| twin(g, ctx)).collect();
        decision.groups.extend(twins);
    })
}

/// All services are seen as this makes of them.
fn seen(tables: &Tables, change: impl Fn(&mut ServiceSpec)) -> Option<Tables> {
    let mut seen = tables.clone();
    for service in tables.services().iter() {
        let mut service = service.clone();
        change(&mut service.spec);
        seen.replace(service.into()).unwrap();
    }
    Some(seen)
}

fn blinded(r: Box<dyn Reconciler>, name: &str, view: fn(&Tables) -> Option<Tables>) -> Box<dyn Reconciler> {
    if r.name() != name {
        return r;
    }
    Box::new(Faulty { view, ..Faulty::new(r) })
}

fn hurried(tables: &Tables) -> Option<Tables> {
    seen(tables, |spec| spec.update.get_or_insert_default().parallelism = 0)
}

/// Updates take no heed of their parallelism.
fn haste(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    blinded(r, "replicated", hurried)
}

/// Nor do those of global services.
fn global_haste(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    blinded(r, "global", hurried)
}

/// Nor do rollbacks.
fn hurried_retreat(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    blinded(r, "replicated", |tables| {
        seen(tables, |spec| spec.rollback.get_or_insert_default().parallelism = 0)
    })
}

/// More tasks of jobs go on than were asked for.
fn overtime(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    blinded(r, "jobs", |tables| {
        seen(tables, |spec| {
            if let Some(Mode::ReplicatedJob(job)) = &mut spec.mode {
                job.max_concurrent += 3;
            }
        })
    })
}

/// New tasks start whether the old ones have stopped or not.
fn overlap(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "replicated", |decision, _, _| {
        for patch in decision.groups.iter_mut().flat_map(|group| &mut group.patches) {
            if let Write::Create(Object::Task(task)) = &mut patch.write {
                task.desired_state = TaskState::Running as i32;
            }
        }
    })
}

/// Tasks of services that are gone stay.
fn litter(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "removal", |decision, _, _| decision.groups.clear())
}

/// Updates that are paused are said to be complete.
fn whitewash(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "replicated", |decision, _, tables| {
        for service in tables.services().iter() {
            let state = service.update_status.as_ref().map(|status| status.state());
            if state != Some(UpdateState::Paused) {
                continue;
            }
            let edit = |object: &Object| {
                let Object::Service(service) = object else { return None };
                let mut service = service.clone();
                service.update_status.get_or_insert_default().state = UpdateState::Completed as i32;
                Some(Object::Service(service))
            };
            let write = Write::Edit {
                kind: Kind::Service,
                id: service.id.clone(),
                what: "whitewash",
                edit: Arc::new(edit),
            };
            decision.groups.push(Group { tag: 0, patches: vec![Patch::new(write)] });
        }
    })
}

/// Updates go on whatever fails.
fn carelessness(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    blinded(r, "replicated", |tables| {
        seen(tables, |spec| {
            for config in [&mut spec.update, &mut spec.rollback] {
                config.get_or_insert(UpdateConfig { parallelism: 1, ..Default::default() }).failure_action =
                    FailureAction::Continue as i32;
            }
        })
    })
}

/// Updates are given up although they were to go on.
fn anxiety(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    blinded(r, "replicated", |tables| {
        seen(tables, |spec| {
            if let Some(config) = &mut spec.update {
                config.failure_action = FailureAction::Pause as i32;
                config.max_failure_ratio = 0.0;
            }
        })
    })
}

/// Nobody sees what tasks reserve.
fn generosity(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    let forget = |event: &Event| !matches!(event.new(), Some(Object::Node(_)));
    if r.name() != "scheduler" {
        return r;
    }
    let view = |tables: &Tables| {
        let mut seen = tables.clone();
        for node in tables.nodes().iter() {
            let mut node = (**node).clone();
            let resources = node.description.get_or_insert_default().resources.get_or_insert_default();
            (resources.nano_cpus, resources.memory_bytes) = (1_000, 1_000);
            seen.replace(node.into()).unwrap();
        }
        Some(seen)
    };
    Box::new(Faulty { view, hear: forget, ..Faulty::new(r) })
}

/// What tasks took is never given back.
fn grudges(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    if r.name() != "scheduler" {
        return r;
    }
    let hear =
        |event: &Event| !matches!(event.object(), Object::Task(task) if task.status.state().is_terminal());
    Box::new(Faulty { hear, ..Faulty::new(r) })
}

/// Tasks stay on nodes on which they must not be.
fn indulgence(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "constraint enforcer", |decision, _, _| decision.groups.clear())
}

/// What ended is stopped, and nothing takes its place.
fn sloth(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "replicated", |decision, _, tables| {
        for group in &mut decision.groups {
            let ended = |p: &Patch| match &p.write {
                Write::RaiseDesired(id, TaskState::Shutdown) => {
                    tables.tasks().get(id).is_some_and(|t| t.status.state().is_terminal())
                }
                _ => false,
            };
            if group.patches.iter().any(ended) {
                group.patches.retain(|p| !matches!(p.write, Write::Create(_)));
            }
        }
    })
}

/// Held tasks are never let go.
fn stubbornness(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "replicated", |decision, _, tables| {
        let lets_go = |p: &Patch| match &p.write {
            Write::RaiseDesired(id, TaskState::Running) => tables.tasks().get(id).is_some(),
            _ => false,
        };
        decision.groups.retain(|g| !g.patches.iter().any(lets_go));
    })
}

/// Tasks on drained nodes stay there.
fn attachment(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    blinded(r, "replicated", |tables| {
        let mut seen = tables.clone();
        for node in tables.nodes().iter() {
            let mut node = (**node).clone();
            node.spec.availability = node_spec::Availability::Active as i32;
            seen.replace(node.into()).unwrap();
        }
        Some(seen)
    })
}

/// Of history, all goes.
fn purges(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "reaper", |decision, _, tables| {
        let old =
            tables.tasks().by_desired_state(TaskState::Shutdown).filter(|t| t.status.state().is_terminal());
        let forget = |id: String| Group { tag: 0, patches: vec![Patch::new(Write::Remove(Kind::Task, id))] };
        decision.groups = old.map(|t| forget(t.id.to_string())).collect();
    })
}

/// The scheduler ends what it likes.
fn presumption(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "allocator", |decision, ctx, tables| {
        if let Some(task) = tables.tasks().by_observed_state(TaskState::Running).next() {
            let (task, at) = (task.id.to_string(), ctx.now.wall);
            let (message, err) = (String::new(), String::new());
            let write = Write::RaiseState { task, state: TaskState::Complete, message, err, at };
            decision.groups.push(Group { tag: 0, patches: vec![Patch::new(write)] });
        }
    })
}

/// Who waits is told nothing.
fn silence(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "scheduler", |decision, _, _| {
        decision.groups.retain(|g| !g.patches.iter().any(|p| matches!(p.write, Write::Explain { .. })));
    })
}

/// It is woken for nothing.
fn insomnia(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "reaper", |decision, ctx, _| {
        decision.wake_at = Some(ctx.now.mono + Duration::from_secs(60));
    })
}

/// The third slot of a service is overlooked.
fn omissions(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "replicated", |decision, _, _| {
        let third = |p: &Patch| matches!(&p.write, Write::Create(Object::Task(task)) if task.slot == 3);
        decision.groups.retain(|g| !g.patches.iter().any(third));
    })
}

/// Every task goes to the first node, come what may.
fn crowding(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    if r.name() != "scheduler" {
        return r;
    }
    let assign = |assigned: &mut Vec<Assignments>, tables: &Tables| {
        let Some(first) = tables.nodes().iter().next() else { return };
        for assignments in assigned {
            let mut list = assignments.list.to_vec();
            list.iter_mut().for_each(|a| a.node = first.id.as_str().into());
            assignments.list = list.into();
        }
    };
    Box::new(Faulty { assign, ..Faulty::new(r) })
}

/// Tasks to be removed are forgotten before they have stopped.
fn forgetfulness(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "reaper", |decision, _, tables| {
        let removed = tables.tasks().by_desired_state(TaskState::Remove);
        let forget = |id: String| Group { tag: 0, patches: vec![Patch::new(Write::Remove(Kind::Task, id))] };
        decision.groups = removed.map(|t| forget(t.id.to_string())).collect();
    })
}

/// History is kept for ever.
fn hoarding(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "reaper", |decision, _, tables| {
        let removed = |p: &Patch| {
            let task = tables.tasks().get(p.write.target().1);
            task.is_some_and(|t| t.desired_state() == TaskState::Remove)
        };
        decision.groups.retain(|g| g.patches.iter().all(removed));
    })
}

/// A job does everything again.
fn diligence(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "jobs", |decision, ctx, tables| {
        let done = tables.tasks().by_observed_state(TaskState::Complete);
        let alone = |t: &Task| tables.tasks().by_slot(&t.service_id, t.slot).count() == 1;
        for old in done.filter(|t| t.job_iteration.is_some() && alone(t)) {
            let mut task = old.clone();
            task.id = ctx.ids.next().into();
            task.status.state = TaskState::New as i32;
            decision.groups.push(Group { tag: 0, patches: vec![Patch::new(Write::Create(task.into()))] });
        }
    })
}

/// Tasks that are to stop are wanted again, once.
fn second_thoughts(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "reaper", |decision, _, tables| {
        for task in tables
            .tasks()
            .by_desired_state(TaskState::Shutdown)
            .filter(|t| !t.status.state().is_terminal() && t.status.err != "once")
        {
            let edit = |object: &Object| {
                let Object::Task(task) = object else { return None };
                let mut task = task.clone();
                task.desired_state = TaskState::Running as i32;
                task.status.err = "once".into();
                Some(Object::Task(task))
            };
            let write = Write::Edit {
                kind: Kind::Task,
                id: task.id.to_string(),
                what: "revive",
                edit: Arc::new(edit),
            };
            decision.groups.push(Group { tag: 0, patches: vec![Patch::new(write)] });
        }
    })
}

/// Says the same thing in other words, for ever.
fn chatter(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    faulty(r, "reaper", |decision, ctx, tables| {
        if let Some(task) = tables.tasks().iter().next() {
            let err = format!("it is {:?}", ctx.now.mono);
            let write = Write::Explain { task: task.id.to_string(), err, at: ctx.now.wall };
            decision.groups.push(Group { tag: 0, patches: vec![Patch::new(write)] });
        }
        decision.wake_at = Some(ctx.now.mono + Duration::from_secs(900));
    })
}

/// Services wait for nobody.
fn impatience(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    if r.name() != "scheduler" {
        return r;
    }
    let view = |tables: &Tables| {
        let mut seen = tables.clone();
        for service in tables.services().iter() {
            let mut service = service.clone();
            service.spec.annotations.labels.remove(DEPENDS_ON);
            seen.replace(service.into()).unwrap();
        }
        Some(seen)
    };
    Box::new(Faulty { view, ..Faulty::new(r) })
}

/// Who waits for another service is not looked at again when that has changed.
fn deafness(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    if r.name() != "scheduler" {
        return r;
    }
    let hear = |event: &Event| match event.object() {
        Object::Task(task) => {
            task.status.state() != TaskState::Running && task.status.state() != TaskState::Complete
        }
        _ => true,
    };
    Box::new(Faulty { hear, ..Faulty::new(r) })
}

/// Each with the rules that it may break.
const FAULTS: [(&str, Fault, &[&str]); 29] = [
    ("twins", twins, &["one task is wanted in a place"]),
    ("haste", haste, &["updates keep to their pace"]),
    ("omissions", omissions, &["what can be done is done"]),
    ("crowding", crowding, &["tasks are sent where they may go"]),
    ("forgetfulness", forgetfulness, &["nothing that runs is forgotten"]),
    ("hoarding", hoarding, &["history is kept as asked"]),
    ("diligence", diligence, &["no job does again what is done"]),
    ("second thoughts", second_thoughts, &["states only move forward", "each transition has its owner"]),
    ("impatience", impatience, &["services start in their order"]),
    ("deafness", deafness, &["who waits must wait"]),
    ("global haste", global_haste, &["updates keep to their pace"]),
    ("overtime", overtime, &["jobs keep to their limit"]),
    ("overlap", overlap, &["one task runs in a place"]),
    ("litter", litter, &["what can be done is done", "nothing of the past is left"]),
    ("whitewash", whitewash, &["updates go their way"]),
    ("hurried retreat", hurried_retreat, &["updates keep to their pace"]),
    ("carelessness", carelessness, &["updates mind their failures"]),
    ("anxiety", anxiety, &["updates mind their failures"]),
    ("generosity", generosity, &["tasks are sent where they may go"]),
    ("indulgence", indulgence, &["what can be done is done"]),
    ("sloth", sloth, &["what can be done is done"]),
    ("stubbornness", stubbornness, &["what can be done is done", "updates mind their failures"]),
    ("attachment", attachment, &["what can be done is done"]),
    ("purges", purges, &["history is kept as asked"]),
    ("presumption", presumption, &["each transition has its owner"]),
    ("silence", silence, &["who waits must wait"]),
    ("insomnia", insomnia, &["it stays at rest"]),
    ("grudges", grudges, &["who waits must wait"]),
    ("chatter", chatter, &["it stays at rest", "it comes to rest"]),
];

/// The first history that shows the fault.
fn caught((name, fault, rules): (&str, Fault, &[&str])) -> (Plan, Broken) {
    let caught = (1..200).find_map(|seed| {
        let plan = plan(seed, 40);
        let broken = run(&plan, Some(fault)).err().filter(|broken| rules.contains(&broken.rule));
        broken.map(|broken| (plan, broken))
    });
    caught.unwrap_or_else(|| panic!("{name}: nobody noticed"))
}

fn is_shown_in_few_steps(planted: (&str, Fault, &[&str])) {
    let (name, fault, _) = planted;
    let (plan, broken) = caught(planted);
    let (short, broken) = shrink(plan, broken, Some(fault));
    println!("{name}: {} steps: {}", short.steps.len(), broken.rule);
    assert!(short.steps.len() <= 12, "{name}: {broken} after {} steps: {short:?}", short.steps.len());
    assert_eq!(run(&short, Some(fault)).unwrap_err(), broken, "{name} repeats itself");
    assert!(run(&short, None).is_ok(), "{name}: it is the fault that fails");
}

#[test]
fn faults_that_are_put_in_are_caught() {
    FAULTS.into_iter().for_each(|fault| drop(caught(fault)));
}

/// Some of them; all, or the one that `FAULT` names, in the long suite.
#[test]
fn faults_are_shown_in_few_steps() {
    FAULTS.into_iter().step_by(8).for_each(is_shown_in_few_steps);
}

#[test]
#[ignore = "long suite"]
fn long_every_fault_is_shown_in_few_steps() {
    let only = std::env::var("FAULT").ok();
    FAULTS
        .into_iter()
        .filter(|f| only.as_ref().is_none_or(|only| f.0 == only))
        .for_each(is_shown_in_few_steps);
}
