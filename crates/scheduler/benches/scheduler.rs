//! How long decisions take: a thousand nodes, ten thousand tasks at once, and one task at a time.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::{Duration, SystemTime};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use swarm_api::v1::{
    Node, NodeDescription, Placement, ResourceRequirements, Resources, Service, Task, TaskSpec, TaskState,
    Version, node_spec, node_status,
};
use swarm_api::{Object, Shared};
use swarm_reconcile::{Ctx, Now, Reconciler, SequentialIds};
use swarm_scheduler::Scheduler;
use swarm_store::{Event, Tables};

const NODES: usize = 1_000;
const TASKS: usize = 10_000;

fn nodes(tables: &mut Tables) {
    for i in 0..NODES {
        let mut node = Node { id: format!("node{i:021}"), ..Default::default() };
        node.status.state = node_status::State::Ready as i32;
        node.spec.availability = node_spec::Availability::Active as i32;
        node.spec.annotations.labels.insert("zone".to_owned(), format!("zone{}", i % 7));
        let resources = Resources { nano_cpus: 16_000_000_000, memory_bytes: 64 << 30, generic: vec![] };
        node.description = Some(NodeDescription { resources: Some(resources), ..Default::default() });
        tables.insert(node.into()).unwrap();
    }
}

fn spec(constraints: &[&str], memory_bytes: i64) -> Shared<TaskSpec> {
    let constraints = constraints.iter().map(|c| (*c).to_owned()).collect();
    let reservations = Some(Resources { nano_cpus: 1_000_000, memory_bytes, ..Default::default() });
    TaskSpec {
        placement: Some(Placement { constraints, ..Default::default() }),
        resources: Some(ResourceRequirements { reservations, ..Default::default() }),
        ..Default::default()
    }
    .into()
}

fn tasks(tables: &mut Tables, services: usize, count: usize, spec: &Shared<TaskSpec>) -> Vec<Event> {
    for service in 0..services {
        let mut service = Service { id: format!("service{service:018}"), ..Default::default() };
        service.spec.annotations.name = service.id.clone();
        tables.insert(service.into()).unwrap();
    }
    let task = |i: usize| {
        let mut task = Task {
            id: format!("task{i:021}"),
            service_id: format!("service{:018}", i % services),
            slot: i as u64,
            desired_state: TaskState::Running as i32,
            spec: spec.clone(),
            spec_version: Some(Version { index: 1 }),
            ..Default::default()
        };
        task.status.state = TaskState::Pending as i32;
        tables.insert(task.into()).unwrap()
    };
    (0..count).map(task).collect()
}

/// A scheduler that knows these tables.
fn scheduler(tables: &Tables, ids: &mut SequentialIds) -> Scheduler {
    let mut scheduler = Scheduler::new();
    scheduler.init(&mut ctx(ids), tables);
    scheduler.decide(&mut ctx(ids), tables);
    scheduler
}

fn ctx(ids: &mut SequentialIds) -> Ctx<'_> {
    Ctx { now: Now { mono: Duration::from_secs(1), wall: SystemTime::UNIX_EPOCH }, ids }
}

/// Everything at once: what a scheduler that knew only the nodes needs for all tasks.
fn at_once(c: &mut Criterion, name: &str, services: usize, spec: &Shared<TaskSpec>, placed: usize) {
    let mut tables = Tables::default();
    nodes(&mut tables);
    let before = tables.clone();
    let events = tasks(&mut tables, services, TASKS, spec);
    c.bench_function(name, |b| {
        b.iter_batched(
            || scheduler(&before, &mut SequentialIds::default()),
            |mut scheduler| {
                let mut ids = SequentialIds::default();
                scheduler.observe(&mut ctx(&mut ids), &events, &tables);
                let decision = scheduler.decide(&mut ctx(&mut ids), &tables);
                assert_eq!(decision.groups.len(), placed);
                black_box((scheduler, decision))
            },
            BatchSize::LargeInput,
        );
    });
}

fn benches(c: &mut Criterion) {
    at_once(c, "10,000 tasks of one service at once", 1, &spec(&[], 1 << 20), TASKS);
    at_once(
        c,
        "10,000 tasks of 1,000 services at once",
        1_000,
        &spec(&["node.labels.zone==zone3"], 1 << 20),
        TASKS,
    );
    at_once(
        c,
        "10,000 tasks that fit nowhere",
        10_000,
        &spec(&["node.labels.zone==nowhere"], 1 << 20),
        TASKS,
    );

    // One task comes, is placed, and goes again, beside ten thousand that run.
    let mut tables = Tables::default();
    nodes(&mut tables);
    tasks(&mut tables, 100, TASKS, &spec(&[], 1 << 20));
    let mut ids = SequentialIds::default();
    let mut busy = scheduler(&tables, &mut ids);
    let mut task = Task::clone(tables.tasks().iter().next().unwrap());
    task.id = "one".to_owned();
    c.bench_function("one task beside 10,000", |b| {
        b.iter(|| {
            let created = tables.insert(task.clone().into()).unwrap();
            busy.observe(&mut ctx(&mut ids), &[created], &tables);
            assert_eq!(busy.decide(&mut ctx(&mut ids), &tables).groups.len(), 1);
            let removed = tables.remove(swarm_api::Kind::Task, "one").unwrap();
            busy.observe(&mut ctx(&mut ids), &[removed], &tables);
            busy.decide(&mut ctx(&mut ids), &tables)
        });
    });

    // A node flaps while a thousand services wait for something else.
    let mut tables = Tables::default();
    nodes(&mut tables);
    tasks(&mut tables, 1_000, 1_000, &spec(&["node.labels.zone==nowhere"], 1 << 20));
    let mut waiting = scheduler(&tables, &mut ids);
    let mut version = 0;
    c.bench_function("one node changes while 1,000 services wait", |b| {
        b.iter(|| {
            version += 1;
            let mut node = tables.nodes().iter().next().unwrap().clone();
            node.spec.annotations.labels.insert("x".to_owned(), version.to_string());
            let changed = tables.replace(Object::Node(node)).unwrap();
            waiting.observe(&mut ctx(&mut ids), &[changed], &tables);
            assert!(waiting.decide(&mut ctx(&mut ids), &tables).groups.is_empty());
        });
    });
}

criterion_group! {
    name = all;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(4));
    targets = benches
}
criterion_main!(all);
