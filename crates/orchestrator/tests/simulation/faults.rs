//! Faults put into reconcilers on purpose: the invariants must catch each of them.

use std::sync::Arc;
use std::time::Duration;

use swarm_api::extensions::DEPENDS_ON;
use swarm_api::v1::{Task, TaskState};
use swarm_api::{Kind, Object, Shared};
use swarm_reconcile::{Assignments, Ctx, Decision, Group, Patch, Reconciler, Settled, Write};
use swarm_store::{Event, Tables};

use crate::acts::plan;
use crate::run::{Fault, run, shrink};

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

/// Updates take no heed of their parallelism.
fn haste(r: Box<dyn Reconciler>) -> Box<dyn Reconciler> {
    if r.name() != "replicated" {
        return r;
    }
    let view = |tables: &Tables| {
        let mut seen = tables.clone();
        for service in tables.services().iter() {
            let mut service = service.clone();
            let config = service.spec.update.get_or_insert_default();
            config.parallelism = 0;
            seen.replace(service.into()).unwrap();
        }
        Some(seen)
    };
    Box::new(Faulty { view, ..Faulty::new(r) })
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

const FAULTS: [(&str, Fault, &str); 11] = [
    ("twins", twins, "live tasks in"),
    ("haste", haste, "are updated at once"),
    ("omissions", omissions, "has not"),
    ("crowding", crowding, "goes to"),
    ("forgetfulness", forgetfulness, "is deleted in state"),
    ("hoarding", hoarding, "tasks are kept of"),
    ("diligence", diligence, "but"),
    ("second thoughts", second_thoughts, "became"),
    ("impatience", impatience, "starts before its time"),
    ("deafness", deafness, "has not come"),
    ("chatter", chatter, "although nothing changes"),
];

#[test]
fn faults_that_are_put_in_are_caught_and_shown_in_few_steps() {
    for (name, fault, text) in FAULTS {
        println!("{name}");
        let caught = (1..100).find_map(|seed| {
            let plan = plan(seed, 40);
            run(&plan, Some(fault)).err().filter(|error| error.contains(text)).map(|error| (plan, error))
        });
        let (plan, error) = caught.unwrap_or_else(|| panic!("{name}: nobody noticed"));
        let (short, error) = shrink(plan, error, Some(fault));
        assert!(short.len() <= 12, "{name}: {error} after {} steps: {short:?}", short.len());
        assert_eq!(run(&short, Some(fault)).unwrap_err(), error, "{name} repeats itself");
        assert!(run(&short, None).is_ok(), "{name}: it is the fault that fails");
    }
}
